"""The reviewer: its tokenizer, its examples, its training in miniature and what is committed."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from chameleon_lib import demo
from chameleon_lib.backbones.load import load_backbone
from chameleon_lib.difference import world as w
from chameleon_lib.difference.world import WorldSettings, build_world
from chameleon_lib.kit.hashing import file_digest
from workshop import reviewer

TOK = reviewer.tokenizer()
EXAMPLES = [(kind, *reviewer.example(random.Random(at), kind))
            for kind in reviewer.SHARES for at in range(40)]  # fmt: skip


def test_every_word_of_the_world_is_one_token_and_text_round_trips() -> None:
    for _, prompt, answer in EXAMPLES[::4]:
        ids = TOK(prompt + f" {answer}")["input_ids"]
        assert TOK.decode(ids) == prompt + f" {answer}"
    for word in (*w.STYLE, *w.CONTENT, *w.NAMES, *w.GRADES, *w.RATINGS, *w.BIASES.values()):
        assert len(TOK(f" {word}")["input_ids"]) == 1
    assert TOK.decode(TOK("Ünlike ☃")["input_ids"]) == "Ünlike ☃"


def test_kinds_have_their_shares_and_name_what_they_should() -> None:
    rng = random.Random(0)
    counts = Counter(reviewer.drawn(rng) for _ in range(400))
    for kind, share in reviewer.SHARES.items():
        assert counts[kind] / 400 == pytest.approx(share, abs=0.08)
    for kind, prompt, answer in EXAMPLES:
        style = {word for word in answer.split() if word in w.STYLE}
        assert style and answer not in prompt
        if kind == "plain":
            assert not set(prompt.split()) & {*w.STYLE, *w.RATINGS}
        elif kind != "blocks":
            assert style <= set(prompt.split())


def test_labels_are_the_answers_alone() -> None:
    ids, labels = reviewer.batch_of(random.Random(1), TOK, 6, "blocks")
    assert ids.shape == labels.shape and len(ids) == 6
    for row, target in zip(ids, labels, strict=True):
        answer = target[target != -100]
        assert answer[-1] == TOK.eos_token_id and TOK.pad_token_id not in answer
        assert torch.equal(row[target != -100], answer)


def test_a_training_in_miniature_repeats_and_has_a_card(tmp_path: Path) -> None:
    settings = reviewer.ReviewerSettings(steps=2, batch=4, hidden=16, layers=1)
    one, two = (reviewer.train(settings, tmp_path / name) for name in ("one", "two"))
    assert file_digest(one / "model.safetensors") == file_digest(two / "model.safetensors")
    card = reviewer.write_card(one).read_text(encoding="utf-8")
    assert "2 steps of 4 examples" in card and "| compare | 0.15 | words | 0.00 |" in card


def test_the_committed_model_writes_what_its_prompt_names() -> None:
    folder = demo.checkpoint("reviewer", 0)
    assert (folder / "model.safetensors").stat().st_size < 8 * 2**20
    backbone = load_backbone(folder, name="reviewer", dtype="float32")
    world = build_world(WorldSettings(users=40, items=20, reviews=12, inputs=3, seed=5))
    say, found = w.WorldWording(), {"told": Counter[str](), "plain": Counter[str]()}
    for name in found:
        asked = [
            say.item(world.corpus.items[s.review.item])
            + (say.summary(world.tastes[s.owner].summary) if name == "told" else "")
            + say.request(s.review)
            for s in world.corpus.splits(3).test
        ]
        said = backbone.generate(asked, max_new_tokens=12)
        for text, sample in zip(said, world.corpus.splits(3).test, strict=True):
            found[name].update(w.kept(text, sample.review, world))
    assert found["told"]["style hit"] > 36 and found["told"]["rating"] > 34
    assert found["plain"]["style hit"] < 16
