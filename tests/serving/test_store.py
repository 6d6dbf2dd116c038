from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from chameleon_lib.core.checks import FitCheck
from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import FittedDirections
from chameleon_lib.errors import UserError
from chameleon_lib.serving.files import read_content, read_profile, write_profile
from chameleon_lib.serving.store import ProfileStore
from tests.core.method import train_users
from tests.serving.small import USERS, backbone, fitted, profile

ALICE = USERS[0]


def equal(left: Any, right: Any) -> bool:
    """Whether two records hold the same, tensors bit for bit (NaN included)."""
    if isinstance(left, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape
        return same and left.numpy().tobytes() == right.numpy().tobytes()
    if isinstance(left, (Edit, Directions, FittedDirections)):
        names = {f.name for f in fields(left)} - {"seconds"}  # which no file keeps
        return all(equal(getattr(left, name), getattr(right, name)) for name in names)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    return bool(left == right)


def tree(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


RATES = {"valid": 1.0, "empty": 0.0, "refusal": 0.25, "preamble": 0.5}
CHECK = FitCheck(4, 12, -0.2, -0.3, -0.1, RATES, RATES, 0.1, 0.1, 0.05, "zero")


@pytest.mark.parametrize("method", ["paper", "fitted"])
@pytest.mark.parametrize("check", [None, CHECK])
def test_a_profile_comes_back_as_it_was_and_answers_the_same(
    method: str, check: FitCheck | None, tmp_path: Path
) -> None:
    made = replace(fitted(method), check=check)
    if check is not None:  # returned with strength 0; what was fitted is kept beside it
        made = replace(made, edit=made.edit.without_strength())
    path = ProfileStore(tmp_path).save("group-0", made)
    loaded = ProfileStore(tmp_path).load("group-0", backbone())
    for field in fields(made):
        if field.name != "users":
            assert equal(getattr(loaded, field.name), getattr(made, field.name)), field.name
    assert path.is_file() and len(loaded.users) == len(made.users)
    prompts = ["Suppose you are a user", "Your answer:"]
    answers = [
        backbone().generate(prompts, max_new_tokens=4, edit=p.edit) for p in (made, loaded)
    ]
    assert answers[0] == answers[1]


def test_half_precision_is_kept_exactly_and_a_slim_profile_is_its_edit_alone(
    tmp_path: Path,
) -> None:
    made = profile()
    edit = replace(
        made.edit, theta_p=made.edit.theta_p.bfloat16(), theta_n=made.edit.theta_n.double()
    )
    store = ProfileStore(tmp_path)
    store.save(ALICE, replace(made, edit=edit), all_layers=False)
    loaded = store.load(ALICE, backbone())
    assert torch.equal(loaded.edit.theta_p, edit.theta_p.float())
    assert torch.equal(loaded.edit.theta_n, edit.theta_n) and loaded.directions is None
    slim = store.info(ALICE).bytes
    store.save(ALICE, made)
    assert store.info(ALICE).bytes > slim


def test_a_fitted_edit_that_was_changed_keeps_both_edits(tmp_path: Path) -> None:
    made = fitted("fitted")
    weaker = replace(made, edit=replace(made.edit, alpha_p=0.25))
    ProfileStore(tmp_path).save("weak", weaker)
    loaded = ProfileStore(tmp_path).load("weak", backbone())
    assert loaded.fitted is not None and made.fitted is not None
    assert loaded.edit.alpha_p == 0.25 and equal(loaded.fitted.edit, made.fitted.edit)


@pytest.mark.parametrize("user", [*USERS, "..", "a" * 400, "CON", "x\0y", "é\n"])
def test_no_file_tells_or_depends_on_the_id_of_a_user(user: str, tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    path = store.save(user, profile(users=(user,)))
    assert store.load(user, backbone()).task == "LaMP_3"
    names = [part for file in tree(tmp_path) for part in file.relative_to(tmp_path).parts]
    assert all(len(name) <= 70 and name.replace(".", "").replace("-", "").isalnum()
               for name in names)  # fmt: skip
    everything = b"\n".join(tree(tmp_path).values()) + "\n".join(names).encode()
    if len(user) > 3:
        assert user.encode() not in everything
        assert json.dumps(user)[1:-1].encode() not in everything
    assert path.parent.parent == tmp_path


def test_equal_ids_in_two_stores_have_nothing_in_common(tmp_path: Path) -> None:
    paths = [ProfileStore(tmp_path / name).save(ALICE, profile()) for name in ("one", "two")]
    users = [read_content(path)["users"] for path in paths]
    assert paths[0].name != paths[1].name and users[0] != users[1]


def test_no_text_and_no_id_of_a_member_is_stored(tmp_path: Path) -> None:
    users = train_users()
    named = replace(fitted(), users=tuple(f"member-{user.id}" for user in users))
    ProfileStore(tmp_path).save("group-0", named)
    stored = b"\n".join(tree(tmp_path).values())
    assert b"group-0" in stored and b"member-" not in stored
    for user in users:
        texts = [item.text for item in user.history] + [query.text for query in user.queries]
        assert min(map(len, texts)) > 8 and not any(text.encode() in stored for text in texts)


def test_a_key_that_is_saved_again_is_replaced_and_a_deleted_one_is_gone(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    store.save(ALICE, profile(1))
    store.save(ALICE, profile(2))
    assert torch.equal(store.load(ALICE, backbone()).edit.theta_p, profile(2).edit.theta_p)
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(store.list()) == 1
    assert ProfileStore(tmp_path).delete(ALICE) and not store.delete(ALICE)
    assert store.list() == [] and not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(UserError, match="There is no profile of 'alice@example.org' in .*list"):
        store.load(ALICE, backbone())


def test_a_loaded_profile_saved_again_keeps_its_users_but_not_in_another_store(
    tmp_path: Path,
) -> None:
    store = ProfileStore(tmp_path / "one")
    store.save("movies", profile(0, USERS))
    loaded = store.load("movies", backbone())
    store.save("again", loaded)
    assert store.load("again", backbone()).users == loaded.users
    with pytest.raises(UserError, match="loaded from another store"):
        ProfileStore(tmp_path / "two").save("movies", loaded)


@pytest.mark.parametrize(
    ("key", "users", "words"),
    [
        ("", USERS[:1], "needs a key"),
        (USERS[1], USERS, "is the id of a member"),
        ("taken", USERS, "profile of a user and cannot take one of a group"),
        ("group", USERS[:1], "profile of a group and cannot take one of a user"),
    ],
)
def test_a_key_that_would_reveal_or_overwrite_is_refused(
    key: str, users: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    store = ProfileStore(tmp_path)
    store.save("taken", profile())
    store.save("group", profile(1, USERS))
    before = tree(tmp_path)
    with pytest.raises(UserError, match=words):
        store.save(key, profile(2, users))
    assert tree(tmp_path) == before


def test_an_edit_of_a_batch_is_refused(tmp_path: Path) -> None:
    made = profile()
    rows = replace(made, edit=Edit.stack([made.edit, None]))
    with pytest.raises(UserError, match="belongs to a batch"):
        ProfileStore(tmp_path).save(ALICE, rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "other"}, "belongs to backbone small-mistral-0, not to other"),
        ({"revision": "abc123"}, r"revision none \(a local checkpoint\) of .* not to abc123"),
        ({"fingerprint": "f" * 64}, "belongs to other weights of small-mistral-0"),
        ({"n_layers": 1}, "edits layers .* 1 layers of width 24"),
        ({"d": 32}, "of width 24, but small-mistral-0 has 3 layers of width 32"),
    ],
)
def test_another_backbone_other_weights_or_revision_are_refused(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    class Other:
        name, revision = backbone().name, ""
        fingerprint, n_layers, d = backbone().fingerprint, 3, 24

    other: Any = Other()
    ProfileStore(tmp_path).save(ALICE, profile())
    assert ProfileStore(tmp_path).load(ALICE, other).n_pairs
    for name, value in change.items():
        setattr(other, name, value)
    with pytest.raises(UserError, match=words):
        ProfileStore(tmp_path).load(ALICE, other)


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def swap(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: cut(p, 0.1), "cut short or no safetensors file"),
    (lambda p: cut(p, 0.9), "cut short or no safetensors file"),
    (lambda p: p.write_bytes(b""), "cut short or no safetensors file"),
    (lambda p: p.write_bytes(b"\xff\xfe\x00"), "cut short or no safetensors file"),
    (lambda p: p.write_bytes(save({"p": np.ones(2)})), "lacks format"),
    (lambda p: swap(p, b'"format":"2"', b'"format":"1"'), "has format 1, this version reads 2"),
    (lambda p: swap(p, b'alpha_p\\":1.0', b'alpha_p\\":9.0'), r"changed after it was saved"),
    (lambda p: swap(p, b"LaMP_3", b"LaMP_2"), r"changed after it was saved"),
    (lambda p: swap(p, b"float32", b"float64"), r"changed after it was saved"),
    (flip, "changed after it was saved"),
]


@pytest.mark.parametrize("at", range(len(DAMAGES)))
def test_a_damaged_file_is_refused_in_one_sentence_that_names_it(
    at: int, tmp_path: Path
) -> None:
    damage, words = DAMAGES[at]
    path = ProfileStore(tmp_path).save(ALICE, profile())
    damage(path)
    with pytest.raises(UserError, match=words) as caught:
        ProfileStore(tmp_path).load(ALICE, backbone())
    said = str(caught.value)
    assert str(tmp_path) in said and "\n" not in said and said.count(". ") == 0
    assert "profile again" in said


def forged(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """A file with a right checksum and wrong content, as another program might write it."""
    stored = read_profile(path)
    change(stored.content, stored.tensors)
    write_profile(path, stored)


def put(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(_content: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays[name] = value(arrays[name])

    return change


def nan(array: Any) -> Any:
    array = array.copy()
    array[0, 0] = float("nan")
    return array


FORGERIES: list[tuple[Callable[[dict[str, Any], dict[str, Any]], None], str]] = [
    (put("edit/theta_p", lambda a: a.astype("int32")), "edit/theta_p is int32, not floating"),
    (put("edit/theta_p", lambda a: a[0]), "must both be"),
    (put("edit/theta_n", lambda a: a[:, :-1]), "must both be"),
    (put("edit/theta_n", nan), "edit/theta_n holds NaN or infinity; fit the profile again"),
    (put("edit/theta_p", lambda a: 0 * a), "cannot be used: theta_p of layer .* is zero"),
    (put("edit/gate_p", lambda a: a.astype("float32")), "edit/gate_p is float32, not bool"),
    (put("directions/theta_p", nan), "directions/theta_p holds NaN"),
    (put("directions/ccs_loss", lambda a: a[:-1]), "ccs_loss has the shape"),
    (lambda _, arrays: arrays.pop("edit/theta_n"), "theta_n|wrong type"),
    (lambda content, _: content.pop("task"), "has no 'task'"),
    (lambda content, _: content["settings"].update(edit_order="sideways"), "edit_order is"),
    (lambda content, _: content["settings"].update(new=1), r"does not know \(new\)"),
    (lambda content, _: content["edit"].update(layers=[0.5, 1]), "whole numbers are needed"),
    (lambda content, _: content["edit"].update(layers=None), "wrong type"),
]


@pytest.mark.parametrize("at", range(len(FORGERIES)))
def test_a_file_with_a_right_checksum_and_wrong_content_is_refused(
    at: int, tmp_path: Path
) -> None:
    change, words = FORGERIES[at]
    path = ProfileStore(tmp_path).save(ALICE, profile())
    forged(path, lambda *_: None)
    assert ProfileStore(tmp_path).load(ALICE, backbone()).n_pairs
    forged(path, change)
    with pytest.raises(UserError, match=words) as caught:
        ProfileStore(tmp_path).load(ALICE, backbone())
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_lost_key_of_the_store_is_said_and_never_replaced(tmp_path: Path) -> None:
    ProfileStore(tmp_path).save(ALICE, profile())
    key = tmp_path / "pseudonyms.key"
    whole = key.read_bytes()
    for damage in (lambda: key.unlink(), lambda: key.write_text("short")):
        damage()
        with pytest.raises(UserError, match="pseudonyms.key .*restore it"):
            ProfileStore(tmp_path).load(ALICE, backbone())
        with pytest.raises(UserError, match="pseudonyms.key .*restore it"):
            ProfileStore(tmp_path).save(ALICE, profile(1))
    key.write_bytes(whole)
    assert ProfileStore(tmp_path).load(ALICE, backbone()).n_pairs


def test_other_prompts_than_those_of_the_fit_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = profile()
    assert len(made.prompts) == 64
    ProfileStore(tmp_path).save(ALICE, replace(made, prompts="0" * 64))
    with caplog.at_level(logging.WARNING):
        ProfileStore(tmp_path).load(ALICE, backbone())
    assert "made with other prompts" in caplog.text
