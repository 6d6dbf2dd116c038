"""The ambiguity ledger (A1-A23, B1-B11): the paper's edit under one other reading at a time.

A condition is a :class:`Variant`: the paper's edit with one reading changed. What cannot be one
stands in :data:`ELSEWHERE` (another notebook shows it, or nothing can be run), in :data:`REFUSED`
(the settings raise), or carries a reason why a run profile leaves it out. Nothing is skipped
silently. Users, groups and queries are those of Table 1 in all of them, and so are its stored
answers wherever a reading changes nothing. Where a reading changes the prompt itself, the unedited
model is asked in that prompt as well. The strengths of A12 are measured for the fitted edit too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PreparedUser, check_pair_count, fit_context, keep_different
from chameleon_lib.core.settings import EditSettings, ambiguity_ledger
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.kit.progress import tell
from chameleon_lib.studies.arms import (
    Exam,
    Group,
    groups_of,
    prompt_texts,
    reference_answers,
    score_cell,
)
from chameleon_lib.studies.data import without_gold
from chameleon_lib.studies.methods import FITTED, PAPER
from chameleon_lib.studies.run import Arm, Cell, Desk, Plan, Run, run_grid, studied
from chameleon_lib.studies.study import Study

DEFAULT = "default"
STRENGTHS = (0.5, 1.0, 2.0, 4.0)  # A12; 1 is the paper's
# Why the embedded world leaves a reading out.
_UNKNOWN = "its models know the printed prompts alone"
_ALIKE = "of 12 to 16 items all readings take nearly the same 10, and one is shown"


@dataclass(frozen=True)
class Variant:
    """One reading of one open point.

    Attributes:
        id: Id in the ledger; empty for the defaults.
        name: The reading, in words.
        changes: Fields that differ from the defaults.
        prompt: Prompt kind that the edited model is asked with.
        slow: Why the embedded world leaves it out; empty if it does not.
        needs: What profiles that run offline lack for it; empty if nothing.
    """

    id: str
    name: str
    changes: tuple[tuple[str, Any], ...] = ()
    prompt: str = "instruct"
    slow: str = ""
    needs: str = ""

    @property
    def title(self) -> str:
        """Name of the row, and the condition in the result frame."""
        return f"{self.id} {self.name}" if self.id else self.name

    def settings(self, base: EditSettings, n_layers: int) -> EditSettings:
        """The settings under this reading; ``layers_k`` is cut to what the model has.

        Raises:
            UserError: A reading that contradicts the other settings.
        """
        changed = dict(self.changes)
        if "layers_k" in changed:
            changed["layers_k"] = min(changed["layers_k"], n_layers)
        return base.with_(**changed)

    def left_out(self, profile: RunProfile) -> str:
        """Why this profile does not run it; empty if it does."""
        if self.slow and profile.data == "demo":
            return f"left out of the embedded world: {self.slow}"
        if self.slow and profile.reduced:
            return f"left out of profile {profile.base or profile.name}: texts are made anew"
        return self.needs if profile.offline else ""


def _v(
    ambiguity: str, name: str, *, prompt: str = "instruct", slow: str = "", needs: str = "",
    **changes: Any,
) -> Variant:  # fmt: skip
    return Variant(ambiguity, name, tuple(changes.items()), prompt, slow, needs)


def strength_of(alpha: float) -> Variant:
    return _v("A12", f"strength {alpha:g}", edit_alpha_p=alpha, edit_alpha_n=alpha)


VARIANTS: tuple[Variant, ...] = (
    _v("A1", "site: gate projection", edit_site="gate_proj"),
    _v("A1", "site: block output", edit_site="block_out"),
    _v("A2", "pooling: mean of the answer", embed_pooling="mean_answer"),
    _v("A2", "pooling: mean of all tokens", embed_pooling="mean_all"),
    _v("A3", "pair text: no query", pairs_text="history_answer"),
    _v("A3", "pair text: no history", pairs_text="query_answer"),
    _v("A3", "pair text: answer alone", pairs_text="answer_only"),
    # A last-token reading would not see the answer, which does not stand apart from the history
    # either, so the pooling has to change with it.
    _v("A3", "pair text: history last (mean of the whole text)",
       pairs_text="answer_history", embed_pooling="mean_all"),
    _v("A5", "layers: elbow as printed", layers_rule="elbow_literal"),
    _v("A5", "layers: the best one", layers_rule="top_k", layers_k=1),
    _v("A5", "layers: up to 5", layers_rule="top_k", layers_k=5),
    _v("A5", "layers: all", layers_rule="all"),
    _v("A6", "CCS inputs: centred per class", ccs_normalize="per_class"),
    _v("A6", "CCS inputs: centred jointly", ccs_normalize="joint"),
    _v("A7", "CCS: ten times the step", ccs_lr=1e-2),
    _v("A7", "CCS: no weight decay", ccs_weight_decay=0.0),
    _v("A7", "CCS: a tenth of the epochs", ccs_epochs=100),
    _v("A7", "CCS: one try", ccs_tries=1),
    _v("A7", "CCS: run to its end (L-BFGS)", ccs_solver="span"),
    _v("A8", "confidence: as printed", ccs_confidence="linear"),
    _v("A9", "sign gate: class means", edit_sign_gate="class_mean"),
    _v("A10", "θP: centred SVD", direction_personal="svd_p_centered"),
    _v("A10", "θP: SVD of differences", direction_personal="svd_diff"),
    _v("A10", "θP: mean difference", direction_personal="mean_diff"),
    _v("A10", "θP: SVD of neutral outputs", direction_personal="svd_n"),
    _v("A11", "positions: all", edit_positions="all"),
    _v("A11", "positions: generated only", edit_positions="generated"),
    *(strength_of(alpha) for alpha in STRENGTHS if alpha != 1),
    _v("A13", "insight in the prompt", prompt="insight"),
    _v("A15", "decoding: sampled at 0.7", slow="insights and pairs of every user made anew",
       decode_do_sample=True, decode_temperature=0.7),
    _v("A15", "decoding: 4 beams", slow="two CPU minutes for each backbone",
       decode_num_beams=4),
    _v("A16", "embedder: all-mpnet-base-v2", needs="needs an embedder that is not shipped",
       selection_embedder="all-mpnet-base-v2"),
    _v("A17", "eq. 2: components centred alone", slow=_ALIKE, selection_center="components"),
    _v("A17", "eq. 2: nothing centred", selection_center="none"),
    _v("A17", "eq. 2: L1 norm", slow=_ALIKE, selection_norm="l1"),
    _v("A17", "eq. 2: max norm", slow=_ALIKE, selection_norm="max"),
    _v("A17", "eq. 2: 3 components", slow=_ALIKE, selection_n_components=3),
    _v("A22", "edit arithmetic: float64", edit_compute_dtype="float64"),
    _v("A23", "template misprint mended", slow=_UNKNOWN, prompts_fix_typos=True),
    _v("B1", "embedded text: body alone", slow="every history would be embedded again",
       selection_item_text="body"),
    _v("B2", "insight per query", slow=_UNKNOWN, insight_scope="query"),
    _v("B3", "Instruct without the agent block", prompts_baseline="drop_agent_block"),
    _v("B4", "order: remove, then boost", edit_order="n_then_p"),
    _v("B5", "layer loss: mean over tries", layers_loss_stat="mean_tries"),
    _v("B8", "raw text, no chat template", needs="needs a model of the hub", prompts_chat="raw"),
    _v("B10", "CCS inputs: unit RMS per layer", ccs_scale="rms"),
)  # fmt: skip

# Open point → (fields it settles, what a reader is told instead of a row).
ELSEWHERE: Mapping[str, tuple[tuple[str, ...], str]] = {
    "A4": (("controls_label_token",), "the three label controls are rows of the control table"),
    "A10": (("direction_personal",), "random and no θP are controls: C9, and N only (C11)"),
    "A13": (("infer_insight_in_prompt", "infer_edit"), "the 2 × 2 of insight and edit"),
    "A14": (("insight_template",), "not run: no other wording is published, and the embedded "
            "models know Figure 2's alone"),
    "A15": (("decode_max_new_tokens", "decode_insight_tokens", "decode_seed"), "lengths and seed "
            "are not varied: answers of one label end by themselves"),
    "A18": (("eval_split",), "not run: another split has other users, so no difference is paired"),
    "A19": (("eval_user_mode", "unseen_prompt"), "both readings are shown in notebook 02"),
    "A20": (("pairs_k_min", "pairs_on_too_few"), "single users are shown in notebook 03"),
    "A21": (("t5_stack", "t5_pair_layout"), "not run: the settings refuse the other readings"),
    "A22": (("model_dtype",), "the precision of the weights is the profile's (two copies of a "
            "large model may not fit), and embedded models are float32 whatever is asked"),
    "B6": (("pairs_history",), "not run: the settings refuse the whole profile"),
    "B7": (("pairs_query_source",), "not run: the settings refuse leave-one-out queries"),
    "B9": (("prompts_overflow", "prompts_item_words"), "not run: 'error' stops where an item would "
           "be dropped, and is the default everywhere else; the demo's items are too short to cut"),
    "B11": ((), "no setting: directions are fixed after extraction, the edit runs for each query"),
}  # fmt: skip

# Readings and combinations that the settings refuse.
REFUSED: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("A1", {"theta_method": "fitted", "edit_site": "gate_proj"}),
    ("A3", {"pairs_text": "answer_history"}),
    ("A9", {"theta_method": "fitted", "edit_sign_gate": "class_mean"}),
    ("A11", {"decode_num_beams": 4, "edit_positions": "generated"}),
    ("A15", {"decode_temperature": 0.7}),
    ("A15", {"decode_do_sample": True, "decode_num_beams": 4}),
    ("A17", {"selection_rule": "recent", "selection_center": "none"}),
    ("A19", {"eval_user_mode": "unseen", "infer_insight_in_prompt": True}),
    ("A21", {"t5_stack": "encoder"}),
    ("A21", {"t5_pair_layout": "enc_all"}),
    ("B6", {"pairs_history": "full"}),
    ("B7", {"pairs_query_source": "history_loo"}),
)


def runnable(profile: RunProfile, variants: Sequence[Variant] = VARIANTS) -> tuple[Variant, ...]:
    """The variants that a profile runs, the unchanged edit first."""
    return (Variant("", DEFAULT), *(v for v in variants if not v.left_out(profile)))


def refusals(settings: EditSettings) -> list[dict[str, str]]:
    """What the settings refuse, each with the sentence they refuse it with."""
    rows = []
    for ambiguity, changes in REFUSED:
        try:
            settings.with_(**changes)
        except UserError as error:
            said = ", ".join(f"{name}={value}" for name, value in changes.items())
            rows.append({"id": ambiguity, "refused": said, "sentence": str(error)})
    return rows


def ledger_rows(profile: RunProfile, settings: EditSettings) -> list[dict[str, str]]:
    """One row per open point: what it is, what is varied here, what is not and why."""
    points: dict[str, list[str]] = {}
    for row in ambiguity_ledger():
        points.setdefault(row["id"], []).append(f"{row['field']}: {row['help']}")
    points["B11"] = ["How often an edit is used again is not said."]
    refused = refusals(settings)
    rows = []
    for ambiguity, helps in points.items():
        own = [v for v in VARIANTS if v.id == ambiguity]
        notes = [ELSEWHERE[ambiguity][1]] if ambiguity in ELSEWHERE else []
        notes += [f"{v.name}: {v.left_out(profile)}" for v in own if v.left_out(profile)]
        rows.append(
            {
                "id": ambiguity,
                "open point": " ".join(helps),
                "varied here": "; ".join(v.name for v in own if not v.left_out(profile)),
                "elsewhere, or why not": "; ".join(notes),
                "refused": "; ".join(r["refused"] for r in refused if r["id"] == ambiguity),
            }
        )
    return rows


# ---- The study

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
        options: Those of :func:`chameleon_lib.studies.run.run_grid`.

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
        # Gold answers are read beside the pairs in Table 1, so they are here; no fit sees them.
        golds = desk.data.train
        found = groups_of(self.study, desk.train, plan.draws, golds=golds)
        self.groups = {group.index: group for group in found}
        self.reference = reference_answers(self.study, desk.data, desk.test)
        self._exam: tuple[str, Exam] | None = None
        self._own = self.exam(plan.settings, desk.test)
        self._h: dict[int, tuple[Tensor, Tensor]] = {}

    def cell(self, variant: Variant) -> Cell:
        """The paper's edit under one reading, and the fitted one where strengths are varied."""
        settings = variant.settings(self.plan.settings, self.study.backbone.n_layers)
        exam, groups = self._exam_of(variant), self._groups_of(variant)
        fitted = variant.title == DEFAULT or variant.id == "A12"
        arms: dict[Arm, tuple[str, Edit | None]] = {Arm("instruct"): ("instruct", None)}
        # Without the edit, what it adds is not known.
        arms[Arm(variant.prompt)] = (variant.prompt, None)
        logs: list[dict[str, Any]] = []
        for index, group in groups.items():
            try:
                edit, log = self._edit(variant, settings, group)
            except UserError as error:  # a finding of its own: listed, never skipped in silence
                logs.append({"draw": index, "refused": str(error)})
                continue
            # Where a gate shuts every part, the reading leaves the model as it is.
            acting = edit if edit.changes_anything else None
            arms[Arm(PAPER, index)] = (variant.prompt, acting)
            if fitted:
                arms[Arm(FITTED, index)] = ("instruct", self._fitted(settings, index))
            logs.append({"draw": index, "users": len(group.users), **log})
        return score_cell(self.desk, exam.answer(arms), logs, variant.title)

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

    def _groups_of(self, variant: Variant) -> dict[int, Group]:
        """The groups, with pairs that are made anew where a reading changes how."""
        changed = {k: v for k, v in _only(variant, _PAIRS).items() if k not in _PROMPT_ALONE}
        if not changed:
            return self.groups
        study = self._study(self.plan.settings.with_(**changed))
        pairs = study.pairs(study.prepare(without_gold(self.desk.data.train)).users)
        found = {}
        for index, group in self.groups.items():
            ids = {user.user.id for user in group.users}
            found[index] = replace(group, pairs=[pair for pair in pairs if pair.user_id in ids])
        return found

    def _edit(
        self, variant: Variant, settings: EditSettings, group: Group
    ) -> tuple[Edit, dict[str, Any]]:
        index = group.index
        kept, identical = keep_different(group.pairs, settings)
        check_pair_count(len(kept), settings)
        reads = _only(variant, (*_PAIRS, "pairs_text", "embed_", "edit_site", "t5_"))
        if set(reads) - set(_PROMPT_ALONE):
            h_p, h_n = self._study(settings).activations(kept)
        else:
            if index not in self._h:
                self._h[index] = self.study.activations(kept)
            h_p, h_n = self._h[index]
        found = self._study(settings).directions("paper", h_p, h_n, index)
        edit = found.to_edit(settings)
        return edit, {
            "kept": len(kept),
            "identical": len(identical),
            "layers": list(edit.layers) if edit.changes_anything else [],
        }

    def _fitted(self, settings: EditSettings, index: int) -> Edit:
        """The fitted edit of Table 1 at the strength of ``settings``."""
        group = self.groups[index]
        edit = self.study.case(group.pairs, index, group.users).edit("fitted")
        return replace(edit, alpha_p=settings.edit_alpha_p, alpha_n=settings.edit_alpha_n)


def _only(variant: Variant, prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The changes of a variant to fields that start with one of ``prefixes``."""
    return {name: value for name, value in variant.changes if name.startswith(prefixes)}
