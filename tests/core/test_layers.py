"""Layer choice: the elbow of the running mean, and R17."""

from __future__ import annotations

import pytest
import torch

from chameleon_lib.core.layers import choose_layers
from chameleon_lib.errors import UserError


def test_elbow_keeps_the_layers_before_the_largest_jump() -> None:
    loss = torch.tensor([0.01, 0.02, 0.015, 0.30, 0.31, 0.32])
    assert choose_layers(loss, "elbow") == (0, 1, 2)
    assert choose_layers(loss, "elbow_literal") == (0, 2)


def test_literal_elbow_on_one_good_layer_raises_instead_of_editing_nothing() -> None:
    loss = torch.tensor([0.01, 0.30, 0.31, 0.32, 0.33])
    assert choose_layers(loss, "elbow") == (0,)
    with pytest.raises(UserError, match="keeps no layer"):
        choose_layers(loss, "elbow_literal")


def test_layer_numbers_are_original_positions_not_ranks() -> None:
    loss = torch.tensor([0.31, 0.015, 0.30, 0.02, 0.32, 0.01])
    assert choose_layers(loss, "elbow") == (1, 3, 5)
    assert choose_layers(loss, "top_k", 2) == (1, 5)


def test_ties_go_to_the_earlier_layer() -> None:
    assert choose_layers(torch.tensor([0.2, 0.1, 0.1, 0.1]), "top_k", 2) == (1, 2)


def test_all_needs_no_losses_but_must_be_asked_for() -> None:
    losses = torch.full((4,), float("nan"))
    assert choose_layers(losses, "all") == (0, 1, 2, 3)
    with pytest.raises(UserError, match="finite"):
        choose_layers(losses, "elbow")


@pytest.mark.parametrize("k", [None, 0, 5])
def test_top_k_needs_a_k_the_model_has(k: int | None) -> None:
    with pytest.raises(UserError, match="between 1 and 4"):
        choose_layers(torch.rand(4), "top_k", k)


def test_an_elbow_of_two_layers_raises() -> None:
    with pytest.raises(UserError, match="3 layers"):
        choose_layers(torch.tensor([0.1, 0.2]), "elbow")
