"""Progress of a download on stderr: how far, how fast, how long the rest takes."""

from __future__ import annotations

import sys
import time


class Meter:
    """Tell of a download on stderr: sentences, and one line of progress.

    In a terminal the line is rewritten in place; in a log it is written every half minute.
    """

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty()
        self._interval = 0.5 if self._in_place else 30.0
        self._what = ""
        self._first = (0.0, 0)  # when the first report of this file came, and how much was there
        self._shown = 0.0
        self._open = False

    def say(self, sentence: str) -> None:
        """Print a sentence on a line of its own."""
        self._print(("\n" if self._open else "") + sentence + "\n")
        self._open = False

    def progress(self, what: str, unit: str, done: int, total: int | None) -> None:
        """Show how far a file is, how fast it comes and how long the rest takes."""
        now = time.monotonic()
        if what != self._what or done < self._first[1]:
            self._what, self._first, self._shown = what, (now, done), now
        if now - self._shown < self._interval:
            return
        self._shown = now
        since, had = self._first
        line = f"{what} {progress_text(unit, done, total, done - had, now - since)}"
        self._open = self._in_place
        self._print(f"\r{line[-100:]:<100}" if self._in_place else f"{line}\n")

    def _print(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def progress_text(unit: str, done: int, total: int | None, gained: int, seconds: float) -> str:
    """The state in words.

    Args:
        unit: "bytes", shown in megabytes, or what else is counted.
        done: Units that are through.
        total: All of them, None if unknown.
        gained: Those of `done` that came during `seconds`; the rest came in an earlier run.
        seconds: Time the estimate is made from.
    """
    scale, name = (1e6, "MB") if unit == "bytes" else (1, unit)
    digits = 1 if unit == "bytes" else 0
    text = f"{done / scale:,.{digits}f}"
    if total is not None:
        text += f"/{total / scale:,.{digits}f}"
    text += f" {name}"
    if gained > 0 and seconds > 0:
        text += f", {gained / seconds / scale:,.1f} {name}/s"
        if total is not None and total > done:
            minutes, rest = divmod(round((total - done) * seconds / gained), 60)
            text += f", about {minutes}:{rest:02d} left"
    return text
