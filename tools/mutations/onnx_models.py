"""Small ONNX models to plant faults in, each with what hides a fault: scales, zeros, saturation, other types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20


@dataclass
class Drawing:
    """A graph under construction; weights come from a seed."""

    seed: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def store(self, name: str, array: Any) -> str:
        self.stored[name] = np.asarray(array)
        return name

    def weight(self, name: str, *shape: int, scale: float | None = None, fan_in: int = 0) -> str:
        size = (fan_in or shape[0]) ** -0.5 if scale is None else scale
        return self.store(name, (self.rng.standard_normal(shape) * size).astype(np.float32))

    def add(self, op: str, inputs: Sequence[str], result: str | Sequence[str], **attributes: Any) -> str:
        names = [result] if isinstance(result, str) else list(result)
        self.nodes.append(helper.make_node(op, list(inputs), names, f"{op}_{names[0]}", **attributes))
        return names[0]

    def linear(
        self, x: str, name: str, before: int, after: int, *, bias: bool = True, scale: float | None = None
    ) -> str:
        y = self.add("MatMul", [x, self.weight(f"{name}.w", before, after, scale=scale)], f"{name}.m")
        return self.add("Add", [y, self.weight(f"{name}.b", after, scale=0.1)], f"{name}.y") if bias else y

    def conv(self, x: str, name: str, before: int, after: int, *, group: int = 1, scale: float = 1.0) -> str:
        shape = (after, before // group, 3, 3)
        w = self.weight(f"{name}.w", *shape, scale=scale * (before // group * 9) ** -0.5)
        b = self.weight(f"{name}.b", after, scale=0.1 * scale)
        return self.add("Conv", [x, w, b], f"{name}.y", group=group, kernel_shape=[3, 3], pads=[1] * 4)

    def batch_norm(self, x: str, name: str, width: int) -> str:
        parts = [
            self.store(f"{name}.scale", (0.5 + self.rng.random(width)).astype(np.float32)),
            self.weight(f"{name}.bias", width, scale=0.3),
            self.weight(f"{name}.mean", width, scale=0.3),
            self.store(f"{name}.var", (0.5 + self.rng.random(width)).astype(np.float32)),
        ]
        return self.add("BatchNormalization", [x, *parts], f"{name}.y")

    def model(self, inputs: dict[str, tuple[Any, ...]], outputs: dict[str, tuple[Any, ...]]) -> onnx.ModelProto:
        def infos(values: dict[str, tuple[Any, ...]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]

        tensors = [numpy_helper.from_array(array, name) for name, array in self.stored.items()]
        graph = helper.make_graph(self.nodes, "net", infos(inputs), infos(outputs), tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def detector(seed: int) -> onnx.ModelProto:
    """Boxes in pixels and scores near zero in one output, of heads on one small backbone; the batch is dynamic."""
    net = Drawing(seed)
    x = net.conv("image", "stem", 3, 12)
    x = net.add("Relu", [net.batch_norm(x, "bn", 12)], "stem.r")
    x = net.add("MaxPool", [x], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Relu", [net.conv(x, "body", 12, 16)], "body.r")
    box = net.conv(net.add("Relu", [net.conv(x, "box1", 16, 10)], "box1.r"), "box2", 10, 4)
    box = net.add("Mul", [box, net.store("pixels", np.float32(640))], "boxes")
    score = net.conv(net.add("Relu", [net.conv(x, "cls1", 16, 10)], "cls1.r"), "cls2", 10, 3, scale=0.2)
    score = net.add("Sigmoid", [net.add("Add", [score, net.store("prior", np.float32(-7))], "logits")], "scores")
    joined = net.add("Concat", [box, score], "joined", axis=1)
    net.add("Reshape", [joined, net.store("flat", np.array([0, 7, -1]))], "detections")
    return net.model({"image": ("batch", 3, 8, 8)}, {"detections": ("batch", 7, 16)})


def two_outputs(seed: int) -> onnx.ModelProto:
    """One output in thousands beside one near a millionth."""
    net = Drawing(seed)
    x = net.add("Relu", [net.linear("x", "trunk", 8, 16)], "trunk.r")
    a = net.add("Gelu", [net.linear(x, "far1", 16, 12)], "far1.g")
    net.linear(a, "far2", 12, 5, scale=2000.0)
    b = net.add("Relu", [net.linear(x, "near1", 16, 12)], "near1.r")
    net.linear(b, "near2", 12, 5, bias=False, scale=1e-6)
    return net.model({"x": (6, 8)}, {"far2.y": (6, 5), "near2.m": (6, 5)})


def quantised(seed: int, *, float_bias: bool = True) -> onnx.ModelProto:
    """Convolutions with quantised weights (per channel) and activations (per tensor)."""
    net = Drawing(seed)
    net.store("s", np.float32(0.05))
    net.store("z", np.uint8(128))

    def noted(x: str) -> str:
        q = net.add("QuantizeLinear", [x, "s", "z"], f"{x}.q")
        return net.add("DequantizeLinear", [q, "s", "z"], f"{x}.d")

    def conv(x: str, name: str, before: int, after: int) -> str:
        w = net.rng.standard_normal((after, before, 3, 3)) / (before * 9) ** 0.5
        scale = np.abs(w).reshape(after, -1).max(1) / 127
        stored = np.clip(np.round(w / scale[:, None, None, None]), -127, 127).astype(np.int8)
        parts = [
            net.store(f"{name}.w", stored),
            net.store(f"{name}.s", scale.astype(np.float32)),
            net.store(f"{name}.z", np.zeros(after, np.int8)),
        ]
        weight = net.add("DequantizeLinear", parts, f"{name}.d", axis=0)
        bias = [net.weight(f"{name}.b", after, scale=0.1)] if float_bias else []
        return net.add("Conv", [noted(x), weight, *bias], f"{name}.y", kernel_shape=[3, 3], pads=[1] * 4)

    x = net.add("Relu", [conv("image", "c1", 3, 16)], "r1")
    x = net.add("Relu", [conv(x, "c2", 16, 12)], "r2")
    conv(x, "c3", 12, 4)
    return net.model({"image": (1, 3, 6, 6)}, {"c3.y": (1, 4, 6, 6)})


def recurrent(seed: int) -> onnx.ModelProto:
    """Two recurrent layers in a row, then a classifier of the last step."""
    net = Drawing(seed)

    def lstm(x: str, name: str, before: int, width: int) -> str:
        parts = [net.weight(f"{name}.w", 1, 4 * width, before, fan_in=before)]
        parts += [net.weight(f"{name}.r", 1, 4 * width, width, fan_in=width), net.weight(f"{name}.b", 1, 8 * width)]
        y = net.add("LSTM", [x, *parts], f"{name}.y", hidden_size=width)
        return net.add("Squeeze", [y, "one"], f"{name}.s")

    net.store("one", np.array([1]))
    x = lstm(lstm("x", "first", 4, 8), "second", 8, 6)
    x = net.add("Gather", [x, net.store("last", np.int64(-1))], "ended", axis=0)
    net.linear(net.add("Tanh", [net.linear(x, "fc1", 6, 10)], "fc1.t"), "fc2", 10, 3)
    return net.model({"x": (5, 2, 4)}, {"fc2.y": (2, 3)})


def hidden(seed: int) -> onnx.ModelProto:
    """Residual convolutions, one behind a layer scale of 1e-6, one whose last weights are zero, one grouped."""
    net = Drawing(seed)
    x = net.add("Relu", [net.conv("image", "stem", 3, 12)], "stem.r")
    for name, kind in (("scaled", 1e-6), ("zero", 0.0), ("plain", 1.0)):
        y = net.add("Relu", [net.batch_norm(net.conv(x, f"{name}1", 12, 8), f"{name}.bn", 8)], f"{name}.r")
        y = net.add("Relu", [net.conv(y, f"{name}g", 8, 8, group=2)], f"{name}.gr")
        y = net.conv(y, f"{name}2", 8, 12, scale=0.0 if kind == 0 else 1.0)
        if kind not in (0.0, 1.0):
            y = net.add("Mul", [y, net.store(f"{name}.gamma", np.full((12, 1, 1), kind, np.float32))], f"{name}.m")
        x = net.add("Add", [x, y], f"{name}.out")
    x = net.add("GlobalAveragePool", [x], "pool")
    net.linear(net.add("Flatten", [x], "flat"), "head", 12, 4)
    return net.model({"image": (2, 3, 5, 5)}, {"head.y": (2, 4)})


def saturated(seed: int) -> onnx.ModelProto:
    """A sigmoid that is one everywhere: the output says nothing, its inside does."""
    net = Drawing(seed)
    x = net.add("Relu", [net.linear("x", "one", 6, 12)], "one.r")
    x = net.add("Relu", [net.linear(x, "two", 12, 10)], "two.r")
    x = net.add("Add", [net.linear(x, "three", 10, 4), net.store("far", np.float32(60))], "shifted")
    net.add("Sigmoid", [x], "y")
    return net.model({"x": (4, 6)}, {"y": (4, 4)})


def expanded(seed: int) -> onnx.ModelProto:
    """Attention with a packed projection and a table of positions, of a dynamic batch, as exporters write it."""
    net = Drawing(seed)
    width, heads, depth, length = 12, 3, 4, 5
    net.store("gain", (0.5 + net.rng.random(width)).astype(np.float32))
    net.weight("shift", width, scale=0.1)
    x = net.add("LayerNormalization", ["x", "gain", "shift"], "norm", axis=-1)
    packed = net.linear(x, "qkv", width, 3 * width)
    net.add("Split", [packed, net.store("thirds", np.array([width] * 3))], ["q", "k", "v"], axis=-1)
    net.store("apart", np.array([0, 0, heads, depth]))
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        net.add("Transpose", [net.add("Reshape", [name, "apart"], f"{name}.a")], f"{name}.h", perm=perm)
    s = net.add("MatMul", ["q.h", "k.h"], "scores")
    s = net.add("Mul", [s, net.store("half", np.float32(depth**-0.5))], "scaled")
    s = net.add("Add", [s, net.weight("table", 1, heads, length, length, scale=0.5)], "placed")
    y = net.add("MatMul", [net.add("Softmax", [s], "share", axis=-1), "v.h"], "mixed")
    y = net.add("Transpose", [y], "back", perm=[0, 2, 1, 3])
    y = net.add("Reshape", [y, net.store("joined", np.array([0, 0, -1]))], "heads")
    x = net.add("Add", ["x", net.linear(y, "out", width, width)], "stream")
    y = net.add("Gelu", [net.linear(x, "up", width, 16)], "up.g")
    x = net.add("Add", [x, net.linear(y, "down", 16, width)], "stream2")
    net.linear(x, "head", width, 3)
    return net.model({"x": ("batch", length, width)}, {"head.y": ("batch", length, 3)})


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float16, weights, inputs and outputs."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*half.graph.input, *half.graph.output, *half.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


def requantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the stored weights of products quantised per tensor, and what they are multiplied by."""
    noted = onnx.ModelProto()
    noted.CopyFrom(model)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    fresh: dict[str, np.ndarray] = {"q.s": np.float32(0.03), "q.z": np.uint8(128)}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in stored:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            x, w, at = node.input[0], node.input[1], len(nodes)
            array = stored[w]
            scale = np.float32(max(float(np.abs(array).max(initial=0.0)), 1e-3) / 127)
            fresh[f"q{at}.w"] = np.clip(np.round(array / scale), -127, 127).astype(np.int8)
            fresh[f"q{at}.s"], fresh[f"q{at}.z"] = scale, np.int8(0)
            parts = [f"q{at}.w", f"q{at}.s", f"q{at}.z"]
            nodes.append(helper.make_node("DequantizeLinear", parts, [f"q{at}.d"], f"q{at}.dequantize"))
            nodes.append(helper.make_node("QuantizeLinear", [x, "q.s", "q.z"], [f"q{at}.xq"], f"q{at}.x"))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{at}.xq", "q.s", "q.z"], [f"q{at}.xd"], f"q{at}.xd"))
            copy.input[0], copy.input[1] = f"q{at}.xd", f"q{at}.d"
            nodes.append(copy)
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    del noted.graph.node[:]
    noted.graph.node.extend(nodes)
    kept = [tensor for tensor in noted.graph.initializer if tensor.name in used]
    del noted.graph.initializer[:]
    noted.graph.initializer.extend(kept)
    noted.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in fresh.items())
    return noted
