"""The registry of rivals; `tests/test_opens.py` adds one."""

from __future__ import annotations

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.rivals.registry import RIVALS, prompted, register, trained, trained_rival


def test_the_kits_own_are_registered_in_table_order() -> None:
    assert [rival.id for rival in prompted()] == ["llm_rec", "llm_rec_comb", "llm_rec_basic"]
    assert [rival.id for rival in trained()] == ["aloe", "dpo"]
    assert [rival.id for rival in RIVALS.values() if rival.uses_gold] == ["aloe"]


def test_what_is_no_rival_is_refused() -> None:
    with pytest.raises(UserError, match="str is no rival: it needs write and prompts, or"):
        register("aloe")  # type: ignore[type-var]
    with pytest.raises(UserError, match="no trained rival 'llm_rec'; registered are aloe, dpo"):
        trained_rival("llm_rec")
