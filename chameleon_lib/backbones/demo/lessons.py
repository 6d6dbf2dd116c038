"""Second training stage of the encoder-decoder: an axis at the MLP outputs that tells whose answer.

After the first stage the model can give either answer, but it settles which one in its attention,
where an edit of MLP outputs has no hold. In this stage some plain prompts run with an edit of the
paper's form along directions that are learned with the model and then thrown away: with a boost
the personal answer is right, with a removal the generic one. The model thereby gets what a decoder
of this size has by itself: a direction of its MLP outputs that carries the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chameleon_lib.backbones.sites import site_modules

GAINS = {"steered_p": 1.0, "steered_n": -1.0}  # boost once more, or remove; others stay as they are


class EditLessons(nn.Module):
    """One direction per decoder layer, active on the rows of a batch that have a gain.

    Args:
        model: The model in training; hooks are put on its decoder's MLP outputs.
        seed: Seeds the first directions.
    """

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        super().__init__()
        config = model.config
        n_layers, width = int(config.num_decoder_layers), int(config.d_model)
        generator = torch.Generator().manual_seed(seed)
        # Short, so that the optimiser's steps turn them soon; only their direction counts.
        self.axes = nn.Parameter(0.1 * torch.randn(n_layers, width, generator=generator))  # (L, d)
        self.gains: Tensor | None = None  # (B,) of the batch in work; None: no row is edited
        sites = site_modules(model, config.model_type, "mlp_out", n_layers)
        self._handles = [
            site.register_forward_hook(self._hook(layer)) for layer, site in enumerate(sites)
        ]

    def _hook(self, layer: int) -> Callable[..., Tensor]:
        def edit(module: nn.Module, args: object, output: Tensor) -> Tensor:
            del module, args
            if self.gains is None:
                return output
            axis = nn.functional.normalize(self.axes[layer], dim=0).to(output.dtype)
            amount = (output @ axis) * self.gains[:, None].to(output.dtype)  # (B, T)
            return output + amount[..., None] * axis

        return edit

    def close(self) -> None:
        """Takes the hooks off; the directions are not part of the model."""
        for handle in self._handles:
            handle.remove()


@contextmanager
def gains_of(lessons: EditLessons | None, gains: Tensor | None) -> Iterator[None]:
    """The forward pass inside runs with these gains."""
    if lessons is None:
        yield
        return
    lessons.gains = gains
    try:
        yield
    finally:
        lessons.gains = None
