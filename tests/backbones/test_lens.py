from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chameleon_lib.backbones.lens import first_difference, logit_lens
from chameleon_lib.errors import UserError
from tests.backbones.tiny import PROMPTS, make_backbone, make_edit

ANSWER = "two friends follow a lonely man"
FAMILIES = ["mistral", "t5", "gpt2", "opt", "gemma2"]


@pytest.mark.parametrize("positions", ["last", "all", "generated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_after_the_last_layer_the_lens_is_the_models_own_answer(
    family: str, positions: str
) -> None:
    backbone = make_backbone(family)
    prepared = backbone.prepare([PROMPTS[0]])
    (tokens,) = backbone.codec.answers([ANSWER])
    assert len(tokens) > 1
    for edit in (None, make_edit(positions)):
        total = 0.0
        for at, token in enumerate([*tokens, backbone.codec.eos_id]):
            seen = logit_lens(backbone, PROMPTS[0], edit, tokens[:at])
            assert seen.shape[0] == backbone.n_layers == 3
            assert torch.allclose(seen.exp().sum(dim=-1), torch.ones(3), atol=1e-5)
            total += float(seen[-1, token])
        scored = backbone.score(prepared, [ANSWER], edit=edit)
        assert total == pytest.approx(float(scored[0]), abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_0_is_the_base_bit_for_bit_and_an_edit_acts_from_its_layer_on(family: str) -> None:
    backbone = make_backbone(family)
    base = logit_lens(backbone, PROMPTS[1])
    edit = make_edit()
    nothing = replace(edit, alpha_p=0.0, alpha_n=0.0)
    assert torch.equal(logit_lens(backbone, PROMPTS[1], nothing), base)
    layer = edit.layers[-1]
    alone = replace(
        edit, layers=(layer,), theta_p=edit.theta_p[-1:], theta_n=edit.theta_n[-1:], alpha_p=2.0
    )
    changed = (logit_lens(backbone, PROMPTS[1], alone) != base).any(dim=-1)
    assert changed.tolist() == [at >= layer for at in range(3)]
    assert torch.equal(logit_lens(backbone, PROMPTS[1]), base)  # no hook is left behind


@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_an_edit_of_whole_blocks_is_in_what_the_lens_reads(family: str) -> None:
    backbone = make_backbone(family)
    edit = replace(make_edit(), site="block_out")
    base, seen = logit_lens(backbone, PROMPTS[1]), logit_lens(backbone, PROMPTS[1], edit)
    first = min(edit.layers)
    assert not torch.equal(seen[first], base[first])


def test_answers_part_at_their_first_different_token() -> None:
    backbone = make_backbone("mistral")
    start, one, two = first_difference(backbone, "dark comedy", "dark action")
    tokens = backbone.codec.answers(["dark comedy", "dark action"])
    assert tokens[0][: len(start) + 1] == [*start, one]
    assert tokens[1][: len(start) + 1] == [*start, two] and one != two and start
    start, one, _ = first_difference(backbone, "dark", "dark comedy")
    assert one == backbone.codec.eos_id and start == backbone.codec.answers(["dark"])[0]


def test_what_cannot_be_looked_at_is_refused() -> None:
    backbone = make_backbone("mistral")
    with pytest.raises(UserError, match="Two different answers are needed"):
        first_difference(backbone, "comedy", "comedy")
    with pytest.raises(UserError, match="shared edit"):
        logit_lens(backbone, PROMPTS[0], make_edit(rows=2))
    with pytest.raises(UserError, match="is empty"):
        logit_lens(backbone, " ")
