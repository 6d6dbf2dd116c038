"""What a fit costs against its number of users: seconds and resident memory, a process each.

A process of its own per number of users, since what one fit leaves behind is nobody's memory
afterwards. The child (``python -m chameleon_lib.bench.fit N``) warms up on a few users, then fits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from chameleon_lib.bench.memory import resident, restart_peak
from chameleon_lib.bench.rows import Goal, Row
from chameleon_lib.bench.timing import Ratio
from chameleon_lib.errors import UserError
from chameleon_lib.kit.progress import tell

_FLAT = Goal(1.2, at_least=False)
_WARM_UP = 10
_TASK, _FAMILY = "LaMP_3", "decoder"


@dataclass(frozen=True)
class FitWork:
    """Sizes: numbers of users, ascending; goals compare the last two."""

    users: tuple[int, ...] = (10, 100, 1000)


@dataclass(frozen=True)
class Cost:
    """What one fit took.

    Attributes:
        users: Users whose pairs were pooled.
        pairs: Pairs with different answers.
        seconds: CPU seconds of the fit, all stages.
        resident: Highest resident set during the fit, MiB; 0 where the system does not tell.
        above: How much of it came on top of what was resident before the fit, MiB.
        model: What was fitted, as other parts name it: not always the embedded checkpoint.
    """

    users: int
    pairs: int
    seconds: float
    resident: float
    above: float
    model: str


def measure(work: FitWork, fit: Callable[[int], Cost] | None = None) -> list[Row]:
    """Memory of the most users against the next fewer, and seconds per user against the fewest.

    Args:
        work: Numbers of users, at least two.
        fit: What measures one number of users; a process of its own by default.
    """
    costs = []
    for users in work.users:
        tell(f"fit: {users} users")
        costs.append((fit or in_process)(users))
    first, before, last = costs[0], costs[-2], costs[-1]
    setting = f"{first.model}; {_TASK}, one process each: " + "; ".join(
        f"{cost.users} users, {cost.pairs} pairs, {cost.seconds:.1f} s CPU, "
        f"{cost.resident:.0f} MiB resident ({cost.above:.0f} above the start)"
        for cost in costs
    )
    rows = [
        Row(
            f"Fit, seconds per user: {cost.users} users",
            setting,
            f"{first.users} users",
            _once(cost.seconds / cost.users, first.seconds / first.users),
            None,
            None,
            "one run each",
            alone=True,
        )
        for cost in costs[1:]
    ]
    memory = None if not before.resident else _once(last.resident, before.resident)
    rows.append(
        Row(
            f"Fit, resident memory: {last.users} users",
            setting,
            f"{before.users} users",
            memory,
            _FLAT if memory else None,
            None,
            "one run each" if memory else "this system has no /proc to read the memory from",
            alone=True,
        )
    )
    return rows


def _once(above: float, below: float) -> Ratio:
    ratio = above / below
    return Ratio(ratio, ratio, ratio, 1)


def in_process(users: int) -> Cost:
    """The cost of a fit of so many users, measured in a process of its own.

    Raises:
        UserError: The process failed; with its last line.
    """
    command = [sys.executable, "-m", "chameleon_lib.bench.fit", str(users)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"The fit of {users} users failed: {lines[-1]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def cost_of(users: int) -> Cost:
    """Fits in this process: the paper's edit of that many users of the embedded world."""
    import torch

    from chameleon_lib.backbones.demo.world import WorldSettings, build_world
    from chameleon_lib.backbones.embedder import load_embedder
    from chameleon_lib.bench.models import embedded_backbone
    from chameleon_lib.core.chameleon import Chameleon
    from chameleon_lib.kit.profiles import get_profile
    from chameleon_lib.sections.loading import settings_for

    torch.set_num_threads(1)
    world = build_world(_TASK, WorldSettings(users=(max(users, _WARM_UP), 0, 0)))
    everyone = world.users["train"]
    settings = settings_for(get_profile("demo"), pairs_on_too_few="warn")
    backbone, name = embedded_backbone(_FAMILY)
    model = Chameleon(backbone, load_embedder(), settings)
    model.fit(everyone[:_WARM_UP])  # what the first fit loads stays
    before = restart_peak()
    start = time.process_time()
    profile = model.fit(everyone[:users])
    seconds = time.process_time() - start
    highest = resident("VmHWM")
    return Cost(users, profile.n_pairs, seconds, highest, highest - before, name)


if __name__ == "__main__":
    print(json.dumps(asdict(cost_of(int(sys.argv[1])))))
