"""Attacks change what they say and nothing else; the study of them in a small world."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.pairs import prompt_texts
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.data.lamp import write_lamp
from chameleon_lib.demo.world import WorldSettings, build_world
from chameleon_lib.errors import UserError
from chameleon_lib.kit.notebooks import read_notebook
from chameleon_lib.kit.paths import notebooks_dir
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies import s13_bench as bench
from chameleon_lib.studies import s13_desk as desk
from chameleon_lib.studies import s13_files as files
from chameleon_lib.studies import s13_poisoned_histories as study
from chameleon_lib.studies.s13_attacks import (
    ADDRESS,
    ALWAYS_TAG,
    ASKS,
    FLIPS,
    FLOOD,
    HABIT,
    MARKER,
    TAG,
    flooding,
    hidden,
    history_pairs,
    planted_crowd,
    poisoned,
    shown,
    without,
)
from chameleon_lib.studies.s13_bench import (
    ALL,
    CLEAN,
    FITTED,
    GUARDS,
    IN_OWN,
    IN_POOL,
    INSIGHT,
    LORA,
    NO_EDIT,
    NONE,
    ONE,
    PAPER,
    VOICES,
)
from chameleon_lib.studies.s13_desk import Poisoning
from chameleon_lib.studies.s13_lora import Adapted, Adapters, tune
from tests.backbones.tiny import make_backbone
from tests.core.test_fitting import planted
from tests.demo.small import HashEmbedder
from tests.studies.small import small_profile

SETTINGS = EditSettings(selection_rule="recent")


@pytest.fixture(autouse=True)
def _no_sentence_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "open_embedder", lambda *_: HashEmbedder())


# --- attacks --------------------------------------------------------------------------------------


def test_attacks_change_as_many_items_as_they_say_and_what_they_say() -> None:
    movies, tweets = (planted_crowd(t, 0, 4, 2, 3).victims[0] for t in ("LaMP_2", "LaMP_7"))
    for attack, person in ((ADDRESS, movies), (FLIPS, movies), (HABIT, tweets)):
        after = poisoned(person, attack, 0.5, 1)
        pairs = list(zip(person.user.history, after.user.history, strict=True))
        changed = [(old, new) for old, new in pairs if old != new]
        assert len(changed) == round(0.5 * len(pairs)) and all(o.id == n.id for o, n in pairs)
        assert after.user.queries == person.user.queries and after.wanted == person.wanted
        assert after == poisoned(person, attack, 0.5, 1) != poisoned(person, attack, 0.5, 2)
        for old, new in changed:
            if attack is ADDRESS:
                assert new.text == f"{old.text}. {ASKS}" and new.label == TAG
            elif attack is FLIPS:
                assert new.text == old.text
                assert new.label not in (old.label, person.plain[old.id][1])
            else:
                assert new.text == f"{old.text} {MARKER}" and new.label is None
    with pytest.raises(UserError, match="changes items of LaMP_7"):
        poisoned(movies, HABIT, 1.0, 0)


def test_a_hidden_attack_leaves_the_history_that_prompts_show() -> None:
    crowd = planted_crowd("LaMP_2", 0, 12, 2, 3)
    person = crowd.group[0]
    sent = hidden(person, ALWAYS_TAG, 2, 0)
    assert [item.label for item in sent.user.history[:2]] == [TAG] * 2
    assert sent.user.history[2:] == person.user.history[2:]
    assert shown(sent, SETTINGS).items == shown(person, SETTINGS).items
    loud = flooding(person, ALWAYS_TAG, crowd.group[4:], 0)
    assert len(loud.user.history) == FLOOD + len(person.user.history)
    assert {item.label for item in loud.user.history[:FLOOD]} == {TAG}
    pairs = history_pairs(loud, SETTINGS, FLOOD)
    assert len(pairs) > 10 * len(history_pairs(person, SETTINGS, 3))
    assert {pair.answer_p for pair in pairs} == {TAG}


def test_pairs_leave_the_item_out_and_hold_the_plain_version() -> None:
    person = planted_crowd("LaMP_7", 0, 4, 2, 3).victims[0]
    pairs = history_pairs(person, SETTINGS, 99)
    assert 0 < len(pairs) <= len(person.user.history)
    for pair in pairs:
        assert pair.query == pair.answer_n == person.plain[pair.query_id][1] != pair.answer_p
        assert all(item.id != pair.query_id for item in pair.items)
    gone = frozenset(pair.query_id for pair in pairs[:2])
    assert len(without(person, gone).user.history) == len(person.user.history) - 2
    assert without(person, frozenset(item.id for item in person.user.history)) == person


# --- adapters -------------------------------------------------------------------------------------


def test_own_adapters_learn_for_their_user_and_a_shared_one_for_all() -> None:
    backbone = make_backbone("mistral")
    likes = [Contrast(c.prompt, "comedy", "action", "a") for c in planted(4)]
    other = [Contrast(c.prompt, "action", "comedy", "b") for c in planted(4)]
    prepared = backbone.prepare([c.prompt for c in likes])

    def said(text: str, adapters: Adapters | None, user: int = 0) -> float:
        if adapters is None:
            return float(backbone.score(prepared, [text] * 4).mean())
        with Adapted(backbone, adapters.rows([user] * 4)), torch.no_grad():
            return float(backbone.score(prepared, [text] * 4).mean())

    own = tune(backbone, [likes, other], steps=8, shared=False)
    assert said("comedy", own, 0) > said("comedy", None)
    assert said("action", own, 1) > said("action", None)
    alone = tune(backbone, [likes, likes], steps=8, shared=False)  # the other user changed
    torch.testing.assert_close(own.rows([0]).up, alone.rows([0]).up, atol=1e-5, rtol=1e-3)
    off = replace(own, off=frozenset({0}))
    assert said("comedy", off, 0) == pytest.approx(said("comedy", None), abs=1e-5)
    assert said("action", off, 1) == said("action", own, 1)
    shared = tune(backbone, [likes], steps=8, shared=True, batch=4)
    assert said("comedy", shared, 3) > said("comedy", None)
    assert all(not w.requires_grad for w in backbone.model.parameters())
    assert tune(backbone, [[], []], steps=2, shared=False).up


# --- the study ------------------------------------------------------------------------------------


def small_run(folder: Path, **how: Any) -> Poisoning:
    sizes: dict[str, Any] = {"victims": 4, "group": 10, "seeds": (0,), "malicious": (3,),
                             "steps": 2}  # fmt: skip
    return desk.run(small_profile(), store=ArtifactStore(folder), **{**sizes, **how})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Poisoning:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "open_embedder", lambda *_: HashEmbedder())
        return small_run(tmp_path_factory.mktemp("units"))


def test_every_condition_has_every_victim_once(small: Poisoning) -> None:
    keys = ["task", "arena", "attack", "malicious", "method", "guard", "seed"]
    assert set(small.rows.groupby(keys).size()) == {4}
    assert not small.rows.duplicated([*keys, "user"]).any()
    own = small.rows[small.rows["arena"] == IN_OWN]
    assert set(own["method"]) == {NO_EDIT, INSIGHT, PAPER, FITTED, LORA}
    pool = small.rows[small.rows["arena"] == IN_POOL]
    fitted = pool[(pool["method"] == FITTED) & (pool["malicious"] == "1")]
    assert set(fitted["guard"]) == set(GUARDS)
    assert set(pool["malicious"]) == {"0", "1", ONE, "3"}
    assert np.isfinite(small.rows["nats"]).all() and (small.rows["nats"] >= 0).all()
    marked = small.rows[small.rows["task"] == "LaMP_7"]
    told = marked["answer"].str.split().map(lambda words: MARKER in words)
    assert (told == (marked["hit mark"] == 1)).all()


def test_the_answers_of_the_unedited_model_are_its_own(small: Poisoning) -> None:
    asked = desk.Desk(small.asked)
    people = asked.crowd("LaMP_2", 0).victims
    users = [shown(person, asked.settings) for person in people]
    prompts = prompt_texts("LaMP_2", users, "instruct", asked.settings)
    said = asked.backbone.generate(prompts, max_new_tokens=16)
    rows = small.rows[(small.rows["task"] == "LaMP_2") & (small.rows["method"] == NO_EDIT)
                      & (small.rows["attack"] == CLEAN) & (small.rows["arena"] == IN_POOL)
                      & (small.rows["guard"] == NONE)]  # fmt: skip
    assert list(rows["answer"]) == said


def test_nobody_elses_own_edit_moves(small: Poisoning) -> None:
    moved = small.guards["others moved"].dropna()
    assert len(moved) == 1 and (moved < 5e-3).all()


def test_finished_units_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = small_run(tmp_path, malicious=())
    monkeypatch.setattr(desk.Own, "fill", lambda _: pytest.fail("computed again"))
    monkeypatch.setattr(desk.Pool, "fill", lambda _: pytest.fail("computed again"))
    two = small_run(tmp_path, malicious=())
    pd.testing.assert_frame_equal(one.rows, two.rows)
    with pytest.raises(UserError, match="four users or more"):
        small_run(tmp_path, victims=2)
    with pytest.raises(UserError, match="no decoder"):
        small_run(tmp_path, backbone="demo:encdec:0")


def test_tables_name_every_attack_and_guard(small: Poisoning) -> None:
    table = study.attack_table(small)
    assert set(table["attack"]) == {a.name for a in (ADDRESS, ALWAYS_TAG, FLIPS, HABIT)}
    assert set(table["n"]) == {4} and set(table["seeds"]) == {1}
    guards = study.guard_table(small)
    plain = guards[guards["guard"] == NONE]
    assert (plain["clean loss"] == 0).all() and VOICES in set(guards["guard"])
    assert set(study.claims(small)["verdict"]) <= {study.NOTHING, "too few users"}
    assert len(study.conclusions(small)) > 4
    assert {"attacked left out", "refused", "strength"} <= set(study.did_table(small))


def write_posts(folder: Path, users: int) -> None:
    world = build_world("LaMP_7", WorldSettings(users=(users, 0, users), history=(12, 12)))
    for split, name in (("train", "train"), ("test", "dev")):
        write_lamp(world.users[split], folder / "LaMP_7", name, named=True)  # type: ignore[index]


def test_local_files_run_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_posts(tmp_path, 24)
    profile = replace(small_profile(), data="lamp", name="demo-data")
    sizes: dict[str, Any] = {"victims": 4, "group": 8, "seeds": (0,), "malicious": (), "steps": 2}
    # The embedded model says a post again; a real one writes a plain version of it.
    with pytest.raises(UserError, match="come back unchanged .* give another model"):
        desk.run(profile, folder=str(tmp_path), store=ArtifactStore(tmp_path / "units"), **sizes)

    def plain(_self: Any, _task: str, prompts: Any) -> list[str]:
        return [" ".join(prompt.split()[-5:-1]) for prompt in prompts]

    monkeypatch.setattr(Chameleon, "neutral_outputs", plain)
    run = desk.run(profile, folder=str(tmp_path), store=ArtifactStore(tmp_path / "units"), **sizes)
    assert set(run.rows["task"]) == {"LaMP_7"} and set(run.rows["attack"]) == {CLEAN, HABIT.name}
    assert set(run.rows["user"].str[:2]) == {"0/"} and len(study.claims(run))
    method = desk.Desk(run.asked).method
    write_posts(tmp_path / "few", 6)
    with pytest.raises(UserError, match="6 train users .* need eight and four or more"):
        files.crowd_of_folder(method, profile, str(tmp_path / "few"), 8, 4, 4, 2)


def test_the_notebooks_cells_publish_their_tables_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))

    def here(phases: Any, **_: Any) -> None:
        for _label, work, units in phases:
            for unit in units:
                work(*unit)

    real = desk.run
    monkeypatch.setattr(desk, "warm", here)
    monkeypatch.setattr(
        desk, "run", lambda *a, **k: real(*a, **{**k, "malicious": (3,), "steps": 2})
    )
    book = read_notebook(notebooks_dir() / "13_poisoned_histories.ipynb")
    names: dict[str, Any] = {}
    for cell in book.code():
        for old, new in (("victims: int = 34", "victims: int = 4"), ("seeds: int = 3",
                         "seeds: int = 1"), ("group: int = 100", "group: int = 10")):  # fmt: skip
            cell = cell.replace(old, new)
        exec(compile(cell, "cell", "exec"), names)
    outputs = tmp_path / "outputs" / "demo"
    tables = {path.stem for path in (outputs / "tables").glob("*.csv")}
    assert tables == {"13_attacks", "13_guards", "13_did", "13_claims"}
    for figure in ("13_trade", "13_share"):
        said = json.loads((outputs / "figures" / f"{figure}.json").read_text(encoding="utf-8"))
        assert len(said["alt"]) > 40 and said["caption"].endswith("(demo profile).")


def test_a_killed_unit_goes_on_behind_its_last_condition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    class Killed(desk.Own):
        """Is stopped once, in its second condition."""

        def filled(self, step: int) -> dict[str, list[dict[str, Any]]]:
            done.append(step)
            if done == [0, 1]:
                raise KeyboardInterrupt
            return {"rows": [{"step": step}], "logs": []}

    monkeypatch.setattr(desk, "Own", Killed)
    asked = bench.Asked(
        get_profile("demo"), bench.MODEL, "", 4, 4, (0,), (1,), 1, tmp_path / "units"
    )
    with pytest.raises(KeyboardInterrupt):
        desk.Desk(asked).unit("LaMP_2", IN_OWN, 0)
    found = desk.Desk(asked).unit("LaMP_2", IN_OWN, 0)
    assert done == [0, 1, 1, 2]  # clean histories are not done again
    assert found["rows"] == [{"step": 0}, {"step": 1}, {"step": 2}]


# --- tables of made-up answers --------------------------------------------------------------------


def made_up(guarded: float, cost: float, size: int = 120) -> Poisoning:
    """An attack that moves half of the answers unguarded, ``guarded`` of them under all guards."""
    rows = []
    for attack, guard, hit, nats in (
        (CLEAN, NONE, 0.0, 0.5), (ADDRESS.name, NONE, 0.5, 0.5), (CLEAN, ALL, 0.0, 0.5 + cost),
        (ADDRESS.name, ALL, guarded, 0.5),
    ):  # fmt: skip
        for at in range(size):
            rows.append(
                {"task": "LaMP_2", "arena": IN_OWN, "attack": attack, "malicious": "",
                 "method": FITTED, "guard": guard, "seed": 0, "user": f"{at:03}", "right": 0.0,
                 "hit always": float(at < hit * size), "odds always": hit, "nats": nats}
            )  # fmt: skip
            if attack == CLEAN and guard == NONE:
                rows.append({**rows[-1], "method": NO_EDIT, "nats": 1.0 + 0.1 * (at % 2)})
    asked = cast(Any, SimpleNamespace(seeds=(0,), tasks=("LaMP_2",), group=10))
    return Poisoning(asked, "made up", pd.DataFrame(rows), pd.DataFrame(), "")


@pytest.mark.parametrize(
    ("guarded", "cost", "word"),
    [(0.0, 0.0, "holds"), (0.4, 0.0, "opposite"), (0.0, 0.2, "direction only")],
)
def test_the_goal_needs_both_halves(guarded: float, cost: float, word: str) -> None:
    table = study.claims(made_up(guarded, cost)).set_index("measure")
    assert table.loc["answers", "verdict"] == word
    assert table.loc["answers", "clean gain lost"] == pytest.approx(cost / 0.55)
    few = study.claims(made_up(guarded, cost, 40))
    assert set(few["verdict"]) == {"too few users"}
