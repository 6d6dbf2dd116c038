"""What a run would do: the notebooks asked for, their parameters, and whether each must run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.ledger import Inputs, Ledger, State, notebook_inputs
from chameleon_lib.kit.notebooks import Notebook, discover, select
from chameleon_lib.kit.profiles import RunProfile, get_profile
from chameleon_lib.kit.sources import SourceTree


@dataclass(frozen=True)
class Step:
    """One notebook of a run: what goes in, and whether it must run."""

    notebook: Notebook
    parameters: dict[str, Any]
    inputs: Inputs
    state: State


class Run:
    """One call of the driver.

    Args:
        profile: name of the run profile.
        overrides: parameter values; each must be declared by at least one selected notebook.
        only: notebook numbers; all if empty.
        folder: source notebooks; those of the checkout by default.
        library: library sources; those of the checkout by default.

    Raises:
        UserError: for an unknown profile, notebook or parameter, or a value of the wrong type,
            before anything runs.
    """

    def __init__(
        self,
        profile: str,
        overrides: Mapping[str, Any] | None = None,
        only: Sequence[str] = (),
        *,
        folder: Path | None = None,
        library: SourceTree | None = None,
    ) -> None:
        self.profile: RunProfile = get_profile(profile)
        self.all = discover(folder or paths.notebooks_dir())
        self.selected = select(self.all, list(only))
        self.library = library or SourceTree()
        self.ledger = Ledger(paths.cache_dir() / "ledger.json")
        self.overrides = dict(overrides or {})
        self.values = {n.name: self._parameters(n) for n in self.selected}
        for name in self.overrides:
            if not any(name in values for values in self.values.values()):
                numbers = ", ".join(notebook.number for notebook in self.selected)
                raise UserError(f"Unknown parameter '{name}': no notebook among {numbers} has it.")

    def _parameters(self, notebook: Notebook) -> dict[str, Any]:
        declared = notebook.parameters()
        wanted = {**self.overrides, "profile": self.profile.name}
        values = {name: value for name, value in wanted.items() if name in declared}
        for name, value in values.items():
            if not declared[name].accepts(value):
                kind = declared[name].annotation or type(declared[name].default).__name__
                raise UserError(
                    f"Parameter '{name}' of {notebook.path.name} takes {kind}, not {value!r}."
                )
        return values

    def step(self, notebook: Notebook) -> Step:
        """Look at one notebook as things stand now."""
        values = self.values[notebook.name]
        inputs = notebook_inputs(
            notebook,
            values,
            sources=self.library,
            environment=paths.environment_file(),
            profile=self.profile,
        )
        if notebook.summary:
            others = [n for n in self.all if not n.summary]
            inputs["results"] = self.ledger.upstream(self.profile.name, others)
        return Step(
            notebook, values, inputs, self.ledger.state(self.profile.name, notebook, inputs)
        )

    def plan(self) -> Iterator[tuple[Notebook, str, str]]:
        """Per selected notebook: `run`, `prose` (new text only) or `cached`, and why."""
        running: list[str] = []
        for notebook in self.selected:
            state = self.step(notebook).state
            why = state.why
            if not why and notebook.summary and running:
                why = f"reads what {', '.join(running)} will write"
            if why:
                running.append(notebook.number)
            what = "run" if why else "prose" if state.stale_prose else "cached"
            yield notebook, what, why
