"""CHAMELEON: personalise a language model by editing its hidden states, with the paper's tables.

The names below load on first use, because importing torch takes seconds and the notebook driver,
the lists and the plans never need it. They are those of the README's script.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chameleon_lib.errors import UserError

if TYPE_CHECKING:
    from chameleon_lib.backbones import load_backbone
    from chameleon_lib.backbones.embedder import load_embedder
    from chameleon_lib.core.chameleon import Chameleon
    from chameleon_lib.core.settings import EditSettings
    from chameleon_lib.data.importing import read_table
    from chameleon_lib.serving.export import export_edit
    from chameleon_lib.serving.store import ProfileStore

__all__ = [
    "Chameleon",
    "EditSettings",
    "ProfileStore",
    "UserError",
    "__version__",
    "export_edit",
    "load_backbone",
    "load_embedder",
    "read_table",
]

__version__ = "0.1.0"

_HOMES = {
    "Chameleon": "chameleon_lib.core.chameleon",
    "EditSettings": "chameleon_lib.core.settings",
    "ProfileStore": "chameleon_lib.serving.store",
    "export_edit": "chameleon_lib.serving.export",
    "load_backbone": "chameleon_lib.backbones",
    "load_embedder": "chameleon_lib.backbones.embedder",
    "read_table": "chameleon_lib.data.importing",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'chameleon_lib' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
