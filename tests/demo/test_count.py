"""What a run asks of its models is counted from outside, with the library as it is."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chameleon_lib import demo
from chameleon_lib.backbones.load import load_backbone
from chameleon_lib.errors import UserError
from chameleon_lib.kit import store as store_module
from chameleon_lib.kit.cost import Cost
from chameleon_lib.kit.models import MODELS
from chameleon_lib.kit.store import ArtifactStore
from workshop import count


def test_a_forward_is_counted_by_what_it_reads_scores_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(count.VARIABLE, str(tmp_path))
    monkeypatch.setenv("CHAMELEON_PROGRESS", str(tmp_path / "7-03.txt"))
    for name in ("get_or_compute", "map"):
        monkeypatch.setattr(ArtifactStore, name, getattr(ArtifactStore, name))  # put back
    count._watch_store(store_module)
    store = ArtifactStore(tmp_path / "units")
    for family in ("decoder", "encdec"):
        name = f"demo:{family}:0"
        backbone = load_backbone(demo.checkpoint(family, 0), name=name, dtype="float32")
        count.watch(name, backbone.model)
        count.watch("a copy", copy.deepcopy(backbone.model))
        prompts = ["A clown saves a wasteland in Quito"] * 2
        length = len(backbone.codec.prompts(prompts)[0])
        answers = backbone.codec.answers(["comedy", "sci-fi"])

        def work(backbone: Any = backbone, prompts: Any = prompts) -> list[Any]:
            with torch.no_grad():
                read = backbone.prepare(prompts)
                said: list[str] = backbone.generate_prepared(read, max_new_tokens=3)
            backbone.score(read, ["comedy", "sci-fi"])
            return said[:1]

        inputs = {"task": "LaMP_2", "backbone": name}
        for _ in range(2):  # a second use is no second work
            store.map("answers", [0], lambda _: work(), inputs=inputs, key_of=int)
        with pytest.raises(ZeroDivisionError), count.computing("failed", ["x"]):
            raise ZeroDivisionError
    count.write_counts(tmp_path, tmp_path / "counts.tsv")
    rows = list(csv.DictReader((tmp_path / "counts.tsv").open(), delimiter="\t"))
    assert [(r["notebooks"], r["backbone"], r["task"], r["stage"], r["units"]) for r in rows] == [
        ("03", f"demo:{family}:0", "LaMP_2", "answers", "1") for family in ("decoder", "encdec")
    ]
    for row, start in zip(rows, (-1, 0), strict=True):  # a decoder's last token opens the answer
        assert int(row["read"]) == 2 * (length + start)
        assert int(row["learned_scored"]) == int(row["scored"]) == 2 * (1 + max(map(len, answers)))
        assert 2 <= int(row["written"]) <= 2 * 3 and row["learned_read"] == "0"


def test_a_run_that_found_units_in_its_store_is_no_count(tmp_path: Path) -> None:
    event = {"stage": "pairs", "used": ["abc"], "task": "LaMP_2"}
    (tmp_path / "01-7").write_text(json.dumps(event) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="1 units were in the store before"):
        count.write_counts(tmp_path, tmp_path / "counts.tsv")


def test_a_counted_run_stands_beside_its_plan(tmp_path: Path) -> None:
    work = {"smollm2": {"read": 90, "scored": 4, "written": 12}}
    events = [
        {"stage": "pairs", "used": ["a", "b"], "task": "LaMP_7"},
        {"stage": "pairs", "made": ["a", "b"], "task": "LaMP_7", "work": work},
        {"stage": "", "task": "LaMP_7", "work": {"smollm2": {"read": 10}}},
    ]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "01-7").write_text(text, encoding="utf-8")
    planned = Cost("pairs", MODELS["smollm2"], 2, 100, 0, 10, 0, 1.0, 100)
    lines = count.beside_plan(tmp_path, [planned]).splitlines()
    assert "| pairs | 100 | 90 | 0.90 | 0 | 4 | – | 10 | 12 | 1.20 |" in lines
    assert "| all | 100 | 100 | 1.00 | 0 | 4 | – | 10 | 12 | 1.20 |" in lines
