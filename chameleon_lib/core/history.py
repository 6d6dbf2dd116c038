"""Which history items represent a user: equations 1 and 2 of the paper (A17, B1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.prompts import history_line
from chameleon_lib.lamp.records import HistoryItem
from chameleon_lib.lamp.tasks import Task

_ORD = {"l2": 2, "l1": 1, "max": np.inf}


def item_texts(
    task: str | Task, items: Sequence[HistoryItem], settings: EditSettings
) -> list[str]:
    """The text of each item that is embedded: its history line, or its body alone (B1)."""
    if settings.selection_item_text == "body":
        return [item.text for item in items]
    return [history_line(task, item) for item in items]


def select_history(embeddings: np.ndarray, settings: EditSettings) -> list[int]:
    """Indices of the selected items, in profile order.

    ``z = e W`` with W the top principal components of this user's own items; the items with the
    largest ``||z||`` are kept, ties going to the earlier item. With ``selection_center: both`` a
    large norm marks items far from the user's mean; with ``none`` items along it.

    Args:
        embeddings: ``(N, d_s)``, one row per item, in profile order.
        settings: The ``selection_*`` fields.

    Returns:
        At most ``selection_k`` indices; all of them if ``N <= selection_k``.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2:
        raise UserError(f"Item embeddings must have shape (N, d), not {rows.shape}.")
    if not np.isfinite(rows).all():
        raise UserError("Item embeddings hold NaN or infinity; embed the history again.")
    n, width = rows.shape
    k = settings.selection_k
    if n <= k:
        return list(range(n))
    components = min(settings.selection_n_components or k, n, width)
    centred = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(
        rows if settings.selection_center == "none" else centred, full_matrices=False
    )
    projected = (centred if settings.selection_center == "both" else rows) @ axes[:components].T
    norms = np.linalg.norm(projected, ord=_ORD[settings.selection_norm], axis=1)  # (N,)
    # Rounding makes equal items tie, whatever the last digits of the matrix product are.
    keys = np.round(norms / max(float(norms.max()), 1e-300), 9)
    return sorted(np.argsort(-keys, kind="stable")[:k].tolist())
