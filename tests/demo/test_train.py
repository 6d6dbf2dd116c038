"""Training of the embedded models: it repeats, resumes, and its lessons are edits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from chameleon_lib.backbones.families import site_modules
from chameleon_lib.backbones.load import load_backbone
from tests.demo.worlds import random_of
from workshop import train as training
from workshop.examples import GAINS, Batch, TrainSettings, encdec_batch
from workshop.models import build_model, build_tokenizer
from workshop.train import (
    EditLessons,
    answers_right,
    gains_of,
    learning_rate,
    train,
)

LESSONS = TrainSettings(family="encdec", steps=10, batch=3, lesson_steps=5)


@pytest.fixture
def model():  # type: ignore[no-untyped-def]
    return build_model("encdec", 0, build_tokenizer()).eval()


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
    inputs = encdec_batch(build_tokenizer(), random_of("lesson"), 10, LESSONS).inputs
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
    inputs = encdec_batch(build_tokenizer(), random_of("lesson"), 10, LESSONS).inputs
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
    early = encdec_batch(tokenizer, random_of("mix"), 9, replace(LESSONS, batch=200))
    late = encdec_batch(tokenizer, random_of("mix"), 10, replace(LESSONS, batch=200))
    assert early.gains is None and late.gains is not None
    starts = late.inputs["decoder_input_ids"][:, 0]
    assert set(starts.tolist()) == {0} and set(GAINS) <= set(late.kinds)
    told = [GAINS.get(kind, 0.0) for kind in late.kinds]
    assert late.gains.tolist() == told
    assert len(set(early.inputs["decoder_input_ids"][:, 0].tolist())) == 3


FAMILIES = ("decoder", "encdec")


def settings_of(family: str, seed: int = 0) -> TrainSettings:
    return TrainSettings(family=family, seed=seed, steps=6, batch=1, warmup=2)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file; no folder and no partial file may be left."""
    assert all(path.is_file() for path in folder.iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One uninterrupted six-step run per family."""
    folder = tmp_path_factory.mktemp("runs")
    return {family: train(settings_of(family), folder / family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_repeats_byte_for_byte(runs: dict[str, Path], family: str, tmp_path: Path) -> None:
    again = contents(train(settings_of(family), tmp_path, log_every=2))
    assert again == contents(runs[family])
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.json"} <= set(again)
    assert "resume.pt" not in again


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test may catch it."""


def kill_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The next training run dies when it asks for the rate of the step after ``step``."""

    def rate(at: int, settings: TrainSettings) -> float:
        if at == step:
            raise Killed
        return learning_rate(at, settings)

    monkeypatch.setattr(training, "learning_rate", rate)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(
    runs: dict[str, Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_after(patched, 5)  # a step after the checkpoint at 4
        with pytest.raises(Killed):
            train(settings_of(family), tmp_path, checkpoint_every=2)
    assert [path.name for path in tmp_path.iterdir()] == ["resume.pt"]
    assert torch.load(tmp_path / "resume.pt", weights_only=False)["step"] == 4
    asked: list[int] = []

    def rate(at: int, settings: TrainSettings) -> float:
        asked.append(at)
        return learning_rate(at, settings)

    monkeypatch.setattr(training, "learning_rate", rate)
    train(settings_of(family), tmp_path, checkpoint_every=2)
    assert set(asked) == {4, 5}  # it went on, it did not start again
    assert contents(tmp_path) == contents(runs[family])


def test_the_state_of_another_run_is_not_resumed(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_after(patched, 3)
        with pytest.raises(Killed):
            train(settings_of("decoder", seed=1), tmp_path, checkpoint_every=2)
    train(settings_of("decoder"), tmp_path)
    assert contents(tmp_path) == contents(runs["decoder"])


@pytest.mark.parametrize(("family", "kind"), [("decoder", "mistral"), ("encdec", "t5")])
def test_a_checkpoint_is_a_backbone_of_the_kit(
    runs: dict[str, Path], family: str, kind: str
) -> None:
    backbone = load_backbone(runs[family], dtype="float32")
    assert (backbone.n_layers, backbone.d) == (4, 128)
    assert backbone.model.config.model_type == kind
    assert isinstance(backbone.generate(["Your answer:"], max_new_tokens=2)[0], str)
    assert len(AutoTokenizer.from_pretrained(runs[family])) == len(build_tokenizer())


def test_config_json_appears_last_so_that_half_a_checkpoint_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of("decoder")
    moved: list[str] = []
    replace_file = training.os.replace

    def recording(source: Path, target: Path) -> None:
        moved.append(target.name)
        replace_file(source, target)

    monkeypatch.setattr(training.os, "replace", recording)
    tokenizer = build_tokenizer()
    model = training.build_model(settings.family, 0, tokenizer)
    training.save(model, tokenizer, settings, tmp_path, minutes=41.7)
    assert json.loads((tmp_path / "training.json").read_text())["minutes"] == 42
    assert moved[-1] == "config.json" and set(moved) == set(contents(tmp_path))


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    settings = TrainSettings(family="decoder", steps=100, warmup=10)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5) and rates[99] == pytest.approx(0.0, abs=1e-3)
    short = replace(settings, steps=5)  # shorter than its warm-up: no division by zero
    assert learning_rate(4, short) == pytest.approx(0.5)


def test_the_second_stage_goes_on_from_what_the_first_saves_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings_of("encdec"), steps=2, batch=6, lesson_steps=3)
    whole = contents(train(settings, tmp_path / "whole"))
    first = contents(train(replace(settings, lesson_steps=0), tmp_path / "first"))
    assert whole["model.safetensors"] != first["model.safetensors"]
    for step in (3, 4):  # killed at the boundary, where the state of step 2 is there, and after it
        with monkeypatch.context() as patched:
            kill_after(patched, step)
            with pytest.raises(Killed):
                train(settings, tmp_path / str(step), checkpoint_every=1 if step == 4 else 2)
        assert contents(train(settings, tmp_path / str(step))) == whole


def batch_of(targets: list[list[int]], answer_of: list[list[int]], kinds: list[str]) -> Batch:
    numbers = torch.tensor(answer_of)
    return Batch({}, torch.tensor(targets), (numbers >= 0).float(), numbers, kinds)


def logits_that_say(tokens: list[list[int]], size: int = 5) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), size).float() * 9


def test_an_answer_is_right_only_if_all_its_tokens_are() -> None:
    batch = batch_of(
        targets=[[1, 2, 3, 4], [1, 2, 3, 4]],
        answer_of=[[-1, 0, 0, 1], [2, 2, -1, -1]],
        kinds=["plain", "insight_p", "plain"],
    )
    said = [[0, 2, 3, 4], [1, 0, 3, 4]]  # answer 2 has one wrong token; a prompt token is no answer
    counts = answers_right(logits_that_say(said), batch)
    assert counts == {"plain": (1, 2), "insight_p": (1, 1)}
    assert answers_right(logits_that_say([[0] * 4, [0] * 4]), batch) == {
        "plain": (0, 2),
        "insight_p": (0, 1),
    }


def test_every_weight_has_exactly_one_optimizer() -> None:
    tokenizer = build_tokenizer()
    for family in FAMILIES:
        model = training.build_model(family, 0, tokenizer)
        optimizers = training.build_optimizers(model, 1e-3)
        held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        names = {id(p): name for name, p in model.named_parameters()}
        muon = [names[id(p)] for group in optimizers[0].param_groups for p in group["params"]]
        assert muon and not [n for n in muon if "embed" in n or "shared" in n or "lm_head" in n]
