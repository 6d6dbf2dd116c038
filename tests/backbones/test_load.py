from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from chameleon_lib.backbones import backbone_from, load_backbone
from chameleon_lib.backbones.load import check_source
from chameleon_lib.errors import UserError
from tests.backbones.tiny import PROMPTS, make_backbone, make_model, make_tokenizer


def save(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    model = make_model(family)
    model.to(dtype).save_pretrained(folder)
    make_tokenizer(closes=family == "t5").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_a_saved_checkpoint_loads_frozen_and_generates_the_same(
    tmp_path: Path, family: str
) -> None:
    backbone = load_backbone(save(tmp_path / "net", family), name="net")
    assert backbone.name == "net" and backbone.n_layers == 3 and backbone.d == 24
    assert backbone.family == ("encoder-decoder" if family == "t5" else "decoder")
    assert not backbone.model.training
    assert not any(weight.requires_grad for weight in backbone.model.parameters())
    expected = make_backbone(family).generate(PROMPTS, max_new_tokens=6)
    assert backbone.generate(PROMPTS, max_new_tokens=6) == expected


def test_fp16_is_refused_for_t5_and_unknown_dtypes_for_all(tmp_path: Path) -> None:
    folder = save(tmp_path, "t5")
    with pytest.raises(UserError, match="R25"):
        load_backbone(folder, dtype="float16")
    with pytest.raises(UserError, match="R25"):
        backbone_from(make_model("t5").half(), make_tokenizer(closes=True), name="t5")
    with pytest.raises(UserError, match="model_dtype"):
        load_backbone(folder, dtype="int4")


def test_missing_folders_and_unknown_families_are_told_in_one_sentence(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(empty)
    config = AutoConfig.for_model(
        "gpt_neox",
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=400,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "neox")
    with pytest.raises(UserError, match="'gpt_neox' is unknown"):
        load_backbone(tmp_path / "neox")


def test_an_encoder_is_told_apart_from_an_unknown_family(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "bert",
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=400,
    )
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "bert")
    for refuse in (load_backbone, check_source):
        with pytest.raises(UserError, match="'bert' model is an encoder and writes no answers"):
            refuse(str(tmp_path / "bert"))


def test_a_path_that_is_not_there_and_a_name_that_is_not_cached_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "none", "./none", "a/b/c"):
        with pytest.raises(UserError, match="There is no folder .*; give a folder, a .gguf file"):
            load_backbone(path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="Backbone 'me/none' cannot be loaded") as told:
        load_backbone("me/none")
    assert "\n" not in str(told.value)
    check_source("me/none")  # whether the hub has it is not for this look


def test_a_look_at_a_folder_names_what_is_wrong_without_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "net", "llama")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    check_source(str(tmp_path / "net"))
    (tmp_path / "net" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="net' cannot be loaded"):
        check_source(str(tmp_path / "net"))


def test_the_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    folder = save(tmp_path, "gpt2")
    first = load_backbone(folder).fingerprint
    assert first == load_backbone(folder, name="other").fingerprint
    make_model("gpt2", seed=1).save_pretrained(folder)
    assert load_backbone(folder).fingerprint != first
    assert make_backbone("gpt2").fingerprint == make_backbone("gpt2").fingerprint
    assert make_backbone("gpt2").fingerprint != make_backbone("gpt2", seed=1).fingerprint
