"""Sentences say what the tables hold, also where they hold something else."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from chameleon_lib.kit.tables import check_table
from chameleon_lib.sections.serving import costs, views
from chameleon_lib.sections.serving.answers import UNEDITED
from chameleon_lib.sections.serving.solvers import EDITED, EQUAL, ORDERS


def _agreement(error: float, same: int, base: bool) -> pd.DataFrame:
    row = {
        "difference from the hook, below": error,
        "allowed": 2e-5,
        "same greedy tokens": same,
        "greedy tokens": 24,
        "base bit for bit": base,
    }
    return pd.DataFrame([row, {**row, "difference from the hook, below": 1e-7}])


def test_forms_that_agree_and_forms_that_do_not() -> None:
    good = views.forms_sentence(_agreement(1e-6, 24, True))
    assert "merged weights agree within" in good and "than 1e-06, 48 of 48" in good
    bad = views.forms_sentence(_agreement(1e-3, 23, False))
    assert "do not all agree" in bad and "46 of 48" in bad and "is not bit for bit" in bad


def test_the_batch_is_counted() -> None:
    frame = pd.DataFrame({"equal answers": [15, 14], "answers": [15, 15]})
    assert "29 of 30 compared answers are the same" in views.batch_sentence(frame)


def test_one_answer_that_differs_takes_the_claim_back() -> None:
    frame = pd.DataFrame({"equal answers": [15, 14], "answers": [15, 15]})
    assert views.batch_sentence(frame).startswith("Not every user of one batch")
    equal = views.batch_sentence(frame.assign(answers=[15, 14]))
    assert equal.startswith("Users of one batch get what they get alone: 29 of 29")


@pytest.mark.parametrize(
    ("same", "changed", "planted", "taste"),
    [
        (1.0, 0.3, True, True),
        (0.4, 0.3, True, False),
        (1.0, 0.0, True, False),  # an edit that changes nothing says what any other says
        (1.0, 0.3, False, False),  # official files: the edit is a small group's
    ],
)
def test_edits_are_called_nobodys_only_where_anothers_does_the_same(
    same: float, changed: float, planted: bool, taste: bool
) -> None:
    row = {
        "family": "decoder",
        "held-out queries": 10,
        "changed by the own edit": changed,
        "another user's edit says the same": same,
        **({f"right: {UNEDITED}": 0.7} if planted else {}),
        "n": 5,
    }
    said = views.whose_sentences(pd.DataFrame([row]))
    assert f"in {same:.0%} of the cases" in said[0] and "a look and no verdict" in said[-1]
    assert any("of one user's taste" in sentence for sentence in said) is taste


def test_the_solvers_are_counted_over_groups() -> None:
    frame = pd.DataFrame(
        {
            "mean loss, span": [0.1, 0.3],
            "mean loss, reference": [0.2, 0.2],
            ORDERS: [True, False],
            EDITED: [True, True],
            EQUAL: [0.9, 1.0],
            "equal among these": [0.5, 1.0],
        }
    )
    first, second = views.solver_sentences(frame)
    assert "Over 2 groups" in first and "reference in 1 and" in first and "edit in 2." in first
    assert "lower mean loss in 1." in first
    assert "90.0% to 100.0%" in second and "50% to 100%" in second


def test_the_figure_and_its_table_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    sizes = costs.sizes_at_scale()
    check_table(sizes, "sizes", "demo", "diagnostic")
    check_table(costs.costs_at_scale(), "costs", "demo", "diagnostic")
    views.size_figure(sizes, "demo")
    drawn = pd.read_csv(tmp_path / "demo" / "figures" / "07_sizes.csv")
    assert drawn.loc[drawn["form"] == "merged weights, bfloat16", "value"].round(1).tolist() == [
        10.2,
        10.3,
    ]
