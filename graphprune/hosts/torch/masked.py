"""The masked reference of the torch host: the original graph with the removed units zeroed after every node.

Operators that take a statistic over a masked axis are replaced by forms that count only the kept positions. What has
no such form is an error, never an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from graphprune.errors import ProofError
from graphprune.hosts.torch.gains import stored_operands
from graphprune.hosts.torch.graph import argument, argument_position
from graphprune.hosts.torch.kept import kept_number, sources
from graphprune.ir.dims import factors_of
from graphprune.ir.graph import Graph, Node
from graphprune.pipeline.host import Masks

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
        default = torch.get_default_dtype()
        try:
            if self._double:
                torch.set_default_dtype(torch.float64)
            with torch.random.fork_rng(devices=[]):
                if state is None:
                    torch.manual_seed(0)
                else:
                    torch.set_rng_state(state)
                yield
        finally:
            torch.set_default_dtype(default)

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
                return _by_expert(args[0], args[1], kwargs["offs"] if "offs" in kwargs else args[2])
        result = super().call_function(target, args, kwargs)
        return result.zero_() if target in _UNWRITTEN else result


def _by_expert(x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """A grouped matrix product, expert by expert."""
    ends = [0, *offsets.tolist()]
    rows = [x[a:b] @ weight[i] for i, (a, b) in enumerate(pairwise(ends))]
    return torch.cat([*rows, x.new_zeros(x.shape[0] - ends[-1], weight.shape[2])])


class MaskedInterpreter(Interpreter):
    """Runs a graph with masks; see :meth:`graphprune.pipeline.host.Host.run_masked`.

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
            form = _FORMS.get(n.target) or _FORMS_BY_NAME.get(str(n.target))
            if form is None and n.target not in _NATURAL:
                raise ProofError(
                    f"'{node.op}' (node '{node.name}') takes a statistic over an axis that loses units, and the masked "
                    "reference has no form of it; keep the groups of that axis whole (see 'graphprune explain')"
                )
            if form is not None:
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                shape = tuple(result.shape) if isinstance(result, torch.Tensor) else None
                result = _like(result, form(_Call(n, args, kwargs), self._weights(node, args[0]), shape))
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
    for axis, mask in masks.items():
        shape = [1] * tensor.dim()
        shape[axis] = -1
        kept = torch.from_numpy(mask).to(tensor.device).reshape(shape)
        tensor = torch.where(kept, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))
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


class _Call:
    """The arguments of a call by name."""

    def __init__(self, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.node, self.args, self.kwargs = node, args, kwargs

    @property
    def operator(self) -> Callable[..., Any]:
        """The operator itself."""
        return cast("Callable[..., Any]", self.node.target)

    def __getitem__(self, name: str) -> Any:
        if name in self.kwargs:
            return self.kwargs[name]
        at = argument_position(self.node, name)
        if at is not None and at < len(self.args):
            return self.args[at]
        return argument(self.node, name)


_Form = Callable[[_Call, torch.Tensor, tuple[int, ...] | None], Any]


def _moments(
    x: torch.Tensor, weights: torch.Tensor, dims: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count, mean and sum of squared deviations of the kept elements; reduced axes stay with size one."""
    x = x.to(weights.dtype) * weights
    count = weights.sum(dims, keepdim=True)
    mean = x.sum(dims, keepdim=True) / count
    return count, mean, ((x - mean).square() * weights).sum(dims, keepdim=True)


def _dims(call: _Call) -> list[int]:
    named = call["dim"] if argument_position(call.node, "dim") is not None else None
    rank = call["self"].dim()
    return list(range(rank)) if named is None or named == [] else [named] if isinstance(named, int) else list(named)


def _mean(call: _Call, weights: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
    _, mean, _ = _moments(call["self"], weights, _dims(call))
    return mean.reshape(shape or ())


def _variance(call: _Call, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if argument_position(call.node, "correction") is not None:
        correction = 1 if call["correction"] is None else call["correction"]
    else:
        correction = int(call["unbiased"])
    count, mean, squares = _moments(call["self"], weights, _dims(call))
    return squares / (count - correction).clamp_min(0), mean


def _var(call: _Call, weights: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
    return _variance(call, weights)[0].reshape(shape or ())


def _std(call: _Call, weights: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
    return _variance(call, weights)[0].sqrt().reshape(shape or ())


def _var_mean(call: _Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = _variance(call, weights)
    return _squeezed(call, variance), _squeezed(call, mean)


def _std_mean(call: _Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = _variance(call, weights)
    return _squeezed(call, variance.sqrt()), _squeezed(call, mean)


def _squeezed(call: _Call, tensor: torch.Tensor) -> torch.Tensor:
    keep = argument_position(call.node, "keepdim") is not None and call["keepdim"]
    return tensor if keep else tensor.squeeze(_dims(call))


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(call: _Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> torch.Tensor:
    x = call["input"]
    dims = list(range(-len(call["normalized_shape"]), 0))
    count, mean, squares = _moments(x, weights, dims)
    return _affine((x - mean) * torch.rsqrt(squares / count + call["eps"]), call["weight"], call["bias"])


def _native_layer_norm(call: _Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> tuple[torch.Tensor, ...]:
    x = call["input"]
    dims = list(range(-len(call["normalized_shape"]), 0))
    count, mean, squares = _moments(x, weights, dims)
    rstd = torch.rsqrt(squares / count + call["eps"])
    return _affine((x - mean) * rstd, call["weight"], call["bias"]), mean, rstd


def _rms_norm(call: _Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> torch.Tensor:
    x = call["input"].to(weights.dtype)
    dims = list(range(-len(call["normalized_shape"]), 0))
    eps = torch.finfo(call["input"].dtype).eps if call["eps"] is None else call["eps"]
    square = (x.square() * weights).sum(dims, keepdim=True) / weights.sum(dims, keepdim=True)
    return _affine(x * torch.rsqrt(square + eps), call["weight"], None)


def _fused_rms_norm(call: _Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> tuple[torch.Tensor, ...]:
    y = _rms_norm(call, weights, None)
    return y, y.new_zeros(y.shape[: -len(call["normalized_shape"])])


def _grouped(x: torch.Tensor, weights: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    shape = x.shape
    x, weights = x.reshape(shape[0], groups, -1), weights.reshape(shape[0], groups, -1)
    count, mean, squares = _moments(x, weights, [2])
    return ((x - mean) * torch.rsqrt(squares / count + eps)).reshape(shape)


def _per_channel(vector: torch.Tensor | None, rank: int) -> torch.Tensor | None:
    return None if vector is None else vector.reshape(1, -1, *[1] * (rank - 2))


def _group_norm(call: _Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> torch.Tensor:
    x = call["input"]
    y = _grouped(x, weights, call["num_groups"], call["eps"])
    return _affine(y, _per_channel(call["weight"], x.dim()), _per_channel(call["bias"], x.dim()))


def _instance_norm(call: _Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> torch.Tensor:
    x = call["input"]
    y = _grouped(x, weights, x.shape[1], call["eps"])
    return _affine(y, _per_channel(call["weight"], x.dim()), _per_channel(call["bias"], x.dim()))


def _chosen(*, least: bool = False) -> _Form:
    """The operator itself, on numbers that it cannot choose where units are removed."""

    def form(call: _Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> Any:
        x = call.args[0]
        limits = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
        worst = float("inf" if least else "-inf") if x.is_floating_point() else limits.max if least else limits.min
        return call.operator(torch.where(weights > 0, x, worst), *call.args[1:], **call.kwargs)

    return form


def _topk(call: _Call, weights: torch.Tensor, shape: tuple[int, ...] | None) -> Any:
    return _chosen(least=not call["largest"])(call, weights, shape)


def _grouped_mm(call: _Call, _weights: torch.Tensor, _shape: tuple[int, ...] | None) -> torch.Tensor:
    """The offsets of experts that are not there are those of the expert before: they get no rows."""
    operands = [operand.cummax(0).values if operand is call["offs"] else operand for operand in call.args]
    kwargs = {k: v.cummax(0).values if k == "offs" and v is not None else v for k, v in call.kwargs.items()}
    if call.node.target is _ATEN._grouped_mm.default and call.args[0].dtype is torch.float64:
        return _by_expert(operands[0], operands[1], kwargs["offs"] if "offs" in kwargs else operands[2])
    result: torch.Tensor = call.operator(*operands, **kwargs)
    return result


def _batch_norm(call: _Call, weights: torch.Tensor, _shape: tuple[int, ...] | None) -> tuple[torch.Tensor, ...]:
    x = call["input"]
    count, mean, squares = _moments(x, weights, [0, *range(2, x.dim())])
    rstd = torch.rsqrt(squares / count + call["eps"])
    y = _affine((x - mean) * rstd, _per_channel(call["weight"], x.dim()), _per_channel(call["bias"], x.dim()))
    return y, mean.flatten(), rstd.flatten()


_FORMS: dict[Any, _Form] = {
    _ATEN.mean.dim: _mean,
    _ATEN.mean.default: _mean,
    _ATEN.var.default: _var,
    _ATEN.var.dim: _var,
    _ATEN.var.correction: _var,
    _ATEN.std.default: _std,
    _ATEN.std.dim: _std,
    _ATEN.std.correction: _std,
    _ATEN.var_mean.default: _var_mean,
    _ATEN.var_mean.dim: _var_mean,
    _ATEN.var_mean.correction: _var_mean,
    _ATEN.std_mean.default: _std_mean,
    _ATEN.std_mean.dim: _std_mean,
    _ATEN.std_mean.correction: _std_mean,
    _ATEN.layer_norm.default: _layer_norm,
    _ATEN.native_layer_norm.default: _native_layer_norm,
    _ATEN.rms_norm.default: _rms_norm,
    _ATEN._fused_rms_norm.default: _fused_rms_norm,
    _ATEN._native_batch_norm_legit.no_stats: _batch_norm,
    _ATEN.group_norm.default: _group_norm,
    _ATEN.instance_norm.default: _instance_norm,
    _ATEN.softmax.int: _chosen(),
    _ATEN._softmax.default: _chosen(),
    _ATEN._safe_softmax.default: _chosen(),
    _ATEN.log_softmax.int: _chosen(),
    _ATEN._log_softmax.default: _chosen(),
    _ATEN.logsumexp.default: _chosen(),
    _ATEN.topk.default: _topk,
    _ATEN.argmax.default: _chosen(),
    _ATEN.argmin.default: _chosen(least=True),
    _ATEN.amax.default: _chosen(),
    _ATEN.amin.default: _chosen(least=True),
    _ATEN.max.default: _chosen(),
    _ATEN.max.dim: _chosen(),
    _ATEN.min.default: _chosen(least=True),
    _ATEN.min.dim: _chosen(least=True),
    _ATEN._grouped_mm.default: _grouped_mm,
}

_FORMS_BY_NAME: dict[str, _Form] = {"transformers.grouped_mm_fallback.default": _grouped_mm}
"""Operators that are registered by other libraries, if they are there."""

_NATURAL = frozenset({_ATEN._weight_norm.default, _ATEN.cosine_similarity.default, _ATEN.cumsum.default})
"""Operators whose statistic does not see zeros."""
