from __future__ import annotations

from chameleon_lib.sections.estimates import paper_numbers
from chameleon_lib.sections.methods import METHODS
from chameleon_lib.sections.per_user.tables import CLAIM_CONTROLS, FITTED_CONTROLS


def test_no_two_rows_share_an_id_or_a_title() -> None:
    assert len({method.id for method in METHODS}) == len(METHODS)
    assert len({method.title for method in METHODS}) == len(METHODS)
    assert {method.kind for method in METHODS} == {
        "baseline", "rival", "edit", "control", "ceiling",
    }  # fmt: skip


def test_only_aloe_and_the_positive_control_have_seen_labels() -> None:
    assert [m.id for m in METHODS if m.labels != "none"] == ["aloe", "fitted_gold"]


def test_every_row_of_the_papers_table_is_here() -> None:
    table = paper_numbers()
    printed = set(table[table["table"] == "table1"]["method"])
    here = {method.paper for method in METHODS if method.paper}
    assert here == printed


def test_the_controls_of_the_verdicts_are_rows_that_are_always_run() -> None:
    kinds = {method.id: method.kind for method in METHODS}
    assert {kinds[name] for name in CLAIM_CONTROLS + FITTED_CONTROLS} == {"control"}
