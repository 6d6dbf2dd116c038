"""Reading the site outputs of every decoder layer in one forward pass (section 3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from chameleon_lib.backbones.batching import plan_batches
from chameleon_lib.errors import UserError

if TYPE_CHECKING:
    from chameleon_lib.backbones.backbone import HFBackbone
    from chameleon_lib.backbones.prepared import ReadInputs


def read(
    backbone: HFBackbone,
    contexts: Sequence[str],
    answers: Sequence[str],
    pooling: str,
    site: str,
) -> Tensor:
    """Pooled site outputs ``(n_layers, B, width)``, float32, CPU, in the caller's order."""
    if pooling not in ("last", "mean_answer", "mean_all"):
        raise UserError(f"embed_pooling is '{pooling}'; use last, mean_answer or mean_all.")
    if len(contexts) != len(answers):
        raise UserError(f"{len(contexts)} contexts but {len(answers)} answers; give one each.")
    modules = backbone.sites(site)
    if not contexts:
        return torch.zeros(len(modules), 0, backbone.d)
    before = backbone.codec.prompts(contexts)
    after = backbone.codec.answers(answers)
    if pooling == "mean_answer" and not all(after):
        row = [bool(ids) for ids in after].index(False)
        raise UserError(f"Answer {row} is empty, so embed_pooling=mean_answer has nothing to read.")
    lengths = [len(ids) + len(answer) for ids, answer in zip(before, after, strict=True)]
    for row, length in enumerate(lengths):
        backbone.check_length(length, 0, f"Pair text {row}")
    pooled: Tensor | None = None
    with torch.inference_mode():
        for rows in plan_batches(lengths):
            batch = backbone.read_inputs(
                [before[row] for row in rows], [after[row] for row in rows]
            )
            values = _read_batch(backbone, modules, batch, pooling).cpu()  # (n_layers, b, width)
            if pooled is None:
                pooled = torch.empty(len(modules), len(lengths), values.shape[-1])
            pooled[:, rows] = values
    assert pooled is not None
    # Leave inference mode behind: callers fit probes on these with gradients.
    return pooled.clone()


def _read_batch(
    backbone: HFBackbone, modules: Sequence[nn.Module], batch: ReadInputs, pooling: str
) -> Tensor:
    weights = _weights(batch, pooling).to(backbone.device)  # (b, T)
    seen: list[Tensor | None] = [None] * len(modules)

    def hook_of(layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            out: Tensor = output[0] if isinstance(output, tuple) else output
            out = out.reshape(*weights.shape, -1).float()  # OPT joins rows and tokens
            own = weights.to(out.device)  # layers of a large model lie on several devices
            if pooling == "last":
                rows = torch.arange(len(own), device=out.device)
                values = out[rows, own.argmax(dim=1)]
            else:
                values = (own[..., None] * out).sum(dim=1)
            seen[layer] = values.to(backbone.device)

        return hook

    handles: list[RemovableHandle] = []
    try:
        for layer, module in enumerate(modules):
            handles.append(module.register_forward_hook(hook_of(layer)))
        backbone.read(batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    read_layers = [values for values in seen if values is not None]
    if len(read_layers) != len(modules):
        raise RuntimeError("A site was not reached by the forward pass; the site table is wrong.")
    return torch.stack(read_layers)


def _weights(batch: ReadInputs, pooling: str) -> Tensor:
    """Pooling weights ``(b, T)`` that sum to 1 per row."""
    ends = torch.tensor(batch.lengths)[:, None]
    counts = torch.tensor(batch.answer_lengths)[:, None]
    places = torch.arange(int(ends.max()))[None]
    if pooling == "last":
        inside = places == ends - 1
    elif pooling == "mean_answer":
        inside = (places < ends) & (places >= ends - counts)
    else:
        inside = places < ends
    weights = inside.float()
    return weights / weights.sum(dim=1, keepdim=True)
