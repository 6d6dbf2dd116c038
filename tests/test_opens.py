"""What is open to others: how many files it takes to add something, each shown by a toy.

A direction, a trained rival, a task and a family of models are one registration each (this file
holds all four, as a notebook cell could), and are seen together in one Table 1; a notebook is two
files: itself and the study that it imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from chameleon_lib import rivals
from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.families import MODEL_FAMILIES
from chameleon_lib.core import directions, more_directions
from chameleon_lib.core import task as task_module
from chameleon_lib.core.backbone import Backbone
from chameleon_lib.core.directions import Found, Reading, direction
from chameleon_lib.core.pairs import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.core.task import Metric, Task, Wording, agents, answer_prompt, get_task
from chameleon_lib.data.floors import copy_input, last_label
from chameleon_lib.kit.plan import Run as Driver
from chameleon_lib.kit.profiles import PROFILES, RunProfile
from chameleon_lib.kit.sources import SourceTree
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.rivals import more, registry
from chameleon_lib.rivals.registry import Lesson
from chameleon_lib.rivals.settings import DpoSettings
from chameleon_lib.rivals.tuned import Meter, Tuned, train_log
from chameleon_lib.serving.export import export_edit
from chameleon_lib.studies import s01_per_user as table1
from chameleon_lib.studies import study as study_module
from chameleon_lib.studies.data import available_tasks
from chameleon_lib.studies.run import Arm, Cell, run_grid
from chameleon_lib.studies.run import Run as Results
from tests.backbones.tiny import make_edit
from tests.data.helpers import write_outputs, write_questions
from tests.demo.small import small_backbone
from tests.kit.checkout import Checkout, notebook
from tests.studies.small import SETTINGS, use_small_models

MODEL = "toys/Toy-1M"


def last_pair(seen: Reading) -> Found:
    """A direction: where the last pair alone points to."""
    difference = seen.p[:, -1] - seen.n[:, -1]  # (G, d)
    return Found(difference / difference.norm(dim=-1, keepdim=True), None)


def off_by(golds: Sequence[str], preds: Sequence[str]) -> dict[str, np.ndarray]:
    """A metric: how much louder or quieter the answer is."""
    return {"off": np.array([abs(len(g) - len(p)) for g, p in zip(golds, preds, strict=True)])}


SHOUT = Task(
    name="Shout",
    title="How loud would this user be?",
    label_key="cry",
    instruction="Cry out about the following thing:",
    query_marker="thing:",
    official_item='"{label}" for "{text}" ',
    wording=Wording(
        opening="Suppose you are a user with the following cries:",
        line='"{label}" is the cry for "{text}".',
        query="Now, given a new thing:",
        question="Question: What does the user cry?",
        agents=agents("You try to cry as the user does."),
    ),
    noun="thing",
    measures=(Metric("off_by", "off", higher=False),),
    score=off_by,
    floors={"copy_input": copy_input, "last_item": last_label},
    max_new_tokens=4,
)


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
        self, backbone: HFBackbone, lesson: Lesson, settings: DpoSettings, *, seed: int
    ) -> Tuned:
        del seed
        name, head = list(backbone.model.named_parameters())[-1]
        pairs = len(lesson.contrasts)
        log = train_log(
            settings, Meter(loss=[2.0, 1.0], samples=pairs), 0.0, notes=(), method=self.id,
            uses_gold=False, params="full", trainable_params=head.numel(), queries=pairs,
            rows=pairs,
        )  # fmt: skip
        return Tuned({name: head.detach() * (1 + pairs / 10)}, None, log)


@dataclass(frozen=True)
class Echo:
    """A prompted rival: it answers what the query says."""

    id: str = "echo"
    title: str = "Echo"
    paper: str = ""
    uses_gold: bool = False

    def suits(self, task: str) -> bool:
        return task == "Shout"

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


def toy_model() -> HFBackbone:
    """Tiny random weights of a family that the table did not know."""
    backbone = small_backbone()
    backbone.model.config.model_type = "toyformer"
    return backbone


def write_shouts(folder: Path, users: int = 40) -> None:
    """A small official dev split of the toy task: user u cries u times."""
    (folder / "Shout").mkdir(parents=True)
    records = [
        {"id": f"{u}", "input": f"Cry out about the following thing: a {'very ' * (u % 5)}big dog",
         "profile": [{"id": f"{i}", "text": f"cat {u} {i}", "cry": "o" * u} for i in range(4)]}
        for u in range(1, users + 1)
    ]  # fmt: skip
    write_questions(folder / "Shout" / "dev_questions.json", records)
    golds = {f"{u}": "o" * u for u in range(1, users + 1)}
    write_outputs(folder / "Shout" / "dev_outputs.json", "Shout", golds)


@pytest.fixture(scope="module")
def toys() -> Iterator[None]:
    """All of them, through the registries, as one cell would; forgotten afterwards."""
    directions.all_directions()
    task_module.registered()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directions, "_REGISTRY", dict(directions._REGISTRY))
        patch.setattr(task_module, "_registry", dict(task_module._registry))
        for name in ("echo", "louder"):
            patch.setitem(registry.RIVALS, name, None)
        patch.setitem(MODEL_FAMILIES, "toyformer", replace(MODEL_FAMILIES["mistral"]))
        direction("last_pair", title="the last pair", kind="control", beats=("paper",))(last_pair)
        registry.register(Echo())
        registry.register(Louder())
        task_module.register(SHOUT)
        yield


@pytest.fixture(scope="module")
def table(toys: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, pd.DataFrame]:
    """A run of Table 1 on the toy task by the toy model, from official files."""
    del toys
    folder = tmp_path_factory.mktemp("toys")
    write_shouts(folder)
    sizes: dict[str, Any] = {"n_train": 8, "n_dev": 2, "n_test": 6, "draws": 1, "workers": 1}
    models = {"backbones": (MODEL,), "studied": (MODEL,), "aloe_params": "lora"}
    profile = replace(PROFILES["laptop"], **models, **sizes)
    assert available_tasks(profile, str(folder))[0] == ["Shout"]
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        backbone = toy_model()
        patch.setattr(study_module, "open_backbone", lambda *_: backbone)
        run = run_grid(
            table1._compute, profile, SETTINGS, tasks=["Shout"], data_dir=str(folder),
            store=ArtifactStore(folder / "store"),
        )  # fmt: skip
    return run, table1.results(run.frame, "Shout")


def rows_of(shown: pd.DataFrame) -> set[str]:
    return {str(value) for name in shown.columns for value in shown[name]}


def test_a_direction_is_one_file_and_a_row(table: tuple[Results, pd.DataFrame]) -> None:
    assert "the last pair" in rows_of(table[1])
    assert directions.to_beat("paper")[-1] == "last_pair"


def test_a_trained_or_prompted_rival_is_one_file_and_a_row(
    table: tuple[Results, pd.DataFrame],
) -> None:
    run, shown = table
    assert {"A louder head", "Echo"} <= rows_of(shown)
    (cell,) = run.cells
    (log,) = cell.draws
    assert list(log["louder"]["loss"]) == [2.0, 1.0] and log["louder"]["seen"]["users"]
    margins = [torch.from_numpy(answers(cell, name)).nan_to_num() for name in ("louder", "dpo")]
    assert not torch.allclose(*margins)


def test_a_file_in_the_folder_is_enough(
    toys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del toys
    files = {
        more_directions: "from tests.test_opens import direction, last_pair\n"
        "direction('in_file', title='In a file', kind='ours')(last_pair)\n",
        more: "from tests.test_opens import Louder, registry\n"
        "registry.register(Louder('in_file', 'In a file'))\n",
    }
    for package, text in files.items():
        folder = tmp_path / package.__name__.rpartition(".")[2]
        folder.mkdir()
        (folder / "a_toy.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [str(folder)])
    monkeypatch.setitem(registry.RIVALS, "in_file", Echo())
    rivals.load()
    assert "in_file" in {found.name for found in directions.all_directions()}
    assert registry.trained_rival("in_file").title == "In a file"


def answers(cell: Cell, name: str) -> np.ndarray:
    return np.asarray(cell.answers[Arm(name, 0)].margin)


def test_a_task_is_one_file_and_a_table_with_its_metric(
    table: tuple[Results, pd.DataFrame],
) -> None:
    run, shown = table
    assert any("off_by" in str(name) for name in shown.columns)
    assert set(run.frame["task"]) == {"Shout"}
    assert len(table1.floors(run, "Shout")) >= len(get_task("Shout").floors)
    one = run.data["Shout"].test[0]
    prompt = answer_prompt(SHOUT, one.history, one.queries[0].text, role="P", insight="noise")
    assert '1. "o' in prompt and "The user prefers noise." in prompt


def test_a_family_of_models_is_one_row_and_can_be_edited_exported_and_tabled(
    table: tuple[Results, pd.DataFrame], tmp_path: Path
) -> None:
    assert "Toy-1M" in rows_of(table[1])
    backbone = toy_model()
    done = export_edit(replace(make_edit(), positions="all"), backbone, tmp_path / "toy")
    assert done.agreement.same_tokens


def test_a_notebook_is_itself_and_the_study_that_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path / "cache"))
    there = Checkout(tmp_path)
    study = tmp_path / "chameleon_lib" / "studies" / "s10_toy.py"
    study.parent.mkdir()
    study.write_text("ANSWER = 42\n", encoding="utf-8")
    notebook(there.notebooks, "10_toy", ["from chameleon_lib.studies.s10_toy import ANSWER"])

    def planned() -> tuple[list[tuple[str, str]], Any]:
        run = Driver("demo", folder=there.notebooks, library=SourceTree(tmp_path))
        what = [(book.name, "run" if why else "cached") for book, why in run.plan()]
        return what, run.step(run.all[0]).inputs

    what, inputs = planned()
    assert what == [("10_toy", "run")]
    study.write_text("ANSWER = 41\n", encoding="utf-8")
    assert planned()[1] != inputs  # a change of the study runs the notebook again
