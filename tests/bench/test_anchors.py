"""Other libraries: what is said of those that are not there, and the edit in a stand-in."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from chameleon_lib.bench import anchors
from chameleon_lib.bench.rows import markdown
from tests.backbones.tiny import make_backbone, make_edit


class _Vector:
    """Stands in for the library's class: adds ``operator(x, vector)`` at the named layers."""

    def __init__(self, layers: dict[int, Tensor], layer_type: str) -> None:
        self.layers, self.layer_type = layers, layer_type

    def patch_activations(self, model: Any, *, layer_config: Any, operator: Any) -> Any:
        handles = []
        for layer, vector in self.layers.items():
            module = model.get_submodule(layer_config[self.layer_type].format(num=layer))
            shaped = vector.reshape(1, 1, -1)
            handles.append(module.register_forward_hook(
                lambda _m, _i, x, shaped=shaped: x + operator(x, shaped)))  # fmt: skip
        return _Handles(handles)


class _Handles:
    def __init__(self, handles: list[Any]) -> None:
        self.handles = handles

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def _ablation(x: Tensor, vector: Tensor) -> Tensor:
    unit = vector / vector.norm()
    return -unit * (x @ unit.squeeze()).unsqueeze(-1)


@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_two_operators_are_the_edit(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("steering_vectors")
    library.SteeringVector = _Vector  # type: ignore[attr-defined]
    library.ablation_operator = lambda: _ablation  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "steering_vectors", library)
    monkeypatch.setattr(anchors, "installed", lambda _: True)
    backbone = make_backbone(family)
    edit = replace(make_edit(), alpha_p=1.0)
    applied = anchors.steering_vectors_hooks(backbone, edit)
    assert applied is not None
    read, answers = backbone.prepare(["a robot learns", "two friends rob"]), ["comedy", "crime"]
    base = backbone.score(read, answers)
    with applied():
        steered = backbone.score(read, answers)
    edited = backbone.score(read, answers, edit=edit)
    assert torch.allclose(steered, edited, atol=1e-4) and not torch.allclose(base, edited, atol=0.1)
    assert torch.equal(backbone.score(read, answers), base)


def test_what_is_not_installed_is_said_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors, "installed", lambda _: False)
    assert anchors.steering_vectors_hooks(make_backbone("mistral"), make_edit()) is None
    rows = anchors.anchor_rows("tiny", measured=False)
    assert [row.evidence.split(";")[0] for row in rows] == ["not installed", "not installed"]
    line = markdown(rows).splitlines()[2]
    assert line == (
        "| Decode under an edit, steering-vectors: time | tiny | no edit | – | – | not installed |"
    )


def test_a_library_that_cannot_express_the_edit_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors, "installed", lambda name: name == "repeng")
    monkeypatch.setattr(anchors.metadata, "version", lambda _: "0.4.0")
    (row,) = anchors.anchor_rows("tiny", measured=True)
    assert row.ratio is None and row.evidence.startswith(
        "0.4.0 cannot express it: it changes block"
    )
