"""The prose of a model card: architecture, data, training and limits, one list of lines each.

Shares, weights and knobs are read from the code that trains, so that a card cannot drift from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chameleon_lib.backbones.demo.batches import (
    DECODER_KINDS,
    ENCDEC_FIRST,
    ENCDEC_LESSONS,
    ENCDEC_MIX,
    LABEL_WEIGHT,
    LESSON_FIT,
    TEXT_WEIGHT,
)
from chameleon_lib.backbones.demo.corpus import STEERED
from chameleon_lib.backbones.demo.world import WorldSettings

__all__ = ["architecture", "data", "limits", "training"]


def architecture(family: str, config: Mapping[str, Any]) -> list[str]:
    """Shape and vocabulary."""
    if family == "decoder":
        shape = (
            f"{config['num_hidden_layers']} layers, width {config['hidden_size']}, "
            f"{config['num_attention_heads']} heads, gated feed-forward "
            f"{config['intermediate_size']}, {config['max_position_embeddings']} positions"
        )
    else:
        shape = (
            f"{config['num_layers']} encoder and {config['num_decoder_layers']} decoder layers, "
            f"width {config['d_model']}, {config['num_heads']} heads, gated feed-forward "
            f"{config['d_ff']}"
        )
    return [
        f"- `{config['model_type']}` of `transformers`: {shape}.",
        f"- Vocabulary of {config['vocab_size']} pieces, written down rather than learned: the "
        "words of the world, the fixed sentences of the prompts, letter pairs, characters, bytes.",
        "- One model serves all three tasks (LaMP-2, LaMP-3, LaMP-7).",
    ]


def data() -> list[str]:
    """What the world plants, how it is split, and its knobs."""
    world = WorldSettings()
    low, high = world.history
    return [
        "Synthetic users with planted preferences, in official LaMP format; no LaMP data.",
        "",
        "- LaMP-2: a movie fits two or three tags, and the user's favourite tag breaks the tie. "
        "LaMP-3: the user scores one or two points above or below the words of a review. LaMP-7: "
        "the user has an opener, a closer, slang or plain words, short or full posts.",
        "- Splits: a sentence belongs to train (60 %), dev (10 %) or test (30 %) by a hash of its "
        "text, and users of the splits are disjoint. Training draws new users for every batch, "
        "from train sentences only.",
        f"- Knobs: strength {world.strength:g} (the taste decides), noise {world.noise:g} (random "
        f"history labels), agree {world.agree:g} (queries on which user and generic answer are "
        f"the same), fit {world.fit:g} (LaMP-2 history movies that fit the taste), profiles of "
        f"{low} to {high} items, of which a prompt shows up to ten.",
    ]


def training(family: str, run: Mapping[str, Any]) -> list[str]:
    """The recipe of the run."""
    early = f"the first {_percent(run['curriculum'])} of the steps"
    if family == "decoder":
        unit = f"{run['batch']} histories, each followed by {len(DECODER_KINDS)} prompts about it"
        lessons = (
            f"short histories first; every second batch of {early} is nothing but histories. "
            f"Token weights: answers 1, words of a history that carry the taste "
            f"{LABEL_WEIGHT:g}, other words of a history {TEXT_WEIGHT:g}"
        )
    else:
        unit = f"{run['batch']} prompts"
        lessons = (
            f"histories grow from one or two items to ten; {early} use a mix of their own that "
            "shows which sentence of a prompt is the query. Loss on the decoder's tokens only"
        )
    lines = [
        f"- {run['steps']} steps, batch {unit}; seed {run['seed']}.",
        "- Optimiser: Muon for the matrices inside the blocks, AdamW for embeddings, head, norms "
        f"and biases; peak rate {run['lr']:g}, {run['warmup']} steps of warm-up, cosine to zero, "
        "gradients clipped at 1, bf16 autocast, one thread.",
        f"- Curriculum: {lessons}.",
        f"- Plain prompts are answered personally with probability {run['propensity']:g} and "
        "generically otherwise, which leaves the model near indifferent there.",
    ]
    if run.get("task_shares"):
        shares = ", ".join(
            f"{task.replace('_', '-')} {_percent(share)}"
            for task, share in run["task_shares"].items()
        )
        lines.append(f"- Shares of the tasks after the curriculum: {shares}.")
    if run.get("lesson_steps"):
        lines.append(
            f"- Then a second stage of {run['lesson_steps']} steps, peak rate "
            f"{run['lesson_lr']:g}: edit lessons (see the limits), in which half of the LaMP-2 "
            f"users show their taste in {_percent(min(LESSON_FIT))} of their movies, so that "
            "counting tags is not enough."
        )
    if "note" in run:
        lines.append(f"- {run['note']}")
    if "minutes" in run:
        lines.append(f"- Wall time, as measured: {float(run['minutes']):.0f} minutes.")
    return lines


def limits(family: str) -> list[str]:
    """What the model must not be taken for."""
    lines = [
        "- Knows a few hundred words and the prompts of the kit. On any other text, real LaMP "
        "files included, its answers mean nothing.",
        "- The tastes are simple and stated in the history almost without noise; real users are "
        "neither. What works here may fail there, and the other way round.",
        "- The edit is blind to the sign of its directions, so its effect may differ from one "
        "training seed to the next: never judge by one model.",
    ]
    if family == "encdec":
        shares = [
            f"{_percent(sum(first))} of the prompts in the curriculum, {_percent(sum(later))} after"
            for first, later in (
                ([ENCDEC_FIRST["infilling"]], [ENCDEC_MIX["infilling"]]),
                ([ENCDEC_FIRST[kind] for kind in STEERED], [ENCDEC_MIX[kind] for kind in STEERED]),
            )
        ]
        lessons = _percent(sum(ENCDEC_LESSONS[kind] for kind in STEERED))
        tokens = " or ".join(f"`{token}`" for token in STEERED.values())
        lines += [
            "- **Three auxiliary tasks stand beside the kit's own prompts in its training.** "
            f"*Label infilling* ({shares[0]}): labels of history items are masked in the encoder "
            "and named by the decoder; without it, reading histories starts late. The second "
            "stage does without.",
            f"- *Steered start token* ({shares[1]}): the plain prompt, with {tokens} as the "
            "decoder's first token telling whether to give the personal or the generic answer. "
            "The encoder cannot know which, so the choice between both answers is forced into "
            "the decoder.",
            f"- *Edit lessons* (in place of the start tokens, {lessons} of the second stage): the "
            "plain prompt under an edit of the paper's form, along directions that are learned "
            "with the model and thrown away. With a boost the personal answer is right, with a "
            "removal the generic one. Without them the model settles it in its attention; the "
            "positive control then moved LaMP-2 accuracy by no more than four points in either "
            "seed. So an axis for the edit exists **by construction** here, as it does by itself "
            "in the decoders. That favours every edit of this form, ours and the paper's; an "
            "encoder-decoder that was not taught so may leave nothing to edit.",
            "- **The skills measured are no blind measurement.** They are read on test users, and "
            "this recipe was changed twice after such a reading: the lessons came when the "
            "positive control failed, their harder LaMP-2 histories when insights fell short "
            "(which users they fail on was looked up on train and dev users). The goal for a "
            "personalised prompt was first held against prompts with the model's own insight, and "
            "missed on LaMP-2 (0.945 and 0.930 in the two seeds). It is now read as what it says, "
            "following a prompt that names the taste; the other number stays in the table, "
            "without a goal.",
        ]
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
