"""Fetch one file over HTTP: resumed where possible, tried again where that helps.

Standard library only, with the usual proxy variables (``https_proxy``, ``all_proxy``,
``no_proxy``). What cannot get better (404, a page of HTML, no such host) ends at once in one
sentence; what may (a cut or stalled connection, 5xx) is tried again from the last byte on.
"""

from __future__ import annotations

import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from typing import Any, Protocol

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.download.answer import (
    BOM,
    CHUNK,
    Passing,
    body_of,
    check_opening,
    length_of,
    version_of,
)
from chameleon_lib.lamp.download.connection import opener, refusal, unreachable
from chameleon_lib.lamp.download.partial import Partial

_WORTH = 1 << 20  # bytes an attempt must gain to be no failure
_LONGEST_PAUSE = 60.0  # seconds
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)$")


class Listener(Protocol):
    """Who is told what happens."""

    def say(self, sentence: str) -> None:
        """Something a reader of the log should know."""

    def progress(self, what: str, unit: str, done: int, total: int | None) -> None:
        """`done` of `total` bytes or records are through; called often."""


@dataclass(frozen=True)
class Manners:
    """How patient a download is.

    Attributes:
        timeout: Seconds without data (or with hardly any) after which a connection is given up.
        attempts: Failures in a row, without a worthwhile gain, after which the file is given up.
        pause: Seconds before the second attempt, doubled each time.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0


PATIENT = Manners()


@dataclass(frozen=True)
class _Job:
    """One file to fetch; the arguments of `fetch`."""

    url: str
    partial: Partial
    manners: Manners
    listener: Listener
    smallest: int

    def attempt(self) -> None:
        """Bring the file to its end.

        Raises:
            Passing: It did not work, and may work another time.
            UserError: It will not work.
        """
        start = self.partial.size
        headers = {"User-Agent": "chameleon-lib", "Accept-Encoding": "identity"}
        if start and self.partial.version is not None:
            headers |= {"Range": f"bytes={start}-", "If-Range": self.partial.version}
        try:
            request = urllib.request.Request(self.url, headers=headers)
            with opener().open(request, timeout=self.manners.timeout) as response:
                self._receive(response, start)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            final = unreachable(self.url, cause) if start == 0 else None
            if final is not None:
                raise final from None
            if isinstance(cause, TimeoutError):
                raise Passing(f"nothing came for {self.manners.timeout:g} seconds") from None
            raise Passing(str(cause) or type(cause).__name__) from None

    def _refused(self, error: urllib.error.HTTPError) -> None:
        if error.code == 416:
            self.partial.restart(None, None)
            raise Passing("the server has less of the file than is here")
        if error.code not in _PASSING:
            raise refusal(self.url, error.code, error.reason)
        wait = error.headers.get("Retry-After", "")
        seconds = float(wait) if wait.isascii() and wait.isdigit() else 0.0
        raise Passing(f"HTTP {error.code} {error.reason}", seconds)

    def _receive(self, response: Any, start: int) -> None:
        headers: Message = response.headers
        coding = headers.get("Content-Encoding", "identity")
        if coding != "identity":
            raise UserError(
                f"{self.url} comes compressed ({coding}) although it was asked for as it is; "
                "switch that off in the proxy, or use a mirror with --base-url."
            )
        partial = self.partial
        if response.status == 206:
            self._accept_rest(headers, start)
        else:
            if start:
                changed = version_of(headers) != partial.version
                why = "it changed on the server" if changed else "the server does not resume"
                self.listener.say(f"{self.url} starts over: {why}.")
            partial.restart(version_of(headers), length_of(headers))
        self._check_room()
        self._store(response, headers.get("Content-Type", ""))
        if partial.total is not None and partial.size < partial.total:
            raise Passing(f"the connection ended after {partial.size:,} of {partial.total:,} bytes")

    def _accept_rest(self, headers: Message, start: int) -> None:
        """Assert that a partial answer is the rest of the very file whose bytes are here."""
        match = _RANGE.match(headers.get("Content-Range", ""))
        total = int(match[2]) if match is not None and match[2] != "*" else self.partial.total
        fits = (
            match is not None
            and int(match[1]) == start
            and version_of(headers) == self.partial.version
            and self.partial.total in (None, total)
        )
        if not fits:
            self.partial.restart(None, None)
            raise Passing("the server sent a part of another version of the file")
        self.partial.total = total

    def _check_room(self) -> None:
        """Refuse a file that is too small to be whole, or too large for the disk."""
        partial = self.partial
        if partial.total is None:
            return
        if partial.total < self.smallest:
            raise UserError(
                f"{self.url} has only {partial.total:,} bytes, fewer than the {self.smallest:,} "
                "that its records need, so it is not the official file; check the address "
                "(--accept-changed takes it all the same)."
            )
        folder, needed = partial.path.parent, partial.total - partial.size
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise UserError(
                f"{self.url} needs {needed:,} more bytes, and the disk of {folder} has {free:,} "
                "left; free some space and start again."
            )

    def _store(self, response: Any, content_type: str) -> None:
        partial = self.partial
        at = partial.size
        left = None if partial.total is None else partial.total - at
        head = b""
        for chunk in body_of(response, self.manners.timeout, left):
            if at == 0:
                # Nothing is stored until the first character that is no blank was seen.
                head += chunk
                if not head.removeprefix(BOM).strip() and len(head) < CHUNK:
                    continue
                check_opening(self.url, head, content_type)
                chunk, head = head, b""
            partial.write(chunk)
            at += len(chunk)
            self.listener.progress(self.url, "bytes", at, partial.total)


def fetch(
    url: str, partial: Partial, *, manners: Manners, listener: Listener, smallest: int = 0
) -> None:
    """Fetch a file until all its bytes are in `partial`.

    Args:
        url: Address of the file.
        partial: Opened; holds what came earlier.
        manners: Patience.
        listener: Hears of progress, of every failed attempt and of every fresh start.
        smallest: Bytes below which an announced size is refused.

    Raises:
        UserError: The file cannot be had; what has arrived stays for the next start.
    """
    job = _Job(url, partial, manners, listener, smallest)
    failures, best = 0, partial.size
    while not partial.whole:
        try:
            return job.attempt()
        except Passing as problem:
            reason, wait = str(problem), problem.wait
        failures = 0 if partial.size >= best + _WORTH else failures + 1
        best = max(best, partial.size)
        if failures >= manners.attempts:
            kept = f"{partial.size:,} bytes are kept, " if partial.size else ""
            raise UserError(
                f"{url} could not be downloaded in {manners.attempts} attempts ({reason}); "
                f"{kept}start the same command again later, or use a mirror with --base-url."
            )
        listener.say(f"{url}: {reason}; going on at byte {partial.size:,}.")
        time.sleep(min(max(wait, manners.pause * 2 ** max(0, failures - 1)), _LONGEST_PAUSE))
