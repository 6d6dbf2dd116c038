"""Forgetting a user: the profile, its exports, and all that runs computed.

* The user's own profiles are removed, under whatever key they were saved.
* Profiles of groups stay, since the other members' pairs are in them, but lose the user's pseudonym
  and are named: only a new fit takes the user's share out of their directions.
* Exports of the removed profiles go from every serving folder that the store knows of or that is
  named; those of groups stay and are named, to be exported again after the new fit.
* A cache and outputs are emptied whole: what one user left in them lies between the others', in
  tables, texts, copies of imported files and activations, and a run makes all of it again. So no
  spelling, encoding or form of a text can hide in them. Those that are not named are said.
* An id is looked for in every Unicode form of it, with and without marks that nobody sees.

Every step may be killed and repeated. No run and no fit may be at work meanwhile: it would put back
what it still holds in memory, as does a server that has loaded an export. The user's own data files
are not touched, nor are copies of exports outside serving folders.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from chameleon_lib.errors import UserError
from chameleon_lib.serving.files import (
    ProfileFiles,
    known_folders,
    locked,
    model_name,
    read_profile,
    remove_leftovers,
    remove_model,
    remove_profile,
    versions,
    write_profile,
)
from chameleon_lib.serving.tokens import Tokens

# What runs write into a cache and into the outputs of a run profile, what tells them apart first. A
# folder that holds anything else is not emptied: a checkout has notebooks, too.
_CACHE = ("units", "imported", "ledger.json")
_MODELS = "models"  # public weights: no user is in them, and they take long to bring
_OUTPUTS = ("tables", "notebooks", "html")
_MADE = {
    "cache": (
        *_CACHE, _MODELS, "compared.json", "counts", "jupyter", "lab", "matplotlib", "progress",
        "report.json", "run.lock", "work",
    ),
    "outputs": (
        *_OUTPUTS, "figures", "index.html", "measured", "revisions.json", "run_facts.json",
        "screens", "verdicts",
    ),
}  # fmt: skip
_MARKS = {"cache": _CACHE, "outputs": _OUTPUTS}


@dataclass
class Forgotten:
    """What was removed, and what is left to do.

    Attributes:
        profiles: Ids of the profiles removed: the user's own, and groups nobody else is left in.
        groups: Names of the groups that held the user and must be fitted again, sorted.
        waiting: Groups that wait for that since an earlier call, sorted.
        emptied: The cache and the outputs, if anything was in them.
        unreadable: Damaged profiles, which may be the user's and are left for you to judge.
        exports: Exports removed from serving folders.
        stale_exports: Exports of ``groups`` and ``waiting``, to be replaced after the new fit.
        tokens: Number of the user's tokens that were removed.
        absent: Serving folders that the store knows of and that are not there.
        left: Folders that may hold texts of the user and were not emptied, each with what to do.
    """

    profiles: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    emptied: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    exports: list[Path] = field(default_factory=list)
    stale_exports: list[Path] = field(default_factory=list)
    tokens: int = 0
    absent: list[Path] = field(default_factory=list)
    left: dict[Path, str] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        """Whether nothing was there to be removed."""
        return not (self.profiles or self.groups or self.emptied or self.exports or self.tokens)

    def __str__(self) -> str:
        """What was done, and what is left to do, one sentence a line."""
        removed: dict[str, Sequence[object]] = {
            "Removed {} profiles; copies of exports outside the serving folders are yours":
                self.profiles,
            "Emptied {} folders; a run fills them again": self.emptied,
            "Removed {} exports; restart the servers that may have loaded them": self.exports,
        }  # fmt: skip
        said = ["Nothing of this user was found."] if self.nothing else []
        for what, names in removed.items():
            if names:
                said += [f"{what.format(len(names))}:", *(f"  {name}" for name in names)]
        if self.tokens:
            said.append(f"Removed {self.tokens} tokens; the user can no longer ask a server.")
        if self.groups:
            said.append(f"Fit these groups again without the user: {', '.join(self.groups)}.")
        if self.waiting:
            waiting = ", ".join(self.waiting)
            said.append(f"These groups wait for a new fit since earlier: {waiting}.")
        if self.stale_exports:
            said.append("After the new fit, replace their exports ('export --all --prune'):")
            said += [f"  {path}" for path in self.stale_exports]
        said += [
            f"Profiles were exported into {path}, which is not there: if it was moved, repeat with "
            "--serving."
            for path in self.absent
        ]
        said += [
            f"{path} is damaged and may be the user's: delete it, or restore and repeat."
            for path in self.unreadable
        ]
        said += [f"{path} may hold texts of the user: {what}." for path, what in self.left.items()]
        if not self.nothing:
            said.append("Take the user out of your data files, or the next run makes all again.")
        return "\n".join(said)


class Keeps(Protocol):
    """A store that a user can be taken out of."""

    @property
    def root(self) -> Path: ...  # the folder

    def drop(self, user: str, serving: Sequence[Path], done: Forgotten) -> None:
        """Take away what is kept under the user's id, and its exports; note it in ``done``."""


def forget(
    profiles: Keeps,
    user: str,
    *,
    cache: str | Path | None = None,
    outputs: str | Path | Sequence[Path] | None = None,
    serving: Sequence[str | Path] = (),
    beside: Mapping[Path, str] | None = None,
) -> Forgotten:
    """Remove what is kept of a user.

    Args:
        profiles: The profile store.
        user: Id of the user, as fits and runs know it.
        cache: Folder of the artifact store (``.chameleon``); left alone if None.
        outputs: Outputs of one run profile or several (``outputs/demo-data``); left alone if None.
        serving: Serving folders beside those that the store knows of.
        beside: Folders to be said unless they are emptied, each with what to do about it.

    Raises:
        UserError: No user is named, or a folder is not there, another one than is said, or one to
            be emptied that holds what no run made.
    """
    if not user:
        raise UserError("Name the user to forget by the id that was fitted.")
    runs = [outputs] if isinstance(outputs, str | Path) else outputs or []
    whole = [("cache", Path(cache))] if cache else []
    whole += [("outputs", Path(at)) for at in runs]
    named = [("serving folder", Path(at)) for at in serving]
    for name, folder in (*whole, *named):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}; give the {name} that was used.")
    for name, folder in whole:
        inside = {path.name for path in folder.iterdir()}
        if inside and not inside & set(_MARKS[name]):
            usual = {"cache": "the folder .chameleon", "outputs": "one such as outputs/demo-data"}
            raise UserError(f"{folder} is no {name} of runs; give {usual[name]}.")
        others = inside - {*_MADE[name], ".DS_Store", ".ipynb_checkpoints"}
        if strange := sorted(other for other in others if ".partial" not in other):
            raise UserError(
                f"{folder} is to be emptied and holds {strange[0]!r}, which no run made: move it "
                f"away, or name the {name} of runs."
            )
    known = known_folders(profiles.root)
    done = Forgotten(absent=[folder for folder in known if not folder.is_dir()])
    done.emptied = [at for name, at in whole if _empty(at, _MARKS[name])]
    done.left = {
        at: what for at, what in (beside or {}).items() if at.is_dir() and any(at.iterdir())
    }
    servers = sorted({*known, *(folder.absolute() for _, folder in named)})
    profiles.drop(user, servers, done)
    tokens = Tokens(profiles.root)
    if tokens.path.exists():
        done.tokens = tokens.drop({tokens.name_of(one) for one in spellings(user)})
    return done


def _empty(folder: Path, marks: Sequence[str]) -> bool:
    """Removes all that is in a folder; False if nothing was."""
    # Marks last: a call that is repeated must know the folder again.
    found = (path for path in folder.iterdir() if path.name != _MODELS)
    inside = sorted(found, key=lambda path: path.name in marks)
    for path in inside:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return bool(inside)


def drop_profiles(
    profiles: ProfileFiles, user: str, serving: Sequence[Path], done: Forgotten
) -> None:
    """Take a user out of a folder of profiles."""
    if not profiles.folders():
        return
    spelt = spellings(user)
    names = {profiles.pseudonyms.of(one) for one in spelt}
    # Also where the profile itself was deleted before.
    for one in spelt:
        done.exports += remove_model(model_name("", profiles.id_of(one)), serving)
    for folder in profiles.folders():
        with locked(folder):
            for path in sorted(folder.glob("*.safetensors")):
                _forget_in(path, names, serving, done)
            remove_leftovers(folder)
    for found in (done.groups, done.waiting):
        found.sort()
    done.stale_exports.sort()


def spellings(user: str) -> list[str]:
    """An id in every Unicode form of it, as given and without marks and blanks that nobody sees."""
    seen = "".join(c for c in user if unicodedata.category(c) not in ("Cc", "Cf"))
    given = (user, user.strip("\ufeff"), " ".join(seen.split()))
    forms = [unicodedata.normalize(form, text)
             for text in given for form in ("NFC", "NFD", "NFKC", "NFKD")]  # fmt: skip
    return [text for text in dict.fromkeys([*given, *forms]) if text]


def _forget_in(path: Path, names: set[str], serving: Sequence[Path], done: Forgotten) -> None:
    try:
        stored = read_profile(path)
    except UserError:
        done.unreadable.append(path)
        return
    content = stored.content
    model = model_name(content["group"], path.stem)
    others = [user for user in content["users"] if user not in names]
    inside = len(others) < len(content["users"])
    if inside and not others:
        # Exports first: it is the profile that knows what they are called.
        done.exports += remove_model(model, serving)
        remove_profile(path)
        done.profiles.append(path.stem)
    elif inside:
        gone = content["forgotten"] + len(content["users"]) - len(others)
        changed = {**content, "users": others, "forgotten": gone}
        write_profile(path, replace(stored, content=changed))
        done.groups.append(content["group"])
    elif content["forgotten"]:
        done.waiting.append(content["group"])
    else:
        return
    done.stale_exports += versions(serving, model)
