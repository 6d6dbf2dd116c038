"""A whole run of some users leaves traces everywhere; forgetting one must leave none of theirs."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lib.core.contrasts import contrasts_from_pairs
from chameleon_lib.core.edit_profile import EditProfile
from chameleon_lib.core.history import item_texts
from chameleon_lib.core.plain_prompts import PlainPrompts
from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.errors import UserError
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.profiles import ProfileStore
from chameleon_lib.profiles.forget import Forgotten
from chameleon_lib.sections.answering import Exam
from chameleon_lib.sections.data import load_task_data, without_gold
from chameleon_lib.sections.fits import stored_directions, stored_fit
from chameleon_lib.sections.group_size.own import single_users
from chameleon_lib.sections.study import Study
from tests.profiles.small import profile
from tests.sections.small import SETTINGS, reference_of, small_profile, use_small_models


@dataclass(frozen=True)
class Traces:
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

    def forget(self, user: str = "", **changes: object) -> Forgotten:
        history = next(u for u in self.users if u.user.id == (user or self.user)).user
        folders = {"cache": self.root / "cache", "outputs": self.root / "outputs"}
        options = {**folders, "texts": texts_of(history.history, history.queries), **changes}
        return self.store.forget(user or self.user, **options)  # type: ignore[arg-type]

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
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
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
            single = own[user.user.id].directions
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
            stored_directions(fresh, "paper", *group_h, seed)
            contrasts = contrasts_from_pairs("LaMP_3", members, [], settings)
            prompts = PlainPrompts(fresh.backbone, [c.prompt for c in contrasts])
            stored_fit(fresh, contrasts, prompts, seed, "fitted")
            exam = Exam(fresh, group, reference_of(group))
            exam.answer({"plain": ("instruct", None), "insight": ("insight", None)})
        save_profiles(ProfileStore(root / "profiles"), users, {u: s.edit for u, s in own.items()})
        write_outputs(root / "outputs", users)
        (root / "cache" / "work").mkdir()
        (root / "cache" / "work" / "half.ipynb").write_text(
            json.dumps({"text": [f"query: {users[1].user.queries[0].text} ..."]})
        )
        yield Traces(root, users, bytes_of)


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
    """Tables and notebooks as runs write them: whole, cut, escaped."""
    for user in users:
        text = user.user.history[0].text
        name = f"user-{user.user.id}"
        folder.mkdir(exist_ok=True)
        pd.DataFrame({"text": [f'{text} "quoted"']}).to_csv(folder / f"{name}.csv")
        (folder / f"{name}.html").write_text(f"<td>{html.escape(text)}</td>")
        (folder / f"{name}.ipynb").write_text(json.dumps({"data": [f"<b>{text}</b>"]}))
    (folder / "summary.csv").write_text("method,accuracy\nchameleon,0.5\n")


@pytest.fixture
def traces(made: Traces, tmp_path: Path) -> Traces:
    """A copy that a test may spoil."""
    shutil.copytree(made.root, tmp_path / "traces")
    return replace(made, root=tmp_path / "traces")


def test_the_search_of_the_test_finds_every_kind_of_trace(made: Traces) -> None:
    for user in made.users:
        found = made.found(user.user.id)
        kinds = {path.relative_to(made.root / "cache" / "units").parts[0]
                 for path in found if "units" in path.parts}  # fmt: skip
        assert kinds >= {"embed", "insights", "activations", "single_users"}
        assert any(path.suffix == ".safetensors" for path in found)
        assert len([path for path in found if path.parent.name == "outputs"]) == 3


def test_nothing_of_a_forgotten_user_is_left_and_the_groups_are_named(traces: Traces) -> None:
    done = traces.forget()
    assert traces.found(traces.user) == []
    assert len(set(done.profiles)) == 2 and done.groups == ["first"] and done.waiting == []
    assert not done.unclaimed and not done.unreadable
    personal = {"select": 1, "embed": 1, "insights": 1, "pairs": 1, "activations": 1,
                "single_users": 1}  # fmt: skip
    group = {"directions": 1, "fit": 1, "answers": 2}
    assert done.units == dict(sorted({**personal, **group}.items()))
    names = {path.name for path in done.files}
    assert names == {f"user-{traces.user}{end}" for end in (".csv", ".html", ".ipynb")} | {
        "half.ipynb"
    }


def test_what_belongs_to_others_stays(traces: Traces) -> None:
    before = {user.user.id: traces.found(user.user.id) for user in traces.users}
    traces.forget()
    for user in traces.users:
        if user.user.id != traces.user:
            assert traces.found(user.user.id) == before[user.user.id]
    kept = {info.group for info in traces.store.list()}
    assert kept == {"", "first", "second"} and (traces.root / "outputs/summary.csv").exists()
    directions = list((traces.root / "cache/units/directions").rglob("*.unit"))
    assert len(directions) == 1  # the other group's


def test_a_group_says_that_it_waits_for_a_new_fit_until_it_got_one(
    traces: Traces, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.profiles.small import backbone

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


def test_a_group_goes_with_its_last_member(traces: Traces) -> None:
    for user in traces.users[:3]:
        last = traces.forget(user.user.id)
    assert "first" not in {info.group for info in traces.store.list()}
    assert last.groups == ["second"]  # of which the third user was a member, too


def test_directions_that_killed_writers_left_go_too(traces: Traces) -> None:
    left = traces.bytes_of[traces.user][-1]
    folder = traces.store.directory.folders()[0]
    (folder / f"{'a' * 32}-{'0' * 16}.safetensors").write_bytes(left)
    (folder / f"{'a' * 32}.json.partial-1-2").write_bytes(left)
    traces.forget()
    assert traces.found(traces.user) == []


@pytest.mark.parametrize("at", [0, 2, 6, 13, 17])
def test_a_call_that_was_killed_is_finished_by_the_next(
    at: int, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, left = Path.unlink, [at]

    def dying(path: Path, missing_ok: bool = False) -> None:
        if ".partial-" not in path.name:
            left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", dying)
    with pytest.raises(KeyboardInterrupt):
        traces.forget()
    monkeypatch.setattr(Path, "unlink", unlink)
    assert traces.found(traces.user)
    done = traces.forget()
    assert traces.found(traces.user) == [] and [*done.groups, *done.waiting] == ["first"]


def test_a_damaged_profile_is_named_and_left(traces: Traces) -> None:
    path = traces.store.directory.path_of("second")
    path.write_bytes(path.read_bytes()[:200])
    done = traces.forget()
    assert done.unreadable == [path] and path.exists() and len(done.profiles) == 2


def test_an_unknown_user_changes_nothing_but_what_is_nobodys(traces: Traces) -> None:
    before = {path for path in traces.root.rglob("*") if path.is_file()}
    done = traces.store.forget(
        "nobody", cache=traces.root / "cache", outputs=traces.root / "outputs"
    )
    assert done.nothing and {path for path in traces.root.rglob("*") if path.is_file()} == before


def test_folders_that_are_not_there_are_refused_before_anything_is_removed(
    traces: Traces,
) -> None:
    for name in ("cache", "outputs"):
        with pytest.raises(UserError, match=f"no folder .*give the {name}"):
            traces.forget(**{name: traces.root / "nowhere"})
    with pytest.raises(UserError, match="Name the user"):
        traces.store.forget("")
    assert len(traces.found(traces.user)) > 8
