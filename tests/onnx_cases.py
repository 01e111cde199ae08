"""One or more calls of every ONNX operator in the table, as data for ``test_onnx_ops.py``.

Tensors are written as shapes: ``F(2, 3)`` floating point in (0.1, 0.9), ``W(2, 3)`` the same as a stored weight,
``I(5, 2, 3)`` integers below 5 of shape (2, 3), ``B(2, 3)`` booleans. ``V(1, 2)`` is the constant vector [1, 2] and
``S(2)`` a constant scalar, both int64; ``X`` is an absent operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """An operand, to be filled at random or with the values given."""

    kind: str
    shape: tuple[int, ...]
    high: int = 0
    values: Any = None

    @property
    def constant(self) -> bool:
        """Whether it is an initializer of the model."""
        return self.kind in ("constant", "weight")

    def __str__(self) -> str:
        if self.values is not None and np.size(self.values) < 8:
            return str(np.asarray(self.values).tolist()).replace(" ", "")
        return "x".join(map(str, self.shape)) or "."

    def make(self, rng: np.random.Generator) -> np.ndarray:
        """The array, float64 where it is floating point."""
        match self.kind:
            case "float" | "weight":
                return 0.1 + 0.8 * rng.random(self.shape)
            case "int":
                return rng.integers(0, self.high, self.shape)
            case "bool":
                return rng.random(self.shape) < 0.5
            case "int8":
                return rng.integers(-9, 9, self.shape).astype(np.int8)
            case _:
                return np.asarray(self.values)


def F(*shape: int) -> Tensor:
    return Tensor("float", shape)


def W(*shape: int) -> Tensor:
    return Tensor("weight", shape)


def I(high: int, *shape: int) -> Tensor:  # noqa: E743
    return Tensor("int", shape, high)


def B(*shape: int) -> Tensor:
    return Tensor("bool", shape)


def Q(*shape: int) -> Tensor:
    return Tensor("int8", shape)


def V(*values: int) -> Tensor:
    return Tensor("constant", (len(values),), values=np.array(values, dtype=np.int64))


def S(value: float) -> Tensor:
    dtype = np.int64 if isinstance(value, int) else np.float64
    return Tensor("constant", (), values=np.array(value, dtype=dtype))


def Z(*values: int) -> Tensor:
    """Zero points: int8."""
    shape = () if len(values) == 1 else (len(values),)
    return Tensor("constant", shape, values=np.array(values, dtype=np.int8).reshape(shape))


def R(*values: float) -> Tensor:
    """A constant vector of floats (scales of a resize), always float32."""
    return Tensor("constant", (len(values),), values=np.array(values, dtype=np.float32))


X = None
"""An absent operand."""


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        op: The operator.
        operands: Tensors, or ``None`` where one is absent.
        attributes: Of the node.
        opset: Of the default domain.
        runtime: ``reference`` (onnx's evaluator, float64) or ``onnxruntime`` (float32).
        used: Which results are used; all of them if ``None``.
        n_results: How many results the node has.
        note: Tells cases of one operator apart.
    """

    op: str
    operands: tuple[Tensor | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    runtime: str = "reference"
    used: tuple[int, ...] | None = None
    n_results: int = 1
    note: str = ""

    @property
    def id(self) -> str:
        """A name of its own."""
        shapes = " ".join("-" if tensor is None else str(tensor) for tensor in self.operands)
        attributes = " ".join(f"{name}={value}" for name, value in self.attributes.items())
        return f"{self.op}-{self.opset}({shapes}{' ' if attributes else ''}{attributes}){self.note}"


def case(
    op: str,
    *operands: Tensor | None,
    opset: int = 20,
    runtime: str = "reference",
    used: Sequence[int] | None = None,
    n_results: int = 1,
    note: str = "",
    **attributes: Any,
) -> Case:
    return Case(op, operands, attributes, opset, runtime, None if used is None else tuple(used), n_results, note)


ORT = {"runtime": "onnxruntime"}

UNARY = [
    "Abs",
    "Neg",
    "Sign",
    "Ceil",
    "Floor",
    "Round",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Log",
    "Sin",
    "Cos",
    "Tan",
    "Sinh",
    "Cosh",
    "Tanh",
    "Asin",
    "Acos",
    "Atan",
    "Asinh",
    "Atanh",
    "Erf",
    "IsNaN",
    "IsInf",
    "Relu",
    "LeakyRelu",
    "ThresholdedRelu",
    "Elu",
    "Celu",
    "Selu",
    "Gelu",
    "Mish",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Softplus",
    "Softsign",
    "Shrink",
    "Identity",
]

CASES: tuple[Case, ...] = (
    # weighted sums
    case("Conv", F(2, 4, 6, 6), W(6, 4, 3, 3), W(6), **ORT),
    case("Conv", F(2, 4, 6, 6), W(4, 4, 3, 3), X, pads=[1, 1, 1, 1], strides=[2, 2], **ORT),
    case("Conv", F(2, 6, 6, 6), W(9, 2, 3, 3), W(9), group=3, **ORT),
    case("Conv", F(2, 4, 6, 6), W(4, 1, 3, 3), group=4, note="depthwise", **ORT),
    case("Conv", F(2, 4, 8), W(6, 4, 3), dilations=[2], **ORT),
    case("Conv", F(2, 3, 4, 4, 4), W(4, 3, 2, 2, 2), **ORT),
    case("ConvTranspose", F(2, 4, 5, 5), W(4, 6, 3, 3), W(6), strides=[2, 2], **ORT),
    case("ConvTranspose", F(2, 6, 5, 5), W(6, 2, 2, 2), group=3, **ORT),
    case("Gemm", F(3, 4), W(4, 5), W(5)),
    case("Gemm", F(4, 3), W(5, 4), W(3, 1), transA=1, transB=1, alpha=0.5),
    case("Gemm", F(4, 4), W(4, 4)),
    case("Gemm", F(3, 4), W(4, 5), W(1)),
    case("MatMul", F(2, 3, 4), W(4, 5)),
    case("MatMul", F(2, 3, 4, 6), F(2, 3, 6, 4)),
    case("MatMul", F(1, 3, 4, 4), F(2, 1, 4, 4), note="broadcast"),
    case("MatMul", F(4), F(2, 4, 3)),
    case("MatMul", F(2, 3, 4), F(4)),
    case("Einsum", F(3, 5, 5), equation="bii->bi"),
    case("Einsum", F(2, 3, 4, 6), F(2, 3, 5, 6), equation="...qd,...kd->...qk"),
    case("Einsum", F(3, 4, 6), F(6, 5), equation="...i,ij"),
    case("Einsum", F(2, 3, 4), W(4, 5), equation="bsd,de->bse"),
    case("Einsum", F(2, 3, 4, 5), F(2, 3, 6, 5), equation="bhqd,bhkd->bhqk"),
    case("Attention", F(2, 4, 5, 6), F(2, 4, 7, 6), F(2, 4, 7, 3), opset=23),
    case("Attention", F(2, 6, 5, 4), F(2, 2, 5, 4), F(2, 2, 5, 4), opset=23, note="grouped queries"),
    case("Attention", F(2, 4, 5, 6), F(2, 4, 7, 6), F(2, 4, 7, 3), F(5, 7), opset=23, scale=0.3),
    case("Attention", F(2, 4, 5, 6), F(2, 4, 5, 6), F(2, 4, 5, 6), opset=23, is_causal=1),
    case("Attention", F(2, 5, 12), F(2, 7, 6), F(2, 7, 6), opset=23, q_num_heads=6, kv_num_heads=3, note="packed"),
    case(
        "LSTM",
        F(5, 2, 6),
        W(1, 16, 6),
        W(1, 16, 4),
        W(1, 32),
        X,
        F(1, 2, 4),
        F(1, 2, 4),
        hidden_size=4,
        n_results=3,
        **ORT,
    ),
    case(
        "LSTM",
        F(5, 2, 6),
        W(2, 16, 6),
        W(2, 16, 4),
        W(2, 32),
        X,
        F(2, 2, 4),
        F(2, 2, 4),
        W(2, 12),
        hidden_size=4,
        direction="bidirectional",
        n_results=3,
        **ORT,
    ),
    case("GRU", F(5, 2, 6), W(1, 12, 6), W(1, 12, 4), W(1, 24), X, F(1, 2, 4), hidden_size=4, n_results=2, **ORT),
    case("RNN", F(5, 2, 6), W(1, 4, 6), W(1, 4, 4), hidden_size=4, n_results=2, **ORT),
    # normalisations
    case("BatchNormalization", F(2, 4, 3, 3), W(4), W(4), W(4), W(4)),
    case("BatchNormalization", F(4, 4), W(4), W(4), W(4), W(4), opset=9, **ORT),
    case("InstanceNormalization", F(2, 4, 3, 5), W(4), W(4)),
    case("LayerNormalization", F(2, 3, 4), W(4), W(4)),
    case("LayerNormalization", F(3, 3, 4), W(3, 4), axis=1),
    case("RMSNormalization", F(3, 3, 4), W(4), opset=23),
    case("GroupNormalization", F(2, 6, 4), W(6), W(6), num_groups=3, opset=21),
    case("GroupNormalization", F(2, 6, 4), W(3), W(3), num_groups=3, opset=18),
    case("LpNormalization", F(4, 4, 3), axis=1),
    case("MeanVarianceNormalization", F(2, 4, 3, 3), **ORT),
    case("LRN", F(4, 4, 3, 3), size=3, **ORT),
    # element-wise with broadcasting
    case("Add", F(2, 4, 3, 3), W(4, 1, 1)),
    case("Add", F(4, 4), F(4, 4)),
    case("Sub", F(2, 1, 3), F(1, 4, 3)),
    case("Mul", F(2, 4, 3), S(0.5)),
    case("Div", F(2, 4, 4), F(4, 4)),
    case("Mod", I(9, 4, 4), V(3, 2, 5, 4)),
    case("Pow", F(4, 4), S(2.0)),
    case("Sum", F(4, 4), F(4, 4), F(4)),
    case("Mean", F(4, 4), F(4)),
    case("Max", F(4, 4), F(4, 4)),
    case("Min", F(4, 4), F(4, 1)),
    case("Where", B(4, 4), F(4, 4), F(1)),
    case("Equal", I(3, 4, 4), I(3, 4, 4)),
    case("Less", F(4, 4), F(4, 4)),
    case("LessOrEqual", F(4, 4), F(4)),
    case("Greater", F(4, 4), F(4, 4)),
    case("GreaterOrEqual", F(4, 4), F(4)),
    case("And", B(4, 4), B(4, 4)),
    case("Or", B(4, 4), B(4)),
    case("Xor", B(4, 4), B(4, 4)),
    case(
        "BitShift",
        Tensor("uint", (4, 4), values=np.arange(16, dtype=np.uint32).reshape(4, 4)),
        Tensor("uint", (4,), values=np.array([1, 2, 0, 3], dtype=np.uint32)),
        direction="LEFT",
    ),
    case("BitwiseAnd", I(9, 4, 4), I(9, 4, 4)),
    case("BitwiseOr", I(9, 4, 4), I(9, 4)),
    case("BitwiseXor", I(9, 4, 4), I(9, 4, 4)),
    case("PRelu", F(2, 4, 4), W(4, 1)),
    case("Clip", F(4, 4), S(0.2), S(0.6)),
    case("Clip", F(4, 4), min=0.2, max=0.6, opset=9),
    # element-wise, one operand
    *(case(op, F(4, 4)) for op in UNARY),
    case("Acosh", Tensor("big", (4, 4), values=1.5 + np.arange(16.0).reshape(4, 4))),
    case("Not", B(4, 4)),
    case("BitwiseNot", I(9, 4, 4)),
    case("Swish", F(4, 4), opset=24),
    case("Cast", F(4, 4), to=11),
    case("CastLike", F(4, 4), I(3, 2)),
    case("Dropout", F(4, 4)),
    case("Dropout", F(4, 4), S(0.5)),
    case("QuantizeLinear", F(4, 4), S(0.05), Z(3)),
    case("QuantizeLinear", F(4, 4), W(4), Z(1, 2, 3, 4), axis=0),
    case("DequantizeLinear", Q(4, 4), W(4), Z(1, 2, 3, 4), axis=1),
    case("DequantizeLinear", Q(4, 4), S(0.1)),
    case("RotaryEmbedding", F(2, 3, 4, 6), W(9, 3), W(9, 3), I(9, 2, 4), opset=23),
    case("RotaryEmbedding", F(2, 3, 4, 6), F(2, 4, 3), F(2, 4, 3), opset=23, interleaved=1),
    # along some axes
    case("Softmax", F(4, 4, 3), axis=1),
    case("Softmax", F(4, 4, 3), axis=1, opset=11),
    case("LogSoftmax", F(4, 4)),
    case("Hardmax", F(4, 4)),
    case("MaxPool", F(2, 4, 6, 6), kernel_shape=[2, 2], strides=[2, 2], **ORT),
    case("MaxPool", F(4, 4, 6), kernel_shape=[3], n_results=2, **ORT),
    case("AveragePool", F(4, 4, 6, 6), kernel_shape=[2, 2], **ORT),
    case("LpPool", F(4, 4, 6), kernel_shape=[2], **ORT),
    case("GlobalAveragePool", F(4, 4, 3, 3)),
    case("GlobalMaxPool", F(4, 4, 3, 3)),
    case("GlobalLpPool", F(4, 4, 3, 3), **ORT),
    case("Resize", F(4, 4, 3, 3), X, R(1, 1, 2, 2), mode="nearest"),
    case("Resize", F(4, 4, 3, 3), X, X, V(4, 4, 6, 5), mode="linear"),
    case("Resize", F(4, 4, 3, 3), X, X, V(4, 6, 6), mode="linear", axes=[1, 2, 3]),
    case("Upsample", F(4, 4, 3, 3), R(1, 1, 2, 2), opset=9, mode="nearest", **ORT),
    case("CumSum", F(4, 4), S(1)),
    case("CumProd", F(4, 4), S(1), opset=26),
    case("TopK", F(4, 4, 5), V(2), n_results=2),
    case("TopK", F(6, 4), V(3), axis=0, largest=0, n_results=2),
    case("CumSum", F(4, 6), S(1), reverse=1, exclusive=1),
    case("Softmax", F(4, 6, 4), axis=1, opset=17),
    case("Trilu", F(4, 4, 4)),
    case("GridSample", F(3, 3, 4, 4), F(3, 5, 6, 2)),
    # reductions
    case("ReduceSum", F(4, 4, 3), V(1), keepdims=0),
    case("ReduceSum", F(4, 5, 3), keepdims=0),
    case("ReduceSum", F(4, 4, 3), noop_with_empty_axes=1),
    case("ReduceSum", F(4, 4, 3), axes=[0, 2], opset=11),
    case("ReduceL1", F(4, 4), V(1)),
    case("ReduceL2", F(4, 4), V(1)),
    case("ReduceSumSquare", F(4, 4), V(-1)),
    case("ReduceLogSum", F(4, 4), V(1)),
    case("ReduceMean", F(4, 4, 3), V(2)),
    case("ReduceMean", F(4, 4, 3), axes=[1], opset=13, keepdims=0),
    case("ReduceMax", F(4, 4, 3), V(2)),
    case("ReduceMin", F(4, 4, 3), V(2)),
    case("ReduceProd", F(4, 4, 3), V(2)),
    case("ReduceLogSumExp", F(4, 4, 3), V(2)),
    case("ArgMax", F(4, 4, 3), axis=2),
    case("ArgMin", F(4, 4, 3), axis=0, keepdims=0),
    # rearranging
    case("Reshape", F(2, 3, 12), V(2, 3, 4, 3)),
    case("Reshape", F(2, 3, 12), V(0, 0, 4, -1)),
    case("Reshape", F(4, 4, 4), V(4, 16)),
    case("Reshape", F(4, 6), V(8, 3)),
    case("Reshape", F(4, 6), V(4, 1, 6), allowzero=1),
    case("Flatten", F(4, 4, 4)),
    case("Squeeze", F(4, 1, 4), V(1)),
    case("Squeeze", F(4, 1, 4), axes=[1], opset=11),
    case("Unsqueeze", F(4, 4), V(0, 2)),
    case("Unsqueeze", F(4, 4), axes=[1], opset=11),
    case("Transpose", F(4, 4, 4), perm=[2, 0, 1]),
    case("Transpose", F(4, 4)),
    case("Expand", F(4, 1, 4), V(4, 3, 4)),
    case("Expand", F(4, 1, 4), V(3, 1), note="short"),
    case("Expand", F(4, 1), V(2, 4, 5), note="long"),
    case("Tile", F(4, 3), V(1, 2)),
    case("DepthToSpace", F(4, 12, 4, 3), blocksize=2),
    case("DepthToSpace", F(4, 12, 4, 3), blocksize=2, mode="CRD"),
    case("SpaceToDepth", F(4, 4, 4, 6), blocksize=2),
    # joining and taking parts
    case("Concat", F(4, 4, 3), F(4, 2, 3), axis=1),
    case("Concat", F(4, 4), F(4, 4), axis=-1),
    case("Split", F(4, 6), V(2, 4), axis=1, n_results=2),
    case("Split", F(4, 6), axis=1, num_outputs=3, n_results=3),
    case("Split", F(4, 7), axis=1, num_outputs=2, n_results=2),
    case("Split", F(4, 6), axis=1, n_results=2, opset=13),
    case("Split", F(6, 4), axis=0, split=[2, 4], n_results=2, opset=11),
    case("Split", F(4, 6), axis=1, n_results=2, opset=11),
    case("Slice", F(4, 6), V(1), V(4), V(1)),
    case("Slice", F(6, 6), V(2, -4), V(9223372036854775807, -1), V(0, 1)),
    case("Slice", F(6, 6), V(0), V(6), V(1), V(2)),
    case("Slice", F(6, 4), V(-1), V(-9223372036854775808), V(0), V(-1)),
    case("Slice", F(4, 6), V(0, 1), V(4, 5)),
    case("Slice", F(4, 6), starts=[1], ends=[4], axes=[1], opset=9),
    case("Pad", F(4, 4, 3), V(0, 1, 0, 0, 2, 0), S(0.5)),
    case("Pad", F(4, 4, 3), V(1, 2), X, V(2)),
    case("Pad", F(4, 4, 3), V(0, 0, 1, 0, 0, 1), mode="reflect"),
    case("Pad", F(4, 4), pads=[0, 1, 0, 1], opset=10, **ORT),
    case("Pad", F(6, 4), V(-2, 0, -1, 0), **ORT),
    # looking up
    case("Gather", W(5, 4), I(5, 2, 4)),
    case("Gather", F(4, 4, 3), S(1), axis=1),
    case("GatherElements", F(4, 4), I(4, 4, 3), axis=1),
    case("GatherElements", F(4, 4), I(4, 3, 3), axis=1),
    case("GatherND", F(4, 4, 3), I(3, 4, 2)),
    case("GatherND", F(6, 4), I(6, 3, 1)),
    case("Gather", F(4, 6, 3), I(6, 2, 5), axis=1),
    case("GatherND", F(4, 4, 3), I(3, 4, 1), batch_dims=1),
    case("ScatterElements", F(4, 4), I(4, 4, 1), F(4, 1), axis=1),
    case("ScatterElements", F(4, 4), I(3, 2, 4), F(2, 4), axis=1),
    case("ScatterND", F(4, 4, 3), V(1, 3), F(3), note="vector"),
    case("OneHot", I(4, 4, 4), S(4), V(0, 1)),
    case("OneHot", I(6, 4, 3), S(6), V(0, 1), axis=1),
    case("OneHot", I(4, 4, 4), S(4), V(0, 1), axis=0),
    # made from sizes
    case("Shape", F(4, 4)),
    case("Size", F(4, 4)),
    case("Range", S(0), S(5), S(1)),
    case("ConstantOfShape", V(4, 4)),
    case("EyeLike", F(4, 4)),
    case("Constant", value_ints=[1, 2]),
    # what depends on data
    case("NonZero", F(4, 4)),
    case("NonMaxSuppression", F(1, 4, 4), F(1, 1, 4), S(3), **ORT),
    case("Compress", F(4, 4), B(4), axis=1),
    case("Unique", F(4)),
)
"""The table of calls."""
