"""The masked reference of the torch host: the original graph with the removed units zeroed after every node.

Operators that take a statistic over a masked axis are replaced by forms that count only the kept positions. What has
no such form is an error, never an approximation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from graphprune.errors import ProofError
from graphprune.hosts.host import Masks
from graphprune.hosts.torch.gains import stored_operands
from graphprune.hosts.torch.kept import kept_number, sources
from graphprune.hosts.torch.masked_forms import Call, by_expert, form_of, is_exact
from graphprune.ir.dims import factors_of
from graphprune.ir.graph import Graph, Node

_ATEN = torch.ops.aten
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32})


_UNWRITTEN = frozenset(
    {
        _ATEN.empty.memory_format,
        _ATEN.empty_like.default,
        _ATEN.empty_strided.default,
        _ATEN.new_empty.default,
        _ATEN.new_empty_strided.default,
    }
)
"""Operators that give whatever lies in memory: two runs are compared, so here it is zeros."""


class Interpreter(fx.Interpreter):
    """Runs a graph; where ``double``, with every floating-point number in float64 whatever the graph says."""

    def __init__(self, program: fx.Graph, tensors: Mapping[str, Any], *, double: bool = False) -> None:
        super().__init__(torch.nn.Module(), graph=program)
        self._tensors = tensors
        self._double = double

    @contextmanager
    def precision(self, state: torch.Tensor | None = None) -> Iterator[None]:
        """Makes tensors without a type of their own float64 where asked, and random numbers alike in every run.

        Args:
            state: Of the random numbers, where a run goes on.
        """
        default, before = torch.get_default_dtype(), torch.get_rng_state()
        try:
            if self._double:
                torch.set_default_dtype(torch.float64)
            if state is not None:
                torch.set_rng_state(state)
            elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.manual_seed(0)
            else:
                torch.default_generator.manual_seed(0)
            yield
        finally:
            torch.set_rng_state(before)
            if self._double:
                torch.set_default_dtype(default)

    def run(self, *args: Any, **_: Any) -> Any:
        """Runs the graph on flat inputs, and returns its outputs as they are."""
        self.env, self.args_iter = {}, iter(args)
        result = None
        for node in self.graph.nodes:
            result = self.env[node] = self.run_node(node)
            for done in self.user_to_last_uses.get(node, ()):
                del self.env[done]
        return result

    def run_node(self, n: fx.Node) -> Any:
        """The node's result, without what fx notes of every node while it runs: that takes longer than small ones."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return getattr(self, n.op)(n.target, args, kwargs)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """The arguments of a node."""
        return fx.map_arg(n.args, self.env.__getitem__), fx.map_arg(n.kwargs, self.env.__getitem__) if n.kwargs else {}

    def steps(self, inputs: Sequence[Any], wanted: Collection[fx.Node]) -> Iterator[tuple[fx.Node, Any]]:
        """Runs the graph, and stops after each wanted node and after the last one, which holds the outputs.

        Between two stops, other runs may go on: random numbers and the default type are those of this run only while
        it works.
        """
        self.env, self.args_iter = {}, iter(inputs)
        nodes, state = list(self.graph.nodes), None
        at = 0
        while at < len(nodes):
            with torch.no_grad(), self.precision(state):
                while True:
                    node = nodes[at]
                    result = self.env[node] = self.run_node(node)
                    for done in self.user_to_last_uses.get(node, ()):
                        del self.env[done]
                    at += 1
                    if node in wanted or at == len(nodes):
                        break
                state = torch.get_rng_state()
            yield node, result

    def _widened(self, value: Any) -> Any:
        if not self._double:
            return value
        if isinstance(value, torch.Tensor):
            return value.double() if value.dtype in _FLOATS else value
        return torch.float64 if isinstance(value, torch.dtype) and value in _FLOATS else value

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """An input, widened."""
        return self._widened(super().placeholder(target, args, kwargs))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A stored tensor, widened."""
        return self._widened(self._tensors[target])

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A call in which every floating-point type is float64; what a forward keeps for the next one is not written.

        Every run starts from the tensors as they are stored, which are the user's own.
        """
        if target is _ATEN.copy_.default:
            return args[0]
        if self._double:
            args = tuple(self._widened(value) for value in args)
            kwargs = {name: self._widened(value) for name, value in kwargs.items()}
            if target is _ATEN._grouped_mm.default:  # its kernels know no float64
                return by_expert(args[0], args[1], kwargs["offs"] if "offs" in kwargs else args[2])
        result = super().call_function(target, args, kwargs)
        return result.zero_() if target in _UNWRITTEN else result


class MaskedInterpreter(Interpreter):
    """Runs a graph with masks; see :meth:`graphprune.hosts.host.Host.run_masked`.

    Args:
        program: The program.
        tensors: What its ``get_attr`` nodes stand for.
        graph: The graph that was made of it.
        names: The value that each node stands for.
        masks: For values and axes, the kept positions.
        double: Whether to run in float64.
    """

    def __init__(
        self,
        program: fx.Graph,
        tensors: Mapping[str, Any],
        graph: Graph,
        names: Mapping[fx.Node, str],
        masks: Masks,
        *,
        double: bool = False,
    ) -> None:
        super().__init__(program, tensors, double=double)
        self._names, self._masks = names, masks
        self._nodes = {node.name: node for node in graph.nodes}

    def run_node(self, n: fx.Node) -> Any:
        """The node's result, masked."""
        node = self._nodes.get(n.name)
        result = super().run_node(n)
        if (stored := stored_operands(n)) is not None:  # the weight as it was, whatever part of it stays
            v, g, dim = stored
            result = _ATEN._weight_norm.default(self._widened(self._tensors[v]), self._widened(self._tensors[g]), dim)
        if node is not None and _counts(node, self._masks):
            form = form_of(node.op)
            if form is None and not is_exact(node.op):
                raise ProofError(
                    f"'{node.op}' (node '{node.name}') takes a statistic over an axis that loses units, and the masked "
                    "reference has no form of it; keep the groups of that axis whole (see 'graphprune explain')"
                )
            if form is not None:
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                shape = tuple(result.shape) if isinstance(result, torch.Tensor) else None
                result = _like(result, form(Call(n, args, kwargs), self._weights(node, args[0]), shape))
        if kept_number(n) is not None:
            result = self._stored_value(n)
        name = self._names.get(n)
        if name is not None and name in self._masks and isinstance(result, torch.Tensor):
            result = apply(result, self._masks[name])
        return result

    def _stored_value(self, node: fx.Node) -> Any:
        """What a node is that is made of stored tensors alone, all of them whole."""
        values: dict[fx.Node, Any] = {}
        for each in sources(node):
            if each.op == "get_attr":
                values[each] = self._widened(self._tensors[str(each.target)])
            else:
                args, kwargs = fx.map_arg((each.args, each.kwargs), values.__getitem__)
                values[each] = self.call_function(each.target, args, kwargs)
        return values[node]

    def _weights(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        """One for each kept element of the first operand, zero for the others."""
        name = node.operands[0]
        assert name is not None
        dtype = torch.promote_types(x.dtype, torch.float32)
        return apply(torch.ones_like(x, dtype=dtype), self._masks.get(name, {}))


def apply(tensor: torch.Tensor, masks: Mapping[int, NDArray[np.bool_]]) -> torch.Tensor:
    """``tensor`` with zeros where a mask of one of its axes says so (even where it was not a number)."""
    fresh = False
    for axis, mask in masks.items():
        gone = torch.from_numpy(np.flatnonzero(~mask)).to(tensor.device)
        # a copy once, in which only what goes is written: a choice by a mask of every element takes three times as long
        tensor = tensor.index_fill_(axis, gone, 0) if fresh else tensor.index_fill(axis, gone, 0)
        fresh = True
    return tensor


def _counts(node: Node, masks: Masks) -> bool:
    """Whether the node takes a statistic over an axis that is masked, or chooses among the units of one."""
    if node.rule is None or not (statistics := node.rule.statistics):
        return False
    return any(
        not statistics.isdisjoint(factors_of(layout[axis]))
        for name, layout in zip(node.operands, node.rule.operands, strict=False)
        if name is not None and name in masks and layout is not None
        for axis in masks[name]
    )


def _like(old: Any, new: Any) -> Any:
    if isinstance(old, tuple):
        return tuple(_like(a, b) for a, b in zip(old, new, strict=True))
    return new.to(old.dtype)
