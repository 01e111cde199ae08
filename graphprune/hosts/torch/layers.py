"""Attributes of torch's own layers, whose meaning is known: they are set from the shapes of the layers' tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.pairs import host_pairs
from graphprune.hosts.torch.signatures import argument
from graphprune.hosts.torch.specs import SPEC, Spec

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default

Resized = tuple[int, int]
"""A size of the original graph and what became of it."""

_PAIRED: MutableMapping[TorchHost, tuple[tuple[int, ...], Sequence[tuple[str, fx.Node, fx.Node]]]] = WeakKeyDictionary()
"""Nodes and what became of them, with the graphs that they are of: they are asked for several times of a host."""


def repair_known(module: nn.Module, original: TorchHost, pruned: TorchHost) -> None:
    """Sets the attributes of torch's own layers from the shapes of their tensors."""
    counts = resized_sizes(original, pruned, ("groups", "num_groups"))
    for path, layer in module.named_modules(remove_duplicate=False):
        for hook in layer._forward_pre_hooks.values():
            if hasattr(hook, "compute_weight"):  # torch.nn.utils.weight_norm and spectral_norm
                hook(layer, ())
        weight: Any = getattr(layer, "weight", None)
        match layer:
            case nn.Linear():
                layer.out_features, layer.in_features = weight.shape
            case nn.Bilinear():
                layer.out_features, layer.in1_features, layer.in2_features = weight.shape
            case nn.Embedding() | nn.EmbeddingBag():
                layer.num_embeddings, layer.embedding_dim = weight.shape
            case nn.modules.conv._ConvNd():
                layer.groups = renamed(layer.groups, counts.get(path, ()))
                outer, inner = (1, 0) if layer.transposed else (0, 1)
                sizes = {outer: weight.shape[outer], inner: weight.shape[inner]}
                layer.out_channels = sizes[outer] * (layer.groups if layer.transposed else 1)
                layer.in_channels = sizes[inner] * (1 if layer.transposed else layer.groups)
            case nn.GroupNorm():
                layer.num_groups = renamed(layer.num_groups, counts.get(path, ()))
                if weight is not None:
                    layer.num_channels = weight.shape[0]
            case nn.LayerNorm() | nn.RMSNorm():
                if weight is not None:
                    layer.normalized_shape = tuple(weight.shape)
            case nn.modules.batchnorm._NormBase():
                stored = weight if weight is not None else layer.running_mean
                if stored is not None:
                    layer.num_features = stored.shape[0]
            case nn.modules.rnn.RNNCellBase():
                layer.hidden_size, layer.input_size = layer.weight_hh.shape[1], layer.weight_ih.shape[1]
            case nn.modules.rnn.RNNBase():
                hidden: Any = layer.weight_hh_l0
                source: Any = layer.weight_ih_l0
                gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
                layer.hidden_size, layer.input_size = hidden.shape[0] // gates, source.shape[1]
                layer.proj_size = hidden.shape[1] if layer.proj_size else 0


def renamed(size: int, resized: Sequence[Resized]) -> int:
    """What became of a size; itself if nothing did."""
    return next((new for old, new in resized if old == size), size)


def resized_sizes(
    original: TorchHost, pruned: TorchHost, attributes: tuple[str, ...] | None = None
) -> dict[str, list[Resized]]:
    """For each module that a node stands in: the literals that pruning changed, in the order of the graph."""
    found: dict[str, list[Resized]] = {}
    for path, node, other in _pairs(original, pruned):
        if attributes is None:
            changed = list(_changes(node, other))
        else:
            changed = []
            for name in attributes:
                try:
                    changed.append((argument(node, name), argument(other, name)))
                except KeyError:
                    continue
        found.setdefault(path, []).extend(pair for pair in changed if pair[0] != pair[1])
    return found


def own_literals(original: TorchHost, pruned: TorchHost) -> dict[str, list[Resized]]:
    """For each module: the literals that its own code gives to operators, changed or not, and what became of them."""
    found: dict[str, list[Resized]] = {}
    for path, node, other in _pairs(original, pruned):
        found.setdefault(path, []).extend(
            zip(_numbers((node.args, node.kwargs)), _numbers((other.args, other.kwargs)), strict=False)
        )
    return found


def _pairs(original: TorchHost, pruned: TorchHost) -> Sequence[tuple[str, fx.Node, fx.Node]]:
    """The path of a module, a node of its own code, and the same node of the pruned graph."""
    graphs = tuple(id(program.program) for pair in host_pairs(original, pruned) for program in pair)
    known = _PAIRED.get(pruned)
    if known is None or known[0] != graphs:
        known = _PAIRED[pruned] = graphs, tuple(_paired(original, pruned))
    return known[1]


def _paired(original: TorchHost, pruned: TorchHost) -> Iterator[tuple[str, fx.Node, fx.Node]]:
    for before, after in host_pairs(original, pruned):
        new_nodes = {node.name: node for node in after.program.nodes}
        for node in before.program.nodes:
            other = new_nodes.get(node.name)
            if other is not None and node.op == "call_function" and (stack := node.meta.get("nn_module_stack")):
                yield next(reversed(stack.values()))[0], node, other


def _changes(old: fx.Node, new: fx.Node) -> Iterator[Resized]:
    """Pairs of whole numbers at the same place in the arguments of two nodes, and of sizes of their results."""
    yield from zip(_numbers((old.args, old.kwargs)), _numbers((new.args, new.kwargs)), strict=False)
    specs, others = old.meta.get(SPEC), new.meta.get(SPEC)
    if isinstance(specs, Spec) and isinstance(others, Spec):
        yield from zip(specs.shape, others.shape, strict=True)
    if old.target is _ATTENTION and argument(
        old, "enable_gqa"
    ):  # code that repeats keys itself needs to know how often
        yield _repeats(old), _repeats(new)


def _repeats(attention: fx.Node) -> int:
    """How many heads of queries share one of keys."""
    queries, keys = (cast("fx.Node", operand).meta[SPEC].shape[-3] for operand in attention.args[:2])
    return int(queries // keys)


def _numbers(value: Any) -> Iterator[int]:
    kind = type(value)
    if kind is int:
        yield value
    elif kind is fx.Node or kind is bool or kind is float:
        return
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, int):
        yield value
