"""The edit at work: decoding with the hook against decoding without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chameleon_lib.backbones import HFBackbone, PreparedBatches
from chameleon_lib.bench.models import FAMILIES, embedded_backbone, paired_prompts, random_edit
from chameleon_lib.bench.rows import Goal, Row
from chameleon_lib.bench.timing import Clock, run_chain
from chameleon_lib.core.edit import Edit

_OVERHEAD = Goal(1.05, at_least=False)
_NO_TOKEN = -1


@dataclass(frozen=True)
class DecodeWork:
    """Sizes.

    Attributes:
        rows: Rows of the one batch.
        tokens: New tokens per row; every row decodes all of them.
        history: History items per prompt.
        rounds: Paired rounds.
        families: Embedded models.
    """

    rows: int = 64
    tokens: int = 32
    history: int = 10
    rounds: int = 31
    families: Sequence[str] = FAMILIES


def measure(work: DecodeWork, clock: Clock) -> list[Row]:
    """Two rows per family: a shared edit and one edit per row."""
    rows: list[Row] = []
    for family in work.families:
        rows += _measure(*embedded_backbone(family), work, clock)
    return rows


def _measure(backbone: HFBackbone, model: str, work: DecodeWork, clock: Clock) -> list[Row]:
    # Rows that stop early would make edited and unedited runs differ in work; none stops now.
    backbone.codec.eos_ids = (_NO_TOKEN,)
    prompts, groups = paired_prompts(work.rows, work.history)
    prepared = backbone.prepare(prompts, groups=groups)
    variants: dict[str, Callable[[int], Any]] = {
        "unedited": _decode(backbone, prepared, work, None),
        "shared edit": _decode(backbone, prepared, work, random_edit(backbone)),
        "per-row edit": _decode(backbone, prepared, work, random_edit(backbone, work.rows)),
    }
    rounds = run_chain(f"edit, {backbone.family}", "unedited", variants, work.rounds, clock)
    plain = [texts for texts, _ in rounds.results["unedited"]]
    restored = all(texts == plain[0] for texts in plain)
    expected = {layer: work.rows * work.tokens for layer in range(backbone.n_layers)}
    table = []
    for name in ("shared edit", "per-row edit"):
        full = all(tokens == expected for _, tokens in rounds.results[name])
        table.append(
            Row(
                f"Decoding with a {name}: time",
                f"{model}; {work.rows} rows, {work.tokens} new tokens from a prepared prefix, "
                f"all {backbone.n_layers} layers edited",
                "the same decoding, unedited",
                rounds.ratios[name],
                _OVERHEAD,
                restored and full,
                f"every token of every row {'was' if full else 'was not'} edited; unedited texts "
                f"{'stay' if restored else 'do not stay'} the same between edited runs",
            )
        )
    return table


def _decode(
    backbone: HFBackbone, prepared: PreparedBatches, work: DecodeWork, edit: Edit | None
) -> Callable[[int], Any]:
    def run(_number: int) -> tuple[list[str], dict[int, int]]:
        texts = backbone.generate_prepared(prepared, max_new_tokens=work.tokens, edit=edit)
        return texts, dict(backbone.usage.tokens)

    return run
