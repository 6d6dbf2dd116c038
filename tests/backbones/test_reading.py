"""What is read of given texts: log-probabilities of answers and site outputs, by naive passes."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.errors import UserError
from tests.backbones import naive
from tests.backbones.tiny import ANSWERS, CONFIGS, GROUPS, PROMPTS, make_backbone, make_edit

MAIN = ("mistral", "gpt2", "t5")


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("positions", ["none", "last", "all", "generated"])
def test_scores_equal_a_full_forward_for_every_family(family: str, positions: str) -> None:
    backbone = make_backbone(family)
    edit = None if positions == "none" else make_edit(positions)
    pairs = zip(PROMPTS, ANSWERS, strict=True)
    expected = torch.stack([naive.score(backbone, *pair, edit) for pair in pairs])
    for groups in (None, GROUPS):
        prepared = backbone.prepare(PROMPTS, groups=groups)
        found = backbone.score(prepared, ANSWERS, edit=edit)
        assert found.std() > 1 and close(found, expected)
    change = (found - backbone.score(prepared, ANSWERS)).abs().max()
    assert (change > 0.1) == (edit is not None)


@pytest.mark.parametrize("family", MAIN)
@pytest.mark.parametrize("positions", ["last", "all", "generated"])
def test_gradients_reach_the_directions_and_only_them(family: str, positions: str) -> None:
    backbone, fixed = make_backbone(family), make_edit(positions)

    def total(theta_p: torch.Tensor, theta_n: torch.Tensor) -> torch.Tensor:
        edit = Edit(fixed.layers, theta_p, theta_n, positions=positions)
        return backbone.score(prepared, ANSWERS, edit=edit).sum()

    with torch.inference_mode():  # a prefix made here must still serve a gradient later
        prepared = backbone.prepare(PROMPTS)
    theta_p = fixed.theta_p.clone().requires_grad_()
    theta_n = fixed.theta_n.clone().requires_grad_()
    total(theta_p, theta_n).backward()
    assert theta_p.grad is not None and theta_n.grad is not None
    assert all(weight.grad is None for weight in backbone.model.parameters())
    for theta, grad in ((theta_p, theta_p.grad), (theta_n, theta_n.grad)):
        direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            ends = []
            for sign in (1.0, -1.0):
                theta.add_(sign * 1e-2 * direction)
                ends.append(float(total(theta_p, theta_n)))
                theta.sub_(sign * 1e-2 * direction)
        slope = (ends[0] - ends[1]) / 2e-2
        assert float((grad * direction).sum()) == pytest.approx(slope, rel=0.05, abs=0.05)


@pytest.mark.parametrize("family", MAIN)
def test_several_answers_per_prompt_equal_single_scores(family: str) -> None:
    backbone = make_backbone(family)
    prepared = backbone.prepare(PROMPTS)
    lists = [ANSWERS[: 1 + row % 3] for row in range(len(PROMPTS))]
    many = backbone.score_many(prepared, lists, reduce="mean")
    for row, scores in enumerate(many):
        assert scores.shape == (1 + row % 3,)
        for at, value in enumerate(scores):
            answers = [lists[row][at]] * len(PROMPTS)
            alone = backbone.score(prepared, answers, reduce="mean")[row]
            assert close(value, alone)


def test_the_mean_divides_by_answer_tokens_and_eos() -> None:
    backbone = make_backbone("gpt2")
    prepared = backbone.prepare(PROMPTS)
    counts = torch.tensor([len(ids) + 1 for ids in backbone.codec.answers(ANSWERS)])
    mean = backbone.score(prepared, ANSWERS, reduce="mean")
    assert close(mean * counts, backbone.score(prepared, ANSWERS))
    with pytest.raises(ValueError, match="reduce"):
        backbone.score(prepared, ANSWERS, reduce="median")  # type: ignore[arg-type]


def test_answers_beyond_the_context_and_wrong_counts_are_refused() -> None:
    backbone = make_backbone("gpt2")
    prepared = backbone.prepare(PROMPTS[:2])
    with pytest.raises(UserError, match="at most 256"):
        backbone.score(prepared, ["ok", "word " * 260])
    with pytest.raises(UserError, match="2 prompts but 1 answers"):
        backbone.score(prepared, ["ok"])


def test_a_short_prompt_beside_one_that_fills_the_context_is_scored_rightly() -> None:
    backbone = make_backbone("gpt2")
    long = "x" * (256 - 10)
    assert backbone.count_tokens(long) > 200
    prompts, answers = [long, "x"], ["a", "a lonely robot"]
    found = backbone.score(backbone.prepare(prompts), answers)
    for row in range(2):
        expected = naive.score(backbone, prompts[row], answers[row])
        assert close(found[row], expected)


def naive_read(
    backbone: HFBackbone, context: str, answer: str, pooling: str, site: str = "mlp_out"
) -> Tensor:
    """One row, full forward with the language-model head, every layer ``(n_layers, width)``."""
    before, after = backbone.codec.prompts([context])[0], backbone.codec.answers([answer])[0]
    if backbone.family == "decoder":
        inputs = {"input_ids": torch.tensor([before + after])}
    else:
        inputs = {
            "input_ids": torch.tensor([before]),
            "decoder_input_ids": torch.tensor([[0, *after]]),
        }
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, output: seen.append(output.reshape(-1, output.shape[-1]))
        )
        for module in backbone.sites(site)
    ]
    with torch.no_grad():
        backbone.model(**inputs)
    for handle in handles:
        handle.remove()
    start = {"last": -1, "mean_answer": -len(after), "mean_all": 0}[pooling]
    return torch.stack([values[start:].mean(dim=0) for values in seen])


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("pooling", ["last", "mean_answer", "mean_all"])
def test_activations_equal_a_naive_forward(family: str, pooling: str) -> None:
    backbone = make_backbone(family)
    found = backbone.activations(PROMPTS, ANSWERS, pooling=pooling)  # type: ignore[arg-type]
    assert found.shape == (3, len(PROMPTS), 24) and found.dtype == torch.float32
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        expected = naive_read(backbone, prompt, answer, pooling)
        assert expected.std() > 1e-3
        assert torch.allclose(found[:, row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "t5"])
@pytest.mark.parametrize(("site", "width"), [("gate_proj", 40), ("block_out", 24)])
def test_other_sites_are_read_with_their_own_width(family: str, site: str, width: int) -> None:
    backbone = make_backbone(family)
    found = backbone.activations(PROMPTS, ANSWERS, site=site)
    assert found.shape == (3, len(PROMPTS), width)
    expected = naive_read(backbone, PROMPTS[0], ANSWERS[0], "last", site)
    assert torch.allclose(found[:, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gpt2", "t5"])
def test_contexts_or_answers_may_be_empty(family: str) -> None:
    backbone = make_backbone(family)
    found = backbone.activations([PROMPTS[0], ""], ["", ANSWERS[0]])
    assert torch.isfinite(found).all()
    whole = naive_read(backbone, PROMPTS[0], "", "last")
    assert torch.allclose(found[:, 0], whole, rtol=1e-4, atol=1e-4)


def test_nothing_to_read_is_refused() -> None:
    backbone = make_backbone("gpt2", n_layer=2)
    with pytest.raises(UserError, match="Answer 1 is empty"):
        backbone.activations(PROMPTS[:2], ["a", ""], pooling="mean_answer")
    with pytest.raises(UserError, match="embed_pooling"):
        backbone.activations(PROMPTS[:1], ["a"], pooling="first")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="2 contexts but 1"):
        backbone.activations(PROMPTS[:2], ["a"])
    assert backbone.activations([], []).shape == (2, 0, 24)


def test_activations_can_be_used_with_gradients_and_leave_no_hook() -> None:
    backbone = make_backbone("mistral")
    values = backbone.activations(PROMPTS, ANSWERS)
    weight = torch.ones(24, requires_grad=True)
    (values * weight).sum().backward()
    assert weight.grad is not None
    assert all(not module._forward_hooks for module in backbone.sites())


def test_a_copy_of_a_model_has_weights_and_a_lock_of_its_own() -> None:
    backbone = make_backbone("llama")
    other = copy.deepcopy(backbone)
    assert other.lock is not backbone.lock

    def said(one: HFBackbone) -> list[str]:
        return one.generate(PROMPTS, max_new_tokens=4)

    with backbone.lock, ThreadPoolExecutor(1) as pool:  # which another thread would wait for
        assert pool.submit(said, other).result(timeout=60) == said(backbone)
    before = backbone.score(backbone.prepare(PROMPTS), ANSWERS)
    for weights in other.model.parameters():
        weights.data.zero_()
    assert torch.equal(backbone.score(backbone.prepare(PROMPTS), ANSWERS), before)
