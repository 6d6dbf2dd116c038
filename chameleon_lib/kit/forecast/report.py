"""The forecast of a run as text, for ``--plan`` and for the README.

Nothing here looks at a machine but ``present``: which models are already in the hub's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from chameleon_lib.errors import UserError
from chameleon_lib.kit.forecast.cell import STAGES
from chameleon_lib.kit.forecast.known import MODELS, DataFile, data_files
from chameleon_lib.kit.forecast.memory import device_bytes, store_bytes
from chameleon_lib.kit.forecast.scope import Scope
from chameleon_lib.kit.forecast.studies import STUDIES, StageCost, pieces_of, stage_costs

_MPNET = "sentence-transformers/all-mpnet-base-v2"  # one reading of notebook 06
_HEAD = ("stage", "texts", "tokens read", "written", "gradient", "PFLOP", "hours")
_NOT_COUNTED = "Not counted: 08, whose work is that of the table it is given."
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True)
class Speed:
    """Assumed throughput of a device, in FLOPs per second.

    Attributes:
        device: What it is.
        reading: Prompts, scores and trainings: many tokens at once.
        writing: Answers, one token after another.
    """

    device: str
    reading: float
    writing: float

    def hours(self, cost: StageCost) -> float:
        """Time of a stage."""
        at_once = cost.flops - cost.token_by_token
        return (at_once / self.reading + cost.token_by_token / self.writing) / 3600

    @classmethod
    def parse(cls, text: str) -> Speed:
        """From "100" or "100,10": TFLOP/s of reading and of writing, a tenth by default.

        Raises:
            UserError: Anything else.
        """
        words = text.split(",")
        try:
            rates = [float(word) for word in words]
        except ValueError:
            rates = []
        if len(rates) not in (1, 2) or not all(0 < rate < float("inf") for rate in rates):
            raise UserError(
                f"--tflops takes TFLOP/s of reading, or of reading and writing such as 100,10, "
                f"not '{text}'."
            )
        writing = rates[1] if rates[1:] else rates[0] / 10
        return cls("your device", rates[0] * 1e12, writing * 1e12)


# The embedded models: a cold run of the demo, 15 minutes on two cores. The others are assumptions:
# a third of what an A100 can do in bfloat16, a tenth of that where every token waits for the one
# before; a laptop's CPU at a few hundred GFLOP/s in float32.
SPEEDS: dict[str, Speed] = {
    "demo": Speed("one CPU core", 1.9e10, 1.9e10),
    "demo-data": Speed("one CPU core", 1.9e10, 1.9e10),
    "laptop": Speed("a laptop's CPU", 2e11, 5e10),
    "paper": Speed("one GPU of the A100's class", 1e14, 1e13),
}
# Packed weights are unpacked for every product, which costs time and saves none.
SPEEDS |= {f"{name}-4bit": SPEEDS["paper"] for name in ("laptop", "paper")}


def size(number: float) -> str:
    """Bytes for readers: "14.5 GB"."""
    for unit, worth in _UNITS:
        if number >= worth:
            return f"{number / worth:.3g} {unit}"
    return f"{number:.0f} B"


def count(number: float) -> str:
    """A number for readers: "1.54 M"."""
    for unit, worth in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= worth:
            return f"{number / worth:.3g} {unit}"
    return f"{number:.0f}"


def models_of(scope: Scope, notebooks: Collection[str]) -> list[str]:
    """Ids of everything that a run loads from the hub."""
    if scope.profile.offline:
        return []
    names = [*scope.profile.backbones, scope.profile.embedder]
    return [*names, _MPNET] if "06" in notebooks else names


def downloads(
    scope: Scope, notebooks: Collection[str], present: Callable[[str], bool]
) -> list[tuple[str, float | None, bool]]:
    """What comes from the hub: id, bytes (None: unknown), and whether it is there already."""
    return [
        (name, float(MODELS[name].download) if name in MODELS else None, present(name))
        for name in models_of(scope, notebooks)
    ]


def files_of(scope: Scope) -> list[DataFile]:
    """The LaMP files that a run reads."""
    if scope.profile.data == "demo" or scope.profile.offline:
        return []
    return [file for task in scope.profile.tasks for file in data_files(task)]


def text(
    scope: Scope,
    notebooks: Sequence[str],
    stored: Sequence[str] = (),
    *,
    speed: Speed | None = None,
    present: Callable[[str], bool] = lambda _: False,
) -> str:
    """The whole forecast.

    Args:
        scope: Size of the run.
        notebooks: Numbers of those that will run.
        stored: Numbers of those that are up to date.
        speed: Throughput; that of the profile if None.
        present: Whether a model is in the hub's cache.
    """
    speed = speed or SPEEDS[scope.profile.name]
    parts = [
        _work(scope, notebooks, stored, speed),
        _downloads(scope, notebooks, present),
        _memory(scope),
        _disk(scope, notebooks, present),
    ]
    return "\n\n".join(part for part in parts if part)


def _work(scope: Scope, notebooks: Sequence[str], stored: Sequence[str], speed: Speed) -> str:
    costs = stage_costs(scope, notebooks, stored)
    unknown = [name for name in scope.profile.backbones if name not in MODELS]
    known = [number for number in notebooks if number in STUDIES]
    if not costs:
        return "Work: nothing that a backbone has to compute."
    rows: list[Sequence[str]] = [_HEAD]
    for name, some in [
        *((stage, [c for c in costs if c.stage == stage]) for stage in STAGES),
        *((name, [c for c in costs if c.backbone == name]) for name in _backbones(costs)),
        ("all", costs),
    ]:
        if some:
            rows.append(_row(name, some, speed))
    single = {number: stage_costs(scope, [number]) for number in known}
    hours = ", ".join(f"{n} {_hours(sum(map(speed.hours, c)))}" for n, c in single.items() if c)
    return "\n".join(
        [
            f"Work of {', '.join(notebooks)}, estimated with an empty store:",
            *_table(rows),
            f"Hours: {speed.device} at {speed.reading / 1e12:g} TFLOP/s, and "
            f"{speed.writing / 1e12:g} where token follows token (--tflops).",
            f"Each notebook alone, hours: {hours}.",
            *(f"Size unknown, not counted: {name}." for name in unknown),
            *([_NOT_COUNTED] if "08" in notebooks else []),
        ]
    )


def _backbones(costs: Sequence[StageCost]) -> list[str]:
    return list(dict.fromkeys(cost.backbone for cost in costs))


def _row(name: str, costs: Sequence[StageCost], speed: Speed) -> tuple[str, ...]:
    flops = sum(cost.flops for cost in costs) / 1e15
    return (
        name,
        count(sum(cost.prompts for cost in costs)),
        count(sum(cost.read for cost in costs)),
        count(sum(cost.written for cost in costs)),
        count(sum(cost.backward for cost in costs)),
        f"{flops:.3g}",
        _hours(sum(map(speed.hours, costs))),
    )


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.2g}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  " + "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]  # fmt: skip


def _downloads(
    scope: Scope, notebooks: Sequence[str], present: Callable[[str], bool]
) -> str:
    lines = []
    for name, number, there in downloads(scope, notebooks, present):
        words = "size unknown" if number is None else size(number)
        words += ", in the cache already" if there else ""
        if name in MODELS and MODELS[name].gated:
            words += ", asks for an access token that has accepted its terms"
        lines.append(f"  {name}: {words}")
    for file in files_of(scope):
        lines.append(f"  {file.path}: {'' if file.seen else 'about '}{size(file.size)}")
    if not lines:
        return "Downloads: none; models and users are in the checkout."
    return "\n".join(["Downloads (LaMP's files by you, into the folder of --data):", *lines])


def _memory(scope: Scope) -> str:
    lines = []
    for model in scope.models(studied=False):
        kinds = device_bytes(scope, model)
        shown = kinds if model.id in scope.profile.studied else {"asking": kinds["asking"]}
        lines.append(
            f"  {model.id}: " + ", ".join(f"{name} {size(n)}" for name, n in shown.items())
        )
    kind = {2: "bfloat16", 4: "float32"}[scope.bytes_per_number]
    if scope.profile.quantization != "none":
        kind += f", weights in {scope.profile.quantization} (4 bits)"
    where = "GPU memory" if scope.profile.needs_gpu else "Memory (of the GPU, or of the CPU)"
    return "\n".join([f"{where}, {kind}, at most:", *lines])


def disk_bytes(
    scope: Scope, notebooks: Sequence[str], present: Callable[[str], bool]
) -> tuple[float, dict[str, float]]:
    """Bytes of missing models, and of the artifact store by kind of record."""
    missing = sum(n or 0 for _, n, there in downloads(scope, notebooks, present) if not there)
    return missing, store_bytes(scope, pieces_of(scope, notebooks))


def _disk(scope: Scope, notebooks: Sequence[str], present: Callable[[str], bool]) -> str:
    missing, kept = disk_bytes(scope, notebooks, present)
    data = sum(file.size for file in files_of(scope))
    parts = [("models", missing), ("data", float(data)), *kept.items()]
    total = sum(n for _, n in parts)
    if not total:
        return "Disk: nothing that is not there already."
    words = ", ".join(f"{name} {size(n)}" for name, n in parts if n)
    return f"Disk: {size(total)} ({words}; the artifact store holds all but models and data)."
