"""The traps of adapter files, each one set on purpose: the damage is measured, and then refused.

An export proves itself against the hook before it counts; what is changed in its files afterwards
is told from the record of their hashes.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit, EditHook
from chameleon_lib.errors import UserError
from chameleon_lib.serving import export
from chameleon_lib.serving.adapter import CONFIG, WEIGHTS, adapter_config, adapters
from chameleon_lib.serving.agreement import distance, view
from chameleon_lib.serving.export import check_export, export_edit, read_record
from chameleon_lib.serving.factors import compile_edit, projection
from chameleon_lib.serving.folder import vllm_refusal
from tests.backbones.tiny import make_backbone
from tests.serving.exported import (
    BIASED,
    DENSE,
    PROMPTS,
    T5,
    Int4Linear,
    backbone_of,
    edit_of,
    form_view,
    hook_view,
    ids_of,
    quantise,
    write_plain,
)


def _spoil(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _rename(folder: Path, change: Callable[[str], str | None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    kept = {change(name): value for name, value in tensors.items() if change(name) is not None}
    save_file(kept, folder / WEIGHTS)


def _error(backbone: HFBackbone, edit: Edit, folder: Path) -> tuple[float, float]:
    """Error of an adapter as PEFT reads it, and the effect of the edit."""
    hook = hook_view(backbone, edit)
    base = view(backbone, ids_of(backbone), None, forced=hook.tokens)
    with adapters(backbone, [folder]):
        found = form_view(backbone, hook)
    return distance(hook, found), distance(hook, base)


# A lost or a default alpha and rank-stabilised scaling all change the strength.
@pytest.mark.parametrize("changes", [{"lora_alpha": 8}, {"use_rslora": True}, {"lora_alpha": 1}])
def test_a_wrong_scale_is_another_edit_and_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    backbone, edit = backbone_of("llama"), edit_of()
    folder = export_edit(edit, backbone, tmp_path / "a", prompts=PROMPTS).folder
    assert read_record(folder)["form"] == "peft" and _error(backbone, edit, folder)[0] <= 2e-5
    _spoil(folder, **changes)
    error, effect = _error(backbone, edit, folder)
    assert error > 0.05 * effect > 1e-3
    with pytest.raises(UserError, match="adapter_config.json is missing or not what was exported"):
        read_record(folder)


def test_zero_padding_to_rank_8_is_exact(tmp_path: Path) -> None:
    backbone, edit = backbone_of("llama"), edit_of()
    done = export_edit(edit, backbone, tmp_path / "a", rank=8, prompts=PROMPTS)
    assert done.agreement.error <= 2e-5 and done.rank == 8
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["r"] == config["lora_alpha"] == 8
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    for name, value in tensors.items():
        rest = value[2:] if "lora_A" in name else value[:, 2:]
        assert rest.numel() and not rest.any()
    with pytest.raises(UserError, match="needs 2 or more"):
        export_edit(edit, backbone, tmp_path / "b", rank=1)


def test_keys_without_the_prefix_are_the_bare_base_and_refused(tmp_path: Path) -> None:
    backbone, edit = backbone_of("llama"), edit_of()
    folder = write_plain(tmp_path / "a", edit, backbone)
    _rename(folder, lambda name: name.removeprefix("base_model.model."))
    with pytest.warns(UserWarning, match="missing adapter keys"):
        model = peft.PeftModel.from_pretrained(make_backbone("llama").model, folder)
    assert not any(value.any() for name, value in model.named_parameters() if "lora_B" in name)
    with pytest.raises(UserError, match="lacks weights that its configuration names"):
        with adapters(backbone, [folder]):
            pass
    assert not any("lora" in name for name, _ in backbone.model.named_modules())


def test_an_adapter_that_does_not_fit_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    backbone, wider = backbone_of("llama"), make_backbone("llama", intermediate_size=48)
    before = [module for _, module in backbone.model.named_modules()]
    folder = write_plain(tmp_path / "a", edit_of(), wider)
    with pytest.raises(UserError, match="a cannot be loaded on tiny-llama .*size mismatch"):
        with adapters(backbone, [folder]):
            pass
    after = [module for _, module in backbone.model.named_modules()]
    assert len(before) == len(after) and all(map(operator.is_, before, after))


@pytest.mark.parametrize("family", BIASED)
def test_a_forgotten_bias_is_another_edit_and_vllm_takes_none(family: str, tmp_path: Path) -> None:
    backbone, edit = backbone_of(family), edit_of()
    folder = write_plain(tmp_path / "a", edit, backbone)
    assert json.loads((folder / CONFIG).read_text())["lora_bias"] is True
    assert "has a bias, which vLLM cannot edit" in str(vllm_refusal(backbone))
    _spoil(folder, lora_bias=False)
    _rename(folder, lambda name: None if name.endswith("bias") else name)
    error, effect = _error(backbone, edit, folder)
    assert error > 0.02 * effect > 1e-2  # the form is readable, and wrong


def test_the_comparison_catches_a_forgotten_bias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_bias(edit: Edit, backbone: HFBackbone) -> Any:
        compiled = compile_edit(edit, backbone)
        return replace(compiled, updates=tuple(replace(u, bias=None) for u in compiled.updates))

    monkeypatch.setattr(export, "compile_edit", without_bias)
    with pytest.raises(UserError, match="differs from the edit"):
        export_edit(edit_of(), backbone_of("gpt2"), tmp_path / "a", prompts=PROMPTS)
    assert not any(tmp_path.iterdir())


def test_an_adapter_of_other_weights_is_told_from_the_hash(tmp_path: Path) -> None:
    backbone, edit = backbone_of("llama"), edit_of()
    export_edit(edit, backbone, tmp_path / "a", prompts=PROMPTS)
    check_export(tmp_path / "a", make_backbone("llama"))
    other = make_backbone("llama", seed=5)
    error, effect = _error(other, edit, tmp_path / "a")
    assert error > 0.1 * effect
    with pytest.raises(UserError, match="compiled from other weights than those of tiny-llama"):
        check_export(tmp_path / "a", other)
    # A weight that no edited layer holds does not matter: the factors do not contain it.
    with torch.no_grad():
        other = make_backbone("llama")
        other.model.get_submodule("model.layers.1.mlp.down_proj").weight.add_(1)
        check_export(tmp_path / "a", other)
        other.model.get_submodule("model.layers.2.mlp.down_proj").weight[0, 0].add_(1e-3)
    with pytest.raises(UserError, match="other weights"):
        check_export(tmp_path / "a", other)
    (tmp_path / "a" / "chameleon.json").unlink()
    with pytest.raises(UserError, match="chameleon.json cannot be read"):
        check_export(tmp_path / "a", backbone)


def test_a_quantised_base_needs_its_dequantised_weight(tmp_path: Path) -> None:
    plain, backbone, edit = make_backbone("llama"), make_backbone("llama"), edit_of()
    quantise(backbone)
    layer = backbone.model.get_submodule("model.layers.0.mlp.down_proj")
    assert isinstance(layer, Int4Linear)
    found = projection(backbone, 0)
    assert found.quantised and torch.equal(found.weight, layer.dequantised())
    done = export_edit(edit, backbone, tmp_path / "a", prompts=PROMPTS)
    assert done.agreement.error <= 2e-5 and done.agreement.effect >= 1e-2
    wrong = write_plain(tmp_path / "b", edit, plain)
    assert _error(backbone, edit, wrong)[0] > 1e-3
    with pytest.raises(UserError, match="is quantised, and merging would round it again"):
        export_edit(edit, backbone, tmp_path / "c", form="merged")


# The short name "wo" also wraps the encoder.
@pytest.mark.parametrize("family", T5)
def test_t5_names_its_decoder_in_full_and_leaves_the_encoder_alone(
    family: str, tmp_path: Path
) -> None:
    backbone, edit = backbone_of(family), edit_of()
    folder = write_plain(tmp_path / "a", edit, backbone)
    wanted = [f"decoder.block.{i}.layer.2.DenseReluDense.wo" for i in (0, 2)]
    assert json.loads((folder / CONFIG).read_text())["target_modules"] == wanted

    def wrapped() -> set[str]:
        with adapters(backbone, [folder]) as model:
            names = {name for name, _ in model.get_base_model().named_modules()}
        return {name.split(".lora_A")[0] for name in names if name.endswith("lora_A")}

    assert wrapped() == set(wanted)
    _spoil(folder, target_modules=["wo"])
    with pytest.raises(UserError, match="lacks weights"):
        wrapped()


def test_gpt2_stores_its_weight_the_other_way_round(tmp_path: Path) -> None:
    backbone, edit = backbone_of("gpt2"), edit_of()
    module = backbone.model.get_submodule("transformer.h.0.mlp.c_proj")
    found = projection(backbone, 0)
    assert found.transposed and torch.equal(found.weight, module.weight.T)
    compiled = compile_edit(edit, backbone)
    config = adapter_config(compiled.updates, backbone, base_model="x")
    assert config["fan_in_fan_out"] is True
    assert _error(backbone, edit, write_plain(tmp_path / "a", edit, backbone))[0] <= 2e-5


@pytest.mark.parametrize("family", DENSE)
def test_the_mlp_output_is_the_output_of_the_projection(family: str) -> None:
    backbone, edit = backbone_of(family), edit_of()
    names = [projection(backbone, layer).name for layer in range(backbone.n_layers)]
    hook = hook_view(backbone, edit)
    with EditHook([backbone.model.get_submodule(name) for name in names], edit):
        found = form_view(backbone, hook)
    assert distance(hook, found) == 0 and hook.tokens == found.tokens


@pytest.mark.parametrize(
    ("form", "change", "sentence"),
    [
        ("peft", lambda at: (at / WEIGHTS).write_bytes(b"x"), "adapter_model.safetensors is miss"),
        ("peft", lambda at: (at / CONFIG).unlink(), "adapter_config.json is missing or not what"),
        ("merged", lambda at: (at / "more.bin").write_bytes(b""), "more.bin is missing or not"),
        ("gguf", lambda at: (at / "adapter.gguf").write_bytes(b""), "adapter.gguf is missing or"),
        ("gguf", lambda at: (at / "chameleon.json").write_text("{"), "chameleon.json cannot be"),
    ],
)
def test_files_that_are_not_what_was_exported_are_refused_by_name(
    form: str, change: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    folder = export_edit(
        edit_of(), backbone_of("llama"), tmp_path / "a", form=form, prompts=PROMPTS
    ).folder
    assert read_record(folder)["form"] == form
    change(folder)
    with pytest.raises(UserError, match=f"{sentence}.*export the edit again"):
        check_export(folder, backbone_of("llama"))
