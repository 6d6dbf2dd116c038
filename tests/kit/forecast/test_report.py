"""What a plan says: totals that add up, the same on every machine, and what is not known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, MistralConfig, T5Config

from chameleon_lib.errors import UserError
from chameleon_lib.kit.flops import Tokens, Work
from chameleon_lib.kit.forecast.cell import STAGES
from chameleon_lib.kit.forecast.known import MODELS, data_files
from chameleon_lib.kit.forecast.memory import device_bytes, store_bytes, way_back
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
    weights, kept = 2 * MISTRAL.weights.total, 4 << 30
    asked = 32_768 * 2 * (MISTRAL.state + 2 * MISTRAL.inner + 4 * MISTRAL.width)
    assert found["asking"] == weights + kept + asked
    assert found["rivals"] == 2 * (weights + kept) + asked
    layers, one = 32 * 8192 * 2 * 4096, 8192 * 112 * 4096
    logits = 8192 * 32_768 * 10
    assert found["ALOE"] == weights + 18 * MISTRAL.adapter + kept + logits + layers + one
    pieces = pieces_of(scope, ["01"])
    trainings = 3 * 5 * sum(2 * 4 * MODELS[b].adapter for b in scope.profile.studied)
    assert store_bytes(scope, pieces)["trainings"] == trainings
    at_once = {"aloe_params": "full", "checkpointing": False, "micro_batch": 0}
    whole = Scope(replace(PROFILES["paper"], **at_once))
    more = device_bytes(whole, MISTRAL)
    layers = 32 * 8192 * 57 * 4096
    # Values, gradients and two moments in float32 and a copy in 16 bits, beside the backbone.
    trained = (4 + 4 + 8 + 2) * MISTRAL.weights.total
    assert more["ALOE"] == weights + trained + kept + logits + layers > 80e9
    assert more["DPO"] > 16 * 10e9
    full = 3 * 5 * sum(2 * MODELS[b].weights.total + 4 * MODELS[b].adapter
                       for b in scope.profile.studied)  # fmt: skip
    assert store_bytes(whole, pieces_of(whole, ["01"]))["trainings"] == full


@pytest.mark.parametrize("name", ["paper", "paper-4bit"])
def test_the_papers_run_fits_one_card_of_80_gb(name: str) -> None:
    scope = Scope(PROFILES[name])
    for model in scope.models(studied=True):
        for kind, needed in device_bytes(scope, model).items():
            assert needed < 80e9, f"{model.id} {kind}"
            if name != "paper":
                assert needed < device_bytes(Scope(PROFILES["paper"]), model)[kind]


def kept_for_the_way_back(
    family: str, layers: int, tokens: int, adapter: bool, checkpointing: bool
) -> int:
    """Bytes that autograd keeps of one row, of a model with the proportions of the paper's.

    A model that is trained whole is in float32 and computes in 16 bits; the copies of its weights
    are not counted.
    """
    torch.manual_seed(0)
    if family == "mistral":
        config: Any = MistralConfig(
            vocab_size=64, hidden_size=256, intermediate_size=896, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=1, head_dim=64, sliding_window=None,
        )  # fmt: skip
    else:
        config = T5Config(
            vocab_size=64, d_model=256, d_ff=640, d_kv=64, num_heads=4, num_layers=layers,
            num_decoder_layers=layers, feed_forward_proj="gated-gelu",
        )  # fmt: skip
    auto: Any = AutoModelForCausalLM if family == "mistral" else AutoModelForSeq2SeqLM
    model = auto.from_config(config, dtype=torch.bfloat16 if adapter else torch.float32)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if adapter:
        task = "CAUSAL_LM" if family == "mistral" else "SEQ_2_SEQ_LM"
        model.requires_grad_(False)
        lora = LoraConfig(
            r=16, lora_alpha=8, lora_dropout=0.05, target_modules="all-linear", task_type=task
        )
        model = get_peft_model(model, lora).get_base_model()
    model.train()
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    copied = () if adapter else {s for w in model.parameters() for s in (w.shape, w.shape[::-1])}
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.shape not in copied:
            held[storage.data_ptr()] = storage
        return tensor

    row, answer = torch.zeros(1, tokens, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=not adapter)
    with mixed, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if family == "mistral":
            kept: Any = model.model(input_ids=row, use_cache=False)
        else:
            states = model.get_encoder()(input_ids=row).last_hidden_state
            kept = model.get_decoder()(
                input_ids=answer, encoder_hidden_states=states, use_cache=False
            )
    total = sum(storage.nbytes() for storage in held.values())
    del kept
    return total


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_the_way_back_of_the_formula_is_what_autograd_keeps(family: str, adapter: bool) -> None:
    scope, tokens, layers = Scope(PROFILES["paper"]), 192, 3
    width = 256
    inner, keys = (896, 64) if family == "mistral" else (640, 256)
    state = 2 * keys + (width if family == "t5" else 0)
    shape = {"layers": 1, "width": width, "inner": inner, "state": state}
    model = replace(MISTRAL, **shape, encoder=family == "t5")

    def measured(checkpointing: bool) -> int:
        few, more = (
            kept_for_the_way_back(family, n, tokens, adapter, checkpointing) for n in (1, layers)
        )
        return (more - few) // (layers - 1)

    whole = replace(scope, profile=replace(scope.profile, checkpointing=False))
    layer = way_back(whole, model, 1, tokens, adapter)
    assert layer == pytest.approx(measured(False), rel=0.2)
    inputs = way_back(scope, model, 1, tokens, adapter) - layer
    # T5's layers share some of their position biases; the formula counts one for each.
    assert (0.5 if model.encoder else 0.8) * inputs < measured(True) < 1.2 * inputs


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
