"""Whether two models are the same graph: a walk from the outputs, hand in hand, that pairs nodes with nodes.

Outputs and operands are ordered, so that there is nothing to search: what makes one output must be what makes the
other, and so on to the inputs. Each node has one partner at most, so that what is computed once in the one is not
computed twice in the other. Names of inner values and nodes, the order of nodes, ``Identity`` nodes, documentation,
where constants are written and attributes that say what the operator assumes anyway make no difference. Nor do names
of stored tensors: they are the same if their bytes are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from graphprune.hosts.onnx.contents import (
    DEFAULT_DOMAINS,
    Contents,
    attributes_of,
    bodies_of,
    digest,
    graphs_of,
    shown,
    stated_attributes,
)

MAIN = 0
"""The graph that is in no other one."""
Place = tuple[int, str]
"""A graph and the name of a value that is read there."""

_COMMUTATIVE = ("Add", "Mul")
"""Operators of two operands whose order changes no bit."""


@dataclass(frozen=True, slots=True)
class Source:
    """What makes a value: an input, a stored tensor, an input of a body, or the result of a node.

    Attributes:
        kind: ``input``, ``stored``, ``formal``, ``result`` or ``nothing`` (an operand that is left out).
        name: The value's name.
        node: The node that makes it, or whose body takes it; a position in :attr:`Side.nodes`.
        place: Which result, or which body and which of its inputs.
    """

    kind: str
    name: str
    node: int = -1
    place: tuple[str | int, ...] = ()


class Side:
    """One of the two models, ready to be walked.

    Attributes:
        contents: The model.
        nodes: The nodes of all its graphs.
        twice: Names that more than one node, input or tensor lays claim to.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.nodes: list[onnx.NodeProto] = []
        self.twice: list[str] = []
        self._homes: list[int] = []  # the graph of each node
        self._frames: dict[int, tuple[dict[str, Source], int]] = {}  # names of each graph, and the graph around it
        self._inside: dict[tuple[int, str, int], int] = {}  # the graphs that a node holds
        self._digests: dict[str, str] = {}
        self._headers = contents.headers
        graph = contents.proto.graph
        self._frames[MAIN] = ({}, MAIN)
        for value in graph.input:
            self._add(MAIN, Source("input", value.name))
        for name in self._headers:
            self._add(MAIN, Source("stored", name))
        pending = [(graph, MAIN)]
        while pending:
            each, frame = pending.pop(0)
            for node in each.node:
                pending.extend(self._take(node, frame))

    def _take(self, node: onnx.NodeProto, frame: int) -> Iterator[tuple[onnx.GraphProto, int]]:
        """Notes a node and what it makes; the bodies that it holds."""
        at = len(self.nodes)
        self.nodes.append(node)
        self._homes.append(frame)
        for i, name in enumerate(node.output):
            if name:
                self._add(frame, Source("result", name, at, (i,)))
        for (attribute, n), body in bodies_of(node).items():
            inner = self._inside[at, attribute, n] = len(self._frames)
            self._frames[inner] = ({}, frame)
            for i, value in enumerate(body.input):
                self._add(inner, Source("formal", value.name, at, (attribute, n, i)))
            yield body, inner

    def _add(self, frame: int, source: Source) -> None:
        names = self._frames[frame][0]
        if source.name in names:
            self.twice.append(source.name)
        names[source.name] = source

    def home(self, node: int) -> int:
        """The graph that a node stands in."""
        return self._homes[node]

    def inside(self, node: int, body: tuple[str, int]) -> int:
        """A graph that a node holds."""
        return self._inside[(node, *body)]

    def source(self, name: str, frame: int = MAIN) -> Source:
        """What makes a value that is read in a graph, seen through ``Identity`` nodes."""
        seen = set()
        while (frame, name) not in seen:
            seen.add((frame, name))
            found = self._look_up(name, frame)
            if found.kind != "result" or not is_identity(self.nodes[found.node]):
                return found
            name, frame = self.nodes[found.node].input[0], self._homes[found.node]
        return Source("nothing", name)

    def _look_up(self, name: str, frame: int) -> Source:
        while name:
            names, around = self._frames[frame]
            if name in names:
                return names[name]
            if frame == around:
                break
            frame = around
        return Source("nothing", name)

    def digest(self, name: str) -> str:
        """The digest of a stored tensor."""
        if name not in self._digests:
            self._digests[name] = digest(self.contents.tensor(self._headers[name]))
        return self._digests[name]

    def digests(self) -> dict[str, str]:
        """The digests of all stored tensors."""
        return {name: self.digest(name) for name in self._headers}

    def header(self, name: str) -> onnx.TensorProto:
        """The type and shape of a stored tensor."""
        return self._headers[name]

    def read(self) -> set[str]:
        """The stored tensors that some node or output reads."""
        used = {name for node in self.nodes for name in node.input}
        used.update(value.name for graph in graphs_of(self.contents.proto.graph) for value in graph.output)
        return used & self._headers.keys()


def is_identity(node: onnx.NodeProto) -> bool:
    """Whether a node hands on what it reads."""
    return node.op_type == "Identity" and node.domain in DEFAULT_DOMAINS and len(node.input) == 1


@dataclass(frozen=True)
class Sameness:
    """What the walk found.

    Attributes:
        attributes: Nodes that are partners but for an attribute, as sentences.
        gaps: Values (of the file, of the plan's model) that are made by other operators or from other operands, with
            the graph that they are read in.
        structure: The same as sentences, and nodes without a partner.
        tensors: Stored tensors (of the file, of the plan's model) in the same place with other bytes.
        pairs: The partner of each node of the file.
        restyled: How many partners write the same attributes in another way, as other exporters do.
        unread: Tensors of the file that nothing reads, and nothing reads in the plan's model either.
    """

    attributes: tuple[str, ...]
    gaps: tuple[tuple[Place, Place], ...]
    structure: tuple[str, ...]
    tensors: tuple[tuple[str, str], ...]
    pairs: Mapping[int, int] = field(repr=False)
    restyled: int
    unread: tuple[str, ...]

    @property
    def graph(self) -> tuple[str, ...]:
        """All differences of the graph."""
        return (*self.structure, *self.attributes)


def compared(file: Side, plan: Side) -> Sameness:
    """Walks both models from their outputs, which must be as many."""
    return _Walk(file, plan).result()


class _Walk:
    def __init__(self, file: Side, plan: Side) -> None:
        self.file, self.plan = file, plan
        self.there: dict[int, int] = {}
        self.back: dict[int, int] = {}
        self.attributes: list[str] = []
        self.structure: list[str] = []
        self.gaps: list[tuple[Place, Place]] = []
        self.tensors: dict[tuple[str, str], None] = {}
        self.restyled = 0
        outputs = [[value.name for value in side.contents.proto.graph.output] for side in (file, plan)]
        self.pending: list[tuple[Place, Place]] = [
            ((MAIN, a), (MAIN, b)) for a, b in zip(outputs[0], outputs[1], strict=False)
        ]
        self.done: set[tuple[Place, Place]] = set()

    def result(self) -> Sameness:
        while self.pending:
            pair = self.pending.pop()
            if pair not in self.done:
                self.done.add(pair)
                self._values(*pair)
        twice = sorted(set(self.file.twice) - set(self.plan.twice))
        self.structure.extend(f"the name '{name}' is given twice" for name in twice)
        self.structure.extend(self._left())
        return Sameness(
            tuple(self.attributes),
            tuple(self.gaps),
            tuple(self.structure),
            tuple(self.tensors),
            self.there,
            self.restyled,
            tuple(self._unread()),
        )

    def _values(self, mine: Place, theirs: Place) -> None:
        a, b = self.file.source(mine[1], mine[0]), self.plan.source(theirs[1], theirs[0])
        same = a.kind == b.kind
        if same and a.kind == "stored":
            if self.file.digest(a.name) != self.plan.digest(b.name):
                self.tensors[a.name, b.name] = None
            return
        if same and a.kind in ("formal", "result"):
            same = a.place == b.place and (a.kind == "result" or self.there.get(a.node) == b.node)
        if same and a.kind == "input":
            same = a.name == b.name
        if not same or (a.kind == "result" and not self._nodes(a, b)):
            self.gaps.append((mine, theirs))
            self.structure.append(f"{self._made(self.file, a)} where the plan's model has {self._made(self.plan, b)}")

    def _nodes(self, a: Source, b: Source) -> bool:
        """Whether the makers are partners, from now on at least."""
        if a.node in self.there or b.node in self.back:
            return self.there.get(a.node) == b.node
        one, other = self.file.nodes[a.node], self.plan.nodes[b.node]
        operands, others = _operands(one), _operands(other)
        bodies, their_bodies = bodies_of(one), bodies_of(other)
        if (
            one.op_type != other.op_type
            or (one.domain or "ai.onnx") != (other.domain or "ai.onnx")
            or len(operands) != len(others)
            or bodies.keys() != their_bodies.keys()
            or any(_arity(body) != _arity(their_bodies[key]) for key, body in bodies.items())
        ):
            return False
        self.there[a.node], self.back[b.node] = b.node, a.node
        mine, theirs = attributes_of(one, self.file.contents.opset), attributes_of(other, self.plan.contents.opset)
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                self.attributes.append(
                    f"attribute '{name}' of node '{one.name}' ({one.op_type}) is {shown(one, name)} instead of "
                    f"{shown(other, name)}"
                )
        self.restyled += stated_attributes(one).keys() != stated_attributes(other).keys()
        if one.op_type in _COMMUTATIVE and one.domain in DEFAULT_DOMAINS:
            kinds = [_kind(self.file, name, self.file.home(a.node)) for name in operands]
            their_kinds = [_kind(self.plan, name, self.plan.home(b.node)) for name in others]
            if kinds == their_kinds[::-1] and kinds != their_kinds:
                others = others[::-1]
        self._later(operands, others, self.file.home(a.node), self.plan.home(b.node))
        for key, body in bodies.items():
            mine_out, their_out = ([value.name for value in each.output] for each in (body, their_bodies[key]))
            self._later(mine_out, their_out, self.file.inside(a.node, key), self.plan.inside(b.node, key))
        return True

    def _later(self, mine: Iterable[str], theirs: Iterable[str], frame: int, other: int) -> None:
        self.pending.extend(((frame, a), (other, b)) for a, b in zip(mine, theirs, strict=True))

    @staticmethod
    def _made(side: Side, source: Source) -> str:
        if source.kind == "result":
            node = side.nodes[source.node]
            return f"node '{node.name}' ({node.op_type})"
        what = {"input": "input", "stored": "the stored tensor", "formal": "input of a body", "nothing": "nothing, at"}
        return f"{what[source.kind]} '{source.name}'"

    def _left(self) -> list[str]:
        """Nodes of the file that nothing reads; such as the original had may stay."""
        if self.gaps:
            return []
        mine = _without_partner(self.file, self.there)
        allowed = Counter(_signature(node) for node in _without_partner(self.plan, self.back))
        found = []
        for node in mine:
            allowed[_signature(node)] -= 1
            if allowed[_signature(node)] < 0:
                found.append(f"node '{node.name}' ({node.op_type}), which the plan's model has not, and nothing reads")
        return found

    def _unread(self) -> list[str]:
        """Tensors of the file that nothing reads; such as the original had may stay."""
        theirs = self.plan.digests().keys() - self.plan.read()
        allowed = {self.plan.digest(name) for name in theirs}
        return [name for name in self.file.digests().keys() - self.file.read() if self.file.digest(name) not in allowed]


def _kind(side: Side, name: str, frame: int) -> tuple[str, ...]:
    """What makes a value, roughly: tells the operands of a sum apart that another exporter writes in another order."""
    source = side.source(name, frame)
    if source.kind == "stored":
        return "stored", side.digest(source.name)
    if source.kind == "result":
        return "result", side.nodes[source.node].op_type
    return source.kind, *(map(str, source.place) if source.kind == "formal" else [source.name])


def _operands(node: onnx.NodeProto) -> list[str]:
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    return names


def _arity(body: onnx.GraphProto) -> tuple[int, int]:
    return len(body.input), len(body.output)


def _without_partner(side: Side, paired: Iterable[int]) -> list[onnx.NodeProto]:
    with_one = set(paired)
    return [node for i, node in enumerate(side.nodes) if i not in with_one and not is_identity(node)]


def _signature(node: onnx.NodeProto) -> tuple[str, str, tuple[tuple[str, bytes], ...], int]:
    return node.domain or "ai.onnx", node.op_type, tuple(sorted(stated_attributes(node).items())), len(node.input)


def likeness(file: Side, plan: Side) -> float:
    """How alike two graphs are, node by node and wherever they stand, as a fraction in [0, 1] of the larger one.

    Attributes count as they are written: exporters differ in which ones they spell out, and an edit keeps that.
    """
    mine, theirs = (Counter(map(_signature, _without_partner(side, ()))) for side in (file, plan))
    return sum((mine & theirs).values()) / max(mine.total(), theirs.total(), 1)
