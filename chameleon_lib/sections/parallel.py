"""Independent cells of a study on several processes, one thread each.

A thread count changes the order of sums and so the last digits; processes do not. Workers only
fill the artifact store; the caller then reads everything in a fixed order.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from chameleon_lib.kit.progress import Progress


def _start_worker(threads: int) -> None:
    """Fix the thread count, and end with the parent: a killed notebook must leave no worker."""
    import torch

    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def warm(
    work: Callable[..., Any],
    units: Sequence[tuple[Any, ...]],
    *,
    workers: int,
    threads: int,
    label: str,
) -> None:
    """Call ``work(*unit)`` for every unit, in ``workers`` processes.

    Args:
        work: Importable function that leaves its results in the artifact store.
        units: Its arguments, picklable.
        workers: Processes; 1 runs in this process.
        threads: Torch threads per process.
        label: Progress line.

    Raises:
        Exception: Whatever the first failing unit raised.
    """
    if workers == 1:
        for unit in units:
            work(*unit)
        return
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, context, _start_worker, (threads,)) as pool,
        Progress(label, len(units)) as progress,
    ):
        for future in [pool.submit(work, *unit) for unit in units]:
            future.result()
            progress.advance(1)
