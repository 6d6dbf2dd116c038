"""What the person who waits sees; all on stderr, so that stdout ends with the page to read."""

from __future__ import annotations

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
from chameleon_lib.kit.pace import Pace
from chameleon_lib.kit.plan import Step
from chameleon_lib.kit.progress import duration, light_file, notes_file, read_progress

if TYPE_CHECKING:
    from chameleon_lib.kit.engine import Session

_PLAIN_EVERY = 30.0  # seconds between progress lines where they cannot be rewritten


def progress_file(number: str) -> Path:
    return paths.cache_dir() / "progress" / f"{os.getpid()}-{number}.json"


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
        light = light_file(progress_file(step.notebook.number))
        light.unlink(missing_ok=True)
        if step.notebook.light:
            light.parent.mkdir(parents=True, exist_ok=True)
            light.touch()
        place = f"{list(self._names).index(step.notebook.number) + 1}/{len(self._names)}"
        usual = self._pace.last(step.notebook.name)
        hint = f", took {duration(usual)} last time" if usual else ""
        why = step.state.why or "asked for"
        self._line(f"[{step.notebook.number}] {step.notebook.name} ({place}): {why}{hint}")

    def show(self, running: Iterable[tuple[Step, Session]], waiting: Sequence[str]) -> None:
        """New notes, then cell, library progress and time of every running notebook."""
        now = time.monotonic()
        if now - self._last < (1.0 if self._rewrite else _PLAIN_EVERY):
            return
        self._last = now
        for step, session in running:
            self._notes(step.notebook.number)
            spent = now - session.started
            parts = [f"[{step.notebook.number}] cell {session.cell}/{session.total}"]
            parts += filter(None, [read_progress(progress_file(step.notebook.number))])
            left = self._pace.left(step.notebook.name, spent)
            hint = "" if left is None else f", about {duration(left)} left"
            parts.append(f"{duration(spent)} so far{hint}")
            if waiting:
                more = self._pace.total(self._names[number] for number in waiting)
                hint = "" if more is None else f", about {duration(more)} more"
                parts.append(f"then {', '.join(waiting)}{hint}")
            text = " · ".join(parts)
            if self._rewrite:
                sys.stderr.write(f"\r\033[K{text[:110]}")
                sys.stderr.flush()
            else:
                say(text)

    def finish(self, step: Step, future: Future[float]) -> bool:
        """Report the end of a notebook; True if it was a good one."""
        number = step.notebook.number
        progress = progress_file(number)
        self._notes(number)
        notes_file(progress).unlink(missing_ok=True)
        progress.unlink(missing_ok=True)
        light_file(progress).unlink(missing_ok=True)
        error = future.exception()
        if error is None:
            self._pace.finished(step.notebook.name, future.result())
            self._pace.save(self._profile)
            self._line(f"[{number}] done in {duration(future.result())}")
            return True
        from chameleon_lib.kit.engine import NotebookFailed

        if not isinstance(error, NotebookFailed | UserError):
            raise error
        kept = paths.executed_dir(self._profile) / f"{step.notebook.name}.partial.ipynb"
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


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
