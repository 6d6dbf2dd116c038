"""The study of differences in a small world and on files, and its tables on made-up scores."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from chameleon_lib.data.lamp import write_lamp
from chameleon_lib.difference import Recipe, VectorMaker, as_released
from chameleon_lib.difference.world import BagEmbedder, WorldSettings, build_world
from chameleon_lib.errors import UserError
from chameleon_lib.kit.notebooks import read_notebook
from chameleon_lib.kit.paths import notebooks_dir
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies import s11_desk as desk
from chameleon_lib.studies import s11_inter_user_difference as study
from chameleon_lib.studies import s11_material as material
from chameleon_lib.studies.s11_desk import (
    BOTH,
    DIFF,
    DPL,
    FITTED,
    HIS,
    LEARNED,
    NATS,
    NONE,
    ORACLE,
    PAPER,
    RAW,
    ROWS,
    SHUFFLED,
    SWAPPED,
    TRAINED,
    Differences,
)
from tests.demo.small import HashEmbedder
from tests.difference.test_files import person, write
from tests.difference.test_files import rows as amazon_rows
from tests.studies.small import small_profile

SMALL = WorldSettings(users=12, items=12, reviews=12, inputs=3)
QUICK = Recipe(epochs=1, batch=8, accumulate=1, lr=1e-3)


@pytest.fixture(autouse=True)
def _no_sentence_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "open_embedder", lambda *_: HashEmbedder())


def ran(folder: Path, **how: Any) -> Differences:
    store = ArtifactStore(folder)
    return desk.run(small_profile(), world=SMALL, recipe=QUICK, store=store, **how)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Differences:
    return ran(tmp_path_factory.mktemp("units"), seeds=2)


def test_every_row_is_written_for_every_user(small: Differences) -> None:
    assert study.arms_of(small) == list(ROWS)
    sizes = small.written.groupby("arm").size()
    assert all(sizes[arm] == 12 * (2 if arm in (*TRAINED, SWAPPED) else 1) for arm in ROWS)
    assert small.written[NATS].gt(0).all() and np.isfinite(small.written[NATS]).all()
    golds = [sample.review.text for sample in small.material.samples.test]
    for _, rows in small.written.groupby(["arm", "seed"]):
        assert list(rows["gold"]) == golds
    assert list(small.trained["arm"].unique()) == list(TRAINED)
    assert set(small.codes["arm"]) == set(TRAINED) - {LEARNED, RAW}


def test_rows_without_user_data_do_not_know_the_user(small: Differences, tmp_path: Path) -> None:
    asked = desk.Asked(small_profile(), desk.MODEL, SMALL, "", QUICK, 0, 1, desk.OURS, tmp_path)
    made = desk.Desk(asked)
    test = made.test
    for row in (NONE, LEARNED):
        for own, other in zip(made.examples(row, test), made.examples(row, made.swapped),
                              strict=True):  # fmt: skip
            assert own.ids == other.ids and bool(own.mask.all()) == (row == LEARNED)
    assert made.examples(DIFF, test)[0].ids != made.examples(DIFF, made.swapped)[0].ids
    swapped = made.swapped[0]
    assert swapped.owner == test[1].owner and swapped.review == test[0].review
    assert all(review.time < swapped.review.time for review in swapped.profile)
    prompt = made.question(test[0].review, "so it is")
    assert "so it is" in prompt and test[0].review.text not in prompt
    model = small.backbone
    plain = model.generate([made.question(s.review) for s in test], max_new_tokens=12)
    assert plain == list(small.written[small.written["arm"] == NONE]["answer"])


def test_finished_work_is_read_from_the_store(tmp_path: Path, monkeypatch: Any) -> None:
    one = ran(tmp_path, seeds=1)
    for name in ("train", "write_all", "fit_by_preference", "find_directions"):
        monkeypatch.setattr(desk, name, lambda *_, **__: pytest.fail("computed again"))
    two = ran(tmp_path, seeds=1)
    pd.testing.assert_frame_equal(one.written, two.written)
    pd.testing.assert_frame_equal(one.trained, two.trained)


def test_as_released_runs_where_everybody_has_eight_reviews_with_peers(tmp_path: Path) -> None:
    ours = ran(tmp_path, seeds=1)
    theirs = ran(tmp_path, seeds=1, released=as_released(unguarded=False))
    one, other = (study.scores(run, BOTH, NATS) for run in (ours, theirs))
    assert one.shape == other.shape and not np.allclose(one, other)


def test_tables_have_users_and_seeds(small: Differences) -> None:
    table = study.row_table(small)
    assert list(table["row"]) == list(ROWS) and set(table["n"]) == {12}
    assert dict(zip(table["row"], table["seeds"], strict=True))[BOTH] == 2
    assert {"style hit rate", "METEOR", NATS} <= set(table) and "accuracy" not in table
    assert list(study.training_table(small)["row"]) == list(TRAINED)
    alike = study.alike_table(small)
    assert alike["pairs"].sum() == 12 * 11 / 2
    assert set(study.claims(small)["verdict"]) == {"too few users"}
    assert len(study.conclusions(small)) == len(study.claims(small)) + 5
    shown = study.examples(small, "u003")
    assert list(shown["row"]) == ["the user's own", "planted", *ROWS]
    with pytest.raises(UserError, match="There is no user 'nobody'"):
        study.examples(small, "nobody")


# --- local files ----------------------------------------------------------------------------------


def long_rows(users: int, items: int = 20) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Reviews and descriptions that the paper's own filter keeps."""
    reviews, meta = amazon_rows(users, items)
    for review in reviews:
        review["text"] = f"{review['text']}. " + "It does what it says and looks fine. " * 6
    for item in meta:
        item["description"] = [f"{item['title']} is a thing. " * 6]
    return reviews, meta


def test_a_folder_in_amazons_shape_runs_from_end_to_end(tmp_path: Path) -> None:
    write(tmp_path, *long_rows(users=8))
    run = desk.run(
        small_profile(), folder=str(tmp_path), recipe=QUICK, users=3, seeds=1, epochs=2,
        store=ArtifactStore(tmp_path / "units"),
    )  # fmt: skip
    assert set(run.trained["steps"]) == {2}  # a batch holds all samples
    assert run.material.title == f"reviews of {tmp_path.name}" and run.material.world is None
    assert study.arms_of(run) == [row for row in ROWS if row != ORACLE]
    assert len(run.material.samples.train) == len(run.material.samples.test) == 3
    assert "style hit rate" not in study.row_table(run) and len(study.conclusions(run)) > 9
    with pytest.raises(UserError, match="no planted style"):
        study.alike_table(run)


@pytest.mark.slow
def test_a_thousand_users_are_read_and_cut(tmp_path: Path) -> None:
    write(tmp_path, *long_rows(users=1000))
    found = material.of_folder(tmp_path, small_profile(), QUICK, users=1000)
    assert len(found.samples.test) == len(found.samples.train) == 1000
    assert len(found.samples.valid) == material.VALID
    assert {len(sample.profile) for sample in found.samples.train} == {17}


def test_movies_of_lamp_2_run_with_accuracy_and_peers(tmp_path: Path) -> None:
    tags, movies = ("comedy", "fantasy", "sci-fi"), [f"A tale of number {n}" for n in range(9)]
    people = [
        person(f"{at}", {text: tags[(at + n) % 3] for n, text in enumerate(movies[at : at + 5])},
               movies[8], tags[at % 3])
        for at in range(4)
    ]  # fmt: skip
    write_lamp(people, tmp_path / "LaMP_2", "dev", named=True)
    run = desk.run(
        small_profile(), folder=str(tmp_path), recipe=QUICK, seeds=1,
        store=ArtifactStore(tmp_path / "units"),
    )  # fmt: skip
    table = study.row_table(run)
    assert {"accuracy", "macro F1", "peers per movie"} <= set(table) and "ROUGE-1" not in table
    assert table["peers per movie"].iloc[0] > 0 and set(table["n"]) == {4}


def test_a_folder_of_neither_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither reviews in Amazon's shape"):
        material.of_folder(tmp_path, small_profile(), QUICK)
    with pytest.raises(UserError, match="cannot read soft prompts"):
        desk.run(get_profile("demo"), "demo:encdec:0", store=ArtifactStore(tmp_path))


# --- the notebook ---------------------------------------------------------------------------------


def test_the_notebooks_cells_publish_their_tables_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))

    def here(phases: Any, **_: Any) -> None:
        for _label, work, units in phases:
            for unit in units:
                work(*unit)

    monkeypatch.setattr(desk, "warm", here)
    monkeypatch.setattr(desk, "WorldSettings", lambda: SMALL)
    monkeypatch.setattr(desk, "WORLD_RECIPE", QUICK)
    book = read_notebook(notebooks_dir() / "11_inter_user_difference.ipynb")
    names: dict[str, Any] = {}
    for cell in book.code():
        exec(compile(cell.replace("seeds: int = 3", "seeds: int = 1"), "cell", "exec"), names)
    tables = {path.stem for path in (tmp_path / "outputs" / "demo" / "tables").glob("*.csv")}
    assert tables == {
        "11_rows", "11_controls", "11_alike", "11_training", "11_claims",
    }  # fmt: skip
    figures = tmp_path / "outputs" / "demo" / "figures"
    for figure in ("11_rows", "11_vectors", "11_codes"):
        said = json.loads((figures / f"{figure}.json").read_text(encoding="utf-8"))
        assert len(said["alt"]) > 40 and said["caption"].endswith("(demo profile).")


# --- tables of made-up scores ---------------------------------------------------------------------


def made_up(levels: dict[str, float], size: int = 120) -> Differences:
    """Rows whose ROUGE-1 and style hits are a level, alternating around it by 0.01."""
    wave = 0.01 * np.tile([1.0, -1.0], size // 2)
    rows = [
        {"arm": arm, "seed": 0, "user": f"u{at:03}", "gold": "a", "answer": "b", NATS: 1.0,
         "style hit": level + wave[at] * (arm != NONE), "rouge1": level + wave[at] * (arm != NONE)}
        for arm, level in levels.items() for at in range(size)
    ]  # fmt: skip
    found = SimpleNamespace(title="made up", told={}, world=None)
    empty = pd.DataFrame()
    model = cast(Any, SimpleNamespace(name="model"))
    return Differences(model, cast(Any, found), pd.DataFrame(rows), empty, empty, {}, 5.0)


LEVELS = {
    NONE: 0.2, LEARNED: 0.2, HIS: 0.4, DIFF: 0.5, BOTH: 0.6, RAW: 0.6, SHUFFLED: 0.4, SWAPPED: 0.2,
    DPL: 0.7, PAPER: 0.2, FITTED: 0.3, ORACLE: 0.9,
}  # fmt: skip


def test_claims_and_controls_are_judged_by_their_intervals() -> None:
    run = made_up(LEVELS)
    words = dict(zip(study.claims(run)["claim"], study.claims(run)["verdict"], strict=True))
    assert words["history alone beats none"] == "reproduced"
    assert words["DEP beats DPL"] == "opposite"
    assert words["the autoencoder helps"] == "does not hold"
    readings = study.controls(run).set_index(["control", "measure"])["reading"]
    assert readings[SHUFFLED, "ROUGE-1"] == "above none: it fails"
    assert readings[SWAPPED, "style hit rate"] == "near or below none"
    trained = made_up({**LEVELS, LEARNED: 0.45})
    table = study.claims(trained).set_index("claim")["verdict"]
    assert table["history alone beats none"] == "direction only"  # training alone does as much
    assert set(study.claims(made_up(LEVELS, 40))["verdict"]) == {"too few users"}


def test_users_lie_along_the_words_that_they_have() -> None:
    world = build_world(WorldSettings(users=40, items=20, reviews=12, inputs=3))
    samples = world.corpus.splits(3).test
    maker = VectorMaker(world.corpus, BagEmbedder())
    means = {s.owner: maker.of(s).difference.mean(axis=0) for s in samples}
    found = cast(Any, SimpleNamespace(world=world))
    empty = pd.DataFrame()
    run = Differences(cast(Any, None), found, empty, empty, empty, means, 1.0)
    data, (one, _) = study.in_two_words(run)
    assert len(data) == 40
    has = data["planted"].str.contains(one)
    assert data.loc[has, "x"].mean() > data.loc[~has, "x"].mean() + 0.1
    alike = study.alike_table(run).set_index("shared style words")["mean cosine"]
    assert alike[2] > alike[0]
