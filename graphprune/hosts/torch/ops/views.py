"""Rows of the ATen table for operators that move values: views, parts and joins, look-ups, rearrangements of images.

See :mod:`graphprune.hosts.torch.ops.rows` for the others and for what a row is.
"""

from __future__ import annotations

from dataclasses import replace

from graphprune.hosts.torch.ops.rows import OPEN, POOLED, UNKNOWN, fixing, present, results
from graphprune.ir.dims import concat
from graphprune.ir.notation import parse_rule
from graphprune.ir.rule import Rule, SizeSlot
from graphprune.rules import joining, layout, pointwise
from graphprune.rules.call import Call, Refusal, Row
from graphprune.rules.contraction import axes, axis

# -- views -----------------------------------------------------------------------------------------------------------


def reshape(slot: str | None = None) -> Row:
    """A row-major reshape whose new shape is in attribute ``slot``."""

    def row(call: Call) -> Rule:
        stored = None if slot is None else call.attributes[slot]
        return layout.reshape(call.x, call.y, slot=slot, stored=stored, n_operands=len(call.operands))

    return row


def squeeze(call: Call) -> Rule:
    """Axes of size one are dropped."""
    named = call.attributes["dim"]
    if len(call.x) - len(call.y) != (1 if isinstance(named, int) else len(named)):
        raise Refusal(f"'{call.op}' names an axis longer than one, which would vanish if it were cut down to one")
    return layout.reshape(call.x, call.y)


def unflatten(call: Call) -> Rule:
    """``n (a b) -> n a b``."""
    rule = layout.reshape(call.x, call.y)
    at, sizes = call.attributes["dim"] % len(call.x), call.attributes["sizes"]
    after = rule.results[0]
    assert after is not None
    return replace(rule, sizes=tuple(SizeSlot("sizes", after[at + i], i) for i, size in enumerate(sizes) if size != -1))


def permute(call: Call) -> Rule:
    """``a b c -> c a b``."""
    return layout.transpose(call.x, [i % len(call.x) for i in call.attributes["dims"]])


def transpose(call: Call) -> Rule:
    """``a b -> b a``: two axes change places."""
    order = list(range(len(call.x)))
    if order:
        a, b = call.get("dim0", call.get("axis0", -2)), call.get("dim1", call.get("axis1", -1))
        order[a], order[b] = order[b], order[a]
    return layout.transpose(call.x, order)


def reverse_axes(call: Call) -> Rule:
    """``a b c -> c b a``."""
    return layout.transpose(call.x, range(len(call.x))[::-1])


def movedim(call: Call) -> Rule:
    """Axes move to other places, the rest keeps its order."""
    rank = len(call.x)
    source, target = (
        [i % rank for i in ((named,) if isinstance(named, int) else named)]
        for named in (call.attributes["source"], call.attributes["destination"])
    )
    order: list[int | None] = [None] * rank
    for a, b in zip(source, target, strict=True):
        order[b] = a
    rest = iter(i for i in range(rank) if i not in source)
    return layout.transpose(call.x, [next(rest) if i is None else i for i in order])


def expand(call: Call) -> Rule:
    """``k 1 -> k r``."""
    rule = layout.expand(call.x, call.y, slot="size", stored=call.attributes["size"])
    return fixing(rule, [dim for dim in rule.results[0] or () if dim.size == 0], "this axis is empty")


def repeat(call: Call) -> Rule:
    """``c -> (r c)``."""
    slot = "dims" if "tile" in call.op else "repeats"
    times = call.attributes[slot]
    if any(n is None for n in times):
        raise Refusal(f"'{call.op}' with a number of repeats that is only known at run time")
    implied = len(call.y) - len(times)  # a tile need not name the leading axes
    rule = layout.tile(call.x, (1,) * implied + tuple(times), slot=slot)
    slots = (replace(slot, index=slot.index - implied) for slot in rule.sizes if slot.index is not None)
    return replace(rule, sizes=tuple(slots))


def repeat_interleave(call: Call) -> Rule:
    """``c -> (c r)``."""
    times, at = call.attributes["repeats"], call.attributes.get("dim")
    if not isinstance(times, int):
        raise Refusal(f"'{call.op}' with a number of repeats that is only known at run time")
    if at is None:
        if len(call.x) != 1:
            raise Refusal(f"'{call.op}' without an axis flattens its operand")
        at = 0
    repeats = [1] * len(call.x)
    repeats[at] = times
    rule = layout.tile(call.x, repeats, interleave=True)
    minor = next(iter(rule.labels), None)
    slots = () if minor is None else (SizeSlot("repeats", minor),)
    if call.attributes.get("output_size") is not None:
        assert rule.results[0] is not None
        slots = (*slots, SizeSlot("output_size", rule.results[0][at]))
    return replace(rule, sizes=slots)


def view_as_real(call: Call) -> Rule:
    """``n -> n 2``."""
    dims, two = axes("x", call.x), axis("ri", 2)
    return fixing(Rule((dims,), ((*dims, two),)), (two,), "real and imaginary part")


def view_as_complex(call: Call) -> Rule:
    """``n 2 -> n``."""
    dims = axes("x", call.x)
    return fixing(Rule((dims,), (dims[:-1],)), dims[-1:], "real and imaginary part")


# -- parts and joins -------------------------------------------------------------------------------------------------


def cat(call: Call) -> Rule:
    """``n a, n c -> n a+c``."""
    shapes = present(call)
    rank = max(map(len, shapes))
    full = [shape for shape in shapes if len(shape) == rank]  # torch lets empty vectors pass as operands of any rank
    rule = joining.joined(full, call.get("dim", 0))
    parts = iter(rule.operands)
    carries = tuple(i for i, shape in enumerate(shapes) if len(shape) == rank)
    operands = tuple(next(parts) if len(shape) == rank else None for shape in shapes)
    return replace(rule, carries=carries, operands=operands)


def stack(call: Call) -> Rule:
    """``n, n -> n 2``."""
    return joining.stacked(present(call), call.get("dim", 0))


def split_with_sizes(call: Call) -> Rule:
    """``n a+b -> n a, n b``."""
    sizes = call.attributes["split_sizes"]
    at = call.get("dim", 0)
    if any(size is None for size in sizes):
        return _equal_parts(call, None)
    return joining.split(call.x, at, sizes, slot="split_sizes")


def split(call: Call) -> Rule:
    """Parts of equal size, which the operator keeps equal; ``TorchHost`` rewrites it to ``split_with_sizes``."""
    return _equal_parts(call, "split_size" if call.attributes.get("split_size") is not None else None)


def chunk(call: Call) -> Rule:
    """``n a+a -> n a, n a``."""
    return _equal_parts(call, None)


def _equal_parts(call: Call, slot: str | None) -> Rule:
    at = call.get("dim", 0) % len(call.x)
    sizes = {shape[at] for shape in results(call)}
    if len(sizes) > 1 or sizes.pop() * len(call.results) != call.x[at]:
        reason = f"'{call.op}' into parts of different or unknown sizes"
        return pointwise.along(call.x, results(call), (at,), reason)
    dims = axes("x", call.y)
    whole = (*dims[:at], concat(*[dims[at]] * len(call.results)), *dims[at + 1 :])
    slots = () if slot is None or dims[at].size == 1 else (SizeSlot(slot, dims[at]),)
    return Rule((whole,), (dims,) * len(call.results), sizes=slots, carries=(0,))


def unbind(call: Call) -> Rule:
    """``n k c -> n c, n c``."""
    return joining.unbound(call.x, call.get("dim", 0))


def select(call: Call) -> Rule:
    """``n k c -> n c``."""
    return joining.selected(call.x, call.attributes["dim"])


def slice_(call: Call) -> Rule:
    """``n a+b+c -> n b``."""
    start, stop, step = call.get("start", 0), call.get("end", OPEN), call.get("step", 1)
    at = call.get("dim", 0)
    if UNKNOWN in (start, stop, step):
        reason = "a slice of this axis has a bound that is only known at run time"
        return pointwise.along(call.x, (call.y,), (at,), reason)
    return joining.sliced(call.x, at, start, stop, step, start_slot=("start", None), stop_slot=("end", None))


def narrow(call: Call) -> Rule:
    """``n a+b+c -> n b``."""
    at, start, length = (call.attributes[name] for name in ("dim", "start", "length"))
    if UNKNOWN in (start, length):
        return pointwise.along(call.x, (call.y,), (at,), "a slice with a bound that is only known at run time")
    start = start + call.x[at] if start < 0 else start
    rule = joining.sliced(call.x, at, start, start + length, start_slot=("start", None))
    assert rule.results[0] is not None
    return replace(rule, sizes=(*rule.sizes, SizeSlot("length", rule.results[0][at])))


def slice_scatter(call: Call) -> Rule:
    """``n a+b+c, n b -> n a+b+c``."""
    at = call.get("dim", 0) % len(call.x)
    start, stop, step = call.get("start", 0), call.get("end", OPEN), call.get("step", 1)
    if UNKNOWN in (start, stop):
        reason = "a slice with a bound that is only known at run time is overwritten"
        rule = pointwise.along(call.x, (call.y,), (at,), reason, n_operands=2)
        before, after = rule.operands[0], rule.results[0]
        assert before is not None
        assert after is not None
        own = axis("p", (call.operand(1) or ())[at])
        source = (*before[:at], own, *before[at + 1 :])
        return fixing(replace(rule, operands=(before, source)), (own,), reason)
    rule = joining.sliced(call.x, at, start, stop, step, start_slot=("start", None), stop_slot=("end", None))
    return replace(rule, operands=(rule.operands[0], rule.results[0]), results=(rule.operands[0],), carries=(0, 1))


def select_scatter(call: Call) -> Rule:
    """``n k c, n c -> n k c``."""
    rule = joining.selected(call.x, call.attributes["dim"])
    return replace(rule, operands=(rule.operands[0], rule.results[0]), results=(rule.operands[0],), carries=(0, 1))


def pad(call: Call) -> Rule:
    """``n c -> n l+c+r``."""
    amounts = call.attributes.get("pad", call.attributes.get("padding"))
    if amounts is None or any(n is None for n in amounts):
        raise Refusal(f"'{call.op}' by amounts that are only known at run time")
    before, after = [0] * len(call.x), [0] * len(call.x)
    for i in range(len(amounts) // 2):  # the last axis comes first
        before[-1 - i], after[-1 - i] = amounts[2 * i], amounts[2 * i + 1]
    constant = call.get("mode", "constant") == "constant" and "pad" in call.attributes
    return joining.padded(call.x, before, after, constant=constant)


# -- rearrangements of images ----------------------------------------------------------------------------------------


def pixel_shuffle(call: Call) -> Rule:
    """``n (c r q) h w -> n c (h r) (w q)``."""
    r = call.attributes["upscale_factor"]
    batch = " ".join(f"n{i}" for i in range(len(call.x) - 3))
    text = f"{batch} (c r q) h w -> {batch} c (h r) (w q); fixed r q; label c=channel"
    return parse_rule(text, call.operands, call.results, why="upscaling factor", r=r, q=r)


def pixel_unshuffle(call: Call) -> Rule:
    """``n c (h r) (w q) -> n (c r q) h w``."""
    r = call.attributes["downscale_factor"]
    batch = " ".join(f"n{i}" for i in range(len(call.x) - 3))
    text = f"{batch} c (h r) (w q) -> {batch} (c r q) h w; fixed r q; label c=channel"
    return parse_rule(text, call.operands, call.results, why="downscaling factor", r=r, q=r)


def channel_shuffle(call: Call) -> Rule:
    """``n (g c) s -> n (c g) s``."""
    s = " ".join(f"s{i}" for i in range(len(call.x) - 2))
    text = f"n (g c) {s} -> n (c g) {s}; size groups=g; label g=channel c=channel"
    return parse_rule(text, call.operands, call.results, g=call.attributes["groups"])


def im2col(call: Call) -> Rule:
    """``n c h w -> n (c k) l``."""
    batch = "n " if len(call.x) == 4 else ""
    k = call.attributes["kernel_size"]
    text = f"{batch}c h w -> {batch}(c k) l; fixed h w k l"
    return parse_rule(text, call.operands, call.results, why=POOLED, k=k[0] * k[-1])


def col2im(call: Call) -> Rule:
    """``n (c k) l -> n c h w``."""
    batch = "n " if len(call.x) == 3 else ""
    k = call.attributes["kernel_size"]
    text = f"{batch}(c k) l -> {batch}c h w; fixed h w k l"
    return parse_rule(text, call.operands, call.results, why=POOLED, k=k[0] * k[-1])
