"""Every form at tiny sizes: the same texts, or a no."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from workshop.bench import forms
from workshop.bench.forms import FormsWork
from workshop.bench.measure import Goal

WORK = FormsWork(rows=4, tokens=5, history=2, users=(1, 2, 4), adapters=2, rounds=1)
DECODER = FormsWork(**{**vars(WORK), "families": ("decoder",)})
NAMES = [
    "hook, the paper's formula",
    "hook, rank-2 form",
    "one edit per row, 1 user",
    "one edit per row, 2 users",
    "one edit per row, 4 users",
    "PEFT adapter",
    "merged weights",
    "PEFT, an adapter per row, 2 adapters",
    "no edit, once more",
]


@pytest.fixture
def strong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights hardly listen to an edit of strength 1."""
    edit_of = forms.random_edit
    monkeypatch.setattr(forms, "random_edit", lambda *given: replace(edit_of(*given), alpha_p=60.0))


@pytest.mark.usefixtures("no_checkpoint", "strong")
def test_every_form_writes_what_the_hook_writes() -> None:
    measured = forms.measure(WORK, time.perf_counter)
    titles = [f"Decode under an edit, {name}: time" for name in NAMES]
    assert [row.what for row in measured] == titles * 2
    assert all(row.same for row in measured), [row.evidence for row in measured]
    bounded = [row for row in measured if row.goal is not None]
    assert [row.what for row in bounded] == [titles[1], titles[4], titles[6]] * 2
    again = next(row.ratio for row in measured if row.what == titles[8])
    assert again is not None and bounded[2].goal == Goal(max(1.0, again.high), at_least=False)
    assert all(row.ratio is not None and row.ratio.median > 0 for row in measured)
    evidence = {row.what: row.evidence for row in measured}
    assert "those of 4 single runs" in evidence[titles[4]]
    assert "those of 2 batches of one user each" in evidence[titles[3]]
    assert "those of the per-row hook of all tokens" in evidence[titles[7]]
    assert {row.reference for row in measured} == {forms.PLAIN, forms.PLAIN_LIBRARY}


@pytest.mark.usefixtures("no_checkpoint", "strong")
def test_a_form_that_writes_other_texts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "apply_edit", lambda x, *_, **__: x)
    found = {row.what: row for row in forms.measure(DECODER, time.perf_counter)}
    assert not found[f"Decode under an edit, {NAMES[0]}: time"].same
    assert found[f"Decode under an edit, {NAMES[1]}: time"].same
