"""Small graphs as text and in code, shared by tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from graphprune.ir.graph import Graph, Node, Value
from graphprune.rules.contraction import linear, sdpa
from graphprune.rules.layout import reshape, transpose

RESIDUAL = """
input x float32 2x3x8x8
parameter stem.weight float32 16x3x3x3
parameter a.weight float32 24x16x1x1
parameter b.weight float32 16x24x1x1
parameter fc.weight float32 10x16
computed s float32 2x16x8x8
computed a float32 2x24x8x8
computed r float32 2x24x8x8
computed b float32 2x16x8x8
computed t float32 2x16x8x8
computed p float32 2x16
computed y float32 2x10
stem: s = conv(x, stem.weight) : n:2 ci:3 h:8 w:8, co:16 ci k0:3 k1:3 -> n co oh:8 ow:8; fixed h w oh ow k0 k1; macs n co ci k0 k1 oh ow; label ci=channel co=channel
conv_a: a = conv(s, a.weight) : n:2 ci:16 h:8 w:8, co:24 ci 1 1 -> n co oh:8 ow:8; fixed h w oh ow; macs n co ci oh ow; label ci=channel co=channel
relu: r = relu(a) : n:2 c:24 h:8 w:8 -> n c h w
conv_b: b = conv(r, b.weight) : n:2 ci:24 h:8 w:8, co:16 ci 1 1 -> n co oh:8 ow:8; fixed h w oh ow; macs n co ci oh ow; label ci=channel co=channel
add: t = add(s, b) : n:2 c:16 h:8 w:8, n c h w -> n c h w
pool: p = mean(t) : n:2 c:16 h:8 w:8 -> n c; normalized h w
fc: y = linear(p, fc.weight) : n:2 ci:16, co:10 ci -> n co; macs n co ci; label ci=neuron co=neuron
output y
"""
"""A residual block: groups of 16 (the stream) and 24 (inside)."""


def gqa_attention() -> Graph:
    """Grouped-query attention: 8 query heads, 2 key-value heads, head size 16, width 64."""

    def value(name: str, shape: tuple[int, ...], kind: str = "computed") -> Value:
        return Value(name, shape, kind=kind)  # type: ignore[arg-type]

    values = {
        v.name: v
        for v in [
            value("x", (2, 5, 64), "input"),
            value("wq", (128, 64), "parameter"),
            value("wk", (32, 64), "parameter"),
            value("wv", (32, 64), "parameter"),
            value("wo", (64, 128), "parameter"),
            value("q", (2, 5, 128)),
            value("k", (2, 5, 32)),
            value("v", (2, 5, 32)),
            value("q4", (2, 5, 8, 16)),
            value("k4", (2, 5, 2, 16)),
            value("v4", (2, 5, 2, 16)),
            value("qt", (2, 8, 5, 16)),
            value("kt", (2, 2, 5, 16)),
            value("vt", (2, 2, 5, 16)),
            value("a", (2, 8, 5, 16)),
            value("at", (2, 5, 8, 16)),
            value("af", (2, 5, 128)),
            value("y", (2, 5, 64)),
        ]
    }
    nodes: list[Node] = []

    def shape(name: str) -> tuple[int, ...]:
        return values[name].shape

    def node(op: str, operands: list, results: list, rule) -> None:
        nodes.append(Node(f"{op}{len(nodes)}", op, tuple(operands), tuple(results), rule))

    for c in "qkv":
        node("linear", ["x", f"w{c}", None], [c], linear(shape("x"), shape(f"w{c}"), None))
        node("view", [c], [f"{c}4"], reshape(shape(c), shape(f"{c}4"), slot="size"))
        node("transpose", [f"{c}4"], [f"{c}t"], transpose(shape(f"{c}4"), (0, 2, 1, 3)))
    node("sdpa", ["qt", "kt", "vt", None], ["a"], sdpa(shape("qt"), shape("kt"), shape("vt"), None, scale=None))
    node("transpose", ["a"], ["at"], transpose(shape("a"), (0, 2, 1, 3)))
    node("view", ["at"], ["af"], reshape(shape("at"), shape("af"), slot="size"))
    node("linear", ["af", "wo", None], ["y"], linear(shape("af"), shape("wo"), None))
    return Graph(values, tuple(nodes), ("x",), ("y",))


def weights(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values for the stored tensors of a graph."""
    rng = np.random.default_rng(seed)
    return {value.name: rng.normal(size=value.shape).astype(np.float32) for value in graph.stored}


def save_net(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    widths: tuple[int, int],
    dtype: int = onnx.TensorProto.FLOAT,
) -> Path:
    """Writes an ONNX file with one input ``x`` and one output ``y``, ``batch width`` each."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    graph = onnx.helper.make_graph(
        nodes,
        path.stem,
        [onnx.helper.make_tensor_value_info("x", dtype, ["batch", widths[0]])],
        [onnx.helper.make_tensor_value_info("y", dtype, ["batch", widths[1]])],
        [onnx.numpy_helper.from_array(np.asarray(value, kind), name) for name, value in weights.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path
