"""A call that ends half-way leaves nothing behind: no hook, and nobody else's adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.serving.adapter import adapter_name
from chameleon_lib.serving.export import export_edit
from chameleon_lib.serving.mixed import mixed_users
from tests.serving.exported import PROMPTS, backbone_of, edit_of

FAMILIES = ("mistral", "gpt2", "t5")
N = 4


@contextmanager
def dying(at: int, what: type[BaseException]) -> Iterator[list[int]]:
    """Raises at the call of that number: of a module, or of one that registers a hook."""
    calls = [0]
    call, register = nn.Module.__call__, nn.Module.register_forward_pre_hook

    def counted(function: Any) -> Any:
        def run(*args: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise what
            return function(*args, **named)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "__call__", counted(call))
        patch.setattr(nn.Module, "register_forward_pre_hook", counted(register))
        yield calls


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
