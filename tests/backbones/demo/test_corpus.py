from __future__ import annotations

import re
from dataclasses import replace

import pytest

from chameleon_lib.backbones.demo import corpus
from chameleon_lib.backbones.demo.corpus import KINDS, STEERED, Case, draw_case
from chameleon_lib.backbones.demo.scenes import SPLITS, Scene, sentence_split
from chameleon_lib.backbones.demo.tastes import (
    NEUTRAL_INSIGHT,
    generic_answer,
    insight_text,
    personal_answer,
)
from chameleon_lib.backbones.demo.tokenizer import SENTINELS
from chameleon_lib.backbones.demo.world import WorldSettings, build_world, draw_query_scene
from chameleon_lib.lamp.prompts import ANSWER_CUE, history_block
from chameleon_lib.lamp.tasks import TASKS, is_valid_answer
from tests.backbones.demo.worlds import random_of, whole_sentences

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
def test_a_propensity_between_gives_both_answers(task: str) -> None:
    case = case_of(task)
    answers = []
    for _ in range(60):
        before = replace(case, rng=random_of("unused"))
        before.rng.setstate(case.rng.getstate())
        answers.append(case.example("plain").answer == answers_to_next_query(before)[0])
    assert 15 < sum(answers) < 45


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


def test_the_plain_prompt_shows_neither_insight_nor_answer_source() -> None:
    for task in TASKS:
        case = case_of(task)
        prompt = case.example("plain").prompt
        assert insight_text(task, case.taste) not in prompt
        assert NEUTRAL_INSIGHT[task] not in prompt


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        case_of("LaMP_2").example("poem")


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

    monkeypatch.setattr(corpus, "draw_query_scene", recording)
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
