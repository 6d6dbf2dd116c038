"""What is personal and what is shared: worlds in which the answer is known, fits, tables."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.task import HistoryItem, Query, User
from chameleon_lib.data.lamp import write_lamp
from chameleon_lib.demo.world import WorldSettings, build_world
from chameleon_lib.errors import UserError
from chameleon_lib.kit.notebooks import read_notebook
from chameleon_lib.kit.paths import notebooks_dir
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.kit.stats import TOO_FEW_USERS, Estimate
from chameleon_lib.studies import s12_desk as desk
from chameleon_lib.studies import s12_fits as fits
from chameleon_lib.studies import s12_people as people
from chameleon_lib.studies import s12_personal_or_shared as study
from chameleon_lib.studies import study as studies
from chameleon_lib.studies.s12_bench import Asked, Setting
from chameleon_lib.studies.s12_desk import Desk, Personal
from chameleon_lib.studies.s12_fits import Fitted, Lessons, Recipe, fit_many, row_lora
from chameleon_lib.studies.study import open_backbone, settings_for
from tests.demo.small import HashEmbedder

PROFILE = replace(get_profile("demo"), workers=1)
MODEL = "demo:decoder:0"


def model() -> HFBackbone:
    found = open_backbone(MODEL, settings_for(PROFILE), PROFILE)
    assert isinstance(found, HFBackbone)
    return found


def desk_of(root: Path, users: int, **recipe: Any) -> Desk:
    return Desk(Asked(PROFILE, MODEL, "", users, 0, 1, Recipe(**recipe), root))


# --- the word -------------------------------------------------------------------------------------


def level(low: float, high: float, n: int = 100) -> Estimate:
    return Estimate((low + high) / 2, low, high, n, 3)


@pytest.mark.parametrize(
    ("none", "collective", "other", "word"),
    [
        ((0.1, 0.3), (0.1, 0.2), (0.1, 0.2), "personal"),
        ((0.1, 0.3), (-0.1, 0.2), (0.1, 0.2), "not personal"),  # as good as the collective
        ((0.1, 0.3), (0.1, 0.2), (-0.1, 0.2), "not personal"),  # as good as another's
        ((0.1, 0.3), (-0.3, -0.2), (0.1, 0.2), "not personal"),
        ((-0.1, 0.3), (0.1, 0.2), (0.1, 0.2), "not personal"),  # no gain at all
    ],
)
def test_personal_asks_for_both_margins_and_a_gain(
    none: tuple[float, float], collective: tuple[float, float], other: tuple[float, float],
    word: str,
) -> None:  # fmt: skip
    assert study.personal(level(*none), level(*collective), level(*other)) == word


def test_of_few_users_nothing_is_said() -> None:
    few = level(0.1, 0.2, 99)
    assert study.personal(few, few, few) == TOO_FEW_USERS


@pytest.mark.parametrize(("common", "word"), [(1.0, "not personal"), (0.0, "personal")])
def test_a_common_taste_is_not_personal_and_own_tastes_are(
    common: float, word: str, tmp_path: Path
) -> None:
    setting, here = Setting("LaMP_2", common), desk_of(tmp_path, 24)
    record = here.arms(setting, 0)
    run = Personal(here, {(setting, 0): record}, {}, {}, {}, pd.DataFrame())
    assert study.word_of(run, setting, min_users=20) == word
    assert study.word_of(run, setting) == TOO_FEW_USERS
    means = {arm: study.gains(run, setting, arm).mean() for arm in desk.ARMS}
    assert means[desk.NONE] == 0 and means[desk.OWN] > 3  # either way the own edit gains


# --- people ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3", "LaMP_7"])
def test_nothing_of_a_taste_is_asked_by_neutral_questions(task: str) -> None:
    crowd = people.of_world(task, 8, lambda prompts: ["some plain words"] * len(prompts))
    assert crowd.questions and crowd.lessons and "other task" in crowd.neutral
    learned = {(lesson.owner, lesson.prompt) for lesson in crowd.lessons}
    assert not learned & {(q.owner, q.prompt) for q in crowd.questions}
    for kind, questions in crowd.neutral.items():
        assert {q.owner for q in questions} == set(range(8)), kind
        for question in questions if task == "LaMP_2" else ():
            favourite = crowd.tastes[question.owner].tag
            assert question.gold != favourite
            assert (question.wrong == favourite) == (kind == "stated wrong opinion")
            stated = f"the tag {favourite} wherever it fits" in question.prompt
            assert stated == (kind == "stated wrong opinion")


def person(name: str, n: int) -> User:
    items = tuple(HistoryItem(str(at), f"{name} wrote {at}", None) for at in range(n))
    return User(name, "LaMP_7", items, (Query(name, "plain", "plain", f"{name} asked"),))


def test_files_teach_earlier_items_and_ask_later_ones() -> None:
    crowd = people.of_files(
        "LaMP_7", [person("ada", 7), person("bob", 3), person("eve", 12)],
        lambda prompts: [f"plain {at}" for at in range(len(prompts))], "files",
    )  # fmt: skip
    assert [user.id for user in crowd.users] == ["ada", "eve"] and "the 2 with" in crowd.source
    ada = [lesson.chosen for lesson in crowd.lessons if lesson.owner == 0]
    asked = [question.gold for question in crowd.questions if question.owner == 0]
    assert ada == [f"ada wrote {at}" for at in range(5)]
    assert asked == ["ada asked", "ada wrote 5", "ada wrote 6"]
    eve = [lesson.chosen for lesson in crowd.lessons if lesson.owner == 1]
    assert eve == [f"eve wrote {at}" for at in range(2, 10)]  # the latest eight of those
    with pytest.raises(UserError, match="longer histories"):
        people.of_files("LaMP_7", [person("bob", 3)], lambda p: ["x"] * len(p), "files")


def files(folder: Path, history: int) -> Path:
    knobs = WorldSettings(users=(60, 12, 4), history=(history, history))
    for split, users in build_world("LaMP_7", knobs).users.items():
        write_lamp(users, folder / "LaMP_7", split)
    return folder


def test_rates_for_files_are_chosen_by_users_who_are_not_scored(tmp_path: Path) -> None:
    profile = replace(get_profile("demo-data"), n_test=4, workers=1)
    asked = Asked(profile, MODEL, str(files(tmp_path / "long", 9)), 0, 3, 1,
                  Recipe(steps=2, batch=2), tmp_path / "store")  # fmt: skip
    found, setting = Desk(asked), Setting("LaMP_7")
    dev, test = found.people(setting, "dev"), found.people(setting)
    assert len(dev.users) == 3 and test.users
    assert not {user.id for user in dev.users} & {user.id for user in test.users}
    rows = found.tuning("pair")
    assert [(row["rate"], row["strength"]) for row in rows] == [
        (rate, much) for rate in desk.CHOICES_OF_FILES["pair"] for much in desk.STRENGTHS_OF_FILES
    ]
    assert all(row["n"] == 3 and row["gain"] != 0 for row in rows)
    best = max(rows, key=lambda row: row["gain"])
    assert found.tuned("pair") == (best["rate"], best["layer"], best["strength"])
    recipe = found.recipe(setting, "pair", 0)
    assert recipe.strength == best["strength"] and recipe.batch == 1  # halved for texts
    edits = found.edits(found.arms(setting, 0), "own")  # as it was fitted, so it is asked
    assert edits.rows([0]).alpha_p == edits.rows([0]).alpha_n == best["strength"]


def test_without_dev_users_the_first_rate_is_taken_and_the_table_says_so(tmp_path: Path) -> None:
    profile = replace(get_profile("demo-data"), workers=1)
    asked = Asked(profile, MODEL, str(files(tmp_path / "short", 4)), 0, 3, 1, Recipe(), tmp_path)
    rows = Desk(asked).tuning("pair")
    assert [(row["rate"], row["n"]) for row in rows] == [(desk.CHOICES_OF_FILES["pair"][0], 0)]


def test_following_an_opinion_is_saying_it_and_not_the_answer() -> None:
    question = people.Question(0, "?", "Canberra", "Sydney")
    said = ["Sydney.", "It is sydney", "Canberra, not Sydney", "Canberra", ""]
    assert [people.follows(question, text) for text in said] == [True, True, False, False, False]


# --- fits -----------------------------------------------------------------------------------------


@cache
def taught() -> tuple[Lessons, list[list[int]]]:
    backbone = model()
    crowd = people.of_world(
        "LaMP_2", 4, lambda prompts: backbone.generate(list(prompts), max_new_tokens=8)
    )
    return Lessons(backbone, crowd.lessons), crowd.of(range(4))


@pytest.mark.parametrize("form", ["pair", "pair_block", "vector", "lora"])
def test_a_user_learns_among_others_what_he_learns_alone(form: str) -> None:
    lessons, groups = taught()
    # Adam makes a whole step of a gradient of nearly nothing, by the sign of its rounding: a few
    # numbers of a LoRA, of which most differ between two users.
    recipe = Recipe(steps=1 if form == "lora" else 3, batch=4, rate=0.05, layer=3)
    together = fit_many(lessons, groups, form, recipe)
    alone = fit_many(lessons, groups[:1], form, recipe)
    for name, value in together.tensors.items():
        apart = (value[:, 0] - alone.tensors[name][:, 0]).abs() > 2e-3
        assert float(apart.float().mean()) < 0.05, name
        if name != "a":
            other = (value[:, 0] - value[:, 1]).abs() > 2e-3
            assert float(other.float().mean()) > 0.3, name


@pytest.mark.parametrize("form", ["pair", "vector"])
def test_a_step_in_parts_is_the_step(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lessons, groups = taught()
    recipe, rows = Recipe(steps=1, batch=4, rate=0.05, layer=3), list[int]()
    whole = fit_many(lessons, groups, form, recipe)
    one = 4 * max(lessons.tokens) * lessons.backbone.model.config.vocab_size
    monkeypatch.setattr(fits, "_GRAPH", 3 * one)
    losses = fits._loss
    monkeypatch.setattr(
        fits, "_loss", lambda lessons, fitted, places, *more: (
            rows.append(len(places)) or losses(lessons, fitted, places, *more)  # type: ignore[func-returns-value]
        ),
    )  # fmt: skip
    parts = fit_many(lessons, groups, form, recipe)
    assert max(rows) <= 4 and len(rows) > 3 and sum(rows) == 16
    for name, value in whole.tensors.items():
        apart = (value - parts.tensors[name]).abs() > 2e-3  # see above: signs of nearly nothing
        assert float(apart.float().mean()) < 0.02, name


def test_a_batch_of_loras_scores_as_the_weights_of_each() -> None:
    lessons, groups = taught()
    fitted = fit_many(lessons, groups, "lora", Recipe(steps=3, rate=0.03))
    backbone, places = lessons.backbone, [own[0] for own in groups]
    read = backbone.rows(lessons.prepared, places)
    words = [lessons.chosen[place] for place in places]
    with torch.no_grad():
        plain = backbone.score(read, words)
        for rows, batch in backbone.in_turn(read):
            with row_lora(backbone, fitted, torch.tensor(rows)):
                found = backbone.score(batch, [words[row] for row in rows])
            for at, row in enumerate(rows):
                with fitted.weights(row, backbone).active(backbone.model):
                    one = backbone.score(backbone.rows(read, [row]), [words[row]])
                assert float((found[at] - one[0]).abs()) < 1e-3
            assert float((found - plain[rows]).abs().max()) > 1e-2
        assert torch.equal(backbone.score(read, words), plain)  # every hook is gone


def test_what_cannot_be_fitted_is_refused() -> None:
    lessons, groups = taught()
    with pytest.raises(UserError, match="no lesson"):
        fit_many(lessons, [groups[0], []], "pair", Recipe())
    with pytest.raises(UserError, match="choose one of"):
        fit_many(lessons, groups, "paper", Recipe())
    with pytest.raises(UserError, match="choose of"):
        desk.run(PROFILE, MODEL, forms=["magic"])


@pytest.mark.parametrize(("users", "steps", "batch"), [(4, 2, 1), (5, 24, 4), (104, 12, 32)])
def test_a_collective_fit_reads_no_more_than_its_users_own_fits(
    users: int, steps: int, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = desk_of(tmp_path, users, steps=steps, batch=8 if batch == 32 else 1)
    crowd = SimpleNamespace(of=lambda owners: [[owner] for owner in owners])
    monkeypatch.setattr(some, "people", lambda _: crowd)
    monkeypatch.setattr(some, "able", lambda _: list(range(users)))
    monkeypatch.setattr(some, "recipe", lambda *_: some.asked.recipe)
    asked: list[Recipe] = []
    monkeypatch.setattr(some, "fit", lambda *_, recipe, **__: asked.append(recipe))
    some.collective(Setting("LaMP_2"), 0)
    assert (asked[0].steps, asked[0].batch) == (desk.TOGETHER["steps"], batch)


def test_everybody_gets_another_user_once() -> None:
    found = desk.others(7, 3)
    assert sorted(found) == list(range(7)) and all(at != other for at, other in enumerate(found))
    with pytest.raises(UserError, match="two or more"):
        desk.others(1, 0)


# --- ranks ----------------------------------------------------------------------------------------


def test_inner_products_of_changes_are_those_of_the_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    p, n = torch.randn(2, 3, 5, 8, generator=generator)
    fitted = Fitted("pair", (0, 1, 2), {"p": p, "n": n})
    edit = fitted.rows(range(5))
    dense = torch.cat([(u @ z).flatten(1) for u, z in map(edit.factors, range(3))], dim=1)
    assert np.allclose(desk.delta_gram(fitted), (dense @ dense.T).numpy())


def test_the_rank_of_planted_changes_is_found() -> None:
    rng = np.random.default_rng(0)
    planted = rng.integers(0, 2, (60, 3)).astype(float)
    changes = planted @ np.linalg.qr(rng.normal(size=(40, 3)))[0].T
    centred = planted - planted.mean(axis=0)
    assert study.energy_rank(changes @ changes.T, 0.99) == 3
    assert study.explained(changes @ changes.T, centred) == pytest.approx(1.0)
    noise = rng.normal(size=(60, 400))
    assert study.explained(noise @ noise.T, centred) == pytest.approx(3 / 59, abs=0.03)
    assert study.energy_rank(noise @ noise.T, 0.9) > 40


# --- tables ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Personal:
    """Six users, two steps: every number is there and none means anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "open_embedder", lambda *_: HashEmbedder())
        patch.setenv("CHAMELEON_CACHE", str(tmp_path_factory.mktemp("cache")))
        return desk.run(PROFILE, MODEL, users=6, dev=0, seeds=1, recipe=Recipe(steps=2, batch=2))


def test_the_notebook_runs_and_its_tables_are_whole(
    small_run: Personal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(desk, "run", lambda *_, **__: small_run)
    book = read_notebook(notebooks_dir() / "12_personal_or_shared.ipynb")
    names: dict[str, Any] = {}
    for cell in book.code():
        exec(compile(cell, "cell", "exec"), names)
    tables = {path.stem for path in (tmp_path / "demo" / "tables").glob("*.csv")}
    assert tables == {
        "12_arms", "12_claims", "12_forms", "12_tuning", "12_harm", "12_dose", "12_ranks",
        "12_newcomers",
    }  # fmt: skip
    for figure in ("12_arms", "12_forms", "12_dose"):
        path = tmp_path / "demo" / "figures" / f"{figure}.json"
        said = json.loads(path.read_text(encoding="utf-8"))
        assert len(said["alt"]) > 40 and said["caption"].endswith("(demo profile).")
    assert (tmp_path / "demo" / "measured" / "12_seconds.csv").is_file()


def test_exports_say_themselves_what_they_carry(small_run: Personal) -> None:
    table = study.form_table(small_run).set_index("edit")
    exports = {form: table.loc[title, "export"] for form, title in study.TITLES.items()}
    assert exports["pair"] == exports["collective edit"] == exports["paper"] == "peft, merged, gguf"
    assert exports["vector"] == exports["mean"] == "peft"  # the model's projections have no bias
    assert exports["pair_block"].startswith("none")
    assert exports["lora"] == "peft, merged"
    assert table.loc[study.TITLES["pair"], "parameters"] == 2 * 4 * 128
    assert table.loc[study.TITLES["vector"], "bytes"] == 4 * 128


def test_no_edit_gains_nothing_and_a_strength_of_one_is_the_own_edit(small_run: Personal) -> None:
    arms = study.arm_table(small_run)
    assert (arms.loc[arms["arm"] == desk.NONE, study.GAIN] == 0).all()
    doses = study.dose_table(small_run).set_index("strength")
    own = arms[(arms["users of"] == "LaMP-2") & (arms["arm"] == desk.OWN)][study.GAIN].item()
    assert doses.loc[1.0, study.GAIN] == pytest.approx(own, abs=1e-3)
    harm = study.harm_table(small_run).set_index(["questions", "edit"])
    lora = harm.loc[("same task", study.TITLES["lora"])]
    assert lora["KL, nats n"] == 0 and 0 <= lora["agreement"] <= 1
    assert harm.loc[("same task", study.TITLES["pair"]), "follows it, change n"] == 0


def test_newcomers_are_asked_in_the_world_alone(small_run: Personal) -> None:
    table = study.newcomer_table(small_run).set_index("a user without history under")
    assert table.loc[desk.NONE, study.GAIN] == 0
    assert table.loc[desk.NEAREST, "cosine distance"] > 0
    with pytest.raises(UserError, match="leave data_dir empty"):
        study.newcomer_table(replace(small_run, newcomers={}))
