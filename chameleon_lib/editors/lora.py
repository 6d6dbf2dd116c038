"""LoRA through peft: low-rank adapters of the attention, tuned on one question and its answer.

Source: arXiv 2512.13676 for rank, rate and steps; "LoRA: Low-Rank Adaptation of Large Language
Models" (2021) for the method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.editors.changes import Change
from chameleon_lib.editors.editor import Editor
from chameleon_lib.editors.released import OURS, Released
from chameleon_lib.editors.request import Request
from chameleon_lib.editors.sites import ATTENTION, check_family
from chameleon_lib.editors.tokens import asked, forced_loss, wide
from chameleon_lib.editors.undo import Trace
from chameleon_lib.errors import UserError


class LoRA(Editor):
    """Adapters of all layers; requests that follow each other train one adapter further.

    Args:
        backbone: The model.
        rank: Of every adapter.
        alpha: Its strength is ``alpha / rank``.
        dropout: Of what an adapter reads, in the fit alone.
        steps: Updates; the released code never stops before.
        lr: Of Adam.
        stop: Loss at which the fit ends, in nats; 0 never does.
        seed: Of the adapters' start and of the dropout.
        released: Defects of the released code to repeat.
    """

    name = "LoRA"

    def __init__(
        self,
        backbone: HFBackbone,
        *,
        rank: int = 8,
        alpha: int = 32,
        dropout: float = 0.1,
        steps: int = 70,
        lr: float = 5e-3,
        stop: float = 0.0,
        seed: int = 0,
        released: Released = OURS,
    ) -> None:
        super().__init__(backbone)
        self.modules = ATTENTION[check_family(backbone)]
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.steps, self.lr, self.stop, self.seed = steps, lr, stop, seed
        self.released = released
        self._tuned: Any = None

    def _opened(self, fits: int) -> Callable[[], None]:
        from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model

        model = self.backbone.model
        if any("lora_" in name for name, _ in model.named_parameters()):
            raise UserError(
                f"{self.backbone.name} carries adapters already; undo that edit before the next."
            )
        names = [name for name, _ in model.named_modules()]
        if not any(name.endswith(f".{wanted}") for name in names for wanted in self.modules):
            raise UserError(
                f"{self.backbone.name} has no module {' or '.join(self.modules)}, which LoRA "
                "adapts; it is no usual model of its family."
            )
        shared: dict[str, Any] = {
            "lora_alpha": self.alpha, "lora_dropout": self.dropout,
            "target_modules": list(self.modules), "fan_in_fan_out": self.modules == ("c_attn",),
        }  # fmt: skip
        config: Any
        if self.released.adalora:
            config = AdaLoraConfig(init_r=12, total_step=self.steps * fits + 1, **shared)
        else:
            config = LoraConfig(r=self.rank, **shared)
        # peft marks what it touches; a restored model has none of these marks.
        marks = ("peft_config", "_hf_peft_config_loaded", "active_peft_config")
        before = {name: model.__dict__[name] for name in marks if name in model.__dict__}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            tuned = get_peft_model(model, config)
        assert isinstance(tuned, PeftModel)
        model.eval()
        self._tuned = tuned

        def put_back() -> None:
            tuned.unload()
            for name in marks:
                model.__dict__.pop(name, None)
            model.__dict__.update(before)
            model.eval().requires_grad_(False)

        return put_back

    def _written(self) -> list[Change]:
        from peft.tuners.lora import LoraLayer

        found = []
        tuned = {
            name: module
            for name, module in self._tuned.base_model.model.named_modules()
            if isinstance(module, LoraLayer)
        }
        module: Any
        for name, module in tuned.items():
            (key,) = module.active_adapters
            if self.released.adalora:  # its factors are kept apart from their singular values
                matrix = module.get_delta_weight(key).detach()
                fan = getattr(module, "fan_in_fan_out", False)
                found.append(Change(name, wide(matrix.T if fan else matrix).clone()))
                continue
            left = module.lora_B[key].weight.detach() * module.scaling[key]
            found.append(Change(name, wide(left), wide(module.lora_A[key].weight.detach().clone())))
        return found

    def _fit(self, requests: Sequence[Request]) -> Trace:
        started = perf_counter()
        rows = [asked(self.backbone, request) for request in requests]
        named = {n: w for n, w in self._tuned.named_parameters() if w.requires_grad}
        weights = list(named.values())
        optimizer = torch.optim.Adam(weights, lr=self.lr)
        drops = [m for n, m in self._tuned.named_modules() if "lora_dropout" in n]
        losses, norms = [], []
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            for module in drops:
                module.train()
            try:
                for _ in range(self.steps):
                    loss = torch.stack([forced_loss(self.backbone, row) for row in rows]).mean()
                    losses.append(float(loss.detach()))
                    if losses[-1] < self.stop:
                        break
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    with torch.no_grad():
                        norms.append(float(torch.stack([w.norm() for w in weights]).norm()))
            finally:
                for module in drops:
                    module.eval()
        for weight in weights:
            weight.grad = None
        return Trace(
            self.name, tuple(losses), tuple(norms), float("inf"), len(norms),
            perf_counter() - started, tuple(named),
            sum(w.numel() * w.element_size() for w in weights), sum(w.numel() for w in weights),
        )  # fmt: skip
