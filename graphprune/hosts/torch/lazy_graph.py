"""A traced graph and what has changed since, which is written out as a graph only when somebody wants to run it.

Copying an ``fx.Graph`` takes longer than analysing it, and folding and cutting both want a copy. So both note what they
change; tensors are cut at once, the graph is copied once, and only if it is run, exported or made a module.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd
from typing import Any, cast

from torch import fx

from graphprune.brief import brief
from graphprune.hosts.edits import Edits, SizeEdit
from graphprune.hosts.torch.graph import SLICE, Folding
from graphprune.hosts.torch.signatures import argument, argument_position
from graphprune.hosts.torch.specs import SPEC, Spec

NO_EDITS = Edits()
NO_FOLDING = Folding()


@dataclass(frozen=True, eq=False)
class LazyGraph:
    """A graph and changes to it.

    Attributes:
        base: The graph before; it is shared and never changed.
        folding: What folding has changed.
        edits: What was edited after that; sizes and pins name nodes of ``base``.
        names: The values that the nodes of ``base`` stand for, by which ``edits`` names new shapes.
    """

    __repr__ = brief

    base: fx.Graph
    folding: Folding = NO_FOLDING
    edits: Edits = NO_EDITS
    names: Mapping[fx.Node, str] = field(default_factory=dict)

    @property
    def edited(self) -> bool:
        """Whether the graph has other sizes than ``base``."""
        return self.edits is not NO_EDITS

    @property
    def folded(self) -> bool:
        """Whether nodes of ``base`` have become constants."""
        return bool(self.folding.constants)

    @cached_property
    def written(self) -> tuple[fx.Graph, Mapping[fx.Node, fx.Node]]:
        """The graph with all changes made, and what each node of ``base`` that is left has become."""
        if not self.edited and not self.folded and not self.folding.dead:
            return self.base, {node: node for node in self.base.nodes}
        graph, copies = copied(self.base, self.folding)
        nodes = {node.name: node for node in copies.values()} if self.edits.sizes or self.edits.pins else {}
        for edit in self.edits.sizes:
            if edit.node in nodes:  # not dead
                _write_size(nodes[edit.node], edit)
        for pin in self.edits.pins:
            if pin.node in nodes:
                set_argument(nodes[pin.node], pin.attribute, pin.value)
        if self.edited:
            _note_shapes(copies, self.edits.shapes, self.names)
            values = {value: copies[node] for node, value in self.names.items() if node in copies}
            for old, new in self.edits.bypasses.items():
                if old in values:  # not dead
                    values[old].replace_all_uses_with(values[new])
        return graph, copies


def copied(base: fx.Graph, folding: Folding = NO_FOLDING) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of a graph, folded, and what each node became; what describes the module's interface is shared."""
    new = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for node in base.nodes:
        if node in folding.dead:
            continue
        if node in folding.constants:
            copy = new.create_node("get_attr", folding.constants[node])
            copy.meta = dict(node.meta)
        elif node in folding.slices:
            operand = nodes[cast("fx.Node", node.args[0])]
            copy = new.create_node("call_function", SLICE, (operand, *folding.slices[node]), name=node.name)
            copy.meta = dict(node.meta)
        else:
            copy = new.node_copy(node, nodes.__getitem__)
        nodes[node] = copy
    new.set_codegen(base._codegen)
    return new, nodes


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Writes a named argument of a node."""
    at = argument_position(node, name)
    if at is not None and at < len(node.args):
        node.update_arg(at, value)
    else:
        node.update_kwarg(name, value)


def _write_size(node: fx.Node, edit: SizeEdit) -> None:
    present = argument(node, edit.attribute)
    if edit.index is None:
        set_argument(node, edit.attribute, _scaled(node, present, edit))
        return
    values = list(present)
    values[edit.index] = _scaled(node, values[edit.index], edit)
    set_argument(node, edit.attribute, values)


def _scaled(node: fx.Node, present: Any, edit: SizeEdit) -> Any:
    """The new size; one that is computed at run time (``batch * 12``) is multiplied by the ratio of the two sizes."""
    if not isinstance(present, fx.Node):
        return edit.new
    common = gcd(edit.old, edit.new)
    graph = node.graph
    with graph.inserting_before(node):
        scaled = graph.call_function(_mul, (present, edit.new // common))
        divided = graph.call_function(_floordiv, (scaled, edit.old // common))
    for made in (scaled, divided):
        made.meta[SPEC] = None
    return divided


_mul, _floordiv = operator.mul, operator.floordiv


def _note_shapes(
    copies: Mapping[fx.Node, fx.Node], shapes: Mapping[str, tuple[int, ...]], names: Mapping[fx.Node, str]
) -> None:
    """Writes new shapes into the specs of the nodes."""
    for old, value in names.items():
        node = copies.get(old)
        if node is not None and value in shapes and isinstance(node.meta[SPEC], Spec):
            node.meta[SPEC] = _reshaped(node.meta[SPEC], shapes[value])
    for node in copies.values():
        specs = node.meta[SPEC]
        if specs is not None and not isinstance(specs, Spec):  # a tuple follows the getitem nodes that take it apart
            parts = list(specs)
            for user in node.users:
                if isinstance(user.args[1] if len(user.args) > 1 else None, int) and user.meta[SPEC] is not None:
                    parts[cast("int", user.args[1])] = user.meta[SPEC]
            node.meta[SPEC] = tuple(parts)


def _reshaped(spec: Spec, shape: tuple[int, ...]) -> Spec:
    dynamic = []
    for axis, static in spec.dynamic:
        scaled, rest = divmod(static * shape[axis], spec.shape[axis])
        dynamic.append((axis, 0 if rest else scaled))
    return spec._replace(shape=tuple(shape), dynamic=tuple(dynamic))
