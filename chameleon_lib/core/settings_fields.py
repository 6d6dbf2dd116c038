"""The fields of EditSettings: every point the paper leaves open, its readings and our default.

Ids A1 to A23 and B1 to B10 are those of the ambiguity ledger (method reference, sections 8 and 9).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _open(
    default: Any,
    ambiguity: str,
    help: str,
    options: tuple[str, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field that documents itself; ``options`` and the bounds are enforced."""
    metadata = {
        "id": ambiguity,
        "options": options,
        "help": help,
        "at_least": at_least,
        "above": above,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TextFields:
    """From the history to the pair texts: sections 3.1 to 3.4, 4 and 5 of the method reference."""

    selection_k: int = _open(
        10, "", "Selected history items; the paper uses up to 10.", at_least=1)
    selection_embedder: str = _open(
        "all-MiniLM-L6-v2", "A16", "The paper cites Sentence-BERT without a model; the small one.")
    selection_rule: str = _open(
        "pca", "", "The paper ranks items by PCA (eq. 2); random, recent and nearest (to the "
        "query) are controls.", ("pca", "random", "recent", "nearest"))
    selection_seed: int = _open(0, "", "Seed of selection_rule random.", at_least=0)
    selection_center: str = _open(
        "both", "A17", "Eq. 2 does not say what is centred. Centring both prefers untypical items, "
        "'none' typical ones.", ("both", "components", "none"))
    selection_norm: str = _open(
        "l2", "A17", "Eq. 2 prints a norm without naming it; L2.", ("l2", "l1", "max"))
    selection_n_components: int | None = _open(
        None, "A17", "The paper uses k for items and components; None means min(k, N, d).",
        at_least=1)
    selection_item_text: str = _open(
        "line", "B1", "What text of an item is embedded: its history line, or its body alone.",
        ("line", "body"))
    insight_template: str = _open(
        "fig2_v1", "A14", "Figure 2 shows the insight prompt for LaMP-2 only; carried over to the "
        "other tasks.", ("fig2_v1",))
    insight_scope: str = _open(
        "user", "B2", "One insight pair per user or per query is not said; per user.",
        ("user", "query"))
    prompts_fix_typos: bool = _open(
        False, "A23", "Misprints in the equations are read as meant; template wording is kept.")
    prompts_baseline: str = _open(
        "drop_insight_sentence", "B3", "What 'excluding insights' removes; the one sentence.",
        ("drop_insight_sentence", "drop_agent_block"))
    prompts_chat: str = _open(
        "template", "B8", "Chat template or raw text; the tokenizer's template where it has one.",
        ("template", "raw"))
    prompts_overflow: str = _open(
        "drop_items", "B9", "Prompts beyond the context: drop history items, never the query.",
        ("drop_items", "error"))
    pairs_text: str = _open(
        "history_query_answer", "A3", "Order of history and output and the query's part are not "
        "said; answer last, so that a last-token reading sees it.",
        ("history_query_answer", "history_answer", "answer_history", "query_answer", "answer_only"))
    pairs_history: str = _open(
        "selected", "B6", "History inside the pair text: the selected items or the whole profile.",
        ("selected", "full"))
    pairs_query_source: str = _open(
        "task", "B7", "Queries of training users: LaMP's own; leave-one-out items extend them.",
        ("task", "history_loo"))
    pairs_drop_identical: str = _open(
        "normalised", "", "The paper drops identical pairs; compared after strip, whitespace, "
        "case folding.", ("normalised", "exact"))
    pairs_k_min: int = _open(
        32, "A20", "Pairs needed to fit directions; with 1 or 2 CCS is undetermined.", at_least=1)
    pairs_on_too_few: str = _open(
        "error", "A20", "What happens below pairs_k_min.", ("error", "warn"))
    pairs_k_max: int | None = _open(
        None, "", "Most pairs of a fit, a random draw; bounds its memory. None keeps all, as the "
        "paper does.", at_least=1)
    controls_label_token: tuple[str, ...] = _open(
        ("shuffle_pairs", "permute_answers", "answer_only"), "A4",
        "P and N of LaMP-2 and LaMP-3 differ by one label token, so directions may encode the "
        "label. The label controls to run beside the method.",
        ("shuffle_pairs", "permute_answers", "answer_only"))
    controls_random_draws: int = _open(5, "", "Draws of the random-direction control.", at_least=1)
    eval_split: str = _open(
        "dev", "A18", "LaMP withholds test labels; the split that is scored.",
        ("dev", "test", "custom"))
    eval_user_mode: str = _open(
        "seen", "A19", "What separates Table 1 from Table 2; seen users keep their history.",
        ("seen", "unseen"))
    unseen_prompt: str = _open(
        "no_history", "A19", "Whether the prompt of an unseen user shows a profile.",
        ("no_history", "history"))
    infer_insight_in_prompt: bool = _open(
        False, "A13", "Whether the edited model's prompt holds the insight; run the 2 x 2.")
    infer_edit: bool = _open(True, "A13", "Whether the edit is active; run the 2 x 2.")
    group_size: int = _open(100, "", "Users per group; the paper uses 100.", at_least=1)
    group_draws: int = _open(3, "", "Random groups; the paper says 'several'.", at_least=1)
    group_seeds: tuple[int, ...] = _open((0, 1, 2), "", "One seed per group draw.")
    seed: int = _open(0, "", "Seed of the directions.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class EditFields:
    """From activations to edited answers: sections 3.5 to 3.9 of the method reference."""

    embed_pooling: str = _open(
        "last", "A2", "Pooling of a pair text; the last token of the answer.",
        ("last", "mean_answer", "mean_all"))
    theta_method: str = _open(
        "paper", "", "Where directions come from: SVD and CCS, or fitted by a preference loss.",
        ("paper", "fitted"))
    direction_personal: str = _open(
        "svd_p", "A10", "Eq. 3 shows the SVD of H^P and does not mention centring; uncentred.",
        ("svd_p", "svd_p_centered", "svd_diff", "mean_diff", "svd_n", "random", "none"))
    direction_neutral: str = _open(
        "ccs", "", "The paper uses CCS; the others are controls.",
        ("ccs", "logistic", "mean_diff", "random", "none"))
    ccs_lr: float = _open(1e-3, "A7", "No CCS setting is given; AlignEZ's.", above=0)
    ccs_weight_decay: float = _open(0.01, "A7", "As AlignEZ.", at_least=0)
    ccs_epochs: int = _open(1000, "A7", "Full-batch epochs, as AlignEZ.", at_least=1)
    ccs_tries: int = _open(10, "A7", "Random restarts, as AlignEZ.", at_least=1)
    ccs_probe: str = _open("linear", "A7", "Probe shape; its weight is the direction.", ("linear",))
    ccs_confidence: str = _open(
        "squared", "A8", "min{} is printed without the square of the CCS paper and code.",
        ("squared", "linear"))
    ccs_normalize: str = _open(
        "none", "A6", "Not mentioned. Per-class centring deletes the P-N offset: an ablation.",
        ("none", "per_class", "joint"))
    ccs_scale: str = _open(
        "none", "B10", "The loss depends on the activation scale; rms makes layers comparable.",
        ("none", "rms"))
    ccs_solver: str = _open(
        "reference", "", "reference: AdamW itself, whose unfinished losses rank the layers; span: "
        "L-BFGS within AdamW's reach, much faster; but with few pairs all losses are 0.",
        ("span", "reference"))
    layers_rule: str = _open(
        "elbow", "A5", "How many layers are edited is not said; AlignEZ's elbow.",
        ("elbow", "elbow_literal", "top_k", "all"))
    layers_k: int | None = _open(None, "A5", "Layers kept by top_k.", at_least=1)
    layers_loss_stat: str = _open(
        "best_try", "B5", "'Average' CCS loss: of the best restart, or over restarts.",
        ("best_try", "mean_tries"))
    edit_site: str = _open(
        "mlp_out", "A1", "Which module is the 'MLP output'; its whole output.",
        ("mlp_out", "gate_proj", "block_out"))
    edit_positions: str = _open(
        "last", "A11", "Edited positions are not said; last prompt token and generated ones.",
        ("last", "all", "generated"))
    edit_order: str = _open(
        "p_then_n", "B4", "Boost, then remove, as the equations are printed.",
        ("p_then_n", "n_then_p"))
    edit_alpha_p: float = _open(1.0, "A12", "Boost strength; the equations have none.", at_least=0)
    edit_alpha_n: float = _open(1.0, "A12", "Removal strength; likewise.", at_least=0)
    edit_sign_gate: str = _open(
        "none", "A9", "Projections ignore signs. class_mean leaves a part out at layers whose "
        "direction points to the other class, as AlignEZ code v1 does.", ("none", "class_mean"))
    edit_compute_dtype: str = _open(
        "float32", "A22", "Precision of the edit's arithmetic.", ("float32", "float64"))
    model_dtype: str = _open(
        "auto", "A22", "Precision of the weights is not said; auto is float32 on a CPU and "
        "bfloat16 on a GPU, whatever the checkpoint holds.",
        ("auto", "float32", "bfloat16", "float16"))
    t5_stack: str = _open(
        "decoder", "A21", "Edited stack of an encoder-decoder; the paper says decoder layers.",
        ("decoder", "encoder"))
    t5_pair_layout: str = _open(
        "enc_ctx_dec_answer", "A21", "Where an encoder-decoder reads the pair text.",
        ("enc_ctx_dec_answer", "enc_all"))
    decode_do_sample: bool = _open(False, "A15", "Decoding is not said; greedy.")
    decode_num_beams: int = _open(1, "A15", "Beams; LaMP's own code uses 4.", at_least=1)
    decode_temperature: float | None = _open(None, "A15", "Only with sampling.", above=0)
    decode_max_new_tokens: int | None = _open(
        None, "A15", "None is the task's own: 16, 8, 128.", at_least=1)
    decode_insight_tokens: int = _open(
        256, "A15", "New tokens of an insight, and what a prompt keeps free for it; one that takes "
        "more when it is read again is cut to as many, after a word.", at_least=1)
    decode_seed: int = _open(0, "A15", "Seed of sampling.", at_least=0)
    fit_steps: int = _open(40, "", "Adam steps of theta_method fitted.", at_least=1)
    fit_lr: float = _open(0.05, "", "Its step size.", above=0)
    fit_batch: int = _open(32, "", "Pairs per step.", at_least=1)
    fit_holdout: float = _open(
        0.2, "", "Share of the users, rounded down, kept to stop on; with fewer than 1 / share "
        "users nobody is kept and all fit_steps are run.", at_least=0)
    fit_leash: float = _open(1.0, "", "Weight of the leash on agreed queries.", at_least=0)
    fit_layers: str = _open("all", "", "Layers that are fitted: all, or those of layers_rule.",
                            ("all", "chosen"))
    fit_patience: int = _open(3, "", "Checks without gain before stopping.", at_least=1)
