from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lib.core.task import PAPER_TASKS, get_task
from chameleon_lib.data.lamp import find_split
from chameleon_lib.data.tasks.lamp_2 import TAGS
from chameleon_lib.data.users import Choice, load_users
from chameleon_lib.demo import lexicon as lx
from chameleon_lib.demo.world import (
    NEUTRAL_INSIGHT,
    SPLITS,
    Scene,
    Taste,
    World,
    WorldSettings,
    build_world,
    common_taste,
    draw_taste,
    draw_tweet,
    generic_answer,
    habits_followed,
    insight_text,
    personal_answer,
    sentence_split,
    style_tweet,
)
from chameleon_lib.errors import UserError
from chameleon_lib.kit.hashing import digest
from tests.demo.worlds import all_tastes, random_of, whole_sentences
from workshop import run_script, write_world


def run(words: list[str]) -> int:
    return run_script(lambda: write_world.main(words))


SMALL = WorldSettings(users=(40, 10, 30), queries=2)


@pytest.fixture(scope="module", params=list(PAPER_TASKS))
def world(request: pytest.FixtureRequest) -> World:
    return build_world(request.param, SMALL)


def test_no_user_is_in_two_splits_and_every_user_has_a_truth(world: World) -> None:
    ids = [user.id for split in SPLITS for user in world.users[split]]
    assert [len(world.users[split]) for split in SPLITS] == [40, 10, 30]
    assert len(set(ids)) == len(ids) == 80
    assert set(world.truth) == set(ids)
    queries = [q.id for split in SPLITS for u in world.users[split] for q in u.queries]
    assert len(set(queries)) == len(queries) == 160


@pytest.mark.parametrize("task", list(PAPER_TASKS))
def test_no_sentence_of_a_dev_or_test_user_is_one_of_a_train_user(task: str) -> None:
    """Full sentences: a short post has lost its last word, so two of them may end up the same."""
    world = build_world(task, WorldSettings())
    seen = {split: whole_sentences(task, world.users[split]) for split in SPLITS}
    assert min(len(texts) for texts in seen.values()) > 300
    assert not seen["train"] & seen["dev"]
    assert not seen["train"] & seen["test"]
    assert not seen["dev"] & seen["test"]
    asked = {split: {q.text for u in world.users[split] for q in u.queries} for split in SPLITS}
    for split, texts in asked.items():
        assert {sentence_split(text) for text in texts} == {split}


def test_the_same_settings_give_the_same_world_and_another_seed_another(world: World) -> None:
    assert build_world(world.task, SMALL) == world
    other = build_world(world.task, replace(SMALL, seed=8))
    assert other.users != world.users and other.truth != world.truth


def test_a_user_does_not_depend_on_how_many_others_there_are(world: World) -> None:
    more = build_world(world.task, replace(SMALL, users=(45, 12, 33)))
    for split in SPLITS:
        assert more.users[split][: len(world.users[split])] == world.users[split]


@pytest.mark.parametrize(
    ("task", "found"),
    [("LaMP_2", "a85d36e7ba98"), ("LaMP_3", "84134da72861"), ("LaMP_7", "7b2e98a0b712")],
)
def test_without_a_common_taste_the_world_is_what_it_was(task: str, found: str) -> None:
    """Every committed table rests on these users, to the byte."""
    world = build_world(task)
    assert digest([world.users, world.truth])[:12] == found


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_common_is_the_share_of_users_with_the_one_common_taste(share: float) -> None:
    settings = WorldSettings(users=(200, 10, 200), common=share)
    world = build_world("LaMP_7", settings)  # of 200 tastes, so two users seldom share theirs
    one = common_taste("LaMP_7", settings)
    assert one == common_taste("LaMP_7", replace(settings, common=0.5, users=(1, 1, 1)))
    for split in ("train", "test"):
        having = [world.truth[user.id].taste == one for user in world.users[split]]
        assert abs(sum(having) / len(having) - share) < 0.08
    tastes = {truth.taste for truth in world.truth.values() if truth.taste != one}
    assert len(tastes) > 20 or share == 1.0


def test_a_user_who_keeps_a_taste_of_their_own_is_the_same_at_any_common(world: World) -> None:
    shared = build_world(world.task, replace(SMALL, common=0.5))
    one = common_taste(world.task, SMALL)
    for split in SPLITS:
        for before, after in zip(world.users[split], shared.users[split], strict=True):
            moved = shared.truth[after.id].taste == one != world.truth[before.id].taste
            assert (after == before) != moved


@pytest.mark.parametrize("task", list(PAPER_TASKS))
def test_at_strength_zero_every_gold_is_generic_and_at_one_personal(task: str) -> None:
    for strength, name in ((0.0, "generic"), (1.0, "personal")):
        world = build_world(task, replace(SMALL, strength=strength, noise=0.0))
        for user in world.users["train"]:
            golds = tuple(query.gold for query in user.queries)
            assert golds == getattr(world.truth[user.id], name)


def test_at_strength_zero_a_history_shows_no_writing_habit() -> None:
    world = build_world("LaMP_7", replace(SMALL, strength=0.0))
    plain = Taste(opener="", closer="", slang=False, short=False)
    for user in world.users["train"]:
        for item in user.history:
            assert sentence_split(item.text) == "train"
            assert habits_followed(item.text, plain) == 0.5  # no slang, full length


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
@pytest.mark.parametrize(("agree", "low", "high"), [(0.0, 0, 0), (0.25, 0.15, 0.35), (1.0, 1, 1)])
def test_agree_is_the_share_of_queries_with_one_answer_for_user_and_anyone(
    task: str, agree: float, low: float, high: float
) -> None:
    world = build_world(task, WorldSettings(users=(200, 0, 0), queries=2, agree=agree))
    same = [
        p == g for t in world.truth.values() for p, g in zip(t.personal, t.generic, strict=True)
    ]
    assert low <= sum(same) / len(same) <= high


def test_noise_moves_labels_of_the_history_and_no_gold() -> None:
    clean, noisy = (
        build_world("LaMP_3", replace(SMALL, strength=1.0, noise=noise)) for noise in (0.0, 1.0)
    )
    for world, low, high in ((clean, 1.0, 1.0), (noisy, 0.1, 0.4)):
        right = []
        for user in world.users["train"]:
            shift = world.truth[user.id].taste.shift
            for item in user.history:
                level = next(n for n, words in lx.SENTIMENT.items() for w in words
                             if f" {w} " in item.text)  # fmt: skip
                right.append(item.label == str(min(5, max(1, level + shift))))
            assert tuple(q.gold for q in user.queries) == world.truth[user.id].personal
        assert low <= sum(right) / len(right) <= high


@pytest.mark.parametrize(
    "bad",
    [{"strength": 1.5}, {"noise": -0.1}, {"agree": 2.0}, {"common": 1.1}, {"history": (5, 3)},
     {"history": (0, 3)}, {"users": (-1, 2, 2)}, {"queries": 0}],
)  # fmt: skip
def test_a_knob_out_of_range_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UserError, match="give 0 to 1|out of range"):
        WorldSettings(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shift", "level", "score"), [(2, 4, "5"), (2, 5, "5"), (-2, 2, "1"), (1, 3, "4"), (-1, 1, "1")]
)
def test_a_shifted_score_stays_between_1_and_5(shift: int, level: int, score: str) -> None:
    scene = Scene("The lamp was fine", level=level)
    assert personal_answer("LaMP_3", scene, Taste(shift=shift)) == score
    assert generic_answer("LaMP_3", scene) == str(level)


def test_every_taste_has_an_insight_of_its_own_that_names_it() -> None:
    for task in PAPER_TASKS:
        tastes = all_tastes(task)
        texts = [insight_text(task, taste) for taste in tastes]
        assert len(set(texts)) == len(tastes)
        assert NEUTRAL_INSIGHT[task] not in texts
        drawn = [draw_taste(task, random_of(task)) for _ in range(200)]
        assert set(drawn) <= set(tastes)
    for tag in TAGS:
        assert f"tag {tag} " in insight_text("LaMP_2", Taste(tag=tag))
    assert insight_text("LaMP_3", Taste(shift=-2)) == "scores two points below the words"
    for taste in all_tastes("LaMP_7"):
        words = insight_text("LaMP_7", taste)
        assert f"opening with {taste.opener}," in words and f"closing with {taste.closer}," in words
        assert ("slang words" in words) == taste.slang and ("short posts" in words) == taste.short


def test_a_styled_tweet_follows_every_habit_and_a_plain_one_never_does() -> None:
    rng = random_of("tweets")
    for taste in all_tastes("LaMP_7"):
        scene = draw_tweet(rng)
        assert habits_followed(style_tweet(scene, taste), taste) == 1.0
        assert habits_followed(generic_answer("LaMP_7", scene), taste) <= 0.5
    assert habits_followed("", all_tastes("LaMP_7")[0]) == 0.0


def test_the_truth_is_in_a_file_of_its_own_and_in_no_other(world: World, tmp_path: Path) -> None:
    written = write_world.write_world(world, tmp_path)
    assert written[-1].name == "truth.json" and len(written) == 7
    truth = json.loads(written[-1].read_text(encoding="utf-8"))
    assert set(truth["users"]) == set(world.truth)
    some = next(iter(world.truth))
    assert truth["users"][some]["insight"] == world.truth[some].insight
    for path in written[:-1]:
        text = path.read_text(encoding="utf-8")
        assert not any(planted.insight in text for planted in world.truth.values())
        assert NEUTRAL_INSIGHT[world.task] not in text
        content = json.loads(text)
        records = content if isinstance(content, list) else content["golds"]
        keys = {"id", "input", "profile"} if isinstance(content, list) else {"id", "output"}
        assert all(set(record) == keys for record in records)
        items = itertools.chain.from_iterable(record.get("profile", []) for record in records)
        task = get_task(world.task)
        assert all(set(i) == {"id", task.text_key, task.label_key} - {None} for i in items)


def test_the_command_writes_the_world_that_its_options_describe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--users 4 2 3 --history 3 4 --strength 1 --noise 0 --agree 0 --seed 5"
    words += " --common 0.5"
    assert run(["--task", "LaMP-2", "--out", str(tmp_path), *words.split()]) == 0
    expected = build_world(
        "LaMP_2",
        WorldSettings((4, 2, 3), 1, (3, 4), strength=1, noise=0, agree=0, common=0.5, seed=5),
    )
    for split in SPLITS:
        questions, outputs = find_split(tmp_path, "LaMP_2", split)
        assert (
            load_users(questions, outputs, "LaMP_2", Choice(min_overlap=1.0))
            == (expected.users[split])
        )
    assert "truth.json" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*partial*"))
