from __future__ import annotations

import numpy as np
import pytest

from chameleon_lib.kit.stats import Estimate
from chameleon_lib.sections.estimates import estimate
from chameleon_lib.sections.paired import Term, contrast, difference, user_sums, widened
from chameleon_lib.sections.results import agreeing
from tests.sections.planted import planted_run

RUN = planted_run({"chameleon": 0.8}, tasks=("LaMP_2",), backbones=("demo:decoder:0",))
CELLS = RUN.cells


@pytest.mark.parametrize(
    ("metric", "users"), [("accuracy", 120), ("margin", int((~agreeing(RUN, "LaMP_2")).sum()))]
)
def test_a_difference_is_the_one_of_the_tables(metric: str, users: int) -> None:
    mine = difference(RUN, CELLS, "chameleon", "instruct", metric)
    other = estimate(RUN, CELLS, "chameleon", metric, "instruct")
    assert (mine.n, mine.seeds) == (other.n, other.seeds) == (users, 2)
    for name in ("value", "low", "high"):
        assert getattr(mine, name) == pytest.approx(getattr(other, name))
    assert mine.low > 0


def test_a_contrast_adds_up_its_arms_user_by_user() -> None:
    terms = [Term(0.5, CELLS, "chameleon"), Term(0.5, CELLS, "fitted"), Term(-1, CELLS, "instruct")]
    scores = CELLS[0].scores
    means = {name: scores[name]["accuracy"].mean() for name in ("chameleon", "fitted", "instruct")}
    expected = (means["chameleon"] + means["fitted"]) / 2 - means["instruct"]
    assert contrast(RUN, terms, "accuracy").value == pytest.approx(expected)
    same = contrast(RUN, [Term(1, CELLS, "fitted"), Term(-1, CELLS, "fitted")], "accuracy")
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_every_cell_counts_the_same() -> None:
    two = planted_run({"chameleon": 0.8}, tasks=("LaMP_2",), backbones=("demo:decoder:0",)).cells
    sums = user_sums(RUN, [*CELLS, *two], "chameleon", "accuracy")
    np.testing.assert_allclose(sums, user_sums(RUN, CELLS, "chameleon", "accuracy"))


def test_no_mean_no_contrast() -> None:
    with pytest.raises(ValueError, match="no mean"):
        difference(RUN, CELLS, "chameleon", "instruct", "f1")


def test_a_bonferroni_width_is_the_ratio_of_normal_quantiles() -> None:
    found = Estimate(0.10, 0.06, 0.18, 120, 2)
    wide = widened(found, 10)  # 2.807 / 1.960 = 1.432
    assert wide.low == pytest.approx(0.10 - 1.4322 * 0.04, abs=1e-4)
    assert wide.high == pytest.approx(0.10 + 1.4322 * 0.08, abs=1e-4)
    assert widened(found, 1) == found
    assert (wide.value, wide.n, wide.seeds) == (0.10, 120, 2)
