from __future__ import annotations

import json
from pathlib import Path

import pytest

from chameleon_lib.backbones import revisions
from chameleon_lib.kit.profiles import PROFILES
from chameleon_lib.studies.provenance import show


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAMELEON_OUTPUTS", str(tmp_path))
    return tmp_path


def test_the_page_and_the_file_hold_every_notebooks_users(outputs: Path) -> None:
    first = show(PROFILES["demo"], {"LaMP_2": "a" * 64})
    second = show(PROFILES["demo"], {"LaMP_3": "b" * 64})
    assert "a" * 16 in first.data and "a" * 17 not in first.data
    assert "LaMP_3" in second.data and "LaMP_2" not in second.data
    facts = json.loads((outputs / "demo" / "run_facts.json").read_text(encoding="utf-8"))
    assert facts["data"] == {"LaMP_2": "a" * 64, "LaMP_3": "b" * 64}


def test_neither_time_nor_host_nor_path_is_shown(outputs: Path) -> None:
    one, two = (show(PROFILES["demo"], {"LaMP_2": "c" * 64}).data for _ in range(2))
    assert one == two and str(outputs) not in one and str(Path.home()) not in one
    assert "demo" in one and "torch" in one and "threads" in one


def test_revisions_of_hub_models_are_shown_with_what_was_used_before(outputs: Path) -> None:
    lock = outputs / "demo" / revisions.LOCK_NAME
    for commit in ("a1" * 20, "b2" * 20):
        revisions.record(lock, revisions.Revision("someone/net", commit, None, "c" * 64))
    page = show(PROFILES["demo"], {}).data
    assert "revision someone/net" in page
    assert f"{'b2' * 6} (earlier outputs: {'a1' * 6})" in page
