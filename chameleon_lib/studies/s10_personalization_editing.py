"""Preferences written into the weights of a real model, beside prompts and edits of activations.

"Towards Effective Model Editing for LLM Personalization" (arXiv 2512.13676) writes a preference as
a fact into one matrix, as a cluster of paraphrases, and asks for it directly, in other words,
implicitly, in a recommendation and after other talk. Here the editors run on the kit's invented
preferences, one user at a time, each on the unedited model; rows that change the prompt, and the
kit's two edits of activations, are asked the same. Locality and damage stand beside every gain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.directions import find_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast, fit_by_preference
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.data.preferences import (
    DIRECT,
    IMPLICIT,
    KINDS,
    Preference,
    invented_preferences,
)
from chameleon_lib.editors import FTL, FTM, ROME, Editor, LoRA, requests_of
from chameleon_lib.editors.measures import (
    BREAKS,
    FILLER,
    GENERAL,
    agreement,
    answer_room,
    answer_talks,
    cut_to_gold,
    perplexity,
    recall,
    talk,
    with_leak,
)
from chameleon_lib.editors.released import OURS, Released
from chameleon_lib.editors.rome import sample_prefixes
from chameleon_lib.errors import UserError
from chameleon_lib.kit.figures import FigureOutput
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.pool import warm
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import Estimate, bootstrap_mean, verdict
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import estimate_columns
from chameleon_lib.studies.frame import curve, drawn, forest
from chameleon_lib.studies.study import open_backbone, open_embedder

MODEL = "smollm2"  # of `kit.wheels`
SUBSTRING, WORD, F1 = "substring", "word", "f1"
TITLES = {
    DIRECT: "efficacy",
    "paraphrased": "generalisation",
    IMPLICIT: "implicit",
    "recommendation": "recommendation",
}
ZERO = "zero-shot"
PROMPT, RETRIEVED = "preference in the prompt", "retrieved preference in the prompt"
ROME_1, ROME_3, ROME_9 = "ROME", "ROME, 3 variants", "ROME, 9 variants"
FT_L, FT_M, LORA = "FT-L", "FT-M", "LoRA"
FITTED, PAPER = "our fitted rank-2 edit", "CHAMELEON's edit"
PROMPTED = (ZERO, PROMPT, RETRIEVED)
CLAIMED = (ROME_1, ROME_3, FT_L, FT_M)  # edited rows that a claim of the paper compares
OTHERS = (ROME_9, LORA, FITTED, PAPER)
CLUSTER = {ROME_1: 1, ROME_3: 3, ROME_9: 9}
REMINDED = "reminder before the question"
TALKS = (ZERO, PROMPT, REMINDED, ROME_1, FT_M)  # rows that are asked after other talk
MODULES = ("chameleon_lib.editors", "chameleon_lib.backbones", "chameleon_lib.core.edit")


@dataclass(frozen=True)
class Sizes:
    """How much of everything is done, and how the editors are set.

    Attributes:
        users: Of the rows that claims compare.
        few: Users of the other rows, of locality and of the talks; the first of them.
        turns: Turns of other talk that are tried.
        seeds: Repetitions of what is drawn: ROME's prefixes, LoRA's start, the fitted edit's.
        prefixes: (tokens, how many) each, that ROME's fit is held under.
        rome_steps: Updates of ROME at most.
        tuned_steps: Of FT-L and FT-M.
        lora_steps: Of LoRA; it stops at the same loss as FT-M.
        rome_layer: ROME's; its default for the model if None.
        rome_rate: Of ROME's Adam.
        tuned_rate: Of that of FT-L and FT-M.
        others: Rows beside those of the claims.
    """

    users: int
    few: int
    turns: tuple[int, ...]
    seeds: int
    prefixes: tuple[tuple[int, int], ...]
    rome_steps: int
    tuned_steps: int
    lora_steps: int
    rome_layer: int | None = None
    rome_rate: float = 0.5
    tuned_rate: float = 5e-4
    others: tuple[str, ...] = OTHERS


# A subset that two cores do in minutes, with fewer and larger steps, so that every editor gets to
# its end (rates and ROME's layer were tried on the last four users, who are in no subset); and
# the paper's own numbers on all invented users.
SUBSET = Sizes(
    24, 8, (0, 2, 8), 1, ((5, 1),), 10, 12, 12,
    rome_rate=1.0, tuned_rate=1e-3, others=(LORA, FITTED, PAPER),
)  # fmt: skip
FULL = Sizes(100, 100, (0, 2, 4, 6, 8, 10), 3, ((5, 10), (10, 10)), 24, 25, 70)


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
            answers to other users' and to general questions with those of the unedited model, and
            the ratio of perplexities of neutral text.
        talks: One row per arm, user and turns: ``substring``.
        fits: One row per edited arm, seed and user: steps, losses, bytes; and seconds, which
            differ from run to run and stand in no saved table.
    """

    backbone: HFBackbone
    preferences: list[Preference]
    sizes: Sizes
    recalls: pd.DataFrame
    effects: pd.DataFrame
    talks: pd.DataFrame
    fits: pd.DataFrame


def preferences_digest() -> str:
    """SHA-256 of the invented preferences."""
    return digest([[p.user, p.sentence, *p.questions, *p.targets] for p in invented_preferences()])


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
    given = list(preferences or invented_preferences())
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
        for seed in range(sizes.seeds if arm in _SEEDED else 1)
    ]
    units: list[tuple[Any, ...]] = [(asked, "", 0, 0), *((asked, arm, 0, 0) for arm in PROMPTED)]
    units += [(asked, *arm, at) for arm in edited for at in range(desk.count(arm[0]))]
    units += [(asked, arm, -1, at) for arm in TALKS for at in range(sizes.few)]
    phase = (f"{desk.backbone.name} edits", _fill, units)
    warm([phase], workers=profile.workers, threads=profile.threads)
    parts = [desk.prompted(arm) for arm in PROMPTED]
    looks = [desk.edited(*arm) for arm in edited]
    recalls, effects, fits = (
        pd.concat([*more, *part], ignore_index=True)
        for more, part in zip((parts, [], []), zip(*looks, strict=True), strict=True)
    )
    return Editing(desk.backbone, desk.preferences, sizes, recalls, effects, desk.talked(), fits)


def _fill(asked: _Asked, arm: str, seed: int, at: int) -> None:
    """Leaves in the store one user's edit and answers, or those of a row that edits nothing.

    Seed -1 is for the answers after other talk; no arm for what edits have no business with.
    """
    desk = _desk(*asked)
    if seed < 0:
        desk.talk_records(arm, [at])
    elif arm in PROMPTED:
        desk.prompted(arm)
    elif not arm:
        desk.unedited(desk.around())
    else:
        desk.records(arm, seed, [at])


_SEEDED = (*CLUSTER, LORA, FITTED)
_Asked = tuple[RunProfile, str, Sizes, tuple[Preference, ...], Released, Path]


class _Desk:
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
            pairs_on_too_few="warn", fit_steps=10, fit_holdout=0.0, check_edit="off",
            model_dtype=profile.dtype,
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

    def records(self, arm: str, seed: int, rows: Sequence[int]) -> list[dict[str, Any]]:
        """What is kept of a row's users: answers, perplexity, and how the edit went."""
        users = self.preferences

        def texts(at: int) -> list[str]:
            return [*(users[at].question(kind) for kind in self.kinds), *self.strange(at)]

        def one(at: int) -> dict[str, Any]:
            asked = texts(at)
            with self._made(arm, seed, users[at]) as (edit, fit):
                answers = self.backbone.generate(
                    asked, max_new_tokens=self.room, edit=edit, groups=[0] * len(asked)
                )
                with self.backbone.editing(edit):
                    found = perplexity(self.backbone) if self.strange(at) else None
            return {"answers": answers, "perplexity": found, **fit}

        return self.store.map(
            "editing_users",
            rows,
            lambda batch: [one(at) for at in batch],
            inputs=self.inputs(arm=arm, seed=seed),
            key_of=lambda at: [_content(users[at]), texts(at)],
            batch_size=1,
            label=f"{self.backbone.name} {arm}",
            modules=(*MODULES, "chameleon_lib.core.directions", "chameleon_lib.core.fitting"),
        )

    def edited(self, arm: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """Recalls, effects and fits of a row, every user's edit on the unedited model."""
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
                "general": np.mean([agreement(*pair)["exact"] for pair in pairs[-len(GENERAL) :]]),
                "perplexity ratio": record["perplexity"] / base,
            }
            for preference, record, said in zip(users, records, before, strict=False)
            for pairs in [list(zip(said, record["answers"][len(self.kinds) :], strict=True))]
        ]  # fmt: skip
        names = ("steps", "first loss", "last loss", "bytes", "seconds")
        fits = [
            {"arm": arm, "seed": seed, "user": preference.user} | {n: record[n] for n in names}
            for preference, record in zip(users, records, strict=True)
        ]
        scored = self._scored(arm, seed, users, answers, texts)
        return scored, pd.DataFrame(effects), pd.DataFrame(fits)

    def _perplexity(self) -> float:
        found: list[float] = self.store.get_or_compute(
            "editing_neutral",
            {"model": self.backbone.fingerprint},
            lambda: [perplexity(self.backbone)],
            modules=MODULES,
        )
        return found[0]

    @contextmanager
    def _made(
        self, arm: str, seed: int, preference: Preference
    ) -> Iterator[tuple[Edit | None, dict[str, Any]]]:
        """One user's edit, in the model inside the block; one of activations is yielded."""
        if arm in (FITTED, PAPER):
            edit, losses = (self._fitted if arm == FITTED else self._found)(preference, seed)
            size = 0 if edit is None else 2 * edit.theta_p.numel() * edit.theta_p.element_size()
            yield (
                edit,
                {
                    "steps": max(0, len(losses)), "first loss": losses[0] if losses else None,
                    "last loss": losses[-1] if losses else None, "bytes": size, "seconds": None,
                },
            )  # fmt: skip
            return
        requests = requests_of(preference, CLUSTER.get(arm, 1))
        with self._editor(arm, seed).edit(*requests) as undo:
            last = undo.traces[-1]
            yield (
                None,
                {
                    "steps": sum(trace.steps for trace in undo.traces),
                    "first loss": last.loss[0],
                    "last loss": last.loss[-1],
                    "bytes": undo.nbytes,
                    "seconds": last.seconds if self.released.last_seconds else undo.seconds,
                },
            )

    def _editor(self, arm: str, seed: int) -> Editor:
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

    def _fitted(self, preference: Preference, seed: int) -> tuple[Edit | None, list[float]]:
        """Our rank-2 edit at all layers, fitted on three variants of the question."""
        requests = requests_of(preference, min(3, len(preference.questions)))
        said = self.unedited([request.question for request in requests])
        contrasts = [
            Contrast(request.question, request.target, answer or "no", preference.user)
            for request, answer in zip(requests, said, strict=True)
        ]
        layers = range(self.backbone.n_layers)
        found = fit_by_preference(self.backbone, contrasts, layers, self.settings, seed=seed)
        return found.edit, found.loss

    def _found(self, preference: Preference, seed: int) -> tuple[Edit | None, list[float]]:
        """The paper's edit, from what the model says with and without the preference before it."""
        questions = list(preference.questions)
        plain = self.unedited(questions)
        told = self.unedited([with_preference(preference.sentence, q) for q in questions])
        rows = [row for row in zip(questions, told, plain, strict=True) if row[1] != row[2]]
        rows = [row for row in rows if row[1] and row[2]]
        if len(rows) < 3:  # too few pairs for a direction
            return None, []
        asked, p, n = (list(column) for column in zip(*rows, strict=True))
        h_p, h_n = (self.backbone.activations(asked, said) for said in (p, n))
        found = find_directions("paper", h_p, h_n, self.settings, seed)
        return found.to_edit(self.settings), []

    # --- after other talk -------------------------------------------------------------------------

    def talk_records(self, arm: str, rows: Sequence[int]) -> list[list[str]]:
        """Answers of some users to the direct question after every number of turns."""
        users, turns = self.preferences, self.sizes.turns

        def one(at: int) -> list[str]:
            told = users[at].sentence
            how = {PROMPT: {"before": told}, REMINDED: {"reminder": _reminder(told)}}.get(arm, {})
            asked = [talk(users[at].questions[-1], n, **how) for n in turns]
            if arm in (ZERO, PROMPT, REMINDED):
                return answer_talks(self.backbone, asked, self.room)
            with self._made(arm, 0, users[at]):
                return answer_talks(self.backbone, asked, self.room)

        return self.store.map(
            "editing_talks",
            rows,
            lambda batch: [one(at) for at in batch],
            inputs=self.inputs(arm=arm, turns=turns, filler=FILLER),
            key_of=lambda at: _content(users[at]),
            batch_size=1,
            label=f"{self.backbone.name} {arm}, other talk",
            modules=MODULES,
        )

    def talked(self) -> pd.DataFrame:
        """The direct question after turns of other talk, unedited, told, reminded and edited."""
        rows = []
        for arm in TALKS:
            answers = self.talk_records(arm, range(self.sizes.few))
            for preference, said in zip(self.preferences, answers, strict=False):
                for turns, text in zip(self.sizes.turns, said, strict=True):
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
def _desk(*asked: Any) -> _Desk:
    """The desk of a worker process, which opens its model once."""
    return _Desk(*asked)


def _content(preference: Preference) -> list[Any]:
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


# --- tables ---------------------------------------------------------------------------------------


def arms_of(run: Editing) -> list[str]:
    """Rows, in the order of the tables."""
    return list(dict.fromkeys(run.recalls["arm"]))


def scores(run: Editing, arm: str, kind: str, measure: str = SUBSTRING) -> np.ndarray:
    """(seeds, users) scores of a row on one kind of question."""
    rows = run.recalls[(run.recalls["arm"] == arm) & (run.recalls["kind"] == kind)]
    order = list(dict.fromkeys(rows["user"]))
    table = rows.pivot_table(index="seed", columns="user", values=measure)[order]
    return table.to_numpy(dtype=np.float64)


def recall_table(run: Editing) -> pd.DataFrame:
    """Every row: share of users whose target stands in the answer, by kind of question.

    Beside efficacy (direct questions) its whole words and the F1 of its words.
    """
    rows = []
    kinds = list(dict.fromkeys(run.recalls["kind"]))
    for arm in arms_of(run):
        row: dict[str, Any] = {"row": arm}
        for kind in kinds:
            row |= estimate_columns(bootstrap_mean(scores(run, arm, kind)), TITLES[kind])
        row["whole words"] = float(scores(run, arm, DIRECT, WORD).mean())
        row["f1 of words"] = float(scores(run, arm, DIRECT, F1).mean())
        rows.append({**row, "n": row.pop("n"), "seeds": row.pop("seeds")})
    return pd.DataFrame(rows)


def by_kind(run: Editing) -> pd.DataFrame:
    """The recalls of :func:`recall_table`, one row per row and kind of question, for a figure."""
    rows = []
    for arm in arms_of(run):
        for kind in dict.fromkeys(run.recalls["kind"]):
            found = bootstrap_mean(scores(run, arm, kind))
            rows.append({"row": arm, "question": TITLES[kind], **estimate_columns(found)})
    return pd.DataFrame(rows)


def recall_figure(run: Editing, publish: Publisher) -> FigureOutput:
    """Shares by kind of question, the sizes of ROME's cluster among the rows."""
    data = by_kind(run)
    best = data.loc[data["value"].idxmax()]
    return forest(
        publish, data, "10_recall", made_by=recall_figure,
        title=f"{run.backbone.name}: is the preference in the answer?",
        caption=(
            "Share of users whose target stands in the answer, by kind of question, with 95 % "
            "intervals over users"
        ),
        alt=(
            f"Forest plot of {len(data)} shares by row and kind of question; the largest is "
            f"{best['value']:.2f} ({best['row']}, {best['question']})."
        ),
        xlabel="share of users", row="row", method="question", reference=None,
    )  # fmt: skip


def effect_table(run: Editing) -> pd.DataFrame:
    """Locality and damage beside efficacy, of the users whose edits were looked at.

    ``others``: share of direct questions of other types whose answer is unchanged to the letter;
    ``general``: the same of general questions; ``perplexity ratio`` of neutral text; ``breaks``:
    share of edits beyond :data:`BREAKS`.
    """
    rows = []
    for arm in dict.fromkeys(run.effects["arm"]):
        part = run.effects[run.effects["arm"] == arm]

        def of(measure: str, part: pd.DataFrame = part) -> np.ndarray:
            table = part.pivot_table(index="seed", columns="user", values=measure)
            return table.to_numpy(dtype=np.float64)

        few = len(set(part["user"]))
        row: dict[str, Any] = {"row": arm}
        row |= estimate_columns(bootstrap_mean(scores(run, arm, DIRECT)[:, :few]), TITLES[DIRECT])
        for measure in ("others", "general", "perplexity ratio"):
            row |= estimate_columns(bootstrap_mean(of(measure)), measure)
        row["others' words"] = float(of("others' words").mean())
        row["breaks"] = float((of("perplexity ratio") > BREAKS).mean())
        row["warning"] = "breaks the model" if row["perplexity ratio"] > BREAKS else ""
        rows.append({**row, "n": row.pop("n"), "seeds": row.pop("seeds")})
    return pd.DataFrame(rows)


def effect_figure(table: pd.DataFrame, run: Editing, publish: Publisher) -> FigureOutput:
    """Locality against efficacy: one point per edited row."""
    data = drawn(table, "others", "row", TITLES[DIRECT])
    told = "; ".join(
        f"{row['row']} {row['value']:.2f} at {row[TITLES[DIRECT]]:.2f}"
        for _, row in data.iterrows()
    )
    return curve(
        publish, data, "10_locality", made_by=effect_figure,
        title=f"{run.backbone.name}: what an edit costs elsewhere",
        caption=(
            "Share of other types' questions with the very same answer, against efficacy, with 95 "
            f"% intervals over {int(data['n'].iloc[0])} users"
        ),
        alt=f"Points of unchanged answers over efficacy: {told}.",
        x=TITLES[DIRECT], xlabel="efficacy, share of users (→ better)",
        ylabel="unchanged answers of other types", group="row",
    )  # fmt: skip


def talk_table(run: Editing) -> pd.DataFrame:
    """Acknowledgement: share of users whose target stands in the answer, by turns of other talk."""
    rows = []
    for (arm, turns), part in run.talks.groupby(["arm", "turns"], sort=False):
        found = bootstrap_mean(part[SUBSTRING].to_numpy(dtype=np.float64))
        rows.append({"row": arm, "turns": int(turns), **estimate_columns(found)})
    return pd.DataFrame(rows)


def talk_figure(table: pd.DataFrame, run: Editing, publish: Publisher) -> FigureOutput:
    """Acknowledgement against turns."""
    return curve(
        publish, table, "10_turns", made_by=talk_figure,
        title=f"{run.backbone.name}: asked after other talk",
        caption=(
            "Share of users whose target stands in the answer to the direct question, with 95 % "
            f"intervals over {int(table['n'].iloc[0])} users"
        ),
        x="turns", xlabel="turns of other talk", ylabel="share of users", group="row",
    )  # fmt: skip


def cost_table(run: Editing) -> pd.DataFrame:
    """What an edit takes and what must be kept of it; means over users."""
    rows = []
    for arm, part in run.fits.groupby("arm", sort=False):
        steps, size = float(part["steps"].mean()), float(part["bytes"].mean())
        first, last = (part[name].astype(float).mean() for name in ("first loss", "last loss"))
        rows.append(
            {
                "row": arm, "steps": steps, "first loss, nats": first, "last loss, nats": last,
                "bytes per user": size, "n": part["user"].nunique(),
                "seeds": part["seed"].nunique(),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def speed(run: Editing) -> pd.DataFrame:
    """Seconds per edit and edits per minute on the machine that made them; never compared."""
    part = run.fits.dropna(subset="seconds")
    means = part.groupby("arm", sort=False)["seconds"].mean()
    return pd.DataFrame(
        {
            "row": means.index,
            "seconds per edit": means.round(2),
            "per minute": (60 / means).round(1),
        }
    ).reset_index(drop=True)


def examples(run: Editing, user: str) -> pd.DataFrame:
    """What every row answers to the questions of one user."""
    rows = run.recalls[(run.recalls["user"] == user) & (run.recalls["seed"] == 0)]
    if rows.empty:
        known = ", ".join(sorted(set(run.recalls["user"]))[:5])
        raise UserError(f"There is no user {user!r}; choose one such as {known}.")
    table = rows.pivot_table(index="arm", columns="kind", values="answer", aggfunc="first")
    order = [arm for arm in arms_of(run) if arm in table.index]
    kinds = [kind for kind in KINDS if kind in table.columns]
    shown = table.loc[order, kinds].rename(columns=TITLES)
    return shown.rename_axis(None, axis=1).rename_axis("row").reset_index()


# --- claims ---------------------------------------------------------------------------------------


def claims(run: Editing) -> pd.DataFrame:
    """The paper's claims with what came out here, judged by the kit's rule for verdicts.

    The effect is a difference of shares, paired over users; below the kit's least number of users
    the word is that they are too few. The controls of "reproduced" are rows that the claim's own
    row must beat as well.
    """

    def between(one: str, other: str, kind: str) -> Estimate:
        a, b = scores(run, one, kind), scores(run, other, kind)
        size = min(a.shape[1], b.shape[1])
        return bootstrap_mean(a[:, :size], b[:, :size])

    def after_talk(one: str, other: str, turns: int) -> Estimate:
        rows = run.talks[run.talks["turns"] == turns]
        a, b = (rows[rows["arm"] == arm][SUBSTRING].to_numpy(float) for arm in (one, other))
        return bootstrap_mean(a, b)

    turns = min(8, max(run.sizes.turns))
    found: list[tuple[str, str, Estimate, list[Estimate]]] = [
        ("3 variants beat 1 on implicit questions", "more than 20 points",
         between(ROME_3, ROME_1, IMPLICIT), [between(ROME_3, ZERO, IMPLICIT)]),
        ("3 variants beat zero-shot on implicit questions", "more than 20 points",
         between(ROME_3, ZERO, IMPLICIT), [between(ROME_3, ROME_1, IMPLICIT)]),
        (f"an edit outlasts {turns} turns that a prompt does not", "above 90 % against below 20 %",
         after_talk(ROME_1, PROMPT, turns), [after_talk(ROME_1, ZERO, turns)]),
        ("ROME's efficacy is above that of FT-L", "higher",
         between(ROME_1, FT_L, DIRECT), [between(ROME_1, ZERO, DIRECT)]),
        ("ROME's efficacy is above that of FT-M", "higher",
         between(ROME_1, FT_M, DIRECT), [between(ROME_1, ZERO, DIRECT)]),
    ]  # fmt: skip
    return pd.DataFrame(
        [
            {
                "claim": words, "paper": paper, "interval": side(effect),
                **estimate_columns(effect, "difference of shares"),
                "verdict": verdict(effect, controls),
            }
            for words, paper, effect, controls in found
        ]
    )  # fmt: skip


def side(found: Estimate) -> str:
    """On which side of 0 an interval lies."""
    return "above 0" if found.low > 0 else "below 0" if found.high < 0 else "includes 0"


def conclusions(run: Editing) -> list[str]:
    """What came out, in sentences computed from the tables."""
    said = []
    for _, row in claims(run).iterrows():
        name = "difference of shares"
        said.append(
            f"{row['claim']}: {row[name]:+.2f} [{row[f'{name}_low']:+.2f}, "
            f"{row[f'{name}_high']:+.2f}] over {row['n']} users, the paper says {row['paper']}; "
            f"{row['verdict']}."
        )
    effects = effect_table(run)
    broken = effects[effects["warning"] != ""]["row"]
    said.append(
        f"Edits that break the model (neutral perplexity above {BREAKS} times): "
        f"{', '.join(broken) if len(broken) else 'none'}."
    )
    return said


def chosen(users: int, full: bool) -> Sizes:
    """The sizes of a notebook's parameters: the subset with so many users, or everything."""
    if full:
        return FULL
    return replace(SUBSET, users=users, few=min(SUBSET.few, users))
