"""Rounding noise in every backbone, and what of a run's outputs keeps its bytes under it.

    python tests/noise.py                  all notebooks of the demo (a cold run: 15 to 30 minutes)
    python tests/noise.py --only 03,07     these alone (99 judges what it finds, so leave it out)
    python tests/noise.py --clean DIR --noisy DIR    compare two outputs folders made earlier

Not collected by pytest. The profile runs from nothing, in a scratch folder with a cache of its own;
in each of its processes every output of an edited MLP and every logit is multiplied by 1 + e, with
e between -1e-5 and 1e-5 and a function of the number's own bits alone, as the error of a rounding
is: the same input gives the same output. An export may differ from the hook by 100 times what is
else allowed (2e-5 of the effect), since it makes the same numbers from others. Compared with a run
without noise: a fresh one, or that of --clean (such as outputs/demo, if this machine made it).

Printed are the share of files with equal bytes (CSV, PNG and SVG of tables and figures, CSV of
verdicts), the files that differ, and every verdict that changed; the exit status is 1 below 95 % or
with a changed verdict.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script

from workshop.watched import AfterImport, run_demo  # noqa: E402

_SIZE = "CHAMELEON_TEST_NOISE"
SHARE = 0.95


def noisy(x: Any, size: float) -> Any:
    """x (any shape) times 1 + e, |e| <= size, where e hashes the bits of each number.

    All in 32 bits and in place: the logits of a whole batch are the largest thing that a worker
    holds, and copies of them in 64 bits have ended workers for want of memory.
    """
    import torch

    e = x.detach().float().contiguous().view(torch.int32).clone()
    for factor in (-1640531535, -2048144777):  # products keep their lowest 32 bits
        e.mul_(factor).bitwise_xor_((e >> 15) & 0x1FFFF)  # a logical shift
    return torch.addcmul(x, x, e.float().mul_(2.0**-31).to(x), value=size)


def make_noisy(model: Any, sites: list[Any], size: float) -> None:
    """Hook the MLP outputs and the logits of a model; once, whatever is built around it."""
    for module in (*sites, model.get_output_embeddings()):
        if not getattr(module, "_noisy", False):
            module._noisy = True
            module.register_forward_hook(lambda _module, _args, output: noisy(output, size))


def _noisy_models(module: Any) -> None:
    init, size = module.FrozenModel.__init__, float(os.environ[_SIZE])

    def started(own: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        init(own, model, *args, **kwargs)
        make_noisy(model, own.sites(), size)

    module.FrozenModel.__init__ = started


def _wider_bound(module: Any) -> None:
    module.FP32_BOUND *= 100


def install() -> None:
    """Called in every process of a noisy run, before anything else."""
    changes = {
        "chameleon_lib.backbones.frozen": _noisy_models,
        # An export is refused that differs from the hook by more than this.
        "chameleon_lib.serving.agreement": _wider_bound,
    }
    sys.meta_path.insert(0, AfterImport(changes))


def run(folder: Path, only: str, size: float) -> Path:
    """A run of the demo from nothing; returns its outputs."""
    return run_demo(folder, only, Path(__file__).resolve() if size else None, **{_SIZE: str(size)})


def compare_runs(clean: Path, other: Path) -> tuple[float, int]:
    """Print what differs; the share of files with equal bytes, and the number of changed verdicts.

    Only files that the other run has are looked at, so that it may be a part of the notebooks.
    """
    from chameleon_lib.kit.verify import compare, compare_verdicts

    names = sorted(
        path.relative_to(other)
        for kind in ("tables/*.csv", "figures/*.csv", "figures/*.png", "figures/*.svg",
                     "verdicts/*.csv")
        for path in other.glob(kind)
    )  # fmt: skip
    differ = [
        name for name in names
        if not (clean / name).is_file()
        or (clean / name).read_bytes() != (other / name).read_bytes()
    ]  # fmt: skip
    cells = [
        found for found in compare(clean, other)
        if (other / found.file).is_file() and (clean / found.file).is_file()
    ]  # fmt: skip
    ran = {path.name for path in other.glob("verdicts/*.json")}
    verdicts = [
        found for found in compare_verdicts(clean, other, "demo")
        if found.file.removeprefix("verdicts/") in ran
    ]  # fmt: skip
    for name in differ:
        print(f"differs: {name}")
    print(f"cells beyond the tolerances of verify: {len(cells)}")
    for found in verdicts:
        print(f"verdict: {found.row}: {found.committed} -> {found.fresh}")
    share = 1 - len(differ) / len(names)
    print(f"{len(names) - len(differ)} of {len(names)} files have equal bytes ({share:.1%}); "
          f"changed verdicts: {len(verdicts)}.")  # fmt: skip
    return share, len(verdicts)


def main() -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description="What rounding noise changes in a run's outputs.")
    parser.add_argument("--only", default="", help="notebooks, such as 03,07; all if empty")
    parser.add_argument("--size", type=float, default=1e-5, help="largest relative error")
    parser.add_argument("--clean", type=Path, help="outputs of a run without noise")
    parser.add_argument("--noisy", type=Path, help="outputs of a run with noise")
    parser.add_argument("--keep", type=Path, help="folder for the runs; a temporary one if empty")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chameleon-noise-") as scratch:
        folder = given.keep or Path(scratch)
        clean = given.clean or run(folder / "clean", given.only, 0.0)
        other = given.noisy or run(folder / "noisy", given.only, given.size)
        share, verdicts = compare_runs(clean, other)
    return int(share < SHARE or verdicts > 0)


if __name__ == "__main__":
    sys.exit(main())
