"""Tables: checked, saved as byte-stable CSV with a caption, shown as accessible HTML.

File ids and CSV are made here alone; `digits` says how many digits of a number are written.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from IPython.display import HTML
from markupsafe import Markup

from chameleon_lib.errors import UserError
from chameleon_lib.kit import digits, paths
from chameleon_lib.kit.digits import interval_stems, value_column
from chameleon_lib.kit.stats import Estimate

Kind = Literal["result", "control", "diagnostic"]
KINDS: tuple[Kind, ...] = ("result", "control", "diagnostic")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_id(name: str) -> str:
    """Return `name` if it can be a file name on every system, else raise UserError."""
    if not _ID.fullmatch(name):
        raise UserError(f"{name!r} is no usable id; use letters, digits, '_', '-' and '.'.")
    return name


def made(notebook: str, made_by: Callable[..., object] | None) -> dict[str, str]:
    """What a saved file says of where it comes from; pages link to both.

    Args:
        notebook: stem of the notebook that saves it, or empty.
        made_by: the function that computed it, or None; kept as `module:qualname`.

    Raises:
        UserError: for what has no name in a module, such as a lambda or a partial.
    """
    found = {"notebook": notebook} if notebook else {}
    if made_by is not None:
        module, name = (getattr(made_by, key, None) for key in ("__module__", "__qualname__"))
        if not module or not name or "<" in name:
            raise UserError(f"made_by wants a named function of a module, got {made_by!r}.")
        found["made_by"] = f"{module}:{name}"
    return found


def format_cell(value: Any) -> str:
    """Format one CSV cell: at most 6 significant digits, 'true'/'false', empty for missing."""
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isnan(number):
            return ""
        return f"{number:.{digits.WHOLE_DIGITS}g}" if number else "0"
    return str(value)


def to_csv(df: pd.DataFrame) -> str:
    """Render a frame as CSV text at the digits of `digits`: no index, LF line ends."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([str(column) for column in df.columns])
    for row in digits.rounded(df).itertuples(index=False, name=None):
        writer.writerow([format_cell(cell) for cell in row])
    return buffer.getvalue()


def estimate_columns(estimate: Estimate, name: str = "value") -> dict[str, float | int]:
    """Spread an estimate over the columns name, name_low, name_high, n, seeds.

    For the default name the bounds are called ci_low and ci_high.
    """
    stem = "ci" if name == "value" else name
    return {
        name: estimate.value,
        f"{stem}_low": estimate.low,
        f"{stem}_high": estimate.high,
        "n": estimate.n,
        "seeds": estimate.seeds,
    }


def part_columns(estimate: Estimate | None, name: str) -> dict[str, float | int]:
    """Spread a measure that not every user of a row has: name, name_low, name_high, "name n".

    The row's own ``n`` stays that of its first measure. Where no user has this one (None), its
    cells are empty beside a count of 0.
    """
    if estimate is None:
        return {**dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan), f"{name} n": 0}
    columns = estimate_columns(estimate, name)
    count = columns.pop("n")
    del columns["seeds"]
    return {**columns, f"{name} n": count}


def span(counts: Iterable[int]) -> str:
    """The counts of several rows, for a sentence: one number, or from the least to the most."""
    numbers = [int(count) for count in counts]
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def check_table(df: pd.DataFrame, name: str, profile: str, kind: Kind = "result") -> pd.DataFrame:
    """Return the frame with its `profile` column, or raise UserError naming what a row lacks.

    Every row carries `n` and `seeds`; rows of results and controls also carry an interval: the
    columns ci_low and ci_high, or stem_low and stem_high of each measured column. Diagnostics
    (a loss per layer, a label histogram) have no sampling interval and are exempt from it, and
    so are the rows in which "stem n" says that no user has the measure (`part_columns`).
    """
    if kind not in KINDS:
        raise UserError(f"Table {name}: kind {kind!r} is none of {', '.join(KINDS)}.")
    if df.empty:
        raise UserError(f"Table {name} has no rows; nothing is saved.")
    if not df.columns.is_unique:
        raise UserError(f"Table {name} has two columns of one name.")
    if "profile" not in df.columns:
        df = df.copy()
        df.insert(0, "profile", profile)
    elif set(df["profile"]) != {profile}:
        raise UserError(f"Table {name} holds rows of another profile than {profile!r}.")
    required = ["n", "seeds"]
    if kind != "diagnostic":
        stems = interval_stems([str(column) for column in df.columns])
        if not stems:
            raise UserError(f"Table {name} lacks the interval columns ci_low and ci_high.")
        required += [f"{stem}_{end}" for stem in stems for end in ("low", "high")]
    for column in required:
        if column not in df.columns:
            raise UserError(f"Table {name} lacks the column {column!r}.")
        numbers = pd.to_numeric(df[column], errors="coerce")
        bad = numbers.isna() | numbers.isin([float("inf"), float("-inf")])
        count = f"{column.removesuffix('_low').removesuffix('_high')} n"
        if count in df.columns:
            bad &= df[count] != 0
        if bad.any():
            row = int(bad.to_numpy().argmax())
            raise UserError(f"Table {name}, row {row}: {column!r} is missing or infinite.")
    return df


def save_table(
    df: pd.DataFrame,
    table_id: str,
    profile: str,
    caption: str,
    *,
    kind: Kind = "result",
    notebook: str = "",
    made_by: Callable[..., object] | None = None,
) -> Path:
    """Check a frame and write tables/<table_id>.csv and its caption to <table_id>.json.

    Args:
        df: one row per measured thing; columns are kept in the order given.
        table_id: file stem; tables appear on the index page in the order of their ids.
        profile: run profile; becomes the first column.
        caption: what the table says, with units.
        kind: "control" puts the table on the index page beside the verdicts; "diagnostic" rows
            need no interval.
        notebook: stem of the notebook that saves it; pages link to it.
        made_by: the function that computed the frame; pages show its code.

    Returns:
        Path of the CSV.
    """
    if not caption.strip():
        raise UserError(f"Table {table_id} needs a caption.")
    checked = check_table(df, check_id(table_id), profile, kind)
    side = {"id": table_id, "profile": profile, "caption": caption, "kind": kind}
    side |= made(notebook, made_by)
    folder = paths.tables_dir(profile)
    path = folder / f"{table_id}.csv"
    paths.replace_text(path, to_csv(checked))
    paths.replace_text(
        folder / f"{table_id}.json", json.dumps(side, indent=1, sort_keys=True, ensure_ascii=False)
    )
    return path


def merge_intervals(df: pd.DataFrame) -> pd.DataFrame:
    """Fold value, low and high into one text column "0.412 [0.380, 0.444]" for reading."""
    columns = [str(column) for column in df.columns]
    out = df.copy()
    out.columns = pd.Index(columns)
    for stem in interval_stems(columns):
        name = value_column(stem, columns)
        if name is None:
            continue
        bounds = zip(out[name], out[f"{stem}_low"], out[f"{stem}_high"], strict=True)
        text = [
            f"{_short(v)} [{_short(low)}, {_short(high)}]" if pd.notna(v) else "–"
            for v, low, high in bounds
        ]
        out[name] = text
        out = out.drop(columns=[f"{stem}_low", f"{stem}_high"])
        out = out.rename(columns={name: f"{name} [95 % CI]"})
    return out


def _short(value: object) -> str:
    # Three decimals are what the paper prints; small effects keep their leading digits.
    if isinstance(value, float):
        if math.isnan(value):
            return "–"
        return f"{value:.3f}" if abs(value) >= 0.0005 or value == 0 else f"{value:.1e}"
    return format_cell(value)


def table_html(df: pd.DataFrame, caption: str) -> str:
    """Render a frame as an HTML table with caption and scopes, in a container that scrolls."""
    shown = merge_intervals(digits.rounded(df))
    numeric = [
        pd.api.types.is_numeric_dtype(shown[c]) or "[95 % CI]" in str(c) for c in shown.columns
    ]
    head = "".join(
        f'<th scope="col"{_css(num)}>{html.escape(str(c)).replace("_", " ")}</th>'
        for c, num in zip(shown.columns, numeric, strict=True)
    )
    body = []
    for row in shown.itertuples(index=False, name=None):
        # Markup is a link that the library made; whatever else may stand in a cell is text.
        cells = [c if isinstance(c, Markup) else html.escape(_short(c)) for c in row]
        tags = [f"<td{_css(num)}>{c}</td>" for c, num in zip(cells, numeric, strict=True)]
        # The first column after the profile names the row for a screen reader.
        first = _row_header(shown)
        tags[first] = f'<th scope="row"{_css(numeric[first])}>{cells[first]}</th>'
        body.append(f"<tr>{''.join(tags)}</tr>")
    label = html.escape(caption, quote=True)
    return (
        f'<div class="table-scroll" role="region" tabindex="0" aria-label="{label}">'
        # Prices such as "$5 and $6" in a text are no formula.
        f'<table class="kit-table mathjax_ignore tex2jax_ignore">'
        f"<caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _row_header(df: pd.DataFrame) -> int:
    return 1 if len(df.columns) > 1 and df.columns[0] == "profile" else 0


def _css(numeric: bool) -> str:
    return ' class="num"' if numeric else ""


def show_table(df: pd.DataFrame, caption: str) -> HTML:
    """Show a frame in a notebook: captioned, scoped, without any script."""
    return HTML(table_html(df, caption))
