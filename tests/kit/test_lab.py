"""Starting JupyterLab; what a reader does in it is tried in tests/browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.kit import paths
from chameleon_lib.kit.kernels import open_lab
from chameleon_lib.kit.progress import VARIABLE


def test_the_command_becomes_lab_with_private_settings_and_the_threads_of_the_profile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *words: called.append(words))
    monkeypatch.setenv("CHAMELEON_CACHE", str(tmp_path))
    for name, value in ((VARIABLE, "x"), ("MPLBACKEND", "agg"), ("JUPYTER_PATH", "/foreign")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    open_lab("demo")
    news, own = sorted((tmp_path / "lab").rglob("*.jupyterlab-settings"))
    assert '"fetchNews": "false"' in news.read_text(encoding="utf-8")
    own.write_text('{"windowingMode": "full"}', encoding="utf-8")
    open_lab("paper")
    assert "full" in own.read_text(encoding="utf-8")  # the reader's own choice stays
    for program, words, env in called:
        assert words[:3] == [program, "-m", "jupyterlab"]
        assert f"--ServerApp.root_dir={paths.root()}" in words
        assert "--LabApp.default_url=/lab/tree/notebooks" in words
        assert not {VARIABLE, "MPLBACKEND", "JUPYTER_PATH"} & set(env)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTERLAB_SETTINGS_DIR"):
            assert Path(env[name]).is_relative_to(tmp_path)
    demo, paper = (env for _, _, env in called)
    assert (demo["OMP_NUM_THREADS"], demo.get("HF_HUB_OFFLINE")) == ("1", "1")
    assert (paper["OMP_NUM_THREADS"], paper.get("HF_HUB_OFFLINE")) == ("8", None)
