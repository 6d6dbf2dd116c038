"""A collective edit and then a user's own one go out as one adapter of rank 4, or as weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from chameleon_lib.core.affine import AffineEdit
from chameleon_lib.core.edit import EditHook
from chameleon_lib.errors import UserError
from chameleon_lib.serving.adapter import CONFIG, adapters
from chameleon_lib.serving.agreement import distance
from chameleon_lib.serving.export import check_export, export_edit
from chameleon_lib.serving.folder import ServingFolder
from tests.backbones.tiny import ANSWERS, GROUPS
from tests.backbones.tiny import PROMPTS as ASKED
from tests.serving.exported import (
    BIASED,
    FAMILIES,
    PROMPTS,
    T5,
    backbone_of,
    double_backbone,
    edit_of,
    form_view,
    hook_view,
)

BOUND = 2e-5


def sequence_of(**changes: object) -> AffineEdit:
    """A collective edit, and an own one at layers of which one is another."""
    return AffineEdit.sequence(edit_of(1, (0, 2), **changes), edit_of(2, (1, 2), **changes))


def vector_of(seed: int = 5, **how: object) -> AffineEdit:
    generator = torch.Generator().manual_seed(seed)
    v = 3 * torch.randn(2, 24, generator=generator)
    return AffineEdit.adding((0, 2), v, positions="all", **how)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sequence_scores_as_two_hooks_do(family: str) -> None:
    backbone = backbone_of(family)
    first, second = edit_of(1, (0, 2)), edit_of(2, (1, 2))
    prepared, flat = backbone.prepare(ASKED[:1]), family == "opt"
    # Under positions "all" a decoder reads its prompt again at each use, so under both hooks.
    with EditHook(backbone.sites(), first, flat=flat), torch.no_grad():
        two = backbone.score(prepared, ANSWERS[:1], edit=second)
    one = backbone.score(prepared, ANSWERS[:1], edit=AffineEdit.sequence(first, second))
    plain = backbone.score(prepared, ANSWERS[:1])
    assert float((one - two).abs().max()) <= BOUND * max(1.0, float(plain.abs().max()))
    assert float((one - plain).abs().max()) > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "opt", *T5])
def test_in_float64_the_sequence_is_two_hooks_to_1e_12(family: str) -> None:
    backbone, how = double_backbone(family), {"compute_dtype": "float64"}
    first, second = edit_of(1, (0, 2), **how), edit_of(2, (1, 2), **how)
    prompts = backbone.codec.prompts(list(PROMPTS))
    ids = torch.tensor([prompts[0]])
    inputs = {"input_ids": ids}
    if backbone.family == "encoder-decoder":
        inputs["decoder_input_ids"] = torch.tensor([[0, 5, 6]])
    sites, flat = backbone.sites(), family == "opt"
    with torch.no_grad():
        with EditHook(sites, first, flat=flat), EditHook(sites, second, flat=flat):
            two = backbone.model(**inputs).logits
        with EditHook(sites, AffineEdit.sequence(first, second), flat=flat):
            one = backbone.model(**inputs).logits
        plain = backbone.model(**inputs).logits
    size = max(1.0, float(two.abs().max()))
    assert float((one - two).abs().max()) <= 1e-12 * size < float((one - plain).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_of_rank_4_and_the_merged_weights_are_the_hook(
    family: str, tmp_path: Path
) -> None:
    backbone, edit = backbone_of(family), sequence_of()
    hook = hook_view(backbone, edit)
    done = export_edit(edit, backbone, tmp_path / "a", prompts=PROMPTS)
    assert done.rank == 4 and done.agreement.error <= BOUND * max(1.0, done.agreement.effect)
    assert done.agreement.effect >= 1e-2 and done.agreement.same_tokens
    config = json.loads((tmp_path / "a" / CONFIG).read_text(encoding="utf-8"))
    assert config["r"] == config["lora_alpha"] == 4 and not config["use_rslora"]
    check_export(tmp_path / "a", backbone)
    with adapters(backbone, [tmp_path / "a"]):
        found = form_view(backbone, hook)
    assert distance(hook, found) <= BOUND * max(1.0, done.agreement.effect)
    merged = export_edit(edit, backbone, tmp_path / "m", form="merged", prompts=PROMPTS)
    assert merged.rank == 0 and merged.agreement.same_tokens
    assert merged.agreement.error <= BOUND * max(1.0, merged.agreement.effect)


@pytest.mark.parametrize("family", ["gpt2", "opt", *T5])
def test_in_float64_the_exports_of_the_sequence_agree_to_1e_12(family: str, tmp_path: Path) -> None:
    backbone, edit = double_backbone(family), sequence_of(compute_dtype="float64")
    for form in ("peft", "merged"):
        done = export_edit(edit, backbone, tmp_path / form, form=form, prompts=PROMPTS)
        assert done.agreement.effect >= 1e-2
        assert done.agreement.error <= 1e-12 * max(1.0, done.agreement.effect)


@pytest.mark.parametrize("family", ["mistral", "llama", "gpt2", "t5"])
def test_a_batch_of_sequences_answers_as_each_alone(family: str) -> None:
    backbone = backbone_of(family)
    own = [
        AffineEdit.sequence(
            edit_of(9, (0, 1), positions="last"), edit_of(seed, (1, 2), positions="last")
        )
        for seed in range(len(ASKED))
    ]
    mixed = AffineEdit.stack(own)
    alone = [
        backbone.generate([prompt], max_new_tokens=4, edit=edit)[0]
        for prompt, edit in zip(ASKED, own, strict=True)
    ]
    assert backbone.generate(ASKED, max_new_tokens=4, edit=mixed, groups=GROUPS) == alone
    scores = backbone.score(backbone.prepare(ASKED), ANSWERS, edit=mixed)
    for row, edit in enumerate(own):
        one = backbone.score(backbone.prepare([ASKED[row]]), [ANSWERS[row]], edit=edit)
        assert torch.allclose(scores[row], one[0], atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gpt2", "t5"])
def test_an_added_vector_is_a_bias_of_the_adapter(family: str, tmp_path: Path) -> None:
    backbone, edit = backbone_of(family), vector_of()
    done = export_edit(edit, backbone, tmp_path / "a", prompts=PROMPTS)
    assert done.rank == 2 and done.agreement.effect >= 1e-2 and done.agreement.same_tokens
    both = AffineEdit.sequence(edit, edit_of(3))
    assert export_edit(both, backbone, tmp_path / "b", prompts=PROMPTS).agreement.same_tokens
    if family in BIASED:
        merged = export_edit(both, backbone, tmp_path / "m", form="merged", prompts=PROMPTS)
        assert merged.agreement.same_tokens
    else:
        with pytest.raises(UserError, match="has no bias .* merged .* export it as peft"):
            export_edit(both, backbone, tmp_path / "m", form="merged", prompts=PROMPTS)
    with pytest.raises(UserError, match="has no bias|has a bias"):
        export_edit(edit, backbone, tmp_path / "g", form="gguf", prompts=PROMPTS)


def test_a_mixture_of_experts_has_no_place_for_a_vector(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run it with the hook"):
        export_edit(vector_of(), backbone_of("mixtral"), tmp_path / "a", prompts=PROMPTS)


def test_a_serving_folder_takes_a_sequence_and_knows_it_again(tmp_path: Path) -> None:
    folder = ServingFolder(tmp_path / "served", backbone_of("llama"), form="peft")
    edit = sequence_of()
    assert folder.add("ada", edit).new and not folder.add("ada", sequence_of()).new
    assert folder.add("ada", AffineEdit.sequence(edit, edit_of(4))).new
    assert any("max-lora-rank" in line and "8" in line for line in folder.how_to_serve("ada-v0001"))
