from __future__ import annotations

import torch

from chameleon_lib.backbones.batching import common_prefix, pad, plan_batches


def test_every_row_is_in_exactly_one_batch_within_the_limits() -> None:
    lengths = [(7 * i) % 50 + 1 for i in range(300)]
    batches = plan_batches(lengths, max_rows=20, token_budget=400)
    assert sorted(row for rows in batches for row in rows) == list(range(300))
    for rows in batches:
        assert len(rows) <= 20
        assert len(rows) * max(lengths[row] for row in rows) <= 400


def test_batches_hold_similar_lengths() -> None:
    batches = plan_batches([100, 1, 100, 1], max_rows=2)
    assert batches == [[1, 3], [0, 2]]


def test_a_row_beyond_the_budget_stands_alone() -> None:
    assert plan_batches([10, 900, 10], token_budget=100) == [[0, 2], [1]]


def test_rows_of_a_group_stay_together() -> None:
    lengths = [10, 50, 11, 51, 12, 52]
    assert plan_batches(lengths, groups=[0, 0, 1, 1, 2, 2], max_rows=2) == [[0, 1], [2, 3], [4, 5]]


def test_common_prefix_counts_shared_tokens() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_prefix([[5, 6]]) == 2
    assert common_prefix([[], [1]]) == 0
    assert common_prefix([[1, 9], [1, 2, 9], [1, 2, 3]]) == 1


def test_padding_goes_to_the_named_side() -> None:
    ids, mask = pad([[1], [2, 3]], value=0, side="left", device=torch.device("cpu"))
    assert ids.tolist() == [[0, 1], [2, 3]] and mask.tolist() == [[0, 1], [1, 1]]
    ids, mask = pad([[1], [2, 3]], value=0, side="right", device=torch.device("cpu"))
    assert ids.tolist() == [[1, 0], [2, 3]] and mask.tolist() == [[1, 0], [1, 1]]
    assert pad([[], []], value=0, side="left", device=torch.device("cpu"))[0].shape == (2, 0)
