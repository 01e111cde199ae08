"""Arguments of ATen operators by name, after their schemas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import fx

from graphprune.hosts.torch.ops.rows import UNKNOWN


@dataclass(frozen=True, slots=True)
class Signature:
    """What is known of an operator.

    Attributes:
        op: Its name in the table.
        registered: Its name in the registry of users (``namespace::name``).
        arguments: Name, kind (``tensor``, ``tensors`` or ``other``) and default of each argument; ``None`` for what is
            no operator.
    """

    op: str
    registered: str
    arguments: tuple[tuple[str, str, Any], ...] | None


@lru_cache(maxsize=4096)
def signature_of(target: Any) -> Signature:
    """What the schema of an operator says; of a plain function only its name."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return Signature(getattr(target, "__name__", str(target)), "", None)
    found = []
    for argument in schema.arguments:
        text = str(argument.type)
        kind = (
            "other" if "Tensor" not in text else "tensors" if text.startswith(("List", "Optional[List")) else "tensor"
        )
        found.append((argument.name, kind, argument.default_value if argument.has_default_value() else None))
    return Signature(str(target), schema.name, tuple(found))


def argument_position(node: fx.Node, name: str) -> int | None:
    """The position of a named argument in the schema of a node's operator, if there is one."""
    schema = signature_of(node.target).arguments
    if schema is None:
        return None
    return next((i for i, (known, _, _) in enumerate(schema) if known == name), None)


def argument(node: fx.Node, name: str) -> Any:
    """The value of a named argument of a node."""
    if name in node.kwargs:
        return node.kwargs[name]
    at = argument_position(node, name)
    if at is None:
        raise KeyError(name)
    if at < len(node.args):
        return node.args[at]
    schema = signature_of(node.target).arguments
    assert schema is not None
    return schema[at][2]


def plain_argument(value: Any) -> Any:
    """An argument as plain data: sizes known at run time only become ``None`` in lists, :data:`UNKNOWN` alone."""
    if isinstance(value, fx.Node):
        return UNKNOWN
    if isinstance(value, list | tuple):
        return tuple(None if isinstance(item, fx.Node) else item for item in value)
    return value
