"""The ambiguity ledger as data: which setting every open point A1-A23, B1-B11 varies, and how.

A variant is the paper's edit with one reading changed. What cannot be a variant stands in
:data:`ELSEWHERE` (another notebook shows it, or nothing can be run), in :data:`REFUSED` (the
settings raise), or carries a reason why a run profile leaves it out. Nothing is skipped silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chameleon_lib.core.settings import EditSettings, ambiguity_ledger
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile

DEFAULT = "default"
STRENGTHS = (0.5, 1.0, 2.0, 4.0)  # A12; 1 is the paper's
_HUB = "needs a model of the hub"
_SLOW = "left out of the embedded world"
_UNKNOWN = f"{_SLOW}: its models know the printed prompts alone"
_ALIKE = f"{_SLOW}: of 12 to 16 items all readings take nearly the same 10, and one is shown"


@dataclass(frozen=True)
class Variant:
    """One reading of one open point.

    Attributes:
        id: Id in the ledger; empty for the defaults.
        name: The reading, in words.
        changes: Fields that differ from the defaults.
        prompt: Prompt kind that the edited model is asked with.
        needs: Why some profiles leave it out; empty if all run it.
    """

    id: str
    name: str
    changes: tuple[tuple[str, Any], ...] = ()
    prompt: str = "instruct"
    needs: str = ""

    @property
    def title(self) -> str:
        """Name of the row, and ``Cell.condition``."""
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
        if self.needs.startswith(_SLOW):
            return self.needs if profile.data == "demo" else ""
        return self.needs if profile.offline else ""


def _v(ambiguity: str, name: str, needs: str = "", prompt: str = "instruct", **changes: Any
       ) -> Variant:  # fmt: skip
    return Variant(ambiguity, name, tuple(changes.items()), prompt, needs)


def _strength(alpha: float) -> Variant:
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
    *(_strength(alpha) for alpha in STRENGTHS if alpha != 1),
    _v("A13", "insight in the prompt", prompt="insight"),
    _v("A15", "decoding: sampled at 0.7", f"{_SLOW}: insights and pairs of every user made anew",
       decode_do_sample=True, decode_temperature=0.7),
    _v("A15", "decoding: 4 beams", f"{_SLOW}: two CPU minutes for each backbone",
       decode_num_beams=4),
    _v("A16", "embedder: all-mpnet-base-v2", "needs an embedder that is not shipped",
       selection_embedder="all-mpnet-base-v2"),
    _v("A17", "eq. 2: components centred alone", _ALIKE, selection_center="components"),
    _v("A17", "eq. 2: nothing centred", selection_center="none"),
    _v("A17", "eq. 2: L1 norm", _ALIKE, selection_norm="l1"),
    _v("A17", "eq. 2: max norm", _ALIKE, selection_norm="max"),
    _v("A17", "eq. 2: 3 components", _ALIKE, selection_n_components=3),
    _v("A22", "edit arithmetic: float64", edit_compute_dtype="float64"),
    _v("A23", "template misprint mended", _UNKNOWN, prompts_fix_typos=True),
    _v("B1", "embedded text: body alone", f"{_SLOW}: every history would be embedded again",
       selection_item_text="body"),
    _v("B2", "insight per query", _UNKNOWN, insight_scope="query"),
    _v("B3", "Instruct without the agent block", prompts_baseline="drop_agent_block"),
    _v("B4", "order: remove, then boost", edit_order="n_then_p"),
    _v("B5", "layer loss: mean over tries", layers_loss_stat="mean_tries"),
    _v("B8", "raw text, no chat template", _HUB, prompts_chat="raw"),
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
    "B9": (("prompts_overflow",), "not run: 'error' stops where an item would be dropped, and is "
           "the default everywhere else"),
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
