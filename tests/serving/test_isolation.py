"""Two users and the base in one batch, in sequence and after an abort: in hooks and in exports."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.errors import UserError
from chameleon_lib.serving.adapter import BASE, adapter_name, adapter_rows, adapters
from chameleon_lib.serving.agreement import Isolation, hook_rows, isolation
from chameleon_lib.serving.export import export_edit
from tests.backbones.tiny import make_backbone
from tests.serving.exported import EXPERTS, backbone_of, edit_of, write_plain

EDITS = [edit_of(1), edit_of(2, layers=(1, 2))]
MIXED = ("mistral", "gpt2", "gemma2", "t5")


@pytest.mark.parametrize("family", [*MIXED, "opt", *EXPERTS])
def test_rows_of_the_hook_are_those_of_each_user_alone(family: str) -> None:
    backbone = backbone_of(family)
    found = isolation(backbone, hook_rows(backbone, EDITS), 2)
    assert found.error <= found.bound < found.effect / 100
    assert found.rows == 9 * 4 + 3  # three batches of all, one of the base, and each alone again


@pytest.mark.parametrize("family", MIXED)
def test_a_peft_export_is_proven_beside_another_users(family: str, tmp_path: Path) -> None:
    found = export_edit(EDITS[0], backbone_of(family), tmp_path / "one").isolation
    assert isinstance(found, Isolation) and found.error <= found.bound < found.effect / 100


@pytest.mark.parametrize(("family", "form"), [("opt", "peft"), ("llama", "merged")])
def test_what_serves_one_user_at_a_time_has_nobody_to_keep_apart(
    family: str, form: str, tmp_path: Path
) -> None:
    assert export_edit(EDITS[0], backbone_of(family), tmp_path / "one", form=form).isolation is None


def _swapped(rows: Any) -> Any:
    """Rows of a batch of several users come back in the order of the users."""

    def mixed(prompts: list[str], users: list[int]) -> Tensor:
        found: Tensor = rows(prompts, users)
        return found[torch.tensor(sorted(range(len(users)), key=lambda at: (users[at], at)))]

    return mixed


def _sticky(backbone: HFBackbone) -> Any:
    """After an abort the base is answered by the edit of the user before."""
    own, late = hook_rows(backbone, EDITS), [False]

    def rows(prompts: list[str], users: list[int]) -> Tensor:
        if late[0] and set(users) == {0}:
            users = [1] * len(users)
        try:
            return own(prompts, users)
        except Exception:
            late[0] = True
            raise

    return rows


def test_rows_that_are_mixed_up_or_stick_are_found() -> None:
    backbone = backbone_of("mistral")
    own = hook_rows(backbone, EDITS)
    for broken in (_swapped(own), _sticky(backbone)):
        with pytest.raises(UserError, match="differs by .* from the same user alone"):
            isolation(backbone, broken, 2)


def test_an_abort_that_does_not_get_through_proves_nothing() -> None:
    backbone = backbone_of("mistral")
    own = hook_rows(backbone, EDITS)

    def patient(prompts: list[str], users: list[int]) -> Tensor:
        try:
            return own(prompts, users)
        except Exception:
            return torch.zeros(len(prompts), 3)

    with pytest.raises(UserError, match="was to be aborted"):
        isolation(backbone, patient, 2)


def test_edits_that_move_nothing_prove_nothing() -> None:
    backbone = backbone_of("mistral")
    idle = [replace(edit, alpha_p=1e-9, alpha_n=0.0) for edit in EDITS]
    with pytest.raises(UserError, match="too little to tell one user's rows"):
        isolation(backbone, hook_rows(backbone, idle), 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_users_are_told_apart(dtype: torch.dtype) -> None:
    backbone = make_backbone("llama")
    backbone.model.to(dtype)
    found = isolation(backbone, hook_rows(backbone, EDITS), 2)
    assert found.error < found.effect / 2


def test_the_check_is_what_finds_adapters_that_an_aborted_call_leaves_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbone_of("llama")
    folders = [write_plain(tmp_path / str(at), edit, backbone) for at, edit in enumerate(EDITS)]
    with adapters(backbone, folders) as model:
        names = [adapter_name(0), adapter_name(1)]

        def rows(texts: list[str], users: list[int]) -> Tensor:
            if any(users):
                own = [BASE if user == 0 else names[user - 1] for user in users]
                return adapter_rows(backbone, model, texts, own)
            with model.disable_adapter():  # the base as who knows nothing of rows asks for it
                return adapter_rows(backbone, _Unnamed(model), texts, [])

        assert isolation(backbone, rows, 2).error < 1e-4
        monkeypatch.setattr("chameleon_lib.serving.adapter.no_hook_stays", lambda _: nullcontext())
        with pytest.raises((UserError, ValueError)):
            isolation(backbone, rows, 2)


class _Unnamed:
    """A model that is told no adapters."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *, adapter_names: list[str], **inputs: Any) -> Any:
        assert not adapter_names
        return self.model(**inputs)
