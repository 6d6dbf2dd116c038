"""What a number of users can tell, against the committed demo run."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from chameleon_lib.kit import paths
from chameleon_lib.kit.power import EFFECTS, half_width, told, users_for
from chameleon_lib.kit.stats import MIN_USERS, bootstrap_mean

METRICS = {"LaMP_2": "accuracy", "LaMP_3": "mae", "LaMP_7": "rouge1"}


def test_the_half_width_is_that_of_the_bootstrap() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.45, 400)
    found = bootstrap_mean(values)
    assert half_width(float(values.std()), 400) == pytest.approx(
        (found.high - found.low) / 2, rel=0.05
    )


def test_so_many_users_exclude_zero_and_one_less_does_not() -> None:
    for sd, effect in ((0.45, 0.056), (0.17, 0.027), (0.45, 0.198)):
        n = users_for(sd, effect)
        assert half_width(sd, n) <= effect < half_width(sd, n - 1)


@pytest.mark.parametrize("task", EFFECTS)
def test_the_sd_is_that_of_the_committed_demo(task: str) -> None:
    metric = METRICS[task]
    table = paths.outputs_dir("demo") / "tables" / f"table1_{task}_effects.csv"
    with table.open(encoding="utf-8") as stream:
        rows = [r for r in csv.DictReader(stream) if r["method"] == "CHAMELEON fitted (ours)"]
    found = [
        (float(row[f"{metric} change_high"]) - float(row[f"{metric} change_low"]))
        / 2 * math.sqrt(int(row["n"])) / 1.96
        for row in rows
    ]  # fmt: skip
    assert len(found) == 2
    assert max(found) == pytest.approx(EFFECTS[task].sd, rel=0.1)


@pytest.mark.parametrize("task", EFFECTS)
def test_the_gains_are_the_papers(task: str) -> None:
    table = paths.package_dir() / "studies" / "paper_tables.csv"
    with table.open(encoding="utf-8") as stream:
        printed = {
            (row["backbone"].startswith("Mistral"), row["method"]): float(row["value"])
            for row in csv.DictReader(stream)
            if row["table"] == "table1" and row["task"] == task.replace("_", "-")
            and row["metric"] == METRICS[task]
        }  # fmt: skip
    gains = [abs(printed[m, "CHAMELEON"] - printed[m, "Instruct"]) for m in (True, False)]
    assert gains == pytest.approx(EFFECTS[task].gains, abs=1e-9)


def test_words_name_what_a_number_of_users_cannot_tell() -> None:
    few, many = told("LaMP_3", MIN_USERS), told("LaMP_3", 1000)
    assert "100 users of LaMP-3 give MAE ± 0.088" in few
    assert "Mistral's gain in the paper is 0.090;" in few and "which takes 249 users" in few
    assert "takes" not in many
