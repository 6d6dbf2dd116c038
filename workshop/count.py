"""Count what a cold run of the demo asks of its models: the base of every plan.

    python -m workshop.count
    python -m workshop.count small DIR [USERS]

The second command counts Table 1 of another profile on LaMP files and prints it beside its plan.
The demo runs from nothing in a scratch folder, and each of its processes writes a file of JSON
lines. A backbone's first layers see every token that goes through it, whoever sent it: a study, a
fit, a training. The artifact store is watched to know which unit of which stage the tokens were
for, and which units a notebook used without computing them. In the end units that the same
notebooks use, of one stage, backbone and task, make a row of ``chameleon_lib/kit/counts.tsv``.

Counts hold no times, so two cold runs give the same bytes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit.cost import COUNTS, OTHER, STAGES, Cost, costs
from chameleon_lib.kit.forecast import APART, UNCOUNTED
from chameleon_lib.kit.notebooks import discover
from chameleon_lib.kit.paths import notebooks_dir, replace_text
from chameleon_lib.kit.plan import Run
from workshop import run_script
from workshop.watched import AfterImport, run_demo

VARIABLE = "CHAMELEON_TEST_COUNT"  # the folder of the files
EVERY = "CHAMELEON_TEST_COUNT_EVERY"  # set where models that are not the demo's count as well
# Of a row: units of the store; tokens read (prompts, many at once), scored (what stands behind a
# prompt that was read before, many at once) and written (one after another); and those read and
# scored with a gradient.
FIELDS = ("units", "read", "scored", "written", "learned_read", "learned_scored")

Row = tuple[str, str, str, str]  # notebooks, backbone, task, stage

_open: list[dict[str, Any]] = []  # the units in the making, the innermost last
_seen: set[str] = set()  # keys this process has noted
_task = [""]  # the task that a unit named last


def install() -> None:
    """Called in every process of a counted run, before anything else."""
    changes = {
        "chameleon_lib.kit.store": _watch_store,
        "chameleon_lib.backbones.frozen": _watch_models,
    }
    sys.meta_path.insert(0, AfterImport(changes))


def _write(event: Mapping[str, Any]) -> None:
    # The driver names the progress file of a kernel after its process and its notebook.
    number = Path(os.environ["CHAMELEON_PROGRESS"]).stem.rpartition("-")[2]
    path = Path(os.environ[VARIABLE]) / f"{number}-{os.getpid()}"
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(event) + "\n")


def _watch_store(module: Any) -> None:
    """Note the units that a notebook needs, and count what is computed for those that it makes."""
    store, digest = module.ArtifactStore, module.digest
    get, map_ = store.get_or_compute, store.map

    def get_or_compute(
        self: Any, stage: str, inputs: Any, compute: Callable[[], Any], **how: Any
    ) -> Any:
        keys = [self.key(stage, inputs, how.get("modules", ()))]
        used(stage, keys, inputs)

        def counted() -> Any:
            with computing(stage, keys):
                return compute()

        return get(self, stage, inputs, counted, **how)

    def map_units(
        self: Any, stage: str, items: Any, compute_batch: Callable[..., Any], **how: Any
    ) -> Any:
        units, inputs = list(items), how["inputs"]
        common = self.key(stage, inputs, how.get("modules", ()))  # as the store's own method has it

        def keys_of(some: Sequence[Any]) -> list[str]:
            return [digest([common, how["key_of"](unit)]) for unit in some]

        def counted(batch: list[Any]) -> Any:
            with computing(stage, keys_of(batch)):
                return compute_batch(batch)

        used(stage, keys_of(units), inputs)
        return map_(self, stage, units, counted, **how)

    store.get_or_compute, store.map = get_or_compute, map_units


def _watch_models(module: Any) -> None:
    """Count the tokens of every model of the demo as soon as something is built around it."""
    init = module.FrozenModel.__init__

    def started(own: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        init(own, model, *args, **kwargs)
        if own.name.startswith("demo:") or EVERY in os.environ:
            watch(own.name, model)

    module.FrozenModel.__init__ = started


def used(stage: str, keys: Sequence[str], inputs: Any) -> None:
    """Note the units that a notebook needs, computed here or not."""
    task = inputs.get("task") if isinstance(inputs, Mapping) else None
    if isinstance(task, str):
        _task[0] = task
    new = sorted(set(keys) - _seen)
    if new:
        _seen.update(new)
        _write({"stage": stage, "used": new, "task": _task[0]})


@contextmanager
def computing(stage: str, keys: Sequence[str]) -> Iterator[None]:
    """Count everything that goes through a backbone meanwhile for these units."""
    event = {"stage": stage, "made": list(keys), "task": _task[0], "work": {}}
    _open.append(event)
    try:
        yield
    finally:  # what a refused unit cost is a cost, too
        _open.pop()
        _write(event)


def watch(name: str, model: Any) -> None:
    """Count the tokens that go through a model of the demo, and through every copy of it.

    Args:
        name: Id of the backbone.
        model: Decoder or T5 of transformers; its first layers get (B, T, d) hidden states.
    """
    if any(hasattr(module, "counted_as") for module in model.modules()):
        return  # a copy brings its hooks along
    if model.config.is_encoder_decoder:
        layers = [(model.encoder.block[0], "encoder"), (model.decoder.block[0], "cross")]
    else:
        layers = [(model.model.layers[0], "decoder")]
    for layer, kind in layers:
        layer.counted_as = name
        layer.register_forward_pre_hook(partial(_count, kind), with_kwargs=True)


def _count(kind: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    import torch

    hidden = args[0] if args else kwargs["hidden_states"]
    rows, length = hidden.shape[0], hidden.shape[1]
    cache = kwargs.get("past_key_values")
    behind = kind == "cross" or (cache is not None and cache.get_seq_length(0) > 0)
    field = ("written" if length == 1 else "scored") if behind else "read"
    work = {field: rows * length}
    if torch.is_grad_enabled() and field != "written":
        work[f"learned_{field}"] = rows * length
    if not _open:
        _write({"stage": "", "task": _task[0], "work": {layer.counted_as: work}})
        return
    found = _open[-1]["work"].setdefault(layer.counted_as, defaultdict(int))
    for name, number in work.items():
        found[name] += number


def write_counts(folder: Path, target: Path) -> None:
    """Write the rows of a cold run as a table, with tabs between its cells.

    Args:
        folder: Of the files that its kernels left, named ``NN-pid`` by notebook.
        target: The table.

    Raises:
        UserError: A notebook used a unit that nobody computed: the store was not empty.
    """
    rows = [
        (*row, *(str(round(work[name])) for name in FIELDS))
        for row, work in sorted(_rows(folder).items())
        if any(work[name] for name in FIELDS[1:])  # units that no model worked for cost nothing
    ]
    head = ("notebooks", "backbone", "task", "stage", *FIELDS)
    replace_text(target, "".join("\t".join(row) + "\n" for row in [head, *rows]))


def _rows(folder: Path) -> dict[Row, dict[str, float]]:
    """The work by notebooks, backbone, task and stage."""
    users: dict[str, set[str]] = defaultdict(set)  # unit → notebooks
    made: dict[str, tuple[str, str, dict[str, Any], float]] = {}  # unit → stage, task, work, share
    rows: dict[Row, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for path in sorted(folder.glob("[0-9][0-9]-*")):
        number = path.name.partition("-")[0]
        for line in path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if "used" in event:
                for key in event["used"]:
                    users[f"{event['stage']}/{key}"].add(number)
            elif "made" not in event:
                for model, work in event["work"].items():
                    _add(rows[number, model, event["task"], ""], work, 1)
            else:
                # A batch is shared out evenly; two processes that made the same unit count once.
                share = 1 / len(event["made"])
                for key in event["made"]:
                    batch = event["stage"], event["task"], event["work"], share
                    made.setdefault(f"{event['stage']}/{key}", batch)
    missing = users.keys() - made.keys()
    if missing:
        raise UserError(f"{len(missing)} units were in the store before: count a cold run.")
    for unit in sorted(made):
        stage, task, works, share = made[unit]
        who = ",".join(sorted(users[unit]))
        for model, work in works.items():
            _add(rows[who, model, task, stage], work, share)
            rows[who, model, task, stage]["units"] += 1
    return rows


def _add(row: dict[str, float], work: Mapping[str, float], times: float) -> None:
    for name, number in work.items():
        row[name] += number * times


def beside_plan(folder: Path, planned: Sequence[Cost]) -> str:
    """The counted work of a run beside its plan, by stage, as a Markdown table."""
    fields = ("read", "scored", "written")
    counted: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (_, _, _, stage), work in _rows(folder).items():
        _add(counted[STAGES.get(stage, OTHER)], work, 1)
    lines = [f"| stage | {' | '.join(f'{f}: plan | counted | ratio' for f in fields)} |"]
    lines.append(f"|---{'|---:' * 3 * len(fields)}|")
    for title in dict.fromkeys([*STAGES.values(), OTHER, "all"]):
        cells = []
        for field in fields:
            here = [c for c in planned if title in (c.stage, "all")]
            plan = sum(getattr(cost, field) for cost in here)
            found = sum(row[field] for at, row in counted.items() if title in (at, "all"))
            ratio = f"{found / plan:.2f}" if plan else "–"
            cells += [f"{plan:,.0f}", f"{found:,.0f}", ratio]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(profile: str, data: str, users: int) -> str:
    """Count Table 1 of a profile on LaMP files, beside its plan."""
    values = {"data_dir": str(Path(data).absolute()), **({"users": users} if users else {})}
    planned = costs(Run(profile, values, ["01"]).scope, ["01"])
    words = ["--data", str(values["data_dir"]), *(["--users", str(users)] if users else [])]
    with tempfile.TemporaryDirectory(prefix="chameleon-count-") as scratch:
        events = Path(scratch) / "events"
        events.mkdir()
        script, variables = Path(__file__).resolve(), {VARIABLE: str(events), EVERY: "1"}
        run_demo(
            Path(scratch) / "run", "01", script, profile=profile, words=words, **variables
        )
        return beside_plan(events, planned)


def _in_the_table() -> list[str]:
    """Notebooks that are counted: those of the demo's backbones, as far as a plan scales them."""
    left = {*APART, *UNCOUNTED}
    found = discover(notebooks_dir())
    return [book.number for book in found if not book.summary and book.number not in left]


def main() -> int:
    """Count a run: write the table of the library, or print what came of a plan."""
    if sys.argv[1:]:
        profile, data, users = [*sys.argv[1:], "0"][:3]
        print(compare(profile, data, int(users)))
        return 0
    with tempfile.TemporaryDirectory(prefix="chameleon-count-") as scratch:
        events = Path(scratch) / "events"
        events.mkdir()
        script, variables = Path(__file__).resolve(), {VARIABLE: str(events)}
        run_demo(Path(scratch) / "run", ",".join(_in_the_table()), script, **variables)
        write_counts(events, COUNTS)
    print(f"wrote {COUNTS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
