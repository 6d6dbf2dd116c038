"""Compare a fresh run with the committed one, cell by cell, and say why a number may differ."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from chameleon_lib.errors import UserError
from chameleon_lib.kit import digits, paths
from chameleon_lib.kit.facts import load_machine, load_run_facts
from chameleon_lib.kit.verdicts import load_verdicts

_MOST = 0.25  # of half an interval: two runs of a number on other processors are nearer than that
_FLIPPED = 2  # answers of n that may come out otherwise, where a share has no interval
_MEASURES = ("metric", "measure", "quantity")
_KEPT = (".csv", ".json", ".png", ".svg")  # of a committed run, to be compared
_RESULTS = {"status", "verdict", "note"}  # text that is computed, hence no key of a row


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two runs disagree.

    `tolerance` is None where none applies; `steps` is the distance in units of the last digit that
    is written, infinite where there is none.
    """

    file: str
    row: str
    column: str
    committed: str
    fresh: str
    tolerance: float | None = None
    steps: float = math.inf


def compare(committed: Path, fresh: Path, *, exact: bool = False) -> list[Difference]:
    """Compare tables/*.csv and figures/*.csv of two outputs folders; `exact` forgives nothing.

    Rows are matched by their text columns, and by order among rows with equal text. A number may
    differ by a quarter of half its interval, by two answers of the row's n where it has none, and
    always by one in its last digit; whole numbers may not.

    Raises:
        UserError: the committed folder holds no table, so nothing could be checked.
    """
    old, new = table_names(committed), table_names(fresh)
    if not old:
        raise UserError(f"{paths.display(committed)} holds no tables to compare with.")
    found = [Difference(name, "", "", "present", "missing") for name in sorted(old - new)]
    found += [Difference(name, "", "", "missing", "present") for name in sorted(new - old)]
    for name in sorted(old & new):
        found += _compare_table(name, _read(committed / name), _read(fresh / name), exact)
    return found


def compare_verdicts(committed: Path, fresh: Path, profile: str) -> list[Difference]:
    """List claims whose verdict changed, appeared or vanished."""
    old, new = (
        {(v.notebook, v.claim): v.status for v in load_verdicts(profile, folder / "verdicts")}
        for folder in (committed, fresh)
    )
    return [
        Difference(f"verdicts/{notebook}.json", claim, "status", before, after)
        for notebook, claim in sorted(old.keys() | new.keys())
        for before in [old.get((notebook, claim), "missing")]
        for after in [new.get((notebook, claim), "missing")]
        if before != after
    ]


def table_names(folder: Path) -> set[str]:
    """Tables, and the frames behind figures, of an outputs folder."""
    files = [*folder.glob("tables/*.csv"), *folder.glob("figures/*.csv")]
    return {path.relative_to(folder).as_posix() for path in files}


def _read(path: Path) -> pd.DataFrame:
    """A table as it is written, every cell a text."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        return table.fillna("")
    except (OSError, ValueError) as error:  # not UTF-8, empty, or rows longer than the header
        raise UserError(f"{paths.display(path)} cannot be read as a table: {error}.") from error


def _number(text: str) -> float:
    return math.nan if not text or _is_text(text) else float(text)


def _is_text(cell: str) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return True
    return False


def _compare_table(
    name: str, old: pd.DataFrame, new: pd.DataFrame, exact: bool
) -> Iterator[Difference]:
    for column in dict.fromkeys([*old, *new]):
        if column not in old or column not in new:
            yield Difference(name, "", column, *_ends(column in old))
    shared = [column for column in old if column in new]
    keys = [
        column for column in shared
        if column not in _RESULTS
        and any(map(_is_text, (*old[column], *new[column])))
    ]  # fmt: skip
    before, after = _labelled(old, keys), _labelled(new, keys)
    for label in dict.fromkeys([*before, *after]):
        if label not in before or label not in after:
            yield Difference(name, label, "", *_ends(label in before))
            continue
        for column in shared:
            pair = before[label][column], after[label][column]
            if pair[0] == pair[1]:
                continue
            tolerance, steps = _distance(column, before[label], after[label])
            # Cells are rounded when written; a hair of slack keeps the bound itself inside.
            near = tolerance is not None and (
                steps <= 1 + 1e-6 or abs(float(pair[0]) - float(pair[1])) <= tolerance * (1 + 1e-9)
            )
            if exact or not near:
                yield Difference(name, label, column, *pair, tolerance, steps)


def _ends(committed: bool) -> tuple[str, str]:
    return ("present", "missing") if committed else ("missing", "present")


def _labelled(table: pd.DataFrame, keys: list[str]) -> dict[str, dict[str, str]]:
    """Rows by their text, numbered where it is not the only one."""
    seen: Counter[str] = Counter()
    out = {}
    for row in table.to_dict("records"):
        label = ", ".join(row[column] for column in keys)
        seen[label] += 1
        out[label if seen[label] == 1 else f"{label} #{seen[label]}"] = row
    return out


def _distance(
    column: str, old: dict[str, str], new: dict[str, str]
) -> tuple[float | None, float]:
    """How far two cells may be apart (None: not at all), and how far they are in last digits."""
    a, b = _number(old[column]), _number(new[column])
    if math.isnan(a) or math.isnan(b):
        return None, math.inf
    stem = column.removesuffix("_low").removesuffix("_high")
    stem = "ci" if stem == "value" else stem
    name = f"{stem} {next((old[m] for m in _MEASURES if m in old), '')}" if stem == "ci" else stem
    bounds = (f"{stem}_low", f"{stem}_high")
    ends = [[_number(row.get(bound, "")) for bound in bounds] for row in (old, new)]
    if not any(math.isnan(end) for pair in ends for end in pair):
        unit = max(digits.step(name, at, *pair) for at, pair in zip((a, b), ends, strict=True))
        return _MOST * (ends[0][1] - ends[0][0]) / 2, abs(a - b) / unit
    steps = abs(a - b) / digits.step(name, max(a, b, key=abs))
    if a.is_integer() and b.is_integer():
        return None, steps
    n = _number(old.get("n", ""))
    return (_FLIPPED / n if n > 0 else 0.0), steps


def likely_reason(committed: Path, fresh: Path) -> str:
    """Name what differs between the recorded facts of two runs; else blame code or processor."""
    old, new = (_flat(load_run_facts(folder)) for folder in (committed, fresh))
    if not old or not new:
        return "unknown: a run recorded no facts (run_facts.json)"
    machines = [_flat(load_machine(folder)) for folder in (committed, fresh)]
    if all(machines):  # a committed run has none: its machine stays where it ran
        old, new = old | machines[0], new | machines[1]
    reasons = [
        f"{name} ({_text(old.get(name))} → {_text(new.get(name))})"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if reasons:
        return "; ".join(reasons)
    other = "the code" if all(machines) else "the code or the machine"
    return f"{other} changed (all recorded run facts agree)"


def _flat(facts: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Facts by the words of their place, such as "versions torch"."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        key = f"{above} {name}".strip()
        found |= _flat(value, key) if isinstance(value, dict) else {key: value}
    return found


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value)[:12]  # all of anything but a hash


def report(differences: Sequence[Difference], reason: str) -> str:
    """Lay the differences out as a text table, one line per cell, with the likely reason."""
    head = ("file", "row", "column", "committed", "fresh", "tolerance")
    rows = [head] + [
        (d.file, d.row, d.column, d.committed, d.fresh,
         "exact" if d.tolerance is None else f"{d.tolerance:g}")
        for d in differences
    ]  # fmt: skip
    widths = [min(48, max(len(row[i]) for row in rows)) for i in range(len(head))]
    lines = ["  ".join(f"{c:{w}}" for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([*lines, f"likely reason: {reason}"])


def verify_run(profile: str, against: Path | None = None, fresh: Path | None = None) -> int:
    """Compare a run with the committed one, and print what differs.

    Args:
        profile: run profile.
        against: committed outputs; None for outputs/<profile>.
        fresh: outputs of a run already made; None runs the profile into a temporary folder.

    Returns:
        0 if all is the same within the tolerances, else 1.

    Raises:
        UserError: one of the two holds no table, or the fresh run failed.
    """
    committed = against or paths.outputs_dir(profile)
    if not table_names(committed):
        raise UserError(f"{paths.display(committed)} holds no tables to compare with.")
    if fresh is None:
        with tempfile.TemporaryDirectory(prefix="chameleon-verify-") as scratch:
            return verify_run(profile, committed, _run(profile, Path(scratch)))
    if not table_names(fresh):
        raise UserError(f"{paths.display(fresh)} holds no tables of a fresh run.")
    differences = compare(committed, fresh) + compare_verdicts(committed, fresh, profile)
    if not differences:
        tables = len(table_names(committed))
        print(f"{tables} tables agree within the tolerances; every verdict is the same.")
        return 0
    print(report(differences, likely_reason(committed, fresh)))
    print(f"{len(differences)} differences in {len({d.file for d in differences})} files.")
    return 1


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


def compare_line(profile: str) -> str:
    """How the run in outputs/<profile> compares with the one in the last commit, in one line."""
    fresh = paths.outputs_dir(profile)
    with tempfile.TemporaryDirectory(prefix="chameleon-committed-") as scratch:
        committed = Path(scratch)
        if not _checked_out(profile, committed) or not table_names(fresh):
            return f"No committed run of profile {profile} to compare with."
        try:
            beyond = len(compare(committed, fresh))
            verdicts = compare_verdicts(committed, fresh, profile)
            cells = compare(committed, fresh, exact=True)
            reason = likely_reason(committed, fresh)
        except UserError as error:
            return f"Not to be compared with the committed run: {error}"
        names = sorted(_files(committed) | _files(fresh))
        differ = [name for name in names if _bytes(committed / name) != _bytes(fresh / name)]
    changed = f"verdicts changed: {len(verdicts)}" if verdicts else "no verdict changed"
    if not differ and not verdicts:
        return f"Identical to the committed run: {len(names)} tables and figures; {changed}."
    line = f"{len(differ)} of {len(names)} tables and figures differ from the committed run"
    numbers = [cell for cell in cells if math.isfinite(cell.steps)]
    if numbers:
        most = max(numbers, key=lambda cell: cell.steps)
        line += (
            f"; largest difference {most.steps:.0f} in the last digit ({most.committed} → "
            f"{most.fresh}, {most.column}, {most.file})"
        )
    line += f"; cells beyond the tolerances: {beyond}; {changed}"
    return f"{line} (likely reason: {reason}); see git diff {paths.display(fresh)}."


def _files(folder: Path) -> set[str]:
    """Tables and figures of an outputs folder, as numbers and as pictures."""
    found = {path.relative_to(folder).as_posix()
             for kind in ("png", "svg") for path in folder.glob(f"figures/*.{kind}")}  # fmt: skip
    return found | table_names(folder)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _checked_out(profile: str, folder: Path) -> bool:
    """Write what is compared of the last commit to a folder; False if it has no tables."""
    git = ["git", "archive", f"HEAD:outputs/{profile}"]
    try:
        archive = subprocess.run(git, cwd=paths.root(), capture_output=True, check=False)
    except OSError:  # a checkout may lie where there is no git
        return False
    if archive.returncode:
        return False
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        wanted = [member for member in files if member.name.endswith(_KEPT)]
        files.extractall(folder, wanted, filter="data")
    return bool(table_names(folder))
