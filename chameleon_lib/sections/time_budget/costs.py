"""What a method of figure 4 costs: its work in tokens, counted by what it really read and wrote.

The formula that makes FLOPs of it is that of :mod:`chameleon_lib.kit.flops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chameleon_lib.baselines import TrainLog
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.preferences import PreferencePair, PreparedUser, pair_texts
from chameleon_lib.kit.flops import Tokens, Weights, Work
from chameleon_lib.lamp.prompts import answer_prompt, insight_prompt, query_line
from chameleon_lib.sections.study import Study


def weights_of(backbone: Any) -> Weights:
    """Count the weights of an ``HFBackbone``."""
    model = backbone.model
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight

    def size(module: Any) -> int:
        parts = {id(weight): weight.numel() for weight in module.parameters()}
        return sum(n for key, n in parts.items() if key not in (id(table), id(head)))

    if backbone.family == "decoder":
        every = size(model) + head.numel()
        return Weights(every, every, every)
    read, written = size(model.get_encoder()), size(model.get_decoder()) + head.numel()
    return Weights(read, written, read + written)


def tuning_work(log: TrainLog, family: str) -> Work:
    """Of a finished ALOE or DPO training; DPO's reference pass is in it."""
    forward, backward = Tokens(log.forward_tokens), Tokens(log.backward_tokens)
    if family != "decoder":
        # The reference reads every pair once, the training every pair equally often.
        answers = round(log.forward_tokens * log.trained_tokens / log.backward_tokens)
        forward = Tokens(log.forward_tokens - answers, answers)
        backward = Tokens(log.backward_tokens - log.trained_tokens, log.trained_tokens)
    return Work(forward, backward, log.trainable_params, added=log.params == "lora")


def fit_work(
    study: Study, contrasts: Sequence[Contrast], record: dict[str, Any], trainable: int
) -> Work:
    """Of a preference fit: prompts are read once, then answers alone pass through the model."""
    codec = _codec(study)
    prompts = codec.prompts(list(dict.fromkeys(contrast.prompt for contrast in contrasts)))
    based = [
        c.chosen for c in contrasts if c.rejected is not None or study.settings.fit_leash > 0
    ]
    base = sum(len(ids) + 1 for ids in codec.answers(based))
    learned = int(record["learned_tokens"])
    forward = Tokens(
        sum(len(ids) for ids in prompts), base + int(record["looked_tokens"]) + learned
    )
    return Work(forward, Tokens(0, learned), trainable, added=True)


def direction_work(study: Study, kept: Sequence[PreferencePair]) -> Work:
    """Of the paper's directions: activations of both texts of every pair, and the CCS probes.

    A probe costs four operations per weight, text and epoch (two forward, two for its gradient);
    the SVD is far below that and left out.
    """
    codec, settings = _codec(study), study.settings
    texts = [text for pair in kept for text in pair_texts(study.task, pair, settings)]
    read = sum(len(ids) for ids in codec.prompts([context for context, _ in texts]))
    written = sum(len(ids) + 1 for ids in codec.answers([answer for _, answer in texts]))
    probes = settings.ccs_epochs * settings.ccs_tries * study.backbone.n_layers
    return Work(Tokens(read, written), probes=4 * probes * len(texts) * study.backbone.d)


def generation_work(
    study: Study, users: Sequence[PreparedUser], pairs: Sequence[PreferencePair]
) -> Work:
    """Of the synthetic pairs themselves: both insights of every user, both answers to every query.

    Every prompt counts in full, also where the kit reads what two of them share only once.

    Args:
        study: Backbone, task and settings.
        users: At least the users of the pairs; all of their queries stand in ``pairs`` or not.
        pairs: The pairs that are asked for, unfiltered.
    """
    codec, settings = _codec(study), study.settings
    asked = {pair.query_id: pair for pair in pairs}
    owners = {pair.user_id for pair in pairs}
    prompts: list[str] = []
    written: list[str] = []
    for user in users:
        if user.user.id not in owners:
            continue
        both = (insight_prompt(study.task, user.items, "P"),
                insight_prompt(study.task, user.items, "N"))  # fmt: skip
        prompts += both
        written += [user.insight_p, user.insight_n]
        insights = user.insights_for(settings.insight_scope)
        for query, (p, n) in zip(user.user.queries, insights, strict=True):
            pair = asked.get(query.id)
            if pair is None:
                continue
            if settings.insight_scope == "query":
                prompts += [f"{text}\n{query_line(study.task, query.text)}" for text in both]
                written += [p, n]
            prompts += [
                answer_prompt(study.task, user.items, query.text, role="P", insight=p,
                              fix_typos=settings.prompts_fix_typos),
                answer_prompt(study.task, user.items, query.text, role="N", insight=n,
                              fix_typos=settings.prompts_fix_typos),
            ]  # fmt: skip
            written += [pair.answer_p, pair.answer_n]
    return Work(
        Tokens(
            sum(len(ids) for ids in codec.prompts(prompts)),
            sum(len(ids) + 1 for ids in codec.answers(written)),
        )
    )


def _codec(study: Study) -> Any:
    backbone: Any = study.backbone
    return backbone.codec
