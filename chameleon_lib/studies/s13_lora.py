"""Low-rank adapters of many users, or of one group, tuned and put to work in the same batches.

The rival of an edit, at the positions where the edit works: what is read before them stays the
frozen model's, so prompts are read once for all. Adapters sit beside the attention's query and
value projections, as in "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.batches import own_batches
from chameleon_lib.core.backbone import Prepared
from chameleon_lib.core.fitting import Contrast, PlainPrompts
from chameleon_lib.editors.changes import Change, answer_rows
from chameleon_lib.editors.sites import ATTENTION, check_family

RANK, SCALE, RATE = 4, 4.0, 5e-3


@dataclass(frozen=True, eq=False)
class Adapters:
    """Adapters of some users, or one for all.

    Attributes:
        down: Module → ``(U, rank, d_in)``; U is 1 where all rows share one.
        up: Module → ``(U, d_out, rank)``.
        off: Users whose adapter is not used.
    """

    down: dict[str, Tensor]
    up: dict[str, Tensor]
    off: frozenset[int] = frozenset()

    def rows(self, index: Sequence[int] | Tensor) -> Adapters:
        """The adapters of a batch with these users' rows."""
        at = torch.as_tensor(index, dtype=torch.long)
        if len(next(iter(self.down.values()))) == 1:
            at = torch.zeros_like(at)
        live = torch.tensor([int(one) not in self.off for one in at], dtype=torch.float32)
        return Adapters(
            {name: value[at] for name, value in self.down.items()},
            {name: value[at] * live[:, None, None] for name, value in self.up.items()},
        )

    def changes(self) -> list[list[Change]]:
        """Per user what is added to the weights; nothing where the adapter is not used."""
        return [
            [] if user in self.off
            else [Change(name, SCALE * self.up[name][user], self.down[name][user])
                  for name in self.down]
            for user in range(len(next(iter(self.down.values()))))
        ]  # fmt: skip

    def answers(
        self, backbone: HFBackbone, part: Prepared, rows: Sequence[int], limit: int
    ) -> list[str]:
        """Greedy answers to prompts that are read, every one under the adapter of its row's user.

        Args:
            part: The prompts.
            rows: User per prompt.
            limit: Tokens of an answer.
        """
        prompts: list[list[int]] = [[] for _ in rows]
        for batch in own_batches(part).batches:
            for at, ids in zip(batch.rows, batch.prompts, strict=True):
                prompts[at] = ids
        shared = len(next(iter(self.down.values()))) == 1
        owners = [0] * len(rows) if shared else list(rows)
        return answer_rows(backbone, prompts, owners, self.changes(), limit, frozen_prompts=True)


class Adapted:
    """Context manager: the adapters of a batch, one per row, are at work in the model."""

    def __init__(self, backbone: HFBackbone, adapters: Adapters) -> None:
        self.modules = {
            name: backbone.model.get_submodule(name) for name in adapters.down
        }
        self.adapters = adapters
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for name, module in self.modules.items():
            down, up = self.adapters.down[name], self.adapters.up[name]
            self.handles.append(module.register_forward_hook(_hook(down, up)))

    def __exit__(self, *_: object) -> None:
        while self.handles:
            self.handles.pop().remove()


def _hook(down: Tensor, up: Tensor) -> Any:
    def hook(_module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        x = inputs[0]  # (B, T, d_in)
        return output + SCALE * (x @ down.to(x).mT) @ up.to(x).mT

    return hook


def tune(
    backbone: HFBackbone,
    own: Sequence[Sequence[Contrast]],
    *,
    steps: int,
    shared: bool,
    batch: int = 128,
    seed: int = 0,
    prompts: PlainPrompts | None = None,
) -> Adapters:
    """Adapters that make the chosen answers likelier, per token.

    Args:
        own: Contrasts per user.
        steps: Of Adam: on all contrasts of every user where each has an adapter of their own, on a
            random ``batch`` of all of them where one is shared.
        shared: One adapter for all users, in place of one each.
        batch: Rows that are read at once.
        seed: Of the start and of the batches.
        prompts: Those of the contrasts and perhaps others, if somebody has read them.
    """
    family = check_family(backbone)
    named = {
        name: module
        for name, module in backbone.model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in ATTENTION[family]
    }
    generator, users = torch.Generator().manual_seed(seed), 1 if shared else len(own)
    down, up = {}, {}
    for name, module in named.items():
        start = torch.randn(1, RANK, module.in_features, generator=generator)
        down[name] = (start * module.in_features**-0.5).repeat(users, 1, 1).requires_grad_()
        up[name] = torch.zeros(users, module.out_features, RANK).requires_grad_()
    found = Adapters(down, up)
    flat = [(at, contrast) for at, contrasts in enumerate(own) for contrast in contrasts]
    if not flat:
        return Adapters({n: v.detach() for n, v in down.items()}, up)
    texts = [contrast.prompt for _, contrast in flat]
    prompts = prompts or PlainPrompts(backbone, texts)
    everything = list(range(len(flat)))
    optimizer = torch.optim.Adam([*down.values(), *up.values()], lr=RATE)
    counts = [len(contrasts) for contrasts in own]
    for _ in range(steps):
        optimizer.zero_grad()
        rows = everything
        if shared:
            rows = torch.randperm(len(flat), generator=generator)[:batch].tolist()
        for numbers, one in backbone.in_turn(prompts.chunk([texts[row] for row in rows])):
            some = [flat[rows[number]] for number in numbers]  # in the order of the batch
            owners = [owner for owner, _ in some]
            with Adapted(backbone, found.rows(owners)), torch.enable_grad():
                nats = -backbone.score(
                    one, [contrast.chosen for _, contrast in some], reduce="mean"
                )
            weights = [1 / (len(rows) if shared else counts[owner]) for owner in owners]
            (nats * torch.tensor(weights)).sum().backward()
        optimizer.step()
    return Adapters(
        {name: value.detach() for name, value in down.items()},
        {name: value.detach() for name, value in up.items()},
    )
