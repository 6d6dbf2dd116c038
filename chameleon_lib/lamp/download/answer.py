"""What an answer of the server says: which version, how much, and whether it is JSON at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.message import Message
from typing import Any

from chameleon_lib.errors import UserError

CHUNK = 1 << 18  # bytes per read at most
BOM = b"\xef\xbb\xbf"
_SLOWEST = 500  # bytes per second; less over a whole time-out counts as a stall


class Passing(Exception):
    """A failure that another attempt may mend."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def version_of(headers: Message) -> str | None:
    """What names this version of the file beyond doubt; a weak ETag does not."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def length_of(headers: Message) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def body_of(response: Any, timeout: float, left: int | None) -> Iterator[bytes]:
    """Yield the body as it comes.

    Raises:
        Passing: So little came during a whole time-out that waiting makes no sense.
    """
    since, got = time.monotonic(), 0
    while left is None or left > 0:
        # read1 returns what is there; read would wait for a full chunk of a trickle.
        chunk = response.read1(CHUNK if left is None else min(CHUNK, left))
        if not chunk:
            return
        left = None if left is None else left - len(chunk)
        got += len(chunk)
        yield chunk
        now = time.monotonic()
        if now - since > timeout:
            if got < _SLOWEST * timeout:
                raise Passing("the connection hardly moves")
            since, got = now, 0


def check_opening(url: str, head: bytes, content_type: str) -> None:
    """Refuse what is no JSON by its first character, before anything of it is stored."""
    start = head.removeprefix(BOM).lstrip()[:1]
    if start in (b"[", b"{"):
        return
    page = start == b"<" or "html" in content_type
    what = "a web page" if page else f"no JSON ({content_type or 'no type given'})"
    raise UserError(
        f"{url} was answered with {what} instead of the file (HTTP 200); open the address in a "
        "browser: a login page or a file that moved looks like this."
    )
