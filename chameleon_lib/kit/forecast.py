"""A forecast for readers: what a plan says of work, downloads, memory and disk.

All numbers are those of :mod:`kit.cost`. Standard library only: a plan is printed before anything
is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from chameleon_lib.kit.cost import (
    ARMS_AT_ONCE,
    OF_REVIEWS,
    OTHER,
    STAGES,
    Cost,
    Scope,
    Speed,
    costs,
    data_bytes,
    missing_bytes,
    speed_of,
    store_bytes,
)
from chameleon_lib.kit.models import MODELS, number_bytes
from chameleon_lib.kit.power import EFFECTS, told

# Minutes of two cores, with other work beside them, of notebooks that no table counts: those whose
# model is no backbone of a profile, and those that were never counted, in the demo.
APART = {"10": 8, "14": 9}
UNCOUNTED = {"11": 5, "12": 7, "13": 8}


def size(number: float) -> str:
    """Bytes for readers: "14.5 GB"."""
    for unit, worth in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= worth:
            return f"{number / worth:.3g} {unit}"
    return f"{number:.0f} B"


def _count(number: float) -> str:
    """A number for readers: "1.54 M"."""
    return size(number).removesuffix("B").rstrip()


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
    work = costs(scope, notebooks, stored)
    parts = [
        _work(scope, notebooks, work, speed or speed_of(scope.profile)),
        _downloads(scope, notebooks, present),
        _memory(scope),
        _disk(scope, notebooks, work, present),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _work(
    scope: Scope, notebooks: Sequence[str], work: Sequence[Cost], speed: Speed
) -> list[str]:
    if not work:
        if scope.reviews is not None and not scope.profile.base:
            return ["Work: that of notebook 11's own small model (--backbone takes a real one)."]
        return _apart(scope, notebooks) or ["Work: nothing that a backbone has to compute."]
    head = ("stage", "units", "tokens read", "scored", "written", "gradient", "PFLOP", "hours")
    titles = (*STAGES.values(), *OF_REVIEWS.values(), OTHER)
    groups = {title: [c for c in work if c.stage == title] for title in titles}
    groups |= {c.model.id: [d for d in work if d.model == c.model] for c in work}
    rows = [_row(name, some, speed) for name, some in {**groups, "all": work}.items() if some]
    alone = {n: costs(scope, [n]) for n in notebooks}
    guessed = [n for n in notebooks if not scope.embedded_world and _guessed(scope, n)]
    untrained = not scope.profile.trains and scope.reviews is None
    left = ["ALOE and DPO are left out: they train weights."] if untrained else []
    unknown = [name for name in scope.profile.backbones if name not in MODELS]
    reviews = scope.reviews
    how = "scaled from a counted demo run" if reviews is None else (
        f"from the recipe, {scope.part(scope.profile.n_train)} reviewers to train on and "
        f"{scope.part(scope.profile.n_test)} to test at most, {reviews.prompt:.0f} tokens of a "
        f"prompt and {reviews.review:.0f} of a review"
    )  # fmt: skip
    return [
        f"Work of {', '.join(notebooks)} with an empty store, {how}:",
        *_table([head, *rows]),
        f"Hours: {speed.device} at {speed.reading / 1e12:g} TFLOP/s, and "
        f"{speed.writing / 1e12:g} where token follows token (--tflops).",
        "Each notebook alone, hours: "
        + ", ".join(f"{n} {_hours(speed.hours(some))}" for n, some in alone.items() if some) + ".",
        *_shared(work, [cost for some in alone.values() for cost in some], speed),
        *([f"How much more than in the demo {', '.join(guessed)} do is estimated, not counted."]
          if guessed else []),
        *left,
        *_size(scope),
        *_apart(scope, notebooks),
        *(f"Size unknown, not counted: {name}." for name in unknown),
    ]  # fmt: skip


def _shared(work: Sequence[Cost], alone: Sequence[Cost], speed: Speed) -> list[str]:
    """What is not done twice: by stage of the store, and by reading a prompt once."""
    titles = dict.fromkeys(STAGES.values())
    saved = {
        title: speed.hours([c for c in alone if c.stage == title])
        - speed.hours([c for c in work if c.stage == title])
        for title in titles
    }
    lines = []
    if any(hours > 1e-9 for hours in saved.values()):
        words = (f"{title} {_hours(hours)}" for title, hours in saved.items() if hours > 1e-9)
        lines.append(f"Shared by notebooks through the store, hours saved: {', '.join(words)}.")
    once = {
        title: [
            sum(getattr(c, name) for c in work if c.stage == title) for name in ("read", "asked")
        ]
        for title in ("answers", "fit")
    }
    words = (
        f"{title} {_count(r)} of {_count(a)}" for title, (r, a) in once.items() if a > 1.01 * r
    )
    if told_once := ", ".join(words):
        lines.append(
            f"Read once for all steps, and for {ARMS_AT_ONCE} arms at a time, tokens of those "
            f"asked: {told_once}."
        )
    return lines


def _apart(scope: Scope, notebooks: Collection[str]) -> list[str]:
    """What the table leaves out, and what is known of it."""
    lines = []
    if own := {n: APART[n] for n in notebooks if n in APART}:
        lines.append(
            f"Not in this table: {', '.join(own)}, on SmolLM2 and the CPU, alike in every profile; "
            f"about {sum(own.values())} minutes of two cores."
        )
    counted = {"11"} if scope.reviews is not None else set()
    if some := {n: UNCOUNTED[n] for n in notebooks if n in UNCOUNTED and n not in counted}:
        known = (
            f"about {sum(some.values())} minutes of two cores" if scope.embedded_world else
            f"there is no count to scale; in the demo about {sum(some.values())} minutes of two "
            "cores"
        )  # fmt: skip
        lines.append(f"Not in this table: {', '.join(some)}; {known}.")
    return lines


def _size(scope: Scope) -> list[str]:
    """What the number of test users can tell, and what was cut for it."""
    if scope.embedded_world or scope.reviews:
        return []
    lines = [f"{told(task, scope.there(task)[1])}." for task in scope.tasks if task in EFFECTS]
    head = ["95 % intervals of a gain over Instruct (kit/power.py):"] if lines else []
    cut = scope.profile.cut
    return [*head, *(f"  {line}" for line in lines), *(["Cut:"] if cut else []),
            *(f"  {line}" for line in cut)]  # fmt: skip


def _guessed(scope: Scope, number: str) -> bool:
    """Whether a notebook's design beyond the demo holds an estimate."""
    design = scope.designs.get(number, {})
    factors = design.get("beyond", {})
    if scope.profile.reduced:
        factors = design.get("reduced", factors)
    return any(isinstance(factor, float) for factor in factors.values())


def _row(name: str, some: Sequence[Cost], speed: Speed) -> tuple[str, ...]:
    fields = ("units", "read", "scored", "written", "learned")
    sums = (_count(sum(getattr(cost, field) for cost in some)) for field in fields)
    flops = sum(cost.flops for cost in some) / 1e15
    return (name, *sums, f"{flops:.3g}", _hours(speed.hours(some)))


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.2g}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = -widths[0]  # names stand at the left
    return [
        "  " + "  ".join(f"{cell:{'<' if width < 0 else '>'}{abs(width)}}"
                         for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]  # fmt: skip


def _downloads(
    scope: Scope, notebooks: Sequence[str], present: Callable[[str], bool]
) -> list[str]:
    lines = []
    for name in scope.hub_models(notebooks):
        words = size(MODELS[name].download) if name in MODELS else "size unknown"
        words += ", in the cache already" if present(name) else ""
        if name in MODELS and MODELS[name].gated:
            words += ", asks for an access token that has accepted its terms"
        lines.append(f"  {name}: {words}")
    lines += [f"  {task}: about {size(number)}" for task, number in data_bytes(scope).items()]
    if not lines:
        return ["Downloads: none; models and users are in the checkout."]
    return ["Downloads (LaMP's files by you, into the folder of --data):", *lines]


def _memory(scope: Scope) -> list[str]:
    kind = {2: "bfloat16", 4: "float32"}[number_bytes(scope.profile)]
    if scope.profile.quantization != "none":
        kind += f", weights in {scope.profile.quantization} (4 bits)"
    where = "GPU memory" if scope.profile.needs_gpu else "Memory (of the GPU, or of the CPU)"
    lines = [f"{where}, {kind}, at most:"]
    for model in scope.models:
        words = [f"{name} {size(n)}" for name, n in scope.memory(model).items()]
        trained = scope.profile.trains and model.id in scope.profile.studied and not scope.reviews
        shown = words if trained else words[:1]
        lines.append(f"  {model.id}: {', '.join(shown)}")
    return lines


def _disk(
    scope: Scope, notebooks: Sequence[str], work: Sequence[Cost], present: Callable[[str], bool]
) -> list[str]:
    parts = {
        "models": missing_bytes(scope, notebooks, present),
        "data": sum(data_bytes(scope).values()),
        "artifact store": store_bytes(scope, work),
    }
    words = ", ".join(f"{name} {size(n)}" for name, n in parts.items() if n)
    total = size(sum(parts.values()))
    lines = [f"Disk: {total} ({words})." if words else "Disk: nothing that is not there already."]
    filed = max((scope.filed(model) for model in scope.models), default=0.0)
    if filed and not scope.reviews:
        lines.append(
            f"While a fit runs, its prompts' states take up to {size(filed)} more on disk."
        )
    return lines
