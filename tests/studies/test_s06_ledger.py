from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chameleon_lib.core.directions import Directions
from chameleon_lib.core.settings import NOT_OFFERED, EditSettings, ambiguity_ledger
from chameleon_lib.kit import paths
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import check_table
from chameleon_lib.studies import s06_readings as readings
from chameleon_lib.studies.methods import title_of
from chameleon_lib.studies.run import Arm, Cell, Run
from chameleon_lib.studies.s06_ledger import (
    effects,
    ledger_figure,
    n_tests,
    open_points,
    refused_readings,
    strength_figure,
    strengths,
)
from chameleon_lib.studies.s06_readings import (
    DEFAULT,
    ELSEWHERE,
    REFUSED,
    VARIANTS,
    Variant,
    ledger_rows,
    refusals,
    runnable,
)
from tests.studies.finished import PROFILE, Finished, units
from tests.studies.planted import answers_of, conditions_run, keeping, margins_of, scores_of
from tests.studies.small import BACKBONES, SETTINGS, use_small_models

BASE = EditSettings()
IDS = [f"A{i}" for i in range(1, 24)] + [f"B{i}" for i in range(1, 12)]


def test_every_reading_of_every_open_point_is_varied_refused_or_told_why_not() -> None:
    varied = {(name, value) for variant in VARIANTS for name, value in variant.changes}
    refused = {(name, value) for name, value, _ in NOT_OFFERED}
    told = {name for fields, _ in ELSEWHERE.values() for name in fields}
    for row in ambiguity_ledger():
        for option in row["options"]:
            reading = (row["field"], option)
            known = option == row["default"] or reading in varied | refused
            assert known or row["field"] in told, reading
        if not row["options"]:
            assert row["field"] in told | {name for name, _ in varied}, row["field"]


def test_every_variant_is_a_valid_reading_of_its_own_under_one_id() -> None:
    titles = [variant.title for variant in VARIANTS]
    assert len(set(titles)) == len(titles)
    owners = {row["field"]: row["id"] for row in ambiguity_ledger()}
    for variant in VARIANTS:
        changed = variant.settings(BASE, n_layers=32)
        assert variant.id in IDS
        assert (changed != BASE) == bool(variant.changes)
        assert variant.changes or variant.prompt != "instruct"
        # A change outside the ledger must ride with one inside it, or settle it in other words.
        own = [name for name, _ in variant.changes if owners.get(name) == variant.id]
        assert own or variant.name in ("CCS: run to its end (L-BFGS)", "insight in the prompt")


def test_the_number_of_layers_is_cut_to_the_model() -> None:
    [five] = [v for v in VARIANTS if v.name == "layers: up to 5"]
    assert five.settings(BASE, 3).layers_k == 3 and five.settings(BASE, 32).layers_k == 5


def test_what_is_listed_as_refused_is_refused_with_a_sentence() -> None:
    rows = refusals(BASE)
    assert [row["id"] for row in rows] == [ambiguity for ambiguity, _ in REFUSED]
    assert all(len(row["sentence"]) > 20 and "=" in row["refused"] for row in rows)


def test_a_profile_leaves_out_what_it_cannot_run_and_says_why() -> None:
    demo, paper = PROFILES["demo"], PROFILES["paper"]
    assert [v.title for v in runnable(paper)] == ["default", *(v.title for v in VARIANTS)]
    kept = {v.title for v in runnable(demo)}
    left = [v for v in VARIANTS if v.title not in kept]
    assert {v.id for v in left} == {"A15", "A16", "A17", "A23", "B1", "B2", "B8"}
    assert all(v.left_out(demo) and not v.left_out(paper) for v in left)
    slow = {"A15", "A17", "A23", "B1", "B2"}
    laptop = PROFILES["laptop"]
    assert {v.id for v in VARIANTS if v.left_out(laptop)} == slow
    assert "profile laptop" in next(v for v in VARIANTS if v.slow).left_out(laptop)
    # Real files through embedded models: no time is short there, but no hub can be reached.
    assert {v.id for v in VARIANTS if v.left_out(PROFILES["demo-data"])} == {"A16", "B8"}


@pytest.mark.parametrize("profile", ["demo", "paper"])
def test_the_ledger_has_a_row_with_words_for_every_open_point(profile: str) -> None:
    rows = ledger_rows(PROFILES[profile], BASE)
    assert [row["id"] for row in rows] == IDS
    for row in rows:
        assert row["open point"] and (row["varied here"] or row["elsewhere, or why not"]), row
    by_id = {row["id"]: row for row in rows}
    assert by_id["A11"]["varied here"] == "positions: all; positions: generated only"
    assert "notebook 02" in by_id["A19"]["elsewhere, or why not"]
    assert by_id["A21"]["refused"] == "t5_stack=encoder; t5_pair_layout=enc_all"
    beams = "decoding: 4 beams"
    place = "elsewhere, or why not" if profile == "demo" else "varied here"
    assert beams in by_id["A15"][place]


# --- the study ------------------------------------------------------------------------------------

TASK = "LaMP_3"
CHOSEN = (
    "A1 site: gate projection",
    "A3 pair text: answer alone",
    "A12 strength 2",
    "A13 insight in the prompt",
    "A17 eq. 2: nothing centred",
    "B2 insight per query",
    "B3 Instruct without the agent block",
)
IMPOSSIBLE = Variant("A20", "more pairs than there are",
                     (("pairs_k_min", 10**6), ("pairs_on_too_few", "error")))  # fmt: skip
NEVER = Variant("B8", "needs the hub", (("prompts_chat", "raw"),), needs="needs a model of the hub")


def variants() -> tuple[Variant, ...]:
    chosen = (replace(v, slow="", needs="") for v in VARIANTS if v.title in CHOSEN)
    return (*chosen, IMPOSSIBLE, NEVER)


@pytest.fixture(scope="module")
def done(finished: Finished) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        return readings.run(
            PROFILE,
            SETTINGS,
            variants=variants(),
            tasks=(TASK,),
            store=ArtifactStore(finished.folder),
        )


def cell(run: Run, condition: str) -> Cell:
    [found] = run.at(TASK, "demo:decoder", condition)
    return found


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return not np.array_equal(one, other, equal_nan=True)


def test_every_runnable_reading_is_a_condition_of_the_studied_backbones(done: Run) -> None:
    assert done.conditions == [DEFAULT, *CHOSEN, IMPOSSIBLE.title]
    assert {c.backbone for c in done.cells} == {BACKBONES[0]}
    assert len({tuple(c.users) for c in done.cells}) == 1


def test_the_default_is_table_1s_edit_on_table_1s_users(done: Run, finished: Finished) -> None:
    table = next(c for c in finished.run.cells if (c.task, c.backbone) == (TASK, BACKBONES[0]))
    assert done.test_users[TASK] == finished.run.test_users[TASK]
    mine = cell(done, DEFAULT)
    for method in ("instruct", "chameleon", "fitted"):
        assert [a.texts for a in answers_of(mine)[method]] == [
            a.texts for a in answers_of(table)[method]
        ]
        np.testing.assert_array_equal(margins_of(mine, method), margins_of(table, method))
    insight = cell(done, "A13 insight in the prompt")
    for mine, theirs in (("chameleon", "chameleon+insight"), ("insight", "insight")):
        np.testing.assert_array_equal(margins_of(insight, mine), margins_of(table, theirs))


def test_a_reading_changes_the_edit_and_leaves_instruct_alone(done: Run) -> None:
    default = cell(done, DEFAULT)
    for title in ("A1 site: gate projection", "A3 pair text: answer alone", "A12 strength 2"):
        found = cell(done, title)
        assert differ(margins_of(found, "chameleon"), margins_of(default, "chameleon")), title
        assert not differ(margins_of(found, "instruct"), margins_of(default, "instruct")), title


def test_instruct_is_asked_again_where_its_own_prompt_changes(done: Run) -> None:
    default = cell(done, DEFAULT)
    for title in ("A17 eq. 2: nothing centred", "B3 Instruct without the agent block"):
        assert differ(margins_of(cell(done, title), "instruct"), margins_of(default, "instruct")), (
            title
        )
    same = cell(done, "B2 insight per query")
    assert not differ(margins_of(same, "instruct"), margins_of(default, "instruct"))


def test_the_pairs_are_made_anew_only_where_a_reading_decides_them(done: Run) -> None:
    edits = {name: margins_of(cell(done, name), "chameleon") for name in done.conditions[:-1]}
    assert differ(edits["B2 insight per query"], edits[DEFAULT])
    logs = [cell(done, name).draws[0] for name in (DEFAULT, "B3 Instruct without the agent block")]
    assert logs[0] == logs[1] and logs[0]["kept"] > 0 and logs[0]["layers"]


def test_the_fitted_edit_is_scaled_with_the_strength_and_fitted_once(done: Run) -> None:
    strong, default = cell(done, "A12 strength 2"), cell(done, DEFAULT)
    assert differ(margins_of(strong, "fitted"), margins_of(default, "fitted"))
    with_fit = [c.condition for c in done.cells if "fitted" in answers_of(c)]
    assert with_fit == [DEFAULT, "A12 strength 2"]


def test_a_reading_that_gives_no_edit_says_so(done: Run) -> None:
    found = cell(done, IMPOSSIBLE.title)
    assert "chameleon" not in answers_of(found)
    assert ["pairs" in log["refused"] for log in found.draws] == [True]


def test_a_gate_that_shuts_everything_leaves_the_model_as_it_is(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    to_edit = Directions.to_edit

    def shut(found: Directions, *options: Any) -> Any:
        edit = to_edit(found, *options)
        object.__setattr__(edit, "gate_p", edit.gate_p & False)
        object.__setattr__(edit, "gate_n", edit.gate_n & False)
        return edit

    monkeypatch.setattr(Directions, "to_edit", shut)
    store = ArtifactStore(finished.folder)
    [only] = readings.run(PROFILE, SETTINGS, variants=(), tasks=(TASK,), store=store).cells
    assert only.draws[0]["layers"] == []
    assert only.answers[Arm("chameleon", 0)].texts == only.answers[Arm("instruct")].texts


def test_the_same_study_again_computes_nothing(
    done: Run, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    before = units(finished.folder)
    again = readings.run(
        PROFILE, SETTINGS, variants=variants(), tasks=(TASK,), store=ArtifactStore(finished.folder)
    )
    assert units(finished.folder) == before
    assert [c.draws for c in again.cells] == [c.draws for c in done.cells]


# --- tables and figures ---------------------------------------------------------------------------

COMPARED = ("A11 positions: all", "A8 confidence: as printed", "B4 order: remove, then boost")


@pytest.fixture(scope="module")
def ledger() -> Run:
    run = conditions_run(
        {
            DEFAULT: {"chameleon": 0.5},
            COMPARED[0]: {"chameleon": 0.9},
            COMPARED[1]: {"chameleon": 0.5},
            COMPARED[2]: {"chameleon": 0.1},
        }
    )
    # In one group of one backbone the last reading gave no edit.
    last = run.cells[-1]
    cut = keeping(
        last,
        lambda arm: arm.method == "instruct" or arm == Arm("chameleon", 1),
        draws=[{"draw": 0, "refused": "There is no layer left."}, last.draws[1]],
    )
    return replace(run, cells=[*run.cells[:-1], cut])


def test_a_reading_is_compared_with_the_default_and_with_instruct(ledger: Run) -> None:
    frame = effects(ledger).set_index(["model", "id"])
    up, same, down = (frame.loc[(title_of("demo:decoder"), name)] for name in ("A11", "A8", "B4"))
    assert up["against the default"] == pytest.approx(0.4, abs=0.01)
    assert up["matters"] == "answers and edit"
    assert up["against Instruct"] == pytest.approx(0.5, abs=0.01)
    assert (same["against the default"], same["answers changed"], same["matters"]) == (0, 0, "no")
    assert down["against the default"] == pytest.approx(-0.4, abs=0.01)
    assert down["matters"] == "answers and edit" and down["answers changed"] > 0.3
    assert down["against the default, widened_low"] < down["against the default_low"]
    assert up["layers"] == "0 | 1"


def test_a_group_without_an_edit_is_left_out_of_both_sides(ledger: Run) -> None:
    frame = effects(ledger).set_index(["model", "id"])
    row = frame.loc[(title_of("demo:encdec"), "B4")]
    [variant] = ledger.at("LaMP_2", "demo:encdec", COMPARED[2])
    [default] = ledger.at("LaMP_2", "demo:encdec", DEFAULT)
    expected = (
        scores_of(variant, "chameleon", "accuracy").mean()
        - scores_of(default, "chameleon", "accuracy")[1].mean()
    )
    assert row["against the default"] == pytest.approx(expected) and row["layers"] == "1"
    [sentence] = refused_readings(ledger)
    assert "gave no edit in 1 of" in sentence and sentence.endswith("There is no layer left.")


def test_tests_are_counted_where_there_are_answers(ledger: Run) -> None:
    assert n_tests(ledger.frame) == 2 * len(COMPARED)
    none = [
        keeping(cell, lambda arm: arm.method == "instruct")
        if cell.condition == COMPARED[0]
        else cell
        for cell in ledger.cells
    ]
    assert n_tests(replace(ledger, cells=none).frame) == 2 * (len(COMPARED) - 1)


def test_tables_may_be_saved(ledger: Run) -> None:
    frame = effects(ledger)
    assert len(check_table(frame, "ledger", "demo")) == len(frame) == 2 * len(COMPARED)
    assert not frame.isna().any(axis=None) and list(frame.columns[-2:]) == ["n", "seeds"]
    assert len(check_table(open_points(ledger), "points", "demo", "diagnostic")) == 34


def test_a_better_prompt_moves_the_answers_and_not_what_the_edit_adds() -> None:
    """The default edit adds 0.1; under the other wording model and edit are both better by 0.4."""
    wording, insight = "B3 Instruct without the agent block", "A13 insight in the prompt"
    run = conditions_run(
        {
            DEFAULT: {"instruct": 0.4, "chameleon": 0.5},
            wording: {"instruct": 0.8, "chameleon": 0.9},
            insight: {"instruct": 0.4, "insight": 0.8, "chameleon": 0.9},
        }
    )
    frame = effects(run)
    frame = frame[frame["model"] == title_of("demo:decoder")].set_index("id")
    for name in ("B3", "A13"):
        row = frame.loc[name]
        assert row["against the default"] == pytest.approx(0.4, abs=0.01)
        assert row["added"] == pytest.approx(0.1, abs=0.01)
        assert row["added, against the default"] == pytest.approx(0, abs=0.02)
        assert row["matters"] == "answers"
    assert frame.loc["B3", "against Instruct"] == pytest.approx(0.1, abs=0.01)
    assert frame.loc["A13", "against Instruct"] == pytest.approx(0.5, abs=0.01)


@pytest.fixture(scope="module")
def strong() -> Run:
    rates = {f"A12 strength {a:g}": {"chameleon": 0.4 + a / 10} for a in (0.5, 2.0, 4.0)}
    same = {"B4 order: remove, then boost": {"chameleon": 0.5}}
    insight = {"A13 insight in the prompt": {"insight": 0.9, "chameleon": 0.9}}
    return conditions_run(
        {DEFAULT: {"chameleon": 0.5}, **rates, **same, **insight}, backbones=("demo:decoder:0",)
    )


def test_the_figures_show_what_moved_and_the_papers_strength_in_its_place(
    strong: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    publish = Publisher("demo", "06_controls")
    shown = ledger_figure(strong, effects(strong), "LaMP_2", publish)
    data = pd.read_csv(paths.figures_dir("demo") / "06_ledger_LaMP_2.csv")
    assert set(data["comparison"]) == {"against the default", "against Instruct"}
    assert len(data) == 3 * 2 and not data["reading"].str.contains("B4|A13").any()
    assert "changed answer B4 order: remove, then boost (" in shown.metadata["caption"]
    assert "the default edit against it: decoder +0.100 [" in shown.metadata["caption"]
    table = strengths(strong.frame)
    paper = table[table["edit"] == "CHAMELEON (paper)"]
    assert paper["strength"].tolist() == [0.5, 1, 2, 4]
    assert paper["change"].tolist() == pytest.approx([0.05, 0.1, 0.2, 0.4], abs=0.01)
    shown = strength_figure(table, "LaMP_2", publish)
    assert "paper's, decoder from +0.050 to +0.400" in shown.metadata["alt"]
