"""The rows of the tables: every method, baseline and control by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        id: Key of the row.
        title: Row name.
        kind: ``baseline`` (no edit), ``rival`` (another method), ``edit``, ``control`` or
            ``ceiling``.
        labels: Gold labels the method has seen: ``none`` or ``train``.
        paper: Name of the method in the paper's tables, if it has a row there.
    """

    id: str
    title: str
    kind: str
    labels: str = "none"
    paper: str = ""


METHODS: tuple[Method, ...] = (
    Method("official", "Plain LaMP prompt, no history", "baseline"),
    Method("official_history", "Plain LaMP prompt, selected history", "baseline"),
    Method("instruct", "Instruct (A.3, no insight)", "baseline", paper="Instruct"),
    Method("insight", "A.3 with insight, no edit", "baseline"),
    Method("llm_rec", "LLM-REC (adapted)", "rival", paper="LLM-REC"),
    Method("llm_rec_comb", "LLM-REC (adapted), recommending", "rival"),
    Method("llm_rec_basic", "LLM-REC (adapted), no history", "rival"),
    Method("aloe", "ALOE (trained on gold answers)", "rival", labels="train", paper="ALOE"),
    Method("dpo", "DPO, LoRA on the same pairs", "rival"),
    Method("chameleon", "CHAMELEON (paper)", "edit", paper="CHAMELEON"),
    Method("chameleon+insight", "CHAMELEON (paper) + insight", "edit"),
    Method("chameleon_top5", "CHAMELEON (paper), up to 5 layers", "edit"),
    Method("fitted", "CHAMELEON fitted (ours)", "edit"),
    Method("fitted+insight", "CHAMELEON fitted (ours) + insight", "edit"),
    Method("random", "control: random directions", "control"),
    Method("from_neutral", "control: θP from neutral outputs", "control"),
    Method("mean_difference", "control: mean difference", "control"),
    Method("shuffled_pairs", "control: shuffled pairs", "control"),
    Method("p_only", "control: P only", "control"),
    Method("n_only", "control: N only", "control"),
    Method("svd_diff", "control: SVD of differences", "control"),
    Method("logistic", "control: logistic regression for θN", "control"),
    Method("permute_answers", "control: answers of other users", "control"),
    Method("answer_only", "control: directions from answers alone", "control"),
    Method("fitted_shuffled", "control: fitted on shuffled pairs", "control"),
    Method("neutral", "A.3 neutral prompt, no edit", "control"),
    Method("fitted_gold", "positive control: fitted on gold pairs", "ceiling", labels="train"),
)

