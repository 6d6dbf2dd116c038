"""Models and data files whose sizes are known, so that a plan needs no network.

A model's numbers follow from its published architecture; a test builds each one on torch's "meta"
device, which holds no weights, and counts them again. A download takes the weights of the
checkpoint times the bytes that it stores each in; tokenizer and configuration are megabytes. Sizes
of data files were seen on the files themselves or, where marked, follow from the published number
of records (LaMP, user-based split) and the size of a record of the dev file.
"""

from __future__ import annotations

from dataclasses import dataclass

from chameleon_lib.kit.flops import Weights

RANK, EMBEDDED_RANK = 256, 16


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
        _encdec(
            "google/flan-t5-base", 247_577_856, 84_954_240, 137_949_312,
            (12, 768, 2048, 768, 32_128),
        ),
        _decoder(
            "mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552, 7_113_805_824,
            (32, 4096, 14_336, 1024, 32_768), gated=True,
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


@dataclass(frozen=True)
class DataFile:
    """One official LaMP file: place below the data folder, bytes, and whether these were seen."""

    path: str
    size: int
    seen: bool


_DEV = {  # questions and outputs of the dev split; records of dev and train
    "LaMP_2": ("LaMP_2/new", 9_493_217, 27_502, 692, 3_820),
    "LaMP_3": ("LaMP_3", 401_034_862, 81_416, 2_500, 20_000),
    "LaMP_7": ("LaMP_7", 3_611_103, 188_755, 1_500, 10_437),
}


def data_files(task: str) -> tuple[DataFile, ...]:
    """The files of a task that a full run reads: train and dev, questions and outputs."""
    folder, questions, outputs, dev, train = _DEV[task]
    found = []
    for part, share, seen in (("train", train / dev, False), ("dev", 1.0, True)):
        for kind, size in (("questions", questions), ("outputs", outputs)):
            path = f"{folder}/{part}/{part}_{kind}.json"
            found.append(DataFile(path, round(size * share), seen))
    return tuple(found)
