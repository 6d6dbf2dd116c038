"""`python -m chameleon_lib readme`: the README's verdicts, figure and plans, written, never typed.

Nobody types a result into the README: the blocks between two markers are generated, the verdicts
from outputs/demo/verdicts, the words about the figure from its sidecar and the plans from the
forecast, and `--check` says whether all agree.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from chameleon_lib.command_line import Parser
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.forecast.report import text as forecast
from chameleon_lib.kit.forecast.scope import Scope
from chameleon_lib.kit.forecast.studies import STUDIES
from chameleon_lib.kit.profiles import PUBLIC, get_profile
from chameleon_lib.kit.verdicts import Verdict, load_verdicts, tally

__all__ = [
    "BEGIN",
    "END",
    "FIGURE",
    "PLANS",
    "figure",
    "main",
    "plans",
    "rewritten",
    "table",
    "with_figure",
    "with_plans",
]

BEGIN = "<!-- verdicts:begin -->"
END = "<!-- verdicts:end -->"
PLANS = ("<!-- plans:begin -->", "<!-- plans:end -->")
FIGURE = ("<!-- figure:begin -->", "<!-- figure:end -->")
PROFILE = "demo"
FIGURE_ID = "06_directions_LaMP_2"  # does the edit need its own direction? The kit's first question
HEADLINE = "01_per_user"  # the notebook whose verdicts are listed one by one
_HEAD = ("claim", "paper", "ours [95 % CI]", "n", "seeds", "verdict")
_NONE_YET = "No demo run has been recorded yet."


def table(verdicts: Sequence[Verdict]) -> str:
    """All verdicts counted, and those of Table 1 one by one; one sentence if there are none."""
    if not verdicts:
        return _NONE_YET
    counts = tally(verdicts)
    lines = [_line(tuple(counts[0])), _line(("---", "---", *["--:"] * (len(counts[0]) - 2)))]
    lines += [_line([str(cell) for cell in row.values()]) for row in counts]
    lines += ["", f"The claims of `{HEADLINE}`, one by one:", ""]
    lines += [_line(_HEAD), "|---|---|---|--:|--:|---|"]
    for found in (verdict for verdict in verdicts if verdict.notebook == HEADLINE):
        ours = "not run" if found.ours is None else str(found.ours).replace("-", "−")
        numbers = [str(number) if number else "–" for number in (found.n, found.seeds)]
        lines.append(_line((found.claim, found.paper, ours, *numbers, found.status)))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    """One table row; a bar or a line break inside a cell would end it."""
    return "| " + " | ".join(" ".join(c.replace("|", "\\|").split()) for c in cells) + " |"


def rewritten(text: str, verdicts: Sequence[Verdict], name: str = "README.md") -> str:
    """A document with the block between the markers replaced.

    Args:
        text: the whole document.
        verdicts: rows of the table, in order.
        name: file name for the error sentence.

    Raises:
        UserError: if the two markers do not stand there once each, in order.
    """
    return _between(text, BEGIN, END, table(verdicts), name)


def _between(text: str, begin: str, end: str, block: str, name: str) -> str:
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"{name} must hold '{begin}' and then '{end}', once each.")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n{block}\n{end}{after}"


def plans() -> str:
    """What a fresh run of every public profile costs, the same on every machine."""
    parts = []
    for name in PUBLIC:
        shown = forecast(Scope(get_profile(name)), list(STUDIES))
        parts.append(
            f"<details><summary><code>--profile {name} --plan</code></summary>\n\n"
            f"```text\n{shown}\n```\n\n</details>"
        )
    return "\n\n".join(parts)


def with_plans(text: str, name: str = "README.md") -> str:
    """A document with the plans between their markers; refuses as :func:`rewritten` does."""
    return _between(text, *PLANS, plans(), name)


def figure() -> str:
    """The picture of the README with its alt text and caption; one sentence if it is not drawn."""
    side = paths.figures_dir(PROFILE) / f"{FIGURE_ID}.json"
    if not side.is_file():
        return _NONE_YET
    try:
        words = json.loads(side.read_text(encoding="utf-8"))
        alt, caption = (" ".join(words[name].split()) for name in ("alt", "caption"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{paths.display(side)} cannot be read: run its notebook again.") from error
    alt = alt.replace("[", "(").replace("]", ")")
    return f"![{alt}](outputs/{PROFILE}/figures/{FIGURE_ID}.png)\n\n{caption}"


def with_figure(text: str, name: str = "README.md") -> str:
    """A document with the figure between its markers; refuses as :func:`rewritten` does."""
    return _between(text, *FIGURE, figure(), name)


def main(argv: Sequence[str]) -> int:
    """Rewrite the README's generated blocks, or compare them with what they come from.

    Args:
        argv: command line without the program and command name.

    Returns:
        0; with `--check` 1 and one sentence on stderr if README and outputs differ.

    Raises:
        UserError: README or verdicts unreadable, or a marker missing.
    """
    parser = Parser(
        prog="python -m chameleon_lib readme",
        description="Write verdicts and figure of the demo run and all plans into README.md.",
        allow_abbrev=False,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if they differ")
    options = parser.parse_args(argv)
    readme = paths.root() / "README.md"
    old = _read(readme)
    new = with_figure(with_plans(rewritten(old, load_verdicts(PROFILE))))
    folder = paths.display(paths.verdicts_dir(PROFILE))
    if options.check:
        if new == old:
            return 0
        # What differs is named; of several the first.
        if new == with_plans(old):
            folder = "the plans"
        elif new == with_figure(old):
            folder = f"figure {FIGURE_ID}"
        print(
            f"README.md and {folder} differ; run 'python -m chameleon_lib readme'.", file=sys.stderr
        )
        return 1
    if new != old:
        paths.replace_text(readme, new)
    print(f"README.md {'holds' if new == old else 'now holds'} the verdicts of {folder}")
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # bytes: line ends stay as they are
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{paths.display(path)} cannot be read: {error}.") from error
