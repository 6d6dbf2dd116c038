"""The study of edited preferences on tiny random models, and its tables on made-up answers."""

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

from chameleon_lib.data.preferences import IMPLICIT, KINDS, invented_preferences
from chameleon_lib.editors.released import OURS, Released, as_released
from chameleon_lib.errors import UserError
from chameleon_lib.kit.notebooks import read_notebook
from chameleon_lib.kit.paths import notebooks_dir, root
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies import s10_desk as desk_module
from chameleon_lib.studies import s10_personalization_editing as study
from chameleon_lib.studies import s10_rows as rows_module
from chameleon_lib.studies.s10_desk import Editing
from chameleon_lib.studies.s10_rows import (
    CLAIMED,
    FITTED,
    FT_L,
    FT_M,
    FULL,
    LORA,
    PAPER,
    PROMPT,
    PROMPTED,
    RETRIEVED,
    ROME_1,
    ROME_3,
    SUBSET,
    TALKS,
    ZERO,
    Sizes,
    chosen,
)
from chameleon_lib.studies.s10_several import several
from tests.studies.small import small_profile, use_small_models

Hits = dict[tuple[str, str], Any]
TINY = Sizes(4, 2, (0, 1), 1, ((2, 1),), 2, 2, 2)


def ran(folder: Path, backbone: str = "demo:decoder:0", **changes: Any) -> Editing:
    sizes = changes.pop("sizes", TINY)
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        return desk_module.run(
            small_profile(), backbone, sizes, store=ArtifactStore(folder), **changes
        )


@pytest.fixture(scope="module", params=["demo:decoder:0", "demo:encdec:0"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Editing:
    """Four users, two of them looked at closely."""
    return ran(tmp_path_factory.mktemp("units"), request.param)


def test_every_row_is_asked_every_kind_of_question(small: Editing) -> None:
    assert study.arms_of(small) == [*PROMPTED, *CLAIMED, *TINY.others]
    for arm, rows in small.recalls.groupby("arm"):
        users = 4 if arm in (*PROMPTED, *CLAIMED) else 2
        assert len(rows) == users * len(KINDS) and set(rows["kind"]) == set(KINDS)
        assert set(rows["user"]) == {p.user for p in invented_preferences()[:users]}
    assert set(small.effects["arm"]) == {*CLAIMED, *TINY.others}
    assert (small.effects.groupby("arm").size() == 2).all()
    assert set(small.talks["arm"]) == set(TALKS) and set(small.talks["turns"]) == {0, 1}
    assert small.effects["perplexity ratio"].gt(0).all()
    for measure in ("leaks", "others", "others' words", "general"):
        assert small.effects[measure].between(0, 1).all()


def test_the_model_is_as_it_was_and_steps_are_counted(small: Editing) -> None:
    fits = small.fits.set_index("arm")
    assert (fits.loc[[ROME_3], "steps"] == 3 * TINY.rome_steps).all()
    assert (fits.loc[[ROME_1, FT_L, FT_M, LORA], "steps"] == 2).all()
    assert fits.loc[[ROME_1, FT_M, LORA], "bytes"].gt(0).all()
    asked = small.recalls[small.recalls["arm"] == ZERO]
    texts = list(asked["question"])
    room = max(len(ids) for ids in small.backbone.codec.answers(
        [p.target for p in invented_preferences()])) + 8  # fmt: skip
    again = small.backbone.generate(texts, max_new_tokens=room)
    assert again == list(asked["answer"])
    assert not any(w.requires_grad for w in small.backbone.model.parameters())
    assert not any("lora_" in name for name in small.backbone.model.state_dict())


def test_finished_work_is_read_from_the_store(tmp_path: Path, monkeypatch: Any) -> None:
    one = ran(tmp_path)
    with torch.no_grad():
        monkeypatch.setattr(desk_module, "perplexity", lambda *_: pytest.fail("computed again"))
        two = ran(tmp_path)
    pd.testing.assert_frame_equal(one.recalls, two.recalls)
    pd.testing.assert_frame_equal(one.fits, two.fits)


def test_prompts_hold_the_preference_and_as_released_they_lose_it(tmp_path: Path) -> None:
    desk = ran_desk(tmp_path)
    preference = desk.preferences[0]
    for kind in KINDS:
        assert preference.sentence in desk._prompt(PROMPT, preference, kind)
        assert desk._prompt(ZERO, preference, kind) == preference.question(kind)
        retrieved = desk._prompt(RETRIEVED, preference, kind)
        assert any(p.sentence in retrieved for p in desk.preferences)
    lost = ran_desk(tmp_path, as_released())
    for kind in KINDS[1:]:
        assert lost._prompt(PROMPT, preference, kind) == preference.question(kind)
    assert preference.sentence in lost._prompt(PROMPT, preference, KINDS[0])


def ran_desk(folder: Path, released: Released = OURS) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        desk = desk_module.Desk(
            small_profile(), "demo:decoder:0", TINY, invented_preferences()[:4], released, folder
        )
        assert desk._retrieved  # while the small embedder is in place
        return desk


def test_tables_have_a_row_each_with_users_and_seeds(small: Editing) -> None:
    table = study.recall_table(small)
    assert list(table["row"]) == study.arms_of(small)
    assert set(table["n"]) == {2, 4} and set(table["seeds"]) == {1}
    assert len(study.by_kind(small)) == len(table) * len(KINDS)
    assert set(study.effect_table(small)["n"]) == {2}
    assert len(study.talk_table(small)) == len(TALKS) * 2
    assert list(study.cost_table(small)["row"]) == [*CLAIMED, *TINY.others]
    assert list(study.speed(small)["row"]) == [*CLAIMED, *TINY.others]
    shown = study.examples(small, small.preferences[0].user)
    assert list(shown["row"]) == study.arms_of(small)
    with pytest.raises(UserError, match="There is no user 'nobody'"):
        study.examples(small, "nobody")
    assert len(study.claims(small)) == 5 == len(study.conclusions(small)) - 3


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are 100 preferences"):
        ran(tmp_path, sizes=replace(TINY, users=200))
    with pytest.raises(UserError, match="few not above users"):
        ran(tmp_path, sizes=replace(TINY, few=9))
    assert chosen(7, full=False) == replace(SUBSET, users=7, few=6)
    assert chosen(500, full=False).users == 100
    assert chosen(500, full=False, there=40).users == 40
    assert chosen(7, full=True) == FULL and FULL.seeds == 3
    assert FULL.users == FULL.few == chosen(7, full=True).few == 50
    assert chosen(60, full=True) == replace(FULL, users=60, few=60)
    small = chosen(7, full=True, there=20)
    assert (small.users, small.few) == (20, 20)
    paper = chosen(7, full=False, as_paper=True)
    assert (paper.users, paper.rome_steps, paper.lora_steps) == (7, 24, 70)
    assert sum(count for _, count in paper.prefixes) == 20


def test_a_file_without_clusters_or_other_questions_has_the_rows_it_can_have(
    tmp_path: Path,
) -> None:
    flat = [
        replace(p, subjects=p.subjects[-1:], questions=p.questions[-1:], targets=p.targets[-1:],
                paraphrased="", implicit="", recommendation="")
        for p in invented_preferences()[:4]
    ]  # fmt: skip
    run = ran(tmp_path, preferences=flat)
    assert study.arms_of(run) == [*PROMPTED, ROME_1, FT_L, FT_M, LORA, FITTED, PAPER]
    assert set(run.recalls["kind"]) == {KINDS[0]}
    assert len(study.claims(run)) == 3 and len(study.recall_table(run)) == 9


LOCAL = root().parent / "shared" / "data" / "upqa"


@pytest.mark.skipif(not LOCAL.is_dir(), reason="local evaluation data not present")
@pytest.mark.parametrize(
    "file",
    ["UPQA/balanced_subset_cluster9.json", "UPQA/UPQA_1000.json",
     "prefeval_pro/prefeval_pro_balanced.json"],
)  # fmt: skip
def test_local_files_go_through_the_study(file: str, tmp_path: Path) -> None:
    told = desk_module.read_or_invented(str(LOCAL / file))
    run = ran(tmp_path, preferences=told)
    kinds = {p.kind for p in run.preferences}
    assert len(run.preferences) == 4 == len(kinds)  # types take turns, whatever the file's order
    assert (ROME_3 in study.arms_of(run)) == file.endswith("cluster9.json")
    assert study.recall_table(run)["efficacy"].between(0, 1).all()


def test_what_an_edit_takes_is_counted_and_seconds_are_kept_apart(
    small: Editing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = study.cost_table(small).set_index("row")
    assert costs["GFLOP"].gt(0).all() and costs.loc[ROME_3, "GFLOP"] > costs.loc[ROME_1, "GFLOP"]
    trained = costs["numbers trained"]
    assert trained[ROME_1] == small.backbone.d < trained[LORA] and trained[PAPER] == 0
    assert trained[FT_M] == trained[FT_L] > trained[ROME_1] and trained[FITTED] > 0
    assert not {"seconds", "per minute"} & set(costs.columns)
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    said = study.keep_speed(small, "demo")
    kept = pd.read_csv(tmp_path / "demo" / "measured" / "10_speed.csv")
    assert list(kept["row"]) == [*CLAIMED, *TINY.others] and kept["per minute"].gt(0).all()
    assert said.endswith("measured/10_speed.csv")
    assert "edits of ROME" in " ".join(study.conclusions(small))


def test_as_released_the_edits_of_clusters_stay_for_the_next_user(tmp_path: Path) -> None:
    only = replace(TINY, users=3, others=())
    stays = ran(tmp_path, sizes=only, released=as_released())
    ours = ran(tmp_path, sizes=only)

    def losses(run: Editing, arm: str) -> list[float]:
        return list(run.fits[run.fits["arm"] == arm]["first loss"])

    one, two, three = zip(losses(ours, ROME_3), losses(stays, ROME_3), strict=True)
    assert one[0] == pytest.approx(one[1], abs=1e-5)
    assert two[0] != pytest.approx(two[1], abs=1e-4) and three[0] != pytest.approx(three[1], 1e-4)
    assert losses(ours, ROME_1) == pytest.approx(losses(stays, ROME_1), abs=1e-5)

    def answers(run: Editing, arm: str) -> list[str]:
        return list(run.recalls[run.recalls["arm"] == arm]["answer"])

    assert answers(stays, ZERO) == answers(ours, ZERO)
    lost = stays.recalls[(stays.recalls["arm"] == PROMPT) & (stays.recalls["kind"] == IMPLICIT)]
    plain = ours.recalls[(ours.recalls["arm"] == ZERO) & (ours.recalls["kind"] == IMPLICIT)]
    assert list(lost["answer"]) == list(plain["answer"])


def test_ten_preferences_of_a_person_go_in_one_after_another_or_together(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)

        def made(people: int) -> pd.DataFrame:
            return several(
                small_profile(), "demo:decoder:0", TINY, people=people, arm=FT_M,
                store=ArtifactStore(tmp_path),
            )  # fmt: skip

        table = made(1)
        assert [row.rpartition(", ")[2] for row in table["row"]] == [
            "apart", "one after another", "joint",
        ]  # fmt: skip
        assert set(table["n"]) == {1}
        with pytest.raises(UserError, match="make 10 persons"):
            made(11)


def test_the_notebooks_cells_publish_their_tables_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))

    def here(phases: Any, **_: Any) -> None:
        for _label, work, units in phases:
            for unit in units:
                work(*unit)

    monkeypatch.setattr(desk_module, "warm", here)
    monkeypatch.setattr(rows_module, "MODEL", "demo:decoder:0")
    monkeypatch.setattr(rows_module, "SUBSET", replace(TINY, turns=(0, 8)))
    book = read_notebook(notebooks_dir() / "10_personalization_editing.ipynb")
    names: dict[str, Any] = {}
    for cell in book.code():
        exec(compile(cell.replace("users: int = 16", "users: int = 3"), "cell", "exec"), names)
    tables = {path.stem for path in (tmp_path / "outputs" / "demo" / "tables").glob("*.csv")}
    assert tables == {"10_recall", "10_locality", "10_turns", "10_cost", "10_claims"}
    figures = tmp_path / "outputs" / "demo" / "figures"
    for figure in ("10_recall", "10_locality", "10_turns"):
        said = json.loads((figures / f"{figure}.json").read_text(encoding="utf-8"))
        assert len(said["alt"]) > 40 and said["caption"].endswith("(demo profile).")
    assert len(names["run"].preferences) == 3


# --- tables of made-up answers --------------------------------------------------------------------


def made_up(hits: Hits, ratio: float = 1.0) -> Editing:
    """Every row's substring score by kind of question; talks and effects to match."""
    size = len(next(iter(hits.values())))
    users = [f"u{at:03}" for at in range(size)]
    arms = list(dict.fromkeys(arm for arm, _ in hits))
    recalls = pd.DataFrame(
        [
            {"arm": arm, "seed": 0, "user": user, "kind": kind, "substring": hit, "word": hit,
             "f1": hit}
            for arm in arms for kind in KINDS
            for user, hit in zip(users, hits.get((arm, kind), np.zeros(size)), strict=True)
        ]
    )  # fmt: skip
    effects = pd.DataFrame(
        [
            {"arm": ROME_1, "seed": 0, "user": user, "leaks": 0.25, "others": 0.5,
             "others' words": 0.7, "general": 1.0, "perplexity ratio": ratio}
            for user in users
        ]
    )  # fmt: skip
    talks = pd.DataFrame(
        [
            {"arm": arm, "user": user, "turns": turns, "substring": float(arm == ROME_1)}
            for arm in TALKS for turns in (0, 8) for user in users
        ]
    )  # fmt: skip
    sizes = replace(SUBSET, turns=(0, 8))
    backbone = cast(Any, SimpleNamespace(name="model"))
    return Editing(backbone, [], sizes, recalls, effects, talks, pd.DataFrame())


def test_claims_are_judged_by_the_kits_rule() -> None:
    half = np.tile([1.0, 0.0], 60)
    rows: Hits = {
        (ZERO, KINDS[0]): np.zeros(120),
        (ROME_1, KINDS[0]): half,
        (ROME_3, IMPLICIT): half,
        (FT_L, KINDS[0]): np.zeros(120),
        (FT_M, KINDS[0]): np.ones(120),
    }
    run = made_up(rows)
    table = study.claims(run).set_index("claim")
    words = dict(table["verdict"])
    assert list(words.values()) == [
        "reproduced", "reproduced", "reproduced", "reproduced", "opposite",
    ]  # fmt: skip
    assert list(table["interval"])[-1] == "below 0" and set(table["n"]) == {120}
    few = made_up({key: value[:40] for key, value in rows.items()})
    assert set(study.claims(few)["verdict"]) == {"too few users"}
    enough = made_up({key: value[-50:] for key, value in rows.items()})
    assert list(study.claims(enough)["verdict"]) == list(words.values())


def test_an_edit_that_breaks_the_model_is_marked() -> None:
    rows: Hits = {(arm, KINDS[0]): np.ones(12) for arm in (ZERO, ROME_1, ROME_3, FT_L, FT_M)}
    sound, broken = (study.effect_table(made_up(rows, ratio)) for ratio in (1.2, 1.6))
    assert list(sound["warning"]) == [""] and list(sound["breaks"]) == [0]
    assert list(broken["warning"]) == ["breaks the model"] and list(broken["breaks"]) == [1]
    assert study.conclusions(made_up(rows, 1.6))[-1].endswith(f"times): {ROME_1}.")
    assert study.conclusions(made_up(rows))[-2].endswith(f"target: {ROME_1} 0.25, over 12 users.")
    assert PAPER not in set(broken["row"])
