"""What a fit costs against its number of users: seconds and resident memory, a process each.

A process of its own per number of users, since what one fit leaves behind is nobody's memory
afterwards. The child (``python -m tests.bench.fit N``) warms up on a few users, then fits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from chameleon_lib.backbones import embedder
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.demo.world import WorldSettings, build_world
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.kit.progress import tell
from chameleon_lib.studies.loading import settings_for
from tests.bench.measure import Goal, Ratio, Row, resident, restart_peak
from tests.bench.models import embedded_backbone

_FLAT = Goal(1.2, at_least=False)
_WARM_UP = 10
_TASK, _FAMILY = "LaMP_3", "decoder"


@dataclass(frozen=True)
class Cost:
    """What one fit took: pairs with different answers, CPU seconds of all stages, the highest
    resident set and what of it came on top of the start (MiB; 0 where the system does not tell)."""

    users: int
    pairs: int
    seconds: float
    resident: float
    above: float
    model: str


def measure(users: Sequence[int], fit: Callable[[int], Cost] | None = None) -> list[Row]:
    """Seconds per user against the fewest, and memory of the most against the next fewer.

    ``fit`` is what measures one number of users; a process of its own by default.
    """
    costs = []
    for count in users:
        tell(f"fit: {count} users")
        costs.append((fit or in_process)(count))
    first, before, last = costs[0], costs[-2], costs[-1]
    setting = f"{first.model}; {_TASK}, one process each: " + "; ".join(
        f"{cost.users} users, {cost.pairs} pairs, {cost.seconds:.1f} s CPU, "
        f"{cost.resident:.0f} MiB resident ({cost.above:.0f} above the start)"
        for cost in costs
    )
    rows = []
    for cost in costs[1:]:
        ratio = Ratio.of([cost.seconds / cost.users / (first.seconds / first.users)])
        what, than = f"Fit, seconds per user: {cost.users} users", f"{first.users} users"
        rows.append(Row(what, setting, than, ratio, None, None, "one run each"))
    memory = Ratio.of([last.resident / before.resident]) if before.resident else None
    why = "one run each" if memory else "this system has no /proc to read the memory from"
    what, than = f"Fit, resident memory: {last.users} users", f"{before.users} users"
    return [*rows, Row(what, setting, than, memory, _FLAT if memory else None, None, why)]


def in_process(users: int) -> Cost:
    """The cost of a fit of so many users, measured in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.fit", str(users)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def cost_of(users: int) -> Cost:
    """Fits in this process: the paper's edit of that many users of the embedded world."""
    torch.set_num_threads(1)
    world = build_world(_TASK, WorldSettings(users=(max(users, _WARM_UP), 0, 0)))
    everyone = world.users["train"]
    settings = settings_for(get_profile("demo"), pairs_on_too_few="warn")
    backbone, name = embedded_backbone(_FAMILY)
    model = Chameleon(backbone, embedder.load_embedder(), settings)
    model.fit(everyone[:_WARM_UP])  # what the first fit loads stays
    before = restart_peak()
    start = time.process_time()
    profile = model.fit(everyone[:users])
    seconds = time.process_time() - start
    highest = resident("VmHWM")
    return Cost(users, profile.n_pairs, seconds, highest, highest - before, name)


if __name__ == "__main__":
    print(json.dumps(asdict(cost_of(int(sys.argv[1])))))
