"""Rows of the ONNX table for quantised operators: ``QLinear*``, integer products, QDQ, packed 4-bit weights.

A removed unit of a quantised tensor holds the zero point, which stands for the number zero; a scale or a zero point
per channel is one more site of the channel. Scales and zero points of a whole tensor have no axes of interest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphprune.hosts.onnx.ops.rows import pooling, shape_of, told
from graphprune.hosts.onnx.ops.spatial import nhwc_pooling
from graphprune.ir.dims import Dim, Factor, Layout, factors_of, product
from graphprune.ir.rule import Rule, Shape, SizeSlot
from graphprune.rules.call import Call, Refusal
from graphprune.rules.contraction import axes, axis, conv, gemm, matmul
from graphprune.rules.joining import joined
from graphprune.rules.pointwise import along, pointwise

_BLOCK = "a block of this axis shares one scale"


def _vector(shape: Shape | None, dim: Dim) -> Layout | None:
    """The layout of a scale or zero point: along ``dim``, or of the whole tensor."""
    if shape is None or shape in ((), (1,)):
        return None
    if shape != (dim.size,):
        raise Refusal(f"a scale of shape {list(shape)} belongs neither to a tensor nor to an axis of it")
    return (dim,)


def _placed(c: Call, layouts: dict[int, Layout | None]) -> tuple[Layout | None, ...]:
    return tuple(layouts.get(i) if c.operand(i) is not None else None for i in range(len(c.operands)))


def quantized(c: Call) -> Rule:
    """``QuantizeLinear`` and ``DequantizeLinear``: per tensor, per axis, or in blocks along an axis."""
    dims = list(axes("x", c.x))
    at = c.get("axis", 1) % max(1, len(c.x))
    fixed: dict[Factor, str] = {}
    scale = c.operand(1)
    if scale is not None and len(scale) == len(c.x) > 1:
        size = c.get("block_size", 0) or -(-c.x[at] // scale[at])
        if c.x[at] % size:
            raise Refusal("the last block that shares a scale is not whole")
        blocks, block = axis("blocks", scale[at]), axis("block", size)
        dims[at] = product(blocks, block)
        fixed = dict.fromkeys(factors_of(block), _BLOCK)
        vectors: list[Layout | None] = [
            None if shape is None else (*dims[:at], blocks, *dims[at + 1 :]) for shape in c.operands[1:]
        ]
    else:
        vectors = [None if not shape else _vector(shape, dims[at]) for shape in c.operands[1:]]
    layout = tuple(dims)
    return Rule((layout, *vectors), (layout,), fixed)


def dynamic(c: Call) -> Rule:
    """``DynamicQuantizeLinear``: element-wise; the scale is that of the elements that are there, and of zero.

    A removed unit only makes the scale finer, so that no statistic is said to shift.
    """
    rule = pointwise((c.x,), c.y)
    return replace(rule, results=(*rule.results, *(None for _ in c.results[1:])))


def qlinear_conv(c: Call) -> Rule:
    """``QLinearConv``; ``n s... c`` where ``channels_last``."""
    x, w, bias = c.x, shape_of(c, 3), c.operand(8)
    last = bool(c.get("channels_last", 0))
    y = c.y
    if last:
        x, y = (x[0], x[-1], *x[1:-1]), (y[0], y[-1], *y[1:-1])
    rule = conv(x, w, bias, y, groups=c.get("group", 1), slot="group")
    data, weight, vector = rule.operands
    result = rule.results[0]
    assert data is not None
    assert weight is not None
    assert result is not None
    if last:
        data, result = ((*each[:1], *each[2:], each[1]) for each in (data, result))
    channels = weight[0]
    layouts = {0: data, 3: weight, 8: vector, **{i: _vector(c.operand(i), channels) for i in (4, 5)}}
    return replace(rule, operands=_placed(c, layouts), results=(result,))


def conv_integer(c: Call) -> Rule:
    """``ConvInteger``: the zero point of the weight may be one for each channel."""
    rule = conv(c.x, shape_of(c, 1), None, c.y, groups=c.get("group", 1), slot="group")
    weight = rule.operands[1]
    assert weight is not None
    return replace(rule, operands=_placed(c, {0: rule.operands[0], 1: weight, 3: _vector(c.operand(3), weight[0])}))


def _product(c: Call, a: int, b: int, rows: Sequence[int], columns: Sequence[int], bias: int | None = None) -> Rule:
    """A product of operands ``a`` and ``b``, with vectors along the rows of the one, the columns of the other."""
    left, right = shape_of(c, a), shape_of(c, b)
    rule = matmul(left, right, weights=c.stored[b] if c.stored else True)
    x, w = rule.operands[:2]
    assert x is not None
    assert w is not None
    layouts: dict[int, Layout | None] = {a: x, b: w}
    for vectors, layout, place in ((rows, x, -2), (columns, w, -1)):
        for i in vectors:
            dim = layout[place] if len(layout) > 1 else layout[-1]
            layouts[i] = _vector(c.operand(i), dim)
    if bias is not None:
        layouts[bias] = (w[-1],)
    return replace(rule, operands=_placed(c, layouts))


def qlinear_matmul(c: Call) -> Rule:
    """``QLinearMatMul``."""
    return _product(c, 0, 3, (1, 2), (4, 5))


def matmul_integer(c: Call) -> Rule:
    """``MatMulInteger``."""
    return _product(c, 0, 1, (2,), (3,))


def matmul_integer_to_float(c: Call) -> Rule:
    """``MatMulIntegerToFloat``: ``A, B, a scale, b scale, a zero, b zero, bias``."""
    return _product(c, 0, 1, (2, 4), (3, 5), 6)


def dynamic_matmul(c: Call) -> Rule:
    """``DynamicQuantizeMatMul``: ``A, B, b scale, b zero, bias``; ``A`` is quantised as it comes."""
    return _product(c, 0, 1, (), (2, 3), 4)


def qgemm(c: Call) -> Rule:
    """``QGemm``: ``A, a scale, a zero, B, b scale, b zero, C, y scale, y zero``."""
    a, b, bias = c.x, shape_of(c, 3), c.operand(6)
    rule = gemm(a, b, bias, c.y, trans_a=bool(c.get("transA", 0)), trans_b=bool(c.get("transB", 0)))
    y = rule.results[0]
    assert y is not None
    layouts = {0: rule.operands[0], 3: rule.operands[1], 6: rule.operands[2]}
    layouts.update({i: _vector(c.operand(i), y[1]) for i in (4, 5)})
    return replace(rule, operands=_placed(c, layouts))


def qlinear_elementwise(c: Call, places: Sequence[int]) -> Rule:
    """``QLinearAdd`` and the like: the operands at ``places`` broadcast to the result."""
    rule = pointwise([shape_of(c, i) for i in places], c.y)
    return replace(rule, operands=_placed(c, dict(zip(places, rule.operands, strict=True))))


def qlinear_concat(c: Call) -> Rule:
    """``QLinearConcat``: scale and zero of the result, then three operands for each part."""
    places = range(2, len(c.operands), 3)
    rule = joined([shape_of(c, i) for i in places], c.attributes["axis"])
    return replace(rule, operands=_placed(c, dict(zip(places, rule.operands, strict=True))))


def qlinear_pooling(c: Call) -> Rule:
    """``QLinearAveragePool`` and ``QLinearGlobalAveragePool``."""
    return nhwc_pooling(c) if c.get("channels_last", 0) else _only_first(pooling(c), c)


def qlinear_softmax(c: Call) -> Rule:
    """``QLinearSoftmax``: along one axis, or all from it on; quantised numbers have none that is never chosen."""
    at = c.get("axis", -1) % len(c.x)
    last = at if c.get("opset", 13) >= 13 else len(c.x) - 1
    return along(c.x, [c.y], range(at, last + 1), f"'{c.op}' runs over this axis", n_operands=len(c.operands))


def _only_first(rule: Rule, c: Call) -> Rule:
    return replace(rule, operands=(rule.operands[0], *(None for _ in c.operands[1:])))


def matmul_n_bits(c: Call) -> Rule:
    """``MatMulNBits``: ``B: n blocks bytes`` holds packed numbers; rows are free, inputs go in whole blocks.

    Zero points of less than a byte are packed too, so that blocks then go in bytes of them.
    """
    if c.get("weight_prepacked", 0) or c.operand(4) is not None:
        raise Refusal("packed weights with an order of their own")
    weight, scales, zeros = shape_of(c, 1), shape_of(c, 2), c.operand(3)
    n_blocks, size, inputs = weight[1], c.attributes["block_size"], c.attributes["K"]
    per_byte = 8 // c.get("bits", 4)
    packed = zeros is not None and zeros[-1] not in (n_blocks, weight[0] * n_blocks)
    pair = per_byte if packed else 1
    whole = inputs == n_blocks * size and n_blocks % pair == 0
    n, blob = axis("n", weight[0]), axis("blob", weight[2])
    if whole:
        major, minor, block = axis("k", n_blocks // pair), axis("pair", pair), axis("block", size)
        blocks, k, zero_blocks = product(major, minor), product(major, minor, block), major
        fixed = {f: _BLOCK for dim in (minor, block, blob) for f in factors_of(dim)}
    else:
        k, blocks = axis("k", inputs), axis("blocks", n_blocks)
        zero_blocks = axis("zeros", -(-n_blocks // pair)) if packed else blocks
        fixed = {f: _BLOCK for dim in (k, blocks, zero_blocks, blob) for f in factors_of(dim)}

    def flat(shape: Shape | None, dim: Dim) -> Layout | None:
        return None if shape is None else (n, dim) if len(shape) == 2 else (product(n, dim),)

    batch = axes("m", c.x[:-1])
    layouts = {0: (*batch, k), 1: (n, blocks, blob), 2: flat(scales, blocks), 3: flat(zeros, zero_blocks), 5: (n,)}
    labels = {f: "neuron" for dim in (n, k) for f in factors_of(dim)}
    slots = (SizeSlot("N", n), SizeSlot("K", k))
    return Rule(_placed(c, layouts), ((*batch, n),), fixed, macs=((*batch, n, k),), sizes=slots, labels=labels)


def dynamic_lstm(c: Call) -> Rule:
    """``DynamicQuantizeLSTM``: weights ``l i (gate h)`` with scales per direction, or per row of a gate."""
    columns = [shape is not None and len(shape) == 2 for shape in c.operands[8:12]]
    vectors = ", ".join("l (gate h)" if each else "l" for each in columns)
    why = {"t": "a recurrent layer runs along this axis", "l": "directions of a recurrent layer"}
    why.update(dict.fromkeys(("gate", "bias", "peep"), "gates of a recurrent layer"))
    if c.get("activations"):
        raise Refusal("a removed unit may not stay zero under other activations")
    return told(
        c, f"t b i, l i (gate h), l h (gate h), l (bias h), b, l b h, l b h, l (peep h), {vectors}",
        "t l b h, l b h, l b h", "macs t b l gate h i", "macs t b l gate h h", "size hidden_size=h",
        fixed="t l gate bias peep", labels="i=neuron h=recurrent", why=why, gate=4,
    )  # fmt: skip
