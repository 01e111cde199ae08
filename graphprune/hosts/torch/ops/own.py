"""The row of an operator: one that users have registered goes before the one of the table."""

from __future__ import annotations

from graphprune import ops
from graphprune.hosts.torch.ops.table import ROWS
from graphprune.rules.call import Op, facts


def facts_of(op: str) -> Op:
    """All that is known of an operator, which is named as the nodes of graphs name it (``mylib.gate.default``)."""
    space, _, rest = op.partition(".")
    own = ops.lookup(f"{space}::{rest.partition('.')[0]}") if space != "aten" and rest else None
    return facts(own or ROWS.get(op))
