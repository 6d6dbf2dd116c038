from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chameleon_lib.kit import paths
from chameleon_lib.kit.notebooks import read_notebook, text_of
from chameleon_lib.kit.paths import notebooks_dir
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    MIN_USERS,
    NOT_RUN,
    OPPOSITE,
)
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.kit.tables import check_table
from chameleon_lib.studies import s06_doses as doses
from chameleon_lib.studies.run import Arm, Run
from chameleon_lib.studies.study import settings_for
from tests.studies.finished import units
from tests.studies.planted import (
    BOTH,
    agreeing,
    answers_of,
    conditions_run,
    scores_of,
    without_margins,
)
from tests.studies.small import SETTINGS, small_profile, use_small_models

DOSES = (0.25, 0.5, 0.75, 0.95)
RISING = (0.3, 0.5, 0.7, 0.86)  # on one line over the doses
FLAT = (0.4,) * 4


def planted(**rates: tuple[float, ...]) -> Run:
    by_dose = {
        f"strength {value:g}": {name: own[place] for name, own in rates.items()}
        for place, value in enumerate(DOSES)
    }
    run = conditions_run(by_dose, backbones=BOTH[:1], n_users=doses.USERS[1])
    for cell, value in zip(run.cells, DOSES, strict=True):
        for log in cell.draws:
            log["strength"] = value
    return run


def statuses(run: Run) -> list[str]:
    found = doses.verdicts(run, PROFILES["demo"], "06_controls")
    different = int((~agreeing(run, "LaMP_2")).sum())
    assert MIN_USERS <= different < len(run.test_users["LaMP_2"])
    assert [v.ours is not None and v.n == different for v in found] == [True, True]
    assert {v.measure for v in found} == {"margin slope, nats per unit of strength"}
    return [v.status for v in found]


def test_an_effect_that_grows_with_the_dose_holds() -> None:
    assert statuses(planted(chameleon=RISING, fitted=FLAT)) == [HOLDS, DOES_NOT_HOLD]
    assert statuses(planted(chameleon=FLAT, fitted=RISING)) == [DOES_NOT_HOLD, HOLDS]


def test_an_effect_that_random_directions_have_as_well_is_a_direction_only() -> None:
    assert statuses(planted(chameleon=RISING, random=RISING))[0] == DIRECTION_ONLY


def test_an_effect_that_shrinks_is_opposite_and_a_constant_one_does_not_hold() -> None:
    strong = (0.9,) * 4
    assert statuses(planted(chameleon=RISING[::-1], fitted=strong)) == [OPPOSITE, DOES_NOT_HOLD]


def test_the_slope_is_that_of_a_straight_line_through_the_differences() -> None:
    run = planted(chameleon=RISING)
    cells = [run.at("LaMP_2", "demo:decoder", f"strength {value:g}")[0] for value in DOSES]
    gains = [
        scores_of(cell, "chameleon", "accuracy").mean()
        - scores_of(cell, "instruct", "accuracy").mean()
        for cell in cells
    ]
    found = doses.slope(run.frame, doses.doses_of(run), "chameleon", "instruct", "accuracy")
    assert found.value == pytest.approx(np.polyfit(DOSES, gains, 1)[0])
    assert found.low > 0 and (found.n, found.seeds) == (145, 2)


def test_responses_and_slopes_may_be_saved() -> None:
    run = planted(chameleon=RISING, fitted=RISING)
    responses, slopes = doses.responses(run), doses.slopes(run)
    assert len(check_table(responses, "responses", "demo")) == 3 * len(DOSES)
    assert len(check_table(slopes, "slopes", "demo")) == 3
    paper = responses[responses["edit"] == "CHAMELEON (paper)"]
    assert paper["strength"].tolist() == list(DOSES)
    assert paper["accuracy change"].is_monotonic_increasing
    assert set(responses["pairs kept"]) == {8.5}
    different = int((~agreeing(run, "LaMP_2")).sum())
    assert set(responses["n"]) == set(slopes["n"]) == {145}
    assert set(responses["margin change n"]) == set(slopes["margin slope n"]) == {different}


def test_where_nobody_has_a_margin_the_claims_are_not_run_and_the_tables_stay_empty() -> None:
    run = without_margins(planted(chameleon=RISING))
    found = doses.verdicts(run, PROFILES["demo"], "06_controls")
    assert [(v.status, v.n, v.ours) for v in found] == [(NOT_RUN, 0, None)] * 2
    for frame, name in ((doses.responses(run), "change"), (doses.slopes(run), "slope")):
        check_table(frame, "doses", "demo")
        assert frame[f"margin {name}"].isna().all() and set(frame[f"margin {name} n"]) == {0}


@pytest.mark.parametrize(("profile", "folder"), [("laptop", ""), ("demo-data", "somewhere")])
def test_tastes_cannot_be_planted_in_real_users(profile: str, folder: str) -> None:
    done = doses.run(PROFILES[profile], SETTINGS, data_dir=folder)
    assert done is None
    [verdict] = doses.verdicts(done, PROFILES[profile], "06_controls")
    assert (verdict.status, verdict.n, verdict.ours) == (NOT_RUN, 0, None)


def test_the_notebook_names_what_differs_from_table_1(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def noted(_compute: Any, profile: Any, settings: Any, **_: Any) -> Run:
        asked.append((profile, settings))
        return Run(profile, settings, {}, [])

    monkeypatch.setattr(doses, "run_grid", noted)
    whole = PROFILES["demo"]
    doses.run(whole, settings_for(whole))
    [(profile, settings)] = asked
    book = read_notebook(notebooks_dir() / "06_controls.ipynb")
    text = " ".join(next(t for t in map(text_of, book.cells) if "Dose and" in t).split())
    assert f"(rule *{settings.selection_rule}*)" in text
    assert f"at most {settings.group_size} users of at most {profile.n_train}" in text
    assert f"at most {profile.n_test} test users" in text
    assert profile.backbones == whole.studied and "only the first training seed" in text


def test_doses_differ_in_golds_and_histories_and_in_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = use_small_models(monkeypatch)
    options = {"doses": (0.25, 0.95), "users": (10, 6), "group": 6, "tasks": ("LaMP_3",)}
    profile = small_profile()
    done = doses.run(profile, SETTINGS, store=ArtifactStore(tmp_path), **options)
    assert done is not None and done.conditions == ["strength 0.25", "strength 0.95"]
    assert {cell.backbone for cell in done.cells} == set(profile.studied)
    weak, strong = done.cells
    for cell in done.cells:
        assert list(answers_of(cell)) == ["instruct", "chameleon", "fitted", "random"]
        assert cell.users == done.test_users["LaMP_3"]
        assert len(cell.answers[Arm("instruct")].texts) == len(cell.users)
        assert 0 < len(done.test_users["LaMP_3"]) <= 6 and cell.draws[0]["users"] == 6
    # The same queries and planted answers, so a margin is defined for the same queries.
    first, last = (cell.answers[Arm("instruct")].margin for cell in (weak, strong))
    assert np.isnan(first).tolist() == np.isnan(last).tolist()
    assert not np.array_equal(first, last, equal_nan=True)  # other labels in the histories
    assert not embedder.texts
    before = units(tmp_path)
    again = doses.run(profile, SETTINGS, store=ArtifactStore(tmp_path), **options)
    assert units(tmp_path) == before and again is not None


@pytest.mark.parametrize("metric", ["accuracy", "margin"])
def test_doses_are_drawn_from_weak_to_strong(
    metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    publish = Publisher("demo", "06_controls")
    run = planted(chameleon=RISING)
    shown = doses.figure(doses.responses(run), "LaMP_2", metric, publish)
    data = pd.read_csv(paths.figures_dir("demo") / f"06_dose_{metric}_LaMP_2.csv")
    [users] = {*data["n"]}
    assert len(data) == 3 * len(DOSES) and (users == 145) is (metric == "accuracy")
    assert "paper's, decoder from -0." in shown.metadata["alt"]
    assert f"over the same {users} test users" in shown.metadata["caption"]
    empty = doses.responses(without_margins(run))
    shown = doses.figure(empty, "LaMP_2", "margin", publish)
    assert "decoder from undefined to undefined" in shown.metadata["alt"]
