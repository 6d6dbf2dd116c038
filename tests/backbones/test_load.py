from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from chameleon_lib.backbones import load_backbone
from chameleon_lib.backbones.load import check_source
from chameleon_lib.core.backbone import same_weights
from chameleon_lib.errors import UserError
from tests.backbones.tiny import PROMPTS, make_backbone, make_model, save


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


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model_dtype"):
        load_backbone(save(tmp_path, "gpt2"), dtype="int4")


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


def test_the_fingerprint_is_that_of_the_weights_however_they_are_kept(tmp_path: Path) -> None:
    first = load_backbone(save(tmp_path / "net", "mistral"))
    assert first.fingerprint == load_backbone(tmp_path / "net", name="other").fingerprint
    save(tmp_path / "shards", "mistral", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    save(tmp_path / "bin", "mistral")
    (weights,) = (tmp_path / "bin").glob("*.safetensors")
    torch.save(load_file(weights), tmp_path / "bin" / "pytorch_model.bin")
    weights.unlink()
    save(tmp_path / "notes", "mistral")
    for name in ("notes.txt", "README.json", "optimizer.bin", "adapter_model.safetensors"):
        (tmp_path / "notes" / name).write_text("{}")
    for kept in ("shards", "bin", "notes"):
        assert load_backbone(tmp_path / kept).fingerprint == first.fingerprint, kept
    make_model("mistral", seed=1).save_pretrained(tmp_path / "net")
    assert load_backbone(tmp_path / "net").fingerprint != first.fingerprint
    assert make_backbone("gpt2").fingerprint == make_backbone("gpt2").fingerprint


@pytest.mark.parametrize("change", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_model_is_also_its_configuration_its_tokenizer_and_where_it_stops(
    change: str, tmp_path: Path
) -> None:
    before = load_backbone(save(tmp_path, "mistral")).fingerprint
    path = tmp_path / change
    old, new = {
        "config.json": ('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
        "tokenizer.json": ('"add_prefix_space": false', '"add_prefix_space": true'),
        "generation_config.json": ('"eos_token_id": 1', '"eos_token_id": 3'),
    }[change]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert not same_weights(load_backbone(tmp_path).fingerprint, before)


def test_one_model_in_two_precisions_is_one_model_unless_it_was_rounded(tmp_path: Path) -> None:
    half = save(tmp_path / "half", "mistral", dtype=torch.bfloat16)
    full = save(tmp_path / "full", "mistral")
    read = {(f, dtype): load_backbone(f, dtype=dtype).fingerprint
            for f in (half, full) for dtype in ("float32", "bfloat16")}  # fmt: skip
    assert len(set(read.values())) == 3  # rounded, the full model is the half one
    assert same_weights(read[half, "float32"], read[half, "bfloat16"])
    assert not same_weights(read[full, "float32"], read[full, "bfloat16"])
    assert load_backbone(half).stored_dtype == torch.bfloat16
    assert load_backbone(half, dtype="float32").stored_dtype == torch.float32  # as was asked


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "net", "mistral")
    model = get_peft_model(make_model("mistral"), LoraConfig(target_modules=["down_proj"]))
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="net' has an adapter beside its weights .*move it away"):
        load_backbone(folder)


def test_a_folder_is_the_same_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "net", "mistral")
    expected = load_backbone(folder)
    for here, said in ((folder, "."), (tmp_path, "net/"), (folder, "../net"), (tmp_path, "./net")):
        monkeypatch.chdir(here)
        found = load_backbone(said)
        assert (found.name, found.fingerprint) == ("net", expected.fingerprint)
        assert found.model.config._name_or_path == str(folder)
    with pytest.raises(UserError, match="There is no folder ./nett"):
        load_backbone("./nett")
