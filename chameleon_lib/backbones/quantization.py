"""Loading weights in 4 bits: optional, said explicitly, and never in silence half done.

Directions are read from what the quantised model computes (bitsandbytes multiplies by the
dequantised weights), so they belong to the quantised model: its fingerprint differs. The arithmetic
of the edit stays in float32 at least, as everywhere (A22).
"""

from __future__ import annotations

from importlib import util
from typing import Any

import torch

from chameleon_lib.backbones.sites import site_paths
from chameleon_lib.errors import UserError

QUANTIZATIONS = ("none", "nf4")
# bitsandbytes is not in environment.yml: only 4-bit runs need it. This version is the tested one.
PACKAGES = {"bitsandbytes": "0.50.2", "accelerate": "1.15.0"}


def check_quantization(quantization: str, family: str, dtype: str) -> None:
    """Refuses what cannot work, before anything large is downloaded.

    Args:
        quantization: ``none`` | ``nf4``.
        family: ``config.model_type``.
        dtype: Precision of the computation: ``float32`` | ``bfloat16`` | ``float16``.

    Raises:
        UserError: An unknown value, a missing package, or a family that would stay unquantised.
    """
    if quantization not in QUANTIZATIONS:
        raise UserError(
            f"quantization is '{quantization}'; use {' or '.join(QUANTIZATIONS)} (run profile)."
        )
    if quantization == "none":
        return
    for package, version in PACKAGES.items():
        if util.find_spec(package) is None:
            raise UserError(
                f"quantization={quantization} needs the package {package} for the 4-bit weights; "
                f"run 'pip install {package}=={version}' or set quantization to none."
            )
    if site_paths(family).experts:
        raise UserError(
            f"quantization={quantization} would leave the experts of '{family}', nearly all of "
            f"its weights, in {dtype}: bitsandbytes quantises linear layers alone; set "
            "quantization to none and spread the model over devices (device_map)."
        )


def load_options(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained``.

    NF4 with double quantisation, computed in the precision of the run. Output layers stay as they
    are, and so do T5's ``wo``, which the library leaves out of every quantisation.
    """
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    }


def make_portable(model: Any) -> None:
    """Turns the packed layout off that bitsandbytes uses on some processors (AVX-512 bf16).

    It computes in bfloat16 whatever precision was asked for, and no gradient passes through it, so
    that directions could not be fitted there; without it all processors compute the same.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
