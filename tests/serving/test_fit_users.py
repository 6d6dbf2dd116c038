from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.edit import AnyEdit
from chameleon_lib.core.pairs import PreparedUser, prompt_texts, prompts_digest
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import User
from chameleon_lib.errors import UserError
from chameleon_lib.serving.engines import InlineEngine
from chameleon_lib.serving.files import fit_lock
from chameleon_lib.serving.fit_users import ChameleonFitter, GroupWork, UserFits, fit_groups
from chameleon_lib.serving.population import FitOne, fit_population, open_for_fit, user_line
from chameleon_lib.serving.sharded import ShardedStore, user_vector
from chameleon_lib.serving.shards import FEW, FITTED, LEFT, REFUSED, Group, Manifest, read_groups
from tests.core.method import SETTINGS, train_users
from tests.demo.small import HashEmbedder
from tests.serving.small import backbone
from tests.serving.test_sharded import an_edit, same

OWN = SETTINGS.with_(
    theta_method="fitted", pairs_source="auto", edit_positions="all", pairs_items=3, group_size=3
)


def method(**changes: Any) -> Chameleon:
    return Chameleon(backbone(), HashEmbedder(), OWN.with_(**changes))


def about(edits: str = "own", **changes: Any) -> Manifest:
    base, s = backbone(), OWN.with_(**changes)
    return Manifest(
        "LaMP_3", edits, base.name, base.fingerprint, "", base.d, base.n_layers, "float32",
        s.canonical(), prompts_digest("LaMP_3", s), 1,
    )  # fmt: skip


def a_group(number: int = 0) -> Group:
    centre = np.eye(32, dtype=np.float32)[number]
    return Group(number, replace(an_edit(5), positions="all"), centre, ())


def rows(edits: str, users: list[User], groups: list[Group], **changes: Any) -> list[Any]:
    fits = UserFits(method(**changes), about(edits, **changes), groups)
    return [fits.fit(user, bytes([at] * 16), bytes(8)) for at, user in enumerate(users)]


def gain_of(user: User, edit: AnyEdit) -> float:
    """The same by the formula: log p of the golds with the edit minus without, per token."""
    (items,) = method().select([user])
    prepared = PreparedUser(user, tuple(user.history[at] for at in items), "", "")
    prompts = backbone().prepare(prompt_texts(user.task, [prepared], "instruct", OWN))
    golds = [str(query.gold) for query in user.queries]
    with torch.no_grad():
        scores = [backbone().score(prompts, golds, edit=by, reduce="mean") for by in (edit, None)]
    return float((scores[0] - scores[1]).double().mean())


def test_own_edits_are_kept_and_scored_on_rows_that_no_fit_reads() -> None:
    users = train_users(n=2)
    one, two = rows("own", users, [a_group()])
    assert (one.state, one.group) == (FITTED, 0) and one.n_pairs >= 2 and one.check is not None
    assert one.rows == 2 and one.gain == pytest.approx(gain_of(users[0], one.edit), abs=1e-5)
    # The control is the edit of the user before.
    assert np.isnan(one.control)
    assert two.control == pytest.approx(gain_of(users[1], one.edit), abs=1e-5)
    # Other answers to the held-out rows change the score and nothing else.
    wrong = [replace(query, gold="1" if query.gold != "1" else "5") for query in users[0].queries]
    (other,) = rows("own", [replace(users[0], queries=tuple(wrong))], [a_group()])
    assert same(other.edit, one.edit) and other.gain != one.gain


def test_the_group_answers_who_has_too_few_pairs_or_a_refused_edit() -> None:
    users = train_users(n=1)
    (few,) = rows("own", users, [a_group()], pairs_k_min=9)
    assert few.state == FEW and few.edit is None and "9 are needed" in few.note
    edit = a_group().edit
    assert edit is not None and few.gain == pytest.approx(gain_of(users[0], edit), abs=1e-5)
    (refused,) = rows("own", users, [a_group()], check_edit="zero", guard_harmed=0.0)
    (kept,) = rows("own", users, [a_group()], check_edit="off")
    assert kept.state == FITTED
    assert refused.check is not None
    if refused.check.harmed > 0:  # of two or three texts of a random model one gets less likely
        assert refused.state == REFUSED and refused.edit is None and "not better" in refused.note
        assert refused.gain == pytest.approx(few.gain)
    else:
        assert refused.state == FITTED
    (grouped,) = rows("group", users, [a_group()])
    assert grouped.state == LEFT and grouped.gain == pytest.approx(few.gain)
    (alone,) = rows("group", users, [])
    assert alone.group == -1 and alone.rows == 2 and alone.gain == 0 and np.isnan(alone.control)


def test_collective_and_own_are_two_edits_that_answer_in_sequence(tmp_path: Path) -> None:
    users = train_users(n=1)
    (own,) = rows("own", users, [a_group()])
    (both,) = rows("collective-own", users, [a_group()])
    assert same(both.edit, own.edit)  # stored apart
    edit = a_group().edit
    assert edit is not None
    joined = AffineEdit.sequence(edit, both.edit)
    assert both.gain == pytest.approx(gain_of(users[0], joined), abs=1e-5)
    assert abs(both.gain - own.gain) > 1e-4
    # And so they come back from a store.
    store, found = stored(tmp_path, "collective-own")
    answering = store.answering(found.id)
    assert isinstance(answering.edit, AffineEdit) and answering.edit.rank == 4
    assert f"after that of {answering.group}, at distance" in answering.why
    profile = store.read(found.id, backbone())
    assert isinstance(profile.edit, AffineEdit) and store.content(found.id)["edit"]["rank"] == 4


class Small(ChameleonFitter):
    """Opens the small model."""

    def load(self) -> Any:
        return backbone(), HashEmbedder()

    def manifest(self, task: str, edits: str, precision: Any) -> Manifest:
        del task, precision
        return about(edits)

    def open(self, root: Path) -> FitOne:
        found = Manifest.read(root)
        return UserFits(method(), found, read_groups(root, found)).fit


def stored(root: Path, edits: str, users: list[User] | None = None) -> tuple[ShardedStore, User]:
    users = users or train_users()
    fitter = Small("small", OWN)
    with fit_lock(root):
        store = open_for_fit(root, about(edits), len(users))
        fit_groups(store, fitter, users, InlineEngine(), 2)
        fit_population(store, fitter, users, InlineEngine())
    one = next(user for user in users if (row := store.row(user.id)) and row.edit is not None)
    return store, one


def test_groups_are_found_fitted_and_fitted_again_without_who_was_forgotten(
    tmp_path: Path,
) -> None:
    users = train_users()
    store, _ = stored(tmp_path, "own", users)
    groups = store.groups
    assert [group.number for group in groups] == [0, 1]
    members = [member for group in groups for member in group.members]
    assert len(members) == len(set(members)) <= 6 and all(len(g.members) <= 3 for g in groups)
    assert not (tmp_path / "work").exists()
    # Each is the nearest one of its members.
    vectors = user_vector(users, HashEmbedder(), OWN)
    for user, vector in zip(users, vectors, strict=True):
        row = store.row(user.id)
        centres = np.stack([group.centre for group in groups])
        assert row is not None and row.group == int((1 - centres @ vector).argmin())
        assert row.distance == pytest.approx(float((1 - centres @ vector).min()), abs=1e-5)
    before = {group.number: group for group in groups}
    gone = next(user for user in users if store.key_of(user.id) in groups[0].members)
    if len(groups[0].members) == 1:
        gone = next(user for user in users if store.key_of(user.id) in groups[1].members)
    done = store.forget(gone.id)
    (name,) = done.groups
    number = int(name.rpartition("-")[2])
    stored(tmp_path, "own", [user for user in users if user.id != gone.id])
    again = {group.number: group for group in store.groups}
    assert again[number].forgotten == 0
    assert len(again[number].members) == len(before[number].members) - 1
    assert not np.allclose(again[number].centre, before[number].centre)
    assert np.array_equal(again[1 - number].centre, before[1 - number].centre)


def test_a_group_whose_fit_kills_workers_has_no_edit(tmp_path: Path) -> None:
    users = train_users(n=3)
    store = open_for_fit(tmp_path, about("own"), 3)
    work = GroupWork(tmp_path, Small("small", OWN), 1)
    work.folder.mkdir(parents=True)
    (work.folder / "0.jsonl").write_bytes(b"".join(map(user_line, users)))
    (work.folder / "0.trying").write_text("+0\n" * 3)
    list(InlineEngine().run(work, [(0,)]))
    (group,) = read_groups(work.folder / "0", store.manifest)
    assert group.edit is None and len(group.members) == 3


def test_a_site_that_no_row_holds_is_refused() -> None:
    settings = EditSettings(edit_site="gate_proj")
    with pytest.raises(UserError, match="edit_site to mlp_out"):
        ChameleonFitter("demo:decoder:0", settings).manifest("LaMP_2", "own", "bfloat16")
