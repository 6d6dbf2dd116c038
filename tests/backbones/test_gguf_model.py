"""GGUF files as backbones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from chameleon_lib.backbones import backbone_from, gguf_model, load_backbone
from chameleon_lib.errors import UserError
from tests.backbones.gguf_files import TEMPLATE, write_model
from tests.backbones.tiny import ANSWERS, PROMPTS, make_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def test_a_gguf_file_is_the_model_that_it_says(tmp_path: Path) -> None:
    model = write_model(tmp_path / "Tiny-Chat.Q4_1.gguf")
    tokenizer = make_tokenizer(closes=False)
    tokenizer.chat_template = TEMPLATE
    expected = backbone_from(model, tokenizer, name="whatever")
    found = load_backbone(tmp_path / "Tiny-Chat.Q4_1.gguf")
    assert found.name == "Tiny-Chat.Q4_1" and found.codec.chat
    assert found.model.get_output_embeddings().weight is found.model.get_input_embeddings().weight
    assert found.codec.prompts(PROMPTS) == expected.codec.prompts(PROMPTS)
    kwargs = {"max_new_tokens": 8}
    assert found.generate(PROMPTS, **kwargs) == expected.generate(PROMPTS, **kwargs)
    ids = torch.tensor(found.codec.prompts(PROMPTS[:1]))
    with torch.no_grad():
        difference = found.model(ids).logits - expected.model(ids).logits
    assert float(difference.abs().max()) < 1e-5


def test_the_checkpoint_is_made_once_per_content(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "a.gguf")
    first = load_backbone(tmp_path / "a.gguf")
    (folder,) = cache.iterdir()  # nothing half-written is left beside it
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with monkeypatch.context() as patch:
        patch.setattr(gguf_model, "_dequantise", None)
        again = load_backbone(tmp_path / "b.gguf")
    assert again.fingerprint == first.fingerprint and again.name == "b"
    write_model(tmp_path / "a.gguf", seed=1)  # another model under the old name
    assert load_backbone(tmp_path / "a.gguf").fingerprint != first.fingerprint
    assert len(list(cache.iterdir())) == 2 and folder.is_dir()


def test_older_versions_of_the_library_read_the_checkpoint(tmp_path: Path, cache: Path) -> None:
    """They look for the rotary base beside ``rope_parameters`` and know one class of tokenizer."""
    write_model(tmp_path / "a.gguf")
    load_backbone(tmp_path / "a.gguf")
    (folder,) = cache.iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    told = json.loads((folder / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_checkpoint_of_another_process_stays(tmp_path: Path, cache: Path) -> None:
    """Two that start together both dequantise; the one that ends second takes the first's."""
    write_model(tmp_path / "a.gguf")
    first = load_backbone(tmp_path / "a.gguf").fingerprint
    (folder,) = cache.iterdir()
    gguf_model._dequantise(tmp_path / "a.gguf", folder, lambda *_: None)
    assert list(cache.iterdir()) == [folder]
    assert load_backbone(tmp_path / "a.gguf").fingerprint == first


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "bert"}, "of architecture 'bert'"),
        ({"architecture": "starcoder2"}, "'starcoder2' is unknown"),
        ({"kind": "adapter"}, "no model but 'adapter'"),
        ({"drop": "blk.1.ffn_down"}, r"lacks 1 of its tensors \(model.layers.1.mlp.down_proj"),
    ],
)
def test_what_cannot_be_a_backbone_is_told(
    changes: dict[str, str], sentence: str, tmp_path: Path, cache: Path
) -> None:
    write_model(tmp_path / "a.gguf", **changes)
    with pytest.raises(UserError, match=sentence) as caught:
        load_backbone(tmp_path / "a.gguf")
    assert "a.gguf" in str(caught.value) or "families.py" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*none\.gguf"):
        load_backbone(tmp_path / "none.gguf")
    (tmp_path / "page.gguf").write_text("<html>")
    with pytest.raises(UserError, match=r"page\.gguf is no GGUF file"):
        load_backbone(tmp_path / "page.gguf")
    write_model(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=r"cut\.gguf cannot be read"):
            load_backbone(tmp_path / "cut.gguf")


def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "a.gguf")
    usage = shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(gguf_model.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(UserError, match="CHAMELEON_CACHE"):
        load_backbone(tmp_path / "a.gguf")


def test_a_file_has_no_revisions(tmp_path: Path) -> None:
    write_model(tmp_path / "a.gguf")
    with pytest.raises(UserError, match="is a file, which has no revisions"):
        load_backbone(tmp_path / "a.gguf", revision="main")


def test_scores_come_from_the_same_model(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a.gguf")
    tokenizer = make_tokenizer(closes=False)
    tokenizer.chat_template = TEMPLATE
    expected = backbone_from(model, tokenizer, name="whatever")
    found = load_backbone(tmp_path / "a.gguf")
    one = expected.score(expected.prepare(PROMPTS), ANSWERS)
    two = found.score(found.prepare(PROMPTS), ANSWERS)
    assert torch.allclose(torch.as_tensor(one), torch.as_tensor(two), atol=1e-4)
