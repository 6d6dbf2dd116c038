"""Eq. 1 and 2 as two stored stages: texts are embedded once, whatever rule then chooses by them.

The embedding costs far more than the choice, and the history ablation (section 4.6) chooses from
the same histories by several rules and numbers of items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from chameleon_lib.core.history import item_texts, select_items, selection_key
from chameleon_lib.core.protocols import Embedder
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.lamp.records import User

_BATCH = 256  # users


def stored_selection(
    store: ArtifactStore,
    users: Sequence[User],
    settings: EditSettings,
    embedder: Callable[[], Embedder],
) -> list[list[int]]:
    """Indices of the selected items per user, in profile order.

    Args:
        store: Keeps choices, and the embeddings they were made by.
        users: Users of any task.
        settings: The ``selection_*`` fields.
        embedder: Opens the embedder; called only where a text was never embedded before.
    """
    chosen = settings.canonical()

    def compute(batch: list[User]) -> list[list[int]]:
        return select_items(batch, _embedded(store, batch, settings, embedder), settings)

    return store.map(
        "select",
        users,
        compute,
        inputs={k: v for k, v in chosen.items() if k.startswith("selection_")},
        key_of=lambda user: selection_key(user, settings),
        batch_size=_BATCH,
        label="history selection",
        modules=("chameleon_lib.core.history", "chameleon_lib.backbones.embedder"),
        about=lambda user: [user.id],
    )


class _Known:
    """An embedder that knows some texts by heart."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self._vectors = vectors

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """The known embeddings (n, d_s)."""
        return np.stack([self._vectors[text] for text in texts]) if texts else np.zeros((0, 0))


def _embedded(
    store: ArtifactStore,
    users: Sequence[User],
    settings: EditSettings,
    embedder: Callable[[], Embedder],
) -> Embedder:
    """What the rule compares, embedded: the items, and for ``nearest`` the queries."""
    groups = []
    if settings.selection_rule in ("pca", "nearest"):
        groups.append([item_texts(user.task, user.history, settings) for user in users])
    if settings.selection_rule == "nearest":
        groups.append([[query.text for query in user.queries] for user in users])
    vectors: dict[str, np.ndarray] = {}
    ids = [user.id for user in users]
    for texts in groups:
        for own, rows in zip(texts, _embed(store, ids, texts, settings, embedder), strict=True):
            vectors.update(zip(own, rows, strict=True))
    return _Known(vectors)


def _embed(
    store: ArtifactStore,
    user_ids: Sequence[str],
    texts: Sequence[Sequence[str]],
    settings: EditSettings,
    embedder: Callable[[], Embedder],
) -> list[np.ndarray]:
    """Embeddings (n, d_s) of the texts of every user; the texts and the embedder decide them."""

    def compute(batch: list[tuple[str, Sequence[str]]]) -> list[dict[str, np.ndarray]]:
        rows = embedder().encode([text for _, own in batch for text in own])
        bounds = np.cumsum([len(own) for _, own in batch])[:-1]
        return [{"e": part} for part in np.split(rows, bounds)]

    records = store.map(
        "embed",
        list(zip(user_ids, texts, strict=True)),
        compute,
        inputs={"embedder": settings.selection_embedder},
        key_of=lambda unit: list(unit[1]),
        batch_size=_BATCH,
        label="sentence embeddings",
        modules=("chameleon_lib.backbones.embedder",),
        about=lambda unit: [unit[0]],
    )
    return [np.asarray(record["e"]) for record in records]
