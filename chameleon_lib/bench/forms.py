"""Every form of one edit at decode, side by side: hook, rows of many users, adapters, weights.

All variants decode from the same unedited prefix and edit the last prompt token and the new ones,
so they do the same work and must write the same texts. Forms that live in the model (adapters,
merged weights) have a copy of the model each, so that no round pays for loading.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.utils import logging

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.bench.anchors import anchor_rows, steering_vectors_hooks
from chameleon_lib.bench.decoding import Decode, DecodeBench, WithoutAdapters, formula
from chameleon_lib.bench.edit import DecodeWork
from chameleon_lib.bench.models import embedded_backbone, paired_prompts, random_edit
from chameleon_lib.bench.rows import Goal, Row
from chameleon_lib.bench.timing import Chain, Clock, run_chain
from chameleon_lib.core.edit import Edit
from chameleon_lib.profiles.factors import compile_edit
from chameleon_lib.profiles.merged import merged_weights
from chameleon_lib.profiles.mixed import MixedBatch
from chameleon_lib.profiles.peft_adapter import adapters, write_adapter

PLAIN, AGAIN, HOOK = "no edit", "no edit, once more", "hook, rank-2 form"
MERGED = "merged weights"
PLAIN_LIBRARY, MIXED = "generate of transformers, no edit", "PEFT, an adapter per row"
STEERING = "steering-vectors, two operators"
_ROWS_GOAL = Goal(1.10, at_least=False)
_NO_TOKEN = -1


@dataclass(frozen=True)
class FormsWork(DecodeWork):
    """The sizes of a decode, and how many different edits it holds.

    Attributes:
        rounds: Paired rounds.
        users: Different edits in a batch of per-row edits; no more than ``rows``.
        adapters: Different PEFT adapters in a mixed batch.
    """

    rounds: int = 11
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
        stack.enter_context(adapters(single, {"u0": _written(path / "u0", shared, single)}))
        variants[MERGED] = bench.decode(merged)
        stack.enter_context(merged_weights(replace(shared, positions="all"), merged))
        found = steering_vectors_hooks(backbone, shared)
        if found is not None:
            variants[STEERING] = bench.decode(around=found)
        loaded = {
            f"u{number}": _written(path / f"u{number}", users[number % len(users)], mixed)
            for number in range(1, work.adapters + 1)
        }
        batch = MixedBatch(mixed, stack.enter_context(adapters(mixed, loaded)), list(loaded))
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
    # Merged weights are to cost nothing: no more than no edit can seem to cost beside itself.
    # Nobody asks merged weights to be faster than the unedited model.
    noise = Goal(max(1.0, rounds.ratios[AGAIN].high), at_least=False)
    goals = {_per_row(max(work.users)): _ROWS_GOAL, MERGED: noise}
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
    return rows + anchor_rows(setting, measured=STEERING in rounds.ratios)
