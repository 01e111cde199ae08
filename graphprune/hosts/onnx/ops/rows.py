"""Rows of the ONNX table that need more than one line: reading attributes that moved between opsets, combined axes.

The names of size slots are those of the ONNX schema: of the attribute, or of the operand that holds the size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from graphprune.ir.dims import Dim, Factor, Layout, factors_of, product
from graphprune.ir.notation import parse_rule
from graphprune.ir.rule import Rule, Shape, SizeSlot
from graphprune.rules.call import Call, Refusal, Row
from graphprune.rules.contraction import axes, axis, einsum
from graphprune.rules.indexing import pointing, topk
from graphprune.rules.joining import padded, sliced, split
from graphprune.rules.layout import expand, reshape, tile
from graphprune.rules.normalization import group_norm, layer_norm
from graphprune.rules.pointwise import along, pointwise
from graphprune.rules.reduction import Statistic, reduce


def shape_of(c: Call, i: int) -> Shape:
    """The shape of operand ``i``, which must be there."""
    shape = c.operand(i)
    if shape is None:
        raise Refusal(f"operand {i} of '{c.op}' is absent")
    return shape


def result_shapes(c: Call) -> list[Shape]:
    """The shapes of the results that are used."""
    return [shape for shape in c.results if shape is not None]


def numbers(c: Call, name: str, operand: int, what: str) -> tuple[int, ...] | None:
    """Integers that are an attribute in old opsets and an operand in new ones; ``None`` where they are absent."""
    if (given := c.get(name)) is not None:
        return (given,) if isinstance(given, int) else tuple(given)
    if c.operand(operand) is None:
        return None
    values = c.constants.get(operand)
    if values is None or any(value is None for value in values):
        raise Refusal(f"the {what} of '{c.op}' are only known at run time")
    return tuple(value for value in values if value is not None)


_NAME = re.compile(r"[A-Za-z_]\w*")


def told(
    c: Call,
    operands: str,
    results: str,
    *clauses: str,
    fixed: str = "",
    labels: str = "",
    why: Mapping[str, str] | str = "fixed by the operator",
    **sizes: int,
) -> Rule:
    """A rule in the notation, in which operands and results that are absent, or that the text leaves out, are ``_``.

    Args:
        c: The call.
        operands: What each operand is if it is there, separated by commas.
        results: The same of the results.
        *clauses: Further clauses of the notation, as they are.
        fixed: Names of the fixed factors; those that no present tensor has are dropped.
        labels: Labels of factors (``h=head``), likewise.
        why: The reason for the fixed factors: one for all, or one for each name.
        **sizes: Sizes of factors that do not follow from the shapes.
    """

    def side(text: str, shapes: Sequence[Shape | None]) -> str:
        texts = [part.strip() for part in text.split(",")] if text else []
        texts += ["_"] * (len(shapes) - len(texts))
        return ", ".join("_" if shape is None else part for part, shape in zip(texts, shapes, strict=False))

    signature = f"{side(operands, c.operands)} -> {side(results, c.results)}"
    used = set(_NAME.findall(signature))
    text = [signature, *clauses]
    if named := [name for name in fixed.split() if name in used]:
        text.append("fixed " + " ".join(named))
    if named := [pair for pair in labels.split() if pair.partition("=")[0] in used]:
        text.append("label " + " ".join(named))
    return parse_rule("; ".join(text), c.operands, c.results, why=why, **sizes)


def with_operands(rule: Rule, operands: tuple[Layout | None, ...]) -> Rule:
    """The rule with other layouts of operands."""
    return replace(rule, operands=operands)


def refused(reason: str) -> Row:
    """The row of an operator that stays a barrier on purpose; the reason is what a user reads."""

    def row(c: Call) -> Rule:
        raise Refusal(reason)

    return row


def whole(c: Call, reason: str) -> Rule:
    """Every axis of every operand and result is fixed."""
    operands = tuple(None if shape is None else axes("x", shape) for shape in c.operands)
    results = tuple(None if shape is None else axes("y", shape) for shape in c.results)
    fixed = {f: reason for layout in (*operands, *results) if layout for dim in layout for f in factors_of(dim)}
    return Rule(operands, results, fixed)


def elementwise(c: Call) -> Rule:
    """All operands broadcast to the first result; further results (a mask) have its shape, or none that is known."""
    rule = pointwise(c.operands, c.y, len(c.results))
    return replace(rule, results=tuple(None if shape is None else rule.results[0] for shape in c.results))


def first_only(c: Call) -> Rule:
    """Element-wise in the first operand; the others are a type, a seed, a ratio."""
    rule = pointwise((c.x,), c.y, len(c.results))
    operands = (*rule.operands, *(None for _ in c.operands[1:]))
    carries = (0,) if c.op in ("Identity", "Cast", "CastLike") else ()
    results = tuple(None if shape is None else rule.results[0] for shape in c.results)
    return replace(rule, carries=carries, operands=operands, results=results)


def branches(c: Call) -> Rule:
    """The end of two branches: what comes out of one must look like what comes out of the other."""
    n = len(c.results)
    operands: list[Layout | None] = [None] * len(c.operands)
    results: list[Layout | None] = []
    fixed: dict[Factor, str] = {}
    for i, shape in enumerate(c.results):
        pair = c.operand(1 + i), c.operand(1 + n + i)
        if shape is None or any(each is None or len(each) != len(shape) for each in pair):
            raise Refusal("two branches give tensors of different rank")
        shared = axes(f"y{i}_", shape)
        results.append(shared)
        for at, each in zip((1 + i, 1 + n + i), pair, strict=True):
            assert each is not None
            layout = tuple(
                dim if size == dim.size else axis("own", size) for size, dim in zip(each, shared, strict=True)
            )
            operands[at] = layout
            for dim, size in zip(layout, shape, strict=True):
                if dim.size != size:
                    fixed.update(dict.fromkeys(factors_of(dim), "two branches differ along this axis"))
        for k, dim in enumerate(shared):
            if any(each is not None and each[k] != dim.size for each in pair):
                fixed.update(dict.fromkeys(factors_of(dim), "two branches differ along this axis"))
    return Rule(tuple(operands), tuple(results), fixed)


def dropout(c: Call) -> Rule:
    """The identity, unless it is told to train."""
    if c.operand(2) is not None and c.constants.get(2) not in ((0,), ()):
        raise Refusal("a dropout in training mode draws random numbers")
    return first_only(c)


def batch_norm(c: Call) -> Rule:
    """``n c s, c, c, c, c -> n c s`` with stored statistics."""
    if c.get("training_mode", 0):
        raise Refusal("a batch normalisation in training mode takes statistics over the batch")
    from graphprune.rules.normalization import batch_norm as rule

    return rule(c.x, c.operands[1:5], len(c.results))


def norm_over_last(c: Call) -> Rule:
    """``LayerNormalization`` and ``RMSNormalization``: from ``axis`` to the end."""
    at = c.get("axis", -1) % len(c.x)
    return layer_norm(c.x, len(c.x) - at, c.operands[1:3], n_results=len(c.results))


def normalized_along(c: Call, at: Iterable[int]) -> Rule:
    """Element-wise, with a statistic over some axes."""
    rule = pointwise((c.x,), c.y)
    layout = rule.operands[0] or ()
    return replace(rule, normalized=frozenset(f for i in at for f in factors_of(layout[i])))


def grouped_norm(c: Call) -> Rule:
    """``GroupNormalization``: scale and bias are per group in opset 18, per channel from 21 on."""
    per_group = c.get("opset", 21) < 21
    return group_norm(c.x, c.attributes["num_groups"], c.operands[1:3], slot="num_groups", per_group=per_group)


def softmax(c: Call) -> Rule:
    """Along one axis, or (before opset 13) along all axes from ``axis`` on."""
    if c.get("opset", 13) >= 13:
        at: Sequence[int] = (c.get("axis", -1),)
    else:
        at = range(c.get("axis", 1) % len(c.x), len(c.x))
    dims = axes("x", c.x)
    if c.op == "Hardmax" or len(at) != 1:
        return along(c.x, [c.y], at, f"'{c.op}' runs over this axis")
    return Rule((dims,), (dims,), choices=dict.fromkeys(factors_of(dims[at[0]]), f"'{c.op}' runs over this axis"))


def largest(c: Call) -> Rule:
    """``TopK``: ``n e -> n k, n k @e``."""
    at, k = c.get("axis", -1), c.constants.get(1, (None,))[0]
    reason = f"'{c.op}' runs over this axis"
    if k is None or not k or len(c.results) < 2:
        return along(c.x, result_shapes(c), (at,), reason, n_operands=len(c.operands))
    rule = topk(c.x, k, at, reason=reason, pointed=c.results[1] is not None, n_operands=len(c.operands))
    return replace(rule, results=tuple(None if s is None else rule.results[0] for s in c.results))


def pooling(c: Call) -> Rule:
    """Works along the axes from the third on; indices of a maximum count all elements of the operand, row by row."""
    rule = along(c.x, [c.y], range(2, len(c.x)), f"'{c.op}' runs over this axis")
    if len(c.results) < 2 or c.results[1] is None:
        return replace(rule, results=(*rule.results, *(None for _ in c.results[1:])))
    if c.get("storage_order", 0):
        raise Refusal("indices that count column by column")
    layout = rule.operands[0]
    assert layout is not None
    return replace(rule, results=(rule.results[0], rule.results[0]), makes={1: product(*layout)})


def resize(c: Call) -> Rule:
    """Works along the axes whose size changes; the new sizes of the others may be written in the operand ``sizes``."""
    changed = [i for i, (a, b) in enumerate(zip(c.x, c.y, strict=True)) if a != b]
    if c.get("keep_aspect_ratio_policy", "stretch") != "stretch":  # one scale for all of its axes
        changed = [at % len(c.x) for at in c.get("axes", range(len(c.x)))]
    rule = along(c.x, [c.y], changed, f"'{c.op}' interpolates along this axis", n_operands=len(c.operands))
    if c.operand(3) is None:
        return rule
    layout = rule.results[0] or ()
    places = [at % len(c.x) for at in c.get("axes", range(len(c.x)))]
    slots = tuple(SizeSlot("sizes", layout[at], i) for i, at in enumerate(places) if at not in changed)
    return replace(rule, sizes=slots)


def reduction(c: Call, statistic: Statistic) -> Rule:
    """A reduction over the axes of an attribute or of the second operand."""
    reduced = numbers(c, "axes", 1, "axes")
    if not reduced and c.get("noop_with_empty_axes", 0):
        return first_only(c)
    return reduce(
        c.x, reduced, keep=bool(c.get("keepdims", 1)), statistic=statistic, op=c.op, n_operands=len(c.operands)
    )


def arg_reduction(c: Call) -> Rule:
    """The position of the largest or smallest element: ``n e -> n @e``."""
    at = c.get("axis", 0)
    rule = reduce(c.x, [at], keep=bool(c.get("keepdims", 1)), statistic="choice", op=c.op)
    return pointing(rule, (rule.operands[0] or ())[at], 0)


def reshaped(c: Call) -> Rule:
    """``Reshape`` to the operand ``shape``, whose elements -1 and (unless ``allowzero``) 0 adjust themselves."""
    stored = c.constants.get(1, (None,) * len(c.y))
    return reshape(c.x, c.y, slot="shape", stored=stored, n_operands=len(c.operands))


def rearranged(c: Call) -> Rule:
    """``Flatten``, ``Squeeze``, ``Unsqueeze``: a reshape that finds its sizes itself."""
    return reshape(c.x, c.y, n_operands=len(c.operands))


def transposed(c: Call) -> Rule:
    """A permutation of axes; by default they are reversed."""
    from graphprune.rules.layout import transpose

    return transpose(c.x, c.get("perm", tuple(reversed(range(len(c.x))))))


def splits(c: Call) -> Rule:
    """``Split``: equal parts without ``split`` get one, so that each part may be cut on its own."""
    at = c.get("axis", 0)
    sizes = [shape[at % len(c.x)] if shape is not None else None for shape in c.results]
    rest = c.x[at % len(c.x)] - sum(size for size in sizes if size is not None)
    if sizes.count(None) > 1:
        raise Refusal("the sizes of unused parts of a split are not known")
    known = [rest if size is None else size for size in sizes]
    return split(c.x, at, known, slot="split", n_operands=len(c.operands))


def slices(c: Call) -> Rule:
    """``Slice`` of several axes at once: each axis follows its own rule."""
    rank = len(c.x)
    in_attributes = c.get("starts") is not None
    starts = tuple(c.get("starts")) if in_attributes else c.constants.get(1)
    ends = tuple(c.get("ends")) if in_attributes else c.constants.get(2)
    n = len(starts) if starts is not None else len(ends) if ends is not None else shape_of(c, 1)[0]
    at = numbers(c, "axes", 3, "axes") or tuple(range(n))
    steps = (None if in_attributes else numbers(c, "steps", 4, "steps")) or (1,) * n
    starts, ends = starts or (None,) * n, ends or (None,) * n
    before: list[Dim] = list(axes("x", c.x))
    after: list[Dim] = list(before)
    fixed: dict[Factor, str] = {}
    slots: list[SizeSlot] = []
    for i, (place, start, stop, step) in enumerate(zip(at, starts, ends, steps, strict=True)):
        size, new = c.x[place % rank], c.y[place % rank]
        if start is None or stop is None or step < 0:
            how = "backwards" if step < 0 else "with bounds from run time"
            rule = along((size,), [(new,)], (0,), f"a slice {how} takes part of this axis")
        else:
            rule = sliced((size,), 0, start, stop, step, start_slot=("starts", i), stop_slot=("ends", i))
        before[place % rank] = (rule.operands[0] or ())[0]
        after[place % rank] = (rule.results[0] or ())[0]
        fixed.update(rule.fixed)
        slots.extend(rule.sizes)
    rest = (None,) * (len(c.operands) - 1)
    return Rule((tuple(before), *rest), (tuple(after),), fixed, sizes=tuple(slots), carries=(0,))


def padding(c: Call) -> Rule:
    """``Pad`` with an attribute or operands; axes whose padding is only known at run time are fixed."""
    rank = len(c.x)
    pads = c.get("pads", c.constants.get(1))
    at = numbers(c, "axes", 3, "axes") or tuple(range(rank))
    if pads is None or any(pad is None for pad in pads):
        changed = [i for i in range(rank) if pads is None or c.x[i] != c.y[i]]
        return along(
            c.x, [c.y], changed, "the padding of this axis is only known at run time", n_operands=len(c.operands)
        )
    before, after = [0] * rank, [0] * rank
    for i, place in enumerate(at):
        before[place], after[place] = pads[i], pads[i + len(at)]
    return padded(c.x, before, after, constant=c.get("mode", "constant") == "constant", n_operands=len(c.operands))


def expanded(c: Call) -> Rule:
    """``Expand``: the operand ``shape`` is aligned at the right and may be shorter than the result."""
    stored = c.constants.get(1)
    length = len(stored) if stored is not None else shape_of(c, 1)[0]
    missing = len(c.y) - length
    raw = (1,) * missing + (stored if stored is not None else (None,) * length)
    rule = expand(c.x, c.y, slot="shape", stored=raw, n_operands=len(c.operands))
    slots = tuple(replace(slot, index=slot.index - missing) for slot in rule.sizes if slot.index is not None)
    return replace(rule, sizes=slots)


def tiled(c: Call) -> Rule:
    """``Tile`` by known repeats; axes that are repeated an unknown number of times are fixed."""
    repeats = c.constants.get(1)
    if repeats is None or any(n is None for n in repeats):
        changed = [
            i for i, (a, b) in enumerate(zip(c.x, c.y, strict=True)) if repeats is None or repeats[i] is None or a != b
        ]
        return along(
            c.x, [c.y], changed, "this axis is repeated a number of times that is known at run time", n_operands=2
        )
    return tile(c.x, [n for n in repeats if n is not None], slot="repeats", n_operands=2)


def cumulative(c: Call) -> Rule:
    """A running sum along an axis that must be known."""
    at = numbers(c, "axis", 1, "axes")
    if not at:
        raise Refusal("the axis of a running sum is only known at run time")
    if c.op != "CumSum":
        return along(c.x, [c.y], at, f"'{c.op}' runs over this axis", n_operands=2)
    dims = axes("x", c.x)
    return Rule((dims, None), (dims,), ordered=frozenset(factors_of(dims[at[0]])))


def depth_to_space(c: Call) -> Rule:
    """Pixel shuffle: the blocks are the major part of the channels, or (``CRD``) the minor one."""
    channels = "(c r q)" if c.get("mode", "DCR") == "CRD" else "(r q c)"
    block = c.attributes["blocksize"]
    text = f"n {channels} h w -> n c (h r) (w q); fixed r q; label c=channel"
    return parse_rule(text, (c.x,), (c.y,), why="blocks of a pixel shuffle", r=block, q=block)


def space_to_depth(c: Call) -> Rule:
    """The inverse of a pixel shuffle."""
    block = c.attributes["blocksize"]
    channels = "(c r q)" if c.get("mode", "DCR") == "CRD" else "(r q c)"
    text = f"n c (h r) (w q) -> n {channels} h w; fixed r q; label c=channel"
    return parse_rule(text, (c.x,), (c.y,), why="blocks of a pixel shuffle", r=block, q=block)


def contracted(c: Call) -> Rule:
    """``Einsum``."""
    return einsum(c.attributes["equation"], [shape_of(c, i) for i in range(len(c.operands))], weights=any(c.stored))
