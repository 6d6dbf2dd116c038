"""Decoding from one unedited prefix, in as many ways as an edit can be put into a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.bench.edit import DecodeWork
from chameleon_lib.core.edit import Edit, apply_edit

Decode = Callable[[int], list[str]]  # round number -> the texts


class DecodeBench:
    """The decoding that all variants share."""

    def __init__(
        self, backbone: HFBackbone, prompts: list[str], groups: list[int], work: DecodeWork
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
