from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from chameleon_lib.kit.hashing import canonical_json, digest, tree_digests


@dataclass(frozen=True)
class Knobs:
    k: int = 10
    rule: str = "elbow"


@dataclass(frozen=True)
class OtherKnobs:
    k: int = 10
    rule: str = "elbow"


def test_order_of_names_and_kind_of_sequence_do_not_matter() -> None:
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})
    assert digest({"z", "a"}) == digest({"a", "z"})


@pytest.mark.parametrize(
    "value",
    [[], [[]], [[], [[]], ()], [1, "a", None, [True, [2.5, {"b": (Knobs(),)}]]],
     ([Knobs()], [[], [1]]), {"a": [[1]]}, "text", None],
)  # fmt: skip
def test_a_digest_in_pieces_is_that_of_the_whole_text(value: object) -> None:
    assert digest(value) == hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (1, "1"),
        (Knobs(), OtherKnobs()),
        (Knobs(), Knobs(k=11)),
        (np.zeros(4), np.zeros((2, 2))),
        (np.zeros(4), np.zeros(4, dtype=np.float32)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.bfloat16)),
    ],
)
def test_values_that_differ_have_different_digests(one: object, other: object) -> None:
    assert digest(one) != digest(other)


def test_memory_layout_does_not_matter() -> None:
    wide = np.arange(6.0).reshape(2, 3)
    assert digest(wide.T) == digest(np.ascontiguousarray(wide.T))
    assert digest(torch.tensor(wide).T) == digest(torch.tensor(wide.T.copy()))


def test_numpy_scalars_hash_as_the_numbers_they_are() -> None:
    assert canonical_json([np.int64(3), np.float64(0.5), np.bool_(True)]) == "[3,0.5,true]"


@pytest.mark.parametrize("value", [object(), {1: 2}, np.array([object()]), lambda: 0])
def test_what_has_no_stable_spelling_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        digest(value)


def test_a_tree_lists_files_by_name_without_skipped_or_unfinished_ones(tmp_path: Path) -> None:
    for name in ("a.csv", "measured/t.json", "deep/b.csv", "c.csv.partial-1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert list(tree_digests(tmp_path, skip=["measured"])) == ["a.csv", "deep/b.csv"]
    assert tree_digests(tmp_path / "missing") == {}
