from __future__ import annotations

import ast
from itertools import product

import pytest
import torch

from chameleon_lib.backbones.generation import gumbel, noise_keys
from chameleon_lib.core.backbone import DecodeSettings
from chameleon_lib.errors import UserError
from tests.backbones import naive
from tests.backbones.tiny import (
    CONFIGS,
    GROUPS,
    PROMPTS,
    make_backbone,
    make_edit,
    prepared_positions,
)

MAIN = ("mistral", "gpt2", "t5")
N = 8


@pytest.mark.parametrize(
    ("family", "positions"),
    [*product(CONFIGS, ["none", "last", "all"]), *product(MAIN, ["generated"])],
)
def test_a_batch_equals_the_naive_loop_for_every_family(family: str, positions: str) -> None:
    # Random weights of the wrapped Gemma 3 repeat the prompt whatever is edited for seed 0.
    backbone = make_backbone(family, 2 if family == "gemma3" else 0)
    edit = None if positions == "none" else make_edit(positions)
    expected = [naive.greedy(backbone, prompt, N, edit) for prompt in PROMPTS]
    assert len(set(expected)) > 1
    assert edit is None or expected != backbone.generate(PROMPTS, max_new_tokens=N)
    assert backbone.generate(PROMPTS, max_new_tokens=N, edit=edit) == expected
    assert backbone.generate(PROMPTS, max_new_tokens=N, edit=edit, groups=GROUPS) == expected


def test_a_group_computes_its_shared_start_once() -> None:
    backbone = make_backbone("mistral")
    prompts = [PROMPTS[3][:-12] + ending for ending in (" one:", " two:", " three:", " four:")]
    together = prepared_positions(backbone, prompts, [0, 0, 0, 0])
    assert together < 0.5 * prepared_positions(backbone, prompts)


@pytest.mark.parametrize("window", [8, 16])
def test_a_sliding_window_is_kept_with_and_without_groups(window: int) -> None:
    backbone = make_backbone("mistral", sliding_window=window)
    expected = [naive.greedy(backbone, prompt, N) for prompt in PROMPTS]
    assert backbone.generate(PROMPTS, max_new_tokens=N) == expected
    assert backbone.generate(PROMPTS, max_new_tokens=N, groups=GROUPS) == expected


@pytest.mark.parametrize("family", MAIN)
def test_a_prepared_prefix_can_be_used_again_and_again(family: str) -> None:
    backbone, edit = make_backbone(family), make_edit("last")
    prepared = backbone.prepare(PROMPTS, groups=GROUPS)
    plain = backbone.generate(PROMPTS, max_new_tokens=N)
    edited = backbone.generate(PROMPTS, max_new_tokens=N, edit=edit)
    for _ in range(2):
        assert backbone.generate_prepared(prepared, max_new_tokens=N) == plain
        assert backbone.generate_prepared(prepared, max_new_tokens=N, edit=edit) == edited


@pytest.mark.parametrize("family", MAIN)
def test_without_memory_for_prefixes_results_stay_the_same(family: str) -> None:
    backbone = make_backbone(family)
    backbone.prefix_bytes = 0
    prepared = backbone.prepare(PROMPTS)
    assert all(batch.prefix is None for batch in prepared.batches)
    plain = backbone.generate(PROMPTS, max_new_tokens=N)
    assert backbone.generate_prepared(prepared, max_new_tokens=N) == plain


@pytest.mark.parametrize("family", MAIN)
def test_edited_tokens_per_layer_equal_the_generated_tokens(family: str) -> None:
    backbone, edit = make_backbone(family), make_edit("last")
    backbone.codec.eos_ids = (399,)  # a token nothing ends on, so exactly T tokens are generated
    backbone.generate(PROMPTS[:1], max_new_tokens=N, edit=edit)
    assert backbone.usage.tokens == {0: N, 2: N}
    assert backbone.usage.calls == {0: N, 2: N}


def test_edit_ratios_are_collected_on_request() -> None:
    backbone = make_backbone("mistral")
    backbone.diagnostics = True
    backbone.generate(PROMPTS, max_new_tokens=N, edit=make_edit("last"))
    assert all(row["edit"] > 0 for row in backbone.usage.mean_ratios().values())


@pytest.mark.parametrize("family", MAIN)
def test_rows_that_end_are_dropped_without_changing_the_others(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, n = make_backbone(family), 12
    prompts = [f"{prompt} {i}" for i in range(3) for prompt in PROMPTS]
    edit = make_edit("last", rows=len(prompts))
    with monkeypatch.context() as patch:
        patch.setattr(backbone.codec, "decode", lambda rows: [str(row) for row in rows.tolist()])
        texts = backbone.generate(prompts, max_new_tokens=n, edit=edit)
    written = [set(ast.literal_eval(text)[:6]) for text in texts]
    # Let tokens end the answer that most rows write, but not all.
    ends = {backbone.codec.eos_id}
    for token in sorted(set().union(*written)):
        ends |= {token} if any(not row & (ends | {token}) for row in written) else set()
    assert 9 <= sum(bool(row & ends) for row in written) < 18
    backbone.codec.eos_ids = tuple(sorted(ends))
    backbone.codec.eos_id = backbone.codec.eos_ids[0]
    rows: list[int] = []
    handle = backbone.sites()[0].register_forward_hook(
        lambda _module, _inputs, output: rows.append(output.shape[0])
    )
    together = backbone.generate(prompts, max_new_tokens=n, edit=edit)
    handle.remove()
    assert 0 < min(rows) < len(prompts)
    for row, prompt in enumerate(prompts):
        alone = backbone.generate([prompt], max_new_tokens=n, edit=edit.rows([row]))
        assert together[row] == alone[0]


@pytest.mark.parametrize("family", MAIN)
def test_an_edit_leaves_the_model_bit_identical(family: str) -> None:
    backbone = make_backbone(family)
    before = backbone.activations(PROMPTS, [""] * len(PROMPTS))
    backbone.generate(PROMPTS, max_new_tokens=N, edit=make_edit("all"))
    assert torch.equal(before, backbone.activations(PROMPTS, [""] * len(PROMPTS)))


@pytest.mark.parametrize("family", MAIN)
def test_a_sample_depends_on_seed_and_prompt_and_on_no_order_batch_or_group(family: str) -> None:
    backbone, decode = make_backbone(family), DecodeSettings(do_sample=True, temperature=2.0)
    together = backbone.generate(PROMPTS, max_new_tokens=N, decode=decode)
    assert together == backbone.generate(PROMPTS, max_new_tokens=N, decode=decode, groups=GROUPS)
    backwards = backbone.generate(PROMPTS[::-1], max_new_tokens=N, decode=decode)
    assert backwards[::-1] == together
    for at in (0, 4):
        alone = backbone.generate(PROMPTS[at : at + 2], max_new_tokens=N, decode=decode)
        assert alone == together[at : at + 2]
    some = backbone.rows(backbone.prepare(PROMPTS), [4, 1])
    taken = backbone.generate_prepared(some, max_new_tokens=N, decode=decode)
    assert taken == [together[4], together[1]]
    other = DecodeSettings(do_sample=True, temperature=2.0, seed=1)
    assert together != backbone.generate(PROMPTS, max_new_tokens=N, decode=other)


def test_equal_prompts_of_a_call_are_sampled_apart() -> None:
    backbone, decode = make_backbone("gpt2"), DecodeSettings(do_sample=True, temperature=2.0)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
    found = backbone.generate(prompts, max_new_tokens=N, decode=decode)
    assert len(set(found)) == 4
    assert found[:2] == backbone.generate(PROMPTS[:2], max_new_tokens=N, decode=decode)
    keys = noise_keys(backbone.prepare(prompts))
    assert len(set(keys)) == 4 and all(0 <= key < 1 << 63 for key in keys)


def test_the_sampling_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    keys = torch.arange(20_000)
    for step in (0, 5):
        drawn = (logits + gumbel(keys, step, 4, seed=3)).argmax(dim=1)
        share = torch.bincount(drawn, minlength=4) / len(keys)
        assert torch.allclose(share, logits.softmax(dim=0), atol=0.015)


def test_a_prompt_is_never_cut_but_refused() -> None:
    backbone = make_backbone("gpt2")
    long = "word " * 300
    with pytest.raises(UserError, match=r"Prompt 1 has \d+ tokens .* at most 256"):
        backbone.generate(["short", long], max_new_tokens=2)
    assert not backbone.fits(long, 2)
    tokens = backbone.count_tokens(PROMPTS[0])
    assert backbone.fits(PROMPTS[0], 256 - tokens) and not backbone.fits(PROMPTS[0], 257 - tokens)
    assert make_backbone("t5").fits(long, 2)


def test_empty_prompts_and_wrong_counts_are_refused() -> None:
    backbone = make_backbone("mistral")
    with pytest.raises(UserError, match="Prompt 1 is empty"):
        backbone.generate(["a", " "], max_new_tokens=2)
    with pytest.raises(UserError, match="groups"):
        backbone.generate(["a", "b"], max_new_tokens=2, groups=[1])
    with pytest.raises(UserError, match="edit of 3 rows"):
        backbone.generate(["a", "b"], max_new_tokens=2, edit=make_edit(rows=3))
