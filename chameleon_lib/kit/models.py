"""Models whose sizes are known, and the memory that work on a model takes.

A model's numbers follow from its published architecture; a test builds each one on torch's "meta"
device, which holds no weights, and counts them again. A download takes the weights of the
checkpoint times the bytes that it stores each in; tokenizer and configuration are megabytes.

Memory of the device (L layers, a the weights of an adapter, B bytes of a number, T the tokens of
the largest batch that is asked at once, t those of the rows trained at once, h heads):

    asking    weights + T·(state + 2·inner + 4·width)·B
    rivals    the largest of: asking with two sets of weights (a trained model);
              DPO: weights + 18·a + way back; ALOE: the same for an adapter,
              weights + 18·n + way back for all n

States of prompts take a small share of what is free then, and a fit keeps the rest of its own on
disk. An adapter is trained beside the backbone's own weights and costs its values, gradients and
two moments in float32 and a copy in 16 bits; so does each weight of a model that is trained whole,
which is a float32 copy whatever it was loaded in. The way back, in 16 bits (twice that in 32):

    whole           L·layer
    checkpointing   L·t·2·width + layer          (T5 keeps a position bias, 2·h·t², per layer too;
                    both twice for all weights, between whose layers numbers are in float32)
    layer           t·c·width                    (T5: + 12·h·t², its attention is not fused)
    head            10·vocabulary per token with a loss of ALOE's; DPO never holds its logits

c = 112 bytes for an adapter of a decoder and 57 for all weights, 163 and 99 for T5's two stacks:
measured as what autograd keeps of models of the same proportions, their own dropout on (DPO
switches it off and keeps less). With 4-bit weights 0.29 of the weights. Fragmentation comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from chameleon_lib.kit.flops import Weights
from chameleon_lib.kit.profiles import RunProfile

RANK, EMBEDDED_RANK = 256, 16  # of LoRA: the paper's, and the embedded models' recipe
BATCH_TOKENS = 32_768  # asked at once, at most
# Bytes per token, width and layer on the way back: (T5, an adapter is trained).
WAY_BACK = {(False, True): 112, (False, False): 57, (True, True): 163, (True, False): 99}
PER_PAIR = 12  # bytes per head and pair of tokens of T5's attention
TRAINED = 18  # bytes per weight that is trained
PER_LOGIT = 10
PACKED = 0.29  # of bfloat16 weights, when all but embeddings and head have 4 bits
# Batches of the trainings, as their settings have them: pairs of DPO, rows of ALOE and tokens of a
# row of a decoder, which is packed; the embedded models' recipe.
DPO_PAIRS, ALOE_ROWS, ALOE_ROW = 16, 1, 8192
EMBEDDED_BATCH = (4, 8)


@dataclass(frozen=True)
class Model:
    """A backbone or embedder.

    Attributes:
        id: Its id in a profile.
        weights: What multiplies a token, and all weights of the checkpoint as ``total``.
        stored: Bytes per weight in the checkpoint.
        layers: Decoder layers.
        width: Width of the MLP output.
        inner: Width inside the MLP.
        vocabulary: Columns of the output head.
        state: Numbers kept per prompt token: keys and values, or encoder states with the keys and
            values of the cross-attention.
        linear: Inputs and outputs of all linear layers that LoRA adapts, summed.
        encoder: Whether it is an encoder-decoder.
        gated: Whether the hub asks for an access token that has accepted the model's terms.
    """

    id: str
    weights: Weights
    stored: int
    layers: int = 0
    width: int = 0
    inner: int = 0
    vocabulary: int = 0
    state: int = 0
    linear: int = 0
    encoder: bool = False
    gated: bool = False

    @property
    def embedded(self) -> bool:
        """Whether it is one of the kit's own."""
        return self.id.startswith("demo:")

    @property
    def heads(self) -> int:
        """Attention heads of an encoder-decoder, 64 wide each as T5's are."""
        return (self.state - self.width) // (2 * self.layers * 64)

    @property
    def adapter(self) -> int:
        """Weights of a LoRA adapter: the paper's rank, or that of the embedded models' recipe."""
        return (EMBEDDED_RANK if self.embedded else RANK) * self.linear

    @property
    def download(self) -> int:
        """Bytes of the checkpoint; embedded models are in the checkout."""
        return 0 if self.embedded else self.weights.total * self.stored


Shape = tuple[int, int, int, int, int]  # layers, width, MLP width, width of keys, vocabulary


def _decoder(name: str, total: int, active: int, shape: Shape, gated: bool = False) -> Model:
    """Gated MLP, grouped keys, a checkpoint in 16 bits."""
    layers, width, inner, keys, vocabulary = shape
    weights, state = Weights(active, active, total), 2 * layers * keys
    linear = layers * (2 * (width + width) + 2 * (width + keys) + 3 * (width + inner))
    return Model(name, weights, 2, layers, width, inner, vocabulary, state, linear, False, gated)


def _encdec(name: str, total: int, read: int, written: int, shape: Shape) -> Model:
    """T5 with a gated MLP and as many encoder layers as decoder layers; float32 checkpoints."""
    layers, width, inner, keys, vocabulary = shape
    weights, state = Weights(read, written, total), width + 2 * layers * keys
    linear = layers * (12 * (width + keys) + 6 * (width + inner))
    return Model(name, weights, 4, layers, width, inner, vocabulary, state, linear, encoder=True)


# Architectures: the configurations on the model pages of the hub. The terms of Mistral's models
# have to be accepted there (`extra_gated_description` in the model card).
MODELS: dict[str, Model] = {
    model.id: model
    for model in (
        _decoder("demo:decoder:0", 1_143_424, 998_272, (4, 128, 384, 128, 1134)),
        _decoder("demo:decoder:1", 1_143_424, 998_272, (4, 128, 384, 128, 1134)),
        _encdec("demo:encdec:0", 1_721_088, 656_640, 1_064_448, (4, 128, 256, 128, 1134)),
        _encdec("demo:encdec:1", 1_721_088, 656_640, 1_064_448, (4, 128, 256, 128, 1134)),
        _decoder(
            "Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, 494_032_768, (24, 896, 4864, 128, 151_936)
        ),
        _decoder("smollm2", 134_515_008, 134_515_008, (30, 576, 1536, 192, 49_152)),
        _encdec(
            "google/flan-t5-base", 247_577_856, 84_954_240, 137_949_312,
            (12, 768, 2048, 768, 32_128),
        ),
        _decoder(
            "mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552, 7_113_805_824,
            (32, 4096, 14_336, 1024, 32_768), gated=True,
        ),
        _decoder(
            "Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, 7_070_619_136,
            (28, 3584, 18_944, 512, 152_064),
        ),
        _encdec(
            "google/flan-t5-xxl", 11_135_332_352, 4_630_714_368, 6_373_021_696,
            (24, 4096, 10_240, 4096, 32_128),
        ),
        # Sentence embedders; their own work is far below a backbone's and is not counted.
        Model("sentence-transformers/all-MiniLM-L6-v2", Weights(0, 0, 22_713_216), 4),
        Model("sentence-transformers/all-mpnet-base-v2", Weights(0, 0, 109_486_464), 4),
    )
}  # fmt: skip


# Bytes of a task's files in a full run, train and dev (user-based split). The dev files were seen;
# those of train follow from the published numbers of records.
DATA_BYTES = {"LaMP_2": 62_100_000.0, "LaMP_3": 3_610_000_000.0, "LaMP_7": 30_200_000.0}


def number_bytes(profile: RunProfile) -> int:
    """Bytes of a weight or state; "auto" is float32 on a CPU, half of that on a GPU."""
    return 2 if profile.dtype == "bfloat16" else 4


def adapts_aloe(profile: RunProfile, model: Model) -> bool:
    """Whether ALOE trains an adapter; the recipe of the embedded models trains all weights."""
    return not model.embedded and profile.aloe_params == "lora"


def checkpoints(profile: RunProfile, model: Model) -> bool:
    """Whether trainings compute layers twice."""
    return not model.embedded and profile.checkpointing


def device_bytes(
    profile: RunProfile, model: Model, longest: float, prompts: int
) -> dict[str, float]:
    """Kind of work → bytes on the device.

    Args:
        profile: Precision and batches.
        model: A backbone.
        longest: Tokens of a prompt and its answer.
        prompts: Number of prompts of a fit.
    """
    size = number_bytes(profile)
    weights = model.weights.total * size * (1 if profile.quantization == "none" else PACKED)
    room = model.state + 2 * model.inner + 4 * model.width
    asked = min(BATCH_TOKENS, prompts * longest) * room * size
    if model.embedded:
        pairs, rows, row = *EMBEDDED_BATCH, longest
    else:
        pairs, rows = profile.micro_batch or DPO_PAIRS, profile.micro_batch or ALOE_ROWS
        row = longest if model.encoder else ALOE_ROW
    adapter, lora = TRAINED * model.adapter, adapts_aloe(profile, model)
    logits = 0 if model.encoder else rows * row * model.vocabulary * PER_LOGIT
    trained = adapter if lora else TRAINED * model.weights.total
    twice = pairs * (1 if model.encoder else 2)
    return {
        "asking": weights + asked,
        "rivals": max(
            2 * weights + asked,
            weights + adapter + way_back(profile, model, twice, longest, True),
            weights + trained + logits + way_back(profile, model, rows, row, lora),
        ),
    }


def way_back(
    profile: RunProfile, model: Model, rows: float, tokens: float, adapter: bool
) -> float:
    """Bytes that ``rows`` of so many tokens keep for the gradient."""
    wide = number_bytes(profile) / 2
    pairs = rows * model.heads * tokens**2 if model.encoder else 0
    layer = rows * tokens * WAY_BACK[model.encoder, adapter] * model.width + PER_PAIR * pairs
    if not checkpoints(profile, model):
        return wide * model.layers * layer
    inputs = (2 if adapter else 4) * (rows * tokens * model.width + pairs)
    return wide * (model.layers * inputs + layer)
