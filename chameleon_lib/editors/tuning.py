"""FT-L and FT-M: fine-tuning of one MLP's down projection, on one question and its answer.

They differ in the loss alone. FT-L asks all tokens of the answer of the prompt's last place; FT-M
is ordinary teacher forcing. Source: arXiv 2512.13676.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.editors.changes import Change
from chameleon_lib.editors.editor import Editor
from chameleon_lib.editors.released import OURS, Released
from chameleon_lib.editors.request import Request
from chameleon_lib.editors.rome import kept_weight
from chameleon_lib.editors.sites import site_of
from chameleon_lib.editors.tokens import (
    Asked,
    asked,
    forced_loss,
    last_token_loss,
    read_once,
    wide,
)
from chameleon_lib.editors.undo import Trace


class Tuned(Editor):
    """What FT-L and FT-M share.

    Args:
        backbone: The model.
        layer: The edited layer; the paper's, or as deep, if None.
        steps: Updates at most.
        lr: Of Adam; every step moves a weight by about as much.
        clamp: No entry of the weight moves farther than this; the paper's bound for Mistral is
            5e-5, and there is none for other models.
        stop: Loss at which the fit ends, in nats.
        released: Defects of the released code to repeat.
    """

    def __init__(
        self,
        backbone: HFBackbone,
        *,
        layer: int | None = None,
        steps: int = 25,
        lr: float = 5e-4,
        clamp: float | None = None,
        stop: float = 1e-2,
        released: Released = OURS,
    ) -> None:
        super().__init__(backbone)
        self.site = site_of(backbone, "tuned", layer)
        self.steps, self.lr, self.clamp, self.stop = steps, lr, clamp, stop
        self.released = released

    @abstractmethod
    def _loss(self, one: Asked) -> Tensor:
        """What the fit brings down: a scalar in nats, for one request."""

    def _asked(self, request: Request) -> Asked:
        return asked(self.backbone, request)

    def _opened(self, fits: int) -> Callable[[], None]:  # noqa: ARG002  (LoRA counts them)
        self._before = wide(self.site.weight.detach()).clone()
        return kept_weight(self.site)

    def _written(self) -> list[Change]:
        return [Change(self.site.module_name, wide(self.site.weight.detach()) - self._before)]

    def _fit(self, requests: Sequence[Request]) -> Trace:
        started = perf_counter()
        rows = [self._asked(request) for request in requests]
        weight = self.site.module.weight
        # In the precision of the fit; the model computes with what is left of it in its own.
        first = weight.detach().float().clone()
        now = first.clone().requires_grad_()
        optimizer = torch.optim.Adam([now], lr=self.lr, fused=True)
        losses, norms = [], []
        weight.requires_grad_(True)
        try:
            with read_once(self.backbone, self.site.layer) as of_row:
                for step in range(self.steps + 1):
                    total = torch.zeros((), device=self.backbone.device)
                    gradient = torch.zeros_like(first)
                    for at, row in enumerate(rows):
                        of_row(at)
                        with torch.enable_grad():
                            loss = self._loss(row) / len(rows)
                            (part,) = torch.autograd.grad(loss, [weight])
                        total, gradient = total + loss.detach(), gradient + part.float()
                    losses.append(float(total))
                    if losses[-1] < self.stop or step == self.steps:
                        break
                    now.grad = gradient
                    optimizer.step()
                    with torch.no_grad():
                        if self.clamp is not None:
                            now.copy_(first + (now - first).clamp(-self.clamp, self.clamp))
                        weight.copy_(now)
                        norms.append(float((now - first).norm()))
        finally:
            weight.requires_grad_(False)
        limit = float("inf")
        if self.clamp is not None:
            limit = self.clamp * weight.numel() ** 0.5
        return Trace(
            self.name, tuple(losses), tuple(norms), limit, len(norms), perf_counter() - started,
            (self.site.name,), weight.numel() * weight.element_size(), weight.numel(),
        )  # fmt: skip


class FTM(Tuned):
    """Fine-tuning with teacher forcing; see the module."""

    name = "FT-M"

    def _loss(self, one: Asked) -> Tensor:
        return forced_loss(self.backbone, one)


class FTL(Tuned):
    """Fine-tuning at the prompt's last place; see the module."""

    name = "FT-L"

    def _loss(self, one: Asked) -> Tensor:
        return last_token_loss(self.backbone, one)

    def _asked(self, request: Request) -> Asked:
        found = asked(self.backbone, request)
        if not self.released.special_tokens:
            return found
        marked = self.backbone.codec.tokenizer(request.target, add_special_tokens=True).input_ids
        return Asked(found.prompt, list(marked), found.at)
