"""What the person who waits sees; all on stderr, so that stdout ends with the page to read."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.progress import duration, light_file, notes_file, read_progress

if TYPE_CHECKING:
    from chameleon_lib.kit.engine import Session
    from chameleon_lib.kit.plan import Step

_PLAIN_EVERY = 30.0  # seconds between progress lines where they cannot be rewritten


class Pace:
    """Seconds of whole notebooks: those of the last run here, else a forecast.

    Args:
        profile: Run profile, in whose ``measured/timings.json`` they are kept.
        forecast: Notebook → expected seconds.
    """

    def __init__(self, profile: str, forecast: Mapping[str, float]) -> None:
        self._file = paths.measured_dir(profile) / "timings.json"
        self._forecast = forecast
        self._known: dict[str, float] = {}
        try:
            stored = json.loads(self._file.read_text(encoding="utf-8"))
            self._known = {k: float(v) for k, v in stored.get("seconds", {}).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass  # an estimate is all that is lost

    def finished(self, name: str, seconds: float) -> None:
        """Note how long a notebook took, for the rest of this run and for the next one."""
        self._known[name] = round(seconds, 1)
        text = json.dumps({"seconds": self._known}, indent=1, sort_keys=True)
        paths.replace_text(self._file, text + "\n")

    def last(self, name: str) -> float | None:
        """Seconds of the last run here."""
        return self._known.get(name)

    def left(self, name: str, spent: float = 0.0) -> float | None:
        """Seconds that a notebook still needs after ``spent``; None if it outran what is known."""
        guesses = (self._known.get(name, 0.0), self._forecast.get(name, 0.0))
        return next((guess - spent for guess in guesses if guess > spent), None)

    def total(self, names: Iterable[str]) -> float | None:
        """Seconds of notebooks that have not begun; None if one of them is unknown."""
        known = [self.left(name) for name in names]
        return None if None in known else sum(filter(None, known))


def progress_file(number: str) -> Path:
    """Where the kernel of a notebook tells this process how far it is."""
    return paths.cache_dir() / "progress" / f"{os.getpid()}-{number}.txt"


class Board:
    """Progress of a run.

    Args:
        profile: run profile.
        names: notebooks that will run, in order: number → name.
        pace: how long they take, as far as that is known.
    """

    def __init__(self, profile: str, names: Mapping[str, str], pace: Pace) -> None:
        self._profile = profile
        self._names = dict(names)
        self._pace = pace
        self._rewrite = sys.stderr.isatty()
        self._last = time.monotonic()
        self._told: Counter[str] = Counter()  # notes of a notebook that have been said

    def start(self, step: Step) -> None:
        """Say which notebook starts, and why it must."""
        notebook = step.notebook
        light = light_file(progress_file(notebook.number))
        light.unlink(missing_ok=True)
        if notebook.light:
            light.parent.mkdir(parents=True, exist_ok=True)
            light.touch()
        place = f"{list(self._names).index(notebook.number) + 1}/{len(self._names)}"
        usual = self._pace.last(notebook.name)
        hint = f", took {duration(usual)} last time" if usual else ""
        why = step.why or "asked for"
        self._line(f"[{notebook.number}] {notebook.name} ({place}): {why}{hint}")

    def show(self, running: Iterable[tuple[Step, Session]], waiting: Sequence[str]) -> None:
        """New notes, then cell, library progress and time of every running notebook."""
        now = time.monotonic()
        if now - self._last < (1.0 if self._rewrite else _PLAIN_EVERY):
            return
        self._last = now
        for step, session in running:
            number = step.notebook.number
            self._notes(number)
            spent = now - session.started
            left = self._pace.left(step.notebook.name, spent)
            parts = [
                f"[{number}] cell {session.cell}/{session.total}",
                read_progress(progress_file(number)),
                f"{duration(spent)} so far{_about(left, 'left')}",
            ]
            if waiting:
                more = self._pace.total(self._names[other] for other in waiting)
                parts.append(f"then {', '.join(waiting)}{_about(more, 'more')}")
            text = " · ".join(filter(None, parts))
            if self._rewrite:
                sys.stderr.write(f"\r\033[K{text[:110]}")
                sys.stderr.flush()
            else:
                say(text)

    def finish(self, step: Step, future: Future[float]) -> bool:
        """Report the end of a notebook; True if it was a good one."""
        number, name = step.notebook.number, step.notebook.name
        progress = progress_file(number)
        self._notes(number)
        for path in (notes_file(progress), progress, light_file(progress)):
            path.unlink(missing_ok=True)
        error = future.exception()
        if error is None:
            self._pace.finished(name, future.result())
            self._line(f"[{number}] done in {duration(future.result())}")
            return True
        from chameleon_lib.kit.engine import NotebookFailed

        if not isinstance(error, NotebookFailed | UserError):
            raise error
        kept = paths.executed_dir(self._profile) / f"{name}.partial.ipynb"
        self._line(f"[{number}] FAILED: {error}; see {paths.display(kept)}")
        return False

    def _notes(self, number: str) -> None:
        """Say what a notebook has noted since it was last asked: in hours of work, all there is."""
        try:
            written = notes_file(progress_file(number)).read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        notes = written.split("\n")[:-1]  # whole lines: the last one may still be in the making
        for note in notes[self._told[number] :]:
            self._line(f"[{number}] note: {note}")
        self._told[number] = len(notes)

    def _line(self, text: str) -> None:
        if self._rewrite:
            sys.stderr.write("\r\033[K")
        say(text)


def _about(seconds: float | None, what: str) -> str:
    return "" if seconds is None else f", about {duration(seconds)} {what}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
