"""The matrix of verdicts: every claim once, every verdict in its own cell."""

from __future__ import annotations

from dataclasses import replace

from chameleon_lib.kit.glance import MARKS, glance
from chameleon_lib.kit.stats import STATUSES, Estimate
from chameleon_lib.kit.verdicts import Verdict

OURS = Estimate(0.2, 0.1, 0.3, 200, 3)
ONE = Verdict(
    "the edit helps", "4.2", "01_per_user", "+0.198", OURS, "reproduced", 200, 3, "accuracy",
    "tables/01.csv", setting="LaMP-3, decoder (Mistral class)", measure="mae change",
)  # fmt: skip
OTHER = replace(ONE, setting="LaMP-2, decoder (Mistral class)", measure="accuracy change")
T5 = replace(OTHER, setting="LaMP-2, encoder-decoder (T5 class)", status="opposite",
             ours=Estimate(-0.004, -0.006, -0.002, 200, 3))  # fmt: skip
LATER = replace(OTHER, words="unseen users gain", notebook="02_unseen_users")
MINE = replace(OTHER, words="ours helps", own=True, status="holds")


def test_a_claim_is_one_row_over_all_its_settings() -> None:
    found = glance([ONE, MINE, OTHER, T5, LATER], own=False)
    assert found.columns == (OTHER.setting, T5.setting, ONE.setting)
    assert found.heads == [("LaMP-2", 2), ("LaMP-3", 1)]
    assert found.families == ["decoder", "encoder-decoder", "decoder"]
    first, second = found.rows
    assert [[mark.verdict for mark in cell] for cell in first.cells] == [[OTHER], [T5], [ONE]]
    assert [[mark.verdict for mark in cell] for cell in second.cells] == [[LATER], [], []]
    assert (second.words, second.section, second.notebook) == (LATER.words, "4.2", LATER.notebook)
    # Anchors number the whole list, whoever's the claims are.
    numbers = [mark.number for row in found.rows for cell in row.cells for mark in cell]
    assert numbers == [2, 3, 0, 4]


def test_ours_stand_apart_and_a_claim_without_setting_is_left_to_the_list() -> None:
    whole = [ONE, MINE, replace(MINE, setting="")]
    assert [row.words for row in glance(whole, own=True).rows] == ["ours helps"]
    assert glance([ONE], own=True).rows == ()


def test_marks_show_the_effect_and_a_claim_twice_in_one_setting_both_of_them() -> None:
    not_run = replace(OTHER, ours=None, status="not run at this scale", n=0, seeds=0)
    (row,) = glance([OTHER, T5, not_run], own=False).rows
    (run, missing), (small,) = row.cells
    assert (run.sign, run.tone, run.value) == ("✓", "good", "+0.20")
    assert (missing.sign, missing.value) == ("–", "")
    assert (small.sign, small.value) == ("⇄", "−0.004")  # the mark says that it is not nothing


def test_a_number_that_is_nothing_has_no_sign_and_a_cross_needs_no_more_decimals() -> None:
    tiny = Estimate(-0.004, -0.006, 0.002, 200, 3)
    crossed = replace(OTHER, ours=tiny, status="not reproduced")
    nothing = replace(OTHER, ours=replace(tiny, value=-0.0001), status="too few users")
    (row,) = glance([crossed, nothing], own=False).rows
    assert [mark.value for mark in row.cells[0]] == ["0.00", "0.000"]


def test_a_row_names_its_unit_where_it_is_no_change_of_the_metric() -> None:
    slope = replace(ONE, words="grows", measure="margin slope, nats")
    rows = glance([ONE, OTHER, slope, replace(OTHER, words="no measure", measure="")], own=False)
    assert [row.unit for row in rows.rows] == ["", "margin slope, nats", ""]


def test_every_word_has_a_mark() -> None:
    assert set(MARKS) == set(STATUSES)
