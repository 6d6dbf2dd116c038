"""The study of a real model, on tiny random models, and its tables on made-up answers."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from chameleon_lib.core.answers import is_refusal, preamble
from chameleon_lib.core.edit import Edit
from chameleon_lib.errors import UserError
from chameleon_lib.kit.stats import Estimate
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.studies import s14_real_model as real
from chameleon_lib.studies import s14_tables as tables
from chameleon_lib.studies.s14_real_model import (
    EDITS,
    NATS,
    NO_EDIT,
    OWN_GROUP,
    POSTS,
    RANDOM,
    RANDOM_DRAWS,
    REVIEWS,
    WRONG,
    RealRun,
)
from tests.studies.small import small_profile, use_small_models

SMALL: dict[str, Any] = {
    "decode_insight_tokens": 6, "decode_max_new_tokens": 4, "ccs_epochs": 20, "ccs_tries": 2,
    "fit_steps": 2, "fit_batch": 8,
}  # fmt: skip


@pytest.fixture(scope="module", params=[POSTS, REVIEWS])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RealRun:
    """Four users of a task on a tiny decoder, and which edits each half was scored under."""
    store = ArtifactStore(tmp_path_factory.mktemp("units"))
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        return real.run(
            small_profile(), "demo:decoder:0", request.param, users=4, store=store, **SMALL
        )


@pytest.mark.parametrize(("task", "history", "queries"), [(POSTS, 7, 2), (REVIEWS, 6, 1)])
def test_every_row_of_the_invented_users_counts(task: str, history: int, queries: int) -> None:
    users = real.invented_users(task)
    assert len(users) == 16
    assert {(len(user.history), len(user.queries)) for user in users} == {(history, queries)}
    texts = [item.text for user in users for item in user.history]
    assert len(set(texts)) == len(texts)
    assert not any(is_refusal(text) or preamble(text) for text in texts)
    assert all(query.gold != query.text for user in users for query in user.queries)


def test_the_invented_users_differ_in_habit_and_in_harshness() -> None:
    words = [
        np.mean([len(item.text.split()) for item in user.history])
        for user in real.invented_users(POSTS)
    ]
    assert min(words) < 8 and max(words) > 22
    stars = [
        np.mean([int(str(item.label)) for item in user.history])
        for user in real.invented_users(REVIEWS)
    ]
    assert min(stars) < 2.5 and max(stars) > 4.4


def test_every_arm_is_there_for_every_query(small: RealRun) -> None:
    wanted = {NO_EDIT, *real.PROMPTS.values(), WRONG}
    made = real.MADE[small.study.task]
    wanted |= {EDITS[name] for name in made} | ({RANDOM} if "paper" in made else set())
    wanted |= {OWN_GROUP.format(edit=EDITS[name]) for name in real.SEEN if name in made}
    wanted |= {f"{EDITS[name]}; {WRONG}" for name in real.CROSSED if name in made}
    assert not small.refused and set(tables.arms_of(small)) == wanted
    asked = len(small.pairs)
    counts = small.arms.groupby("arm").size()
    for arm, count in counts.items():
        assert count == asked * (RANDOM_DRAWS if arm == RANDOM else 1)
    assert np.isfinite(small.arms[NATS]).all() and small.arms["gold"].notna().all()


def test_no_user_is_scored_under_an_edit_of_the_users_own_texts(
    small: RealRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = small.halves
    names = [{user.user.id for user in half.users} for half in small.halves]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 4
    assert [{pair.user_id for pair in half.case.pairs} for half in small.halves] == names
    seen: list[tuple[set[str], dict[Any, tuple[str, Edit | None]]]] = []

    def answered(half: Any, arms: Any) -> pd.DataFrame:
        seen.append(({user.user.id for user in half.users}, dict(arms)))
        return pd.DataFrame({"arm": [NO_EDIT]})

    monkeypatch.setattr(real, "_answered", answered)
    use_small_models(monkeypatch)
    store = ArtifactStore(small.study.store.root)  # everything is in it
    again = real.run(
        small_profile(), "demo:decoder:0", small.study.task, users=4, store=store, **SMALL
    )
    for at, (users, arms) in enumerate(seen):
        assert users == names[at]
        theirs, own = (again.halves[half].made[0] for half in (1 - at, at))
        for title in (EDITS[name] for name in real.MADE[small.study.task]):
            assert arms[title, 0][1] is theirs[title, 0]
        gold = own[EDITS["fitted_gold"], 0]
        assert all(edit is not gold for _, edit in arms.values())
    assert one.study is other.study


def test_workers_leave_nothing_to_compute(
    small: RealRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They find in a store of their own what one process found."""
    use_small_models(monkeypatch)
    computed: list[Path] = []

    def warm(phases: Any, *, workers: int, threads: int, preload: Sequence[str]) -> None:
        assert (workers, threads) == (2, 1) and all(map(find_spec, preload))
        for _, work, units in phases:
            for unit in pickle.loads(pickle.dumps(units)):
                pickle.dumps(work)
                work(*unit)
        computed.extend(tmp_path.rglob("*"))

    monkeypatch.setattr(real, "warm", warm)
    task, store = small.study.task, ArtifactStore(tmp_path)
    again = real.run(
        small_profile(workers=2), "demo:decoder:0", task, users=4, store=store, **SMALL
    )
    assert computed and store.stats.misses == 0 and store.stats.hits
    pd.testing.assert_frame_equal(again.arms, small.arms)


def test_a_fit_on_self_made_pairs_sees_no_gold_answer(small: RealRun) -> None:
    for half in small.halves:
        said = {text for pair in half.pairs for text in (pair.answer_p, pair.answer_n)}
        assert all(query.gold is None for user in half.users for query in user.user.queries)
        for contrast in half.case.contrasts:
            assert contrast.chosen in said and (contrast.rejected or contrast.chosen) in said
        chosen = {contrast.chosen for contrast in half.case.gold}
        assert chosen <= set(half.golds)
        if small.study.task == POSTS:
            written = {item.text for user in half.people for item in user.history}
            assert {pair.answer_p for pair in half.case.history} <= written


def test_the_tables_have_a_row_per_arm_with_users_and_seeds(small: RealRun) -> None:
    table = tables.results(small).set_index("arm")
    assert table.at[NO_EDIT, f"gain, {NATS}"] == 0 and set(table["n"]) == {4}
    assert table.at[NO_EDIT, "seeds"] == 1
    if small.study.task == POSTS:
        assert table.at[RANDOM, "seeds"] == RANDOM_DRAWS
    assert list(tables.edits(small)["half"]) == sorted(tables.edits(small)["half"])
    assert len(tables.pair_quality(small)) == 3 and len(tables.insights(small)) == 4
    assert set(tables.pair_examples(small)["user"]) == {user.user.id for user in small.users}
    shown = tables.one_query(small, small.users[0].user.id)
    assert shown["gold"].nunique() == 1 and NO_EDIT in set(shown["arm"])
    with pytest.raises(UserError, match="There is no user 'nobody'; choose among"):
        tables.one_query(small, "nobody")


def test_two_halves_need_two_users() -> None:
    with pytest.raises(UserError, match="two halves need 2 or more"):
        real.run(small_profile(), "demo:decoder:0", POSTS, users=1)


# --- tables of made-up answers --------------------------------------------------------------------


def made_up(nats: dict[str, Sequence[float]], answers: dict[str, Sequence[str]]) -> RealRun:
    """One query for each of some users: what every arm gives it, and answers in words."""
    size = len(next(iter(nats.values())))
    parts = []
    for arm, values in nats.items():
        said = list(answers.get(arm, [f"answer {at}" for at in range(size)]))
        part = {"arm": arm, "draw": 0, "user": [f"u{at:02}" for at in range(size)], NATS: values}
        part |= {"query": [str(at) for at in range(size)], "answer": said, "source": "s"}
        part["empty"] = [float(not text) for text in said]
        part["refusal"] = [float(is_refusal(text)) for text in said]
        part["echo"] = [float(text == "s") for text in said]
        zeros = ("rouge1", "rouge1 stripped", "preamble", "words")
        parts.append(pd.DataFrame({**part, **dict.fromkeys(zeros, 0.0), "gold": "g"}))
    arms = pd.concat(parts, ignore_index=True)
    return RealRun(cast(Any, SimpleNamespace(task=POSTS)), cast(Any, ()), arms, {})


USERS = np.linspace(-4, -3, 12)


def test_an_edit_that_silences_or_repeats_itself_carries_a_warning() -> None:
    paper, fitted, _, _, gold = EDITS.values()
    run = made_up(
        {NO_EDIT: USERS, paper: USERS - 0.8, fitted: USERS + 0.01, gold: USERS + 0.3},
        {
            paper: [""] * 12,
            fitted: ["I'm sorry, but I can't assist with that."] * 12,
        },
    )
    assert tables.warning(run, NO_EDIT) == tables.warning(run, gold) == ""
    repeating = made_up({NO_EDIT: USERS, gold: USERS}, {gold: ["s"] * 2 + ["other"] * 10})
    assert tables.warning(repeating, gold).startswith("17% repeat the query (no edit: 0%)")
    told = tables.warning(run, paper)
    assert "the users' own texts are less likely" in told
    assert "100% empty (no edit: 0%)" in told
    assert tables.warning(run, fitted) == (
        "100% refusals (no edit: 0%); 100% of the answers are one"
    )
    said = tables.conclusions(run)
    assert said[0].startswith(f"{paper}: below no edit, -0.80 [-0.80, -0.80]")
    assert "Not usable: the users' own texts" in said[0]
    assert said[2] == f"{gold}: above no edit, +0.30 [+0.30, +0.30] {NATS} over 12 users."


def test_controls_are_differences_over_users() -> None:
    paper, fitted, history, _, gold = EDITS.values()
    run = made_up(
        {
            NO_EDIT: USERS,
            WRONG: USERS - 0.1,
            paper: USERS - 0.5,
            history: USERS + 0.2,
            OWN_GROUP.format(edit=history): USERS + 0.2 + np.tile([0.1, -0.1], 6),
            gold: USERS + 0.3,
            f"{history}; {WRONG}": USERS - 0.1 + 0.2 - 0.05,
            RANDOM: USERS,
        },
        {},
    )
    table = tables.contrasts(run).set_index("question")
    assert table.at[f"{gold} minus {RANDOM}", NATS] == pytest.approx(0.3)
    assert table.at[f"{history}: own half's minus the other half's", "interval"] == "includes 0"
    assert table.at["own history minus another user's, no edit", NATS] == pytest.approx(0.1)
    added = table.loc[f"{history}: what it adds to the own history's worth"]
    assert added[NATS] == pytest.approx(0.05) and added["interval"] == "above 0"
    assert not any(fitted in question for question in table.index)  # an arm that was not made


def test_the_side_of_an_interval_is_what_it_says() -> None:
    ends = [(-2, -1), (-1, 1), (1, 2)]
    assert [tables.side(Estimate(0, low, high, 9, 1)) for low, high in ends] == [
        "below 0", "includes 0", "above 0",
    ]  # fmt: skip
