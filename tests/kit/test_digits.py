"""The rule by which numbers are written keeps what is read off them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup

from chameleon_lib.kit import digits
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.tables import to_csv


def triples(count: int = 4000) -> list[tuple[float, float, float]]:
    """(value, low, high) over many sizes, near powers of ten and near 0."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        half = 10.0 ** rng.uniform(-5, 3) if rng.random() < 0.8 else 10.0 ** rng.integers(-4, 3)
        half *= rng.choice([1, 1, 1 - 1e-4, 1 + 1e-4, 0.996])
        middle = rng.choice([0.0, 1.0, -1.0, half, -half, rng.normal(0, 10 * half)])
        low, high = middle - half, middle + half
        found.append((rng.uniform(low, high), low, high))
    return found


def test_what_is_rounded_once_stays() -> None:
    for found in triples():
        once = digits.interval(*found)
        assert digits.interval(*once) == once, found
    for value in np.random.default_rng(1).normal(0, 1, 500) * 10.0 ** np.arange(-5, 5).repeat(50):
        assert digits.plain(digits.plain(value)) == digits.plain(value)


def test_the_value_stays_in_its_interval_and_no_bound_crosses_or_reaches_zero() -> None:
    for value, low, high in triples():
        written = digits.interval(value, low, high)
        assert written[1] <= written[0] <= written[2]
        assert [np.sign(end) for end in written[1:]] == [np.sign(low), np.sign(high)]


def test_each_number_moves_by_less_than_what_its_interval_leaves_open() -> None:
    for found in triples():
        half = (found[2] - found[1]) / 2
        for old, new in zip(found, digits.interval(*found), strict=True):
            # a step is a hundredth to a tenth of half the width, or 0.001
            assert abs(old - new) <= max(0.11 * half, 0.001)


def test_a_larger_number_is_never_written_as_a_smaller_one() -> None:
    rng = np.random.default_rng(2)
    for _ in range(500):
        low, step = rng.normal(0, 1), 10.0 ** rng.uniform(-4, 1)
        high = low + step
        values = np.sort(rng.uniform(low, high, 20))
        written = [digits.interval(value, low, high)[0] for value in values]
        assert written == sorted(written)
    plain = np.sort(np.concatenate([rng.normal(0, 10.0**power, 200) for power in range(-4, 6)]))
    assert (np.diff([digits.plain(value) for value in plain]) >= 0).all()


@pytest.mark.parametrize(
    ("found", "written"),
    [
        ((0.566667, 0.475, 0.65), (0.567, 0.475, 0.65)),
        ((-2.20704, -2.48703, -1.92318), (-2.21, -2.49, -1.92)),
        ((0.0004, 0.0002, 0.02), (0.001, 0.001, 0.02)),  # 0.0002 is not 0
        ((-0.0004, -0.0101, 0.0), (0.0, -0.01, 0.0)),
        ((0.05, -0.0499999999, 0.1500000001), (0.05, -0.05, 0.15)),
        ((1234.5, 1000.2, 1500.7), (1230.0, 1000.0, 1500.0)),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ((1 / 3, 1 / 3, 1 / 3), (0.333, 0.333, 0.333)),
        ((math.nan, math.nan, math.nan), (math.nan, math.nan, math.nan)),
    ],
)
def test_examples(found: tuple[float, ...], written: tuple[float, ...]) -> None:
    np.testing.assert_equal(digits.interval(*found), written)


@pytest.mark.parametrize(
    ("number", "written"),
    [(12345.6, 12346), (0.00592485, 0.00592), (-0.9998, -1), (1234567.0, 1234570), (40.0, 40),
     (2.41631e-10, 2.42e-10), (0.5625, 0.562), (0.5625 + 1e-13, 0.562), (math.inf, math.inf)],
)  # fmt: skip
def test_numbers_without_an_interval(number: float, written: float) -> None:
    assert digits.plain(number) == written


def test_a_frame_is_rounded_row_by_row_and_counts_and_words_are_left() -> None:
    frame = pd.DataFrame(
        {
            "method": ["a", "b"],
            "margin": [1.23456, 1.23456],
            "margin_low": [1.11111, 0.11111],
            "margin_high": [1.31111, 3.11111],
            "bytes": [123456789, 1],
            "steps": [8626.67, 40.0],
            "p": [None, 0.0123456],
            "right": [True, False],
            "rank": [1, None],
        }
    )
    assert to_csv(frame).splitlines() == [
        "method,margin,margin_low,margin_high,bytes,steps,p,right,rank",
        "a,1.23,1.11,1.31,123456789,8627,,true,1",
        "b,1.2,0.1,3.1,1,40,0.0123,false,",
    ]
    assert to_csv(digits.rounded(frame)) == to_csv(frame)
    assert frame["margin"].tolist() == [1.23456, 1.23456]


def test_noise_of_the_last_bits_changes_no_byte() -> None:
    rng = np.random.default_rng(3)
    # scores of 120 users: differences with exact ties at every decimal
    value = rng.integers(-240, 240, 400) / 480
    frame = pd.DataFrame({"value": value, "ci_low": value - 0.0625, "ci_high": value + 0.0625})
    assert to_csv(frame + rng.normal(0, 1e-13, frame.shape)) == to_csv(frame)


def test_what_a_model_computes_has_two_decimals_at_most_by_whatever_name() -> None:
    def low(name: str) -> bool:
        return digits.computed(name)

    names = ["margin change_low", "cos_p_n", "edit ratio", "halves: θP (SVD)", "lowest"]
    assert all(map(low, names))
    others = ["accuracy change", "ccs_loss", "ratio of FLOPs", "accuracy lowest draw", "p"]
    assert not any(map(low, others))
    small = {"value": 0.00584, "ci_low": -0.00821, "ci_high": 0.0201}
    frame = pd.DataFrame([{"metric": metric, **small} for metric in ("margin", "accuracy")])
    assert to_csv(frame).splitlines()[1:] == [
        "margin,0.01,-0.01,0.02",
        "accuracy,0.006,-0.008,0.02",
    ]
    assert digits.plain(0.00584, 2) == 0.01 and digits.plain(0.00384, 2) == 0


def test_an_estimate_is_written_as_its_table_is() -> None:
    found = digits.estimate(Estimate(0.00584, -0.00821, 0.0201, 120, 3), "margin change")
    assert (found.value, found.low, found.high, found.n) == (0.01, -0.01, 0.02, 120)


def test_objects_keep_their_types() -> None:
    frame = pd.DataFrame({"mixed": [Markup("<b>1</b>"), 0.123456, 3, None]}, dtype=object)
    cells = digits.rounded(frame)["mixed"].tolist()
    assert isinstance(cells[0], Markup) and cells[1:] == [0.123, 3, None]
