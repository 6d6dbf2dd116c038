"""Verdict records: one claim of the paper, our number, and the word computed from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from chameleon_lib.errors import UserError
from chameleon_lib.kit import digits, paths
from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    MIN_USERS,
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE,
    REPRODUCED,
    STATUSES,
    TOO_FEW_USERS,
    Estimate,
)
from chameleon_lib.kit.tables import made, to_csv


@dataclass(frozen=True)
class Verdict:
    """One row of the verdict table.

    Attributes:
        words: what is claimed, in words that are the same in every setting.
        section: section of the paper, such as "4.2".
        notebook: stem of the notebook that computed it, such as "01_per_user".
        paper: the paper's number as text, in the same units as `ours`.
        ours: the effect with its interval; None only when the claim was not run.
        status: one of `stats.STATUSES`, from `stats.verdict`.
        n: number of users (0 when not run).
        seeds: number of seeds (0 when not run).
        scorer: metric and scorer with version, such as "accuracy (LaMP evaluator)".
        csv: the table behind it, relative to outputs/<profile>, such as "tables/x.csv".
        note: one sentence for the reader; may be empty.
        split: the data split, such as "dev".
        own: whether the claim is the kit's and not the paper's; its words are then "holds" and
            "does not hold", since nothing can be reproduced that was never claimed.
        task: the task in which it is claimed, as readers know it, such as "LaMP-2".
        model: the model of which it is claimed, such as "decoder (Mistral class)".
        metric: name of the metric, such as "accuracy".
        measure: what `ours` is, such as "accuracy change".
        plain: whether `ours` is the change of the metric as it was measured, with its own
            interval. A slope, a difference shifted by a tolerance and an interval widened for many
            comparisons are not; their `measure` says what they are.
    """

    words: str
    section: str
    notebook: str
    paper: str
    ours: Estimate | None
    status: str
    n: int
    seeds: int
    scorer: str
    csv: str
    note: str = ""
    split: str = ""
    own: bool = False
    task: str = ""
    model: str = ""
    metric: str = ""
    measure: str = ""
    plain: bool = False

    def __post_init__(self) -> None:
        def refuse(why: str) -> None:
            raise UserError(f"Verdict {self.claim!r}: {why}.")

        if self.status not in STATUSES:
            refuse(f"status {self.status!r} is none of {', '.join(STATUSES)}")
        foreign = (REPRODUCED, NOT_REPRODUCED) if self.own else (HOLDS, DOES_NOT_HOLD)
        if self.status in foreign:
            whose = "of ours" if self.own else "of the paper"
            refuse(f"status {self.status!r} is no word for a claim {whose}")
        if (self.ours is None) != (self.status == NOT_RUN):
            refuse(f"status {self.status!r} does not fit ours = {self.ours}")
        if self.ours is None:
            if self.n or self.seeds:
                refuse("a claim that was not run has n = 0 and seeds = 0")
            return
        if (self.n, self.seeds) != (self.ours.n, self.ours.seeds):
            refuse(f"n = {self.n}, seeds = {self.seeds} differ from the estimate's own")
        if self.n < MIN_USERS and self.status != TOO_FEW_USERS:
            refuse(f"{self.n} users allow no verdict but {TOO_FEW_USERS!r}")
        # A typed verdict that its own interval contradicts never reaches the page.
        if self.status in (REPRODUCED, HOLDS, DIRECTION_ONLY, OPPOSITE) and (
            self.ours.low <= 0 <= self.ours.high
        ):
            refuse(f"status {self.status!r}, but the interval {self.ours} includes 0")

    @property
    def claim(self) -> str:
        """The claim in one sentence: where, what, and how it is measured."""
        where = f"{self.setting}: " if self.setting else ""
        return f"{where}{self.words}" + (f" ({self.measure})" if self.measure else "")

    @property
    def setting(self) -> str:
        """Where it is claimed, such as "LaMP-2, decoder (Mistral class)"; may be empty."""
        return ", ".join(filter(None, (self.task, self.model)))


def save_verdicts(
    verdicts: Sequence[Verdict],
    notebook_id: str,
    profile: str,
    *,
    made_by: Callable[..., object] | None = None,
) -> Path:
    """Write the verdicts of one notebook to verdicts/<notebook_id>.json and .csv.

    Args:
        verdicts: in the order in which pages show them.
        notebook_id: stem of the notebook that judged.
        profile: run profile.
        made_by: the function that judged; pages show its code.
    """
    for verdict in verdicts:
        if verdict.notebook != notebook_id:
            raise UserError(
                f"Verdict {verdict.claim!r} names notebook {verdict.notebook!r}, "
                f"but is saved by {notebook_id!r}."
            )
    record: dict[str, Any] = {
        "profile": profile,
        "verdicts": [asdict(_written(verdict)) for verdict in verdicts],
        **made("", made_by),
    }
    path = paths.verdicts_dir(profile) / f"{notebook_id}.json"
    text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
    paths.replace_text(path, text + "\n")
    paths.replace_text(path.with_suffix(".csv"), to_csv(_table(verdicts, profile)))
    return path


def _table(verdicts: Sequence[Verdict], profile: str) -> pd.DataFrame:
    """The verdicts for those who read tables."""
    return pd.DataFrame(
        [
            {
                "profile": profile,
                "claim of": "us" if v.own else "the paper",
                "section": v.section,
                "setting": v.setting,
                "claim": v.words,
                "measure": v.measure,
                "paper": v.paper,
                "ours": v.ours.value if v.ours else None,
                "ci_low": v.ours.low if v.ours else None,
                "ci_high": v.ours.high if v.ours else None,
                "n": v.n,
                "seeds": v.seeds,
                "verdict": v.status,
                "table": v.csv,
            }
            for v in verdicts
        ]
    )


def verdict_frame(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The verdicts as a notebook shows them, one row each."""
    return pd.DataFrame(
        {
            "claim": [v.claim for v in verdicts],
            "paper": [v.paper for v in verdicts],
            "ours": [str(_written(v).ours) for v in verdicts],
            "n": [v.n for v in verdicts],
            "seeds": [v.seeds for v in verdicts],
            "verdict": [v.status for v in verdicts],
            "controls": [v.note for v in verdicts],
        }
    )


def _written(verdict: Verdict) -> Verdict:
    """The verdict with its number as it is written; the word was found before."""
    if verdict.ours is None:
        return verdict
    return replace(verdict, ours=digits.estimate(verdict.ours, verdict.measure or verdict.metric))


def tally(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """How many claims of each notebook got which word, the paper's and ours apart."""
    rows = []
    for notebook in dict.fromkeys(verdict.notebook for verdict in verdicts):
        for whose, own in (("the paper", False), ("ours", True)):
            part = [v for v in verdicts if v.notebook == notebook and v.own == own]
            if part:
                counts = Counter(v.status for v in part)
                row = {"notebook": notebook, "claims of": whose, "claims": len(part)}
                rows.append(row | {status: counts[status] for status in STATUSES})
    used = [status for status in STATUSES if any(row[status] for row in rows)]
    keys = ("notebook", "claims of", "claims", *used)
    return [{key: row[key] for key in keys} for row in rows]


def load_verdicts(profile: str, folder: Path | None = None) -> list[Verdict]:
    """Read every verdict of a profile, ordered by notebook and then as saved.

    Args:
        profile: run profile the files must carry (rule R19: demo records stay with demo).
        folder: verdicts folder; None means outputs/<profile>/verdicts.

    Raises:
        UserError: unreadable file, another profile's record, unknown or missing keys (rule R5).
    """
    folder = paths.verdicts_dir(profile) if folder is None else folder
    found: list[Verdict] = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            owner, rows = record["profile"], record["verdicts"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path.name} is no verdict file; run its notebook again.") from error
        if owner != profile:
            raise UserError(f"{path.name} belongs to profile {owner!r}, not to {profile!r}.")
        found.extend(_parse(row, path) for row in rows)
    return found


def _parse(row: dict[str, Any], path: Path) -> Verdict:
    names = {field.name for field in fields(Verdict)}
    if set(row) != names:
        wrong = sorted(set(row) ^ names)
        raise UserError(f"{path.name}: keys {wrong} are unknown or missing; run it again.")
    ours = None if row["ours"] is None else Estimate(**row["ours"])
    return Verdict(**{**row, "ours": ours})
