"""Tiny random backbones that read the embedded world, and an embedder without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from chameleon_lib.backbones import HFBackbone, backbone_from
from tests.backbones.tiny import make_model
from workshop.models import build_tokenizer


def small_backbone(family: str = "mistral", seed: int = 0, context: int = 2048) -> HFBackbone:
    """Random weights, width 24, three decoder layers, the tokenizer of the embedded models."""
    tokenizer = build_tokenizer()
    changes = {} if family == "t5" else {"max_position_embeddings": context}
    model = make_model(family, seed, vocab_size=len(tokenizer), **changes)
    return backbone_from(model, tokenizer, name=f"small-{family}-{seed}")


class HashEmbedder:
    """An embedding that depends on the text alone; counts the texts it was given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        rows = [
            np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint8) for text in texts
        ]
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), 32) - 127.5
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
