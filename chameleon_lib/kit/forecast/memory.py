"""Memory of the device and of the disk, by stated formulas.

Device, for each of the three kinds of work on a backbone:

    asking    weights + kept prompts + T·(state + 2·inner + 4·width)·bytes
    DPO       2·weights + 16·adapter + t·34·width·layers
    ALOE      2·weights + 3·weights in the training's precision + t·34·width·layers

The states of prompts that are asked again are kept up to 2 GiB; T are the tokens of the largest
batch that is asked at once, at most 32,768. Trainings work on a copy of the
backbone. An adapter costs its values, gradients and two moments in float32; a model that is trained
whole its gradients and two moments in its own precision. 34·width bytes per token and layer are
kept for the way back in 16 bits, twice that in 32 (Korthikanti et al. 2022, without attention's
quadratic part); t are the tokens of one micro-batch. Fragmentation comes on top.

Disk: the downloads, and what the artifact store keeps: float32 activations of every text at every
layer, the weights that each training has changed, answers and margins. The rest is megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from chameleon_lib.kit.forecast.cell import Key, Piece
from chameleon_lib.kit.forecast.known import MODELS, Model
from chameleon_lib.kit.forecast.scope import Scope

BATCH_TOKENS = 32_768
KEPT_BYTES = 2 << 30
KEPT_PER_TOKEN = 34
PACKED = 0.29  # of bfloat16 weights, when all but embeddings and head have 4 bits
ALOE_ROW = 8192  # tokens of a packed row
DPO_PAIRS = 16  # per micro-batch
BYTES_PER_ANSWER = 120  # JSON and margin


def device_bytes(scope: Scope, model: Model) -> dict[str, float]:
    """Kind of work → bytes on the device; the largest of the profile's tasks."""
    size = scope.bytes_per_number
    weights = model.weights.total * size
    room = model.state + 2 * model.inner + 4 * model.width
    cells = [scope.cell(model, task) for task in scope.profile.tasks]
    longest = max(cell.length("instruct") + cell.shape.answer for cell in cells)
    packed = weights if scope.profile.quantization == "none" else weights * PACKED
    prompts = scope.test * longest
    kept = min(KEPT_BYTES, prompts * model.state * size)
    back = KEPT_PER_TOKEN * (size / 2) * model.width * model.layers * (1 + model.encoder)
    copies = 1 if model.encoder else 2
    return {
        "asking": packed + kept + min(BATCH_TOKENS, prompts) * room * size,
        "DPO": 2 * weights + 16 * model.adapter + DPO_PAIRS * copies * longest * back,
        "ALOE": 5 * weights + (longest if model.encoder else ALOE_ROW) * back,
    }


def store_bytes(scope: Scope, pieces: Mapping[Key, Piece]) -> dict[str, float]:
    """What the artifact store grows by, per kind of record."""
    size = scope.bytes_per_number
    found = {"activations": 0.0, "trainings": 0.0, "texts": 0.0}
    for (stage, backbone, *_), piece in pieces.items():
        model = MODELS[backbone]
        if stage == "activations":
            found["activations"] += 4 * piece.prompts * model.layers * model.width
        elif stage == "ALOE":
            found["trainings"] += size * model.weights.total
        elif stage == "DPO":
            found["trainings"] += 4 * model.adapter
        else:
            found["texts"] += BYTES_PER_ANSWER * piece.prompts
    return found
