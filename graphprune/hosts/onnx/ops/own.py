"""The row of an operator: one that users have registered goes before the one of the table."""

from __future__ import annotations

from graphprune import ops
from graphprune.hosts.onnx.ops.table import ROWS
from graphprune.rules.call import Op, facts


def facts_of(op: str) -> Op:
    """All that is known of an operator, which is named as the nodes of graphs name it."""
    return facts(ops.lookup(op) or ROWS.get(op))
