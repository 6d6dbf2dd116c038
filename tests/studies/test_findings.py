"""The report counts verdicts and never makes one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.kit.stats import (
    DIRECTION_ONLY,
    DOES_NOT_HOLD,
    HOLDS,
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE,
    REPRODUCED,
    TOO_FEW_USERS,
    Estimate,
)
from chameleon_lib.kit.tables import table_html
from chameleon_lib.kit.verdicts import Verdict
from chameleon_lib.studies import findings

DEMO, PAPER = PROFILES["demo"], PROFILES["paper"]
PUBLISH = Publisher("demo", "99_report")
GAIN, LOSS, NONE = (Estimate(m, m - 0.1, m + 0.1, 200, 3) for m in (0.3, -0.3, 0.0))


def made(
    status: str, ours: Estimate | None = GAIN, section: str = "4.2", own: bool = False
) -> Verdict:
    n, seeds = (ours.n, ours.seeds) if ours else (0, 0)
    claim = f"{'beyond the paper, ' if own else ''}a claim that is {status}"
    return Verdict(claim, section, f"0{section[-1]}_name", "+0.1", ours, status, n, seeds,
                   "accuracy, LaMP evaluator's definition", "tables/x.csv", own=own,
                   metric="accuracy", measure="accuracy change", plain=True)  # fmt: skip


ALL = [
    made(REPRODUCED),
    made(DIRECTION_ONLY),
    made(NOT_REPRODUCED, NONE, "4.3"),
    made(OPPOSITE, LOSS, "4.3"),
    made(NOT_RUN, None, "4.4"),
    made(TOO_FEW_USERS, replace(NONE, n=60), "4.4"),
    made(HOLDS, own=True),
    made(DOES_NOT_HOLD, NONE, own=True),
]


def test_the_words_are_counted_per_notebook_the_papers_and_ours_apart() -> None:
    frame = findings.tally(ALL).set_index(["notebook", "claims of"])
    assert frame.loc[("02_name", "the paper"), [REPRODUCED, DIRECTION_ONLY]].tolist() == [1, 1]
    assert frame.loc[("02_name", "ours"), [HOLDS, DOES_NOT_HOLD]].tolist() == [1, 1]
    assert frame["claims"].sum() == len(ALL)
    few = frame.loc[("04_name", "the paper")]  # one claim was not run, the other on 60 users
    assert few[["n", "largest n", "seeds", "largest seeds"]].tolist() == [60, 60, 3, 3]
    wide = findings.tally([ALL[0], made(REPRODUCED, replace(GAIN, n=100, seeds=1))]).iloc[0]
    assert wide[["n", "largest n", "seeds", "largest seeds"]].tolist() == [100, 200, 1, 3]
    assert HOLDS not in findings.tally(ALL[:2]).columns  # a word that nobody got is no column


def test_sentences_say_what_was_counted_and_leave_out_what_was_not_judged() -> None:
    first, *rest = findings.may_conclude(ALL, DEMO)
    assert "Of 4 claims of the paper" in first and "demo profile" in first
    assert "1 are reproduced" in first and "1 came out opposite" in first
    assert rest[:2] == [
        "Section 4.2: 1 of 2 claims reproduced.",
        "Section 4.3: 0 of 2 claims reproduced.",
    ]
    assert "Of 2 claims of our own, 1 hold, 1 do not" in rest[2]
    for said in (first, rest[2]):
        assert "direction only (a control reaches it, or none was run)" in said
    assert rest[3].startswith("2 claims were not judged")
    assert findings.may_conclude([], DEMO) == []


@pytest.mark.parametrize(
    ("status", "word"),
    [(OPPOSITE, "1 came out opposite"), (NOT_REPRODUCED, "1 are not reproduced")],
)
def test_a_bad_outcome_reads_like_one(status: str, word: str) -> None:
    [counted, section] = findings.may_conclude([made(status, LOSS)], DEMO)
    assert word in counted and "0 are reproduced" in counted and "0 of 1" in section


def test_what_may_not_be_said_names_the_profile_the_seeds_and_chance() -> None:
    demo = " ".join(findings.may_not_conclude(ALL, DEMO))
    assert DEMO.banner in demo and "3 to 3 seeds" in demo
    assert "6 claims judged at 95 %, about 0.15 intervals" in demo
    assert "own numbers are right" not in " ".join(findings.may_not_conclude(ALL, PAPER))
    assert findings.may_not_conclude([], PAPER)


def test_every_claim_links_to_its_notebook_and_its_table() -> None:
    page = table_html(findings.claims(ALL), "Claims")
    assert page.count('href="../html/02_name.html"') == 4
    assert page.count('href="../tables/x.csv"') == len(ALL)
    harmful = replace(ALL[0], words="<b>bold</b>", csv='x"><script>')
    assert "<b>" not in (page := table_html(findings.claims([harmful]), "x"))
    assert "<script" not in page


def test_the_figure_holds_every_judged_change_and_says_how_many_got_which_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    measures = ("accuracy gain, interval widened", "accuracy change plus 0.02")
    odd = [replace(ALL[6], measure=measure, plain=False) for measure in measures]
    shown = findings.figure([*ALL, *odd], PUBLISH)
    assert not isinstance(shown, str)
    text = str(shown.metadata)
    # Of eight claims one was not run and one has too few users.
    assert "6 effects" in text and "All 6 judged" in text and "too few" not in text
    assert "1 opposite" in text and "1 holds" in text and "demo profile" in text
    assert "2 more judged effects are not drawn" in text
    assert "not drawn" not in str(getattr(findings.figure(ALL, PUBLISH), "metadata", "not drawn"))


def test_where_nothing_was_judged_a_sentence_stands_for_the_figure() -> None:
    few = [v for v in ALL if v.status in (TOO_FEW_USERS, NOT_RUN)]
    for nothing in ([], few):
        assert findings.figure(nothing, PUBLISH) == "No judged change of a metric to draw."
