"""Tables refuse rows without n, seeds or interval, and come back byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.tables import (
    estimate_columns,
    format_cell,
    part_columns,
    save_table,
    show_table,
)
from tests.kit.html_pages import page_problems


@pytest.fixture(autouse=True)
def _outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))


def frame() -> pd.DataFrame:
    estimate = Estimate(1 / 3, 0.25, 0.4, 200, 3)
    return pd.DataFrame(
        [{"method": m, **estimate_columns(estimate)} for m in ("plain", "edit <both>")]
    )


def test_a_table_is_saved_with_its_profile_first_and_fixed_digits() -> None:
    path = save_table(frame(), "01_accuracy", "demo", "Accuracy.")
    assert path.read_bytes().decode() == (
        "profile,method,value,ci_low,ci_high,n,seeds\n"
        "demo,plain,0.333,0.25,0.4,200,3\n"
        "demo,edit <both>,0.333,0.25,0.4,200,3\n"
    )
    assert json.loads(path.with_suffix(".json").read_text())["caption"] == "Accuracy."


def test_the_last_bits_of_a_number_do_not_reach_the_file() -> None:
    first = save_table(frame(), "t", "demo", "c").read_bytes()
    shaken = frame()
    shaken["value"] *= 1 + 1e-14
    assert save_table(shaken, "t", "demo", "c").read_bytes() == first


@pytest.mark.parametrize("column", ["n", "seeds", "ci_low", "ci_high"])
def test_a_missing_column_or_cell_is_named(column: str) -> None:
    with pytest.raises(UserError, match="interval|" + column):
        save_table(frame().drop(columns=column), "t", "demo", "c")
    holed = frame().astype({column: float})
    holed.loc[1, column] = np.nan
    with pytest.raises(UserError, match=f"row 1.*{column}"):
        save_table(holed, "t", "demo", "c")


def test_diagnostics_need_no_interval_but_still_n_and_seeds() -> None:
    loss = pd.DataFrame({"layer": [0, 1], "loss": [0.1, 0.2], "n": 40, "seeds": 1})
    save_table(loss, "loss", "demo", "CCS loss", kind="diagnostic")
    with pytest.raises(UserError, match="interval"):
        save_table(loss, "loss", "demo", "CCS loss")
    with pytest.raises(UserError, match="'n'"):
        save_table(loss.drop(columns="n"), "loss", "demo", "c", kind="diagnostic")


def test_rows_of_another_profile_and_empty_tables_are_refused() -> None:
    with pytest.raises(UserError, match="profile"):
        save_table(frame().assign(profile="paper"), "t", "demo", "c")
    with pytest.raises(UserError, match="no rows"):
        save_table(frame().iloc[:0], "t", "demo", "c")
    with pytest.raises(UserError, match="caption"):
        save_table(frame(), "t", "demo", " ")
    with pytest.raises(UserError, match="usable id"):
        save_table(frame(), "../t", "demo", "c")
    assert not paths.tables_dir("demo").exists()


def test_a_shown_table_is_captioned_scoped_and_escaped() -> None:
    html = show_table(frame(), 'Accuracy of "all" arms').data
    assert "<caption>" in html and 'scope="col"' in html and 'scope="row"' in html
    assert "edit &lt;both&gt;" in html and "<script" not in html
    assert "0.333 [0.250, 0.400]" in html and "ci low" not in html
    page = f"<html lang='en'><body><h1>t</h1>{html}</body></html>"
    assert page_problems(page) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0, "0"), (1e-9, "1e-09"), (True, "true"), (None, ""), (float("nan"), ""),
     (np.int64(3), "3"), (np.float32(0.5), "0.5"), (123456789.0, "1.23457e+08")],
)  # fmt: skip
def test_cells_are_written_in_one_way(value: object, text: str) -> None:
    assert format_cell(value) == text


def parts(*found: Estimate | None) -> pd.DataFrame:
    whole = estimate_columns(Estimate(0.5, 0.4, 0.6, 200, 3), "accuracy")
    return pd.DataFrame([{**whole, **part_columns(one, "margin")} for one in found])


def test_a_measure_that_some_users_lack_counts_those_who_have_it_beside_the_rows_n() -> None:
    found = parts(Estimate(1.5, 1.0, 2.0, 140, 3), None)
    assert found["n"].tolist() == [200, 200] and found["margin n"].tolist() == [140, 0]
    path = save_table(found, "t", "demo", "c")
    assert path.read_text().splitlines()[1:] == [
        "demo,0.5,0.4,0.6,200,3,1.5,1,2,140",
        "demo,0.5,0.4,0.6,200,3,,,,0",
    ]
    html = show_table(found, "c").data
    assert "1.500 [1.000, 2.000]" in html and "<td>–</td>" in html.replace(' class="num"', "")


def test_an_empty_cell_needs_a_count_of_nobody() -> None:
    found = parts(Estimate(1.5, 1.0, 2.0, 140, 3), None)
    with pytest.raises(UserError, match="row 1.*margin_low"):
        save_table(found.drop(columns="margin n"), "t", "demo", "c")
    with pytest.raises(UserError, match="row 1.*margin_low"):
        save_table(found.assign(**{"margin n": [140, 3]}), "t", "demo", "c")
    found.loc[1, "accuracy_low"] = np.nan
    with pytest.raises(UserError, match="row 1.*accuracy_low"):
        save_table(found, "t", "demo", "c")
