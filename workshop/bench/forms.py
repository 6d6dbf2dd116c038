"""Every form of one edit at decode, side by side: hook, rows of many users, adapters, weights.

All variants decode from the same unedited prefix and edit the last prompt token and the new ones,
so they do the same work and must write the same texts. Forms that live in the model (adapters,
merged weights) have a copy of the model each, so that no round pays for loading.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit, apply_edit
from chameleon_lib.demo import FAMILIES
from chameleon_lib.serving.adapter import adapters, write_adapter
from chameleon_lib.serving.factors import compile_edit
from chameleon_lib.serving.merged import merged_weights
from chameleon_lib.serving.mixed import MixedBatch
from workshop.bench.measure import Chain, Clock, Goal, Row, run_chain
from workshop.bench.models import embedded_backbone, paired_prompts, random_edit

PLAIN, AGAIN, HOOK = "no edit", "no edit, once more", "hook, rank-2 form"
MERGED = "merged weights"
PLAIN_LIBRARY, MIXED = "generate of transformers, no edit", "PEFT, an adapter per row"
_ROWS_GOAL, _HOOK_GOAL = Goal(1.10, at_least=False), Goal(1.05, at_least=False)
Decode = Callable[[int], list[str]]  # round number -> the texts
_NO_TOKEN = -1


@dataclass(frozen=True)
class FormsWork:
    """The sizes of a decode, and how many different edits it holds.

    Attributes:
        rows: Rows of the one batch.
        tokens: New tokens per row; every row decodes all of them.
        history: History items per prompt.
        rounds: Paired rounds.
        families: Embedded models.
        users: Different edits in a batch of per-row edits; no more than ``rows``.
        adapters: Different PEFT adapters in a mixed batch.
    """

    rows: int = 64
    tokens: int = 32
    history: int = 10
    rounds: int = 11
    families: Sequence[str] = FAMILIES
    users: tuple[int, ...] = (1, 8, 64)
    adapters: int = 8


def measure(work: FormsWork, clock: Clock) -> list[Row]:
    """One row per family and form."""
    models = [embedded_backbone(family) for family in work.families]
    return [row for model in models for row in _measure(*model, work, clock)]


def _measure(backbone: HFBackbone, model: str, work: FormsWork, clock: Clock) -> list[Row]:
    # Rows that stop early would make the variants differ in work; none stops now.
    backbone.codec.eos_ids = (_NO_TOKEN,)
    logging.set_verbosity_error()  # which transformers would say again in every round
    prompts, groups = paired_prompts(work.rows, work.history)
    per_row = random_edit(backbone, max(work.users))
    users = [_user(per_row, number) for number in range(max(work.users))]
    shared = users[0]
    bench = DecodeBench(backbone, prompts, groups, work)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        variants: dict[str, Decode] = {
            PLAIN: bench.decode(),
            "hook, the paper's formula": bench.decode(around=lambda: formula(backbone, shared)),
            HOOK: bench.decode(edit=shared),
        }
        for count in work.users:
            edit = Edit.stack([users[row % count] for row in range(work.rows)])
            variants[_per_row(count)] = bench.decode(edit=edit)
        path = Path(folder)
        single, merged, mixed, bare = (copy.deepcopy(backbone) for _ in range(4))
        variants["PEFT adapter"] = bench.decode(single)
        stack.enter_context(adapters(single, [_written(path / "u0", shared, single)]))
        variants[MERGED] = bench.decode(merged)
        stack.enter_context(merged_weights(replace(shared, positions="all"), merged))
        loaded = {
            f"u{number}": _written(path / f"u{number}", users[number % len(users)], mixed)
            for number in range(1, work.adapters + 1)
        }
        wrapped = stack.enter_context(adapters(mixed, list(loaded.values())))
        batch = MixedBatch(mixed, wrapped, list(loaded))
        plain = MixedBatch(bare, WithoutAdapters(bare.model), [])
        names = [f"u{row % work.adapters + 1}" for row in range(work.rows)]
        nobody: list[str | None] = [None] * work.rows

        def mixed_batch(_: int) -> list[str]:
            return batch.generate(prompts, names, max_new_tokens=work.tokens)

        def plain_batch(_: int) -> list[str]:
            return plain.generate(prompts, nobody, max_new_tokens=work.tokens)

        variants[AGAIN] = bench.decode()
        label = f"forms, {backbone.family}"
        forms = run_chain(label, PLAIN, variants, work.rounds, clock)
        library_variants: dict[str, Decode] = {PLAIN_LIBRARY: plain_batch, MIXED: mixed_batch}
        library = run_chain(
            f"{label}, library", PLAIN_LIBRARY, library_variants, work.rounds, clock
        )
        again = {AGAIN: forms.ratios.pop(AGAIN)}  # last in the table
        rounds = Chain(forms.ratios | library.ratios | again, forms.results | library.results)
        expected = {name: (rounds.results[HOOK][-1], "the hook") for name in rounds.ratios}
        everywhere = [replace(users[int(name[1:]) % len(users)], positions="all") for name in names]
        mixed_hook = backbone.generate(
            prompts, max_new_tokens=work.tokens, edit=Edit.stack(everywhere)
        )
        expected[MIXED] = (mixed_hook, "the per-row hook of all tokens")
        expected[AGAIN] = (rounds.results[PLAIN][-1], "no edit")
    for count in work.users:
        own = [users[row % count] for row in range(work.rows)]
        if count == max(work.users):
            expected[_per_row(count)] = (bench.singles(own), f"{work.rows} single runs")
        else:
            expected[_per_row(count)] = (bench.apart(own), f"{count} batches of one user each")
    return _rows(rounds, expected, backbone, model, work)


def _user(edit: Edit, number: int) -> Edit:
    """One row of a per-row edit as a shared edit."""
    return replace(edit, theta_p=edit.theta_p[:, number], theta_n=edit.theta_n[:, number])


def _per_row(count: int) -> str:
    return f"one edit per row, {count} user{'' if count == 1 else 's'}"


def _written(folder: Path, edit: Edit, backbone: HFBackbone) -> Path:
    write_adapter(folder, compile_edit(edit, backbone).updates, backbone, base_model="bench")
    return folder


def _rows(
    rounds: Chain,
    expected: dict[str, tuple[list[str], str]],
    backbone: HFBackbone,
    model: str,
    work: FormsWork,
) -> list[Row]:
    setting = (
        f"{model}; {work.rows} rows, {work.tokens} new tokens, all {backbone.n_layers} layers "
        "edited"
    )
    base = rounds.results[PLAIN][-1]
    # Merged weights cost nothing: at most what no edit seems to cost beside itself.
    noise = Goal(max(1.0, rounds.ratios[AGAIN].high), at_least=False)
    goals = {HOOK: _HOOK_GOAL, _per_row(max(work.users)): _ROWS_GOAL, MERGED: noise}
    rows = []
    for name, ratio in rounds.ratios.items():
        wanted, whose = expected[name]
        got = rounds.results[name][-1]
        equal = sum(a == b for a, b in zip(got, wanted, strict=True))
        differ = sum(a != b for a, b in zip(wanted, base, strict=True))
        below = PLAIN_LIBRARY if name == MIXED else PLAIN
        title = f"{name}, {work.adapters} adapters" if name == MIXED else name
        rows.append(
            Row(
                f"Decode under an edit, {title}: time",
                setting + ("; prompts read as well" if name == MIXED else ""),
                below,
                ratio,
                goals.get(name),
                equal == work.rows and (differ > 0 or name == AGAIN),
                f"{equal} of {work.rows} texts are those of {whose} ({differ} differ from the "
                "unedited)",
            )
        )
    return rows


class DecodeBench:
    """The decoding that all variants share."""

    def __init__(
        self, backbone: HFBackbone, prompts: list[str], groups: list[int], work: FormsWork
    ) -> None:
        self.backbone, self.prompts, self.groups, self.work = backbone, prompts, groups, work

    def decode(
        self,
        backbone: HFBackbone | None = None,
        edit: Edit | None = None,
        around: Callable[[], Any] | None = None,
    ) -> Decode:
        """A variant; the prefix is read now, before an adapter or merged weights are put in."""
        own = backbone or self.backbone
        prepared = own.prepare(self.prompts, groups=self.groups)

        def run(_: int) -> list[str]:
            with ExitStack() as stack:
                if around is not None:
                    stack.enter_context(around())
                return own.generate_prepared(prepared, max_new_tokens=self.work.tokens, edit=edit)

        return run

    def apart(self, edits: Sequence[Edit]) -> list[str]:
        """Every row out of a batch in which all rows have its edit, untimed."""
        texts = {id(edit): self.decode(edit=edit)(0) for edit in {id(e): e for e in edits}.values()}
        return [texts[id(edit)][row] for row, edit in enumerate(edits)]

    def singles(self, edits: Sequence[Edit]) -> list[str]:
        """Every row by itself, untimed."""
        tokens = self.work.tokens
        return [
            self.backbone.generate([prompt], max_new_tokens=tokens, edit=edit)[0]
            for prompt, edit in zip(self.prompts, edits, strict=True)
        ]


@contextmanager
def formula(backbone: HFBackbone, edit: Edit) -> Iterator[None]:
    """Plain forward hooks with the edit as the paper writes it: what a short script would do."""

    def hook_of(row: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return apply_edit(
                output, edit.theta_p[row], edit.theta_n[row],
                alpha_p=edit.alpha_p, alpha_n=edit.alpha_n, order=edit.order,
            )  # fmt: skip

        return hook

    sites = backbone.sites(edit.site)
    handles = [
        sites[layer].register_forward_hook(hook_of(row)) for row, layer in enumerate(edit.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class WithoutAdapters:
    """A bare model under the call that PEFT's takes, so that both sides run the same lines."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def generate(self, **inputs: Any) -> Any:
        del inputs["adapter_names"]
        return self.model.generate(**inputs)
