"""CHAMELEON: personalise a language model by editing its hidden states, with the paper's tables.

The names below load on first use, because importing torch takes seconds and the notebook driver,
the lists and the plans never need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chameleon_lib.errors import UserError

if TYPE_CHECKING:
    from chameleon_lib.core.chameleon import Chameleon
    from chameleon_lib.core.settings import EditSettings

__all__ = ["Chameleon", "EditSettings", "UserError", "__version__"]

__version__ = "0.1.0"

_HOMES = {
    "Chameleon": "chameleon_lib.core.chameleon",
    "EditSettings": "chameleon_lib.core.settings",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'chameleon_lib' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
