"""Speed as ratios against named references, in one table: ``python -m workshop.bench --help``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch

from workshop.bench import ccs, forms, generation, read_once
from workshop.bench.measure import Clock, Row, clock_for, markdown

# Part -> its measurement at full and at reduced size.
PARTS: dict[str, Callable[[bool, Clock], list[Row]]] = {
    "ccs": lambda quick, clock: ccs.measure(ccs.CCSWork(layers=4 if quick else 32), clock),
    "generation": lambda quick, clock: generation.measure(
        generation.GenerationWork(rounds=3 if quick else 5), clock
    ),
    "forms": lambda quick, clock: forms.measure(forms.FormsWork(rounds=3 if quick else 11), clock),
    "read-once": lambda quick, clock: read_once.measure(
        read_once.QUICK if quick else read_once.ReadOnceWork(), clock
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a Markdown table.

    Goals that are missed are marked and fail nothing, because they depend on the machine.
    """
    parser = argparse.ArgumentParser(prog="python -m workshop.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer layers, users and rounds")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    options = parser.parse_args(argv)
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"there is no part '{part}'; choose from {', '.join(PARTS)}")
    clock, name = clock_for(options.threads)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        chosen = options.parts or list(PARTS)
        rows = [row for part in chosen for row in PARTS[part](options.quick, clock)]
    finally:
        torch.set_num_threads(before)
    print(markdown(rows))
    print(f"\nRatios of {name} over paired rounds in alternating order, {options.threads} threads.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
