from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.preferences import PreparedUser
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.lamp.prompts import answer_prompt, official_prompt, unseen_prompt
from chameleon_lib.lamp.records import User
from chameleon_lib.sections import study as study_module
from chameleon_lib.sections.data import load_task_data, without_gold
from chameleon_lib.sections.study import PROMPTS, Answers, Reference, Study
from tests.backbones.demo.small import HashEmbedder, small_backbone
from tests.backbones.tiny import make_edit
from tests.sections.small import SETTINGS, small_profile, use_small_models

PROFILE = small_profile()
STAGES = ("select", "insights", "pairs", "activations", "answers")


@pytest.fixture(autouse=True)
def embedder(monkeypatch: pytest.MonkeyPatch) -> HashEmbedder:
    return use_small_models(monkeypatch)


@pytest.fixture
def users() -> list[User]:
    return without_gold(load_task_data(PROFILE, "LaMP_3").train)[:4]


def study_in(folder: Path, settings: EditSettings = SETTINGS, family: str = "decoder") -> Study:
    return Study(PROFILE, f"demo:{family}:0", "LaMP_3", settings, ArtifactStore(folder))


def reference_of(prepared: Sequence[PreparedUser]) -> Reference:
    queries = [query for user in prepared for query in user.user.queries]
    return Reference(["4"] * len(queries), ["4", *["2"] * (len(queries) - 1)])


def through(study: Study, users: Sequence[User]) -> tuple[Any, ...]:
    """Every stage once."""
    prepared, counts = study.prepare(users)
    pairs = study.pairs(prepared)
    h_p, h_n = study.activations(pairs)
    arms: dict[str, tuple[str, Edit | None]] = {
        "plain": ("instruct", None),
        "edited": ("instruct", make_edit()),
    }
    answers = study.answer(prepared, arms, reference_of(prepared))
    return prepared, counts, pairs, h_p, h_n, answers


def same_answers(one: dict[str, Answers], other: dict[str, Answers]) -> bool:
    return list(one) == list(other) and all(
        one[name].texts == other[name].texts
        and np.array_equal(one[name].margin, other[name].margin, equal_nan=True)
        for name in one
    )


@pytest.mark.parametrize("family", ["decoder", "encdec"])
def test_a_second_study_computes_nothing_and_says_the_same(
    family: str, tmp_path: Path, users: list[User], embedder: HashEmbedder
) -> None:
    first = study_in(tmp_path, family=family)
    fresh = through(first, users)
    assert first.store.stats.hits == 0 and first.store.stats.misses > 4 * len(STAGES[:4])
    embedded = len(embedder.texts)
    second = study_in(tmp_path, family=family)
    stored = through(second, users)
    assert (second.store.stats.misses, second.store.stats.hits) == (0, first.store.stats.misses)
    assert len(embedder.texts) == embedded
    assert stored[:3] == fresh[:3]
    assert torch.equal(stored[3], fresh[3]) and torch.equal(stored[4], fresh[4])
    assert same_answers(stored[5], fresh[5])


def test_a_killed_stage_goes_on_with_what_is_missing(
    tmp_path: Path, users: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One user per unit batch; the third insight call dies."""
    whole = through(study_in(tmp_path / "whole"), users)
    monkeypatch.setattr(study_module, "_UNIT", 1)
    write, calls = study_module.write_insights, []

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(study_module, "write_insights", dying)
    with pytest.raises(KeyboardInterrupt):
        through(study_in(tmp_path / "killed"), users)
    assert len(list((tmp_path / "killed" / "insights").rglob("*.unit"))) == 2
    resumed = through(study_in(tmp_path / "killed"), users)
    assert len(calls) == 5  # two before the kill, the one that died, the two that were missing
    assert resumed[:3] == whole[:3]
    torch.testing.assert_close(resumed[3], whole[3], atol=1e-5, rtol=1e-5)


CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"ccs_epochs": 21, "fit_steps": 3, "group_size": 5, "seed": 1}, set()),
    ({"embed_pooling": "mean_answer"}, {"activations"}),
    ({"pairs_text": "answer_only"}, {"activations"}),
    ({"edit_site": "block_out"}, {"activations"}),
    ({"pairs_k_min": 1, "edit_alpha_p": 2.0}, set()),
    ({"insight_scope": "query"}, {"insights", "pairs"}),
    ({"decode_seed": 5}, {"insights", "pairs", "answers"}),
    ({"selection_norm": "l1", "selection_center": "none", "selection_k": 2}, set(STAGES)),
]


@pytest.mark.parametrize(("changes", "stages"), CHANGES)
def test_a_changed_setting_computes_only_the_stages_that_read_it(
    changes: dict[str, Any], stages: set[str], tmp_path: Path, users: list[User]
) -> None:
    def units() -> dict[str, int]:
        return {s: len(list((tmp_path / s).rglob("*.unit"))) for s in STAGES}

    through(study_in(tmp_path), users)
    before = units()
    through(study_in(tmp_path, SETTINGS.with_(**changes)), users)
    grown = {stage for stage, count in units().items() if count > before[stage]}
    # Other pairs may be read further down: their own text decides, not the setting.
    assert grown - ({"activations"} if "pairs" in stages else set()) == stages - (
        {"activations"} if "pairs" in stages else set()
    )


def test_another_backbone_or_user_is_another_unit(
    tmp_path: Path, users: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    through(study_in(tmp_path), users)
    more = study_in(tmp_path)
    more.prepare([*users, *without_gold(load_task_data(PROFILE, "LaMP_3").test)[:1]])
    assert more.store.stats.misses == 2  # selection and insights of the new user alone
    monkeypatch.setattr(study_module, "open_backbone", lambda *_: small_backbone(seed=1))
    other = study_in(tmp_path)
    other.prepare(users)
    assert (other.store.stats.hits, other.store.stats.misses) == (4, 4)  # selection knows no model


def test_golds_are_no_part_of_a_unit(tmp_path: Path) -> None:
    with_gold = list(load_task_data(PROFILE, "LaMP_3").train[:4])
    first = through(study_in(tmp_path), with_gold)
    blind = study_in(tmp_path)
    again = through(blind, without_gold(with_gold))
    assert blind.store.stats.misses == 0
    assert again[2] == first[2] and same_answers(again[5], first[5])


def test_every_prompt_kind_is_read_once_however_many_arms_ask_with_it(
    tmp_path: Path, users: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_in(tmp_path)
    prepared, _ = study.prepare(users)
    read: list[list[str]] = []
    prepare = HFBackbone.prepare

    def counting(self: HFBackbone, prompts: Sequence[str], **kwargs: Any) -> Any:
        read.append(list(prompts))
        return prepare(self, prompts, **kwargs)

    monkeypatch.setattr(HFBackbone, "prepare", counting)
    edits = [make_edit(seed=seed) for seed in range(10)]  # more arms than one store batch holds
    arms: dict[str, tuple[str, Edit | None]] = {
        f"edit{at}": ("instruct", edit) for at, edit in enumerate(edits)
    }
    arms |= {"plain": ("instruct", None), "insight": ("insight", None)}
    answers = study.answer(prepared, arms, reference_of(prepared))
    assert list(answers) == list(arms)
    assert read == [study.prompt_texts(prepared, kind) for kind in ("instruct", "insight")]
    monkeypatch.undo()
    alone = study.backbone.generate(read[0], max_new_tokens=4)
    edited = study.backbone.generate(read[0], max_new_tokens=4, edit=edits[3])
    assert answers["plain"].texts == alone and answers["edit3"].texts == edited


def test_a_margin_compares_two_answers_and_is_undefined_where_they_agree(
    tmp_path: Path, users: list[User]
) -> None:
    study = study_in(tmp_path)
    prepared, _ = study.prepare(users)
    reference = reference_of(prepared)
    plain = study.answer(prepared, {"plain": ("instruct", None)}, reference)["plain"]
    assert np.isnan(plain.margin).tolist() == [True, *[False] * (len(prepared) - 1)]
    read = study.backbone.prepare(study.prompt_texts(prepared, "instruct"))
    expected = study.backbone.score(read, reference.personal)
    expected = expected - study.backbone.score(read, reference.generic)
    np.testing.assert_allclose(plain.margin[1:], expected.numpy()[1:], atol=1e-5)
    turned = Reference(reference.generic, reference.personal)
    other = study.answer(prepared, {"plain": ("instruct", None)}, turned)["plain"]
    np.testing.assert_allclose(other.margin[1:], -plain.margin[1:], atol=1e-5)


def test_each_prompt_kind_is_the_template_of_its_name(tmp_path: Path, users: list[User]) -> None:
    study = study_in(tmp_path)
    prepared, _ = study.prepare(users)
    user = prepared[0]
    query, items = user.user.queries[0], user.items
    expected = {
        "instruct": answer_prompt("LaMP_3", items, query.text, role="P", insight=None),
        "insight": answer_prompt("LaMP_3", items, query.text, role="P", insight=user.insight_p),
        "neutral": answer_prompt("LaMP_3", items, query.text, role="N", insight=user.insight_n),
        "official": official_prompt("LaMP_3", (), query),
        "official_history": official_prompt("LaMP_3", items, query),
        "unseen": unseen_prompt("LaMP_3", query.text),
    }
    assert set(expected) == set(PROMPTS)
    for kind, text in expected.items():
        assert study.prompt_texts(prepared, kind)[0] == text


def test_an_official_input_of_other_wording_is_another_unit(
    tmp_path: Path, users: list[User]
) -> None:
    study = study_in(tmp_path)
    prepared, _ = study.prepare(users)
    arms: dict[str, tuple[str, Edit | None]] = {"official": ("official", None)}
    study.answer(prepared, arms, reference_of(prepared))
    misses = study.store.stats.misses
    reworded = [
        replace(u, user=replace(u.user, queries=tuple(
            replace(query, input=f"Please: {query.input}") for query in u.user.queries
        )))
        for u in prepared
    ]  # fmt: skip
    study.answer(reworded, arms, reference_of(prepared))
    assert study.store.stats.misses == misses + 1


def test_users_are_counted_where_they_drop_out(
    tmp_path: Path, users: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent_once(_backbone: Any, _task: str, histories: Sequence[Any], _: Any) -> Any:
        return [("", "n"), *[("p", "n")] * (len(histories) - 1)]

    monkeypatch.setattr(study_module, "write_insights", silent_once)
    kept, counts = study_in(tmp_path / "a").prepare(users)
    assert [user.user.id for user in kept] == [user.id for user in users[1:]]
    assert counts == {"users": 4, "too_long": 0, "empty_insight": 1, "dropped_items": 0}
    monkeypatch.setattr(study_module, "open_backbone", lambda *_: small_backbone(context=16))
    kept, counts = study_in(tmp_path / "b").prepare(users)
    assert kept == [] and counts["too_long"] == 4
