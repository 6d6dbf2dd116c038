"""Model cards say what the folder and the acceptance table say, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from chameleon_lib.backbones.demo import acceptance, cards
from chameleon_lib.backbones.demo.architectures import build_model
from chameleon_lib.backbones.demo.cards import card_text, read_rows, write_cards
from chameleon_lib.backbones.demo.recipe import TrainSettings
from chameleon_lib.backbones.demo.tokenizer import build_tokenizer
from chameleon_lib.errors import UserError
from chameleon_lib.kit.bootstrap import Estimate

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
    build_model(settings, build_tokenizer()).config.save_pretrained(folder)
    text = json.dumps({**asdict(settings), **extra})
    (folder / "training.json").write_text(text, encoding="utf-8")
    return folder


def rows_of(model: str, base: Path) -> list[dict[str, str]]:
    path = base / "acceptance.csv"
    path.write_text(acceptance.table_text(ROWS), encoding="utf-8")
    return read_rows(path)[model]


@pytest.mark.parametrize("family", ["decoder", "encdec"])
def test_the_parameter_count_is_that_of_the_model(tmp_path: Path, family: str) -> None:
    model = build_model(TrainSettings(family=family), build_tokenizer())
    text = card_text(checkpoint(tmp_path, family), [])
    assert f"({sum(p.numel() for p in model.parameters()):,} parameters" in text


@pytest.mark.parametrize("family", ["decoder", "encdec"])
def test_the_header_is_yaml_with_licence_and_tags(tmp_path: Path, family: str) -> None:
    _, header, body = card_text(checkpoint(tmp_path, family), []).split("---\n", 2)
    record = yaml.safe_load(header)
    assert record["license"] == "mit" and "synthetic-data" in record["tags"]
    assert body.lstrip().startswith("# Embedded demo ")


def test_the_recipe_and_the_commands_are_those_of_the_run(tmp_path: Path) -> None:
    text = card_text(checkpoint(tmp_path, "encdec", seed=1), [])
    assert "- 1234 steps, batch 16 prompts; seed 1." in text
    assert "python -m chameleon_lib train --family encdec --seed 1\n" in text
    assert "python -m chameleon_lib acceptance --save\n" in text
    assert "Muon" in text and "AdamW" in text


def test_wall_time_is_stated_only_where_it_was_measured(tmp_path: Path) -> None:
    assert "minutes" not in card_text(checkpoint(tmp_path / "a", "decoder"), [])
    timed = card_text(checkpoint(tmp_path / "b", "decoder", minutes=41.7), [])
    assert "Wall time, as measured: 42 minutes." in timed


def test_skills_are_the_rows_of_this_model_with_failures_in_plain_sight(tmp_path: Path) -> None:
    text = card_text(checkpoint(tmp_path, "decoder"), rows_of("decoder:0", tmp_path))
    assert "| LaMP-2 | valid answers | 0.990 [0.980, 1.000] | 200 | 1 | >= 0.98 | yes |" in text
    assert "| LaMP-2 | margin | −0.900 [−1.000, −0.800] | 150 | 1 | within 0.7 | **no** |" in text
    assert "| LaMP-2 | ceiling | 0.960 [0.930, 0.980] | 200 | 1 | – | – |" in text
    assert "1 of 2 goals met" in text and "LaMP-3 | control" not in text


def test_a_model_without_rows_says_that_it_was_not_measured(tmp_path: Path) -> None:
    text = card_text(checkpoint(tmp_path, "decoder"), [])
    assert "Not measured yet" in text and "| skill |" not in text


def test_limits_are_stated_and_the_auxiliary_tasks_are_the_encoder_decoders(tmp_path: Path) -> None:
    texts = {family: card_text(checkpoint(tmp_path, family), []) for family in cards.FAMILIES}
    for text in texts.values():
        assert "says nothing about Mistral-7B or Flan-T5-XXL" in text
    assert "Steered start token" in texts["encdec"] and "Label infilling" in texts["encdec"]
    assert "`<extra_id_14>` or `<extra_id_15>`" in texts["encdec"]
    assert "forced into the decoder" in texts["encdec"]
    assert "Edit lessons" in texts["encdec"] and "by construction" in texts["encdec"]
    assert "start token" not in texts["decoder"] and "infilling" not in texts["decoder"]


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


def test_saving_an_acceptance_table_writes_the_cards_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(acceptance, "TABLE", tmp_path / "acceptance.csv")
    monkeypatch.setattr(acceptance, "load_embedder", lambda **_: None)
    monkeypatch.setattr(acceptance, "load_backbone", lambda *_, **__: None)
    monkeypatch.setattr(acceptance, "measure", lambda *_: ROWS[:1])
    monkeypatch.setattr(
        acceptance,
        "write_cards",
        lambda: seen.append((tmp_path / "acceptance.csv").read_text("utf-8")),
    )
    words = ["--folder", str(tmp_path), "--tasks", "LaMP_2"]
    assert acceptance.main(words) == 0 and seen == []
    assert acceptance.main([*words, "--save"]) == 0
    assert len(seen) == 1 and "valid answers" in seen[0]
