"""The verdicts at a glance: one row per claim, one column per setting, a mark where they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chameleon_lib.kit.verdicts import Verdict

# Status → (mark, tone); the word stands beside the mark wherever there is room for it.
MARKS = {
    "reproduced": ("✓", "good"),
    "direction only": ("◐", "half"),
    "not reproduced": ("✗", "bad"),
    "opposite": ("⇄", "bad"),
    "holds": ("✓", "good"),
    "does not hold": ("✗", "bad"),
    "too few users": ("–", "none"),
    "not run at this scale": ("–", "none"),
}


@dataclass(frozen=True)
class Mark:
    """One verdict in the matrix.

    Attributes:
        number: place of the verdict in the whole list, which its anchor on the page is made of.
        verdict: the verdict.
        sign: its mark.
        tone: class of the mark.
        value: the effect in short, such as "+0.31"; empty where nothing was run.
    """

    number: int
    verdict: Verdict
    sign: str
    tone: str
    value: str


@dataclass(frozen=True)
class Row:
    """One claim in all settings.

    Attributes:
        words: the claim.
        section: section of the paper.
        notebook: stem of the notebook that judged it.
        unit: what its numbers are, where they are not the change of the task's metric; else empty.
        cells: one per column, each with its marks (often one or none).
    """

    words: str
    section: str
    notebook: str
    unit: str
    cells: tuple[tuple[Mark, ...], ...]


@dataclass(frozen=True)
class Glance:
    """The matrix.

    Attributes:
        columns: settings, such as "LaMP-2, decoder (Mistral class)", in order of their names.
        rows: claims, in order of appearance.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def heads(self) -> list[tuple[str, int]]:
        """Tasks over the columns, each with the number of columns that follow one another."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            task = column.partition(", ")[0]
            if found and found[-1][0] == task:
                found[-1] = (task, found[-1][1] + 1)
            else:
                found.append((task, 1))
        return found

    @property
    def families(self) -> list[str]:
        """Name of the family under each task, without what stands in brackets."""
        return [column.partition(", ")[2].partition(" (")[0] for column in self.columns]


def glance(verdicts: Sequence[Verdict], *, own: bool) -> Glance:
    """Arrange the paper's claims, or ours; a claim without a setting is left to the full list.

    Args:
        verdicts: all verdicts of the page; their places number the anchors.
        own: ours instead of the paper's.
    """
    chosen = [(i, v) for i, v in enumerate(verdicts) if v.own == own and v.setting]
    # By name, which is by task, then family; later notebooks know fewer of them.
    columns = tuple(sorted(dict.fromkeys(v.setting for _, v in chosen)))
    rows = []
    for notebook, words in dict.fromkeys((v.notebook, v.words) for _, v in chosen):
        here = [(i, v) for i, v in chosen if (v.notebook, v.words) == (notebook, words)]
        cells = tuple(
            tuple(_mark(i, v) for i, v in here if v.setting == column) for column in columns
        )
        unit = " / ".join(dict.fromkeys(v.measure for _, v in here if v.measure and not v.plain))
        rows.append(Row(words, here[0][1].section, notebook, unit, cells))
    return Glance(columns, tuple(rows))


def _mark(number: int, verdict: Verdict) -> Mark:
    sign, tone = MARKS[verdict.status]
    value = "" if verdict.ours is None else _short(verdict.ours.value, exact=sign != "✗")
    return Mark(number, verdict, sign, tone, value)


def _short(value: float, *, exact: bool) -> str:
    """Two decimals; three where ``exact`` and two are 0.00, which would belie a mark but the ✗."""
    text = f"{value:+.2f}"
    if exact and not text.strip("+-0."):
        text = f"{value:+.3f}"
    text = text if text.strip("+-0.") else text[1:]  # nothing has no sign
    return text.replace("-", "−")
