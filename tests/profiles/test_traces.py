from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from chameleon_lib.profiles.traces import files_showing

TEXT = 'My café "bike" was fast & cheap <really>, and I rode it every day 🦎 until the rain came.'


@pytest.mark.parametrize(
    "shown",
    [
        TEXT,
        json.dumps({"query": TEXT}),
        json.dumps({"query": TEXT}, ensure_ascii=False),
        f"<td>{html.escape(TEXT)}</td>",
        f"<td>{html.escape(TEXT, quote=False)}</td>",
        json.dumps([f"<td>{html.escape(TEXT)}</td>"]),
        'x,"{}"'.format(TEXT.replace('"', '""')),
        f"{TEXT[:50]}...",
        f"...{TEXT[-48:]}",
        f"{'x' * 1000}{TEXT[20:70]}{'y' * 999}",
    ],
)
def test_a_text_is_found_whole_cut_and_escaped(shown: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    for shift in range(30):
        (folder / f"{shift}.html").write_text(" " * shift + shown, encoding="utf-8")
    (folder / "other.html").write_text("My bike was cheap", encoding="utf-8")
    found = files_showing([TEXT], tmp_path)
    assert {path.name for path in found} == {f"{shift}.html" for shift in range(30)}


def test_short_texts_count_whole_and_labels_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sci-fi,4,good morning all\n")
    assert files_showing(["sci-fi", "4", ""], tmp_path) == []
    assert files_showing(["good morning all"], tmp_path) == [tmp_path / "a.csv"]
    assert files_showing(["good morning you"], tmp_path) == []


def test_folders_that_are_left_out_or_missing_are_not_searched(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "a").write_text(TEXT)
    (tmp_path / "link").symlink_to(tmp_path / "units" / "a")
    assert files_showing([TEXT], tmp_path, skip=[tmp_path / "units"]) == []
    assert files_showing([TEXT], tmp_path / "nowhere") == []
    assert files_showing([TEXT], tmp_path) == [tmp_path / "units" / "a"]
