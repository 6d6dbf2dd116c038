"""The editing core: tensors and strings in, tensors and strings out; no files, no globals."""

from __future__ import annotations

from chameleon_lib.core.edit import Edit, EditHook, apply_edit, edit_factors

__all__ = ["Edit", "EditHook", "apply_edit", "edit_factors"]
