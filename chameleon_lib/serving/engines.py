"""Who does the units of a fit: worker processes of this machine, or Ray Data on a cluster.

A unit is about fifty users. Workers leave what they finish as files (``serving.population``), so an
engine only hands units out, and hands one out again whose worker was ended from outside: with
``kill -9``, by the system for want of memory, or by the fit of one user. What a unit had finished
is not done again, and who ends a worker three times is set aside by the next one.

What real Ray Data 2.60 does decides how it is called: a table is one block whatever it is told, so
units are spread by ``repartition``; deaths are repeated without limit unless ``max_restarts`` and
``max_task_retries`` say otherwise; and its own tasks need a processor beside the actors, so at
least four are named, which are only a count.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal, Protocol

from chameleon_lib.errors import UserError
from chameleon_lib.kit.pool import _start_worker

EngineName = Literal["local", "ray"]
RAY = "ray[data]==2.60.*"
DEATHS = 3  # of workers: of one user's fit, or of one unit outside any fit
_STARTS = 3  # of Ray
_LOOK = 1.0  # seconds between two looks at what is being done


class Work(Protocol):
    """What workers do; picklable."""

    def open(self) -> Callable[[Any], None]:
        """What a process needs once, such as the model; returns what does one unit."""

    def progressed(self, unit: Any) -> int:
        """Marks of progress that a unit has left so far; grows with every user tried."""


class Engine(Protocol):
    """Does units, in any order."""

    def run(self, work: Work, units: Sequence[Any]) -> Iterator[Any | None]:
        """Yield every unit when it is done, and None now and then while none is.

        Raises:
            UserError: Workers end again and again without any progress.
            Exception: Whatever a worker raised.
        """


def get_engine(name: EngineName, workers: int, threads: int, address: str | None) -> Engine:
    """The engine of a name.

    Raises:
        UserError: An address without ray, or ray is not installed.
    """
    if name == "ray":
        return RayEngine(workers, threads, address)
    if address is not None:
        raise UserError("--address names a Ray cluster; give --engine ray with it.")
    return LocalEngine(workers, threads)


def _stuck() -> UserError:
    return UserError(
        f"Worker processes were ended from outside {DEATHS} times before they fitted anybody, most "
        "likely for want of memory: take fewer workers (--workers) or a smaller model, and run "
        "again, which goes on from here."
    )


class InlineEngine:
    """This process, without workers: for a notebook, where a few users are fitted at once."""

    def run(self, work: Work, units: Sequence[Any]) -> Iterator[Any | None]:
        if not units:
            return
        do = work.open()
        for unit in units:
            do(unit)
            yield unit


# --- this machine ---------------------------------------------------------------------------------

_opened: Callable[[Any], None] | None = None  # of this worker process


def _do(work: Work, unit: Any) -> None:
    global _opened
    if _opened is None:
        _opened = work.open()
    _opened(unit)


class LocalEngine:
    """Processes of this machine, each of its own pool: the death of one does not touch the others.

    Args:
        workers: Processes.
        threads: Torch threads of each; ``OMP_NUM_THREADS`` is set to it.
        preload: Modules that the processes' parent imports once for all.
    """

    def __init__(
        self, workers: int, threads: int = 1, preload: Sequence[str] = ("torch", "transformers")
    ) -> None:
        self.workers, self.threads, self.preload = workers, threads, preload

    def run(self, work: Work, units: Sequence[Any]) -> Iterator[Any | None]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*self.preload, type(work).__module__])
        waiting, pools = deque(units), dict[int, ProcessPoolExecutor]()
        at_work: dict[Future[None], tuple[int, Any]] = {}
        deaths: dict[Any, tuple[int, int]] = {}  # unit → its progress, deaths since then

        def give(slot: int, unit: Any) -> None:
            if slot not in pools:
                pools[slot] = ProcessPoolExecutor(1, context, _start_worker, (self.threads,))
            at_work[pools[slot].submit(_do, work, unit)] = (slot, unit)

        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        try:
            for slot in range(min(self.workers, len(waiting))):
                give(slot, waiting.popleft())
            while at_work:
                ended, _ = wait(at_work, _LOOK, FIRST_COMPLETED)
                if not ended:
                    yield None
                for future in ended:
                    slot, unit = at_work.pop(future)
                    try:
                        future.result()
                    except BrokenProcessPool:
                        pools.pop(slot).shutdown(wait=False)
                        marks = work.progressed(unit)
                        seen, count = deaths.get(unit, (-1, 0))
                        deaths[unit] = marks, count + 1 if seen == marks else 1
                        if deaths[unit][1] >= DEATHS:
                            raise _stuck() from None
                        give(slot, unit)
                        continue
                    if waiting:
                        give(slot, waiting.popleft())
                    yield unit
        finally:
            for pool in pools.values():
                for process in list((pool._processes or {}).values()) if at_work else ():
                    process.terminate()  # an error or Ctrl-C: what they finished is in files
                pool.shutdown(cancel_futures=True)
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before


# --- Ray Data -------------------------------------------------------------------------------------


class _Actor:
    """A Ray worker: opened once, then a unit at a time."""

    def __init__(self, work: Work, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._do = work.open()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for unit in batch["unit"].tolist():
            self._do(tuple(int(part) for part in unit))
        return batch


class RayEngine:
    """Ray Data: on this machine, or on the cluster of an address.

    Folders are shared with the workers of a cluster: the store lies where all of them reach it.

    Args:
        workers: Actors.
        threads: Torch threads of each.
        address: Of a cluster, as in ``ray.init``; None starts Ray on this machine.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(self, workers: int, threads: int = 1, address: str | None = None) -> None:
        try:
            import ray.data
        except ImportError:
            raise UserError(f"--engine ray needs Ray Data: pip install '{RAY}'.") from None
        self.ray, self.workers, self.threads, self.address = ray, workers, threads, address

    def run(self, work: Work, units: Sequence[Any]) -> Iterator[Any | None]:
        ray, left = self.ray, dict.fromkeys(units)
        with _ray_session(ray, self.workers, self.threads, self.address):
            idle = 0
            while left:
                before = sum(map(work.progressed, left))
                try:
                    for unit in self._once(work, list(left)):
                        left.pop(unit, None)
                        yield unit
                except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError):
                    idle = 0 if sum(map(work.progressed, left)) > before else idle + 1
                    if idle:
                        raise _stuck() from None

    def _once(self, work: Work, units: Sequence[Any]) -> Iterator[Any]:
        """One Ray Data job; ends early when an actor has died too often."""
        import pyarrow as arrow

        ray = self.ray
        table = arrow.table({"unit": arrow.array([list(unit) for unit in units])})
        actors = min(self.workers, len(units))
        done = (
            ray.data.from_arrow(table)
            .repartition(target_num_rows_per_block=1)  # a unit is fifty users already
            .map_batches(
                _Actor,
                fn_constructor_args=(work, self.threads),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=actors),
                num_cpus=1,
                max_restarts=DEATHS,
                max_task_retries=DEATHS,
            )
        )
        try:
            for row in done.iter_rows():
                yield tuple(int(part) for part in row["unit"])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise


class _ray_session:
    """Ray for the time of a run; one that was there before stays."""

    def __init__(self, ray: Any, workers: int, threads: int, address: str | None) -> None:
        self.ray, self.own = ray, not ray.is_initialized()
        variables = {"OMP_NUM_THREADS": str(threads)}
        # Ray's threads would stand beside the workers' in every log line.
        self.given: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            variables["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
            self.given |= {"num_cpus": max(4, workers + 2), "include_dashboard": False}
        else:
            self.given["address"] = address
        self.given["runtime_env"] = {"env_vars": variables}

    def __enter__(self) -> None:
        if self.own:
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            self._start()
        self.ray.data.DataContext.get_current().enable_progress_bars = False

    def _start(self) -> None:
        """Start Ray; on a busy machine it can miss its own limit of half a minute, twice."""
        for attempt in range(_STARTS):
            try:
                self.ray.init(**self.given)
                return
            except Exception as error:  # of many kinds, most of them plain exceptions
                self.ray.shutdown()
                if attempt == _STARTS - 1:
                    where = self.given.get("address", "this machine")
                    raise UserError(
                        f"Ray cannot be started on {where} ({' '.join(str(error).split())[:200]}); "
                        "mend that, or give --engine local."
                    ) from error

    def __exit__(self, *_: object) -> None:
        if self.own:
            self.ray.shutdown()
