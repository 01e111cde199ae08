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
            case "uint8":
                return rng.integers(0, 255, self.shape).astype(np.uint8)
            case "int32":
                return rng.integers(-99, 99, self.shape).astype(np.int32)
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


def U(*shape: int) -> Tensor:
    """Quantised activations or weights: uint8."""
    return Tensor("uint8", shape)


def L(*shape: int) -> Tensor:
    """Biases of quantised layers: int32."""
    return Tensor("int32", shape)


def D(values: Any, dtype: Any = np.uint8) -> Tensor:
    """A constant of the type given, zero points by default."""
    array = np.asarray(values, dtype=dtype)
    return Tensor("constant", array.shape, values=array)


def A(values: Any, dtype: Any = np.float64) -> Tensor:
    """Data with the values given, not stored."""
    array = np.asarray(values, dtype=dtype)
    return Tensor("given", array.shape, values=array)


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
        zeros: What a removed unit of an operand holds where it is not 0: zero points.
        mixed: Names of factors that the operator both sums over and makes.
    """

    op: str
    operands: tuple[Tensor | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    runtime: str = "reference"
    used: tuple[int, ...] | None = None
    n_results: int = 1
    note: str = ""
    zeros: dict[int, int] = field(default_factory=dict)
    mixed: tuple[str, ...] = ()

    @property
    def domain(self) -> str:
        """The domain of the operator."""
        return self.op.rpartition("::")[0]

    @property
    def op_type(self) -> str:
        """The operator without its domain."""
        return self.op.rpartition("::")[2]

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
    zeros: dict[int, int] | None = None,
    mixed: tuple[str, ...] = (),
    **attributes: Any,
) -> Case:
    taken = None if used is None else tuple(used)
    return Case(op, operands, attributes, opset, runtime, taken, n_results, note, zeros or {}, mixed)


ORT = {"runtime": "onnxruntime"}
LATIN = [[((i + j) % 6) / 5 for j in range(6)] for i in range(6)]
"""Every row and column holds the smallest and the largest number, so that cutting changes no dynamic scale."""


def ms(op: str, *operands: Tensor | None, **options: Any) -> Case:
    """A call of one of onnxruntime's own operators."""
    return case(f"com.microsoft::{op}", *operands, **ORT, **options)


def ml(op: str, *operands: Tensor | None, **options: Any) -> Case:
    """A call of an operator for classic models."""
    return case(f"ai.onnx.ml::{op}", *operands, **ORT, **options)


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
    case("LpNormalization", F(4, 4, 3), axis=1, mixed=("x1",)),
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
    case("ScatterND", F(4, 4, 3), I(4, 6, 2), F(6, 3), note="coordinates"),
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
    # further operators of the default domain
    case("SimplifiedLayerNormalization", F(3, 3, 4), W(4), axis=-1, **ORT),
    case("SwiGLU", F(4, 4), F(4, 4), opset=28),
    case("BitCast", F(4, 4), to=7, opset=26),
    case(
        "LinearAttention",
        F(2, 3, 12),
        F(2, 3, 6),
        F(2, 3, 10),
        q_num_heads=4,
        kv_num_heads=2,
        update_rule="linear",
        opset=27,
        n_results=2,
    ),
    case(
        "LinearAttention",
        F(2, 3, 12),
        F(2, 3, 6),
        F(2, 3, 10),
        F(2, 2, 3, 5),
        F(2, 3, 6),
        F(2, 3, 2),
        q_num_heads=4,
        kv_num_heads=2,
        scale=0.4,
        opset=27,
        n_results=2,
    ),
    case("CausalConvWithState", F(2, 4, 6), W(4, 1, 3), W(4), opset=27, n_results=2),
    case("CausalConvWithState", F(2, 4, 6), W(4, 1, 3), X, F(2, 4, 2), opset=27, n_results=2, activation="silu"),
    case("DeformConv", F(2, 4, 6, 6), W(4, 4, 3, 3), F(2, 18, 4, 4), W(4), F(2, 9, 4, 4), opset=22),
    case("DeformConv", F(2, 4, 6, 6), W(6, 2, 3, 3), F(2, 36, 4, 4), opset=22, group=2, offset_group=2),
    case(
        "RoiAlign",
        F(3, 4, 6, 6),
        Tensor("given", (2, 4), values=np.array([[0.0, 0, 3, 4], [1.0, 1, 4, 4]])),
        I(3, 2),
        output_height=2,
        output_width=3,
    ),
    case(
        "MaxRoiPool",
        F(3, 4, 6, 6),
        Tensor("given", (2, 5), values=np.array([[0.0, 0, 0, 3, 4], [2, 1, 1, 4, 4]])),
        pooled_shape=[2, 3],
        **ORT,
    ),
    case("Col2Im", F(2, 12, 9), V(4, 4), V(2, 2)),
    case("CenterCropPad", F(4, 6, 4), V(4, 6), axes=[1, 2]),
    case("DFT", F(3, 4, 5, 1), X, S(1)),
    case("DFT", F(3, 4, 5, 1), axis=2, opset=17),
    case("Det", F(4, 3, 3)),
    case("STFT", F(2, 16, 1), S(4), X, S(8), **ORT),
    case("MaxUnpool", F(1, 1, 2, 2), A([[[[5, 7], [13, 15]]]], np.int64), kernel_shape=[2, 2], strides=[2, 2], **ORT),
    case("AffineGrid", F(2, 2, 3), V(2, 3, 4, 5)),
    case("ReverseSequence", F(5, 4, 3), A([5, 2, 3, 1], np.int64)),
    case("TensorScatter", F(3, 4, 6, 5), F(3, 4, 2, 5), A([1, 0, 3], np.int64), opset=24),
    case("Scatter", F(4, 4), I(4, 4, 1), F(4, 1), axis=1, opset=10, **ORT),
    case("HannWindow", S(5)),
    case("HammingWindow", S(5)),
    case("BlackmanWindow", S(5)),
    case("MelWeightMatrix", S(4), S(16), S(8000), A(20.0, np.float32), A(4000.0, np.float32), **ORT),
    case("NegativeLogLikelihoodLoss", F(4, 5), I(5, 4)),
    case("SoftmaxCrossEntropyLoss", F(4, 5), I(5, 4)),
    # attention with a cache
    case(
        "Attention",
        F(2, 4, 3, 6),
        F(2, 4, 3, 6),
        F(2, 4, 3, 5),
        F(3, 7),
        F(2, 4, 4, 6),
        F(2, 4, 4, 5),
        opset=23,
        n_results=3,
    ),
    case(
        "Attention",
        F(2, 3, 12),
        F(2, 3, 6),
        F(2, 3, 6),
        X,
        F(2, 2, 4, 3),
        F(2, 2, 4, 3),
        opset=24,
        q_num_heads=4,
        kv_num_heads=2,
        is_causal=1,
        n_results=3,
    ),
    case("RotaryEmbedding", F(2, 4, 18), W(9, 3), W(9, 3), I(9, 2, 4), opset=23, num_heads=3),
    case("RotaryEmbedding", F(2, 3, 4, 6), W(9, 2), W(9, 2), I(9, 2, 4), opset=23, rotary_embedding_dim=4),
    # quantised, default domain
    case("DequantizeLinear", Q(8, 4), W(2, 4), axis=0, block_size=4, opset=21),
    case("QuantizeLinear", F(4, 8), W(4, 2), D([[1, 2], [3, 4], [5, 6], [7, 8]]), axis=1, block_size=4, opset=21),
    case("DynamicQuantizeLinear", A(LATIN), n_results=3, **ORT),
    case(
        "QLinearConv",
        U(2, 4, 5, 5),
        S(0.02),
        D(120),
        U(6, 4, 3, 3),
        S(0.01),
        D(100),
        S(0.9),
        D(90),
        L(6),
        zeros={0: 120, 3: 100},
        **ORT,
    ),
    case(
        "QLinearConv",
        U(2, 6, 5, 5),
        S(0.02),
        D(120),
        Q(6, 3, 3, 3),
        W(6),
        D([0] * 6, np.int8),
        S(3.0),
        D(90),
        group=2,
        zeros={0: 120},
        **ORT,
    ),
    case(
        "QLinearMatMul",
        U(3, 4, 6),
        S(0.02),
        D(120),
        U(6, 4),
        W(4),
        D([100, 3, 5, 7]),
        S(0.9),
        D(90),
        zeros={0: 120},
        **ORT,
    ),
    case("ConvInteger", U(2, 4, 5, 5), U(6, 4, 3, 3), D(7), D(9), zeros={0: 7, 1: 9}, **ORT),
    case("MatMulInteger", U(4, 6), U(6, 4), D(7), D([1, 2, 3, 4]), zeros={0: 7}, **ORT),
    case("MatMulInteger", U(2, 4, 6), Q(6, 4), **ORT),
    # onnxruntime's own: fused
    ms("FusedConv", F(2, 4, 6, 6), W(4, 4, 3, 3), W(4), F(2, 4, 4, 4), activation="Relu"),
    ms("FusedConv", F(2, 6, 6, 6), W(9, 2, 3, 3), W(9), group=3, activation="LeakyRelu", activation_params=[0.1]),
    ms("FusedGemm", F(4, 4), W(5, 4), W(5), transB=1, activation="Relu"),
    ms("FusedMatMul", F(2, 4, 3), W(5, 4), transA=1, transB=1, alpha=0.5),
    ms("FusedMatMul", F(2, 3, 4, 6), F(2, 3, 4, 6), transB=1),
    ms("TransposeMatMul", F(4, 3), W(4, 5), transA=1),
    ms("BiasGelu", F(3, 4, 4), W(4)),
    ms("FastGelu", F(3, 4, 4), W(4)),
    ms("Gelu", F(4, 4)),
    ms("QuickGelu", F(4, 4), alpha=1.7),
    ms("SkipLayerNormalization", F(3, 3, 4), F(3, 3, 4), W(4), W(4), W(4), n_results=4, used=[0, 3]),
    ms("SkipLayerNormalization", F(3, 3, 4), F(1, 3, 4), W(4), W(4)),
    ms("SkipSimplifiedLayerNormalization", F(3, 3, 4), F(3, 3, 4), W(4), n_results=4, used=[0, 3]),
    ms(
        "EmbedLayerNormalization",
        D([[1, 2, 3], [4, 0, 1]], np.int32),
        D([[0, 1, 1], [1, 0, 1]], np.int32),
        W(5, 4),
        W(6, 4),
        W(2, 4),
        W(4),
        W(4),
        n_results=3,
    ),
    ms("Attention", F(2, 5, 8), W(8, 36), W(36), num_heads=3),
    ms("Attention", F(2, 5, 8), W(8, 40), W(40), num_heads=4, qkv_hidden_sizes=[8, 8, 24], scale=0.3),
    ms(
        "Attention", F(2, 5, 8), W(8, 24), W(24), D([[1] * 5, [1, 1, 1, 0, 0]], np.int32), num_heads=4, unidirectional=1
    ),
    ms(
        "QAttention",
        U(2, 5, 8),
        U(8, 36),
        W(36),
        S(0.02),
        S(0.01),
        X,
        D(120),
        D(110),
        num_heads=3,
        zeros={0: 120, 1: 110},
    ),
    ms("MultiHeadAttention", F(2, 5, 12), F(2, 7, 12), F(2, 7, 8), W(32), num_heads=4),
    ms("MultiHeadAttention", F(2, 5, 12), F(2, 4, 7, 3), F(2, 4, 7, 3), X, X, F(1, 4, 5, 7), num_heads=4, mixed=("d",)),
    ms(
        "MultiHeadAttention",
        F(2, 5, 12),
        F(2, 5, 12),
        F(2, 5, 12),
        X,
        X,
        X,
        F(2, 4, 3, 3),
        F(2, 4, 3, 3),
        num_heads=4,
        n_results=3,
        scale=0.3,
        mixed=("d",),
    ),
    ms("MultiHeadAttention", F(2, 5, 12), F(2, 5, 12), F(2, 5, 12), num_heads=4, unidirectional=1),
    ms(
        "GroupQueryAttention",
        F(2, 5, 32),
        F(2, 5, 16),
        F(2, 5, 16),
        X,
        X,
        D([4, 4], np.int32),
        D(5, np.int32),
        num_heads=4,
        kv_num_heads=2,
        n_results=3,
    ),
    ms(
        "GroupQueryAttention",
        F(2, 5, 128),
        X,
        X,
        X,
        X,
        D([4, 4], np.int32),
        D(5, np.int32),
        W(9, 8),
        W(9, 8),
        num_heads=4,
        kv_num_heads=2,
        do_rotary=1,
        n_results=3,
    ),
    ms("RotaryEmbedding", F(2, 3, 4, 6), A([[0, 1, 2, 3], [3, 2, 1, 0]], np.int64), W(9, 3), W(9, 3)),
    ms("RotaryEmbedding", F(2, 4, 18), A([[0, 1, 2, 3], [3, 2, 1, 0]], np.int64), W(9, 3), W(9, 3), interleaved=1),
    ms("RotaryEmbedding", F(2, 4, 18), A([1], np.int64), W(9, 2), W(9, 2), num_heads=3, rotary_embedding_dim=4),
    ms("MoE", F(4, 6), F(4, 3), W(3, 8, 6), W(3, 8), W(3, 6, 8), W(3, 6), k=2, activation_type="relu"),
    ms("NhwcMaxPool", U(4, 6, 6, 4), kernel_shape=[2, 2]),
    ms("ExpandDims", F(4, 4), D(1, np.int32)),
    ms("Inverse", F(4, 3, 3)),
    ms("GridSample", F(3, 3, 4, 4), F(3, 5, 6, 2)),
    ms("Trilu", F(4, 4, 4)),
    ms("GatherND", F(4, 4, 3), I(3, 4, 2)),
    # onnxruntime's own: quantised
    ms(
        "QLinearConv",
        U(2, 5, 5, 4),
        S(0.02),
        D(120),
        Q(6, 4, 3, 3),
        W(6),
        D([0] * 6, np.int8),
        S(3.0),
        D(90),
        L(6),
        channels_last=1,
        zeros={0: 120},
    ),
    ms("QLinearGlobalAveragePool", U(4, 5, 5, 4), S(0.02), D(120), S(0.02), D(100), channels_last=1),
    ms("QGemm", U(4, 6), S(0.02), D(120), Q(6, 4), W(4), D([0] * 4, np.int8), L(4), S(0.9), D(90), zeros={0: 120}),
    ms("QGemm", U(4, 6), S(0.02), D(120), U(4, 6), S(0.01), D(100), transB=1, zeros={0: 120, 3: 100}),
    ms("QLinearAdd", U(4, 4), S(0.02), D(120), U(4), S(0.01), D(100), S(0.03), D(90)),
    ms("QLinearMul", U(4, 4), S(0.02), D(120), U(4, 4), S(0.01), D(100), S(0.03), D(90)),
    ms("QLinearWhere", B(4, 4), U(4, 4), S(0.02), D(120), U(4), S(0.01), D(100), S(0.03), D(90)),
    ms("QLinearConcat", S(0.03), D(90), U(4, 4), S(0.02), D(120), U(4, 2), S(0.01), D(100), axis=1),
    ms("QLinearLeakyRelu", U(4, 4), S(0.02), D(120), S(0.01), D(100), alpha=0.1),
    ms("QLinearSigmoid", U(4, 4), S(0.02), D(120), S(0.01), D(100)),
    Case("com.microsoft::QLinearSoftmax", (U(4, 4), S(0.02), D(120), S(0.004), D(0)), {"axis": -1, "opset": 13}, **ORT),
    ms("QLinearAveragePool", U(4, 4, 5, 5), S(0.02), D(120), S(0.02), D(100), kernel_shape=[2, 2]),
    ms("QLinearGlobalAveragePool", U(4, 4, 5, 5), S(0.02), D(120), S(0.02), D(100)),
    ms("QuantizeLinear", F(4, 4), W(4), D([1, 2, 3, 4]), axis=0),
    ms("DequantizeLinear", U(4, 4), W(4), D([1, 2, 3, 4]), axis=1),
    ms("DynamicQuantizeMatMul", A(LATIN), U(6, 4), W(4), D([100, 3, 5, 7])),
    ms("MatMulIntegerToFloat", U(4, 6), U(6, 4), S(0.02), W(4), D(7), D([1, 2, 3, 4]), W(4), zeros={0: 7}),
    ms(
        "DynamicQuantizeLSTM",
        A(np.tile(LATIN[0], (5, 2, 1))),
        Q(1, 6, 16),
        Q(1, 4, 16),
        W(1, 32),
        X,
        F(1, 2, 4),
        F(1, 2, 4),
        X,
        W(1),
        D([0], np.int8),
        W(1),
        D([0], np.int8),
        hidden_size=4,
        n_results=3,
    ),
    ms("MatMulNBits", F(4, 64), U(6, 4, 8), W(24), N=6, K=64, bits=4, block_size=16),
    ms("MatMulNBits", F(4, 64), U(6, 4, 8), W(6, 4), U(6, 2), X, W(6), N=6, K=64, bits=4, block_size=16),
    ms("MatMulNBits", F(4, 60), U(6, 4, 8), W(24), U(12), N=6, K=60, bits=4, block_size=16),
    # of scikit-learn's converters
    ml("LabelEncoder", I(4, 5, 4), keys_int64s=[0, 1, 2, 3], values_floats=[0.5, -1.0, 2.0, 7.0]),
    ml("CategoryMapper", I(4, 5, 4), cats_int64s=[0, 1, 2, 3], cats_strings=["a", "bb", "ccc", "dddd"]),
    ml("Binarizer", F(4, 4), threshold=0.5),
    ml("Scaler", F(4, 4), offset=[0.5], scale=[2.0]),
    ml("Scaler", F(5, 4), offset=[0.5, 0.1, 0.2, 0.3], scale=[2.0, 1.0, 3.0, 4.0]),
    ml("Imputer", F(4, 4), imputed_value_floats=[0.5], replaced_value_float=0.0),
    ml("Normalizer", F(4, 4), norm="L1", mixed=("x1",)),
    ml("Normalizer", F(4, 4), norm="L2", mixed=("x1",)),
    ml("Normalizer", F(4, 4), norm="MAX"),
    ml("ArrayFeatureExtractor", F(6, 5), I(5, 6)),
    ml("ArrayFeatureExtractor", F(5), I(5, 1, 3)),
    ml("ArrayFeatureExtractor", F(4, 5), I(5, 2, 3)),
    ml("OneHotEncoder", I(3, 5, 4), cats_int64s=[0, 1, 2]),
    # what depends on data
    case("NonZero", F(4, 4)),
    case("NonMaxSuppression", F(1, 4, 4), F(1, 1, 4), S(3), **ORT),
    case("Compress", F(4, 4), B(4), axis=1),
    case("Unique", F(4)),
)
"""The table of calls."""
