"""The table of onnxruntime's own operators (domain ``com.microsoft``), which its optimiser and quantiser write.

Those that have a kernel for CPUs and can be run by the tests; all others are barriers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from graphprune.hosts.onnx.ops import attention, lookups, quantized, rows, spatial
from graphprune.hosts.onnx.ops.rows import told
from graphprune.ir.rule import Rule
from graphprune.rules.call import Call, Op, Refusal, Row
from graphprune.rules.contraction import conv, gemm, matmul
from graphprune.rules.pointwise import along


def fused_conv(c: Call) -> Rule:
    """``Conv`` with an activation and a summand of the result's shape."""
    rule = conv(c.x, rows.shape_of(c, 1), c.operand(2), c.y, groups=c.get("group", 1), slot="group")
    operands = (*rule.operands, rule.results[0] if c.operand(3) is not None else None)
    return rows.with_operands(rule, operands[: len(c.operands)])


def fused_matmul(c: Call) -> Rule:
    """``FusedMatMul``: ``MatMul`` of transposed operands, scaled."""
    if c.get("transBatchA", 0) or c.get("transBatchB", 0):
        raise Refusal("a product of operands whose batch axes are transposed")
    a, b = c.x, rows.shape_of(c, 1)
    flips = [bool(c.get(name, 0)) and len(shape) > 1 for name, shape in (("transA", a), ("transB", b))]
    straight = [
        (*shape[:-2], shape[-1], shape[-2]) if flip else shape for shape, flip in zip((a, b), flips, strict=True)
    ]
    rule = matmul(*straight, weights=any(c.stored))
    operands = [
        layout if not flip or layout is None else (*layout[:-2], layout[-1], layout[-2])
        for layout, flip in zip(rule.operands, flips, strict=True)
    ]
    return rows.with_operands(rule, tuple(operands))


def skip_norm(c: Call) -> Rule:
    """``SkipLayerNormalization`` and its simplified form: the last result is the sum that is normalised."""
    outer = [f"n{i}" for i in range(len(c.x) - 1)]
    skip = rows.shape_of(c, 1)
    names = [*outer, "c"][len(c.x) - len(skip) :]
    added = " ".join("1" if size == 1 else name for size, name in zip(skip, names, strict=True))
    x = " ".join((*outer, "c"))
    return told(c, f"{x}, {added}, c, c, c", f"{x}, _, _, {x}", "normalized c")


def embed_norm(c: Call) -> Rule:
    """``EmbedLayerNormalization``: three look-ups, their sum, and its normalisation."""
    return told(
        c, "b s, b s, v c, p c, t c, c, c, b s", "b s c, b, b s c", "normalized c", fixed="v p t b s",
        labels="c=neuron", why="an index looks up positions of this axis",
    )  # fmt: skip


def experts(c: Call) -> Rule:
    """``MoE``: two or three products for each expert; its gate may be packed into the first."""
    fused = c.get("swiglu_fusion", 0)
    first = {0: "f", 1: "(f two)", 2: "f+f"}[fused]
    return told(
        c, f"n o, n e, e {first} o, e {first}, e o f, e o, e f o, e f", "n o", "macs n e f o",
        fixed="e o two", labels="f=neuron", two=2,
        why={"e": "a router chooses among experts", "o": "experts are as wide as their input"},
    ) if len(c.x) == 2 else told(
        c, f"b n o, m e, e {first} o, e {first}, e o f, e o, e f o, e f", "b n o", "macs b n e f o",
        fixed="e o m two", labels="f=neuron", two=2,
        why={"e": "a router chooses among experts", "o": "experts are as wide as their input"},
    )  # fmt: skip


_OWN: Mapping[str, Row | Op] = {
    # fused by the optimiser
    "FusedConv": fused_conv,
    "FusedGemm": lambda c: gemm(
        c.x, rows.shape_of(c, 1), c.operand(2), c.y, trans_a=bool(c.get("transA", 0)), trans_b=bool(c.get("transB", 0))
    ),
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul"), fused_matmul),
    **dict.fromkeys(("BiasGelu", "FastGelu"), rows.elementwise),
    **dict.fromkeys(("Gelu", "QuickGelu"), rows.first_only),
    "SkipLayerNormalization": Op(skip_norm, masked="skip_layer_norm"),
    "SkipSimplifiedLayerNormalization": Op(skip_norm, masked="skip_rms_norm"),
    "EmbedLayerNormalization": Op(embed_norm, masked="embed_layer_norm"),
    "Attention": attention.packed_weights,
    "QAttention": partial(attention.packed_weights, quantized=True),
    "MultiHeadAttention": attention.multi_head,
    "GroupQueryAttention": Op(attention.grouped_query, role="caching"),
    "RotaryEmbedding": attention.rotary,
    "MoE": experts,
    "NhwcMaxPool": spatial.nhwc_pooling,
    # quantised
    "QLinearConv": Op(quantized.qlinear_conv, zero_point=7),
    "QGemm": Op(quantized.qgemm, zero_point=8),
    **dict.fromkeys(
        ("QLinearAdd", "QLinearMul"), Op(partial(quantized.qlinear_elementwise, places=(0, 3)), zero_point=7)
    ),
    "QLinearWhere": Op(partial(quantized.qlinear_elementwise, places=(0, 1, 4)), zero_point=8),
    "QLinearConcat": Op(quantized.qlinear_concat, zero_point=1),
    **dict.fromkeys(("QLinearLeakyRelu", "QLinearSigmoid"), Op(rows.first_only, zero_point=4)),
    **dict.fromkeys(("QLinearAveragePool", "QLinearGlobalAveragePool"), Op(quantized.qlinear_pooling, zero_point=4)),
    "QLinearSoftmax": Op(quantized.qlinear_softmax, zero_point=4),
    "QuantizeLinear": Op(quantized.quantized, zero_point=2),
    "DequantizeLinear": quantized.quantized,
    "DynamicQuantizeMatMul": quantized.dynamic_matmul,
    "MatMulIntegerToFloat": quantized.matmul_integer_to_float,
    "DynamicQuantizeLSTM": quantized.dynamic_lstm,
    "MatMulNBits": quantized.matmul_n_bits,
    # as in the default domain
    "GatherND": lookups.gather_nd,
    "ExpandDims": rows.rearranged,
    "Inverse": spatial.determinant,
    "GridSample": spatial.grid_sample,
    "Trilu": lambda c: along(c.x, [c.y], (-2, -1), "a triangle of this matrix is kept", n_operands=len(c.operands)),
}

CONTRIB: Mapping[str, Row | Op] = {f"com.microsoft::{op}": row for op, row in _OWN.items()}
"""Operator, with its domain -> row."""
