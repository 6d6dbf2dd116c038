"""What methods cost: the formula by hand, and token counts against what the model is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from chameleon_lib.backbones.counting import CountingBackbone
from chameleon_lib.core.fitting import PlainPrompts, contrasts_from_pairs
from chameleon_lib.core.pairs import keep_different
from chameleon_lib.kit.flops import Tokens, Weights, Work
from chameleon_lib.rivals.tuned import TrainLog
from chameleon_lib.studies.data import load_task_data
from chameleon_lib.studies.s04_training import (
    direction_work,
    fit_work,
    generation_work,
    tuning_work,
    weights_of,
)
from tests.backbones.tiny import make_backbone, make_edit
from tests.studies.small import SETTINGS, small_profile, study_in, use_small_models

EVEN = Weights(100, 100, 100)


def test_a_model_trained_whole_costs_six_operations_per_weight_and_token() -> None:
    work = Work(Tokens(7), Tokens(7), trainable=100)
    assert work.flops(EVEN) == 6 * 100 * 7
    assert Work(Tokens(7)).flops(EVEN) == 2 * 100 * 7
    # More trained weights than multiply a token: an input embedding costs nothing.
    assert Work(Tokens(7), Tokens(7), trainable=130).flops(EVEN) == 6 * 100 * 7


def test_a_frozen_model_pays_for_its_activations_and_added_weights_count_twice() -> None:
    assert Work(Tokens(7), Tokens(7), trainable=0, added=True).flops(EVEN) == 4 * 100 * 7
    # An adapter of 10: forward 110, back through activations 110, its own gradient 10.
    assert Work(Tokens(7), Tokens(7), trainable=10, added=True).flops(EVEN) == 2 * 7 * 230
    assert Work(Tokens(1), probes=5).flops(EVEN) == 205


def test_an_encoder_decoder_reads_with_one_part_and_writes_with_the_other() -> None:
    uneven = Weights(10, 30, 40)
    assert Work(Tokens(3, 2), Tokens(0, 2)).flops(uneven) == 2 * (30 + 60) + 2 * 60


@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_weights_are_counted_without_the_input_table(family: str) -> None:
    backbone = make_backbone(family)
    found = weights_of(backbone)
    model: Any = backbone.model
    every = sum(weight.numel() for weight in model.parameters())
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied = table is head
    assert found.total == every - (0 if tied else table.numel())
    if family == "mistral":
        assert found.read == found.written == found.total
    else:
        assert found.read + found.written == found.total and found.read < found.written


def log(**changes: Any) -> TrainLog:
    values: dict[str, Any] = {
        "method": "dpo", "uses_gold": False, "params": "lora", "trainable_params": 5, "queries": 4,
        "ties": 0, "rows": 4, "mix": "none", "mix_rows": 0, "steps": 2, "samples": 8,
        "trained_tokens": 80, "forward_tokens": 600, "backward_tokens": 400, "loss": (1.0,),
        "assumed": (), "departures": (), "notes": (), "seconds": 1.0,
    }  # fmt: skip
    return TrainLog(**{**values, **changes})


def test_a_training_keeps_its_reference_pass_out_of_the_gradients() -> None:
    work = tuning_work(log(), "decoder")
    assert (work.forward, work.backward) == (Tokens(600), Tokens(400)) and work.added
    # Encoder-decoder: a fifth of what is trained are answers, and so of what the reference reads.
    both = tuning_work(log(), "encoder-decoder")
    assert (both.forward, both.backward) == (Tokens(480, 120), Tokens(320, 80))
    assert not tuning_work(log(params="full"), "decoder").added


def test_scored_tokens_are_counted_with_and_without_gradient() -> None:
    backbone = make_backbone("mistral")
    counting: Any = CountingBackbone(backbone)
    prepared = backbone.prepare(["One movie. Your answer:", "Another. Your answer:"])
    answers = ["comedy", "action"]
    each = sum(len(ids) + 1 for ids in backbone.codec.answers(answers))
    edit = make_edit()
    assert torch.equal(counting.score(prepared, answers), backbone.score(prepared, answers))
    with torch.no_grad():
        counting.score(prepared, answers, edit=edit)
    assert (counting.learned, counting.looked) == (each, each)
    counting.score(prepared, answers, edit=replace(edit, positions="all"))
    prompts = sum(len(ids) - 1 for batch in prepared.batches for ids in batch.prompts)
    assert counting.learned == 2 * each + prompts
    assert counting.d == backbone.d


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        study = study_in(tmp_path_factory.mktemp("units"))
        users, _ = study.prepare(load_task_data(small_profile(), "LaMP_3").train)
        yield study, users, study.pairs(users)


def test_a_fit_counts_prompts_once_and_every_pass_over_answers(material: Any) -> None:
    study, _, pairs = material
    kept, identical = keep_different(pairs, SETTINGS)
    contrasts = contrasts_from_pairs("LaMP_3", kept, identical, SETTINGS)
    prompts = [contrast.prompt for contrast in contrasts]
    seen: list[int] = []
    codec = study.backbone.codec

    class Watched(PlainPrompts):
        def chunk(self, texts: Any) -> Any:
            prepared = super().chunk(texts)
            seen.append(len(prepared))
            return prepared

    fit = study.preference_fit(contrasts, Watched(study.backbone, prompts), 0)
    assert sum(seen) == len(contrasts)  # what fit_work counts as scored unedited
    work = fit_work(study, contrasts, fit, 12)
    base = sum(len(ids) + 1 for ids in codec.answers([c.chosen for c in contrasts]))
    read = sum(len(ids) for ids in codec.prompts(prompts))
    assert work.forward.read == read and len(set(prompts)) == len(prompts)
    assert work.forward.written == base + fit.looked_tokens + fit.learned_tokens
    assert work.backward == Tokens(0, fit.learned_tokens)
    # Two steps over one mini-batch of pairs each: both answers, and the leash where there is one.
    assert fit.learned_tokens > 0 and fit.looked_tokens > 0


def test_directions_read_both_texts_of_a_pair_and_train_probes(material: Any) -> None:
    study, _, pairs = material
    kept, _ = keep_different(pairs, SETTINGS)
    one, two = direction_work(study, kept[:1]), direction_work(study, kept[:2])
    assert one.backward == Tokens() and one.forward.read % 2 == 0
    assert two.forward.read > one.forward.read
    epochs = SETTINGS.ccs_epochs * SETTINGS.ccs_tries
    assert one.probes == 4 * epochs * study.backbone.n_layers * 2 * study.backbone.d


def test_writing_pairs_counts_their_users_alone(
    material: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, users, pairs = material
    every = generation_work(study, users, pairs)
    parts = [
        generation_work(study, users, [pair for pair in pairs if pair.user_id == user.user.id])
        for user in users
    ]
    total = Tokens()
    for part in parts:
        total += part.forward
    assert every.forward == total and every.backward == Tokens()
    read: list[str] = []
    backbone = study.backbone
    generate = type(backbone).generate

    def noted(self: Any, prompts: Any, **rest: Any) -> Any:
        read.extend(prompts)
        return generate(self, prompts, **rest)

    monkeypatch.setattr(type(backbone), "generate", noted)
    again = study_in(study.store.root / "again")
    again.pairs(again.prepare([user.user for user in users])[0])
    assert every.forward.read == sum(len(ids) for ids in backbone.codec.prompts(read))
