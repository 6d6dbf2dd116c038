"""A small backbone and profiles for it, made in no time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from chameleon_lib.backbones import HFBackbone
from chameleon_lib.core.chameleon import Chameleon
from chameleon_lib.core.fitting import EditProfile
from tests.core.method import SETTINGS, train_users
from tests.demo.small import HashEmbedder, small_backbone

USERS = ("alice@example.org", "bob/../etc", "carol 🦎")


@cache
def backbone(family: str = "mistral", seed: int = 0) -> HFBackbone:
    return small_backbone(family, seed)


@cache
def fitted(method: str = "paper") -> EditProfile:
    """A profile of six users."""
    settings = SETTINGS.with_(theta_method=method)
    return Chameleon(backbone(), HashEmbedder(), settings).fit(train_users())


def profile(seed: int = 0, users: tuple[str, ...] = USERS[:1]) -> EditProfile:
    """A profile with random directions of its own."""
    made = fitted()
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(2, *made.edit.theta_p.shape, generator=generator)
    edit = replace(made.edit, theta_p=theta[0], theta_n=theta[1])
    return replace(made, edit=edit, users=users)
