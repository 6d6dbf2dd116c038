"""How the frames of section 4.6 are shown: Figure 5, the rules beside each other, what came out."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from chameleon_lib.kit.figures import FigureOutput, dot_ci, line_ci, save_figure
from chameleon_lib.kit.tables import span
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.lamp.metrics import higher_is_better
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.history_ablation.conditions import PAPER, TRAINED_ITEMS
from chameleon_lib.sections.results import FAMILY_TITLES, Run

_TASTE = "share of chosen items with the user's own tag"
# Four names must fit below one figure.
_SHORT = {
    "Instruct (A.3, no insight)": "Instruct",
    "A.3 with insight, no edit": "with insight",
    "CHAMELEON fitted (ours)": "fitted (ours)",
}


def items_figure(frame: pd.DataFrame, task: str, family: str, profile: str) -> FigureOutput:
    """Figure 5 of one task and family: every method over the number of items.

    Args:
        frame: From :func:`~chameleon_lib.sections.history_ablation.tables.levels`.
        task: Task name.
        family: ``decoder`` or ``encoder-decoder``.
        profile: Run profile.
    """
    metric = get_task(task).metrics[0]
    title = FAMILY_TITLES[family]
    part = frame[(frame["family"] == title) & (frame["rule"] == PAPER)]
    drawn = _renamed(part, metric).replace({"method": _SHORT})[
        ["items", "method", "prompt", "value", "ci_low", "ci_high", "n", "seeds"]
    ]
    figure = line_ci(
        drawn,
        title=f"{task.replace('_', '-')}, {title}: by history items",
        profile=profile,
        x="items",
        xlabel="history items per user, chosen by PCA",
        ylabel=metric,
        group="method",
        better="higher" if higher_is_better(metric) else "lower",
    )
    words = [
        f"{method}: " + ", ".join(f"{value:.3f} at {items}" for items, value in
                                  zip(line["items"], line["value"], strict=True))
        for method, line in drawn.groupby("method", sort=False)
    ]  # fmt: skip
    return save_figure(
        figure,
        f"05_items_{task}_{family.replace('-', '_')}",
        alt=f"Line plot of {metric} by number of history items. {'; '.join(words)}.",
        caption=(
            f"{metric.capitalize()} by number of history items that PCA chose, the same users and "
            f"{_groups(drawn)}; 95 % intervals over {span(drawn['n'])} test users, mean "
            f"over {int(drawn['seeds'].max())} groups for the edits ({profile} profile)."
            f"{_untrained(drawn)}"
        ),
        data=drawn,
        profile=profile,
    )


def rules_figure(frame: pd.DataFrame, task: str, profile: str) -> FigureOutput:
    """Forest plot: the paper's rule minus each control.

    Args:
        frame: From :func:`~chameleon_lib.sections.history_ablation.tables.against_controls`.
        task: Task name.
        profile: Run profile.
    """
    metric = get_task(task).metrics[0]
    drawn = _renamed(frame, metric).assign(
        row=[f"{name}, {k} items" for name, k in zip(frame["compared"], frame["items"],
                                                     strict=True)]
    )[["family", "row", "method", "value", "ci_low", "ci_high", "n", "seeds"]]  # fmt: skip
    figure = dot_ci(
        drawn,
        title=f"{task.replace('_', '-')}: PCA selection against other rules",
        profile=profile,
        xlabel=f"{metric}, PCA minus control",
        row="row",
        method="method",
        panel="family",
        better="higher" if higher_is_better(metric) else "lower",
    )
    sign = 1 if higher_is_better(metric) else -1
    above = int((sign * drawn[["ci_low", "ci_high"]]).min(axis=1).gt(0).sum())
    below = int((sign * drawn[["ci_low", "ci_high"]]).max(axis=1).lt(0).sum())
    return save_figure(
        figure,
        f"05_rules_{task}",
        alt=f"Forest plot of {len(drawn)} differences in {metric} from {drawn['value'].min():+.3f} "
        f"to {drawn['value'].max():+.3f}: PCA is better in {above}, worse in {below}, and the "
        f"interval includes no difference in {len(drawn) - above - below}.",
        caption=(
            f"Change of {metric} when PCA chooses the history items instead of another rule, for "
            f"the same users and the same number of items; 95 % intervals over "
            f"{span(drawn['n'])} test users, {int(drawn['seeds'].max())} groups for the edits "
            f"({profile} profile). 'pca raw' is the other reading of eq. 2."
        ),
        data=drawn,
        profile=profile,
    )


def taste_figure(frame: pd.DataFrame, task: str, profile: str) -> FigureOutput:
    """How many of the items that a rule chooses carry the planted taste.

    Args:
        frame: From ``history_ablation.tables.chosen``, with planted tags.
        task: Task name.
        profile: Run profile.
    """
    drawn = frame.rename(
        columns={"taste": "value", "taste_low": "ci_low", "taste_high": "ci_high"}
    )[["rule", "items", "value", "ci_low", "ci_high", "n", "seeds"]]
    whole = float(frame["taste in the whole history"].iloc[0])
    figure = line_ci(
        drawn,
        title=f"{task.replace('_', '-')}: what each rule chooses",
        profile=profile,
        x="items",
        xlabel="history items per user",
        ylabel="items with the user's tag",
        group="rule",
        reference=whole,
        reference_label="whole history",
    )
    few = drawn[drawn["items"] == drawn["items"].min()]
    words = [f"{rule} {value:.2f}" for rule, value in zip(few["rule"], few["value"], strict=True)]
    return save_figure(
        figure,
        f"05_taste_{task}",
        alt=f"Line plot of the {_TASTE}, by rule and number of items. At "
        f"{int(few['items'].iloc[0])} items: {', '.join(words)}; whole history {whole:.2f}.",
        caption=(
            f"The {_TASTE}; 95 % intervals over {span(drawn['n'])} test users, one choice per "
            f"user ({profile} profile). No model takes part: a rule far below the line hides the "
            "taste from everything that follows."
        ),
        data=drawn,
        profile=profile,
    )


def _renamed(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    return frame.rename(
        columns={metric: "value", f"{metric}_low": "ci_low", f"{metric}_high": "ci_high"}
    )


def _groups(drawn: pd.DataFrame) -> str:
    """Which groups stand behind the edits: one without a pair has none."""
    if (drawn.groupby("method")["seeds"].nunique() == 1).all():
        return "groups at every number"
    return "at every number those groups that have a pair to learn from"


def _untrained(drawn: pd.DataFrame) -> str:
    if not (drawn["prompt"] == "longer than trained").any():
        return ""
    return (
        f" The embedded models learned from at most {TRAINED_ITEMS} items drawn by chance: more "
        "items are a length they never saw."
    )


def summary(
    run: Run, task: str, frame: pd.DataFrame, picked: pd.DataFrame, verdicts: Sequence[Verdict]
) -> str:
    """What came out, in sentences made from the numbers.

    Args:
        run: The finished run.
        task: Task name.
        frame: From :func:`~chameleon_lib.sections.history_ablation.tables.levels`.
        picked: From :func:`~chameleon_lib.sections.history_ablation.tables.chosen`.
        verdicts: All of the task.
    """
    metric = get_task(task).metrics[0]
    title = task.replace("_", "-")
    sentences = [f"{run.profile.name} profile, {title}. What came out:"]
    for family, part in frame[frame["rule"] == PAPER].groupby("family", sort=False):
        for method in ("Instruct (A.3, no insight)", "CHAMELEON (paper)"):
            line = part[part["method"] == method].set_index("items")[metric]
            if line.empty:
                sentences.append(f"{family}, {method}: no group had a pair to make an edit of.")
                continue
            best = line.idxmax() if higher_is_better(metric) else line.idxmin()
            levels = ", ".join(f"{value:.3f} at {k}" for k, value in line.items())
            sentences.append(f"{family}, {method}: {metric} {levels}; best at {best} items.")
    if "taste" in picked:
        for k, part in picked.groupby("items", sort=True):
            by = part.set_index("rule")
            shares = ", ".join(f"{rule} {value:.0%}" for rule, value in by["taste"].items())
            sentences.append(f"Of {k} chosen items carry the user's own tag: {shares}.")
    words = pd.Series([verdict.status for verdict in verdicts]).value_counts(sort=False)
    sentences.append(
        "Verdicts: " + ", ".join(f"{count} {word}" for word, count in words.items()) + "."
    )
    return "\n".join(sentences)
