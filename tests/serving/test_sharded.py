from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
import torch
from pyarrow import parquet

from chameleon_lib.cli import main
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.task import HistoryItem, Query, User
from chameleon_lib.errors import UserError
from chameleon_lib.serving.folder import ServingFolder, export_profiles
from chameleon_lib.serving.sharded import ShardedStore, nearest, open_store, unit, user_vector
from chameleon_lib.serving.shards import (
    FEW,
    FITTED,
    REFUSED,
    USERS,
    Group,
    Manifest,
    Row,
    find_cells,
    row_of,
    rows_table,
    shard_path,
    shard_tables,
    stored_edit,
    write_groups,
    write_table,
)
from chameleon_lib.serving.store import ProfileStore
from tests.demo.small import HashEmbedder
from tests.serving.small import backbone, fitted, profile


def manifest(**changes: object) -> Manifest:
    """A store of the small backbone's fits."""
    made, base = fitted("fitted"), backbone()
    values = {
        "task": made.task, "edits": "own", "backbone": base.name, "fingerprint": base.fingerprint,
        "revision": "", "d": made.edit.d, "slots": len(made.edit.layers), "dtype": "float32",
        "settings": made.settings.canonical(), "prompts": made.prompts, "shards": 4,
    }  # fmt: skip
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


def an_edit(seed: int) -> Edit:
    made = fitted("fitted").edit
    theta = torch.randn(2, *made.theta_p.shape, generator=torch.Generator().manual_seed(seed))
    return replace(made, theta_p=theta[0], theta_n=theta[1])


def filled(root: Path, users: int = 300, **changes: object) -> ShardedStore:
    """A store of so many users; every tenth has no own edit."""
    about = manifest(**changes)
    about.write(root)
    store = ShardedStore(root)
    rows = []
    for at in range(users):
        edit = an_edit(at) if at % 10 else None
        rows.append(Row(
            store.key_of(f"user{at}"), at.to_bytes(8, "big"), FITTED if edit else FEW,
            "" if edit else "2 pairs, 8 are needed", edit, group=at % 2, distance=0.25, n_pairs=9,
        ))  # fmt: skip
    rows.sort(key=lambda row: row.user)
    for shard in range(about.shards):
        own = [row for row in rows if about.shard_of(row.user) == shard]
        write_table(shard_path(root, shard), [rows_table(own, about)], about)
    centres = np.eye(2, 8, dtype=np.float32)
    groups = [
        Group(at, an_edit(1000 + at) if at == 0 else None, centres[at],
              tuple(store.key_of(f"user{n}") for n in range(at, 20, 2)), n_pairs=40)
        for at in range(2)
    ]  # fmt: skip
    write_groups(root, groups, about)
    return store


def same(left: Edit, right: Edit) -> bool:
    return left.layers == right.layers and all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in ("theta_p", "theta_n")
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_edit_comes_back_in_the_precision_of_the_store(dtype: str, tmp_path: Path) -> None:
    store = filled(tmp_path, 30, dtype=dtype)
    found = store.row("user7")
    assert found is not None and found.edit is not None and found.n_pairs == 9
    wanted = stored_edit(an_edit(7), dtype)  # type: ignore[arg-type]
    assert same(found.edit, wanted) and found.edit.positions == wanted.positions
    assert same(found.edit, an_edit(7)) == (dtype == "float32")


def test_gates_and_fewer_layers_come_back_too(tmp_path: Path) -> None:
    store, about = filled(tmp_path, 30), manifest()
    part = an_edit(1)
    part = replace(
        part, layers=part.layers[:1], theta_p=part.theta_p[:1], theta_n=part.theta_n[:1],
        gate_p=torch.tensor([False]), alpha_p=0.5,
    )  # fmt: skip
    row = Row(store.key_of("gated"), bytes(8), FITTED, edit=part)
    write_table(tmp_path / "one.parquet", [rows_table([row], about)], about)
    cells = find_cells(tmp_path / "one.parquet", row.user)
    assert cells is not None
    back = row_of(cells, about).edit
    assert back is not None and same(back, part) and back.alpha_p == 0.5
    assert back.gate_p is not None and back.gate_p.tolist() == [False]


def test_everybody_is_found_and_nobody_else(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for at in range(300):
        row = store.row(f"user{at}")
        assert row is not None and row.data == at.to_bytes(8, "big")
    assert store.row("user300") is None
    # Spread over all files, each sorted by hash in its own part of the range.
    keys = [cells["user"] for cells in store.rows(("user",))]
    assert len(keys) == 300 and keys == sorted(keys)
    assert len(list((tmp_path / USERS).glob("*.parquet"))) == 4


def test_a_look_up_reads_one_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = replace(manifest(), shards=1)
    monkeypatch.setattr(Manifest, "rows_per_group", 16)
    filled(tmp_path, 300, shards=1)
    read: list[int] = []
    plain = parquet.ParquetFile.read_row_group

    def counted(self: parquet.ParquetFile, at: int, **kwargs: object) -> object:
        read.append(at)
        return plain(self, at, **kwargs)

    path = shard_path(tmp_path, 0)
    assert len([*shard_tables(path)]) == 300 // about.rows_per_group + 1
    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    assert find_cells(path, ShardedStore(tmp_path).key_of("user17")) is not None
    assert len(set(read)) == 1


def test_a_row_takes_what_is_computed(tmp_path: Path) -> None:
    about = manifest(d=fitted("fitted").edit.d)
    store = filled(tmp_path, 1000, shards=1)
    rows = sum(1 for _ in store.infos()) - 1  # without the group
    assert rows == 900
    size = shard_path(tmp_path, 0).stat().st_size
    beside = size - rows * about.row_bytes
    assert 0 < beside < 1000 * 300  # hashes, states, numbers, the footer
    # The numbers: a million users of 8 layers at d 4096.
    large = manifest(d=4096, slots=8, dtype="bfloat16")
    assert 1_000_000 * large.row_bytes / 2**30 == pytest.approx(122, abs=0.1)


def test_who_answers_and_why(tmp_path: Path) -> None:
    store = filled(tmp_path, 30)
    own = store.answering("user7")
    assert own.source == "own" and own.edit is not None and same(own.edit, an_edit(7))
    grouped = store.answering("user10")  # even: group 0, which has an edit
    assert grouped.source == "group" and grouped.group == "group-0000"
    assert grouped.distance == 0.25 and same(grouped.edit or an_edit(0), an_edit(1000))
    assert "2 pairs, 8 are needed" in grouped.why and "0.250" in grouped.why
    nobody = store.answering("new")
    assert nobody.source == "none" and nobody.edit is None and "base answers" in nobody.why
    vector = np.zeros(8, dtype=np.float32)
    vector[0] = 0.8
    vector[1] = 0.6
    new = store.answering("new", vector)
    assert (new.source, new.group) == ("group", "group-0000")
    assert new.distance == pytest.approx(0.2)
    refused = store.answering("new", vector[[1, 0, *range(2, 8)]])
    assert (refused.source, refused.group) == ("none", "group-0001")
    assert "has no edit" in refused.why


def test_a_refused_edit_says_so(tmp_path: Path) -> None:
    store, about = filled(tmp_path, 30), manifest()
    row = Row(store.key_of("ref"), bytes(8), REFUSED, "The edit is not better than none.", group=0,
              distance=0.5)  # fmt: skip
    path = shard_path(tmp_path, about.shard_of(row.user))
    kept = [*shard_tables(path)]
    whole = arrow.concat_tables([*kept, rows_table([row], about)]).sort_by("user")
    write_table(path, [whole], about)
    found = store.answering("ref")
    assert found.source == "group" and found.why.startswith("The edit is not better than none; ")


def test_profiles_of_both_stores_are_read_alike(tmp_path: Path) -> None:
    filled(tmp_path / "shards", 30)
    ProfileStore(tmp_path / "folder").save("user7", profile(7, ("user7",)))
    for name in ("shards", "folder"):
        store = open_store(tmp_path / name)
        assert store.read("user7", backbone()).task == fitted().task
        info = store.info("user7")
        assert info.id in {one.id for one in store.list()}
        made = store.profile(info)
        assert made.users == (store.answering("user7").user,)
        assert store.content("user7")["backbone"]["name"] == backbone().name
        with pytest.raises(UserError, match="no"):
            store.info("nobody")
        with pytest.raises(UserError, match="belongs to"):
            store.read("user7", backbone("mistral", 1))
    group = open_store(tmp_path / "shards").read("group-0000", backbone())
    assert len(group.users) == 10


def test_another_job_in_the_same_folder_is_one_error(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    about = Manifest.read(tmp_path)
    about.check_same(manifest(shards=9), tmp_path)  # more users are the same job
    with pytest.raises(UserError, match="task 'LaMP_3', not 'LaMP_7'; give another folder"):
        about.check_same(manifest(task="LaMP_7"), tmp_path)
    settings = {**about.settings, "fit_steps": 3}
    with pytest.raises(UserError, match=r"fit_steps \d+, not 3"):
        about.check_same(manifest(settings=settings), tmp_path)


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    store = filled(tmp_path, 30, shards=1)
    path = shard_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="00000.parquet is damaged"):
        store.row("user1")
    (tmp_path / "store.json").write_text("{}")
    with pytest.raises(UserError, match=r"store.json is damaged"):
        open_store(tmp_path)
    with pytest.raises(UserError, match="no profile store"):
        open_store(tmp_path / "nowhere")


def holding(root: Path, *needles: bytes) -> list[Path]:
    """Files that hold one of some bytes."""
    files = (path for path in root.rglob("*") if path.is_file())
    return [path for path in files if any(needle in path.read_bytes() for needle in needles)]


def test_forgetting_rewrites_one_shard_and_leaves_no_byte(tmp_path: Path) -> None:
    store = filled(tmp_path)
    key = store.key_of("user7")
    needles = (key, key.hex().encode(), an_edit(7).theta_p.numpy().tobytes()[:64])
    assert holding(tmp_path, *needles)
    before = {path: path.read_bytes() for path in (tmp_path / USERS).iterdir()}
    done = store.forget("user7")
    assert done.profiles == [key.hex()] and done.groups == ["group-0001"]
    assert not holding(tmp_path, *needles)
    changed = [path for path, was in before.items() if path.read_bytes() != was]
    assert changed == [shard_path(tmp_path, store.manifest.shard_of(key))]
    assert store.row("user7") is None and store.row("user8") is not None
    assert len([*store.rows(("user",))]) == 299
    group = store.group(1)
    assert group is not None and group.forgotten == 1 and key not in group.members
    again = store.forget("user7")
    assert again.nothing and again.waiting == ["group-0001"]


def test_centres_are_unit_means_of_histories() -> None:
    embedder, settings = HashEmbedder(), fitted().settings
    items = [HistoryItem(str(at), f"text {at}", "comedy") for at in range(3)]
    queries = (Query("q", "t", "t", None),)
    users = [User("a", "LaMP_2", tuple(items), queries), User("b", "LaMP_2", (), queries)]
    vectors = user_vector(users, embedder, settings)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1) and not vectors[1].any()
    groups = [Group(3, None, unit(vectors[0]), ()), Group(4, None, unit(-vectors[0]), ())]
    assert nearest(vectors[0], groups) == (3, pytest.approx(0, abs=1e-6))


def test_commands_read_a_sharded_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, 30)
    where = ["--store", str(tmp_path)]
    assert main(["profiles", "list", *where, "--limit", "2"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 4 and told[2] == "... and 26 more (--limit)"
    assert told[3].startswith("28 profiles, ")
    assert main(["profiles", "explain", "user10", *where]) == 0
    assert "group-0000" in capsys.readouterr().out
    assert main(["profiles", "show", "user7", *where]) == 0
    assert '"different": 9' in capsys.readouterr().out
    assert main(["profiles", "forget", "user7", *where]) == 0
    assert "group-0001" in capsys.readouterr().out
    assert main(["profiles", "show", "user7", *where]) == 2
    assert "no own edit of 'user7'" in capsys.readouterr().err


def test_a_sharded_store_is_exported_and_exports_are_forgotten(tmp_path: Path) -> None:
    filled(tmp_path / "store", 5)
    store = open_store(tmp_path / "store")
    saved = tmp_path / "base"
    backbone().model.save_pretrained(saved)
    folder = ServingFolder(tmp_path / "served", backbone(), form="peft", base_model=str(saved))
    done = export_profiles(store, folder, None, every_token=True)
    assert [one.name for one in done][0] == "g-group-0000" and len(done) == 5
    assert len(export_profiles(store, folder, "user3", every_token=True)) == 1
    forgotten = store.forget("user3")
    assert len(forgotten.exports) == 1 and not forgotten.exports[0].exists()
    with pytest.raises(UserError, match="forgotten users"):
        store.forget("user2")  # of the group that has an edit
        export_profiles(store, folder, None, every_token=True)
