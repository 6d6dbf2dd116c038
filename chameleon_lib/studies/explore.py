"""Quick questions for the Explore cells: few users or one, one backbone, one change at a time.

Everything stands on the fit of the quickstart, so that a warm store answers within seconds. The
numbers show how something works; what it is worth is measured on all users by the notebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.task import HistoryItem, User, is_valid_answer
from chameleon_lib.data.metrics import higher_is_better, per_sample_scores
from chameleon_lib.errors import UserError
from chameleon_lib.kit.figures import COLOURS, INK, MUTED, FigureOutput, show_figure, style
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.studies.answering import Answers, Exam
from chameleon_lib.studies.data import without_gold
from chameleon_lib.studies.playground import FITTED, NO_EDIT, PAPER, strengthened
from chameleon_lib.studies.quickstart import Tour, take_tour
from chameleon_lib.studies.scoring import reference_answers
from chameleon_lib.studies.study import Study

USERS = 30
_Arms = Mapping[str, tuple[str, Edit | None]]


@dataclass(frozen=True)
class Sample:
    """Some test users and the edits of one group.

    Attributes:
        tour: The fit.
        exam: The users' queries.
    """

    tour: Tour
    exam: Exam

    @property
    def study(self) -> Study:
        """Backbone, task and settings."""
        return self.tour.study

    @property
    def users(self) -> Sequence[PreparedUser]:
        """The test users that are asked."""
        return self.exam.users


def sample(
    profile: RunProfile,
    *,
    backbone: str = "",
    task: str = "LaMP_2",
    users: int = USERS,
    data_dir: str = "",
) -> Sample:
    """The first test users, and the edits of the quickstart's group.

    Args:
        profile: Run profile.
        backbone: One of the profile's; its first studied one if empty.
        task: Task name.
        users: Most users to ask.
        data_dir: Folder of official LaMP files; empty for the embedded world.
    """
    if users < 1:
        raise UserError(f"users is {users}; ask at least one.")
    tour = take_tour(profile, backbone or profile.studied[0], task, 0, data_dir)
    prepared, _ = tour.study.prepare(without_gold(tour.data.test[:users]))
    return Sample(
        tour, Exam(tour.study, prepared, reference_answers(tour.study, tour.data, prepared))
    )


def compare(sample: Sample, arms: _Arms) -> pd.DataFrame:
    """Answers of the users in several arms, each beside the first arm.

    Args:
        sample: Users and edits.
        arms: Name → (prompt kind, edit or None).

    Returns:
        Per arm the task's metrics, mean margin (nats), and shares of changed and of valid answers.
    """
    found = sample.exam.answer(arms)
    first = next(iter(found.values()))
    return pd.DataFrame([{"arm": name} | _row(sample, a, first) for name, a in found.items()])


def _row(sample: Sample, answers: Answers, first: Answers) -> dict[str, float]:
    task = sample.study.task
    asked = {user.user.id for user in sample.users}
    gold = [str(q.gold) for user in sample.tour.data.test if user.id in asked for q in user.queries]
    scores = per_sample_scores(task, gold, answers.texts)
    changed = [a != b for a, b in zip(answers.texts, first.texts, strict=True)]
    valid = [is_valid_answer(task, text) for text in answers.texts]
    row = {name: float(values.mean()) for name, values in scores.items()}
    # Users whose own answer is the generic one have no margin; there may be nobody else.
    margin = answers.margin[~np.isnan(answers.margin)]
    row["margin (nats)"] = float(margin.mean()) if margin.size else float("nan")
    row |= {"changed": float(np.mean(changed)), "valid": float(np.mean(valid))}
    return {name: round(value, 3) for name, value in row.items()}


def _plain() -> dict[str, tuple[str, Edit | None]]:
    return {NO_EDIT: ("instruct", None)}


def strengths(sample: Sample, values: Sequence[float]) -> pd.DataFrame:
    """Both edits at several strengths: 0 is no edit, 1 the edit as found."""
    tour, arms = sample.tour, _plain()
    for name, edit in ((PAPER, tour.edit), (FITTED, tour.fitted)):
        arms |= {f"{name} × {value:g}": ("instruct", strengthened(edit, value)) for value in values}
    return compare(sample, arms)


def parts(sample: Sample) -> pd.DataFrame:
    """The paper's edit whole, its boost alone, its removal alone, and with the signs turned."""
    edit = sample.tour.edit
    arms: dict[str, tuple[str, Edit | None]] = {
        "boost and removal": ("instruct", edit),
        "boost of θP alone": ("instruct", replace(edit, alpha_n=0.0)),
        "removal of θN alone": ("instruct", replace(edit, alpha_p=0.0)),
        "signs turned": ("instruct", strengthened(edit, -1.0)),
    }
    return compare(sample, _plain() | arms)


def prompts(sample: Sample) -> pd.DataFrame:
    """The same edits with and without a history in the prompt."""
    tour, arms = sample.tour, dict[str, tuple[str, Edit | None]]()
    for kind, words in (("unseen", "no history"), ("instruct", "with history")):
        for name, edit in ((NO_EDIT, None), (PAPER, tour.edit), (FITTED, tour.fitted)):
            arms[f"{words}, {name}"] = (kind, edit)
    return compare(sample, arms)


def group_sizes(sample: Sample, sizes: Sequence[int]) -> pd.DataFrame:
    """The paper's edit from the pairs of the first users of the group only.

    Raises:
        UserError: A size that leaves no pair, or more users than the group has.
    """
    tour, arms = sample.tour, _plain()
    members = list(dict.fromkeys(pair.user_id for pair in tour.pairs))
    for size in sizes:
        if not 1 <= size <= len(members):
            raise UserError(f"A size is {size}; the group has {len(members)} users.")
        pairs = [pair for pair in tour.kept if pair.user_id in members[:size]]
        if not pairs:
            raise UserError(f"The first {size} users gave no pair with two different answers.")
        edit = sample.study.with_(pairs_on_too_few="warn").case(pairs, 0).edit("paper")
        layers = ", ".join(map(str, edit.layers))
        arms[f"{size} users, {len(pairs)} pairs, layers {layers}"] = ("instruct", edit)
    return compare(sample, arms)


def fit_steps(sample: Sample, steps: Sequence[int]) -> pd.DataFrame:
    """The fitted edit after several numbers of steps, each fit from the start."""
    arms = _plain()
    for count in steps:
        case = replace(sample.tour.case, method=sample.study.with_(fit_steps=count), fits={})
        edit = case.edit("fitted")
        best = case.fits["fitted"].best_step
        arms[f"{count} steps, held-out best at {best}"] = ("instruct", edit)
    return compare(sample, arms)


def random_directions(sample: Sample, draws: int) -> pd.DataFrame:
    """The paper's edit beside random directions at the same layers and strengths."""
    arms = _plain() | {PAPER: ("instruct", sample.tour.edit)}
    for seed in range(draws):
        arms[f"random {seed}"] = ("instruct", sample.tour.case.edit("random", seed))
    return compare(sample, arms)


def two_users(sample: Sample, first: int, second: int) -> pd.DataFrame:
    """One query, asked with the history of either user: who gets which answer?

    Args:
        sample: Users and edits.
        first: Number of a user of the sample; the query is this user's first one.
        second: Number of another one.
    """
    one, other = (_user(sample, number) for number in (first, second))
    asked = replace(other.user, queries=one.user.queries[:1])
    prepared, _ = sample.study.prepare([replace(one.user, queries=asked.queries), asked])
    return _said(sample, dict(zip((f"user {first}", f"user {second}"), prepared, strict=True)))


def edit_history(
    sample: Sample,
    user: int,
    *,
    drop: Sequence[int] = (),
    relabel: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """A user's first query, with the history as it is and after a change to it.

    Args:
        sample: Users and edits.
        user: Number of a user of the sample.
        drop: Items to leave out, numbered from 1 as in the quickstart's table.
        relabel: Item number → another label.

    Raises:
        UserError: An item that is not there, or none left.
    """
    one = _user(sample, user).user
    relabel = relabel or {}
    for number in [*drop, *relabel]:
        if not 1 <= number <= len(one.history):
            raise UserError(f"There is no item {number}; user {user} has {len(one.history)}.")
    items = tuple(
        HistoryItem(item.id, item.text, relabel.get(number, item.label))
        for number, item in enumerate(one.history, start=1)
        if number not in drop
    )
    if not items:
        raise UserError("No item is left; drop fewer.")
    queries = one.queries[:1]
    both: list[User] = [replace(one, queries=queries), replace(one, history=items, queries=queries)]
    prepared, _ = sample.study.prepare(both)
    return _said(sample, dict(zip(("as it is", "changed"), prepared, strict=True)))


def _user(sample: Sample, number: int) -> PreparedUser:
    if not 0 <= number < len(sample.users):
        raise UserError(f"user is {number}; the sample has the users 0 to {len(sample.users) - 1}.")
    return sample.users[number]


def _said(sample: Sample, users: Mapping[str, PreparedUser]) -> pd.DataFrame:
    """Insight and answers of prepared users with one query each."""
    tour, study = sample.tour, sample.study
    pairs = study.pairs(list(users.values()))
    reference = replace(
        sample.exam.reference,
        personal=[pair.answer_p for pair in pairs],
        generic=[pair.answer_n for pair in pairs],
    )
    arms: dict[str, tuple[str, Edit | None]] = {
        NO_EDIT: ("instruct", None),
        PAPER: ("instruct", tour.edit),
        FITTED: ("instruct", tour.fitted),
        "insight in the prompt": ("insight", None),
    }
    found = Exam(study, list(users.values()), reference).answer(arms)
    return pd.DataFrame(
        {
            "history": list(users),
            "query": [pair.query for pair in pairs],
            "insight": [user.insight_p for user in users.values()],
            **{name: answers.texts for name, answers in found.items()},
        }
    )


def figure(frame: pd.DataFrame, sample: Sample, title: str) -> FigureOutput:
    """Dots of the first metric and of the margin, one line per arm; the first arm is the mark.

    Args:
        frame: From a question asked of several users.
        sample: Whom it was asked of.
        title: What was varied.
    """
    metric, margin = str(frame.columns[1]), "margin (nats)"
    better = {metric: higher_is_better(metric), margin: True}
    profile, n = sample.study.profile.name, len(sample.users)
    with style():
        fig = Figure(figsize=(7.6, 1.5 + 0.27 * max(len(frame), 3)))
        axes = fig.subplots(1, 2, sharey=True)
        for number, (ax, name) in enumerate(zip(axes, better, strict=True)):
            first, lines = float(frame[name].iloc[0]), range(len(frame))
            ax.axvline(first, color=INK, lw=1.0, zorder=1)
            ax.hlines(lines, first, frame[name], color=MUTED, lw=1.6, zorder=2)
            ax.plot(frame[name], lines, ls="", marker="oD"[number], ms=7, mec=INK, mew=0.6,
                    color=COLOURS[number], zorder=3)  # fmt: skip
            ax.set_yticks(lines, frame["arm"])
            ax.set_ylim(len(frame) - 0.5, -0.5)
            ax.grid(axis="y", visible=False)
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.set_xlabel(f"{name}  ({'→' if better[name] else '←'} better)")
        fig.suptitle(f"{title} · {profile} profile", x=0.01, ha="left", fontweight="bold")
    ends = "; ".join(
        f"{arm}: {value:.3f}" for arm, value in zip(frame["arm"], frame[metric], strict=True)
    )
    return show_figure(
        fig,
        alt=f"Dots per arm; {metric} of {ends}.",
        caption=f"The line marks the first arm. {n} users, one group, one model: a look, no "
        f"evidence ({profile} profile).",
    )
