"""What a run really asks of its models, counted while it runs: the base of every ``--plan``.

Counting is on where ``CHAMELEON_COUNT`` names a file; each process writes its own beside it, one
JSON line per event. A backbone's first layers see every token that goes through it, whoever sent
it: a study, a fit, a training. The artifact store says which unit of which stage the tokens were
for, and which units a notebook used without computing them. :func:`write_counts` puts the files
of all notebooks together: units that the same notebooks use, of one stage, backbone and task, make
a row.

Counts hold no times, so two cold runs give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text

VARIABLE = "CHAMELEON_COUNT"
# Of a row: units of the store; tokens read (prompts, many at once), scored (what stands behind a
# prompt that was read before, many at once) and written (one after another); and those read and
# scored with a gradient.
FIELDS = ("units", "read", "scored", "written", "learned_read", "learned_scored")

Row = tuple[str, str, str, str]  # notebooks, backbone, task, stage
_KEY = 16  # hexadecimal digits of a key that are written down

_open: list[dict[str, Any]] = []  # the units in the making, the innermost last
_seen: set[str] = set()  # keys this process has noted
_task = [""]  # the task that a unit named last


def on() -> bool:
    """Whether this run counts."""
    return bool(os.environ.get(VARIABLE))


def _write(event: Mapping[str, Any]) -> None:
    with Path(f"{os.environ[VARIABLE]}-{os.getpid()}").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(event) + "\n")


def used(stage: str, keys: Sequence[str], inputs: Any) -> None:
    """Note the units that a notebook needs, computed here or not."""
    if not on():
        return
    task = inputs.get("task") if isinstance(inputs, Mapping) else None
    if isinstance(task, str):
        _task[0] = task
    new = sorted({key[:_KEY] for key in keys} - _seen)
    if new:
        _seen.update(new)
        _write({"stage": stage, "used": new, "task": _task[0]})


@contextmanager
def computing(stage: str, keys: Sequence[str]) -> Iterator[None]:
    """Count everything that goes through a backbone meanwhile for these units."""
    if not on():
        yield
        return
    event = {"stage": stage, "made": [key[:_KEY] for key in keys], "task": _task[0], "work": {}}
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
    if not on():
        return
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
