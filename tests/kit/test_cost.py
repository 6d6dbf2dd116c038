"""What a plan says: the counted demo run itself, and how it grows with another size."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.kit import paths
from chameleon_lib.kit.cost import (
    ARMS_AT_ONCE,
    COUNTS,
    ITEM,
    LENGTHS,
    OTHER,
    PADDED,
    SPEEDS,
    STAGES,
    WORD,
    Scope,
    Speed,
    costs,
    speed_of,
    store_bytes,
)
from chameleon_lib.kit.flops import Tokens, Work
from chameleon_lib.kit.forecast import APART, UNCOUNTED, size, text
from chameleon_lib.kit.models import MODELS, device_bytes
from chameleon_lib.kit.notebooks import discover
from chameleon_lib.kit.profiles import PROFILES, PUBLIC

NOTEBOOKS = discover(paths.notebooks_dir())
ALL = [notebook.number for notebook in NOTEBOOKS]
DESIGNS = {notebook.number: notebook.facts.get("cost", {}) for notebook in NOTEBOOKS}
MISTRAL = MODELS["mistralai/Mistral-7B-Instruct-v0.3"]


def scope_of(name: str, **changes: int) -> Scope:
    return Scope(PROFILES[name], designs=DESIGNS, **changes)  # type: ignore[arg-type]


def total(scope: Scope, notebooks: list[str], stored: tuple[str, ...] = ()) -> float:
    return sum(cost.flops for cost in costs(scope, notebooks, stored))


def test_the_demo_costs_what_was_counted() -> None:
    with COUNTS.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    found = costs(scope_of("demo"), ALL)
    for name in PROFILES["demo"].backbones:
        mine = [row for row in rows if row["backbone"] == name]
        for field in ("read", "scored", "written"):
            counted = sum(int(row[field]) for row in mine)
            scaled = sum(getattr(cost, field) for cost in found if cost.model.id == name)
            assert scaled == pytest.approx(counted, rel=1e-6), (name, field)
    hours = SPEEDS["demo"].hours(found)
    assert 0.2 < hours < 1.0  # of one core: a cold run takes a quarter of an hour on two


@pytest.mark.parametrize("name", PUBLIC)
def test_every_profile_has_all_stages_of_all_backbones(name: str) -> None:
    scope = scope_of(name)
    found = costs(scope, ALL)
    for backbone in scope.profile.studied:
        stages = {cost.stage for cost in found if cost.model.id == backbone}
        left_out = set() if scope.profile.trains else {"ALOE", "DPO"}
        assert stages - {OTHER} == {*STAGES.values()} - left_out
    shown = text(scope, ALL)
    device = speed_of(scope.profile).device
    for word in (*STAGES.values(), *scope.profile.backbones, device, "Disk:"):
        assert word in shown
    assert ("is estimated, not counted." in shown) == (name != "demo")
    assert len(shown.splitlines()) < 60 and all(len(line) < 170 for line in shown.splitlines())


def test_a_plan_counts_the_queries_that_a_data_folder_holds() -> None:
    """Table 1 of the small run on the files of two tasks is what an hour on two cores allows."""
    whole = scope_of("small")
    here = replace(whole, found={"LaMP_7": (600, 750), "LaMP_3": (24, 30)})
    assert here.tasks == ("LaMP_7", "LaMP_3") and here.there("LaMP_7") == (40, 100)
    assert here.there("LaMP_3") == (24, 30) and replace(here, users=5).there("LaMP_3") == (5, 5)
    hours = [SPEEDS["small"].hours(costs(scope, ["01"])) for scope in (here, whole)]
    assert hours[0] < 1.0 < hours[1]
    assert "ALOE and DPO are left out" in text(here, ["01"])


def test_notebooks_share_what_is_stored_and_a_stored_notebook_costs_nothing_again() -> None:
    scope = scope_of("paper")
    one, two, both = (total(scope, numbers) for numbers in (["01"], ["02"], ["01", "02"]))
    assert max(one, two) < both < one + two
    assert total(scope, ["02"], ("01",)) == pytest.approx(both - one)
    assert costs(scope, ["01"], ["01"]) == [] and costs(scope, ["99"]) == []


def test_users_and_groups_scale_the_counts() -> None:
    full, few = scope_of("paper"), scope_of("paper", users=100, draws=1)

    def units(scope: Scope, stage: str) -> float:
        return sum(cost.units for cost in costs(scope, ["01"]) if cost.stage == stage)

    assert units(few, "insights") == pytest.approx(units(full, "insights") / 10)
    assert units(few, "pairs") == pytest.approx(units(full, "pairs") / 10)
    # The arms without an edit are not asked again for another group.
    assert 1 / 3 < units(few, "answers") / units(full, "answers") < 1 / 2.5
    assert units(few, "DPO") == pytest.approx(units(full, "DPO") / 3)
    # Both models of a family do the work of that family's model of the demo.
    two = replace(PROFILES["laptop"], backbones=("Qwen/Qwen2.5-0.5B-Instruct", MISTRAL.id))
    found = {cost.model.id for cost in costs(replace(full, profile=two), ["01"])}
    assert found == set(two.backbones)


def read(scope: Scope, stage: str, notebook: str = "01") -> float:
    return sum(cost.read for cost in costs(scope, [notebook]) if cost.stage == stage)


def test_a_prompt_is_read_once_for_all_steps_and_for_a_batch_of_arms() -> None:
    paper = scope_of("paper")
    model = paper.profile.backbones[0]
    one = replace(paper, profile=replace(paper.profile, backbones=(model,), studied=(model,)))
    # Three groups of 100, which the fits of notebook 01 read twice or thrice: their own pairs, the
    # gold ones, and what notebook 00 had fitted before.
    prompts = sum(one.lengths(one.models[0], task).prompt for task in one.tasks)
    assert 6 < read(one, "fit") / (100 * prompts * PADDED) < 8
    small = replace(one, profile=replace(one.profile, group_size=50))
    assert read(small, "fit") == pytest.approx(read(one, "fit") / 2, rel=0.01)  # and its check
    for scope in (one, scope_of("laptop")):
        for stage in ("answers", "fit"):
            found = [cost for cost in costs(scope, ALL) if cost.stage == stage]
            assert all(cost.read <= cost.asked for cost in found)
            assert sum(cost.read for cost in found) < sum(cost.asked for cost in found) / 2
    # Of arms that counted no reading, each has its share of a batch.
    bare = [c for c in costs(one, ["03"], ["02"]) if c.stage == "answers"]
    assert all(cost.read * ARMS_AT_ONCE >= 0.99 * cost.asked for cost in bare)
    # Other groups bring arms of their own, and not all prompts anew.
    more = replace(one, draws=6)
    assert 1.6 < read(more, "answers") / read(one, "answers") < 1.9
    assert read(more, "answers", "05") == pytest.approx(read(one, "answers", "05"))


def test_the_profiles_are_within_their_hours_and_say_what_was_cut_and_shared() -> None:
    most = {"laptop": 30, "paper": 60}
    for name, hours in most.items():
        scope = scope_of(name)
        assert speed_of(scope.profile).hours(costs(scope, ALL)) <= hours
        shown = text(scope, ALL)
        assert all(sentence in shown for sentence in scope.profile.cut) and scope.profile.cut
        assert "Shared by notebooks through the store, hours saved: insights" in shown
        assert "tokens of those asked: answers" in shown and ", fit " in shown
        users = scope.profile.n_test
        assert f"{users} users of LaMP-2 give accuracy" in shown
        assert "Not in this table: 10, 14, on SmolLM2" in shown
        assert "Not in this table: 11, 12, 13; " in shown
        assert "Not in this table" not in text(scope, ["01"])
    assert text(scope_of("paper"), ["14"]).startswith("Not in this table: 14, on SmolLM2")
    assert text(scope_of("small"), ["12"]).startswith("Not in this table: 12; there is no count")
    assert "users of LaMP" not in text(scope_of("demo"), ALL)


def test_every_notebook_is_counted_or_said_not_to_be() -> None:
    with COUNTS.open(encoding="utf-8") as stream:
        counted = {n for row in csv.DictReader(stream, delimiter="\t")
                   for n in row["notebooks"].split(",")}  # fmt: skip
    there = {notebook.number for notebook in NOTEBOOKS if not notebook.summary}
    assert there == counted | set(APART) | set(UNCOUNTED)
    assert not counted & {*APART, *UNCOUNTED}


def test_a_fit_keeps_on_disk_what_its_memory_does_not_hold() -> None:
    paper = scope_of("paper")
    states = 100 * paper.lengths(MISTRAL, "LaMP_3").prompt * MISTRAL.state * 2
    assert paper.filed(MISTRAL) == pytest.approx(states)
    assert "prompts' states take up to" in text(paper, ["01"])
    assert scope_of("demo").filed(MODELS["demo:decoder:0"]) == 0
    assert "prompts' states" not in text(scope_of("demo"), ["01"])


def test_long_items_are_cut_where_a_profile_says_so() -> None:
    laptop = scope_of("laptop")
    model = laptop.models[0]
    whole = replace(laptop, profile=replace(laptop.profile, item_words=0))
    cut = {task: laptop.lengths(model, task).prompt for task in laptop.tasks}
    beside = {task: lengths.prompt for task, lengths in LENGTHS[False].items()}
    assert {task: whole.lengths(model, task).prompt for task in laptop.tasks} == {
        task: prompt + 10 * ITEM[task] for task, prompt in beside.items()
    }
    assert cut["LaMP_3"] == pytest.approx(beside["LaMP_3"] + 10 * 24 * WORD)
    assert cut["LaMP_7"] == beside["LaMP_7"] + 10 * ITEM["LaMP_7"]
    # Fewer items shorten the history alone.
    few = replace(laptop, profile=replace(laptop.profile, items=4)).lengths(model, "LaMP_7")
    assert few.prompt == beside["LaMP_7"] + 4 * ITEM["LaMP_7"]


# Table 1 of profile small on 32 users of LaMP-7 each for training and test, as `workshop.count`
# counted it on SmolLM2: tokens read, scored and written.
SMALL = {
    "insights": (12_865, 3_302, 6_144),
    "pairs": (15_931, 10_624, 4_096),
    "activations": (35_436, 0, 0),
    "fit": (11_073, 20_507, 744),
    "answers": (71_974, 68_026, 17_810),
    "LLM-REC": (11_376, 0, 2_288),
}


def test_the_plan_is_within_a_fifth_of_a_counted_run_of_a_language_model() -> None:
    small = replace(scope_of("small", users=32), found={"LaMP_7": (600, 750)})
    found = costs(small, ["01"])
    assert {cost.stage for cost in found} == SMALL.keys()
    for stage, counted in SMALL.items():
        here = [cost for cost in found if cost.stage == stage]
        ways = ("read", "scored", "written")
        planned = [sum(getattr(cost, way) for cost in here) for way in ways]
        for plan, count in zip(planned, counted, strict=True):
            assert (plan == count == 0) or 0.8 < count / plan < 1.2, (stage, planned, counted)


def test_the_formula_is_two_forward_and_six_for_a_model_trained_whole() -> None:
    n = MISTRAL.weights
    assert Work(Tokens(10, 5)).flops(n) == 2 * n.read * 15
    whole = Work(Tokens(10, 5), Tokens(10, 5), n.total).flops(n)
    assert whole == pytest.approx(6 * n.read * 15)


def test_device_memory_follows_the_formula() -> None:
    paper = PROFILES["paper"]
    found = scope_of("paper").memory(MISTRAL)
    weights = 2 * MISTRAL.weights.total
    asked = 32_768 * 2 * (MISTRAL.state + 2 * MISTRAL.inner + 4 * MISTRAL.width)
    assert found["asking"] == weights + asked
    layers, one = 32 * 8192 * 2 * 4096, 8192 * 112 * 4096
    logits = 8192 * 32_768 * 10
    aloe = weights + 18 * MISTRAL.adapter + logits + layers + one
    assert found["rivals"] == max(aloe, 2 * weights + asked)
    whole = replace(paper, aloe_params="full")
    more = device_bytes(whole, MISTRAL, 2378, 1000)
    # Values, gradients and two moments in float32 and a copy in 16 bits, beside the backbone.
    trained = (4 + 4 + 8 + 2) * MISTRAL.weights.total
    back = 32 * 8192 * 4 * 4096 + 8192 * 57 * 4096
    assert more["rivals"] == weights + trained + logits + back > 80e9
    work = [cost for cost in costs(scope_of("paper"), ["01"]) if cost.stage in ("ALOE", "DPO")]
    trainings = 3 * 3 * sum(2 * 4 * MODELS[b].adapter for b in paper.studied)
    assert store_bytes(scope_of("paper"), work) == pytest.approx(trainings)


@pytest.mark.parametrize("name", ["paper", "paper-4bit"])
def test_the_papers_run_fits_one_card_of_80_gb(name: str) -> None:
    for model in scope_of(name).models:
        for kind, needed in scope_of(name).memory(model).items():
            assert needed < 80e9, f"{model.id} {kind}"
            if name != "paper":
                assert needed < scope_of("paper").memory(model)[kind]


def test_an_unknown_model_is_named_and_nothing_is_made_up_for_it() -> None:
    scope = Scope(replace(PROFILES["laptop"], backbones=("me/mine", "google/flan-t5-base")))
    shown = text(scope, ["01"])
    assert "  me/mine: size unknown" in shown
    assert "Size unknown, not counted: me/mine." in shown


def test_models_in_the_cache_are_said_to_be_there_and_take_no_more_disk() -> None:
    scope = scope_of("laptop")
    assert "in the cache" not in text(scope, ["01"])
    shown = text(scope, ["01"], present=lambda _: True)
    assert "google/flan-t5-base: 990 MB, in the cache already" in shown
    assert "models" not in shown.partition("Disk:")[2].partition("(")[2].split(";")[0]


@pytest.mark.parametrize("words", ["", "fast", "0", "-3", "nan", "inf", "1,2,3", "5,0"])
def test_a_wrong_throughput_is_refused(words: str) -> None:
    with pytest.raises(UserError, match="--tflops takes TFLOP/s"):
        Speed.parse(words)


def test_a_throughput_changes_hours_alone() -> None:
    scope = scope_of("paper")
    assert Speed.parse("200") == Speed("your device", 2e14, 2e13)
    assert Speed.parse("200,50") == Speed("your device", 2e14, 5e13)
    slow, fast = (text(scope, ["01"], speed=Speed.parse(rate)) for rate in ("100", "1000"))
    assert slow.splitlines()[2].split()[:6] == fast.splitlines()[2].split()[:6]
    assert slow.splitlines()[2].split()[-1] != fast.splitlines()[2].split()[-1]


def test_sizes_are_readable() -> None:
    assert [size(n) for n in (12, 4096, 2.5e6, 1.45e10, 3e12)] == [
        "12 B", "4.1 kB", "2.5 MB", "14.5 GB", "3 TB",
    ]  # fmt: skip
