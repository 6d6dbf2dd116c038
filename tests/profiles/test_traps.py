"""The traps of adapter files, each one set on purpose: the damage is measured, and then refused.

Numbered as the ten of the trap list (section b.1 of the reference); the eleventh is that of sites
and names, with which b.2 begins.
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
from chameleon_lib.profiles import export
from chameleon_lib.profiles.adapter_rules import check_adapter
from chameleon_lib.profiles.agreement import distance, view
from chameleon_lib.profiles.export import check_weights, export_edit
from chameleon_lib.profiles.factors import compile_edit
from chameleon_lib.profiles.forms import server_refusal
from chameleon_lib.profiles.peft_adapter import CONFIG, WEIGHTS, adapter_config, adapters
from chameleon_lib.profiles.projections import projection
from tests.backbones.tiny import make_backbone
from tests.profiles.exported import (
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
    with adapters(backbone, {"u": folder}):
        found = form_view(backbone, hook)
    return distance(hook, found), distance(hook, base)


# 1, 2, 5: the scale. A lost or a default alpha and rank-stabilised scaling all change the strength.
@pytest.mark.parametrize(
    "changes", [{"lora_alpha": 8}, {"use_rslora": True}, {"lora_alpha": 1}, {"r": None}]
)
def test_traps_1_2_5_a_wrong_scale_is_another_edit_and_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    backbone, edit = backbone_of("llama"), edit_of()
    folder = write_plain(tmp_path / "a", edit, backbone)
    assert _error(backbone, edit, folder)[0] <= 2e-5
    _spoil(folder, **changes)
    if changes != {"r": None}:
        error, effect = _error(backbone, edit, folder)
        assert error > 0.05 * effect > 1e-3
    with pytest.raises(UserError, match="adapter_config.json: (lora_alpha|use_rslora|r )"):
        check_adapter(folder)


def test_trap_3_zero_padding_to_rank_8_is_exact(tmp_path: Path) -> None:
    backbone, edit = backbone_of("llama"), edit_of()
    done = export_edit(edit, backbone, tmp_path / "a", rank=8, prompts=PROMPTS)
    assert done.agreement.error <= 2e-5 and done.rank == 8
    config = check_adapter(tmp_path / "a", server="vllm")
    assert config["r"] == config["lora_alpha"] == 8
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    for name, value in tensors.items():
        rest = value[2:] if "lora_A" in name else value[:, 2:]
        assert rest.numel() and not rest.any()
    with pytest.raises(UserError, match="needs 2 or more"):
        export_edit(edit, backbone, tmp_path / "b", rank=1)


def test_trap_4_keys_without_the_prefix_are_the_bare_base_and_refused(tmp_path: Path) -> None:
    backbone, edit = backbone_of("llama"), edit_of()
    folder = write_plain(tmp_path / "a", edit, backbone)
    _rename(folder, lambda name: name.removeprefix("base_model.model."))
    with pytest.warns(UserWarning, match="missing adapter keys"):
        model = peft.PeftModel.from_pretrained(make_backbone("llama").model, folder)
    assert not any(value.any() for name, value in model.named_parameters() if "lora_B" in name)
    with pytest.raises(UserError, match="lacks weights that its configuration names"):
        with adapters(backbone, {"u": folder}):
            pass
    assert not any("lora" in name for name, _ in backbone.model.named_modules())
    with pytest.raises(UserError, match="readers skip such keys in silence"):
        check_adapter(folder)


def test_trap_4_the_second_adapter_of_a_batch_is_checked_too(tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    good = write_plain(tmp_path / "a", edit_of(1), backbone)
    bad = write_plain(tmp_path / "b", edit_of(2), backbone)
    _rename(bad, lambda name: name.removeprefix("base_model.model."))
    with pytest.raises(UserError, match="b lacks weights"):
        with adapters(backbone, {"u": good, "v": bad}):
            pass
    assert not any("lora" in name for name, _ in backbone.model.named_modules())


def test_an_adapter_that_does_not_fit_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    backbone, wider = backbone_of("llama"), make_backbone("llama", intermediate_size=48)
    before = [module for _, module in backbone.model.named_modules()]
    folder = write_plain(tmp_path / "a", edit_of(), wider)
    with pytest.raises(UserError, match="a cannot be loaded on tiny-llama .*size mismatch"):
        with adapters(backbone, {"u": folder}):
            pass
    after = [module for _, module in backbone.model.named_modules()]
    assert len(before) == len(after) and all(map(operator.is_, before, after))


@pytest.mark.parametrize("family", BIASED)
def test_trap_6_a_forgotten_bias_is_refused_and_servers_are_told(
    family: str, tmp_path: Path
) -> None:
    backbone, edit = backbone_of(family), edit_of()
    folder = write_plain(tmp_path / "a", edit, backbone)
    assert check_adapter(folder)["lora_bias"] is True
    for server in ("vllm", "sglang"):
        assert "has a bias" in str(server_refusal(backbone, server))
        with pytest.raises(UserError, match="lora_bias is not served by"):
            check_adapter(folder, server=server)
    _spoil(folder, lora_bias=False)
    _rename(folder, lambda name: None if name.endswith("bias") else name)
    error, effect = _error(backbone, edit, folder)
    assert error > 0.02 * effect > 1e-2  # the form is readable, and wrong


def test_trap_6_the_comparison_catches_a_forgotten_bias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_bias(edit: Edit, backbone: HFBackbone) -> Any:
        compiled = compile_edit(edit, backbone)
        return replace(compiled, updates=tuple(replace(u, bias=None) for u in compiled.updates))

    monkeypatch.setattr(export, "compile_edit", without_bias)
    with pytest.raises(UserError, match="differs from the edit"):
        export_edit(edit_of(), backbone_of("gpt2"), tmp_path / "a", prompts=PROMPTS)
    assert not any(tmp_path.iterdir())


def test_trap_7_an_adapter_of_other_weights_is_told_from_the_hash(tmp_path: Path) -> None:
    backbone, edit = backbone_of("llama"), edit_of()
    export_edit(edit, backbone, tmp_path / "a", prompts=PROMPTS)
    check_weights(tmp_path / "a", make_backbone("llama"))
    other = make_backbone("llama", seed=5)
    error, effect = _error(other, edit, tmp_path / "a")
    assert error > 0.1 * effect
    with pytest.raises(UserError, match="compiled from other weights than those of tiny-llama"):
        check_weights(tmp_path / "a", other)
    # A weight that no edited layer holds does not matter: the factors do not contain it.
    with torch.no_grad():
        other = make_backbone("llama")
        other.model.get_submodule("model.layers.1.mlp.down_proj").weight.add_(1)
        check_weights(tmp_path / "a", other)
        other.model.get_submodule("model.layers.2.mlp.down_proj").weight[0, 0].add_(1e-3)
    with pytest.raises(UserError, match="other weights"):
        check_weights(tmp_path / "a", other)
    (tmp_path / "a" / "chameleon.json").unlink()
    with pytest.raises(UserError, match="chameleon.json cannot be read"):
        check_weights(tmp_path / "a", backbone)


def test_trap_8_a_quantised_base_needs_its_dequantised_weight(tmp_path: Path) -> None:
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


def test_trap_9_the_base_is_named_as_the_server_calls_it(tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    export_edit(edit_of(), backbone, tmp_path / "a", base_model="my/llama", prompts=PROMPTS)
    check_adapter(tmp_path / "a", server="vllm", base_model="my/llama")
    with pytest.raises(UserError, match="is for 'my/llama', the server calls its model 'llama'"):
        check_adapter(tmp_path / "a", server="vllm", base_model="llama")


def test_trap_10_the_adapter_is_plain_lora_and_no_tuner_that_peft_dropped(tmp_path: Path) -> None:
    assert "BONE" not in {kind.value for kind in peft.PeftType}
    folder = write_plain(tmp_path / "a", edit_of(), backbone_of("llama"))
    assert check_adapter(folder)["peft_type"] == "LORA"
    _spoil(folder, peft_type="BONE")
    with pytest.raises(UserError, match="peft_type must be LORA"):
        check_adapter(folder)


# 11: T5. The short name "wo" also wraps the encoder.
@pytest.mark.parametrize("family", T5)
def test_trap_11_t5_names_its_decoder_in_full_and_leaves_the_encoder_alone(
    family: str, tmp_path: Path
) -> None:
    backbone, edit = backbone_of(family), edit_of()
    folder = write_plain(tmp_path / "a", edit, backbone)
    wanted = [f"decoder.block.{i}.layer.2.DenseReluDense.wo" for i in (0, 2)]
    assert check_adapter(folder)["target_modules"] == wanted

    def wrapped() -> set[str]:
        with adapters(backbone, {"u": folder}) as model:
            names = {name for name, _ in model.get_base_model().named_modules()}
        return {name.split(".lora_A")[0] for name in names if name.endswith("lora_A")}

    assert wrapped() == set(wanted)
    _spoil(folder, target_modules=["wo"])
    with pytest.raises(UserError, match="lacks weights"):
        wrapped()
    with pytest.raises(UserError, match="target_modules and the tensors differ"):
        check_adapter(folder)


def test_trap_11_gpt2_stores_its_weight_the_other_way_round(tmp_path: Path) -> None:
    backbone, edit = backbone_of("gpt2"), edit_of()
    module = backbone.model.get_submodule("transformer.h.0.mlp.c_proj")
    found = projection(backbone, 0)
    assert found.transposed and torch.equal(found.weight, module.weight.T)
    compiled = compile_edit(edit, backbone)
    config = adapter_config(compiled.updates, backbone, base_model="x")
    assert config["fan_in_fan_out"] is True
    assert _error(backbone, edit, write_plain(tmp_path / "a", edit, backbone))[0] <= 2e-5


@pytest.mark.parametrize("family", DENSE)
def test_trap_11_the_mlp_output_is_the_output_of_the_projection(family: str) -> None:
    backbone, edit = backbone_of(family), edit_of()
    names = [projection(backbone, layer).name for layer in range(backbone.n_layers)]
    hook = hook_view(backbone, edit)
    with EditHook([backbone.model.get_submodule(name) for name in names], edit):
        found = form_view(backbone, hook)
    assert distance(hook, found) == 0 and hook.tokens == found.tokens


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target_modules": ".*down_proj"}, "must be a list of names; SGLang refuses a string"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias must be none"),
        ({"lora_dropout": 0.1}, "lora_dropout must be 0"),
        ({"rank_pattern": {"x": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"x": 4}}, "alpha_pattern"),
        ({"r": 4, "lora_alpha": 4}, "have ranks .* says 4"),
    ],
)
def test_a_configuration_that_readers_take_otherwise_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = write_plain(tmp_path / "a", edit_of(), backbone_of("mistral"))
    check_adapter(folder)
    _spoil(folder, **changes)
    with pytest.raises(UserError, match=sentence):
        check_adapter(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"alora_invocation_tokens": [3]}, "aLoRA is not served by"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not served by"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is not served by"),
    ],
)
def test_what_servers_reject_is_refused_before_they_do(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = write_plain(tmp_path / "a", edit_of(), backbone_of("mistral"))
    check_adapter(folder, server="vllm", base_model="tiny")
    check_adapter(folder, server="sglang", base_model="tiny")
    _spoil(folder, **changes)
    check_adapter(folder)
    with pytest.raises(UserError, match=sentence):
        check_adapter(folder, server="vllm")


def test_damaged_adapter_files_are_refused_with_their_name(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "a", edit_of(), backbone_of("mistral"))
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:100])
    with pytest.raises(UserError, match="adapter_model.safetensors cannot be read"):
        check_adapter(folder)
    (folder / WEIGHTS).write_bytes(content)
    _rename(folder, lambda name: None if "layers.0" in name and "lora_A" in name else name)
    with pytest.raises(UserError, match=r"down_proj has B.weight instead of A.weight, B.weight"):
        check_adapter(folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(UserError, match="adapter_config.json cannot be read"):
        check_adapter(folder)
