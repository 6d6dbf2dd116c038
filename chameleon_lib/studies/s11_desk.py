"""Every row of the study of inter-user differences: what is trained or said, and what is written.

A unit of work is one trained row of one seed, or the edits of some users; what was done is kept in
the store. A row that only changes the vectors of a trained one is asked of the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from chameleon_lib import demo
from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.load import load_backbone
from chameleon_lib.core.backbone import Backbone, Embedder
from chameleon_lib.core.directions import find_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import Contrast, fit_by_preference
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.difference import (
    DIFFERENCE,
    HISTORY,
    KINDS,
    OURS,
    SLOTS,
    Distiller,
    Example,
    FreePrompt,
    Layout,
    Recipe,
    Released,
    Review,
    Sample,
    SoftPrompted,
    VectorMaker,
    Vectors,
    make_example,
    nll_of,
    sae_weight,
    train,
    write_all,
)
from chameleon_lib.difference.distil import look
from chameleon_lib.difference.dpl import summaries, summary_prompt
from chameleon_lib.difference.world import WorldSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.pool import warm
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.s11_material import Material, of_folder, of_world
from chameleon_lib.studies.study import open_backbone

MODEL = "reviewer"
NONE, LEARNED = "none", "learned soft prompt"
HIS, DIFF, BOTH = "history only", "difference only", "history and difference"
RAW = "both, without autoencoder"
SHUFFLED, SWAPPED = "difference, peers of another item", "difference, another user's"
ORACLE, DPL = "planted style in words", "DPL, difference in words"
PAPER, FITTED = "CHAMELEON's edit", "our fitted rank-2 edit"
ROWS = (NONE, LEARNED, HIS, DIFF, BOTH, RAW, SHUFFLED, SWAPPED, DPL, PAPER, FITTED, ORACLE)
TRAINED: dict[str, tuple[str, ...]] = {
    LEARNED: KINDS, HIS: (HISTORY,), DIFF: (DIFFERENCE,), BOTH: KINDS, RAW: KINDS,
    SHUFFLED: (DIFFERENCE,),
}  # fmt: skip
EDITED = (PAPER, FITTED)
PAST = 8  # past reviews that an edit is made from
CHUNK = 30  # users of a unit of edits
EMBEDDED = 256  # texts of a unit of embeddings
NATS = "nats per token"
MODULES = ("chameleon_lib.difference", "chameleon_lib.backbones")
# For a model of two hundred thousand weights, which the paper's rate would not move; chosen on the
# world of another seed.
WORLD_RECIPE = Recipe(epochs=14, batch=16, accumulate=1, lr=6e-3)


@dataclass(frozen=True)
class Asked:
    """What a run is asked for; picklable, so that workers open their own.

    Attributes:
        profile: Run profile.
        backbone: :data:`MODEL`, a folder, a hub name or a model of ``kit.wheels``.
        world: Knobs of the world of shared items.
        folder: Of local files in the world's place; empty for the world.
        recipe: Of the training.
        users: Cap on users of local files; 0 for the profile's numbers.
        seeds: Seeds of everything that is trained.
        released: Defects of the released code to repeat.
        root: Of the artifact store.
    """

    profile: RunProfile
    backbone: str
    world: WorldSettings
    folder: str
    recipe: Recipe
    users: int
    seeds: int
    released: Released
    root: Path


@dataclass(frozen=True)
class KeptEmbedder:
    """An embedder whose embeddings of the same texts are made once for all processes and runs."""

    embedder: Embedder
    store: ArtifactStore

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-length embeddings, as the embedder gives them."""
        name = getattr(self.embedder, "name", type(self.embedder).__name__)
        found = self.store.map(
            "difference_embeddings",
            [list(texts[at : at + EMBEDDED]) for at in range(0, len(texts), EMBEDDED)],
            lambda parts: [{"embeddings": self.embedder.encode(part)} for part in parts],
            inputs={"embedder": name, "d": len(self.embedder.encode(["a"])[0])},
            key_of=lambda part: part,
            batch_size=1,
            label=f"embeddings, {EMBEDDED} texts at a time,",
            modules=("chameleon_lib.backbones.embedder", "chameleon_lib.difference.world"),
        )
        return np.concatenate([part["embeddings"] for part in found])


@dataclass(frozen=True, eq=False)
class Differences:
    """What came out.

    Attributes:
        backbone: The model.
        material: People, items and samples.
        written: One row per arm, seed and user: ``arm``, ``seed``, ``user``, ``gold``, ``answer``,
            :data:`NATS` and the scores.
        trained: One row per trained arm and seed: how it went, and how its autoencoder stands.
        codes: Mean code of every unit, largest first: ``arm``, ``seed``, ``unit``, ``code``.
        vectors: User → mean difference of the test sample, ``(users, d)``.
        peers: Mean number of peers behind a difference.
    """

    backbone: HFBackbone
    material: Material
    written: pd.DataFrame
    trained: pd.DataFrame
    codes: pd.DataFrame
    vectors: dict[str, np.ndarray]
    peers: float


def run(
    profile: RunProfile,
    backbone: str = MODEL,
    *,
    world: WorldSettings | None = None,
    folder: str = "",
    recipe: Recipe | None = None,
    users: int = 0,
    seeds: int = 3,
    epochs: int = 0,
    released: Released = OURS,
    store: ArtifactStore | None = None,
) -> Differences:
    """Everything; what was done before is read from the store.

    Args: see :class:`Asked`. The recipe is the world's short one by default, and the paper's where
        a model of one's own reads local files; ``epochs`` other than 0 stand in place of its own.

    Raises:
        UserError: A model that takes no soft prompts, or a folder that cannot be read.
    """
    own = Recipe() if folder and backbone != MODEL else WORLD_RECIPE
    recipe = recipe or own
    recipe = replace(recipe, epochs=epochs) if epochs else recipe
    root = (store or ArtifactStore()).root
    asked = Asked(
        profile, backbone, world or WorldSettings(), folder, recipe, users, seeds, released,
        root,
    )  # fmt: skip
    desk = _desk(asked)
    desk.embed()
    plain = [row for row in (NONE, DPL, ORACLE) if row != ORACLE or desk.material.told]
    chunks = range(0, len(desk.test), CHUNK)
    units: list[tuple[Any, ...]] = [
        (asked, row, seed) for seed in range(seeds) for row in (BOTH, RAW, HIS, DIFF, SHUFFLED)
    ]
    units += [(asked, row, at) for row in EDITED for at in chunks]
    units += [(asked, LEARNED, seed) for seed in range(seeds)]
    units += [(asked, row, 0) for row in plain]
    phase = (f"{desk.backbone.name} differences", _fill, units)
    warm([phase], workers=profile.workers, threads=profile.threads)
    written, logs, codes = list[pd.DataFrame](), list[dict[str, Any]](), list[pd.DataFrame]()
    for row in TRAINED:
        for seed in range(seeds):
            record = desk.trained(row, seed)
            for arm, found in record["json"]["said"].items():
                written.append(desk.scored(arm, seed, found, record["tensors"][arm]))
            logs.append({"arm": row, "seed": seed, **record["json"]["log"]})
            if "codes" in record["tensors"]:
                code = np.sort(record["tensors"]["codes"])[::-1]
                codes.append(
                    pd.DataFrame({"arm": row, "seed": seed, "unit": range(len(code)), "code": code})
                )
    for row in plain:
        record = desk.told(row)
        written.append(desk.scored(row, 0, record["json"], record["tensors"]["nats"]))
    for row in EDITED:
        texts, nats = desk.edited(row, range(len(desk.test)))
        written.append(desk.scored(row, 0, texts, nats))
    table = pd.concat(written, ignore_index=True)
    order = {row: at for at, row in enumerate(ROWS)}
    table = table.sort_values("arm", key=lambda arms: arms.map(order), kind="stable")
    return Differences(
        desk.backbone, desk.material, table.reset_index(drop=True), pd.DataFrame(logs),
        pd.concat(codes, ignore_index=True), desk.means, desk.mean_peers,
    )  # fmt: skip


def _fill(asked: Asked, row: str, at: int) -> None:
    """Leaves one unit in the store; ``at`` is a seed, or the first user of some edits."""
    desk = _desk(asked)
    if row in TRAINED:
        desk.trained(row, at)
    elif row in EDITED:
        desk.edited(row, range(at, min(at + CHUNK, len(desk.test))))
    else:
        desk.told(row)


class Desk:
    """The frozen model with the material, and everything that is asked of the two."""

    def __init__(self, asked: Asked) -> None:
        self.asked, profile = asked, asked.profile
        self.settings = EditSettings().with_(
            pairs_on_too_few="warn", fit_steps=10, fit_holdout=0.0, fit_leash=0.0, check_edit="off",
            model_dtype=profile.dtype, ccs_solver="span", layers_rule="all",
        )  # fmt: skip
        opened: Backbone
        if asked.backbone == MODEL:
            opened = load_backbone(demo.checkpoint(MODEL, 0), name=MODEL, dtype="float32")
        else:
            opened = open_backbone(asked.backbone, self.settings, profile)
        if not isinstance(opened, HFBackbone) or opened.family != "decoder":
            raise UserError(
                f"{asked.backbone} cannot read soft prompts; give a decoder with weights of its "
                "own."
            )
        self.backbone, self.store = opened, ArtifactStore(asked.root)
        if asked.folder:
            self.material = of_folder(Path(asked.folder), profile, asked.recipe, asked.users)
        else:
            self.material = of_world(asked.world, asked.recipe)
        self.embedder = KeptEmbedder(self.material.embedder, self.store)
        self.test = self.material.samples.test
        self._vectors: dict[tuple[str, str, str], Vectors] = {}

    @property
    def golds(self) -> list[str]:
        """The reviews that were really written."""
        return [sample.review.text for sample in self.test]

    def inputs(self, **more: Any) -> dict[str, Any]:
        """What decides all values, for the store."""
        return {
            "model": self.backbone.fingerprint,
            "material": self.material.digest,
            "released": repr(self.asked.released),
            "new_tokens": self.material.new_tokens,
            **more,
        }

    # --- vectors --------------------------------------------------------------------------------

    def embed(self) -> None:
        """Embeds all reviews, before workers ask for them."""
        _ = self._makers

    @cached_property
    def _makers(self) -> dict[bool, VectorMaker]:
        """Makers of vectors: with an item's own peers, and with those of another item."""
        material = self.material
        items = sorted(material.corpus.by_item, key=lambda id_: -len(material.corpus.by_item[id_]))
        turned = dict(zip(items, items[1:] + items[:1], strict=True))  # as many peers, nearly
        return {
            other: VectorMaker(
                material.corpus, self.embedder, peers_of=turned if other else None,
                text_of=material.text_of, released=self.asked.released,
            )
            for other in (False, True)
        }  # fmt: skip

    def vectors(self, sample: Sample, row: str = BOTH) -> Vectors:
        """Those of a sample, as a row has them."""
        shuffled = row == SHUFFLED
        key = (sample.review.id, sample.owner, str(shuffled))
        if key not in self._vectors:
            self._vectors[key] = self._makers[shuffled].of(sample)
        return self._vectors[key]

    @cached_property
    def swapped(self) -> list[Sample]:
        """The test samples, each with the profile of the next user, as far as it is earlier."""
        users = [sample.owner for sample in self.test]
        before = self.material.corpus.before
        return [
            Sample(sample.review, before(other, sample.review))
            for sample, other in zip(self.test, users[1:] + users[:1], strict=True)
        ]

    @cached_property
    def means(self) -> dict[str, np.ndarray]:
        """User → mean difference of the test sample; who has none is left out."""
        found = {sample.owner: self.vectors(sample).difference for sample in self.test}
        return {user: rows.mean(axis=0) for user, rows in found.items() if len(rows)}

    @cached_property
    def mean_peers(self) -> float:
        """Mean number of peers behind a difference of the test."""
        counts = [
            len(self._makers[False].peers(review, sample))
            for sample in self.test
            for review in self.vectors(sample).sources
        ]
        return float(np.mean(counts)) if counts else 0.0

    # --- soft prompts ---------------------------------------------------------------------------

    def layout(self, row: str) -> Layout:
        """How a row's prompts are laid out."""
        table = self.backbone.model.get_input_embeddings().weight
        room = getattr(self.backbone.model.config, "max_position_embeddings", None) or 3072
        return Layout(
            self.backbone.codec.tokenizer, len(table), self.material.wording,
            kinds=TRAINED.get(row, ()), bare=row == LEARNED, chat=self.backbone.codec.chat,
            max_tokens=min(3072, room - self.material.new_tokens), released=self.asked.released,
        )  # fmt: skip

    def examples(
        self, row: str, samples: Sequence[Sample], told: Sequence[str] = ()
    ) -> list[Example]:
        """Samples in the prompts of a row."""
        layout, words = self.layout(row), told or [""] * len(samples)
        return [
            make_example(
                self.backbone, layout, self.material.corpus, sample, self.vectors(sample, row),
                told=text,
            )
            for sample, text in zip(samples, words, strict=True)
        ]  # fmt: skip

    def model(self, row: str, seed: int) -> SoftPrompted:
        """The frozen model under untrained soft prompts of a row."""
        torch.manual_seed(seed)
        d = self._makers[False].d
        hidden = int(self.backbone.model.get_input_embeddings().weight.shape[1])
        soft: torch.nn.Module
        if row in TRAINED and row != LEARNED:
            soft = Distiller(d, hidden, 0 if row == RAW else None)
        else:
            soft = FreePrompt(2 * SLOTS, hidden)
        weight = sae_weight(self.material.sae_weight, d)  # type: ignore[arg-type]
        return SoftPrompted(self.backbone, soft, slots=SLOTS, weight=weight, seed=seed)

    def trained(self, row: str, seed: int) -> dict[str, Any]:
        """A trained row: what it and its control wrote, nats, and how the training went."""
        select = "meteor" if self.asked.released.sampled_selection else "loss"
        recipe = replace(self.material.recipe, seed=seed, select=select)
        recipe = replace(recipe, new_tokens=self.material.new_tokens)

        def compute() -> dict[str, Any]:
            model, samples = self.model(row, seed), self.material.samples
            able = [s for s in samples.train if self.vectors(s, row).sources or row == LEARNED]
            golds = [sample.review.text for sample in samples.valid]
            log = train(
                model, self.examples(row, able), self.examples(row, samples.valid), recipe, golds
            )
            tested = {row: self.test} | ({SWAPPED: tuple(self.swapped)} if row == DIFF else {})
            said, tensors = {}, dict[str, Any]()
            for arm, some in tested.items():
                asked = self.examples(row, some)
                said[arm] = write_all(model, asked, self.material.new_tokens)
                tensors[arm] = nll_of(model, asked)
            tail = log.losses[-10:]
            told: dict[str, float] = {
                "samples": len(able), "steps": len(log.losses), "best epoch": log.best + 1,
                "first loss": log.losses[0], "last loss": sum(tail) / len(tail),
            }  # fmt: skip
            if isinstance(model.soft, Distiller) and model.soft.sae is not None:
                x = torch.cat([e.x[e.mask] for e in self.examples(row, self.test)])
                told |= look(model.soft.sae, x)
                with torch.no_grad():
                    tensors["codes"] = model.soft.sae.encoder(x).mean(dim=0).double().numpy()
            return {"json": {"said": said, "log": told}, "tensors": tensors}

        found: dict[str, Any] = self.store.get_or_compute(
            "difference_trained",
            self.inputs(row=row, seed=seed, recipe=repr(recipe)),
            compute,
            modules=(*MODULES, __name__),
        )
        return found

    # --- words ----------------------------------------------------------------------------------

    def told(self, row: str) -> dict[str, Any]:
        """A row without soft prompts: nothing, planted style or DPL's summary in the prompt."""

        def compute() -> dict[str, Any]:
            words: list[str] = []
            if row == ORACLE and self.material.told is not None:
                words = [self.material.told[sample.review.user] for sample in self.test]
            elif row == DPL:
                words = self._summaries
            asked, model = self.examples(row, self.test, words), self.model(row, 0)
            said = write_all(model, asked, self.material.new_tokens)
            return {"json": said, "tensors": {"nats": nll_of(model, asked)}}

        found: dict[str, Any] = self.store.get_or_compute(
            "difference_told", self.inputs(row=row), compute, modules=(*MODULES, __name__)
        )
        return found

    @property
    def _summaries(self) -> list[str]:
        tokens = self.material.new_tokens
        return summaries(
            self.backbone, self.material.wording, self.test, self._makers[False],
            difference_tokens=min(256, tokens), summary_tokens=min(512, tokens),
        )  # fmt: skip

    # --- edits ----------------------------------------------------------------------------------

    def question(self, review: Review, told: str = "") -> str:
        """The plain prompt of a review, as text; what is known of the user may stand in it."""
        say, item = self.material.wording, self.material.corpus.items[review.item]
        words = say.summary(told) if told else ""
        system = f"{say.system}\n" if say.system else ""
        return f"{system}{say.item(item)}{words}{say.request(review)}"

    def edited(self, row: str, rows: Sequence[int]) -> tuple[list[str], np.ndarray]:
        """What some users' edits write for their test samples, and nats per token."""

        def some(batch: list[int]) -> list[dict[str, Any]]:
            edits = self._edits(row, [self.test[at] for at in batch])
            return [
                self._under(edit, self.test[at]) for edit, at in zip(edits, batch, strict=True)
            ]

        records = self.store.map(
            "difference_edits",
            list(rows),
            some,
            inputs=self.inputs(row=row, settings=repr(self.settings)),
            key_of=lambda at: self.test[at].review.id,
            batch_size=CHUNK,
            label=f"{self.backbone.name} {row}",
            modules=(*MODULES, "chameleon_lib.core.fitting", __name__),
        )
        return [one["said"] for one in records], np.array([one["nats"] for one in records])

    def _under(self, edit: Edit | None, sample: Sample) -> dict[str, Any]:
        asked = [self.question(sample.review)]
        (said,) = self.backbone.generate(
            asked, max_new_tokens=self.material.new_tokens, edit=edit
        )
        read, gold = self.backbone.prepare(asked), [sample.review.text]
        with torch.no_grad():
            nats = -self.backbone.score(read, gold, edit=edit, reduce="mean")
        return {"said": said, "nats": float(nats[0])}

    def _edits(self, row: str, samples: Sequence[Sample]) -> list[Edit | None]:
        """One edit per sample, from the latest reviews of its profile."""
        past = [sample.profile[-PAST:] for sample in samples]
        flat = [review for own in past for review in own]
        asked = [self.question(review) for review in flat]
        plain = iter(self._answers(asked))
        texts = [review.text for review in flat]
        if row == PAPER:
            told = self._insights(samples)
            texts = self._answers(
                [
                    self.question(review, text)
                    for own, text in zip(past, told, strict=True)
                    for review in own
                ]
            )
        pairs = iter(zip(asked, texts, plain, strict=True))
        make = self._fit if row == FITTED else self._find
        return [make([next(pairs) for _ in own], sample.owner)
                for own, sample in zip(past, samples, strict=True)]  # fmt: skip

    def _answers(self, asked: Sequence[str]) -> list[str]:
        return self.backbone.generate(asked, max_new_tokens=self.material.new_tokens)

    def _insights(self, samples: Sequence[Sample]) -> list[str]:
        """What the model itself says of a user, from past reviews alone."""
        return self._answers(
            [
                summary_prompt(
                    self.backbone, self.material.wording, self.material.corpus, [],
                    sample.profile[-PAST:], self.material.new_tokens,
                )
                for sample in samples
            ]
        )  # fmt: skip

    def _fit(self, pairs: Sequence[tuple[str, str, str]], user: str) -> Edit | None:
        """Ours: the likelihood of what the user wrote, against what the model writes."""
        contrasts = [Contrast(asked, own, plain or "no", user) for asked, own, plain in pairs]
        if not contrasts:
            return None
        layers = range(self.backbone.n_layers)
        return fit_by_preference(self.backbone, contrasts, layers, self.settings).edit

    def _find(self, pairs: Sequence[tuple[str, str, str]], user: str) -> Edit | None:
        """The paper's: from what the model writes with and without its insight."""
        del user
        rows = [row for row in pairs if row[1] and row[2] and row[1] != row[2]]
        if len(rows) < 3:  # too few pairs for a direction
            return None
        asked, p, n = (list(column) for column in zip(*rows, strict=True))
        h_p, h_n = (self.backbone.activations(asked, said) for said in (p, n))
        return find_directions("paper", h_p, h_n, self.settings, 0).to_edit(self.settings)

    def scored(
        self, arm: str, seed: int, said: Sequence[str], nats: np.ndarray
    ) -> pd.DataFrame:
        """The rows of an arm, one per user."""
        rows = []
        for sample, text, value in zip(self.test, said, nats, strict=True):
            row = {"arm": arm, "seed": seed, "user": sample.review.user}
            row |= {"gold": sample.review.text, "answer": text, NATS: float(value)}
            rows.append(row | self.material.scores(sample.review, text))
        return pd.DataFrame(rows)


@lru_cache(maxsize=1)
def _desk(asked: Asked) -> Desk:
    """The desk of a worker process, which opens its model once."""
    return Desk(asked)
