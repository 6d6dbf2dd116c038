from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chameleon_lib.backbones.text import TextCodec
from chameleon_lib.core.task import (
    ANSWER_CUE,
    PAPER_TASKS,
    answer_prompt,
    insight_prompt,
    official_prompt,
    unseen_prompt,
)
from chameleon_lib.data.tasks.lamp_2 import TAGS
from chameleon_lib.demo import FAMILIES, SEEDS, checkpoint
from chameleon_lib.demo import lexicon as lx
from chameleon_lib.demo.world import (
    NEUTRAL_INSIGHT,
    SPLITS,
    WorldSettings,
    build_world,
)
from workshop.models import build_tokenizer, template_segments

FOREIGN = [
    "naïve façade — “quoted” … ½ price",
    "日本語のレビュー 🎬🍿 très bien",
    "  two  blanks,\ttabs\nand\r\nlines \n",
    "\u2603 \U0001f1e9\U0001f1ea e\u0301 \u200d zero-width",
    "CamelCase123 x=1; {json: [1, 2]} <b>html</b> 100% #tag @you",
    "",
    " ",
    " leading and trailing ",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def prompts_of(task: str) -> list[str]:
    """Every kind of prompt of a few users of all splits, at several history lengths."""
    texts = []
    world = build_world(task, WorldSettings(users=(3, 3, 3), history=(1, 14)))
    for user in (user for split in SPLITS for user in world.users[split]):
        query, items = user.queries[0], user.history[:10]
        insight = world.truth[user.id].insight
        texts += [
            insight_prompt(task, items, "P"),
            insight_prompt(task, items, "N"),
            answer_prompt(task, items, query.text, role="P", insight=insight),
            answer_prompt(task, items, query.text, role="N", insight=NEUTRAL_INSIGHT[task]),
            answer_prompt(task, items, query.text, role="P", insight=None),
            unseen_prompt(task, query.text),
            official_prompt(task, items, query),
            official_prompt(task, (), query),
        ]
    return texts


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text).input_ids)


@pytest.mark.parametrize("task", list(PAPER_TASKS))
def test_every_prompt_of_the_kit_comes_back_as_it_was(
    tokenizer: PreTrainedTokenizerFast, task: str
) -> None:
    for prompt in prompts_of(task):
        ids = ids_of(tokenizer, prompt)
        assert tokenizer.decode(ids) == prompt
        assert len(ids) < 260  # the reason for this tokenizer: short sequences


@pytest.mark.parametrize("text", FOREIGN)
def test_any_text_comes_back_as_it_was(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = ids_of(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.bos_token_id not in ids


def test_every_word_of_the_world_is_one_piece(tokenizer: PreTrainedTokenizerFast) -> None:
    words = {*TAGS, *lx.MOVIE_LINKS, *lx.PLACES, *lx.PRODUCTS, *lx.REVIEW_STARTS, *lx.CLOSERS}
    words |= {cue for cues in lx.CUES.values() for cue in cues}
    words |= {word for level in lx.SENTIMENT.values() for word in level}
    words |= {*lx.SLANG, *lx.SLANG.values(), *lx.TWEET_NOUNS, *lx.TWEET_VERBS, *lx.TWEET_TIMES}
    words |= {*lx.OPENERS, *(opener.capitalize() for opener in lx.OPENERS), *lx.TWEET_ADJECTIVES}
    phrases = (*lx.REVIEW_ENDS, *lx.TWEET_SUBJECTS)
    words |= {word for phrase in phrases for word in phrase.split()}
    words |= {word.lower() for phrase in lx.TWEET_SUBJECTS for word in phrase.split()}
    split = {w: n for w in words if (n := len(ids_of(tokenizer, f" {w}"))) != 1}
    assert not split
    starts = {*lx.REVIEW_STARTS, *lx.OPENERS, *(o.capitalize() for o in lx.OPENERS), "My", "A"}
    assert all(len(ids_of(tokenizer, word)) == 1 for word in starts)


def test_every_fixed_sentence_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    segments = template_segments()
    assert len(segments) > 60 and f"\n{ANSWER_CUE}" in segments
    assert all(len(ids_of(tokenizer, segment)) == 1 for segment in segments)


@pytest.mark.parametrize("task", list(PAPER_TASKS))
def test_the_answer_cue_is_the_last_token_alone(
    tokenizer: PreTrainedTokenizerFast, task: str
) -> None:
    cue = ids_of(tokenizer, f"\n{ANSWER_CUE}")
    for prompt in prompts_of(task):
        if prompt.endswith(ANSWER_CUE):
            assert ids_of(tokenizer, prompt)[-1:] == cue
            rest = prompt.removesuffix(f"\n{ANSWER_CUE}")
            assert ids_of(tokenizer, prompt) == [*ids_of(tokenizer, rest), *cue]


@pytest.mark.parametrize("task", list(PAPER_TASKS))
def test_an_answer_tokenised_alone_continues_its_prompt(
    tokenizer: PreTrainedTokenizerFast, task: str
) -> None:
    world = build_world(task, WorldSettings(users=(4, 1, 1)))
    answers = [text for t in world.truth.values() for text in (*t.personal, *t.generic)]
    codec = TextCodec(tokenizer, decoder_only=True, eos_ids=[1], prompts_chat="template")
    for prompt in prompts_of(task)[2:5]:
        for answer in answers:
            joined = ids_of(tokenizer, f"{prompt} {answer}")
            assert codec.prompts([prompt])[0] + codec.answers([answer])[0] == joined
            assert tokenizer.decode(joined) == f"{prompt} {answer}"


@pytest.mark.parametrize("task", list(PAPER_TASKS))
def test_the_history_tokenised_alone_starts_its_prompts(
    tokenizer: PreTrainedTokenizerFast, task: str
) -> None:
    """Training cuts a prompt after the history; generation does not."""
    for user in build_world(task, WorldSettings(users=(4, 1, 1))).users["train"]:
        for prompt in (
            insight_prompt(task, user.history, "P"),
            answer_prompt(task, user.history, user.queries[0].text, role="P", insight=None),
        ):
            context = prompt[: prompt.index("\n", prompt.rindex(f"\n{len(user.history)}. ") + 1)]
            rest = prompt[len(context) :]
            assert rest.startswith("\n")
            assert ids_of(tokenizer, prompt) == ids_of(tokenizer, context) + ids_of(tokenizer, rest)


def test_a_saved_tokenizer_gives_the_same_ids(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.bos_token_id) == (0, 1, 2)
    texts = [*(prompt for task in PAPER_TASKS for prompt in prompts_of(task)), *FOREIGN]
    for text in texts:
        assert loaded(text).input_ids == ids_of(tokenizer, text)
        assert loaded.decode(loaded(text).input_ids) == text


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_converters_find_a_name_of_the_unknown_token(family: str, seed: int) -> None:
    """ctranslate2 converts a tokenizer without one and then cannot load what it wrote."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint(family, seed))
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    assert tokenizer.unk_token is not None and tokenizer.unk_token_id == model["unk_id"]
    assert build_tokenizer().unk_token == tokenizer.unk_token
