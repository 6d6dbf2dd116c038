from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.core.task import User
from chameleon_lib.errors import UserError
from chameleon_lib.serving.engines import LocalEngine, get_engine
from chameleon_lib.serving.files import fit_lock
from chameleon_lib.serving.population import (
    Fitted,
    data_of,
    fit_population,
    open_for_fit,
    user_line,
    user_of_line,
)
from chameleon_lib.serving.sharded import ShardedStore
from chameleon_lib.serving.shards import ASIDE, FAILED, FITTED, WORK, stored_edit
from tests.serving.test_sharded import holding, same
from workshop.standin import StandIn, edit_of, manifest, users


def fit(
    root: Path, some: list[User], *, workers: int = 2, flush: float = 0.0, **stand_in: Any
) -> tuple[Fitted, ShardedStore]:
    with fit_lock(root / "store"):
        store = open_for_fit(root / "store", manifest(), len(some))
        work = StandIn(store.manifest, root / "fits", **stand_in)
        engine = LocalEngine(workers, preload=("torch",))
        return fit_population(store, work, some, engine, flush=flush), store


def fitted_ids(root: Path) -> Counter[str]:
    path = root / "fits"
    return Counter(line.split()[0] for line in path.read_text().splitlines())


def everybody(store: ShardedStore) -> list[bytes]:
    return [cells["user"] for cells in store.rows(("user",))]


def test_a_user_goes_through_a_line() -> None:
    (one,) = users(1)
    assert user_of_line(user_line(one)) == one
    other = replace(one, history=(replace(one.history[0], text="other"),))
    assert data_of(one) != data_of(other)
    assert data_of(one) == data_of(replace(one, id="b"))


def test_everybody_is_fitted_once_and_a_second_run_fits_nobody(tmp_path: Path) -> None:
    some = [*users(120)]
    done, store = fit(tmp_path, some)
    assert (done.users, done.before, done.now) == (120, 0, 120)
    assert done.states == {FITTED: 120} and len(done.gains) == 120
    assert sorted(everybody(store)) == sorted(store.key_of(user.id) for user in some)
    assert set(fitted_ids(tmp_path).values()) == {1}
    row = store.row("user7")
    assert row is not None and row.edit is not None
    wanted = edit_of(store.key_of("user7"), store.manifest)
    assert same(row.edit, stored_edit(wanted, "bfloat16"))
    assert not (tmp_path / "store" / WORK).exists()
    again, _ = fit(tmp_path, some)
    assert (again.before, again.now) == (120, 0) and set(fitted_ids(tmp_path).values()) == {1}


def test_new_users_and_changed_histories_are_fitted_and_nobody_else(tmp_path: Path) -> None:
    some = [*users(60)]
    fit(tmp_path, some)
    changed = replace(some[3], history=(replace(some[3].history[0], text="new"),))
    done, store = fit(tmp_path, [*some[:3], changed, *some[4:], *users(5, 60)])
    assert done.now == 6 and len(everybody(store)) == 65
    counts = fitted_ids(tmp_path)
    assert counts["user3"] == 2 and counts["user61"] == 1 and counts["user4"] == 1
    row = store.row("user3")
    assert row is not None and row.data == data_of(changed)


def test_a_user_who_kills_three_workers_is_set_aside_and_named(tmp_path: Path) -> None:
    some = [*users(60)]
    done, store = fit(tmp_path, some, poison=("user11", "user40"), once=("user5",))
    assert done.states == {FITTED: 58, ASIDE: 2}
    row = store.row("user11")
    assert row is not None and row.edit is None and "ended its worker process 3 times" in row.note
    assert "3 times" in store.answering("user11").why
    counts = fitted_ids(tmp_path)
    assert len(counts) == 58 and set(counts.values()) == {1} and counts["user5"] == 1


def test_a_bad_user_is_a_row_with_an_error(tmp_path: Path) -> None:
    done, store = fit(tmp_path, [*users(20)], bad=("user3",))
    assert done.states == {FITTED: 19, FAILED: 1}
    row = store.row("user3")
    assert row is not None
    assert row.note == "ValueError: the history of the user is no history"  # not the id


class _NeverOpens:
    def open(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def progressed(self, unit: Any) -> int:
        del unit
        return 0


def test_a_model_that_cannot_be_opened_is_one_sentence() -> None:
    with pytest.raises(UserError, match="ended from outside 3 times before they fitted anybody"):
        list(LocalEngine(1, preload=()).run(_NeverOpens(), [(0, 1, 0, 1)]))


def _drive(root: Path, count: int, seconds: float) -> None:
    fit(root, [*users(count)], seconds=seconds)


def test_after_the_death_of_the_driver_nothing_finished_is_repeated(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    driver = context.Process(target=_drive, args=(tmp_path, 100, 0.05))
    driver.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (tmp_path / "fits").exists() and len(fitted_ids(tmp_path)) > 20:
            break
        time.sleep(0.05)
    assert driver.pid is not None
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    time.sleep(0.5)  # its workers end
    before = fitted_ids(tmp_path)
    done, store = fit(tmp_path, [*users(100)])
    assert 20 < done.before < 100 and done.states == {FITTED: 100}
    keys = everybody(store)
    assert len(keys) == len(set(keys)) == 100
    after = fitted_ids(tmp_path)
    # What was drawn and not yet on disk, at most one user of each worker, is fitted again.
    assert sum(after.values()) - 100 <= 2 and sum(before.values()) >= done.before


def test_a_fit_and_a_forget_wait_for_no_one_in_silence(tmp_path: Path) -> None:
    _, store = fit(tmp_path, [*users(5)])
    with fit_lock(store.root):
        with pytest.raises(UserError, match="Another fit is at work"):
            fit(tmp_path, [*users(5)])
        with pytest.raises(UserError, match="Another fit is at work"):
            store.forget("user1")


def test_forgetting_reaches_what_a_killed_fit_left(tmp_path: Path) -> None:
    _, store = fit(tmp_path, [*users(30)])
    work = store.root / WORK
    key = store.key_of("user3")
    # As if the driver had been killed before the merge.
    (work / "users").mkdir(parents=True)
    (work / "users" / "00000.jsonl").write_bytes(user_line(next(users(1, 3))))
    (work / "trying").mkdir()
    (work / "trying" / "00000-1-0").write_text(f"+{key.hex()}\n")
    rows = work / "rows" / "00000-1-0"
    rows.mkdir(parents=True)
    shard = store.root / "users" / "00000.parquet"
    shard.rename(rows / "0-29.parquet")
    assert holding(store.root, key, b"text of 3")
    store.forget("user3")
    assert not holding(store.root, key, key.hex().encode(), b"text of 3")
    done, _ = fit(tmp_path, [user for user in users(30) if user.id != "user3"])
    assert (done.before, done.now, done.states[FITTED]) == (29, 0, 29)


def test_two_users_of_one_id_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'user1' is the id of two users"):
        fit(tmp_path, [*users(3), *users(1, 1)])
    foreign = tmp_path / "store2"
    foreign.mkdir()
    (foreign / "notes.txt").touch()
    with pytest.raises(UserError, match=r"'notes.txt', which is no store of fits"):
        open_for_fit(foreign, manifest(), 3)
    with pytest.raises(UserError, match="--address names a Ray cluster"):
        get_engine("local", 1, 1, "ray://x")
