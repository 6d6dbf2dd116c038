"""Bring official LaMP files into a folder: fetch, check every record, record the hash.

A file gets its name only after it was read to the end and found to be what its name says. A
second start compares hashes and asks the server for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chameleon_lib.errors import UserError
from chameleon_lib.lamp.data import check_ids
from chameleon_lib.lamp.download.catalogue import BASE_URL, OfficialFile
from chameleon_lib.lamp.download.connection import check_base_url
from chameleon_lib.lamp.download.lock import Entry, read_lock, sha256_of, write_lock
from chameleon_lib.lamp.download.partial import Partial
from chameleon_lib.lamp.download.transfer import PATIENT, Listener, Manners, fetch
from chameleon_lib.lamp.samples import check_golds_on_list, read_golds, stream_samples

_STEP = 100  # records between two words about progress


class _Folder:
    """The download folder during one run; the arguments of `download`."""

    def __init__(
        self, folder: Path, base_url: str, manners: Manners, accept_changed: bool,
        listener: Listener,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.base_url = base_url
        self.manners = manners
        self.accept_changed = accept_changed
        self.listener = listener
        self.entries = read_lock(folder)
        self._ids: dict[str, set[str]] = {}

    def bring(self, file: OfficialFile) -> bool:
        """Make sure that one file is in place; return whether it had to be fetched."""
        target = self.folder / file.path
        if not target.is_file():
            self._fetch(file, target)
            return True
        entry = self.entries.get(file.path)
        if entry is not None:
            self.listener.say(f"{target}: verifying.")
            if target.stat().st_size == entry.bytes and sha256_of(target) == entry.sha256:
                return False
            if not self.accept_changed:
                raise UserError(
                    f"{target} is not the file that was recorded (SHA-256 {entry.sha256[:12]}…): "
                    "it changed since; delete it to download it again, or keep it with "
                    "--accept-changed."
                )
        found = self._check(target, file, str(target))
        self._record(file, Entry(None, target.stat().st_size, sha256_of(target), found))
        self.listener.say(f"{target}: found in place, checked and recorded.")
        return False

    def _fetch(self, file: OfficialFile, target: Path) -> None:
        url = f"{self.base_url}/{file.path}"
        size = f", {file.bytes / 1e6:,.1f} MB when last seen" if file.bytes else ""
        self.listener.say(f"{url}{size}")
        with Partial(target, url).opened() as partial:
            fetch(
                url,
                partial,
                manners=self.manners,
                listener=self.listener,
                smallest=0 if self.accept_changed else file.smallest,
            )
            try:
                found = self._check(partial.path, file, url)
            except UserError:
                # Whole and wrong: there is nothing in it to go on from.
                partial.discard()
                raise
            entry = Entry(url, partial.size, sha256_of(partial.path), found)
            known = self.entries.get(file.path)
            if known is not None and known.sha256 != entry.sha256 and not self.accept_changed:
                raise UserError(
                    f"{url} is not the file that was recorded in {self.folder} before (SHA-256 "
                    f"{known.sha256[:12]}…, now {entry.sha256[:12]}…): it changed on the server; "
                    "take the new one with --accept-changed."
                )
            # The lock first: a kill in between leaves a whole partial file of a known hash.
            self._record(file, entry)
            partial.keep(target)
        self.listener.say(
            f"{target}: {entry.bytes:,} bytes, {entry.records:,} records, "
            f"SHA-256 {entry.sha256[:12]}…"
        )

    def _record(self, file: OfficialFile, entry: Entry) -> None:
        # Read again: another download may have finished files of its own meanwhile.
        self.entries = {**read_lock(self.folder), file.path: entry}
        write_lock(self.folder, self.entries)

    def _check(self, path: Path, file: OfficialFile, shown: str) -> int:
        """Read a file to its end and return the number of its records.

        Raises:
            UserError: It is not what its name says; the sentence names `shown`.
        """
        try:
            read = self._questions if file.kind == "questions" else self._golds
            ids = read(path, file)
        except UserError as error:
            raise UserError(str(error).replace(str(path), shown)) from None
        count = len(ids)
        if count != file.records:
            sentence = (
                f"{shown} holds {count:,} {file.kind}, and LaMP documents {file.records:,} for "
                f"the {file.part} part of {file.task}"
            )
            if file.confirmed and not self.accept_changed:
                raise UserError(f"{sentence}; take it all the same with --accept-changed.")
            self.listener.say(f"{sentence}: taken as it is.")
        self._ids[file.path] = ids
        return count

    def _questions(self, path: Path, file: OfficialFile) -> set[str]:
        ids: set[str] = set()
        for sample in stream_samples(path, file.task):
            ids.add(sample.query.id)
            if len(ids) % _STEP == 0:
                self.listener.progress(f"checking {path}", "records", len(ids), file.records)
        if not ids:
            raise UserError(f"{path} is an empty list; check the address.")
        return ids

    def _golds(self, path: Path, file: OfficialFile) -> set[str]:
        golds = read_golds(path, file.task)
        check_golds_on_list(path, file.task, golds)
        questions = self.folder / file.partner
        if questions.is_file():
            if file.partner not in self._ids:
                samples = stream_samples(questions, file.task)
                self._ids[file.partner] = {sample.query.id for sample in samples}
            check_ids(questions, path, self._ids[file.partner], set(golds))
        return set(golds)


def download(
    folder: Path,
    files: Sequence[OfficialFile],
    *,
    listener: Listener,
    base_url: str = BASE_URL,
    manners: Manners = PATIENT,
    accept_changed: bool = False,
) -> int:
    """Bring files into `folder`, where `find_split` and `load_users` take them from.

    Args:
        folder: Made if needed; receives the files in the server's layout, and the lock.
        files: From `official_files`.
        listener: Hears of progress, of everything odd and of every finished file.
        base_url: The server, or a mirror with the same layout.
        manners: Patience.
        accept_changed: Take files whose size, number of records or hash is not the known one.
            Every record is checked all the same.

    Returns:
        How many files were fetched; the others were in place and unchanged.

    Raises:
        UserError: A file cannot be had or is not what its name says. Files that were finished
            before stay, and so do the bytes of an unfinished one.
    """
    run = _Folder(folder, check_base_url(base_url), manners, accept_changed, listener)
    return sum(run.bring(file) for file in files)
