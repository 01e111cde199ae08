"""Rows of the ONNX table for images and signals: regions, patches, sampling, transforms along an axis."""

from __future__ import annotations

from graphprune.hosts.onnx.ops.rows import numbers, result_shapes, shape_of, told
from graphprune.ir.dims import factors_of, product
from graphprune.ir.notation import parse_rule
from graphprune.ir.rule import Rule, SizeSlot
from graphprune.rules.call import Call, Refusal
from graphprune.rules.contraction import KERNEL, SPATIAL, axes
from graphprune.rules.pointwise import along


def grid_sample(c: Call) -> Rule:
    """``n c s..., n o... d -> n c o...``."""
    n = len(c.x) - 2
    s, o = (" ".join(f"{name}{i}" for i in range(n)) for name in "so")
    return parse_rule(
        f"n c {s}, n {o} d -> n c {o}; fixed {s} {o} d", (c.x, shape_of(c, 1)), (c.y,), why="a grid of positions"
    )


def unpooled(c: Call) -> Rule:
    """``MaxUnpool``: ``n c s..., n c s... @(n c o...) -> n c o...``; indices count all elements of the result."""
    dims, made = axes("x", c.x), axes("y", c.y)
    result = (*dims[:2], *made[2:])
    why = f"'{c.op}' runs over this axis"
    fixed = {factor: why for dim in (*dims[2:], *made[2:]) for factor in factors_of(dim)}
    stored = c.constants.get(2, ())
    slots = tuple(SizeSlot("output_shape", result[i], i) for i in (0, 1) if stored and stored[i] == result[i].size > 1)
    rest = (None,) * (len(c.operands) - 2)
    return Rule((dims, dims, *rest), (result,), fixed, sizes=slots, reads={1: product(*result)})


def regions(c: Call) -> Rule:
    """``RoiAlign`` and ``MaxRoiPool``: ``n c h w, r box, r -> r c oh ow``."""
    return told(c, "n c h w, r box, r", "r c oh ow", fixed="n h w r box oh ow", why="regions of an image")


def deformable(c: Call) -> Rule:
    """``DeformConv``: a convolution whose positions come from offsets, the same for all channels of an offset group."""
    n = len(c.x) - 2
    s, o, k = (" ".join(f"{name}{i}" for i in range(n)) for name in "sok")
    shared = c.get("offset_group", 1) == 1
    why = {f"{name}{i}": SPATIAL for name in "so" for i in range(n)} | {f"k{i}": KERNEL for i in range(n)}
    why |= dict.fromkeys(("off", "m"), "offsets of a deformable convolution")
    why |= dict.fromkeys(("g", "ci"), "channels share offsets in groups")
    clauses = (f"macs n g co ci {k} {o}", *(() if c.get("group", 1) == 1 else ("size group=g",)))
    return told(
        c, f"n (g ci) {s}, (g co) ci {k}, n off {o}, (g co), n m {o}", f"n (g co) {o}", *clauses,
        fixed=f"{s} {o} {k} off m" + ("" if shared else " g ci"), labels="g=channel ci=channel co=channel", why=why,
        g=c.get("group", 1),
    )  # fmt: skip


def patches(c: Call) -> Rule:
    """``Col2Im``: columns of patches are summed into an image, ``n (c k) l -> n c h w``."""
    block = c.constants.get(2)
    if block is None or any(size is None for size in block):
        raise Refusal("the patch size of 'Col2Im' is only known at run time")
    axes = " ".join(f"s{i}" for i in range(len(c.y) - 2))
    return told(
        c, "n (ch k) l", f"n ch {axes}", fixed=f"k l {axes}", labels="ch=channel", why="patches of an image", ch=c.y[1]
    )


def center_crop(c: Call) -> Rule:
    """``CenterCropPad``: axes that change are cut or padded in the middle."""
    given = c.get("axes", range(len(c.x)))
    return along(c.x, [c.y], given, "this axis is cut or padded to a given size", n_operands=2)


def fourier(c: Call) -> Rule:
    """``DFT``: along one axis; the last one holds real and imaginary parts."""
    opset_axis = c.get("axis", 1) if c.get("opset", 20) < 20 else None
    if opset_axis is None:
        given = numbers(c, "", 2, "axis") if c.operand(2) is not None else (-2,)
        assert given is not None
        opset_axis = given[0]
    axes = (opset_axis, len(c.x) - 1)
    return along(c.x, [c.y], axes, "a Fourier transform mixes this axis", n_operands=len(c.operands))


def reversed_sequence(c: Call) -> Rule:
    """``ReverseSequence``: part of the time axis is turned around, a different part for each of the batch."""
    axes = (c.get("time_axis", 0), c.get("batch_axis", 1))
    return along(c.x, [c.y], axes, "sequences are turned around along this axis", n_operands=2)


def scattered_rows(c: Call) -> Rule:
    """``TensorScatter``: a cache is written at positions along an axis."""
    at = c.get("axis", -2) % len(c.x)
    names = [f"x{i}" for i in range(len(c.x))]
    names[at] = "cache"
    update = [*names[:at], "new", *names[at + 1 :]]
    return told(
        c, f"{' '.join(names)}, {' '.join(update)}, x0", " ".join(names), fixed="cache new x0",
        why="positions of a cache are written",
    )  # fmt: skip


def causal_conv(c: Call) -> Rule:
    """``CausalConvWithState``: depthwise along the last axis."""
    return told(
        c, "n c l, c 1 k, c, n c p", "n c l, n c p", "macs n c l k", fixed="l k p", labels="c=channel",
        why="a convolution runs along this axis",
    )  # fmt: skip


def determinant(c: Call) -> Rule:
    """``Det`` and ``Inverse``: square matrices in the last two axes."""
    names = " ".join(f"n{i}" for i in range(len(c.x) - 2))
    result = names if len(c.y) == len(c.x) - 2 else f"{names} r c"
    return told(c, f"{names} r c", result or "[]", fixed="r c", why="a matrix is inverted as a whole")


def nhwc_pooling(c: Call) -> Rule:
    """Pooling of ``n s... c``."""
    axes = range(1, len(c.x) - 1)
    return along(c.x, result_shapes(c), axes, f"'{c.op}' runs over this axis", n_operands=len(c.operands))
