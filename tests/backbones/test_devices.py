"""Models that lie on several devices, as far as one processor can show it.

A device map on the CPU, with layers that are brought in from disk for every call, runs for real.
Where two devices would meet, fake tensors carry device names: they compute no numbers, but refuse
an operation on tensors of two devices as a real one would.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from chameleon_lib.backbones import load as models
from chameleon_lib.backbones import load_backbone
from chameleon_lib.backbones.prefix import take_rows, wrap_cache
from chameleon_lib.core.backbone import DecodeSettings
from chameleon_lib.core.edit import Edit, EditHook
from chameleon_lib.errors import UserError
from tests.backbones.tiny import ANSWERS, GROUPS, PROMPTS, make_edit, save

N = 5
HERE = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
SPREAD = {
    "mistral": {
        **dict.fromkeys(HERE, "cpu"),
        **dict.fromkeys(("model.layers.1", "model.layers.2"), "disk"),
    },
    "t5": {
        **dict.fromkeys(("shared", "lm_head", "encoder", "decoder.embed_tokens"), "cpu"),
        **dict.fromkeys(("decoder.block.0", "decoder.final_layer_norm"), "cpu"),
        **dict.fromkeys(("decoder.block.1", "decoder.block.2"), "disk"),
    },
}


@pytest.mark.parametrize("family", SPREAD)
@pytest.mark.parametrize("spread", ["auto", "cpu", "disk"])
def test_a_device_map_changes_where_weights_lie_and_nothing_else(
    family: str, spread: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "net", family)
    expected = load_backbone(folder)
    device_map = {"auto": "auto", "cpu": {"": "cpu"}, "disk": SPREAD[family]}[spread]
    backbone = load_backbone(folder, device_map=device_map, offload_folder=tmp_path / "disk")
    away = [p for p in backbone.model.parameters() if p.device.type == "meta"]
    assert bool(away) == (spread == "disk")
    assert backbone.device.type == "cpu" and backbone.fingerprint == expected.fingerprint
    edit, rows = make_edit("last"), make_edit("all", rows=len(PROMPTS))
    for chosen in (edit, rows):
        assert backbone.generate(
            PROMPTS, max_new_tokens=N, edit=chosen, groups=GROUPS
        ) == expected.generate(PROMPTS, max_new_tokens=N, edit=chosen)
    found, wanted = (model.activations(PROMPTS, ANSWERS) for model in (backbone, expected))
    assert torch.equal(found, wanted)
    found, wanted = (
        model.score(model.prepare(PROMPTS), ANSWERS, edit=edit) for model in (backbone, expected)
    )
    assert torch.equal(found, wanted)
    beams = DecodeSettings(num_beams=2)
    assert backbone.generate(
        PROMPTS[:2], max_new_tokens=2, edit=edit, decode=beams
    ) == expected.generate(PROMPTS[:2], max_new_tokens=2, edit=edit, decode=beams)


def test_tokens_go_where_the_embeddings_run_even_if_those_wait_on_disk(tmp_path: Path) -> None:
    folder = save(tmp_path / "net", "mistral")
    device_map = {**SPREAD["mistral"], "model.embed_tokens": "disk"}
    backbone = load_backbone(folder, device_map=device_map, offload_folder=tmp_path / "disk")
    assert backbone.model.device.type == "meta" and backbone.device.type == "cpu"
    assert backbone.generate(PROMPTS[:2], max_new_tokens=2) == load_backbone(folder).generate(
        PROMPTS[:2], max_new_tokens=2
    )


def test_a_device_map_without_accelerate_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, "mistral")
    monkeypatch.setattr(models.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="device_map needs the package accelerate"):
        load_backbone(folder, device_map="auto")


@pytest.mark.parametrize("rows", [None, 2])
def test_directions_follow_every_layer_to_its_device(rows: int | None) -> None:
    theta_p, theta_n = torch.randn(2, 2, *([] if rows is None else [rows]), 8).unbind(0)
    edit = Edit((0, 1), theta_p, theta_n)
    layers = [nn.Identity(), nn.Identity()]
    with FakeTensorMode(allow_non_fake_inputs=True), EditHook(layers, edit, diagnostics=False):
        for number, layer in enumerate(layers):
            x = torch.empty(2, 3, 8, device=f"cuda:{number}", dtype=torch.bfloat16)
            out = layer(x)
            assert (out.device, out.dtype) == (x.device, torch.bfloat16)


def test_rows_are_taken_from_the_cache_of_every_layer_on_its_device() -> None:
    with FakeTensorMode():
        pairs = tuple(
            (torch.empty(3, 2, 4, 8, device=device), torch.empty(3, 2, 4, 8, device=device))
            for device in ("cuda:0", "cuda:1")
        )
        rows = torch.zeros(2, dtype=torch.long, device="cuda:0")
        for keys, values in take_rows(pairs, rows):
            assert keys.shape == values.shape == (2, 2, 4, 8)
        for growing in (True, False):
            cache = wrap_cache(pairs, growing=growing)
            cache.batch_select_indices(rows)
            assert [str(layer.keys.device) for layer in cache.layers] == ["cuda:0", "cuda:1"]
            assert all(layer.keys.shape[0] == 2 for layer in cache.layers)
