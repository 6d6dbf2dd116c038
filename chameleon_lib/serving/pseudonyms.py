"""What users are called in a profile store, without their names.

A plain hash of a user id is no secret: ids are numbers or e-mail addresses, and whoever guesses
one can check the guess. So an id is hashed together with a random key that is made once per store
and kept in it. A profile that leaves the store without the key says nothing about its user; inside
the store, whoever reads the key can still check a guess, as the store itself must.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from chameleon_lib.errors import UserError

KEY_FILE = "pseudonyms.key"
_PREFIX = "user"


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
