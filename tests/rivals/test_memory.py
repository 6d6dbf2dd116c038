"""Trainings in pieces, and with layers computed twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.rivals.aloe import train_aloe
from chameleon_lib.rivals.dpo import train_dpo
from chameleon_lib.rivals.settings import drawn
from chameleon_lib.rivals.tuned import Tuned, copy_to_adapt
from tests.backbones.tiny import make_backbone
from tests.rivals.planted import FAMILIES, aloe, contrasts, dpo, examples

ROWS = 7  # the last piece of a batch is smaller, too
Train = Callable[..., Tuned]


def dry(family: str) -> HFBackbone:
    """Without dropout, whose draws belong to a batch."""
    return make_backbone(family, **({"dropout_rate": 0.0} if family == "t5" else {}))


def gradients(
    train: Callable[[], Tuned], patch: pytest.MonkeyPatch
) -> tuple[list[Tensor], tuple[float, ...]]:
    """Gradients that the first optimiser step sees, and the losses of all steps."""
    seen: list[Tensor] = []
    step = torch.optim.AdamW.step

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not seen:
            seen.extend(p.grad.clone() for group in self.param_groups for p in group["params"])
        return step(self, *args, **kwargs)

    with patch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", noted)
        return seen, train().log.loss


def dpo_of(backbone: HFBackbone, **changes: Any) -> Tuned:
    """One step over all pairs, the adapter's clip out of reach."""
    settings = dpo(batch=8, lora_dropout=0.0, max_grad_norm=1e9, warmup=0.0, **changes)
    return train_dpo(backbone, contrasts(ROWS), settings.with_(max_steps=2), seed=0)


def aloe_of(backbone: HFBackbone, **changes: Any) -> Tuned:
    """One step over all examples."""
    settings = aloe(batch=8, lora_dropout=0.0, max_grad_norm=1e9, lr=1e-3, **changes)
    return train_aloe(backbone, examples(ROWS), settings.with_(max_steps=2), seed=0)


TRAININGS: dict[str, Callable[..., Tuned]] = {
    "DPO": dpo_of,
    "ALOE whole": aloe_of,
    "ALOE adapter": lambda backbone, **changes: aloe_of(backbone, params="lora", **changes),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize(
    "changes",
    [{"micro_batch": 1}, {"micro_batch": 4, "checkpointing": True}, {"checkpointing": True}],
    ids=["pieces of 1", "pieces of 4, checkpointing", "checkpointing"],
)
def test_pieces_have_the_loss_and_the_gradients_of_the_whole_batch(
    family: str, training: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, train = dry(family), TRAININGS[training]
    whole, losses = gradients(lambda: train(backbone), monkeypatch)
    pieces, same = gradients(lambda: train(backbone, **changes), monkeypatch)
    assert len(whole) == len(pieces) > 0
    norm = float(torch.stack([grad.norm() for grad in whole]).norm())
    assert norm > 1e-2
    for one, other in zip(whole, pieces, strict=True):
        assert float((one - other).abs().max()) <= 3e-6 * max(1.0, norm)  # sums of other orders
    assert same == pytest.approx(losses, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulated_batches_weigh_every_pair_alike(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(**changes: Any) -> Tuned:
        settings = dpo(lora_dropout=0.0, max_grad_norm=1e9, warmup=0.0, **changes)
        return train_dpo(backbone, contrasts(ROWS), settings.with_(max_steps=1), seed=0)

    backbone = dry(family)
    whole, _ = gradients(lambda: train(batch=8), monkeypatch)
    parts, _ = gradients(lambda: train(batch=4, accumulation=2, micro_batch=2), monkeypatch)
    for one, other in zip(whole, parts, strict=True):
        assert float((one - other).abs().max()) <= 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_keeps_less_for_the_way_back(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(**changes: Any) -> int:
        """Most bytes that the graph of one pass holds."""
        found = []
        backward = torch.Tensor.backward

        def noted(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            found.append(sum(sizes.values()))
            sizes.clear()
            backward(loss, *args, **kwargs)

        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "backward", noted)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                dpo_of(dry(family), **changes)
        return max(found)

    whole, layers, pieces = kept(), kept(checkpointing=True), kept(micro_batch=2)
    assert layers < 0.7 * whole and pieces < 0.5 * whole


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_trained_beside_the_weights_that_are_there(family: str) -> None:
    backbone = dry(family)
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    copied = copy_to_adapt(backbone.model)
    own = {id(weight) for weight in backbone.model.parameters()}
    assert copied is not backbone.model and {id(p) for p in copied.parameters()} == own
    assert not {id(m) for m in copied.modules()} & {id(m) for m in backbone.model.modules()}
    dpo_of(backbone)
    aloe_of(backbone, params="lora")
    after = backbone.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(weight.requires_grad for weight in backbone.model.parameters())
    assert not backbone.model.training


def test_what_a_method_draws_can_be_asked_beforehand() -> None:
    assert drawn("dpo", 0, 0.5, 0) == []
    assert len(drawn("aloe", 10, 0.01, 0)) == 1
    assert sorted(drawn("aloe", 10, 1.0, 3)) == list(range(10))
    assert drawn("aloe", 30, 0.5, 3) != drawn("dpo", 30, 0.5, 3) != drawn("dpo", 30, 0.5, 4)
