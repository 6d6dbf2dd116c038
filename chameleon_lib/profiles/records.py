"""An edit profile as JSON content and arrays, and back.

Arrays: ``edit/…`` (rows of the edited layers), ``directions/…`` (all layers, with diagnostics) and
``fitted/…`` only where the gradient fit returned another edit than the profile's. Half-precision
directions are stored as float32, which holds them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.edit_profile import EditProfile
from chameleon_lib.core.fitting import FittedDirections
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.profiles.files import AGAIN, Stored

_EDIT = ("alpha_p", "alpha_n", "order", "positions", "site", "compute_dtype")
_DIRECTIONS = ("theta_p", "theta_n", "ccs_loss", "gate_p", "gate_n")
_FITTED = ("loss", "held_out", "best_step", "n_pairs", "n_agreed", "n_held_out")


def to_stored(profile: EditProfile, users: Sequence[str], *, all_layers: bool = True) -> Stored:
    """A profile as its files hold it.

    Args:
        profile: With a shared edit.
        users: Pseudonyms that take the place of the profile's user ids.
        all_layers: Keep the directions of the layers that are not edited, and the diagnostics.

    Raises:
        UserError: The edit has one row per text of a batch.
    """
    if profile.edit.per_row:
        raise UserError(
            "An edit with one row per text belongs to a batch and cannot be saved; save the "
            "profile of every user."
        )
    tensors = _edit_arrays(profile.edit, "edit")
    directions = None
    if profile.directions is not None and all_layers:
        found = profile.directions
        tensors |= {f"directions/{name}": _array(getattr(found, name)) for name in _DIRECTIONS}
        for name, value in found.diagnostics.items():
            tensors[f"directions/diagnostics/{name}"] = _array(value)
        directions = {"alpha_p": found.alpha_p, "alpha_n": found.alpha_n}
    fitted = None
    if profile.fitted is not None:
        fitted = {name: getattr(profile.fitted, name) for name in _FITTED}
        if profile.fitted.edit is not profile.edit:
            fitted["edit"] = _edit_entry(profile.fitted.edit)
            tensors |= _edit_arrays(profile.fitted.edit, "fitted")
    content = {
        "task": profile.task,
        "backbone": {
            "name": profile.backbone[0],
            "fingerprint": profile.backbone[1],
            "revision": profile.revision,
        },
        "edit": _edit_entry(profile.edit),
        "settings": profile.settings.canonical(),
        "prompts": profile.prompts,
        "pairs": {"different": profile.n_pairs, "identical": profile.n_identical},
        "users": list(users),
        "directions": directions,
        "fitted": fitted,
    }
    return Stored(content, tensors)


def from_stored(stored: Stored, path: Path) -> EditProfile:
    """The profile that files hold.

    Args:
        stored: Their content.
        path: The JSON file, for messages.

    Raises:
        UserError: An entry or array is missing, of another type or shape, or an edit nobody could
            run (a direction that is not finite).
    """
    content, tensors = stored.content, stored.tensors
    try:
        edit = _edit(content["edit"], tensors, "edit", path)
        return EditProfile(
            task=content["task"],
            edit=edit,
            settings=_settings(content["settings"], path),
            backbone=(content["backbone"]["name"], content["backbone"]["fingerprint"]),
            users=tuple(content["users"]),
            n_pairs=content["pairs"]["different"],
            n_identical=content["pairs"]["identical"],
            directions=_directions(content["directions"], tensors, path),
            fitted=_fitted(content["fitted"], tensors, edit, path),
            revision=content["backbone"]["revision"],
            prompts=content["prompts"],
        )
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"Profile {path} cannot be used: {error}") from error
    except KeyError as error:
        raise UserError(f"Profile {path} has no {error.args[0]!r}; {AGAIN}.") from error
    except TypeError as error:
        raise UserError(f"Profile {path} has an entry of a wrong type ({error}); {AGAIN}.") from (
            error
        )


def _settings(entry: dict[str, Any], path: Path) -> EditSettings:
    unknown = sorted(set(entry) - {item.name for item in fields(EditSettings)})
    if unknown:
        raise UserError(
            f"Profile {path} has settings that this version does not know ({', '.join(unknown)}); "
            "use the version of chameleon_lib that wrote it, or fit the profile again."
        )
    return EditSettings(**entry)


def _array(tensor: Tensor) -> np.ndarray:
    value = tensor.detach().cpu()
    half = value.dtype in (torch.bfloat16, torch.float16)
    return np.asarray((value.float() if half else value).numpy())


def _edit_entry(edit: Edit) -> dict[str, Any]:
    return {"layers": list(edit.layers)} | {name: getattr(edit, name) for name in _EDIT}


def _edit_arrays(edit: Edit, prefix: str) -> dict[str, np.ndarray]:
    names = ("theta_p", "theta_n", "gate_p", "gate_n")
    given = {name: getattr(edit, name) for name in names if getattr(edit, name) is not None}
    return {f"{prefix}/{name}": _array(value) for name, value in given.items()}


def _edit(
    entry: dict[str, Any], tensors: dict[str, np.ndarray], prefix: str, path: Path
) -> Edit:
    layers = tuple(entry["layers"])
    if not all(type(layer) is int for layer in layers):
        raise UserError(f"Profile {path} has layers {list(layers)}; whole numbers are needed.")
    theta_p = _checked(tensors, f"{prefix}/theta_p", path, "f", (len(layers), None))
    parts: dict[str, Any] = {
        "theta_p": theta_p,
        "theta_n": _checked(tensors, f"{prefix}/theta_n", path, "f", tuple(theta_p.shape)),
    }
    for name in ("gate_p", "gate_n"):
        if f"{prefix}/{name}" in tensors:
            parts[name] = _checked(tensors, f"{prefix}/{name}", path, "b", (len(layers),))
    return Edit(layers=layers, **parts, **{name: entry[name] for name in _EDIT})


def _directions(
    entry: dict[str, Any] | None, tensors: dict[str, np.ndarray], path: Path
) -> Directions | None:
    if entry is None:
        return None
    theta_p = _checked(tensors, "directions/theta_p", path, "f", (None, None))
    shape, lead = tuple(theta_p.shape), tuple(theta_p.shape[:1])
    start = "directions/diagnostics/"
    return Directions(
        theta_p=theta_p,
        theta_n=_checked(tensors, "directions/theta_n", path, "f", shape),
        # Losses that were never fitted are NaN on purpose.
        ccs_loss=_checked(tensors, "directions/ccs_loss", path, "f", lead, finite=False),
        alpha_p=float(entry["alpha_p"]),
        alpha_n=float(entry["alpha_n"]),
        gate_p=_checked(tensors, "directions/gate_p", path, "b", lead),
        gate_n=_checked(tensors, "directions/gate_n", path, "b", lead),
        diagnostics={
            name.removeprefix(start): _checked(tensors, name, path, "f", lead, finite=False)
            for name in tensors
            if name.startswith(start)
        },
    )


def _fitted(
    entry: dict[str, Any] | None, tensors: dict[str, np.ndarray], edit: Edit, path: Path
) -> FittedDirections | None:
    if entry is None:
        return None
    own = _edit(entry["edit"], tensors, "fitted", path) if "edit" in entry else edit
    values = {name: entry[name] for name in _FITTED}
    values["held_out"] = [(step, loss) for step, loss in values["held_out"]]
    return FittedDirections(edit=own, **values)


def _checked(
    tensors: dict[str, np.ndarray],
    name: str,
    path: Path,
    kind: str,
    shape: tuple[int | None, ...],
    *,
    finite: bool = True,
) -> Tensor:
    """An array of the right kind (``f`` floating, ``b`` bool) and shape (None: any size)."""
    if name not in tensors:
        raise UserError(f"Profile {path} has no tensor {name}; {AGAIN}.")
    value = tensors[name]
    fits = len(value.shape) == len(shape) and all(
        size in (None, own) for own, size in zip(value.shape, shape, strict=True)
    )
    if value.dtype.kind != kind or not fits:
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        raise UserError(
            f"Profile {path}: {name} is {value.dtype} of shape {list(value.shape)}, not "
            f"{'floating' if kind == 'f' else 'bool'} of shape {wanted}; {AGAIN}."
        )
    if finite and kind == "f" and not np.isfinite(value).all():
        raise UserError(f"Profile {path}: {name} holds NaN or infinity; fit the profile again.")
    return torch.from_numpy(value.copy())
