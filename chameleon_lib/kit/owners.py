"""Whose work a record of the artifact store is, so that everything of a user can be removed.

A record's key is a hash and tells nothing, so the record itself carries a note: pseudonyms of the
users whose data went into it. Group records name all members. Where the code that makes a record
does not say whose it is (a group's directions know activations, not users), all users that the
store object has worked for so far are noted: too many, never too few. A record without a note, or
with one under another key, may be anybody's, and `units_of` finds it for every user: a cache
can be computed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chameleon_lib.kit.pseudonyms import Pseudonyms
from chameleon_lib.kit.records import CorruptedRecord, verify

_DIGITS = 16  # of a pseudonym; a collision removes a record too many


class Owners:
    """Notes of the records of one store object.

    Args:
        root: Folder of the records; also holds the key of the pseudonyms.
    """

    def __init__(self, root: Path) -> None:
        self._pseudonyms = Pseudonyms(root)
        self._seen: set[str] = set()

    def named(self, user_ids: Iterable[str]) -> frozenset[str]:
        """The users as notes name them; from now on the store has worked for them."""
        names = frozenset(_name(self._pseudonyms, user_id) for user_id in user_ids)
        self._seen |= names
        return names

    def note(self, named: frozenset[str] | None) -> dict[str, Any] | None:
        """The note of a new record; None if nobody can say whose it is."""
        if named is None and not self._seen:
            return None
        who = sorted(self._seen if named is None else named)
        return {"key": self._pseudonyms.mark, "who": who}

    def extended(
        self, note: dict[str, Any] | None, named: frozenset[str] | None
    ) -> dict[str, Any] | None:
        """The note that a stored record needs instead of its own; None if that one will do.

        Equal content gives equal keys, so a record may turn out to be another user's as well.
        """
        if note is None or note["key"] != self._pseudonyms.mark:
            return self.note(named)
        if named is None or named <= set(note["who"]):
            return None
        return self.note(named | set(note["who"]))


@dataclass
class Units:
    """Records of the artifact store that hold, or may hold, something of a user.

    Attributes:
        claimed: Records of the user; those of groups the user was in are among them.
        unclaimed: Records of nobody in particular, which may be the user's.
        texts: Texts in records of this user alone: insights and answers.
    """

    claimed: list[Path] = field(default_factory=list)
    unclaimed: list[Path] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def stages(self) -> dict[str, int]:
        """Number of claimed records by stage."""
        return dict(sorted(Counter(path.parents[1].name for path in self.claimed).items()))

    def remove(self) -> None:
        """Remove them all; what is gone already is no error."""
        for path in [*self.claimed, *self.unclaimed]:
            path.unlink(missing_ok=True)


def units_of(root: Path, user_id: str) -> Units:
    """Every record that holds, or may hold, anything made from a user's data.

    No run may be at work on the folder.

    Args:
        root: Folder of the records.
        user_id: Id of the user, as runs know it.
    """
    found = Units()
    if not root.is_dir():
        return found
    pseudonyms = Pseudonyms(root)
    name = _name(pseudonyms, user_id)
    for path in sorted(root.glob("*/*/*.unit*")):
        try:
            content, _ = verify(path.read_bytes())
        except CorruptedRecord:  # also what a killed writer left behind
            content = {}
        note = content.get("about")
        if note is None or note["key"] != pseudonyms.mark:
            found.unclaimed.append(path)
        elif name in note["who"]:
            found.claimed.append(path)
            if note["who"] == [name]:
                found.texts += _strings(content.get("json"))
    return found


def _name(pseudonyms: Pseudonyms, user_id: str) -> str:
    return pseudonyms.hashed("user", user_id)[:_DIGITS]


def _strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
