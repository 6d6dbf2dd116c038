"""A real instruction-tuned model through the whole method, on invented users in plain English.

The users (`real_posts.csv`, `real_reviews.csv`) were invented for this kit: sixteen habits of
writing posts and of giving stars. They are halved; the pairs of one half fit an edit (sections 3.1
to 3.3) that the other half is scored under, and the other way round, so every user is scored under
an edit that no text of the user's has fitted. The primary measure is the log-probability per token
of what the user wrote; generation and, for stars, scoring of the labels stand beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from chameleon_lib.core.answers import form_scores, is_echo
from chameleon_lib.core.chameleon import Case
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import (
    PreferencePair,
    PreparedUser,
    decode_settings,
    max_new_tokens,
    prompt_texts,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import User, get_task
from chameleon_lib.data.importing import ImportOptions, read_table
from chameleon_lib.data.metrics import per_sample_scores
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.pool import warm
from chameleon_lib.kit.profiles import RunProfile, model_title
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.arms import edit_key, with_gold
from chameleon_lib.studies.data import without_gold
from chameleon_lib.studies.forms import form_of
from chameleon_lib.studies.study import Study

POSTS, REVIEWS = "LaMP_7", "LaMP_3"
TABLES = {
    POSTS: (Path(__file__).with_name("real_posts.csv"), 2),
    REVIEWS: (Path(__file__).with_name("real_reviews.csv"), 1),
}  # task → table, and how many of a user's latest rows are asked
NO_EDIT = "no edit"
NATS = "nats per token"
RANDOM_DRAWS = 2
MODEL = "smollm2"  # of `kit.wheels`
Arm = tuple[str, int]  # title, and which of several draws
# Edits of a case (names of the registry), and what the tables call them. Where both answers are one
# digit the paper's directions read little but the digit (A4), and self-made pairs teach the digit.
EDITS = {
    "paper": "paper's edit",
    "fitted": "fitted on self-made pairs",
    "fitted_history": "fitted on histories",
    "fitted_format": "fitted on other users' histories (control)",
    "fitted_gold": "fitted on gold pairs (positive control)",
}
# What the default run makes of them, for a fit takes minutes. The control of format is left to
# faster machines: the other half's edit and another user's history stand in its place.
MADE: dict[str, tuple[str, ...]] = {
    POSTS: ("paper", "fitted", "fitted_history", "fitted_gold"),
    REVIEWS: ("fitted_gold",),
}
# Edits that are also tried on the half that made them (the gold one would be a leak), and under
# another user's history.
SEEN, CROSSED = ("fitted_history",), ("fitted_history",)
PROMPTS = {
    "unseen": "no history in the prompt",
    "insight": "insight in the prompt",
}
WRONG = "another user's history in the prompt"
RANDOM = "random directions"
OWN_GROUP = "{edit}, of the user's own half"


def settings_of(profile: RunProfile, **changes: Any) -> EditSettings:
    """The paper's settings, at a length that a processor reads in minutes.

    Of a user's few items four are shown; insights and answers are short, as the texts are. Fits are
    guarded, and take a fifth of the steps in an eighth of the batches.
    """
    return EditSettings().with_(
        **{
            "selection_k": 4,
            "decode_insight_tokens": 32,
            "decode_max_new_tokens": 32,
            "pairs_on_too_few": "warn",
            "fit_steps": 8,
            "fit_batch": 4,
            "model_dtype": profile.dtype,
            **changes,
        }
    )


def invented_users(task: str) -> list[User]:
    """The invented users of one task, every row kept.

    Raises:
        UserError: Their table has a row that is no item of a user.
    """
    path, queries = TABLES[task]
    report = read_table(path, task, ImportOptions(queries=queries))
    if report.curated.dropped:
        raise UserError(f"{path.name}: {report.curated.dropped[0]}; mend the table.")
    return report.curated.users


def users_digest(task: str) -> str:
    """SHA-256 of the invented users of a task."""
    return digest(invented_users(task))


@dataclass(frozen=True, eq=False)
class Half:
    """Half of the users, with the pairs they make and the edits of these.

    Attributes:
        study: Backbone, task and settings.
        users: Prepared, without gold answers.
        golds: Gold answers of their queries, for scoring and the positive control.
        people: The same users with gold answers.
        pairs: Unfiltered.
    """

    study: Study
    users: list[PreparedUser]
    people: list[User]
    pairs: list[PreferencePair]

    @property
    def golds(self) -> list[str]:
        """Of every query, in order."""
        return [str(query.gold) for user in self.people for query in user.queries]

    @property
    def owners(self) -> list[str]:
        """The user of every query."""
        return [user.id for user in self.people for _ in user.queries]

    @cached_property
    def case(self) -> Case:
        """The pairs, and every edit that can be made from them."""
        return self.study.case(self.pairs, 0, with_gold(self.users, self.people))

    @cached_property
    def made(self) -> tuple[dict[Arm, Edit], dict[Arm, str]]:
        """The edits by arm (title, draw), and of every other arm one sentence why it has none."""
        made, refused = dict[Arm, Edit](), dict[Arm, str]()
        kinds, wanted = MADE[self.study.task], dict[Arm, tuple[str, int | None]]()
        wanted |= {(EDITS[name], 0): (name, None) for name in kinds}
        if "paper" in kinds:  # random directions sit at its layers
            wanted |= {(RANDOM, draw): ("random", 1000 + draw) for draw in range(RANDOM_DRAWS)}
        for arm, (name, seed) in wanted.items():
            try:
                made[arm] = self.case.edit(name, seed)
            except UserError as error:
                refused[arm] = str(error)
        return made, refused

    def prompts(self, kind: str) -> list[str]:
        """The prompts of all queries; :data:`WRONG` shows each user the next one's history."""
        users = self.users
        if kind == WRONG:
            shown = [*users[1:], users[0]]
            users = [replace(u, items=v.items) for u, v in zip(users, shown, strict=True)]
            kind = "instruct"
        return prompt_texts(self.study.task, users, kind, self.study.settings)


@dataclass(frozen=True, eq=False)
class RealRun:
    """Both halves of one task, and what all arms said.

    Attributes:
        study: Backbone, task and settings.
        halves: Of the users.
        arms: One row per arm, draw and query: ``arm``, ``draw``, ``user``, ``query``, ``source``,
            ``gold``, :data:`NATS`, for stars the error of the likeliest label; and where answers
            are written, ``answer``, its scores and those of its form.
        refused: Arm → why it has no rows.
    """

    study: Study
    halves: tuple[Half, Half]
    arms: pd.DataFrame
    refused: dict[str, str]

    @property
    def users(self) -> list[PreparedUser]:
        """All, first half first."""
        return [user for half in self.halves for user in half.users]

    @property
    def pairs(self) -> list[PreferencePair]:
        """All, unfiltered."""
        return [pair for half in self.halves for pair in half.pairs]

    @property
    def golds(self) -> list[str]:
        """Of every pair's query."""
        return [gold for half in self.halves for gold in half.golds]


def run(
    profile: RunProfile,
    backbone_id: str,
    task: str,
    *,
    users: int = 0,
    store: ArtifactStore | None = None,
    **changes: Any,
) -> RealRun:
    """Everything of one task; finished work is kept, so a second call reads it.

    Args:
        profile: Run profile.
        backbone_id: A folder or a hub name.
        task: One of :data:`TABLES`.
        users: Only so many of the invented users; all if 0.
        store: Artifact store; the default one if None.
        **changes: Settings that differ from :func:`settings_of`.

    Raises:
        UserError: Fewer than two users, or one who does not fit the context.
    """
    study = Study(profile, backbone_id, task, settings_of(profile, **changes), store)
    people = invented_users(task)[: users or None]
    if len(people) < 2:
        raise UserError(f"users is {users}; two halves need 2 or more.")
    if profile.workers > 1:
        asked = (profile, backbone_id, task, study.settings, study.store.root, people)
        each = [(*asked, 0), (*asked, 1)]
        title = f"{model_title(backbone_id)} {task}"
        phases = [(f"{title} edits", _make_edits, each), (f"{title} answers", _ask_half, each)]
        warm(phases, workers=profile.workers, threads=profile.threads, preload=_CLASSES)
    halves = (_half(study, people, 0), _half(study, people, 1))
    refused = {arm: why for half in halves for arm, why in half.made[1].items()}
    parts = [
        _answered(half, _arms(half, other, refused)) for half, other in (halves, halves[::-1])
    ]
    told = {title: why for (title, _), why in refused.items()}
    return RealRun(study, halves, pd.concat(parts, ignore_index=True), told)


_CLASSES = ("transformers.models.llama.modeling_llama",)  # of :data:`MODEL`
Asked = tuple[RunProfile, str, str, EditSettings, Path, list[User]]


def _opened(*asked: *Asked) -> tuple[Study, list[User]]:
    """In a process of its own; its work stays in the store."""
    profile, backbone_id, task, settings, root, people = asked
    return Study(profile, backbone_id, task, settings, ArtifactStore(root)), people


def _make_edits(*asked: Any) -> None:
    _ = _half(*_opened(*asked[:-1]), asked[-1]).made


def _ask_half(*asked: Any) -> None:
    study, people = _opened(*asked[:-1])
    half, other = (_half(study, people, number) for number in (asked[-1], 1 - asked[-1]))
    refused = {**half.made[1], **other.made[1]}
    _answered(half, _arms(half, other, refused))


def _arms(half: Half, other: Half, refused: Collection[Arm]) -> dict[Arm, tuple[str, Edit | None]]:
    """Arm → prompt and edit for the users of one half; without those that either half lacks."""
    arms: dict[Arm, tuple[str, Edit | None]] = {
        (NO_EDIT, 0): ("instruct", None),
        **{(title, 0): (kind, None) for kind, title in PROMPTS.items()},
        (WRONG, 0): (WRONG, None),
    }
    theirs = {arm: edit for arm, edit in other.made[0].items() if arm not in refused}
    arms |= {arm: ("instruct", edit) for arm, edit in theirs.items()}
    for title in (EDITS[name] for name in SEEN):
        if (title, 0) in theirs:
            arms[OWN_GROUP.format(edit=title), 0] = ("instruct", half.made[0][title, 0])
    for title in (EDITS[name] for name in CROSSED):
        if (title, 0) in theirs:
            arms[f"{title}; {WRONG}", 0] = (WRONG, theirs[title, 0])
    return arms


def _half(study: Study, users: list[User], number: int) -> Half:
    people = users[number::2]
    prepared = study.prepare(without_gold(people))
    if prepared.left_out:
        name, why = next(iter(prepared.left_out.items()))
        raise UserError(f"User {name} cannot be asked with {study.backbone_id}: {why}")
    return Half(study, prepared.users, people, study.pairs(prepared.users))


def _answered(half: Half, arms: Mapping[Arm, tuple[str, Edit | None]]) -> pd.DataFrame:
    """The rows of all arms on the queries of one half."""
    study, settings, golds = half.study, half.study.settings, half.golds
    labels, read = get_task(study.task).labels, dict[str, Any]()
    texts = {kind: half.prompts(kind) for kind, _ in arms.values()}

    groups = [at for at, user in enumerate(half.people) for _ in user.queries]

    def ask(written: bool, kind: str, edit: Edit | None) -> dict[str, Any]:
        backbone = study.backbone
        if kind not in read:
            read[kind] = backbone.prepare(texts[kind], groups=groups)
        with torch.no_grad():
            answers: list[str] = []
            if written:
                answers = backbone.generate_prepared(
                    read[kind],
                    max_new_tokens=max_new_tokens(study.task, settings),
                    edit=edit,
                    decode=decode_settings(settings),
                )
            tensors = {"nats": backbone.score(read[kind], golds, edit=edit, reduce="mean")}
            if labels:
                scored = backbone.score_many(read[kind], [labels] * len(golds), edit=edit)
                tensors["labels"] = torch.stack(list(scored))
        return {"json": answers, "tensors": tensors}

    records = study.store.map(
        "real_answers",
        [(is_written(arm), *asked) for arm, asked in arms.items()],
        lambda batch: [ask(*one) for one in batch],
        inputs={
            **study.inputs("decode_", "model_"),
            "max_new_tokens": max_new_tokens(study.task, settings),
            "golds": golds,
        },
        key_of=lambda one: [one[0], digest(texts[one[1]]), edit_key(one[2])],
        batch_size=1,
        label=f"{study.backbone.name} {study.task} answers",
        modules=("chameleon_lib.core.edit", "chameleon_lib.backbones"),
    )
    asked = [query.id for user in half.people for query in user.queries]
    sources = [query.text for user in half.people for query in user.queries]
    parts = []
    for (arm, draw), record in zip(arms, records, strict=True):
        part = {
            "arm": arm,
            "draw": draw,
            "user": half.owners,
            "query": asked,
            "source": sources,
            "gold": golds,
            "answer": record["json"] or None,
            NATS: np.asarray(record["tensors"]["nats"], dtype=np.float64),
        }
        if record["json"]:
            part |= _scores(study.task, golds, sources, record["json"])
        if labels:
            likely = np.asarray(record["tensors"]["labels"]).argmax(axis=1)
            scores = per_sample_scores(study.task, golds, [labels[at] for at in likely])
            part["abs_error of labels"] = scores["abs_error"]
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def is_written(arm: Arm) -> bool:
    """Whether an arm writes answers; controls of the likelihood alone are scored and no more."""
    return arm[0] in (NO_EDIT, *PROMPTS.values(), WRONG, *EDITS.values(), RANDOM)


def _scores(
    task: str, golds: Sequence[str], sources: Sequence[str], said: Sequence[str]
) -> dict[str, Any]:
    """Scores of generated answers, and of their form."""
    scores: dict[str, Any] = {
        **per_sample_scores(task, golds, said),
        "valid": [float(get_task(task).is_valid(text)) for text in said],
    }
    if get_task(task).labels:
        return scores | form_scores(said)
    echoes = [float(is_echo(*pair)) for pair in zip(said, sources, strict=True)]
    return {**scores, **form_of(task, golds, said), "echo": echoes}
