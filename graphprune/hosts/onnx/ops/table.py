"""The table of ONNX operators: what each says about the dimensions of its operands and results.

Default-domain operators of opsets 9 to the newest; where an attribute became an operand, the row reads both. A row
gets the opset as attribute ``opset``. Whatever is not here is a barrier. To support an operator, add a line, and
one in ``tests/onnx_cases.py`` (docs/adding.md, An operator).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from graphprune.hosts.onnx.ops import attention, lookups, quantized, rows, spatial
from graphprune.hosts.onnx.ops.contrib import CONTRIB
from graphprune.hosts.onnx.ops.ml import ML, ML_BARRIERS
from graphprune.hosts.onnx.ops.recurrent import recurrent
from graphprune.hosts.onnx.ops.values import JOIN, JOIN_DOMAIN
from graphprune.rules.call import EXACT, Op, Row
from graphprune.rules.contraction import conv, gemm, matmul
from graphprune.rules.indexing import compared, gather
from graphprune.rules.joining import joined
from graphprune.rules.layout import create, opaque
from graphprune.rules.normalization import instance_norm
from graphprune.rules.pointwise import along

_SIZES = "a size, computed from the shape of another tensor"
_LOSS = "a loss is taken over all elements"
_SEQUENCE = "sequences of tensors are not followed"
_INDEX = "positions depend on the data of this axis"

BARRIERS: Mapping[str, str] = {
    **dict.fromkeys(
        ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"),
        "random numbers are drawn for every element, so that leaving some out changes the others",
    ),
    **dict.fromkeys(
        ("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceAt", "SequenceLength"),
        _SEQUENCE,
    ),
    **dict.fromkeys(("SequenceMap", "SplitToSequence", "ConcatFromSequence"), _SEQUENCE),
    **dict.fromkeys(("Optional", "OptionalGetElement", "OptionalHasElement"), "optional values are not followed"),
    **dict.fromkeys(
        ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"), "text is not cut"
    ),
    "ImageDecoder": "an image file has a size of its own",
    **dict.fromkeys(("If", "Loop", "Scan"), "what a loop body uses stays whole"),
    **dict.fromkeys(
        tuple(f"com.microsoft::{op}" for op in ("MatMulBnb4", "MatMulFpQ4", "GatherBlockQuantized", "QMoE")),
        "numbers of less than a byte are packed, and not cut",
    ),
    **ML_BARRIERS,
}
"""Operators that stay barriers on purpose, with the reason that a user reads."""

ROWS: Mapping[str, Row | Op] = {
    # weighted sums
    "Conv": lambda c: conv(c.x, rows.shape_of(c, 1), c.operand(2), c.y, groups=c.get("group", 1), slot="group"),
    "ConvTranspose": lambda c: conv(
        c.x, rows.shape_of(c, 1), c.operand(2), c.y, groups=c.get("group", 1), transposed=True, slot="group"
    ),
    "Gemm": lambda c: gemm(
        c.x, rows.shape_of(c, 1), c.operand(2), c.y, trans_a=bool(c.get("transA", 0)), trans_b=bool(c.get("transB", 0))
    ),
    "MatMul": lambda c: matmul(c.x, rows.shape_of(c, 1), weights=any(c.stored)),
    "Einsum": rows.contracted,
    "Attention": attention.attention,
    "LinearAttention": attention.linear_attention,
    "DeformConv": spatial.deformable,
    "CausalConvWithState": spatial.causal_conv,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    # normalisations
    "BatchNormalization": Op(rows.batch_norm, role="batch-norm"),
    "InstanceNormalization": Op(lambda c: instance_norm(c.x, c.operands[1:3]), masked="instance_norm"),
    "LayerNormalization": Op(rows.norm_over_last, masked="layer_norm"),
    **dict.fromkeys(("RMSNormalization", "SimplifiedLayerNormalization"), Op(rows.norm_over_last, masked="rms_norm")),
    "GroupNormalization": Op(rows.grouped_norm, masked="group_norm"),
    "LpNormalization": Op(lambda c: rows.normalized_along(c, (c.get("axis", -1),)), masked=EXACT, role="unit"),
    "MeanVarianceNormalization": Op(
        lambda c: rows.normalized_along(c, c.get("axes", (0, 2, 3))), masked="mean_variance"
    ),
    "LRN": lambda c: along(c.x, [c.y], (1,), "a response normalisation mixes neighbouring channels"),
    # element-wise, with broadcasting
    **dict.fromkeys(("Add", "Sum"), Op(rows.elementwise, sums=(0, 1))),  # of two; readers leave longer sums alone
    "Sub": Op(rows.elementwise, sums=(0,)),
    "Mul": Op(rows.elementwise, multiple="product"),
    "Div": Op(rows.elementwise, multiple="quotient"),
    "Pow": Op(rows.elementwise, role="square"),
    "Max": Op(rows.elementwise, role="bound"),
    **dict.fromkeys(("Mod", "Mean", "Min", "Where"), rows.elementwise),
    **dict.fromkeys(("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor"), rows.elementwise),
    **dict.fromkeys(("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "PRelu", "SwiGLU"), rows.elementwise),
    "Equal": lambda c: compared(c.operands, c.y),
    "Clip": Op(rows.elementwise, role="bound"),
    # element-wise, one operand
    "Sqrt": Op(rows.first_only, role="bound"),
    "Neg": Op(rows.first_only, multiple="product"),
    **dict.fromkeys(("Abs", "Sign", "Ceil", "Floor", "Round", "Reciprocal", "Exp", "Log"), rows.first_only),
    **dict.fromkeys(("Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh", "Asin", "Acos", "Atan"), rows.first_only),
    **dict.fromkeys(("Asinh", "Acosh", "Atanh", "Erf", "Not", "BitwiseNot", "IsNaN", "IsInf"), rows.first_only),
    **dict.fromkeys(("Relu", "LeakyRelu", "ThresholdedRelu", "Elu", "Celu", "Selu", "Gelu", "Mish"), rows.first_only),
    **dict.fromkeys(("HardSigmoid", "HardSwish", "Softplus", "Softsign", "Shrink", "Swish"), rows.first_only),
    "Sigmoid": Op(rows.first_only, role="sigmoid"),
    **dict.fromkeys(("Identity", "Cast"), Op(rows.first_only, multiple="product", role="copy")),
    **dict.fromkeys(("CastLike", "BitCast"), rows.first_only),
    "Dropout": Op(rows.dropout, multiple="product", role="dropout"),
    # quantised
    "QuantizeLinear": Op(quantized.quantized, zero_point=2, role="quantize"),
    "DequantizeLinear": Op(quantized.quantized, role="quantize"),
    "DynamicQuantizeLinear": quantized.dynamic,
    "QLinearConv": Op(quantized.qlinear_conv, zero_point=7),
    "QLinearMatMul": Op(quantized.qlinear_matmul, zero_point=7),
    "ConvInteger": quantized.conv_integer,
    "MatMulInteger": quantized.matmul_integer,
    "RotaryEmbedding": attention.rotary,
    # along some axes
    "Softmax": Op(rows.softmax, role="softmax", masked="choice"),
    "LogSoftmax": Op(rows.softmax, role="log-softmax", masked="choice"),
    "Hardmax": rows.softmax,
    **dict.fromkeys(("MaxPool", "LpPool", "GlobalMaxPool", "GlobalLpPool"), rows.pooling),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), Op(rows.pooling, role="pool")),
    **dict.fromkeys(("Resize", "Upsample"), rows.resize),
    "CumSum": Op(rows.cumulative, masked=EXACT),
    "CumProd": rows.cumulative,
    "TopK": Op(rows.largest, masked="topk"),
    "Trilu": lambda c: along(c.x, [c.y], (-2, -1), "a triangle of this matrix is kept", n_operands=len(c.operands)),
    "GridSample": spatial.grid_sample,
    "ReverseSequence": spatial.reversed_sequence,
    "TensorScatter": spatial.scattered_rows,
    # images and signals
    **dict.fromkeys(("RoiAlign", "MaxRoiPool"), spatial.regions),
    "Col2Im": spatial.patches,
    "CenterCropPad": spatial.center_crop,
    "DFT": spatial.fourier,
    "Det": spatial.determinant,
    "STFT": lambda c: rows.whole(c, "a Fourier transform mixes this axis"),
    "MaxUnpool": spatial.unpooled,
    "AffineGrid": lambda c: rows.whole(c, "a grid of positions"),
    # reductions
    **dict.fromkeys(
        ("ReduceL1", "ReduceLogSum"),
        partial(rows.reduction, statistic="sum"),
    ),
    "ReduceSum": Op(partial(rows.reduction, statistic="sum"), role="sum"),
    **dict.fromkeys(("ReduceL2", "ReduceSumSquare"), Op(partial(rows.reduction, statistic="sum"), role="norm")),
    "ReduceMean": Op(partial(rows.reduction, statistic="mean"), masked="reduce_mean", role="pool"),
    "ReduceMax": Op(partial(rows.reduction, statistic="extreme"), masked="choice"),
    "ReduceMin": Op(partial(rows.reduction, statistic="extreme"), masked="choice_of_least"),
    "ReduceLogSumExp": Op(partial(rows.reduction, statistic="choice"), masked="choice"),
    "ReduceProd": partial(rows.reduction, statistic="other"),
    "ArgMax": Op(rows.arg_reduction, masked="choice"),
    "ArgMin": Op(rows.arg_reduction, masked="choice_of_least"),
    # rearranging
    "Reshape": Op(rows.reshaped, role="view"),
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), Op(rows.rearranged, role="view")),
    "Transpose": Op(rows.transposed, role="turn"),
    "Expand": Op(rows.expanded, role="bound"),
    "Tile": rows.tiled,
    "DepthToSpace": rows.depth_to_space,
    "SpaceToDepth": rows.space_to_depth,
    # joining and taking parts
    "Concat": Op(
        lambda c: joined([rows.shape_of(c, i) for i in range(len(c.operands))], c.attributes["axis"]), role="join"
    ),
    "Split": rows.splits,
    "Slice": rows.slices,
    "Pad": rows.padding,
    # looking up
    "Gather": lambda c: gather(c.x, rows.shape_of(c, 1), c.get("axis", 0)),
    "GatherElements": lookups.gather_elements,
    "GatherND": lookups.gather_nd,
    **dict.fromkeys(("ScatterElements", "Scatter"), lookups.scatter_elements),
    "ScatterND": lookups.scatter_nd,
    "OneHot": lookups.one_hot,
    # made from sizes
    "Shape": Op(lambda c: opaque(c.results, _SIZES, n_operands=1), role="sizes"),
    "Size": lambda c: rows.whole(c, "the number of elements of this tensor is counted"),
    "Range": lambda c: opaque(c.results, "a range has values that depend on its size", n_operands=len(c.operands)),
    "ConstantOfShape": lambda c: create(c.y, slot="input", n_operands=1),
    "EyeLike": lambda c: rows.whole(c, "a diagonal couples rows with columns"),
    "Constant": lambda c: opaque(c.results, "a constant that is an output"),
    **dict.fromkeys(
        ("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"),
        lambda c: opaque(c.results, "a window has values that depend on its size", n_operands=len(c.operands)),
    ),
    # losses
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), lambda c: rows.whole(c, _LOSS)),
    # what depends on data
    **dict.fromkeys(("NonZero", "NonMaxSuppression", "Compress", "Unique"), lambda c: rows.whole(c, _INDEX)),
    f"{JOIN_DOMAIN}::{JOIN}": rows.branches,
    **CONTRIB,
    **ML,
    **{op: rows.refused(reason) for op, reason in BARRIERS.items()},
}
"""Operator -> row. Operators of other domains are keyed ``domain::Op``."""
