"""Short texts of large objects: what ``repr`` says in a notebook, a debugger and a message of a test."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

_LONGEST = 60
"""Letters of one value."""
_WHOLE = 400
"""Letters after which the other fields are only counted."""
_FEW = 4
"""A collection of at most so many plain values is written out."""


def brief(self: Any) -> str:
    """The ``__repr__`` of a dataclass: its name and fields, where collections and what they hold are only counted.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Net:
        ...     name: str
        ...     widths: tuple[int, ...]
        ...     __repr__ = brief
        >>> Net("a", (8,) * 99)
        Net(name='a', widths=<99 int>)
    """
    shown = [field.name for field in fields(self) if field.repr]
    return written(self, **{name: getattr(self, name) for name in shown})


def written(self: object, **values: object) -> str:
    """A name and values as in :func:`brief`, for what is no dataclass or says other things than its fields."""
    parts: list[str] = []
    for i, (name, value) in enumerate(values.items()):
        if sum(map(len, parts)) > _WHOLE:
            parts.append(f"and {len(values) - i} more")
            break
        parts.append(f"{name}={_short(value)}")
    return f"{type(self).__name__}({', '.join(parts)})"


def _short(value: object) -> str:
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str | bytes):
        return repr(value if len(value) <= _LONGEST else value[: _LONGEST - 3]) + "..." * (len(value) > _LONGEST)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"<{type(value).__name__} {list(value.shape)} {value.dtype}>"
    if isinstance(value, Collection):
        return _collection(value)
    generated = is_dataclass(value) and hasattr(type(value).__repr__, "__wrapped__")  # not one that is written for it
    if callable(value) or generated or type(value).__repr__ is object.__repr__:
        return f"<{getattr(value, '__name__', type(value).__name__)}>"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"<{type(value).__name__}>"


def _collection(values: Collection[Any]) -> str:
    """Few plain values as they are, others counted."""
    inside = list(values.values()) if isinstance(values, Mapping) else values
    if len(values) <= _FEW and all(value is None or isinstance(value, bool | int | float | str) for value in inside):
        text = repr(values)
        if len(text) <= _LONGEST:
            return text
    return f"<{len(values)} {type(next(iter(inside))).__name__}>"
