"""Bring official LaMP files into a folder: over HTTP, resumed, checked to the last record, hashed.

Two traps stand behind the paths: the movies of LaMP-2 lie under ``new/`` (without it the server
still has the old news task), and no other task has such a folder. Labels of the test users are
withheld, so there is no ``test_outputs.json`` to ask for.

A file gets its name only after it was read to the end and found to be what its name says; until
then its bytes lie beside it as ``NAME.ADDRESS.VERSION.partial``, so that a download that was killed
goes on, and halves of two versions never meet in one file. What was finished is noted with its hash
in one lock file without a date: two downloads of the same files give the same lock. A second start
compares hashes and asks the server for nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tqdm import tqdm

from chameleon_lib.core.task import PAPER_TASKS, get_task
from chameleon_lib.data.samples import (
    check_ids,
    read_golds,
    stream_samples,
)
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text

BASE_URL = "https://ciir.cs.umass.edu/downloads/LaMP"
INDEX_PAGE = "https://lamp-benchmark.github.io/download"
SPLITS = ("user", "time")
PARTS = ("train", "dev", "test")
LOCK = "lamp_files.json"
_FORMAT = 1
_CHUNK = 1 << 18  # bytes per read at most
_WORTH = 1 << 20  # bytes an attempt must gain to be no failure
_LONGEST_PAUSE = 60.0  # seconds
# Far below any real record, far above what a page of HTML in place of a list could reach.
_SMALLEST = {"questions": 200, "outputs": 20}  # bytes per record
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_ADVICE = {
    401: "the server asks for a login; check --base-url",
    403: "the server forbids it; check the address in a browser, or use --base-url",
    404: f"the server has no such file; see {INDEX_PAGE} for its new place, and give that with "
    "--base-url",
    407: "the proxy asks for a login; put user and password into https_proxy",
    410: f"the file was removed; see {INDEX_PAGE} for its new place",
}


@dataclass(frozen=True, slots=True)
class OfficialFile:
    """One file of the benchmark.

    Attributes:
        task: Task name with an underscore.
        part: "train", "dev" or "test".
        kind: "questions" or "outputs".
        path: Path below the base URL, and below the folder it is stored in.
        records: Number of questions or golds.
        confirmed: Whether that number was checked on the file itself.
        bytes: Size that was seen, None where it was not noted.
    """

    task: str
    part: str
    kind: str
    path: str
    records: int
    confirmed: bool
    bytes: int | None

    @property
    def smallest(self) -> int:
        """Bytes below which the file cannot be whole."""
        return self.records * _SMALLEST[self.kind]

    @property
    def size(self) -> str:
        """Its size in words; empty where none was noted."""
        return f", {self.bytes / 1e6:,.1f} MB when last seen" if self.bytes else ""


def folder_of(split: str) -> str:
    """Folder of a split below the download folder: what ``--data`` takes."""
    return "time" if split == "time" else ""


def official_files(
    tasks: Sequence[str] = (), split: str = "user", parts: Sequence[str] = ()
) -> tuple[OfficialFile, ...]:
    """The files of a split, questions before their outputs.

    Args:
        tasks: Task names, with underscore or hyphen; the paper's three if empty.
        split: "user" (disjoint users, the paper's) or "time" (the same users in all parts).
        parts: Some of `PARTS`; all if empty.

    Raises:
        UserError: An unknown task, split or part.
    """
    if split not in SPLITS:
        raise UserError(f"Unknown split {split!r}: use one of {', '.join(SPLITS)}.")
    for part in parts:
        if part not in PARTS:
            raise UserError(f"Unknown part {part!r}: use one of {', '.join(PARTS)}.")
    found = []
    for task in dict.fromkeys(get_task(name) for name in tasks or PAPER_TASKS):
        known = task.official
        stem = "/".join(word for word in (folder_of(split), task.name, known.folder) if word)
        for part in [p for p in PARTS if (not parts or p in parts) and (split, p) in known.records]:
            records = known.records[split, part]
            for kind in ("questions", "outputs") if part != "test" else ("questions",):
                name = f"{part}_{kind}.json"
                size = known.bytes.get(name) if split == "user" else None
                path = f"{stem}/{part}/{name}"
                found.append(
                    OfficialFile(task.name, part, kind, path, abs(records), records > 0, size)
                )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the lock.

    Attributes:
        url: Where it came from; None for a file that was already in place.
        bytes: Its size.
        sha256: Hash of its bytes.
        records: Questions or golds in it.
    """

    url: str | None
    bytes: int
    sha256: str
    records: int


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lock(folder: Path) -> dict[str, Entry]:
    """The entries by path below `folder`; none where there is no lock.

    Raises:
        UserError: The lock is not one of ours.
    """
    path = folder / LOCK
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError("another format")
        return {name: Entry(**entry) for name, entry in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is no list of downloaded files that this version can read; delete it, and "
            "the files beside it are checked and recorded again."
        ) from None


def check_base_url(url: str) -> str:
    """The base URL without a closing slash.

    Raises:
        UserError: Not http or https, no host, or with a password, which would end up in the lock.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        good = good and url.isascii()
    except ValueError:
        good = False
    if not good or any(character.isspace() for character in url) or parts.query or parts.fragment:
        raise UserError(f"--base-url takes an http or https address, not '{url}'.")
    if parts.username is not None:
        raise UserError(
            "--base-url must hold no user name or password; let a proxy or a mirror log in."
        )
    return url.rstrip("/")


def _open(url: str, headers: dict[str, str], timeout: float) -> Any:
    """Ask for a file, with the proxies of the environment (``all_proxy``, too)."""
    proxies = urllib.request.getproxies()
    scheme = url.partition(":")[0]
    proxy = proxies.get(scheme) or proxies.get("all")
    if proxy and "://" in proxy and not proxy.startswith(("http://", "https://")):
        raise UserError(
            f"The proxy of {scheme}_proxy is a {proxy.partition(':')[0]} proxy; "
            "set it to an HTTP proxy, or use a mirror with --base-url."
        )
    handler = urllib.request.ProxyHandler(proxies | ({scheme: proxy} if proxy else {}))
    request = urllib.request.Request(url, headers=headers)
    return urllib.request.build_opener(handler).open(request, timeout=timeout)


def _unreachable(url: str, problem: object) -> str | None:
    """What is wrong with a connection that will not come about; None if it may."""
    host = urlsplit(url).netloc
    known: dict[type, str] = {
        socket.gaierror: f"the host {host} cannot be found; check the network connection, set "
        "https_proxy if you are behind a proxy, or use a mirror with --base-url",
        ConnectionRefusedError: f"the host {host} or the proxy refuses the connection; check "
        "https_proxy, or use a mirror with --base-url",
        ssl.SSLCertVerificationError: f"the certificate of {host} is not trusted; set "
        "SSL_CERT_FILE to your organisation's certificates",
        http.client.InvalidURL: "the address is not valid; check --base-url",
    }
    return known.get(type(problem))


class _Passing(Exception):
    """A failure that another attempt may mend."""


@dataclass(frozen=True)
class Manners:
    """How a download behaves.

    Attributes:
        timeout: Seconds without data after which a connection is given up.
        attempts: Failures in a row, without a worthwhile gain, after which a file is given up.
        pause: Seconds before the second attempt, doubled each time.
        accept_changed: Take files whose size, number of records or hash is not the known one.
            Every record is checked all the same.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0
    accept_changed: bool = False


def say(sentence: str) -> None:
    """Something a reader of the log should know."""
    print(sentence, file=sys.stderr, flush=True)


class _Transfer:
    """One file on its way to `target`, taken up where an earlier start left it."""

    def __init__(self, url: str, target: Path, manners: Manners, smallest: int) -> None:
        self.url, self.target, self.manners, self.smallest = url, target, manners, smallest
        self.stem = f"{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}."
        self.path: Path | None = None
        self.total: int | None = None
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in sorted(target.parent.glob(f"{target.name}.*.partial")):
            if old.name.startswith(self.stem) and self.path is None and self._version(old):
                self.path = old
            else:
                old.unlink()  # from elsewhere, or of a version that nothing is known of

    def _version(self, path: Path) -> str:
        return unquote(path.name.removeprefix(self.stem).removesuffix(".partial"))

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path is not None else 0

    def drop(self) -> None:
        """Remove what has arrived: its bytes are of no use."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self.path = self.total = None

    def run(self) -> Path:
        """Fetch until all bytes are here; what has arrived stays for the next start.

        Raises:
            UserError: The file cannot be had.
        """
        failures, best = 0, self.size
        while True:
            try:
                self._attempt()
                assert self.path is not None
                return self.path
            except _Passing as problem:
                reason = str(problem)
            failures = 0 if self.size >= best + _WORTH else failures + 1
            best = max(best, self.size)
            if failures >= self.manners.attempts:
                kept = f"{self.size:,} bytes are kept, " if self.size else ""
                raise UserError(
                    f"{self.url} could not be downloaded in {self.manners.attempts} attempts "
                    f"({reason}); {kept}start the same command again later, or use a mirror with "
                    "--base-url."
                )
            say(f"{self.url}: {reason}; going on at byte {self.size:,}.")
            pause = self.manners.pause * 2 ** max(0, failures - 1)
            time.sleep(min(pause, _LONGEST_PAUSE))

    def _attempt(self) -> None:
        headers = {"User-Agent": "chameleon-lib", "Accept-Encoding": "identity"}
        if self.path is not None and self.size and self._version(self.path):
            headers |= {"Range": f"bytes={self.size}-", "If-Range": self._version(self.path)}
        try:
            with _open(self.url, headers, self.manners.timeout) as response:
                self._receive(response)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            what = _unreachable(self.url, cause) if not self.size else None
            if what is not None:
                raise UserError(f"{self.url} cannot be downloaded: {what}.") from None
            if isinstance(cause, TimeoutError):
                raise _Passing(f"nothing came for {self.manners.timeout:g} seconds") from None
            raise _Passing(str(cause) or type(cause).__name__) from None

    def _refused(self, error: urllib.error.HTTPError) -> None:
        if error.code == 416:
            if error.headers.get("Content-Range") == f"bytes */{self.size}":
                return  # all of it is here
            self.drop()
            raise _Passing("the server has less of the file than is here")
        if error.code not in _PASSING:
            advice = _ADVICE.get(
                error.code, "check the address in a browser, or use a mirror with --base-url"
            )
            raise UserError(
                f"{self.url} cannot be downloaded (HTTP {error.code} {error.reason}): {advice}."
            )
        raise _Passing(f"HTTP {error.code} {error.reason}")

    def _receive(self, response: Any) -> None:
        headers = response.headers
        coding = headers.get("Content-Encoding", "identity")
        if coding != "identity":
            raise UserError(
                f"{self.url} comes compressed ({coding}) although it was asked for as it is; "
                "switch that off in the proxy, or use a mirror with --base-url."
            )
        etag = headers.get("ETag", "")  # a weak one promises nothing about bytes
        strong = etag and not etag.startswith("W/")
        version = etag if strong else headers.get("Last-Modified", "")
        if response.status == 206:
            span = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", headers.get("Content-Range", ""))
            total = int(span[2]) if span and span[2] != "*" else self.total
            same = self.path is not None and version == self._version(self.path)
            if not same or not span or int(span[1]) != self.size or self.total not in (None, total):
                self.drop()
                raise _Passing("the server sent a part of another version of the file")
            self.total = total
        else:
            if self.size:
                say(f"{self.url} starts over: it changed, or the server does not resume.")
            self.drop()
            length = headers.get("Content-Length", "")
            self.total = int(length) if length.isascii() and length.isdigit() else None
            name = f"{self.stem}{quote(version, safe='')}.partial"
            self.path = self.target.with_name(name)
            self.path.touch()
        if self.total is not None and self.total < self.smallest:
            raise UserError(
                f"{self.url} has only {self.total:,} bytes, fewer than the {self.smallest:,} "
                "that its records need, so it is not the official file; check the address "
                "(--accept-changed takes it all the same)."
            )
        self._store(response, headers.get("Content-Type", ""))
        if self.total is not None and self.size < self.total:
            raise _Passing(f"the connection ended after {self.size:,} of {self.total:,} bytes")

    def _store(self, response: Any, content_type: str) -> None:
        """Append the body; nothing is stored until its first character looks like JSON."""
        assert self.path is not None
        # read1 returns what is there; read would wait for a full chunk of a trickle.
        chunk = response.read1(_CHUNK)
        if not self.size:
            while not (start := chunk.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]):
                more = response.read1(_CHUNK)
                if not more or len(chunk) > _CHUNK:
                    break
                chunk += more
            if start not in (b"[", b"{"):
                page = start == b"<" or "html" in content_type
                what = "a web page" if page else f"no JSON ({content_type or 'no type given'})"
                raise UserError(
                    f"{self.url} was answered with {what} instead of the file (HTTP 200); open the "
                    "address in a browser: a login page or a file that moved looks like this."
                )
        slow = 0.5 if sys.stderr.isatty() else 30.0  # seconds between two lines of progress
        bar = tqdm(
            total=self.total, initial=self.size, unit="B", unit_scale=True, mininterval=slow,
            delay=slow, desc=self.target.name, file=sys.stderr,
        )  # fmt: skip
        with self.path.open("ab", buffering=0) as file, bar:
            while chunk:
                try:
                    file.write(chunk)
                except OSError as error:  # not the connection's, which another attempt may mend
                    raise UserError(
                        f"{self.path} cannot be written ({error.strerror}); free some space or "
                        "check the disk, and start again."
                    ) from error
                bar.update(len(chunk))
                chunk = response.read1(_CHUNK)


class _Folder:
    """The download folder during one run; the arguments of `download`."""

    def __init__(self, folder: Path, base_url: str, manners: Manners) -> None:
        self.folder, self.base_url, self.manners = folder, base_url, manners
        self.entries = read_lock(folder)
        self._ids: dict[str, set[str]] = {}

    def bring(self, file: OfficialFile) -> bool:
        """Make sure that one file is in place; return whether it had to be fetched."""
        target, known = self.folder / file.path, self.entries.get(file.path)
        if not target.is_file():
            self._fetch(file, target, known)
            return True
        if known is not None:
            say(f"{target}: verifying.")
            if target.stat().st_size == known.bytes and sha256_of(target) == known.sha256:
                return False
            if not self.manners.accept_changed:
                raise UserError(
                    f"{target} is not the file that was recorded (SHA-256 {known.sha256[:12]}…): "
                    "it changed since; delete it to download it again, or keep it with "
                    "--accept-changed."
                )
        self._note(file, self._checked(file, target, None))
        say(f"{target}: found in place, checked and recorded.")
        return False

    def _fetch(self, file: OfficialFile, target: Path, known: Entry | None) -> None:
        url, lenient = f"{self.base_url}/{file.path}", self.manners.accept_changed
        say(f"{url}{file.size}")
        transfer = _Transfer(url, target, self.manners, 0 if lenient else file.smallest)
        try:
            partial = transfer.run()
        finally:
            if not transfer.size:
                transfer.drop()
        try:
            entry = self._checked(file, partial, url)
        except UserError:
            transfer.drop()  # whole and wrong: there is nothing in it to go on from
            raise
        if known is not None and known.sha256 != entry.sha256 and not lenient:
            raise UserError(
                f"{url} is not the file that was recorded in {self.folder} before (SHA-256 "
                f"{known.sha256[:12]}…, now {entry.sha256[:12]}…): it changed on the server; "
                "take the new one with --accept-changed."
            )
        # The lock first: a kill in between leaves a whole partial file of a known hash.
        self._note(file, entry)
        os.replace(partial, target)
        records = f"{entry.bytes:,} bytes, {entry.records:,} records"
        say(f"{target}: {records}, SHA-256 {entry.sha256[:12]}…")

    def _note(self, file: OfficialFile, entry: Entry) -> None:
        self.entries[file.path] = entry
        files = {name: asdict(one) for name, one in sorted(self.entries.items())}
        content = json.dumps({"format": _FORMAT, "files": files}, indent=1)
        replace_text(self.folder / LOCK, f"{content}\n")

    def _checked(self, file: OfficialFile, path: Path, url: str | None) -> Entry:
        """Read a file to its end; the entry of the lock.

        Raises:
            UserError: It is not what its name says; the sentence names its address.
        """
        shown = url or str(path)
        try:
            if file.kind == "questions":
                ids = self._questions(path, file)
            else:
                ids = set(read_golds(path, file.task))
                partner = file.path.replace("_outputs.json", "_questions.json")
                questions = self.folder / partner
                if questions.is_file():
                    asked = self._ids.get(partner) or self._questions(questions, file)
                    check_ids(questions, path, asked, ids)
        except UserError as error:
            raise UserError(str(error).replace(str(path), shown)) from None
        if len(ids) != file.records:
            sentence = (
                f"{shown} holds {len(ids):,} {file.kind}, and LaMP documents {file.records:,} for "
                f"the {file.part} part of {file.task}"
            )
            if file.confirmed and not self.manners.accept_changed:
                raise UserError(f"{sentence}; take it all the same with --accept-changed.")
            say(f"{sentence}: taken as it is.")
        self._ids[file.path] = ids
        return Entry(url, path.stat().st_size, sha256_of(path), len(ids))

    def _questions(self, path: Path, file: OfficialFile) -> set[str]:
        ids = {sample.query.id for sample in stream_samples(path, file.task)}
        if not ids:
            raise UserError(f"{path} is an empty list; check the address.")
        return ids


def download(
    folder: Path,
    files: Sequence[OfficialFile],
    *,
    base_url: str = BASE_URL,
    manners: Manners | None = None,
) -> int:
    """Bring files into `folder`, where `find_split` and `load_users` take them from.

    Args:
        folder: Made if needed; receives the files in the server's layout, and the lock.
        files: From `official_files`.
        base_url: The server, or a mirror with the same layout.
        manners: Patience, and what is taken.

    Returns:
        How many files were fetched; the others were in place and unchanged.

    Raises:
        UserError: A file cannot be had or is not what its name says, the folder cannot be written,
            or another process is at work in it. Files that were finished before stay, and so do
            the bytes of an unfinished one.
    """
    base_url, held = check_base_url(base_url), -1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        run = _Folder(folder, base_url, manners or Manners())
        return sum(run.bring(file) for file in files)
    except BlockingIOError:
        raise UserError(
            f"Another download is writing {folder}; wait for it or stop it."
        ) from None
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); free some space, check the disk, or "
            "give another folder."
        ) from error
    finally:
        if held >= 0:
            os.close(held)
