"""The graph that the analysis reads: values, nodes, and the coupling rule of each node.

A graph is derived from a host (a torch program, an ONNX model), is cheap to derive again, and is never written back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal

from graphprune.brief import brief
from graphprune.ir.dims import Index
from graphprune.ir.rule import Rule, Shape

Kind = Literal["input", "parameter", "constant", "computed"]

MAXIMUM_POSITIONS = 1 << 16
"""The most whole numbers of a stored tensor that are looked at: what is longer is a table of something else."""


@dataclass(frozen=True, slots=True)
class Use:
    """One of several uses of a tensor that the model's file stores once, equal as it is for layers of their own.

    Attributes:
        tensor: The tensor's name in the file.
        reader: What reads it: ``RESULT:i``, the node with this result as its operand ``i``.
        former: What the copy for this use was called in plans of format 2; empty for the tensor itself.
    """

    tensor: str
    reader: str
    former: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph.

    Attributes:
        name: Unique in the graph; for parameters the name that a user knows (``layer1.0.conv1.weight``).
        shape: Sizes; for a dynamic axis the size in the example.
        dtype: NumPy's name of the element type (``float32``, ``bfloat16``, ``int64``, ...).
        kind: ``parameter`` (a floating-point weight, what pruning is for), ``constant`` (any other stored tensor:
            a buffer, an index table), ``input`` or ``computed``.
        itemsize: Bytes of one element; sub-byte types have a fraction.
        dynamic: Axes whose size is not known before run time.
        elements: The whole numbers that a stored tensor holds, where they are known and may be positions.
        use: Of what use a copy is, and of which tensor of the file; the tensor itself is for its first use.
        counted: Whether the elements count as parameters of the model; ``None``: if it is a parameter.
        sources: Of an input: for each axis where its size comes from, for the reader; empty: the user's example.
        title: What a reader may know a stored tensor by whose name says nothing; empty if there is nothing better.
    """

    __repr__ = brief

    name: str
    shape: Shape
    dtype: str = "float32"
    kind: Kind = "computed"
    itemsize: float = 4
    dynamic: frozenset[int] = frozenset()
    elements: Index | None = field(default=None, compare=False, repr=False)
    use: Use | None = field(default=None, compare=False, repr=False)
    counted: bool | None = field(default=None, compare=False, repr=False)
    sources: tuple[str, ...] = field(default=(), compare=False, repr=False)
    title: str = field(default="", compare=False, repr=False)

    @property
    def stored(self) -> bool:
        """Whether the tensor is stored with the model (a parameter or a constant)."""
        return self.kind in ("parameter", "constant")

    @property
    def n_elements(self) -> int:
        """How many elements the tensor has."""
        return prod(self.shape)

    @property
    def weighs(self) -> bool:
        """Whether the elements count as parameters of the model."""
        return self.kind == "parameter" if self.counted is None else self.counted


@dataclass(frozen=True, slots=True)
class Node:
    """An operator call.

    Attributes:
        name: Unique in the graph.
        op: The operator's name in its framework (``aten.linear.default``, ``Conv``).
        operands: Names of values, in the order of the rule's operands; ``None`` where one is absent.
        results: Names of values, in the order of the rule's results.
        rule: How the dimensions are coupled; ``None`` makes the node a barrier.
        location: Where the user finds it (a source line, a scope), if known.
        reason: Why there is no rule, if something better than "no coupling rule" can be said.
        addends: For a sum: the operands that it equals where the other one is zero.
        multiple: Where the other operands are stored: whether the result is the computed one times these (``product``)
            or divided by them (``quotient``); empty if neither.
        options: The attributes that carry no size, as text: they tell models apart that have the same shapes.
        role: What the operator is for those who ask (:data:`graphprune.rules.call.Role`); most are nothing special.
        kept: Whether the result is a number of stored tensors that the host keeps as it is when they are cut.
        optional: Whether it lies in a branch that need not run, so that nothing in it can be measured.
    """

    __repr__ = brief

    name: str
    op: str
    operands: tuple[str | None, ...]
    results: tuple[str | None, ...]
    rule: Rule | None = None
    location: str = ""
    reason: str = ""
    addends: tuple[int, ...] = ()
    multiple: str = ""
    options: str = ""
    role: str = ""
    kept: bool = False
    optional: bool = False

    @property
    def plain_sum(self) -> bool:
        """Whether the result is the sum of two values and nothing else, each time the model runs."""
        return len(self.addends) == 2 == len(self.operands) and None not in self.operands and not self.optional


@dataclass(frozen=True)
class Graph:
    """A model as the analysis sees it: nodes in execution order over named values.

    Attributes:
        values: By name.
        nodes: In execution order.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        others: The same model run in other ways. What they read and write of what this graph stores is coupled as well;
            nothing is pruned that only they hold, and none of their nodes counts.
        label: Of one of the others: how it is run (``in training mode``).
        shared: Of one of the others: what its stored values are called in the graph that it is an other of.
        carried: Outputs that are only handed to the next call: the caches of a decoder.
    """

    __repr__ = brief

    values: Mapping[str, Value]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    others: tuple[Graph, ...] = ()
    label: str = ""
    shared: Mapping[str, str] = field(default_factory=dict)
    carried: frozenset[str] = frozenset()

    @property
    def stored(self) -> tuple[Value, ...]:
        """Parameters and constants."""
        return tuple(value for value in self.values.values() if value.stored)

    @cached_property
    def producers(self) -> Mapping[str, int]:
        """The position of the node that makes a value, by name; inputs and stored tensors have none."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.results if name is not None}

    @cached_property
    def users(self) -> Mapping[str, tuple[int, ...]]:
        """The positions of the nodes that read a value, by name, in order; one that reads it twice is there twice."""
        found: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in node.operands:
                if name is not None:
                    found.setdefault(name, []).append(i)
        return {name: tuple(users) for name, users in found.items()}

    def producer(self, name: str) -> Node | None:
        """The node that makes a value, if one does."""
        at = self.producers.get(name)
        return None if at is None else self.nodes[at]

    def readers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a value, in order, each of them once."""
        return tuple(self.nodes[i] for i in dict.fromkeys(self.users.get(name, ())))

    def n_uses(self, name: str) -> int:
        """How often nodes read a value."""
        return len(self.users.get(name, ()))
