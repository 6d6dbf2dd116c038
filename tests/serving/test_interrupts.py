"""A call that ends half-way leaves nothing behind: no hook, and nobody else's adapter."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chameleon_lib.backbones import HFBackbone, frozen
from chameleon_lib.core import edit as edit_module
from chameleon_lib.serving.adapter import adapter_name
from chameleon_lib.serving.export import export_edit
from chameleon_lib.serving.mixed import mixed_users
from tests.backbones.tiny import make_backbone
from tests.serving.exported import PROMPTS, backbone_of, edit_of

FAMILIES = ("mistral", "gpt2", "t5")
N = 4


@contextmanager
def dying(at: int, what: type[BaseException]) -> Iterator[list[int]]:
    """Raises at the call of that number: of a module, or of one that registers a hook."""
    calls = [0]

    def counted(function: Any) -> Any:
        def run(*args: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise what
            return function(*args, **named)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("__call__", "register_forward_pre_hook", "register_forward_hook"):
            patch.setattr(nn.Module, name, counted(getattr(nn.Module, name)))
        yield calls


@contextmanager
def dying_at_line(at: int, *paths: str) -> Iterator[list[int]]:
    """Raises ``KeyboardInterrupt`` before the line of that number which these files run."""
    lines = [0]

    def inside(_frame: Any, event: str, _value: Any) -> Any:
        if event == "line":
            lines[0] += 1
            if lines[0] == at:
                raise KeyboardInterrupt
        return inside

    def traced(frame: Any, _event: str, _value: Any) -> Any:
        return inside if frame.f_code.co_filename in paths else None

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        yield lines
    finally:
        sys.settrace(before)


def stages(total: int) -> list[int]:
    """Some twenty moments of a call, its first and its last among them."""
    return sorted({1, 2, 3, 5, total - 1, total, *range(1, total + 1, max(1, total // 14))})


def hooks(backbone: HFBackbone) -> int:
    """Hooks of all kinds in the model."""
    return sum(
        len(found)
        for module in backbone.model.modules()
        for found in (module._forward_hooks, module._forward_pre_hooks)
    )


def say(backbone: HFBackbone, **named: Any) -> list[str]:
    return backbone.generate(list(PROMPTS), max_new_tokens=N, **named)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 2])
def test_an_interrupted_mixed_batch_leaves_no_adapter_of_its_rows(
    family: str, beams: int, tmp_path: Path
) -> None:
    backbone = backbone_of(family)
    base, before = say(backbone), hooks(backbone)
    for number, user in enumerate(("ann", "bob")):
        export_edit(edit_of(1 + number), backbone, tmp_path / user, prompts=PROMPTS)
    folders = {user: tmp_path / user for user in ("ann", "bob")}
    with mixed_users(backbone, folders) as batch:

        def mixed() -> list[str]:
            return batch.generate(PROMPTS, ["bob", None], max_new_tokens=N, num_beams=beams)

        right, own = mixed(), say(backbone)
        assert own == say(backbone, edit=None) and right != own
        with dying(0, KeyboardInterrupt) as calls:
            mixed()
        for at in stages(calls[0]):
            what = KeyboardInterrupt if at % 2 else RuntimeError
            with pytest.raises(what), dying(at, what):
                mixed()
            assert say(backbone) == own, at
        batch.model.set_adapter(adapter_name(1))
        other = say(backbone)
        assert other != own
        with pytest.raises(KeyboardInterrupt), dying(calls[0] // 2, KeyboardInterrupt):
            mixed()
        assert say(backbone) == other
        batch.model.set_adapter(adapter_name(0))
        assert mixed() == right
    assert say(backbone) == base and hooks(backbone) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupted_edit_leaves_the_bare_base(family: str) -> None:
    backbone, edit = backbone_of(family), edit_of()
    base, edited, before = say(backbone), say(backbone, edit=edit), hooks(backbone)
    assert base != edited
    with dying(0, KeyboardInterrupt) as calls:
        say(backbone, edit=edit)
    for at in stages(calls[0]):
        with pytest.raises(KeyboardInterrupt), dying(at, KeyboardInterrupt):
            say(backbone, edit=edit)
        assert hooks(backbone) == before, at
    assert say(backbone) == base and say(backbone, edit=edit) == edited


def test_an_interrupt_at_any_line_of_the_hook_leaves_a_model_that_is_not_edited() -> None:
    """Also between two layers of entering, which no ``with`` cleans up, and while it is left."""
    backbone, edit = make_backbone("mistral"), edit_of()
    files, ids = (edit_module.__file__, frozen.__file__), torch.tensor([[5, 9, 30]])

    def out() -> Tensor:
        return backbone.model(input_ids=ids).logits

    def edited() -> Tensor:
        with backbone.editing(edit):
            return out()

    with torch.no_grad():
        base, right, before = out(), edited(), hooks(backbone)
        assert not torch.allclose(base, right)
        with dying_at_line(0, *files) as lines:
            edited()
        assert lines[0] > 60
        for at in range(1, lines[0] + 1):
            with pytest.raises(KeyboardInterrupt), dying_at_line(at, *files):
                edited()
            assert torch.equal(out(), base), at
        # One line per layer, between a hook's start and its note, leaves a hook, which is idle.
        assert hooks(backbone) - before <= len(edit.layers) < lines[0] // 60
        assert torch.equal(edited(), right)


@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_threads_that_share_a_model_get_their_own_answers(family: str) -> None:
    """A call that somebody gave up waiting for still runs, under its edit, in its thread."""
    backbone = backbone_of(family)
    edits = [None, edit_of(1), edit_of(2)]
    alone = [say(backbone, edit=edit) for edit in edits]
    scored = backbone.score(backbone.prepare(list(PROMPTS)), ["a", "b"])
    found: list[list[list[str]]] = [[] for _ in edits]

    def work(at: int) -> None:
        found[at] += [say(backbone, edit=edits[at]) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(edits))]
    for thread in threads:
        thread.start()
    meanwhile = [backbone.score(backbone.prepare(list(PROMPTS)), ["a", "b"]) for _ in range(4)]
    for thread in threads:
        thread.join()
    assert found == [[answers] * 4 for answers in alone] and alone[0] != alone[1] != alone[2]
    assert all(torch.equal(scores, scored) for scores in meanwhile)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupt_while_adapters_load_gives_the_base_back(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    backbone = backbone_of("mistral")
    export_edit(edit_of(), backbone, tmp_path / "ann", prompts=PROMPTS)
    before = [module for _, module in backbone.model.named_modules()]
    update, left = Linear.update_layer, [at]

    def dies(*args: Any, **named: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        update(*args, **named)

    monkeypatch.setattr(Linear, "update_layer", dies)
    with pytest.raises(KeyboardInterrupt):
        with mixed_users(backbone, {"ann": tmp_path / "ann", "bob": tmp_path / "ann"}):
            pass
    after = [module for _, module in backbone.model.named_modules()]
    assert len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not torch.is_inference_mode_enabled()
