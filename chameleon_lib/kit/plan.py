"""What a run would do: the notebooks asked for, their parameters, and whether each must run.

Standard library only, as all it imports: :func:`main` answers ``list`` and ``plan`` before anything
is installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit import needs, paths
from chameleon_lib.kit.command_line import Parser, notebook_numbers, overrides, positive
from chameleon_lib.kit.cost import Scope, Speed
from chameleon_lib.kit.forecast import text
from chameleon_lib.kit.ledger import Inputs, Ledger, notebook_inputs
from chameleon_lib.kit.notebooks import Notebook, discover, select
from chameleon_lib.kit.profiles import PUBLIC, QUANTIZE, RunProfile, for_data, get_profile
from chameleon_lib.kit.shared_items import has_reviews, measure
from chameleon_lib.kit.sources import SourceTree


@dataclass(frozen=True)
class Step:
    """One notebook of a run: what goes in, and why it must run; empty if it need not."""

    notebook: Notebook
    parameters: dict[str, Any]
    inputs: Inputs
    why: str


class Run:
    """One call of the driver.

    Args:
        profile: name of the run profile.
        overrides: parameter values, each of at least one selected notebook; text stands for a
            Python literal wherever another type is declared.
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
        self.overrides = dict(overrides or {})
        models = self.overrides.get("backbones", [])
        self.left_out: list[str] = []
        self.all = discover(folder or paths.notebooks_dir())
        self.selected = select(self.all, list(only))
        self.asked = _for_reader(profile, self.selected, self.overrides)
        self.profile = get_profile(self.asked, models)
        if models:
            self.overrides["backbones"] = list(self.profile.backbones)
            self._take_models(bool(only))
        if not models:
            self._leave_out()
        self.reviews = self._reviews_of_shared_items()
        self.library = library or SourceTree()
        self.ledger = Ledger(paths.cache_dir() / "ledger.json")
        self.values = {n.name: self._parameters(n) for n in self.selected}
        for name in self.overrides:
            if not any(name in values for values in self.values.values()):
                numbers = ", ".join(notebook.number for notebook in self.selected)
                raise UserError(f"Unknown parameter '{name}': no notebook among {numbers} has it.")

    def _reviews_of_shared_items(self) -> Path | None:
        """The data folder, if that is what it holds; few notebooks read such."""
        folder = Path(str(self.overrides.get("data_dir") or ""))
        if not self.overrides.get("data_dir") or not folder.is_dir() or not has_reviews(folder):
            return None
        able = [n.number for n in self.all if n.facts.get("reviews")]
        others = [n.number for n in self.selected if n.number not in able and not n.summary]
        if others:
            raise UserError(
                f"{folder} holds reviews of shared items, which notebook {', '.join(able)} reads, "
                f"and not {', '.join(others)}: add --only {','.join(able)}."
            )
        return folder

    def _leave_out(self) -> None:
        """Leave out notebooks that read a model from a wheel which was not fetched."""
        lacking = {n.name: needs.lacking(n) for n in self.selected}
        self.left_out = [why for why in lacking.values() if why]
        if len(self.left_out) == len(self.selected):
            raise needs.NotReady("\n".join(self.left_out))
        self.selected = [n for n in self.selected if not lacking[n.name]]

    def _take_models(self, named: bool) -> None:
        """Leave out notebooks with models of their own: they would write over another run."""
        fixed = [n for n in self.selected if "backbones" not in n.parameters()]
        if named and fixed:
            raise UserError(f"Notebook {fixed[0].number} takes no --backbone: leave it out.")
        self.selected = [n for n in self.selected if n not in fixed]
        self.left_out = [f"Left out, for it takes no --backbone: {n.name}" for n in fixed]

    @property
    def scope(self) -> Scope:
        """The size of this run, as its notebooks will see it."""
        designs = {notebook.number: notebook.facts.get("cost", {}) for notebook in self.all}
        users, draws = (self.overrides.get(name, 0) for name in ("users", "seeds"))
        measured = None if self.reviews is None else measure(self.reviews)
        return Scope(self.profile, users, draws, designs, self._found(), measured)

    def _found(self) -> dict[str, tuple[int, int]]:
        """Train and test queries of the tasks that the data folder has, as far as can be told.

        Without a train file, dev users are divided 40/10/50.
        """
        found = {}
        for task in self.profile.tasks if self.overrides.get("data_dir") else ():
            folder = Path(str(self.overrides["data_dir"])) / task
            train, dev = (_queries(folder, part) for part in ("train", "dev"))
            if dev:
                found[task] = (train or 2 * dev // 5, dev if train else dev // 2)
        return found

    def _parameters(self, notebook: Notebook) -> dict[str, Any]:
        declared = notebook.parameters()
        wanted = {**self.overrides, "profile": self.asked}
        values = {n: declared[n].read(value) for n, value in wanted.items() if n in declared}
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
        if files := _model_files(self.profile):
            inputs["models"] = files
        if notebook.summary:
            others = [n for n in self.all if not n.summary]
            inputs["results"] = self.ledger.upstream(self.profile.name, others)
        why = self.ledger.why(self.profile.name, notebook, inputs)
        return Step(notebook, values, inputs, why)

    def plan(self) -> Iterator[tuple[Notebook, str]]:
        """The selected notebooks, and why each must run; empty for one that is cached."""
        running: list[str] = []
        for notebook in self.selected:
            why = self.step(notebook).why
            if not why and notebook.summary and running:
                why = f"reads what {', '.join(running)} will write"
            if why:
                running.append(notebook.number)
            yield notebook, why


def _queries(folder: Path, part: str) -> int:
    """Gold answers in a task's file of a part; 0 where there is none that can be read."""
    for path in sorted(folder.rglob(f"{part}_outputs.json")):
        try:
            return len(json.loads(path.read_text(encoding="utf-8"))["golds"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # the run says what is wrong with it
    return 0


def _model_files(profile: RunProfile) -> dict[str, str]:
    """Size and time of every file of the models that are paths: another content runs anew."""
    found = {}
    for model in (Path(name) for name in profile.backbones if name.startswith("/")):
        for file in sorted(model.iterdir()) if model.is_dir() else [model]:
            state = file.stat()
            found[file.as_posix()] = f"{state.st_size} {state.st_mtime_ns}"
    return found


def _for_reader(name: str, notebooks: Sequence[Notebook], values: Mapping[str, Any]) -> str:
    """The run profile, or that of a run on a reader's own data, which notebooks ask for, too."""
    own = any(
        name in values and values[name] != notebook.parameters()[name].default
        for notebook in notebooks
        for name in notebook.facts.get("reader", ())
    )
    return for_data(name, bool(values.get("table")), own=own)


def listing(only: Sequence[str]) -> list[str]:
    """Notebooks with titles and parameters, as lines."""
    lines = []
    for notebook in select(discover(paths.notebooks_dir()), list(only)):
        lines += [f"{notebook.number}  {notebook.title()}", f"    {paths.display(notebook.path)}"]
        for item in notebook.parameters().values():
            kind = f": {item.annotation}" if item.annotation else ""
            lines.append(f"    {item.name}{kind} = {item.default!r}")
    return lines


def plan_lines(run: Run, speed: Speed | None = None) -> list[str]:
    """What would run and why, what it would cost, and what is missing here, as lines."""
    lines = list(run.left_out)
    stale, stored = list[str](), list[str]()
    for notebook, why in run.plan():
        what, reason = ("run", f"  ({why})") if why else ("cached", "")
        lines.append(f"{notebook.number}  {what:<7}{notebook.name}{reason}")
        (stale if why else stored).append(notebook.number)
    if not stale:
        return lines
    lines += ["", text(run.scope, stale, stored, speed=speed, present=needs.in_cache)]
    stops, warns = needs.missing(run.scope, stale)
    reading = any("data_dir" in notebook.parameters() for notebook in run.selected)
    if reading and run.profile.data != "demo" and "data_dir" not in run.overrides:
        stops.append("The users: name the folder of the LaMP files with --data.")
    said = [f"  {sentence}" for sentence in (*stops, *warns)] or ["  nothing"]
    return [*lines, "", "Missing on this machine:", *said]


def main(argv: Sequence[str]) -> int:
    """``list`` and ``plan`` without typer, which is not there before an installation."""
    parser = Parser(prog="python -m chameleon_lib", allow_abbrev=False)
    parser.add_argument("command", choices=("list", "plan"))
    parser.add_argument("--only", default="")
    parser.add_argument("--profile", choices=PUBLIC, default="demo")
    parser.add_argument("--quantize", choices=tuple(QUANTIZE))
    parser.add_argument("--data")
    parser.add_argument("--tflops")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--backbone", action="append", default=[])
    for name in ("users", "seeds"):
        parser.add_argument(f"--{name}", type=positive)
    try:
        options = parser.parse_args(argv)
        numbers = notebook_numbers(options.only)
        if options.command == "list":
            lines = listing(numbers)
        else:
            values = overrides(
                options.data, options.users, options.seeds, options.set, options.backbone
            )
            name = for_data(options.profile, bool(options.data), options.quantize)
            speed = Speed.parse(options.tflops) if options.tflops else None
            lines = plan_lines(Run(name, values, numbers), speed)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    return 0
