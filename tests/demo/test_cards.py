"""Model cards say what the folder and the acceptance table say, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit.stats import Estimate
from workshop import acceptance, cards
from workshop.cards import card_text, read_rows, write_cards
from workshop.examples import TrainSettings
from workshop.models import build_model, build_tokenizer

ROWS = [
    acceptance.Row("decoder:0", "LaMP-2", "valid answers", Estimate(0.99, 0.98, 1.0, 200, 1),
                   ">= 0.98", True),
    acceptance.Row("decoder:0", "LaMP-2", "margin", Estimate(-0.9, -1.0, -0.8, 150, 1),
                   "within 0.7", False),
    acceptance.Row("decoder:0", "LaMP-2", "ceiling", Estimate(0.96, 0.93, 0.98, 200, 1), "", None),
    acceptance.Row("encdec:1", "LaMP-3", "control", Estimate(-0.5, -0.6, -0.4, 200, 3), "< 0",
                   True),
]  # fmt: skip


def checkpoint(base: Path, family: str, seed: int = 0, **extra: object) -> Path:
    """Configuration and settings of a model as training writes them, without weights."""
    settings = TrainSettings(family=family, seed=seed, steps=1234, batch=16)
    folder = base / f"{family}-{seed}"
    build_model(family, seed, build_tokenizer()).config.save_pretrained(folder)
    text = json.dumps({**asdict(settings), **extra})
    (folder / "training.json").write_text(text, encoding="utf-8")
    return folder


def rows_of(model: str, base: Path) -> list[dict[str, str]]:
    path = base / "acceptance.csv"
    path.write_text(acceptance.table_text(ROWS), encoding="utf-8")
    return read_rows(path)[model]


def test_skills_are_the_rows_of_this_model_with_failures_in_plain_sight(tmp_path: Path) -> None:
    text = card_text(checkpoint(tmp_path, "decoder"), rows_of("decoder:0", tmp_path))
    assert "| LaMP-2 | valid answers | 0.990 [0.980, 1.000] | 200 | 1 | >= 0.98 | yes |" in text
    assert "| LaMP-2 | margin | −0.900 [−1.000, −0.800] | 150 | 1 | within 0.7 | **no** |" in text
    assert "| LaMP-2 | ceiling | 0.960 [0.930, 0.980] | 200 | 1 | – | – |" in text
    assert "1 of 2 goals met" in text and "LaMP-3 | control" not in text


def test_every_folder_gets_its_own_rows_and_nothing_else_is_touched(tmp_path: Path) -> None:
    checkpoint(tmp_path, "decoder")
    checkpoint(tmp_path, "encdec", seed=1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "encdec-0").mkdir()  # an unfinished training has no config.json
    rows_of("decoder:0", tmp_path)
    assert [card.parent.name for card in write_cards(tmp_path)] == ["decoder-0", "encdec-1"]
    assert "| LaMP-3 | control |" in (tmp_path / "encdec-1" / "README.md").read_text("utf-8")
    assert "| LaMP-2 | ceiling |" in (tmp_path / "decoder-0" / "README.md").read_text("utf-8")
    assert len(list(tmp_path.rglob("README.md"))) == 2
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_missing_table_or_an_old_training_record_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="acceptance.csv is not here; run 'python -m"):
        write_cards(tmp_path)
    (tmp_path / "acceptance.csv").write_text("model,task\n", encoding="utf-8")
    with pytest.raises(UserError, match="lacks the columns ci_high"):
        write_cards(tmp_path)
    folder = checkpoint(tmp_path, "decoder")
    (folder / "training.json").write_text('{"family": "decoder", "seed": 0}', encoding="utf-8")
    with pytest.raises(UserError, match="training.json lacks batch, curriculum, lr"):
        card_text(folder, [])


@pytest.mark.parametrize("name", ["decoder-0", "decoder-1", "encdec-0", "encdec-1"])
def test_a_shipped_card_is_what_the_code_that_trains_says(name: str) -> None:
    rows = read_rows(cards.HERE / "acceptance.csv")[name.replace("-", ":")]
    text = card_text(cards.HERE / name, rows)
    assert text == (cards.HERE / name / "README.md").read_text("utf-8")
