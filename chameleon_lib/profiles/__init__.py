"""Edit profiles outside the laboratory: a store, and the forms in which they are served.

The names below load on first use: whoever only writes files needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chameleon_lib.profiles.store import (
        ProfileInfo,
        ProfileStore,
        delete_profile,
        load_profile,
        save_profile,
    )

__all__ = ["ProfileInfo", "ProfileStore", "delete_profile", "load_profile", "save_profile"]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'chameleon_lib.profiles' has no attribute {name!r}")
    return getattr(import_module("chameleon_lib.profiles.store"), name)
