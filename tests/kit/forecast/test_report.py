"""What a plan says: totals that add up, the same on every machine, and what is not known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit.flops import Tokens, Work
from chameleon_lib.kit.forecast.cell import STAGES
from chameleon_lib.kit.forecast.known import MODELS, data_files
from chameleon_lib.kit.forecast.memory import device_bytes, store_bytes
from chameleon_lib.kit.forecast.report import SPEEDS, Speed, size, text
from chameleon_lib.kit.forecast.scope import Scope
from chameleon_lib.kit.forecast.studies import STUDIES, pieces_of, stage_costs
from chameleon_lib.kit.profiles import PROFILES, PUBLIC

ALL = list(STUDIES)
MISTRAL = MODELS["mistralai/Mistral-7B-Instruct-v0.3"]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_profile_has_all_stages_of_all_backbones(name: str) -> None:
    scope = Scope(PROFILES[name])
    costs = stage_costs(scope, ALL)
    for backbone in scope.profile.studied:
        assert [cost.stage for cost in costs if cost.backbone == backbone] == list(STAGES)
    shown = text(scope, ALL)
    for word in (*STAGES, *scope.profile.backbones, SPEEDS[name].device, "Downloads", "Disk:"):
        assert word in shown
    assert len(shown.splitlines()) < 60 and all(len(line) < 170 for line in shown.splitlines())


def test_notebooks_share_what_is_stored_and_a_stored_notebook_costs_nothing_again() -> None:
    scope = Scope(PROFILES["paper"])
    alone = {n: pieces_of(scope, [n]) for n in ("01", "02")}
    both = pieces_of(scope, ["01", "02"])
    assert both.keys() == alone["01"].keys() | alone["02"].keys()
    assert len(both) < len(alone["01"]) + len(alone["02"])
    flops = sum(cost.flops for cost in stage_costs(scope, ["01", "02"]))
    first = sum(cost.flops for cost in stage_costs(scope, ["01"]))
    assert sum(c.flops for c in stage_costs(scope, ["02"], ["01"])) == pytest.approx(flops - first)
    assert stage_costs(scope, ["01"], ["01"]) == []
    assert stage_costs(scope, ["99"]) == []


def test_users_and_groups_scale_the_counts() -> None:
    full = stage_costs(Scope(PROFILES["paper"]), ["01"])
    few = stage_costs(Scope(PROFILES["paper"], users=100, draws=1), ["01"])
    by_stage = {(c.stage, c.backbone): c for c in few}
    for cost in full:
        assert by_stage[cost.stage, cost.backbone].prompts < cost.prompts or cost.stage in (
            "CCS", "fit",
        )  # fmt: skip
    insights = next(c for c in few if c.stage == "insights")
    assert insights.prompts == 3 * 2 * (100 + 100)  # tasks × roles × train and test users
    pairs = next(c for c in few if c.stage == "pairs")
    assert pairs.prompts == 3 * 2 * (100 + 100)


def test_the_formula_is_two_forward_and_six_for_a_model_trained_whole() -> None:
    n = MISTRAL.weights
    assert Work(Tokens(10, 5)).flops(n) == 2 * n.read * 15
    whole = Work(Tokens(10, 5), Tokens(10, 5), n.total).flops(n)
    assert whole == pytest.approx(6 * n.read * 15)


def test_prompts_that_do_not_fit_are_read_at_every_use() -> None:
    cell = Scope(PROFILES["paper"]).cell(MISTRAL, "LaMP_3")
    assert 0 < cell.kept("instruct", 1000) < 0.02
    cell.exam("x", "instruct", ("a", "b"), 1000)
    read = sum(piece.work.forward.read for piece in cell.pieces.values())
    length, kept = cell.length("instruct"), cell.kept("instruct", 1000)
    assert read == pytest.approx(1000 * length * (kept + 6 * (1 - kept)), rel=1e-3)
    small = Scope(PROFILES["demo"]).cell(MODELS["demo:decoder:0"], "LaMP_3")
    assert small.kept("instruct", 150) == 1


def test_device_memory_follows_the_formula() -> None:
    scope = Scope(PROFILES["paper"])
    found = device_bytes(scope, MISTRAL)
    room = 2 * (MISTRAL.state + 2 * MISTRAL.inner + 4 * MISTRAL.width)
    assert found["asking"] == 2 * MISTRAL.weights.total + (2 << 30) + 32_768 * room
    assert found["ALOE"] == 10 * MISTRAL.weights.total + 8192 * 34 * 4096 * 32
    kept = store_bytes(scope, pieces_of(scope, ["01"]))
    trainings = 3 * 5 * sum(2 * MODELS[b].weights.total + 4 * MODELS[b].adapter
                            for b in scope.profile.studied)  # fmt: skip
    assert kept["trainings"] == trainings


def test_an_unknown_model_is_named_and_nothing_is_made_up_for_it() -> None:
    scope = Scope(replace(PROFILES["laptop"], backbones=("me/mine", "google/flan-t5-base")))
    shown = text(scope, ["01"])
    assert "  me/mine: size unknown" in shown
    assert "Size unknown, not counted: me/mine." in shown


def test_models_in_the_cache_are_said_to_be_there_and_take_no_more_disk() -> None:
    scope = Scope(PROFILES["laptop"])
    assert "in the cache" not in text(scope, ["01"])
    shown = text(scope, ["01"], present=lambda _: True)
    assert "google/flan-t5-base: 990 MB, in the cache already" in shown
    assert "models" not in shown.partition("Disk:")[2].partition("(")[2].split(";")[0]


def test_sizes_of_data_files_say_whether_they_were_seen() -> None:
    files = {file.path: file for file in data_files("LaMP_2")}
    assert files["LaMP_2/new/dev/dev_questions.json"].size == 9_493_217
    assert not files["LaMP_2/new/train/train_questions.json"].seen


@pytest.mark.parametrize("words", ["", "fast", "0", "-3", "nan", "inf", "1,2,3", "5,0"])
def test_a_wrong_throughput_is_refused(words: str) -> None:
    with pytest.raises(UserError, match="--tflops takes TFLOP/s"):
        Speed.parse(words)


def test_a_throughput_changes_hours_alone() -> None:
    scope = Scope(PROFILES["paper"])
    assert Speed.parse("200") == Speed("your device", 2e14, 2e13)
    assert Speed.parse("200,50") == Speed("your device", 2e14, 5e13)
    slow, fast = (text(scope, ["01"], speed=Speed.parse(rate)) for rate in ("100", "1000"))
    assert slow.splitlines()[2].split()[:6] == fast.splitlines()[2].split()[:6]
    assert slow.splitlines()[2].split()[-1] != fast.splitlines()[2].split()[-1]


def test_sizes_are_readable() -> None:
    assert [size(n) for n in (12, 4096, 2.5e6, 1.45e10, 3e12)] == [
        "12 B", "4.1 kB", "2.5 MB", "14.5 GB", "3 TB",
    ]  # fmt: skip
