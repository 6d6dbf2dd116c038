"""Saving, loading and deleting edit profiles: a directory is the store.

    store = ProfileStore("profiles")
    store.save("alice", profile)                     # save_profile("profiles", "alice", profile)
    profile = store.load("alice", backbone)          # load_profile("profiles", "alice", backbone)
    store.delete("alice")                            # delete_profile("profiles", "alice")
    store.forget("alice", cache=".chameleon")        # see profiles.forget

These are the ``save``, ``load`` and ``delete`` of an ``EditProfile``. They are no methods of it
because ``core`` never touches files.

A key is the name of a user or of a group. User ids are nowhere stored: keys become file names, and
members become pseudonyms, both by a hash with a random key of the store (``kit.pseudonyms``). Only
the name of a group (a profile of several users) is kept as it is, so that ``forget`` can say which
groups must be fitted again: do not name groups after people. No text of any user is stored. The
files are described in ``profiles.files`` and ``profiles.directory``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_lib.core.edit_profile import EditProfile
from chameleon_lib.core.prompts_digest import prompts_digest
from chameleon_lib.core.protocols import Backbone
from chameleon_lib.errors import UserError
from chameleon_lib.kit.pseudonyms import is_pseudonym
from chameleon_lib.profiles.compatibility import check_backbone
from chameleon_lib.profiles.directory import ProfileDirectory
from chameleon_lib.profiles.files import read_content
from chameleon_lib.profiles.forget import Forgotten, forget
from chameleon_lib.profiles.records import from_stored, to_stored

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProfileInfo:
    """What a list of profiles says of one.

    Attributes:
        id: Its file name without suffix.
        group: Name of the group; empty for a personal profile.
        task: Task of its users.
        backbone: Name of the backbone.
        revision: Its revision on the hub, or empty.
        n_users: Users whose pairs it was made from and who were not forgotten.
        n_pairs: Pairs it was made from.
        forgotten: Users who were forgotten since; above 0 the group must be fitted again.
        bytes: Size of both files.
        path: The JSON file.
    """

    id: str
    group: str
    task: str
    backbone: str
    revision: str
    n_users: int
    n_pairs: int
    forgotten: int
    bytes: int
    path: Path


class ProfileStore:
    """Edit profiles in a directory, safe under concurrent writers and kill -9.

    Args:
        directory: Made by the first save.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = ProfileDirectory(Path(directory))

    def save(self, key: str, profile: EditProfile, *, all_layers: bool = True) -> Path:
        """Store a profile; one of the same key is replaced.

        Args:
            key: Id of the user, or name of the group.
            profile: With a shared edit. One without ``users`` counts as made from the user ``key``.
            all_layers: Keep the directions of unedited layers and the diagnostics. Without them a
                profile is as small as its edit.

        Returns:
            The JSON file.

        Raises:
            UserError: A name that would reveal a member, users known by pseudonyms of another
                store, or a group in place of a user or the other way round.
        """
        if not key:
            raise UserError("A profile needs a key: the id of its user or the name of its group.")
        users = tuple(dict.fromkeys(profile.users)) or (key,)
        names = self.directory.pseudonyms
        for user in users:
            if is_pseudonym(user) and not names.owns(user):
                raise UserError(
                    "This profile was loaded from another store, which knows its users by "
                    "pseudonyms alone; set its users before saving it here."
                )
        members = [user if names.owns(user) else names.of(user) for user in users]
        group = key if len(members) > 1 else ""
        if group and names.of(group) in members:
            raise UserError(
                "The key of a group is stored as it is, and this one is the id of a member; give "
                "the group another name."
            )
        stored = to_stored(profile, members, all_layers=all_layers)
        content = {**stored.content, "group": group, "forgotten": 0}

        def same_kind(before: dict[str, Any]) -> None:
            if before["group"] != group:
                kinds = ("group", "user") if before["group"] else ("user", "group")
                raise UserError(
                    f"The key belongs to the profile of a {kinds[0]} and cannot take one of a "
                    f"{kinds[1]}; give another key, or delete the other profile first."
                )

        return self.directory.put(key, content, stored.tensors, check=same_kind)

    def load(self, key: str, backbone: Backbone) -> EditProfile:
        """The profile of a key, for the backbone it was made with.

        Its ``users`` are pseudonyms of this store; saving it here again keeps them.

        Raises:
            UserError: There is none, its files are damaged, or they belong to another backbone,
                other weights or another revision.
        """
        path = self.directory.path_of(key)
        stored = self.directory.get(key)
        profile = from_stored(stored, path)
        check_backbone(profile, backbone, path)
        if stored.content["forgotten"]:
            log.warning(
                "Group %r holds %d forgotten users; fit it again.",
                stored.content["group"], stored.content["forgotten"],
            )  # fmt: skip
        if profile.prompts and profile.prompts != prompts_digest(profile.task, profile.settings):
            log.warning(
                "Profile %s was made with other prompts than this version writes; fit it again "
                "to match.", path,
            )  # fmt: skip
        return profile

    def delete(self, key: str) -> bool:
        """Remove the profile of a key; False if there was none."""
        return self.directory.delete(key)

    def list(self) -> list[ProfileInfo]:
        """All profiles, by id.

        Raises:
            UserError: One of them is damaged.
        """
        found = []
        for path in self.directory.paths():
            try:
                found.append(_info(path))
            except FileNotFoundError:  # removed since
                continue
        return found

    def info(self, key: str) -> ProfileInfo:
        """What :meth:`list` says of the profile of a key."""
        path = self.directory.path_of(key)
        self.directory.get(key)  # says what is wrong
        return _info(path)

    def forget(
        self,
        user: str,
        *,
        cache: str | Path | None = None,
        outputs: str | Path | None = None,
        texts: tuple[str, ...] = (),
        serving: Sequence[str | Path] = (),
    ) -> Forgotten:
        """Remove what is kept of a user; see :func:`profiles.forget.forget`."""
        return forget(
            self.directory,
            user,
            cache=None if cache is None else Path(cache),
            outputs=None if outputs is None else Path(outputs),
            texts=texts,
            serving=[Path(folder) for folder in serving],
        )


def save_profile(
    where: str | Path | ProfileStore, key: str, profile: EditProfile, *, all_layers: bool = True
) -> Path:
    """:meth:`ProfileStore.save` in a store or a directory."""
    return _store(where).save(key, profile, all_layers=all_layers)


def load_profile(where: str | Path | ProfileStore, key: str, backbone: Backbone) -> EditProfile:
    """:meth:`ProfileStore.load` from a store or a directory."""
    return _store(where).load(key, backbone)


def delete_profile(where: str | Path | ProfileStore, key: str) -> bool:
    """:meth:`ProfileStore.delete` in a store or a directory."""
    return _store(where).delete(key)


def _store(where: str | Path | ProfileStore) -> ProfileStore:
    return where if isinstance(where, ProfileStore) else ProfileStore(where)


def _info(path: Path) -> ProfileInfo:
    content = read_content(path)
    return ProfileInfo(
        id=path.stem,
        group=content["group"],
        task=content["task"],
        backbone=content["backbone"]["name"],
        revision=content["backbone"]["revision"],
        n_users=len(content["users"]),
        n_pairs=content["pairs"]["different"],
        forgotten=content["forgotten"],
        bytes=path.stat().st_size + content["tensors"]["bytes"],
        path=path,
    )
