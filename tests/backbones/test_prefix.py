from __future__ import annotations

import torch
from transformers.cache_utils import DynamicLayer

from chameleon_lib.backbones.prefix import GrowingLayer, unwrap_cache, wrap_cache
from tests.backbones.tiny import PROMPTS, make_backbone


def random_states(width: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, width, 4), torch.randn(rows, 2, width, 4)


def test_the_growing_layer_holds_what_the_stock_layer_holds() -> None:
    growing, stock = GrowingLayer(), DynamicLayer()
    for step, width in enumerate([5, 1, 1, 40, 1, 2]):
        states = random_states(width, rows=2 if step > 3 else 3)
        if step == 4:
            for layer in (growing, stock):
                layer.batch_select_indices(torch.tensor([2, 0]))
        grown, kept = growing.update(*states), stock.update(*states)
        assert torch.equal(grown[0], kept[0]) and torch.equal(grown[1], kept[1])
        assert growing.get_seq_length() == stock.get_seq_length()


def test_growing_a_wrapped_cache_leaves_the_shared_states_alone() -> None:
    shared = (random_states(6), random_states(6))
    before = [tensor.clone() for pair in shared for tensor in pair]
    cache = wrap_cache(shared, growing=True)
    for layer in range(2):
        cache.update(*random_states(2), layer)
    assert unwrap_cache(cache)[0][0].shape[-2] == 8
    after = [tensor for pair in shared for tensor in pair]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_rows_of_a_prefix_can_be_taken() -> None:
    for family in ("mistral", "t5"):
        backbone = make_backbone(family)
        prefix = backbone.prepare(PROMPTS).batches[0].prefix
        assert prefix is not None
        part = prefix.take([2, 0])
        assert torch.equal(part.lengths, prefix.lengths[[2, 0]])
        stored, taken = (prefix.key_values or prefix.cross), (part.key_values or part.cross)
        assert torch.equal(taken[0][0][1], stored[0][0][0])
        assert 0 < part.nbytes < prefix.nbytes
