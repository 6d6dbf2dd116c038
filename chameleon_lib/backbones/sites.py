"""Explicit site table: model family -> module path of every site of decoder layer ``i`` (A1).

Nothing is guessed: an unknown family raises, because guessing picks the encoder on T5 or a module
that already holds the residual, which is a different edit (section 3.9).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from chameleon_lib.errors import UserError


@dataclass(frozen=True, slots=True)
class SitePaths:
    """Module paths of one family; ``{i}`` is the decoder layer.

    Attributes:
        mlp_out: Output of the MLP, before the residual addition.
        block_out: Output of the decoder layer, after the residual addition.
        gate_proj: Output of the gate projection (wider than d), or None if the family has none.
        flat: Whether ``mlp_out`` has the shape ``(B * T, d)`` instead of ``(B, T, d)``.
        experts: Whether the MLP is a mixture of experts held in three-axis weights. Its output is
            edited, which equals editing every expert: the edit is linear and the router's weights
            are factors outside it.
    """

    mlp_out: str
    block_out: str
    gate_proj: str | None = None
    flat: bool = False
    experts: bool = False


_LLAMA_LIKE = SitePaths(
    mlp_out="model.layers.{i}.mlp",
    block_out="model.layers.{i}",
    gate_proj="model.layers.{i}.mlp.gate_proj",
)

# layer.2 is the feed-forward block *with* its residual: the block output, not the MLP output.
_T5_LIKE = SitePaths(
    mlp_out="decoder.block.{i}.layer.2.DenseReluDense",
    block_out="decoder.block.{i}.layer.2",
    gate_proj="decoder.block.{i}.layer.2.DenseReluDense.wi_0",
)

SITES: dict[str, SitePaths] = {
    "mistral": _LLAMA_LIKE,
    "llama": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    # Gemma 2 and 3 normalise the MLP output before the residual addition; the edit comes before.
    "gemma2": _LLAMA_LIKE,
    "gemma3_text": _LLAMA_LIKE,
    # What AutoModelForCausalLM loads for Gemma 3 from 4B on: the language model inside a wrapper
    # that also has a vision tower, which text never reaches.
    "gemma3": SitePaths(
        mlp_out="model.language_model.layers.{i}.mlp",
        block_out="model.language_model.layers.{i}",
        gate_proj="model.language_model.layers.{i}.mlp.gate_proj",
    ),
    # The gate projections of the experts are one fused weight, so there is no gate output.
    "mixtral": SitePaths(
        mlp_out="model.layers.{i}.mlp", block_out="model.layers.{i}", experts=True
    ),
    # Phi-3 fuses gate and up projection, so it has no gate output of its own.
    "phi3": SitePaths(mlp_out="model.layers.{i}.mlp", block_out="model.layers.{i}"),
    "gpt2": SitePaths(mlp_out="transformer.h.{i}.mlp", block_out="transformer.h.{i}"),
    "opt": SitePaths(
        mlp_out="model.decoder.layers.{i}.fc2", block_out="model.decoder.layers.{i}", flat=True
    ),
    "t5": _T5_LIKE,  # Flan-T5 too
    "mt5": _T5_LIKE,
    "umt5": _T5_LIKE,
}


def site_paths(family: str) -> SitePaths:
    """Paths of a ``config.model_type``.

    Raises:
        UserError: If the family is not in the table.
    """
    if family not in SITES:
        raise UserError(
            f"Model family '{family}' is unknown (known: {', '.join(sorted(SITES))}); add its MLP "
            "output path to SITES in chameleon_lib/backbones/sites.py and a test beside it."
        )
    return SITES[family]


def site_modules(model: nn.Module, family: str, site: str, n_layers: int) -> list[nn.Module]:
    """The modules of one site, in decoder layer order.

    Args:
        model: The loaded model.
        family: ``config.model_type``.
        site: ``mlp_out`` | ``gate_proj`` | ``block_out``.
        n_layers: Number of decoder layers.

    Raises:
        UserError: Unknown family or site, a site the family lacks, or a path the model lacks.
    """
    paths = site_paths(family)
    if site not in ("mlp_out", "gate_proj", "block_out"):
        raise UserError(
            f"Edit site '{site}' is unknown; use mlp_out, gate_proj or block_out (edit_site)."
        )
    path: str | None = getattr(paths, site)
    if path is None:
        raise UserError(f"Model family '{family}' has no {site} site; use edit_site=mlp_out.")
    try:
        return [model.get_submodule(path.format(i=layer)) for layer in range(n_layers)]
    except AttributeError as error:
        raise UserError(
            f"The {family} model has no module '{path}' for edit_site={site} ({error}); use "
            "another site, or correct SITES in chameleon_lib/backbones/sites.py."
        ) from error
