"""Memory of the device and of the disk, by stated formulas.

Device, for each kind of work on a backbone (L layers, a the weights of an adapter, B bytes of a
number, t the tokens of the rows in memory at once, h heads):

    asking    weights + kept prompts + T·(state + 2·inner + 4·width)·B
    rivals    the same with two sets of weights and of prompts: an answer of a trained model
    DPO       weights + 18·a + way back + kept prompts
    ALOE      the same as DPO for an adapter; weights + 18·n + way back + kept prompts for all n

The states of prompts that are asked again are kept up to the profile's limit; T are the tokens of
the largest batch that is asked at once, at most 32,768. An adapter is trained beside the backbone's
own weights and costs its values, gradients and two moments in float32 and a copy in 16 bits; so
does each weight of a model that is trained whole, which is a float32 copy whatever it was loaded
in. The way back, in 16 bits (twice that in 32):

    whole           L·layer
    checkpointing   L·t·2·width + layer          (T5 keeps a position bias, 2·h·t², per layer too;
                    both twice for all weights, between whose layers numbers are in float32)
    layer           t·c·width                    (T5: + 12·h·t², its attention is not fused)
    head            10·vocabulary per token with a loss of ALOE's; DPO never holds its logits

c = 112 bytes for an adapter of a decoder and 57 for all weights,
163 and 99 for T5's two stacks: measured as what autograd keeps of models of the same proportions,
their own dropout on (DPO switches it off and keeps less).
With 4-bit weights 0.29 of the weights. Fragmentation comes on top.

Disk: the downloads, and what the artifact store keeps: float32 activations of every text at every
layer, the weights that each training has changed, answers and margins. The rest is megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from chameleon_lib.kit.forecast.cell import Key, Piece
from chameleon_lib.kit.forecast.known import MODELS, Model
from chameleon_lib.kit.forecast.scope import Scope

BATCH_TOKENS = 32_768
# Bytes per token, width and layer on the way back: family is T5's, an adapter is trained.
WAY_BACK = {(False, True): 112, (False, False): 57, (True, True): 163, (True, False): 99}
PER_PAIR = 12  # bytes per head and pair of tokens of T5's attention
TRAINED = 18  # bytes per weight that is trained
PER_LOGIT = 10
PACKED = 0.29  # of bfloat16 weights, when all but embeddings and head have 4 bits
BYTES_PER_ANSWER = 120  # JSON and margin


def device_bytes(scope: Scope, model: Model) -> dict[str, float]:
    """Kind of work → bytes on the device; the largest of the profile's tasks."""
    size, profile = scope.bytes_per_number, scope.profile
    whole = model.weights.total * size
    weights = whole if profile.quantization == "none" else whole * PACKED
    room = model.state + 2 * model.inner + 4 * model.width
    cells = [scope.cell(model, task) for task in profile.tasks]
    longest = max(cell.length("instruct") + cell.shape.answer for cell in cells)
    prompts = scope.test * longest
    kept = min(profile.prefix_bytes, prompts * model.state * size)
    asked = min(BATCH_TOKENS, prompts) * room * size
    pairs, rows, packed_row = scope.batches(model)
    adapter = TRAINED * model.adapter
    aloe_lora = scope.aloe_lora(model)
    row = packed_row or longest
    logits = 0 if model.encoder else rows * row * model.vocabulary * PER_LOGIT
    return {
        "asking": weights + kept + asked,
        "rivals": 2 * (weights + kept) + asked,
        "DPO": weights + adapter + kept
        + way_back(scope, model, pairs * (1 if model.encoder else 2), longest, True),
        "ALOE": weights + (adapter if aloe_lora else TRAINED * model.weights.total) + kept + logits
        + way_back(scope, model, rows, row, aloe_lora),
    }  # fmt: skip


def way_back(scope: Scope, model: Model, rows: float, tokens: float, adapter: bool) -> float:
    """Bytes that ``rows`` of so many tokens keep for the gradient."""
    wide = scope.bytes_per_number / 2
    pairs = rows * model.heads * tokens**2 if model.encoder else 0
    layer = rows * tokens * WAY_BACK[model.encoder, adapter] * model.width + PER_PAIR * pairs
    if not scope.checkpointing(model):
        return wide * model.layers * layer
    inputs = (2 if adapter else 4) * (rows * tokens * model.width + pairs)
    return wide * (model.layers * inputs + layer)


def store_bytes(scope: Scope, pieces: Mapping[Key, Piece]) -> dict[str, float]:
    """What the artifact store grows by, per kind of record."""
    size = scope.bytes_per_number
    found = {"activations": 0.0, "trainings": 0.0, "texts": 0.0}
    for (stage, backbone, *_), piece in pieces.items():
        model = MODELS[backbone]
        if stage == "activations":
            found["activations"] += 4 * piece.prompts * model.layers * model.width
        elif stage == "ALOE":
            whole = size * model.weights.total
            found["trainings"] += 4 * model.adapter if scope.aloe_lora(model) else whole
        elif stage == "DPO":
            found["trainings"] += 4 * model.adapter
        else:
            found["texts"] += BYTES_PER_ANSWER * piece.prompts
    return found
