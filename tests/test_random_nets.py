"""Small random ONNX networks: whatever the analysis lets go can be removed, and nothing ever fails.

A network is a chain of steps on one value; steps may join it with earlier values, use a stored weight twice, or put a
barrier in the way. Its structure is drawn by hypothesis, so that a failure shrinks; its weights come from a seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphprune.analysis.groups import analyze_graph
from graphprune.hosts.onnx_host import OnnxHost
from graphprune.passes.slice_groups import slice_edits
from graphprune.passes.verify import compare, masks

TOLERANCE = 1e-4
"""Relative to the largest output: rounding of float32 in some ten layers."""
TOLERANCE_DOUBLE = 1e-9
"""Where float32 leaves doubt: in float64, rounding cannot be mistaken for an error."""

Shape = tuple[int, ...]
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Net:
    """A network under construction; ``now`` is the value that the next step works on."""

    draw: Draw
    rng: np.random.Generator
    now: str = "x"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        return self.shapes[self.now]

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def axis(self) -> int:
        """Of the channels: the second of an image, the last of a sequence or a row."""
        return 1 if len(self.shape) == 4 else len(self.shape) - 1

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def coin(self) -> bool:
        return self.draw(st.booleans())

    def store(self, array: Any, name: str = "w") -> str:
        name = f"{name}{len(self.stored)}"
        self.stored[name] = np.asarray(array)
        return name

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        return self.store((self.rng.standard_normal(shape) / fan_in**0.5).astype(np.float32))

    def positive(self, *shape: int) -> str:
        return self.store((0.5 + self.rng.random(shape)).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.store(np.array(values, dtype=np.int64), "k")

    def add(self, op: str, inputs: Sequence[str], *shapes: Shape, **attributes: Any) -> tuple[str, ...]:
        """A node; its results have these shapes."""
        names = tuple(f"{op.lower()}{len(self.nodes)}_{i}" for i in range(len(shapes)))
        self.nodes.append(helper.make_node(op, list(inputs), names, f"n{len(self.nodes)}", **attributes))
        self.shapes.update(zip(names, shapes, strict=True))
        return names

    def then(self, op: str, *more: str, shape: Shape | None = None, **attributes: Any) -> None:
        """A node on the value of now, which its result becomes."""
        (self.now,) = self.add(op, (self.now, *more), self.shape if shape is None else shape, **attributes)

    def resized(self, channels: int) -> Shape:
        return tuple(channels if i == self.axis else size for i, size in enumerate(self.shape))

    def earlier(self, *, same: bool) -> str | None:
        """An earlier value of the same shape, or of the same but for the channels."""
        found = [
            name
            for name, shape in self.shapes.items()
            if name != self.now and (shape == self.shape if same else _but_for(shape, self))
        ]
        return self.pick(*found) if found else None

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shapes["x"])],
            [helper.make_tensor_value_info(self.now, TensorProto.FLOAT, self.shape)],
            [numpy_helper.from_array(array, name) for name, array in self.stored.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def _but_for(shape: Shape, net: Net) -> bool:
    """Whether a shape differs from that of now in the channels only."""
    return len(shape) == len(net.shape) and all(
        a == b for i, (a, b) in enumerate(zip(shape, net.shape, strict=True)) if i != net.axis
    )


def _divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]


# -- steps on images: n c h w ------------------------------------------------------------------------------------


def conv(net: Net) -> None:
    n, c, h, w = net.shape
    groups = net.pick(*_divisors(c))
    out = groups * net.pick(1, 2, 3) if groups > 1 else net.pick(4, 6, 8)
    kernel, stride = net.pick(1, 3), net.pick(1, 2)
    bias = [net.weight(out)] if net.coin() else []
    size = tuple((side + 2 * (kernel // 2) - kernel) // stride + 1 for side in (h, w))
    fan_in = c // groups * kernel**2
    net.then(
        "Conv", net.weight(out, c // groups, kernel, kernel, fan_in=fan_in), *bias, shape=(n, out, *size),
        group=groups, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4,
    )  # fmt: skip


def depthwise(net: Net) -> None:
    _, c, _, _ = net.shape
    net.then("Conv", net.weight(c, 1, 3, 3, fan_in=9), group=c, kernel_shape=[3, 3], pads=[1] * 4)


def batch_norm(net: Net) -> None:
    c = net.shape[1]
    net.then("BatchNormalization", net.positive(c), net.weight(c), net.weight(c), net.positive(c))


def squeeze_and_excite(net: Net) -> None:
    n, c, _, _ = net.shape
    (pooled,) = net.add("GlobalAveragePool", [net.now], (n, c, 1, 1))
    (small,) = net.add("Conv", [pooled, net.weight(2, c, 1, 1, fan_in=c)], (n, 2, 1, 1))
    (large,) = net.add("Conv", [small, net.weight(c, 2, 1, 1, fan_in=2)], (n, c, 1, 1))
    (gate,) = net.add("Sigmoid", [large], (n, c, 1, 1))
    net.then("Mul", gate)


def spatial_gate(net: Net) -> None:
    n, c, h, w = net.shape
    (mask,) = net.add("Conv", [net.now, net.weight(1, c, 1, 1, fan_in=c)], (n, 1, h, w))
    net.then("Mul", mask)


def pool(net: Net) -> None:
    n, c, h, w = net.shape
    if min(h, w) >= 2:
        net.then(net.pick("MaxPool", "AveragePool"), shape=(n, c, h // 2, w // 2), kernel_shape=[2, 2], strides=[2, 2])


def shuffle(net: Net) -> None:
    n, c, h, w = shape = net.shape
    groups = net.pick(*_divisors(c))
    net.then("Reshape", net.ints(n, groups, c // groups, h, w), shape=(n, groups, c // groups, h, w))
    net.then("Transpose", shape=(n, c // groups, groups, h, w), perm=[0, 2, 1, 3, 4])
    net.then("Reshape", net.ints(*net.pick((n, c, h, w), (0, -1, h, w))), shape=shape)


def to_sequence(net: Net) -> None:
    n, c, h, w = net.shape
    if net.coin():
        net.then("Reshape", net.ints(n, c, -1), shape=(n, c, h * w))
        net.then("Transpose", shape=(n, h * w, c), perm=[0, 2, 1])
    else:
        net.then("Transpose", shape=(n, h, w, c), perm=[0, 2, 3, 1])
        net.then("Reshape", net.ints(n, h * w, c), shape=(n, h * w, c))


# -- steps on sequences: n s c -----------------------------------------------------------------------------------


def linear(net: Net) -> None:
    c, out = net.channels, net.pick(4, 6, 8, 12)
    net.then("MatMul", net.weight(c, out, fan_in=c), shape=net.resized(out))
    if net.coin():
        net.then("Add", net.weight(out))


def layer_norm(net: Net) -> None:
    net.then("LayerNormalization", net.positive(net.channels), net.weight(net.channels), axis=-1)


def attention(net: Net) -> None:
    n, s, c = net.shape
    heads, depth = net.pick(1, 2, 3), net.pick(2, 4)
    width = heads * depth
    if net.coin():
        (packed,) = net.add("MatMul", [net.now, net.weight(c, 3 * width, fan_in=c)], (n, s, 3 * width))
        if net.coin():
            parts = net.add("Split", [packed, net.ints(width, width, width)], *[(n, s, width)] * 3, axis=-1)
        else:
            parts = net.add("Split", [packed], *[(n, s, width)] * 3, axis=2, num_outputs=3)
    else:
        parts = tuple(net.add("MatMul", [net.now, net.weight(c, width, fan_in=c)], (n, s, width))[0] for _ in range(3))
    split = []
    for i, part in enumerate(parts):
        (apart,) = net.add(
            "Reshape",
            [part, net.ints(*net.pick((n, s, heads, depth), (0, 0, heads, -1), (0, 0, -1, depth)))],
            (n, s, heads, depth),
        )
        shape, perm = ((n, heads, depth, s), [0, 2, 3, 1]) if i == 1 else ((n, heads, s, depth), [0, 2, 1, 3])
        split.append(net.add("Transpose", [apart], shape, perm=perm)[0])
    query, key, value = split
    (scores,) = net.add("MatMul", [query, key], (n, heads, s, s))
    (scaled,) = net.add("Mul", [scores, net.store(np.float32(depth**-0.5))], (n, heads, s, s))
    (weights,) = net.add("Softmax", [scaled], (n, heads, s, s), axis=-1)
    (mixed,) = net.add("MatMul", [weights, value], (n, heads, s, depth))
    (back,) = net.add("Transpose", [mixed], (n, s, heads, depth), perm=[0, 2, 1, 3])
    (joined,) = net.add("Reshape", [back, net.ints(*net.pick((n, s, width), (0, 0, -1)))], (n, s, width))
    net.now = net.add("MatMul", [joined, net.weight(width, c, fan_in=width)], (n, s, c))[0]


def pooled_sequence(net: Net) -> None:
    n, _, c = net.shape
    net.then("ReduceMean", net.ints(1), shape=(n, c), keepdims=0)


# -- steps on rows: n c ------------------------------------------------------------------------------------------


def gemm(net: Net) -> None:
    n, c = net.shape
    out, across = net.pick(4, 6, 8), net.pick(0, 1)
    shape = (out, c) if across else (c, out)
    net.then(
        "Gemm", net.weight(*shape, fan_in=c), net.weight(*net.pick((out,), (1, out))), shape=(n, out), transB=across
    )


# -- steps on anything -------------------------------------------------------------------------------------------


def activation(net: Net) -> None:
    net.then(net.pick("Relu", "Tanh", "Sigmoid", "Gelu", "LeakyRelu"))


def scale(net: Net) -> None:
    """Element-wise with a stored tensor that is broadcast."""
    shape = tuple(size if i == net.axis else 1 for i, size in enumerate(net.shape))
    lead = net.draw(st.integers(0, net.axis))
    net.then(net.pick("Add", "Mul", "Sub"), net.weight(*net.pick(shape[lead:], (1,), net.shape[1:])))


def residual(net: Net) -> None:
    if (other := net.earlier(same=True)) is not None:
        net.then(net.pick("Add", "Mul"), other)


def concat(net: Net) -> None:
    if (other := net.earlier(same=False)) is not None:
        names = [net.now, other] if net.coin() else [other, net.now]
        width = net.channels + net.shapes[other][net.axis]
        net.now = net.add("Concat", names, net.resized(width), axis=net.pick(net.axis, net.axis - len(net.shape)))[0]


def split(net: Net) -> None:
    """Parts that are joined in another order, multiplied, or of which one is left over."""
    c, axis = net.channels, net.axis
    if c < 2:
        return
    first = net.draw(st.integers(1, c - 1))
    a, b = net.add(
        "Split", [net.now, net.ints(first, c - first)], net.resized(first), net.resized(c - first), axis=axis
    )
    match net.pick("swap", "drop", "gate"):
        case "swap":
            net.now = net.add("Concat", [b, a], net.shape, axis=axis)[0]
        case "gate" if first * 2 == c:
            net.now = net.add("Mul", [a, b], net.shapes[a])[0]
        case _:
            net.now = net.pick(a, b)


def slice_(net: Net) -> None:
    c = net.channels
    start, step = net.draw(st.integers(0, c - 1)), net.pick(1, 2)
    stop = net.draw(st.integers(start + 1, c))
    kept = len(range(start, stop, step))
    ends = net.pick(stop, stop - c if stop < c else 2**31)
    net.then("Slice", net.ints(start), net.ints(ends), net.ints(net.axis), net.ints(step), shape=net.resized(kept))


def pad(net: Net) -> None:
    before, after = net.pick(0, 1, 2), net.pick(0, 1, 3)
    pads = [0] * (2 * len(net.shape))
    pads[net.axis], pads[net.axis + len(net.shape)] = before, after
    value = [net.store(np.float32(0.5))] if net.coin() else []
    net.then("Pad", net.ints(*pads), *value, shape=net.resized(net.channels + before + after), mode="constant")


def shared(net: Net) -> None:
    """One stored weight, used twice."""
    c = net.channels
    if len(net.shape) == 4:
        name = net.weight(c, c, 1, 1, fan_in=c)
        for _ in range(2):
            net.then("Conv", name)
    elif net.coin():
        name = net.weight(c, c, fan_in=c)
        for _ in range(2):
            net.then("MatMul", name)
            net.then("Relu")
    else:  # up with a weight, down with the same one transposed
        name = net.weight(c, 6, fan_in=c)
        net.then("MatMul", name, shape=net.resized(6))
        (turned,) = net.add("Transpose", [name], (6, c), perm=[1, 0])
        net.then("MatMul", turned, shape=net.resized(c))


def barrier(net: Net) -> None:
    """An operator that works along the channels."""
    if net.coin():
        net.then("CumSum", net.store(np.int64(net.axis), "k"))
    else:
        net.now, indices = net.add("TopK", [net.now, net.ints(net.channels)], net.shape, net.shape, axis=net.axis)
        del net.shapes[indices]  # whole numbers: no later step can take them


ANYWHERE = (activation, scale, residual, concat, split, slice_, pad, shared, barrier)
STEPS = {
    4: (conv, conv, depthwise, batch_norm, squeeze_and_excite, spatial_gate, pool, shuffle, to_sequence, *ANYWHERE),
    3: (linear, linear, layer_norm, attention, attention, pooled_sequence, *ANYWHERE),
    2: (gemm, gemm, linear, *ANYWHERE),
}
"""What may follow, by rank."""
BEGIN = {4: conv, 3: linear, 2: gemm}
MAXIMUM_CHANNELS = 40


@st.composite
def nets(draw: Draw, shape: Shape) -> tuple[onnx.ModelProto, int]:
    """A valid model, and a seed for what is removed."""
    seed = draw(st.integers(0, 2**16))
    net = Net(draw, np.random.default_rng(seed))
    net.shapes["x"] = shape
    BEGIN[len(net.shape)](net)
    for _ in range(draw(st.integers(1, 9))):
        if net.channels <= MAXIMUM_CHANNELS:
            net.pick(*STEPS[len(net.shape)])(net)
    if not net.coin():  # so that the last step's channels are not the model's output
        BEGIN[len(net.shape)](net)
    if net.now == "x":
        net.then("Identity")
    return net.model(), seed


def check(model: onnx.ModelProto, seed: int) -> int:
    """Both oracles; returns how many groups there are."""
    host = OnnxHost.load(model).folded()
    analysis = analyze_graph(host.graph())
    rng = np.random.default_rng(seed)
    inputs = host.example_inputs(seed)
    kept = {}
    for group in analysis.groups:
        n = rng.integers(1, group.size + 1)
        kept[group.factor] = np.sort(rng.choice(group.size, n, replace=False))
    pruned = host.edited(slice_edits(analysis, kept)).without_dead_nodes()
    removed = masks(analysis, kept)
    shuffled = {group.factor: rng.permutation(group.size) for group in analysis.groups}
    permuted = host.edited(slice_edits(analysis, shuffled))
    for name, value in pruned.graph().values.items():  # the shapes that the edits left are the true ones
        if value.stored:
            assert value.shape == pruned.read(name).shape, name
    if compare("masked", host.run_masked(inputs, removed), pruned.run(inputs)).difference > TOLERANCE:
        expected = host.run_masked(inputs, removed, double=True)
        masked = compare("masked", expected, pruned.run(inputs, double=True))
        assert masked.difference <= TOLERANCE_DOUBLE, masked
    if compare("permutation", host.run(inputs), permuted.run(inputs)).difference > TOLERANCE:
        expected = host.run(inputs, double=True)
        permutation = compare("permutation", expected, permuted.run(inputs, double=True))
        assert permutation.difference <= TOLERANCE_DOUBLE, permutation
    return len(analysis.groups)


@pytest.mark.parametrize(
    ("shape", "n_examples", "expected"),
    [
        (
            (2, 3, 6, 6),
            90,
            {"Conv", "BatchNormalization", "MaxPool", "AveragePool", "Reshape", "Concat", "Split", "Pad"},
        ),
        ((2, 4, 5), 70, {"MatMul", "LayerNormalization", "Softmax", "Transpose", "Slice", "Add", "Mul", "TopK"}),
        ((3, 5), 40, {"Gemm", "Add", "Mul", "Concat", "Split", "CumSum"}),
    ],
    ids=["image", "sequence", "row"],
)
def test_random_nets(shape: Shape, n_examples: int, expected: set[str]) -> None:
    operators, n_groups = Counter[str](), []

    @settings(
        max_examples=n_examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(nets(shape))
    def every(case: tuple[onnx.ModelProto, int]) -> None:
        model, seed = case
        note(onnx.printer.to_text(model.graph))
        operators.update(node.op_type for node in model.graph.node)
        n_groups.append(check(model, seed))

    every()
    assert sum(n > 0 for n in n_groups) > len(n_groups) / 2, "too few of the networks can be pruned"
    assert expected - set(operators) == set(), "an operator was never drawn"
