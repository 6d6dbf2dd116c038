"""Run the notebooks: skip what is current, run the rest, tell how far it is, build the report.

The driver never loads torch, and loads Jupyter only if a notebook really runs: an up-to-date tree
is recognised in about a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.board import Board, Pace, progress_file, say
from chameleon_lib.kit.cost import costs, speed_of
from chameleon_lib.kit.hashing import digest, file_digest, tree_digests
from chameleon_lib.kit.kernels import kernel_environment, private_jupyter
from chameleon_lib.kit.ledger import Ledger, written_outputs
from chameleon_lib.kit.needs import require
from chameleon_lib.kit.notebooks import Notebook
from chameleon_lib.kit.plan import Run, Step
from chameleon_lib.kit.progress import light_file

if TYPE_CHECKING:
    from chameleon_lib.kit.engine import Session

OK, FAILED, INTERRUPTED = 0, 1, 130
_TICK = 0.5  # seconds between two looks at running notebooks
_START = 10.0  # seconds that any notebook takes: imports, figures, tables
Check = Callable[[Run, Sequence[str]], None]  # of the users' files, before any work


def run_notebooks(
    profile: str,
    only: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    jobs: int = 1,
    folder: Path | None = None,
    check: Check | None = None,
) -> int:
    """Bring the outputs of a run profile up to date and build its report.

    Args:
        profile: name of the run profile.
        only: notebook numbers; all if empty.
        overrides: parameter values.
        force: run also what is current; finished units in the store are still used.
        jobs: notebooks at a time; summary notebooks always come last, alone.
        folder: source notebooks; those of the checkout by default.
        check: refuses a run whose data are wrong, given the notebooks that will read them.

    Returns:
        0 if all is up to date, 1 if a notebook failed, 130 after Ctrl-C.

    Raises:
        UserError: for a wrong request, or if another run is at work on the same cache.
    """
    if jobs < 1:
        raise UserError("--jobs takes a number of 1 or more.")
    run = Run(profile, overrides, only, folder=folder)
    _check(run, [n for n, why in run.plan() if why or force], check)
    with alone():
        for sentence in run.left_out:  # after all that may refuse the run
            say(sentence)
        # The checks may take minutes, and what another driver noted meanwhile must not get lost.
        run.ledger = Ledger(run.ledger.path)
        failed, done = 0, 0
        try:
            for notebooks, workers in (
                ([n for n in run.selected if not n.summary], jobs),
                ([n for n in run.selected if n.summary], 1),
            ):
                if failed and notebooks:
                    say(f"Not run, for it reads the others: {', '.join(n.name for n in notebooks)}")
                    continue
                steps = [run.step(notebook) for notebook in notebooks]
                stale = [step for step in steps if step.why or force]
                good = _execute(run, stale, workers) if stale else 0
                done += len(steps) - len(stale) + good
                failed += len(stale) - good
        except KeyboardInterrupt:
            say("Interrupted; finished units are kept, the same command goes on from here.")
            return INTERRUPTED
        say(f"{done}/{len(run.selected)} up to date")
        if failed:
            _report_what_there_is(run)
            return FAILED
        index = _report(run)
    print(f"Read: {paths.display(index)}", flush=True)
    print(_compared(run.profile.name), flush=True)
    return OK


def _compared(profile: str) -> str:
    """How the run compares with the committed one; read anew where either has changed."""
    git = ["git", "rev-parse", f"HEAD:outputs/{profile}"]
    try:
        found = subprocess.run(git, cwd=paths.root(), capture_output=True, text=True, check=False)
        committed = found.stdout
    except OSError:  # git is not there, and need not be
        committed = ""
    folder, parts = paths.outputs_dir(profile), ("tables", "figures", "verdicts")

    def compare() -> str:
        from chameleon_lib.kit.verify import compare_line

        return compare_line(profile)

    def state() -> list[Any]:
        return [committed, *(tree_digests(folder / part) for part in parts)]

    return _known("compared", profile, state, compare)


def _known(name: str, profile: str, state: Callable[[], Any], make: Callable[[], str]) -> str:
    """What was made of this state before, else made now; ``state`` is asked again after that."""
    stamp = paths.cache_dir() / f"{name}.json"
    try:
        known = dict(json.loads(stamp.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        known = {}
    found = known.get(profile)
    if not isinstance(found, list) or found[0] != digest(state()):
        made = make()
        found = known[profile] = [digest(state()), made]
        paths.replace_text(stamp, json.dumps(known, indent=1, sort_keys=True))
    return str(found[1])


def _check(run: Run, stale: Sequence[Notebook], check: Check | None) -> None:
    """Refuse a run that cannot go through; one that reads no data asks for nothing."""
    reading = [n.number for n in stale if "data_dir" in n.parameters()]
    if not reading and not run.profile.base:
        return
    for sentence in require(run.scope, [notebook.number for notebook in stale]):
        say(sentence)
    if check is not None and (run.profile.data != "demo" or run.profile.base):
        check(run, reading)


def _report_what_there_is(run: Run) -> None:
    """Build the pages after a failure; that they are incomplete must not hide the failure."""
    try:
        _report(run)
    except UserError as error:
        say(f"The report was not built: {error}")


def _report_so_far(run: Run, finished: Step, to_come: Sequence[str], first: bool) -> None:
    """Show what a notebook found while others run; the whole page is written at the end."""
    from chameleon_lib.kit import report

    names = [*to_come, *(n.name for n in run.selected if n.summary and n.name not in to_come)]
    sentence = (
        f"This run is under way: {len(names)} of {len(run.selected)} notebooks are still to come "
        f"({', '.join(names)}); what stands here of them is of an earlier run, or missing."
    )
    try:
        index = report.build(run.profile.name, [finished.notebook.name], sentence)
    except Exception as error:  # what others are just writing: the page must not end their run
        say(f"The page so far was not built: {error}")
        return
    if first:
        say(f"Read what there is so far, it grows: {paths.display(index)}")


def _execute(run: Run, steps: Sequence[Step], jobs: int) -> int:
    """Run notebooks in worker threads; this thread shows progress and keeps watch.

    A notebook whose workers are done still reads, draws and writes on one core: the next one then
    starts beside it, one more than `jobs` at most.

    Returns:
        The number of notebooks that ran well.
    """
    from chameleon_lib.kit.engine import Session

    names = {step.notebook.number: step.notebook.name for step in steps}
    board = Board(run.profile.name, names, _pace(run, steps))
    limit = run.profile.timeout_minutes * 60
    good = 0
    with private_jupyter(), ThreadPoolExecutor(jobs + 1) as pool:
        sessions: dict[Future[float], tuple[Step, Session]] = {}
        waiting = list(steps)
        try:
            while waiting or sessions:
                while waiting and _room(sessions.values(), jobs):
                    step, session = waiting.pop(0), Session()
                    board.start(step)
                    sessions[pool.submit(_run_one, run, step, session)] = (step, session)
                finished, _ = wait(sessions, timeout=_TICK, return_when=FIRST_COMPLETED)
                for future in finished:
                    step, _session = sessions.pop(future)
                    good += board.finish(step, future)
                    running = [other for other, _ in sessions.values()]
                    to_come = [other.notebook.name for other in (*running, *waiting)]
                    if future.exception() is None and to_come:
                        _report_so_far(run, step, to_come, first=good == 1)
                for _step, session in sessions.values():
                    session.stop_after(limit)
                board.show(sessions.values(), [step.notebook.number for step in waiting])
        finally:
            # Nothing is left here unless an interruption or a full disk ended the loop early.
            for _step, session in sessions.values():
                session.stop("interrupted")
    return good


def _pace(run: Run, steps: Sequence[Step]) -> Pace:
    """How long the notebooks will take: each pays for what those before it have not made."""
    speed, before, expected = speed_of(run.profile), list[str](), dict[str, float]()
    stale = [step.notebook.number for step in steps]
    stored = [notebook.number for notebook in run.all if notebook.number not in stale]
    for step in steps:
        number = step.notebook.number
        work = speed.hours(costs(run.scope, [number], [*stored, *before]))
        expected[step.notebook.name] = _START + work * 3600 / run.profile.workers
        before.append(number)
    return Pace(run.profile.name, expected)


def _room(running: Iterable[tuple[Step, Session]], jobs: int) -> bool:
    """Whether one more notebook may start."""
    steps = [step for step, _ in running]
    light = [light_file(progress_file(step.notebook.number)).is_file() for step in steps]
    return len(steps) - sum(light) < jobs and len(steps) <= jobs


def _run_one(run: Run, step: Step, session: Session) -> float:
    """Run one notebook to its place in the outputs and the ledger.

    Returns:
        Wall-clock seconds.
    """
    from chameleon_lib.kit import engine

    name, notebook = run.profile.name, step.notebook
    target = paths.executed_dir(name) / notebook.path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{notebook.name}.partial.ipynb")
    work = paths.cache_dir() / "work" / notebook.name
    work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    progress = progress_file(notebook.number)
    log = progress.with_suffix(".written")
    log.unlink(missing_ok=True)
    env = {**kernel_environment(run.profile, progress), paths.WRITTEN: str(log)}
    executed = engine.execute(
        notebook,
        partial,
        step.parameters,
        env=env,
        work=work,
        session=session,
    )
    engine.write(engine.normalise(executed), partial, target)
    run.ledger.record(name, notebook, step.inputs, written_outputs(name, log))
    log.unlink(missing_ok=True)
    return time.monotonic() - start


def _report(run: Run) -> Path:
    """Build the pages, unless they already show what is there."""
    name = run.profile.name
    index = paths.outputs_dir(name) / "index.html"

    def state() -> list[Any]:
        return [
            index.is_file(),
            tree_digests(paths.outputs_dir(name), skip=("measured",)),
            run.library.digests(["chameleon_lib.kit.report"], data=True),
            # The pages show these files as they are, comments and docstrings included.
            _python_files(paths.package_dir()),
            tree_digests(paths.package_dir() / "kit" / "templates"),
        ]

    def build() -> str:
        from chameleon_lib.kit import report

        return str(report.build(name))

    return Path(_known("report", name, state, build))


def _python_files(folder: Path) -> dict[str, str]:
    return {path.as_posix(): file_digest(path) for path in sorted(folder.rglob("*.py"))}


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep a second driver off the same cache; the lock dies with its owner, even by kill -9.

    Raises:
        UserError: if another run holds it.
    """
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with (paths.cache_dir() / "run.lock").open("w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another run is at work on {paths.display(paths.cache_dir())}: wait for its end."
            ) from None
        yield
