"""How the frames of section 4.4 are shown: Figure 3, the agreement figure, and what came out."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from chameleon_lib.kit.figures import FigureOutput, line_ci, save_figure
from chameleon_lib.kit.stats import effect_word
from chameleon_lib.kit.tables import span
from chameleon_lib.lamp.metrics import higher_is_better
from chameleon_lib.lamp.tasks import get_task
from chameleon_lib.sections.group_size.ladder import OWN
from chameleon_lib.sections.group_size.tables import title_of
from chameleon_lib.sections.results import FAMILY_TITLES, Run

_XLABEL = "train users behind the directions"
_LENT = "one other user's"
# Short, or the legend would not fit below the picture.
_DRAWN = {"chameleon": "paper", "fitted": "fitted (ours)", "random": "random directions"}


def families_of(run: Run) -> list[str]:
    """Titles of the families in order."""
    return [FAMILY_TITLES[family] for family in run.families]


def curve_figure(frame: pd.DataFrame, task: str, family: str, profile: str) -> FigureOutput:
    """Figure 3 of one task and family: the change against Instruct by group size.

    Args:
        frame: From :func:`~chameleon_lib.sections.group_size.tables.curve`.
        task: Task name.
        family: Title of a family.
        profile: Run profile.
    """
    metric = get_task(task).metrics[0]
    drawn = curve_lines(frame, metric, family)
    figure = line_ci(
        drawn,
        title=f"{task.replace('_', '-')}, {_family(family)}: by group size",
        profile=profile,
        x="users",
        xlabel=_XLABEL + (" (leftmost: 1)" if 1 in set(drawn["users"]) else ""),
        ylabel=f"{metric} change",
        group="line",
        reference=0.0,
        reference_label="Instruct",
        better="higher" if higher_is_better(metric) else "lower",
    )
    words = [
        f"{line}: " + ", ".join(f"{value:+.3f} at {users}" for users, value in
                                zip(part["users"], part["value"], strict=True))
        for line, part in drawn.groupby("line", sort=False)
    ]  # fmt: skip
    one = ""
    if 1 in set(drawn["users"]):
        one = (
            " At 1 user the edit comes from the pair of the very query that is asked (no gold; who "
            "has no pair stays unedited), or from one other user's; no preference fit is made from "
            "one user."
        )
    return save_figure(
        figure,
        f"03_size_{task}_{_family(family).replace('-', '_')}",
        alt=f"Line plot of the {metric} change against Instruct by number of users. "
        f"{'; '.join(words)}.",
        caption=(
            f"Change of {metric} against Instruct on the same users by group size; 95 % intervals "
            f"over {span(drawn['n'])} test users, mean over {span(drawn['seeds'])} "
            f"nested random sets of train users ({profile} profile); paper: CHAMELEON's edit.{one}"
        ),
        data=drawn,
        profile=profile,
    )


def curve_lines(frame: pd.DataFrame, metric: str, family: str) -> pd.DataFrame:
    """The points of Figure 3 with their line: users, value, ci_low, ci_high, n, seeds."""
    column = f"{metric} change"
    named = {column: "value", f"{column}_low": "ci_low", f"{column}_high": "ci_high"}
    part = frame[frame["family"] == family].rename(columns=named)
    part = part[part["method"].isin([title_of(name) for name in _DRAWN])]
    lent = part["directions"] == "one other user's"
    part = part[~lent | (part["method"] == title_of("chameleon"))]
    names = {title_of(method): name for method, name in _DRAWN.items()}
    part = part.assign(line=part["method"].map(names).mask(lent, _LENT))
    order = [*_DRAWN.values(), _LENT]
    part = part.sort_values(["line", "users"], key=lambda c: c.map(order.index)
                            if c.name == "line" else c)  # fmt: skip
    return part[["family", "line", "users", "value", "ci_low", "ci_high", "n", "seeds"]]


def agreement_figure(frame: pd.DataFrame, task: str, family: str, profile: str) -> FigureOutput:
    """Cosine of the paper's directions to those of the largest groups, by group size.

    Args:
        frame: From :func:`~chameleon_lib.sections.group_size.tables.agreement`.
        task: Task name.
        family: Title of a family.
        profile: Run profile.
    """
    part = frame[(frame["family"] == family) & frame["direction"].str.contains("paper")]
    # One line has one point at 1 user; the users who lend their directions are in the table.
    part = part[(part["users"] > 1) | (part["condition"] == OWN)]
    drawn = part.assign(
        line=part["direction"].str.slice(0, 2) + ", " + part["large group of the"]
    )
    figure = line_ci(
        drawn,
        title=f"{task.replace('_', '-')}, {_family(family)}: agreement with large groups",
        profile=profile,
        x="users",
        xlabel=_XLABEL + (f" (leftmost: {OWN})" if 1 in set(drawn["users"]) else ""),
        ylabel="absolute cosine",
        group="line",
        value="cosine",
        low="lowest",
        high="highest",
        reference=float(drawn["chance"].iloc[0]),
        reference_label="chance",
        better=None,
    )
    top = drawn["users"].max()
    first = drawn[drawn["users"] == drawn["users"].min()]
    words = [
        f"{line} {value:.2f}"
        for line, value in zip(first["line"], first["cosine"], strict=True)
    ]
    shared = drawn[(drawn["users"] == top) & (drawn["large group of the"] == "other draws")]
    overlap = ""
    if len(shared):
        overlap = (
            f" Groups of {top} of two draws share {float(shared['users shared'].iloc[0]):.0%} of "
            "their users."
        )
    return save_figure(
        figure,
        f"03_agreement_{task}_{_family(family).replace('-', '_')}",
        alt=f"Line plot of absolute cosines by number of users, from {int(first['users'].min())} "
        f"to {top}. At the smallest: {', '.join(words)}.",
        caption=(
            f"Absolute cosine to the directions of {top} users, mean over the layers that are "
            f"edited there and over {int(drawn['seeds'].max())} draws; bars reach from the lowest "
            f"to the highest draw; at 1 user n is {int(first['n'].min())} users "
            f"({profile} profile). The own draw's large group contains the small one.{overlap}"
        ),
        data=drawn,
        profile=profile,
    )


def _family(title: str) -> str:
    return next(name for name, known in FAMILY_TITLES.items() if known == title)


def summary(run: Run, curves: Mapping[str, pd.DataFrame],
            agreements: Mapping[str, pd.DataFrame]) -> str:  # fmt: skip
    """What came out, in sentences made from the numbers."""
    sentences = [f"{run.profile.name} profile. What came out:"]
    for task, frame in curves.items():
        metric = get_task(task).metrics[0]
        for family in families_of(run):
            words = []
            lines = curve_lines(frame, metric, family)
            for name in ("chameleon", "fitted"):
                part = lines[lines["line"] == _DRAWN[name]]
                ends = part.iloc[[0, -1]]
                words.append(
                    f"{title_of(name)}: {_change(ends.iloc[0], metric)}, "
                    f"{_change(ends.iloc[1], metric)}"
                    + (_share(ends, metric) if name == "chameleon" else "")
                )
            near = agreements[task]
            near = near[near["family"] == family]
            top = near["users"].max()
            first = near[near["direction"] == "θP (paper)"].iloc[0]
            words.append(
                f"θP of {first['condition']} has cosine {first['cosine']:.2f} with that of {top} "
                "users"
            )
            apart = near[(near["users"] == top) & (near["large group of the"] == "other draws")]
            if len(apart):
                cosines = apart.set_index("direction")["cosine"]
                words.append(
                    f"between two draws of {top} users θP has {cosines['θP (paper)']:.2f} and θN "
                    f"{cosines['θN (paper)']:.2f}"
                )
            sentences.append(f"{task.replace('_', '-')}, {family}: {'; '.join(words)}.")
    return "\n".join(sentences)


def _change(point: pd.Series, metric: str) -> str:
    """One point of the curve in words; on few test users value and interval alone."""
    low, high, value = point["ci_low"], point["ci_high"], point["value"]
    word = effect_word(low, high, point["n"], higher_is_better=higher_is_better(metric))
    if not word:
        return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] at {point['users']}"
    return f"{word} at {point['users']} ({value:+.3f})"


def _share(ends: pd.DataFrame, metric: str) -> str:
    """How much of the largest group's gain the smallest has; nothing where there is no gain."""
    first, last = ends.iloc[0], ends.iloc[1]
    better = higher_is_better(metric)
    if effect_word(last["ci_low"], last["ci_high"], last["n"], higher_is_better=better) != "helps":
        return ""
    return f" ({first['value'] / last['value']:.0%} of the gain at {first['users']})"
