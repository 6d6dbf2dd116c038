"""Sizes by formula: those of the reference page, and those of real files."""

from __future__ import annotations

import pytest

from chameleon_lib.sections.serving import costs
from chameleon_lib.sections.serving.forms import Shipped

HEADER = 10_000  # names and shapes of the tensors; a T5 has many


def test_files_are_as_large_as_the_formulas_say(shipped: list[Shipped]) -> None:
    for out in shipped:
        table = costs.measured_sizes(out)
        over = table["bytes of the file"] - table["bytes by the formula"]
        assert set(table["n"]) == {1}  # the files of one user, however many are served
        assert len(table) == 5 and over.between(1, HEADER).all()
        assert table["GB for 1 M users"].tolist() == [
            size / 1000 for size in table["bytes of the file"]
        ]


@pytest.mark.parametrize(("name", "adapter"), [("Mistral", 72), ("flan", 56)])
def test_a_layer_takes_what_the_reference_page_says(name: str, adapter: int) -> None:
    table = costs.sizes_at_scale()
    part = table[table["backbone"].str.startswith(name)].set_index("form")["KiB per edited layer"]
    assert part["directions, bfloat16"] == "16" and part["directions, float32"] == "32"
    assert part["adapter of rank 2, bfloat16"] == str(adapter)


def test_slots_of_rank_8_take_what_the_reference_page_computed_for_a_server() -> None:
    table = costs.sizes_at_scale().set_index(["backbone", "form"])["MB per user"]
    size = table["Mistral-7B-Instruct-v0.3", "adapter padded to rank 8, bfloat16"]
    assert round(size, 1) == 9.4


def test_merged_weights_add_nothing_to_a_token_and_serve_one_user() -> None:
    table = costs.costs_at_scale()
    merged = table[table["form"] == "merged weights"]
    assert merged["extra operations per token"].tolist() == [0, 0]
    assert merged["several users in one batch"].str.startswith("no").all()
    rest = table[table["form"] != "merged weights"]
    assert (rest["of the base's, %"] > 0).all() and (rest["of the base's, %"] < 0.1).all()


def test_the_operations_are_those_of_the_products() -> None:
    shape = costs.Shape(layers=3, width=10, inner=40, total=0)
    # Z x: 2 x 10 products and sums, U (Z x) likewise; A h: 2 x 40, B (A h): 10 x 2.
    assert shape.hook_flops() == 3 * (2 * 2 * 10 + 2 * 10 * 2)
    assert shape.adapter_flops() == 3 * (2 * 2 * 40 + 2 * 10 * 2)
    assert shape.adapter(2, rank=8) == 4 * shape.adapter(2)
