"""Many users in one batch: per-row hook and per-row adapters answer as each user alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.backbone import DecodeSettings
from chameleon_lib.core.edit import Edit
from chameleon_lib.errors import UserError
from chameleon_lib.serving.adapter import WEIGHTS, adapters
from chameleon_lib.serving.export import export_edit
from chameleon_lib.serving.mixed import MixedBatch, mixed_users
from tests.backbones.tiny import PROMPTS, make_backbone
from tests.serving.exported import EXPERTS, backbone_of, edit_of, write_plain

MAIN = ("mistral", "gpt2", "t5")
N = 5
LAYERS = {"ann": (0, 2), "bob": (1,), "eve": (0, 1, 2)}
USERS = ["ann", None, "bob", "eve", None, "ann"]


def _edits() -> dict[str, Edit]:
    whole = edit_of(3)
    theta = torch.randn(2, 3, 3, whole.d, generator=torch.Generator().manual_seed(4))
    return {
        user: Edit(
            layers, theta[0, at, : len(layers)], theta[1, at, : len(layers)],
            alpha_p=4.0, positions="all",
        )
        for at, (user, layers) in enumerate(LAYERS.items())
    }  # fmt: skip


def _stack(users: list[str | None]) -> Edit:
    edits = _edits()
    return Edit.stack(
        [None if user is None else edits[user] for user in users], allow_missing=True
    )


@contextmanager
def _mixed(backbone: HFBackbone, folder: Path) -> Iterator[MixedBatch]:
    folders = {}
    for user, edit in _edits().items():
        folders[user] = folder / user
        if not folders[user].exists():
            export_edit(edit, backbone, folders[user])
    with mixed_users(backbone, folders) as batch:
        yield batch


def _alone(backbone: HFBackbone, beams: int = 1) -> list[str]:
    edits, decode = _edits(), DecodeSettings(num_beams=beams)
    return [
        backbone.generate(
            [prompt], max_new_tokens=N, edit=None if user is None else edits[user], decode=decode
        )[0]
        for prompt, user in zip(PROMPTS, USERS, strict=True)
    ]


@pytest.mark.parametrize("family", MAIN)
def test_hook_and_adapters_answer_as_each_user_alone(family: str, tmp_path: Path) -> None:
    backbone = backbone_of(family)
    alone, plain = _alone(backbone), backbone.generate(PROMPTS, max_new_tokens=N)
    assert backbone.generate(PROMPTS, max_new_tokens=N, edit=_stack(USERS)) == alone
    with _mixed(backbone, tmp_path) as batch:
        assert batch.generate(PROMPTS, USERS, max_new_tokens=N) == alone
    changed = [one != two for one, two in zip(alone, plain, strict=True)]
    assert sum(changed) >= 3
    assert not any(moved for moved, user in zip(changed, USERS, strict=True) if user is None)
    assert backbone.generate(PROMPTS, max_new_tokens=N) == plain


def _logits(batch: MixedBatch, users: list[str | None], side: str) -> Tensor:
    """Logits ``(B, V)`` at each prompt's last token (of an encoder-decoder: at its start)."""
    ids, mask, names = batch.batch(PROMPTS, users, side=side)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if batch.backbone.family == "decoder":
        inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
        last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    else:
        inputs["decoder_input_ids"] = torch.zeros((len(ids), 1), dtype=torch.long)
        last = torch.zeros(len(ids), dtype=torch.long)
    with torch.no_grad():
        out = batch.model(**inputs, adapter_names=names)
    return out.logits[torch.arange(len(ids)), last]


@pytest.mark.parametrize("family", MAIN)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_depends_on_its_user_and_not_on_the_padding(
    family: str, side: str, tmp_path: Path
) -> None:
    backbone, edits = backbone_of(family), _edits()
    with _mixed(backbone, tmp_path) as batch:
        found = _logits(batch, USERS, side)
        swapped = _logits(batch, ["eve", None, "bob", "ann", None, "ann"], side)
    base_rows = [at for at, user in enumerate(USERS) if user is None]
    for at, (prompt, user) in enumerate(zip(PROMPTS, USERS, strict=True)):
        own = None if user is None else edits[user]
        prefix = backbone.prefix_of(backbone._plan([prompt], None)[0], own)
        with torch.no_grad(), backbone.editing(own):
            ones = torch.ones_like(prefix.last)
            mask = torch.cat([prefix.mask, ones], dim=1)
            positions = prefix.lengths[:, None]
            logits = backbone.step(
                prefix, prefix.cache(), prefix.last, mask, positions, last_only=True
            )[0, -1]
        assert float((found[at] - logits).abs().max()) <= 2e-5
    assert float((found[0] - swapped[0]).abs().max()) > 1e-2
    assert torch.equal(found[base_rows], swapped[base_rows])


@pytest.mark.parametrize("family", MAIN)
def test_beams_of_a_mixed_batch_equal_those_of_each_user(family: str, tmp_path: Path) -> None:
    backbone = backbone_of(family)
    alone = _alone(backbone, beams=3)
    decode = DecodeSettings(num_beams=3)
    edit = _stack(USERS)
    assert backbone.generate(PROMPTS, max_new_tokens=N, edit=edit, decode=decode) == alone
    assert alone != _alone(backbone)
    with _mixed(backbone, tmp_path) as batch:
        assert batch.generate(PROMPTS, USERS, max_new_tokens=N, num_beams=3) == alone


def test_misuse_is_refused_in_one_sentence(tmp_path: Path) -> None:
    backbone = backbone_of("mistral")
    export_edit(edit_of(), backbone, tmp_path / "ann")
    with mixed_users(backbone, {"ann": tmp_path / "ann"}) as batch:
        with pytest.raises(UserError, match="No adapter is loaded for bob; loaded are ann"):
            batch.generate(PROMPTS[:1], ["bob"], max_new_tokens=2)
        with pytest.raises(UserError, match="2 prompts but 1 users"):
            batch.generate(PROMPTS[:2], ["ann"], max_new_tokens=2)
    with pytest.raises(UserError, match="at least one user"):
        with mixed_users(backbone, {}):
            pass
    with pytest.raises(UserError, match="other weights"):
        with mixed_users(make_backbone("mistral", seed=5), {"ann": tmp_path / "ann"}):
            pass


@pytest.mark.parametrize("family", EXPERTS)
def test_a_mixture_of_experts_is_sent_to_the_hook(family: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no mixed batches for the experts"):
        with mixed_users(backbone_of(family), {"ann": tmp_path / "ann"}):
            pass


IDS = ("1", "12", "user1", "user10", "ann", "2", "0", "x", "A", "o", "", "a.b", "__base__", "lora")


def _ids(draw: random.Random) -> list[str]:
    """Five ids that PEFT would mix up: parts of each other, of layer numbers, of module names."""
    letters = "012ablor_.-ü default"
    made = ["".join(draw.choices(letters, k=draw.randint(1, 4))) for _ in range(6)]
    found = list(dict.fromkeys([*draw.sample(IDS, 4), *made, *(f"{made[0]}{n}" for n in range(3))]))
    draw.shuffle(found)
    return found[:5]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Exports of five users."""
    root = tmp_path_factory.mktemp("five")
    return [export_edit(edit_of(n), backbone_of("mistral"), root / str(n)).folder for n in range(5)]


@pytest.mark.parametrize("seed", range(12))
def test_any_user_ids_load_in_any_order_and_each_row_is_its_users(
    seed: int, five: list[Path]
) -> None:
    backbone, draw = backbone_of("mistral"), random.Random(seed)
    users = _ids(draw)
    order = draw.sample(range(5), 5)
    with mixed_users(backbone, {users[n]: five[n] for n in order}) as batch:
        found = batch.generate(PROMPTS[:1] * 5, users, max_new_tokens=N)
    assert found == [
        backbone.generate(PROMPTS[:1], max_new_tokens=N, edit=edit_of(n))[0] for n in range(5)
    ]


def test_a_tensor_missing_in_any_adapter_is_seen_whatever_it_is_called(tmp_path: Path) -> None:
    backbone = backbone_of("mistral")
    good = write_plain(tmp_path / "a", edit_of(1), backbone)
    bad = write_plain(tmp_path / "b", edit_of(2), backbone)
    tensors = load_file(bad / WEIGHTS)
    tensors.pop(next(name for name in tensors if "layers.2" in name and "lora_B" in name))
    save_file(tensors, bad / WEIGHTS)
    for order in ([good, bad], [bad, good]):
        with pytest.raises(UserError, match="b lacks weights that its configuration names"):
            with adapters(backbone, order):
                pass
    assert not any("lora" in name for name, _ in backbone.model.named_modules())
