"""The arms of Table 1: the edits of a group, what test users are answered under each, the scores.

An arm is a prompt and an edit. All edits of one draw come from the same pairs of the same group;
control directions are put at the layers that the paper's edit chose. Answers and margins are kept
in the artifact store under the prompts themselves and the edit.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.backbone import Backbone, DecodeSettings, Prepared
from chameleon_lib.core.chameleon import Case
from chameleon_lib.core.directions import all_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import (
    PreferencePair,
    PreparedUser,
    decode_settings,
    max_new_tokens,
    prompt_texts,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import User, get_task, is_valid_answer
from chameleon_lib.data.metrics import per_sample_scores
from chameleon_lib.demo.world import habits_followed
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.progress import Progress
from chameleon_lib.studies.data import TaskData
from chameleon_lib.studies.forms import form_of
from chameleon_lib.studies.frame import Arm
from chameleon_lib.studies.methods import FITTED, METHODS, PAPER
from chameleon_lib.studies.run import Answers, Cell, Desk
from chameleon_lib.studies.study import Study

TOP_K = 5  # the fixed number of layers of AlignEZ's later code, reported beside the elbow (A5)
Log = dict[str, Any]
_FITS = ("fitted", "fitted_gold", "fitted_shuffled")
_LABEL = ("permute_answers", "answer_only")  # run where ``controls_label_token`` names them


@dataclass(frozen=True)
class Draw:
    """One random group with its edits and what was logged on the way.

    Attributes:
        index: Number of the draw; it seeds the group and every fit.
        edits: Arm → edit; several random directions are repeats of one arm.
        log: Pair counts, layers and per-layer diagnostics.
    """

    index: int
    edits: dict[Arm, Edit]
    log: dict[str, Any]


def draw_group(users: Sequence[PreparedUser], size: int, index: int) -> list[PreparedUser]:
    """A random group of train users, in profile order (section 4.1 of the paper)."""
    chosen = random.Random(f"group/{index}").sample(range(len(users)), min(size, len(users)))
    return [users[position] for position in sorted(chosen)]


@dataclass(frozen=True)
class Group:
    """A random group of train users and their pairs.

    Attributes:
        index: Number of the draw; it seeds the group and every fit.
        users: In profile order; with gold answers only where :func:`groups_of` got them.
        pairs: Their pairs, unfiltered.
    """

    index: int
    users: list[PreparedUser]
    pairs: list[PreferencePair]

    def log(self, case: Case) -> Log:
        """What every draw logs of the pairs in a case, and of the layers that they chose."""
        return {
            "draw": self.index,
            "users": len(self.users),
            "pairs": len(case.pairs),
            "kept": len(case.kept),
            "identical": len(case.identical),
            "layers": list(case.layers) if case.kept else [],
        }


def groups_of(
    study: Study,
    train: Sequence[PreparedUser],
    draws: Sequence[int],
    *,
    golds: Sequence[User] = (),
    size: int = 0,
) -> list[Group]:
    """One random group per draw.

    Args:
        study: Backbone, task, settings and store.
        train: Prepared train users.
        draws: Numbers of the groups.
        golds: The train users with the gold answers that were withheld from the stages before, for
            a positive control or a rival that asks for them.
        size: Users of a group; the settings' number if 0.
    """
    size = size or study.settings.group_size
    drawn = {index: draw_group(train, size, index) for index in draws}
    members = {user.user.id for group in drawn.values() for user in group}
    pairs = study.pairs([user for user in train if user.user.id in members])
    found = []
    for index, group in drawn.items():
        ids = {user.user.id for user in group}
        users = with_gold(group, golds) if golds else group
        found.append(Group(index, users, [pair for pair in pairs if pair.user_id in ids]))
    return found


def random_per_draw(settings: EditSettings, draws: Sequence[int]) -> int:
    """Random directions of every draw in Table 1; their seeds count through the draws."""
    return -(-settings.controls_random_draws // len(draws))


def build_draw(study: Study, group: Group, n_random: int) -> Draw:
    """All edits of one group with gold answers; ``n_random`` have random directions."""
    settings, index = study.settings, group.index
    case = study.case(group.pairs, index, group.users, checks=True)
    top = settings.with_(layers_rule="top_k", layers_k=min(TOP_K, study.backbone.n_layers))
    edits = {
        Arm(PAPER, index): case.edit("paper"),
        Arm("chameleon_top5", index): case.main.to_edit(settings, case.main.choose_layers(top)),
    }
    left = {"paper", "random", *_FITS, *_LABEL} - set(settings.controls_label_token)
    for entry in all_directions():
        if entry.shown and entry.name not in left:
            edits[Arm(entry.name, index)] = case.edit(entry.name)
    for number in range(n_random):
        seed = 1000 + n_random * index + number
        edits[Arm("random", index, number)] = case.edit("random", seed)
    for name in _FITS:
        edits[Arm(name, index)] = case.edit(name)
    fits = {name: fit.log() for name, fit in case.fits.items()}
    return Draw(index, edits, {**group.log(case), "rows": case.main.rows(), "fits": fits})


def arms_of(draw: Draw) -> dict[Arm, tuple[str, Edit | None]]:
    """Arm → (prompt, edit) of one draw."""
    arms: dict[Arm, tuple[str, Edit | None]] = {
        arm: ("instruct", edit) for arm, edit in draw.edits.items()
    }
    for name in (PAPER, FITTED):
        arms[Arm(f"{name}+insight", draw.index)] = ("insight", draw.edits[Arm(name, draw.index)])
    return arms


def plain_arms() -> dict[Arm, tuple[str, Edit | None]]:
    """The arms without an edit."""
    return {
        Arm(kind): (kind, None)
        for kind in ("official", "official_history", "instruct", "insight", "neutral")
    }


Key = TypeVar("Key", bound=Hashable)
_EDITED = ("instruct", "insight")  # edits are asked with these, in every draw again
ARMS_AT_ONCE = 24  # for whom a batch of prompts is read; their answers are kept together


@dataclass(frozen=True)
class Reference:
    """Per test query the user's answer and the generic answer that margins compare."""

    personal: list[str]
    generic: list[str]


class Exam:
    """The queries of some users, for many arms and several calls.

    The arms share the unedited prefix (decoder) or the encoder states, which an edit of the last
    positions leaves as they are. What memory holds of the kinds that edits are asked with is read
    once for all calls. Beyond it prompts are read batch by batch, each once for
    :data:`ARMS_AT_ONCE` arms, their answers and margins, so that arms cost no reading at any size.

    Args:
        study: Backbone, task, settings and store.
        users: Test users.
        reference: What margins compare.
    """

    def __init__(self, study: Study, users: Sequence[PreparedUser], reference: Reference) -> None:
        self.study, self.users, self.reference = study, users, reference
        self._texts: dict[str, list[str]] = {}
        self._read: dict[str, Prepared] = {}

    def of(self, study: Study) -> Exam:
        """The same questions for another backbone, such as a tuned one."""
        return Exam(study, self.users, self.reference)

    def add_prompts(self, kind: str, texts: Sequence[str]) -> None:
        """Give the prompts of a kind of one's own, one per query.

        Raises:
            UserError: Another number of prompts than queries.
        """
        n = len(self.reference.personal)
        if len(texts) != n:
            raise UserError(f"{len(texts)} {kind} prompts for {n} queries.")
        self._texts[kind] = list(texts)

    def answer(self, arms: Mapping[Key, tuple[str, Edit | None]]) -> dict[Key, Answers]:
        """Answers and margins of many arms.

        Args:
            arms: Name → (prompt kind, edit or None).

        Returns:
            Name → answers, in the order of ``arms``.
        """
        study, settings = self.study, self.study.settings
        kinds = {kind for kind, _ in arms.values()}
        for kind in kinds - self._texts.keys():
            self.add_prompts(kind, prompt_texts(study.task, self.users, kind, settings))
        keys = {kind: digest(self._texts[kind]) for kind in kinds}
        records = study.store.map(
            "answers",
            list(arms.values()),
            self._asked,
            inputs={
                **study.inputs("decode_", "model_"),
                "max_new_tokens": max_new_tokens(study.task, settings),
                "reference": [self.reference.personal, self.reference.generic],
            },
            key_of=lambda arm: [keys[arm[0]], edit_key(arm[1])],
            batch_size=ARMS_AT_ONCE,
            label=f"{study.backbone_id} {study.task} answers",
            modules=("chameleon_lib.core.edit", "chameleon_lib.backbones"),
        )
        # The others make room for the next fits: what a large model has read is gigabytes.
        self._read = {kind: read for kind, read in self._read.items() if kind in _EDITED}
        return {
            name: Answers(record["json"], np.asarray(record["tensors"]["margin"]))
            for name, record in zip(arms, records, strict=True)
        }

    def _asked(self, arms: Sequence[tuple[str, Edit | None]]) -> list[dict[str, Any]]:
        """The stored values of some arms."""
        backbone, settings = self.study.backbone, self.study.settings
        limit, decode = max_new_tokens(self.study.task, settings), decode_settings(settings)
        found: dict[int, dict[str, Any]] = {}
        label = f"{self.study.backbone_id} {self.study.task} queries of {len(arms)} arms"
        with Progress(label, len(self.reference.personal) * len(arms)) as progress:
            for kind in dict.fromkeys(kind for kind, _ in arms):
                if kind not in self._read:
                    self._read[kind] = backbone.prepare(self._texts[kind])
                places = [at for at, arm in enumerate(arms) if arm[0] == kind]
                edits = [arms[at][1] for at in places]
                answers = read_once(
                    backbone, self._read[kind], edits, self.reference, limit, decode, progress
                )
                for at, (texts, margin) in zip(places, answers, strict=True):
                    found[at] = {"json": texts, "tensors": {"margin": margin}}
        return [found[at] for at in range(len(arms))]


@torch.no_grad()
def read_once(
    backbone: Backbone,
    prepared: Prepared,
    edits: Sequence[Edit | None],
    reference: Reference,
    limit: int,
    decode: DecodeSettings | None,
    progress: Progress | None = None,
) -> list[tuple[list[str], Tensor]]:
    """Answers and margins of many edits of the same prompts, with prompts outside, edits inside.

    A batch of prompts is read once for all that is asked about it, and nothing of it is kept.

    Args:
        backbone: Whose prompts are ``prepared``.
        prepared: ``n`` prompts.
        edits: Edits, or None for the unedited model.
        reference: The texts that margins compare.
        limit: Most tokens of an answer.
        decode: How answers are drawn.
        progress: Told of every answer.

    Returns:
        Per edit the answers and ``log p(personal) - log p(generic)`` in nats, ``(n,)`` float64;
        NaN where both texts are the same.
    """
    pairs = list(zip(reference.personal, reference.generic, strict=True))
    found = [([""] * len(pairs), torch.full((len(pairs),), torch.nan).double()) for _ in edits]
    for rows, read in backbone.in_turn(prepared):
        here = [pairs[row] for row in rows]
        same = torch.tensor([personal == generic for personal, generic in here])
        for edit, (texts, margin) in zip(edits, found, strict=True):
            own = None if edit is None else edit.rows(rows)
            said = backbone.generate_prepared(read, max_new_tokens=limit, edit=own, decode=decode)
            for row, text in zip(rows, said, strict=True):
                texts[row] = text
            if not same.all():  # who asks for no margin pays for none
                personal, generic = (
                    backbone.score(read, list(some), edit=own) for some in zip(*here, strict=True)
                )
                margin[rows] = (personal - generic).double().cpu().masked_fill(same, torch.nan)
            if progress is not None:
                progress.advance(len(rows))
    return found


def edit_key(edit: Edit | None) -> Any:
    """All of an edit that decides an answer, for a store key."""
    if edit is None:
        return None
    fields = ("layers", "alpha_p", "alpha_n", "order", "positions", "site", "compute_dtype")
    return [
        edit.theta_p.contiguous(),
        edit.theta_n.contiguous(),
        edit.gate_p,
        edit.gate_n,
        *[getattr(edit, field) for field in fields],
    ]


ASKED = 8  # users: the ratio hardly differs between them
PARTS = ("edit", "boost", "removal")


def edit_size(study: Study, users: Sequence[PreparedUser], edit: Edit) -> Log:
    """``||x̂ - x|| / ||x||`` at every edited layer, while the first queries are answered.

    Queries are asked one by one, for padding would count as edited tokens.

    Args:
        study: Backbone, task, settings and store.
        users: The first :data:`ASKED` of them are asked in the Instruct prompt.
        edit: An edit that all users share.

    Returns:
        ``users``, one entry per query; ``layers``; and for the whole change (``edit``) and its two
        parts (``boost``, ``removal``) the mean over edited tokens, per query and layer.

    Raises:
        UserError: A backbone without diagnostics, or an edit that changes nothing at any layer.
    """
    some = users[:ASKED]
    texts = prompt_texts(study.task, some, "instruct", study.settings)
    limit = max_new_tokens(study.task, study.settings)

    def compute() -> dict[str, Any]:
        found = [_ratios(study, text, limit, edit) for text in texts]
        return {name: [row[name] for row in found] for name in PARTS}

    record = study.store.get_or_compute(
        "edit_size",
        {
            **study.inputs("decode_", "model_"),
            "max_new_tokens": limit,
            "prompts": texts,
            "edit": edit_key(edit),
        },
        compute,
        modules=("chameleon_lib.core.edit", "chameleon_lib.backbones"),
    )
    owners = [user.user.id for user in some for _ in user.user.queries]
    return {"users": owners, "layers": list(edit.layers), **record}


def _ratios(study: Study, text: str, limit: int, edit: Edit) -> dict[str, list[float]]:
    """Part → mean ratio per edited layer of one answered prompt."""
    backbone = study.backbone
    if not isinstance(backbone, HFBackbone):
        raise UserError(f"{study.backbone_id} does not tell how much an edit changes.")
    backbone.diagnostics = True
    try:
        with torch.no_grad():
            backbone.generate(
                [text], max_new_tokens=limit, edit=edit, decode=decode_settings(study.settings)
            )
        ratios = backbone.usage.mean_ratios()
    finally:
        backbone.diagnostics = False
    return {name: [ratios[layer][name] for layer in edit.layers] for name in PARTS}


def reference_answers(study: Study, data: TaskData, test: Sequence[PreparedUser]) -> Reference:
    """What margins compare: planted answers in the world, gold and neutral output in real data."""
    if data.truth is not None:
        truths = [data.truth[user.user.id] for user in test]
        return Reference(
            [answer for truth in truths for answer in truth.personal],
            [answer for truth in truths for answer in truth.generic],
        )
    neutral = study.pairs(test)
    golds = {query.id: str(query.gold) for user in data.test for query in user.queries}
    return Reference(
        [golds[pair.query_id] for pair in neutral], [pair.answer_n for pair in neutral]
    )


def exam_of(desk: Desk) -> Exam:
    """The queries of a desk's test users, with the margins of the study."""
    return Exam(desk.study, desk.test, reference_answers(desk.study, desk.data, desk.test))


def with_gold(group: Sequence[PreparedUser], users: Sequence[User]) -> list[PreparedUser]:
    """The prepared users with the gold answers that were withheld from the stages before."""
    golds = {user.id: user for user in users}
    return [replace(user, user=golds[user.user.id]) for user in group]


def score_cell(
    desk: Desk,
    answers: Mapping[Arm, Answers],
    logs: Sequence[Mapping[str, Any]],
    condition: str = "",
) -> Cell:
    """Score the answers of every arm.

    Args:
        desk: Whose answers they are.
        answers: Arm → its answers, in the order of the draws; ``instruct`` must be there.
        logs: Log of every draw.
        condition: What was varied.

    Raises:
        UserError: A method that ``METHODS`` does not know, or no Instruct to compare with.
    """
    known = [method.id for method in METHODS]
    unknown = sorted({arm.method for arm in answers} - set(known))
    plain = next((found for arm, found in answers.items() if arm.method == "instruct"), None)
    if unknown or plain is None:
        raise UserError(f"A cell needs 'instruct' and known methods; unknown: {unknown}.")
    ordered = sorted(answers.items(), key=lambda found: known.index(found[0].method))
    return Cell(
        desk.study.backbone_id,
        desk.study.task,
        desk.tested,
        {arm: replace(said, scores=_scores(desk, said, plain)) for arm, said in ordered},
        desk.counts,
        [dict(log) for log in logs],
        condition,
    )


def confusion_codes(task: str, golds: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """The places of gold labels and answers in the confusion matrix; its last column is no label.

    NaN for a task without labels.
    """
    labels = get_task(task).labels
    if not labels:
        return np.full(len(texts), np.nan)
    place = {label: at for at, label in enumerate(labels)}
    said = [place.get(text.strip(), len(labels)) for text in texts]
    rows = [place[gold] for gold in golds]
    return np.array(rows, float) * (len(labels) + 1) + np.array(said, float)


def _scores(desk: Desk, said: Answers, plain: Answers) -> dict[str, np.ndarray]:
    """Score name → (queries,) of one arm; ``margin`` holds NaN where undefined.

    Where answers are free text the scores of their form are among them.
    """
    task, golds, truth = desk.study.task, desk.data.golds(desk.tested), desk.data.truth
    found: dict[str, Any] = {
        **per_sample_scores(task, golds, said.texts),
        **form_of(task, golds, said.texts),
        "confusion": confusion_codes(task, golds, said.texts),
        "valid": [is_valid_answer(task, text) for text in said.texts],
        "changed": [a != b for a, b in zip(said.texts, plain.texts, strict=True)],
        "margin": said.margin,
    }
    if truth is not None and task == "LaMP_7":
        tastes = [truth[user.user.id].taste for user in desk.test for _ in user.user.queries]
        found["habits"] = [
            habits_followed(text, taste) for text, taste in zip(said.texts, tastes, strict=True)
        ]
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}
