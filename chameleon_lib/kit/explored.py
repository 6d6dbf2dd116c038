"""Run the notebooks with their Explore cells, which a normal run skips, and leave no trace of it.

Copies of the notebooks without the skip tag run like the notebooks themselves, on the same store,
into a folder below the cache; the outputs that readers see and the ledger stay as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chameleon_lib.command_line import Parser, notebook_numbers
from chameleon_lib.kit import paths
from chameleon_lib.kit.board import Board, progress_file, say
from chameleon_lib.kit.driver import FAILED, INTERRUPTED, OK, alone
from chameleon_lib.kit.engine import Session, execute, normalise, write
from chameleon_lib.kit.kernels import kernel_environment, private_jupyter
from chameleon_lib.kit.notebooks import SKIP_TAG, Notebook, discover, select, tags_of
from chameleon_lib.kit.pace import Pace
from chameleon_lib.kit.plan import Run, Step

EXPLORE_TAG = "explore"  # takes the place of the skip tag in the copies
_TICK = 0.5  # seconds between two looks at a running notebook


@dataclass
class Timed(Session):
    """A session that notes how long each Explore cell took.

    Attributes:
        seconds: Per Explore cell that has ended, in order.
    """

    seconds: list[float] = field(default_factory=list)
    _since: float | None = None

    def note_cell(self, cell: Mapping[str, Any], **rest: Any) -> None:
        """The cell before this one has ended."""
        self.end_cell()
        super().note_cell(cell, **rest)
        if EXPLORE_TAG in tags_of(cell):
            self._since = time.monotonic()

    def end_cell(self) -> None:
        """Note the time of the Explore cell that ran, if it was one."""
        if self._since is not None:
            self.seconds.append(time.monotonic() - self._since)
        self._since = None


def lifted(notebook: Notebook, folder: Path) -> Path:
    """A copy in `folder` whose Explore cells are ordinary cells."""
    content = json.loads(json.dumps(notebook.content))
    for cell in content["cells"]:
        tags = tags_of(cell)
        if SKIP_TAG in tags:
            cell["metadata"]["tags"] = [EXPLORE_TAG if tag == SKIP_TAG else tag for tag in tags]
    target = folder / notebook.path.name
    paths.replace_text(target, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return target


def run_explored(profile: str, only: Sequence[str] = ()) -> int:
    """Execute notebooks from top to bottom, Explore cells included.

    Args:
        profile: name of the run profile.
        only: notebook numbers; all if empty.

    Returns:
        0 if all ran, 1 if a notebook failed, 130 after Ctrl-C.

    Raises:
        UserError: for a wrong request, or if another run is at work on the same cache.
    """
    sources = select(discover(paths.notebooks_dir()), list(only))
    scratch = paths.cache_dir() / "explore"
    with alone():
        shutil.rmtree(scratch, ignore_errors=True)
        for notebook in sources:
            lifted(notebook, scratch / "sources")
        shown = paths.outputs_dir(profile)
        if shown.is_dir():  # the report reads what the others have written
            ignored = shutil.ignore_patterns("notebooks", "html", "*.partial*")
            shutil.copytree(shown, scratch / profile, ignore=ignored)
        run = Run(profile, folder=scratch / "sources")
        with _outputs_below(scratch), private_jupyter():
            try:
                failed = sum(not good for good in _each(run))
            except KeyboardInterrupt:
                say("Interrupted; finished units are kept.")
                return INTERRUPTED
            say(f"{len(sources) - failed}/{len(sources)} ran with their Explore cells")
            print(f"Look at: {paths.display(paths.executed_dir(profile))}", flush=True)
    return FAILED if failed else OK


def _each(run: Run) -> Iterator[bool]:
    """Run the notebooks one after the other; whether each went well."""
    names = {notebook.number: notebook.name for notebook in run.selected}
    board = Board(run.profile.name, names, Pace({}, {}))
    waiting = [notebook.number for notebook in run.selected]
    limit = run.profile.timeout_minutes * 60
    for notebook in run.selected:
        step, session = run.step(notebook), Timed()
        waiting.remove(notebook.number)
        board.start(step)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(_run_one, run, step, session)
            try:
                while not wait([future], timeout=_TICK).done:
                    session.stop_after(limit)
                    board.show([(step, session)], waiting)
            except BaseException:
                session.stop("interrupted")
                raise
        good = board.finish(step, future)
        if good and session.seconds:
            each = ", ".join(f"{seconds:.1f}" for seconds in session.seconds)
            say(f"[{notebook.number}] Explore cells: {each} s")
        yield good


def _run_one(run: Run, step: Step, session: Timed) -> float:
    """Run one notebook into the scratch outputs; returns wall-clock seconds."""
    target = paths.executed_dir(run.profile.name) / step.notebook.path.name
    partial = target.with_name(f"{step.notebook.name}.partial.ipynb")
    work = paths.cache_dir() / "work" / step.notebook.name
    for folder in (target.parent, work):
        folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    executed = execute(
        step.notebook,
        partial,
        step.parameters,
        env=kernel_environment(run.profile, progress_file(step.notebook.number)),
        work=work,
        session=session,
    )
    session.end_cell()
    write(normalise(executed), partial, target)
    return time.monotonic() - start


@contextlib.contextmanager
def _outputs_below(folder: Path) -> Iterator[None]:
    """This process and its kernels write outputs below `folder`."""
    before = os.environ.get("CHAMELEON_OUTPUTS")
    os.environ["CHAMELEON_OUTPUTS"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["CHAMELEON_OUTPUTS"]
        else:
            os.environ["CHAMELEON_OUTPUTS"] = before


def main(argv: Sequence[str]) -> int:
    """`explore`: run notebooks with their Explore cells, apart from the outputs."""
    parser = Parser(
        prog="python -m chameleon_lib explore",
        description="run the notebooks with their Explore cells, apart from the outputs",
        epilog="exit codes: 0 ok, 1 a notebook failed, 2 usage, 3 environment, 130 interrupted",
        allow_abbrev=False,
    )
    # The others need a folder of LaMP files, which this command does not take.
    parser.add_argument("--profile", choices=("demo",), default="demo", help="size of the run")
    parser.add_argument("--only", default="", metavar="01,03", help="notebook numbers")
    options = parser.parse_args(argv)
    return run_explored(options.profile, notebook_numbers(options.only))
