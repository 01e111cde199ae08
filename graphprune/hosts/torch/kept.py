"""Numbers that a weight is divided by and that do not change when it is cut: the spectral norm ``u W v`` of a weight.

Such a number is made of stored tensors alone, and is a multiple of a stored vector that nothing else reads. A host that
cuts the tensors makes the vector longer or shorter, so that the number stays what it was.
"""

from __future__ import annotations

import torch
from torch import fx

_DOTS = (torch.ops.aten.dot.default, torch.ops.aten.vdot.default)
_COPIES = (torch.ops.aten.clone.default, torch.ops.aten.alias.default, torch.ops.aten.contiguous.default)


def kept_number(node: fx.Node) -> fx.Node | None:
    """The stored vector that a number is a multiple of, if the node makes such a number."""
    if node.target not in _DOTS:
        return None
    found = _first(node)
    while isinstance(found, fx.Node) and found.target in _COPIES and len(found.users) == 1:
        found = _first(found)
    if not isinstance(found, fx.Node) or found.op != "get_attr" or len(found.users) != 1:
        return None
    return found if all(each.op in ("get_attr", "call_function") for each in sources(node)) else None


def _first(node: fx.Node) -> object:
    """The first argument, by place or by name."""
    return node.args[0] if node.args else next(iter(node.kwargs.values()), None)


def sources(node: fx.Node) -> tuple[fx.Node, ...]:
    """What a node is made of, and the node itself, in the order of execution."""
    seen: dict[fx.Node, None] = {}
    pending = [node]
    while pending:
        each = pending.pop()
        if each not in seen:
            seen[each] = None
            pending.extend(each.all_input_nodes)
    return tuple(sorted(seen))
