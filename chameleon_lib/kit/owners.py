"""Whose work a record is, without the name, so that everything of a user can be found and removed.

A plain hash of a user id is no secret: ids are numbers or e-mail addresses, and whoever guesses
one can check the guess. So an id is hashed together with a random key that is made once per store
and kept in it. A record that leaves the store without the key says nothing about its user; inside
the store, whoever reads the key can still check a guess, as the store itself must.

A record's key in the artifact store is a hash and tells nothing, so the record itself carries a
note: pseudonyms of the users whose data went into it. Group records name all members. Where the
code that makes a record does not say whose it is (a group's directions know activations, not
users), all users that the store object has worked for so far are noted: too many, never too few.
A record without a note, or with one under another key, may be anybody's, and `units_of` finds it
for every user: a cache can be computed again.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit.records import CorruptedRecord, verify

KEY_FILE = "pseudonyms.key"
_PREFIX = "user"
_DIGITS = 16  # of a pseudonym in a note; a collision removes a record too many


class Pseudonyms:
    """Pseudonyms of one folder.

    Args:
        folder: Holds the key; the key is made when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / KEY_FILE
        self._key = b""

    @property
    def key(self) -> bytes:
        """The folder's key, 32 bytes.

        Raises:
            UserError: The key file holds something else.
        """
        if not self._key:
            try:
                text = self.path.read_text(encoding="ascii").strip()
            except FileNotFoundError:
                _create(self.path)
                text = self.path.read_text(encoding="ascii").strip()
            except UnicodeDecodeError:
                text = ""
            if len(text) != 64 or set(text) - set("0123456789abcdef"):
                raise UserError(
                    f"{self.path} is no key of 64 hexadecimal digits; restore it from a backup: "
                    "without it no user can be found in this folder."
                )
            self._key = bytes.fromhex(text)
        return self._key

    @property
    def mark(self) -> str:
        """Eight digits that tell pseudonyms of this folder from those of others."""
        return hashlib.sha256(b"mark" + self.key).hexdigest()[:8]

    def of(self, user_id: str) -> str:
        """The pseudonym of a user: ``user:<mark>:<32 digits>``."""
        return f"{_PREFIX}:{self.mark}:{self.hashed('user', user_id)}"

    def hashed(self, purpose: str, text: str) -> str:
        """32 hexadecimal digits for a text, others for every purpose."""
        return hmac.new(
            self.key, f"{purpose}\0{text}".encode("utf-8", "surrogatepass"), hashlib.sha256
        ).hexdigest()[:32]

    def owns(self, text: str) -> bool:
        """Whether a text is a pseudonym of this folder."""
        return is_pseudonym(text) and text.split(":")[1] == self.mark


def is_pseudonym(text: str) -> bool:
    """Whether a text has the form of a pseudonym, of whatever folder."""
    parts = text.split(":")
    return len(parts) == 3 and parts[0] == _PREFIX and (len(parts[1]), len(parts[2])) == (8, 32)


def _create(path: Path) -> None:
    """Make the key once: of two processes that try, one wins and both then read the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with temporary.open("w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)  # unlike a rename, a link never replaces another's key
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


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
