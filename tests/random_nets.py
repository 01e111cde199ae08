"""Small random ONNX networks: whatever the analysis lets go can be removed, and nothing ever fails.

A network is a chain of steps on one value; steps may join it with earlier values, use a stored weight twice, look
things up, choose experts, or put a barrier in the way. Its structure comes from :class:`Dice`: hypothesis in the tests,
so that a failure shrinks, a seed in ``tools/proofs/random_networks.py``. Its weights come from a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphprune.analysis.groups import analyze_graph
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.passes.slice_groups import slice_edits
from graphprune.passes.verify import verify

Shape = tuple[int, ...]


class Dice(Protocol):
    """Where the structure of a network comes from."""

    def pick(self, *options: Any) -> Any:
        """One of the options."""

    def between(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""


@dataclass
class Seeded:
    """Dice from a seed."""

    rng: np.random.Generator

    def pick(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))


@dataclass
class Net:
    """A network under construction; ``now`` is the value that the next step works on."""

    dice: Dice
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
        return self.dice.pick(*options)

    def coin(self) -> bool:
        return self.dice.between(0, 1) == 1

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
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
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


def grouped_attention(net: Net) -> None:
    """Key-value heads that are repeated, with any of: a bias per head, rotary tables, normalised queries, sinks."""
    n, s, c = net.shape
    shared, repeats, depth = net.pick(1, 2), net.pick(2, 3), 4
    heads = shared * repeats
    tied = net.weight(c, shared * depth, fan_in=c) if net.coin() else None
    rotary = [net.weight(1, 1, s, depth) for _ in range(2)] if net.coin() else []
    gain = net.weight(depth) if net.coin() else None
    parts = []
    for count in (heads, shared, shared):
        width = count * depth
        name = net.weight(c, width, fan_in=c) if count == heads or tied is None else tied
        (part,) = net.add("MatMul", [net.now, name], (n, s, width))
        (part,) = net.add("Reshape", [part, net.ints(0, 0, count, depth)], (n, s, count, depth))
        (part,) = net.add("Transpose", [part], shape := (n, count, s, depth), perm=[0, 2, 1, 3])
        if len(parts) < 2 and gain is not None:
            (part,) = net.add("RMSNormalization", [part, gain], shape, axis=-1)
        if len(parts) < 2 and rotary:
            half = (n, count, s, depth // 2)
            first, second = net.add("Split", [part], half, half, axis=-1, num_outputs=2)
            (turned,) = net.add("Concat", [net.add("Neg", [second], half)[0], first], shape, axis=-1)
            (x,), (y,) = net.add("Mul", [part, rotary[0]], shape), net.add("Mul", [turned, rotary[1]], shape)
            (part,) = net.add("Add", [x, y], shape)
        if count != heads or parts:
            (part,) = net.add("Unsqueeze", [part, net.ints(2)], (n, shared, 1, s, depth))
            (part,) = net.add("Expand", [part, net.ints(n, shared, repeats, s, depth)], (n, shared, repeats, s, depth))
            (part,) = net.add("Reshape", [part, net.ints(n, heads, s, depth)], (n, heads, s, depth))
        parts.append(part)
    (keys,) = net.add("Transpose", [parts[1]], (n, heads, depth, s), perm=[0, 1, 3, 2])
    (scores,) = net.add("MatMul", [parts[0], keys], (n, heads, s, s))
    if net.coin():
        (scores,) = net.add("Add", [scores, net.weight(heads, *net.pick((1, 1), (s, s)))], (n, heads, s, s))
    if net.coin():
        (sinks,) = net.add("Expand", [net.weight(1, heads, 1, 1), net.ints(n, heads, s, 1)], (n, heads, s, 1))
        (scores,) = net.add("Concat", [scores, sinks], (n, heads, s, s + 1), axis=-1)
        (weights,) = net.add("Softmax", [scores], (n, heads, s, s + 1), axis=-1)
        (weights,) = net.add("Slice", [weights, net.ints(0), net.ints(-1), net.ints(-1)], (n, heads, s, s))
    else:
        (weights,) = net.add("Softmax", [scores], (n, heads, s, s), axis=-1)
    (mixed,) = net.add("MatMul", [weights, parts[2]], (n, heads, s, depth))
    (back,) = net.add("Transpose", [mixed], (n, s, heads, depth), perm=[0, 2, 1, 3])
    (joined,) = net.add("Reshape", [back, net.ints(0, 0, -1)], (n, s, heads * depth))
    (net.now,) = net.add("MatMul", [joined, net.weight(heads * depth, c, fan_in=c)], (n, s, c))


def linear_attention(net: Net) -> None:
    """Attention without a softmax over tokens, as einsums; the two projections may be one."""
    n, s, c = net.shape
    width = net.pick(4, 6)
    first = net.weight(c, width, fan_in=c)
    names = [first, first if net.coin() else net.weight(c, width, fan_in=c), net.weight(c, c, fan_in=c)]
    q, k, v = (
        net.add("MatMul", [net.now, name], (n, s, size))[0] for name, size in zip(names, (width, width, c), strict=True)
    )
    if net.coin():
        (q,) = net.add("Softmax", [q], (n, s, width), axis=-1)
    (context,) = net.add("Einsum", [k, v], (n, width, c), equation="nsk,nsv->nkv")
    (net.now,) = net.add("Einsum", [q, context], (n, s, c), equation=net.pick("nsk,nkv->nsv", "...sk,...kv->...sv"))


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


# -- steps on rows or sequences ------------------------------------------------------------------------------------


def experts(net: Net) -> None:
    """A router that chooses experts, whose weights are looked up; or one of them, by its name as a vector."""
    c, hidden, n, k = net.channels, 4, net.pick(3, 4, 6), net.pick(1, 2)
    rows = int(np.prod(net.shape[:-1]))
    shape = net.shape
    (flat,) = net.add("Reshape", [net.now, net.ints(rows, c)], (rows, c))
    (scores,) = net.add("MatMul", [flat, net.weight(c, n, fan_in=c)], (rows, n))
    if net.coin():
        (scores,) = net.add("Softmax", [scores], (rows, n), axis=-1)
    up, down = net.weight(n, c, hidden, fan_in=c), net.weight(n, hidden, c, fan_in=hidden)
    if net.coin():
        gates, chosen = net.add("TopK", [scores, net.ints(k)], (rows, k), (rows, k), axis=-1)
        del net.shapes[chosen]
        (ids,) = net.add("Reshape", [chosen, net.ints(-1)], (rows * k,))
        del net.shapes[ids]
        (x,) = net.add("Unsqueeze", [flat, net.ints(1)], (rows, 1, c))
        (x,) = net.add("Expand", [x, net.ints(rows, k, c)], (rows, k, c))
        (x,) = net.add("Reshape", [x, net.ints(rows * k, 1, c)], (rows * k, 1, c))
        for name, width in ((up, hidden), (down, c)):
            (taken,) = net.add("Gather", [name, ids], (rows * k, *net.stored[name].shape[1:]), axis=0)
            (x,) = net.add("MatMul", [x, taken], (rows * k, 1, width))
            if width == hidden:
                (x,) = net.add("Relu", [x], (rows * k, 1, width))
        (gates,) = net.add("Reshape", [gates, net.ints(-1, 1, 1)], (rows * k, 1, 1))
        (x,) = net.add("Mul", [x, gates], (rows * k, 1, c))
        (x,) = net.add("Reshape", [x, net.ints(rows, k, c)], (rows, k, c))
        (x,) = net.add("ReduceSum", [x, net.ints(1)], (rows, c), keepdims=0)
    else:
        (chosen,) = net.add("ArgMax", [scores], (rows,), axis=-1, keepdims=0)
        (mask,) = net.add("OneHot", [chosen, net.ints(n), net.store(np.array([0, 1], np.float32))], (rows, n))
        del net.shapes[chosen]
        (x,) = net.add("Einsum", [flat, up, mask], (rows, hidden), equation="tc,ech,te->th")
        (x,) = net.add("Einsum", [x, down, mask, scores], (rows, c), equation="th,ehc,te,te->tc")
    (net.now,) = net.add("Reshape", [x, net.ints(*shape)], shape)


# -- steps on anything -------------------------------------------------------------------------------------------


def activation(net: Net) -> None:
    net.then(net.pick("Relu", "Tanh", "Sigmoid", "Gelu", "LeakyRelu"))


def scale(net: Net) -> None:
    """Element-wise with a stored tensor that is broadcast."""
    shape = tuple(size if i == net.axis else 1 for i, size in enumerate(net.shape))
    lead = net.dice.between(0, net.axis)
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
    first = net.dice.between(1, c - 1)
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
    start, step = net.dice.between(0, c - 1), net.pick(1, 2)
    stop = net.dice.between(start + 1, c)
    kept = len(range(start, stop, step))
    ends = net.pick(stop, stop - c if stop < c else 2**31)
    net.then("Slice", net.ints(start), net.ints(ends), net.ints(net.axis), net.ints(step), shape=net.resized(kept))


def pad(net: Net) -> None:
    before, after = net.pick(0, 1, 2), net.pick(0, 1, 3)
    pads = [0] * (2 * len(net.shape))
    pads[net.axis], pads[net.axis + len(net.shape)] = before, after
    value = [net.store(np.float32(0.5))] if net.coin() else []
    net.then("Pad", net.ints(*pads), *value, shape=net.resized(net.channels + before + after), mode="constant")


def look_up(net: Net) -> None:
    """Channels taken by constant positions: rotated, shuffled, some, in any order, some twice."""
    c = net.channels
    places = np.arange(c)
    match net.pick("rotated", "shuffled", "some", "any", "twice"):
        case "rotated":
            places = np.roll(places, net.dice.between(0, c))
        case "shuffled":
            places = places.reshape(net.pick(*_divisors(c)), -1).T.ravel()
        case "some":
            places = places[:: net.pick(1, 2, -1)][: net.dice.between(1, c)]
        case "any":
            places = net.rng.permutation(places)
        case "twice":
            places = net.rng.integers(0, c, c)
    shape = net.resized(len(places))
    if net.coin():
        places = places - c
    net.then("Gather", net.ints(*places.tolist()), shape=shape, axis=net.axis)


def write(net: Net) -> None:
    """Some channels are written over zeros, at constant positions along the first axis."""
    c, axis, rank = net.channels, net.axis, len(net.shape)
    perm = [axis, *(i for i in range(rank) if i != axis)]
    inverse = [perm.index(i) for i in range(rank)]
    first = net.dice.between(0, 2)
    turned = tuple(net.shape[i] for i in perm)
    net.then("Transpose", shape=turned, perm=perm)
    places = net.ints(*range(first, first + c))
    (places,) = net.add("Unsqueeze", [places, net.ints(1)], (c, 1))
    del net.shapes[places]
    zeros = net.store(np.zeros((c + 3, *turned[1:]), np.float32))
    net.now = net.add("ScatterND", [zeros, places, net.now], (c + 3, *turned[1:]))[0]
    back = (c + 3, *turned[1:])
    net.then("Transpose", shape=tuple(back[i] for i in inverse), perm=inverse)


def unknown(net: Net) -> None:
    """An operator for which there is no rule."""
    lengths = net.ints(*[net.shape[1]] * net.shape[0])
    net.then("ReverseSequence", lengths, batch_axis=0, time_axis=1)


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


ANYWHERE = (activation, scale, residual, concat, split, slice_, pad, shared, barrier, look_up, write, unknown)
STEPS = {
    4: (
        conv,
        conv,
        depthwise,
        batch_norm,
        squeeze_and_excite,
        spatial_gate,
        pool,
        pool,
        shuffle,
        to_sequence,
        *ANYWHERE,
    ),
    3: (
        linear,
        linear,
        layer_norm,
        attention,
        grouped_attention,
        linear_attention,
        experts,
        pooled_sequence,
        *ANYWHERE,
    ),
    2: (gemm, gemm, linear, experts, *ANYWHERE),
}
"""What may follow, by rank."""
BEGIN = {4: conv, 3: linear, 2: gemm}
MAXIMUM_CHANNELS = 40


def build(dice: Dice, shape: Shape) -> tuple[onnx.ModelProto, int]:
    """A valid model on an input of this shape, and a seed for what is removed."""
    seed = dice.between(0, 2**16)
    net = Net(dice, np.random.default_rng(seed))
    net.shapes["x"] = shape
    BEGIN[len(net.shape)](net)
    for _ in range(dice.between(1, 9)):
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
    kept = {}
    for group in analysis.groups:
        n = group.at_least(int(rng.integers(1, group.size + 1)))
        kept[group.factor] = np.sort(rng.choice(group.size, n, replace=False))
    pruned = host.edited(slice_edits(analysis, kept)).without_dead_nodes()
    for name, value in pruned.graph().values.items():  # the shapes that the edits left are the true ones
        if value.stored:
            assert value.shape == pruned.read(name).shape, name
    for found in verify(host, pruned, analysis, kept, seed=seed):
        assert found.difference <= found.tolerance, found
    return len(analysis.groups)
