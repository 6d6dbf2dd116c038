"""T5 scales what it decodes where the head is the embedding table; Flan-T5 has a head of its own.

Its config says ``tie_word_embeddings: false`` for both: no scaling, and two tables in the file.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chameleon_lib.backbones import HFBackbone, load_backbone
from chameleon_lib.rivals.tuned import copy_to_adapt
from tests.backbones.tiny import ANSWERS, CONFIGS, PROMPTS, make_edit, make_model, make_tokenizer

WIDTH = CONFIGS["t5"]["d_model"]


def saved(folder: Path, *, own_head: bool) -> Path:
    """A checkpoint as the hub has it: T5 of 2019, or Flan-T5 with a head of its own."""
    model = make_model("t5", tie_word_embeddings=not own_head, dropout_rate=0.0)
    if own_head:
        generator = torch.Generator().manual_seed(5)
        model.lm_head.weight = nn.Parameter(
            torch.randn(model.lm_head.weight.shape, generator=generator) * 0.3
        )
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("scale_decoder_outputs", None)  # a word of this library's version alone
    config["tie_word_embeddings"] = not own_head
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    make_tokenizer(closes=True).save_pretrained(folder)
    return folder


def by_hand(model: Any, ids: Tensor, decoder_ids: Tensor, *, own_head: bool) -> Tensor:
    """Logits from the decoder's last states: the head's table, and the scale of the tied one."""
    with torch.no_grad():
        states = model.get_encoder()(input_ids=ids).last_hidden_state
        decoder = model.get_decoder()
        last = decoder(input_ids=decoder_ids, encoder_hidden_states=states).last_hidden_state
        table = model.lm_head.weight if own_head else model.shared.weight * WIDTH**-0.5
        return last @ table.T


@pytest.fixture(params=[False, True], ids=["tied", "own head"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    return saved(tmp_path / "model", own_head=request.param), request.param


def test_the_head_is_the_checkpoints_and_is_scaled_where_it_is_tied(
    checkpoint: tuple[Path, bool],
) -> None:
    folder, own_head = checkpoint
    model = load_backbone(folder).model
    head, shared = model.lm_head.weight, model.shared.weight
    assert (head.data_ptr() == shared.data_ptr()) != own_head
    ids, decoder_ids = torch.tensor([[5, 9, 30, 31, 1]]), torch.tensor([[0, 17, 40]])
    with torch.no_grad():
        logits = model(input_ids=ids, decoder_input_ids=decoder_ids).logits
    assert torch.allclose(logits, by_hand(model, ids, decoder_ids, own_head=own_head), atol=1e-5)
    assert not torch.allclose(
        logits, by_hand(model, ids, decoder_ids, own_head=not own_head), atol=1e-2
    )


def scores(backbone: HFBackbone, edited: bool = True) -> Tensor:
    edit = make_edit("all") if edited else None
    return backbone.score(backbone.prepare(PROMPTS[:3]), ANSWERS[:3], edit=edit)


def test_scores_and_edits_go_through_that_head(checkpoint: tuple[Path, bool]) -> None:
    folder, own_head = checkpoint
    backbone = load_backbone(folder)
    plain = scores(backbone, edited=False)
    [ids] = backbone.codec.prompts(PROMPTS[:1])
    [answer] = backbone.codec.answers(ANSWERS[:1])
    decoder_ids = torch.tensor([[0, *answer]])
    logits = by_hand(backbone.model, torch.tensor([ids]), decoder_ids, own_head=own_head)
    picked = logits.log_softmax(-1)[0].gather(1, torch.tensor([*answer, 1])[:, None])
    assert float(picked.sum()) == pytest.approx(float(plain[0]), abs=1e-4)
    assert not torch.allclose(scores(backbone), plain, atol=1e-3)


def test_copies_and_what_is_saved_again_keep_head_and_scale(
    checkpoint: tuple[Path, bool], tmp_path: Path
) -> None:
    folder, _ = checkpoint
    backbone = load_backbone(folder)
    expected = scores(backbone)
    for model in (copy.deepcopy(backbone.model), copy_to_adapt(backbone.model)):
        twin = type(backbone)(model, backbone.codec, name="twin", fingerprint="")
        assert torch.equal(scores(twin), expected)
    again = tmp_path / "again"
    backbone.model.save_pretrained(again)
    make_tokenizer(closes=True).save_pretrained(again)
    assert torch.allclose(scores(load_backbone(again)), expected, atol=1e-6)
