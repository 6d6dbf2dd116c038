"""Bring official LaMP files into a folder: over HTTP, resumed, checked to the last record, hashed.

Two traps stand behind the paths: the movies of LaMP-2 lie under ``new/`` (without it the server
still has the old news task), and no other task has such a folder. Labels of the test users are
withheld, so there is no ``test_outputs.json`` to ask for.

A file gets its name only after it was read to the end and found to be what its name says; until
then its bytes lie beside it as ``NAME.VERSION.partial``, so that a download that was killed goes
on, and halves of two versions never meet in one file. What was finished is noted with its hash
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tqdm import tqdm

from chameleon_lib.core.task import PAPER_TASKS, get_task
from chameleon_lib.data.lamp import check_ids, read_golds, stream_samples
from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text

BASE_URL = "https://ciir.cs.umass.edu/downloads/LaMP"
INDEX_PAGE = "https://lamp-benchmark.github.io/download"
SPLITS = ("user", "time")
PARTS = ("train", "dev", "test")
LOCK = "lamp_files.json"
_FORMAT, _ENTRY = 1, {"url", "bytes", "sha256", "records"}
_CHUNK = 1 << 18  # bytes per read at most
_WORTH = 1 << 20  # bytes an attempt must gain to be no failure
_LONGEST_PAUSE = 60.0  # seconds
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_PARTIAL = ".partial"
_NEW_PLACE = f"see {INDEX_PAGE} for its new place, and give that with --base-url"
_ADVICE = {
    401: "the server asks for a login; check --base-url",
    403: "the server forbids it; check the address in a browser, or use --base-url",
    404: f"the server has no such file; {_NEW_PLACE}",
    407: "the proxy asks for a login; put user and password into https_proxy",
    410: f"the file was removed; {_NEW_PLACE}",
}
_UNREACHABLE: dict[type, str] = {
    socket.gaierror: "its host cannot be found; check the network connection, set https_proxy if "
    "you are behind a proxy, or use a mirror with --base-url",
    ConnectionRefusedError: "its host or the proxy refuses the connection; check https_proxy, or "
    "use a mirror with --base-url",
    ssl.SSLCertVerificationError: "the certificate of its host is not trusted; set SSL_CERT_FILE "
    "to your organisation's certificates",
    http.client.InvalidURL: "the address is not valid; check --base-url",
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lock(folder: Path) -> dict[str, dict[str, Any]]:
    """What was finished, by path below `folder`; the url of what was in place before is None.

    Raises:
        UserError: The lock is not one of ours.
    """
    path = folder / LOCK
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries: dict[str, dict[str, Any]] = content["files"]
        if content["format"] == _FORMAT and all(set(e) == _ENTRY for e in entries.values()):
            return entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(
        f"{path} is no list of downloaded files that this version can read; delete it, and the "
        "files beside it are checked and recorded again."
    )


def check_base_url(url: str) -> str:
    """The base URL without a closing slash.

    Raises:
        UserError: Not http or https, no host, or with a password, which would end up in the lock.
    """
    try:
        parts = urlsplit(url)
        good = parts.hostname and parts.port != 0 and re.fullmatch(r"https?://[!-~]+", url)
    except ValueError:
        good = None
    if not good or parts.query or parts.fragment:
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

    def __init__(self, url: str, target: Path, manners: Manners) -> None:
        self.url, self.target, self.manners = url, target, manners
        target.parent.mkdir(parents=True, exist_ok=True)
        found = sorted(target.parent.glob(f"{target.name}.*{_PARTIAL}"))
        self.path = found.pop() if found else None
        for old in found:
            old.unlink()

    @property
    def version(self) -> str:
        """What the server calls the version of which bytes have arrived."""
        name = self.path.name if self.path is not None else ""
        return unquote(name.removeprefix(f"{self.target.name}.").removesuffix(_PARTIAL))

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path is not None else 0

    def drop(self) -> None:
        """Remove what has arrived: its bytes are of no use."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self.path = None

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
        if self.size and self.version:
            headers |= {"Range": f"bytes={self.size}-", "If-Range": self.version}
        try:
            with _open(self.url, headers, self.manners.timeout) as response:
                self._receive(response, response.headers)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if type(cause) in _UNREACHABLE and not self.size:
                raise UserError(
                    f"{self.url} cannot be downloaded: {_UNREACHABLE[type(cause)]}."
                ) from None
            if isinstance(cause, TimeoutError):
                raise _Passing(f"nothing came for {self.manners.timeout:g} seconds") from None
            raise _Passing(str(cause) or type(cause).__name__) from None

    def _refused(self, error: urllib.error.HTTPError) -> None:
        if error.code == 416:
            if error.headers.get("Content-Range") == f"bytes */{self.size}":
                return  # all of it is here
            self.drop()
            raise _Passing("the server has less of the file than is here")
        what = f"HTTP {error.code} {error.reason}"
        if error.code in _PASSING:
            raise _Passing(what)
        advice = _ADVICE.get(
            error.code, "check the address in a browser, or use a mirror with --base-url"
        )
        raise UserError(f"{self.url} cannot be downloaded ({what}): {advice}.")

    def _receive(self, response: Any, headers: Any) -> None:
        etag = headers.get("ETag", "W/")  # a weak one promises nothing about bytes
        version = headers.get("Last-Modified", "") if etag.startswith("W/") else etag
        if response.status == 206:
            span = re.match(r"bytes (\d+)-\d+/(\d+|\*)$", headers.get("Content-Range", ""))
            if not span or int(span[1]) != self.size or version != self.version:
                self.drop()
                raise _Passing("the server sent a part of another version of the file")
            length = span[2]
        else:
            if self.size:
                say(f"{self.url} starts over: it changed, or the server does not resume.")
            self.drop()
            length = headers.get("Content-Length", "")
            name = f"{self.target.name}.{quote(version, safe='')}{_PARTIAL}"
            self.path = self.target.with_name(name)
            self.path.touch()
        total = int(length) if length.isascii() and length.isdigit() else None
        self._store(response, headers.get("Content-Type", ""), total)
        if total is not None and self.size < total:
            raise _Passing(f"the connection ended after {self.size:,} of {total:,} bytes")

    def _store(self, response: Any, content_type: str, total: int | None) -> None:
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
            total=total, initial=self.size, unit="B", unit_scale=True, mininterval=slow,
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
            if target.stat().st_size == known["bytes"] and _sha256(target) == known["sha256"]:
                return False
            if not self.manners.accept_changed:
                raise UserError(
                    f"{target} is not the file that was recorded (SHA-256 "
                    f"{known['sha256'][:12]}…): it changed since; delete it to download it again, "
                    "or keep it with --accept-changed."
                )
        self._note(file, self._checked(file, target, None))
        say(f"{target}: found in place, checked and recorded.")
        return False

    def _fetch(self, file: OfficialFile, target: Path, known: dict[str, Any] | None) -> None:
        url, lenient = f"{self.base_url}/{file.path}", self.manners.accept_changed
        say(f"{url}{file.size}")
        transfer = _Transfer(url, target, self.manners)
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
        now = entry["sha256"]
        if known is not None and known["sha256"] != now and not lenient:
            raise UserError(
                f"{url} is not the file that was recorded in {self.folder} before (SHA-256 "
                f"{known['sha256'][:12]}…, now {now[:12]}…): it changed on the server; "
                "take the new one with --accept-changed."
            )
        # The lock first: a kill in between leaves a whole partial file of a known hash.
        self._note(file, entry)
        os.replace(partial, target)
        records = f"{entry['bytes']:,} bytes, {entry['records']:,} records"
        say(f"{target}: {records}, SHA-256 {now[:12]}…")

    def _note(self, file: OfficialFile, entry: dict[str, Any]) -> None:
        self.entries[file.path] = entry
        content = {"format": _FORMAT, "files": dict(sorted(self.entries.items()))}
        replace_text(self.folder / LOCK, f"{json.dumps(content, indent=1)}\n")

    def _checked(self, file: OfficialFile, path: Path, url: str | None) -> dict[str, Any]:
        """Read a file to its end; the entry of the lock.

        Raises:
            UserError: It is not what its name says; the sentence names its address.
        """
        shown = url or str(path)
        try:
            ids = self._read(file, path)
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
        size = path.stat().st_size
        return {"url": url, "bytes": size, "sha256": _sha256(path), "records": len(ids)}

    def _read(self, file: OfficialFile, path: Path) -> set[str]:
        """The ids of a file whose every record is good; of outputs, answering the questions."""
        if file.kind == "questions":
            ids = {sample.query.id for sample in stream_samples(path, file.task)}
            if not ids:
                raise UserError(f"{path} is an empty list; check the address.")
            return ids
        partner = file.path.replace("_outputs.json", "_questions.json")
        answered, questions = set(read_golds(path, file.task)), self.folder / partner
        if questions.is_file():
            asked = self._ids.get(partner) or {
                sample.query.id for sample in stream_samples(questions, file.task)
            }
            check_ids(questions, path, asked, answered)
        return answered


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
