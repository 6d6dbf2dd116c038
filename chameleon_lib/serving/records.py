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

from chameleon_lib.core.chameleon import EditProfile
from chameleon_lib.core.directions import Directions
from chameleon_lib.core.edit import Edit
from chameleon_lib.core.fitting import FittedDirections
from chameleon_lib.core.settings import EditSettings
from chameleon_lib.errors import UserError
from chameleon_lib.serving.files import AGAIN, Stored


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
    }
    return Stored(content, {name: _array(value) for name, value in tensors.items()})


def _array(tensor: Tensor) -> np.ndarray:
    value = tensor.detach().cpu()
    half = value.dtype in (torch.bfloat16, torch.float16)
    return np.asarray((value.float() if half else value).numpy())


def from_stored(stored: Stored, path: Path) -> EditProfile:
    """The profile that files hold.

    Args:
        stored: Their content.
        path: The file, for messages.

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
