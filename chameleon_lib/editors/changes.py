"""What edits add to weights, and many users' edits at work in one batch.

A user's edit adds a matrix to one weight or to several. A module with the weight ``W + D`` says
``W x + D x``, so a batch whose every row gets the ``D`` of its own user answers as the edited
models would, one after another, and reads the model's weights once for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.batches import plan_batches
from chameleon_lib.backbones.prefix import Prefix

_FEWER = 0.75  # ended rows are left out once so few others remain: that copies keys and values


@dataclass(frozen=True, eq=False)
class Change:
    """What an edit adds to the weight of one module, in float32 at least.

    Attributes:
        module: Its full name.
        left: ``(d_out, r)``, or the whole matrix ``(d_out, d_in)`` where ``right`` is None.
        right: ``(r, d_in)``; the matrix is ``left @ right``.
    """

    module: str
    left: Tensor
    right: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """``(d_out, d_in)``."""
        return self.left if self.right is None else self.left @ self.right

    def of(self, inputs: Tensor) -> Tensor:
        """What is added to the module's output for ``inputs`` ``(..., d_in)``."""
        said = inputs.to(self.left.dtype)
        if self.right is not None:
            said = said @ self.right.T
        return (said @ self.left.T).to(inputs.dtype)


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """An edit of weights by itself, to be kept and put to work again without its editor.

    Attributes:
        editor: Name of the editor that wrote it.
        changes: One per module, at least one.
    """

    editor: str
    changes: tuple[Change, ...]

    @property
    def rank(self) -> int:
        """Largest rank of the changes; 0 where one of them is a whole matrix."""
        ranks = [0 if change.right is None else len(change.right) for change in self.changes]
        return 0 if 0 in ranks else max(ranks)

    @contextmanager
    def active(self, model: Any) -> Iterator[None]:
        """The model answers a single prompt as if its weights were changed, inside the block."""
        with _RowChanges(model, [self.changes]) as rows:
            rows.owners = [0]
            yield


class _RowChanges:
    """Adds to every row of a batch what its owner's changes say; active inside its block.

    Args:
        model: Whose modules are changed.
        changes: Per owner, in order; several of one module add up.

    Attributes:
        owners: Of the rows that run next, those of one owner side by side.
    """

    def __init__(self, model: Any, changes: Sequence[Sequence[Change]]) -> None:
        self.owners: list[int] = []
        self._handles: list[Any] = []
        self._modules: list[tuple[nn.Module, dict[int, list[Change]]]] = []
        for name in sorted({change.module for own in changes for change in own}):
            of_owner = {
                owner: [change for change in own if change.module == name]
                for owner, own in enumerate(changes)
            }
            self._modules.append((model.get_submodule(name), of_owner))

    def __enter__(self) -> _RowChanges:
        for module, of_owner in self._modules:

            def hook(
                _module: nn.Module,
                inputs: tuple[Tensor, ...],
                output: Tensor,
                of_owner: dict[int, list[Change]] = of_owner,
            ) -> Tensor:
                return output + self._added(inputs[0], of_owner)

            self._handles.append(module.register_forward_hook(hook))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _added(self, inputs: Tensor, of_owner: dict[int, list[Change]]) -> Tensor:
        runs = [(owner, len(list(rows))) for owner, rows in groupby(self.owners)]
        if len(inputs) != len(self.owners):  # the beginning that an owner's rows share, once each
            runs = [(owner, 1) for owner, _ in runs]
        parts = inputs.split([count for _, count in runs])
        added = []
        for (owner, _), part in zip(runs, parts, strict=True):
            own = [change.of(part) for change in of_owner[owner]]
            width = next(change.left for row in of_owner.values() for change in row).shape[0]
            nothing = part.new_zeros((*part.shape[:-1], width))
            added.append(sum(own, nothing) if len(own) != 1 else own[0])
        return torch.cat(added)


@torch.inference_mode()
def answer_rows(
    backbone: HFBackbone,
    prompts: Sequence[list[int]],
    owners: Sequence[int],
    changes: Sequence[Sequence[Change]],
    room: int,
    *,
    frozen_prompts: bool = False,
) -> list[str]:
    """Greedy answers of at most ``room`` tokens, every prompt under its owner's changes, stripped.

    Args:
        backbone: The model without any of the changes.
        prompts: Token ids.
        owners: Per prompt, a place in ``changes``.
        changes: Per owner.
        room: Tokens of an answer.
        frozen_prompts: Changes are at work from the last token of a prompt on, where edits of
            activations are; what stands before it is read by the model as it is.

    Raises:
        UserError: A prompt that leaves no room for its answer; none is cut.
    """
    for at, ids in enumerate(prompts):
        backbone.check_length(len(ids), room, f"Prompt {at}")
    answers = [""] * len(prompts)
    at_work = _RowChanges(backbone.model, changes)
    with backbone.lock:
        for rows in _batches([len(ids) for ids in prompts], owners, backbone.token_budget):
            at_work.owners = own = [owners[row] for row in rows]
            asked = [prompts[row] for row in rows]
            prefix = backbone.prefill(asked, own) if frozen_prompts else None
            with at_work as active:
                prefix = prefix or backbone.prefill(asked, own)
                said = backbone.codec.decode(_greedy(backbone, prefix, active, room))
            for row, text in zip(rows, said, strict=True):
                answers[row] = text
    return answers


def _batches(lengths: Sequence[int], owners: Sequence[int], token_budget: int) -> list[list[int]]:
    """Batches of one owner's rows side by side; prompts below half the longest are apart.

    A batch is as wide as its longest row, and every step looks at all of it: beside a talk of ten
    turns, a question would be read at the talk's price.
    """
    short = [row for row, length in enumerate(lengths) if 2 * length < max(lengths)]
    long = [row for row, length in enumerate(lengths) if 2 * length >= max(lengths)]
    return [
        [part[at] for at in batch]
        for part in (short, long)
        for batch in plan_batches(
            [lengths[row] for row in part],
            groups=[owners[row] for row in part],
            token_budget=token_budget,
        )
    ]


def _greedy(backbone: HFBackbone, prefix: Prefix, active: _RowChanges, room: int) -> Tensor:
    """Ids ``(B, room)`` after a prefix, filled with the end of an answer."""
    codec, device, count = backbone.codec, backbone.device, len(prefix.last)
    ends = torch.tensor(codec.eos_ids, device=device)
    out = torch.full((count, room), codec.eos_id, device=device)
    at, done = torch.arange(count, device=device), torch.zeros(count, dtype=torch.bool).to(device)
    cache, ids, positions = prefix.cache(), prefix.last, prefix.lengths[:, None]
    mask = torch.cat([prefix.mask, prefix.mask.new_ones(count, room)], dim=1)
    start = prefix.mask.shape[1]
    for step in range(room):
        seen = mask[:, : start + step + 1]
        logits = backbone.step(prefix, cache, ids, seen, positions, last_only=True)
        token = logits[:, -1].argmax(dim=-1).masked_fill(done, codec.eos_id)
        out[at, step], ids, positions = token, token[:, None], positions + 1
        done = done | torch.isin(token, ends)
        going = (~done).nonzero()[:, 0]
        if len(going) == 0:
            break
        if len(going) <= _FEWER * len(at):
            cache.batch_select_indices(going)
            prefix = prefix.take(going)
            at, done, ids = at[going], done[going], ids[going]
            positions, mask = positions[going], mask[going]
            active.owners = [active.owners[row] for row in going.tolist()]
    return out
