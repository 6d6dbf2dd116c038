"""CHAMELEON: the whole method of the paper, stage by stage.

    users → select → prepare → pairs → activations → directions → edits → fit, answer

``Chameleon(backbone, embedder).fit(users)`` runs all of it. Each stage takes what it needs and
returns what it made; with a keeper (``kit.store.ArtifactStore``) finished work is kept under all
that decides it, so that a killed run goes on from there and no unit is computed twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.core.backbone import Backbone, Embedder, Keep, Unit, Unkept, same_weights
from chameleon_lib.core.directions import Directions, find_directions, get_direction
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.estimators import ccs_checks
from chameleon_lib.core.fitting import (
    Contrast,
    EditProfile,
    FittedDirections,
    PlainPrompts,
    contrasts_from_pairs,
    fit_by_preference,
    gold_contrasts,
)
from chameleon_lib.core.history import select_items
from chameleon_lib.core.pairs import (
    EMPTY_INSIGHT,
    NO_HISTORY,
    TOO_LONG,
    PreferencePair,
    Preparation,
    PreparedUser,
    answer_pairs,
    check_pair_count,
    decode_settings,
    fit_context,
    keep_different,
    max_new_tokens,
    pair_texts,
    pooled,
    prompt_texts,
    prompts_digest,
    write_insights,
    write_query_insights,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import HistoryItem, User, get_task
from chameleon_lib.errors import UserError

log = logging.getLogger(__name__)

_BATCH = 64  # users or pairs in work at a time
_WRITING = ("insight_", "decode_", "prompts_", "model_")  # settings that write insights and pairs


class Chameleon:
    """The method, with a backbone and an embedder as arguments.

    Args:
        backbone: Frozen language model ω, which reads, edits and answers.
        embedder: Sentence embedder of eq. 1.
        settings: Every choice; ``EditSettings()``, the default, is the paper's reading.
        keep: Keeps finished work; without one everything is computed in memory. Its keys know the
            backbone by its fingerprint, and the embedder by ``selection_embedder``.
    """

    def __init__(
        self,
        backbone: Backbone,
        embedder: Embedder,
        settings: EditSettings | None = None,
        keep: Keep | None = None,
    ) -> None:
        self._backbone, self._embedder = backbone, embedder
        self.settings = settings or EditSettings()
        self.keep: Keep = keep or Unkept()

    @property
    def backbone(self) -> Backbone:
        return self._backbone

    @property
    def embedder(self) -> Embedder:
        return self._embedder

    @property
    def scorer(self) -> Backbone:
        """Who scores the answers of a fit: the backbone, counting their tokens if it can."""
        counting = getattr(self.backbone, "counting", None)
        return self.backbone if counting is None else counting()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the backbone computes."""
        return self.backbone.fingerprint

    @property
    def code(self) -> tuple[str, str]:
        """Modules of backbone and embedder, which the keys of kept work name."""
        return type(self.backbone).__module__, type(self.embedder).__module__

    def tell(self, note: str) -> None:
        """Say what takes long while it runs."""
        log.info(note)

    def with_(self, **changes: Any) -> Chameleon:
        """The same method with some settings changed."""
        settings = self.settings.with_(**changes)
        return Chameleon(self.backbone, self.embedder, settings, self.keep)

    def _inputs(self, task: str, *prefixes: str) -> dict[str, Any]:
        """For a store key: backbone, task and the settings that start with one of ``prefixes``."""
        settings = self.settings.starting(*prefixes)
        wording = get_task(task).wording_digest
        own = {"backbone": self.fingerprint, "task": task}
        return own | {"wording": wording, "settings": settings}

    def _map(
        self,
        stage: str,
        units: Sequence[Unit],
        compute: Callable[[list[Unit]], Sequence[Any]],
        inputs: dict[str, Any],
        key_of: Callable[[Unit], Any],
    ) -> Iterable[Any]:
        """A stage of texts or activations, unit by unit."""
        return self.keep.map(
            stage,
            units,
            compute,
            inputs=inputs,
            key_of=key_of,
            batch_size=_BATCH,
            label=f"{self.backbone.name} {inputs['task']} {stage.replace('_', ' ')}",
            modules=_library("chameleon_lib.core.pairs", self.code[0]),
        )

    def select(self, users: Sequence[User]) -> list[list[int]]:
        """Eq. 1-2, or ``selection_rule``: indices of the selected history items, per user."""
        code = _library(self.code[1])
        # The embedder may be opened by the first call.
        return select_items(
            users, lambda texts: self.embedder.encode(texts), self.settings, self.keep, code,
            self.tell,
        )  # fmt: skip

    def prepare(self, users: Sequence[User]) -> Preparation:
        """Selected history (eq. 1-2) and both insights of every user of one task.

        Users without a history, or whose history does not fit the context, or of whom an insight
        comes back empty, are left out, with the reason.
        """
        if not users:
            return Preparation([], {})
        task = _one_task(users)
        selected, left = self._selected(users)
        written = self._with_insights(task, selected)
        left |= {user.user.id: EMPTY_INSIGHT for user in written if not user.complete}
        return Preparation([user for user in written if user.complete], left)

    def _selected(self, users: Sequence[User]) -> tuple[list[PreparedUser], dict[str, str]]:
        """The users with the history they show, without insights; id of the others → why."""
        selected, left = [], {}
        for user, indices in zip(users, self.select(users), strict=True):
            items = [user.history[index] for index in indices]
            fitting = fit_context(self.backbone, user, items, self.settings)
            if fitting:
                selected.append(PreparedUser(user, fitting, "", "", len(items) - len(fitting)))
            else:
                left[user.id] = TOO_LONG if user.history else NO_HISTORY
        return selected, left

    def _with_insights(self, task: str, users: Sequence[PreparedUser]) -> list[PreparedUser]:
        """The users with all insights that ``insight_scope`` asks for, empty ones among them."""
        backbone, settings, inputs = self.backbone, self.settings, self._inputs(task, *_WRITING)
        found = self._map(
            "insights",
            users,
            lambda some: write_insights(backbone, task, [user.items for user in some], settings),
            inputs,
            lambda user: _texts(user.items),
        )
        pairs = zip(users, found, strict=True)
        users = [replace(user, insight_p=p, insight_n=n) for user, (p, n) in pairs]
        if settings.insight_scope != "query":
            return users
        per_query = self._map(
            "query_insights",
            users,
            lambda some: write_query_insights(backbone, task, some, settings),
            inputs,
            _prepared_key,
        )
        return [
            replace(user, query_insights=tuple((p, n) for p, n in own))
            for user, own in zip(users, per_query, strict=True)
        ]

    def pairs(self, prepared: Preparation | Sequence[PreparedUser]) -> list[PreferencePair]:
        """Synthetic answers of both agents to every query, unfiltered."""
        users = prepared.users if isinstance(prepared, Preparation) else list(prepared)
        if not users:
            return []
        task = _one_task([user.user for user in users])

        def compute(batch: list[PreparedUser]) -> list[list[list[str]]]:
            pairs = iter(answer_pairs(self.backbone, batch, self.settings))
            answered = ([pair.answer_p, pair.answer_n] for pair in pairs)
            return [[next(answered) for _ in user.user.queries] for user in batch]

        inputs = self._inputs(task, *_WRITING)
        rows = self._map("pairs", users, compute, inputs, _prepared_key)
        return [
            PreferencePair(u.user.id, q.id, q.text, u.items, p, n, task)
            for u, answered in zip(users, rows, strict=True)
            for q, (p, n) in zip(u.user.queries, answered, strict=True)
        ]

    def activations(self, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
        """``H^P`` and ``H^N``, each (L, K, d) float32, rows in the order of ``pairs``."""
        h_p = h_n = torch.zeros(self.backbone.n_layers, 0, self.backbone.d)
        if not pairs:
            return h_p, h_n
        task, s = pairs[0].task, self.settings

        def compute(batch: list[PreferencePair]) -> list[dict[str, Tensor]]:
            texts = [text for pair in batch for text in pair_texts(task, pair, s)]
            h = self.backbone.activations(
                [context for context, _ in texts],
                [answer for _, answer in texts],
                pooling=s.embed_pooling,
                site=s.edit_site,
            )  # (L, 2K, d)
            return [{"h": h[:, 2 * i : 2 * i + 2].clone()} for i in range(len(batch))]

        records = self._map(
            "activations",
            pairs,
            compute,
            self._inputs(task, "pairs_text", "embed_", "edit_site", "t5_", "model_", "prompts_"),
            lambda pair: [pair.query, _texts(pair.items), pair.answer_p, pair.answer_n],
        )
        for at, record in enumerate(records):
            h = torch.as_tensor(record["h"])  # (L, 2, d)
            if at == 0:
                shape = (h.shape[0], len(pairs), h.shape[2])
                h_p, h_n = h.new_empty(shape), h.new_empty(shape)
            h_p[:, at], h_n[:, at] = h[:, 0], h[:, 1]
        return h_p, h_n

    def directions(
        self,
        name: str,
        h_p: Tensor,
        h_n: Tensor,
        seed: int | None = None,
        main: Directions | None = None,
        *,
        checks: bool = False,
    ) -> Directions:
        """Registered directions of all layers; arguments as of ``directions.find_directions``.

        ``checks`` adds the CCS fits on shuffled and on split pairs (``estimators.ccs_checks``),
        which take twice the time of the directions themselves.
        """
        settings = self.settings
        seed = settings.seed if seed is None else seed

        def compute() -> dict[str, Any]:
            values, tensors = find_directions(name, h_p, h_n, settings, seed, main=main).record()
            return {"json": values, "tensors": tensors}

        home = get_direction(name).find.__module__
        # Nothing would tell that the code of a notebook's cell changed: it is not kept.
        keep = self.keep if _library(home) else Unkept()
        record = keep.get_or_compute(
            "directions",
            {
                "format": 2,
                "name": name,
                "seed": seed,
                "h": [h_p, h_n],
                "settings": settings.starting("direction_", "ccs_", "layers_", "edit_"),
            },
            compute,
            modules=tuple(dict.fromkeys(("chameleon_lib.core.directions", home))),
        )
        found = Directions.from_record(record["json"], record["tensors"])
        if not checks:
            return found
        told = self.keep.get_or_compute(
            "ccs_checks",
            {"seed": seed, "h": [h_p, h_n], "settings": settings.starting("ccs_")},
            lambda: ccs_checks(h_p, h_n, settings, seed),
            modules=("chameleon_lib.core.estimators",),
        )
        more = {name: torch.as_tensor(value) for name, value in told.items()}
        return replace(found, diagnostics=found.diagnostics | more)

    def preference_fit(
        self,
        contrasts: Sequence[Contrast],
        prompts: PlainPrompts | None = None,
        seed: int | None = None,
        name: str = "fitted",
        *,
        layers: Sequence[int] | None = None,
    ) -> FittedDirections:
        """A preference fit (``core.fitting``).

        Args:
            contrasts: What it learns from.
            prompts: Their prompts, for fits that share them; read only if the fit is not kept.
            seed: ``settings.seed`` if None.
            name: For the note while it runs.
            layers: All if None.
        """
        seed, settings = self.settings.seed if seed is None else seed, self.settings
        layers = tuple(range(self.backbone.n_layers) if layers is None else layers)

        def compute() -> dict[str, Any]:
            self.tell(f"{self.backbone.name}: fitting {name}, draw {seed}")
            start, scorer = time.perf_counter(), self.scorer
            fit = fit_by_preference(
                scorer, contrasts, layers, settings, seed=seed, prompts=prompts
            )
            told = {
                **fit.log(),
                "learned_tokens": getattr(scorer, "learned", 0),
                "looked_tokens": getattr(scorer, "looked", 0),
                "seconds": time.perf_counter() - start,
            }
            tensors = {"theta_p": fit.edit.theta_p, "theta_n": fit.edit.theta_n}
            return {"json": told, "tensors": tensors}

        record = self.keep.get_or_compute(
            "fit",
            {
                "backbone": self.fingerprint,
                "contrasts": list(contrasts),
                "layers": list(layers),
                "seed": seed,
                "settings": settings.starting("fit_", "edit_"),
            },
            compute,
            modules=_library(
                "chameleon_lib.core.fitting", self.code[0], type(self.scorer).__module__
            ),
        )
        tensors = {name: torch.as_tensor(value) for name, value in record["tensors"].items()}
        return FittedDirections.of(Edit.of(settings, layers, **tensors), record["json"])

    def case(
        self,
        pairs: Sequence[PreferencePair],
        seed: int | None = None,
        users: Sequence[PreparedUser] = (),
        *,
        checks: bool = False,
    ) -> Case:
        """One group's unfiltered pairs, with every edit that can be made from them.

        Raises:
            UserError: Fewer than ``pairs_k_min`` pairs with different outputs are left
                (``pairs_on_too_few``).
        """
        kept, identical = keep_different(pairs, self.settings)
        check_pair_count(len(kept), self.settings)
        seed = self.settings.seed if seed is None else seed
        return Case(self, kept, identical, list(pairs), seed, users, checks)

    def edits(
        self,
        pairs: Sequence[PreferencePair],
        names: Sequence[str],
        seed: int | None = None,
        users: Sequence[PreparedUser] = (),
    ) -> dict[str, Edit]:
        """Edits by name through the registry, at the layers of the paper's; see :meth:`case`."""
        case = self.case(pairs, seed, users)
        return {name: case.edit(name) for name in names}

    def fit(self, users: Sequence[User]) -> EditProfile:
        """One edit for all ``users``: their pairs pooled (group mode), or one user's own.

        Raises:
            UserError: Fewer than ``pairs_k_min`` pairs with different outputs are left
                (``pairs_on_too_few``), or users of different tasks.
        """
        _one_task(users)
        prepared = self.prepare(users)
        if prepared.left_out or prepared.counts["dropped_items"]:
            log.warning("history preparation: %s", prepared.counts)
        return self.fit_pairs(self.pairs(prepared))

    def fit_pairs(self, pairs: Sequence[PreferencePair]) -> EditProfile:
        """The edit of pairs, at most ``pairs_k_max`` of them, by ``theta_method``."""
        pool, settings = pooled(pairs, self.settings), self.settings
        case = self.case([*pool.different, *pool.identical], checks=True)
        fitted = None
        if settings.theta_method == "fitted":
            layers = None if settings.fit_layers == "all" else case.layers
            fitted = self.preference_fit(case.contrasts, layers=layers)
        found = None if fitted is not None and settings.fit_layers == "all" else case.main
        task = pairs[0].task
        return EditProfile(
            task=task,
            edit=case.edit("paper") if fitted is None else fitted.edit,
            settings=settings,
            backbone=(self.backbone.name, self.fingerprint),
            users=pool.users,
            n_pairs=len(pool.different),
            n_identical=pool.n_identical,
            directions=found,
            fitted=fitted,
            revision=self.backbone.revision,
            prompts=prompts_digest(task, settings),
        )

    def answer(self, users: Sequence[User], profile: EditProfile | None = None) -> list[str]:
        """Answer every query of ``users``, in order (sections 3.2 and 4.3; A13, A19).

        ``infer_edit`` and ``infer_insight_in_prompt`` choose a cell of the 2 x 2 of insight and
        edit; ``eval_user_mode`` "unseen" with ``unseen_prompt`` "no_history" asks the plain
        question without any history. Insights are written only where one stands in the prompts.

        Raises:
            UserError: No profile, a profile of another task or backbone, or a user who cannot be
                asked: without a history, with one that does not fit the context, or with an empty
                insight where insights stand in the prompts.
        """
        task, s = _one_task(users), self.settings
        if s.infer_edit:
            self._check_profile(profile, task)
        if s.eval_user_mode == "unseen" and s.unseen_prompt == "no_history":
            asked = [PreparedUser(user, (), "", "") for user in users]
            prompts = prompt_texts(task, asked, "unseen", s)
        else:
            kind = "insight" if s.infer_insight_in_prompt else "instruct"
            prompts = prompt_texts(task, self._shown(task, users), kind, s)
        return self.backbone.generate(
            prompts,
            max_new_tokens=max_new_tokens(task, s),
            edit=profile.edit if profile is not None and s.infer_edit else None,
            decode=decode_settings(s),
        )

    def _shown(self, task: str, users: Sequence[User]) -> list[PreparedUser]:
        """The users with the history that their answer prompts show, and an insight if one does."""
        shown, left = self._selected(users)
        if self.settings.infer_insight_in_prompt:
            shown = self._with_insights(task, shown)
            for user in shown:
                if not all(p for p, _ in user.insights_for(self.settings.insight_scope)):
                    left[user.user.id] = EMPTY_INSIGHT
        if left:
            named = {why: [one for one in left if left[one] == why] for why in left.values()}
            raise UserError(
                f"{len(left)} of {len(users)} users cannot be asked; leave them out. "
                + " ".join(f"{', '.join(ids)}: {why}" for why, ids in named.items())
            )
        dropped = sum(user.dropped_items for user in shown)
        if dropped:
            log.warning("answer prompts: %d history items do not fit and are dropped", dropped)
        return shown

    def _check_profile(self, profile: EditProfile | None, task: str) -> None:
        if profile is None:
            raise UserError("answer needs the profile of a fit, or settings with infer_edit=False.")
        name, fingerprint = profile.backbone
        known = name == self.backbone.name and same_weights(fingerprint, self.fingerprint)
        if profile.task != task or not known:
            raise UserError(
                f"The profile belongs to {profile.task} and {name}, not to {task} and "
                f"{self.backbone.name}; fit one for them."
            )


@dataclass(eq=False)
class Case:
    """One group's pairs, and every edit that the registry makes from them; each is found once.

    Directions of activations come from ``core.directions``; those that need more, such as other
    texts or a preference fit, receive the case itself.
    """

    method: Chameleon  # the method
    kept: list[PreferencePair]  # pairs with two different outputs
    identical: list[PreferencePair]  # the others
    pairs: list[PreferencePair]  # all, in their order
    seed: int  # of directions and fits
    # The users of the pairs with gold answers, for the positive control alone
    users: Sequence[PreparedUser] = ()
    checks: bool = False  # whether the paper's directions are found with the checks of CCS
    # Record of every preference fit so far, by name
    fits: dict[str, FittedDirections] = field(default_factory=dict)
    _read: dict[tuple[str, ...], PlainPrompts] = field(default_factory=dict, repr=False)

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.pairs[0].task

    @cached_property
    def h(self) -> tuple[Tensor, Tensor]:
        """``H^P`` and ``H^N`` of the pairs that are kept, (L, K, d) each."""
        return self.method.activations(self.kept)

    @cached_property
    def main(self) -> Directions:
        """The paper's directions."""
        return self.method.directions("paper", *self.h, self.seed, checks=self.checks)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that the paper's edit chooses; the controls sit at them."""
        return self.main.choose_layers(self.method.settings)

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """What the fitted edit learns from."""
        return contrasts_from_pairs(self.task, self.kept, self.identical, self.method.settings)

    @cached_property
    def gold(self) -> list[Contrast]:
        """What the positive control learns from; nothing without ``users``."""
        if not self.users:
            return []
        return gold_contrasts(self.task, self.users, self.pairs, self.method.settings)

    def edit(self, name: str, seed: int | None = None) -> Edit:
        """The edit of a registered direction; another ``seed`` gives another draw of ``random``."""
        entry = get_direction(name)
        if entry.of == "pairs":
            edit: Edit = entry.find(self if seed is None else replace(self, seed=seed))
            return edit
        settings = self.method.settings
        if name == "paper" and seed is None:
            return self.main.to_edit(settings, self.layers)
        main = self.main if seed is None else None
        found = self.method.directions(
            name, *self.h, self.seed if seed is None else seed, main
        )
        return found.to_edit(settings, self.layers)

    def fit(self, name: str, contrasts: Sequence[Contrast]) -> Edit:
        """The edit of a preference fit at all layers, whose record goes into :attr:`fits`."""
        texts = tuple(contrast.prompt for contrast in contrasts)
        # Fits that ask the same prompts share them.
        prompts = self._read.setdefault(texts, PlainPrompts(self.method.backbone, texts))
        with torch.enable_grad():  # an edit may be asked for where gradients are off
            self.fits[name] = self.method.preference_fit(contrasts, prompts, self.seed, name)
        return self.fits[name].edit

    def edit_of_texts(
        self, method: Chameleon, pairs: Sequence[PreferencePair], name: str = "paper"
    ) -> Edit:
        """A direction of activations, found from other texts, at the layers of the case."""
        found = method.directions(name, *method.activations(pairs), self.seed)
        return found.to_edit(self.method.settings, self.layers)


def _library(*modules: str) -> tuple[str, ...]:
    """Those of the modules that belong to the library, whose code a key can name."""
    return tuple(dict.fromkeys(name for name in modules if name.startswith("chameleon_lib.")))


def _texts(items: Sequence[HistoryItem]) -> list[list[str | None]]:
    return [[item.text, item.label] for item in items]


def _prepared_key(user: PreparedUser) -> list[Any]:
    """What of a prepared user decides generations: never the gold."""
    return [
        _texts(user.items),
        [[query.text, query.input] for query in user.user.queries],
        user.insight_p,
        user.insight_n,
        *map(list, user.query_insights),
    ]


def _one_task(users: Sequence[User]) -> str:
    tasks = sorted({user.task for user in users})
    if len(tasks) != 1:
        raise UserError(f"A fit needs users of one task, got {tasks or 'no users'}.")
    return tasks[0]
