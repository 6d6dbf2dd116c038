"""vLLM as a writer, against a stand-in of the few calls that are used.

The stand-in takes the arguments of vLLM 0.33's ``LLM``, ``SamplingParams`` and ``LLM.generate`` and
answers with request outputs. Its words come from a tiny model's own greedy ``generate``, one prompt
at a time, in a shuffled order of work: what comes out must be what the kit's own decoding writes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.backbones.vllm_engine import VllmWriter, vllm_module
from chameleon_lib.core.insights import write_insights
from chameleon_lib.core.protocols import DecodeSettings
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.kit.store import ArtifactStore
from chameleon_lib.lamp.records import HistoryItem
from chameleon_lib.sections import loading
from chameleon_lib.sections.study import Study
from tests.backbones.tiny import ANSWERS, GROUPS, PROMPTS, make_backbone, make_edit


@dataclass(frozen=True)
class SamplingParams:
    """The arguments that the kit gives; any other is a mistake here."""

    temperature: float
    max_tokens: int
    stop_token_ids: list[int]
    detokenize: bool


class Fake(ModuleType):
    """``vllm``, with a record of its calls."""

    __version__ = "0.33.0"

    def __init__(self, backbone: HFBackbone) -> None:
        super().__init__("vllm")
        self.backbone = backbone
        self.loads: list[dict[str, Any]] = []
        self.calls: list[tuple[list[list[int]], SamplingParams]] = []
        self.SamplingParams = SamplingParams
        self.LLM = self._load
        self.swap = False

    def _load(self, **options: Any) -> Any:
        if options["model"] == "too/large":
            raise ValueError("No available memory for the cache blocks.\nTry less.")
        self.loads.append(options)
        return SimpleNamespace(generate=self._generate)

    def _generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: SamplingParams, *,
        use_tqdm: bool,
    ) -> list[Any]:  # fmt: skip
        assert not use_tqdm and sampling_params.temperature == 0
        tokens = [prompt["prompt_token_ids"] for prompt in prompts]
        self.calls.append((tokens, sampling_params))
        done: dict[int, Any] = {}
        for at in sorted(range(len(tokens)), key=lambda at: -len(tokens[at])):
            done[at] = self._request(tokens[at], sampling_params)
        found = [done[at] for at in range(len(tokens))]
        return found[::-1] if self.swap else found

    def _request(self, ids: list[int], sampling_params: SamplingParams) -> Any:
        out = self.backbone.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=sampling_params.max_tokens,
            do_sample=False,
            eos_token_id=sampling_params.stop_token_ids,
            pad_token_id=self.backbone.codec.pad_id,
        )
        answer = tuple(out[0, len(ids) :].tolist())
        return SimpleNamespace(prompt_token_ids=ids, outputs=[SimpleNamespace(token_ids=answer)])


@pytest.fixture
def backbone() -> HFBackbone:
    return make_backbone("mistral")


@pytest.fixture
def fake(backbone: HFBackbone, monkeypatch: pytest.MonkeyPatch) -> Fake:
    module = Fake(backbone)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_it_writes_what_the_backbone_writes_in_the_order_of_the_prompts(
    backbone: HFBackbone, fake: Fake
) -> None:
    writer = VllmWriter(backbone, "me/mine", dtype="bfloat16")
    for limit in (1, 5, 12):
        own = backbone.generate(PROMPTS, max_new_tokens=limit, groups=GROUPS)
        assert writer.generate(PROMPTS, max_new_tokens=limit, groups=GROUPS) == own
    assert len(set(own)) > 1
    assert writer.generate([], max_new_tokens=3) == [] and len(fake.calls) == 3
    tokens, parameters = fake.calls[-1]
    assert tokens == backbone.codec.prompts(PROMPTS)
    assert parameters == SamplingParams(0.0, 12, list(backbone.codec.eos_ids), False)
    assert fake.loads == [
        {
            "model": "me/mine", "dtype": "bfloat16", "seed": 0, "enable_prefix_caching": True,
            "gpu_memory_utilization": 0.45,
        }
    ]  # fmt: skip


def test_an_answer_ends_at_the_first_stop_token(backbone: HFBackbone, fake: Fake) -> None:
    word = backbone.codec.answers(["comedy"])[0]
    end = backbone.codec.eos_id

    def stopped(ids: list[int], _: Any) -> Any:
        rest = [*word, end] if len(ids) % 2 else [*word, end, *word]
        return SimpleNamespace(prompt_token_ids=ids, outputs=[SimpleNamespace(token_ids=rest)])

    fake._request = stopped  # type: ignore[method-assign]
    writer = VllmWriter(backbone, "me/mine", dtype="bfloat16")
    assert set(writer.generate(PROMPTS, max_new_tokens=9)) == {"comedy"}


def test_everything_else_is_the_backbones_own(backbone: HFBackbone, fake: Fake) -> None:
    writer = VllmWriter(backbone, "me/mine", dtype="bfloat16")
    assert (writer.name, writer.family, writer.d) == (backbone.name, "decoder", backbone.d)
    assert writer.count_tokens("a b") == backbone.count_tokens("a b")
    own = backbone.activations(PROMPTS, ANSWERS)
    assert torch.equal(writer.activations(PROMPTS, ANSWERS), own)
    assert fake.calls == []


def test_the_engine_its_version_and_its_precision_are_part_of_the_fingerprint(
    backbone: HFBackbone, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {backbone.fingerprint}
    found.add(VllmWriter(backbone, "me/mine", dtype="bfloat16").fingerprint)
    found.add(VllmWriter(backbone, "me/mine", dtype="float16").fingerprint)
    monkeypatch.setattr(fake, "__version__", "0.34.0", raising=False)
    found.add(VllmWriter(backbone, "me/mine", dtype="bfloat16").fingerprint)
    assert len(found) == 4


def test_insights_are_written_through_it(backbone: HFBackbone, fake: Fake) -> None:
    settings = EditSettings(decode_insight_tokens=4)
    items = [[HistoryItem("1", "a robot", "sci-fi")], [HistoryItem("1", "a bank", "comedy")]]
    own = write_insights(backbone, "LaMP_2", items, settings)
    writer: Any = VllmWriter(backbone, "me/mine", dtype="bfloat16")
    assert write_insights(writer, "LaMP_2", items, settings) == own
    assert len(fake.calls) == 1 and len(fake.calls[0][0]) == 4


@pytest.mark.parametrize(
    ("prompts", "changes", "error", "words"),
    [
        (PROMPTS, {"edit": True}, ValueError, "writes without an edit"),
        (PROMPTS, {"decode": DecodeSettings(do_sample=True)}, UserError, "writes greedily"),
        (PROMPTS, {"decode": DecodeSettings(num_beams=2)}, UserError, "writes greedily"),
        (PROMPTS, {"max_new_tokens": 0}, UserError, "max_new_tokens is 0"),
        (["a", "  "], {}, UserError, "Prompt 1 is empty"),
        (["a", "b " * 400], {}, UserError, "Prompt 1 has .* reads at most 256"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_what_it_cannot_write_is_refused(
    backbone: HFBackbone, prompts: list[str], changes: dict[str, Any], error: type[Exception],
    words: str,
) -> None:  # fmt: skip
    if "edit" in changes:
        changes = {"edit": make_edit()}
    writer = VllmWriter(backbone, "me/mine", dtype="bfloat16")
    with pytest.raises(error, match=words):
        writer.generate(prompts, **{"max_new_tokens": 3, **changes})


def test_answers_in_another_order_are_noticed(backbone: HFBackbone, fake: Fake) -> None:
    fake.swap = True
    writer = VllmWriter(backbone, "me/mine", dtype="bfloat16")
    with pytest.raises(RuntimeError, match="another order"):
        writer.generate(PROMPTS, max_new_tokens=2)


def test_a_missing_package_is_one_sentence(
    backbone: HFBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="cannot be imported here .* set generator to"):
        vllm_module()
    with pytest.raises(UserError, match="cannot be imported here"):
        VllmWriter(backbone, "me/mine", dtype="bfloat16")


@pytest.mark.usefixtures("fake")
def test_a_model_it_cannot_load_and_an_encoder_decoder_are_one_sentence(
    backbone: HFBackbone,
) -> None:
    with pytest.raises(UserError, match=r"cannot load too/large \(No available memory for the"):
        VllmWriter(backbone, "too/large", dtype="bfloat16")
    with pytest.raises(UserError, match="an encoder-decoder, which vLLM does not serve"):
        VllmWriter(make_backbone("t5"), "me/mine", dtype="bfloat16")


def writer_of(backbone: HFBackbone, name: str = "me/mine", **changes: Any) -> Any:
    settings = changes.pop("settings", EditSettings())
    profile = replace(PROFILES["paper"], **changes)
    return loading.open_writer(backbone, name, settings, profile)


def test_a_profile_chooses_it_and_no_profile_does_by_default(
    backbone: HFBackbone, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_writers", {})
    monkeypatch.setattr(loading.revisions, "resolve", lambda *_: (None, "/cache/abc"))
    assert {profile.generator for profile in PROFILES.values()} == {"transformers"}
    assert writer_of(backbone) is backbone
    assert writer_of(backbone, "demo:decoder:0", generator="vllm") is backbone
    sampled = EditSettings(decode_do_sample=True)
    assert writer_of(backbone, generator="vllm", settings=sampled) is backbone
    other = make_backbone("t5")
    assert writer_of(other, generator="vllm") is other
    assert fake.loads == []
    writer = writer_of(backbone, generator="vllm")
    assert isinstance(writer, VllmWriter) and fake.loads[0]["model"] == "/cache/abc"
    assert writer_of(backbone, generator="vllm") is writer and len(fake.loads) == 1
    with pytest.raises(UserError, match="generator is 'tgi'; choose one of transformers, vllm"):
        writer_of(backbone, generator="tgi")
    with pytest.raises(UserError, match="other weights than the 4-bit ones"):
        writer_of(backbone, generator="vllm", quantization="nf4")


def test_a_study_keeps_what_two_engines_wrote_apart(
    backbone: HFBackbone, fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(loading, "_writers", {})
    monkeypatch.setattr(loading.revisions, "resolve", lambda *_: (None, "/cache/abc"))
    monkeypatch.setattr("chameleon_lib.sections.study.open_backbone", lambda *_: backbone)
    keys = []
    for generator in ("transformers", "vllm"):
        profile = replace(PROFILES["paper"], generator=generator)
        study = Study(profile, "me/mine", "LaMP_2", EditSettings(), ArtifactStore(tmp_path))
        keys.append((study._writing()["backbone"], study.inputs("edit_")["backbone"]))
    (plain, read), (other, same) = keys
    assert plain == read == same == backbone.fingerprint and other != plain
    assert len(fake.loads) == 1
