# ruff: noqa: FBT003, E743  (arguments of operators are positional; I is an integer tensor)
"""One or more calls of every ATen operator in the table, as data for ``test_aten_ops.py``.

Tensors are written as shapes: ``F(2, 3)`` floating point in (0.1, 0.9), ``I(5, 2, 3)`` integers below 5 of shape
(2, 3), ``B(2, 3)`` booleans, ``V(1, 2)`` the integers 1, 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Tensor:
    """A tensor of a case, to be filled at random."""

    kind: str
    shape: tuple[int, ...]
    high: int = 0
    values: tuple[int, ...] = ()
    low: float = 0.1
    span: float = 0.8

    def make(self, generator: torch.Generator) -> torch.Tensor:
        """The tensor, float64 where it is floating point."""
        match self.kind:
            case "float":
                return self.low + self.span * torch.rand(self.shape, generator=generator, dtype=torch.float64)
            case "complex":
                real = torch.rand((*self.shape, 2), generator=generator, dtype=torch.float64)
                return torch.view_as_complex(real)
            case "int":
                return torch.randint(0, self.high, self.shape, generator=generator)
            case "bool":
                return torch.rand(self.shape, generator=generator) < 0.5
            case "float32":
                return torch.rand(self.shape, generator=generator)
            case "whole":
                return torch.randint(0, self.high, self.shape, generator=generator).double()
            case "values32":
                return torch.tensor(self.values, dtype=torch.int32)
            case _:
                return torch.tensor(self.values)


def F(*shape: int) -> Tensor:
    return Tensor("float", shape)


def C(*shape: int) -> Tensor:
    return Tensor("complex", shape)


def I(high: int, *shape: int) -> Tensor:
    return Tensor("int", shape, high)


def B(*shape: int) -> Tensor:
    return Tensor("bool", shape)


def V(*values: int) -> Tensor:
    return Tensor("values", (len(values),), values=values)


def F32(*shape: int) -> Tensor:
    """Single precision, for operators that know no float64."""
    return Tensor("float32", shape)


def J(high: int, *shape: int) -> Tensor:
    """Whole numbers below ``high`` as floating point."""
    return Tensor("whole", shape, high)


def V32(*values: int) -> Tensor:
    return Tensor("values32", (len(values),), values=values)


def W(*shape: int) -> Tensor:
    """Values above one."""
    return Tensor("float", shape, low=1.1)


def S(*shape: int) -> Tensor:
    """Values of both signs."""
    return Tensor("float", shape, low=-1.0, span=2.0)


@dataclass(frozen=True)
class Case:
    """A call: the operator, its arguments by position and name, and which results are used."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    used: tuple[int, ...] | None = None
    note: str = ""

    @property
    def id(self) -> str:
        return f"{self.op}{'/' + self.note if self.note else ''}"


def case(op: str, *args: Any, used: tuple[int, ...] | None = None, note: str = "", **kwargs: Any) -> Case:
    return Case(op if op.startswith("transformers") else f"aten.{op}", args, kwargs, used, note)


OPEN = 2**63 - 1
f64 = torch.float64

WEIGHTED = [
    case("linear.default", F(2, 3, 6), F(5, 6), F(5)),
    case("linear.default", F(4, 4), F(4, 4), None, note="square"),
    case("linear.default", F(6), F(5, 6), None, note="vector"),
    case("matmul.default", F(2, 3, 4, 5), F(2, 3, 5, 6)),
    case("matmul.default", F(2, 3, 4, 5), F(5, 6), note="broadcast"),
    case("matmul.default", F(4, 4, 4), F(4, 4, 4), note="square"),
    case("matmul.default", F(5), F(5, 6), note="vector"),
    case("mm.default", F(4, 5), F(5, 6)),
    case("bmm.default", F(3, 4, 5), F(3, 5, 6)),
    case("mv.default", F(4, 5), F(5)),
    case("dot.default", F(5), F(5)),
    case("addmm.default", F(6), F(4, 5), F(5, 6)),
    case("addmm.default", F(4, 1), F(4, 5), F(5, 6), note="column"),
    case("addmv.default", F(4), F(4, 5), F(5)),
    case("baddbmm.default", F(3, 4, 6), F(3, 4, 5), F(3, 5, 6)),
    case("outer.default", F(4), F(5)),
    case("bilinear.default", F(3, 4), F(3, 5), F(6, 4, 5), F(6)),
    case("conv1d.default", F(2, 4, 9), F(6, 4, 3), F(6)),
    case("conv2d.default", F(2, 4, 7, 7), F(6, 4, 3, 3), F(6), [2, 2], [1, 1]),
    case("conv2d.default", F(2, 6, 7, 7), F(9, 2, 3, 3), None, [1, 1], [0, 0], [1, 1], 3, note="grouped"),
    case("conv2d.default", F(2, 6, 7, 7), F(6, 1, 3, 3), F(6), [1, 1], [1, 1], [1, 1], 6, note="depthwise"),
    case("conv2d.default", F(2, 4, 5, 5), F(4, 4, 1, 1), None, note="square"),
    case("conv3d.default", F(2, 4, 4, 4, 4), F(6, 4, 2, 2, 2), None),
    case("conv1d.padding", F(2, 4, 9), F(6, 4, 3), None, [1], "same"),
    case("conv2d.padding", F(2, 4, 7, 7), F(6, 4, 3, 3), None, [1, 1], "same"),
    case("conv3d.padding", F(2, 4, 4, 4, 4), F(6, 4, 2, 2, 2), None, [1, 1, 1], "valid"),
    case("conv_transpose1d.default", F(2, 4, 5), F(4, 6, 3), F(6)),
    case("conv_transpose2d.input", F(2, 6, 5, 5), F(6, 2, 3, 3), F(6), [2, 2], [1, 1], [1, 1], 3),
    case("conv_transpose3d.input", F(2, 4, 3, 3, 3), F(4, 6, 2, 2, 2), None),
    case("convolution.default", F(2, 4, 7, 7), F(6, 4, 3, 3), F(6), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    case(
        "convolution.default",
        F(2, 4, 5, 5),
        F(4, 6, 3, 3),
        F(6),
        [2, 2],
        [1, 1],
        [1, 1],
        True,
        [0, 0],
        1,
        note="transposed",
    ),
    case("scaled_dot_product_attention.default", F(2, 4, 5, 6), F(2, 4, 7, 6), F(2, 4, 7, 3), F(1, 1, 5, 7)),
    case(
        "scaled_dot_product_attention.default",
        F(2, 4, 4, 4),
        F(2, 4, 4, 4),
        F(2, 4, 4, 4),
        None,
        0.0,
        True,
        note="causal",
    ),
    case(
        "scaled_dot_product_attention.default",
        F(2, 6, 5, 4),
        F(2, 3, 7, 4),
        F(2, 3, 7, 4),
        scale=0.3,
        enable_gqa=True,
        note="gqa",
    ),
    case("einsum.default", "bhqd,bkhd->bhqk", [F(2, 3, 4, 5), F(2, 6, 3, 5)]),
    case("einsum.default", "ij,jk", [F(4, 4), F(4, 4)], note="square"),
    case("einsum.default", "bii->bi", [F(3, 5, 5)], note="diagonal"),
    case("einsum.default", "ii", [F(5, 5)], note="trace"),
    case("einsum.default", "...qd,...kd->...qk", [F(2, 3, 4, 6), F(2, 3, 5, 6)], note="ellipsis"),
    case("einsum.default", "b...,...->...b", [F(3, 1, 6), F(5, 6)], note="broadcast ellipsis"),
    case("einsum.default", "...i,ij", [F(3, 4, 6), F(6, 5)], note="implicit ellipsis"),
    case("einsum.default", "bij,b,kj->kb", [F(3, 4, 5), F(3), F(6, 5)], note="three operands"),
    case("transformers.grouped_mm_fallback.default", F(6, 8), F(3, 8, 12), V(2, 2, 6)),
    case("_grouped_mm.default", F32(6, 8), F32(3, 8, 12), V32(2, 2, 6), note="float32"),
    case("cdist.default", F(2, 4, 5), F(2, 6, 5)),
    case("_cdist_forward.default", F(2, 4, 5), F(2, 6, 5), 2.0, None),
    case("cosine_similarity.default", F(2, 4, 5), F(2, 4, 5), 1),
    case("grid_sampler.default", F(2, 3, 4, 4), S(2, 5, 6, 2), 0, 0, False),
    case("grid_sampler_2d.default", F(2, 3, 4, 4), S(2, 5, 6, 2), 0, 0, False),
    case("grid_sampler_3d.default", F(2, 3, 4, 4, 4), S(2, 3, 5, 6, 3), 0, 0, False),
    case("_weight_norm.default", F(5, 4, 3), F(5, 1, 1), 0),
    case(
        "lstm.input",
        F(5, 2, 6),
        [F(1, 2, 4), F(1, 2, 4)],
        [F(16, 6), F(16, 4), F(16), F(16)],
        True,
        1,
        0.0,
        False,
        False,
        False,
    ),
    case(
        "lstm.input",
        F(2, 5, 6),
        [F(4, 2, 4), F(4, 2, 4)],
        [F(16, 6), F(16, 4), F(16, 6), F(16, 4), F(16, 8), F(16, 4), F(16, 8), F(16, 4)],
        False,
        2,
        0.0,
        False,
        True,
        True,
        note="two layers, two directions",
    ),
    case(
        "lstm.input",
        F(2, 5, 6),
        [F(4, 2, 3), F(4, 2, 8)],
        [
            *(F(32, 6), F(32, 3), F(32), F(32), F(3, 8)) * 2,
            *(F(32, 6), F(32, 3), F(32), F(32), F(3, 8)) * 2,
        ],
        True,
        2,
        0.0,
        False,
        True,
        True,
        note="projected",
    ),
    case("gru.input", F(5, 2, 6), F(1, 2, 4), [F(12, 6), F(12, 4), F(12), F(12)], True, 1, 0.0, False, False, False),
    case("rnn_tanh.input", F(5, 2, 6), F(1, 2, 4), [F(4, 6), F(4, 4), F(4), F(4)], True, 1, 0.0, False, False, False),
    case("rnn_relu.input", F(5, 2, 6), F(1, 2, 4), [F(4, 6), F(4, 4), F(4), F(4)], True, 1, 0.0, False, False, False),
]

NORMS = [
    case("_native_batch_norm_legit_no_training.default", F(2, 4, 5, 5), F(4), F(4), F(4), F(4), 0.1, 1e-5, used=(0,)),
    case("_native_batch_norm_legit.no_stats", F(2, 4, 5, 5), F(4), F(4), True, 0.1, 1e-5, used=(0,)),
    case("_native_batch_norm_legit_functional.default", F(2, 4, 5), F(4), F(4), F(4), F(4), True, 0.1, 1e-5),
    case("batch_norm.default", F(3, 3, 5), F(3), F(3), F(3), F(3), False, 0.1, 1e-5, False),
    case("layer_norm.default", F(2, 3, 6), [6], F(6), F(6)),
    case("layer_norm.default", F(2, 3, 6), [3, 6], F(3, 6), None, note="two axes"),
    case("native_layer_norm.default", F(2, 3, 6), [6], F(6), None, 1e-5, used=(0,)),
    case("rms_norm.default", F(2, 3, 6), [6], F(6)),
    case("_fused_rms_norm.default", F(2, 3, 6), [6], F(6), 1e-5, used=(0,)),
    case("group_norm.default", F(2, 6, 5, 5), 3, F(6), F(6)),
    case("native_group_norm.default", F(2, 6, 5, 5), F(6), F(6), 2, 6, 25, 3, 1e-5, used=(0,)),
    case("instance_norm.default", F(2, 4, 5, 5), F(4), F(4), None, None, True, 0.1, 1e-5, False),
    case("instance_norm.default", F(2, 4, 5, 5), F(4), F(4), F(4), F(4), False, 0.1, 1e-5, False, note="stored"),
]

_MORE: dict[str, tuple[Any, ...]] = {
    "acosh": (W(2, 3, 4),), "clamp": (F(2, 3, 4), 0.3, 0.6), "clip": (F(2, 3, 4), 0.3, 0.6), "clamp_min": (F(2, 3, 4), 0.4),
    "clamp_max": (F(2, 3, 4), 0.4), "full_like": (F(2, 3, 4), 2.0), "fill.Scalar": (F(2, 3, 4), 2.0),
    "threshold": (F(2, 3, 4), 0.4, 0.2), "bitwise_not": (I(9, 2, 3, 4),), "to.dtype": (F(2, 3, 4), torch.float32),
    "to.device": (F(2, 3, 4), torch.device("cpu"), torch.float32), "to.other": (F(2, 3, 4), F(1)),
    "type_as": (F(2, 3, 4), F(1)), "atan2": (F(2, 3, 4), F(3, 1)), "to.dtype_layout": (F(2, 3, 4),),
    "imag": (C(2, 3, 4),), "_conj": (C(2, 3, 4),), "lift_fresh_copy": (F(2, 3, 4),),
}  # fmt: skip
_UNARY = """
    abs acos acosh angle asin asinh atan atanh ceil celu conj conj_physical cos cosh deg2rad digamma elu erf erfc
    erfinv exp exp2 expm1 floor frac gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu
    lgamma log log10 log1p log2 log_sigmoid logical_not mish neg negative nan_to_num rad2deg real imag reciprocal relu
    relu6 round rsqrt selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink special_erf special_expit
    special_log1p sqrt square tan tanh threshold trunc fix bitwise_not logit isneginf isposinf to_dense
    log_sigmoid_forward clamp clamp_min clamp_max clip zeros_like ones_like full_like empty_like fill.Scalar
    special_ndtr relu_ silu_ _conj round.decimals atan2
""".split()  # noqa: SIM905  (read as a table)
_COPIES = """
    clone contiguous detach detach_copy lift_fresh_copy alias alias_copy positive to.dtype to.device to.dtype_layout
    _to_copy resolve_conj resolve_neg
""".split()  # noqa: SIM905
_BINARY_NAMES = """
    add.Tensor add.Scalar sub.Tensor sub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar div.Tensor_mode
    div.Scalar_mode rsub.Scalar rsub.Tensor pow.Tensor_Scalar pow.Scalar pow.Tensor_Tensor maximum minimum max.other
    min.other eq.Scalar ne.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar lt.Tensor lt.Scalar
    le.Tensor le.Scalar logical_and logical_or logical_xor bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor
    bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar __and__.Tensor __and__.Scalar __or__.Tensor __or__.Scalar
    __xor__.Tensor fmod.Tensor fmod.Scalar remainder.Tensor remainder.Scalar floor_divide floor_divide.Scalar
    true_divide.Tensor xlogy.Tensor xlogy.Scalar_Self logaddexp hypot polar complex copysign.Tensor copysign.Scalar
    fmax fmin heaviside ldexp.Tensor special_xlog1py bitwise_left_shift.Tensor bitwise_right_shift.Tensor
    bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor_Scalar __lshift__.Scalar __rshift__.Scalar isclose
    where.self where.ScalarOther where.ScalarSelf where.Scalar lerp.Tensor lerp.Scalar addcmul addcdiv clamp.Tensor
    clamp_min.Tensor clamp_max.Tensor masked_fill.Scalar masked_fill.Tensor expand_as copy float_power.Tensor_Scalar
    nextafter fill.Tensor multiply.Tensor divide.Tensor subtract.Tensor greater.Tensor less.Tensor
""".split()  # noqa: SIM905
_PLAIN = [name for name in (*_UNARY, *_COPIES, "to.other", "type_as") if name != "empty_like"]
UNARY = [
    case(name if "." in name else f"{name}.default", *_MORE.get(name, (F(2, 3, 4),)), used=(0,) if name == "log_sigmoid_forward" else None,
         **({"decimals": 1} if name == "round.decimals" else {}))
    for name in _PLAIN
]  # fmt: skip

_BOTH: dict[str, tuple[Any, ...]] = {
    "where.self": (B(3, 4), F(2, 3, 4), F(4)), "where.ScalarOther": (B(3, 4), F(2, 3, 4), 0.5),
    "where.ScalarSelf": (B(3, 4), 0.5, F(2, 3, 4)), "where.Scalar": (B(3, 4), 0.5, 0.2),
    "lerp.Tensor": (F(2, 3, 4), F(2, 3, 4), F(3, 1)), "lerp.Scalar": (F(2, 3, 4), F(2, 3, 4), 0.3),
    "addcmul": (F(4), F(2, 3, 4), F(3, 1)), "addcdiv": (F(4), F(2, 3, 4), F(3, 1)),
    "clamp.Tensor": (F(2, 3, 4), F(4), F(4)), "masked_fill.Scalar": (F(2, 3, 4), B(3, 1), 0.5),
    "masked_fill.Tensor": (F(2, 3, 4), B(3, 1), F()), "fill.Tensor": (F(2, 3, 4), F()), "expand_as": (F(3, 1), F(2, 3, 4)),
    "copy": (F(2, 3, 4), F(3, 1)), "pow.Scalar": (2.0, F(2, 3, 4)), "xlogy.Scalar_Self": (2.0, F(2, 3, 4)),
    "ldexp.Tensor": (F(2, 3, 4), I(3, 4)), "polar": (F(2, 3, 4), F(2, 3, 4)), "complex": (F(2, 3, 4), F(2, 3, 4)),
    "isclose": (F(2, 3, 4), F(3, 1)),
}  # fmt: skip


def _binary(name: str) -> Case:
    full = name if "." in name else f"{name}.default"
    if name in _BOTH:
        return case(full, *_BOTH[name])
    integer = "bitwise" in name or name.startswith("__")
    scalar = "Scalar" in name
    left, right = (I(9, 2, 3, 4), 2 if scalar else I(3, 3, 1)) if integer else (F(2, 3, 4), 0.3 if scalar else F(3, 1))
    kwargs = {"rounding_mode": "floor"} if name.endswith("_mode") else {}
    return case(full, left, right, **kwargs)


BINARY = [
    *(_binary(name) for name in (*_BINARY_NAMES, "copy_.default", "eq.Tensor", "ne.Tensor")),
    case("add.Tensor", F(4, 4, 4), F(4, 1), note="square"),
    case("add.Tensor", F(2, 3), 1.5, note="number"),
    case("dropout.default", F(2, 3, 4), 0.5, False),
    case("native_dropout.default", F(2, 3, 4), 0.5, False, used=(0,)),
    case("feature_dropout.default", F(2, 3, 4), 0.5, False),
    case("prelu.default", S(2, 4, 5), F(4)),
    case("prelu.default", S(2, 4, 5), F(1), note="one slope"),
    case("_prelu_kernel.default", S(2, 4, 5), F(1, 4, 1)),
    case("glu.default", F(2, 3, 8), -1),
    case("empty_like.default", F(2, 3, 4), note="values are not compared"),
    case("broadcast_tensors.default", [F(2, 1, 4), F(3, 1)]),
]

ALONG = [
    *(
        case(f"{name}", F(2, 3, 4), -1)
        for name in (
            "softmax.int",
            "log_softmax.int",
            "cumsum.default",
            "cumprod.default",
            "cummax.default",
            "cummin.default",
            "logcumsumexp.default",
            "sort.default",
            "argsort.default",
        )
    ),
    *(case(name, F(2, 3, 4), -1, False) for name in ("_softmax.default", "_log_softmax.default")),
    case("_safe_softmax.default", F(2, 3, 4), -1),
    case("sort.stable", F(2, 3, 4), stable=True, dim=1),
    case("argsort.stable", F(2, 3, 4), stable=True, dim=1),
    case("topk.default", F(2, 3, 6), 2, -1),
    case("topk.default", F(2, 6, 3), 3, 1, False, note="smallest"),
    case("softmax.int", F(2, 6, 3), 1, note="middle"),
    case("sort.default", I(5, 2, 3, 4), 1, note="positions"),
    case("histc.default", J(5, 12), 5, 0, 4),
    case("sort.default", F(2, 3, 6), 1, used=(1,), note="positions only"),
    case("diff.default", F(2, 3, 6), 1, -1),
    case("cross.default", F(2, 4, 3), F(2, 4, 3), -1),
    case("linalg_cross.default", F(2, 4, 3), F(2, 4, 3), dim=-1),
    case("flip.default", F(2, 3, 4), [1]),
    case("roll.default", F(2, 3, 4), [1], [1]),
    case("roll.default", F(2, 3, 4), [1], note="flattened"),
    case("rot90.default", F(2, 3, 3), 1, [1, 2]),
    case("_fft_r2c.default", F(2, 3, 6), [2], 0, True),
    case("_fft_c2r.default", C(2, 3, 4), [2], 0, 6),
    case("_fft_c2c.default", C(2, 3, 4), [2], 0, True),
    case("tril.default", F(2, 4, 4)),
    case("triu.default", F(2, 4, 4)),
    case("max_pool1d.default", F(2, 3, 8), [2]),
    case("max_pool2d.default", F(2, 3, 8, 8), [2, 2]),
    case("max_pool3d.default", F(2, 3, 4, 4, 4), [2, 2, 2]),
    case("max_pool2d_with_indices.default", F(2, 3, 8, 8), [2, 2]),
    case("max_unpool2d.default", F(4, 4, 2, 2), I(16, 4, 4, 2, 2), [4, 4]),
    case("max_unpool3d.default", F(3, 3, 2, 2, 2), I(64, 3, 3, 2, 2, 2), [4, 4, 4], [2, 2, 2], [0, 0, 0]),
    case("max_pool3d_with_indices.default", F(2, 3, 4, 4, 4), [2, 2, 2]),
    case("avg_pool1d.default", F(2, 3, 8), [2]),
    case("avg_pool2d.default", F(2, 3, 8, 8), [2, 2]),
    case("avg_pool3d.default", F(2, 3, 4, 4, 4), [2, 2, 2]),
    case("adaptive_avg_pool1d.default", F(2, 3, 8), [2]),
    case("adaptive_avg_pool2d.default", F(2, 3, 8, 8), [1, 1]),
    case("adaptive_avg_pool3d.default", F(2, 3, 4, 4, 4), [1, 1, 1]),
    case("_adaptive_avg_pool2d.default", F(2, 3, 8, 8), [1, 1]),
    case("_adaptive_avg_pool3d.default", F(2, 3, 4, 4, 4), [1, 1, 1]),
    case("adaptive_max_pool1d.default", F(2, 3, 8), [2]),
    case("adaptive_max_pool2d.default", F(2, 3, 8, 8), [2, 2]),
    case("adaptive_max_pool3d.default", F(2, 3, 4, 4, 4), [2, 2, 2]),
    case("upsample_nearest1d.default", F(2, 3, 4), [8]),
    case("upsample_nearest1d.vec", F(2, 3, 4), [8], None),
    case("upsample_nearest2d.default", F(2, 3, 4, 4), [8, 8]),
    case("upsample_nearest2d.vec", F(2, 3, 4, 4), None, [2.0, 2.0]),
    case("upsample_nearest3d.default", F(2, 3, 2, 2, 2), [4, 4, 4]),
    case("upsample_nearest3d.vec", F(2, 3, 2, 2, 2), [4, 4, 4], None),
    case("_upsample_nearest_exact1d.vec", F(2, 3, 4), [8], None),
    case("_upsample_nearest_exact2d.vec", F(2, 3, 4, 4), [8, 8], None),
    case("upsample_linear1d.default", F(2, 3, 4), [8], False),
    case("upsample_linear1d.vec", F(2, 3, 4), [8], False, None),
    case("upsample_bilinear2d.default", F(2, 3, 4, 4), [8, 8], False),
    case("upsample_bilinear2d.vec", F(2, 3, 4, 4), [8, 8], False, None),
    case("upsample_bicubic2d.default", F(2, 3, 4, 4), [8, 8], False),
    case("upsample_bilinear2d.vec", F(2, 3, 4, 5), [8, 5], False, None, note="one axis"),
    case("upsample_bilinear2d.vec", F(2, 3, 4, 5), None, False, [2.0, 1.1], note="a scale that rounds"),
    case("upsample_bilinear2d.default", F(2, 3, 4, 5), [6, 5], True, note="corners"),
    case("upsample_bilinear2d.default", F(2, 3, 4, 5), [8, 5], False, 2.0, 1.1, note="scales that round"),
    case("upsample_bicubic2d.vec", F(2, 3, 4, 5), [4, 7], False, None, note="one axis"),
    case("upsample_nearest2d.vec", F(2, 3, 4, 5), [8, 5], None, note="one axis"),
    case("_upsample_bilinear2d_aa.vec", F(2, 3, 4, 5), [2, 5], False, None, note="one axis"),
    case("_upsample_bicubic2d_aa.vec", F(2, 3, 4, 5), [4, 3], False, None, note="one axis"),
    case("upsample_bicubic2d.vec", F(2, 3, 4, 4), [8, 8], False, None),
    case("upsample_trilinear3d.vec", F(2, 3, 2, 2, 2), [4, 4, 4], False, None),
    case("_upsample_bilinear2d_aa.default", F(2, 3, 4, 4), [8, 8], False),
    case("_upsample_bilinear2d_aa.vec", F(2, 3, 4, 4), [8, 8], False, None),
    case("_upsample_bicubic2d_aa.default", F(2, 3, 4, 4), [8, 8], False),
    case("_upsample_bicubic2d_aa.vec", F(2, 3, 4, 4), [8, 8], False, None),
    case("unfold.default", F(2, 3, 8), 2, 3, 2),
    case("diagonal.default", F(2, 4, 4, 3), 0, 1, 2),
]

_DIM = ("any.dim", "all.dim", "prod.dim_int", "max.dim", "min.dim", "argmax.default", "argmin.default", "median.dim")
REDUCTIONS = [
    *(
        case(f"{name}.default", F(2, 3, 4))
        for name in (
            "sum",
            "nansum",
            "any",
            "count_nonzero",
            "linalg_vector_norm",
            "mean",
            "var",
            "std",
            "all",
            "prod",
            "max",
            "min",
        )
    ),
    *(case(name, F(2, 3, 4), 1, True) for name in _DIM),
    case("_is_all_true.default", B(2, 3, 4)),
    case("_is_any_true.default", B(2, 3, 4)),
    *(
        case(name, F(2, 3, 4), [1], False)
        for name in (
            "sum.dim_IntList",
            "any.dims",
            "mean.dim",
            "all.dims",
            "amax.default",
            "amin.default",
            "logsumexp.default",
        )
    ),
    case("mean.dim", F(2, 3, 4, 4), [2, 3], True, note="spatial"),
    case("count_nonzero.dim_IntList", F(2, 3, 4), [1]),
    case("linalg_vector_norm.default", F(2, 3, 4), 2, [1], True, note="dim"),
    case("linalg_vector_norm.default", F(2, 3, 4), -1, [1], True, note="negative order"),
    case("norm.Scalar", F(2, 3, 4)),
    case("norm.ScalarOpt_dim", F(2, 3, 4), 2, [1], True),
    *(case(f"{name}.dim", F(2, 3, 4), [1], True, False) for name in ("var", "std", "var_mean", "std_mean")),
    *(case(f"{name}.default", F(2, 3, 4)) for name in ("var_mean", "std_mean")),
    *(case(f"{name}.correction", F(2, 3, 4), [1], correction=1) for name in ("var", "std", "var_mean", "std_mean")),
    case("aminmax.default", F(2, 3, 4), dim=1),
]

VIEWS = [
    case("view.default", F(2, 3, 8), [2, 3, 4, 2]),
    case("view.default", F(2, 3, 4, 2), [6, -1], note="merged"),
    case("view.default", F(6, 4), [8, 3], note="misaligned"),
    case("_unsafe_view.default", F(2, 3, 4, 2), [2, 3, 8]),
    case("reshape.default", F(2, 3, 4, 5), [2, 12, 5]),
    case("flatten.using_ints", F(2, 3, 4, 5), 1, -1),
    case("unsqueeze.default", F(2, 3), 1),
    case("squeeze.dim", F(2, 1, 3), 1),
    case("squeeze.dims", F(2, 1, 3, 1), [1, 3]),
    case("unflatten.int", F(2, 12, 3), 1, [4, 3]),
    case("unflatten.int", F(2, 12, 3), 1, [4, -1], note="inferred"),
    case("permute.default", F(3, 3, 3), [2, 0, 1]),
    case("permute.default", F(2, 3, 4), [2, 0, -2], note="uneven"),
    case("transpose.int", F(2, 3, 4), 1, -1),
    case("transpose.int", F(4, 4), 0, 1, note="square"),
    case("swapaxes.default", F(2, 3, 4), 1, -1),
    case("adjoint.default", F(2, 3, 4)),
    case("mT.default", F(2, 3, 4)),
    case("t.default", F(3, 4)),
    case("numpy_T.default", F(2, 3, 4)),
    case("movedim.intlist", F(2, 3, 4, 5), [1, 3], [0, 1]),
    case("movedim.int", F(2, 3, 4, 5), 1, -1),
    case("expand.default", F(2, 3, 1, 4), [2, 3, 5, 4]),
    case("expand.default", F(3, 1), [6, -1, 5], note="new axis"),
    case("broadcast_to.default", F(3, 1), [2, 3, 5]),
    case("repeat.default", F(2, 3), [4, 1, 3]),
    case("tile.default", F(2, 3), [4, 3]),
    case("tile.default", F(2, 3, 4), [3, 1], note="leading axes implied"),
    case("expand.default", F(1, 0, 4), [2, -1, -1], note="empty"),
    case("repeat_interleave.self_int", F(2, 3, 4), 5, 1),
    case("repeat_interleave.self_int", F(2, 3, 4), 5, 1, output_size=15, note="output_size"),
    case("view_as_real.default", C(2, 3)),
    case("view_as_complex.default", F(3, 4, 2)),
]

PARTS = [
    case("cat.default", [F(2, 3, 4), F(2, 5, 4)], 1),
    case("cat.default", [F(3, 3), F(3, 3)], -1, note="square"),
    case("cat.default", [F(0), F(2, 3)], -1, note="empty vector"),
    case("concat.default", [F(2, 3, 4), F(2, 5, 4)], 1),
    case("concatenate.default", [F(2, 3, 4), F(2, 5, 4)], 1),
    case("stack.default", [F(2, 3), F(2, 3)], 1),
    case("split_with_sizes.default", F(2, 9, 3), [2, 3, 4], 1),
    case("split.Tensor", F(2, 9, 4), 3, 1),
    case("split.Tensor", F(2, 8, 4), 3, 1, note="unequal"),
    case("unsafe_split.Tensor", F(2, 9, 4), 3, 1),
    case("chunk.default", F(2, 9, 4), 3, 1),
    case("chunk.default", F(2, 8, 4), 3, 1, note="unequal"),
    case("unsafe_chunk.default", F(2, 9, 4), 3, 1),
    case("tensor_split.sections", F(2, 9, 4), 3, 1),
    case("unbind.int", F(2, 3, 4), 1),
    case("select.int", F(2, 3, 4), 1, 2),
    case("slice.Tensor", F(2, 9), 1, 2, 5),
    case("slice.Tensor", F(2, 9), 1, 3, OPEN, note="open"),
    case("slice.Tensor", F(2, 9), 1, -4, OPEN, note="negative"),
    case("slice.Tensor", F(2, 9), 1, 0, -2, note="negative stop"),
    case("slice.Tensor", F(2, 8), 1, 1, OPEN, 2, note="strided"),
    case("slice.Tensor", F(2, 9), 1, 0, OPEN, 2, note="strided with a rest"),
    case("narrow.default", F(2, 9), 1, 2, 5),
    case("slice_scatter.default", F(2, 9), F(2, 4), 1, 3, 7),
    case("slice_scatter.default", F(2, 8), F(2, 4), 1, 0, OPEN, 2, note="strided"),
    case("slice_scatter.default", F(2, 9), F(2, 3), 1, 1, OPEN, 3, note="strided, from the second on"),
    case("slice_scatter.default", F(2, 9), F(2, 5), 1, 0, OPEN, 2, note="strided with a rest"),
    case("select_scatter.default", F(2, 3, 4), F(2, 4), 1, 2),
    case("pad.default", F(2, 3, 4), [1, 2, 0, 3], "constant", 0.5),
    case("pad.default", F(2, 5, 6), [1, 2], "reflect", note="reflect"),
    case("pad.default", F(2, 5, 6), [-1, -2], note="negative"),
    case("constant_pad_nd.default", F(2, 3, 4), [1, 2, 0, 3], 0.5),
    *(
        case(f"{kind}_pad{n}d.default", F(2, 3, *(4,) * n), [1] * 2 * n)
        for kind in ("reflection", "replication")
        for n in (1, 2, 3)
    ),
]

LOOKUPS = [
    case("embedding.default", F(7, 4), I(7, 2, 3)),
    *(
        case(
            "embedding_bag.padding_idx",
            F(7, 4),
            I(7, 6),
            V(0, 2),
            False,
            n,
            False,
            None,
            False,
            None,
            used=(0,),
            note=m,
        )
        for n, m in enumerate(("sum", "mean", "max"))
    ),
    case("embedding_bag.padding_idx", F(7, 4), I(7, 6), V(0, 2), False, 0, False, F(6), False, None, used=(0,)),
    case("index_select.default", F(2, 5, 4), 1, V(0, 3, 1)),
    case("index.Tensor", F(5, 4, 3), [None, I(4, 2, 6)]),
    case("index.Tensor", F(5, 4, 3), [I(5, 6), None, I(3, 6)], note="apart"),
    case("index.Tensor", F(2, 5, 4, 3), [None, I(5, 6, 1), I(4, 7)], note="together"),
    case("index.Tensor", F(5, 4, 3), [None, B(4)], note="mask"),
    case("_unsafe_index.Tensor", F(5, 4, 3), [None, I(4, 6)]),
    case("index_put.default", F(5, 4, 3), [None, V(2, 0)], F(5, 2, 3)),
    case("index_put.default", F(5, 4), [V(2, 0)], F(4), True, note="accumulate"),
    case("_unsafe_index_put.default", F(5, 4, 3), [None, V(2, 0)], F(5, 2, 3)),
    case("gather.default", F(2, 5, 4), 1, I(5, 2, 3, 4)),
    case("gather.default", F(4, 6), 1, I(6, 3, 2), note="part"),
    case("take_along_dim.default", F(2, 5, 4), I(5, 2, 3, 4), 1),
    case("one_hot.default", I(5, 2, 3), 5),
    case("topk.default", F(6, 6), 3, 1, note="square"),
    case("gather.default", F(6, 6), 1, I(6, 6, 6), note="square"),
    case("scatter_add.default", F(6, 6), 1, I(6, 6, 4), F(6, 4), note="square"),
    case("index_select.default", F(6, 6, 6), 1, I(6, 6), note="square"),
    case("scatter.src", F(2, 5, 4), 1, I(1, 2, 1, 4), F(2, 1, 4)),
    case("scatter.value", F(2, 5, 4), 1, I(5, 2, 3, 4), 0.5),
    case("scatter_add.default", F(2, 5, 4), 1, I(5, 2, 3, 4), F(2, 3, 4)),
    case("scatter_reduce.two", F(2, 5, 4), 1, I(5, 2, 3, 4), F(2, 3, 4), "sum"),
    case("index_add.default", F(2, 5, 4), 1, V(0, 3), F(2, 2, 4)),
    case("index_copy.default", F(2, 5, 4), 1, V(0, 3), F(2, 2, 4)),
    case("index_fill.int_Scalar", F(2, 5, 4), 1, V(0, 3), 0.5),
    case("masked_scatter.default", F(2, 5, 4), B(2, 5, 1), F(10, 4)),
    case("masked_scatter.default", F(2, 5, 4), B(2, 5, 4), F(2, 5, 4), note="every element"),
    case("masked_scatter.default", F(2, 5, 4, 3), B(5, 1, 1), F(5, 2, 4, 3), note="two axes"),
    case("bucketize.Tensor", F(2, 5), F(4)),
]

IMAGES = [
    case("pixel_shuffle.default", F(2, 12, 4, 5), 2),
    case("pixel_unshuffle.default", F(2, 3, 4, 6), 2),
    case("channel_shuffle.default", F(2, 6, 4, 5), 3),
    case("native_channel_shuffle.default", F(2, 6, 4, 5), 3),
    case("im2col.default", F(2, 3, 6, 6), [2, 2], [1, 1], [0, 0], [2, 2]),
    case("col2im.default", F(2, 12, 9), [6, 6], [2, 2], [1, 1], [0, 0], [2, 2]),
]

CREATED = [
    case("zeros.default", [2, 3], dtype=f64),
    case("ones.default", [2, 3], dtype=f64),
    case("full.default", [2, 3], 1.5, dtype=f64),
    case("empty.memory_format", [2, 3], dtype=f64, note="values are not compared"),
    case("empty_permuted.default", [2, 3], [0, 1], dtype=f64, note="values are not compared"),
    case("new_zeros.default", F(4), [2, 3]),
    case("new_ones.default", F(4), [2, 3]),
    case("new_full.default", F(4), [2, 3], 1.5),
    case("new_empty.default", F(4), [2, 3], note="values are not compared"),
    case("scalar_tensor.default", 1.5, dtype=f64),
    case("lift.default", F(2, 3)),
    case("arange.default", 5),
    case("arange.start", 1, 5),
    case("arange.start_step", 1, 9, 2),
    case("linspace.default", 0.0, 1.0, 5, dtype=f64),
    case("logspace.default", 0.0, 1.0, 5, dtype=f64),
    case("eye.default", 3),
    case("eye.m", 3, 4),
    case("tril_indices.default", 3, 3),
    case("triu_indices.default", 3, 3),
    case("meshgrid.default", [F(3), F(4)]),
    case("meshgrid.indexing", [F(3), F(4)], indexing="xy"),
]

CASES = [*WEIGHTED, *NORMS, *UNARY, *BINARY, *ALONG, *REDUCTIONS, *VIEWS, *PARTS, *LOOKUPS, *IMAGES, *CREATED]
