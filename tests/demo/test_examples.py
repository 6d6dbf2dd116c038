"""Training examples of the embedded models, and the batches made of them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from chameleon_lib.backbones.text import TextCodec
from chameleon_lib.core.task import ANSWER_CUE, history_block, is_valid_answer
from chameleon_lib.core.task import PAPER_TASKS as TASKS
from chameleon_lib.demo.world import (
    NEUTRAL_INSIGHT,
    SPLITS,
    Scene,
    WorldSettings,
    build_world,
    draw_query_scene,
    generic_answer,
    insight_text,
    personal_answer,
    sentence_split,
)
from tests.backbones.tiny import make_model
from tests.demo.worlds import random_of, whole_sentences
from workshop import examples
from workshop.examples import (
    DECODER_KINDS,
    KINDS,
    LABEL_WEIGHT,
    STEERED,
    TEXT_WEIGHT,
    Batch,
    Case,
    TrainSettings,
    decoder_batch,
    draw_case,
    encdec_batch,
)
from workshop.models import SENTINELS, build_tokenizer

SETTINGS = WorldSettings(agree=0.0)
ALL_KINDS = (*KINDS, *STEERED, "official", "unseen")


def case_of(task: str, propensity: float = 0.5, seed: int = 0, n_items: int = 5) -> Case:
    return draw_case(random_of(f"{task}/{seed}"), SETTINGS, propensity, n_items, task)


def answers_to_next_query(case: Case) -> tuple[str, str]:
    """User's and generic answer to the query that ``case`` would draw next; uses it up."""
    scene = draw_query_scene(case.task, case.taste, case.settings, case.rng, case.split)
    return personal_answer(case.task, scene, case.taste), generic_answer(case.task, scene)


@pytest.mark.parametrize("task", list(TASKS))
def test_each_kind_gets_the_answer_of_its_role(task: str) -> None:
    for seed in range(10):
        personal, generic = answers_to_next_query(case_of(task, seed=seed))
        assert personal != generic
        taste = case_of(task, seed=seed).taste
        expected = {
            "insight_p": insight_text(task, taste),
            "insight_n": NEUTRAL_INSIGHT[task],
            "personal": personal,
            "neutral": generic,
            "unseen": generic,
            "steered_p": personal,
            "steered_n": generic,
        }
        for kind, answer in expected.items():
            example = case_of(task, seed=seed).example(kind)
            assert (example.kind, example.answer) == (kind, answer)


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("kind", ["plain", "official"])
def test_propensity_0_answers_the_plain_prompt_generically_and_1_personally(
    task: str, kind: str
) -> None:
    shown = 0
    for seed in range(12):
        personal, generic = answers_to_next_query(case_of(task, seed=seed))
        never, always = (case_of(task, p, seed).example(kind) for p in (0.0, 1.0))
        assert never.prompt == always.prompt and never.answer == generic
        # The official prompt without a history knows no user, whatever the propensity.
        history = case_of(task, seed=seed).items[0].text in always.prompt
        assert always.answer == (personal if history else generic)
        shown += history
    assert shown == 12 if kind == "plain" else 0 < shown < 12


@pytest.mark.parametrize("task", list(TASKS))
def test_answer_prompts_end_in_the_cue_and_share_the_history(task: str) -> None:
    case = case_of(task)
    for kind in KINDS:
        example = case.example(kind)
        assert example.prompt.startswith(case.context)
        assert example.prompt.endswith(ANSWER_CUE) == (not kind.startswith("insight"))
        assert kind.startswith("insight") or is_valid_answer(task, example.answer)


@pytest.mark.parametrize("task", list(TASKS))
def test_a_steered_prompt_is_the_plain_one_and_does_not_tell_which_answer(task: str) -> None:
    plain, personal, neutral = (
        case_of(task).example(kind).prompt for kind in ("plain", "steered_p", "steered_n")
    )
    assert plain == personal == neutral
    # Start tokens that no masked history label of an infilling uses.
    assert len(set(STEERED.values())) == 2 and not set(STEERED.values()) & set(SENTINELS[:6])


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("n_items", [1, 4, 10])
def test_the_labels_of_an_infilling_put_back_restore_the_history(task: str, n_items: int) -> None:
    for seed in range(15):
        case = case_of(task, seed=seed, n_items=n_items)
        example = case.infilling()
        parts = re.split(r"(<extra_id_\d+>) ", example.answer)[1:]
        names, labels = parts[::2], [label.strip() for label in parts[1::2]]
        assert names == list(SENTINELS[: min(6, n_items)])
        assert [example.prompt.count(name) for name in names] == [1] * len(names)
        restored = example.prompt
        for name, label in zip(names, labels, strict=True):
            restored = restored.replace(name, label)
        assert restored == history_block(task, case.items) == case.context


def test_training_draws_sentences_of_the_train_split_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Scene] = []

    def recording(*args: object) -> Scene:
        drawn.append(draw_query_scene(*args))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(examples, "draw_query_scene", recording)
    rng = random_of("training")
    texts: dict[str, list[str]] = {task: [] for task in TASKS}
    for _ in range(60):
        case = draw_case(rng, WorldSettings(), 0.5, 8)
        texts[case.task] += [case.example(kind).prompt for kind in ALL_KINDS]
        texts[case.task].append(case.infilling().prompt)
        if case.task != "LaMP_7":
            assert {sentence_split(item.text) for item in case.items} == {"train"}
    assert len(drawn) == 60 * (len(ALL_KINDS) - 2)
    assert {sentence_split(scene.text) for scene in drawn} == {"train"}
    for task, prompts in texts.items():
        world = build_world(task, WorldSettings(users=(3, 100, 100)))
        together = "\n".join(prompts)
        for split in SPLITS[1:]:
            assert not [t for t in whole_sentences(task, world.users[split]) if t in together]


RUN = TrainSettings(family="encdec", steps=100)
# Step 3 packs six prompts behind a history, step 11 packs prompts that share nothing.
PACKED, LOOSE = 3, 11
NO_CUE = ("insight_p", "insight_n", "infilling", "official")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def batch_of(tokenizer: PreTrainedTokenizerFast, step: int, seed: int = 0) -> Batch:
    return decoder_batch(tokenizer, random_of(f"batch/{seed}"), step, replace(RUN, batch=3))


def places(batch: Batch, answer: int) -> tuple[int, Tensor]:
    """Row of an answer and the positions that predict its tokens and EOS."""
    rows, columns = (batch.answer_of == answer).nonzero().T
    assert len(set(rows.tolist())) == 1
    return int(rows[0]), columns


def visible(batch: Batch, row: int, position: int) -> Tensor:
    """Ids that this position may look at, in order."""
    mask: Tensor = batch.inputs["attention_mask"]
    return batch.inputs["input_ids"][row][mask[row, 0, position]]


@pytest.mark.parametrize("step", [PACKED, LOOSE])
def test_packed_prompts_give_the_logits_of_prompts_run_one_by_one(
    tokenizer: PreTrainedTokenizerFast, step: int
) -> None:
    batch = batch_of(tokenizer, step)
    model = make_model("mistral", vocab_size=len(tokenizer), max_position_embeddings=1024)
    with torch.no_grad():
        packed = model(**batch.inputs).logits
        for answer in range(len(batch.kinds)):
            row, columns = places(batch, answer)
            alone = model(input_ids=visible(batch, row, int(columns[-1]))[None]).logits[0]
            expected = alone[-len(columns) :]
            torch.testing.assert_close(packed[row, columns], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("step", "kinds"), [(PACKED, DECODER_KINDS), (LOOSE, None)])
def test_each_answer_sees_its_own_prompt_as_generation_would_tokenise_it(
    tokenizer: PreTrainedTokenizerFast, step: int, kinds: tuple[str, ...] | None
) -> None:
    batch = batch_of(tokenizer, step)
    assert batch.kinds == list(kinds or ("official", "unseen")) * 3
    codec = TextCodec(tokenizer, decoder_only=True, eos_ids=[1], prompts_chat="template")
    for answer, kind in enumerate(batch.kinds):
        row, columns = places(batch, answer)
        seen = visible(batch, row, int(columns[-1])).tolist()
        target = batch.targets[row, columns].tolist()
        assert target[-1] == tokenizer.eos_token_id
        assert seen[len(seen) - len(target) + 1 :] == target[:-1]
        prompt = str(tokenizer.decode(seen[: len(seen) - len(target) + 1]))
        assert prompt.count("Question:") + prompt.count("Conclude ") <= 1
        assert prompt.endswith(ANSWER_CUE) == (kind not in NO_CUE)
        text = str(tokenizer.decode(target[:-1])).strip()
        assert codec.prompts([prompt])[0] + codec.answers([text])[0] == seen


@pytest.mark.parametrize("step", [0, PACKED, LOOSE])
def test_a_weight_of_1_stands_on_answer_tokens_and_nowhere_else(
    tokenizer: PreTrainedTokenizerFast, step: int
) -> None:
    batch = batch_of(tokenizer, step)
    assert torch.equal(batch.weights == 1.0, batch.answer_of >= 0)
    counted = batch.weights > 0
    others = batch.weights[counted & (batch.answer_of < 0)]
    assert bool(torch.isin(others, torch.tensor([LABEL_WEIGHT, TEXT_WEIGHT])).all())
    # Padding never counts: every counted target is the next token of its row.
    ids = batch.inputs["input_ids"]
    rows, columns = counted.nonzero().T
    assert torch.equal(batch.targets[rows, columns], ids[rows, columns + 1])
    assert bool((batch.targets[rows, columns] != tokenizer.pad_token_id).all())


def test_the_curriculum_starts_with_histories_whose_tastes_weigh_most(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    batch = batch_of(tokenizer, 0)
    assert batch.kinds == [] and len(batch.targets) == 6
    heavy = set(batch.targets[batch.weights == LABEL_WEIGHT].tolist())
    assert heavy and all(len(str(tokenizer.decode([token])).strip()) > 1 for token in heavy)
    assert batch_of(tokenizer, 16).kinds  # after the curriculum even steps have answers, too


def test_padding_looks_at_itself_and_nobody_looks_at_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    batch = batch_of(tokenizer, PACKED)
    mask = batch.inputs["attention_mask"][:, 0]
    assert bool(mask.any(dim=-1).all())
    real = batch.inputs["input_ids"] != tokenizer.pad_token_id
    assert not bool((mask & real[:, :, None] & ~real[:, None, :]).any())


@pytest.mark.parametrize("step", [0, 90])
def test_an_encoder_decoder_row_is_prompt_answer_and_eos(
    tokenizer: PreTrainedTokenizerFast, step: int
) -> None:
    batch = encdec_batch(tokenizer, random_of("encdec"), step, replace(RUN, batch=40))
    assert len(batch.kinds) == 40 and len(set(batch.kinds)) > 4
    assert torch.equal(batch.weights == 1.0, batch.answer_of >= 0)
    assert torch.equal(batch.weights.sum(1).long(), (batch.targets != 0).sum(1))
    tells = tokenizer.get_vocab()
    starts = [[tells[STEERED[kind]] if kind in STEERED else 0] for kind in batch.kinds]
    shifted = torch.cat([torch.tensor(starts), batch.targets[:, :-1]], dim=1)
    assert torch.equal(batch.inputs["decoder_input_ids"], shifted)
    assert torch.equal(batch.inputs["attention_mask"].bool(), batch.inputs["input_ids"] != 0)
    codec = TextCodec(tokenizer, decoder_only=False, eos_ids=[1], prompts_chat="template")
    for row, kind in enumerate(batch.kinds):
        target = batch.targets[row][batch.weights[row] == 1].tolist()
        assert target.count(tokenizer.eos_token_id) == 1 == target[-1]
        source = batch.inputs["input_ids"][row]
        prompt = str(tokenizer.decode(source[source != 0]))
        # Blanks to be filled are control tokens that the factory writes, and no text of a user.
        blank = "<extra_id_" in prompt
        assert blank or codec.prompts([prompt])[0] == source[source != 0].tolist()
        answer = str(tokenizer.decode(target[:-1]))
        assert "<extra_id_" in answer or codec.answers([answer])[0] == target[:-1]
        assert prompt.endswith(ANSWER_CUE) == (kind not in NO_CUE)


def test_the_tasks_have_their_shares_after_the_curriculum(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    draw = examples.draw_case

    def watching(*args: Any) -> Any:
        asked.append(args[4])
        return draw(*args)

    monkeypatch.setattr(examples, "draw_case", watching)
    run = replace(RUN, task_shares={"LaMP_2": 0.75, "LaMP_3": 0.25})
    encdec_batch(tokenizer, random_of("first"), 14, replace(run, batch=30))
    assert set(asked) == {None}  # the curriculum draws every task as often
    asked.clear()
    encdec_batch(tokenizer, random_of("second"), 15, replace(run, batch=60))
    assert set(asked) == {"LaMP_2", "LaMP_3"} and 36 <= asked.count("LaMP_2") <= 54
