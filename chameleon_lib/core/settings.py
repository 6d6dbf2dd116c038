"""EditSettings, one frozen object: every point the paper leaves open, its readings, our default.

Ids A1 to A23 and B1 to B10 are those of the ambiguity ledger, which notebook 06 prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from chameleon_lib.core.checked import CheckedSettings
from chameleon_lib.errors import UserError

# Readings that the ledger lists and the kit refuses: silence about a setting would be worse.
NOT_OFFERED = (
    ("t5_stack", "encoder", "decoder"),
    ("t5_pair_layout", "enc_all", "enc_ctx_dec_answer"),
    ("pairs_history", "full", "selected"),
    ("pairs_query_source", "history_loo", "task"),
)


def _open(
    default: Any,
    ambiguity: str,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field that documents itself; its type's options and the bounds are enforced."""
    metadata = {"id": ambiguity, "help": help, "at_least": at_least, "above": above}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class EditSettings(CheckedSettings):
    """All settings of the method. Defaults are the reading called ``paper``.

    Each field's metadata tells the paper's silence and why the default was taken.

    Raises:
        UserError: A value outside its options or bounds, or a combination that has no meaning.
    """

    # From the history to the pair texts.
    selection_k: int = _open(
        10, "", "Selected history items; the paper uses up to 10.", at_least=1)
    selection_embedder: str = _open(
        "all-MiniLM-L6-v2", "A16", "The paper cites Sentence-BERT without a model; the small one.")
    selection_rule: Literal["pca", "random", "recent", "nearest"] = _open(
        "pca", "", "The paper ranks items by PCA (eq. 2); random, recent and nearest (to the "
        "query) are controls.")
    selection_seed: int = _open(0, "", "Seed of selection_rule random.", at_least=0)
    selection_center: Literal["both", "components", "none"] = _open(
        "both", "A17", "Eq. 2 does not say what is centred. Centring both prefers untypical items, "
        "'none' typical ones.")
    selection_norm: Literal["l2", "l1", "max"] = _open(
        "l2", "A17", "Eq. 2 prints a norm without naming it; L2.")
    selection_n_components: int | None = _open(
        None, "A17", "The paper uses k for items and components; None means min(k, N, d).",
        at_least=1)
    selection_item_text: Literal["line", "body"] = _open(
        "line", "B1", "What text of an item is embedded: its history line, or its body alone.")
    selection_max_items: int | None = _open(
        2000, "", "Most items that are embedded; of a longer history as many, evenly spread over "
        "it. Beyond any history of LaMP (1,023); None embeds all.", at_least=1)
    insight_template: Literal["fig2_v1"] = _open(
        "fig2_v1", "A14", "Figure 2 shows the insight prompt for LaMP-2 only; carried over to the "
        "other tasks.")
    insight_scope: Literal["user", "query"] = _open(
        "user", "B2", "One insight pair per user or per query is not said; per user.")
    prompts_fix_typos: bool = _open(
        False, "A23", "Misprints in the equations are read as meant; template wording is kept.")
    prompts_baseline: Literal["drop_insight_sentence", "drop_agent_block"] = _open(
        "drop_insight_sentence", "B3", "What 'excluding insights' removes; the one sentence.")
    prompts_chat: Literal["template", "raw"] = _open(
        "template", "B8", "Chat template or raw text; the tokenizer's template where it has one.")
    prompts_overflow: Literal["drop_items", "error"] = _open(
        "drop_items", "B9", "Prompts beyond the context: drop history items, never the query.")
    prompts_item_words: int | None = _open(
        None, "B9", "Most words of a history item's text in a prompt: the rest of a longer one is "
        "cut off. None shows items whole, as the paper's figures do.", at_least=1)
    pairs_text: Literal[
        "history_query_answer", "history_answer", "answer_history", "query_answer", "answer_only"
    ] = _open(
        "history_query_answer", "A3", "Order of history and output and the query's part are not "
        "said; answer last, so that a last-token reading sees it.")
    pairs_history: Literal["selected", "full"] = _open(
        "selected", "B6", "History inside the pair text: the selected items or the whole profile.")
    pairs_query_source: Literal["task", "history_loo"] = _open(
        "task", "B7", "Queries of training users: LaMP's own; leave-one-out items extend them.")
    pairs_drop_identical: Literal["normalised", "exact"] = _open(
        "normalised", "", "The paper drops identical pairs; compared after strip, whitespace, "
        "case folding.")
    pairs_k_min: int = _open(
        32, "A20", "Pairs needed to fit directions; with 1 or 2 CCS is undetermined.", at_least=1)
    pairs_on_too_few: Literal["error", "warn"] = _open(
        "error", "A20", "What happens below pairs_k_min.")
    pairs_k_max: int | None = _open(
        None, "", "Most pairs of a fit, a random draw; bounds its memory. None keeps all, as the "
        "paper does.", at_least=1)
    pairs_source: Literal["auto", "self", "filtered", "history", "gold"] = _open(
        "auto", "", "Where the pairs of a fit come from. self: both agents' answers (the paper); "
        "filtered: those of them that are worth learning from; history: what users wrote, against "
        "the model's neutral version; gold: gold answers against neutral ones (positive control). "
        "auto: self for theta_method paper, history for fitted.")
    pairs_items: int = _open(
        3, "", "Most history items per user that pairs_source history, and every check of an edit, "
        "take.", at_least=1)
    controls_label_token: tuple[
        Literal["shuffle_pairs", "permute_answers", "answer_only"], ...
    ] = _open(
        ("shuffle_pairs", "permute_answers", "answer_only"), "A4",
        "P and N of LaMP-2 and LaMP-3 differ by one label token, so directions may encode the "
        "label. The label controls to run beside the method.")
    controls_random_draws: int = _open(5, "", "Draws of the random-direction control.", at_least=1)
    eval_split: Literal["dev", "test", "custom"] = _open(
        "dev", "A18", "LaMP withholds test labels; the split that is scored.")
    eval_user_mode: Literal["seen", "unseen"] = _open(
        "seen", "A19", "What separates Table 1 from Table 2; seen users keep their history.")
    unseen_prompt: Literal["no_history", "history"] = _open(
        "no_history", "A19", "Whether the prompt of an unseen user shows a profile.")
    infer_insight_in_prompt: bool = _open(
        False, "A13", "Whether the edited model's prompt holds the insight; run the 2 x 2.")
    infer_edit: bool = _open(True, "A13", "Whether the edit is active; run the 2 x 2.")
    group_size: int = _open(100, "", "Users per group; the paper uses 100.", at_least=1)
    group_draws: int = _open(3, "", "Random groups; the paper says 'several'.", at_least=1)
    group_seeds: tuple[int, ...] = _open((0, 1, 2), "", "One seed per group draw.")
    seed: int = _open(0, "", "Seed of the directions.", at_least=0)

    # From activations to edited answers.
    embed_pooling: Literal["last", "mean_answer", "mean_all"] = _open(
        "last", "A2", "Pooling of a pair text; the last token of the answer.")
    theta_method: Literal["paper", "fitted"] = _open(
        "paper", "", "Where directions come from: SVD and CCS, or fitted by a preference loss.")
    direction_personal: Literal[
        "svd_p", "svd_p_centered", "svd_diff", "mean_diff", "svd_n", "random", "none"
    ] = _open(
        "svd_p", "A10", "Eq. 3 shows the SVD of H^P and does not mention centring; uncentred.")
    direction_neutral: Literal["ccs", "logistic", "mean_diff", "random", "none"] = _open(
        "ccs", "", "The paper uses CCS; the others are controls.")
    ccs_lr: float = _open(1e-3, "A7", "No CCS setting is given; AlignEZ's.", above=0)
    ccs_weight_decay: float = _open(0.01, "A7", "As AlignEZ.", at_least=0)
    ccs_epochs: int = _open(1000, "A7", "Full-batch epochs, as AlignEZ.", at_least=1)
    ccs_tries: int = _open(10, "A7", "Random restarts, as AlignEZ.", at_least=1)
    ccs_probe: Literal["linear"] = _open(
        "linear", "A7", "Probe shape; its weight is the direction.")
    ccs_confidence: Literal["squared", "linear"] = _open(
        "squared", "A8", "min{} is printed without the square of the CCS paper and code.")
    ccs_normalize: Literal["none", "per_class", "joint"] = _open(
        "none", "A6", "Not mentioned. Per-class centring deletes the P-N offset: an ablation.")
    ccs_scale: Literal["none", "rms"] = _open(
        "none", "B10", "The loss depends on the activation scale; rms makes layers comparable.")
    ccs_solver: Literal["span", "reference"] = _open(
        "reference", "", "reference: AdamW itself, whose unfinished losses rank the layers; span: "
        "L-BFGS within AdamW's reach, much faster where all layers are edited (else the reference "
        "still ranks them); which minimum it ends in changes with the last bits.")
    layers_rule: Literal["elbow", "elbow_literal", "top_k", "all"] = _open(
        "elbow", "A5", "How many layers are edited is not said; AlignEZ's elbow.")
    layers_k: int | None = _open(None, "A5", "Layers kept by top_k.", at_least=1)
    layers_loss_stat: Literal["best_try", "mean_tries"] = _open(
        "best_try", "B5", "'Average' CCS loss: of the best restart, or over restarts.")
    edit_site: Literal["mlp_out", "gate_proj", "block_out"] = _open(
        "mlp_out", "A1", "Which module is the 'MLP output'; its whole output.")
    edit_positions: Literal["last", "all", "generated"] = _open(
        "last", "A11", "Edited positions are not said; last prompt token and generated ones.")
    edit_order: Literal["p_then_n", "n_then_p"] = _open(
        "p_then_n", "B4", "Boost, then remove, as the equations are printed.")
    edit_alpha_p: float = _open(1.0, "A12", "Boost strength; the equations have none.", at_least=0)
    edit_alpha_n: float = _open(1.0, "A12", "Removal strength; likewise.", at_least=0)
    edit_sign_gate: Literal["none", "class_mean"] = _open(
        "none", "A9", "Projections ignore signs. class_mean leaves a part out at layers whose "
        "direction points to the other class, as AlignEZ code v1 does.")
    edit_compute_dtype: Literal["float32", "float64"] = _open(
        "float32", "A22", "Precision of the edit's arithmetic.")
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = _open(
        "auto", "A22", "Precision of the weights is not said; auto is float32 on a CPU and "
        "bfloat16 on a GPU, whatever the checkpoint holds.")
    t5_stack: Literal["decoder", "encoder"] = _open(
        "decoder", "A21", "Edited stack of an encoder-decoder; the paper says decoder layers.")
    t5_pair_layout: Literal["enc_ctx_dec_answer", "enc_all"] = _open(
        "enc_ctx_dec_answer", "A21", "Where an encoder-decoder reads the pair text.")
    decode_do_sample: bool = _open(False, "A15", "Decoding is not said; greedy.")
    decode_num_beams: int = _open(1, "A15", "Beams; LaMP's own code uses 4.", at_least=1)
    decode_temperature: float | None = _open(None, "A15", "Only with sampling.", above=0)
    decode_max_new_tokens: int | None = _open(
        None, "A15", "None is the task's own: 16, 8, 128.", at_least=1)
    decode_insight_tokens: int = _open(
        256, "A15", "New tokens of an insight, and what a prompt keeps free for it; one that takes "
        "more when it is read again is cut to as many, after a word.", at_least=1)
    decode_seed: int = _open(0, "A15", "Seed of sampling.", at_least=0)
    check_edit: Literal["zero", "refuse", "warn", "off"] = _open(
        "zero", "", "What happens to an edit that is not better than none on users held out of its "
        "fit: strength 0, a refusal, a warning; or it is not looked at.")
    check_share: float = _open(
        0.2, "", "Share of the users of a fit, rounded down, that are held out of it for the "
        "check; of a single user, texts of the history are.", at_least=0)
    fit_loss: Literal["preference", "likelihood"] = _open(
        "likelihood", "", "What a fit makes smaller: -log sigmoid of the chosen answer's log p "
        "over the rejected one's, or -log p of the chosen answer, per token. Chosen on train and "
        "dev users of LaMP-7.")
    fit_rule: Literal["guarded", "plain"] = _open(
        "guarded", "", "guarded: steps as large as fit_ratio says, no edit among the candidates of "
        "early stopping, and unrelated prompts on the leash. plain: Adam's own steps of fit_lr, "
        "without the two; chosen for the embedded models.")
    fit_ratio: float = _open(
        0.05, "", "How much the first step of a guarded fit changes the edited outputs, "
        "||Δx|| / ||x||, mean over tokens and layers; it falls to 0 over the steps.", above=0)
    fit_steps: int = _open(24, "", "Steps of theta_method fitted.", at_least=1)
    fit_lr: float = _open(0.05, "", "Adam's rate in a plain fit; a guarded one has fit_ratio.",
        above=0)
    fit_batch: int = _open(8, "", "Pairs per step.", at_least=1)
    fit_holdout: float = _open(
        0.2, "", "Share of the users, rounded down, kept to stop on; with fewer than 1 / share "
        "users nobody is kept and all fit_steps are run.", at_least=0)
    fit_leash: float = _open(1.0, "", "Weight of the leash on agreed queries.", at_least=0)
    fit_layers: Literal["all", "chosen"] = _open(
        "all", "", "Layers that are fitted: all, or those of layers_rule.")
    fit_patience: int = _open(3, "", "Checks without gain before stopping.", at_least=1)
    guard_items: float | None = _open(
        None, "", "Robust z-score beyond which a pair is left out of a fit: its gradient is so "
        "much longer than the others', or agrees so much less with them. None keeps all.", above=0)
    guard_cap: float | None = _open(
        None, "", "Most influence of a user on a pooled fit, in multiples of the median user's: "
        "number of pairs, and length of the gradient in every step. None bounds neither.", above=0)
    guard_trim: float = _open(
        0.0, "", "Share of the users, rounded down, that pooling leaves out: at both ends of every "
        "coordinate of a step's gradient; for directions of activations, those whose offsets lie "
        "farthest from the median one.", at_least=0)
    guard_harmed: float | None = _open(
        None, "", "Most share of the held-out users whose own texts an edit may make less likely, "
        "or it is not better than none (check_edit). None asks for the mean alone.", at_least=0)
    guard_change: float | None = _open(
        None, "", "Most that an edit may change outputs, ||Δx|| / ||x||, mean over tokens and "
        "layers; a stronger one is made weaker. None leaves the strength as it is.", above=0)

    def _check_combinations(self) -> None:
        rules = (
            (
                self.selection_rule != "pca"
                and (self.selection_center, self.selection_norm) != ("both", "l2"),
                "selection_center and selection_norm are details of eq. 2; leave them at their "
                f"defaults where selection_rule is {self.selection_rule}.",
            ),
            (
                self.selection_rule != "pca" and self.selection_n_components is not None,
                "selection_n_components belongs to selection_rule pca; set it to None where "
                f"selection_rule is {self.selection_rule}.",
            ),
            (
                self.selection_max_items is not None
                and self.selection_max_items < self.selection_k,
                f"selection_max_items is {self.selection_max_items} and selection_k "
                f"{self.selection_k}; embed as many items as shall be chosen, or more.",
            ),
            (
                self.pairs_text == "answer_history" and self.embed_pooling != "mean_all",
                "pairs_text answer_history puts the history behind the answer, in one text: "
                "embed_pooling last would read the history alone, and mean_answer no more of the "
                "answer than mean_all; use mean_all or another pairs_text.",
            ),
            (
                (self.layers_rule == "top_k") != (self.layers_k is not None),
                "layers_k belongs to layers_rule top_k: set both or neither.",
            ),
            (
                self.decode_temperature is not None and not self.decode_do_sample,
                "decode_temperature needs decode_do_sample=True.",
            ),
            (
                self.decode_do_sample and self.decode_num_beams > 1,
                "Sampling with beams is not offered; set decode_num_beams to 1 or decode_do_sample "
                "to False.",
            ),
            (
                self.decode_num_beams > 1 and self.edit_positions == "generated",
                "Beam search starts at the last prompt token, which edit_positions generated "
                "leaves unedited; set decode_num_beams to 1 or edit_positions to last.",
            ),
            *(
                (
                    getattr(self, name) == value,
                    f"{name} {value!r} is a known reading that is not offered; use {use!r}.",
                )
                for name, value, use in NOT_OFFERED
            ),
            (
                len(self.group_seeds) != self.group_draws,
                f"group_seeds has {len(self.group_seeds)} seeds for {self.group_draws} draws.",
            ),
            (
                len(set(self.group_seeds)) != len(self.group_seeds),
                "group_seeds repeats a seed; the same group would count twice.",
            ),
            (
                self.pairs_k_max is not None and self.pairs_k_max < self.pairs_k_min,
                f"pairs_k_max {self.pairs_k_max} is below pairs_k_min {self.pairs_k_min}; no fit "
                "could have both.",
            ),
            (
                self.fit_holdout >= 1,
                "fit_holdout is a share of the users; give a number below 1.",
            ),
            (
                self.guard_trim >= 0.5,
                f"guard_trim is {self.guard_trim}, and nobody would be left; give a share below "
                "0.5.",
            ),
            (
                self.theta_method == "fitted"
                and self.fit_rule == "plain"
                and (self.guard_cap is not None or self.guard_trim > 0),
                "guard_cap and guard_trim bound the steps of fit_rule guarded; Adam's own have no "
                "bound, so set fit_rule to guarded.",
            ),
            (
                self.guard_harmed is not None and self.check_edit == "off",
                "guard_harmed belongs to the check of an edit; set check_edit to zero, refuse or "
                "warn, or guard_harmed to None.",
            ),
            (
                self.eval_user_mode == "unseen"
                and self.unseen_prompt == "no_history"
                and self.infer_insight_in_prompt,
                "An unseen user without history has no insight: set infer_insight_in_prompt to "
                "False or unseen_prompt to history.",
            ),
            (
                self.theta_method == "fitted" and self.edit_sign_gate != "none",
                "edit_sign_gate compares class means of SVD and CCS directions; fitted directions "
                "have no side, set it to none.",
            ),
            (
                self.theta_method == "fitted" and self.edit_site == "gate_proj",
                "Fitted directions are as wide as the model, and edit_site gate_proj is wider; use "
                "mlp_out or block_out.",
            ),
        )
        for broken, sentence in rules:
            if broken:
                raise UserError(sentence)

    def starting(self, *prefixes: str) -> dict[str, Any]:
        """The canonical values whose names start with one of ``prefixes``, for a store key."""
        return {k: v for k, v in self.canonical().items() if k.startswith(prefixes)}


def ambiguity_ledger() -> list[dict[str, Any]]:
    """One row per field that settles an open point, ordered A1..A23, B1..B10."""
    rows = [
        {
            "id": item.metadata["id"],
            "field": item.name,
            "default": item.default,
            "options": EditSettings.options_of(item.name),
            "help": item.metadata["help"],
        }
        for item in fields(EditSettings)
        if item.metadata["id"]
    ]
    return sorted(rows, key=lambda row: (row["id"][0], int(row["id"][1:]), row["field"]))
