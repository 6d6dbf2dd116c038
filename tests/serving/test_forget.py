"""A whole run of some users leaves traces everywhere; forgetting one must leave none of theirs."""

from __future__ import annotations

import html
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lib.core.fitting import EditProfile, contrasts_from_pairs
from chameleon_lib.core.history import item_texts
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.data.importing import ImportOptions
from chameleon_lib.errors import UserError
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.serving.forget import Forgotten
from chameleon_lib.serving.store import ProfileStore
from chameleon_lib.studies.arms import Exam
from chameleon_lib.studies.data import load_task_data, without_gold
from chameleon_lib.studies.own_users import imported
from chameleon_lib.studies.s03_ladder import single_users
from chameleon_lib.studies.study import Study
from tests.serving.small import profile
from tests.studies.small import SETTINGS, reference_of, small_profile, use_small_models


@dataclass(frozen=True)
class Left:
    """A cache, a profile store and outputs after a run; ``user`` is the one to forget.

    Attributes:
        bytes_of: User id → bytes that only this user's data gives: texts, embeddings, activations,
            directions.
    """

    root: Path
    users: list[PreparedUser]
    bytes_of: dict[str, list[bytes]]

    @property
    def user(self) -> str:
        return self.users[1].user.id

    @property
    def store(self) -> ProfileStore:
        return ProfileStore(self.root / "profiles")

    def forget(self, user: str = "", **changes: Any) -> Forgotten:
        folders = {"cache": self.root / "cache", "outputs": self.root / "outputs"}
        return self.store.forget(user or self.user, **{**folders, **changes})

    def found(self, user: str) -> list[Path]:
        """Files that hold bytes of a user: the independent search."""
        files = [path for path in self.root.rglob("*") if path.is_file()]
        needles = self.bytes_of[user]
        return [p for p in files if any(needle in p.read_bytes() for needle in needles)]


def texts_of(*parts: tuple) -> tuple[str, ...]:  # type: ignore[type-arg]
    return tuple(entry.text for part in parts for entry in part)


def raw(tensor: torch.Tensor) -> list[bytes]:
    """The bytes of every row."""
    rows = tensor.reshape(-1, tensor.shape[-1]).numpy()
    return [np.ascontiguousarray(row).tobytes() for row in rows]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    root = tmp_path_factory.mktemp("traces")
    settings = SETTINGS.with_(pairs_k_min=1)
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        run = small_profile(n_train=5, n_test=2)
        store = ArtifactStore(root / "cache" / "units")
        study = Study(run, "demo:decoder:0", "LaMP_3", settings, store)
        users, _ = study.prepare(without_gold(load_task_data(run, "LaMP_3").train))
        pairs = [replace(p, answer_p="5", answer_n="4") for p in study.pairs(users)]
        own = single_users(study, pairs, 0)
        embed = {
            u.user.id: study.embedder.encode(item_texts("LaMP_3", u.user.history, settings))
            for u in users
        }
        bytes_of: dict[str, list[bytes]] = {}
        for user in users:
            h = study.activations([p for p in pairs if p.user_id == user.user.id])
            single = own[user.user.id]
            bytes_of[user.user.id] = [
                *(text.encode() for text in texts_of(user.user.history, user.user.queries)),
                *(json.dumps(text)[1:-1].encode() for text in (user.insight_p, user.insight_n)),
                *raw(torch.stack(h)), *raw(single.theta_p), *raw(single.theta_n),
                *(row.tobytes() for row in embed[user.user.id]),
            ]  # fmt: skip
        # Two groups share a user; the group of the others must survive what befalls the first.
        for seed, group in enumerate((users[:3], users[2:])):
            members = [p for p in pairs if p.user_id in {u.user.id for u in group}]
            fresh = Study(run, "demo:decoder:0", "LaMP_3", settings, ArtifactStore(store.root))
            group_h = fresh.activations(members)
            fresh.directions("paper", *group_h, seed)
            contrasts = contrasts_from_pairs("LaMP_3", members, [], settings)
            fresh.preference_fit(contrasts, seed=seed)
            exam = Exam(fresh, group, reference_of(group))
            exam.answer({"plain": ("instruct", None), "insight": ("insight", None)})
        edits = {user: found.to_edit(settings) for user, found in own.items()}
        save_profiles(ProfileStore(root / "profiles"), users, edits)
        write_outputs(root / "outputs", users)
        (root / "cache" / "work").mkdir()
        (root / "cache" / "work" / "half.ipynb").write_text(
            json.dumps({"text": [f"query: {users[1].user.queries[0].text} ..."]})
        )
        yield Left(root, users, bytes_of)


def save_profiles(store: ProfileStore, users: list[PreparedUser], edits: dict) -> None:  # type: ignore[type-arg]
    """One profile each, one of them also under another key, and two groups."""
    ids = [user.user.id for user in users]

    def own(user: str) -> EditProfile:
        return replace(profile(users=(user,)), edit=edits[user], directions=None)

    for user in ids:
        store.save(user, own(user))
    store.save("an alias", own(ids[1]))
    store.save("first", profile(11, tuple(ids[:3])))
    store.save("second", profile(12, tuple(ids[2:])))


def write_outputs(folder: Path, users: list[PreparedUser]) -> None:
    """Tables as runs write them."""
    for user in users:
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"text": [f'{user.user.history[0].text} "quoted"']}).to_csv(
            folder / "tables" / f"user-{user.user.id}.csv"
        )


@pytest.fixture
def traces(made: Left, tmp_path: Path) -> Left:
    """A copy that a test may spoil."""
    shutil.copytree(made.root, tmp_path / "traces")
    return replace(made, root=tmp_path / "traces")


def test_the_search_of_the_test_finds_every_kind_of_trace(made: Left) -> None:
    for user in made.users:
        found = made.found(user.user.id)
        kinds = {path.relative_to(made.root / "cache" / "units").parts[0]
                 for path in found if "units" in path.parts}  # fmt: skip
        assert kinds >= {"embed", "insights", "activations", "single_users"}
        assert any(path.suffix == ".safetensors" for path in found)
        assert len([path for path in found if "outputs" in path.parts]) == 1


def test_nothing_of_a_forgotten_user_is_left_and_the_groups_are_named(traces: Left) -> None:
    others = [user.user.id for user in traces.users if user.user.id != traces.user]
    own = {user: traces.store.info(user).path.read_bytes() for user in others}
    done = traces.forget()
    assert traces.found(traces.user) == []
    assert len(set(done.profiles)) == 2 and done.groups == ["first"] and done.waiting == []
    assert not done.unreadable
    assert done.emptied == [traces.root / "cache", traces.root / "outputs"]
    assert not any(any(folder.iterdir()) for folder in done.emptied)
    assert own == {user: traces.store.info(user).path.read_bytes() for user in others}
    assert {info.group for info in traces.store.list()} == {"", "first", "second"}


def test_what_is_not_named_is_left_alone(traces: Left) -> None:
    before = traces.found(traces.user)
    traces.forget(cache=None, outputs=None)
    left = traces.found(traces.user)
    assert left == [path for path in before if path.suffix != ".safetensors"]


def test_a_group_says_that_it_waits_for_a_new_fit_until_it_got_one(
    traces: Left, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.serving.small import backbone

    traces.forget()
    (info,) = [info for info in traces.store.list() if info.group == "first"]
    assert (info.forgotten, info.n_users) == (1, 2)
    traces.store.load("first", backbone())
    assert "holds 1 forgotten users; fit it again" in caplog.text
    again = traces.forget()
    assert again.nothing and again.waiting == ["first"]
    others = tuple(user.user.id for user in (traces.users[0], traces.users[2]))
    traces.store.save("first", profile(13, others))
    assert traces.forget().waiting == []


def test_a_group_goes_with_its_last_member(traces: Left) -> None:
    for user in traces.users[:3]:
        last = traces.forget(user.user.id)
    assert "first" not in {info.group for info in traces.store.list()}
    assert last.groups == ["second"]  # of which the third user was a member, too


def test_directions_that_killed_writers_left_go_too(traces: Left) -> None:
    left = traces.bytes_of[traces.user][-1]
    folder = traces.store.files.folders()[0]
    (folder / f"{'a' * 32}.safetensors.partial-1-2").write_bytes(left)
    traces.forget()
    assert traces.found(traces.user) == []


@pytest.mark.parametrize("at", [0, 1, 3, 9, 20, 30])
def test_a_call_that_was_killed_is_finished_by_the_next(
    at: int, traces: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [at]

    def dying(function: Callable[..., None]) -> Callable[..., None]:
        def run(path: Any, *args: Any, **named: Any) -> None:
            if ".partial-" not in str(path):
                left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            function(path, *args, **named)

        return run

    with monkeypatch.context() as patch:
        for where, name in ((Path, "unlink"), (os, "unlink"), (os, "rmdir")):
            patch.setattr(where, name, dying(getattr(where, name)))
        with pytest.raises(KeyboardInterrupt):
            traces.forget()
    assert traces.found(traces.user)
    done = traces.forget()
    assert traces.found(traces.user) == [] and [*done.groups, *done.waiting] == ["first"]


def test_a_damaged_profile_is_named_and_left(traces: Left) -> None:
    path = traces.store.files.path_of("second")
    path.write_bytes(path.read_bytes()[:200])
    done = traces.forget()
    assert done.unreadable == [path] and path.exists() and len(done.profiles) == 2


def test_folders_that_are_not_there_are_refused_before_anything_is_removed(
    traces: Left,
) -> None:
    for name in ("cache", "outputs"):
        with pytest.raises(UserError, match=f"no folder .*give the {name}"):
            traces.forget(**{name: traces.root / "nowhere"})
    own = traces.root / "own"  # a folder of the reader's, which must not be emptied
    own.mkdir()
    (own / "thesis.txt").write_text("years of work")
    for name in ("cache", "outputs"):
        with pytest.raises(UserError, match=f"is no {name} of runs; give "):
            traces.forget(**{name: own})
    for name in ("outputs", "cache"):  # a whole checkout has notebooks, and perhaps units
        for made in ("notebooks", "units"):
            (own / made).mkdir(exist_ok=True)
        with pytest.raises(UserError, match="holds 'notebooks'|holds 'thesis.txt', which no run"):
            traces.forget(**{name: own})
    assert (own / "thesis.txt").exists()
    with pytest.raises(UserError, match="Name the user"):
        traces.store.forget("")
    assert len(traces.found(traces.user)) > 5


SPELT = ["zo\u00eb@mail.invalid", "zoe\u0308@mail.invalid", "\ufeffzo\u00eb@mail.invalid ",
         "zo\u00eb\u200b@mail.invalid", "\uff5ao\u00eb@mail.invalid"]  # fmt: skip


@pytest.mark.parametrize("said", SPELT)
@pytest.mark.parametrize("fitted", SPELT[:2])
def test_an_id_is_found_in_every_unicode_form(fitted: str, said: str, tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "p")
    store.save(fitted, profile(users=(fitted,)))
    store.save("friends", profile(1, (fitted, "ben@mail.invalid")))
    done = store.forget(said)
    assert len(done.profiles) == 1 and done.groups == ["friends"]
    assert {(i.group, i.n_users, i.forgotten) for i in store.list()} == {("friends", 1, 1)}


def test_folders_that_may_hold_more_are_said_until_they_are_emptied(tmp_path: Path) -> None:
    for name in ("demo-data", "laptop-own"):
        (tmp_path / name / "tables").mkdir(parents=True)
        (tmp_path / name / "tables" / "t.csv").write_text(SAYING)
    beside = {tmp_path / name: "repeat" for name in ("demo-data", "laptop-own", "nowhere")}
    store = ProfileStore(tmp_path / "p")
    done = store.forget(PERSON, outputs=tmp_path / "demo-data", beside=beside)
    assert done.left == {tmp_path / "laptop-own": "repeat"}
    assert f"{tmp_path / 'laptop-own'} may hold texts of the user: repeat." in str(done)
    done = store.forget(PERSON, outputs=list(beside)[:2], beside=beside)
    assert not done.left and not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "data.csv").write_text("zoë@mail.invalid,1")
    (tmp_path / "outputs" / "tables").mkdir(parents=True)
    (tmp_path / "outputs" / "figures").symlink_to(tmp_path / "own")
    (tmp_path / "outputs" / "tables" / "link").symlink_to(tmp_path / "own")
    ProfileStore(tmp_path / "p").forget("zoë@mail.invalid", outputs=tmp_path / "outputs")
    assert (tmp_path / "own" / "data.csv").exists()
    assert not list((tmp_path / "outputs").iterdir())


PERSON = "zoë@mail.invalid"
SAYING = "The shiny tent number 0 was quiet for my sister Klara in Görlitz"


def test_a_person_of_an_imported_table_is_nowhere_in_the_tree_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies of the table in the cache hold other people, too: they go as a whole."""
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    rows = [f"{who},{SAYING} {n},{n % 5 + 1},2023-01-{n + 1:02}"
            for who in (PERSON, "ben@mail.invalid") for n in range(9)]  # fmt: skip
    (tmp_path / "people.csv").write_text("\n".join(["user,text,label,time", *rows]))
    _, folder = imported(tmp_path / "people.csv", "LaMP_3", ImportOptions())
    kept = tmp_path / "cache" / "units" / "embed" / "ab"
    kept.mkdir(parents=True)
    (tmp_path / "people.csv").unlink()  # the reader's own file, which the reader cleans
    for name, content in {
        "cache/ledger.json": json.dumps({"08": {"user": PERSON}}),
        "cache/models/public.gguf": "GGUF",
        "cache/work/08/half.ipynb": json.dumps({"text": [SAYING]}),
        "outputs/own/notebooks/08.ipynb": json.dumps({"source": [f"user = {PERSON!r}"]}),
        "outputs/own/html/08.html": f"<td>{html.escape(PERSON)}</td>",
        "outputs/own/tables/t.csv": "method,accuracy\nchameleon,0.5\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "cache" / "counts").mkdir()
    pd.DataFrame({"text": [SAYING]}).to_parquet(tmp_path / "cache" / "counts" / "t.parquet")
    store = ProfileStore(tmp_path / "profiles")
    store.save(PERSON, profile(users=(PERSON,)))
    store.save("friends", profile(1, (PERSON, "ben@mail.invalid")))
    done = store.forget(PERSON, cache=tmp_path / "cache", outputs=tmp_path / "outputs" / "own")
    assert done.groups == ["friends"] and len(done.profiles) == 1
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert (tmp_path / "cache" / "models" / "public.gguf").is_file()  # no user is in it
    needles = [
        spelt.encode()
        for text in (PERSON, SAYING, "Klara")
        for spelt in (text, json.dumps(text)[1:-1], html.escape(text))
    ]
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [p for p in left if any(needle in p.read_bytes() for needle in needles)]
