"""Saving, loading and deleting edit profiles: a directory is the store.

    store = ProfileStore("profiles")
    store.save("alice", profile)
    profile = store.load("alice", backbone)
    store.delete("alice")
    store.forget("alice", cache=".chameleon")        # see serving.forget

A key is the name of a user or of a group. User ids are nowhere stored: keys become file names, and
members become pseudonyms, both by a hash with a random key of the store
(``serving.pseudonyms``). Only the name of a group (a profile of several users) is kept as it is, so
that ``forget`` can say which groups must be fitted again: do not name groups after people. No text
of any user is stored.

Arrays of a file: ``edit/…`` (rows of the edited layers), ``directions/…`` (all layers, with
diagnostics) and ``fitted/…`` only where the gradient fit returned another edit than the profile's.
Half-precision directions are stored as float32, which holds them exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from chameleon_lib.core.backbone import Backbone, same_weights
from chameleon_lib.core.checks import FitCheck
from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit import AnyEdit, Edit
from chameleon_lib.core.fitting import EditProfile, FittedDirections
from chameleon_lib.core.pairs import prompts_digest
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.serving.files import (
    AGAIN,
    ProfileFiles,
    Stored,
    read_content,
    read_profile,
)
from chameleon_lib.serving.forget import Forgotten, drop_profiles, forget
from chameleon_lib.serving.pseudonyms import is_pseudonym
from chameleon_lib.serving.weights import WEIGHTS, WeightProfile

log = logging.getLogger(__name__)
_MODEL_WIDE = ("mlp_out", "block_out")  # sites as wide as the model


@dataclass(frozen=True)
class ProfileInfo:
    """What a list of profiles says of one.

    Attributes:
        id: Its file name without suffix.
        group: Name of the group; empty for a personal profile.
        task: Task of its users.
        backbone: Name of the backbone.
        fingerprint: Of its weights.
        revision: Its revision on the hub, or empty.
        n_users: Users whose pairs it was made from and who were not forgotten.
        n_pairs: Pairs it was made from.
        forgotten: Users who were forgotten since; above 0 the group must be fitted again.
        bytes: Size of its file.
        path: The file.
    """

    id: str
    group: str
    task: str
    backbone: str
    fingerprint: str
    revision: str
    n_users: int
    n_pairs: int
    forgotten: int
    bytes: int
    path: Path

    def __str__(self) -> str:
        whose = f"group {self.group!r} of {self.n_users}" if self.group else "one user"
        refit = f"; {self.forgotten} forgotten, fit it again" if self.forgotten else ""
        revision = f"@{self.revision}" if self.revision else ""
        return (
            f"{self.id}  {whose}, {self.task}, {self.backbone}{revision}, {self.n_pairs} pairs, "
            f"{self.bytes:,} bytes{refit}"
        )

    @classmethod
    def of(cls, path: Path) -> ProfileInfo:
        """What a file says."""
        content = read_content(path)
        return cls(
            id=path.stem,
            group=content["group"],
            task=content["task"],
            backbone=content["backbone"]["name"],
            fingerprint=content["backbone"]["fingerprint"],
            revision=content["backbone"]["revision"],
            n_users=len(content["users"]),
            n_pairs=content["pairs"]["different"],
            forgotten=content["forgotten"],
            bytes=path.stat().st_size,
            path=path,
        )


@dataclass(frozen=True, eq=False)
class Answering:
    """Which edit answers a user, and why.

    Attributes:
        user: The user's pseudonym in the store.
        source: Whose edit it is: the user's own, the nearest group's, or none (the base answers).
        edit: The edit; None for the base.
        group: Name of the nearest group, where it was looked for.
        distance: To that group's centre, 1 − cosine; NaN where no group was looked for.
        why: The same in a sentence.
    """

    user: str
    source: Literal["own", "group", "none"]
    edit: AnyEdit | None
    group: str
    distance: float
    why: str


class EditStore(Protocol):
    """What both kinds of stores offer: a folder of profiles, and shards of many users' edits."""

    @property
    def root(self) -> Path: ...  # the folder

    def list(self) -> list[ProfileInfo]: ...

    def infos(self) -> Iterator[ProfileInfo]: ...  # the same one by one

    def info(self, key: str) -> ProfileInfo: ...

    def read(self, key: str, backbone: Backbone) -> EditProfile | WeightProfile:
        """The profile of a user or group, for the model it was made with."""

    def profile(self, info: ProfileInfo) -> EditProfile | WeightProfile:
        """The profile of an info, whatever model is loaded."""

    def content(self, key: str) -> dict[str, Any]:
        """Where a profile came from, JSON types: edit, backbone, pairs, prompts, settings."""

    def answering(self, user: str, vector: np.ndarray | None = None) -> Answering:
        """Which edit answers a user, and why; the vector is that of ``sharded.user_vector``."""

    def forget(self, user: str, **where: Any) -> Forgotten: ...


class ProfileStore:
    """Edit profiles in a directory, safe under concurrent writers and kill -9.

    Args:
        directory: Made by the first save.
    """

    def __init__(self, directory: str | Path) -> None:
        self.files = ProfileFiles(Path(directory))

    @property
    def root(self) -> Path:
        """The directory."""
        return self.files.root

    @classmethod
    def at(cls, directory: Path) -> ProfileStore:
        """The store in a folder that must be there.

        Raises:
            UserError: It is not.
        """
        if not directory.is_dir():
            raise UserError(f"There is no profile store {directory}; give the folder of one.")
        return cls(directory)

    def save(
        self, key: str, profile: EditProfile | WeightProfile, *, all_layers: bool = True
    ) -> Path:
        """Store a profile; one of the same key is replaced.

        Args:
            key: Id of the user, or name of the group.
            profile: With a shared edit, or of weights. One without ``users`` counts as made from
                the user ``key``.
            all_layers: Keep the directions of unedited layers and the diagnostics. Without them a
                profile is as small as its edit.

        Returns:
            The file.

        Raises:
            UserError: A name that would reveal a member, users known by pseudonyms of another
                store, or a group in place of a user or the other way round.
        """
        if not key:
            raise UserError("A profile needs a key: the id of its user or the name of its group.")
        users = tuple(dict.fromkeys(profile.users)) or (key,)
        names = self.files.pseudonyms
        if any(is_pseudonym(user) and not names.owns(user) for user in users):
            raise UserError(
                "This profile was loaded from another store, which knows its users by "
                "pseudonyms alone; set its users before saving it here."
            )
        members = [user if names.owns(user) else names.of(user) for user in users]
        group = key if len(members) > 1 else ""
        if group and names.of(group) in members:
            raise UserError(
                "The key of a group is stored as it is, and this one is the id of a member; give "
                "the group another name."
            )
        if isinstance(profile, WeightProfile):
            stored = profile.stored(members)
        else:
            stored = to_stored(profile, members, all_layers=all_layers)
        stored = replace(stored, content={**stored.content, "group": group, "forgotten": 0})

        def same_kind(before: dict[str, Any]) -> None:
            if before["group"] != group:
                kinds = ("group", "user") if before["group"] else ("user", "group")
                raise UserError(
                    f"The key belongs to the profile of a {kinds[0]} and cannot take one of a "
                    f"{kinds[1]}; give another key, or delete the other profile first."
                )

        return self.files.put(key, stored, check=same_kind)

    def load(self, key: str, backbone: Backbone) -> EditProfile:
        """The profile of a key, for the backbone it was made with.

        Its ``users`` are pseudonyms of this store; saving it here again keeps them.

        Raises:
            UserError: There is none, its files are damaged, or they belong to another backbone,
                other weights or another revision; or it is one of weights.
        """
        profile = self.read(key, backbone)
        if isinstance(profile, WeightProfile):
            raise UserError(
                f"The profile of {key!r} is what {profile.edit.editor} wrote into weights; read it "
                "with ProfileStore.read, or export it."
            )
        return profile

    def read(self, key: str, backbone: Backbone) -> EditProfile | WeightProfile:
        """As :meth:`load`, whether the profile is of activations or of weights."""
        path = self.files.path_of(key)
        stored = self.files.get(key)
        profile = from_stored(stored, path)
        check_backbone(profile, backbone, path)
        if stored.content["forgotten"]:
            log.warning(
                "Group %r holds %d forgotten users; fit it again.",
                stored.content["group"], stored.content["forgotten"],
            )  # fmt: skip
        if isinstance(profile, WeightProfile):
            return profile
        if profile.prompts and profile.prompts != prompts_digest(profile.task, profile.settings):
            log.warning(
                "Profile %s was made with other prompts than this version writes; fit it again "
                "to match.", path,
            )  # fmt: skip
        return profile

    def delete(self, key: str) -> bool:
        """Remove the profile of a key; False if there was none."""
        return self.files.delete(key)

    def list(self) -> list[ProfileInfo]:
        """All profiles, by id.

        Raises:
            UserError: One of them is damaged.
        """
        return [*self.infos()]

    def infos(self) -> Iterator[ProfileInfo]:
        """What :meth:`list` gives, one by one."""
        for path in self.files.paths():
            try:
                yield ProfileInfo.of(path)
            except FileNotFoundError:  # removed since
                continue

    def info(self, key: str) -> ProfileInfo:
        """What :meth:`list` says of the profile of a key."""
        self.files.get(key)  # says what is wrong
        return ProfileInfo.of(self.files.path_of(key))

    def profile(self, info: ProfileInfo) -> EditProfile | WeightProfile:
        """The profile of an info: by its file, since a store hides its keys.

        Raises:
            FileNotFoundError: It was deleted since.
        """
        return from_stored(read_profile(info.path), info.path)

    def content(self, key: str) -> dict[str, Any]:
        """Where the profile of a key came from."""
        found = self.files.get(key).content
        names = ("edit", "backbone", "pairs", "prompts", "settings")
        return {name: found[name] for name in names}

    def answering(self, user: str, vector: np.ndarray | None = None) -> Answering:
        """The user's own edit, if there is one: a folder of profiles knows no nearest group."""
        del vector
        name, nowhere = self.files.pseudonyms.of(user), float("nan")
        if not self.files.path_of(user).exists():
            why = "The store holds no profile of this user and no centres: the base answers."
            return Answering(name, "none", None, "", nowhere, why)
        profile = self.profile(self.info(user))
        if isinstance(profile, WeightProfile):
            raise UserError(
                f"The profile of {user!r} is what {profile.edit.editor} wrote into weights, which "
                "answers from an export alone; export it."
            )
        why = f"The user's own edit of {profile.n_pairs} pairs answers."
        return Answering(name, "own", profile.edit, "", nowhere, why)

    def drop(self, user: str, serving: Sequence[Path], done: Forgotten) -> None:
        """Take a user's profiles, shares of groups and exports away."""
        drop_profiles(self.files, user, serving, done)

    def forget(self, user: str, **where: Any) -> Forgotten:
        """Remove what is kept of a user; see :func:`serving.forget.forget`."""
        return forget(self, user, **where)


def check_backbone(profile: EditProfile | WeightProfile, backbone: Backbone, path: Path) -> None:
    """Refuse a profile of another backbone, another revision, other weights or absent layers."""
    name, fingerprint = profile.backbone
    start = f"Profile {path} belongs to"
    local = "none (a local checkpoint)"
    if name != backbone.name:
        raise UserError(
            f"{start} backbone {name}, not to {backbone.name}; load that backbone, or fit a "
            "profile for this one."
        )
    if profile.revision != backbone.revision:
        raise UserError(
            f"{start} revision {profile.revision or local} of {name}, not to "
            f"{backbone.revision or local}; load that revision, or fit the profile again."
        )
    if not same_weights(fingerprint, backbone.fingerprint):
        raise UserError(
            f"{start} other weights of {name} ({fingerprint[:12]}, loaded are "
            f"{backbone.fingerprint[:12]}); load those, with the chat template of the "
            "fit, or fit the profile again."
        )
    if isinstance(profile, WeightProfile):
        return  # the very weights, so all of its modules are there
    d = profile.edit.d
    wide = profile.edit.site in _MODEL_WIDE and d != backbone.d
    if wide or max(profile.edit.layers) >= backbone.n_layers:
        raise UserError(
            f"Profile {path} edits layers {list(profile.edit.layers)} of width {d}, but {name} has "
            f"{backbone.n_layers} layers of width {backbone.d}; fit the profile again."
        )


# --- a profile as JSON content and arrays, and back ----------------------------------------------


def to_stored(profile: EditProfile, users: Sequence[str], *, all_layers: bool = True) -> Stored:
    """A profile as its file holds it; the pseudonyms ``users`` take the place of its user ids.

    Raises:
        UserError: The edit has one row per text of a batch.
    """
    if profile.edit.per_row:
        raise UserError(
            "An edit with one row per text belongs to a batch and cannot be saved; save the "
            "profile of every user."
        )
    entry, parts = profile.edit.record()
    tensors = {f"edit/{name}": value for name, value in parts.items()}
    directions = fitted = None
    if profile.directions is not None and all_layers:
        directions, parts = profile.directions.record()
        tensors |= {f"directions/{name}": value for name, value in parts.items()}
    if profile.fitted is not None:
        fitted = profile.fitted.log()
        if profile.fitted.edit is not profile.edit:
            fitted["edit"], parts = profile.fitted.edit.record()
            tensors |= {f"fitted/{name}": value for name, value in parts.items()}
    content = {
        "task": profile.task,
        "backbone": {
            "name": profile.backbone[0],
            "fingerprint": profile.backbone[1],
            "revision": profile.revision,
        },
        "edit": entry,
        "settings": profile.settings.canonical(),
        "prompts": profile.prompts,
        "pairs": {"different": profile.n_pairs, "identical": profile.n_identical},
        "users": list(users),
        "directions": directions,
        "fitted": fitted,
        "check": None if profile.check is None else profile.check.record(),
    }
    return Stored(content, {name: _array(value) for name, value in tensors.items()})


def _array(tensor: Tensor) -> np.ndarray:
    value = tensor.detach().cpu()
    half = value.dtype in (torch.bfloat16, torch.float16)
    return np.asarray((value.float() if half else value).numpy())


def from_stored(stored: Stored, path: Path) -> EditProfile | WeightProfile:
    """The profile that a file holds; its path is for messages.

    Raises:
        UserError: An entry or array is missing, of another type or shape, or an edit nobody could
            run (a direction that is not finite).
    """
    content = stored.content
    try:
        tensors: dict[str, dict[str, Tensor]] = {"edit": {}, "directions": {}, "fitted": {}}
        for name, value in stored.tensors.items():
            part, _, own = name.partition("/")
            tensors[part][own] = _checked(name, value)
        if content.get("kind") == WEIGHTS:
            return WeightProfile.of_stored(content, tensors["edit"])
        edit = _edit(content["edit"], tensors["edit"])
        return EditProfile(
            task=content["task"],
            edit=edit,
            settings=_settings(content["settings"]),
            backbone=(content["backbone"]["name"], content["backbone"]["fingerprint"]),
            users=tuple(content["users"]),
            n_pairs=content["pairs"]["different"],
            n_identical=content["pairs"]["identical"],
            directions=_directions(content["directions"], tensors["directions"]),
            fitted=_fitted(content["fitted"], tensors["fitted"], edit),
            # Profiles of earlier versions have none.
            check=FitCheck.of(content["check"]) if content.get("check") else None,
            revision=content["backbone"]["revision"],
            prompts=content["prompts"],
        )
    except UserError as error:
        raise UserError(f"Profile {path} cannot be used: {error}") from error
    except KeyError as error:
        raise UserError(f"Profile {path} has no {error.args[0]!r}; {AGAIN}.") from error
    except (TypeError, ValueError) as error:
        wrong = f"Profile {path} has an entry of a wrong type ({error}); {AGAIN}."
        raise UserError(wrong) from error


def _checked(name: str, value: np.ndarray) -> Tensor:
    """An array of the type its name asks for, and finite unless NaN may stand in it on purpose."""
    kind = "b" if "gate_" in name.rpartition("/")[2] else "f"
    if value.dtype.kind != kind:
        wanted = "bool" if kind == "b" else "floating"
        raise UserError(f"{name} is {value.dtype}, not {wanted}; {AGAIN}.")
    measured = "diagnostics/" in name or name.endswith("ccs_loss")  # NaN where nothing was fitted
    if kind == "f" and not measured and not np.isfinite(value).all():
        raise UserError(f"{name} holds NaN or infinity; fit the profile again.")
    return torch.from_numpy(value.copy())


def _settings(entry: dict[str, Any]) -> EditSettings:
    unknown = sorted(set(entry) - {item.name for item in fields(EditSettings)})
    if unknown:
        raise UserError(
            f"it has settings that this version does not know ({', '.join(unknown)}); use the "
            "version of chameleon_lib that wrote it, or fit the profile again."
        )
    return EditSettings(**entry)


def _edit(entry: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    if not all(type(layer) is int for layer in entry["layers"]):
        raise UserError(f"the layers are {entry['layers']}; whole numbers are needed.")
    return Edit.from_record(entry, tensors)


def _directions(values: list[float] | None, tensors: dict[str, Tensor]) -> Directions | None:
    if values is None:
        return None
    found = Directions.from_record(values, tensors)
    layers, width = found.theta_p.shape
    for name, value in tensors.items():
        if tuple(value.shape) not in ((layers,), (layers, width)):
            raise UserError(f"directions/{name} has the shape {list(value.shape)}; {AGAIN}.")
    return found


def _fitted(
    entry: dict[str, Any] | None, tensors: dict[str, Tensor], edit: Edit
) -> FittedDirections | None:
    if entry is None:
        return None
    log = {name: value for name, value in entry.items() if name != "edit"}
    return FittedDirections.of(_edit(entry["edit"], tensors) if "edit" in entry else edit, log)
