"""Quick questions for the Explore cells: few users or one, one backbone, one change at a time.

Everything stands on the fit of the quickstart, so that a warm store answers within seconds. The
numbers show how something works; what it is worth is measured on all users by the notebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.task import User, is_valid_answer
from chameleon_lib.data.metrics import higher_is_better, per_sample_scores
from chameleon_lib.errors import UserError
from chameleon_lib.kit.figures import FigureOutput, dot_ci, show_figure
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.studies.arms import Reference
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.forms import form_of
from chameleon_lib.studies.quickstart import (
    FITTED,
    INSIGHT,
    NO_EDIT,
    PAPER,
    Arms,
    Tour,
    open_study,
    strengthened,
    tour_of,
)

_PLAIN: Arms = {NO_EDIT: ("instruct", None)}
_MARGIN = "margin (nats)"


def sample(
    profile: RunProfile,
    *,
    backbone: str = "",
    task: str = "LaMP_2",
    users: int = 30,
    data_dir: str = "",
) -> Tour:
    """The first test users, at most ``users``, and the edits of the quickstart's group.

    An empty ``backbone`` stands for the profile's first studied one.
    """
    if users < 1:
        raise UserError(f"users is {users}; ask at least one.")
    data = load_task_data(profile, task, data_dir)
    study = open_study(profile, backbone or profile.studied[0], task)
    return tour_of(study, data, data.test[:users])


def compare(sample: Tour, arms: Arms) -> pd.DataFrame:
    """Answers of the users in several arms, each beside the first arm.

    Returns:
        Per arm the task's metrics, the form of free text, mean margin (nats), and shares of changed
        and of valid answers.
    """
    found = sample.exam.answer(arms)
    task, first = sample.study.task, next(iter(found.values()))
    gold = sample.data.golds({user.user.id for user in sample.users})
    rows = {}
    for name, answers in found.items():
        scores = per_sample_scores(task, gold, answers.texts) | form_of(task, gold, answers.texts)
        row = pd.Series(
            {
                **{metric: np.mean(values) for metric, values in scores.items()},
                # Users whose own answer is the generic one have no margin.
                _MARGIN: pd.Series(answers.margin).mean(),
                "changed": np.mean(np.array(answers.texts) != np.array(first.texts)),
                "valid": np.mean([is_valid_answer(task, text) for text in answers.texts]),
            }
        )
        rows[name] = row.round(3)
    return pd.DataFrame(rows).T.rename_axis("arm").reset_index()


def edited(sample: Tour, edits: Mapping[str, Edit | None]) -> pd.DataFrame:
    """:func:`compare` the unedited answer with every edit under the same prompt."""
    return compare(sample, _PLAIN | {name: ("instruct", edit) for name, edit in edits.items()})


def strengths(sample: Tour, values: Sequence[float]) -> pd.DataFrame:
    """Both edits at several strengths: 0 is no edit, 1 the edit as found."""
    edits = {PAPER: sample.edit, FITTED: sample.fitted}
    arms = {
        f"{name} × {value:g}": strengthened(edit, value)
        for name, edit in edits.items()
        for value in values
    }
    return edited(sample, arms)


def edit_history(
    sample: Tour,
    user: int,
    *,
    drop: Sequence[int] = (),
    relabel: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """A user's first query, with the history as it is and after a change to it.

    Items are numbered from 1 as in the quickstart's table: those to ``drop`` are left out, those to
    ``relabel`` get another label. ``user`` is a number of the sample.

    Raises:
        UserError: An item that is not there, or none left.
    """
    one, relabel = _user(sample, user), relabel or {}
    for number in [*drop, *relabel]:
        if not 1 <= number <= len(one.history):
            raise UserError(f"There is no item {number}; user {user} has {len(one.history)}.")
    items = tuple(
        replace(item, label=relabel.get(number, item.label))
        for number, item in enumerate(one.history, start=1)
        if number not in drop
    )
    if not items:
        raise UserError("No item is left; drop fewer.")
    return asked_as(sample, {"as it is": one, "changed": replace(one, history=items)})


def _user(sample: Tour, number: int) -> User:
    """A user of the sample."""
    if not 0 <= number < len(sample.users):
        raise UserError(f"user is {number}; the sample has the users 0 to {len(sample.users) - 1}.")
    return sample.users[number].user


def asked_as(sample: Tour, users: Mapping[str, User]) -> pd.DataFrame:
    """Insight and answers to the first query of users; margins are not asked for."""
    firsts = [replace(user, queries=user.queries[:1]) for user in users.values()]
    prepared: list[PreparedUser] = sample.study.prepare(firsts).users
    if len(prepared) < len(users):
        raise UserError("A history no longer fits the context; change less of it.")
    arms = {
        NO_EDIT: ("instruct", None),
        PAPER: ("instruct", sample.edit),
        FITTED: ("instruct", sample.fitted),
        INSIGHT: ("insight", None),
    }
    same = [""] * len(prepared)
    asked = replace(sample, users=prepared, reference=Reference(same, same))
    return pd.DataFrame(
        {
            "history": list(users),
            "query": [user.user.queries[0].text for user in prepared],
            "insight": [user.insight_p for user in prepared],
            **{name: answers.texts for name, answers in asked.exam.answer(arms).items()},
        }
    )


def figure(frame: pd.DataFrame, sample: Tour, title: str) -> FigureOutput:
    """What every arm of :func:`compare` gains over the first one, in first metric and margin."""
    metric = str(frame.columns[1])
    gains = frame[["arm", metric, _MARGIN]].copy()
    gains[[metric, _MARGIN]] -= gains.loc[0, [metric, _MARGIN]].astype(float)
    if not higher_is_better(metric):
        gains[metric] *= -1
    drawn = gains.melt("arm", var_name="measure")
    profile, n = sample.study.profile.name, len(sample.users)
    ends = "; ".join(f"{arm}: {value:.3f}" for arm, value in frame[["arm", metric]].to_numpy())
    return show_figure(
        dot_ci(
            drawn.assign(ci_low=drawn["value"], ci_high=drawn["value"]),
            title=title,
            profile=profile,
            xlabel="gain over the first arm",
            row="arm",
            panel="measure",
        ),
        alt=f"Dots per arm; {metric} of {ends}.",
        caption=f"Gain over the first arm; fewer errors count as a gain. {n} users, one group, one "
        f"model: a look, no evidence ({profile} profile).",
    )
