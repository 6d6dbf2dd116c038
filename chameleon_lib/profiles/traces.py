"""Files that show a text, however they spell it: JSON, HTML, CSV or plain."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

_WINDOW = 24  # bytes; a shown piece of 2 * _WINDOW - 1 bytes or more is found wherever it is cut
_SHORTEST = 8  # characters; shorter texts are labels and scores, which are nobody's


def files_showing(
    texts: Iterable[str], folder: Path, skip: Iterable[Path] = ()
) -> list[Path]:
    """Files below a folder that hold one of the texts or a longer piece of one.

    Tables cut long texts and notebooks escape them, so texts are looked for in pieces and in the
    spellings of JSON, HTML and CSV. Pixels are not read.

    Args:
        texts: What to look for; texts below 8 characters are left out.
        folder: Searched with all its folders; need not exist.
        skip: Folders that are left out.
    """
    windows: set[bytes] = set()
    whole: set[bytes] = set()
    for text in texts:
        for spelt in _spellings(text.strip()):
            if len(spelt) >= 2 * _WINDOW:
                windows.update(spelt[at : at + _WINDOW] for at in range(len(spelt) - _WINDOW + 1))
            elif len(text.strip()) >= _SHORTEST:
                whole.add(spelt)
    if not windows and not whole:
        return []
    return [path for path in _files(folder, set(skip)) if _shows(path, windows, whole)]


def _files(folder: Path, skip: set[Path]) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and path not in skip:
            yield from _files(path, skip)
        elif path.is_file() and not path.is_symlink():
            yield path


def _shows(path: Path, windows: set[bytes], whole: set[bytes]) -> bool:
    data = path.read_bytes()
    if any(text in data for text in whole):
        return True
    # Every piece of a file that is as long as two windows contains one that starts at a multiple.
    return any(data[at : at + _WINDOW] in windows for at in range(0, len(data), _WINDOW))


def _spellings(text: str) -> set[bytes]:
    shown = {text, html.escape(text), html.escape(text, quote=False), text.replace('"', '""')}
    escaped = {
        json.dumps(spelt, ensure_ascii=ascii_only)[1:-1]
        for spelt in shown
        for ascii_only in (True, False)
    }
    return {spelt.encode("utf-8", "surrogatepass") for spelt in shown | escaped if spelt}
