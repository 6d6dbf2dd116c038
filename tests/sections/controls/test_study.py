from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.sections.controls import study as controls
from chameleon_lib.sections.controls.variants import DEFAULT, VARIANTS, Variant
from chameleon_lib.sections.results import Cell, Run
from tests.sections.finished import PROFILE, Finished, units
from tests.sections.small import BACKBONES, SETTINGS, use_small_models

TASK = "LaMP_3"
CHOSEN = (
    "A1 site: gate projection",
    "A3 pair text: answer alone",
    "A12 strength 2",
    "A13 insight in the prompt",
    "A17 eq. 2: nothing centred",
    "B2 insight per query",
    "B3 Instruct without the agent block",
)
IMPOSSIBLE = Variant("A20", "more pairs than there are",
                     (("pairs_k_min", 10**6), ("pairs_on_too_few", "error")))  # fmt: skip
NEVER = Variant("B8", "needs the hub", (("prompts_chat", "raw"),), needs="needs a model of the hub")


def variants() -> tuple[Variant, ...]:
    chosen = (replace(v, needs="") for v in VARIANTS if v.title in CHOSEN)
    return (*chosen, IMPOSSIBLE, NEVER)


@pytest.fixture(scope="module")
def done(finished: Finished) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        use_small_models(patch)
        return controls.run(
            PROFILE,
            SETTINGS,
            variants=variants(),
            tasks=(TASK,),
            store=ArtifactStore(finished.folder),
        )


def cell(run: Run, condition: str) -> Cell:
    [found] = run.of(TASK, "decoder", condition)
    return found


def margins(found: Cell, method: str) -> np.ndarray:
    return np.stack([answers.margin for answers in found.answers[method]])


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return not np.array_equal(one, other, equal_nan=True)


def test_every_runnable_reading_is_a_condition_of_the_studied_backbones(done: Run) -> None:
    assert done.conditions == [DEFAULT, *CHOSEN, IMPOSSIBLE.title]
    assert {c.backbone for c in done.cells} == {BACKBONES[0]}
    assert len({c.scores["instruct"]["valid"].shape for c in done.cells}) == 1


def test_the_default_is_table_1s_edit_on_table_1s_users(done: Run, finished: Finished) -> None:
    table = next(c for c in finished.run.cells if (c.task, c.backbone) == (TASK, BACKBONES[0]))
    assert done.test_users[TASK] == finished.run.test_users[TASK]
    for method in ("instruct", "chameleon", "fitted"):
        mine = cell(done, DEFAULT)
        assert [a.texts for a in mine.answers[method]] == [a.texts for a in table.answers[method]]
        np.testing.assert_array_equal(margins(mine, method), margins(table, method))
    insight = cell(done, "A13 insight in the prompt")
    for mine, theirs in (("chameleon", "chameleon+insight"), ("insight", "insight")):
        np.testing.assert_array_equal(margins(insight, mine), margins(table, theirs))


def test_a_reading_changes_the_edit_and_leaves_instruct_alone(done: Run) -> None:
    default = cell(done, DEFAULT)
    for title in ("A1 site: gate projection", "A3 pair text: answer alone", "A12 strength 2"):
        found = cell(done, title)
        assert differ(margins(found, "chameleon"), margins(default, "chameleon")), title
        assert not differ(margins(found, "instruct"), margins(default, "instruct")), title


def test_instruct_is_asked_again_where_its_own_prompt_changes(done: Run) -> None:
    default = cell(done, DEFAULT)
    for title in ("A17 eq. 2: nothing centred", "B3 Instruct without the agent block"):
        assert differ(margins(cell(done, title), "instruct"), margins(default, "instruct")), title
    same = cell(done, "B2 insight per query")
    assert not differ(margins(same, "instruct"), margins(default, "instruct"))


def test_the_pairs_are_made_anew_only_where_a_reading_decides_them(done: Run) -> None:
    edits = {name: margins(cell(done, name), "chameleon") for name in done.conditions[:-1]}
    assert differ(edits["B2 insight per query"], edits[DEFAULT])
    logs = [cell(done, name).draws[0] for name in (DEFAULT, "B3 Instruct without the agent block")]
    assert logs[0] == logs[1] and logs[0]["kept"] > 0 and logs[0]["layers"]


def test_the_fitted_edit_is_scaled_with_the_strength_and_fitted_once(done: Run) -> None:
    strong, default = cell(done, "A12 strength 2"), cell(done, DEFAULT)
    assert differ(margins(strong, "fitted"), margins(default, "fitted"))
    with_fit = [c.condition for c in done.cells if "fitted" in c.answers]
    assert with_fit == [DEFAULT, "A12 strength 2"]


def test_a_reading_that_gives_no_edit_says_so(done: Run) -> None:
    found = cell(done, IMPOSSIBLE.title)
    assert "chameleon" not in found.answers
    assert ["pairs" in log["refused"] for log in found.draws] == [True]


def test_a_gate_that_shuts_everything_leaves_the_model_as_it_is(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    stored = controls.stored_edit

    def shut(*inputs: Any) -> Any:
        edit = stored(*inputs)
        object.__setattr__(edit, "gate_p", edit.gate_p & False)
        object.__setattr__(edit, "gate_n", edit.gate_n & False)
        return edit

    monkeypatch.setattr(controls, "stored_edit", shut)
    store = ArtifactStore(finished.folder)
    [only] = controls.run(PROFILE, SETTINGS, variants=(), tasks=(TASK,), store=store).cells
    assert only.draws[0]["layers"] == []
    assert only.answers["chameleon"][0].texts == only.answers["instruct"][0].texts


def test_the_same_study_again_computes_nothing(
    done: Run, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_models(monkeypatch)
    before = units(finished.folder)
    again = controls.run(
        PROFILE, SETTINGS, variants=variants(), tasks=(TASK,), store=ArtifactStore(finished.folder)
    )
    assert units(finished.folder) == before
    assert [c.draws for c in again.cells] == [c.draws for c in done.cells]
