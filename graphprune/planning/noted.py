"""How a plan says that it was made, out of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphprune.planning.reading import texts
from graphprune.planning.target import parse_targets


def options_of(data: Any) -> dict[str, Any]:
    """How a plan was made, of the types that are looked at.

    Raises:
        TypeError: They are of other types.
        TargetError: Its targets are none.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"got {data!r:.40}, expected an object of options")
    options = dict(data)
    if "targets" in options:
        parse_targets(texts(options["targets"]))
    for name in ("compensated", "resize_io"):
        if name in options:
            texts(options[name])
    for name in ("digests", "exported"):
        if not isinstance(options.get(name, {}), Mapping):
            raise TypeError(f"got {options[name]!r:.40} as '{name}', expected an object")
    if not isinstance(options.get("compensation", "none"), str) or (
        options.get("compensated") and "compensation" not in options
    ):
        raise TypeError("there is no compensation in its options")
    return options
