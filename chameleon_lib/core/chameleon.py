"""CHAMELEON: the whole method of the paper, stage by stage.

    users → select → prepare → pairs → activations → directions → edits → fit, answer

``Chameleon(backbone, embedder).fit(users)`` runs all of it. Each stage takes what it needs and
returns what it made; with a keeper (``kit.store.ArtifactStore``) finished work is kept under all
that decides it, so that a killed run goes on from there and no unit is computed twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.core.backbone import Unkept, same_weights
from chameleon_lib.core.checks import FitCheck, check_fit, guarded
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
    influences,
    leashed,
    sample_outputs,
)
from chameleon_lib.core.pairs import (
    EMPTY_INSIGHT,
    PreferencePair,
    PreparedUser,
    check_pair_count,
    decode_settings,
    keep_different,
    max_new_tokens,
    plain_prompt,
    pooled,
    prompt_texts,
    prompts_digest,
)
from chameleon_lib.core.robust import capped, far_users, outliers
from chameleon_lib.core.sources import held_out_users
from chameleon_lib.core.stages import Stages, library_modules, one_task
from chameleon_lib.core.task import User
from chameleon_lib.errors import UserError

log = logging.getLogger(__name__)


class Chameleon(Stages):
    """The method, with a backbone and an embedder as arguments.

    Args:
        backbone: Frozen language model ω, which reads, edits and answers.
        embedder: Sentence embedder of eq. 1.
        settings: Every choice; ``EditSettings()``, the default, is the paper's reading.
        keep: Keeps finished work; without one everything is computed in memory. Its keys know the
            backbone by its fingerprint, and the embedder by ``selection_embedder``.
    """

    def with_(self, **changes: Any) -> Chameleon:
        """The same method with some settings changed."""
        settings = self.settings.with_(**changes)
        return Chameleon(self.backbone, self.embedder, settings, self.keep)

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
        keep = self.keep if library_modules(home) else Unkept()
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
            fit = fit_by_preference(scorer, contrasts, layers, settings, seed=seed, prompts=prompts)
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
                "settings": settings.starting("fit_", "edit_", "guard_"),
            },
            compute,
            modules=library_modules(
                "chameleon_lib.core.fitting", "chameleon_lib.core.robust", self.code[0],
                type(self.scorer).__module__,
            ),
        )
        tensors = {name: torch.as_tensor(value) for name, value in record["tensors"].items()}
        edit = Edit.of(settings, layers, **tensors)
        if record["json"]["best_step"] == 0:  # no edit was better on those held out
            edit = edit.without_strength()
        return FittedDirections.of(edit, record["json"])

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

    def check(self, edit: Edit, users: Sequence[User], skip: int = 0) -> FitCheck:
        """What an edit does to users held out of its fit, on texts of their own histories.

        Measures only: ``action`` is "kept" whatever comes out.

        Args:
            edit: Any edit of this backbone.
            users: Train-side users that the fit did not see.
            skip: History items per user that are left out at the start, because a fit saw them.

        Raises:
            UserError: Fewer than two texts.
        """
        return self._check(edit, self.history_pairs(users, skip))

    def _check(self, edit: Edit, texts: Sequence[PreferencePair]) -> FitCheck:
        entry, tensors = edit.record()
        record = self.keep.get_or_compute(
            "fit_check",
            {
                "backbone": self.fingerprint,
                "edit": [entry, [tensors[name] for name in sorted(tensors)]],
                "texts": [
                    [pair.user_id, plain_prompt(pair, self.settings), pair.answer_p]
                    for pair in texts
                ],
                "max_new_tokens": self.settings.decode_max_new_tokens,
                "settings": self.settings.starting("decode_", "model_"),
            },
            lambda: check_fit(self.backbone, edit, texts, self.settings).record(),
            modules=library_modules("chameleon_lib.core.checks", self.code[0]),
        )
        return FitCheck.of(record)

    def fit(self, users: Sequence[User], held_out: Sequence[User] = ()) -> EditProfile:
        """One edit for all ``users``: their pairs pooled (group mode), or one user's own.

        Args:
            users: Users of one task.
            held_out: Train-side users to check the edit on, none of them of ``users``. By default
                ``check_share`` of ``users`` are held out of the fit; with fewer than 1 / share
                users nobody is, and the check takes texts of their own histories that the fit did
                not see.

        Raises:
            UserError: Fewer than ``pairs_k_min`` pairs with different outputs are left
                (``pairs_on_too_few``), users of different tasks, or an edit that is not better
                than none (``check_edit`` "refuse").
        """
        one_task([*users, *held_out])
        inside, outside = list(users), list(held_out)
        shared = sorted({user.id for user in inside} & {user.id for user in outside})
        if shared:
            raise UserError(
                f"{shared[0]} is both among the users of the fit and among those held out of it; "
                "hold out other users."
            )
        if self.settings.check_edit != "off" and not outside:
            inside, outside = held_out_users(users, self.settings)
        return self.fit_pairs(self.source_pairs(inside), outside or inside)

    def fit_pairs(
        self, pairs: Sequence[PreferencePair], held_out: Sequence[User] = ()
    ) -> EditProfile:
        """The edit of pairs, at most ``pairs_k_max`` of them, by ``theta_method``.

        Args:
            pairs: Of any source.
            held_out: Users to check the edit on (``check_edit``). Without any it is not checked,
                and the profile's ``check`` is None. Of users who have pairs, only texts that the
                fit did not see are taken.
        """
        pool, settings = pooled(self.screened(pairs), self.settings), self.settings
        case = self.case([*pool.different, *pool.identical], checks=True)
        fitted = None
        if settings.theta_method == "fitted":
            layers = None if settings.fit_layers == "all" else case.layers
            fitted = self.preference_fit(case.contrasts, layers=layers)
        found = None if fitted is not None and settings.fit_layers == "all" else case.main
        task, edit = pairs[0].task, case.edit("paper") if fitted is None else fitted.edit
        edit, check = self.leashed(edit, pool.different), None
        if settings.check_edit != "off" and held_out:
            edit, check = self._guarded(edit, held_out, pool.users)
        return EditProfile(
            task=task,
            edit=edit,
            settings=settings,
            backbone=(self.backbone.name, self.fingerprint),
            users=pool.users,
            n_pairs=len(pool.different),
            n_identical=pool.n_identical,
            directions=found,
            fitted=fitted,
            check=check,
            revision=self.backbone.revision,
            prompts=prompts_digest(task, settings),
        )

    def screened(self, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
        """The pairs that the guards let into a fit, in their order; all where no guard is set.

        First those that are no outliers by their influence (``guard_items``), among all pairs given
        that have two different outputs; then of every user as many as ``guard_cap`` allows; and for
        directions of activations none of the ``guard_trim`` of users who lie farthest out (a
        preference fit trims in every step instead).
        """
        s, stays = self.settings, list(pairs)
        if s.guard_items is not None:
            kept, _ = keep_different(stays, s)
            contrasts = contrasts_from_pairs(pairs[0].task, kept, [], s) if kept else []
            named = [pair for pair in kept if pair.answer_p.strip() and pair.answer_n.strip()]
            out = outliers(self.influences(contrasts), s.guard_items).tolist()
            gone = {id(pair) for pair, left in zip(named, out, strict=True) if left}
            stays = [pair for pair in stays if id(pair) not in gone]
        if s.guard_cap is not None:
            inside = capped([pair.user_id for pair in stays], s.guard_cap)
            stays = [pair for pair, stay in zip(stays, inside, strict=True) if stay]
        if s.guard_trim > 0 and s.theta_method == "paper":
            kept, _ = keep_different(stays, s)
            if kept:
                h_p, h_n = self.activations(kept)
                offsets = (h_p - h_n).transpose(0, 1).flatten(1)  # (K, L d)
                far = far_users(offsets, [pair.user_id for pair in kept], s.guard_trim)
                stays = [pair for pair in stays if pair.user_id not in far]
        if len(stays) < len(pairs):
            users = len({p.user_id for p in pairs} - {p.user_id for p in stays})
            log.info(
                "guards leave out %d of %d pairs, all those of %d users",
                len(pairs) - len(stays), len(pairs), users,
            )  # fmt: skip
        return stays

    def influences(self, contrasts: Sequence[Contrast]) -> Tensor:
        """:func:`fitting.influences`, kept; ``(K, L d)``."""
        s = self.settings
        found = self.keep.get_or_compute(
            "influences",
            {
                "backbone": self.fingerprint,
                "contrasts": list(contrasts),
                "settings": s.starting("fit_loss", "edit_site"),
            },
            lambda: {"gradient": influences(self.backbone, contrasts, s)},
            modules=library_modules("chameleon_lib.core.fitting", self.code[0]),
        )
        return torch.as_tensor(found["gradient"])

    def leashed(self, edit: Edit, pairs: Sequence[PreferencePair]) -> Edit:
        """The edit, no stronger than ``guard_change`` allows on answers of the pairs."""
        s = self.settings
        if s.guard_change is None:
            return edit
        contrasts = contrasts_from_pairs(pairs[0].task, pairs, [], s)
        return leashed(edit, sample_outputs(self.backbone, contrasts, edit, s), s.guard_change)

    def _guarded(
        self, edit: Edit, held_out: Sequence[User], seen: Collection[str]
    ) -> tuple[Edit, FitCheck | None]:
        """What ``check_edit`` lets pass, checked on held-out users; unchecked without texts."""
        learned = self.source == "history" and {u.id for u in held_out} & set(seen)
        texts = self.history_pairs(held_out, self.settings.pairs_items if learned else 0)
        if len(texts) < 2:
            log.warning(
                "The edit is not checked: %d texts of held-out users can be scored, two are "
                "needed; give the fit more users, or users with longer histories.", len(texts),
            )  # fmt: skip
            return edit, None
        return guarded(edit, self._check(edit, texts), self.settings)

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
        task, s = one_task(users), self.settings
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

    @cached_property
    def history(self) -> list[PreferencePair]:
        """Pairs from the histories of ``users`` (source "history").

        Raises:
            UserError: The case was made without its users.
        """
        if not self.users:
            raise UserError("Pairs from histories need the users; give them to the case.")
        return self.method.history_pairs([user.user for user in self.users])

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
        found = self.method.directions(name, *self.h, self.seed if seed is None else seed, main)
        return found.to_edit(settings, self.layers)

    def fit(self, name: str, contrasts: Sequence[Contrast]) -> Edit:
        """The edit of a preference fit at all layers, whose record goes into :attr:`fits`."""
        texts = tuple(contrast.prompt for contrast in contrasts)
        # Fits that ask the same prompts share them.
        prompts = self._read.setdefault(texts, PlainPrompts(self.method.backbone, texts))
        with torch.enable_grad():  # an edit may be asked for where gradients are off
            self.fits[name] = self.method.preference_fit(contrasts, prompts, self.seed, name)
        return self.fits[name].edit

    def fit_on(self, name: str, pairs: Sequence[PreferencePair]) -> Edit:
        """:meth:`fit` on pairs of another source."""
        kept, identical = keep_different(pairs, self.method.settings)
        return self.fit(
            name, contrasts_from_pairs(self.task, kept, identical, self.method.settings)
        )

    def edit_of_texts(
        self, method: Chameleon, pairs: Sequence[PreferencePair], name: str = "paper"
    ) -> Edit:
        """A direction of activations, found from other texts, at the layers of the case."""
        found = method.directions(name, *method.activations(pairs), self.seed)
        return found.to_edit(self.method.settings, self.layers)
