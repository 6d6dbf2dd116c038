"""Library trainers reseed, print and write; what runs inside these blocks leaves no such trace."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def calm(device: torch.device) -> Iterator[None]:
    """No warnings, and the global random states of Python, numpy and torch come back as they were.
    """
    devices = [device] if device.type == "cuda" else []
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[str]:
    """``calm``, and the libraries' logs and bars off; yields a folder that is gone afterwards."""
    import datasets
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with (
            calm(device),
            tempfile.TemporaryDirectory(prefix="chameleon-") as folder,
        ):
            yield folder
    finally:
        logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
