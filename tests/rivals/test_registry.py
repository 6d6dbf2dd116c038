"""Adding a rival is one class: registered here as in a notebook cell, it is a row of Table 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.backbone import Backbone
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import RunProfile
from chameleon_lib.rivals.registry import (
    RIVALS,
    Lesson,
    prompted,
    register,
    trained,
    trained_rival,
)
from chameleon_lib.rivals.settings import DpoSettings
from chameleon_lib.rivals.tuned import Meter, Tuned, train_log
from chameleon_lib.studies.data import load_task_data, without_gold
from chameleon_lib.studies.grid import Desk
from chameleon_lib.studies.methods import METHODS
from chameleon_lib.studies.s01_per_user import compute_cell
from tests.studies.small import small_profile, study_in, use_small_models


@dataclass(frozen=True)
class Echo:
    """A prompted rival that writes what the query says."""

    id: str = "echo"
    title: str = "Echo"
    paper: str = ""
    uses_gold: bool = False

    def suits(self, task: str) -> bool:
        return task == "LaMP_3"

    def write(
        self, backbone: Backbone, users: Sequence[PreparedUser], settings: EditSettings
    ) -> list[str]:
        del backbone, settings
        return [query.text for user in users for query in user.user.queries]

    def prompts(
        self, users: Sequence[PreparedUser], written: Sequence[str], settings: EditSettings
    ) -> list[str]:
        del users, settings
        return [f"{text}\nYour answer:" for text in written]


@dataclass(frozen=True)
class Louder:
    """A trained rival: the head's weights, a little larger for every pair of the group."""

    id: str = "louder"
    title: str = "A louder head"
    paper: str = ""
    uses_gold: bool = False

    def settings(self, run: RunProfile, embedded: bool, family: str, **changes: Any) -> DpoSettings:
        del run, embedded, family
        return DpoSettings(**changes)

    def prompt(self, settings: DpoSettings) -> str:
        del settings
        return "instruct"

    def material(self, lesson: Lesson, settings: DpoSettings) -> dict[str, Any]:
        del settings
        return {"pairs": len(lesson.contrasts)}

    def fit(
        self,
        backbone: HFBackbone,
        lesson: Lesson,
        settings: DpoSettings,
        *,
        seed: int,
        stop: Callable[[], bool] | None = None,
    ) -> Tuned:
        del seed, stop
        name, head = list(backbone.model.named_parameters())[-1]
        meter = Meter(planned=2, loss=[2.0, 1.0], samples=len(lesson.contrasts))
        counts = {"queries": len(lesson.contrasts), "rows": len(lesson.contrasts)}
        log = train_log(
            settings, meter, 0.0, notes=(), method=self.id, uses_gold=False, params="full",
            trainable_params=head.numel(), **counts,
        )  # fmt: skip
        return Tuned({name: head.detach() * (1 + len(lesson.contrasts) / 10)}, None, log)


@pytest.fixture
def toys() -> Iterator[None]:
    """Both are registered inside the test."""
    register(Echo())
    register(Louder())
    yield
    del RIVALS["echo"], RIVALS["louder"]


def test_the_kits_own_are_registered_in_table_order() -> None:
    assert [rival.id for rival in prompted()] == ["llm_rec", "llm_rec_comb", "llm_rec_basic"]
    assert [rival.id for rival in trained()] == ["aloe", "dpo"]
    assert [rival.id for rival in RIVALS.values() if rival.uses_gold] == ["aloe"]


@pytest.mark.usefixtures("toys")
def test_a_registered_rival_is_a_row_of_table_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    study = study_in(tmp_path)
    data = load_task_data(small_profile(), "LaMP_3")
    test, counts = study.prepare(without_gold(data.test))
    cell = compute_cell(Desk(study, data, test, counts), (0,))
    known = [method.id for method in METHODS]
    assert known.index("dpo") < known.index("echo") < known.index("louder")
    assert [name for name in known if name in ("echo", "louder")] == ["echo", "louder"]
    queries = sum(len(user.user.queries) for user in test)
    for name in ("echo", "louder"):
        assert len(cell.answers[name][0].texts) == queries and name in cell.scores
    (log,) = cell.draws
    assert list(log["louder"]["loss"]) == [2.0, 1.0] and log["louder"]["seen"]["users"]
    margins = [torch.from_numpy(cell.answers[n][0].margin).nan_to_num() for n in ("louder", "dpo")]
    assert not torch.allclose(*margins)


def test_what_is_no_rival_is_refused() -> None:
    with pytest.raises(UserError, match="str is no rival: it needs write and prompts, or"):
        register("aloe")  # type: ignore[type-var]
    with pytest.raises(UserError, match="no trained rival 'llm_rec'; registered are aloe, dpo"):
        trained_rival("llm_rec")
