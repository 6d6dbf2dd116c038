"""A large file gives the users of a run whole, the others slim, and never more than fits memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lib.core.task import HistoryItem, Query, User, get_task, official_input
from chameleon_lib.data.floors import floors_for
from chameleon_lib.data.lamp import load_samples, write_lamp
from chameleon_lib.data.users import SALT, Choice, declare, slimmer, users_by_part
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.studies.data import load_task_data
from tests.data.helpers import raw_item, raw_sample, sample, write_outputs, write_questions

LIMITS = {"train": 3, "dev": 1, "test": 2}
SHARES = {"train": 0.4, "dev": 0.1, "test": 0.5}


def people(n: int, queries: int = 1) -> list[User]:
    """Users whose histories differ, of one or more queries each."""
    return [
        User(
            f"{u}0", "LaMP_3",
            tuple(
                HistoryItem(f"{u}{i}", f"text {i} of {u}", str(1 + (u + i) % 5)) for i in range(4)
            ),
            tuple(
                Query(f"{u}{q}", f"query {q} of {u}", official_input("LaMP_3", f"query {q} of {u}"),
                      str(1 + u % 5))
                for q in range(queries)
            ),
        )
        for u in range(1, n + 1)
    ]  # fmt: skip


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("users", ["rebuilt", "samples"])
def test_the_first_users_of_every_part_are_those_of_the_whole_file(
    tmp_path: Path, named: bool, users: str
) -> None:
    questions, outputs = write_lamp(people(40, 3), tmp_path, "dev", named=named)
    assert outputs is not None
    choice = Choice(users) if users == "samples" else Choice()
    slim = slimmer(get_task("LaMP_3"), LIMITS, [SHARES])
    whole, less = (
        users_by_part(
            load_samples(questions, outputs, "LaMP_3", slim=how), "LaMP_3", SHARES, SALT, choice
        )
        for how in (None, slim)
    )
    texts = 0
    for part, most in LIMITS.items():
        assert less[part][:most] == whole[part][:most] and len(less[part]) == len(whole[part])
        assert [u.id for u in less[part]] == [u.id for u in whole[part]]
        texts += sum(item.text.startswith("text") for u in less[part] for item in u.history)
    assert 0 < texts <= 4 * sum(LIMITS.values()) * (3 if users == "samples" else 1)
    together = [[u for part in found.values() for u in part] for found in (whole, less)]
    for name, baseline in floors_for("LaMP_3").items():
        answers = [baseline(found, whole["train"]) for found in together]
        assert answers[0] == answers[1], name


def test_named_users_whose_histories_grow_keep_their_counts(tmp_path: Path) -> None:
    """The time-based split: a sample's query sits in the profile of the user's next one."""
    records = []
    for u in range(12):
        for step in (2, 4, 5):
            record = raw_sample("LaMP_3", f"{u}{step}", f"text {step} of {u} ")
            record["user_id"] = f"A{u}"
            record["profile"] = [
                raw_item("LaMP_3", f"{u}{i}", f"text {i} of {u}", str(1 + i % 5))
                for i in range(step)
            ]
            records.append(record)
    questions = write_questions(tmp_path / "q.json", records)
    outputs = write_outputs(tmp_path / "o.json", "LaMP_3", {r["id"]: "3" for r in records})
    slim = slimmer(get_task("LaMP_3"), {"all": 2}, [{"all": 1.0}])
    found = [
        users_by_part(load_samples(questions, outputs, "LaMP_3", slim=s), "LaMP_3", {"all": 1.0},
                      SALT, Choice())["all"]
        for s in (None, slim)
    ]  # fmt: skip
    assert found[1][:2] == found[0][:2]
    for one, other in zip(*found, strict=True):
        assert [i.label for i in one.history] == [i.label for i in other.history]
        assert [(q.id, q.gold) for q in one.queries] == [(q.id, q.gold) for q in other.queries]
    assert not any(item.text.startswith("text") for u in found[1][2:] for item in u.history)
    del records[5]["user_id"]
    write_questions(questions, records)
    slim = slimmer(get_task("LaMP_3"), {"all": 2}, [{"all": 1.0}])
    with pytest.raises(UserError, match="Record '02' of LaMP_3 has a user_id and record '15' has"):
        load_samples(questions, outputs, "LaMP_3", slim=slim)


def test_texts_of_all_users_stay_where_they_count() -> None:
    one = sample("LaMP_2", "1", [("a text", "comedy")])
    for task in ("LaMP_2", "LaMP_4", "LaMP_7"):
        assert slimmer(get_task(task), {"all": 0}, [{"all": 1.0}])(one) is one
    assert slimmer(get_task("LaMP_3"), {"all": 0}, [{"all": 1.0}])(one) != one


def test_a_run_on_files_has_the_users_that_it_would_have_without_a_cap(tmp_path: Path) -> None:
    write_lamp(people(60), tmp_path / "LaMP_3", "dev")
    others = [replace(user, history=user.history[1:]) for user in people(50)]
    write_lamp(others, tmp_path / "LaMP_3", "train")
    profile = replace(PROFILES["laptop"], n_train=1000, n_dev=1000, n_test=1000)
    for declared in (False, True):
        if declared:
            declare(tmp_path, "LaMP_3", Choice("samples"))
        every = load_task_data(profile, "LaMP_3", str(tmp_path))
        few = load_task_data(profile, "LaMP_3", str(tmp_path), 4)
        assert few.train == every.train[:4] and few.test == every.test[:4]
        assert few.dev == every.dev[:4] and few.source == every.source
        assert [u.id for u in few.everyone] == [u.id for u in every.everyone]


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="resident memory is read from /proc"
)

# Resident memory is that of a process: a fresh one, so that nothing else of this one counts.
LOAD = """
import sys
from pathlib import Path
from chameleon_lib.kit.profiles import get_profile
from chameleon_lib.studies.data import load_task_data
import chameleon_lib.studies.s01_per_user, chameleon_lib.studies.s03_group_size
import chameleon_lib.studies.s05_selections

def resident(name):
    [line] = [x for x in open("/proc/self/status") if x.startswith(name)]
    return int(line.split()[1]) * 1024

before = resident("VmRSS")
data = load_task_data(get_profile(sys.argv[2]), "LaMP_3", sys.argv[1], int(sys.argv[3]))
sizes = [len(part) for part in (data.train, data.dev, data.test)]
print(len(data.everyone), *sizes, before, resident("VmHWM"))
"""


def loaded(folder: Path, profile: str, users: int) -> list[int]:
    """Users, those of each part, resident bytes before, and the most there were."""
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), profile, str(users)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [int(word) for word in result.stdout.split()]


def write_lamp_3(folder: Path, target: int) -> int:
    """A dev split of about `target` bytes, LaMP-3 shaped, every sample a user of its own."""
    questions = folder / "LaMP_3" / "dev" / "dev_questions.json"
    questions.parent.mkdir(parents=True)
    record = raw_sample("LaMP_3", "2")
    record["profile"] = [
        raw_item("LaMP_3", str(i), f"review {i} " + "so many words " * 50, str(1 + i % 5))
        for i in range(190)
    ]
    before, after = json.dumps(record | {"id": "ID"}).split('"ID"')
    count = size = 0
    with questions.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        while size < target:
            own = after.replace("review 7 ", f"review of {count} ", 1)
            text = f'{", " if count else ""}{before}"21{count}"{own}'
            file.write(text)
            count, size = count + 1, size + len(text)
        file.write("]")
    golds = {f"21{at}": str(1 + at % 5) for at in range(count)}
    write_outputs(questions.with_name("dev_outputs.json"), "LaMP_3", golds)
    return count


@needs_proc
def test_loading_60_mb_for_a_few_users_takes_a_few_resident_mb(tmp_path: Path) -> None:
    count = write_lamp_3(tmp_path, 60_000_000)
    everyone, train, _, test, before, most = loaded(tmp_path, "demo-data", 20)
    assert (everyone, train, test) == (count, 20, 20)
    assert most - before < 45_000_000


@needs_proc
@pytest.mark.slow
def test_a_file_of_lamp_3_dev_size_is_loaded_for_a_notebook_below_500_mb(tmp_path: Path) -> None:
    given = os.environ.get("CHAMELEON_LAMP3_DEV")
    if given:
        (tmp_path / "LaMP_3" / "dev").mkdir(parents=True)
        for name in ("questions", "outputs"):
            found = Path(given).with_name(f"dev_{name}.json")
            (tmp_path / "LaMP_3" / "dev" / found.name).symlink_to(found)
    else:
        write_lamp_3(tmp_path, 401_034_862)
    *_, most = loaded(tmp_path, "laptop", 0)  # all 350 users of the profile; --users takes fewer
    assert most < 500_000_000
