from __future__ import annotations

import pytest
import torch

from chameleon_lib.backbones.demo.architectures import build_model
from chameleon_lib.backbones.demo.batches import encdec_batch
from chameleon_lib.backbones.demo.lessons import GAINS, EditLessons, gains_of
from chameleon_lib.backbones.demo.recipe import TrainSettings
from chameleon_lib.backbones.demo.tokenizer import build_tokenizer
from chameleon_lib.backbones.sites import site_modules
from tests.backbones.demo.worlds import random_of

SETTINGS = TrainSettings(family="encdec", steps=10, batch=3, lesson_steps=5)


@pytest.fixture
def model():  # type: ignore[no-untyped-def]
    return build_model(SETTINGS, build_tokenizer()).eval()


def mlp_outputs(model, inputs):  # type: ignore[no-untyped-def]
    """MLP outputs of the decoder layers as later layers see them, (L, B, T, d), and logits."""
    seen: list[torch.Tensor] = []
    handles = [
        site.register_forward_hook(lambda _m, _a, output: seen.append(output))
        for site in site_modules(model, "t5", "mlp_out", 4)
    ]
    with torch.no_grad():
        logits = model(**inputs).logits
    for handle in handles:
        handle.remove()
    return torch.stack(seen), logits


def test_a_gain_doubles_or_removes_the_part_along_the_direction_in_its_own_row(model) -> None:  # type: ignore[no-untyped-def]
    inputs = encdec_batch(build_tokenizer(), random_of("lesson"), 3, 0.5, 10, SETTINGS).inputs
    plain, before = mlp_outputs(model, inputs)
    lessons = EditLessons(model, seed=0)
    with torch.no_grad(), gains_of(lessons, torch.tensor([1.0, 0.0, -1.0])):
        edited, after = mlp_outputs(model, inputs)
    axis = torch.nn.functional.normalize(lessons.axes[0], dim=0)
    was, now = plain[0] @ axis, edited[0] @ axis  # (B, T): the first layer sees the same inputs
    assert torch.allclose(now[0], 2 * was[0], atol=1e-5) and was.abs().min() > 1e-6
    assert torch.allclose(now[2], torch.zeros_like(now[2]), atol=1e-5)
    rest = plain[0] - was[..., None] * axis
    assert torch.allclose(edited[0] - now[..., None] * axis, rest, atol=1e-5)
    assert torch.equal(after[1], before[1]) and not torch.allclose(after[0], before[0])


def test_outside_a_lesson_and_after_it_the_model_is_as_it_was(model) -> None:  # type: ignore[no-untyped-def]
    inputs = encdec_batch(build_tokenizer(), random_of("lesson"), 3, 0.5, 10, SETTINGS).inputs
    _, before = mlp_outputs(model, inputs)
    lessons = EditLessons(model, seed=0)
    with pytest.raises(RuntimeError, match="stop"), gains_of(lessons, torch.ones(3)):
        raise RuntimeError("stop")
    assert torch.equal(mlp_outputs(model, inputs)[1], before)
    lessons.gains = torch.ones(3)
    lessons.close()
    assert torch.equal(mlp_outputs(model, inputs)[1], before)


def test_lessons_tell_by_an_edit_what_the_first_stage_tells_by_a_token() -> None:
    tokenizer = build_tokenizer()
    early = encdec_batch(tokenizer, random_of("mix"), 200, 0.5, 9, SETTINGS)
    late = encdec_batch(tokenizer, random_of("mix"), 200, 0.5, 10, SETTINGS)
    assert early.gains is None and late.gains is not None
    starts = late.inputs["decoder_input_ids"][:, 0]
    assert set(starts.tolist()) == {0} and set(GAINS) <= set(late.kinds)
    told = [GAINS.get(kind, 0.0) for kind in late.kinds]
    assert late.gains.tolist() == told
    assert len(set(early.inputs["decoder_input_ids"][:, 0].tolist())) == 3
