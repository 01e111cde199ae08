"""Graphs of any length for the scaling benchmark: repeated blocks, as a traced model has them, without weights."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.lazy_graph import LazyGraph
from graphprune.hosts.torch.specs import annotate

ATEN = torch.ops.aten


class Writer:
    """Writes an ``fx.Graph`` call by call; values are meta tensors."""

    def __init__(self, *shape: int) -> None:
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.x = self.graph.placeholder("x")
        self.x.meta["val"] = torch.empty(shape, device="meta")
        self.n_calls = 0

    def weight(self, *shape: int, trained: bool = True) -> fx.Node:
        """A parameter of its own, or a buffer."""
        name = f"w{len(self.tensors)}"
        tensor = torch.empty(shape, device="meta")
        self.tensors[name] = torch.nn.Parameter(tensor) if trained else tensor
        return self.graph.create_node("get_attr", name)

    def call(self, target: Any, *args: Any) -> fx.Node:
        """One node."""
        node = self.graph.call_function(target, args)
        with torch.no_grad():
            node.meta["val"] = target(*fx.map_arg(args, self.value))
        self.n_calls += 1
        return node

    def value(self, node: fx.Node) -> Tensor:
        """What a node stands for."""
        return self.tensors[str(node.target)] if node.op == "get_attr" else node.meta["val"]

    def host(self, result: fx.Node) -> TorchHost:
        """The graph as a model that was traced."""
        self.graph.output((result,)).meta["val"] = (result.meta["val"],)
        annotate(self.graph, self.tensors)
        return TorchHost(LazyGraph(self.graph), self.tensors, ((self.x.meta, {}), {}))


def residual(w: Writer, x: fx.Node) -> fx.Node:
    """Nine nodes: two convolutions with batch norms around a shortcut."""
    y = x
    for i in range(2):
        y = w.call(ATEN.conv2d.default, y, w.weight(64, 64, 3, 3), None, [1, 1], [1, 1])
        statistics = [w.weight(64, trained=False) for _ in range(2)]
        norm = ATEN._native_batch_norm_legit_no_training.default
        y = w.call(operator.getitem, w.call(norm, y, w.weight(64), w.weight(64), *statistics, 0.1, 1e-5), 0)
        y = w.call(ATEN.add.Tensor, y, x) if i else y
        y = w.call(ATEN.relu.default, y)
    return y


def transformer(w: Writer, x: fx.Node) -> fx.Node:
    """Eighteen nodes: attention over 4 heads of 16 and a feed-forward network, each behind a layer norm."""
    y = w.call(ATEN.layer_norm.default, x, [64], w.weight(64), w.weight(64), 1e-5)
    heads = []
    for _ in range(3):
        part = w.call(ATEN.linear.default, y, w.weight(64, 64), w.weight(64))
        part = w.call(ATEN.reshape.default, part, [1, 8, 4, 16])
        heads.append(w.call(ATEN.permute.default, part, [0, 2, 1, 3]))
    y = w.call(ATEN.scaled_dot_product_attention.default, *heads)
    y = w.call(ATEN.reshape.default, w.call(ATEN.permute.default, y, [0, 2, 1, 3]), [1, 8, 64])
    x = w.call(ATEN.add.Tensor, w.call(ATEN.linear.default, y, w.weight(64, 64), w.weight(64)), x)
    y = w.call(ATEN.layer_norm.default, x, [64], w.weight(64), w.weight(64), 1e-5)
    y = w.call(ATEN.gelu.default, w.call(ATEN.linear.default, y, w.weight(128, 64), w.weight(128)))
    return w.call(ATEN.add.Tensor, w.call(ATEN.linear.default, y, w.weight(64, 128), w.weight(64)), x)


BLOCKS: dict[str, tuple[tuple[int, ...], Callable[[Writer, fx.Node], fx.Node]]] = {
    "residual": ((1, 64, 8, 8), residual),
    "transformer": ((1, 8, 64), transformer),
}


def chain(kind: str, n_nodes: int) -> tuple[TorchHost, int]:
    """A chain of blocks with at least so many operator calls, and how many it has."""
    shape, block = BLOCKS[kind]
    writer = Writer(*shape)
    x = writer.x
    while writer.n_calls < n_nodes:
        x = block(writer, x)
    return writer.host(x), writer.n_calls
