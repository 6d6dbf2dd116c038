"""Users: rebuilt from samples, divided, kept apart, and how sure that is."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lib.cli import main
from chameleon_lib.core.task import HistoryItem, User, official_input
from chameleon_lib.data.lamp import Sample, find_split, write_lamp
from chameleon_lib.data.users import (
    DECLARATION,
    SALT,
    Choice,
    check_disjoint,
    declare,
    grouping_report,
    load_parts,
    load_users,
    overlaps,
    read_choice,
    sample_groups,
    split_users_by_hash,
    users_by_part,
)
from chameleon_lib.errors import UserError
from tests.data.helpers import (
    SHARED_DATA,
    needs_shared_data,
    raw_item,
    sample,
    user,
    write_outputs,
    write_questions,
)
from tests.data.planted import agreement, samples_of, viewers

A = [(f"film {i}", "comedy") for i in range(6)]
B = [(f"other {i}", "action") for i in range(6)]


def users_of(
    samples: list[Sample], task: str = "LaMP_2", choice: Choice | None = None
) -> list[User]:
    return users_by_part(samples, task, {"all": 1.0}, SALT, choice or Choice())["all"]


def ids(users: list[User]) -> list[list[str]]:
    return [[query.id for query in u.queries] for u in users]


def test_identical_profiles_are_one_user_whatever_the_order_of_their_items() -> None:
    samples = [
        sample("LaMP_3", "1", [("a", "5"), ("b", "4")], "q1"),
        sample("LaMP_3", "2", [("a", "5")], "q2"),
        sample("LaMP_3", "3", [("a", "5"), ("b", "4")], "q3"),
        sample("LaMP_3", "4", [("b", "4"), ("a", "5")], "q4"),
    ]
    users = users_of(samples, "LaMP_3")
    assert ids(users) == [["1", "3", "4"], ["2"]]
    assert [item.text for item in users[0].history] == ["a", "b"]  # the order of the first
    assert [u.id for u in users] == ["1", "2"]
    assert users[0].history == samples[0].profile
    assert users[0].task == "LaMP_3"


def test_one_popular_film_does_not_merge_two_movie_users() -> None:
    samples = [sample("LaMP_2", "1", A), sample("LaMP_2", "2", [A[0], *B])]
    assert len(users_of(samples)) == 2
    assert len(users_of(samples, "LaMP_2", Choice(min_overlap=0.01))) == 1


def test_overlap_is_transitive_as_connected_components_are() -> None:
    chain = [A[:4], A[1:5], A[2:6]]
    samples = [sample("LaMP_2", str(i), p) for i, p in enumerate(chain)]
    assert len(set(chain[0]) & set(chain[2])) * 2 < len(set(chain[0]) | set(chain[2]))
    assert ids(users_of(samples)) == [["0", "1", "2"]]


def test_a_merged_history_is_the_union_with_ids_of_sample_and_item() -> None:
    samples = [sample("LaMP_2", "1", A[:5]), sample("LaMP_2", "2", A[1:])]
    [merged] = users_of(samples)
    assert [(item.text, item.label) for item in merged.history] == A
    assert [item.id for item in merged.history] == ["1:10", "1:11", "1:12", "1:13", "1:14", "2:24"]


def test_a_merged_history_never_holds_a_query_of_its_user() -> None:
    """Sample 1 asks about film 5, which sample 2 lists with its tag: that would leak the gold."""
    samples = [
        sample("LaMP_2", "1", A[:5], "film 5"),
        sample("LaMP_2", "2", A[1:], "film 0"),
    ]
    [merged] = users_of(samples)
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
    [merged] = users_of(samples)
    assert [query.id for query in merged.queries] == ["0", "1", "2"]
    assert [(item.text, item.label) for item in merged.history] == [films[3]]
    assert "questions ['3'] are not asked" in caplog.text


def test_samples_as_users_keep_their_own_profile_and_question() -> None:
    samples = [sample("LaMP_2", "1", A[:5], "film 5"), sample("LaMP_2", "2", A[1:], "film 0")]
    users = users_of(samples, choice=Choice("samples"))
    assert [(u.id, u.history, u.queries) for u in users] == [
        (s.query.id, s.profile, (s.query,)) for s in samples
    ]


def named(task: str, sample_id: str, user_id: str | None, query: str = "q") -> Sample:
    return replace(sample(task, sample_id, A[: 2 + int(sample_id)], query), user_id=user_id)


def test_names_in_the_file_count_more_than_profiles() -> None:
    samples = [named("LaMP_2", "1", "u7"), named("LaMP_2", "2", "u9"), named("LaMP_2", "3", "u7")]
    users = users_of(samples)
    assert ids(users) == [["1", "3"], ["2"]] and [u.id for u in users] == ["u7", "u9"]
    nameless = [replace(one, user_id=None) for one in samples]
    by_profile = users_of(nameless)
    assert ids(by_profile) == [["1", "2", "3"]] and by_profile[0].id == "1"


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
    check_disjoint(group, [movie_user("3", A[1:])], min_overlap=0.9)


@needs_shared_data
def test_distinct_real_movie_users_stay_apart_by_default_and_merge_on_any_overlap() -> None:
    questions, _ = find_split(SHARED_DATA / "lamp_like", "LaMP_2", "train")
    assert len(load_users(questions, None, "LaMP_2")) == 102
    assert len(load_users(questions, None, "LaMP_2", Choice(min_overlap=1e-9))) == 2


def test_overlaps_are_those_of_the_definition() -> None:
    rng = random.Random(0)
    universe = [(f"film {i}", "comedy") for i in range(30)]
    profiles = [frozenset(rng.sample(universe, rng.randint(0, 12))) for _ in range(40)]
    for least in (0.0, 0.3):
        expected = [
            (i, j, len(a & b) / len(a | b))
            for i, a in enumerate(profiles)
            for j, b in enumerate(profiles)
            if i < j and a & b and len(a & b) / len(a | b) >= least
        ]
        found = list(overlaps(profiles, least))
        assert [(i, j) for i, j, _ in found] == [(i, j) for i, j, _ in expected]
        assert [x for _, _, x in found] == pytest.approx([x for _, _, x in expected])


FILMS = [(f"film {i}", "comedy") for i in range(10)]
OTHERS = [(f"other {i}", "action") for i in range(10)]


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_users_are_found_again(seed: int) -> None:
    """As many people and samples as in LaMP-2 dev; profiles leave out the film that is asked."""
    samples = samples_of(viewers(323, seed), seed)
    groups = sample_groups(samples, "LaMP_2")
    assert 600 < len(samples) < 800 and len(groups) == 323
    assert agreement(samples, groups) == (1.0, 1.0)
    report = grouping_report(samples)
    assert (report.samples, report.users) == (len(samples), 323)
    assert report.could_merge == 0 and 0 < report.could_split < 0.1 * len(samples)


@pytest.mark.parametrize(("keep", "recall", "unsure"), [(0.9, 0.98, 0.3), (0.8, 0.92, 0.9)])
def test_profiles_that_differ_more_are_missed_before_they_are_confused(
    keep: float, recall: float, unsure: float
) -> None:
    samples = samples_of(viewers(323, 0), 0, keep)
    precision, found = agreement(samples, sample_groups(samples, "LaMP_2"))
    assert precision == 1.0 and recall <= found < 1.0
    report = grouping_report(samples)
    assert report.could_split <= unsure * len(samples) and report.could_merge > 0


@needs_shared_data
def test_real_film_lovers_are_found_again() -> None:
    """Up to three leave-one-out samples of each of 102 known users: real films, real tags."""
    questions, outputs = find_split(SHARED_DATA / "lamp_like", "LaMP_2", "train")
    users = load_users(questions, outputs, "LaMP_2")
    rng, samples = random.Random(0), []
    for n, one in enumerate(users):
        films = [(item.text, str(item.label)) for item in one.history]
        films.append((one.queries[0].text, str(one.queries[0].gold)))
        for k, film in enumerate(rng.sample(films, min(len(films) - 1, 3))):
            rest = [other for other in films if other != film]
            samples.append(sample("LaMP_2", f"{n}/{k}", rest, film[0]))
    assert agreement(samples, sample_groups(samples, "LaMP_2")) == (1.0, 1.0)
    lax = agreement(samples, sample_groups(samples, "LaMP_2", min_overlap=0.3))
    assert lax[0] < 0.8 and lax[1] == 1.0


def test_the_report_counts_what_it_says() -> None:
    samples = [
        sample("LaMP_2", "0", FILMS[:8]),  # with 1: 7 of 9
        sample("LaMP_2", "1", FILMS[1:9]),
        sample("LaMP_2", "2", [*FILMS[4:8], *OTHERS[:2]]),  # with 0: 4 of 10, would join at 0.3
        sample("LaMP_2", "3", [("x", "comedy"), ("y", "comedy"), ("z", "comedy")]),
        sample("LaMP_2", "4", [("w", "comedy"), ("y", "comedy"), ("z", "comedy")]),  # 2 of 4
        sample("LaMP_2", "5", OTHERS[5:]),  # with nobody
        sample("LaMP_2", "6", OTHERS[5:][::-1] + [FILMS[9]]),  # with 5: 5 of 6
    ]
    report = grouping_report(samples)
    assert (report.samples, report.users, report.alone, report.largest) == (7, 4, 1, 2)
    assert (report.could_merge, report.could_split) == (3, 2)
    assert "7 samples are 4 users by profiles that overlap by at least 0.5" in report.sentence()
    assert grouping_report([]).users == 0


def test_samples_as_users_stay_with_their_person() -> None:
    samples = samples_of(viewers(60, 3), 3)
    shares = {"train": 0.5, "test": 0.5}
    rebuilt = users_by_part(samples, "LaMP_2", shares, "salt", Choice())
    singles = users_by_part(samples, "LaMP_2", shares, "salt", Choice("samples"))
    for part in shares:
        asked = {query.id for u in rebuilt[part] for query in u.queries}
        assert asked == {u.id for u in singles[part]} and len(asked) > len(rebuilt[part])
    assert sum(len(users) for users in singles.values()) == len(samples)


def test_a_declaration_is_read_back_and_leaves_other_tasks_alone(tmp_path: Path) -> None:
    assert read_choice(tmp_path, "LaMP_2") == Choice("rebuilt", 0.5)
    declare(tmp_path, "LaMP-2", Choice("samples", 0.6))
    declare(tmp_path, "LaMP_7", Choice("samples"))
    assert read_choice(tmp_path, "LaMP_2") == Choice("samples", 0.6)
    assert read_choice(tmp_path, "LaMP_7") == Choice("samples")
    assert read_choice(tmp_path, "LaMP_3") == Choice()
    assert [path.name for path in tmp_path.iterdir()] == [DECLARATION]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"LaMP_2": 3}', '{"LaMP_2": {"users": "people"}}',
     '{"LaMP_2": {"min_overlap": 0}}', '{"LaMP_2": {"min_overlap": "half"}}',
     '{"LaMP_2": {"overlap": 0.5}}'],
)  # fmt: skip
def test_a_declaration_that_cannot_be_understood_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / DECLARATION).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"{DECLARATION} .*delete it") as caught:
        read_choice(tmp_path, "LaMP_2")
    assert "\n" not in str(caught.value)


def movies(folder: Path) -> Path:
    samples = samples_of(viewers(20, 5), 5)
    users = users_of(samples, choice=Choice("samples"))
    write_lamp(users, folder / "LaMP_2" / "new" / "dev", "dev")
    return folder


def test_the_command_reports_and_declares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "users", "--data", str(movies(tmp_path))]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "users, profiles overlapping by 0.5 or more" in out and " 20 " in out
    assert "takes LaMP_2 users as rebuilt (0.5)." in out and not (tmp_path / DECLARATION).exists()
    assert main([*words, "--declare", "samples", "--min-overlap", "0.6"]) == 0
    assert read_choice(tmp_path, "LaMP_2") == Choice("samples", 0.6)
    capsys.readouterr()
    assert main(words) == 0
    assert "overlapping by 0.6 or more" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["LaMP_3", "LaMP_7"])
@pytest.mark.parametrize("whole", [True, False])
def test_ranked_files_have_as_many_users_as_plain_ones_and_say_so(
    task: str, whole: bool, tmp_path: Path
) -> None:
    """LaMP's own ranking sorts the items of a history anew for every question."""
    records, golds = [], {}
    for n in range(24):
        label = "5" if task == "LaMP_3" else None
        items = [raw_item(task, f"{n}{i}", f"text {i} of {n}", label) for i in range(6)]
        if label:
            items[2]["score"] = "1"
        for k in (0, 1):
            name = f"{n}-{k}"
            records.append({
                "id": name, "input": official_input(task, f"query {name}"),
                "profile": items[3 * k :] + items[: 3 * k],
            })  # fmt: skip
            golds[name] = label or "said"
    folder = tmp_path / task
    folder.mkdir()
    write_questions(folder / "dev_questions.json", records)
    write_outputs(folder / "dev_outputs.json", task, golds)
    limits = dict.fromkeys(("train", "dev", "test"), 99 if whole else 1)
    found = load_parts(tmp_path, task, limits)
    users = [user for part in found.users.values() for user in part]
    assert len(users) == 24 and {len(user.queries) for user in users} == {2}
    if whole:
        assert "24 users list one history in several orders" in found.source
        assert users[0].history[0].text.startswith("text 0 of")
    check_disjoint(found.users["train"], found.users["test"])
