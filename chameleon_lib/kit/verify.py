"""Compare a fresh run with the committed one and say why a number may differ."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from chameleon_lib.command_line import Parser
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.compare import (
    Difference,
    Tolerances,
    compare,
    compare_verdicts,
    table_names,
)
from chameleon_lib.kit.facts import load_run_facts

__all__ = ["Difference", "Tolerances", "compare", "likely_reason", "main", "report"]


def likely_reason(committed: Path, fresh: Path) -> str:
    """Name what differs between the recorded facts of two runs; else blame the code."""
    old, new = load_run_facts(committed), load_run_facts(fresh)
    if not old or not new:
        return "unknown: a run recorded no facts (run_facts.json)"
    reasons = []
    for label, keys in (("thread count", ("threads",)), ("Python", ("python",)),
                        ("CPU flags", ("cpu", "flags")), ("machine type", ("cpu", "machine")),
                        ("model files", ("models",)), ("data", ("data",)),
                        ("number of seeds", ("seeds",)), ("users", ("users",)),
                        ("backbones", ("backbones",)), ("profile", ("profile",)),
                        ("environment.yml", ("environment_sha256",))):  # fmt: skip
        a, b = _dig(old, keys), _dig(new, keys)
        if a != b:
            short = not isinstance(a, dict) and not isinstance(b, dict)
            reasons.append(f"{label} ({_text(a)} → {_text(b)})" if short else label)
    before, after = old.get("versions", {}), new.get("versions", {})
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            reasons.append(f"{name} version ({before.get(name)} → {after.get(name)})")
    return "; ".join(reasons) if reasons else "the code changed (all recorded run facts agree)"


def _dig(facts: dict[str, object], keys: tuple[str, ...]) -> object:
    value: object = facts
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value)[:12]  # all of anything but a hash


def report(differences: Sequence[Difference], reason: str) -> str:
    """Lay the differences out as a text table, one line per cell, with the likely reason."""
    head = ("file", "row", "column", "committed", "fresh", "tolerance")
    rows = [head] + [
        (d.file, d.row, d.column, d.committed, d.fresh, _limit(d.tolerance)) for d in differences
    ]
    widths = [min(48, max(len(row[i]) for row in rows)) for i in range(len(head))]
    lines = ["  ".join(f"{c:{w}}" for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([*lines, f"likely reason: {reason}"])


def _limit(tolerance: float | None) -> str:
    return "exact" if tolerance is None else f"{tolerance:g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a profile into a temporary folder and compare; 0 same, 1 differences, 2 cannot tell."""
    parser = Parser(
        prog="python -m chameleon_lib verify", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--profile", default="demo", help="run profile (default: demo)")
    parser.add_argument("--against", type=Path, help="committed outputs (outputs/<profile>)")
    parser.add_argument("--fresh", type=Path, help="outputs of a run already made; runs nothing")
    args = parser.parse_args(argv)
    try:
        committed = args.against or paths.outputs_dir(args.profile)
        if not table_names(committed):
            raise UserError(f"{paths.display(committed)} holds no tables to compare with.")
        if args.fresh is not None:
            if not table_names(args.fresh):
                raise UserError(f"{paths.display(args.fresh)} holds no tables of a fresh run.")
            return _judge(committed, args.fresh, args.profile)
        with tempfile.TemporaryDirectory(prefix="chameleon-verify-") as scratch:
            return _judge(committed, _run(args.profile, Path(scratch)), args.profile)
    except UserError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2


def _run(profile: str, scratch: Path) -> Path:
    """Run a profile from nothing, sharing neither outputs nor cache with the checkout."""
    environment = {
        **os.environ,
        "CHAMELEON_OUTPUTS": str(scratch / "outputs"),
        "CHAMELEON_CACHE": str(scratch / "cache"),
    }
    command = [sys.executable, "-m", "chameleon_lib", "run", "--profile", profile]
    print(f"Running profile {profile} afresh ...", file=sys.stderr, flush=True)
    code = subprocess.run(command, cwd=paths.root(), env=environment, check=False).returncode
    if code:
        raise UserError(f"the fresh run of profile {profile} ended with exit status {code}.")
    return scratch / "outputs" / profile


def _judge(committed: Path, fresh: Path, profile: str) -> int:
    differences = compare(committed, fresh) + compare_verdicts(committed, fresh, profile)
    tables = len(table_names(committed))
    if not differences:
        print(f"{tables} tables agree within the tolerances; every verdict is the same.")
        return 0
    print(report(differences, likely_reason(committed, fresh)))
    print(f"{len(differences)} differences in {len({d.file for d in differences})} files.")
    return 1
