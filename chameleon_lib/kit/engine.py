"""Execute one notebook through papermill, with the facts about papermill that bite handled here.

Papermill alone calls a notebook complete when its kernel was killed or a cell called `sys.exit(0)`,
warns about unknown parameters, stamps times and machine paths into the file, and reads the user's
own Jupyter settings. This module is imported only when something really runs.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import DeadKernelError
from papermill import execute_notebook
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from chameleon_lib.errors import UserError
from chameleon_lib.kit.notebooks import SKIP_TAG, Notebook, is_runnable
from chameleon_lib.kit.progress import duration

ENGINE = "chameleon"
INJECTED = "injected-parameters"
_START_TIMEOUT = 120  # seconds; a loaded machine imports IPython slowly


class NotebookFailed(Exception):
    """A notebook did not run to its end; the text says why in one sentence."""


@dataclass
class Session:
    """What the driver sees of a running notebook, and its way to stop it.

    Attributes:
        cell: 1-based number of the runnable cell that runs; 0 until the kernel is ready.
        total: number of runnable cells.
        started: clock of the kernel start, in seconds.
        stopped: why the driver stopped the kernel; empty if it did not.
    """

    total: int = 0
    cell: int = 0
    started: float = field(default_factory=time.monotonic)
    stopped: str = ""
    client: PapermillNotebookClient | None = None

    def stop(self, why: str) -> None:
        """Kill the kernel and all that it started; the run then ends as failed."""
        self.stopped = self.stopped or why
        manager = getattr(self.client, "km", None)
        pid = getattr(getattr(manager, "provisioner", None), "pid", None)
        if pid is None:
            return
        try:
            # A kernel leads its own process group, so data-loading children go with it.
            os.killpg(os.getpgid(pid), signal.SIGKILL)
        except ProcessLookupError:
            return

    def stop_after(self, seconds: float) -> None:
        """Stop the kernel if it was started longer ago than that."""
        if time.monotonic() - self.started > seconds:
            self.stop(f"it took longer than {duration(seconds)}")

    def note_cell(self, cell: Mapping[str, Any], **_: Any) -> None:
        """nbclient's hook before each cell; the last chance to stop a kernel just started."""
        if self.stopped:
            raise NotebookFailed(self.stopped)
        self.cell += is_runnable(cell)


class _Engine(NBClientEngine):
    """papermill's own engine, with the client's options that its command line cannot reach."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        session: Session = options["session"]
        session.client = PapermillNotebookClient(
            nb_man,
            kernel_name=kernel_name,
            startup_timeout=_START_TIMEOUT,
            timeout=None,  # the driver's watchdog covers the whole notebook
            record_timing=False,
            coalesce_streams=True,
            skip_cells_with_tag=SKIP_TAG,
            on_cell_execute=session.note_cell,
            ipython_hist_file=":memory:",
            # Silences ipykernel's "TCP without encryption" in the output of every notebook.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            log=logging.getLogger("chameleon_lib.kit.engine"),
        )
        session.client.execute(env=options["env"], cwd=str(options["work"]))


papermill_engines.register(ENGINE, _Engine)


def execute(
    notebook: Notebook,
    partial: Path,
    parameters: Mapping[str, Any],
    *,
    env: Mapping[str, str],
    work: Path,
    session: Session,
) -> nbformat.NotebookNode:
    """Run a notebook into `partial`; one more try if, and only if, its kernel did not start.

    Args:
        notebook: the source.
        partial: where papermill keeps the state after each cell; stays there on failure.
        parameters: values to inject.
        env: the kernel's whole environment.
        work: the kernel's working directory.
        session: filled while running.

    Returns:
        The executed notebook, complete but not yet normalised.

    Raises:
        NotebookFailed: if any cell did not run to its end.
    """
    session.total = len(notebook.runnable()) + bool(parameters)
    for last_try in (False, True):
        try:
            executed = execute_notebook(
                _literal(notebook.path),
                _literal(partial),
                parameters=dict(parameters),
                engine_name=ENGINE,
                kernel_name="python3",
                progress_bar=False,
                session=session,
                env=dict(env),
                work=work,
            )
        except PapermillExecutionError as error:
            raise NotebookFailed(_cell_error(error)) from None
        except Exception as error:
            # Ports of a busy host may collide at the start: no cell has run, so nothing is lost.
            if not session.cell and not session.stopped and not last_try:
                continue
            raise NotebookFailed(_kernel_error(error, session)) from error
        _require_complete(executed, session)
        return executed
    raise AssertionError("unreachable")


def _literal(path: Path) -> str:
    """A path as papermill must get it: it runs `str.format` over paths."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _cell_error(error: PapermillExecutionError) -> str:
    if error.ename == UserError.__name__:
        return str(error.evalue)
    where = f"cell [{error.exec_count}]" if error.exec_count else "a cell"
    return f"{where} raised {error.ename}: {error.evalue}".strip()


def _kernel_error(error: Exception, session: Session) -> str:
    if session.stopped:
        return session.stopped
    if isinstance(error, DeadKernelError):
        return f"the kernel died in cell {session.cell} of {session.total} (out of memory?)"
    if not session.cell:
        return f"the kernel did not start ({type(error).__name__}: {error})"
    return f"{type(error).__name__} in cell {session.cell} of {session.total}: {error}"


def _require_complete(executed: nbformat.NotebookNode, session: Session) -> None:
    """Success means that every cell ran and none ended in an error.

    papermill raises nothing after `sys.exit(0)` and calls a killed kernel's cells completed; the
    counters that the kernel itself handed out tell the truth. That the kernel lived beyond the
    last cell is certain here: papermill asked it for its language afterwards.
    """
    for position, cell in enumerate((c for c in executed.cells if is_runnable(c)), start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                what = f"{output.ename} {output.evalue}".strip()
                raise NotebookFailed(f"cell {position} ended the notebook with {what}")
        if cell.execution_count is None:
            raise NotebookFailed(f"cell {position} of {session.total} never ran")


def normalise(executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove what differs between two runs of the same notebook, or names this machine."""
    for name in ("papermill", "widgets", "signature"):
        executed.metadata.pop(name, None)
    if "language_info" in executed.metadata:
        executed.metadata["language_info"].pop("version", None)
    for cell in executed.cells:
        for name in ("papermill", "execution", "collapsed", "scrolled"):
            cell.metadata.pop(name, None)
        tags = cell.metadata.get("tags")
        if tags is not None and not tags:
            del cell.metadata["tags"]
        if INJECTED in (tags or []):
            cell["id"] = INJECTED
    return executed


def write(executed: nbformat.NotebookNode, partial: Path, target: Path) -> None:
    """Write a normalised notebook in one step."""
    nbformat.write(executed, partial)
    os.replace(partial, target)
