"""The README's script: load users, fit, answer, save, export, in at most twelve lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chameleon_lib.kit.paths import root

README = (root() / "README.md").read_text(encoding="utf-8")
(SCRIPT,) = re.findall(r"^## In twelve lines\n.*?^```python\n(.*?)^```$", README, re.M | re.S)


def test_the_script_has_twelve_lines_at_most() -> None:
    assert len(SCRIPT.splitlines()) <= 12


@pytest.mark.slow
def test_the_script_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chameleon_lib").symlink_to(root() / "chameleon_lib")  # as from the checkout
    exec(compile(SCRIPT, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith("['")
    assert list((tmp_path / "my_profiles").rglob("*.safetensors"))
    assert (tmp_path / "my_adapter" / "adapter_config.json").is_file()
