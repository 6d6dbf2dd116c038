"""How the frames of section 4.2 are shown: readable tables, the effects figure, the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from chameleon_lib.kit.figures import FigureOutput, dot_ci, save_figure
from chameleon_lib.kit.stats import effect_word
from chameleon_lib.kit.tables import span
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.lamp.metrics import higher_is_better
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.results import Run


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame for reading: empty cells for what the paper does not have."""
    shown = frame.drop(columns=[c for c in ("kind",) if c in frame])
    papers = [column for column in shown.columns if column.startswith("paper ")]
    for column in papers:
        shown[column] = [f"{v:.3f}" if pd.notna(v) else "" for v in shown[column]]
    return shown


def effect_figure(frame: pd.DataFrame, task: str, profile: str) -> FigureOutput:
    """Forest plot of the differences to Instruct, one panel per family."""
    primary = get_task(task).metrics[0]
    column = f"{primary} change"
    drawn = frame.rename(
        columns={column: "value", f"{column}_low": "ci_low", f"{column}_high": "ci_high"}
    )
    drawn = drawn[["family", "method", "kind", "value", "ci_low", "ci_high", "n", "seeds"]]
    title = f"{task.replace('_', '-')}: {primary} against Instruct"
    figure = dot_ci(
        drawn,
        title=title,
        profile=profile,
        xlabel=f"{primary} change",
        panel="family",
        reference_label="Instruct",
        better="higher" if higher_is_better(primary) else "lower",
    )
    words = []
    for family, part in drawn.groupby("family", sort=False):
        values = part.set_index("method")["value"]
        words.append(
            f"{family}: paper's edit {values['CHAMELEON (paper)']:+.3f}, "
            f"fitted edit {values['CHAMELEON fitted (ours)']:+.3f}, "
            f"random directions {values['control: random directions']:+.3f}"
        )
    return save_figure(
        figure,
        f"01_effects_{task}",
        alt=f"Forest plot of {len(drawn)} differences to Instruct. {'; '.join(words)}.",
        caption=(
            f"Change of {primary} against Instruct on the same users, 95 % intervals over "
            f"{span(drawn['n'])} test users; seeds are training seeds times groups "
            f"({profile} profile)."
        ),
        data=drawn,
        profile=profile,
    )


def sizes_by_place(sizes: pd.DataFrame) -> pd.DataFrame:
    """The edit ratios for reading: a row per task and family, a column per edit."""
    rows = []
    for (task, family), part in sizes.groupby(["task", "family"], sort=False):
        row: dict[str, object] = {"task": task, "family": family}
        for _, found in part.iterrows():
            value, low, high = (found[f"edit ratio{end}"] for end in ("", "_low", "_high"))
            row[found["edit"]] = f"{value:.2f} [{low:.2f}, {high:.2f}]"
        rows.append(row | {name: part[name].iloc[0] for name in ("n", "seeds")})
    return pd.DataFrame(rows)


def size_sentence(sizes: pd.DataFrame) -> str:
    """How much each edit changes, and which controls push as much as the paper's edit."""
    words = []
    for title, part in sizes.groupby("edit", sort=False):
        shares = [round(100 * value) for value in part["edit ratio"]]
        words.append(f"{title} by {span(shares)} %")
    by = {title: part.set_index(["task", "family"]) for title, part in sizes.groupby("edit")}
    paper, random, neutral = (
        by[title]
        for title in (
            "CHAMELEON (paper)",
            "control: random directions",
            "control: θP from neutral outputs",
        )
    )
    weaker = int((random["edit ratio_high"] < paper["edit ratio_low"]).sum())
    alike = int(((neutral["edit ratio"] / paper["edit ratio"] - 1).abs() <= 0.1).sum())
    outcome = "so they are no control of its size"
    if weaker == 0:
        outcome = "so none is shown to be too weak a control"
    elif weaker < len(paper):
        outcome = "so there they are no control of its size"
    first, *rest = words
    return (
        f"{first.replace(' by ', ' changes an edited output by ')} of its length, "
        f"{', '.join(rest)}. Random directions push less than the paper's edit in {weaker} of "
        f"{len(paper)} places, {outcome}; with θP from neutral outputs the "
        f"change is within a tenth of its size in {alike} of {len(paper)}."
    )


def verdict_frame(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The verdicts as a table."""
    return pd.DataFrame(
        {
            "claim": [v.claim for v in verdicts],
            "paper": [v.paper for v in verdicts],
            "ours": [str(v.ours) for v in verdicts],
            "n": [v.n for v in verdicts],
            "seeds": [v.seeds for v in verdicts],
            "verdict": [v.status for v in verdicts],
            "controls": [v.note for v in verdicts],
        }
    )


def summary(run: Run, effects: Mapping[str, pd.DataFrame]) -> str:
    """What came out, in sentences made from the numbers: on few users without a word for them."""
    sentences = [f"{run.profile.name} profile. What came out:"]
    for task, frame in effects.items():
        metric = get_task(task).metrics[0]
        change = f"{metric} change"
        for family, part in frame.groupby("family", sort=False):
            by = part.set_index("method")
            paper, fitted = by.loc["CHAMELEON (paper)"], by.loc["CHAMELEON fitted (ours)"]
            words = []
            for name, row in (("paper's edit", paper), ("fitted edit", fitted)):
                low, high = row[f"{change}_low"], row[f"{change}_high"]
                better = higher_is_better(metric)
                word = effect_word(low, high, row["n"], higher_is_better=better)
                if word:
                    gap = " " if word in ("helps", "hurts") else ": "
                    words.append(f"the {name}{gap}{word} ({row[change]:+.3f})")
                else:
                    words.append(f"the {name} {row[change]:+.3f} [{low:+.3f}, {high:+.3f}]")
            sentences.append(f"{task.replace('_', '-')}, {family}: {' and '.join(words)}.")
    return "\n".join(sentences)
