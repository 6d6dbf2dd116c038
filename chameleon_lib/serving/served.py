"""What lies in a serving folder, and which serving folders a store knows of.

    <folder>/<name>-v0001/     an export; the folder's name is what a request asks for
    <store>/serving.json       the folders that profiles of this store were exported into

The highest version of a name is the current one. A store remembers where its profiles went, so that
a forgotten user's exports can be removed there.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from chameleon_lib.errors import UserError
from chameleon_lib.kit.paths import replace_text
from chameleon_lib.serving.files import locked

KNOWN = "serving.json"
VERSION = re.compile(r"(?P<name>.+)-v(?P<number>\d{4,})")
_KILLED = re.compile(r"\.(?P<name>.+)-v\d{4,}\.partial-.+")


def model_name(group: str, profile_id: str) -> str:
    """What requests ask for: the group's name, or the id that stands for a user in the store."""
    if not group:
        return f"u-{profile_id}"
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", group)[:60]
    # Two names that differ in what was replaced must not become one.
    return f"g-{plain}" if plain == group else f"g-{plain}-{profile_id[:8]}"


def current_versions(folder: Path) -> dict[str, int]:
    """The highest version of every name that is served in a folder."""
    found: dict[str, int] = {}
    for path in folder.iterdir() if folder.is_dir() else []:
        match = VERSION.fullmatch(path.name)
        if match and path.is_dir():
            found[match["name"]] = max(int(match["number"]), found.get(match["name"], 0))
    return found


def versions(folder: Path, name: str) -> list[Path]:
    """Exports of a profile, current and old, and what killed exports of it left; sorted."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        match = VERSION.fullmatch(path.name) or _KILLED.fullmatch(path.name)
        if match and match["name"] == name and path.is_dir():
            found.append(path)
    return sorted(found)


def remove_model(folder: Path, name: str) -> list[Path]:
    """Removes the exports of a profile; returns what was removed."""
    gone = versions(folder, name)
    for path in gone:
        shutil.rmtree(path)
    return gone


def known_folders(store: Path) -> list[Path]:
    """The serving folders that a store knows of, whether they are still there or not.

    Raises:
        UserError: The list is damaged.
    """
    path = store / KNOWN
    try:
        return [Path(name) for name in json.loads(path.read_text(encoding="utf-8"))["folders"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete it and name the serving folders with "
            "--serving when a user is forgotten."
        ) from error


def remember_folder(store: Path, folder: Path) -> None:
    """Notes that profiles of a store are exported into a folder; before the first file is."""
    with locked(store):
        known = known_folders(store)
        if folder.absolute() not in known:
            names = sorted(str(path) for path in [*known, folder.absolute()])
            replace_text(store / KNOWN, json.dumps({"folders": names}, indent=1) + "\n")
