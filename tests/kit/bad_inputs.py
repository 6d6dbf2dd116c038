"""Ways to break what a user hands in: LaMP files, checkpoints, outputs of a run."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from chameleon_lib.core.task import official_input

Record = dict[str, Any]
Make = Callable[[Path], None]

_TEXTS = {"LaMP_2": "description", "LaMP_3": "text", "LaMP_7": "text"}
_LABELS = {"LaMP_2": ("tag", "comedy"), "LaMP_3": ("score", "4")}


def sample(task: str, number: int) -> Record:
    """A question with a profile of two items."""
    label = dict([_LABELS[task]]) if task in _LABELS else {}
    profile = [
        {"id": f"{number}{item}", _TEXTS[task]: f"text {number} {item}", **label}
        for item in range(2)
    ]
    return {
        "id": str(number),
        "input": official_input(task, f"query {number}"),
        "profile": profile,
    }


def gold(task: str, number: int) -> Record:
    """Its gold."""
    return {"id": str(number), "output": _LABELS.get(task, ("", "a tweet"))[1]}


def write_split(
    folder: Path, task: str = "LaMP_3", split: str = "dev", numbers: range = range(21, 25)
) -> Path:
    """A valid split; the folder of its files."""
    where = folder / task / split
    where.mkdir(parents=True)
    questions = [sample(task, number) for number in numbers]
    golds = {"task": task, "golds": [gold(task, number) for number in numbers]}
    (where / f"{split}_questions.json").write_text(json.dumps(questions), encoding="utf-8")
    (where / f"{split}_outputs.json").write_text(json.dumps(golds), encoding="utf-8")
    return where


def data(change: Make, task: str = "LaMP_3") -> Make:
    """A valid dev split in ``data``, then changed; ``change`` gets the folder of its files."""

    def make(base: Path) -> None:
        change(write_split(base / "data", task))

    return make


def raw(content: bytes, name: str = "dev_questions.json", task: str = "LaMP_3") -> Make:
    """Other bytes in one of the files."""
    return data(lambda folder: none((folder / name).write_bytes(content)), task)


def cut(keep: Callable[[str], str], name: str = "dev_questions.json") -> Make:
    """The text of a file, changed."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(keep(path.read_text(encoding="utf-8")), encoding="utf-8")

    return data(change)


def question(edit: Callable[[Record], Any], task: str = "LaMP_3") -> Make:
    """The second question, changed in place."""

    def change(folder: Path) -> None:
        path = folder / "dev_questions.json"
        records = json.loads(path.read_text(encoding="utf-8"))
        edit(records[1])
        path.write_text(json.dumps(records), encoding="utf-8")

    return data(change, task)


def item(edit: Callable[[Record], Any], task: str = "LaMP_3") -> Make:
    """The first profile item of the second question, changed in place."""
    return question(lambda record: edit(record["profile"][0]), task)


def outputs(edit: Callable[[Record], Any], task: str = "LaMP_3") -> Make:
    """The outputs file, changed in place."""

    def change(folder: Path) -> None:
        path = folder / "dev_outputs.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        edit(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return data(change, task)


def none(_: object) -> None:
    """Drops a value."""


def nothing(_: Path) -> None:
    """Nothing to make."""


def news(folder: Path) -> None:
    """Questions of the old news task under the name of the movies."""
    path = folder / "dev_questions.json"
    record = sample("LaMP_2", 21)
    record["profile"] = [{"id": "1", "title": "t", "text": "x", "category": "travel"}]
    path.write_text(json.dumps([record]), encoding="utf-8")


def lost_instructions(folder: Path) -> None:
    """Two questions without an instruction; one is known."""
    path = folder / "dev_questions.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    for record in records[:2]:
        record["input"] = "x a plot"
    path.write_text(json.dumps(records), encoding="utf-8")


def twice(folder: Path) -> None:
    """The same split in two places."""
    for path in folder.iterdir():
        shutil.copy(path, folder.parent / path.name)


def shared_users(folder: Path) -> None:
    """The train users are the dev users."""
    train = write_split(folder.parent.parent, "LaMP_3", "train", range(21, 25))
    assert train.is_dir()


def train_without_golds(folder: Path) -> None:
    """A train file alone."""
    (write_split(folder.parent.parent, "LaMP_3", "train", range(31, 35))
     / "train_outputs.json").unlink()  # fmt: skip


@lru_cache(maxsize=1)
def _saved() -> Any:
    from tests.demo.small import small_backbone

    return small_backbone()


def checkpoint(change: Make) -> Make:
    """A complete checkpoint in ``model``, then changed."""

    def make(base: Path) -> None:
        folder = base / "model"
        backbone = _saved()
        backbone.model.save_pretrained(folder)
        backbone.codec.tokenizer.save_pretrained(folder)
        change(folder)

    return make


def config(**changes: Any) -> Make:
    """Other values in the configuration."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text(encoding="utf-8")) | changes
        path.write_text(json.dumps(content), encoding="utf-8")

    return checkpoint(change)


def weights(edit: Callable[[dict[str, Any]], None]) -> Make:
    """Other tensors, by name."""

    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        tensors = copy.copy(load_file(path))
        edit(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return checkpoint(change)


def without_end(folder: Path) -> None:
    """No end-of-sequence token anywhere."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        for key in ("eos_token", "eos_token_id"):
            if key in content:
                content[key] = None
        path.write_text(json.dumps(content), encoding="utf-8")


def fresh_outputs(table: str) -> Make:
    """Outputs of two runs; the fresh one has this table."""

    def make(base: Path) -> None:
        for name, content in (("committed", "a,n,seeds\n1,2,3\n"), ("fresh", table)):
            folder = base / name / "tables"
            folder.mkdir(parents=True)
            (folder / "t.csv").write_bytes(content.encode("latin-1"))

    return make
