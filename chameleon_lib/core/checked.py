"""Frozen settings that check themselves: a value of the wrong kind is refused by its name.

A field says its options by a ``Literal`` type or by ``options`` of its metadata, and its bounds by
``at_least``, ``at_most``, ``above`` and ``below``.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Literal, Self

from chameleon_lib.errors import UserError

_BOUNDS = {
    "at_least": lambda value, limit: value >= limit,
    "at_most": lambda value, limit: value <= limit,
    "above": lambda value, limit: value > limit,
    "below": lambda value, limit: value < limit,
}


@dataclass(frozen=True, kw_only=True)
class CheckedSettings:
    """Base of settings.

    Raises:
        UserError: A value of the wrong type, outside its options or out of bounds.
    """

    def __post_init__(self) -> None:
        own: Any = type(self)
        for item in fields(self):
            given = getattr(self, item.name)
            value = _checked(item.name, given, _hints(own)[item.name], item.metadata)
            object.__setattr__(self, item.name, value)
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Hook: contradictions between fields raise a UserError."""

    def with_(self, **changes: Any) -> Self:
        """A copy with these fields changed and everything checked again."""
        known = {item.name for item in fields(self)}
        for name in changes:
            if name not in known:
                raise UserError(f"{type(self).__name__} has no field {name!r}.")
        return replace(self, **changes)

    def canonical(self) -> dict[str, Any]:
        """All fields, sorted by name, as JSON-able values; equal settings give equal dicts."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in sorted(values.items())
        }

    @classmethod
    def options_of(cls, name: str) -> tuple[Any, ...]:
        """The values that the type of a field allows; none if it names none."""
        own: Any = cls
        return _kind(_hints(own)[name])[1]


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _kind(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type of a value (of its parts, if it is a tuple), and the options of a Literal."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is Literal:
        return str, typing.get_args(hint)
    return hint, ()


def _checked(name: str, value: Any, hint: Any, metadata: typing.Mapping[str, Any]) -> Any:
    """The value in its field's type, or a UserError that names the field."""
    kind, options = _kind(hint)
    options = options or metadata.get("options", ())
    if isinstance(hint, types.UnionType) and value is None:
        return None
    if typing.get_origin(hint) is tuple:
        return _checked_tuple(name, value, kind, options)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # 1 and 1.0 must give the same canonical form
    if type(value) is not kind:
        # A text here is often YAML's 5e-4, which its reader takes for a string.
        raise UserError(f"{name} must be {kind.__name__}, not {value!r}.")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{name} is {value}; give a finite number.")
    if value == "" and not metadata.get("may_be_empty"):
        raise UserError(f"{name} is empty.")
    if options and value not in options:
        raise UserError(f"{name} is {value!r}; choose one of {', '.join(options)}.")
    for bound, keeps in _BOUNDS.items():
        limit = metadata.get(bound)
        if limit is not None and not keeps(value, limit):
            raise UserError(f"{name} is {value}; it must be {bound.replace('_', ' ')} {limit}.")
    return value


def _checked_tuple(
    name: str, value: Any, kind: type, options: tuple[Any, ...]
) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, (tuple, list)):
        raise UserError(f"{name} must be a list, not {value!r}.")
    for part in value:
        if type(part) is not kind or (options and part not in options):
            wanted = ", ".join(options) if options else f"{kind.__name__} values"
            raise UserError(f"{name} holds {part!r}; allowed are {wanted}.")
    return tuple(value)
