"""A fit that takes no model: who is fitted, when, how often and by whom can be counted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from chameleon_lib.core.edit import Edit
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import HistoryItem, Query, User
from chameleon_lib.serving.population import FitOne
from chameleon_lib.serving.shards import FITTED, Manifest, Precision, Row


def users(count: int, start: int = 0) -> Iterator[User]:
    """Synthetic users, made one by one."""
    for at in range(start, start + count):
        item = HistoryItem("0", f"text of {at}", "comedy")
        yield User(f"user{at}", "LaMP_2", (item,), (Query("q", "?", "?", None),))


def manifest(d: int = 16, slots: int = 2, dtype: Precision = "bfloat16") -> Manifest:
    """A store of rows of this size, of no model."""
    settings = EditSettings(theta_method="fitted", edit_positions="all").canonical()
    return Manifest("LaMP_2", "own", "stand-in", "0" * 64, "", d, slots, dtype, settings, "", 1)


def edit_of(key: bytes, manifest: Manifest) -> Edit:
    """Random directions that the hash decides."""
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
    theta = torch.randn(2, manifest.slots, manifest.d, generator=generator)
    return Edit.of(manifest.edit_settings, range(manifest.slots), *theta)


@dataclass(frozen=True)
class StandIn:
    """Fits by drawing; notes every fit in a file.

    Attributes:
        manifest: Of the store.
        fits: Every finished fit is a line: the user's id, the process and the time.
        seconds: A fit takes, waiting.
        spin: A fit takes, computing.
        poison: Ids whose fit ends the process.
        bad: Ids whose fit raises.
        once: Ids whose fit ends the process the first time.
    """

    manifest: Manifest
    fits: Path
    seconds: float = 0.0
    spin: float = 0.0
    poison: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    once: tuple[str, ...] = ()

    def open(self, root: Path) -> FitOne:
        del root
        log = self.fits.open("ab", buffering=0)
        with self.fits.with_suffix(".opened").open("ab", buffering=0) as opened:
            opened.write(b"%d\n" % os.getpid())

        def fit(user: User, key: bytes, data: bytes) -> Row:
            mark = self.fits.with_name(f"{user.id}.once")
            if user.id in self.poison or (user.id in self.once and not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if user.id in self.bad:
                raise ValueError(f"the history of {user.id} is no history")
            time.sleep(self.seconds)
            end = time.process_time() + self.spin
            while time.process_time() < end:
                pass
            log.write(f"{user.id} {os.getpid()} {time.time():.4f}\n".encode())
            return Row(key, data, FITTED, edit=edit_of(key, self.manifest), n_pairs=3, gain=0.5)

        return fit
