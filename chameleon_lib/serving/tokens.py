"""Who may ask as whom: tokens of users, of which a store keeps salted hashes alone.

    token = Tokens("store").make("ada")         # shown once, to be given to the user
    Tokens("store").user_of(token)              # the user's hash in the store, or None
    Tokens("store").revoke("ada")

A token is ``<id>.<secret>``: the id finds its line in ``<store>/tokens.json``, the secret is 32
random bytes, so one round of SHA-256 with a salt is enough. The line names the user by the store's
pseudonym; forgetting a user takes the tokens along. A server that is at work reads the file again
when it was replaced. One file is read whole: it is for the users of one machine, not for a million.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_bytes
from chameleon_lib.serving.files import locked
from chameleon_lib.serving.pseudonyms import Pseudonyms

TOKENS = "tokens.json"
FORMAT = 1
_TOKEN = re.compile(r"([0-9a-f]{16})\.([A-Za-z0-9_-]{43})")
_HEX = re.compile(r"[0-9a-f]{32}")
_NOBODY = {"user": "", "salt": "0" * 32, "hash": "0" * 64}


class Tokens:
    """The tokens of a store.

    Args:
        root: Folder of the store.
    """

    def __init__(self, root: str | Path) -> None:
        self.path = Path(root) / TOKENS
        self._pseudonyms = Pseudonyms(Path(root))
        self._read: tuple[Any, dict[str, dict[str, str]]] = (None, {})

    def name_of(self, user: str) -> str:
        """The user's hash in the store, 32 hexadecimal digits; a pseudonym of it is its own."""
        name = user if self._pseudonyms.owns(user) else self._pseudonyms.of(user)
        return name.rpartition(":")[2]

    def make(self, user: str) -> str:
        """A new token of a user; earlier ones stay valid.

        Raises:
            UserError: No user is named, or the file is damaged.
        """
        if not user.strip():
            raise UserError("A token needs a user: give the id that was fitted.")
        number, secret, salt = secrets.token_hex(8), secrets.token_urlsafe(32), secrets.token_hex()
        line = {"user": self.name_of(user), "salt": salt, "hash": _hash(salt, secret)}
        with locked(self.path.parent):
            self._write({**self._lines(), number: line})
        return f"{number}.{secret}"

    def revoke(self, user: str) -> int:
        """Make all tokens of a user invalid; returns how many there were."""
        return self.drop({self.name_of(user)})

    def drop(self, names: Collection[str]) -> int:
        """Make the tokens of these hashes of users invalid; returns how many there were."""
        if not self.path.exists():
            return 0
        with locked(self.path.parent):
            lines = self._lines()
            kept = {at: line for at, line in lines.items() if line["user"] not in names}
            if len(kept) < len(lines):
                self._write(kept)
        return len(lines) - len(kept)

    def user_of(self, token: str) -> bytes | None:
        """The hash of the user a token stands for; None if it stands for nobody.

        As much is computed for a wrong token as for a right one.
        """
        match = _TOKEN.fullmatch(token)
        number, secret = match.groups() if match else ("", "")
        line = self._lines().get(number, _NOBODY)
        same = hmac.compare_digest(line["hash"], _hash(line["salt"], secret))
        return bytes.fromhex(line["user"]) if same and match and line["user"] else None

    def _lines(self) -> dict[str, dict[str, str]]:
        """What the file holds, read again when it was replaced."""
        try:
            stat = self.path.stat()
            mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if mark != self._read[0]:
                entry = json.loads(self.path.read_text(encoding="utf-8"))
                lines = {str(at): dict(line) for at, line in entry["tokens"].items()}
                whole = all(
                    _HEX.fullmatch(line["user"]) and line["salt"] and line["hash"]
                    for line in lines.values()
                )
                if entry["format"] != FORMAT or not whole:
                    raise ValueError("another format")
                self._read = mark, lines
        except FileNotFoundError:
            self._read = None, {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path} cannot be read ({error}); restore it from a backup, or delete it and "
                "make the tokens again."
            ) from error
        return self._read[1]

    def _write(self, lines: dict[str, dict[str, str]]) -> None:
        text = json.dumps({"format": FORMAT, "tokens": lines}, indent=1, sort_keys=True) + "\n"
        replace_bytes(self.path, text.encode(), durable=True)
        os.chmod(self.path, 0o600)


def _hash(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}.{secret}".encode()).hexdigest()
