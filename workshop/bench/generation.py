"""Generation: batches with shared prefixes against one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.task import Task, get_task
from chameleon_lib.demo import FAMILIES
from workshop.bench.measure import Clock, Goal, Row, run_rounds
from workshop.bench.models import embedded_backbone, paired_prompts

_SPEEDUP = Goal(5.0, at_least=True)


@dataclass(frozen=True)
class GenerationWork:
    """Sizes.

    Attributes:
        prompts: Prompts, two per user.
        history: History items per prompt.
        rounds: Paired rounds.
        families: Embedded models.
        tasks: Answers of one label, where reading the prompt is nearly all the work, and whole
            tweets, where writing is.
    """

    prompts: int = 128
    history: int = 10
    rounds: int = 5
    families: Sequence[str] = FAMILIES
    tasks: Sequence[str] = ("LaMP_2", "LaMP_7")


def measure(work: GenerationWork, clock: Clock) -> list[Row]:
    """Two rows per family and task: against this library and `transformers`, prompt by prompt."""
    rows: list[Row] = []
    for family in work.families:
        for task in work.tasks:
            rows += _measure(*embedded_backbone(family), get_task(task), work, clock)
    return rows


def plain_generate(backbone: HFBackbone, prompt: str, limit: int) -> str:
    """One greedy answer as most scripts get it: tokenise, `model.generate`, decode."""
    codec = backbone.codec
    ids = torch.tensor(codec.prompts([prompt]), device=backbone.device)  # (1, P)
    with torch.inference_mode():
        tokens: Tensor = backbone.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=list(codec.eos_ids),
            pad_token_id=codec.pad_id,
        )
    # Decoders return the prompt as well, encoder-decoders their start token.
    start = ids.shape[1] if backbone.family == "decoder" else 1
    return codec.decode(tokens[:, start:])[0]


def _measure(
    backbone: HFBackbone, model: str, task: Task, work: GenerationWork, clock: Clock
) -> list[Row]:
    prompts, groups = paired_prompts(work.prompts, work.history, task)
    limit = task.max_new_tokens
    together, alone, plain = "batched", "one by one", "plain one by one"
    rounds = run_rounds(
        f"generation, {backbone.family}, {task.name}",
        {
            plain: lambda _: [plain_generate(backbone, prompt, limit) for prompt in prompts],
            together: lambda _: backbone.generate(prompts, max_new_tokens=limit, groups=groups),
            alone: lambda _: [
                backbone.generate([prompt], max_new_tokens=limit)[0] for prompt in prompts
            ],
        },
        work.rounds,
        clock,
    )
    got = rounds.results[together][-1]
    rows = []
    for name, reference, goal in (
        (alone, "one prompt at a time, same library", _SPEEDUP),
        (plain, "one prompt at a time, generate of transformers", None),
    ):
        wanted = rounds.results[name][-1]
        equal = sum(left == right for left, right in zip(wanted, got, strict=True))
        rows.append(
            Row(
                "Generation, batched and grouped: speed-up",
                f"{model}; {task.name}, {work.prompts} prompts (P and N per user), {work.history} "
                f"history items, at most {limit} new tokens",
                reference,
                rounds.ratio(name, together),
                goal,
                equal == len(prompts),
                f"{equal} of {len(prompts)} texts are equal ({len(set(wanted))} distinct)",
            )
        )
    return rows
