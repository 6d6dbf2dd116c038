"""The notebook ledger: which notebook is up to date, and if not, why.

A notebook is current if everything it was made from is unchanged (its cells, parameters, the
library code it imports, data, models, environment.yml) and every file it made is still there with
the same content. Of a file that all notebooks add to, it is enough that it can be read. New prose
alone re-runs a notebook, too, which finds all that it computes in the store.
"""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit.facts import FILE as FACTS
from chameleon_lib.kit.facts import load_run_facts
from chameleon_lib.kit.hashing import digest, file_digest, plain, tree_digests
from chameleon_lib.kit.notebooks import PATHS, Notebook
from chameleon_lib.kit.paths import executed_dir, outputs_dir, replace_text
from chameleon_lib.kit.sources import SourceTree

# Not made by a notebook, or different at every run.
_NOT_OUTPUTS = ("measured", "html", "notebooks")
_SHARED = FACTS  # every notebook adds to it: its content is nobody's

Inputs = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Entry:
    """What is known about the last good run of one notebook.

    Attributes:
        inputs: kind of cause -> name -> sha256.
        outputs: file relative to `outputs/<profile>/` -> sha256.
    """

    inputs: Inputs
    outputs: dict[str, str]


def library_names(notebook: Notebook, sources: SourceTree) -> list[str]:
    """The library modules that a notebook's code imports.

    Raises:
        UserError: if a code cell is not plain Python.
    """
    names: set[str] = set()
    for number, code in enumerate(notebook.code(), start=1):
        try:
            tree = ast.parse(code)
        except SyntaxError as error:
            raise UserError(
                f"{notebook.path.name}: code cell {number} is not plain Python ({error.msg})."
            ) from None
        names.update(sources.imports(tree))
    return sorted(name for name in names if sources.find(name.partition(":")[0]) is not None)


def notebook_inputs(
    notebook: Notebook,
    parameters: Mapping[str, Any],
    *,
    sources: SourceTree,
    environment: Path,
    profile: object = None,
) -> Inputs:
    """Hash everything a notebook's results depend on.

    Args:
        notebook: the source notebook.
        parameters: values to inject; what `PATHS` names is hashed file by file.
        sources: library code.
        environment: environment.yml.
        profile: the run profile's table entry, whose numbers decide the results too.
    """
    data_files: dict[str, str] = {}
    for name in PATHS:
        if path := parameters.get(name):
            folder = Path(path)
            files = sorted(file for file in (folder, *folder.rglob("*")) if file.is_file())
            seen = tuple((file, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
            data_files |= _data_digests(folder, seen)
    return {
        "code": {"cells": digest(notebook.code())},
        "text": {"other cells": digest(notebook.text())},
        "parameters": {
            name: digest(value) for name, value in {**parameters, "run profile": profile}.items()
        },
        "library": sources.digests(library_names(notebook, sources), data=True),
        "data": data_files,
        "environment": {environment.name: file_digest(environment)},
    }


@lru_cache(maxsize=2)
def _data_digests(folder: Path, _seen: tuple[tuple[Path, int, int], ...]) -> dict[str, str]:
    """Hashes of the data, read once per process: every notebook asks, of gigabytes."""
    return {folder.name: file_digest(folder)} if folder.is_file() else tree_digests(folder)


def difference(old: Inputs, new: Inputs) -> str:
    """Name what changed between two sets of inputs, for a reader; empty if nothing did."""
    reasons = []
    for kind in sorted(set(old) | set(new)):
        before, after = old.get(kind, {}), new.get(kind, {})
        names = sorted(n for n in set(before) | set(after) if before.get(n) != after.get(n))
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            reasons.append(f"{kind} changed: {', '.join(names[:2])}{more}")
    return "; ".join(reasons)


class Ledger:
    """Entries by run profile and notebook, kept in one JSON file.

    Args:
        path: the file; a missing one is an empty ledger, an unreadable one too, because the
            worst that can follow is a notebook run again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, Entry]] = {}
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            self._entries = {
                profile: {name: Entry(**entry) for name, entry in entries.items()}
                for profile, entries in stored.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            self._entries = {}

    def entry(self, profile: str, name: str) -> Entry | None:
        """The entry of a notebook, if it ever ran well."""
        return self._entries.get(profile, {}).get(name)

    def why(self, profile: str, notebook: Notebook, inputs: Inputs) -> str:
        """Why a notebook must run; empty if it is current."""
        entry = self.entry(profile, notebook.name)
        if entry is None:
            return "never run here"
        changed = difference(entry.inputs, inputs)
        if changed:
            return changed
        for name, expected in entry.outputs.items():
            path = outputs_dir(profile) / name
            if not path.is_file():
                return f"output missing: {name}"
            if name == _SHARED:
                if not _readable(path.parent):
                    return f"output changed: {name}"
                continue
            if file_digest(path) != expected:
                return f"output changed: {name}"
        return ""

    def record(
        self, profile: str, notebook: Notebook, inputs: Inputs, outputs: Iterable[str]
    ) -> None:
        """Note a good run and save the ledger.

        A file that two notebooks wrote belongs to the last writer alone: the other one's copy is
        gone, and it must not look changed for that.

        Args:
            profile: run profile.
            notebook: the source notebook that ran.
            inputs: its causes, taken before the run.
            outputs: files relative to `outputs/<profile>/`.
        """
        base = outputs_dir(profile)
        executed = (executed_dir(profile) / notebook.path.name).relative_to(base).as_posix()
        names = sorted({*outputs, executed})
        entry = Entry(inputs, {n: file_digest(base / n) for n in names})
        with self._lock:
            entries = self._entries.setdefault(profile, {})
            for other, old in list(entries.items()):
                taken = entry.outputs.keys() - {_SHARED}
                kept = {n: value for n, value in old.outputs.items() if n not in taken}
                entries[other] = Entry(old.inputs, kept)
            entries[notebook.name] = entry
            self._save()

    def upstream(self, profile: str, notebooks: Iterable[Notebook]) -> dict[str, str]:
        """What a summary notebook reads: the others' tables, figures and verdicts."""
        found: dict[str, str] = {}
        for notebook in notebooks:
            entry = self.entry(profile, notebook.name)
            for name, value in (entry.outputs if entry else {}).items():
                if not name.startswith("notebooks/") and name != _SHARED:
                    found[name] = value
        return found

    def _save(self) -> None:
        stored = {
            profile: {name: asdict(entry) for name, entry in entries.items()}
            for profile, entries in self._entries.items()
        }
        replace_text(self.path, json.dumps(plain(stored), indent=1, sort_keys=True) + "\n")


def _readable(folder: Path) -> bool:
    """Whether the facts of the run are what a page can show."""
    try:
        return bool(load_run_facts(folder))
    except UserError:
        return False


def written_outputs(profile: str, log: Path) -> list[str]:
    """Output files that a kernel noted in its log of replaced files (`paths.WRITTEN`).

    Notebooks may run side by side, so what is new in the folder tells nothing of who wrote it.
    """
    base = outputs_dir(profile).absolute()
    try:
        lines = set(log.read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return []
    found = []
    for path in map(Path, lines):
        inside = path.is_relative_to(base) and path.is_file()
        parts = path.relative_to(base).parts if inside else ()
        if parts == (_SHARED,) or (len(parts) > 1 and parts[0] not in _NOT_OUTPUTS):
            found.append("/".join(parts))
    return sorted(found)
