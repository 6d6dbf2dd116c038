"""A store of a million users' edits: one row per user, found by its hash, and edits of groups.

    store = open_store("store")                     # a sharded store or a folder of profiles
    found = store.answering("alice")                # which edit answers, and why
    answers = backbone.generate(prompts, max_new_tokens=8, edit=found.edit)

``python -m chameleon_lib fit`` writes it (``serving.population``). User ids are nowhere stored:
rows are named by a hash with the store's random key (``serving.pseudonyms``). A user without an own
edit is answered by that of the nearest group: the one whose centre, the unit mean of its members'
vectors, has the smallest distance 1 − ⟨v, c⟩ to the user's own (:func:`user_vector`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.backbone import Backbone, Embedder
from chameleon_lib.core.edit import AnyEdit, Edit
from chameleon_lib.core.fitting import EditProfile
from chameleon_lib.core.history import item_texts, spread_items
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import User
from chameleon_lib.errors import UserError
from chameleon_lib.serving.files import (
    fit_lock,
    locked,
    model_name,
    remove_leftovers,
    remove_model,
    versions,
)
from chameleon_lib.serving.forget import Forgotten, forget, spellings
from chameleon_lib.serving.pseudonyms import KEY_FILE, Pseudonyms
from chameleon_lib.serving.shards import (
    GROUPS,
    MANIFEST,
    USERS,
    WORK,
    Group,
    Manifest,
    Row,
    find_cells,
    read_groups,
    row_of,
    shard_path,
    shard_tables,
    without,
    write_groups,
    write_table,
)
from chameleon_lib.serving.store import (
    Answering,
    EditStore,
    ProfileInfo,
    ProfileStore,
    check_backbone,
)

_GROUP = re.compile(r"group-(\d{4,})")


def open_store(folder: str | Path) -> EditStore:
    """The store in a folder, of either kind.

    Raises:
        UserError: There is no such folder, or its manifest is damaged.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        return ShardedStore(folder)
    return ProfileStore.at(folder)


def user_vector(users: Sequence[User], embedder: Embedder, settings: EditSettings) -> np.ndarray:
    """Unit mean of the embeddings of every user's history items, (n, d_s) float32.

    The texts are those of eq. 1 (``selection_item_text``); a user without history gets zeros.
    """
    texts = [
        item_texts(user.task, [user.history[at] for at in spread_items(user, settings)], settings)
        for user in users
    ]
    flat = embedder.encode([text for some in texts for text in some])
    found = np.zeros((len(users), flat.shape[1]), dtype=np.float32)
    start = 0
    for at, some in enumerate(texts):
        if some:
            found[at] = unit(flat[start : start + len(some)].mean(axis=0))
        start += len(some)
    return found


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1; zeros stay zeros."""
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / length if length else vector, dtype=np.float32)


def nearest(vector: np.ndarray, groups: Sequence[Group]) -> tuple[int, float]:
    """Number of the group with the nearest centre, and the distance 1 − ⟨v, c⟩; −1 without any."""
    if not groups:
        return -1, float("nan")
    distances = 1 - np.stack([group.centre for group in groups]) @ vector
    at = int(distances.argmin())
    return groups[at].number, float(distances[at])


class ShardedStore:
    """Edits of many users in Parquet shards; readers take no lock.

    Args:
        root: The folder, with a manifest.

    Raises:
        FileNotFoundError: There is no manifest.
        UserError: It is damaged, or the key of the store is lost.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        self.manifest = Manifest.read(self._root)
        self.pseudonyms = Pseudonyms(self._root)
        if not self.pseudonyms.path.exists() and any((self._root / USERS).glob("*.parquet")):
            raise UserError(
                f"{self._root / KEY_FILE} is missing; restore it from a backup: without it no user "
                "of this store can be found."
            )
        self._groups: tuple[Any, list[Group]] = (None, [])

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    @property
    def task(self) -> str:
        """Task of the users."""
        return self.manifest.task

    def key_of(self, user: str) -> bytes:
        """The hash of a user's id, 16 bytes; a pseudonym of this store is its own."""
        name = user if self.pseudonyms.owns(user) else self.pseudonyms.of(user)
        return bytes.fromhex(name.rpartition(":")[2])

    def name_of(self, key: bytes) -> str:
        """The pseudonym of a hash."""
        return f"user:{self.pseudonyms.mark}:{key.hex()}"

    def row(self, user: str | bytes) -> Row | None:
        """What the store holds of a user, by id or by hash; None if nothing."""
        key = user if isinstance(user, bytes) else self.key_of(user)
        cells = find_cells(shard_path(self._root, self.manifest.shard_of(key)), key)
        return None if cells is None else row_of(cells, self.manifest)

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Some columns of all users, in the order of their hashes, a row group in memory."""
        for path in sorted((self._root / USERS).glob("*.parquet")):
            for table in shard_tables(path, columns):
                yield from table.to_pylist()

    @property
    def groups(self) -> list[Group]:
        """All groups, by number; read again when their file was replaced."""
        path = self._root / GROUPS
        stat = path.stat() if path.exists() else None
        mark = None if stat is None else (stat.st_mtime_ns, stat.st_ino)
        if mark != self._groups[0]:
            self._groups = mark, read_groups(self._root, self.manifest)
        return self._groups[1]

    def group(self, number: int) -> Group | None:
        """A group by its number."""
        return next((group for group in self.groups if group.number == number), None)

    def answering(self, user: str, vector: np.ndarray | None = None) -> Answering:
        """Which edit answers a user, and why.

        Args:
            user: Id or pseudonym.
            vector: Of :func:`user_vector`, for a user whom the store does not know.
        """
        row, key = self.row(user), self.key_of(user)
        name = self.name_of(key)
        if row is not None and row.edit is not None:
            group = self.group(row.group)
            after = "" if group is None or group.edit is None else f", after that of {group.name}"
            why = f"The user's own edit of {row.n_pairs} pairs"
            if self.manifest.edits != "collective-own" or not after:
                return Answering(name, "own", row.edit, "", float("nan"), f"{why} answers.")
            assert group is not None
            return Answering(name, "own", self._joined(row), group.name, row.distance,
                             f"{why} answers{after}, at distance {row.distance:.3f}.")  # fmt: skip
        number, distance = (-1, float("nan")) if row is None else (row.group, row.distance)
        reason = "The store holds nothing of this user" if row is None else row.note.rstrip(".")
        reason = reason or "The job fitted no own edits"
        if row is None and vector is not None and np.any(vector):
            number, distance = nearest(vector, self.groups)
        group = self.group(number)
        if group is None:
            lacking = "there are no groups" if not self.groups else "no history tells its group"
            return Answering(name, "none", None, "", distance, f"{reason}; {lacking}: the base "
                             "answers.")  # fmt: skip
        near = f"{group.name}, the nearest, lies at distance {distance:.3f}"
        if group.edit is None:
            why = f"{reason}; {near}, and has no edit that is better than none: the base answers."
            return Answering(name, "none", None, group.name, distance, why)
        return Answering(name, "group", group.edit, group.name, distance,
                         f"{reason}; {near}: its edit answers.")  # fmt: skip

    # --- as a store of profiles -------------------------------------------------------------------

    def read(self, key: str, backbone: Backbone) -> EditProfile:
        """The profile of a user or of a group (``group-0003``), for the model it was made with.

        Raises:
            UserError: There is none, or it belongs to another model.
        """
        profile = self._profile(key)
        check_backbone(profile, backbone, self._root / MANIFEST)
        return profile

    load = read

    def info(self, key: str) -> ProfileInfo:
        """What :meth:`list` says of a profile."""
        match = _GROUP.fullmatch(key)
        group = self.group(int(match[1])) if match else None
        if group is not None:
            return self._group_info(group)
        row = self._row_with_edit(key)
        return self._info(row.user, row.n_pairs)

    def list(self) -> list[ProfileInfo]:
        """All profiles, groups first; for a store of a million users see :meth:`infos`."""
        return [*self.infos()]

    def infos(self) -> Iterator[ProfileInfo]:
        """All profiles one by one, groups first, then users in the order of their hashes."""
        yield from (self._group_info(group) for group in self.groups if group.edit is not None)
        for cells in self.rows(("user", "n_pairs", "alpha_p")):
            if cells["alpha_p"] is not None:
                yield self._info(cells["user"], cells["n_pairs"])

    def profile(self, info: ProfileInfo) -> EditProfile:
        """The profile of an info."""
        return self._profile(info.group or self.name_of(bytes.fromhex(info.id)))

    def content(self, key: str) -> dict[str, Any]:
        """Where a profile came from, JSON types."""
        profile, m = self._profile(key), self.manifest
        return {
            "edit": self._edit_content(profile.edit),
            "backbone": {"name": m.backbone, "fingerprint": m.fingerprint, "revision": m.revision},
            "pairs": {"different": profile.n_pairs, "identical": profile.n_identical},
            "prompts": m.prompts,
            "settings": m.settings,
        }

    @staticmethod
    def _edit_content(edit: AnyEdit) -> dict[str, Any]:
        if isinstance(edit, Edit):
            return edit.record()[0]
        named = {name: getattr(edit, name) for name in ("positions", "site", "compute_dtype")}
        return {"layers": list(edit.layers), "rank": edit.factors(0)[0].shape[-1], **named}

    def _joined(self, row: Row) -> AnyEdit:
        """The own edit of a row, after its group's where the job is collective, then own."""
        assert row.edit is not None
        group = self.group(row.group)
        if self.manifest.edits != "collective-own" or group is None or group.edit is None:
            return row.edit
        return AffineEdit.sequence(group.edit, row.edit)

    def _row_with_edit(self, key: str) -> Row:
        row = self.row(key)
        if row is None or row.edit is None:
            why = "" if row is None else f" ({row.state}: {row.note or 'groups alone were fitted'})"
            raise UserError(
                f"There is no own edit of {key!r} in {self._root}{why}; 'python -m chameleon_lib "
                f"profiles explain {key} --store {self._root}' says what answers in its place."
            )
        return row

    def _profile(self, key: str) -> EditProfile:
        match = _GROUP.fullmatch(key)
        group = self.group(int(match[1])) if match else None
        if group is None:
            row = self._row_with_edit(key)
            users: tuple[bytes, ...] = (row.user,)
            # Whatever its rank, a hook or an export takes it.
            edit = cast(Edit, self._joined(row))
            pairs, same, check = row.n_pairs, row.n_identical, row.check
        elif group.edit is None:
            why = "too few pairs" if group.check is None else group.check.warning
            raise UserError(f"{key} has no edit: {why}; its users are answered by the base.")
        else:
            users, edit = group.members, group.edit
            pairs, same, check = group.n_pairs, 0, group.check
        m = self.manifest
        return EditProfile(
            task=m.task, edit=edit, settings=m.edit_settings, backbone=(m.backbone, m.fingerprint),
            users=tuple(map(self.name_of, users)), n_pairs=pairs, n_identical=same, check=check,
            revision=m.revision, prompts=m.prompts,
        )  # fmt: skip

    def _info(self, user: bytes, n_pairs: int) -> ProfileInfo:
        m = self.manifest
        path = shard_path(self._root, m.shard_of(user))
        return ProfileInfo(user.hex(), "", m.task, m.backbone, m.fingerprint, m.revision, 1,
                           n_pairs, 0, m.row_bytes, path)  # fmt: skip

    def _group_info(self, group: Group) -> ProfileInfo:
        m = self.manifest
        return ProfileInfo(group.name, group.name, m.task, m.backbone, m.fingerprint, m.revision,
                           len(group.members), group.n_pairs, group.forgotten, m.row_bytes,
                           self._root / GROUPS)  # fmt: skip

    # --- forgetting -------------------------------------------------------------------------------

    def forget(self, user: str, **where: Any) -> Forgotten:
        """Remove what is kept of a user: the row, by rewriting its shard; see ``forget.forget``.

        A group that the user's pairs are in stays and is named; the next ``fit`` fits it again.
        """
        return forget(self, user, **where)

    def drop(self, user: str, serving: Sequence[Path], done: Forgotten) -> None:
        """Take a user's row, share of groups, exports and unfinished work away."""
        names = {self.key_of(one) for one in spellings(user)}
        with fit_lock(self._root), locked(self._root):
            for key in sorted(names):
                done.exports += remove_model(model_name("", key.hex()), serving)
                if self._drop_row(key):
                    done.profiles.append(key.hex())
            self._drop_member(names, serving, done)
            done.exports.sort()
            done.stale_exports.sort()

    def _drop_row(self, key: bytes) -> bool:
        """Rewrite the shard, and what a fit has not merged yet, without a user."""
        path = shard_path(self._root, self.manifest.shard_of(key))
        work = self._root / WORK
        files = [path, *sorted((work / "rows").glob(f"{path.stem}-*/*.parquet"))]
        found = [file for file in files if find_cells(file, key) is not None]
        for file in found:
            kept = (without(table, {key}) for table in shard_tables(file))
            write_table(file, kept, self.manifest, even=False)  # the others are copied as they are
        for texts in (USERS, "groups"):  # the next fit writes them again
            shutil.rmtree(work / texts, ignore_errors=True)
        for left in (work / "trying").glob(f"{path.stem}-*"):
            if key.hex().encode() in left.read_bytes():
                left.unlink()
        for folder in (path.parent, *(work / "rows").glob(f"{path.stem}-*")):
            if folder.is_dir():
                remove_leftovers(folder)
        return bool(found)

    def _drop_member(self, names: set[bytes], serving: Sequence[Path], done: Forgotten) -> None:
        groups, changed = [], False
        for group in self.groups:
            kept = tuple(key for key in group.members if key not in names)
            gone = len(group.members) - len(kept)
            if gone:
                changed = True
                group = replace(group, members=kept, forgotten=group.forgotten + gone)
                done.groups.append(group.name)
            elif group.forgotten:
                done.waiting.append(group.name)
            groups.append(group)
            if group.forgotten:
                done.stale_exports += versions(serving, model_name(group.name, group.name))
        if changed:
            write_groups(self._root, groups, self.manifest)
