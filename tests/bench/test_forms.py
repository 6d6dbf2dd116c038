"""Every form at tiny sizes: the same texts, or a no; and what is said of other libraries."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backbones.tiny import make_backbone, make_edit
from tests.bench import forms
from tests.bench.forms import FormsWork
from tests.bench.measure import Goal, Row, markdown

WORK = FormsWork(rows=4, tokens=5, history=2, users=(1, 2, 4), adapters=2, rounds=1)
DECODER = FormsWork(**{**vars(WORK), "families": ("decoder",)})
NAMES = [
    "hook, the paper's formula",
    "hook, rank-2 form",
    "one edit per row, 1 user",
    "one edit per row, 2 users",
    "one edit per row, 4 users",
    "PEFT adapter",
    "merged weights",
    "PEFT, an adapter per row, 2 adapters",
    "no edit, once more",
]


@pytest.fixture
def strong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights hardly listen to an edit of strength 1."""
    edit_of = forms.random_edit
    monkeypatch.setattr(forms, "random_edit", lambda *given: replace(edit_of(*given), alpha_p=60.0))


def _measured(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.ratio is not None and "steering" not in row.what]


@pytest.mark.usefixtures("no_checkpoint", "strong")
def test_every_form_writes_what_the_hook_writes() -> None:
    rows = forms.measure(WORK, time.perf_counter)
    measured = _measured(rows)
    titles = [f"Decode under an edit, {name}: time" for name in NAMES]
    assert [row.what for row in measured] == titles * 2
    assert all(row.same for row in measured), [row.evidence for row in measured]
    bounded = [row for row in measured if row.goal is not None]
    assert [row.what for row in bounded] == [titles[1], titles[4], titles[6]] * 2
    again = next(row.ratio for row in measured if row.what == titles[8])
    assert again is not None and bounded[2].goal == Goal(max(1.0, again.high), at_least=False)
    assert all(row.ratio is not None and row.ratio.median > 0 for row in measured)
    evidence = {row.what: row.evidence for row in measured}
    assert "those of 4 single runs" in evidence[titles[4]]
    assert "those of 2 batches of one user each" in evidence[titles[3]]
    assert "those of the per-row hook of all tokens" in evidence[titles[7]]
    assert {row.reference for row in measured} == {forms.PLAIN, forms.PLAIN_LIBRARY}


@pytest.mark.usefixtures("no_checkpoint", "strong")
def test_a_form_that_writes_other_texts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "apply_edit", lambda x, *_, **__: x)
    found = {row.what: row for row in _measured(forms.measure(DECODER, time.perf_counter))}
    assert not found[f"Decode under an edit, {NAMES[0]}: time"].same
    assert found[f"Decode under an edit, {NAMES[1]}: time"].same


@pytest.mark.usefixtures("no_checkpoint")
def test_an_edit_that_changes_no_text_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    edit_of = forms.random_edit

    def idle(*arguments: object) -> object:
        found = edit_of(*arguments)  # type: ignore[arg-type]
        return replace(found, alpha_p=1e-9, alpha_n=1e-9)

    monkeypatch.setattr(forms, "random_edit", idle)
    rows = _measured(forms.measure(DECODER, time.perf_counter))
    assert len(rows) == len(NAMES)
    assert not any(row.same for row in rows if forms.AGAIN not in row.what)


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
    monkeypatch.setattr(forms, "installed", lambda _: True)
    backbone = make_backbone(family)
    edit = replace(make_edit(), alpha_p=1.0)
    applied = forms.steering_vectors_hooks(backbone, edit)
    assert applied is not None
    read, answers = backbone.prepare(["a robot learns", "two friends rob"]), ["comedy", "crime"]
    base = backbone.score(read, answers)
    with applied():
        steered = backbone.score(read, answers)
    edited = backbone.score(read, answers, edit=edit)
    assert torch.allclose(steered, edited, atol=1e-4) and not torch.allclose(base, edited, atol=0.1)
    assert torch.equal(backbone.score(read, answers), base)


def test_what_is_not_installed_is_said_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "installed", lambda _: False)
    assert forms.steering_vectors_hooks(make_backbone("mistral"), make_edit()) is None
    rows = forms.anchor_rows("tiny", measured=False)
    assert [row.evidence.split(";")[0] for row in rows] == ["not installed", "not installed"]
    line = markdown(rows).splitlines()[2]
    assert line == (
        "| Decode under an edit, steering-vectors: time | tiny | no edit | – | – | not installed |"
    )
