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
import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_SIZE = "CHAMELEON_TEST_NOISE"
_ROOM = "chameleon_lib.backbones.frozen"
_CHECK = "chameleon_lib.serving.agreement"  # an export is refused that differs from the hook by so
SHARE = 0.95


def noisy(x: Any, size: float) -> Any:
    """x (any shape) times 1 + e, |e| <= size, where e hashes the bits of each number."""
    import torch

    bits = x.detach().float().view(torch.int32).long() & 0xFFFFFFFF
    mixed = (bits * 2654435761) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 2246822519) & 0xFFFFFFFF
    e = (mixed >> 8).to(x) / 2**23 - 1
    return x * (1 + size * e)


def make_noisy(model: Any, sites: list[Any], size: float) -> None:
    """Hook the MLP outputs and the logits of a model; once, whatever is built around it."""
    for module in (*sites, model.get_output_embeddings()):
        if not getattr(module, "_noisy", False):
            module._noisy = True
            module.register_forward_hook(lambda _module, _args, output: noisy(output, size))


class _Finder(MetaPathFinder):
    """Hooks the models of this process as soon as it imports what holds them."""

    def __init__(self, size: float) -> None:
        self.size = size

    def find_spec(self, name: str, _path: Any, _target: Any = None) -> ModuleSpec | None:
        """The room's own spec; its class is changed after it was run."""
        if name not in (_ROOM, _CHECK):
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        assert spec is not None and spec.loader is not None
        run, size = spec.loader.exec_module, self.size

        def exec_module(module: Any) -> None:
            run(module)
            if name == _CHECK:
                module.FP32_BOUND *= 100
                return
            init = module.FrozenModel.__init__

            def started(own: Any, model: Any, *args: Any, **kwargs: Any) -> None:
                init(own, model, *args, **kwargs)
                make_noisy(model, own.sites(), size)

            module.FrozenModel.__init__ = started

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Called in every process of a noisy run, before anything else."""
    sys.meta_path.insert(0, _Finder(float(os.environ[_SIZE])))


def run(folder: Path, only: str, size: float) -> Path:
    """A run of the demo from nothing; returns its outputs."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(ROOT / 'tests')!r})\nimport noise\nnoise.install()\n",
        encoding="utf-8",
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}:{ROOT}" if size else str(ROOT),
        _SIZE: str(size),
        "CHAMELEON_OUTPUTS": str(folder / "outputs"),
        "CHAMELEON_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "agg",
    }
    command = [sys.executable, "-m", "chameleon_lib", "run", "--profile", "demo"]
    command += ["--only", only] if only else []
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return folder / "outputs" / "demo"


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
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
