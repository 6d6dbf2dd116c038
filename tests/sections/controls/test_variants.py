from __future__ import annotations

import pytest

from chameleon_lib.core.settings import NOT_OFFERED, EditSettings, ambiguity_ledger
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.sections.controls.variants import (
    ELSEWHERE,
    REFUSED,
    STRENGTHS,
    VARIANTS,
    Variant,
    ledger_rows,
    refusals,
    runnable,
)

BASE = EditSettings()
IDS = [f"A{i}" for i in range(1, 24)] + [f"B{i}" for i in range(1, 12)]


def test_every_reading_of_every_open_point_is_varied_refused_or_told_why_not() -> None:
    varied = {(name, value) for variant in VARIANTS for name, value in variant.changes}
    refused = {(name, value) for name, value, _ in NOT_OFFERED}
    told = {name for fields, _ in ELSEWHERE.values() for name in fields}
    for row in ambiguity_ledger():
        for option in row["options"]:
            reading = (row["field"], option)
            known = option == row["default"] or reading in varied | refused
            assert known or row["field"] in told, reading
        if not row["options"]:
            assert row["field"] in told | {name for name, _ in varied}, row["field"]


def test_every_variant_is_a_valid_reading_of_its_own_under_one_id() -> None:
    titles = [variant.title for variant in VARIANTS]
    assert len(set(titles)) == len(titles)
    owners = {row["field"]: row["id"] for row in ambiguity_ledger()}
    for variant in VARIANTS:
        changed = variant.settings(BASE, n_layers=32)
        assert variant.id in IDS
        assert (changed != BASE) == bool(variant.changes)
        assert variant.changes or variant.prompt != "instruct"
        # A change outside the ledger must ride with one inside it, or settle it in other words.
        own = [name for name, _ in variant.changes if owners.get(name) == variant.id]
        assert own or variant.name in ("CCS: run to its end (L-BFGS)", "insight in the prompt")


def test_a_wrong_reading_raises_and_is_never_skipped() -> None:
    with pytest.raises(Exception, match="answer_history"):
        Variant("A3", "history last", (("pairs_text", "answer_history"),)).settings(BASE, 4)


def test_the_reading_with_the_history_last_is_named_after_all_that_is_averaged() -> None:
    [last] = [v for v in VARIANTS if ("pairs_text", "answer_history") in v.changes]
    assert last.name == "pair text: history last (mean of the whole text)"
    assert dict(last.changes)["embed_pooling"] == "mean_all"


def test_the_number_of_layers_is_cut_to_the_model() -> None:
    [five] = [v for v in VARIANTS if v.name == "layers: up to 5"]
    assert five.settings(BASE, 3).layers_k == 3 and five.settings(BASE, 32).layers_k == 5


def test_all_strengths_but_the_papers_are_variants_of_both_parts() -> None:
    found = [dict(v.changes) for v in VARIANTS if v.id == "A12"]
    assert found == [{"edit_alpha_p": a, "edit_alpha_n": a} for a in STRENGTHS if a != 1]


def test_what_is_listed_as_refused_is_refused_with_a_sentence() -> None:
    rows = refusals(BASE)
    assert [row["id"] for row in rows] == [ambiguity for ambiguity, _ in REFUSED]
    assert all(len(row["sentence"]) > 20 and "=" in row["refused"] for row in rows)


def test_a_profile_leaves_out_what_it_cannot_run_and_says_why() -> None:
    demo, paper = PROFILES["demo"], PROFILES["paper"]
    assert [v.title for v in runnable(paper)] == ["default", *(v.title for v in VARIANTS)]
    kept = {v.title for v in runnable(demo)}
    left = [v for v in VARIANTS if v.title not in kept]
    assert {v.id for v in left} == {"A15", "A16", "A17", "A23", "B1", "B2", "B8"}
    assert all(v.left_out(demo) and not v.left_out(paper) for v in left)
    # Real files through embedded models: no time is short there, but no hub can be reached.
    assert {v.id for v in VARIANTS if v.left_out(PROFILES["demo-data"])} == {"A16", "B8"}


@pytest.mark.parametrize("profile", ["demo", "paper"])
def test_the_ledger_has_a_row_with_words_for_every_open_point(profile: str) -> None:
    rows = ledger_rows(PROFILES[profile], BASE)
    assert [row["id"] for row in rows] == IDS
    for row in rows:
        assert row["open point"] and (row["varied here"] or row["elsewhere, or why not"]), row
    by_id = {row["id"]: row for row in rows}
    assert by_id["A11"]["varied here"] == "positions: all; positions: generated only"
    assert "notebook 02" in by_id["A19"]["elsewhere, or why not"]
    assert by_id["A21"]["refused"] == "t5_stack=encoder; t5_pair_layout=enc_all"
    beams = "decoding: 4 beams"
    place = "elsewhere, or why not" if profile == "demo" else "varied here"
    assert beams in by_id["A15"][place]
