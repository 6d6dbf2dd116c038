from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chameleon_lib.core import stages as stages_module
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.task import User
from chameleon_lib.errors import UserError
from chameleon_lib.studies import study as study_module
from chameleon_lib.studies.arms import Exam
from chameleon_lib.studies.data import load_task_data, without_gold
from chameleon_lib.studies.run import Answers
from chameleon_lib.studies.study import Study
from tests.backbones.tiny import make_edit
from tests.demo.small import HashEmbedder, small_backbone
from tests.studies.small import SETTINGS, reference_of, small_profile, study_in, use_small_models

PROFILE = small_profile()
STAGES = ("select", "insights", "pairs", "activations", "answers")


@pytest.fixture(autouse=True)
def embedder(monkeypatch: pytest.MonkeyPatch) -> HashEmbedder:
    return use_small_models(monkeypatch)


@pytest.fixture
def users() -> list[User]:
    return without_gold(load_task_data(PROFILE, "LaMP_3").train)[:4]


def through(study: Study, users: Sequence[User]) -> tuple[Any, ...]:
    """Every stage once."""
    prepared, _ = found = study.prepare(users)
    pairs = study.pairs(prepared)
    h_p, h_n = study.activations(pairs)
    arms: dict[str, tuple[str, Edit | None]] = {
        "plain": ("instruct", None),
        "edited": ("instruct", make_edit()),
    }
    answers = Exam(study, prepared, reference_of(prepared)).answer(arms)
    return prepared, found.counts, pairs, h_p, h_n, answers


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
    # Who finds a selection does not look for the embeddings behind it.
    found = first.store.stats.misses - len(users)
    assert (second.store.stats.misses, second.store.stats.hits) == (0, found)
    assert len(embedder.texts) == embedded
    assert stored[:3] == fresh[:3]
    assert torch.equal(stored[3], fresh[3]) and torch.equal(stored[4], fresh[4])
    assert same_answers(stored[5], fresh[5])


def test_a_killed_stage_goes_on_with_what_is_missing(
    tmp_path: Path, users: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One user per unit batch; the third insight call dies."""
    whole = through(study_in(tmp_path / "whole"), users)
    monkeypatch.setattr(stages_module, "_BATCH", 1)
    write, calls = stages_module.write_insights, []

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(stages_module, "write_insights", dying)
    with pytest.raises(KeyboardInterrupt):
        through(study_in(tmp_path / "killed"), users)
    assert len(list((tmp_path / "killed" / "insights").rglob("*.unit"))) == 2
    resumed = through(study_in(tmp_path / "killed"), users)
    assert len(calls) == 5  # two before the kill, the one that died, the two that were missing
    assert resumed[:3] == whole[:3]
    torch.testing.assert_close(resumed[3], whole[3], atol=1e-5, rtol=1e-5)


def test_a_bound_on_the_pairs_of_a_fit_is_refused_where_nothing_would_heed_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="pairs_k_max belongs to Chameleon.fit"):
        study_in(tmp_path, SETTINGS.with_(pairs_k_max=40))


CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"ccs_epochs": 21, "fit_steps": 3, "group_size": 5, "seed": 1}, set()),
    ({"embed_pooling": "mean_answer"}, {"activations"}),
    ({"pairs_text": "answer_only"}, {"activations"}),
    ({"edit_site": "block_out"}, {"activations"}),
    ({"pairs_k_min": 1, "edit_alpha_p": 2.0}, set()),
    ({"insight_scope": "query"}, {"insights", "query_insights", "pairs"}),
    ({"decode_seed": 5}, {"insights", "pairs", "answers"}),
    ({"selection_norm": "l1", "selection_center": "none", "selection_k": 2}, set(STAGES)),
]


@pytest.mark.parametrize(("changes", "stages"), CHANGES)
def test_a_changed_setting_computes_only_the_stages_that_read_it(
    changes: dict[str, Any], stages: set[str], tmp_path: Path, users: list[User]
) -> None:
    def units() -> dict[str, int]:
        stages = ("embed", *STAGES, "query_insights")
        return {stage: len(list((tmp_path / stage).rglob("*.unit"))) for stage in stages}

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
    assert more.store.stats.misses == 3  # embedding, selection and insights of the new user alone
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


def test_pairs_under_other_insights_of_a_query_are_other_units(
    tmp_path: Path, users: list[User]
) -> None:
    study = study_in(tmp_path, SETTINGS.with_(insight_scope="query"))
    kept, _ = study.prepare(users)
    study.pairs(kept)
    misses = study.store.stats.misses
    [user] = kept[:1]
    study.pairs([replace(user, query_insights=(("other", "words"),) * len(user.user.queries))])
    assert study.store.stats.misses == misses + 1


def test_the_selection_rule_decides_what_is_embedded_and_what_a_unit_depends_on(
    tmp_path: Path, users: list[User], embedder: HashEmbedder
) -> None:
    def reworded(user: User) -> User:
        return replace(user, queries=tuple(replace(q, text=f"{q.text}?") for q in user.queries))

    items = {item.text for user in users for item in user.history}
    queries = {query.text for user in users for query in user.queries}
    embeds = {"pca": items, "nearest": items | queries}
    chosen = {}
    for rule in ("pca", "nearest", "random", "recent"):
        embedder.texts.clear()
        settings = SETTINGS.with_(selection_rule=rule, selection_item_text="body")
        study = study_in(tmp_path / rule, settings)
        chosen[rule] = study.select(users)
        assert set(embedder.texts) == embeds.get(rule, set())
        units = {"pca": 2, "nearest": 3}.get(rule, 1)  # the choice, the items, the queries
        assert study.store.stats.misses == units * len(users)
        study.select([reworded(user) for user in users])
        again = 2 if rule == "nearest" else 0  # the choice and the queries
        assert study.store.stats.misses == (units + again) * len(users)
        assert all(len(indices) == 3 for indices in chosen[rule])
        assert study_in(tmp_path / "alone", settings).select(users[2:3]) == chosen[rule][2:3]
    assert chosen["recent"] == [[len(u.history) - at for at in (3, 2, 1)] for u in users]
    assert len({str(indices) for indices in chosen.values()}) == 4
