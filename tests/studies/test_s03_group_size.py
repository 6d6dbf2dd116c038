"""Section 4.4: the study on tiny random models; tables, figures and verdicts on planted answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chameleon_lib.core import chameleon
from chameleon_lib.core.fitting import Contrast
from chameleon_lib.core.pairs import PreferencePair
from chameleon_lib.errors import UserError
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE,
    REPRODUCED,
)
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import check_table
from chameleon_lib.studies import run as grid
from chameleon_lib.studies import s01_per_user as per_user
from chameleon_lib.studies import s03_ladder
from chameleon_lib.studies.methods import method_of, title_of
from chameleon_lib.studies.run import Run
from chameleon_lib.studies.s03_group_size import (
    PLOT,
    agreement,
    agreement_figure,
    by_size,
    claim_frame,
    claims,
    curve_figure,
    curve_lines,
    levels,
    pairs,
    run,
    verdicts,
)
from chameleon_lib.studies.s03_ladder import OTHER, OWN, chance
from chameleon_lib.studies.sweeps import numbers_of, plot_reading
from tests.studies.finished import listen, units, with_golds
from tests.studies.planted import (
    BOTH,
    Rates,
    agreeing,
    answers_of,
    leveled,
    planted_sizes,
    texts_of,
    without_margins,
)
from tests.studies.planted import SIZES as SIZES_RUN
from tests.studies.small import BACKBONES, SETTINGS, small_profile, use_small_models

# --- the study -----------------------------------------------------------------------------------

PROFILE = small_profile(n_train=12, n_test=5, studied=BACKBONES)
SMALL = SETTINGS.with_(group_draws=2, group_seeds=(0, 1), controls_random_draws=2)
RUN = [OWN, OTHER, "4 users", "6 users", "8 users"]
ENDS = ["chameleon", "fitted", "random", "from_neutral", "shuffled_pairs", "fitted_shuffled"]


@dataclass(frozen=True)
class Made:
    """A finished run, what reached its fits, and its store."""

    run: Run
    contrasts: list[Contrast]
    singles: list[list[PreferencePair]]
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("units")
    contrasts: list[Contrast] = []
    singles: list[list[PreferencePair]] = []
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        listen(patch, chameleon, "fit_by_preference", contrasts.extend)
        listen(patch, s03_ladder, "single_users", singles.append)
        done = run(PROFILE, SMALL, sizes="1,4,6,8", tasks=("LaMP_3",), store=ArtifactStore(folder))
    return Made(done, contrasts, singles, folder)


@pytest.mark.parametrize("text", ["a", "0,20", "-1,5", "1", "20;40", "5.5"])
def test_nonsense_sizes_are_refused(text: str) -> None:
    assert numbers_of("sizes", "100, 1,20,20", "1,20", least=2) == [1, 20, 100]
    with pytest.raises(
        UserError, match=f"sizes is '{text}'; give whole numbers such as '1,20,100'"
    ):
        run(PROFILE, SMALL, sizes=text)


def test_every_size_has_a_cell_with_its_methods_and_seeds(made: Made) -> None:
    done = made.run
    assert not done.notes and done.conditions == RUN
    assert len(done.cells) == len(RUN) * len(BACKBONES)
    for model in done.models:
        cells = {at.condition: at.cells[0] for at in by_size(done, "LaMP_3", model)}
        assert list(cells) == RUN
        for name in (OWN, OTHER):
            assert list(answers_of(cells[name])) == ["instruct", "chameleon", "random"]
        assert list(answers_of(cells["6 users"])) == ["instruct", "chameleon", "random"]
        for name in ("4 users", "8 users"):
            assert set(answers_of(cells[name])) == {"instruct", *ENDS}
        for cell in cells.values():
            n = len(done.test_users["LaMP_3"])
            seeds = {method: len(found) for method, found in answers_of(cell).items()}
            # A user's own edit has nothing to do with the draw, so it counts once.
            once = ["instruct", "chameleon"] if cell.condition == OWN else ["instruct"]
            assert seeds == {method: 1 if method in once else 2 for method in seeds}
            assert {len(answers.texts) for answers in cell.answers.values()} == {n} and n > 1
        sizes = {name: cell.draws[0]["size"] for name, cell in cells.items()}
        assert sizes == {OWN: 1, OTHER: 1, "4 users": 4, "6 users": 6, "8 users": 8}


def test_the_agreement_of_the_largest_group_with_itself_is_whole(made: Made) -> None:
    for cell in made.run.cells:
        for log in cell.draws:
            agreed = log["agreement"]
            own = [value for (*_, against), value in agreed.items() if against == "own draw"]
            assert (min(own) > 0.999) == (cell.condition == "8 users")
            assert all(0 <= value <= 1 for value in agreed.values())
            fitted = any(method == "fitted" for method, *_ in agreed)
            assert fitted == (cell.condition in ("4 users", "8 users"))
            assert 0 <= log["shared"] <= 1 and (log["shared"] == 0) == (cell.condition == OWN)


def test_test_users_reach_their_own_edit_alone_and_golds_reach_none(made: Made) -> None:
    data = made.run.data["LaMP_3"]
    test = {user.id for user in data.test}
    texts = [q.text for user in (*data.test, *data.dev) for q in user.queries]
    assert made.contrasts and not {c.user_id for c in made.contrasts} & test
    assert not [text for text in texts if any(text in c.prompt for c in made.contrasts)]
    owners = [{pair.user_id for pair in pairs} for pairs in made.singles]
    assert [bool(ids & test) for ids in owners] == [True, False] * (len(owners) // 2)
    assert all(ids <= test or not ids & test for ids in owners)
    assert {len(ids) for ids in owners[1::2]} == {4}  # the smallest group lends


def test_other_golds_compute_nothing_anew(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)
    monkeypatch.setattr(grid, "load_task_data", with_golds("train", "test"))
    before = units(made.folder)
    store = ArtifactStore(made.folder)
    again = run(PROFILE, SMALL, sizes="1,4,6,8", tasks=("LaMP_3",), store=store)
    assert units(made.folder) == before and len(before) > 50
    for mine, other in zip(made.run.cells, again.cells, strict=True):
        assert mine.draws == other.draws and texts_of(mine) == texts_of(other)


def test_after_table_1_the_largest_group_is_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    # Without rivals, which this study does not have; with as many groups as it has.
    profile = small_profile(n_test=4, backbones=BACKBONES[:1], studied=(), repeats=2)
    store = ArtifactStore(tmp_path)
    first = per_user.run(profile, SMALL, tasks=("LaMP_3",), store=store)
    before = units(tmp_path)
    then = run(
        replace(profile, studied=BACKBONES[:1]), SMALL, sizes="8", tasks=("LaMP_3",), store=store
    )
    after = units(tmp_path)
    # It asks for the pairs of all train users, the table for those of its groups; nothing else.
    assert before.items() <= after.items()
    assert {path.parts[-3] for path in after.keys() - before.keys()} <= {"pairs"}
    asked = sum(len(user.queries) for user in first.data["LaMP_3"].train)
    assert sum("pairs" in path.parts for path in after) == asked
    [table], [top] = first.cells, then.cells
    answers = texts_of(table)
    assert all(answers[arm] == texts for arm, texts in texts_of(top).items())


def test_sizes_above_the_train_users_become_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    profile = small_profile(n_test=3, studied=BACKBONES[:1])
    store = ArtifactStore(tmp_path)
    done = run(profile, SMALL, sizes="10,40,60", tasks=("LaMP_3",), draws=1, store=store)
    assert done.conditions == ["10 users", "12 users"]
    assert len(done.notes) == 1 and "12 train users are all there are" in done.notes[0]


# --- tables --------------------------------------------------------------------------------------

DECODER = title_of("demo:decoder")
CHAMELEON, FITTED_TITLE = (method_of(name).title for name in ("chameleon", "fitted"))
RATES = {OWN: {"chameleon": 0.5}, "20 users": {"chameleon": 0.7}, "100 users": {"fitted": 0.9}}


@pytest.fixture(scope="module")
def planted() -> Run:
    return planted_sizes(RATES, tasks=("LaMP_2", "LaMP_3"), backbones=BOTH)


@pytest.mark.parametrize(("task", "metric"), [("LaMP_2", "accuracy"), ("LaMP_3", "mae")])
def test_the_curve_has_every_method_at_every_size_with_level_and_change(
    planted: Run, task: str, metric: str
) -> None:
    frame = check_table(levels(planted, task), "x", "demo")
    different = int((~agreeing(planted, task)).sum())
    assert set(frame["margin change n"]) == {different} and different < 120
    empty = check_table(levels(without_margins(planted), task), "x", "demo")
    assert set(empty["margin change n"]) == {0} and set(empty["n"]) == {120}
    one = frame[frame["model"] == DECODER]
    assert len(frame) == 2 * len(one) and set(frame["n"]) == {120}
    assert one.groupby("users").size().to_dict() == {0: 1, 1: 4, 20: 6, 100: 6}
    assert set(one[one["users"] == 1]["directions"]) == {"the user's own", "one other user's"}
    plain = one[one["users"] == 0].iloc[0]
    assert (plain["method"], plain["seeds"]) == ("Instruct (A.3, no insight)", 1)
    assert plain[f"{metric} change"] == plain[f"{metric} change_low"] == 0
    for _, row in one[one["users"] > 0].iterrows():
        level, change = row[metric] - plain[metric], row[f"{metric} change"]
        assert change == pytest.approx(level) and row["seeds"] == 2


def test_the_spread_is_over_the_sets_of_train_users_and_empty_for_one_set() -> None:
    planted = planted_sizes(tasks=("LaMP_2",))
    [cell] = planted.at("LaMP_2", "demo:decoder", "20 users")
    cells = [leveled(c, "chameleon", "accuracy", (0.25, 0.75)) if c is cell else c
             for c in planted.cells]  # fmt: skip
    frame = levels(replace(planted, cells=cells), "LaMP_2")
    row = frame[(frame["users"] == 20) & (frame["method"] == CHAMELEON)].iloc[0]
    assert row["accuracy sd over sets"] == pytest.approx(np.sqrt(0.125))
    assert np.isnan(frame["accuracy sd over sets"].iloc[0])


def test_pairs_are_counted_per_direction_and_few_are_marked(planted: Run) -> None:
    frame = check_table(pairs(planted, "LaMP_2"), "x", "demo", "diagnostic")
    one = frame[frame["model"] == DECODER].set_index("condition")
    assert list(one.index) == list(SIZES_RUN)
    assert one["pairs per direction"].to_dict() == {
        OWN: 1.0, OTHER: 1.0, "20 users": 20.0, "100 users": 100.0
    }  # fmt: skip
    few = one["fewer pairs than pairs_k_min"]
    assert [name for name in one.index if few[name]] == [OWN, OTHER, "20 users"]
    assert one["drop rate"]["100 users"] == pytest.approx(20 / 120)
    assert one["edited layers"]["100 users"] == "0,2 | 1,2"
    assert one["edited layers"][OTHER] == "0:30,2:50 | 0:30,2:50"
    assert (one["edited layers"][OWN], one["seeds"][OWN]) == ("0:30,2:50", 1)
    assert one["users"][OWN] == 80


def test_agreement_shows_mean_range_chance_and_shared_users(planted: Run) -> None:
    frame = check_table(agreement(planted, "LaMP_2"), "x", "demo", "diagnostic")
    one = frame[frame["model"] == DECODER]
    assert one.groupby("condition").size().to_dict() == {
        OWN: 4, OTHER: 4, "20 users": 8, "100 users": 8
    }  # fmt: skip
    keyed = one.set_index(["condition", "direction", "large group of the"])
    row = keyed.loc[("20 users", "θN (fitted)", "other draws")]
    assert (row["cosine"], row["lowest"], row["highest"]) == pytest.approx((0.15, 0.1, 0.2))
    assert row["users shared"] == pytest.approx(0.55) and row["chance"] == chance(16)
    assert (row["n"], row["seeds"]) == (20, 2)
    assert keyed.loc[("20 users", "θP (paper)", "own draw")]["users shared"] == 1
    assert keyed.loc[(OWN, "θP (paper)", "own draw")]["users shared"] == 0
    assert keyed.loc[(OWN, "θP (paper)", "own draw")]["n"] == 80


# --- verdicts ------------------------------------------------------------------------------------

SINGLE = "CHAMELEON's edit from a single user's own pairs beats Instruct"
FEW = "CHAMELEON's edit from 20 users beats Instruct"
GROWTH = "CHAMELEON's edit from 100 users beats that from 20"
BEYOND_ONE = "CHAMELEON's edit from 100 users beats that from a single user"
FITTED = "beyond the paper, the fitted edit from 20 users beats Instruct"
FITTED_GROWTH = "beyond the paper, the fitted edit from 100 users beats that from 20"
GAIN: Mapping[str, Rates] = {
    OWN: {"chameleon": 0.6},
    "20 users": {"chameleon": 0.7, "fitted": 0.7},
    "100 users": {"chameleon": 0.9, "fitted": 0.9},
}


def words(run: Run) -> dict[str, str]:
    """Claim → verdict of a run with one task and family."""
    [task] = run.data
    found = claims(run, task)
    return {c.words: v.status for c, v in zip(found, verdicts(found, "x"), strict=True)}


PAPERS, OURS = (SINGLE, FEW, GROWTH, BEYOND_ONE), (FITTED, FITTED_GROWTH)
BOTH_EDITS = {"chameleon": 0.8, "fitted": 0.8}
PLANTED: dict[str, tuple[Mapping[str, Rates], dict[str, str]]] = {
    "gains that grow": (GAIN, dict.fromkeys(PAPERS, REPRODUCED) | dict.fromkeys(OURS, HOLDS)),
    "nothing": ({}, dict.fromkeys(PAPERS, NOT_REPRODUCED) | dict.fromkeys(OURS, DOES_NOT_HOLD)),
    "losses that grow": (
        {
            OWN: {"instruct": 0.9, "chameleon": 0.7},
            "20 users": {"instruct": 0.9, "chameleon": 0.5, "fitted": 0.5},
            "100 users": {"instruct": 0.9, "chameleon": 0.1, "fitted": 0.1},
        },
        dict.fromkeys((*PAPERS, *OURS), OPPOSITE),
    ),
    "a steady gain": (
        {name: BOTH_EDITS for name in SIZES_RUN if name != OTHER},
        {SINGLE: REPRODUCED, FEW: REPRODUCED, GROWTH: NOT_REPRODUCED, BEYOND_ONE: NOT_REPRODUCED,
         FITTED: HOLDS, FITTED_GROWTH: DOES_NOT_HOLD},
    ),
    "growth of random directions as well": (
        {"100 users": {**BOTH_EDITS, "random": 0.8}},
        dict.fromkeys((GROWTH, BEYOND_ONE, FITTED_GROWTH), DIRECTION_ONLY),
    ),
    "one user's gain by random directions as well": (
        {OWN: {"chameleon": 0.8, "random": 0.8}}, {SINGLE: DIRECTION_ONLY}
    ),
    "one user's gain by another's as well": (
        {OWN: {"chameleon": 0.8}, OTHER: {"chameleon": 0.8}}, {SINGLE: DIRECTION_ONLY}
    ),
    **{
        f"{control} gains as well": (
            {"20 users": {**BOTH_EDITS, control: 0.8}}, dict.fromkeys(claims, DIRECTION_ONLY)
        )
        for control, claims in {
            "random": (FEW, FITTED), "from_neutral": (FEW,), "shuffled_pairs": (FEW,),
            "fitted_shuffled": (FITTED,),
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
@pytest.mark.parametrize(("rates", "expected"), PLANTED.values(), ids=list(PLANTED))
def test_a_verdict_says_what_was_planted(
    task: str, rates: Mapping[str, Rates], expected: dict[str, str]
) -> None:
    found = words(planted_sizes(rates, tasks=(task,)))
    assert {claim: found[claim] for claim in expected} == expected
    assert set(found) == {*PAPERS, *OURS}


def test_a_claim_without_its_sizes_is_not_run_or_not_made() -> None:
    groups = {name: size for name, size in SIZES_RUN.items() if size > 1}
    run = planted_sizes(GAIN, conditions=groups)
    assert words(run)[SINGLE] == NOT_RUN and BEYOND_ONE not in words(run)
    single = verdicts(claims(run, "LaMP_3"), "x")[0]
    assert (single.ours, single.n, single.seeds) == (None, 0, 0)
    assert SINGLE not in " ".join(claim_frame(claims(run, "LaMP_3"))["claim"])
    one = {name: SIZES_RUN[name] for name in (OWN, OTHER, "20 users")}
    found = words(planted_sizes(GAIN, conditions=one))
    assert set(found) == {SINGLE, FEW, FITTED, BEYOND_ONE.replace("100", "20")}


def test_the_papers_plot_is_shown_for_its_own_family_and_sizes_only() -> None:
    assert plot_reading(PLOT["LaMP_2"], "demo:decoder", 0, 1) == "~+0.157 (plot reading)"
    assert plot_reading(PLOT["LaMP_3"], "demo:decoder", 20, 100) == "~-0.024 (plot reading)"
    for model, few in (("demo:encdec", 0), ("demo:decoder", 30), ("Qwen/Qwen2.5-0.5B", 0)):
        assert plot_reading(PLOT["LaMP_2"], model, few, 100) == "not shown in the paper"
    run = planted_sizes()
    found = verdicts(claims(run, "LaMP_3"), "03_group_size")
    assert {v.paper for v in found if v.own} == {"not in the paper"}
    assert all("plot reading" in v.paper for v in found if not v.own)
    assert {v.csv for v in found} == {"tables/figure3_LaMP_3_claims.csv"}
    assert {v.split for v in found} == {"test users of the embedded world"}


# --- figures -------------------------------------------------------------------------------------


def test_figures_have_their_lines_and_say_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    publish = Publisher("demo", "03_group_size")
    run = planted_sizes(GAIN, tasks=("LaMP_2",))
    frame = levels(run, "LaMP_2")
    lines = curve_lines(frame, "LaMP_2", "demo:decoder")
    assert lines.groupby("line", sort=False)["users"].apply(list).to_dict() == {
        "paper": [1, 20, 100],
        "fitted (ours)": [20, 100],
        "random directions": [1, 20, 100],
        "one other user's": [1],
    }
    shown = curve_figure(frame, "LaMP_2", "demo:decoder", publish).metadata
    assert "120 test users" in shown["caption"] and "2 nested random sets" in shown["caption"]
    assert "paper from +0.200 to +0.500" in shown["alt"] and "demo profile" in shown["caption"]
    frame = agreement(run, "LaMP_2")
    agreed = agreement_figure(frame, "LaMP_2", "demo:decoder", publish).metadata
    assert "demo profile" in agreed["caption"] and "up to 100" in agreed["alt"]
    names = {path.name for path in (tmp_path / "demo" / "figures").glob("*.csv")}
    assert names == {"03_size_LaMP_2_decoder.csv", "03_agreement_LaMP_2_decoder.csv"}


def test_the_agreement_figure_draws_the_cosines_that_the_table_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    model = "demo:decoder"
    drawn = []
    for cosine in (0.84349, 0.84351):  # 0.843 and 0.844 by the interval, 0.84 in the table
        row = {"model": title_of(model), "condition": "own user", "users": 1, "n": 9,
               "direction": "θP (paper)", "large group of the": "own draw", "cosine": cosine,
               "lowest": 0.82, "highest": 0.87, "chance": 0.07, "seeds": 3}  # fmt: skip
        table = pd.DataFrame([row, {**row, "users": 20, "condition": "20 users"}])
        agreement_figure(table, "LaMP_2", model, Publisher("demo", "03_group_size"))
        figures = sorted((tmp_path / "demo" / "figures").iterdir())
        drawn.append({path.name: path.read_bytes() for path in figures})
    assert drawn[0] == drawn[1] and len(drawn[0]) == 4
