"""Text that must come back byte-identical: file ids, rounded numbers, CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from typing import Any

import numpy as np
import pandas as pd

from chameleon_lib.errors import UserError

DIGITS = 6
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_id(name: str) -> str:
    """Return `name` if it can be a file name on every system, else raise UserError."""
    if not _ID.fullmatch(name):
        raise UserError(f"{name!r} is no usable id; use letters, digits, '_', '-' and '.'.")
    return name


def round_sig(value: float, digits: int = DIGITS) -> float:
    """Round to significant digits, so that the last bits of a sum never reach a file."""
    return float(f"{value:.{digits}g}")


def format_cell(value: Any) -> str:
    """Format one CSV cell: 6 significant digits, 'true'/'false', empty for missing."""
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
        return f"{number + 0.0:.{DIGITS}g}" if number else "0"
    return str(value)


def to_csv(df: pd.DataFrame) -> str:
    """Render a frame as CSV text: columns as given, no index, LF line ends."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([str(column) for column in df.columns])
    for row in df.itertuples(index=False, name=None):
        writer.writerow([format_cell(cell) for cell in row])
    return buffer.getvalue()
