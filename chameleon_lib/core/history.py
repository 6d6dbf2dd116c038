"""Which history items represent a user: equations 1 and 2 of the paper (A17, B1).

Beside the paper's rule stand three controls for the history ablation (section 4.6, Figure 5):
random items, the most recent ones, and those nearest to the query. All rules keep the profile
order, so two prompts of one user differ in which items they show and in nothing else.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chameleon_lib.core.backbone import Keep, Unkept
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import HistoryItem, Task, User, history_line
from chameleon_lib.errors import UserError

log = logging.getLogger(__name__)

_ORD = {"l2": 2, "l1": 1, "max": np.inf}
_USERS = 256  # whose texts are embedded at a time,
_TEXTS = 20_000  # unless they are more than that;
_STEP = 2_000  # then so many, for progress to show, and for no more to be lost than one step
_TELL = 10.0  # seconds between two notes


def item_texts(
    task: str | Task, items: Sequence[HistoryItem], settings: EditSettings
) -> list[str]:
    """The text of each item that is embedded: its history line, or its body alone (B1)."""
    if settings.selection_item_text == "body":
        return [item.text for item in items]
    return [history_line(task, item) for item in items]


def selection_key(user: User, settings: EditSettings) -> list[Any]:
    """What of a user decides the selection, JSON-able: never an id and never a gold.

    The history, and for rule ``nearest`` also the query texts.
    """
    history = [[item.text, item.label] for item in user.history]
    if settings.selection_rule == "nearest":
        return [user.task, history, [query.text for query in user.queries]]
    return [user.task, history]


def select_items(
    users: Sequence[User],
    encode: Callable[[Sequence[str]], np.ndarray],
    settings: EditSettings,
    keep: Keep | None = None,
    modules: Sequence[str] = (),
    tell: Callable[[str], None] = log.info,
) -> list[list[int]]:
    """Indices of the selected items of every user under ``selection_rule``, in profile order.

    With a keeper these are two stages: the embedding costs far more than the choice, and the
    history ablation (section 4.6) chooses from the same histories by several rules and numbers.

    Args:
        users: Users of any task; their choice does not depend on each other.
        encode: ``Embedder.encode``, for what the rule compares; called only where a text was never
            embedded before. Rules ``random`` and ``recent`` embed nothing.
        modules: Code of the embedder.
        tell: Is told how far a long embedding is, and whose items are not all embedded.

    Returns:
        At most ``selection_k`` indices per user; all of them if the history is no longer.
    """
    kept, cap = keep or Unkept(), settings.selection_max_items
    long = [user for user in users if cap is not None and len(user.history) > cap]
    if long and settings.selection_rule in ("pca", "nearest"):
        tell(
            f"{len(long)} of {len(users)} users have more than {cap} items, up to "
            f"{max(len(user.history) for user in long)}: {cap} of each, evenly spread, are "
            "embedded (selection_max_items)."
        )

    def embedded(ids: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        longest = max((len(part) for part in texts), default=0)
        heavy = longest * _USERS > _TEXTS
        done, total, told = 0, sum(len(part) for part in texts), time.monotonic()

        def compute(batch: list[tuple[str, Sequence[str]]]) -> list[dict[str, np.ndarray]]:
            nonlocal done, told
            rows = _encode(encode, [own for _, own in batch])
            done += sum(len(own) for _, own in batch)
            if heavy and time.monotonic() - told > _TELL:
                told = time.monotonic()
                tell(f"{done} of {total} texts are embedded")
            return [{"e": own} for own in rows]

        records = kept.map(
            "embed",
            list(zip(ids, texts, strict=True)),
            compute,
            inputs={"embedder": settings.selection_embedder},
            key_of=lambda unit: list(unit[1]),
            batch_size=max(1, _STEP // longest) if heavy else _USERS,
            label="sentence embeddings",
            modules=modules,
        )
        return [np.asarray(record["e"]) for record in records]

    def chosen(batch: list[User]) -> list[list[int]]:
        if settings.selection_rule == "recent":
            # The files carry no dates, so recency can only mean the position in the profile.
            ends = [len(user.history) for user in batch]
            return [list(range(max(n - settings.selection_k, 0), n)) for n in ends]
        if settings.selection_rule == "random":
            return [random_items(user, settings) for user in batch]
        ids, spread = [user.id for user in batch], [spread_items(u, settings) for u in batch]
        shown = [[user.history[at] for at in own] for user, own in zip(batch, spread, strict=True)]
        texts = [item_texts(u.task, own, settings) for u, own in zip(batch, shown, strict=True)]
        items = embedded(ids, texts)
        if settings.selection_rule == "pca":
            found = [select_history(part, settings) for part in items]
        else:
            queries = embedded(ids, [[query.text for query in user.queries] for user in batch])
            found = [nearest_items(*parts, settings) for parts in zip(items, queries, strict=True)]
        return [[own[at] for at in picked] for own, picked in zip(spread, found, strict=True)]

    return list(
        kept.map(
            "select",
            users,
            chosen,
            inputs=settings.starting("selection_"),
            key_of=lambda user: selection_key(user, settings),
            batch_size=_USERS,
            label="history selection",
            modules=("chameleon_lib.core.history", *modules),
        )
    )


def spread_items(user: User, settings: EditSettings) -> list[int]:
    """Indices of the items that are embedded: all, or ``selection_max_items`` evenly spread."""
    count, cap = len(user.history), settings.selection_max_items
    if cap is None or count <= cap:
        return list(range(count))
    return [round(at) for at in np.linspace(0, count - 1, cap).tolist()]


def select_history(embeddings: np.ndarray, settings: EditSettings) -> list[int]:
    """The paper's rule, ``pca``, for embeddings ``(N, d_s)``: at most ``selection_k`` indices.

    ``z = e W`` with W the top principal components of this user's own items; the items with the
    largest ``||z||`` are kept, ties going to the earlier item. With ``selection_center: both`` a
    large norm marks items far from the user's mean; with ``none`` items along it.
    """
    rows = _checked(embeddings)
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
    return _largest(norms, k)


def nearest_items(
    embeddings: np.ndarray, query_embeddings: np.ndarray, settings: EditSettings
) -> list[int]:
    """Control: the items ``(N, d_s)`` with the largest cosine to the queries ``(Q, d_s)``.

    A user with several queries has one selection all the same: the target is the mean of the
    query embeddings, each at unit length. Ties go to the earlier item.

    Raises:
        UserError: No query, an embedding without a direction, or queries whose mean has none.
    """
    rows, queries = _checked(embeddings), _checked(query_embeddings)
    if not len(queries):
        raise UserError("selection_rule nearest needs a query; this user has none.")
    if len(rows) <= settings.selection_k:
        return list(range(len(rows)))
    (target,) = _unit(_unit(queries).mean(axis=0, keepdims=True))
    return _largest(_unit(rows) @ target, settings.selection_k)


def random_items(user: User, settings: EditSettings) -> list[int]:
    """Control: a random choice, in profile order.

    ``selection_seed`` and the user's own history seed it: the choice is the same in every process
    and does not depend on the name of the user or on who else is there. A larger ``selection_k``
    keeps what a smaller one chose.
    """
    order = list(range(len(user.history)))
    key = json.dumps(selection_key(user, settings))
    random.Random(f"selection/{settings.selection_seed}/{key}").shuffle(order)
    return sorted(order[: settings.selection_k])


def _encode(
    encode: Callable[[Sequence[str]], np.ndarray], texts: Sequence[Sequence[str]]
) -> list[np.ndarray]:
    """Embeddings per user, from one call for all."""
    bounds = np.cumsum([len(part) for part in texts])[:-1]
    return np.split(encode([text for part in texts for text in part]), bounds)


def _checked(embeddings: np.ndarray) -> np.ndarray:
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2:
        raise UserError(f"Embeddings must have shape (N, d), not {rows.shape}.")
    if not np.isfinite(rows).all():
        raise UserError("Embeddings hold NaN or infinity; embed the texts again.")
    return rows


def _unit(rows: np.ndarray) -> np.ndarray:
    """The rows at length 1; a cosine needs a direction."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if (lengths < 1e-9).any():
        raise UserError("An embedding has no direction, so nothing is nearest to it.")
    return rows / lengths


def _largest(scores: np.ndarray, k: int) -> list[int]:
    """Indices of the ``k`` largest of ``scores`` (N,), sorted; ties go to the earlier index."""
    # Rounding makes equal items tie, whatever the last digits of the matrix product are.
    keys = np.round(scores / max(float(np.abs(scores).max()), 1e-300), 9)
    return sorted(np.argsort(-keys, kind="stable")[:k].tolist())
