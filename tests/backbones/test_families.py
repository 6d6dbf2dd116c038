"""Families: the table, edits and readings of every kind of model, and traps of some."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from chameleon_lib.backbones import HFBackbone, backbone_from, load_backbone
from chameleon_lib.backbones.families import MODEL_FAMILIES, model_family, site_modules
from chameleon_lib.core.backbone import DecodeSettings
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.edit import Edit, EditHook, edit_factors
from chameleon_lib.core.task import ANSWER_CUE, HistoryItem, User, answer_prompt
from chameleon_lib.errors import UserError
from tests.backbones import naive
from tests.backbones.tiny import (
    ANSWERS,
    CONFIGS,
    PROMPTS,
    make_backbone,
    make_edit,
    make_model,
    make_tokenizer,
    save,
)
from tests.core.method import SETTINGS, train_users
from tests.demo.small import HashEmbedder, small_backbone


def test_every_family_of_the_table_has_a_test_model() -> None:
    assert set(CONFIGS) == set(MODEL_FAMILIES)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_mlp_output_has_model_width_and_no_residual(family: str) -> None:
    model = make_model(family)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[0, 5]])
    seen: list[torch.Tensor] = []
    modules = site_modules(model, family, "mlp_out", 3)
    for module in modules:
        module.register_forward_hook(lambda _m, _i, output: seen.append(output))
    # A site without residual gives zero when the weights behind it are zero.
    with torch.no_grad():
        for module in modules:
            for weight in module.parameters():
                weight.zero_()
        model(**inputs)
    assert len(seen) == 3
    assert all(values.shape[-1] == 24 and not values.any() for values in seen)


def test_t5_block_output_holds_the_residual_and_is_another_module() -> None:
    model = make_model("t5")
    paths = model_family("t5")
    assert paths.mlp_out == paths.block_out + ".DenseReluDense"
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        for site in ("mlp_out", "block_out"):
            module = site_modules(model, "t5", site, 3)[0]
            module.register_forward_hook(lambda _m, _i, output: seen.append(output))
        model(input_ids=torch.tensor([[5, 6]]), decoder_input_ids=torch.tensor([[0, 5]]))
    assert not torch.allclose(seen[0], seen[1])


@pytest.mark.parametrize("family", ["gpt2", "opt", "phi3"])
def test_families_without_a_gate_say_so(family: str) -> None:
    with pytest.raises(UserError, match="no gate_proj site"):
        site_modules(make_model(family), family, "gate_proj", 3)


def test_an_ungated_t5_has_no_gate() -> None:
    model = make_model("t5", feed_forward_proj="relu")
    with pytest.raises(UserError, match="no module"):
        site_modules(model, "t5", "gate_proj", 3)


def test_unknown_families_and_sites_are_refused_with_the_fix() -> None:
    with pytest.raises(UserError, match=r"'bloom' is unknown .*families\.py"):
        model_family("bloom")
    with pytest.raises(UserError, match="attn"):
        site_modules(make_model("gpt2"), "gpt2", "attn", 3)


ALL = sorted(MODEL_FAMILIES)
ASKED, GROUPS, N = PROMPTS[:3], [7, 7, 3], 4


def seed_of(family: str) -> int:
    """Random weights of the wrapped Gemma 3 repeat the prompt whatever is edited for seed 0."""
    return 2 if family == "gemma3" else 0


@lru_cache(maxsize=len(ALL))
def tiny(family: str) -> HFBackbone:
    """One backbone per family; no test leaves a change in it."""
    return make_backbone(family, seed_of(family))


def prompts_of(user: User, items: Sequence[HistoryItem]) -> list[str]:
    """What the user's queries look like to the edited model."""
    return [
        answer_prompt(user.task, items, query.text, role="P", insight=None)
        for query in user.queries
    ]


def site_outputs(backbone: HFBackbone, edit: Edit | None = None) -> list[Tensor]:
    """What every site returns for one prompt, behind the edit if there is one."""
    seen: list[Tensor] = []
    with backbone.editing(edit):
        handles = [
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
            for module in backbone.sites()
        ]
        try:
            backbone.activations(ASKED[:1], ANSWERS[:1])
        finally:
            for handle in handles:
                handle.remove()
    return seen


@pytest.mark.parametrize("family", ALL)
def test_a_batch_of_users_answers_as_each_user_alone_and_an_unedited_row_as_the_model(
    family: str,
) -> None:
    backbone = tiny(family)
    one, other = make_edit(seed=1), make_edit(seed=2)
    mixed = Edit.stack([one, None, other])
    alone = [
        backbone.generate([prompt], max_new_tokens=N, edit=edit)[0]
        for prompt, edit in zip(ASKED, (one, None, other), strict=True)
    ]
    assert backbone.generate(ASKED, max_new_tokens=N, edit=mixed, groups=GROUPS) == alone
    prepared = backbone.prepare(ASKED)
    scores = backbone.score(prepared, ANSWERS[:3], edit=mixed)
    for row, edit in enumerate((one, None, other)):
        single = backbone.score(backbone.prepare([ASKED[row]]), [ANSWERS[row]], edit=edit)
        assert torch.allclose(scores[row], single[0], atol=2e-3, rtol=1e-4)
    assert backbone.score(prepared, ANSWERS[:3]).sub(scores).abs()[[0, 2]].min() > 1e-2


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per-row"])
def test_beams_of_a_batch_are_those_of_each_prompt(family: str, per_row: bool) -> None:
    backbone, beams = tiny(family), DecodeSettings(num_beams=2)
    edit = make_edit("last", rows=len(ASKED)) if per_row else make_edit("last")
    alone = [
        backbone.generate([prompt], max_new_tokens=N, edit=edit.rows([row]), decode=beams)[0]
        for row, prompt in enumerate(ASKED)
    ]
    assert backbone.generate(ASKED, max_new_tokens=N, edit=edit, decode=beams) == alone


@pytest.mark.parametrize("family", ALL)
def test_a_saved_checkpoint_comes_back_in_both_precisions(family: str, tmp_path: Path) -> None:
    backbone = tiny(family)
    save(tmp_path, family, seed_of(family))
    full, half = load_backbone(tmp_path), load_backbone(tmp_path, dtype="bfloat16")
    edit = make_edit("last")
    expected = backbone.generate(ASKED, max_new_tokens=N, edit=edit)
    assert full.generate(ASKED, max_new_tokens=N, edit=edit) == expected
    assert full.fingerprint != half.fingerprint
    before, after = site_outputs(half), site_outputs(half, edit)
    assert {output.dtype for output in (*before, *after)} == {torch.bfloat16}
    changed = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
    assert changed[0] and changed[2]
    scores = half.score(half.prepare(ASKED), ANSWERS[:3], edit=edit)
    assert scores.dtype == torch.float32 and bool(scores.isfinite().all())
    assert len(half.generate(ASKED, max_new_tokens=N, edit=make_edit("all"), groups=GROUPS)) == 3
    exact = full.activations(ASKED, ANSWERS[:3])
    rough = half.activations(ASKED, ANSWERS[:3])
    assert torch.cosine_similarity(exact, rough, dim=-1).min() > 0.9


@pytest.mark.parametrize("family", ALL)
def test_a_short_context_drops_history_items_with_their_count_and_no_query(family: str) -> None:
    users, context = train_users(n=3), 60
    backbone = small_backbone(family, seed_of(family))
    backbone.model.config.get_text_config().max_position_embeddings = context
    prepared, left = Chameleon(backbone, HashEmbedder(), SETTINGS).prepare(users)
    dropped = sum(4 - len(user.items) for user in prepared)
    assert len(prepared) == 3 and not left and dropped > 0
    assert sum(user.dropped_items for user in prepared) == dropped
    for user in prepared:
        for prompt, query in zip(prompts_of(user.user, user.items), user.user.queries, strict=True):
            # The model reads the whole question and the answer cue, and has room to answer.
            [ids] = backbone.codec.prompts([prompt])
            seen = backbone.codec.tokenizer.decode(ids)
            assert query.text in seen and ANSWER_CUE in seen
            assert len(ids) == backbone.count_tokens(prompt) <= context - 5


T5 = ("t5", "mt5", "umt5")
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {},
    "mixtral": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "gemma2": {},
    "gemma3_text": {},
    "gemma3": {},
}


@pytest.mark.parametrize("family", WINDOWED)
def test_sliding_windows_of_some_layers_are_kept(family: str) -> None:
    backbone = make_backbone(family, seed_of(family), sliding_window=8, **WINDOWED[family])
    edit = make_edit("last")
    expected = [naive.greedy(backbone, prompt, N, edit) for prompt in ASKED]
    assert backbone.generate(ASKED, max_new_tokens=N, edit=edit, groups=GROUPS) == expected
    assert expected != tiny(family).generate(ASKED, max_new_tokens=N, edit=edit)


def folded(weight: Tensor, u: Tensor, z: Tensor, *, transposed: bool) -> Tensor:
    """``(I + U Z) W`` for a projection ``(out, in)``, or ``(in, out)`` if transposed."""
    wide = weight.mT if transposed else weight
    changed = wide + u @ (z @ wide)
    return changed.mT if transposed else changed


OUTPUTS = {
    "gpt2": "c_proj.weight",
    "opt": "weight",
    "mixtral": "experts.down_proj",
    **dict.fromkeys(T5, "wo.weight"),
}


@pytest.mark.parametrize("family", ALL)
def test_the_edit_is_a_change_of_the_output_weights_of_every_expert(family: str) -> None:
    backbone, edit = make_backbone(family), make_edit("all")
    edited = naive.logits_of(backbone, ASKED[0], [5, 6], edit)
    plain = naive.logits_of(backbone, ASKED[0], [5, 6])
    for row, layer in enumerate(edit.layers):
        u, z = edit_factors(edit.theta_p[row], edit.theta_n[row], edit.alpha_p, edit.alpha_n)
        site = backbone.sites()[layer]
        name = OUTPUTS.get(family, "down_proj.weight")
        weight = site.get_parameter(name)
        weight.data = folded(weight, u.float(), z.float(), transposed=family == "gpt2")
        bias = getattr(site.get_submodule(name.rpartition(".")[0]), "bias", None)
        if bias is not None:
            assert bias.abs().max() > 0.1  # else the bias trap would not be seen
            bias.data = bias + u.float() @ (z.float() @ bias)
    merged = naive.logits_of(backbone, ASKED[0], [5, 6])
    effect = (edited - plain).abs().max()
    assert effect > 0.1 and (merged - edited).abs().max() < 1e-4 * effect


@pytest.mark.parametrize("family", T5)
def test_half_precision_is_refused_for_t5_and_its_float32_output_layer_keeps_its_type(
    family: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="overflows in float16 .*R25.* bfloat16"):
        load_backbone(save(tmp_path, family), dtype="float16")
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float16)
    with pytest.raises(UserError, match="overflows in float16"):
        backbone_from(model, make_tokenizer(closes=True), name="half")
    sites = [block.layer[2].DenseReluDense for block in model.decoder.block]
    assert {site.wo.weight.dtype for site in sites} == {torch.float32}
    assert model.shared.weight.dtype == torch.float16
    seen: list[Tensor] = []
    with EditHook(sites, make_edit("all")), torch.no_grad():
        handle = sites[0].register_forward_hook(lambda *args: seen.append(args[2]))
        model(input_ids=torch.tensor([[5, 1]]), decoder_input_ids=torch.tensor([[0, 5]]))
        handle.remove()
    assert seen[0].dtype == torch.float32 and bool(seen[0].isfinite().all())


def test_a_decoder_starts_from_padding_where_no_file_says_otherwise() -> None:
    backbone = make_backbone("t5", decoder_start_token_id=None)
    for config in (backbone.model.config, backbone.model.generation_config):
        config.decoder_start_token_id = None
    assert backbone.generate(ASKED, max_new_tokens=N) == tiny("t5").generate(
        ASKED, max_new_tokens=N
    )
