"""A GGUF adapter beside base files: what belongs together, and what is told before it is served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from chameleon_lib import cli
from chameleon_lib.backbones import HFBackbone
from chameleon_lib.errors import UserError
from chameleon_lib.serving import gguf_base
from chameleon_lib.serving.factors import compile_edit, projection
from chameleon_lib.serving.gguf_adapter import write_gguf
from chameleon_lib.serving.gguf_base import Fit, Served, check_adapter, served_agreement
from tests.backbones.tiny import make_backbone
from tests.serving.exported import WITH_GGUF, backbone_of, edit_of

WIDE = {"hidden_size": 32, "intermediate_size": 64}  # rows that quantised blocks of 32 divide


def write_base(path: Path, backbone: HFBackbone, kind: str = "F32", arch: str = "llama") -> Path:
    """A base file that holds the edited matrices, stored as this kind."""
    stored = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(gguf.GGUFType.MODEL)
    start = "dec.blk" if arch == "t5" else "blk"
    for layer in range(backbone.n_layers):
        weight = projection(backbone, layer).weight.float().numpy()
        data = gguf.quants.quantize(np.ascontiguousarray(weight), stored)
        writer.add_tensor(f"{start}.{layer}.ffn_down.weight", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_lora(path: Path, backbone: HFBackbone, rank: int = 2, **changes: Any) -> Path:
    updates = compile_edit(edit_of(**changes), backbone).updates
    write_gguf(path, [update.padded(rank) for update in updates], backbone)
    return path


@pytest.fixture(scope="module")
def wide() -> HFBackbone:
    return make_backbone("llama", **WIDE)


def _wide_edit(wide: HFBackbone) -> Any:
    import torch

    theta = torch.randn(2, 2, wide.d, generator=torch.Generator().manual_seed(3))
    return replace(edit_of(), theta_p=theta[0], theta_n=theta[1])


@pytest.mark.parametrize("family", WITH_GGUF)
def test_an_adapter_fits_the_file_it_was_compiled_from(family: str, tmp_path: Path) -> None:
    backbone = backbone_of(family)
    lora = write_lora(tmp_path / "a.gguf", backbone, rank=8)
    arch = str(gguf.GGUFReader(lora).get_field("general.architecture").contents())  # type: ignore[union-attr]
    found = check_adapter(lora, write_base(tmp_path / "m.gguf", backbone, arch=arch))
    assert (found.architecture, found.tensors, found.types, found.same) == (arch, 2, ("F32",), True)
    assert found.rest < 1e-5 and "weights are those it was compiled from" in str(found)


@pytest.mark.parametrize("changes", [{}, {"order": "n_then_p"}, {"alpha_n": 0.0}, {"alpha_p": 0.0}])
def test_every_edit_is_made_of_its_bases_matrices(changes: dict[str, Any], tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    lora = write_lora(tmp_path / "a.gguf", backbone, **changes)
    assert check_adapter(lora, write_base(tmp_path / "m.gguf", backbone)).rest < 1e-5
    other = write_base(tmp_path / "o.gguf", make_backbone("llama", seed=5))
    with pytest.raises(UserError, match="holds other weights than .*a.gguf was compiled from"):
        check_adapter(lora, other)


@pytest.mark.parametrize(
    ("kind", "least", "most"), [("F16", 1e-6, 1e-3), ("Q8_0", 1e-3, 0.02), ("Q4_1", 0.02, 0.2)]
)
def test_rounding_is_told_from_the_same_weights_and_from_others(
    kind: str, least: float, most: float, wide: HFBackbone, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "a.gguf", compile_edit(_wide_edit(wide), wide).updates, wide)
    found = check_adapter(tmp_path / "a.gguf", write_base(tmp_path / "m.gguf", wide, kind))
    assert found.types == (kind,) and not found.same and least < found.rest < most
    assert "answers can differ from the hook's" in str(found)


def _refused(tmp_path: Path, what: str) -> tuple[Path, Path]:
    backbone, other = backbone_of("llama"), make_backbone("llama", intermediate_size=48)
    lora, base = tmp_path / "a.gguf", tmp_path / "m.gguf"
    write_lora(lora, backbone)
    write_base(base, backbone)
    if what == "architecture":
        write_base(base, backbone, arch="qwen2")
    elif what == "names":
        write_base(base, make_backbone("llama", num_hidden_layers=1))
    elif what == "shapes":
        write_base(base, other)
    elif what == "swapped":
        lora, base = base, lora
    elif what == "two adapters":
        base = lora
    elif what == "cut":
        base.write_bytes(base.read_bytes()[:200])
    elif what == "gone":
        base.unlink()
    elif what == "text":
        lora.write_text("{}")
    return lora, base


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("architecture", "a.gguf is of the architecture llama, .*m.gguf of qwen2"),
        ("names", "m.gguf does not hold blk.2.ffn_down.weight whole"),
        ("shapes", r"blk.0.ffn_down.weight is \(24, 48\) in .*, and the factors .* \(2, 40\)"),
        ("swapped", "m.gguf is no LoRA adapter"),
        ("two adapters", "a.gguf is an adapter; give --base the model"),
        ("cut", "m.gguf cannot be read as GGUF"),
        ("gone", "m.gguf cannot be read as GGUF"),
        ("text", "a.gguf cannot be read as GGUF"),
    ],
)
def test_what_does_not_belong_together_is_one_sentence_and_exit_code_2(
    what: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, base = _refused(tmp_path, what)
    with pytest.raises(UserError, match=sentence):
        check_adapter(lora, base)
    assert cli.main(["export", "--check", str(lora), "--base", str(base)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and said.endswith(".")


def test_the_command_says_that_they_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = backbone_of("llama")
    lora, base = write_lora(tmp_path / "a", backbone), write_base(tmp_path / "m", backbone)
    assert cli.main(["export", "--check", str(lora), "--base", str(base)]) == 0
    assert capsys.readouterr().out.startswith("The adapter fits: llama, 2 matrices in F32")
    assert cli.main(["export", "--check", str(lora)]) == 2
    assert "belong together" in capsys.readouterr().err


class FakeLlama:
    """Stands for the binding where it is not installed: the kit's own model behind its calls."""

    backbone: HFBackbone
    gain = 1.0

    def __init__(self, _base: str, *, lora_path: str | None, **_named: Any) -> None:
        self.edit = None if lora_path is None else edit_of()
        self.n_tokens = 0

    def n_vocab(self) -> int:
        return 400

    def reset(self) -> None:
        self.n_tokens = 0

    def eval(self, tokens: list[int]) -> None:
        import torch

        ids = torch.tensor([tokens])
        with torch.no_grad():
            plain = self.backbone.model(input_ids=ids).logits[0]
            with self.backbone.editing(self.edit):
                edited = self.backbone.model(input_ids=ids).logits[0]
        self.scores, self.n_tokens = (plain + self.gain * (edited - plain)).numpy(), len(tokens)

    def close(self) -> None:
        pass


def test_the_served_file_is_measured_beside_the_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    from types import SimpleNamespace

    backbone = FakeLlama.backbone = backbone_of("llama")
    lora, base = write_lora(tmp_path / "a", backbone), write_base(tmp_path / "m", backbone)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match="needs llama-cpp-python, which is not installed here"):
        served_agreement(backbone, edit_of(), lora, base)
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=FakeLlama))
    found = served_agreement(backbone, edit_of(), lora, base)
    assert found.correlation > 0.99999 and found.slope == pytest.approx(1, abs=1e-4)
    assert found.edited < 1e-4 and found.plain < 1e-4
    assert (found.edited_answers, found.plain_answers, found.prompts) == (3, 3, 3)
    monkeypatch.setattr(FakeLlama, "gain", 0.5)
    half = served_agreement(backbone, edit_of(), lora, base)
    assert half.slope == pytest.approx(0.5, abs=1e-3) and half.edited > 0.1 > half.plain
    assert half.plain_answers == 3 and "slope 0.500" in str(half)
    monkeypatch.setattr(FakeLlama, "n_vocab", lambda _: 401)
    with pytest.raises(UserError, match="has 401 tokens, tiny-llama 400"):
        served_agreement(backbone, edit_of(), lora, base)
    with pytest.raises(UserError, match="holds other weights"):  # before llama.cpp sees it
        served_agreement(backbone, edit_of(), lora, write_base(base, make_backbone("llama", 5)))


def test_sentences_are_whole() -> None:
    assert str(Fit("llama", 2, ("Q4_1",), False, 0.08)).endswith("which --served measures.")
    same = Fit("llama", 2, ("Q4_1",), True, 0.0)  # llama.cpp rounds what goes into a product
    assert "compiled from; answers can differ" in str(same)
    assert str(replace(same, types=("F32",))).endswith("compiled from.")
    assert str(Served(1.0, 1.0, 0.1, 0.1, 3, 3, 3)).endswith("without.")
    assert gguf_base._OTHER == 0.5
