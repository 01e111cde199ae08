"""From a functional ``fx.Graph`` of ATen operators to the graph that the analysis reads.

Shapes were read once, by :func:`graphprune.hosts.torch.specs.annotate`; :func:`build_graph` works on plain tuples.
Stored tensors carry the names that a user knows; tensors that share their storage are one value.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx

from graphprune import ops
from graphprune.errors import RuleError
from graphprune.hosts.torch.kept import kept_number
from graphprune.hosts.torch.ops import lookups
from graphprune.hosts.torch.ops import rows as aten_rows
from graphprune.hosts.torch.ops import views as aten_views
from graphprune.hosts.torch.ops.table import ROWS
from graphprune.hosts.torch.signatures import Signature, plain_argument, signature_of
from graphprune.hosts.torch.specs import LOCATION, SPEC, Spec, Specs, output_nodes, storage_key
from graphprune.ir.dims import Dim, Factor, Index, Product, factors_of
from graphprune.ir.graph import MAXIMUM_POSITIONS, Graph, Kind, Node, Value
from graphprune.ir.rule import Rule
from graphprune.rules.call import Call, Refusal, facts, options

DYNAMIC_AXIS = "the size of this axis is only known at run time"


@dataclass(frozen=True, eq=False)
class Folding:
    """What folding changes in a graph, which is not copied for it.

    Attributes:
        constants: The stored tensor that has taken the place of a node, by name.
        slices: Nodes that are slices now: their arguments after the first.
        dead: Nodes that nothing needs any more.
    """

    constants: Mapping[fx.Node, str] = field(default_factory=dict)
    slices: Mapping[fx.Node, tuple[int, int, int, int]] = field(default_factory=dict)
    dead: frozenset[fx.Node] = frozenset()


class _Known(NamedTuple):
    """What is known of a call from its operator, its arguments and its shapes, as :class:`Node` keeps it."""

    rule: Rule | None
    reason: str
    addends: tuple[int, ...] = ()
    multiple: str = ""
    options: str = ""
    role: str = ""


class _Builder:
    """Walks one graph; ``names`` maps every node that stands for one tensor to the name of its value."""

    def __init__(self, program: fx.Graph, tensors: Mapping[str, Any], folding: Folding) -> None:
        self.program = program
        self.tensors = tensors
        self.folding = folding
        self.values: dict[str, Value] = {}
        self.names: dict[fx.Node, str] = {}
        self.nodes: list[Node] = []
        self.weightlike: set[str] = set()
        self.known: dict[Hashable, _Known] = {}

    def build(self) -> Graph:
        inputs = []
        stored: dict[tuple[Any, ...], str] = {}
        constants, dead = self.folding.constants, self.folding.dead
        nodes = [node for node in self.program.nodes if node not in dead]
        for node in nodes:
            if node.op == "get_attr":
                self._store(node, str(node.target), stored)
            elif node in constants:
                self._store(node, constants[node], stored)
        for node in nodes:
            kind = node.op
            if kind == "call_function":
                if node not in constants:
                    self._call(node)
            elif kind == "placeholder":
                if isinstance(node.meta[SPEC], Spec):
                    inputs.append(self._enter(node, node.meta[SPEC], "input"))
            elif kind not in ("get_attr", "output"):
                self._barrier(node, str(node.target), f"'{kind}' is no operator call")
        outputs = [self.names[node] for node in output_nodes(self.program) if node is not None]
        return Graph(self.values, tuple(self.nodes), tuple(inputs), tuple(outputs))

    def _store(self, node: fx.Node, name: str, stored: dict[tuple[Any, ...], str]) -> None:
        tensor = self.tensors[name]
        if not isinstance(tensor, torch.Tensor):
            return
        first = self.names[node] = stored.setdefault(storage_key(tensor), name)
        if first != name or name in self.values:
            return
        weight = isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point()
        self.weightlike.add(name)
        kind: Kind = "parameter" if weight else "constant"
        self.values[name] = _value(name, node.meta[SPEC], kind, None if weight else _elements(tensor))

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
            if user in self.folding.dead:
                continue
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
        target, args = node.target, node.args
        if target is _GETITEM:
            return
        if node in self.folding.slices:
            target, args = SLICE, (args[0], *self.folding.slices[node])
        specs: Specs = node.meta[SPEC]
        results = self._results(node, specs)
        signature = signature_of(target)
        if results is None:
            return  # sizes, assertions: no tensor comes out
        if signature.arguments is None:
            bodies = isinstance(target, torch._ops.HigherOrderOperator)
            self._barrier(
                node,
                signature.op,
                f"'{signature.op}' runs a graph of its own, into which no factor is followed" if bodies else "",
            )
            return
        operands, plain = self._arguments(signature.arguments, args, node.kwargs)
        names = tuple([None if operand is None else self.names.get(operand) for operand in operands])
        stored = tuple([name in self.weightlike for name in names])
        taken = tuple([None if operand is None else operand.meta[SPEC] for operand in operands])
        if any(stored) and (
            all(name is None or weight for name, weight in zip(names, stored, strict=True))
            or (stored[0] and ROWS.get(signature.op) in _LOOK_UPS and len(self.values[names[0] or ""].shape) > 2)
        ):  # from weights alone, or a matrix of weights for each index
            self.weightlike.update(name for name in results if name is not None)
        if signature.op == _GAINED:  # gains follow what is stored, not what is computed
            stored = tuple([name is not None and self.values[name].stored for name in names])
        made = (specs,) if isinstance(specs, Spec) else specs or ()
        made = tuple([None if name is None else spec for name, spec in zip(results, made, strict=True)])
        known = self._known(target, signature, plain, stored, taken, made)
        self._add(node, signature.op, names, results, known)

    def _arguments(
        self, schema: tuple[tuple[str, str, Any], ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[list[fx.Node | None], tuple[Any, ...]]:
        """The operands, and what stands for each argument of the schema: its plain value, or its number of operands."""
        operands: list[fx.Node | None] = []
        plain: list[Any] = []
        n = len(args)
        for i, (name, kind, default) in enumerate(schema):
            value = args[i] if i < n else kwargs.get(name, default) if kwargs else default
            if kind == "other":
                plain.append(plain_argument(value) if isinstance(value, fx.Node | list | tuple) else value)
            elif kind == "tensors":
                items = value if isinstance(value, list | tuple) else ()
                operands.extend([item if isinstance(item, fx.Node) else None for item in items])
                plain.append(len(items))
            elif isinstance(value, fx.Node) and value in self.names:
                operands.append(value)
                plain.append(None)
            else:
                operands.append(None)
                plain.append(None if value is None else plain_argument(value))  # a number where the schema says tensor
        return operands, tuple(plain)

    def _known(
        self,
        target: Any,
        signature: Signature,
        plain: tuple[Any, ...],
        stored: tuple[bool, ...],
        taken: tuple[Spec | None, ...],
        made: tuple[Spec | None, ...],
    ) -> _Known:
        """What is known of a call; equal calls are looked at once, since models repeat layers."""
        key = (target, plain, stored, taken, made)
        try:
            known = self.known.get(key)
        except TypeError:  # an argument that cannot be hashed
            return _known_of(signature, plain, stored, taken, made)
        if known is None:
            known = self.known[key] = _known_of(signature, plain, stored, taken, made)
        return known

    def _add(
        self,
        node: fx.Node,
        op: str,
        operands: tuple[str | None, ...],
        results: tuple[str | None, ...],
        known: _Known,
    ) -> None:
        rule, reason, summed, multiple, settings, role = known
        said = (rule, node.meta.get(LOCATION, ""), reason, summed, multiple, settings, role)
        kept = kept_number(node) is not None
        self.nodes.append(Node(node.name, op, operands, results, *said, kept=kept))

    def _barrier(self, node: fx.Node, op: str, reason: str) -> None:
        operands = tuple(self.names[operand] for operand in node.all_input_nodes if operand in self.names)
        self._add(node, op, operands, self._results(node, node.meta[SPEC]) or (), _Known(None, reason))


def _known_of(
    signature: Signature,
    plain: tuple[Any, ...],
    stored: tuple[bool, ...],
    taken: tuple[Spec | None, ...],
    made: tuple[Spec | None, ...],
) -> _Known:
    """Asks the row of the operator's table."""
    op, registered = signature.op, signature.registered
    attributes = {
        name: value
        for (name, kind, _), value in zip(signature.arguments or (), plain, strict=True)
        if kind == "other" or (kind == "tensor" and value is not None)
    }
    attributes["dtypes"] = tuple([None if spec is None else spec.dtype for spec in taken])
    row = (ops.lookup(registered) if not registered.startswith("aten::") else None) or ROWS.get(op)
    known = facts(row)
    said = known.addends(attributes), known.multiple_of(stored), options(attributes), known.role
    if row is None:
        return _Known(None, "", *said)
    shapes = tuple([None if spec is None else spec.shape for spec in taken])
    results = tuple([None if spec is None else spec.shape for spec in made])
    call = Call(op, shapes, results, attributes, stored)
    try:
        if known.row not in _EMPTY and any(0 in shape for shape in (*shapes, *results) if shape is not None):
            raise Refusal(f"'{op}' on an empty tensor")
        rule = _checked(row(call), call)
    except (Refusal, RuleError) as refusal:
        return _Known(None, str(refusal), *said)
    dynamic = any(spec.dynamic for spec in made if spec is not None)
    return _Known(_fix_dynamic(rule, taken, made) if dynamic else rule, "", *said)


_STATIC: frozenset[int] = frozenset()
SLICE = torch.ops.aten.slice.Tensor
_GETITEM = operator.getitem
# a rotary embedding of nothing, no register tokens
_EMPTY = (aten_views.slice_, aten_views.cat, aten_views.expand, aten_rows.elementwise)
_GAINED = "aten._weight_norm.default"
_LOOK_UPS = (lookups.index, lookups.index_select)


def _value(name: str, spec: Spec, kind: Kind, elements: Index | None = None) -> Value:
    dynamic = frozenset([axis for axis, _ in spec.dynamic]) if spec.dynamic else _STATIC
    return Value(name, spec.shape, spec.dtype, kind, spec.itemsize, dynamic, elements)


def _elements(tensor: torch.Tensor) -> Index | None:
    """The whole numbers of a stored tensor, if they may be positions of an axis."""
    if tensor.dtype not in (torch.int64, torch.int32) or tensor.is_meta or not 0 < tensor.numel() <= MAXIMUM_POSITIONS:
        return None
    return tensor.detach().cpu().numpy().astype(np.int64)


def _checked(rule: Rule, call: Call) -> Rule:
    """Refuses a rule whose sizes are not those of the call, so that a wrong row is a barrier and not a wrong answer."""
    for role, layouts, shapes in (("operand", rule.operands, call.operands), ("result", rule.results, call.results)):
        for i, (layout, shape) in enumerate(zip(layouts, shapes, strict=False)):
            if layout is not None and shape is not None and tuple([dim.size for dim in layout]) != shape:
                raise Refusal(f"the rule of '{call.op}' does not fit the shape {list(shape)} of {role} {i}")
    if len(rule.operands) < len(call.operands) and any(s is not None for s in call.operands[len(rule.operands) :]):
        raise Refusal(f"the rule of '{call.op}' does not name all of its {len(call.operands)} operands")
    return rule


def _fix_dynamic(rule: Rule, taken: Sequence[Spec | None], made: Sequence[Spec | None]) -> Rule:
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
    for spec, layout in zip(made, rule.results, strict=False):
        if spec is None or layout is None:
            continue
        for axis, static in spec.dynamic:
            if (layout[axis], static) not in known:
                fixed.update(dict.fromkeys(_live(layout[axis], static), DYNAMIC_AXIS))
    return replace(rule, fixed={**fixed, **rule.fixed}) if fixed else rule


def _live(dim: Dim, static: int) -> Iterable[Factor]:
    """The factors of a dynamic axis that are not certainly part of its static factor."""
    if type(dim) is Product and static > 1:
        for split in range(1, len(dim.parts)):
            if prod(part.size for part in dim.parts[split:]) == static:
                return (f for part in dim.parts[:split] for f in factors_of(part))
            if prod(part.size for part in dim.parts[:split]) == static:
                return (f for part in dim.parts[split:] for f in factors_of(part))
    return factors_of(dim)


def build_graph(
    program: fx.Graph, tensors: Mapping[str, Any], folding: Folding | None = None
) -> tuple[Graph, Mapping[fx.Node, str]]:
    """The graph of an annotated program, and the name of the value that each node stands for.

    Args:
        program: The program.
        tensors: What its ``get_attr`` nodes stand for, and the constants of ``folding``.
        folding: What has changed since.
    """
    builder = _Builder(program, tensors, folding or Folding())
    return builder.build(), builder.names
