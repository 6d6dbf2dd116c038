"""What a form takes on disk and adds to a token, computed: nothing here depends on the machine.

For L edited layers, MLP output d and MLP width f, with b bytes per number:

    directions θP, θN       2·L·d·b                       and 8·L·d operations per token (the hook)
    adapter of rank r       r·L·(f + d)·b                 and 2·r·L·(f + d)
    merged weights          all weights of the base       and none

Twice as many operations as weights multiply a token; the base's own are 2·N for N weights that
multiply an answer token (``kit.flops``). An adapter's A holds the base's matrix, hence f.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.kit.forecast.known import MODELS
from chameleon_lib.profiles.projections import projection
from chameleon_lib.sections.results import FAMILY_TITLES
from chameleon_lib.sections.serving.forms import PADDED, SERVER_RANK, TITLES, Shipped

MILLION = 10**6
PAPER = ("mistralai/Mistral-7B-Instruct-v0.3", "google/flan-t5-xxl")
_HALF, _FULL = 2, 4  # bytes per number: bfloat16, float32


@dataclass(frozen=True)
class Shape:
    """What sizes follow from.

    Attributes:
        layers: Edited layers.
        width: Width of the MLP output.
        inner: Width inside the MLP.
        total: All weights of the base.
        written: Weights that multiply an answer token.
    """

    layers: int
    width: int
    inner: int
    total: int
    written: int = 0

    def directions(self, bytes_each: int) -> int:
        """Bytes of θP and θN."""
        return 2 * self.layers * self.width * bytes_each

    def adapter(self, bytes_each: int, rank: int = 2) -> int:
        """Bytes of A and B."""
        return rank * self.layers * (self.inner + self.width) * bytes_each

    def hook_flops(self) -> int:
        """Operations per token: ``Z x`` and ``U (Z x)``, two numbers between them."""
        return 8 * self.layers * self.width

    def adapter_flops(self, rank: int = 2) -> int:
        """Operations per token: ``A h`` and ``B (A h)``."""
        return 2 * rank * self.layers * (self.inner + self.width)


def shape_of(backbone: HFBackbone) -> Shape:
    """The shape of a loaded base whose layers are all edited."""
    inner = projection(backbone, 0).weight.shape[-1]
    total = sum(parameter.numel() for parameter in backbone.model.parameters())
    return Shape(backbone.n_layers, backbone.d, int(inner), total)


def known_shape(name: str) -> Shape:
    """The shape of a model whose sizes are published."""
    model = MODELS[name]
    weights = model.weights
    return Shape(model.layers, model.width, model.inner, weights.total, weights.written)


def measured_sizes(shipped: Shipped) -> pd.DataFrame:
    """Bytes of the first user's files, beside the formula, and for a million users.

    A file also holds names and shapes of its tensors, which is all that lies between the two.
    """
    backbone, shape = shipped.backbone, shape_of(shipped.backbone)
    each = backbone.model.dtype.itemsize
    rows = [
        ("profile: directions, float32", shipped.stored["directions"], shape.directions(_FULL)),
    ]
    formulas = {
        "peft": shape.adapter(each),
        PADDED: shape.adapter(each, SERVER_RANK),
        "gguf": shape.adapter(_FULL),
        "merged": shape.total * each,
    }
    for form, formula in formulas.items():
        if form in shipped.tensors:
            title = TITLES.get(form, f"PEFT adapter, rank {SERVER_RANK}")
            rows.append((f"{title}, tensors", shipped.tensors[form], formula))
    return pd.DataFrame(
        {
            "family": FAMILY_TITLES[backbone.family],
            "one user's": what,
            "bytes of the file": found,
            "bytes by the formula": formula,
            "GB for 1 M users": found * MILLION / 1e9,
            "n": 1,
            "seeds": 1,
        }
        for what, found, formula in rows
    )


def sizes_at_scale() -> pd.DataFrame:
    """Bytes per layer, per user and per million users for the paper's two backbones, computed."""
    rows = []
    for name in PAPER:
        shape = known_shape(name)
        forms = {
            "directions, bfloat16": shape.directions(_HALF),
            "directions, float32": shape.directions(_FULL),
            "adapter of rank 2, bfloat16": shape.adapter(_HALF),
            f"adapter padded to rank {SERVER_RANK}, bfloat16": shape.adapter(_HALF, SERVER_RANK),
            "merged weights, bfloat16": shape.total * _HALF,
        }
        for form, size in forms.items():
            merged = form.startswith("merged")
            rows.append(
                {
                    "backbone": name.split("/")[1],
                    "form": form,
                    "KiB per edited layer": "" if merged else f"{size / shape.layers / 1024:g}",
                    "edited layers": shape.layers,
                    "MB per user": size / 1e6,
                    "TB for 1 M users": size * MILLION / 1e12,
                    "n": 1,
                    "seeds": 1,
                }
            )
    return pd.DataFrame(rows)


def costs_at_scale() -> pd.DataFrame:
    """What each form adds to one token of one user when all layers are edited, computed.

    Bytes are those read for the edit beside the base's weights. Two users of one batch read two
    edits; merged weights have no second user in the batch at all.
    """
    rows = []
    for name in PAPER:
        shape = known_shape(name)
        forms = {
            "hook": (shape.hook_flops(), 2 * shape.directions(_FULL), "yes"),
            "adapter of rank 2": (shape.adapter_flops(), shape.adapter(_HALF), "yes"),
            f"adapter padded to rank {SERVER_RANK}": (
                shape.adapter_flops(SERVER_RANK), shape.adapter(_HALF, SERVER_RANK), "yes",
            ),
            "merged weights": (0, 0, "no: one copy of the base per user"),
        }  # fmt: skip
        for form, (flops, read, many) in forms.items():
            rows.append(
                {
                    "backbone": name.split("/")[1],
                    "form": form,
                    "extra operations per token": flops,
                    "of the base's, %": 100 * flops / (2 * shape.written),
                    "extra bytes read per token": read,
                    "of the base's bytes, %": 100 * read / (_HALF * shape.written),
                    "several users in one batch": many,
                    "n": 1,
                    "seeds": 1,
                }
            )
    return pd.DataFrame(rows)
