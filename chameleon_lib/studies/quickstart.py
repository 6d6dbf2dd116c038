"""One user through the whole method (sections 3.1 to 3.3), each step as a frame to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from chameleon_lib.core.chameleon import Case
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.history import item_texts
from chameleon_lib.core.pairs import PreparedUser, pair_texts
from chameleon_lib.core.task import User
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.studies.arms import Exam, Reference, groups_of, reference_answers
from chameleon_lib.studies.data import TaskData, load_task_data, without_gold
from chameleon_lib.studies.study import Study, settings_for

Arms = dict[str, tuple[str, Edit | None]]  # name → prompt kind, edit
# What the playground and the Explore cells call them.
PAPER, FITTED = "paper's edit", "fitted edit (ours)"
NO_EDIT, INSIGHT = "no edit", "insight in the prompt"


@dataclass(frozen=True)
class Tour:
    """The edits of one group, and users who are asked under them.

    Attributes:
        study: Backbone, task and settings.
        data: Users of the task.
        case: The group's pairs, and the edits they make.
        users: Who is asked, with selected history and insights; no fit has seen them.
        reference: What margins compare.
        compared: The same in words, where it is not the planted answers.
    """

    study: Study
    data: TaskData
    case: Case
    users: Sequence[PreparedUser]
    reference: Reference
    compared: str = ""

    @property
    def user(self) -> PreparedUser:
        """The only one, or the first."""
        return self.users[0]

    @cached_property
    def edit(self) -> Edit:
        """The paper's edit."""
        return self.case.edit("paper")

    @cached_property
    def fitted(self) -> Edit:
        """The same edit, fitted by the preference loss."""
        return self.case.edit("fitted")

    @cached_property
    def exam(self) -> Exam:
        """The users' queries."""
        return Exam(self.study, self.users, self.reference)

    def arms(self) -> Arms:
        """Row of the tables → (prompt kind, edit): what is compared first of all."""
        return {
            "Instruct": ("instruct", None),
            "Instruct + edit (paper)": ("instruct", self.edit),
            "Instruct + fitted edit (ours)": ("instruct", self.fitted),
            INSIGHT: ("insight", None),
        }


def strengthened(edit: Edit, factor: float) -> Edit:
    """The edit with both strengths (alpha_p and alpha_n) multiplied."""
    return replace(edit, alpha_p=factor * edit.alpha_p, alpha_n=factor * edit.alpha_n)


def open_study(profile: RunProfile, backbone_id: str, task: str) -> Study:
    """A backbone of a run under the run's settings."""
    return Study(profile, backbone_id, task, settings_for(profile))


def take_tour(
    profile: RunProfile, backbone_id: str, task: str, user_index: int, data_dir: str = ""
) -> Tour:
    """The tour of one test user; a second call finds everything in the store.

    Raises:
        UserError: No such user, one who does not fit the context, or no pair to fit on.
    """
    data = load_task_data(profile, task, data_dir)
    if not 0 <= user_index < len(data.test):
        raise UserError(f"user is {user_index}; give a number from 0 to {len(data.test) - 1}.")
    study = open_study(profile, backbone_id, task)
    return tour_of(study, data, [data.test[user_index]])


def tour_of(
    study: Study, data: TaskData, users: Sequence[User], reference: Reference | None = None
) -> Tour:
    """Fit on a group of the train users, and prepare users who are none of them.

    Margins compare ``reference``, by default the users' answers and the generic ones.

    Raises:
        UserError: Nobody fits the context, or not one pair is left to fit on.
    """
    prepared = study.prepare(without_gold(users)).users
    if not prepared:
        raise UserError(f"User {users[0].id!r} does not fit the context; choose another user.")
    train = study.prepare(without_gold(data.train)).users
    [group] = groups_of(study, train, (0,))
    case = study.with_(pairs_on_too_few="warn").case(group.pairs, 0, checks=True)
    reference = reference or reference_answers(study, data, prepared)
    return Tour(study, data, case, prepared, reference)


def history(tour: Tour) -> pd.DataFrame:
    """The user's history in two principal components, with the items eq. 2 keeps."""
    user = tour.user.user
    vectors = tour.study.embedder.encode(item_texts(user.task, user.history, tour.study.settings))
    centred = vectors - vectors.mean(axis=0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    # The sign of a singular vector is arbitrary; fixing it keeps the picture the same everywhere.
    signs = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)])
    plane = (u * s * signs)[:, :2]
    chosen = {item.id for item in tour.user.items}
    return pd.DataFrame(
        {
            "item": range(1, len(user.history) + 1),
            "text": [item.text for item in user.history],
            "label": [item.label or "" for item in user.history],
            "selected": [item.id in chosen for item in user.history],
            "pc1": plane[:, 0].round(4),
            "pc2": plane[:, 1].round(4),
        }
    )


def insights(tour: Tour) -> pd.DataFrame:
    """Both insights the backbone wrote about the user."""
    return pd.DataFrame(
        {
            "agent": ["personalised (P)", "neutral (N)"],
            "insight": [tour.user.insight_p, tour.user.insight_n],
        }
    )


def pair_examples(tour: Tour, n: int = 6) -> pd.DataFrame:
    """The first pairs of the group, and whether the filter keeps them."""
    kept = {pair.query_id for pair in tour.case.kept}
    rows = tour.case.pairs[:n]
    return pd.DataFrame(
        {
            "query": [pair.query for pair in rows],
            "ŷP": [pair.answer_p for pair in rows],
            "ŷN": [pair.answer_n for pair in rows],
            "kept": [pair.query_id in kept for pair in rows],
        }
    )


def example_pair_text(tour: Tour) -> str:
    """The end of the first kept pair's text p^P: query line and answer."""
    context, answer = pair_texts(tour.study.task, tour.case.kept[0], tour.study.settings)[0]
    return f"…{context[-100:]} {answer}"


def layer_losses(tour: Tour) -> pd.DataFrame:
    """CCS loss of every layer beside that of shuffled pairs, and the layers that are edited."""
    frame = pd.DataFrame(tour.case.main.rows())
    frame["edited"] = frame["layer"].isin(tour.case.layers)
    return frame.rename(columns={"ccs_loss": "loss", "ccs_loss_shuffled": "shuffled_loss"})


def before_and_after(tour: Tour) -> pd.DataFrame:
    """The user's query with and without edit, with and without the insight in the prompt."""
    arms = {
        **tour.arms(),
        "insight + edit (paper)": ("insight", tour.edit),
        "insight + fitted edit (ours)": ("insight", tour.fitted),
    }
    found = tour.exam.answer(arms)
    return pd.DataFrame(
        {
            "prompt and edit": list(found),
            "query": tour.user.user.queries[0].text,
            "answer": [answers.texts[0] for answers in found.values()],
            "user's answer": tour.reference.personal[0],
            "generic answer": tour.reference.generic[0],
            "margin (nats)": [float(np.round(a.margin[0], 3)) for a in found.values()],
        }
    )
