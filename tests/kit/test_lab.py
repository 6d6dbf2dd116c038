"""Starting JupyterLab; what a reader does in it is tried in tests/browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from chameleon_lib.kit import paths
from chameleon_lib.kit.kernels import open_lab, own_notebooks
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
    monkeypatch.setattr(paths, "own_notebooks_dir", lambda: tmp_path / "mine")
    open_lab("demo")
    news, own = sorted((tmp_path / "lab").rglob("*.jupyterlab-settings"))
    assert '"fetchNews": "false"' in news.read_text(encoding="utf-8")
    own.write_text('{"windowingMode": "full"}', encoding="utf-8")
    open_lab("paper")
    assert "full" in own.read_text(encoding="utf-8")  # the reader's own choice stays
    for program, words, env in called:
        assert words[:3] == [program, "-m", "jupyterlab"]
        assert f"--ServerApp.root_dir={tmp_path}" in words
        assert "--LabApp.default_url=/lab/tree/mine" in words
        assert not {VARIABLE, "MPLBACKEND", "JUPYTER_PATH"} & set(env)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTERLAB_SETTINGS_DIR"):
            assert Path(env[name]).is_relative_to(tmp_path)
    demo, paper = (env for _, _, env in called)
    assert (demo["OMP_NUM_THREADS"], demo.get("HF_HUB_OFFLINE")) == ("1", "1")
    assert (paper["OMP_NUM_THREADS"], paper.get("HF_HUB_OFFLINE")) == ("8", None)
    # Tensors of large models are given back to the system, those of embedded ones are kept.
    demo_size, paper_size = (int(env["MALLOC_MMAP_THRESHOLD_"]) for env in (demo, paper))
    assert paper_size < 2**23 < demo_size


def test_a_reader_works_on_copies_which_follow_their_sources_until_they_are_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources = tmp_path / "sources"
    monkeypatch.setattr(paths, "notebooks_dir", lambda: sources)
    monkeypatch.setattr(paths, "own_notebooks_dir", lambda: tmp_path / "mine")
    for name in ("01_a.ipynb", "08_b.ipynb"):
        paths.replace_text(sources / name, "old")
    mine = own_notebooks()
    (mine / "08_b.ipynb").write_text("table = 'people.csv'")
    for name in ("01_a.ipynb", "08_b.ipynb", "09_c.ipynb"):
        paths.replace_text(sources / name, "new")
    assert own_notebooks() == mine
    found = {path.name: path.read_text() for path in mine.glob("*.ipynb")}
    assert found == {"01_a.ipynb": "new", "08_b.ipynb": "table = 'people.csv'", "09_c.ipynb": "new"}
