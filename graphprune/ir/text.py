"""Graphs as text: one line for each value and node, for dumps, diffs and tests.

Parsing what was printed gives the same text again; source locations and reasons of fixed factors are not part of it.
A plus marks an operand that its node equals where the other operand is zero.

::

    input x f32 2x3x8x8
    parameter conv.weight f32 16x3x3x3
    conv: y = aten.conv2d.default(x, conv.weight, _) : n ci s0 s1, co ci k0 k1, _ -> n co o0 o1; ...
    output y
"""

from __future__ import annotations

import re

from graphprune.errors import RuleError
from graphprune.ir.graph import Graph, Kind, Node, Value
from graphprune.ir.notation import parse_rule
from graphprune.ir.printing import print_rule

_NODE = re.compile(r"(?P<name>\S+): (?P<results>.*?) = (?P<op>[^\s(]+)\((?P<operands>.*?)\) : (?P<rule>.*)$")
_BARRIER = "barrier"


def print_graph(graph: Graph) -> str:
    """The text of a graph."""
    lines = []
    for value in graph.values.values():
        shape = "x".join(f"?{size}" if i in value.dynamic else str(size) for i, size in enumerate(value.shape)) or "[]"
        lines.append(f"{value.kind} {value.name} {value.dtype}:{value.itemsize:g} {shape}")
    for node in graph.nodes:
        results = ", ".join("_" if name is None else name for name in node.results)
        operands = ", ".join(
            "_" if name is None else f"+{name}" if i in node.addends else name for i, name in enumerate(node.operands)
        )
        if node.rule is not None:
            rule = print_rule(node.rule, sizes=True)
        else:
            rule = f"{_BARRIER} {node.reason}".strip()
        lines.append(f"{node.name}: {results} = {node.op}({operands}) : {rule}")
    lines.extend(f"output {name}" for name in graph.outputs)
    return "\n".join(lines) + "\n"


def parse_graph(text: str) -> Graph:
    """Reads the text of a graph.

    Raises:
        RuleError: A line cannot be read.
    """
    values: dict[str, Value] = {}
    nodes: list[Node] = []
    outputs: list[str] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word in ("input", "parameter", "constant", "computed"):
            value = _value(word, rest)  # type: ignore[arg-type]
            values[value.name] = value
        elif word == "output":
            outputs.append(rest.strip())
        else:
            nodes.append(_node(line))
    inputs = tuple(value.name for value in values.values() if value.kind == "input")
    return Graph(values, tuple(nodes), inputs, tuple(outputs))


def _value(kind: Kind, text: str) -> Value:
    name, dtype, shape = text.split()
    dtype, _, itemsize = dtype.partition(":")
    sizes = [] if shape == "[]" else shape.split("x")
    dynamic = frozenset(i for i, size in enumerate(sizes) if size.startswith("?"))
    return Value(name, tuple(int(size.lstrip("?")) for size in sizes), dtype, kind, float(itemsize or 4), dynamic)


def _node(line: str) -> Node:
    match = _NODE.match(line)
    if match is None:
        raise RuleError(f"cannot read graph line '{line}'; expected 'name: results = op(operands) : rule'")
    results, operands = ([name for name in match[side].split(", ") if name] for side in ("results", "operands"))
    addends = tuple(i for i, name in enumerate(operands) if name.startswith("+"))
    text = match["rule"]
    barrier = text.startswith(_BARRIER)
    return Node(
        match["name"],
        match["op"],
        tuple(None if name == "_" else name.removeprefix("+") for name in operands),
        tuple(None if name == "_" else name for name in results),
        None if barrier else parse_rule(text),
        reason=text[len(_BARRIER) :].strip() if barrier else "",
        addends=addends,
    )
