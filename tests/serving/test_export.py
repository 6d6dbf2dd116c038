"""Hook, adapter, merged weights and GGUF are one edit, in every family; nothing else gets out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_file_torch

from chameleon_lib.backbones import load_backbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import EditProfile
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.serving import adapter, export
from chameleon_lib.serving.adapter import adapters
from chameleon_lib.serving.agreement import distance, view
from chameleon_lib.serving.export import RECORD, check_export, export_edit
from chameleon_lib.serving.factors import compile_edit
from chameleon_lib.serving.gguf_adapter import FILE, gguf_active
from chameleon_lib.serving.merged import load_merged
from tests.backbones.test_t5_head import saved
from tests.backbones.tiny import make_backbone, make_edit, make_model, make_tokenizer
from tests.serving.exported import (
    DENSE,
    FAMILIES,
    PROMPTS,
    T5,
    WITH_GGUF,
    backbone_of,
    double_backbone,
    edit_of,
    form_view,
    hook_view,
    ids_of,
    write_plain,
)

BOUND = 2e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_is_the_hook_and_the_base_when_it_is_off(family: str, tmp_path: Path) -> None:
    backbone, edit = backbone_of(family), edit_of()
    base, hook = view(backbone, ids_of(backbone), None, new_tokens=4), hook_view(backbone, edit)
    done = export_edit(edit, backbone, tmp_path / "a", prompts=PROMPTS)
    assert done.agreement.effect >= 1e-2 and done.agreement.same_tokens
    assert done.agreement.error <= BOUND
    with adapters(backbone, [tmp_path / "a"]) as model:
        found = form_view(backbone, hook)
        with model.disable_adapter():
            off = view(backbone, ids_of(backbone), None, new_tokens=4)
    assert distance(hook, found) <= BOUND and found.tokens == hook.tokens
    again = view(backbone, ids_of(backbone), None, new_tokens=4)
    for left, one, two in zip(base.logits, off.logits, again.logits, strict=True):
        assert torch.equal(left, one) and torch.equal(left, two)
    assert not any("lora" in name for name, _ in backbone.model.named_modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_checkpoint_is_the_hook(family: str, tmp_path: Path) -> None:
    backbone, edit = backbone_of(family), edit_of()
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    done = export_edit(edit, backbone, tmp_path / "m", form="merged", prompts=PROMPTS)
    assert done.agreement.effect >= 1e-2 and done.agreement.same_tokens
    assert done.agreement.error <= BOUND
    assert list((tmp_path / "m").glob("*.safetensors")) and not list(tmp_path.glob("*/*.bin"))
    after = backbone.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    merged = load_merged(tmp_path / "m", backbone)
    changed = {
        name for name, value in merged.model.state_dict().items()
        if not torch.equal(value, before[name])
    }  # fmt: skip
    names = {update.name for update in compile_edit(edit, backbone).updates}
    assert {name.removesuffix(".weight").removesuffix(".bias") for name in changed} == names


@pytest.mark.parametrize("family", WITH_GGUF)
def test_the_gguf_adapter_is_the_hook(family: str, tmp_path: Path) -> None:
    backbone, edit = backbone_of(family), edit_of()
    done = export_edit(edit, backbone, tmp_path / "g", form="gguf", prompts=PROMPTS)
    assert done.agreement.effect >= 1e-2 and done.agreement.same_tokens
    assert done.agreement.error <= BOUND
    hook = hook_view(backbone, edit)
    with gguf_active(tmp_path / "g" / FILE, backbone):
        assert form_view(backbone, hook).tokens == hook.tokens
    assert distance(form_view(backbone, hook), hook) > 1e-2  # and it is gone again


# The others round a norm to float32 in between, which would hide 1e-12 behind a zero.
@pytest.mark.parametrize("family", ["gpt2", "opt", *T5])
def test_in_float64_the_forms_agree_to_1e_12(family: str, tmp_path: Path) -> None:
    backbone, edit = double_backbone(family), edit_of(compute_dtype="float64")
    for form in ("peft", "merged"):
        done = export_edit(edit, backbone, tmp_path / form, form=form, prompts=PROMPTS)
        assert done.agreement.effect >= 1e-2
        assert done.agreement.error <= 1e-12 * max(1.0, done.agreement.effect)


@pytest.mark.parametrize("family", DENSE)
def test_in_float64_the_update_of_a_projection_is_exact(family: str) -> None:
    backbone, edit = double_backbone(family), edit_of(compute_dtype="float64")
    for row, update in enumerate(compile_edit(edit, backbone).updates):
        module = backbone.model.get_submodule(update.name)
        width = update.a.shape[-1]
        h = torch.randn(5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(row))
        with torch.no_grad():
            x = module(h)
            u, z = edit.factors(row)
            wanted = x + (x @ z.T) @ u.T
            bias = 0 if update.bias is None else update.bias
            found = x + h @ update.delta.T + bias
        assert float((wanted - x).abs().max()) >= 1e-2
        assert float((wanted - found).abs().max()) <= 1e-12


def test_an_encoder_decoder_exports_an_edit_of_the_last_position_as_it_is(tmp_path: Path) -> None:
    backbone = backbone_of("t5")
    done = export_edit(make_edit("last"), backbone, tmp_path / "a", prompts=PROMPTS)
    assert done.agreement.same_tokens and done.agreement.error <= BOUND


@pytest.mark.parametrize("order", ["p_then_n", "n_then_p"])
def test_order_strengths_and_gates_are_in_the_factors(order: str, tmp_path: Path) -> None:
    edit = edit_of(
        order=order, alpha_p=2.5, alpha_n=0.5, gate_n=torch.tensor([True, False])
    )
    done = export_edit(edit, backbone_of("llama"), tmp_path / "a", prompts=PROMPTS)
    assert done.agreement.effect >= 1e-2 and done.agreement.error <= BOUND


@pytest.mark.parametrize(
    ("family", "form", "changes", "sentence"),
    [
        ("mistral", "peft", {"positions": "last"}, "only the last prompt token .*--positions all"),
        ("mistral", "merged", {"positions": "last"}, "only the last prompt token"),
        ("mistral", "gguf", {"positions": "last"}, "only the last prompt token"),
        ("t5", "peft", {"positions": "generated"}, "generated tokens alone"),
        ("mixtral", "gguf", {}, "keeps its experts in one stacked parameter"),
        ("gpt2", "gguf", {}, "has a bias, which a GGUF adapter cannot carry"),
        ("opt", "gguf", {}, "no family 'opt'"),
        ("mistral", "peft", {"site": "block_out"}, "not an update of one matrix"),
        ("mistral", "peft", {"alpha_p": 0.0, "alpha_n": 0.0}, "nothing to export"),
        ("mistral", "peft", {"layers": (0, 3)}, "names layer 3, tiny-mistral has layers 0 to 2"),
        ("mistral", "onnx", {}, "choose one of peft, merged, gguf"),
    ],
)
def test_what_a_form_cannot_carry_is_refused_in_one_sentence(
    family: str, form: str, changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    edit = replace(edit_of(), **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=sentence) as caught:
        export_edit(edit, backbone_of(family), tmp_path / "a", form=form, prompts=PROMPTS)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and not any(tmp_path.iterdir())


def test_an_edit_per_row_is_refused(tmp_path: Path) -> None:
    edit = Edit.stack([edit_of(), edit_of(2)])
    with pytest.raises(UserError, match="one by one"):
        export_edit(edit, backbone_of("mistral"), tmp_path / "a")


@pytest.mark.parametrize("form", ["peft", "merged", "gguf"])
def test_a_form_that_answers_otherwise_leaves_nothing_and_says_so(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, other = edit_of(1), edit_of(2)
    spoiled = compile_edit(other, backbone_of("llama"))
    write = export.write_merged
    monkeypatch.setattr(export, "compile_edit", lambda *_: spoiled)
    monkeypatch.setattr(export, "write_merged", lambda to, _edit, base: write(to, other, base))
    with pytest.raises(UserError, match="differs from the edit by .* so it was deleted"):
        export_edit(edit, backbone_of("llama"), tmp_path / "a", form=form, prompts=PROMPTS)
    assert not any(tmp_path.iterdir())


def test_prompts_on_which_the_edit_does_nothing_prove_nothing(tmp_path: Path) -> None:
    weak = edit_of(alpha_p=1e-7, alpha_n=1e-7)
    with pytest.raises(UserError, match="too little to tell a right export from a wrong one"):
        export_edit(weak, backbone_of("llama"), tmp_path / "a", prompts=PROMPTS)
    assert not any(tmp_path.iterdir())


def test_a_taken_folder_is_left_alone(tmp_path: Path) -> None:
    target = write_plain(tmp_path / "a", edit_of(), backbone_of("llama"))
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(UserError, match="is taken; give a new folder"):
        export_edit(edit_of(2), backbone_of("llama"), target)
    assert before == {path.name: path.read_bytes() for path in target.iterdir()}


def test_a_crash_while_writing_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapter, "save_file", full)
    with pytest.raises(UserError, match="cannot be written .*No space left"):
        export_edit(edit_of(), backbone_of("llama"), tmp_path / "a", prompts=PROMPTS)
    assert not any(tmp_path.iterdir())


def _profile(backbone: object, edit: Edit, fingerprint: str) -> EditProfile:
    name = getattr(backbone, "name")  # noqa: B009
    return EditProfile("LaMP_2", edit, EditSettings(), (name, fingerprint), ("user-77",), 40, 2)


def test_a_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    with pytest.raises(UserError, match="was made on tiny-llama"):
        export_edit(_profile(backbone, edit_of(), "0" * 64), backbone, tmp_path / "a")


def test_the_record_names_settings_and_agreement_but_no_user(tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    profile = _profile(backbone, edit_of(), backbone.fingerprint)
    export_edit(profile, backbone, tmp_path / "a", prompts=PROMPTS)
    text = (tmp_path / "a" / RECORD).read_text()
    record = json.loads(text)
    assert record["positions"] == "all" and record["layers"] == [0, 2]
    assert record["agreement"]["error"] <= BOUND and record["agreement"]["same_tokens"]
    assert "user-77" not in text
    assert check_export(tmp_path / "a", backbone)["directions"] == record["directions"]


@pytest.mark.parametrize("own_head", [True, False])
def test_a_merged_t5_says_of_its_head_what_its_source_says(own_head: bool, tmp_path: Path) -> None:
    """Transformers 5 writes "tied" beside two tables, and transformers 4 believes it."""
    backbone = load_backbone(saved(tmp_path / "source", own_head=own_head))
    export_edit(edit_of(), backbone, tmp_path / "m", form="merged", prompts=PROMPTS)
    said = [
        json.loads((tmp_path / name / "config.json").read_text())["tie_word_embeddings"]
        for name in ("source", "m")
    ]
    assert said == [not own_head] * 2
    names = set(load_file(tmp_path / "m" / "model.safetensors"))
    assert ("lm_head.weight" in names) is own_head
    merged = load_backbone(tmp_path / "m")
    head, shared = merged.model.lm_head.weight, merged.model.shared.weight
    assert (head.data_ptr() == shared.data_ptr()) is not own_head
    prompts = list(PROMPTS)
    edited = backbone.generate(prompts, max_new_tokens=5, edit=edit_of())
    assert merged.generate(prompts, max_new_tokens=5) == edited


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_TWO = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
}


@pytest.mark.parametrize(
    ("family", "rope", "words"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 1e5}, {"rope_theta": 1e5}),
        ("mistral", {**_YARN, "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": _YARN}),
        (
            "gemma3_text",
            _TWO,
            {
                "rope_theta": 2e6,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "rope_local_base_freq": 3e4,
            },
        ),
        ("t5", None, {}),
    ],
)
def test_a_merged_checkpoint_says_in_old_and_new_words_how_it_is_read(
    family: str, rope: dict[str, object] | None, words: dict[str, object], tmp_path: Path
) -> None:
    """Transformers 4 knows no ``rope_parameters`` and takes its own base of 10,000, unsaid."""
    changes = {} if rope is None else {"rope_parameters": rope}
    backbone = make_backbone(family, **changes)
    backbone.codec.tokenizer.add_special_tokens({"additional_special_tokens": ["!"]})
    done = export_edit(edit_of(), backbone, tmp_path / "m", form="merged", prompts=PROMPTS)
    assert done.agreement.same_tokens  # version 5 reads both
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert {name: config.get(name) for name in words} == words
    tokenizer = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"  # a class of both versions
    assert tokenizer["additional_special_tokens"] == ["!"]
    assert "extra_special_tokens" not in tokenizer
    prompts = list(PROMPTS)
    again = load_backbone(tmp_path / "m")
    assert again.codec.prompts(prompts) == backbone.codec.prompts(prompts)
    assert again.codec.tokenizer.all_special_ids == backbone.codec.tokenizer.all_special_ids
    if rope is not None:
        assert again.text_config.rope_parameters == backbone.text_config.rope_parameters


def _half_base(folder: Path, family: str) -> Path:
    """A checkpoint of bfloat16 with what public ones have beside their weights."""
    make_model(family).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer(closes=family == "t5").save_pretrained(folder)
    for name in ("tokenizer.model", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md"):
        (folder / name).write_text(name)
    (folder / "notes.txt").write_text("not for others")
    return folder


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_merged_export_keeps_the_precision_of_its_base_and_what_travels_with_it(
    family: str, dtype: str, tmp_path: Path
) -> None:
    """A profile fitted in float32 on a bfloat16 base is of that base in either precision."""
    folder = _half_base(tmp_path / "base", family)
    profile = _profile(load_backbone(folder), edit_of(), load_backbone(folder).fingerprint)
    backbone = load_backbone(folder, dtype=dtype)
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    export_edit(profile, backbone, tmp_path / "m", form="merged", prompts=PROMPTS)
    after = backbone.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    old, new = (load_file_torch(tmp_path / at / "model.safetensors") for at in ("base", "m"))
    assert set(old) == set(new)
    assert {value.dtype for value in new.values()} == {torch.bfloat16}
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    edited = {f"{update.name}.weight" for update in compile_edit(edit_of(), backbone).updates}
    assert changed == edited
    config, record = (json.loads((tmp_path / "m" / name).read_text()) for name in
                      ("config.json", RECORD))  # fmt: skip
    assert config["dtype"] == record["dtype"] == "bfloat16"
    assert record["agreement"]["error"] < record["agreement"]["effect"] / 2
    travelled = {path.name for path in (tmp_path / "m").iterdir()} & {
        path.name for path in folder.iterdir()
    }
    assert {"tokenizer.model", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md"} <= travelled
    assert "notes.txt" not in travelled
    assert load_backbone(tmp_path / "m").stored_dtype == torch.bfloat16
