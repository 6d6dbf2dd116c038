"""What the index shows first is counted and chosen, never typed."""

from __future__ import annotations

from dataclasses import replace

from chameleon_lib.kit.front import beyond, figure_groups, found, headline
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.verdicts import Verdict

OURS = Estimate(0.2, 0.1, 0.3, 200, 3)
ONE = Verdict(
    "the edit helps", "4.2", "01_per_user", "+0.198", OURS, "reproduced", 200, 3, "accuracy",
    "tables/01.csv", setting="LaMP-3, decoder (Mistral class)", measure="mae change",
)  # fmt: skip
MINE = replace(ONE, own=True, status="holds")
T5 = replace(ONE, setting="LaMP-3, encoder-decoder (T5 class)", status="opposite",
             ours=Estimate(-0.2, -0.3, -0.1, 150, 3), n=150)  # fmt: skip
OTHER = replace(ONE, words="it beats DPO")
MISSING = replace(OTHER, ours=None, status="not run at this scale", n=0, seeds=0)


def test_the_main_claim_is_the_papers_first_in_every_setting() -> None:
    assert headline([MINE, ONE, OTHER, T5]) == [(1, ONE), (3, T5)]
    assert headline([MINE]) == []


def test_what_was_found_is_counted_over_the_papers_claims_alone() -> None:
    what, sure = found([MINE, ONE, T5, MISSING])
    assert what == (
        "3 verdicts, one for each claim of the paper in each task and model family: 1 reproduced, "
        "0 direction only, 0 not reproduced, 1 opposite, 1 not run at this scale."
    )
    assert sure.startswith("each on 150 to 200 users and 3 seeds, with a 95 % interval over users")
    assert found([MINE]) == [] and len(found([MISSING])) == 1


def test_what_works_beyond_the_paper_is_counted_beside_the_main_claim() -> None:
    mine = replace(MINE, words="the fitted edit helps")
    lost, elsewhere = replace(mine, status="does not hold"), replace(mine, notebook="02_x")
    assert beyond([mine, ONE, lost, elsewhere]) == [
        "the fitted edit helps: 1 of 2 settings hold."
    ]
    assert beyond([mine]) == []


def test_one_figure_per_section_of_the_paper_is_open_and_the_rest_on_demand() -> None:
    ids = ["00_pca", "01_alone", "01_effects_LaMP_2", "01_effects_LaMP_3", "06_directions_LaMP_2"]
    groups = figure_groups([{"id": name} for name in ids], {"01_per_user": "Users"})
    shown = [(g["stem"], g["first"] and g["first"]["id"], len(g["rest"])) for g in groups]
    assert shown == [
        ("01_per_user", "01_effects_LaMP_2", 2),
        ("06", "06_directions_LaMP_2", 0),
        ("00", None, 1),
    ]
    assert [g["controls"] for g in groups] == [False, True, False]
    assert groups[0]["title"] == "Users" and groups[1]["title"] == "06"
