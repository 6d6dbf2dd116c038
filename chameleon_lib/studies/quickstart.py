"""One user through the whole method (sections 3.1 to 3.3), each step as a frame to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from chameleon_lib.core.case import Case
from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.history import item_texts
from chameleon_lib.core.pairs import PreferencePair, PreparedUser, pair_texts
from chameleon_lib.core.task import User
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.studies.answering import Exam, Reference
from chameleon_lib.studies.arms import draw_group
from chameleon_lib.studies.data import TaskData, load_task_data, without_gold
from chameleon_lib.studies.loading import settings_for
from chameleon_lib.studies.scoring import reference_answers
from chameleon_lib.studies.study import Study


@dataclass(frozen=True)
class Tour:
    """Everything the quickstart shows.

    Attributes:
        study: Backbone, task and settings.
        data: Users of the task.
        user: The user of the tour, with selected history and insights; its gold is unused.
        case: The pairs of the group the directions come from, and the edits they make.
    """

    study: Study
    data: TaskData
    user: PreparedUser
    case: Case

    @property
    def pairs(self) -> list[PreferencePair]:
        """Unfiltered pairs of the group."""
        return self.case.pairs

    @property
    def kept(self) -> list[PreferencePair]:
        """Those with different outputs."""
        return self.case.kept

    @property
    def identical(self) -> list[PreferencePair]:
        """The others."""
        return self.case.identical

    @property
    def directions(self) -> Directions:
        """The paper's directions at every layer."""
        return self.case.main

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers."""
        return self.case.layers

    @cached_property
    def edit(self) -> Edit:
        """The paper's edit."""
        return self.case.edit("paper")

    @cached_property
    def fitted(self) -> Edit:
        """The same edit, fitted by the preference loss."""
        return self.case.edit("fitted")


def take_tour(
    profile: RunProfile, backbone_id: str, task: str, user_index: int, data_dir: str = ""
) -> Tour:
    """Compute the tour; a second call finds everything in the store.

    Args:
        profile: Run profile.
        backbone_id: One of the profile's backbones.
        task: Task name.
        user_index: Which test user; none of the fits has seen any test user.
        data_dir: Folder of official LaMP files; empty for the embedded world.
    """
    data = load_task_data(profile, task, data_dir)
    if not 0 <= user_index < len(data.test):
        raise UserError(f"user is {user_index}; give a number from 0 to {len(data.test) - 1}.")
    study = Study(profile, backbone_id, task, settings_for(profile))
    return tour_of(study, data, data.test[user_index])


def tour_of(study: Study, data: TaskData, user: User) -> Tour:
    """Fit on a group of the train users and prepare one user who is none of them.

    Args:
        study: Backbone, task and settings.
        data: Its train users fit.
        user: The user of the tour.

    Raises:
        UserError: The user does not fit the context, or not one pair is left to fit on.
    """
    prepared = study.prepare(without_gold([user])).users
    if not prepared:
        raise UserError(f"User {user.id!r} does not fit the context; choose another user.")
    train = study.prepare(without_gold(data.train)).users
    pairs = study.pairs(draw_group(train, study.settings.group_size, 0))
    case = study.with_(pairs_on_too_few="warn").case(pairs, 0, checks=True)
    return Tour(study, data, prepared[0], case)


def history(tour: Tour) -> pd.DataFrame:
    """The user's history in two principal components, with the items eq. 2 keeps."""
    user: User = tour.user.user
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
    kept = {pair.query_id for pair in tour.kept}
    rows: Sequence[PreferencePair] = tour.pairs[:n]
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
    context, answer = pair_texts(tour.study.task, tour.kept[0], tour.study.settings)[0]
    return f"…{context[-100:]} {answer}"


def layer_losses(tour: Tour) -> pd.DataFrame:
    """CCS loss of every layer beside that of shuffled pairs, and the layers that are edited."""
    frame = pd.DataFrame(tour.directions.rows())
    frame["edited"] = frame["layer"].isin(tour.layers)
    return frame.rename(columns={"ccs_loss": "loss", "ccs_loss_shuffled": "shuffled_loss"})


def before_and_after(tour: Tour, reference: Reference | None = None) -> pd.DataFrame:
    """The user's query with and without edit, with and without the insight in the prompt.

    Args:
        tour: The tour.
        reference: What the margin compares; by default the user's answer and the generic one.
    """
    reference = reference or reference_answers(tour.study, tour.data, [tour.user])
    arms = {
        "Instruct": ("instruct", None),
        "Instruct + edit (paper)": ("instruct", tour.edit),
        "Instruct + fitted edit (ours)": ("instruct", tour.fitted),
        "insight in the prompt": ("insight", None),
        "insight + edit (paper)": ("insight", tour.edit),
        "insight + fitted edit (ours)": ("insight", tour.fitted),
    }
    found = Exam(tour.study, [tour.user], reference).answer(arms)
    query = tour.user.user.queries[0]
    return pd.DataFrame(
        {
            "prompt and edit": list(found),
            "query": query.text,
            "answer": [answers.texts[0] for answers in found.values()],
            "user's answer": reference.personal[0],
            "generic answer": reference.generic[0],
            "margin (nats)": [float(np.round(a.margin[0], 3)) for a in found.values()],
        }
    )


def finding(answers: pd.DataFrame) -> str:
    """What both edits did to the margin of the one query, in a sentence.

    Args:
        answers: From :func:`before_and_after`.
    """
    margin = answers.set_index("prompt and edit")["margin (nats)"]
    if margin.isna().any():
        return "This user's answer is the generic one, so there is no margin: take another user."
    paper, fitted = (
        float(margin[name] - margin["Instruct"])
        for name in ("Instruct + edit (paper)", "Instruct + fitted edit (ours)")
    )
    return (
        f"For this one query the paper's edit moved the margin by {paper:+.2f} nats, the fitted "
        f"edit by {fitted:+.2f}."
    )
