from __future__ import annotations

import random
from pathlib import Path

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit.cli import main
from chameleon_lib.lamp import find_split, load_users, write_lamp
from chameleon_lib.lamp.grouping import (
    DECLARATION,
    Choice,
    declare,
    grouping_report,
    read_choice,
    users_by_part,
)
from chameleon_lib.lamp.users import group_samples_into_users, sample_groups
from tests.lamp.helpers import SHARED_DATA, needs_shared_data, sample
from tests.lamp.planted import agreement, samples_of, viewers

A = [(f"film {i}", "comedy") for i in range(10)]
B = [(f"other {i}", "action") for i in range(10)]


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


def test_the_rule_stands_between_two_that_fail() -> None:
    samples = samples_of(viewers(323, 0), 0)
    lax = agreement(samples, sample_groups(samples, "LaMP_2", min_overlap=0.1))
    strict = agreement(samples, sample_groups(samples, "LaMP_2", min_overlap=0.9))
    assert lax[0] < 0.9 and lax[1] == 1.0
    assert strict[0] == 1.0 and strict[1] < 0.95


@needs_shared_data
def test_real_film_lovers_are_found_again() -> None:
    """Up to three leave-one-out samples of each of 102 known users: real films, real tags."""
    questions, outputs = find_split(SHARED_DATA / "lamp_like", "LaMP_2", "train")
    users = load_users(questions, outputs, "LaMP_2", grouping="identical")
    rng, samples = random.Random(0), []
    for n, user in enumerate(users):
        films = [(item.text, str(item.label)) for item in user.history]
        films.append((user.queries[0].text, str(user.queries[0].gold)))
        for k, film in enumerate(rng.sample(films, min(len(films) - 1, 3))):
            rest = [other for other in films if other != film]
            samples.append(sample("LaMP_2", f"{n}/{k}", rest, film[0]))
    assert agreement(samples, sample_groups(samples, "LaMP_2")) == (1.0, 1.0)
    lax = agreement(samples, sample_groups(samples, "LaMP_2", min_overlap=0.3))
    assert lax[0] < 0.8 and lax[1] == 1.0


def test_the_report_counts_what_it_says() -> None:
    samples = [
        sample("LaMP_2", "0", A[:8]),  # with 1: 7 of 9
        sample("LaMP_2", "1", A[1:9]),
        sample("LaMP_2", "2", [*A[4:8], *B[:2]]),  # with 0: 4 of 10, would join at 0.3
        sample("LaMP_2", "3", [("x", "comedy"), ("y", "comedy"), ("z", "comedy")]),
        sample("LaMP_2", "4", [("w", "comedy"), ("y", "comedy"), ("z", "comedy")]),  # 2 of 4
        sample("LaMP_2", "5", B[5:]),  # with nobody
        sample("LaMP_2", "6", B[5:][::-1] + [A[9]]),  # with 5: 5 of 6
    ]
    report = grouping_report(samples)
    assert (report.samples, report.users, report.alone, report.largest) == (7, 4, 1, 2)
    assert report.bands == ((0.0, 0.3, 0), (0.3, 0.5, 1), (0.5, 0.7, 2), (0.7, 1.0, 4))
    assert (report.could_merge, report.could_split) == (3, 2)
    assert (report.chained, report.thin) == (0, 2)
    assert "7 samples are 4 users by profiles that overlap by at least 0.5" in report.sentence()
    chain = [sample("LaMP_2", str(i), A[i : i + 4]) for i in range(3)]
    assert grouping_report(chain).chained == 3
    assert grouping_report([]).users == 0


def test_samples_as_users_stay_with_their_person() -> None:
    samples = samples_of(viewers(60, 3), 3)
    shares = {"train": 0.5, "test": 0.5}
    rebuilt = users_by_part(samples, "LaMP_2", shares, "salt", Choice())
    singles = users_by_part(samples, "LaMP_2", shares, "salt", Choice("samples"))
    for part in shares:
        asked = {query.id for user in rebuilt[part] for query in user.queries}
        assert asked == {user.id for user in singles[part]} and len(asked) > len(rebuilt[part])
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
    users = group_samples_into_users(samples, "LaMP_2", grouping="samples")
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


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ([], "The following arguments are required: --data"),
        (["--data", "nowhere"], "The data folder nowhere does not exist"),
        (["--data", ".", "--task", "LaMP_9"], "Unknown task 'LaMP_9'"),
        (["--data", ".", "--min-overlap", "2"], "Argument --min-overlap: '2' is not a number"),
        (["--data", ".", "--declare", "people"], "Argument --declare: invalid choice: 'people'"),
    ],
)
def test_misuse_of_the_command_is_one_sentence(
    words: list[str], start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "users", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(start) and len(error.splitlines()) == 1
