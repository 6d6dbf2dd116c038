"""History selection: equations 1 and 2."""

from __future__ import annotations

import numpy as np
import pytest

from chameleon_lib.core.history import item_texts, select_history
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.lamp.records import HistoryItem


def _settings(**changes: object) -> EditSettings:
    return EditSettings().with_(**({"selection_k": 3} | changes))


def test_short_profiles_are_returned_whole_in_order() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5))
    assert select_history(rows, _settings()) == [0, 1, 2]
    assert select_history(rows[:0], _settings()) == []


def test_centring_selects_untypical_items_and_no_centring_typical_ones() -> None:
    mean = np.zeros(6)
    mean[0] = 5.0
    rows = np.tile(mean, (8, 1))
    rows[:4, 0] += np.array([0.4, 0.3, 0.2, 0.1])  # along the mean
    rows[4:, 0] = 1.0  # far from it
    rows[4:, 1] = np.array([2.0, 2.1, 2.2, 0.0])
    assert select_history(rows, _settings(selection_center="none")) == [0, 1, 2]
    assert set(select_history(rows, _settings(selection_center="both"))) <= {4, 5, 6, 7}


def test_norms_follow_a_plain_computation() -> None:
    rows = np.random.default_rng(1).normal(size=(20, 7))
    centred = rows - rows.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    for norm, order in (("l2", 2), ("l1", 1), ("max", np.inf)):
        wanted = np.argsort(-np.linalg.norm(centred @ axes, ord=order, axis=1))[:3]
        got = select_history(rows, _settings(selection_norm=norm, selection_n_components=2))
        assert got == sorted(wanted.tolist())
    partly = np.argsort(-np.linalg.norm(rows @ axes, axis=1))[:3]
    settings = _settings(selection_center="components", selection_n_components=2)
    assert select_history(rows, settings) == sorted(partly.tolist())


def test_equal_items_are_taken_in_profile_order() -> None:
    rows = np.tile(np.random.default_rng(2).normal(size=(1, 9)), (7, 1))
    assert select_history(rows, _settings()) == [0, 1, 2]
    assert select_history(rows, _settings(selection_center="none")) == [0, 1, 2]


def test_bad_embeddings_raise() -> None:
    with pytest.raises(UserError, match="shape"):
        select_history(np.zeros(4), _settings())
    rows = np.zeros((5, 2))
    rows[2, 1] = np.nan
    with pytest.raises(UserError, match="NaN"):
        select_history(rows, _settings())


def test_item_text_is_the_line_or_the_body() -> None:
    item = HistoryItem("1", "A robot learns to cry.", "sci-fi")
    (line,) = item_texts("LaMP_2", [item], _settings())
    assert "sci-fi" in line and "A robot" in line
    body = item_texts("LaMP_2", [item], _settings(selection_item_text="body"))
    assert body == ["A robot learns to cry."]
