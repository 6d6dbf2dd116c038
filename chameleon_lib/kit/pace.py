"""How long notebooks take: by their last runs here, and for the demo by a first run elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from chameleon_lib.kit import paths

# Seconds of a first run of the demo profile on two cores. How the machine at hand compares shows as
# soon as one notebook is done.
DEMO = {
    "00_quickstart": 33.0,
    "01_per_user": 347.0,
    "02_unseen_users": 119.0,
    "03_group_size": 82.0,
    "04_time_budget": 82.0,
    "05_history_ablation": 103.0,
    "06_controls": 121.0,
    "07_serving": 36.0,
    "08_your_users": 15.0,
    "09_playground": 10.0,
    "99_report": 6.0,
}


class Pace:
    """Seconds of whole notebooks, as far as anything is known.

    Args:
        known: Notebook → seconds of its last run on this machine.
        first: Notebook → seconds of a first run elsewhere.
    """

    def __init__(self, known: Mapping[str, float], first: Mapping[str, float]) -> None:
        self._known, self._first = dict(known), dict(first)
        self._took = self._expected = 0.0

    @classmethod
    def read(cls, profile: str) -> Pace:
        """What the last runs of a profile left in its measured/timings.json."""
        try:
            seconds = json.loads(_file(profile).read_text(encoding="utf-8"))["seconds"]
            known = {name: float(value) for name, value in seconds.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            known = {}  # an estimate is all that is lost
        return cls(known, DEMO if profile == "demo" else {})

    def finished(self, name: str, seconds: float) -> None:
        """Note how long a notebook took."""
        self._known[name] = round(seconds, 1)
        if name in self._first:
            self._took += seconds
            self._expected += self._first[name]

    def save(self, profile: str) -> None:
        """Keep what is known for the next run, apart from what is committed."""
        text = json.dumps({"seconds": self._known}, indent=1, sort_keys=True)
        paths.replace_text(_file(profile), text + "\n")

    def last(self, name: str) -> float | None:
        """Seconds of the last run here."""
        return self._known.get(name)

    def left(self, name: str, spent: float = 0.0) -> float | None:
        """Seconds that a notebook still needs after ``spent``; None if it outran what is known."""
        guesses = [self._known.get(name, 0.0), self._first.get(name, 0.0) * self._factor]
        return next((guess - spent for guess in guesses if guess > spent), None)

    def total(self, names: Iterable[str]) -> float | None:
        """Seconds of notebooks that have not begun; None if one of them is unknown."""
        parts = [self.left(name) for name in names]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    @property
    def _factor(self) -> float:
        return self._took / self._expected if self._expected else 1.0


def _file(profile: str) -> Path:
    return paths.measured_dir(profile) / "timings.json"
