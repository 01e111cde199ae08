"""From a functional ``fx.Graph`` of ATen operators to the graph that the analysis reads.

Shapes are read once, by :func:`annotate`, and stay with the nodes as :class:`Spec`; :func:`build_graph` then works on
plain tuples. Stored tensors carry the names that a user knows; tensors that share their storage are one value.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import PurePath
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx

from graphprune import ops
from graphprune.errors import RuleError
from graphprune.frontends import aten_rows, aten_views
from graphprune.frontends.algebra import addends, is_multiple, options
from graphprune.frontends.aten_ops import ROWS
from graphprune.frontends.aten_rows import UNKNOWN
from graphprune.ir.dims import Dim, Factor, Index, Product, factors_of
from graphprune.ir.graph import MAXIMUM_POSITIONS, Graph, Kind, Node, Value
from graphprune.ir.rule import Rule, Shape
from graphprune.rules.call import Call, Refusal, RuleBook

SPEC = "graphprune_spec"
DYNAMIC_AXIS = "the size of this axis is only known at run time"
_NO_HINT = 7  # stands for a size without example, such as the number of nonzero elements


@dataclass(frozen=True, slots=True)
class Spec:
    """What the graph needs to know of a tensor.

    Attributes:
        shape: Sizes; of a dynamic axis the size in the example.
        dtype: The element type (``float32``).
        itemsize: Bytes of one element.
        dynamic: The dynamic axes, each with the static factor of its size: ``12`` for ``batch * 12``, or 0 where the
            size is no such product.
    """

    shape: Shape
    dtype: str
    itemsize: float
    dynamic: tuple[tuple[int, int], ...] = ()


Specs: TypeAlias = "Spec | tuple[Spec | None, ...] | None"


def spec_of(tensor: torch.Tensor) -> Spec:
    """The spec of a real, fake or meta tensor."""
    shape: list[int] = []
    dynamic: list[tuple[int, int]] = []
    for axis, size in enumerate(tensor.shape):
        if isinstance(size, int):
            shape.append(size)
            continue
        hint, static = _symbolic(size)
        shape.append(hint)
        dynamic.append((axis, static))
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Spec(tuple(shape), dtype, tensor.element_size(), tuple(dynamic))


def _symbolic(size: torch.SymInt) -> tuple[int, int]:
    """The example value of a symbolic size and the static factor in it."""
    node = size.node
    hint = node.hint if node.has_hint() else None
    if hint is None:  # every size of the graph that follows from it must fit
        hint = node.expr.xreplace(dict.fromkeys(node.expr.free_symbols, _NO_HINT))
    try:
        value = int(hint)
    except TypeError:
        value = _NO_HINT
    try:
        static = int(node.expr.as_coeff_Mul()[0])
    except (TypeError, ValueError, AttributeError):
        static = 0
    return value, static if static > 0 and value % static == 0 else 0


def annotate(graph: fx.Graph, tensors: Mapping[str, Any]) -> None:
    """Notes the spec of every value at its node and drops the exporter's fake tensors."""
    for node in graph.nodes:
        if node.op == "get_attr":
            value = tensors[str(node.target)]
        else:
            value = node.meta.get("val")
        node.meta = {key: node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in node.meta}
        node.meta[SPEC] = _specs(value)


def _specs(value: object) -> Specs:
    if isinstance(value, torch.Tensor):
        return spec_of(value)
    if isinstance(value, list | tuple):
        return tuple(spec_of(item) if isinstance(item, torch.Tensor) else None for item in value)
    return None


def attribute(module: torch.nn.Module, name: str) -> Any:
    """What a dotted name stands for in a module."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


# -- the schema of an operator ---------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _schema(target: Any) -> tuple[tuple[str, str, Any], ...] | None:
    """Name, kind (``tensor``, ``tensors`` or ``other``) and default of each argument of an operator."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return None
    found = []
    for argument in schema.arguments:
        text = str(argument.type)
        kind = (
            "other" if "Tensor" not in text else "tensors" if text.startswith(("List", "Optional[List")) else "tensor"
        )
        found.append((argument.name, kind, argument.default_value if argument.has_default_value() else None))
    return tuple(found)


@lru_cache(maxsize=4096)
def _names_of(target: Any) -> tuple[str, str]:
    """The operator's name in the table, and in the registry of users (``namespace::name``)."""
    schema = getattr(target, "_schema", None)
    text = str(target) if schema is not None else getattr(target, "__name__", str(target))
    return text, "" if schema is None else schema.name


def argument_position(node: fx.Node, name: str) -> int | None:
    """The position of a named argument in the schema of a node's operator, if there is one."""
    schema = _schema(node.target)
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
    schema = _schema(node.target)
    assert schema is not None
    return schema[at][2]


def _plain(value: Any) -> Any:
    """An argument as plain data: sizes known at run time only become ``None`` in lists, :data:`UNKNOWN` alone."""
    if isinstance(value, fx.Node):
        return UNKNOWN
    if isinstance(value, list | tuple):
        return tuple(None if isinstance(item, fx.Node) else item for item in value)
    return value


# -- the graph -------------------------------------------------------------------------------------------------------


class _Builder:
    """Walks one graph; ``names`` maps every node that stands for one tensor to the name of its value."""

    def __init__(self, program: fx.Graph, tensors: Mapping[str, Any]) -> None:
        self.program = program
        self.tensors = tensors
        self.values: dict[str, Value] = {}
        self.names: dict[fx.Node, str] = {}
        self.nodes: list[Node] = []
        self.weightlike: set[str] = set()
        self.tuples: dict[fx.Node, tuple[str | None, ...]] = {}
        self.locations: dict[str, str] = {}
        self.rules = RuleBook()

    def build(self) -> None:
        inputs = []
        stored: dict[tuple[Any, ...], str] = {}
        nodes = list(self.program.nodes)
        for node in nodes:
            if node.op == "get_attr":
                self._store(node, stored)
        for node in nodes:
            if node.op == "placeholder":
                if isinstance(node.meta[SPEC], Spec):
                    inputs.append(self._enter(node, node.meta[SPEC], "input"))
            elif node.op == "call_function":
                self._call(node)
            elif node.op not in ("get_attr", "output"):
                self._barrier(node, str(node.target), f"'{node.op}' is no operator call")
        outputs = [self.names[node] for node in output_nodes(self.program) if node is not None]
        self.graph = Graph(self.values, tuple(self.nodes), tuple(inputs), tuple(outputs))

    def _store(self, node: fx.Node, stored: dict[tuple[Any, ...], str]) -> None:
        tensor = self.tensors[str(node.target)]
        if not isinstance(tensor, torch.Tensor):
            return
        key = storage_key(tensor)
        known = stored.get(key)
        if known is not None:
            self.names[node] = known
            return
        spec = node.meta[SPEC]
        weight = isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point()
        self.names[node] = stored[key] = str(node.target)
        self.weightlike.add(str(node.target))
        value = _value(str(node.target), spec, "parameter" if weight else "constant")
        self.values[str(node.target)] = replace(value, elements=_elements(tensor))

    def _enter(self, node: fx.Node, spec: Spec, kind: Kind = "computed") -> str:
        wanted = str(node.target) if node.op == "placeholder" else node.name  # fx renames 'input', a builtin
        name = wanted if wanted not in self.values else f"{wanted}_value"
        self.names[node] = name
        self.values[name] = _value(name, spec, kind)
        return name

    def _results(self, node: fx.Node, specs: Specs) -> tuple[str | None, ...] | None:
        """The names of a node's results; those of a tuple are the ``getitem`` nodes that take them out of it."""
        if isinstance(specs, Spec):
            return (self._enter(node, specs),)
        if specs is None:
            return None
        results: list[str | None] = [None] * len(specs)
        for user in node.users:
            if user.op == "call_function" and user.target is _GETITEM and isinstance(user.args[1], int):
                at = user.args[1]
                spec = specs[at]
                if spec is None:
                    continue
                if results[at] is None:
                    results[at] = self._enter(user, spec)
                else:
                    self.names[user] = results[at] or ""
        return tuple(results)

    def _call(self, node: fx.Node) -> None:
        if node.target is _GETITEM:
            return
        specs: Specs = node.meta[SPEC]
        results = self._results(node, specs)
        schema = _schema(node.target)
        op, registered = _names_of(node.target)
        if results is None:
            return  # sizes, assertions: no tensor comes out
        if schema is None:
            bodies = isinstance(node.target, torch._ops.HigherOrderOperator)
            self._barrier(
                node, op, f"'{op}' runs a graph of its own, into which no factor is followed" if bodies else ""
            )
            return
        operands, attributes, taken = self._arguments(node, schema)
        row = (ops.lookup(registered) if not registered.startswith("aten::") else None) or ROWS.get(op)
        names = tuple(None if operand is None else self.names.get(operand) for operand in operands)
        sizes = tuple(None if spec is None else spec.shape for spec in taken)
        shown = specs if isinstance(specs, tuple) else (specs,)
        shapes = tuple(
            None if name is None or spec is None else spec.shape for name, spec in zip(results, shown, strict=True)
        )
        derived = [name in self.weightlike for name in names if name is not None]
        looked_up = row in _LOOK_UPS and derived and derived[0] and len(sizes[0] or ()) > 2  # a matrix for each index
        if derived and (all(derived) or looked_up):
            self.weightlike.update(name for name in results if name is not None)
        if row is None:
            self._add(node, op, names, results, None, "", attributes)
            return
        call = Call(op, sizes, shapes, attributes, tuple(name in self.weightlike for name in names))
        try:
            if row not in _EMPTY and any(0 in shape for shape in (*sizes, *shapes) if shape is not None):
                raise Refusal(f"'{op}' on an empty tensor")
            rule = _checked(self.rules.rule(row, call), call)
            rule = _fix_dynamic(rule, taken, results, shown)
            self._add(node, op, names, results, rule, "", attributes)
        except (Refusal, RuleError) as refusal:
            self._add(node, op, names, results, None, str(refusal), attributes)

    def _arguments(
        self, node: fx.Node, schema: tuple[tuple[str, str, Any], ...]
    ) -> tuple[list[fx.Node | None], dict[str, Any], list[Spec | None]]:
        operands: list[fx.Node | None] = []
        attributes: dict[str, Any] = {}
        args, kwargs = node.args, node.kwargs
        for i, (name, kind, default) in enumerate(schema):
            value = args[i] if i < len(args) else kwargs.get(name, default)
            if kind == "other":
                attributes[name] = _plain(value)
            elif kind == "tensors":
                items = value if isinstance(value, list | tuple) else ()
                operands.extend(item if isinstance(item, fx.Node) else None for item in items)
            elif isinstance(value, fx.Node) and value in self.names:
                operands.append(value)
            else:
                operands.append(None)
                if value is not None:  # a number where the schema says tensor
                    attributes[name] = _plain(value)
        taken = [None if operand is None else operand.meta[SPEC] for operand in operands]
        attributes["dtypes"] = tuple(None if spec is None else spec.dtype for spec in taken)
        return operands, attributes, taken

    def _add(
        self,
        node: fx.Node,
        op: str,
        operands: tuple[str | None, ...],
        results: tuple[str | None, ...],
        rule: Rule | None,
        reason: str,
        attributes: Mapping[str, Any],
    ) -> None:
        known = (
            addends(op, attributes),
            is_multiple(op, [name in self.weightlike for name in operands]),
            options(attributes),
        )
        self.nodes.append(Node(node.name, op, operands, results, rule, self._location(node), reason, *known))

    def _barrier(self, node: fx.Node, op: str, reason: str) -> None:
        operands = tuple(self.names[operand] for operand in node.all_input_nodes if operand in self.names)
        self._add(node, op, operands, self._results(node, node.meta[SPEC]) or (), None, reason, {})

    def _location(self, node: fx.Node) -> str:
        trace = node.meta.get("stack_trace")
        if not trace:
            return ""
        known = self.locations.get(trace)
        if known is None:
            known = self.locations[trace] = _user_line(trace)
        return known


_GETITEM = operator.getitem
# a rotary embedding of nothing, no register tokens
_EMPTY = (aten_views.slice_, aten_views.cat, aten_views.expand, aten_rows.elementwise)
_LOOK_UPS = (aten_views.index, aten_views.index_select)
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def _user_line(trace: str) -> str:
    """The last frame of a stack trace that is not torch's own: ``model.py line 41``."""
    frames = _FRAME.findall(trace)
    users = [frame for frame in frames if "/torch/" not in frame[0]] or frames
    return f"{PurePath(users[-1][0]).name} line {users[-1][1]}" if users else ""


def _value(name: str, spec: Spec, kind: Kind) -> Value:
    return Value(name, spec.shape, spec.dtype, kind, spec.itemsize, frozenset(axis for axis, _ in spec.dynamic))


def _elements(tensor: torch.Tensor) -> Index | None:
    """The whole numbers of a stored tensor, if they may be positions of an axis."""
    if tensor.dtype not in (torch.int64, torch.int32) or tensor.is_meta or not 0 < tensor.numel() <= MAXIMUM_POSITIONS:
        return None
    return tensor.detach().cpu().numpy().astype(np.int64)


def storage_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory seen in the same way: tied parameters."""
    try:
        storage = tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return (id(tensor),)
    return (storage, tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))


def output_nodes(graph: fx.Graph) -> Iterator[fx.Node | None]:
    """The nodes of the outputs, in order; ``None`` where an output is no tensor."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    returned = output.args[0]
    for item in returned if isinstance(returned, list | tuple) else (returned,):
        yield item if isinstance(item, fx.Node) and isinstance(item.meta[SPEC], Spec) else None


def _checked(rule: Rule, call: Call) -> Rule:
    """Refuses a rule whose sizes are not those of the call, so that a wrong row is a barrier and not a wrong answer."""
    for role, layouts, shapes in (("operand", rule.operands, call.operands), ("result", rule.results, call.results)):
        for i, (layout, shape) in enumerate(zip(layouts, shapes, strict=False)):
            if layout is not None and shape is not None and tuple(dim.size for dim in layout) != shape:
                raise Refusal(f"the rule of '{call.op}' does not fit the shape {list(shape)} of {role} {i}")
    if len(rule.operands) < len(call.operands) and any(s is not None for s in call.operands[len(rule.operands) :]):
        raise Refusal(f"the rule of '{call.op}' does not name all of its {len(call.operands)} operands")
    return rule


def _fix_dynamic(
    rule: Rule, taken: Sequence[Spec | None], results: tuple[str | None, ...], specs: tuple[Spec | None, ...]
) -> Rule:
    """Fixes the part of every dynamic axis that is only known at run time (``batch`` in ``batch * heads``).

    An axis that the rule takes over as it is from a dynamic axis of an operand was treated where it came from.
    """
    known = {
        (layout[axis], static)
        for spec, layout in zip(taken, rule.operands, strict=False)
        if spec is not None and layout is not None
        for axis, static in spec.dynamic
    }
    fixed: dict[Factor, str] = {}
    for name, spec, layout in zip(results, specs, rule.results, strict=False):
        if name is None or spec is None or layout is None:
            continue
        for axis, static in spec.dynamic:
            if (layout[axis], static) not in known:
                fixed.update(dict.fromkeys(_live(layout[axis], static), DYNAMIC_AXIS))
    return replace(rule, fixed={**fixed, **rule.fixed}) if fixed else rule


def _live(dim: Dim, static: int) -> Iterator[Factor]:
    """The factors of a dynamic axis that are not certainly part of its static factor."""
    if type(dim) is Product and static > 1:
        for split in range(1, len(dim.parts)):
            if prod(part.size for part in dim.parts[split:]) == static:
                return (f for part in dim.parts[:split] for f in factors_of(part))
            if prod(part.size for part in dim.parts[:split]) == static:
                return (f for part in dim.parts[split:] for f in factors_of(part))
    return factors_of(dim)


def build_graph(program: fx.Graph, tensors: Mapping[str, Any]) -> tuple[Graph, Mapping[fx.Node, str]]:
    """The graph of an annotated program, and the name of the value that each node stands for."""
    builder = _Builder(program, tensors)
    builder.build()
    return builder.graph, builder.names


__all__ = [
    "SPEC",
    "Spec",
    "annotate",
    "argument",
    "argument_position",
    "attribute",
    "build_graph",
    "output_nodes",
    "spec_of",
    "storage_key",
]
