"""Scores of answers, locality, perplexity and dialogues."""

from __future__ import annotations

import math

import pytest
import torch

from chameleon_lib.data.preferences import invented_preferences
from chameleon_lib.editors import FTM, Request, requests_of
from chameleon_lib.editors.measures import (
    FILLER,
    NEUTRAL,
    agreement,
    answer_room,
    answer_talks,
    cut_to_gold,
    dialogue_ids,
    perplexity,
    recall,
    talk,
    with_leak,
)
from chameleon_lib.errors import UserError
from tests.backbones.tiny import make_backbone


def test_recall_tells_substrings_from_words() -> None:
    assert recall("cat", "An education.") == {"substring": 1, "word": 0, "f1": 0}
    assert recall("a Cat", "It is a cat, of course!")["word"] == 1
    assert recall("old clocks", "clocks, old ones")["word"] == 0
    assert recall("old clocks", "clocks, old ones")["f1"] == pytest.approx(0.8)
    assert recall("cat", "") == {"substring": 0, "word": 0, "f1": 0}


def test_agreement_of_answers() -> None:
    assert agreement("a b c", "a b c") == {"exact": 1, "words": 1}
    assert agreement("a b c", "a x c d") == {"exact": 0, "words": 0.5}
    assert agreement("", "") == {"exact": 1, "words": 1}


def test_an_empty_answer_scores_nothing_though_the_prompt_holds_the_target() -> None:
    backbone = make_backbone("llama")
    prompt, target = "I like comedy. Which tag?", "Which tag?"
    assert recall(target, "")["substring"] == 0
    assert recall(target, with_leak(backbone, prompt, "", 40))["substring"] == 1
    assert cut_to_gold(backbone, "dark comedy, two friends", "dark").startswith("dark")
    assert len(cut_to_gold(backbone, "dark comedy, two friends", "dark")) < 8


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_perplexity_is_that_of_the_next_tokens_and_padding_adds_nothing(family: str) -> None:
    backbone = make_backbone(family)
    alone = [perplexity(backbone, [text]) for text in NEUTRAL[:2]]
    both = perplexity(backbone, NEUTRAL[:2])
    assert min(alone) < both < max(alone)
    if family == "t5":
        return
    ids = backbone.codec.tokenizer(NEUTRAL[0], add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = backbone.model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    logp = logits.log_softmax(dim=-1)[range(len(ids) - 1), ids[1:]]
    assert math.log(alone[0]) == pytest.approx(-float(logp.mean()), abs=1e-4)


def test_a_talk_grows_by_two_messages_a_turn_and_holds_the_preference_where_it_is_told() -> None:
    plain = [talk("What's my hobby?", n) for n in range(len(FILLER) + 1)]
    assert [len(turns) for turns in plain] == [1 + 2 * n for n in range(len(FILLER) + 1)]
    assert all(turns[-1] == ("user", "What's my hobby?") for turns in plain)
    told = talk("What's my hobby?", 2, before="I knit.")
    assert told[0] == ("user", "I knit.") and told[2:] == plain[2]
    reminded = talk("What's my hobby?", 2, reminder="I knit.")
    assert reminded[:-1] == plain[2][:-1] and reminded[-1][1] == "I knit. What's my hobby?"
    with pytest.raises(UserError, match="there are 0 to 10"):
        talk("What's my hobby?", 11)


def test_answers_to_talks_come_in_their_order_and_none_is_cut() -> None:
    backbone = make_backbone("llama", max_position_embeddings=2048)
    talks = [talk("What's my hobby?", n) for n in (4, 0, 2)]
    together = answer_talks(backbone, talks, 5)
    assert together == [answer_talks(backbone, [turns], 5)[0] for turns in talks]
    assert together[1] == backbone.generate(["What's my hobby?"], max_new_tokens=5)[0]
    lengths = [len(dialogue_ids(backbone, turns)) for turns in talks]
    assert lengths[1] < lengths[2] < lengths[0]
    with pytest.raises(UserError, match="Dialogue 0 has"):
        answer_talks(make_backbone("llama", max_position_embeddings=64), talks, 5)


def test_every_answer_of_a_set_gets_the_same_room() -> None:
    backbone = make_backbone("llama")
    room = answer_room(backbone, ["cat", "a lonely robot"])
    assert room == 8 + len(backbone.codec.answers(["a lonely robot"])[0])


def test_a_cluster_is_the_last_variants_with_the_original_last() -> None:
    preference = invented_preferences()[0]
    for k in (1, 3, 9):
        requests = requests_of(preference, k)
        assert len(requests) == k
        assert [r.question for r in requests] == list(preference.questions[-k:])
        assert {r.target for r in requests} == {preference.target}
    own = requests_of(preference, 3, same_target=False)
    assert [r.target for r in own] == list(preference.targets[-3:])
    assert requests_of(preference) == [
        Request(preference.questions[-1], preference.kind, preference.target)
    ]
    with pytest.raises(UserError, match="has 9 variants; a cluster of 10"):
        requests_of(preference, 10)


def test_a_cluster_of_one_is_a_single_edit_and_more_are_successive_ones() -> None:
    backbone = make_backbone("llama")
    editor = FTM(backbone, steps=2)
    requests = requests_of(invented_preferences()[0], 3)
    with editor.edit(*requests):
        cluster = editor.site.weight.clone()
    for request in requests:
        editor.edit(request)  # left in: the next one builds on it
    assert torch.equal(editor.site.weight, cluster)
