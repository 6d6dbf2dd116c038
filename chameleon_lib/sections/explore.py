"""Quick questions for the Explore cells: few users, one backbone, one change at a time.

Everything stands on the fit of the quickstart, so that a warm store answers within seconds. The
numbers show how something works; what it is worth is measured on all users by the notebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from chameleon_lib.core.contrasts import contrasts_from_pairs
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.preferences import PreferencePair, PreparedUser, keep_different
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.lamp.metrics import per_sample_scores
from chameleon_lib.lamp.tasks import is_valid_answer
from chameleon_lib.sections.answering import Answers, Exam
from chameleon_lib.sections.data import without_gold
from chameleon_lib.sections.fits import stored_directions, stored_fit
from chameleon_lib.sections.playground import FITTED, NO_EDIT, PAPER, strengthened
from chameleon_lib.sections.quickstart import Tour, take_tour
from chameleon_lib.sections.scoring import reference_answers
from chameleon_lib.sections.study import Study

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
    members = list(dict.fromkeys(pair.user_id for pair in sample.tour.pairs))
    arms = _plain()
    for size in sizes:
        if not 1 <= size <= len(members):
            raise UserError(f"A size is {size}; the group has {len(members)} users.")
        chosen = set(members[:size])
        kept = [pair for pair in sample.tour.kept if pair.user_id in chosen]
        if not kept:
            raise UserError(f"The first {size} users gave no pair with two different answers.")
        edit = _paper_edit(sample.study, kept)
        layers = ", ".join(map(str, edit.layers))
        arms[f"{size} users, {len(kept)} pairs, layers {layers}"] = ("instruct", edit)
    return compare(sample, arms)


def _paper_edit(study: Study, kept: Sequence[PreferencePair]) -> Edit:
    return stored_directions(study, "paper", *study.activations(kept), 0).to_edit(study.settings)


def fit_steps(sample: Sample, steps: Sequence[int]) -> pd.DataFrame:
    """The fitted edit after several numbers of steps, each fit from the start."""
    tour, arms = sample.tour, _plain()
    for count in steps:
        settings = tour.study.settings.with_(fit_steps=count)
        study = Study(
            tour.study.profile, tour.study.backbone_id, tour.study.task, settings, tour.study.store
        )
        kept, identical = keep_different(tour.pairs, settings)
        contrasts = contrasts_from_pairs(study.task, kept, identical, settings)
        texts = PlainPrompts(study.backbone, [contrast.prompt for contrast in contrasts])
        edit, record = stored_fit(study, contrasts, texts, 0, f"{count} steps")
        arms[f"{count} steps, held-out best at {record['best_step']}"] = ("instruct", edit)
    return compare(sample, arms)


def random_directions(sample: Sample, draws: int) -> pd.DataFrame:
    """The paper's edit beside random directions at the same layers and strengths."""
    tour = sample.tour
    h_p, h_n = tour.study.activations(tour.kept)
    arms = _plain() | {PAPER: ("instruct", tour.edit)}
    for seed in range(draws):
        directions = stored_directions(tour.study, "random", h_p, h_n, seed)
        edit = directions.to_edit(tour.study.settings, tour.layers)
        arms[f"random {seed}"] = ("instruct", edit)
    return compare(sample, arms)
