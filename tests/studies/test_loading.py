from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chameleon_lib import demo
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.studies import study as loading
from chameleon_lib.studies.study import SIZES, open_backbone, settings_for

LAPTOP = PROFILES["laptop"]


def test_the_demo_profile_limits_answers_and_the_others_keep_the_papers_settings() -> None:
    assert settings_for(PROFILES["demo"]).decode_max_new_tokens == 48
    assert settings_for(PROFILES["demo-data"]).decode_max_new_tokens == 96
    laptop = settings_for(LAPTOP)
    assert (laptop.prompts_item_words, laptop.decode_insight_tokens) == (24, 48)
    smaller = {"group_draws": 1, "group_seeds": (0,)}
    smaller |= {"prompts_item_words": 24, "decode_insight_tokens": 48}
    assert laptop == EditSettings().with_(**smaller)
    assert settings_for(PROFILES["paper"], edit_alpha_p=2.0).edit_alpha_p == 2.0
    small = replace(PROFILES["demo"], group_size=7)
    assert settings_for(small).group_size == 7
    with pytest.raises(UserError, match="no field 'alpha'"):
        settings_for(PROFILES["demo"], alpha=1)


def test_a_profile_decides_groups_and_precision_and_nothing_else_of_the_method() -> None:
    found = settings_for(PROFILES["paper"])
    assert (found.group_draws, found.group_seeds) == (3, (0, 1, 2))
    assert found.model_dtype == "bfloat16"
    assert found.with_(model_dtype="auto") == EditSettings()


def test_a_size_belongs_to_a_profile_and_a_change_of_the_caller_wins() -> None:
    assert set(SIZES) <= set(PROFILES)
    assert settings_for(PROFILES["demo"], decode_max_new_tokens=5).decode_max_new_tokens == 5


def test_a_hub_model_is_opened_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    opened = SimpleNamespace()

    def load(source: str, **options: Any) -> SimpleNamespace:
        asked.update(options, source=source)
        return opened

    monkeypatch.setattr(loading, "_latest", {})
    monkeypatch.setattr(loading, "load_backbone", load)
    settings = EditSettings(model_dtype="bfloat16", prompts_chat="raw")
    profile = replace(
        PROFILES["paper"], quantization="nf4", revisions=(("someone/model-1b", "v1"),)
    )
    found: object = open_backbone("someone/model-1b", settings, profile)
    assert found is opened
    assert (asked["source"], asked["name"]) == ("someone/model-1b", "model-1b")
    assert (asked["dtype"], asked["prompts_chat"]) == ("bfloat16", "raw")
    assert (asked["quantization"], asked["revision"]) == ("nf4", "v1")
    assert asked["device_map"] == ("auto" if torch.cuda.is_available() else None)
    assert asked["lock"] == paths.outputs_dir("paper") / "revisions.json"
    open_backbone("someone/model-1b", settings, PROFILES["paper"])
    assert (asked["quantization"], asked["revision"]) == ("none", None)


def test_a_hub_model_is_kept_until_another_load_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Model:
        """Something that a weak reference can watch."""

    alive: list[weakref.ref[Model]] = []

    def load(_source: str, **_options: Any) -> Model:
        assert not any(one() for one in alive), "two models at once"
        model = Model()
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(loading, "_latest", {})
    monkeypatch.setattr(loading, "load_backbone", load)
    bf16, raw = EditSettings(model_dtype="bfloat16"), EditSettings(prompts_chat="raw")
    for settings in (EditSettings(), EditSettings(pairs_text="answer_only", seed=7)):
        open_backbone("a/model", settings, LAPTOP)
    assert len(alive) == 1
    for backbone_id, settings in (("a/model", bf16), ("a/model", raw), ("b/model", raw)):
        open_backbone(backbone_id, settings, LAPTOP)
        assert open_backbone(backbone_id, settings, LAPTOP) is alive[-1]()
    assert len(alive) == 4


def test_an_absent_embedded_model_is_one_sentence_with_the_command_that_trains_it() -> None:
    with pytest.raises(UserError, match="train --family decoder --seed 999") as caught:
        open_backbone("demo:decoder:999", EditSettings(), PROFILES["demo"])
    assert ". " not in str(caught.value)


@pytest.mark.parametrize("family", demo.FAMILIES)
def test_an_embedded_model_is_opened_once_and_speaks(family: str) -> None:
    try:
        folder: Path = demo.checkpoint(family, 0)
    except UserError as absent:
        pytest.skip(str(absent))
    backbone = open_backbone(f"demo:{family}:0", settings_for(PROFILES["demo"]), PROFILES["demo"])
    assert backbone is open_backbone(f"demo:{family}:0", EditSettings(), PROFILES["demo"])
    assert backbone.name == f"demo:{family}:0" and (folder / "model.safetensors").is_file()
    [said] = backbone.generate(["Question: say something. Your answer:"], max_new_tokens=8)
    assert isinstance(said, str)


@pytest.mark.parametrize("name", ["demo:decoder", "demo:", "demo:a:b:c"])
def test_a_name_that_is_no_embedded_model_is_refused_with_the_form_of_one(name: str) -> None:
    with pytest.raises(UserError, match="say demo:<family>:<seed>"):
        open_backbone(name, EditSettings(), PROFILES["demo"])
