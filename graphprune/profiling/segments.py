"""Cutting an ONNX model into segments that are measured alone, at any widths.

A segment is one operator that multiplies (its rule counts multiply-accumulates) and the operators after it that a
runtime may fuse with it: activations, normalisations, additions, softmax. Every other operator joins the segment of its
latest operand, so that segments follow one another without cycles. What depends on no floating-point input (weights
that are transposed, shape arithmetic, masks) belongs to every segment that needs it.

A segment at smaller widths is not built anew: it is the piece of the pruned file, made by the same edits.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx

from graphprune.analysis.groups import Analysis, Group
from graphprune.hosts.host import Arrays
from graphprune.hosts.messages import operands_of
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.store import has_data
from graphprune.ir.dims import Dim, Factor, Index, Sum, factors_of, resized, unit_of
from graphprune.pipeline.edits import slice_edits
from graphprune.planning.latency import MOST_COORDINATES, Usage

FLOATS = frozenset({"float32", "float16", "float64", "bfloat16"})


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of a model.

    Attributes:
        usage: Its signature and by which groups its widths vary.
        label: For the reader.
        host: The piece as a model of its own.
        inputs: The values that it takes from the rest of the model.
        groups: The groups that occur in it.
        analysis: That of the model, of these nodes only.
    """

    usage: Usage
    label: str
    host: OnnxHost
    inputs: tuple[str, ...]
    groups: tuple[Group, ...]
    analysis: Analysis


def segments_of(host: OnnxHost, analysis: Analysis) -> tuple[Segment, ...]:
    """The segments of a model, in order.

    Args:
        host: The model, folded.
        analysis: The analysis of its graph.
    """
    return tuple(_Cutter(host, analysis).segments())


class _Cutter:
    def __init__(self, host: OnnxHost, analysis: Analysis) -> None:
        self.host, self.analysis = host, analysis
        self.protos = list(host.proto.graph.node)
        self.stored = {tensor.name: tensor for tensor in host.proto.graph.initializer}
        self.makers = {name: i for i, node in enumerate(self.protos) for name in node.output if name}
        self.outputs = {value.name for value in host.proto.graph.output}
        self.group_of = analysis.group_of
        self.used = defaultdict[str, list[int]](list)
        for i, node in enumerate(self.protos):
            for name in operands_of(node):
                self.used[name].append(i)

    def segments(self) -> Iterator[Segment]:
        members: dict[int, list[int]] = defaultdict(list)
        for i, number in sorted(self._numbers().items()):
            members[number].append(i)
        for own in members.values():
            yield self._segment(own)

    def _numbers(self) -> dict[int, int]:
        """The segment of each node that has one."""
        of_value: dict[str, int] = {value.name: 0 for value in self.host.proto.graph.input}
        numbers: dict[int, int] = {}
        last = 0
        for i, (proto, node) in enumerate(zip(self.protos, self.analysis.graph.nodes, strict=True)):
            operands = [of_value[name] for name in operands_of(proto) if name in of_value]
            if not operands:
                continue
            if not any(self._is_float(name) for name in proto.output if name):
                # computed by every segment that needs it, but what follows from it is not without a segment
                of_value.update((name, max(operands)) for name in proto.output if name)
                continue
            if node.rule is not None and node.rule.macs:
                last += 1
                numbers[i] = last
            else:
                numbers[i] = max(operands)
            of_value.update((name, numbers[i]) for name in proto.output if name)
        return numbers

    def _is_float(self, name: str) -> bool:
        return self.analysis.graph.values[name].dtype in FLOATS

    def _segment(self, own: Sequence[int]) -> Segment:
        chosen, inputs = set(own), dict[str, None]()
        pending = list(own)
        numbered = {name for i in own for name in self.protos[i].output}
        while pending:  # what is no value of another segment is computed here
            for name in operands_of(self.protos[pending.pop()]):
                if not name or name in self.stored or name in numbered:
                    continue
                maker = self.makers.get(name)
                if maker is None or self._crosses(name, maker):
                    inputs[name] = None
                elif maker not in chosen:
                    chosen.add(maker)
                    pending.append(maker)
        order = sorted(chosen)
        results = [
            name
            for i in own
            for name in self.protos[i].output
            if name and (name in self.outputs or any(user not in chosen for user in self.used[name]))
        ]
        host = self._piece(order, list(inputs), results)
        groups, coordinates = self._coordinates(order)
        label = self._label(own)
        usage = Usage(self._signature(host, order, coordinates), coordinates, tuple(self.protos[i].name for i in own))
        analysis = self._part(order)
        return Segment(usage, label, host, tuple(inputs), groups, analysis)

    def _part(self, order: Sequence[int]) -> Analysis:
        nodes = tuple(self.analysis.graph.nodes[i] for i in order)
        names = {name for node in nodes for name in (*node.operands, *node.results) if name is not None}
        layouts = {name: layout for name, layout in self.analysis.layouts.items() if name in names}
        return replace(self.analysis, graph=replace(self.analysis.graph, nodes=nodes), layouts=layouts)

    def _crosses(self, name: str, maker: int) -> bool:
        """Whether a value comes from another segment: floats that depend on the input."""
        return self._is_float(name) and self._depends[maker]

    @cached_property
    def _depends(self) -> tuple[bool, ...]:
        """For each node, whether it depends on an input of the model."""
        reached = {value.name for value in self.host.proto.graph.input}
        found = []
        for node in self.protos:
            found.append(any(name in reached for name in operands_of(node)))
            if found[-1]:
                reached.update(node.output)
        return tuple(found)

    def _piece(self, order: Sequence[int], inputs: Sequence[str], results: Sequence[str]) -> OnnxHost:
        proto = onnx.ModelProto()
        proto.ir_version = self.host.proto.ir_version
        proto.opset_import.extend(self.host.proto.opset_import)
        proto.graph.name = "segment"
        proto.graph.node.extend(self.protos[i] for i in order)
        needed = {name for i in order for name in operands_of(self.protos[i])}
        proto.graph.initializer.extend(tensor for name, tensor in self.stored.items() if name in needed)
        values = self.analysis.graph.values
        types = self.host.inferred.types
        for name in inputs:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, types[name], list(values[name].shape)))
        for name in results:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, types[name], None))
        store = {name: stored for name, stored in self.host.store.items() if name in needed}
        piece = OnnxHost(proto, store, {name: values[name].shape for name in inputs}, self.host.sources, proto)
        vars(piece)["inferred"] = self.host.inferred
        return piece

    def _coordinates(self, order: Sequence[int]) -> tuple[tuple[Group, ...], tuple[Mapping[str, float], ...]]:
        """The groups of the segment, and how they are tied: those that lie one after the other vary together."""
        dims: dict[int, Dim] = {}
        weight: dict[Factor, float] = defaultdict(float)
        for i in order:
            node = self.analysis.graph.nodes[i]
            for name in (*node.operands, *node.results):
                for dim in self.analysis.layouts.get(name or "", ()):
                    dims[id(dim)] = dim
            for monomial in node.rule.macs if node.rule is not None else ():
                for dim in monomial:
                    resolved = self.analysis.resolve(node, dim)
                    dims[id(resolved)] = resolved
        leaders: dict[Factor, Factor] = {}

        def leader(factor: Factor) -> Factor:
            while leaders.setdefault(factor, factor) is not factor:
                factor = leaders[factor]
            return factor

        for dim in dims.values():
            present = [factor for factor in dict.fromkeys(factors_of(dim)) if factor in self.group_of]
            for factor in present:
                weight[factor] = max(weight[factor], (unit_of(dim, factor) >= 0).sum() / factor.size)
                leader(factor)
            if isinstance(dim, Sum) and present:
                for factor in present[1:]:
                    leaders[leader(factor)] = leader(present[0])
        clusters: dict[Factor, list[Factor]] = defaultdict(list)
        for factor in weight:
            clusters[leader(factor)].append(factor)
        # the widest ones vary on their own, the rest together with the last of them
        parts = sorted(clusters.values(), key=lambda part: -sum(weight[f] * f.size for f in part))
        parts = [*parts[: MOST_COORDINATES - 1], [f for part in parts[MOST_COORDINATES - 1 :] for f in part]]
        coordinates = []
        for part in filter(None, parts):
            total = sum(weight[factor] * factor.size for factor in part)
            coordinates.append({self.group_of[factor].name: weight[factor] / total for factor in part})
        return tuple(self.group_of[factor] for factor in weight), tuple(coordinates)

    def _label(self, own: Iterable[int]) -> str:
        values = self.analysis.graph.values
        operators = dict.fromkeys(self.protos[i].op_type for i in own)
        sizes = [
            "x".join(map(str, values[name].shape))
            for i in own
            for name in self.protos[i].input
            if name in self.stored and len(self.stored[name].dims) > 1
        ]
        return " + ".join(operators) + (f" [{sizes[0]}]" if sizes else "")

    def _signature(self, host: OnnxHost, order: Sequence[int], coordinates: Sequence[Mapping[str, float]]) -> str:
        """A hash of all that latency depends on: operators, attributes, shapes, types, and how widths vary."""
        numbers: dict[str, int] = {}
        place = {name: (c, weight) for c, part in enumerate(coordinates) for name, weight in part.items()}

        def number(name: str) -> int:
            return numbers.setdefault(name, len(numbers)) if name else -1

        lines = []
        for i in order:
            node = self.protos[i]
            attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
            operands = [number(name) for name in operands_of(node)]
            lines.append(f"{node.domain} {node.op_type} {attributes} {operands} {[number(n) for n in node.output]}")
        for name, n in numbers.items():
            value, tensor = self.analysis.graph.values.get(name), self.stored.get(name)
            if value is None:
                continue
            varying = [
                [(place[self.group_of[f].name], f.size) for f in factors_of(dim) if f in self.group_of]
                for dim in self.analysis.layouts.get(name, ())
            ]
            lines.append(f"{n} {value.shape} {value.dtype} {tensor is not None} {varying}")
            if tensor is not None and has_data(tensor) and value.dtype not in FLOATS:
                lines.append(hashlib.sha256(tensor.SerializeToString(deterministic=True)).hexdigest())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def at_widths(segment: Segment, counts: Mapping[str, int]) -> OnnxHost:
    """The segment with so many units left of each of its groups, whichever: what it is in a pruned file.

    Raises:
        GraphpruneError: The piece cannot be edited alone.
    """
    kept: dict[Factor, Index] = {
        group.factor: np.arange(counts[group.name], dtype=np.int64)
        for group in segment.groups
        if counts[group.name] < group.size
    }
    sizes = {factor: len(index) for factor, index in kept.items()}
    layouts = segment.analysis.layouts
    bound = {name: tuple(resized(dim, sizes) for dim in layouts[name]) for name in segment.inputs}
    return replace(segment.host.edited(slice_edits(segment.analysis, kept)), bound=bound)


def feed(segment: Segment, piece: OnnxHost, example: Arrays) -> Arrays:
    """Inputs of a piece: the model's own where they are its inputs, else positive numbers, which no operator minds."""
    rng = np.random.default_rng(0)
    made = {}
    for name in segment.inputs:
        shape = piece.bound[name]
        if name in example and example[name].shape == shape:
            made[name] = example[name]
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(segment.host.inferred.types[name])
        made[name] = rng.uniform(0.5, 1.5, shape).astype(kind)
    return made
