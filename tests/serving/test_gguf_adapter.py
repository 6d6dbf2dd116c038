"""The GGUF file itself: names, shapes and keys as llama.cpp's loader asks for them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from chameleon_lib.errors import UserError
from chameleon_lib.serving.factors import compile_edit
from chameleon_lib.serving.gguf_adapter import read_gguf, write_gguf
from tests.serving.exported import WITH_GGUF, backbone_of, edit_of

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3", "gemma3": "gemma3"}


@pytest.mark.parametrize("family", WITH_GGUF)
def test_the_file_is_laid_out_as_the_public_converter_does(family: str, tmp_path: Path) -> None:
    backbone, edit = backbone_of(family), edit_of()
    updates = [update.padded(8) for update in compile_edit(edit, backbone).updates]
    write_gguf(tmp_path / "a.gguf", updates, backbone)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")

    def value(key: str) -> object:
        field = reader.get_field(key)
        assert field is not None, key
        return field.contents()

    expected = "t5" if family.endswith("t5") else ARCHITECTURES.get(family, family)
    assert value("general.architecture") == expected
    assert value("general.type") == "adapter" and value("adapter.type") == "lora"
    assert value("adapter.lora.alpha") == 8.0
    start = "dec.blk" if expected == "t5" else "blk"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == {
        f"{start}.{layer}.ffn_down.weight.lora_{side}" for layer in (0, 2) for side in "ab"
    }
    for layer, update in zip((0, 2), updates, strict=True):
        a, b = (tensors[f"{start}.{layer}.ffn_down.weight.lora_{side}"] for side in "ab")
        # ggml counts axes from the fastest: a is (d_ff, r) and b is (r, d).
        assert list(a.shape) == [40, 8] and list(b.shape) == [8, 24]
        assert a.tensor_type == b.tensor_type == gguf.GGMLQuantizationType.F32
        assert np.allclose(np.array(b.data) @ np.array(a.data), update.delta.numpy(), atol=1e-5)


def test_a_file_of_another_family_or_kind_is_refused(tmp_path: Path) -> None:
    backbone, path = backbone_of("llama"), tmp_path / "a.gguf"
    write_gguf(path, compile_edit(edit_of(), backbone).updates, backbone)
    assert len(read_gguf(path, backbone)) == 2
    with pytest.raises(UserError, match="general.architecture is not 'qwen2'"):
        read_gguf(path, backbone_of("qwen2"))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="general.type is not 'adapter'"):
        read_gguf(tmp_path / "m.gguf", backbone)
