"""Rows of the ATen table: how a call of each family of operators becomes a coupling rule.

Every function takes a :class:`Call` and returns a :class:`Rule`; the names of attributes are those of the operator's
schema. Which operator has which row is said by :mod:`graphprune.hosts.torch.ops.table`. A size in an attribute that is
only known at run time is ``None`` in a list and :data:`UNKNOWN` where it stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Final

from graphprune.ir.dims import ONE, Dim, concat, factors_of, product
from graphprune.ir.notation import parse_rule
from graphprune.ir.rule import Rule, Shape, SizeSlot
from graphprune.rules import indexing, layout, normalization, pointwise, reduction
from graphprune.rules.call import Call, Refusal, Row
from graphprune.rules.contraction import axes, axis

UNKNOWN: Final = "unknown until run time"
OPEN: Final = 2**63 - 1
"""The end of a slice that goes on to the end."""

SOFTMAX = "the softmax runs over this axis"
ORDER = "the operator depends on the order along this axis"
POOLED = "spatial axis of a pooling"
RESIZED = "spatial axis of a resizing"


def present(call: Call) -> tuple[Shape, ...]:
    """The shapes of the operands that are there."""
    return tuple(shape for shape in call.operands if shape is not None)


def results(call: Call) -> tuple[Shape, ...]:
    """The shapes of all results; an unused one is taken to have the shape of one that is used."""
    return tuple(call.y if shape is None else shape for shape in call.results)


def _only_first(call: Call) -> None:
    """Refuses a call whose further results (saved statistics) are used."""
    if any(shape is not None for shape in call.results[1:]):
        raise Refusal(f"a second result of '{call.op}' is used, which has no coupling rule")


def fixing(rule: Rule, dims: Sequence[Dim], reason: str) -> Rule:
    """``rule`` with the factors of ``dims`` fixed as well."""
    more = {factor: reason for dim in dims for factor in factors_of(dim)}
    return replace(rule, fixed={**more, **rule.fixed})


# -- normalisations --------------------------------------------------------------------------------------------------


def batch_norm(call: Call) -> Rule:
    """``n c s, c, c, c, c -> n c s`` with stored statistics; those of the batch fix ``n`` and ``s``."""
    _only_first(call)
    if call.get("training", False):
        return _batch_statistics(call)
    return normalization.batch_norm(call.x, call.operands[1:], len(call.results))


def _batch_statistics(call: Call) -> Rule:
    """Statistics of the batch: channels stay apart from each other; every other axis takes part in the statistic."""
    rule = normalization.batch_norm(call.x, call.operands[1:], len(call.results))
    dims = rule.results[0]
    assert dims is not None
    return replace(rule, normalized=frozenset(f for dim in (*dims[:1], *dims[2:]) for f in factors_of(dim)))


def batch_norm_updating(call: Call) -> Rule:
    """As :func:`batch_norm` with statistics of the batch, which it returns, and those that are stored from now on."""
    rule = _batch_statistics(call)
    assert rule.results[0] is not None
    channels = (rule.results[0][1],)
    return replace(rule, results=(rule.results[0], *(channels for _ in call.results[1:])))


def layer_norm(call: Call) -> Rule:
    """``n c, c, c -> n c``, layer and RMS normalisation alike."""
    _only_first(call)
    n_axes = len(call.attributes["normalized_shape"])
    return normalization.layer_norm(
        call.x, n_axes, call.operands[1:], slot="normalized_shape", n_results=len(call.results)
    )


def group_norm(call: Call) -> Rule:
    """``n (g c) s, (g c), (g c) -> n (g c) s``."""
    return normalization.group_norm(call.x, call.attributes["num_groups"], call.operands[1:], slot="num_groups")


def native_group_norm(call: Call) -> Rule:
    """As :func:`group_norm`, with all sizes as arguments."""
    _only_first(call)
    rule = normalization.group_norm(call.x, call.attributes["group"], call.operands[1:], slot="group")
    dims = rule.results[0]
    assert dims is not None
    slots = [SizeSlot("N", dims[0]), SizeSlot("C", dims[1]), SizeSlot("HxW", product(*dims[2:]))]
    return replace(rule, results=(dims, None, None), sizes=(*rule.sizes, *(s for s in slots if s.dim.size != 1)))


def instance_norm(call: Call) -> Rule:
    """``n c s, c, c -> n c s``; a batch normalisation where the statistics are stored."""
    if not call.get("use_input_stats", True):
        return normalization.batch_norm(call.x, call.operands[1:])
    return normalization.instance_norm(call.x, call.operands[1:])


# -- element by element ----------------------------------------------------------------------------------------------


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """What shapes become when they are broadcast together."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))


def elementwise(call: Call) -> Rule:
    """Every operand is broadcast to the result."""
    return pointwise.pointwise(call.operands, call.y, len(call.results))


def first_only(call: Call) -> Rule:
    """Element by element over the first operand; the others (a type, a shape of the same tensor) take no part."""
    rule = pointwise.pointwise(call.operands[:1], call.y, len(call.results))
    return replace(rule, operands=(*rule.operands, *(None for _ in call.operands[1:])), carries=(0,))


def dropout(call: Call) -> Rule:
    """Nothing in evaluation mode."""
    if call.get("train", False):
        raise Refusal("dropout in training mode draws random numbers")
    return elementwise(call)


def prelu(call: Call) -> Rule:
    """``n c s, c -> n c s``."""
    weight = call.operand(1)
    assert weight is not None
    dims = axes("x", call.x)
    slope = (dims[1] if weight[0] != 1 and len(dims) > 1 else ONE,)
    return Rule((dims, slope if len(weight) == 1 else ()), (dims,))


def glu(call: Call) -> Rule:
    """``n c+c -> n c``: both halves lose the same units."""
    at = call.get("dim", -1) % len(call.x)
    dims = list(axes("x", call.y))
    half = dims[at]
    whole = [*dims[:at], concat(half, half), *dims[at + 1 :]]
    return Rule((tuple(whole),), (tuple(dims),))


# -- along some axes -------------------------------------------------------------------------------------------------


def along(reason: str, attribute: str = "dim") -> Row:
    """An operator that works along the axis (or axes) that ``attribute`` names; none named: along all."""

    def row(call: Call) -> Rule:
        if any(shape is not None for shape in call.operands[1:]):
            raise Refusal(f"'{call.op}' with a second tensor")
        named = call.attributes.get(attribute)
        at = [named] if isinstance(named, int) else list(named or range(len(call.x)))
        return pointwise.along(call.x, results(call), at, reason, n_operands=len(call.operands))

    return row


def choice(call: Call) -> Rule:
    """A softmax: every unit has its share of what all units of the axis get."""
    dims = axes("x", call.x)
    inner = factors_of(dims[call.attributes["dim"]]) if dims else ()
    return Rule((dims,), (dims,), choices=dict.fromkeys(inner, SOFTMAX))


def topk(call: Call) -> Rule:
    """``n e -> n k, n k @e``."""
    k, at = call.attributes["k"], call.get("dim", -1)
    if not isinstance(k, int) or k == 0:
        return along(ORDER)(call)
    used = len(call.results) > 1 and call.results[1] is not None
    return indexing.topk(call.x, k, at, pointed=used, reason="the largest are chosen along this axis")


def sort(call: Call) -> Rule:
    """``n s -> n s, n s @s``: the axis is fixed; positions of another axis may be put in order along it."""
    at = call.get("dim", -1)
    rule = pointwise.along(call.x, (call.x,) * len(call.results), (at,) if call.x else (), ORDER)
    layout = rule.operands[0]
    makes = {len(call.results) - 1: layout[at]} if layout else {}
    return replace(rule, makes=makes, carries=(0,) if len(call.results) > 1 else (), ranks=len(call.results) > 1)


def cumsum(call: Call) -> Rule:
    """A removed unit adds nothing to those behind it; units may not change places."""
    dims = axes("x", call.x)
    inner = factors_of(dims[call.attributes["dim"]]) if dims else ()
    return Rule((dims,), (dims,), ordered=frozenset(inner))


def histc(call: Call) -> Rule:
    """``s @e -> e``: how often each position occurs, where the bins are the positions."""
    bins, low, high = (call.get(name, default) for name, default in (("bins", 100), ("min", 0), ("max", 0)))
    if (low, high) != (0, bins - 1):
        raise Refusal(f"'{call.op}' whose bins are ranges of values")
    counted = " ".join(f"s{i}" for i in range(len(call.x))) or "[]"
    text = f"{counted} @e -> e; size bins=e; size max=e-1" + (f"; fixed {counted}" if call.x else "")
    return parse_rule(text, call.operands, call.results, why="what is along this axis is counted")


def one_hot(call: Call) -> Rule:
    """``n @e -> n e``."""
    if call.get("num_classes", -1) == -1:
        raise Refusal(f"'{call.op}' with as many classes as the largest number says")
    n = " ".join(f"n{i}" for i in range(len(call.x)))
    return parse_rule(f"{n or '[]'} @e -> {n} e; size num_classes=e", call.operands, call.results)


def copied(call: Call) -> Rule:
    """Element by element: the elements stay what they are."""
    return indexing.copied(call.operands, call.y)


def compared(call: Call) -> Rule:
    """Element by element, for equality."""
    return indexing.compared(call.operands, call.y)


def last(n: int, reason: str) -> Row:
    """An operator that works along the last ``n`` axes."""

    def row(call: Call) -> Rule:
        return pointwise.along(call.x, results(call), range(-n, 0), reason, n_operands=len(call.operands))

    return row


def unpool(call: Call) -> Rule:
    """``n c h w, n c h w -> n c oh ow``: indices count the places of each channel's own image."""
    n = len(call.attributes["output_size"])
    rule = pointwise.along(call.x, [call.y], range(-n, 0), POOLED)
    return replace(rule, operands=(rule.operands[0], rule.operands[0]))


def resize(n: int) -> Row:
    """Interpolation along those of the last ``n`` axes whose size changes; the others keep theirs, which is written."""

    def row(call: Call) -> Rule:
        written = call.attributes.get("output_size")
        scaled = any(call.attributes.get(name) is not None for name in _SCALES)  # a scale may be near one, and round
        at = range(-n, 0)
        kept = [] if written is None or scaled else [i for i in at if written[i] == call.x[i] == call.y[i]]
        rule = pointwise.along(
            call.x, results(call), [i for i in at if i not in kept], RESIZED, n_operands=len(call.operands)
        )
        layout = rule.results[0] or ()
        slots = tuple(SizeSlot("output_size", layout[i], n + i) for i in kept if layout[i].size != 1)
        return replace(rule, sizes=slots)

    return row


_SCALES = ("scale_factors", "scales", "scales_d", "scales_h", "scales_w")


def reduce(statistic: reduction.Statistic) -> Row:
    """A reduction over ``dim`` (all axes where there is none)."""

    def row(call: Call) -> Rule:
        if not call.x:
            return pointwise.pointwise(call.operands[:1], (), len(call.results))
        named = call.attributes.get("dim")
        at = (named,) if isinstance(named, int) else tuple(named or ())
        keep = bool(call.get("keepdim", False))
        rule = reduction.reduce(call.x, at, keep=keep, statistic=statistic, op=call.op, n_operands=len(call.operands))
        return replace(rule, results=rule.results * len(call.results))

    return row


def chosen(result: int, statistic: reduction.Statistic = "choice") -> Row:
    """The largest or smallest along an axis, whose position is result number ``result``."""

    def row(call: Call) -> Rule:
        rule, at = reduce(statistic)(call), call.attributes.get("dim")
        if not call.x or at is None:  # positions in the whole tensor
            return fixing(rule, [dim for layout in rule.operands[:1] for dim in layout or ()], ORDER)
        layout = rule.operands[0]
        assert layout is not None
        return rule if call.results[result] is None else indexing.pointing(rule, layout[at], result)

    return row


def norm(call: Call) -> Rule:
    """A norm adds nothing for a removed unit, unless its order is negative."""
    order = call.get("ord", call.get("p", 2.0))
    positive = isinstance(order, int | float) and (order >= 0 or order == inf)
    return reduce("sum" if positive else "other")(call)


def cross(call: Call) -> Rule:
    """Element by element over two operands, along an axis that is fixed."""
    rule = elementwise(call)
    assert rule.results[0] is not None
    at = call.attributes.get("dim")
    return fixing(rule, rule.results[0] if at is None else (rule.results[0][at],), ORDER)


def unfold(call: Call) -> Rule:
    """``n s -> n o w``: windows of an axis."""
    at = call.attributes["dimension"] % len(call.x)
    own, window = axis("y", call.y[at]), axis("w", call.y[-1])
    dims = axes("x", call.x)
    rule = Rule((dims,), ((*dims[:at], own, *dims[at + 1 :], window),))
    return fixing(rule, (dims[at], own, window), "windows slide along this axis")


def diagonal(call: Call) -> Rule:
    """``n a a c -> n c a``."""
    at = [call.get(name, default) % len(call.x) for name, default in (("dim1", 0), ("dim2", 1))]
    dims, own = axes("x", call.x), axis("y", call.y[-1])
    rule = Rule((dims,), ((*(dim for i, dim in enumerate(dims) if i not in at), own),))
    return fixing(rule, (*(dims[i] for i in at), own), "a diagonal runs along this axis")


# -- tensors made from nothing ---------------------------------------------------------------------------------------


def create(call: Call) -> Rule:
    """``-> a b`` with free axes."""
    return layout.create(call.y, slot="size", n_operands=len(call.operands))


def scalar(call: Call) -> Rule:
    """A tensor without axes."""
    return layout.create(call.y, n_operands=len(call.operands))


def opaque(reason: str) -> Row:
    """Results whose axes are fixed; the operands' axes do not matter."""

    def row(call: Call) -> Rule:
        return layout.opaque(call.results, reason, n_operands=len(call.operands))

    return row


def whole(reason: str) -> Row:
    """Element by element, with all axes fixed."""

    def row(call: Call) -> Rule:
        rule = elementwise(call)
        return replace(
            rule, fixed=dict.fromkeys((f for dim in rule.operands[0] or () for f in factors_of(dim)), reason)
        )

    return row


def meshgrid(call: Call) -> Rule:
    """``a, b -> a b, a b``."""
    lines = present(call)
    dims = tuple(axis(f"g{i}", shape[0] if shape else 1) for i, shape in enumerate(lines))
    grid = (dims[1], dims[0], *dims[2:]) if call.get("indexing", "ij") == "xy" and len(dims) > 1 else dims
    return Rule(tuple((dim,) if shape else () for dim, shape in zip(dims, lines, strict=True)), (grid,) * len(lines))
