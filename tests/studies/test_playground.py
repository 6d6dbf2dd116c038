from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit.publish import Publisher
from chameleon_lib.studies import explore, playground, quickstart
from chameleon_lib.studies.playground import Play
from chameleon_lib.studies.quickstart import FITTED, NO_EDIT, PAPER, Tour
from tests.studies.small import small_kit, small_profile

PROFILE = small_profile(tasks=("LaMP_3",))
PUBLISH = Publisher("demo", "09_playground")
HISTORY = [["It broke at once.", "1"], ["A fine thing.", "5"], ["Quite usable.", "3"]]
QUERY = "It works well enough."


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_kit(tmp_path_factory.mktemp("cache"), quickstart) as folder:
        yield folder


@pytest.fixture(scope="module", params=["decoder", "encdec"])
def play(request: pytest.FixtureRequest, patched: Path) -> Play:
    assert patched.is_dir()
    found = playground.play(
        PROFILE, f"demo:{request.param}:0", "LaMP_3", HISTORY, QUERY, strength=2.0
    )
    # Random weights answer with anything: the margins here compare two scores.
    return replace(found, reference=replace(found.reference, personal=["5"], generic=["2"]))


@pytest.fixture(scope="module")
def few(patched: Path) -> Tour:
    assert patched.is_dir()
    return explore.sample(PROFILE, backbone="demo:decoder:0", task="LaMP_3", users=5)


def test_the_written_history_is_the_users_and_reaches_no_fit(play: Play) -> None:
    user = play.user.user
    assert [(i.text, i.label) for i in user.history] == [tuple(i) for i in HISTORY]
    assert user.queries[0].text == QUERY and user.queries[0].gold is None
    assert all(pair.user_id != "you" for pair in play.case.pairs)
    assert play.candidates == ["1", "2", "3", "4", "5"]


def test_answers_candidates_and_strengths_agree_with_each_other(play: Play) -> None:
    said = playground.answers(play).set_index("prompt and edit")["margin (nats)"]
    assert list(said.index) == [NO_EDIT, PAPER, FITTED, "insight in the prompt"]
    table = playground.candidates(play).set_index("answer")
    assert sorted(table.index) == play.candidates and (table <= 0).all().all()
    assert table[NO_EDIT].is_monotonic_decreasing
    frame = playground.strengths(play, [0, 2])
    for name in (PAPER, FITTED):
        rows = frame[frame["edit"] == name].set_index("strength")["margin (nats)"]
        assert rows[0] == said[NO_EDIT] and rows[2] == said[name]


def test_the_lens_ends_at_the_margin_of_the_first_different_token(play: Play) -> None:
    frame = playground.layers(play)
    n = play.backbone.n_layers
    assert frame["edit"].tolist() == [NO_EDIT] * n + [PAPER] * n + [FITTED] * n
    assert not frame[frame["edit"] == NO_EDIT]["edited"].any()
    paper = frame[frame["edit"] == PAPER]
    assert paper[paper["edited"]]["layer"].tolist() == list(play.case.layers)
    none = playground.layers(replace(play, strength=0.0))
    base = frame[frame["edit"] == NO_EDIT]["preference (nats)"].tolist()
    for name in (PAPER, FITTED):
        assert none[none["edit"] == name]["preference (nats)"].tolist() == base
    with pytest.raises(UserError, match="Two different answers"):
        playground.layers(replace(play, reference=replace(play.reference, generic=["5"])))


def test_the_pictures_name_the_answers_and_the_profile(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    shown = playground.strength_figure(playground.strengths(play, [0, 1]), play, PUBLISH)
    assert "paper's edit from" in shown.metadata["alt"]
    assert "log p(5) − log p(2)" in shown.metadata["caption"]
    lens = playground.lens_figure(playground.layers(play), play, PUBLISH)
    assert "no edit from" in lens.metadata["alt"]
    kept = sorted(path.name for path in (tmp_path / "demo" / "figures").glob("*.csv"))
    assert kept == ["09_lens.csv", "09_strength.csv"]
    with pytest.raises(UserError, match="at least one strength"):
        playground.strength_figure(playground.strengths(play, []), play, PUBLISH)


@pytest.mark.parametrize(
    ("history", "query", "sentence"),
    [
        ([], QUERY, "history is empty"),
        (["text"], QUERY, r"Item 1 of the history must be \[text, label\], not 'text'"),
        ([["text"]], QUERY, r"Item 1 of the history must be \[text, label\]"),
        ([*HISTORY, ["text", "6"]], QUERY, "Item 4 of the history has the label '6'; LaMP_3 knows"),
        (HISTORY, "  ", "query is empty"),
    ],
)
def test_a_history_that_makes_no_sense_is_refused_in_one_sentence(
    history: Any, query: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        playground.play(PROFILE, "demo:decoder:0", "LaMP_3", history, query)


def test_strength_0_changes_no_answer_and_every_question_answers(few: Tour) -> None:
    frame = explore.strengths(few, [0, 1]).set_index("arm")
    assert len(few.users) == 5 and frame.index[0] == NO_EDIT
    for name in (PAPER, FITTED):
        assert frame.loc[f"{name} × 0"].equals(frame.loc[NO_EDIT])
    edits = {PAPER: few.edit, "random": few.case.edit("random", 0), NO_EDIT: None}
    tried = explore.edited(few, edits).set_index("arm")
    assert list(tried.index) == [NO_EDIT, PAPER, "random"]
    assert tried.loc[PAPER].equals(frame.loc[f"{PAPER} × 1"])
    shown = explore.figure(explore.edited(few, edits), few, "Edits")
    assert "5 users" in shown.metadata["caption"] and "demo profile" in shown.metadata["caption"]


def test_a_changed_history_changes_the_prompt_of_one_user_only(few: Tour) -> None:
    one = few.users[1].user
    turned = explore.edit_history(few, 1, drop=(1,), relabel={2: "1"})
    assert turned["history"].tolist() == ["as it is", "changed"]
    assert set(turned["query"]) == {one.queries[0].text}
    other = replace(few.users[2].user, queries=one.queries)
    both = explore.asked_as(few, {"user 1": one, "user 2": other})
    assert both["history"].tolist() == ["user 1", "user 2"]
    assert both.iloc[0, 1:].tolist() == turned.iloc[0, 1:].tolist()
    assert set(both["query"]) == {one.queries[0].text}


def test_questions_about_what_is_not_there_are_refused(few: Tour) -> None:
    items = len(few.users[0].user.history)
    for question, sentence in (
        (lambda: explore.edit_history(few, 0, drop=(items + 1,)), f"no item {items + 1}"),
        (lambda: explore.edit_history(few, 0, drop=range(1, items + 1)), "No item is left"),
        (lambda: explore.edit_history(few, 5), "the sample has the users 0 to 4"),
        (lambda: explore.sample(PROFILE, users=0), "ask at least one"),
    ):
        with pytest.raises(UserError, match=sentence):
            question()


def test_one_answer_under_both_insights_gets_the_most_likely_other_one_as_its_rival(
    play: Play,
) -> None:
    same = replace(play.reference, personal=["5"], generic=["5"])
    apart = playground._told_apart(replace(play, reference=same))
    own, other = apart.answers
    assert own == "5" and other in {"1", "2", "3", "4"}
    assert "most likely other answer" in apart.sentence() and f"{own!r} or {other!r}?" in (
        apart.sentence()
    )
    assert playground._told_apart(play) is play
