"""The table of model families: where each keeps what the kit edits, exports and packs (A1).

Adding a family is one row here and a test beside it. Nothing is guessed: an unknown family raises,
because guessing picks the encoder on T5 or a module that already holds the residual, which is a
different edit (A1).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from chameleon_lib.errors import UserError


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """One family; in module paths ``{i}`` is the decoder layer."""

    mlp_out: str  # output of the MLP, before the residual addition
    block_out: str  # output of the decoder layer, after the residual addition
    # The linear layer that makes the MLP output, or for a mixture of experts the stacked parameter
    # ``(E, d, d_ff)``: what an export of the edit changes
    projection: str
    # Output of the gate projection (wider than d), or None if the family has none
    gate_proj: str | None = None
    # The family's architecture in llama.cpp, or None where its name table lacks one
    gguf: str | None = None
    # Whether packed rows of a training give the logits of each row alone (a test repeats it)
    packs: bool = False
    flat: bool = False  # whether ``mlp_out`` has the shape ``(B * T, d)`` instead of ``(B, T, d)``
    # Whether the MLP is a mixture of experts held in three-axis weights. Its output is edited,
    # which equals editing every expert: the edit is linear and the router's weights are factors
    # outside it.
    experts: bool = False


def _gated(gguf: str, layer: str = "model.layers.{i}") -> ModelFamily:
    """A decoder with a gated MLP, as Llama has it."""
    mlp = f"{layer}.mlp"
    return ModelFamily(
        mlp, layer, f"{mlp}.down_proj", gate_proj=f"{mlp}.gate_proj", gguf=gguf, packs=True
    )


def _plain(layer: str, projection: str, *, gguf: str, experts: bool = False) -> ModelFamily:
    """A decoder whose MLP has no gate output of its own."""
    return ModelFamily(
        f"{layer}.mlp", layer, f"{layer}.{projection}", gguf=gguf, packs=True, experts=experts
    )


# layer.2 is the feed-forward block *with* its residual: the block output, not the MLP output.
_T5_LIKE = ModelFamily(
    mlp_out="decoder.block.{i}.layer.2.DenseReluDense",
    block_out="decoder.block.{i}.layer.2",
    projection="decoder.block.{i}.layer.2.DenseReluDense.wo",
    gate_proj="decoder.block.{i}.layer.2.DenseReluDense.wi_0",
    gguf="t5",
)

MODEL_FAMILIES: dict[str, ModelFamily] = {
    "mistral": _gated("llama"),
    "llama": _gated("llama"),
    "qwen2": _gated("qwen2"),
    "qwen3": _gated("qwen3"),
    # Gemma 2 and 3 normalise the MLP output before the residual addition; the edit comes before.
    "gemma2": _gated("gemma2"),
    "gemma3_text": _gated("gemma3"),
    # What AutoModelForCausalLM loads for Gemma 3 from 4B on: the language model inside a wrapper
    # that also has a vision tower, which text never reaches.
    "gemma3": _gated("gemma3", "model.language_model.layers.{i}"),
    # The gate projections of the experts are one fused weight, so there is no gate output.
    "mixtral": _plain("model.layers.{i}", "mlp.experts.down_proj", gguf="llama", experts=True),
    # Phi-3 fuses gate and up projection, so it has no gate output of its own.
    "phi3": _plain("model.layers.{i}", "mlp.down_proj", gguf="phi3"),
    "gpt2": _plain("transformer.h.{i}", "mlp.c_proj", gguf="gpt2"),
    "opt": ModelFamily(
        "model.decoder.layers.{i}.fc2",
        "model.decoder.layers.{i}",
        "model.decoder.layers.{i}.fc2",
        flat=True,
    ),
    "t5": _T5_LIKE,  # Flan-T5 too
    "mt5": _T5_LIKE,
    "umt5": _T5_LIKE,
}


def model_family(name: str) -> ModelFamily:
    """The row of a ``config.model_type``.

    Raises:
        UserError: If the family is not in the table.
    """
    if name not in MODEL_FAMILIES:
        raise UserError(
            f"Model family '{name}' is unknown (known: {', '.join(sorted(MODEL_FAMILIES))}); add a "
            "row to MODEL_FAMILIES in chameleon_lib/backbones/families.py and a test beside it."
        )
    return MODEL_FAMILIES[name]


def site_modules(model: nn.Module, family: str, site: str, n_layers: int) -> list[nn.Module]:
    """The modules of one site, in decoder layer order.

    Raises:
        UserError: Unknown family or site, a site the family lacks, or a path the model lacks.
    """
    row = model_family(family)
    if site not in ("mlp_out", "gate_proj", "block_out"):
        raise UserError(
            f"Edit site '{site}' is unknown; use mlp_out, gate_proj or block_out (edit_site)."
        )
    path: str | None = getattr(row, site)
    if path is None:
        raise UserError(f"Model family '{family}' has no {site} site; use edit_site=mlp_out.")
    try:
        return [model.get_submodule(path.format(i=layer)) for layer in range(n_layers)]
    except AttributeError as error:
        raise UserError(
            f"The {family} model has no module '{path}' for edit_site={site} ({error}); use "
            "another site, or correct MODEL_FAMILIES in chameleon_lib/backbones/families.py."
        ) from error
