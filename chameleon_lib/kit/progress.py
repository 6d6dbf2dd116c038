"""Progress of long library calls, kept out of what a notebook stores.

A progress line in a cell's output would make two runs of a notebook differ. So under the driver
(`CHAMELEON_PROGRESS` names a file) progress goes into that file and the driver shows it; in a
terminal and in JupyterLab it is a bar of tqdm on stderr; anywhere else it is silent.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from chameleon_lib.kit.paths import replace_text

if TYPE_CHECKING:
    from tqdm.std import tqdm

VARIABLE = "CHAMELEON_PROGRESS"
_INTERVAL = 0.5  # seconds between two updates


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Count finished units and estimate the time left.

    Args:
        label: what is counted, such as "directions, users".
        total: number of units to do.

    Example:
        with Progress("answers", len(prompts)) as progress:
            for batch in batches:
                ...
                progress.advance(len(batch))
    """

    def __init__(self, label: str, total: int) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._start = self._shown = time.monotonic()
        target = os.environ.get(VARIABLE)
        self._file = Path(target) if target else None
        self._bar: tqdm[Any] | None = None
        # JupyterLab's stderr is no terminal, but it honours the carriage return.
        if target is None and ("ipykernel" in sys.modules or sys.stderr.isatty()):
            from tqdm.std import tqdm  # a bar of text: it needs no widgets

            self._bar = tqdm(
                total=total, desc=label, file=sys.stderr, ncols=78, delay=_INTERVAL,
                mininterval=_INTERVAL,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        elif self._bar is not None:
            self._bar.close()

    def text(self) -> str:
        """The state in one line."""
        line = f"{self.label} {self.done}/{self.total}"
        if 0 < self.done < self.total:
            spent = time.monotonic() - self._start
            line += f", about {duration(spent / self.done * (self.total - self.done))} left"
        return line

    def advance(self, count: int = 1) -> None:
        """Note `count` more finished units."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        if self._file is None:
            return
        now = time.monotonic()
        if now - self._shown < _INTERVAL:
            return
        self._shown = now
        replace_text(self._file, self.text())


def read_progress(path: Path) -> str:
    """The line a kernel last left for the driver; empty if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def notes_file(path: Path) -> Path:
    """Where sentences for the reader of the run are collected, beside a progress file."""
    return path.with_name(path.name + ".notes")


def light_file(path: Path) -> Path:
    """Beside a progress file: says that its notebook needs no more than one core from here on."""
    return path.with_name(path.name + ".light")


def mark_light(light: bool) -> None:
    """Tell the driver whether the notebook's worker processes are done, or at work again."""
    target = os.environ.get(VARIABLE)
    if not target:
        return
    if light:
        light_file(Path(target)).touch()
    else:
        light_file(Path(target)).unlink(missing_ok=True)


def tell(sentence: str) -> None:
    """Say something about this run that must not become part of a notebook's output."""
    target = os.environ.get(VARIABLE)
    if target:
        with notes_file(Path(target)).open("a", encoding="utf-8") as stream:
            stream.write(sentence + "\n")
    else:
        logging.getLogger("chameleon_lib").warning(sentence)
