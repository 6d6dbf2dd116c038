"""Folders of reviews of shared items: told from LaMP's, planned, and refused where unread."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from chameleon_lib.cli import check_request
from chameleon_lib.difference import SLOTS, Recipe, dpl
from chameleon_lib.errors import UserError
from chameleon_lib.kit import shared_items
from chameleon_lib.kit.plan import Run, plan_lines
from chameleon_lib.kit.shared_items import Reviews, measure
from chameleon_lib.studies import s11_desk as desk
from chameleon_lib.studies import s11_material as material

QWEN = "Qwen/Qwen2.5-7B-Instruct"


def folder_of(path: Path, review: str = "x" * 400, description: str = "y" * 392) -> Path:
    path.mkdir(exist_ok=True)
    said = {"user_id": "u", "parent_asin": "i", "text": review, "rating": 5, "title": "t",
            "timestamp": 1}  # fmt: skip
    item = {"parent_asin": "i", "title": "z" * 8, "description": [description]}
    (path / "Things.jsonl").write_text(json.dumps(said) + "\n")
    (path / "meta_Things.jsonl").write_text(json.dumps(item) + "\n")
    return path


def test_the_plan_counts_what_the_study_does() -> None:
    assert (shared_items.BLOCKS, shared_items.VALID) == (SLOTS, material.VALID)
    assert shared_items.EPOCHS == Recipe().epochs and shared_items.ROWS == len(desk.TRAINED)
    assert shared_items.SEEDS == inspect.signature(desk.run).parameters["seeds"].default
    assert shared_items.PEERS == dpl.PEERS and shared_items.BLOCKS == dpl.CHOSEN == desk.PAST
    most = inspect.signature(dpl.summaries).parameters["difference_tokens"].default
    assert most == shared_items.SAID


def test_work_grows_with_samples_and_seeds() -> None:
    reviews = Reviews(review=100.0, item=100.0)
    assert reviews.prompt == 100 + 8 * 260 and Reviews(5000.0, 9.0).prompt == shared_items.MOST
    trained, told, edits = reviews.parts(train=100, test=50, seeds=1)
    assert trained.work.backward.total == 6 * 5 * 100 * (reviews.prompt + 100)
    twice = reviews.parts(train=200, test=50, seeds=3)
    assert twice[0].work.backward.total == 6 * trained.work.backward.total
    assert twice[1:] == [told, edits]  # neither is trained, nor drawn


def test_the_plan_of_a_folder_is_in_hours_of_the_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "reviews")
    assert measure(folder) == Reviews(review=100.0, item=100.0)
    asked = {"data_dir": str(folder), "backbones": [QWEN]}
    shown = "\n".join(plan_lines(Run("paper", asked, ["11"])))
    assert "2180 tokens of a prompt and 100 of a review" in shown
    for word in ("soft prompts", "differences told", "edits", f"{QWEN}: 15.2 GB"):
        assert word in shown
    assert "LaMP_2" not in shown and "rivals" not in shown and "kit/power" not in shown
    own = "\n".join(plan_lines(Run("demo-data", {"data_dir": str(folder)}, ["11"])))
    assert "own small model" in own


def test_notebooks_that_do_not_read_reviews_are_named(tmp_path: Path) -> None:
    asked = {"data_dir": str(folder_of(tmp_path / "reviews"))}
    with pytest.raises(UserError, match="which notebook 11 reads, and not 01, 05: add --only 11"):
        Run("demo-data", asked, ["01", "05", "11"])


def test_a_folder_is_read_before_any_work_starts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "reviews")
    run = Run("demo-data", {"data_dir": str(folder)}, ["11"])
    with pytest.raises(UserError, match="has no user with 18 reviews"):
        check_request(run, ["11"])
    (folder / "Things.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match=r"Things.jsonl cannot be read at line 1"):
        check_request(run, ["11"])
    (folder / "Things.jsonl").write_text("")
    with pytest.raises(UserError, match=r"Things.jsonl is empty"):
        plan_lines(run)
