"""What collective, own and other users' edits do, and what they cost who has no taste to serve.

A unit of work is one fit of many users at once, with all that it is asked; units are kept in the
store. Nobody is in the collective edit that he is answered under: users are dealt to folds, and a
fold is answered under the edit of the others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.errors import UserError
from chameleon_lib.kit.pool import warm
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import Progress
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies.s12_bench import (
    Asked,
    Bench,
    Setting,
    main_task,
    per_user,
    settings_of,
)
from chameleon_lib.studies.s12_fits import (
    FORMS,
    LEARNED,
    Fitted,
    Recipe,
    fit_many,
    mean_vectors,
    paper_edits,
)
from chameleon_lib.studies.s12_people import Question, scores_of

NONE, COLLECTIVE, OWN, OTHER, SEQUENCE = (
    "no edit", "collective edit", "own edit", "another user's edit", "collective, then own",
)  # fmt: skip
ARMS = (NONE, COLLECTIVE, OWN, OTHER, SEQUENCE)
USERS = 104  # of the world: a few tweets give no lesson, and a verdict takes 100 users
FOLDS = 4
# Collective fits see as many lessons as they have use for, or as their users' own fits together.
TOGETHER = {"steps": 24, "batch": 32}
# Per form: rates, or strengths of a mean vector, from which dev users choose; the first without.
CHOICES: dict[str, tuple[float, ...]] = {
    "mean": (1.0, 2.0, 4.0), "vector": (0.5, 0.1), "pair": (0.1, 0.05, 0.2),
    "pair_block": (0.1, 0.05, 0.2), "lora": (0.01, 0.003, 0.03),
}  # fmt: skip
# The same for files: rates that suit a world of one vocabulary break a language model.
CHOICES_OF_FILES: dict[str, tuple[float, ...]] = {
    "mean": (0.25, 0.5, 1.0), "vector": (0.02, 0.1), "pair": (0.03, 0.1),
    "pair_block": (0.03, 0.1), "lora": (0.001, 0.003, 0.01),
}  # fmt: skip
# Of a pair, for files: at full strength the start alone, a random pair in every layer, takes ten
# nats from an answer of a deep model, whatever the rate.
STRENGTHS_OF_FILES = (0.1, 0.3, 1.0)
DEV_OF_FILES = 8  # users of files that choose, at most: a fit of real texts takes minutes
DOSES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
CLUSTERS = 6
NEAREST, RANDOM_GROUP = "nearest of the group edits", "a random one of the group edits"
NEWCOMER = (NONE, COLLECTIVE, NEAREST, RANDOM_GROUP)
MODULES = ("chameleon_lib.backbones", "chameleon_lib.core.affine", "chameleon_lib.core.edit",
           "chameleon_lib.studies.s12_fits", "chameleon_lib.studies.s12_people")  # fmt: skip


class Desk(Bench):
    """The bench, with all that is fitted and asked at it, kept in the store."""

    def inputs(self, **more: Any) -> dict[str, Any]:
        """What decides a value, for the store."""
        asked = self.asked
        data = str(asked.folder) or f"world {asked.users} {asked.dev}"
        return {"model": self.backbone.fingerprint, "data": data, "users": asked.users,
                "recipe": repr(asked.recipe), "profile": asked.profile.name, **more}  # fmt: skip

    def kept(self, stage: str, compute: Any, **inputs: Any) -> Any:
        """A unit of work, kept under all that decides it."""
        return self.store.get_or_compute(
            f"personal_{stage}", self.inputs(**inputs), compute, modules=(*MODULES, __name__)
        )

    # --- fits -----------------------------------------------------------------------------------

    def recipe(self, setting: Setting, form: str, seed: int) -> Recipe:
        """That of a form, with the rate and the layer that dev users chose."""
        own = self._recipe(setting, seed)
        if form not in CHOICES:
            return own
        rate, layer, strength = self.tuned(form)
        return replace(own, rate=rate, layer=layer, strength=strength)

    def _recipe(self, setting: Setting, seed: int) -> Recipe:
        own = replace(self.asked.recipe, seed=seed)
        if setting.task == "LaMP_7":  # answers are ten times as long
            own = replace(own, batch=max(1, own.batch // 2))
        return own

    def fit(
        self, setting: Setting, form: str, seed: int, *, part: str = "test",
        groups: Sequence[Sequence[int]] | None = None, recipe: Recipe | None = None,
        under: AffineEdit | None = None,
    ) -> Fitted:  # fmt: skip
        """Edits of a form, by default one for each able user of a setting; not kept."""
        lessons = self.lessons(setting, part)
        if groups is None:
            groups = self.people(setting, part).of(self.able(setting, part))
        recipe = recipe or self.recipe(setting, form, seed)
        if form == "paper":
            return paper_edits(lessons, groups, self.study(setting.task).settings)
        if form == "mean":  # its rate is a strength
            found = mean_vectors(lessons, groups, recipe.layer)
            return replace(found, tensors={"v": recipe.rate * found.tensors["v"]})
        told = f"{self.backbone.name} {setting.title}, {len(groups)} {form} edits, steps"
        with Progress(told, recipe.steps) as progress:
            return fit_many(lessons, groups, form, recipe, under, progress)

    def tuned(self, form: str) -> tuple[float, int, float]:
        """Rate (of a mean its strength), layer and a pair's strength: the best on dev users."""
        best = max(self.tuning(form), key=lambda row: row["gain"])
        return float(best["rate"]), int(best["layer"]), float(best.get("strength", 1.0))

    def tuning(self, form: str) -> list[dict[str, Any]]:
        """What every candidate of a form gains on dev users, nats per question.

        A vector sits at one layer: any for the mean, the upper half for one that is fitted; of
        files, whose models are deep, the layer three quarters up.
        """
        setting, deep = Setting(main_task(self.asked)), self.backbone.n_layers
        files = bool(self.asked.folder)
        choices = (CHOICES_OF_FILES if files else CHOICES)[form]
        late = 3 * deep // 4
        everywhere = {"mean": list(range(deep)), "vector": list(range(deep // 2, deep))}
        layers = [late if form in everywhere else 0] if files else everywhere.get(form, [0])
        strengths = STRENGTHS_OF_FILES if files and form.startswith("pair") else (1.0,)
        candidates: list[dict[str, Any]] = [
            {"rate": rate, "layer": layer, **({"strength": strength} if files else {})}
            for rate in choices for strength in strengths for layer in layers
        ]  # fmt: skip
        unasked = [{"form": form, **candidates[0], "layer": late, "gain": 0.0, "n": 0}]
        if not self.choosers:
            return unasked

        def compute() -> list[dict[str, Any]]:
            people, rows = self.people(setting, "dev"), []
            able = self.able(setting, "dev")
            if not able:
                return unasked
            place = {owner: at for at, owner in enumerate(able)}
            asked = [q for q in people.questions if q.owner in place]
            plain = self.answer(setting, asked, None, texts=False)
            own = [place[q.owner] for q in asked]
            for candidate in candidates:
                recipe = replace(self._recipe(setting, 0), **candidate)
                fitted = self.fit(setting, form, 0, part="dev", recipe=recipe)
                said = self.under(setting, asked, fitted, own, texts=False)
                gain = float(np.mean(said.nats - plain.nats))
                rows.append({"form": form, **candidate, "gain": gain, "n": len(able)})
            return rows

        found: list[dict[str, Any]] = self.kept(
            "tuning", compute, form=form, candidates=candidates
        )
        return found

    # --- units ----------------------------------------------------------------------------------

    def collective(self, setting: Setting, seed: int) -> Fitted:
        """One pair per fold, fitted on the users of all other folds."""
        people, able = self.people(setting), self.able(setting)
        groups = [
            [place for own in people.of([o for at, o in enumerate(able) if at % FOLDS != fold])
             for place in own]
            for fold in range(FOLDS)
        ]  # fmt: skip
        own = self.recipe(setting, "pair", seed)
        reads = own.steps * own.batch * (len(able) - len(able) // FOLDS)
        recipe = replace(own, **TOGETHER)
        recipe = replace(recipe, batch=max(1, min(recipe.batch, reads // recipe.steps)))
        return self.fit(setting, "pair", seed, groups=groups, recipe=recipe)

    def arms(self, setting: Setting, seed: int) -> dict[str, Any]:
        """The five arms of a setting with one seed: nats, scores, texts; and the edits."""

        def compute() -> dict[str, Any]:
            people, able = self.people(setting), self.able(setting)
            place = {owner: at for at, owner in enumerate(able)}
            asked = [q for q in people.questions if q.owner in place]
            own = [place[q.owner] for q in asked]
            group = self.collective(setting, seed)
            folds = torch.arange(len(able)) % FOLDS
            start = time.perf_counter()
            mine = self.fit(setting, "pair", seed)
            seconds = time.perf_counter() - start
            shared = AffineEdit.of(group.rows(folds))
            on_top = self.fit(setting, "pair", seed, under=shared)
            both = AffineEdit.sequence(shared, on_top.rows(range(len(able))))
            other = others(len(able), seed)
            edits: dict[str, AnyEdit | None] = {
                NONE: None, COLLECTIVE: group.rows(folds[own]), OWN: mine.rows(own),
                OTHER: mine.rows([other[at] for at in own]), SEQUENCE: both.rows(own),
            }  # fmt: skip
            said = {arm: self.answer(setting, asked, edit) for arm, edit in edits.items()}
            tensors: dict[str, Any] = {f"nats/{arm}": one.nats for arm, one in said.items()}
            tensors |= {f"own/{name}": value for name, value in mine.tensors.items()}
            tensors |= {f"group/{name}": value for name, value in group.tensors.items()}
            texts = {arm: found.texts for arm, found in said.items()}
            return {"json": {"texts": texts, "seconds": seconds}, "tensors": tensors}

        return dict(self.kept("arms", compute, setting=repr(setting), seed=seed))

    def edits(self, record: dict[str, Any], which: str) -> Fitted:
        """The ``own`` or ``group`` edits of a record of :meth:`arms`."""
        tensors = {
            name.partition("/")[2]: torch.as_tensor(value)
            for name, value in record["tensors"].items() if name.startswith(f"{which}/")
        }  # fmt: skip
        *_, strength = self.tuned("pair")
        layers = tuple(range(self.backbone.n_layers))
        return Fitted("pair", layers, tensors, strength=strength)

    def form(self, setting: Setting, form: str, seed: int) -> dict[str, Any]:
        """Own edits of one form: what they gain and cost, on own and on neutral questions."""

        def compute() -> dict[str, Any]:
            people, able = self.people(setting), self.able(setting)
            place = {owner: at for at, owner in enumerate(able)}
            start = time.perf_counter()
            if form == "pair":
                found = self.arms(setting, seed)
                fitted, seconds = self.edits(found, "own"), found["json"]["seconds"]
            elif form == COLLECTIVE:
                fitted = self.edits(self.arms(setting, seed), "group")
                place = {owner: at % FOLDS for at, owner in enumerate(able)}
                seconds = 0.0
            else:
                self.lessons(setting)
                self.recipe(setting, form, seed)
                start = time.perf_counter()
                fitted = self.fit(setting, form, seed)
                seconds = time.perf_counter() - start
            tensors, texts = dict[str, Any](), dict[str, list[str]]()
            asked = {"own": people.questions, **people.neutral}
            for kind, all_of in asked.items():
                questions = [q for q in all_of if q.owner in place]
                groups = [place[q.owner] for q in questions]
                plain = self.unedited(setting, kind, questions)
                said = self.under(setting, questions, fitted, groups, plain=plain["texts"])
                tensors |= {f"nats/{kind}": said.nats, f"kl/{kind}": said.kl}
                texts[kind] = said.texts
            told = {"texts": texts, "seconds": seconds, "parameters": fitted.parameters,
                    "users": len(able)}  # fmt: skip
            return {"json": told, "tensors": tensors}

        return dict(self.kept("form", compute, setting=repr(setting), form=form, seed=seed))

    def unedited(
        self, setting: Setting, kind: str, questions: Sequence[Question]
    ) -> dict[str, Any]:
        """The model's own answers and nats to questions of a kind."""

        def compute() -> dict[str, Any]:
            said = self.answer(setting, questions, None)
            return {"texts": said.texts, "nats": said.nats.tolist()}

        return dict(self.kept("unedited", compute, setting=repr(setting), kind=kind,
                              prompts=[[q.prompt, q.gold] for q in questions]))  # fmt: skip

    def doses(self, setting: Setting, seed: int) -> list[dict[str, Any]]:
        """The own pair at several strengths: per user gain, agreement and KL."""

        def compute() -> list[dict[str, Any]]:
            people, able = self.people(setting), self.able(setting)
            place = {owner: at for at, owner in enumerate(able)}
            fitted = self.edits(self.arms(setting, seed), "own")
            rows = []
            calm = [kind for kind in people.neutral if kind != "stated wrong opinion"]
            for dose in DOSES:
                row: dict[str, Any] = {"dose": dose}
                for kind, all_of in (("own", people.questions),
                                     *((kind, people.neutral[kind]) for kind in calm)):  # fmt: skip
                    questions = [q for q in all_of if q.owner in place]
                    plain = self.unedited(setting, kind, questions)
                    edit = AffineEdit.of(fitted.rows([place[q.owner] for q in questions]))
                    said = self.answer(
                        setting, questions, edit.scaled(dose), plain=plain["texts"]
                    )
                    same = np.array(said.texts) == np.array(plain["texts"])
                    golds = [q.gold for q in questions]
                    gain = said.nats - np.array(plain["nats"])
                    numbers = {"gain": gain, "agreement": same.astype(float), "kl": said.kl}
                    if kind == "own":
                        numbers["score"] = scores_of(setting.task, golds, said.texts)
                    for name, values in numbers.items():
                        means = per_user(questions, values, len(people.users))[able]
                        row[f"{kind}/{name}"] = means.tolist()
                rows.append(row)
            return rows

        return list(self.kept("doses", compute, setting=repr(setting), seed=seed))

    def newcomers(self, setting: Setting, seed: int) -> dict[str, Any]:
        """Users whose history nobody has: the edit of the nearest group of other users."""

        def compute() -> dict[str, Any]:
            from sklearn.cluster import KMeans

            crowd, people = self.people(setting, "train"), self.people(setting)
            embed = self.study(setting.task).embedder.encode
            texts = [item.text for user in crowd.users for item in user.history]
            sizes = [len(user.history) for user in crowd.users]
            parts = np.split(np.asarray(embed(texts)), np.cumsum(sizes)[:-1])
            means = _units(np.stack([part.mean(axis=0) for part in parts]))
            cluster = KMeans(CLUSTERS, n_init=4, random_state=seed).fit(means)
            centres = _units(cluster.cluster_centers_)
            asked = list(people.questions)
            queries = [query.text for user in people.users for query in user.queries]
            distances = 1 - _units(np.asarray(embed(queries))) @ centres.T
            nearest = distances.argmin(axis=1)
            owners = [np.flatnonzero(cluster.labels_ == at).tolist() for at in range(CLUSTERS)]
            groups = [[p for own in crowd.of(some) for p in own] for some in owners]
            groups.append(list(range(len(crowd.lessons))))
            recipe = replace(self.recipe(setting, "pair", seed), **TOGETHER)
            fitted = self.fit(setting, "pair", seed, part="train", groups=groups, recipe=recipe)
            drawn = np.random.default_rng(seed).integers(0, CLUSTERS, len(asked))
            which = {COLLECTIVE: [CLUSTERS] * len(asked), NEAREST: nearest.tolist(),
                     RANDOM_GROUP: drawn.tolist()}  # fmt: skip
            said = {NONE: self.answer(setting, asked, None)}
            for arm, at in which.items():
                said[arm] = self.answer(setting, asked, fitted.rows(at))
            tensors = {f"nats/{arm}": found.nats for arm, found in said.items()}
            tensors["distance"] = distances.min(axis=1)
            tensors["nearest"] = nearest
            sizes = [len(some) for some in owners]
            texts_of = {arm: found.texts for arm, found in said.items()}
            return {"json": {"texts": texts_of, "sizes": sizes}, "tensors": tensors}

        return dict(self.kept("newcomers", compute, setting=repr(setting), seed=seed))


def _units(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def others(n: int, seed: int) -> list[int]:
    """Another user for everybody, each once: the next one of a random order.

    Raises:
        UserError: One user alone.
    """
    if n < 2:
        raise UserError("There is no other user whose edit could be compared; give two or more.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    found = [0] * n
    for at, user in enumerate(order):
        found[user] = order[(at + 1) % n]
    return found


def delta_gram(fitted: Fitted) -> np.ndarray:
    """Inner products of all groups' changes ``U Z``, summed over layers, ``(G, G)``."""
    edit = AffineEdit.of(fitted.rows(range(fitted.n)))
    total = torch.zeros(fitted.n, fitted.n, dtype=torch.float64)
    for row in range(len(edit.layers)):
        u, z = edit.factors(row)  # (G, d, r), (G, r, d)
        left: Tensor = torch.einsum("gdr,hds->ghrs", u, u)
        right: Tensor = torch.einsum("grd,hsd->ghrs", z, z)
        total += (left * right).sum(dim=(-1, -2))
    return total.numpy()


def _fill(asked: Asked, what: str, *more: Any) -> None:
    """Leaves one unit in the store."""
    desk = _desk(asked)
    getattr(desk, what)(*more)


@lru_cache(maxsize=1)
def _desk(asked: Asked) -> Desk:
    """The desk of a worker process, which opens its model once."""
    return Desk(asked)


@dataclass(frozen=True, eq=False)
class Personal:
    """All that was measured; see the methods of :class:`Desk` for the records.

    Attributes:
        desk: The model and the users.
        arms: (setting, seed) → record.
        forms: (form, seed) → record, of the main task; the collective edit is among them.
        doses: Seed → rows.
        newcomers: Seed → record; empty for files.
        tuning: Every candidate that dev users were asked.
    """

    desk: Desk
    arms: dict[tuple[Setting, int], dict[str, Any]]
    forms: dict[tuple[str, int], dict[str, Any]]
    doses: dict[int, list[dict[str, Any]]]
    newcomers: dict[int, dict[str, Any]]
    tuning: pd.DataFrame

    @property
    def settings(self) -> list[Setting]:
        """In the order of tables."""
        return list(dict.fromkeys(setting for setting, _ in self.arms))

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return self.desk.asked.seeds

    @property
    def main(self) -> Setting:
        """The setting of the tables beside the arms."""
        return Setting(main_task(self.desk.asked))


def run(
    profile: RunProfile,
    backbone: str,
    *,
    folder: str = "",
    users: int = 0,
    seeds: int = 3,
    forms: Sequence[str] = FORMS,
    recipe: Recipe | None = None,
    dev: int = 24,
    store: ArtifactStore | None = None,
) -> Personal:
    """Everything; what was done before is read from the store.

    Args:
        profile: Run profile.
        backbone: Model id.
        folder: Of LaMP files; empty for the embedded world.
        users: Users that are scored; 0 for :data:`USERS` of the world, or the profile's of files.
        seeds: Of all that is fitted.
        forms: Of own edits, some of :data:`~chameleon_lib.studies.s12_fits.FORMS`.
        recipe: Of a fit of one user.
        dev: Users that choose rates and strengths; of files at most :data:`DEV_OF_FILES`.
        store: Keeps finished work.

    Raises:
        UserError: An unknown form, or files without enough items.
    """
    unknown = sorted({*forms} - {*FORMS})
    if unknown:
        raise UserError(f"There is no form {unknown[0]!r}; choose of {', '.join(FORMS)}.")
    dev = min(dev, DEV_OF_FILES) if folder else dev
    asked = Asked(profile, backbone, folder, users or (0 if folder else USERS), dev, seeds,
                  recipe or Recipe(), (store or ArtifactStore()).root)  # fmt: skip
    desk, every = _desk(asked), range(seeds)
    main = Setting(main_task(asked))
    own = [form for form in FORMS if form in forms]
    tuned = [form for form in ("mean", *LEARNED) if form in own or form in ("pair", "mean")]
    made = {form: range(1 if form in ("paper", "mean") else seeds)
            for form in (*own, COLLECTIVE)}  # fmt: skip
    rates: list[tuple[Any, ...]] = [(asked, "tuning", form) for form in tuned]
    apart = ("pair", COLLECTIVE)  # what these are was fitted for the arms
    fits: list[tuple[Any, ...]] = [
        (asked, "arms", setting, seed) for seed in every for setting in settings_of(asked)
    ]
    fits += [
        (asked, "form", main, form, seed)
        for form, some in made.items() for seed in some if form not in apart
    ]  # fmt: skip
    if not folder:
        fits += [(asked, "newcomers", main, seed) for seed in every]
    questions: list[tuple[Any, ...]] = [
        (asked, "form", main, form, seed) for form in apart if form in made for seed in every
    ]
    questions += [(asked, "doses", main, seed) for seed in every]
    name = f"{desk.backbone.name} personal"
    warm(
        [(f"{name} rates", _fill, rates), (f"{name} fits", _fill, fits),
         (f"{name} questions", _fill, questions)],
        workers=profile.workers, threads=profile.threads,
    )  # fmt: skip
    return Personal(
        desk,
        {(setting, seed): desk.arms(setting, seed)
         for setting in settings_of(asked) for seed in every},
        {(form, seed): desk.form(main, form, seed) for form, some in made.items() for seed in some},
        {seed: desk.doses(main, seed) for seed in every},
        {} if folder else {seed: desk.newcomers(main, seed) for seed in every},
        pd.DataFrame([row for form in tuned for row in desk.tuning(form)]),
    )  # fmt: skip

