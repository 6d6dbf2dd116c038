"""What an editor wrote is kept, exported and forgotten like any profile, and answers the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from chameleon_lib.backbones import HFBackbone, load_backbone
from chameleon_lib.cli import main
from chameleon_lib.editors import EDITORS, Change, WeightEdit
from chameleon_lib.errors import UserError
from chameleon_lib.serving.export import check_export, export_edit
from chameleon_lib.serving.files import Stored
from chameleon_lib.serving.mixed import mixed_users
from chameleon_lib.serving.store import ProfileStore, from_stored
from chameleon_lib.serving.weights import WeightProfile
from tests.backbones.tiny import make_model, make_tokenizer
from tests.editors.test_editors import ASKED, MAKERS, OTHER

ADA = "ada@mail.invalid"
QUESTIONS = [ASKED.question, OTHER.question, "A robot?"]
LOW_RANK = {"ROME": 1, "LoRA": 8}
ROOM = 6


def base_of(family: str, folder: Path) -> HFBackbone:
    """A tiny checkpoint, loaded from its files."""
    make_model(family).save_pretrained(folder)
    make_tokenizer(closes=family.endswith("t5")).save_pretrained(folder)
    return load_backbone(str(folder), dtype="float32")


def written(
    backbone: HFBackbone, name: str, *requests: Any
) -> tuple[WeightProfile, list[list[int]]]:
    """An editor's profile, and the edited model's greedy answers by plain transformers."""
    with MAKERS[name](backbone).edit(*(requests or (ASKED,))) as undo:
        return WeightProfile.of(undo, backbone), greedy(backbone.model, backbone)


def greedy(model: Any, backbone: HFBackbone) -> list[list[int]]:
    """New tokens of every question, by the library's own loop."""
    t5, found = backbone.family == "encoder-decoder", []
    for ids in backbone.codec.prompts(QUESTIONS):
        asked = torch.tensor([ids])
        # The library's own cache fails where a decoder has more layers than its encoder.
        own: dict[str, Any] = {}
        if t5:
            own["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        tokens = model.generate(
            **own, input_ids=asked, attention_mask=torch.ones_like(asked), do_sample=False,
            max_new_tokens=ROOM, pad_token_id=backbone.codec.pad_id,
        )[0]  # fmt: skip
        found.append(tokens[1 if t5 else len(ids) :].tolist())
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("name", list(EDITORS))
def test_stored_and_exported_it_answers_in_plain_libraries_as_the_edited_model(
    name: str, family: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    backbone = base_of(family, tmp_path / "base")
    plain = greedy(backbone.model, backbone)
    profile, answers = written(backbone, name)
    store = ProfileStore(tmp_path / "store")
    store.save(ADA, profile)
    found = store.read(ADA, backbone)
    assert isinstance(found, WeightProfile) and found.edit.editor == name and found.requests == 1
    for one, other in zip(found.edit.changes, profile.edit.changes, strict=True):
        assert one.module == other.module and torch.equal(one.matrix, other.matrix)
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM

    done = export_edit(found, backbone, tmp_path / "merged", form="merged")
    assert done.rank == 0 and done.agreement.same_tokens
    check_export(tmp_path / "merged", backbone)
    assert greedy(auto.from_pretrained(tmp_path / "merged"), backbone) == answers

    assert found.edit.rank == LOW_RANK.get(name, 0)
    if name in LOW_RANK:
        assert export_edit(found, backbone, tmp_path / "peft").rank == LOW_RANK[name]
        check_export(tmp_path / "peft", backbone)
        model = PeftModel.from_pretrained(
            auto.from_pretrained(tmp_path / "base"), tmp_path / "peft"
        )
        assert greedy(model, backbone) == answers
        padded = export_edit(found, backbone, tmp_path / "padded", rank=16)
        assert padded.rank == 16
    else:
        with pytest.raises(UserError, match="changes a whole matrix.*; use merged"):
            export_edit(found, backbone, tmp_path / "peft")
    assert greedy(backbone.model, backbone) == plain  # an export leaves the base as it was


def test_two_users_adapters_serve_one_batch(tmp_path: Path) -> None:
    backbone = base_of("llama", tmp_path / "base")
    profiles = [written(backbone, "ROME", request)[0] for request in (ASKED, OTHER)]
    wanted = []
    for number, profile in enumerate(profiles):
        export_edit(profile, backbone, tmp_path / f"u{number}")
        with profile.edit.active(backbone.model):
            wanted += backbone.generate(QUESTIONS[:1], max_new_tokens=ROOM)
    with mixed_users(backbone, {f"u{n}": tmp_path / f"u{n}" for n in range(2)}) as batch:
        assert batch.generate(QUESTIONS[:1] * 2, ["u0", "u1"], max_new_tokens=ROOM) == wanted


def test_a_cluster_is_one_profile_of_its_rank(tmp_path: Path) -> None:
    backbone = base_of("llama", tmp_path / "base")
    profile, answers = written(backbone, "ROME", OTHER, ASKED)
    assert profile.requests == 2 and profile.edit.rank == 2
    assert len(profile.edit.changes) == 1
    export_edit(profile, backbone, tmp_path / "merged", form="merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert greedy(model, backbone) == answers


def test_the_commands_list_show_export_and_forget_it_and_no_byte_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = base_of("llama", tmp_path / "base")
    store, serving = tmp_path / "store", tmp_path / "serving"
    rome, _ = written(backbone, "ROME")
    ProfileStore(store).save(ADA, rome)
    ProfileStore(store).save("ben", written(backbone, "FT-M", OTHER)[0])

    assert main(["profiles", "list", "--store", str(store)]) == 0
    said = capsys.readouterr().out
    assert "one user, preference, base" in said and "2 profiles" in said and ADA not in said
    assert main(["profiles", "show", ADA, "--store", str(store)]) == 0
    assert '"editor": "ROME"' in capsys.readouterr().out

    export = ["export", "--store", str(store), "--backbone", str(tmp_path / "base")]
    assert main([*export, "--to", str(serving), "--profile-key", ADA]) == 0
    assert "wrote u-" in capsys.readouterr().out
    assert main([*export, "--to", str(serving), "--profile-key", ADA]) == 0
    assert "kept  u-" in capsys.readouterr().out  # the very edit is there
    merged = tmp_path / "merged"
    assert main([*export, "--to", str(merged), "--all", "--format", "merged"]) == 0
    assert len(list(merged.glob("u-*"))) == 2
    assert main([*export, "--to", str(tmp_path / "no"), "--all"]) == 2  # one is a whole matrix
    assert "use merged" in capsys.readouterr().err

    (change,) = rome.edit.changes
    assert change.right is not None
    traces = [part.numpy().tobytes()[:16] for part in (change.left, change.right)]
    traces += [ASKED.target.encode(), ASKED.question.encode(), ADA.encode()]
    assert any(traces[0] in data for data in files_of(store))
    assert not any(trace in data for trace in traces[2:] for data in files_of(store, serving))
    assert main(["profiles", "forget", ADA, "--store", str(store)]) == 0
    for trace in traces:
        assert not any(trace in data for data in files_of(store, serving, merged))
    assert not list(serving.glob("u-*")) and len(list(merged.glob("u-*"))) == 1
    assert len(ProfileStore(store).list()) == 1


def files_of(*folders: Path) -> list[bytes]:
    return [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]


def test_bad_profiles_are_refused_in_a_sentence(tmp_path: Path) -> None:
    backbone = base_of("llama", tmp_path / "base")
    profile, _ = written(backbone, "ROME")
    store = ProfileStore(tmp_path / "store")
    path = store.save(ADA, profile)
    with pytest.raises(UserError, match="what ROME wrote into weights; read it"):
        store.load(ADA, backbone)
    with pytest.raises(UserError, match="cannot carry; use peft or merged"):
        export_edit(profile, backbone, tmp_path / "g", form="gguf")
    other = base_of("gpt2", tmp_path / "base2")
    with pytest.raises(UserError, match="belongs to backbone base, not to base2"):
        store.read(ADA, other)
    with pytest.raises(UserError, match="was made on base"):
        export_edit(profile, other, tmp_path / "o", form="merged")
    (change,) = profile.edit.changes
    for wrong, reason in (
        (replace(change, module="model.nowhere"), "has no module 'model.nowhere'"),
        (replace(change, left=change.left[:3]), "adds a matrix of"),
        (replace(change, left=0 * change.left), "changes nothing"),
    ):
        with pytest.raises(UserError, match=reason):
            export_edit(WeightEdit("ROME", (wrong,)), backbone, tmp_path / "w", form="merged")
    stored = profile.stored(["u"])
    for tensors, reason in (
        ({}, "has no '0000/left'"),
        ({**stored.tensors, "edit/0000/left": stored.tensors["edit/0000/left"][:, :0]}, "shape"),
    ):
        with pytest.raises(UserError, match=reason):
            from_stored(Stored(stored.content, tensors), path)
    empty = json.loads(json.dumps(stored.content))
    empty["edit"]["modules"] = []
    with pytest.raises(UserError, match="changes no weight"):
        from_stored(Stored(empty, {}), path)
    assert not list(tmp_path.glob(".*partial*")) and Change("m", change.left).right is None
