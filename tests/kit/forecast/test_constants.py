"""The forecast loads nothing of the studies, so what it repeats of them is compared here."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, MistralConfig, Qwen2Config
from transformers import T5Config as T5

from chameleon_lib.backbones import load_backbone
from chameleon_lib.backbones.base import PREFIX_BYTES
from chameleon_lib.backbones.batching import TOKEN_BUDGET
from chameleon_lib.backbones.demo import checkpoint
from chameleon_lib.backbones.demo.tokenizer import build_tokenizer
from chameleon_lib.backbones.demo.world import WorldSettings, build_world
from chameleon_lib.baselines.llm_rec import SUMMARY_TOKENS
from chameleon_lib.baselines.llm_rec_prompts import (
    answer_prompt_with_summary,
    summary_prompt,
    variants_for,
)
from chameleon_lib.baselines.settings import AloeSettings, DpoSettings
from chameleon_lib.core.fitting import CHECK_EVERY
from chameleon_lib.core.preferences import PreferencePair, pair_texts
from chameleon_lib.core.protocols import Family
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.kit.forecast import cell, figures, known, memory, scope, served, tables, texts
from chameleon_lib.kit.forecast.scope import SIZES
from chameleon_lib.kit.notebooks import read_notebook
from chameleon_lib.kit.paths import notebooks_dir
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.lamp.prompts import (
    answer_prompt,
    insight_prompt,
    official_prompt,
    unseen_prompt,
)
from chameleon_lib.lamp.records import HistoryItem, Query
from chameleon_lib.lamp.tasks import TASKS, get_task, official_input
from chameleon_lib.sections import arms, edit_size, tunings
from chameleon_lib.sections.controls import dose, variants
from chameleon_lib.sections.group_size import study as group_size
from chameleon_lib.sections.history_ablation import conditions
from chameleon_lib.sections.loading import settings_for
from chameleon_lib.sections.per_user import cell as per_user_cell
from chameleon_lib.sections.serving import solvers
from chameleon_lib.sections.serving import study as serving
from chameleon_lib.sections.time_budget import study as time_budget
from chameleon_lib.sections.time_budget.costs import weights_of
from chameleon_lib.sections.unseen_users import common
from chameleon_lib.sections.unseen_users import study as unseen

SETTINGS = EditSettings()


def test_fits_and_trainings_have_the_defaults_of_their_settings() -> None:
    steps = {True: settings_for(PROFILES["demo"]).fit_steps, False: SETTINGS.fit_steps}
    rows = {True: settings_for(PROFILES["demo"]).fit_batch, False: SETTINGS.fit_batch}
    assert (cell.FIT_STEPS, cell.FIT_BATCH, cell.HELD_OUT, cell.CHECK_EVERY) == (
        steps, rows, SETTINGS.fit_holdout, CHECK_EVERY,
    )  # fmt: skip
    assert (cell.CCS_EPOCHS, cell.CCS_TRIES) == (SETTINGS.ccs_epochs, SETTINGS.ccs_tries)
    assert memory.BATCH_TOKENS == TOKEN_BUDGET
    assert PROFILES["demo"].prefix_bytes == PREFIX_BYTES  # embedded models keep the default
    families: tuple[Family, ...] = ("decoder", "encoder-decoder")
    assert DpoSettings().epochs == AloeSettings(mix="none").epochs == 1
    assert tuple(AloeSettings.demo(family).epochs for family in families) == cell.EMBEDDED_ALOE
    assert DpoSettings.demo().epochs == 1 and known.EMBEDDED_RANK == DpoSettings.demo().lora_r
    assert known.RANK == DpoSettings().lora_r
    aloe = AloeSettings(mix="none")
    assert (scope.ALOE_ROWS, scope.ALOE_ROW) == (aloe.batch, aloe.max_length)
    assert scope.DPO_PAIRS == DpoSettings().batch
    for family in families:
        demo = DpoSettings.demo().at_once, AloeSettings.demo(family).at_once
        assert demo == scope.EMBEDDED_BATCH
        assert AloeSettings.demo(family).params == "full"


@pytest.mark.parametrize("name", ["laptop", "paper"])
def test_trainings_of_a_profile_are_cut_as_it_says(name: str) -> None:
    """The very settings of the studies, of which the forecast repeats the sizes."""
    study: Any = SimpleNamespace(backbone_id="hub/model", profile=PROFILES[name])
    aloe, dpo = tunings.aloe_settings(study), tunings.dpo_settings(study)
    model = known.MODELS[PROFILES[name].studied[0]]
    here = scope.Scope(PROFILES[name])
    assert here.batches(model) == (dpo.at_once, aloe.at_once, aloe.max_length)
    assert here.checkpointing(model) == dpo.checkpointing == aloe.checkpointing
    assert here.aloe_lora(model) == (aloe.params == "lora")
    paper = DpoSettings(), AloeSettings(mix="standin", params=aloe.params)
    for one, other in zip((dpo, aloe), paper, strict=True):
        changed = {"micro_batch", "checkpointing"}
        assert {k: v for k, v in one.canonical().items() if k not in changed} == {
            k: v for k, v in other.canonical().items() if k not in changed
        }


def test_groups_and_arms_are_those_of_the_studies() -> None:
    assert SIZES == group_size.SIZES and figures.GROUP_TASKS == group_size.TASKS
    controls = ("chameleon", "chameleon_top5", *arms._CONTROLS, *SETTINGS.controls_label_token[1:])
    assert set(tables.DIRECTIONS) == set(controls)
    assert tables.RANDOM_DRAWS == SETTINGS.controls_random_draws
    assert {name.split()[0] for name in tables.SHOWN} == set(unseen.SHOWN)
    assert set(tables.PLAIN) - {"personalised"} == set(arms.plain_arms()) - {"insight"}
    for task in TASKS:
        plain = {name for name in variants_for(task) if not name.endswith("_hist")}
        assert {v for v in tables.LLM_REC if task != "LaMP_7" or v != "llm_rec_comb"} == plain
    assert (tables.SIZED, tables.SIZED_USERS) == (per_user_cell.SIZED, edit_size.ASKED)
    points = tuple((point.pairs, point.gold) for point in time_budget.POINTS)
    assert points == figures.SHARES


def test_the_smaller_worlds_of_the_demo_are_those_of_the_studies() -> None:
    assert (common.MAX_TEST_USERS, common.FIT_STEPS) == (tables.COMMON_TEST, tables.COMMON_STEPS)
    edits = 2 * (1 + len(common._CONTROLS)) + 3  # both readings, and their fits
    assert edits == tables.COMMON_ARMS
    assert (len(dose.DOSES), (*dose.USERS, dose.GROUP)) == (figures.DOSES, figures.DOSE_DEMO)
    design = conditions.DEMO
    assert (design.n_train, design.n_test, design.group_size) == figures.HISTORY_DEMO
    assert sum(dict(design.world)["history"]) == 2 * figures.HISTORY_ITEMS
    for demo, chosen in ((True, design), (False, conditions.FULL)):
        found = conditions.conditions_of(conditions.ITEMS, chosen, figures.PAPER_ITEMS)
        theirs = {(c.rule, c.k, c.arms) for c in found}
        assert set(figures.history_conditions(demo)) == theirs


def test_the_served_users_are_those_of_the_notebook() -> None:
    declared = read_notebook(notebooks_dir() / "07_serving.ipynb").parameters()
    assert declared["served"].default == served.SERVED
    assert declared["task"].default == served.SERVED_TASK
    queries = (serving.LEARNED, serving.ASKED, serving.MEMBERS)
    assert queries == (served.LEARNED, served.ASKED, served.MEMBERS)
    assert serving.settings_of(PROFILES["demo"]).fit_steps == served.SERVED_STEPS
    assert solvers.SOLVERS == served.SOLVERS


@pytest.mark.parametrize("profile", ["demo", "paper"])
def test_the_readings_of_the_ledger_are_counted(profile: str) -> None:
    demo = PROFILES[profile].data == "demo"
    readings, repaired, read_anew, asked_anew = figures.LEDGER[demo]
    run = variants.runnable(PROFILES[profile])[1:]
    # Their edits are arms of Table 1: top 5 layers, SVD of differences and of neutral outputs.
    assert len(run) - 3 == readings
    changed = [{name for name, _ in variant.changes} for variant in run]

    def with_any(*prefixes: str) -> int:
        return sum(any(name.startswith(prefixes) for name in names) for names in changed)

    pairs = ("selection_", "insight_", "prompts_chat", "prompts_fix", "decode_", "model_")
    assert with_any(*pairs) == repaired
    # "Answer alone" is a label control of Table 1.
    assert with_any("pairs_text", "embed_", "edit_site", "t5_") - 1 == read_anew
    asked = ("selection_", "prompts_", "decode_", "model_")
    assert with_any(*asked) == asked_anew
    assert figures.STRENGTHS == len(variants.STRENGTHS) - 1


@pytest.mark.parametrize("name", ["demo", "laptop", "paper"])
def test_lengths_are_those_of_the_profile(name: str) -> None:
    settings = settings_for(PROFILES[name])
    assert settings.decode_insight_tokens == (48 if PROFILES[name].offline else 256)
    assert SUMMARY_TOKENS == 120 and settings.selection_k == 10


def prompts_of(task: str, items: list[HistoryItem], query: str, said: str) -> dict[str, str]:
    """Every prompt of ``texts.PARTS``."""
    asked = Query("1", query, official_input(task, query), None)
    pair = PreferencePair("u", "1", query, tuple(items), "a", "b")
    found = {
        "write insight": insight_prompt(task, items, "P"),
        "personalised": answer_prompt(task, items, query, role="P", insight=said),
        "neutral": answer_prompt(task, items, query, role="N", insight=said),
        "instruct": answer_prompt(task, items, query, role="P", insight=None),
        "unseen": unseen_prompt(task, query),
        "official": official_prompt(task, (), asked),
        "official_history": official_prompt(task, items, asked),
        "pair": pair_texts(task, pair, SETTINGS)[0][0],
    }
    for name in variants_for(task):
        if not name.endswith("_hist"):
            found[f"write {name}"] = summary_prompt(task, items, query, name)
            found[name] = answer_prompt_with_summary(task, items, query, said, name)
    return found


@pytest.mark.parametrize("task", list(TASKS))
def test_a_prompt_of_the_templates_has_the_characters_that_are_counted(task: str) -> None:
    label = "comedy" if task == "LaMP_2" else "4" if get_task(task).labels else None
    items = [HistoryItem(str(at), "x" * 90, label) for at in range(10)]
    shape = texts.shape_of(task, False, 50, 50)
    line, official = (extra + 90 for extra in texts.LINE_CHARS[task])
    for kind, text in prompts_of(task, items, "y" * 120, "z" * 200).items():
        history, query, said = texts.PARTS[kind]
        item = official if kind == "official_history" else line
        chars = texts.FIXED_CHARS[task][kind] + history * 10 * item + query * 120 + said * 200
        slack = 30 if kind == "write insight" else 3  # the mean of both roles; the numbering
        assert abs(len(text) - chars) <= slack + 10, kind
    assert shape.insight == 50 and shape.item == (texts._LAMP[task][0] + line - 90) / 4


@pytest.mark.parametrize("task", list(TASKS))
def test_prompts_of_the_embedded_world_have_the_tokens_that_are_counted(task: str) -> None:
    tokenizer, world = build_tokenizer(), build_world(task, WorldSettings(users=(40, 1, 1)))
    shape, sums, insights = texts.EMBEDDED[task], dict[str, list[int]](), list[int]()
    for user in world.users["train"]:
        said = world.truth[user.id].insight
        items = list(user.history[:10])
        insights.append(len(tokenizer(said)["input_ids"]))
        for kind, text in prompts_of(task, items, user.queries[0].text, said).items():
            sums.setdefault(kind, []).append(len(tokenizer(text)["input_ids"]))
    for kind, lengths in sums.items():
        mean = sum(lengths) / len(lengths)
        counted = texts.prompt_tokens(kind, task, shape, 10, True)
        if "llm_rec" in kind and texts.PARTS[kind][2]:
            # The planted insight stands in for a summary of the model's own here.
            mean += shape.summary - sum(insights) / len(insights)
        assert counted == pytest.approx(mean, rel=0.08, abs=2), kind


def built(name: str) -> object:
    """A published architecture, without memory."""
    shape = {"vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    with torch.device("meta"):
        if name == "mistralai/Mistral-7B-Instruct-v0.3":
            return AutoModelForCausalLM.from_config(MistralConfig(
                vocab_size=32768, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False))
        if name == "Qwen/Qwen2.5-0.5B-Instruct":
            return AutoModelForCausalLM.from_config(Qwen2Config(
                vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True))
        large = name == "google/flan-t5-xxl"
        sizes = (4096, 10240, 24, 64) if large else (768, 2048, 12, 12)
        names = ("d_model", "d_ff", "num_layers", "num_heads")
        return AutoModelForSeq2SeqLM.from_config(
            T5(**shape, **dict(zip(names, sizes, strict=True)), d_kv=64))  # fmt: skip


class Measured:
    """What ``weights_of`` reads of a backbone."""

    def __init__(self, model: object, family: str) -> None:
        self.model, self.family = model, family


@pytest.mark.parametrize("name", [m for m in known.MODELS if "sentence" not in m])
def test_the_numbers_of_a_model_are_those_of_its_architecture(name: str) -> None:
    entry = known.MODELS[name]
    if name.startswith("demo:"):
        _, family, seed = name.split(":")
        model: object = load_backbone(checkpoint(family, seed)).model
    else:
        model = built(name)
    config = model.config  # type: ignore[attr-defined]
    family = "encoder-decoder" if entry.encoder else "decoder"
    found = weights_of(Measured(model, family))
    assert (entry.weights.read, entry.weights.written) == (found.read, found.written)
    total = sum(weight.numel() for weight in model.parameters())  # type: ignore[attr-defined]
    # The library always ties T5's head; Flan-T5's checkpoints store one of their own.
    head = config.vocab_size * entry.width if entry.encoder and "google" in name else 0
    assert entry.weights.total == total + head
    assert (entry.width, entry.vocabulary) == (config.hidden_size, config.vocab_size)
    linear = sum(
        layer.in_features + layer.out_features
        for part, layer in model.named_modules()  # type: ignore[attr-defined]
        if isinstance(layer, torch.nn.Linear) and "lm_head" not in part
    )
    assert entry.linear == linear


def test_every_model_of_a_profile_is_known() -> None:
    for profile in PROFILES.values():
        assert {*profile.backbones, *profile.studied} <= known.MODELS.keys()
        assert profile.offline or profile.embedder in known.MODELS
    assert {item.name for item in fields(known.DataFile)} == {"path", "size", "seen"}
