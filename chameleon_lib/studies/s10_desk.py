"""Every row of the study of edited preferences: what is written or said, and what is answered.

The editors write for one user at a time, each into the unedited model; what they added to its
weights is then put to work for some users in one batch, every row under its own user's edit
(:mod:`chameleon_lib.editors.changes`), which is the same mathematics. Rows that change the prompt,
and the kit's two edits of activations, are asked the same. What was done is kept in the store, user
by user, so a second call reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.flop_counter import FlopCounterMode

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.directions import find_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast, fit_by_preference
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.data.preferences import (
    DIRECT,
    KINDS,
    Preference,
    in_turns,
    invented_preferences,
    read_preferences,
)
from chameleon_lib.editors import FTL, FTM, ROME, Editor, LoRA, Request, requests_of
from chameleon_lib.editors.changes import Change, answer_rows
from chameleon_lib.editors.measures import (
    GENERAL,
    agreement,
    answer_room,
    answer_talks,
    cut_to_gold,
    dialogue_ids,
    perplexity,
    recall,
    talk,
    with_leak,
)
from chameleon_lib.editors.released import OURS, Released
from chameleon_lib.editors.rome import sample_prefixes
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.pool import warm
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.s10_rows import (
    CLAIMED,
    CLUSTER,
    FITTED,
    FT_L,
    LORA,
    PAPER,
    PROMPT,
    PROMPTED,
    REMINDED,
    ROME_1,
    ROME_3,
    SUBSET,
    SUBSTRING,
    TALKS,
    TOLD,
    ZERO,
    Sizes,
)  # fmt: skip
from chameleon_lib.studies.study import open_backbone, open_embedder

_TOGETHER = 6  # users whose edits are at work in one batch
MODULES = ("chameleon_lib.editors", "chameleon_lib.backbones", "chameleon_lib.core.edit")


@dataclass(frozen=True, eq=False)
class Editing:
    """One model, the preferences, and what every row answered.

    Attributes:
        backbone: The model.
        preferences: Of all users.
        sizes: What was done.
        recalls: One row per arm, seed, user and kind of question: ``arm``, ``seed``, ``user``,
            ``kind``, ``question``, ``target``, ``answer`` and its scores.
        effects: One row per edited arm, seed and user of :attr:`Sizes.few`: agreement of the
            answers to other types' and to general questions with those of the unedited model, how
            many of the former hold the user's target, and the ratio of perplexities of neutral
            text.
        talks: One row per arm, user and turns: ``substring``.
        fits: One row per edited arm, seed and user: steps, losses, bytes, numbers trained and, of
            the first user, the arithmetic of an edit; and seconds, which differ from run to run and
            stand in no saved table.
    """

    backbone: HFBackbone
    preferences: list[Preference]
    sizes: Sizes
    recalls: pd.DataFrame
    effects: pd.DataFrame
    talks: pd.DataFrame
    fits: pd.DataFrame


def preferences_digest(preferences: Sequence[Preference]) -> str:
    """SHA-256 of preferences."""
    return digest([[p.user, p.sentence, *p.questions, *p.targets] for p in preferences])


def run(
    profile: RunProfile,
    backbone_id: str,
    sizes: Sizes = SUBSET,
    *,
    preferences: Sequence[Preference] | None = None,
    released: Released = OURS,
    store: ArtifactStore | None = None,
) -> Editing:
    """Everything; what was done before is read from the store.

    Args:
        profile: Run profile.
        backbone_id: A folder, a hub name or a model of ``kit.wheels``.
        sizes: How much.
        preferences: In place of the invented ones; never kept by the kit beyond its store.
        released: Defects of the released code to repeat.
        store: Artifact store; the default one if None.

    Raises:
        UserError: A model without editors, or fewer preferences than users.
    """
    given = in_turns(preferences or invented_preferences())
    if not 2 <= sizes.few <= sizes.users <= len(given):
        raise UserError(
            f"users is {sizes.users} and few {sizes.few}; there are {len(given)} preferences, and "
            "both need 2 or more, few not above users."
        )
    store = store or ArtifactStore()
    asked = (profile, backbone_id, sizes, tuple(given), released, store.root)
    desk = _desk(*asked)
    edited = [
        (arm, seed)
        for arm in (*CLAIMED, *sizes.others)
        if all(CLUSTER.get(arm, 1) <= len(p.questions) for p in given[: sizes.users])
        for seed in range(sizes.seeds if arm in _SEEDED else 1)
    ]
    units: list[tuple[Any, ...]] = [(asked, "", 0, 0), *((asked, arm, 0, 0) for arm in PROMPTED)]
    units += [(asked, arm, -1, 0) for arm in TOLD]
    # The rows with the longest units come first, so that no process waits long for the other.
    units += [(asked, *arm, at) for arm in reversed(edited) for at in desk.apart(arm[0])]
    phase = (f"{desk.backbone.name} edits", _fill, units)
    warm([phase], workers=profile.workers, threads=profile.threads)
    parts = [desk.prompted(arm) for arm in PROMPTED]
    talks = [desk.talked(arm, desk.told(arm)) for arm in TOLD]
    looks = [desk.edited(*arm) for arm in edited]
    frames = (
        pd.concat([*more, *part], ignore_index=True)
        for more, part in zip((parts, [], talks, []), zip(*looks, strict=True), strict=True)
    )
    return Editing(desk.backbone, desk.preferences, sizes, *frames)


def _fill(asked: _Asked, arm: str, seed: int, at: int) -> None:
    """Leaves in the store some users' edits and answers, or those of a row that edits nothing.

    Seed -1 is for the answers after other talk; no arm for what edits have no business with.
    """
    desk = _desk(*asked)
    if seed < 0:
        desk.told(arm)
    elif arm in PROMPTED:
        desk.prompted(arm)
    elif not arm:
        desk.unedited(desk.around())
    else:
        desk.records(arm, seed, range(at, min(at + _TOGETHER, desk.count(arm))))


# Nine variants take nine times as long, and no claim compares them: they have one seed.
_SEEDED = (ROME_1, ROME_3, LORA, FITTED)
_Asked = tuple[RunProfile, str, Sizes, tuple[Preference, ...], Released, Path]


class Desk:
    """The model with everything that is asked of it."""

    def __init__(
        self,
        profile: RunProfile,
        backbone_id: str,
        sizes: Sizes,
        preferences: Sequence[Preference],
        released: Released,
        root: Path,
    ) -> None:
        self.sizes, self.released = sizes, released
        self.given, self.preferences = preferences, list(preferences[: sizes.users])
        self.settings = EditSettings().with_(
            pairs_on_too_few="warn", fit_steps=10, fit_holdout=0.0, fit_loss="likelihood",
            fit_leash=0.0, check_edit="off", model_dtype=profile.dtype,
        )  # fmt: skip
        opened = open_backbone(backbone_id, self.settings, profile)
        if not isinstance(opened, HFBackbone):
            raise UserError(
                f"{backbone_id} cannot be edited; give a model with weights of its own."
            )
        self.backbone, self.profile = opened, profile
        self.store = ArtifactStore(root)
        self.room = answer_room(opened, [p.target for p in preferences])
        self.kinds = [kind for kind in KINDS if all(p.question(kind) for p in preferences)]
        # Editors hold the weight they change, so they are made once.
        self._editors: dict[tuple[str, int], Editor] = {}

    def inputs(self, **more: Any) -> dict[str, Any]:
        """What decides all values, for the store."""
        sizes = replace(self.sizes, users=0, few=0, turns=(), others=(), seeds=0)
        return {
            "model": self.backbone.fingerprint,
            "sizes": repr(sizes),
            "released": repr(self.released),
            "settings": repr(self.settings),
            "room": self.room,
            **more,
        }

    # --- rows that change the prompt --------------------------------------------------------------

    def prompted(self, arm: str) -> pd.DataFrame:
        """Answers of the unedited model; an arm changes the prompt."""
        texts = [
            self._prompt(arm, preference, kind)
            for preference in self.preferences
            for kind in self.kinds
        ]
        answers = self.unedited(texts)
        return self._scored(arm, 0, self.preferences, answers, texts)

    def _prompt(self, arm: str, preference: Preference, kind: str) -> str:
        question = preference.question(kind)
        if arm == ZERO or (self.released.prompt_lost and kind != DIRECT):
            return question
        told = preference.sentence if arm == PROMPT else self._retrieved[preference.user, kind]
        return with_preference(told, question)

    @property
    def _retrieved(self) -> dict[tuple[str, str], str]:
        """(User, kind of question) → the nearest sentence among all of a person's."""
        people = _people(self.preferences)
        embedder = open_embedder(self.settings.selection_embedder, self.profile.offline)

        def compute() -> dict[str, Any]:
            found = {}
            for own in people:
                known = embedder.encode([p.sentence for p in own])
                for preference in own:
                    asked = embedder.encode([preference.question(kind) for kind in self.kinds])
                    best = (asked @ known.T).argmax(axis=1)
                    for kind, at in zip(self.kinds, best, strict=True):
                        found[f"{preference.user}\t{kind}"] = own[int(at)].sentence
            return found

        kept = self.store.get_or_compute(
            "editing_retrieval",
            {"people": [[[p.sentence, p.user] for p in own] for own in people], "kinds": self.kinds,
             "embedder": self.settings.selection_embedder,
             "asked": [[p.question(kind) for kind in self.kinds] for p in self.preferences]},
            compute,
        )  # fmt: skip
        return {tuple(key.split("\t")): sentence for key, sentence in kept.items()}

    def unedited(self, texts: Sequence[str]) -> list[str]:
        """Greedy answers of the unedited model, every text once."""
        distinct = list(dict.fromkeys(texts))
        answers: list[str] = self.store.get_or_compute(
            "editing_unedited",
            self.inputs(texts=distinct),
            lambda: self.backbone.generate(
                distinct, max_new_tokens=self.room, groups=[0] * len(distinct)
            ),
            modules=MODULES[1:],
        )
        said = dict(zip(distinct, answers, strict=True))
        return [said[text] for text in texts]

    # --- edited rows ------------------------------------------------------------------------------

    def count(self, arm: str) -> int:
        """Users of an edited row; the first of all."""
        return len(self.preferences) if arm in CLAIMED else self.sizes.few

    def strange(self, at: int) -> list[str]:
        """What the edit of a user has no business with, where that is looked at.

        Direct questions of other types, and general ones.
        """
        if at >= self.sizes.few:
            return []
        kinds: dict[str, str] = {}
        for other in self.given:
            if other.kind != self.preferences[at].kind:
                kinds.setdefault(other.kind, other.questions[-1])
        return [*list(kinds.values())[:4], *GENERAL]

    def around(self) -> list[str]:
        """All questions that edits have no business with."""
        return [text for at in range(self.sizes.few) for text in self.strange(at)]

    def stays(self, arm: str) -> bool:
        """Whether a user's edit is still there for the next user, as released."""
        return self.released.no_roll_back and CLUSTER.get(arm, 1) > 1

    def apart(self, arm: str) -> range:
        """The first users of the batches of an edited row that can be made apart."""
        return range(0, 0 if self.stays(arm) else self.count(arm), _TOGETHER)

    def requests(self, arm: str, preference: Preference) -> list[Request]:
        """What an editor is asked to write for one user."""
        return requests_of(preference, CLUSTER.get(arm, 1), same_target=self.sizes.same_target)

    def texts(self, at: int) -> list[str]:
        """What a user's edit is asked: all kinds of questions, and what is strange to it."""
        own = [self.preferences[at].question(kind) for kind in self.kinds]
        return [*own, *self.strange(at)]

    def talks(self, arm: str, at: int, seed: int = 0) -> list[list[tuple[str, str]]]:
        """The direct question of a user after every number of turns, where a row is asked that."""
        if arm not in TALKS or seed or at >= self.sizes.few:
            return []
        user = self.preferences[at]
        said = {PROMPT: {"before": user.sentence}, REMINDED: {"reminder": _reminder(user.sentence)}}
        return [talk(user.questions[-1], n, **said.get(arm, {})) for n in self.sizes.turns]

    def records(self, arm: str, seed: int, rows: Sequence[int]) -> list[dict[str, Any]]:
        """What is kept of a row's users: answers, perplexity, and how the edit went.

        Where edits stay (``no_roll_back``), each user is asked with those of all before in place.
        """
        make = self._steered if arm in (FITTED, PAPER) else self._written

        def some(batch: list[int]) -> list[dict[str, Any]]:
            made, answers = make(arm, seed, batch)
            found, said = [], iter(answers)
            for at, fit in zip(batch, made, strict=True):
                answered = [next(said) for _ in self.texts(at)]
                after = [next(said) for _ in self.talks(arm, at, seed)]
                found.append({"answers": answered, "after talk": after, **fit})
            return found

        return self.store.map(
            "editing_users",
            rows,
            some,
            inputs=self.inputs(arm=arm, seed=seed),
            key_of=lambda at: [
                content(self.preferences[at]), self.texts(at), self.talks(arm, at, seed)
            ],
            batch_size=len(rows) if self.stays(arm) else _TOGETHER,
            label=f"{self.backbone.name} {arm}",
            modules=(*MODULES, "chameleon_lib.core.directions", "chameleon_lib.core.fitting"),
        )  # fmt: skip

    def _written(
        self, arm: str, seed: int, batch: list[int]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Users' edits of weights one by one, and the answers of all of them in one batch."""
        backbone, made = self.backbone, list[dict[str, Any]]()
        changes, standing = list[Sequence[Change]](), list[Change]()
        with ExitStack() as stay:
            for at in batch:
                requests = self.requests(arm, self.preferences[at])
                with _counter(at) as counter:
                    undo = stay.enter_context(self.editor(arm, seed).edit(*requests))
                last = undo.traces[-1]
                made.append(
                    {
                        "steps": sum(trace.steps for trace in undo.traces),
                        "first loss": last.loss[0],
                        "last loss": last.loss[-1],
                        "bytes": undo.nbytes,
                        "trained": last.trained,
                        "gflop": None if counter is None else counter.get_total_flops() / 1e9,
                        "seconds": last.seconds if self.released.last_seconds else undo.seconds,
                        "perplexity": perplexity(backbone) if self.strange(at) else None,
                    }
                )
                changes.append([*standing, *undo.changes()])
                if self.stays(arm):
                    standing += undo.changes()
                else:
                    undo.restore()
        prompts, owners = list[list[int]](), list[int]()
        for owner, at in enumerate(batch):
            own = backbone.codec.prompts(self.texts(at))
            own += [dialogue_ids(backbone, turns) for turns in self.talks(arm, at, seed)]
            prompts, owners = prompts + own, owners + [owner] * len(own)
        return made, answer_rows(backbone, prompts, owners, changes, self.room)

    def _steered(
        self, arm: str, seed: int, batch: list[int]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """The same of edits of activations."""
        users = [self.preferences[at] for at in batch]
        made, edits = list[dict[str, Any]](), list[Edit | None]()
        for at, user, rows in zip(batch, users, self._heard(arm, users), strict=True):
            started = perf_counter()
            with _counter(at) as counter:
                edit, steps = self._steer(arm, user, rows, seed)
            seconds = perf_counter() - started
            count = 0 if edit is None else 2 * edit.theta_p.numel()
            with self.backbone.editing(edit):
                after = perplexity(self.backbone) if self.strange(at) else None
            made.append(
                {
                    "steps": steps, "seconds": seconds, "perplexity": after,
                    "first loss": None, "last loss": None,  # another loss than NLL
                    "bytes": 0 if edit is None else count * edit.theta_p.element_size(),
                    "trained": count if arm == FITTED else 0,
                    "gflop": None if counter is None else counter.get_total_flops() / 1e9,
                }
            )  # fmt: skip
            edits += [edit] * len(self.texts(at))
        asked = [text for at in batch for text in self.texts(at)]
        edit = Edit.stack(edits, allow_missing=True) if any(edits) else None
        answers = self.backbone.generate(
            asked, max_new_tokens=self.room, edit=edit, groups=[0] * len(asked)
        )
        return made, answers

    def edited(self, arm: str, seed: int) -> tuple[pd.DataFrame, ...]:
        """Recalls, effects, talks and fits of a row, every user's edit on the unedited model."""
        users, base = self.preferences[: self.count(arm)], self._perplexity()
        records = self.records(arm, seed, range(len(users)))
        said = iter(self.unedited(self.around()))
        before = [[next(said) for _ in self.strange(at)] for at in range(self.sizes.few)]
        own = [[p.question(kind) for kind in self.kinds] for p in users]
        answers = [text for record in records for text in record["answers"][: len(self.kinds)]]
        texts = [text for row in own for text in row]
        effects = [
            {
                "arm": arm, "seed": seed, "user": preference.user,
                "others": np.mean([agreement(*pair)["exact"] for pair in pairs[: -len(GENERAL)]]),
                "others' words": np.mean(
                    [agreement(*pair)["words"] for pair in pairs[: -len(GENERAL)]]
                ),
                "leaks": np.mean(
                    [recall(preference.target, new)[SUBSTRING] for _, new in pairs[: -len(GENERAL)]]
                ),
                "general": np.mean([agreement(*pair)["exact"] for pair in pairs[-len(GENERAL) :]]),
                "perplexity ratio": record["perplexity"] / base,
            }
            for preference, record, said in zip(users, records, before, strict=False)
            for pairs in [list(zip(said, record["answers"][len(self.kinds) :], strict=True))]
        ]  # fmt: skip
        names = ("steps", "first loss", "last loss", "bytes", "trained", "gflop", "seconds")
        fits = [
            {"arm": arm, "seed": seed, "user": preference.user} | {n: record[n] for n in names}
            for preference, record in zip(users, records, strict=True)
        ]
        scored = self._scored(arm, seed, users, answers, texts)
        after = self.talked(
            arm, [record["after talk"] for record in records if self.talks(arm, 0, seed)]
        )
        return scored, pd.DataFrame(effects), after, pd.DataFrame(fits)

    def _perplexity(self) -> float:
        found: list[float] = self.store.get_or_compute(
            "editing_neutral",
            {"model": self.backbone.fingerprint},
            lambda: [perplexity(self.backbone)],
            modules=MODULES,
        )
        return found[0]

    def editor(self, arm: str, seed: int) -> Editor:
        """The editor of a row, made once: it holds the weight that it changes."""
        kind = ROME_1 if arm in CLUSTER else arm
        if (kind, seed) not in self._editors:
            self._editors[kind, seed] = self._new_editor(kind, seed)
        return self._editors[kind, seed]

    def _new_editor(self, arm: str, seed: int) -> Editor:
        backbone, sizes = self.backbone, self.sizes
        if arm == ROME_1:
            prefixes = self.store.get_or_compute(
                "editing_prefixes",
                {"model": backbone.fingerprint, "drawn": sizes.prefixes, "seed": seed},
                lambda: sample_prefixes(backbone, sizes.prefixes, seed=seed),
                modules=("chameleon_lib.editors.rome",),
            )
            return ROME(
                backbone, layer=sizes.rome_layer, prefixes=prefixes, steps=sizes.rome_steps,
                lr=sizes.rome_rate,
            )  # fmt: skip
        if arm == LORA:
            return LoRA(
                backbone, steps=sizes.lora_steps, stop=1e-2, seed=seed, released=self.released
            )
        tuned = FTL if arm == FT_L else FTM
        return tuned(backbone, steps=sizes.tuned_steps, lr=sizes.tuned_rate, released=self.released)

    # --- edits of activations ---------------------------------------------------------------------

    def _heard(self, arm: str, users: Sequence[Preference]) -> list[list[tuple[str, str, str]]]:
        """Per user (question, wanted answer, other answer) that an edit of activations is made of.

        The fitted edit's are three variants with the target and what the unedited model says; the
        paper's are all variants with what it says with and without the preference before it.
        """
        own = [user.questions[-3:] if arm == FITTED else user.questions for user in users]
        asked = [(user, q) for user, questions in zip(users, own, strict=True) for q in questions]
        plain = iter(self.unedited([question for _, question in asked]))
        if arm == FITTED:
            return [[(q, user.target, next(plain) or "no") for q in questions]
                    for user, questions in zip(users, own, strict=True)]  # fmt: skip
        told = iter(self.unedited([with_preference(user.sentence, q) for user, q in asked]))
        rows = [[(q, next(told), next(plain)) for q in questions] for questions in own]
        return [[(q, p, n) for q, p, n in row if p != n and p and n] for row in rows]

    def _steer(
        self, arm: str, user: Preference, rows: Sequence[tuple[str, str, str]], seed: int
    ) -> tuple[Edit | None, int]:
        """An edit of activations and its steps.

        Ours has rank 2 at all layers and raises the target's likelihood, with no leash.
        """
        if arm == FITTED:
            contrasts = [Contrast(*row, user.user) for row in rows]
            layers = range(self.backbone.n_layers)
            fit = fit_by_preference(self.backbone, contrasts, layers, self.settings, seed=seed)
            return fit.edit, len(fit.loss)
        if len(rows) < 3:  # too few pairs for a direction
            return None, 0
        questions, p, n = (list(column) for column in zip(*rows, strict=True))
        h_p, h_n = (self.backbone.activations(questions, said) for said in (p, n))
        return find_directions("paper", h_p, h_n, self.settings, seed).to_edit(self.settings), 0

    # --- after other talk -------------------------------------------------------------------------

    def told(self, arm: str) -> list[list[str]]:
        """Per user the unedited model's answers after every number of turns."""
        asked = [self.talks(arm, at) for at in range(self.sizes.few)]
        flat: list[str] = self.store.get_or_compute(
            "editing_talks",
            self.inputs(asked=asked),
            lambda: answer_talks(self.backbone, [one for own in asked for one in own], self.room),
            modules=MODULES,
        )
        said = iter(flat)
        return [[next(said) for _ in own] for own in asked]

    def talked(self, arm: str, answers: Sequence[Sequence[str]]) -> pd.DataFrame:
        """The direct question after turns of other talk, of the users whose answers are given."""
        rows = []
        for preference, said in zip(self.preferences, answers, strict=False):
            for turns, text in zip(self.sizes.turns, said, strict=False):
                scored = recall(preference.target, text)[SUBSTRING]
                row = {"arm": arm, "user": preference.user, "turns": turns, "answer": text}
                rows.append({**row, SUBSTRING: scored})
        return pd.DataFrame(rows)

    def _scored(
        self,
        arm: str,
        seed: int,
        users: Sequence[Preference],
        answers: Sequence[str],
        texts: Sequence[str],
    ) -> pd.DataFrame:
        rows = []
        pairs = [(preference, kind) for preference in users for kind in self.kinds]
        for (preference, kind), answer, text in zip(pairs, answers, texts, strict=True):
            scored = answer
            if self.released.gold_length and kind == DIRECT:
                scored = cut_to_gold(self.backbone, answer, preference.target)
            if self.released.prompt_leaks:
                scored = with_leak(self.backbone, text, scored, self.room)
            rows.append(
                {
                    "arm": arm, "seed": seed, "user": preference.user, "kind": kind,
                    "question": preference.question(kind), "target": preference.target,
                    "answer": answer, **recall(preference.target, scored),
                }
            )  # fmt: skip
        return pd.DataFrame(rows)


@lru_cache(maxsize=1)
def _desk(*asked: Any) -> Desk:
    """The desk of a worker process, which opens its model once."""
    return Desk(*asked)


def _counter(at: int) -> AbstractContextManager[FlopCounterMode | None]:
    """Counts the arithmetic of the first user's edit; all others are timed undisturbed."""
    return nullcontext() if at else FlopCounterMode(display=False)


def content(preference: Preference) -> list[Any]:
    """What of a preference decides an edit."""
    return [preference.questions, preference.subjects, preference.targets, preference.sentence]


def with_preference(sentence: str, question: str) -> str:
    """A question behind what the user has said of herself; wording ours."""
    return f"{_reminder(sentence)} {question}"


def _reminder(sentence: str) -> str:
    return f"About me: {sentence} Answer briefly, with this in mind."


def _people(preferences: Sequence[Preference]) -> list[list[Preference]]:
    """Neighbours of distinct types as one person each, for retrieval; the last may be smaller."""
    people: list[list[Preference]] = []
    for preference in preferences:
        if not people or any(other.kind == preference.kind for other in people[-1]):
            people.append([])
        people[-1].append(preference)
    return people


def read_or_invented(file: str) -> list[Preference]:
    """The preferences of a notebook's parameter: a local file's, or the kit's own if empty."""
    return read_preferences(Path(file)) if file else list(invented_preferences())
