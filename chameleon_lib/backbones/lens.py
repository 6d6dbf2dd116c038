"""Logit lens: what a model would say next if it stopped after each decoder layer.

The state after a layer is put in the place of the state after the last one, and the model itself
does the rest: final norm, output head, and whatever scaling the family has. So no family needs a
table, and at the last layer the lens is the model's own answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chameleon_lib.backbones.batches import common_prefix
from chameleon_lib.backbones.hf import HFBackbone
from chameleon_lib.backbones.prefix import Prefix
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.errors import UserError


def first_difference(backbone: HFBackbone, first: str, second: str) -> tuple[list[int], int, int]:
    """Where two answers part.

    Returns:
        The tokens they begin with alike, and the next token of each; an answer that ends where the
        other goes on has the end of text there.

    Raises:
        UserError: The answers have the same tokens.
    """
    ends = [backbone.codec.eos_id]
    one, two = (tokens + ends for tokens in backbone.codec.answers([first, second]))
    at = common_prefix([one, two])
    if at == min(len(one), len(two)):
        raise UserError(f"Two different answers are needed to look between, not {first!r} twice.")
    return one[:at], one[at], two[at]


@torch.no_grad()
def logit_lens(
    backbone: HFBackbone, prompt: str, edit: AnyEdit | None = None, start: Sequence[int] = ()
) -> Tensor:
    """Log-probabilities of the next token, read after every decoder layer.

    Args:
        backbone: Any family that has edit sites.
        prompt: The prompt.
        edit: Shared edit; acts on the positions it names, as in an answer that is written.
        start: Tokens of the answer that are already there.

    Returns:
        ``(n_layers, V)`` float32 on the CPU, nats; row l is after layer l.

    Raises:
        UserError: An empty prompt, one that is too long, or a per-row edit.
    """
    if edit is not None and edit.per_row:
        raise UserError("The lens looks at one prompt; give it a shared edit.")
    (batch,) = backbone.prepare([prompt]).batches
    backbone.check_length(len(batch.prompts[0]), len(start) + 1, "The prompt")
    prefix = backbone.prefix_of(batch, edit)
    blocks = backbone.sites("block_out")
    states: dict[int, Tensor] = {}
    own = _next(backbone, prefix, start, edit, partial(_watched, blocks, states))
    rows = [
        # The edit is in the state already.
        _next(backbone, prefix, start, None, partial(_replaced, blocks[-1], states[layer]))
        for layer in range(len(blocks) - 1)
    ]
    return torch.stack([*rows, own]).float().cpu().log_softmax(dim=-1)


def _next(
    backbone: HFBackbone,
    prefix: Prefix,
    start: Sequence[int],
    edit: AnyEdit | None,
    hooked: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """Logits ``(V,)`` after prompt and start, with hooks that run after those of the edit."""
    more = torch.tensor([list(start)], dtype=torch.long, device=backbone.device)
    ids = torch.cat([prefix.last, more], dim=1)  # (1, q)
    mask = torch.cat([prefix.mask, torch.ones_like(ids)], dim=1)
    positions = prefix.lengths[:, None] + torch.arange(ids.shape[1], device=backbone.device)
    cache = prefix.cache()

    def step(at: slice, upto: int) -> Tensor:
        given = (ids[:, at], mask[:, : prefix.mask.shape[1] + upto], positions[:, at])
        return backbone.step(prefix, cache, *given, last_only=True)[0, -1]

    whole = ids.shape[1]
    if edit is None or edit.positions != "generated":
        with backbone.editing(edit), hooked():
            return step(slice(None), whole)
    with hooked():  # the prompt's last token is no generated one
        logits = step(slice(1), 1)
    if whole > 1:
        with backbone.editing(edit), hooked():
            logits = step(slice(1, None), whole)
    return logits


@contextmanager
def _watched(blocks: Sequence[nn.Module], states: dict[int, Tensor]) -> Iterator[None]:
    """Note what every block hands on at the last position, ``(1, d)``."""

    def watch(layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states[layer] = (output[0] if isinstance(output, tuple) else output)[:, -1].clone()

        return hook

    with _hooks({block: watch(layer) for layer, block in enumerate(blocks)}):
        yield


@contextmanager
def _replaced(block: nn.Module, state: Tensor) -> Iterator[None]:
    """The block hands on this state ``(1, d)`` at the last position, whatever it computed."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        changed = (output[0] if isinstance(output, tuple) else output).clone()
        changed[:, -1] = state.to(changed.device)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with _hooks({block: hook}):
        yield


@contextmanager
def _hooks(hooks: Mapping[nn.Module, Any]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
