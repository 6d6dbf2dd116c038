from __future__ import annotations

from dataclasses import replace

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.lamp import (
    HistoryItem,
    Sample,
    User,
    check_disjoint,
    find_split,
    group_samples_into_users,
    load_users,
    split_users_by_hash,
)
from tests.lamp.helpers import SHARED_DATA, needs_shared_data, sample, user

A = [(f"film {i}", "comedy") for i in range(6)]
B = [(f"other {i}", "action") for i in range(6)]


def ids(users: list[User]) -> list[list[str]]:
    return [[query.id for query in u.queries] for u in users]


def test_identical_profiles_are_one_user_in_order_of_appearance() -> None:
    samples = [
        sample("LaMP_3", "1", [("a", "5"), ("b", "4")], "q1"),
        sample("LaMP_3", "2", [("a", "5")], "q2"),
        sample("LaMP_3", "3", [("a", "5"), ("b", "4")], "q3"),
        sample("LaMP_3", "4", [("b", "4"), ("a", "5")], "q4"),
    ]
    users = group_samples_into_users(samples, "LaMP_3")
    assert ids(users) == [["1", "3"], ["2"], ["4"]]
    assert [u.id for u in users] == ["1", "2", "4"]
    assert users[0].history == samples[0].profile
    assert users[0].task == "LaMP_3"


def test_movie_profiles_that_overlap_by_half_are_one_user() -> None:
    samples = [
        sample("LaMP_2", "1", A[:5]),
        sample("LaMP_2", "2", B),
        sample("LaMP_2", "3", A[1:]),
    ]
    assert ids(group_samples_into_users(samples, "LaMP_2")) == [["1", "3"], ["2"]]


def test_two_profiles_that_each_leave_out_one_item_still_connect() -> None:
    three_of_four = [A[:3], A[1:4]]  # Jaccard index 2/4
    samples = [sample("LaMP_2", str(i), p) for i, p in enumerate(three_of_four)]
    assert ids(group_samples_into_users(samples, "LaMP_2")) == [["0", "1"]]


def test_one_popular_film_does_not_merge_two_movie_users() -> None:
    samples = [sample("LaMP_2", "1", A), sample("LaMP_2", "2", [A[0], *B])]
    assert len(group_samples_into_users(samples, "LaMP_2")) == 2
    assert len(group_samples_into_users(samples, "LaMP_2", min_overlap=0.01)) == 1


def test_the_same_film_with_another_tag_is_no_overlap() -> None:
    other_tags = [(text, "action") for text, _ in A]
    samples = [sample("LaMP_2", "1", A), sample("LaMP_2", "2", other_tags)]
    assert len(group_samples_into_users(samples, "LaMP_2", min_overlap=0.01)) == 2


def test_overlap_is_transitive_as_connected_components_are() -> None:
    chain = [A[:4], A[1:5], A[2:6]]
    samples = [sample("LaMP_2", str(i), p) for i, p in enumerate(chain)]
    assert len(set(chain[0]) & set(chain[2])) * 2 < len(set(chain[0]) | set(chain[2]))
    assert ids(group_samples_into_users(samples, "LaMP_2")) == [["0", "1", "2"]]


def test_a_merged_history_is_the_union_with_ids_of_sample_and_item() -> None:
    samples = [sample("LaMP_2", "1", A[:5]), sample("LaMP_2", "2", A[1:])]
    [merged] = group_samples_into_users(samples, "LaMP_2")
    assert [(item.text, item.label) for item in merged.history] == A
    assert [item.id for item in merged.history] == ["1:10", "1:11", "1:12", "1:13", "1:14", "2:24"]


def test_a_merged_history_never_holds_a_query_of_its_user() -> None:
    """Sample 1 asks about film 5, which sample 2 lists with its tag: that would leak the gold."""
    samples = [
        sample("LaMP_2", "1", A[:5], "film 5"),
        sample("LaMP_2", "2", A[1:], "film 0"),
    ]
    [merged] = group_samples_into_users(samples, "LaMP_2")
    assert [item.text for item in merged.history] == ["film 1", "film 2", "film 3", "film 4"]


def test_a_user_whose_whole_history_is_asked_keeps_a_history_and_fewer_questions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Four films, all asked: every item of the union is the gold of some question."""
    films = A[:4]
    samples = [
        sample("LaMP_2", str(i), [film for film in films if film != asked], asked[0])
        for i, asked in enumerate(films)
    ]
    [merged] = group_samples_into_users(samples, "LaMP_2")
    assert [query.id for query in merged.queries] == ["0", "1", "2"]
    assert [(item.text, item.label) for item in merged.history] == [films[3]]
    assert "questions ['3'] are not asked" in caplog.text


def test_samples_as_users_keep_their_own_profile_and_question() -> None:
    samples = [sample("LaMP_2", "1", A[:5], "film 5"), sample("LaMP_2", "2", A[1:], "film 0")]
    users = group_samples_into_users(samples, "LaMP_2", grouping="samples")
    assert [(u.id, u.history, u.queries) for u in users] == [
        (s.query.id, s.profile, (s.query,)) for s in samples
    ]


def named(task: str, sample_id: str, user_id: str | None, query: str = "q") -> Sample:
    return replace(sample(task, sample_id, A[: 2 + int(sample_id)], query), user_id=user_id)


def test_names_in_the_file_count_more_than_profiles() -> None:
    samples = [named("LaMP_2", "1", "u7"), named("LaMP_2", "2", "u9"), named("LaMP_2", "3", "u7")]
    users = group_samples_into_users(samples, "LaMP_2")
    assert ids(users) == [["1", "3"], ["2"]] and [u.id for u in users] == ["u7", "u9"]
    by_profile = group_samples_into_users(samples, "LaMP_2", grouping="overlap")
    assert ids(by_profile) == [["1", "2", "3"]] and by_profile[0].id == "1"


def test_names_on_some_records_only_are_refused() -> None:
    samples = [named("LaMP_2", "1", "u7"), named("LaMP_2", "2", None)]
    with pytest.raises(UserError, match="'1' of LaMP_2 has a user_id and record '2' has none"):
        group_samples_into_users(samples, "LaMP_2")
    with pytest.raises(UserError, match="do not name their users"):
        group_samples_into_users(samples[1:], "LaMP_2", grouping="known")


def test_the_identical_rule_can_be_asked_for_on_movies() -> None:
    samples = [sample("LaMP_2", "1", A[:5]), sample("LaMP_2", "2", A[1:])]
    assert len(group_samples_into_users(samples, "LaMP_2", grouping="identical")) == 2


@pytest.mark.parametrize("value", [0.0, -1.0, 1.5])
def test_an_overlap_outside_its_range_raises(value: float) -> None:
    with pytest.raises(UserError, match="min_overlap"):
        group_samples_into_users([], "LaMP_2", min_overlap=value)


def test_a_hash_split_is_complete_disjoint_and_about_the_asked_size() -> None:
    users = [user(str(i)) for i in range(2000)]
    parts = split_users_by_hash(users, {"train": 0.6, "dev": 0.2, "test": 0.2}, "v1")
    names = {part: {u.id for u in members} for part, members in parts.items()}
    assert sum(map(len, parts.values())) == 2000
    assert len(names["train"] | names["dev"] | names["test"]) == 2000
    assert abs(len(parts["train"]) - 1200) < 80 and abs(len(parts["dev"]) - 400) < 70


def test_a_users_part_depends_on_neither_order_nor_company_but_on_the_salt() -> None:
    users = [user(str(i)) for i in range(200)]
    fractions = {"train": 0.5, "test": 0.5}
    train = {u.id for u in split_users_by_hash(users, fractions, "v1")["train"]}
    some = split_users_by_hash(users[::-3], fractions, "v1")["train"]
    assert {u.id for u in some} == train & {u.id for u in users[::-3]}
    assert {u.id for u in split_users_by_hash(users, fractions, "v2")["train"]} != train


def test_the_hash_split_is_the_same_on_every_machine() -> None:
    users = [user(str(i)) for i in range(10)]
    parts = split_users_by_hash(users, {"train": 0.5, "test": 0.5}, "v1")
    assert "".join(u.id for u in parts["train"]) == "1267"


@pytest.mark.parametrize("fractions", [{"a": 0.5}, {"a": 1.5, "b": -0.5}, {}])
def test_shares_that_are_no_split_raise(fractions: dict[str, float]) -> None:
    with pytest.raises(UserError, match="sum to 1"):
        split_users_by_hash([user("1")], fractions, "s")


def test_disjoint_sets_pass_and_equal_histories_raise_whatever_their_ids() -> None:
    group = [user("1"), user("2")]
    check_disjoint(group, [user("3")])
    check_disjoint(group, [])
    twin = User("99", "LaMP_3", group[1].history, user("99").queries)
    with pytest.raises(UserError, match="'2' of the group is also user '99'"):
        check_disjoint(group, [user("3"), twin])


def movie_user(user_id: str, contents: list[tuple[str, str]]) -> User:
    history = tuple(HistoryItem(f"{user_id}{i}", t, tag) for i, (t, tag) in enumerate(contents))
    return User(user_id, "LaMP_2", history, user(user_id).queries)


def test_movie_users_are_compared_by_overlap() -> None:
    group = [movie_user("1", B), movie_user("2", A[:5])]
    check_disjoint(group, [movie_user("3", [A[0], *B[:1]])])
    with pytest.raises(UserError, match="'2' of the group is also user '3'"):
        check_disjoint(group, [movie_user("3", A[1:])])
    check_disjoint(group, [movie_user("3", A[1:])], grouping="identical")


@needs_shared_data
def test_distinct_real_movie_users_stay_apart_by_default_and_merge_on_any_overlap() -> None:
    questions, _ = find_split(SHARED_DATA / "lamp_like", "LaMP_2", "train")
    assert len(load_users(questions, None, "LaMP_2")) == 102
    assert len(load_users(questions, None, "LaMP_2", min_overlap=1e-9)) == 2
