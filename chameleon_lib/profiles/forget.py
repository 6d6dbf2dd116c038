"""Forgetting a user: the profile, what the cache computed, and what tables show.

What a user leaves behind lies in five places, and each is cleaned in its own way:

* the user's own profiles are removed, under whatever key they were saved;
* profiles of groups stay, since the other members' pairs are in them, but lose the user's pseudonym
  and are named: only a new fit takes the user's share out of their directions;
* exports of the removed profiles go from every serving folder that the store knows of or that is
  named; those of groups stay and are named, to be exported again after the new fit;
* records of the artifact store are removed where they are the user's, a group's that the user was
  in, or nobody's in particular (``kit.owners``);
* files of ``outputs`` that show the user's texts are removed; a run makes them again.

Every step may be killed and repeated. No run and no fit may be at work meanwhile: it would put back
what it still holds in memory, as does a server that has loaded an export. The user's own data
files are not touched, nor are copies of exports outside serving folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chameleon_lib.errors import UserError
from chameleon_lib.kit.owners import units_of
from chameleon_lib.profiles.directory import (
    ProfileDirectory,
    locked,
    remove_leftovers,
    remove_profile,
)
from chameleon_lib.profiles.files import read_content
from chameleon_lib.profiles.served import known_folders, model_name, remove_model, versions
from chameleon_lib.profiles.traces import files_showing


@dataclass
class Forgotten:
    """What was removed, and what is left to do.

    Attributes:
        profiles: Ids of the profiles removed: the user's own, and groups nobody else is left in.
        groups: Names of the groups that held the user and must be fitted again, sorted.
        waiting: Groups that wait for that since an earlier call, sorted.
        units: Records removed from the artifact store, by stage.
        unclaimed: Records removed that may have been the user's.
        files: Files removed because they show the user's texts.
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
    directory: ProfileDirectory,
    user: str,
    *,
    cache: Path | None = None,
    outputs: Path | None = None,
    texts: tuple[str, ...] = (),
    serving: Sequence[Path] = (),
) -> Forgotten:
    """Remove what is kept of a user.

    Args:
        directory: The profile store.
        user: Id of the user, as fits and runs know it.
        cache: Folder with the artifact store (``.chameleon``); left alone if None.
        outputs: Folder with tables and notebooks; left alone if None.
        texts: Texts of the user to look for in ``outputs`` and in the cache's other files. The
            insights and answers of the user's records are looked for anyway.
        serving: Serving folders beside those that the store knows of.

    Raises:
        UserError: No user is named, or a folder is not there.
    """
    if not user:
        raise UserError("Name the user to forget by the id that was fitted.")
    named = [("cache", cache), ("outputs", outputs), *(("serving folder", at) for at in serving)]
    for name, folder in named:
        if folder is not None and not folder.is_dir():
            raise UserError(f"There is no folder {folder}; give the {name} that was used.")
    done = Forgotten()
    known = known_folders(directory.root)
    done.absent = [folder for folder in known if not folder.is_dir()]
    if cache is not None:
        root = cache / "units"
        units = units_of(root, user)
        # Files first: it is the records that know what to look for.
        shown = (*texts, *units.texts)
        _remove_files(done, files_showing(shown, cache, skip=[root]))
        if outputs is not None:
            _remove_files(done, files_showing(shown, outputs))
        units.remove()
        done.units, done.unclaimed = units.stages(), len(units.unclaimed)
    elif outputs is not None:
        _remove_files(done, files_showing(texts, outputs))
    _forget_profiles(directory, user, sorted({*known, *(at.absolute() for at in serving)}), done)
    return done


def _remove_files(done: Forgotten, paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
    done.files += paths


def _forget_profiles(
    directory: ProfileDirectory, user: str, serving: Sequence[Path], done: Forgotten
) -> None:
    if not directory.folders():
        return
    name = directory.pseudonyms.of(user)
    # Also where the profile itself was deleted before.
    _remove_exports(model_name("", directory.id_of(user)), serving, done)
    for folder in directory.folders():
        with locked(folder):
            for path in sorted(folder.glob("*.json")):
                _forget_in(directory, path, name, serving, done)
            remove_leftovers(folder)
    done.groups.sort()
    done.waiting.sort()
    done.stale_exports.sort()


def _forget_in(
    directory: ProfileDirectory, path: Path, name: str, serving: Sequence[Path], done: Forgotten
) -> None:
    try:
        content = read_content(path)
    except UserError:
        done.unreadable.append(path)
        return
    model = model_name(content["group"], path.stem)
    others = [user for user in content["users"] if user != name]
    if name in content["users"] and not others:
        # Exports first: it is the profile that knows what they are called.
        _remove_exports(model, serving, done)
        remove_profile(path)
        done.profiles.append(path.stem)
    elif name in content["users"]:
        directory.amend(
            path, {**content, "users": others, "forgotten": content["forgotten"] + 1}
        )
        done.groups.append(content["group"])
    elif content["forgotten"]:
        done.waiting.append(content["group"])
    else:
        return
    done.stale_exports += [at for folder in serving for at in versions(folder, model)]


def _remove_exports(model: str, serving: Sequence[Path], done: Forgotten) -> None:
    done.exports += [path for folder in serving for path in remove_model(folder, model)]
