"""Compare the tables of two runs, cell by cell, under stated tolerances."""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.verdicts import load_verdicts

_NATS = ("margin", "nats", "loss", "kl", "logprob", "log_prob", "logp", "entropy", "floor")
_SCORES = ("accuracy", "acc", "f1", "macro_f1", "mae", "rmse", "rouge", "rouge1", "rougel",
           "rate", "share", "valid", "changed", "agreement")  # fmt: skip
_MEASURES = ("metric", "measure", "quantity")
_RESULTS = {"status", "verdict", "note"}  # text that is computed, hence no key of a row


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Largest differences taken for the same number.

    Attributes:
        score: absolute, for accuracy-like columns (one flipped answer moves them by 1 / n).
        nats: absolute, for margins, losses and other log-probabilities.
        relative: for every other number; whole numbers must be equal.
    """

    score: float = 0.02
    nats: float = 0.05
    relative: float = 1e-6


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two runs disagree; `tolerance` is None where none applies."""

    file: str
    row: str
    column: str
    committed: str
    fresh: str
    tolerance: float | None = None


def compare(committed: Path, fresh: Path, tolerances: Tolerances | None = None) -> list[Difference]:
    """Compare tables/*.csv and figures/*.csv of two outputs folders.

    Rows are matched by their text columns, and by order among rows with equal text. The class of
    a number comes from its column name, or for columns such as `value` from the row's `metric`.

    Raises:
        UserError: the committed folder holds no table, so nothing could be checked.
    """
    tolerances = tolerances or Tolerances()
    names = {kind: table_names(folder) for kind, folder in (("old", committed), ("new", fresh))}
    if not names["old"]:
        raise UserError(f"{paths.display(committed)} holds no tables to compare with.")
    found = [Difference(n, "", "", "present", "missing") for n in names["old"] - names["new"]]
    found += [Difference(n, "", "", "missing", "present") for n in names["new"] - names["old"]]
    found.sort(key=lambda difference: difference.file)
    for name in sorted(names["old"] & names["new"]):
        found += _compare_table(name, _read(committed / name), _read(fresh / name), tolerances)
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
    files = [*folder.glob("tables/*.csv"), *folder.glob("figures/*.csv")]
    return {path.relative_to(folder).as_posix() for path in files}


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle, restval="", restkey="(beyond the header)")
            rows, columns = list(reader), reader.fieldnames
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{paths.display(path)} cannot be read as a table: {error}.") from error
    if not columns:
        raise UserError(f"{paths.display(path)} is empty; make the table again.")
    return rows


def _number(text: str) -> float | None:
    try:
        return float(text)
    except (ValueError, TypeError):
        return None


def _keyed(rows: list[dict[str, str]], keys: list[str]) -> dict[str, dict[str, str]]:
    seen: Counter[str] = Counter()
    out = {}
    for row in rows:
        key = ", ".join(row[column] for column in keys if column in row)
        seen[key] += 1
        out[f"{key} #{seen[key]}"] = row
    return out


def _compare_table(
    name: str, old: list[dict[str, str]], new: list[dict[str, str]], tolerances: Tolerances
) -> list[Difference]:
    columns = [list(rows[0]) if rows else [] for rows in (old, new)]
    gone = [column for column in columns[0] if column not in columns[1]]
    come = [column for column in columns[1] if column not in columns[0]]
    found = [Difference(name, "", column, "present", "missing") for column in gone]
    found += [Difference(name, "", column, "missing", "present") for column in come]
    shared = [column for column in columns[0] if column in columns[1]]
    keys = [
        column
        for column in shared
        if column not in _RESULTS and any(_is_text(row[column]) for row in old + new)
    ]
    before, after = _keyed(old, keys), _keyed(new, keys)
    for key in [*before, *(key for key in after if key not in before)]:
        label = key.removesuffix(" #1")
        if key not in before or key not in after:
            ends = ("present", "missing") if key in before else ("missing", "present")
            found.append(Difference(name, label, "", *ends))
            continue
        for column in shared:
            pair = before[key][column], after[key][column]
            tolerance = _tolerance(column, before[key], tolerances)
            if not _same(*pair, tolerance, tolerances.relative):
                found.append(Difference(name, label, column, *pair, tolerance))
    return found


def _is_text(cell: str) -> bool:
    return cell != "" and _number(cell) is None


def _tolerance(column: str, row: dict[str, str], tolerances: Tolerances) -> float | None:
    """Absolute tolerance of a cell, or None if whole numbers and relative errors decide."""
    own = _class(column, tolerances)
    if own is not None or column in ("n", "seeds", "b", "c", "p", "layer", "k", "seed"):
        return own
    measured = [row[name] for name in _MEASURES if name in row]
    return _class(measured[0], tolerances) if measured else None


def _class(name: str, tolerances: Tolerances) -> float | None:
    words = name.casefold().replace("-", "_").replace(" ", "_").split("_")
    joined = "_".join(words)
    if any(word in words or ("_" in word and word in joined) for word in _NATS):
        return tolerances.nats
    if any(word in words for word in _SCORES):
        return tolerances.score
    return None


def _same(old: str, new: str, tolerance: float | None, relative: float) -> bool:
    if old == new:
        return True
    a, b = _number(old), _number(new)
    if a is None or b is None or math.isnan(a) or math.isnan(b):
        return False
    if tolerance is not None:
        # Cells are rounded when written; a hair of slack keeps the bound itself inside.
        return abs(a - b) <= tolerance * (1 + 1e-9)
    if a.is_integer() and b.is_integer():
        return a == b
    return abs(a - b) <= relative * max(abs(a), abs(b))
