"""The ambiguity ledger as a study: the paper's edit under one other reading at a time.

A condition is a variant of :mod:`chameleon_lib.sections.controls.variants`. Users, groups and
queries are those of Table 1 in all of them, and so are its stored answers wherever a reading
changes nothing. Where a reading changes the prompt itself, the unedited model is asked in that
prompt as well. The strengths of A12 are measured for the fitted edit too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chameleon_lib.core.contrasts import contrasts_from_pairs, gold_contrasts
from chameleon_lib.core.directions import fit_directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.preferences import (
    PreferencePair,
    PreparedUser,
    check_pair_count,
    fit_context,
    keep_different,
)
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.sections.answering import Answers, Exam, prompt_texts
from chameleon_lib.sections.arms import draw_group
from chameleon_lib.sections.controls.variants import DEFAULT, VARIANTS, Variant, runnable
from chameleon_lib.sections.data import without_gold
from chameleon_lib.sections.fits import stored_fit
from chameleon_lib.sections.grid import Desk, Plan, run_grid, studied
from chameleon_lib.sections.per_user.cell import with_gold
from chameleon_lib.sections.results import Cell, Run
from chameleon_lib.sections.scoring import reference_answers, score_cell
from chameleon_lib.sections.study import Study

# Fields that decide what the group's pairs are, and what the test users are asked.
_PAIRS = ("selection_", "insight_", "prompts_", "pairs_drop", "decode_", "model_")
_ASKED = ("selection_", "prompts_", "decode_", "model_")
_PROMPT_ALONE = ("prompts_baseline",)  # of the fields above, what no pair ever reads
_READER = ("decode_", "model_", "prompts_chat")  # who is asked, and how answers are decoded


def run(
    profile: RunProfile,
    settings: EditSettings,
    *,
    variants: Sequence[Variant] = VARIANTS,
    **options: Any,
) -> Run:
    """Compute the ledger.

    Args:
        profile: Sizes and data; its studied backbones are used.
        settings: The defaults, of which every variant changes one reading.
        variants: Readings; those that the profile cannot run are left out.
        options: Those of :func:`chameleon_lib.sections.grid.run_grid`.

    Returns:
        A run with a condition per variant; where a reading is refused in a draw, the log of the
        draw holds the sentence under ``refused``, and the edit has no answers of it.
    """
    compute = partial(_compute, variants=runnable(profile, variants))
    return run_grid(compute, studied(profile), settings, **options)


def _compute(plan: Plan, backbone: str, *, variants: Sequence[Variant]) -> list[Cell]:
    desk = plan.open(backbone)
    tell(f"{backbone} {plan.task}: {len(variants) - 1} readings, {len(desk.test)} test users")
    bench = _Bench(plan, desk)
    return [bench.cell(variant) for variant in variants]


class _Bench:
    """What the variants of one backbone and task share: groups, pairs and exams."""

    def __init__(self, plan: Plan, desk: Desk) -> None:
        self.plan, self.desk, self.study = plan, desk, desk.study
        self.blind = without_gold(desk.data.train)
        self.train, _ = self.study.prepare(self.blind)
        self.groups = {
            index: draw_group(self.train, plan.settings.group_size, index) for index in plan.draws
        }
        self.reference = reference_answers(self.study, desk.data, desk.test)
        self._exam: tuple[str, Exam] | None = None
        self._own = self.exam(plan.settings, desk.test)
        self._pairs = self._grouped(self.study.pairs(self.train))
        self._h: dict[int, tuple[Tensor, Tensor]] = {}

    def cell(self, variant: Variant) -> Cell:
        """The paper's edit under one reading, and the fitted one where strengths are varied."""
        settings = variant.settings(self.plan.settings, self.study.backbone.n_layers)
        exam = self._exam_of(variant)
        pairs = self._pairs_of(variant)
        fitted = variant.title == DEFAULT or variant.id == "A12"
        arms: dict[str, tuple[str, Edit | None]] = {"instruct": ("instruct", None)}
        arms[variant.prompt] = (variant.prompt, None)  # without the edit, what it adds is not known
        logs: list[dict[str, Any]] = []
        for index in self.plan.draws:
            try:
                edit, log = self._edit(variant, settings, pairs[index], index)
            except UserError as error:  # a finding of its own: listed, never skipped in silence
                logs.append({"draw": index, "refused": str(error)})
                continue
            # Where a gate shuts every part, the reading leaves the model as it is.
            arms[f"chameleon/{index}"] = (variant.prompt, edit if edit.changes_anything else None)
            if fitted:
                arms[f"fitted/{index}"] = ("instruct", self._fitted(settings, index))
            logs.append({"draw": index, "users": len(self.groups[index]), **log})
        results: dict[str, list[Answers]] = {}
        for name, answers in exam.answer(arms).items():
            results.setdefault(name.split("/")[0], []).append(answers)
        return score_cell(self.desk, results, logs, variant.title)

    def exam(self, settings: EditSettings, users: Sequence[PreparedUser]) -> Exam:
        """The queries of ``users``; the last prompts asked stay read."""
        study = self._study(settings)
        texts = prompt_texts(study.task, users, "instruct", settings)
        key = digest([texts, study.inputs(*_READER)])
        if self._exam is None or self._exam[0] != key:
            self._exam = (key, Exam(study, users, self.reference))
        return self._exam[1]

    def _study(self, settings: EditSettings) -> Study:
        return self.plan.study(self.study.backbone_id, settings)

    def _exam_of(self, variant: Variant) -> Exam:
        """The exam that a reading asks, which is the default one where no prompt changes."""
        asked = _only(variant, _ASKED)
        if not asked:
            return self._own
        changed = self.plan.settings.with_(**asked)
        users = self.desk.test
        if any(name.startswith("selection_") for name in asked):
            users = self._chosen_again(changed)
        texts = [prompt_texts(self.study.task, u, "instruct", s) for u, s in
                 ((users, changed), (self.desk.test, self.plan.settings))]  # fmt: skip
        if texts[0] == texts[1] and not _only(variant, _READER):
            return self._own
        return self.exam(changed, users)

    def _chosen_again(self, settings: EditSettings) -> list[PreparedUser]:
        """The same test users with other items; the Instruct prompt shows no insight.

        A user none of whose items fits now keeps the old ones, so that all rows stay paired.
        """
        study = self._study(settings)
        chosen = study.select([prepared.user for prepared in self.desk.test])
        users = []
        for prepared, indices in zip(self.desk.test, chosen, strict=True):
            items = [prepared.user.history[at] for at in indices]
            fitting = fit_context(study.backbone, prepared.user, items, settings)
            users.append(replace(prepared, items=fitting or prepared.items))
        return users

    def _pairs_of(self, variant: Variant) -> dict[int, list[PreferencePair]]:
        """Unfiltered pairs of every group, made anew where a reading changes how."""
        changed = {k: v for k, v in _only(variant, _PAIRS).items() if k not in _PROMPT_ALONE}
        if not changed:
            return self._pairs
        study = self._study(self.plan.settings.with_(**changed))
        return self._grouped(study.pairs(study.prepare(self.blind)[0]))

    def _grouped(self, pairs: Sequence[PreferencePair]) -> dict[int, list[PreferencePair]]:
        groups = {i: {user.user.id for user in group} for i, group in self.groups.items()}
        return {i: [pair for pair in pairs if pair.user_id in ids] for i, ids in groups.items()}

    def _edit(
        self, variant: Variant, settings: EditSettings, pairs: list[PreferencePair], index: int
    ) -> tuple[Edit, dict[str, Any]]:
        kept, identical = keep_different(pairs, settings)
        check_pair_count(len(kept), settings)
        reads = _only(variant, (*_PAIRS, "pairs_text", "embed_", "edit_site", "t5_"))
        if set(reads) - set(_PROMPT_ALONE):
            h_p, h_n = self._study(settings).activations(kept)
        else:
            if index not in self._h:
                self._h[index] = self.study.activations(kept)
            h_p, h_n = self._h[index]
        edit = stored_edit(self._study(settings), h_p, h_n, index)
        return edit, {
            "kept": len(kept),
            "identical": len(identical),
            "layers": list(edit.layers) if edit.changes_anything else [],
        }

    def _fitted(self, settings: EditSettings, index: int) -> Edit:
        """The fitted edit of Table 1 at the strength of ``settings``."""
        study, defaults = self.study, self.plan.settings
        group = with_gold(self.groups[index], self.desk.data.train)
        pairs = self._pairs[index]
        own = contrasts_from_pairs(study.task, *keep_different(pairs, defaults), defaults)
        # The gold ones are read beside them in Table 1, whose fit this is; the fit sees none.
        gold = gold_contrasts(study.task, group, pairs, defaults)
        prompts = PlainPrompts(study.backbone, [contrast.prompt for contrast in [*own, *gold]])
        edit, _ = stored_fit(study, own, prompts, index, "fitted")
        return replace(edit, alpha_p=settings.edit_alpha_p, alpha_n=settings.edit_alpha_n)


def _only(variant: Variant, prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The changes of a variant to fields that start with one of ``prefixes``."""
    return {name: value for name, value in variant.changes if name.startswith(prefixes)}


def stored_edit(study: Study, h_p: Tensor, h_n: Tensor, seed: int) -> Edit:
    """The paper's edit without the fits that Table 1 makes for its diagnostics alone."""
    settings = study.settings
    fields = ("direction_", "ccs_", "layers_", "edit_")
    chosen = {k: v for k, v in settings.canonical().items() if k.startswith(fields)}

    def compute() -> dict[str, Any]:
        edit = fit_directions(h_p, h_n, settings, seed, diagnostics=False).to_edit(settings)
        tensors = {name: getattr(edit, name) for name in ("theta_p", "theta_n", "gate_p", "gate_n")}
        return {"json": [list(edit.layers), edit.alpha_p, edit.alpha_n], "tensors": tensors}

    record = study.store.get_or_compute(
        "variant",
        {"seed": seed, "h": [h_p, h_n], "settings": chosen},
        compute,
        modules=("chameleon_lib.core.directions",),
    )
    layers, alpha_p, alpha_n = record["json"]
    tensors = {name: torch.as_tensor(value) for name, value in record["tensors"].items()}
    return Edit(
        layers=tuple(layers),
        theta_p=tensors["theta_p"],
        theta_n=tensors["theta_n"],
        alpha_p=alpha_p,
        alpha_n=alpha_n,
        order=settings.edit_order,
        positions=settings.edit_positions,
        site=settings.edit_site,
        gate_p=tensors["gate_p"].bool(),
        gate_n=tensors["gate_n"].bool(),
        compute_dtype=settings.edit_compute_dtype,
    )
