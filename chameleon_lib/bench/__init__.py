"""`python -m chameleon_lib bench`: speed as ratios against named references, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from chameleon_lib.command_line import Parser, positive
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths

__all__ = ["PARTS", "main"]

PARTS = ("ccs", "generation", "edit", "forms", "fit")


def main(argv: Sequence[str]) -> int:
    """Measures, prints a Markdown table and writes ``bench.csv`` and ``bench.png``.

    Args:
        argv: Command line without the program and command name.

    Returns:
        0; goals that are missed are marked in the table and do not fail the run, because they
        depend on the machine.

    Raises:
        UserError: An unknown part, or an output folder that is a file.
    """
    options = _parser().parse_args(argv)
    parts = _parts(options.only)
    folder = options.out or paths.measured_dir("demo")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder.")
    return _run(parts, options.quick, options.threads, folder)


def _run(parts: Sequence[str], quick: bool, threads: int, folder: Path) -> int:
    # Torch loads here, so that --help and a mistyped option answer at once.
    import torch

    from chameleon_lib.bench import ccs, edit, fit, forms, generation
    from chameleon_lib.bench.chart import write_chart
    from chameleon_lib.bench.memory import keep_freed_memory
    from chameleon_lib.bench.rows import Row, frame, markdown
    from chameleon_lib.bench.timing import clock_for
    from chameleon_lib.kit.csvtext import to_csv

    keep_freed_memory()
    clock, clock_name = clock_for(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    parts_of: dict[str, Callable[[], list[Row]]] = {
        "ccs": lambda: ccs.measure(ccs.CCSWork(layers=4) if quick else ccs.CCSWork(), clock),
        "generation": lambda: generation.measure(
            generation.GenerationWork(rounds=3 if quick else 5), clock
        ),
        "edit": lambda: edit.measure(edit.DecodeWork(rounds=15 if quick else 31), clock),
        "forms": lambda: forms.measure(forms.FormsWork(rounds=3 if quick else 11), clock),
        "fit": lambda: fit.measure(fit.FitWork((10, 100)) if quick else fit.FitWork()),
    }
    rows: list[Row] = []
    target = folder / "bench.csv"
    try:
        for name, measure in parts_of.items():
            if name in parts:
                rows += measure()
                # After every part: a part takes minutes, and a later one may fail.
                paths.replace_text(target, to_csv(frame(rows, threads=threads, clock=clock_name)))
    finally:
        torch.set_num_threads(before)
    chart = write_chart(rows, folder, "demo")
    print(markdown(rows))
    print()
    fits = " Fits ran once each, timed in CPU time of one thread." if "fit" in parts else ""
    print(
        f"Ratios of {clock_name} over paired rounds in alternating order, {threads} "
        f"thread{'' if threads == 1 else 's'}.{fits} Written to {paths.display(target)}"
        + (f" and {paths.display(chart)}." if chart else ".")
    )
    return 0


def _parts(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PARTS:
            raise UserError(f"--only knows no part '{name}'; choose from {', '.join(PARTS)}.")
    return tuple(names)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m chameleon_lib bench",
        description="Measure speed as ratios against named references, in one run.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--only", default=",".join(PARTS), metavar="ccs,edit", help="parts: %(default)s"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="4 layers of CCS instead of 32, fits of 10 and 100 users, and fewer rounds",
    )
    parser.add_argument(
        "--threads", type=positive, default=1, metavar="N", help="torch threads (default 1)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of table and figure (default: measured, demo)",
    )
    return parser
