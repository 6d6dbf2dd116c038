"""Whether a stored profile fits the backbone that it shall edit."""

from __future__ import annotations

from pathlib import Path

from chameleon_lib.core.edit_profile import EditProfile
from chameleon_lib.core.protocols import Backbone
from chameleon_lib.errors import UserError

_MODEL_WIDE = ("mlp_out", "block_out")  # sites as wide as the model


def check_backbone(profile: EditProfile, backbone: Backbone, path: Path) -> None:
    """Refuse a profile that belongs to another backbone, another revision or other weights.

    Raises:
        UserError: It does, or names layers the backbone has not.
    """
    name, fingerprint = profile.backbone
    start = f"Profile {path} belongs to"
    if name != backbone.name:
        raise UserError(
            f"{start} backbone {name}, not to {backbone.name}; load that backbone, or fit a "
            "profile for this one."
        )
    if profile.revision != backbone.revision:
        raise UserError(
            f"{start} revision {profile.revision or 'none (a local checkpoint)'} of {name}, not to "
            f"{backbone.revision or 'none (a local checkpoint)'}; load that revision, or fit the "
            "profile again."
        )
    if fingerprint != backbone.fingerprint:
        raise UserError(
            f"{start} other weights of {name} ({fingerprint[:12]}, loaded are "
            f"{backbone.fingerprint[:12]}); load them with the precision and chat template of the "
            "fit, or fit the profile again."
        )
    d = profile.edit.d
    wide = profile.edit.site in _MODEL_WIDE and d != backbone.d
    if wide or max(profile.edit.layers) >= backbone.n_layers:
        raise UserError(
            f"Profile {path} edits layers {list(profile.edit.layers)} of width {d}, but {name} has "
            f"{backbone.n_layers} layers of width {backbone.d}; fit the profile again."
        )
