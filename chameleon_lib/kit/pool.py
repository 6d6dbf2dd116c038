"""Independent cells of a study on several processes, one thread each.

A thread count changes the order of sums and so the last digits; processes do not. Workers only
fill the artifact store; the caller then reads everything in a fixed order. They are forked off a
server that has imported what they need: torch and transformers cost each process seconds.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit.progress import Progress, mark_light

Phase = tuple[str, Callable[..., Any], Sequence[tuple[Any, ...]]]


def _start_worker(threads: int) -> None:
    """Fix the thread count, and end with the parent: a killed notebook must leave no worker."""
    import torch

    torch.set_num_threads(threads)
    # The caller goes through every cell again, in order: what is to be said, it says once.
    logging.disable(logging.WARNING)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def warm(
    phases: Sequence[Phase], *, workers: int, threads: int, preload: Sequence[str] = ()
) -> None:
    """Call ``work(*unit)`` for every unit of every phase, in ``workers`` processes.

    A phase starts when the one before is done. The processes live through all of them: a new one
    costs seconds of imports.

    Args:
        phases: Label of the progress line, importable function that leaves its results in the
            artifact store, and its arguments per unit, picklable.
        workers: Processes; 1 runs in this process.
        threads: Torch threads per process.
        preload: Modules to import before the workers part, beside those of the functions.

    Raises:
        Exception: Whatever the first failing unit raised.
        UserError: A process was ended from outside.
    """
    if workers == 1:
        for at, work, units in phases:
            with Progress(at, len(units)) as progress:
                for unit in units:
                    work(*unit)
                    progress.advance(1)
        return
    mark_light(False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sorted({*preload, *(_module(work) for _, work, _ in phases)}))
    at = ""
    try:
        with ProcessPoolExecutor(workers, context, _start_worker, (threads,)) as pool:
            for at, work, units in phases:
                with Progress(at, len(units)) as progress:
                    for future in [pool.submit(work, *unit) for unit in units]:
                        future.result()
                        progress.advance(1)
    except BrokenProcessPool:
        raise UserError(
            f"A worker process was ended from outside during '{at}', most likely for want of "
            "memory: close what else is large and run again, which goes on from here."
        ) from None
    mark_light(True)


def _module(work: Callable[..., Any]) -> str:
    """Name of the module a function is from."""
    return _module(work.func) if isinstance(work, partial) else work.__module__
