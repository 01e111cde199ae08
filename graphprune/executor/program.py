"""A graph of ONNX operators as a list of steps, which are run one after the other in PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import onnx
import torch

from graphprune.brief import brief
from graphprune.errors import GraphpruneError, ModelError, first_line
from graphprune.executor.ops.call import Body, Call, RefusedError, Value
from graphprune.executor.ops.table import OPERATORS, refusal
from graphprune.executor.tensors import tensor_of
from graphprune.hosts.messages import DEFAULT, attributes_of, nodes_of

Values: TypeAlias = Mapping[str, Value]
Reads: TypeAlias = Mapping[tuple[str, str], Callable[[torch.Tensor], torch.Tensor]]
"""What a node reads instead of a value, by the names of both."""


@dataclass(frozen=True)
class Step:
    """One node.

    Attributes:
        name: The node's.
        op: As in the table.
        operands: Names of values; empty ones are absent.
        results: Likewise.
        attributes: As Python values.
        opset: Of the domain.
        bodies: Its subgraphs, by attribute.
    """

    name: str
    op: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    bodies: Mapping[str, Program] = field(default_factory=dict)

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """What it reads, with what its bodies read from outside."""
        inner = (name for body in self.bodies.values() for name in body.captured)
        return tuple(dict.fromkeys(name for name in (*self.operands, *inner) if name))

    def run(self, values: Values, reads: Reads) -> tuple[Value, ...]:
        """The results, in order.

        Raises:
            ModelError: The operator is used in a way that has no exact counterpart, or does not fit its operands.
        """
        operands: list[Value] = [values[name] if name else None for name in self.operands]
        if reads:
            changed = [reads.get((self.name, name)) for name in self.operands]
            operands = [x if of is None else of(x) for x, of in zip(operands, changed, strict=True)]
        bodies: dict[str, Body] = {name: body.within(values, reads) for name, body in self.bodies.items()}
        call = Call(self.op, operands, self.attributes, self.opset, len(self.results), bodies)
        try:
            found = OPERATORS[self.op](call)
        except GraphpruneError:
            raise
        except RefusedError as error:
            raise ModelError(
                f"node '{self.name}' ({self.op}) has no exact counterpart in PyTorch: {error}; prune with a criterion "
                "that needs no gradients"
            ) from error
        except Exception as error:
            shapes = ", ".join(_described(operand) for operand in operands)
            raise ModelError(
                f"node '{self.name}' ({self.op}) cannot be run in PyTorch on {shapes}: {first_line(error)}; check that "
                "onnxruntime takes the same inputs"
            ) from error
        return found if isinstance(found, tuple) else (found,)


def _described(value: Value) -> str:
    if not isinstance(value, torch.Tensor):
        return "nothing" if value is None else f"a sequence of {len(value)}"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


@dataclass(frozen=True)
class Program:
    """The steps of a graph or a subgraph.

    Attributes:
        steps: In order.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        stored: What a subgraph stores itself.
    """

    __repr__ = brief

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stored: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def captured(self) -> tuple[str, ...]:
        """What a subgraph reads from outside."""
        own = {*self.inputs, *self.stored, *(name for step in self.steps for name in step.results)}
        read = [name for step in self.steps for name in step.reads] + list(self.outputs)
        return tuple(name for name in dict.fromkeys(read) if name not in own)

    @cached_property
    def uses(self) -> Mapping[str, int]:
        """How many steps read each value."""
        return Counter(name for step in self.steps for name in step.reads)

    def within(self, outer: Values, reads: Reads) -> Body:
        """A runner of a subgraph among the values around it."""

        def run(*inputs: Value) -> tuple[Value, ...]:
            values = {name: outer[name] for name in self.captured} | dict(self.stored)
            values.update(zip(self.inputs, inputs, strict=True))
            found = self.run(values, self.outputs, reads)
            return tuple(found[name] for name in self.outputs)

        return run

    def run(self, values: Values, wanted: Sequence[str], reads: Reads | None = None) -> dict[str, Value]:
        """Runs the steps; a value is let go when its last reader has run.

        Args:
            values: Inputs and stored tensors by name.
            wanted: Names of values.
            reads: What some nodes read instead of some values.

        Returns:
            What is wanted, by name.
        """
        now, kept = dict(values), set(wanted)
        left = dict(self.uses)
        for step in self.steps:
            found = step.run(now, reads or {})
            for name, value in zip(step.results, found, strict=False):
                if name and (name in kept or left.get(name, 0)):
                    now[name] = value
            for name in step.reads:
                left[name] -= 1
                if not left[name] and name not in kept:
                    now.pop(name, None)
        return {name: now[name] for name in wanted}

    def needed(self, wanted: Collection[str]) -> Program:
        """The program without the steps that nothing wanted depends on."""
        alive, steps = set(wanted), []
        for step in reversed(self.steps):
            if alive.intersection(step.results):
                alive.update(step.reads)
                steps.append(step)
        return Program(tuple(reversed(steps)), self.inputs, self.outputs, self.stored)


def program_of(graph: onnx.GraphProto, opsets: Mapping[str, int]) -> Program:
    """The program of a graph; of its own stored tensors only those of subgraphs are in it.

    Raises:
        ModelError: Some operators have no counterpart; it names all of them.
    """
    reasons: dict[str, str] = {}
    for node in nodes_of(graph):
        present = tuple(bool(name) for name in node.input)
        reason = refusal(_operator(node), attributes_of(node), present)
        if reason is not None:
            reasons.setdefault(_operator(node), reason)
    if reasons:
        said = ", ".join(f"{op} ({reason})" for op, reason in reasons.items())
        raise ModelError(
            f"the model uses {len(reasons)} operator{'s' * (len(reasons) > 1)} that cannot be run with gradients: "
            f"{said}; use a criterion that needs none, such as obs"
        )
    return _program(graph, opsets, inner=False)


def _operator(node: onnx.NodeProto) -> str:
    """The operator as tables call it."""
    return node.op_type if node.domain in DEFAULT else f"{node.domain}::{node.op_type}"


def _program(graph: onnx.GraphProto, opsets: Mapping[str, int], *, inner: bool) -> Program:
    steps = []
    for node in graph.node:
        bodies = {
            entry.name: _program(entry.g, opsets, inner=True)
            for entry in node.attribute
            if entry.type == onnx.AttributeProto.GRAPH
        }
        results = list(node.output)
        while results and not results[-1]:
            results.pop()
        steps.append(
            Step(
                node.name or next((name for name in node.output if name), node.op_type),
                _operator(node),
                tuple(node.input),
                tuple(results),
                attributes_of(node),
                opsets.get("" if node.domain in DEFAULT else node.domain, 1),
                bodies,
            )
        )
    stored = {}
    if inner:
        stored = {each.name: tensor_of(onnx.numpy_helper.to_array(each), each.name) for each in graph.initializer}
    inputs = tuple(value.name for value in graph.input)
    return Program(tuple(steps), inputs, tuple(value.name for value in graph.output), stored)
