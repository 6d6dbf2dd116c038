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
from chameleon_lib.studies.playground import FITTED, NO_EDIT, PAPER, strengthened
from chameleon_lib.studies.quickstart import Arms, Tour, open_study, tour_of

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
    data = load_task_data(profile, task, data_dir)
    study = open_study(profile, backbone or profile.studied[0], task)
    return tour_of(study, data, data.test[:users])


def compare(sample: Tour, arms: Arms) -> pd.DataFrame:
    """Answers of the users in several arms, each beside the first arm.

    Returns:
        Per arm the task's metrics, mean margin (nats), and shares of changed and of valid answers.
    """
    found = sample.exam.answer(arms)
    task, first = sample.study.task, next(iter(found.values()))
    asked = {user.user.id for user in sample.users}
    gold = [str(q.gold) for user in sample.data.test if user.id in asked for q in user.queries]
    rows = {}
    for name, answers in found.items():
        scores = per_sample_scores(task, gold, answers.texts)
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


def _instruct(edits: Mapping[str, Edit | None]) -> Arms:
    """The unedited answer first, then every edit under the same prompt."""
    return _PLAIN | {name: ("instruct", edit) for name, edit in edits.items()}


def strengths(sample: Tour, values: Sequence[float]) -> pd.DataFrame:
    """Both edits at several strengths: 0 is no edit, 1 the edit as found."""
    edits = {PAPER: sample.edit, FITTED: sample.fitted}
    arms = {
        f"{name} × {value:g}": strengthened(edit, value)
        for name, edit in edits.items()
        for value in values
    }
    return compare(sample, _instruct(arms))


def parts(sample: Tour) -> pd.DataFrame:
    """The paper's edit whole, its boost alone, its removal alone, and with the signs turned."""
    edit = sample.edit
    arms = {
        "boost and removal": edit,
        "boost of θP alone": replace(edit, alpha_n=0.0),
        "removal of θN alone": replace(edit, alpha_p=0.0),
        "signs turned": strengthened(edit, -1.0),
    }
    return compare(sample, _instruct(arms))


def prompts(sample: Tour) -> pd.DataFrame:
    """The same edits with and without a history in the prompt."""
    edits = {NO_EDIT: None, PAPER: sample.edit, FITTED: sample.fitted}
    arms = {
        f"{words}, {name}": (kind, edit)
        for kind, words in (("unseen", "no history"), ("instruct", "with history"))
        for name, edit in edits.items()
    }
    return compare(sample, arms)


def group_sizes(sample: Tour, sizes: Sequence[int]) -> pd.DataFrame:
    """The paper's edit from the pairs of the first users of the group only.

    Raises:
        UserError: A size that leaves no pair, or more users than the group has.
    """
    arms = {}
    members = list(dict.fromkeys(pair.user_id for pair in sample.case.pairs))
    for size in sizes:
        if not 1 <= size <= len(members):
            raise UserError(f"A size is {size}; the group has {len(members)} users.")
        pairs = [pair for pair in sample.case.kept if pair.user_id in members[:size]]
        if not pairs:
            raise UserError(f"The first {size} users gave no pair with two different answers.")
        edit = sample.study.with_(pairs_on_too_few="warn").case(pairs, 0).edit("paper")
        layers = ", ".join(map(str, edit.layers))
        arms[f"{size} users, {len(pairs)} pairs, layers {layers}"] = edit
    return compare(sample, _instruct(arms))


def fit_steps(sample: Tour, steps: Sequence[int]) -> pd.DataFrame:
    """The fitted edit after several numbers of steps, each fit from the start."""
    arms = {}
    for count in steps:
        case = replace(sample.case, method=sample.study.with_(fit_steps=count), fits={})
        edit = case.edit("fitted")
        arms[f"{count} steps, held-out best at {case.fits['fitted'].best_step}"] = edit
    return compare(sample, _instruct(arms))


def random_directions(sample: Tour, draws: int) -> pd.DataFrame:
    """The paper's edit beside random directions at the same layers and strengths."""
    arms = {f"random {seed}": sample.case.edit("random", seed) for seed in range(draws)}
    return compare(sample, _instruct({PAPER: sample.edit, **arms}))


def two_users(sample: Tour, first: int, second: int) -> pd.DataFrame:
    """The query of the user with the first number, asked with the history of either user."""
    one, other = (_user(sample, number) for number in (first, second))
    both = {f"user {first}": one, f"user {second}": replace(other, queries=one.queries)}
    return _said(sample, both)


def edit_history(
    sample: Tour,
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
    return _said(sample, {"as it is": one, "changed": replace(one, history=items)})


def _user(sample: Tour, number: int) -> User:
    """A user of the sample with the first query alone."""
    if not 0 <= number < len(sample.users):
        raise UserError(f"user is {number}; the sample has the users 0 to {len(sample.users) - 1}.")
    user = sample.users[number].user
    return replace(user, queries=user.queries[:1])


def _said(sample: Tour, users: Mapping[str, User]) -> pd.DataFrame:
    """Insight and answers of users with one query each; margins are not asked for."""
    prepared: list[PreparedUser] = sample.study.prepare(list(users.values())).users
    if len(prepared) < len(users):
        raise UserError("A history no longer fits the context; change less of it.")
    arms = _instruct({PAPER: sample.edit, FITTED: sample.fitted})
    arms = {**arms, "insight in the prompt": ("insight", None)}
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
    """What every arm gains over the first one, in the first metric and in the margin.

    Args:
        frame: From a question asked of several users.
        sample: Whom it was asked of.
        title: What was varied.
    """
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
