from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.pairs import PROMPTS, PreparedUser
from chameleon_lib.core.task import User, answer_prompt, official_prompt, unseen_prompt
from chameleon_lib.studies.arms import Exam, Reference, prompt_texts
from chameleon_lib.studies.data import load_task_data, without_gold
from chameleon_lib.studies.study import Study
from tests.backbones.tiny import make_edit
from tests.studies.small import SETTINGS, reference_of, small_profile, study_in, use_small_models


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_models(monkeypatch)


@pytest.fixture
def users() -> list[User]:
    return without_gold(load_task_data(small_profile(), "LaMP_3").train)[:4]


def texts_of(study: Study, prepared: Sequence[PreparedUser], kind: str) -> list[str]:
    return prompt_texts(study.task, prepared, kind, study.settings)


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
    exam = Exam(study, prepared, reference_of(prepared))
    answers = exam.answer(arms)
    assert list(answers) == list(arms)
    more = {"another": ("instruct", make_edit(seed=99))}  # a later draw asks the same prompts
    assert list(exam.answer(more)) == ["another"]
    texts = {kind: texts_of(study, prepared, kind) for kind in ("instruct", "insight")}
    assert read == list(texts.values())
    misses = study.store.stats.misses
    Exam(study, prepared, reference_of(prepared)).answer(arms)
    assert len(read) == 2 and study.store.stats.misses == misses  # nothing missing, nothing read
    for seed in (97, 98):  # a kind that no edit is asked with is not kept from call to call
        exam.answer({"official": ("official", make_edit(seed=seed))})
    assert read[2:] == [texts_of(study, prepared, "official")] * 2
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
    plain = Exam(study, prepared, reference).answer({"plain": ("instruct", None)})["plain"]
    assert np.isnan(plain.margin).tolist() == [True, *[False] * (len(prepared) - 1)]
    read = study.backbone.prepare(texts_of(study, prepared, "instruct"))
    expected = study.backbone.score(read, reference.personal)
    expected = expected - study.backbone.score(read, reference.generic)
    np.testing.assert_allclose(plain.margin[1:], expected.numpy()[1:], atol=1e-5)
    turned = Reference(reference.generic, reference.personal)
    other = Exam(study, prepared, turned).answer({"plain": ("instruct", None)})["plain"]
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
        assert texts_of(study, prepared, kind)[0] == text


def test_an_official_input_of_other_wording_is_another_unit(
    tmp_path: Path, users: list[User]
) -> None:
    study = study_in(tmp_path)
    prepared, _ = study.prepare(users)
    arms: dict[str, tuple[str, Edit | None]] = {"official": ("official", None)}
    Exam(study, prepared, reference_of(prepared)).answer(arms)
    misses = study.store.stats.misses
    reworded = [
        replace(u, user=replace(u.user, queries=tuple(
            replace(query, input=f"Please: {query.input}") for query in u.user.queries
        )))
        for u in prepared
    ]  # fmt: skip
    Exam(study, reworded, reference_of(prepared)).answer(arms)
    assert study.store.stats.misses == misses + 1


def test_insights_of_a_query_stand_in_the_prompts_of_that_query(
    tmp_path: Path, users: list[User]
) -> None:
    study = study_in(tmp_path, SETTINGS.with_(insight_scope="query"))
    prepared, _ = study.prepare(users)
    for kind, role, at in (("insight", "P", 0), ("neutral", "N", 1)):
        expected = [
            answer_prompt("LaMP_3", user.items, query.text, role=role, insight=insights[at])  # type: ignore[arg-type]
            for user in prepared
            for query, insights in zip(user.user.queries, user.query_insights, strict=True)
        ]
        assert texts_of(study, prepared, kind) == expected
