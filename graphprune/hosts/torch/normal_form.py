"""The normal form of an exported program, which makes later edits simple.

``view`` is ``reshape`` (sliced tensors need not be contiguous), parts of an axis are split by explicit sizes (they may
become unequal), bounds of slices count from the start, axes to squeeze are named (an axis that is cut down to size one
must stay).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, cast

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from graphprune.hosts.torch.graph import SLICE
from graphprune.hosts.torch.ops.rows import OPEN
from graphprune.hosts.torch.quiet import quiet
from graphprune.hosts.torch.signatures import argument
from graphprune.hosts.torch.specs import SPEC, Spec, annotate, attribute, has_example
from graphprune.hosts.torch.trace import Example

_ATEN = torch.ops.aten


def normal_form(program: ExportedProgram, example: Example) -> tuple[fx.Graph, dict[str, Any]]:
    """The program's graph in normal form, and what its ``get_attr`` nodes stand for, under the user's names."""
    with quiet():
        module = program.module(check_guards=False)
    graph = module.graph
    tensors = {str(node.target): attribute(module, str(node.target)) for node in graph.nodes if node.op == "get_attr"}
    annotate(graph, tensors, _shapes_seen(module, program.call_spec.in_spec, example))
    return graph, normalized(graph, tensors)


def normalized(graph: fx.Graph, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Brings an annotated graph into normal form; the tensors that it uses then.

    Args:
        graph: The graph; it is changed.
        tensors: What its ``get_attr`` nodes stand for.
    """
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
        elif node.op == "call_function":
            _normalize(tensors, node)
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return {name: tensor for name, tensor in tensors.items() if name in used}


class _Shapes(fx.Interpreter):
    """Runs a module and notes the shapes of what it computes."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, Any] = {}
        self.empty = False

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node."""
        result = super().run_node(n)
        if n.op == "call_function":
            self.empty |= any(
                isinstance(each, torch.Tensor) and not each.numel() for each in pytree.tree_leaves(result)
            )
            self.shapes[n] = pytree.tree_map_only(torch.Tensor, lambda tensor: tuple(tensor.shape), result)
        return result


def _shapes_seen(module: fx.GraphModule, in_spec: Any, example: Example) -> Mapping[fx.Node, Any]:
    """The shapes of all values on the example, if there are sizes that tracing does not know since values decide.

    None where the example leaves some values empty, of which rules could say nothing.
    """
    values = (value for node in module.graph.nodes for value in pytree.tree_leaves(node.meta.get("val")))
    if all(has_example(value) for value in values if isinstance(value, torch.Tensor)):
        return {}
    shapes = _Shapes(module)
    try:
        with quiet(), torch.no_grad():
            shapes.run(*fx._pytree.tree_flatten_spec(example, in_spec), enable_io_processing=False)
    except Exception:  # noqa: BLE001  (weights without values, say: then sizes stay unknown)
        return {}
    return {} if shapes.empty else shapes.shapes


_VIEWS = (_ATEN.view.default, _ATEN._unsafe_view.default)


_SPLITS = (
    _ATEN.split.Tensor,
    _ATEN.unsafe_split.Tensor,
    _ATEN.chunk.default,
    _ATEN.unsafe_chunk.default,
    _ATEN.tensor_split.sections,
    _ATEN.unsafe_split_with_sizes.default,
)


_SQUEEZES = (_ATEN.squeeze.default, _ATEN.squeeze.dim, _ATEN.squeeze.dims)


def _normalize(tensors: Mapping[str, Any], node: fx.Node) -> None:
    target = node.target
    if target is _ATEN._assert_tensor_metadata.default:
        node.graph.erase_node(node)
    elif target in _VIEWS:
        node.target = _ATEN.reshape.default
    elif target in _SPLITS:
        _split_by_sizes(node)
    elif target in _SQUEEZES:
        _squeeze_named(node)
    elif target is SLICE:
        _count_from_start(node)
    elif target is _ATEN.index.Tensor:
        run = run_of(tensors, node, {})
        if run is not None:
            node.target, node.args, node.kwargs = SLICE, (node.args[0], *run), {}
    elif target is _ATEN.index_put.default:
        _where(node)
    elif target is _ATEN.masked_scatter.default:
        _mask_as_made(node)


def _spec(node: Any) -> Spec:
    return cast("Spec", node.meta[SPEC])


def _split_by_sizes(node: fx.Node) -> None:
    at = argument(node, "dim")
    parts = cast("tuple[Spec, ...]", node.meta[SPEC])
    at %= len(_spec(node.args[0]).shape)
    if any(axis == at for part in parts for axis, _ in part.dynamic):
        return
    node.args = (node.args[0], [part.shape[at] for part in parts], at)
    node.kwargs = {}
    node.target = _ATEN.split_with_sizes.default


def _squeeze_named(node: fx.Node) -> None:
    shape = _spec(node.args[0]).shape
    named = argument(node, "dim") if node.target is not _ATEN.squeeze.default else list(range(len(shape)))
    at = [i % len(shape) for i in ([named] if isinstance(named, int) else named)] if shape else []
    node.args, node.kwargs = (node.args[0], [i for i in at if shape[i] == 1]), {}
    node.target = _ATEN.squeeze.dims


def _count_from_start(node: fx.Node) -> None:
    operand = _spec(node.args[0])
    at = argument(node, "dim") % len(operand.shape)
    start, stop, step = (argument(node, name) for name in ("start", "end", "step"))
    if any(axis == at for axis, _ in operand.dynamic) or any(isinstance(b, fx.Node) for b in (start, stop, step)):
        return
    size = operand.shape[at]
    first, last, step = slice(start, stop, step).indices(size)
    node.args, node.kwargs = (node.args[0], at, first, OPEN if last >= size else last, step), {}


def _mask_as_made(node: fx.Node) -> None:
    """Takes the mask of a scatter from before it was expanded, so that it shows which axes it does not tell apart."""
    x, mask, source = node.args
    while cast("fx.Node", mask).target in (_ATEN.expand.default, _ATEN.expand_as.default, *_COPIES):
        mask = cast("fx.Node", mask).args[0]
    node.args = (x, mask, source)


def _where(node: fx.Node) -> None:
    """One number that is written where a mask says so (``x[x < 0] = 0``) as a choice element by element."""
    x, indices, value = node.args[:3]
    masks = [(axis, index) for axis, index in enumerate(cast("list[Any]", indices)) if index is not None]
    if len(masks) != 1 or _spec(masks[0][1]).dtype != "bool" or argument(node, "accumulate"):
        return
    (axis, mask), into, number = masks[0], _spec(x), _spec(value)
    if prod(number.shape) != 1 or len(number.shape) > 1 or number.dtype != into.dtype:
        return
    for _ in range(len(into.shape) - axis - len(_spec(mask).shape)):
        spec = _spec(mask)
        with node.graph.inserting_before(node):
            wider = node.graph.call_function(_ATEN.unsqueeze.default, (mask, -1))
        wider.meta = {**node.meta, SPEC: spec._replace(shape=(*spec.shape, 1))}
        mask = wider
    node.target, node.args, node.kwargs = _ATEN.where.self, (mask, value, x), {}


def run_of(
    tensors: Mapping[str, Any], node: fx.Node, constants: Mapping[fx.Node, str]
) -> tuple[int, int, int, int] | None:
    """Axis, start, stop and step of the slice that an index by consecutive known positions is (``x[:, [-2]]``).

    As an index it would keep its axis whole.

    Args:
        tensors: The stored tensors.
        node: A call of ``aten.index``.
        constants: Nodes that stored tensors have taken the place of.
    """
    indices = cast("list[Any]", node.args[1])
    chosen = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(chosen) != 1:
        return None
    at, index = chosen[0]
    while index not in constants and index.op == "call_function" and index.target in _COPIES:
        index = index.args[0]
    name = constants.get(index, str(index.target) if index.op == "get_attr" else "")
    if not name or any(axis == at for axis, _ in _spec(node.args[0]).dynamic):
        return None
    value = tensors[name]
    if value.dim() != 1 or value.dtype in (torch.bool, torch.uint8) or value.is_meta or not 0 < value.numel() <= _RUN:
        return None
    size = _spec(node.args[0]).shape[at]
    first, last = int(value[0]) % size, int(value[-1]) % size + 1
    if last - first != len(value) or [i % size for i in value.tolist()] != list(range(first, last)):
        return None
    return at, first, OPEN if last >= size else last, 1


_COPIES = (_ATEN.clone.default, _ATEN.lift_fresh_copy.default, _ATEN.alias.default, _ATEN.detach.default)


_RUN = 1 << 16
"""Positions that are looked at: what is longer is a table."""
