"""Forgetting a user: the profile, what the cache computed, and what tables show.

What a user leaves behind lies in five places, and each is cleaned in its own way:

* the user's own profiles are removed, under whatever key they were saved;
* profiles of groups stay, since the other members' pairs are in them, but lose the user's pseudonym
  and are named: only a new fit takes the user's share out of their directions;
* exports of the removed profiles go from every serving folder that the store knows of or that is
  named; those of groups stay and are named, to be exported again after the new fit;
* of the cache go the records that are the user's, a group's that the user was in, or nobody's in
  particular (``kit.owners``); all copies of imported tables, and packed tables, which no search
  can read; and every other file that shows the user;
* files of ``outputs`` that show the user go; a run makes them again.

A file shows the user where it holds the id, a given text, or a text that records made of the user.
Every step may be killed and repeated. No run and no fit may be at work meanwhile: it would put back
what it still holds in memory, as does a server that has loaded an export. The user's own data files
are not touched, nor are copies of exports outside serving folders.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from chameleon_lib.errors import UserError
from chameleon_lib.kit.owners import Units, units_of
from chameleon_lib.serving.files import (
    ProfileFiles,
    locked,
    read_profile,
    remove_leftovers,
    remove_profile,
    write_profile,
)
from chameleon_lib.serving.served import known_folders, model_name, remove_model, versions

IMPORTED = "imported"  # folder of the cache that holds copies of readers' tables
PACKED = (".parquet", ".arrow", ".feather", ".gz", ".zip", ".npz")  # tables no search can read
_WINDOW = 24  # bytes; a shown piece of 2 * _WINDOW - 1 bytes or more is found wherever it is cut
_SHORTEST = 8  # characters; shorter texts are labels and scores, which are nobody's
_WORD = 6  # digits of a number that is looked for as an id; shorter ones only in quotes


@dataclass
class Forgotten:
    """What was removed, and what is left to do.

    Attributes:
        profiles: Ids of the profiles removed: the user's own, and groups nobody else is left in.
        groups: Names of the groups that held the user and must be fitted again, sorted.
        waiting: Groups that wait for that since an earlier call, sorted.
        units: Records removed from the artifact store, by stage.
        unclaimed: Records removed that may have been the user's.
        files: Other files removed: they show the user, or are copies of tables.
        unreadable: Damaged profiles, which may be the user's and are left for you to judge.
        exports: Exports removed from serving folders.
        stale_exports: Exports of ``groups`` and ``waiting``, to be replaced after the new fit.
        absent: Serving folders that the store knows of and that are not there.
    """

    profiles: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    units: dict[str, int] = field(default_factory=dict)
    unclaimed: int = 0
    files: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    exports: list[Path] = field(default_factory=list)
    stale_exports: list[Path] = field(default_factory=list)
    absent: list[Path] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        """Whether nothing of the user was there."""
        return not (self.profiles or self.groups or self.units or self.files or self.exports)


def forget(
    profiles: ProfileFiles,
    user: str,
    *,
    cache: str | Path | None = None,
    outputs: str | Path | None = None,
    texts: Sequence[str] = (),
    serving: Sequence[str | Path] = (),
) -> Forgotten:
    """Remove what is kept of a user.

    Args:
        profiles: The profile store.
        user: Id of the user, as fits and runs know it.
        cache: Folder with the artifact store (``.chameleon``); left alone if None.
        outputs: Folder with tables and notebooks; left alone if None.
        texts: Texts of the user to look for in ``outputs`` and in the cache's other files.
        serving: Serving folders beside those that the store knows of.

    Raises:
        UserError: No user is named, or a folder is not there, or the cache is another folder.
    """
    if not user:
        raise UserError("Name the user to forget by the id that was fitted.")
    named = {"cache": [cache], "outputs": [outputs], "serving folder": serving}
    where = {name: [Path(at) for at in given if at] for name, given in named.items()}
    for name, folders in where.items():
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"There is no folder {folder}; give the {name} that was used.")
    for folder in where["cache"]:
        if not (folder / "units").is_dir() and not (folder / IMPORTED).is_dir():
            raise UserError(f"{folder} is no cache of runs; give the folder .chameleon.")
    known = known_folders(profiles.root)
    done = Forgotten(absent=[folder for folder in known if not folder.is_dir()])
    units = Units() if not where["cache"] else units_of(where["cache"][0] / "units", user)
    traces = Traces(user, (*texts, *units.texts))
    # Files first: it is the records that know what to look for.
    for folder in (*where["cache"], *where["outputs"]):
        for path in _files(folder, skip=folder / "units"):
            copy = path.suffix in PACKED or path.relative_to(folder).parts[0] == IMPORTED
            if (copy and folder in where["cache"]) or traces.shown_in(path):
                path.unlink(missing_ok=True)
                done.files.append(path)
    units.remove()
    done.units, done.unclaimed = units.stages(), len(units.unclaimed)
    servers = {*known, *(at.absolute() for at in where["serving folder"])}
    _forget_profiles(profiles, user, sorted(servers), done)
    return done


def _files(folder: Path, skip: Path) -> Iterator[Path]:
    """All files below a folder; none through links."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and path != skip:
            yield from _files(path, skip)
        elif path.is_file() and not path.is_symlink():
            yield path


class Traces:
    """What shows a user, however it is spelt: in JSON, HTML, CSV or plain text.

    Tables cut long texts and notebooks escape them, so texts are looked for in pieces and in every
    spelling. Ids are looked for as whole words, short numbers only in quotes. Pixels are not read.

    Args:
        user: Id of the user; none if empty.
        texts: What to look for; texts below 8 characters are left out.
    """

    def __init__(self, user: str, texts: Iterable[str]) -> None:
        self._windows: set[bytes] = set()
        self._whole: set[bytes] = set()
        for text in texts:
            for spelt in _spellings(text.strip()):
                if len(spelt) >= 2 * _WINDOW:
                    starts = range(len(spelt) - _WINDOW + 1)
                    self._windows.update(spelt[at : at + _WINDOW] for at in starts)
                elif len(text.strip()) >= _SHORTEST:
                    self._whole.add(spelt)
        name = b"|".join(map(re.escape, sorted(_spellings(user), reverse=True)))
        around = rb"(?<![0-9A-Za-z_])(?:%s)(?![0-9A-Za-z_])"
        if len(user) < 3 or (len(user) < _WORD and user.isdigit()):
            around = rb"[\"'](?:%s)\\?[\"']"
        self._id = re.compile(around % name) if user else None

    def shown_in(self, path: Path) -> bool:
        """Whether a file holds the id, one of the texts, or a longer piece of one."""
        data = path.read_bytes()
        if self._id is not None and self._id.search(data):
            return True
        if any(text in data for text in self._whole):
            return True
        # Every piece of a file that is as long as two windows has one that starts at a multiple.
        starts = range(0, len(data), _WINDOW) if self._windows else ()
        return any(data[at : at + _WINDOW] in self._windows for at in starts)


def _spellings(text: str) -> set[bytes]:
    shown = {text, html.escape(text), html.escape(text, quote=False), text.replace('"', '""')}
    escaped = {
        json.dumps(spelt, ensure_ascii=ascii_only)[1:-1]
        for spelt in shown
        for ascii_only in (True, False)
    }
    return {spelt.encode("utf-8", "surrogatepass") for spelt in shown | escaped if spelt}


def _forget_profiles(
    profiles: ProfileFiles, user: str, serving: Sequence[Path], done: Forgotten
) -> None:
    if not profiles.folders():
        return
    name = profiles.pseudonyms.of(user)
    # Also where the profile itself was deleted before.
    _remove_exports(model_name("", profiles.id_of(user)), serving, done)
    for folder in profiles.folders():
        with locked(folder):
            for path in sorted(folder.glob("*.safetensors")):
                _forget_in(path, name, serving, done)
            remove_leftovers(folder)
    done.groups.sort()
    done.waiting.sort()
    done.stale_exports.sort()


def _forget_in(path: Path, name: str, serving: Sequence[Path], done: Forgotten) -> None:
    try:
        stored = read_profile(path)
    except UserError:
        done.unreadable.append(path)
        return
    content = stored.content
    model = model_name(content["group"], path.stem)
    others = [user for user in content["users"] if user != name]
    if name in content["users"] and not others:
        # Exports first: it is the profile that knows what they are called.
        _remove_exports(model, serving, done)
        remove_profile(path)
        done.profiles.append(path.stem)
    elif name in content["users"]:
        changed = {**content, "users": others, "forgotten": content["forgotten"] + 1}
        write_profile(path, replace(stored, content=changed))
        done.groups.append(content["group"])
    elif content["forgotten"]:
        done.waiting.append(content["group"])
    else:
        return
    done.stale_exports += [at for folder in serving for at in versions(folder, model)]


def _remove_exports(model: str, serving: Sequence[Path], done: Forgotten) -> None:
    done.exports += [path for folder in serving for path in remove_model(folder, model)]


def sentences(done: Forgotten) -> list[str]:
    """What was done, and what is left to do."""
    stages = ", ".join(f"{stage} {count}" for stage, count in done.units.items())
    removed: dict[str, Sequence[object]] = {
        "profiles; copies of exports outside the serving folders are yours": done.profiles,
        f"cached records ({stages})": [""] * sum(done.units.values()),
        "cached records without a note of whose they are": [""] * done.unclaimed,
        "files that showed the user or copied a table": done.files,
        "exports; restart the servers that may have loaded them": done.exports,
    }
    said = ["Nothing of this user was found."] if done.nothing else []
    for what, names in removed.items():
        if names:
            said.append(f"Removed {len(names)} {what}{':' if names[0] else '.'}")
            said += [f"  {name}" for name in names if name]
    if done.groups:
        said.append(f"Fit these groups again without the user: {', '.join(done.groups)}.")
    if done.waiting:
        said.append(f"These groups wait for a new fit since earlier: {', '.join(done.waiting)}.")
    if done.stale_exports:
        said.append("After the new fit, replace their exports ('export --all --prune'):")
        said += [f"  {path}" for path in done.stale_exports]
    said += [
        f"Profiles were exported into {path}, which is not there: if it was moved, repeat with "
        "--serving."
        for path in done.absent
    ]
    said += [
        f"{path} is damaged and may be the user's: delete it, or restore and repeat."
        for path in done.unreadable
    ]
    if not done.nothing:
        said.append("Take the user out of your data files, or the next run makes all of it again.")
    return said
