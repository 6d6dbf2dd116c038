"""One matrix: every architecture of the site table x everything the kit does with a backbone.

Real architecture code, random weights, tiny sizes. ``naive`` recomputes without batches, caches or
prefixes; what single families do beyond that (their traps) is in ``test_family_traps``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from chameleon_lib.backbones import SITES, HFBackbone, load_backbone
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.protocols import DecodeSettings
from chameleon_lib.lamp.prompts import ANSWER_CUE, answer_prompt
from chameleon_lib.lamp.records import HistoryItem, User
from tests.backbones import naive
from tests.backbones.demo.small import HashEmbedder, small_backbone
from tests.backbones.tiny import (
    ANSWERS,
    PROMPTS,
    make_backbone,
    make_edit,
    make_tokenizer,
)
from tests.core.method import SETTINGS, train_users

ALL = sorted(SITES)
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
@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_shared_edit_with_cache_and_shared_prefix_equals_the_uncached_reference(
    family: str, positions: str
) -> None:
    backbone, edit = tiny(family), make_edit(positions)
    expected = [naive.greedy(backbone, prompt, N, edit) for prompt in ASKED]
    assert expected != backbone.generate(ASKED, max_new_tokens=N)
    assert backbone.generate(ASKED, max_new_tokens=N, edit=edit) == expected
    assert backbone.generate(ASKED, max_new_tokens=N, edit=edit, groups=GROUPS) == expected


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
def test_read_activations_are_those_of_a_plain_hook(family: str) -> None:
    backbone = tiny(family)
    read = backbone.activations(ASKED[:1], ANSWERS[:1])  # (L, 1, d), last token
    plain = [output.reshape(-1, backbone.d)[-1] for output in site_outputs(backbone)]
    assert len(plain) == backbone.n_layers == 3 and read.std() > 1e-3
    assert torch.equal(read[:, 0], torch.stack(plain))


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
    backbone = copy.deepcopy(tiny(family))
    make_tokenizer(closes=backbone.family != "decoder").save_pretrained(tmp_path)
    backbone.model.config.save_pretrained(tmp_path)
    words = len(AutoTokenizer.from_pretrained(tmp_path))
    if words > backbone.model.get_input_embeddings().weight.shape[0]:
        # Qwen2's own class adds a word to any vocabulary; real tables have room for it.
        backbone.model.resize_token_embeddings(words, mean_resizing=False)
    backbone.model.save_pretrained(tmp_path)
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
def test_a_group_edit_is_fitted_and_moves_the_answers_of_its_users(family: str) -> None:
    users = train_users(n=3)
    backbone = small_backbone(family, seed_of(family))
    profile = Chameleon(backbone, HashEmbedder(), SETTINGS).fit(users)
    assert profile.edit.theta_p.shape == (len(profile.edit.layers), 24)
    assert bool(profile.edit.theta_p.isfinite().all() and profile.edit.theta_n.isfinite().all())
    assert profile.backbone == (backbone.name, backbone.fingerprint)
    prompts = prompts_of(users[0], users[0].history[:4])
    ready, answers = backbone.prepare(prompts), ["4"] * len(prompts)
    moved = backbone.score(ready, answers, edit=profile.edit) - backbone.score(ready, answers)
    assert moved.abs().min() > 1e-4


@pytest.mark.parametrize("family", ALL)
def test_a_short_context_drops_history_items_with_their_count_in_the_log_and_no_query(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    users, context = train_users(n=3), 60
    backbone = small_backbone(family, seed_of(family))
    backbone.model.config.get_text_config().max_position_embeddings = context
    model = Chameleon(backbone, HashEmbedder(), SETTINGS)
    with caplog.at_level(logging.WARNING):
        prepared = model.prepare(users)
    dropped = sum(4 - len(user.items) for user in prepared)
    assert len(prepared) == 3 and model.counts["too_long"] == 0 and dropped > 0
    assert model.counts["dropped_items"] == dropped
    assert [f"'dropped_items': {dropped}" in line for line in caplog.messages] == [True]
    for user in prepared:
        for prompt, query in zip(prompts_of(user.user, user.items), user.user.queries, strict=True):
            # The model reads the whole question and the answer cue, and has room to answer.
            [ids] = backbone.codec.prompts([prompt])
            seen = backbone.codec.tokenizer.decode(ids)
            assert query.text in seen and ANSWER_CUE in seen
            assert len(ids) == backbone.count_tokens(prompt) <= context - 5
