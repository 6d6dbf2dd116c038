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

DEMO = PROFILES["demo"]
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
    paper, own, rest = findings.may_conclude(ALL)
    assert "Of 4 judged claims of the paper 1 are reproduced, 1 show the direction" in paper
    assert "1 are not reproduced, and 1 came out opposite" in paper
    assert "Of 2 judged claims of our own 1 hold, 0 show" in own and rest.endswith(": 2.")


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
    assert "All 6 judged" in text and "demo profile" in text
    assert "2 more judged effects are on other scales" in text


def test_where_nothing_was_judged_a_sentence_stands_for_the_figure() -> None:
    few = [v for v in ALL if v.status in (TOO_FEW_USERS, NOT_RUN)]
    for nothing in ([], few):
        assert findings.figure(nothing, PUBLISH) == "No judged change of a metric to draw."
