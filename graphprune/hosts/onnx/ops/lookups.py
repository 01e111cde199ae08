"""Rows of the ONNX table for look-ups: gathers and scatters at positions."""

from __future__ import annotations

from graphprune.hosts.onnx.ops.rows import shape_of, whole
from graphprune.ir.dims import Dim, Factor, Layout, factors_of
from graphprune.ir.rule import Rule, SizeSlot
from graphprune.rules.call import Call
from graphprune.rules.contraction import axes, axis
from graphprune.rules.indexing import elements


def gather_elements(c: Call) -> Rule:
    """``n e, n k @e -> n k``: an index for each element."""
    indices, at = shape_of(c, 1), c.get("axis", 0) % len(c.x)
    if any(a != b for i, (a, b) in enumerate(zip(c.x, indices, strict=True)) if i != at):
        return whole(c, f"'{c.op}' takes part of this axis")
    return elements(c.x, [indices], at, writes=False)


def scatter_elements(c: Call) -> Rule:
    """``n e, n k @e, n k -> n e``: as :func:`gather_elements`, writing."""
    return elements(c.x, [shape_of(c, 1), shape_of(c, 2)], c.get("axis", 0), writes=True)


def _nd_layouts(c: Call, batch: int) -> tuple[Layout, Layout, Layout, dict[Factor, str], dict[int, Dim]]:
    """Layouts of data, indices and of one entry per index. Several indexed axes are fixed; one is looked up."""
    indices = shape_of(c, 1)
    depth = indices[-1]
    data = axes("x", c.x)
    places = axes("i", indices[batch:-1])
    vector = axis("depth", depth)
    rows = (*data[:batch], *places)
    reads = {1: data[batch]} if depth == 1 else {}
    looked_up = data[batch : batch + depth] if depth != 1 else ()
    fixed = {f: "an index looks up positions of this axis" for dim in looked_up for f in factors_of(dim)}
    fixed.update((f, "positions are given along this axis") for f in factors_of(vector))
    return data, (*rows, vector), (*rows, *data[batch + depth :]), fixed, reads


def gather_nd(c: Call) -> Rule:
    """``GatherND``: index vectors along the last axis of the indices."""
    data, indices, result, fixed, reads = _nd_layouts(c, c.get("batch_dims", 0))
    return Rule((data, indices), (result,), fixed, reads=reads, carries=(0,))


def scatter_nd(c: Call) -> Rule:
    """``ScatterND``: every index must stay, or something is not written."""
    data, indices, updates, fixed, reads = _nd_layouts(c, 0)
    if not reads:  # nothing follows where several axes are addressed
        written = [factor for dim in indices[:-1] for factor in factors_of(dim)]
        fixed.update((factor, "every position of this axis writes something") for factor in written)
    return Rule((data, indices, updates), (data,), fixed, reads=reads, writes=indices[:-1])


def one_hot(c: Call) -> Rule:
    """``n @e -> n e``, the new axis anywhere."""
    at = c.get("axis", -1) % len(c.y)
    dims, classes = axes("x", c.x), axis("classes", c.y[at])
    slots = (SizeSlot("depth", classes),) if c.constants.get(1, (None,))[0] is not None else ()
    fixed = {} if slots else dict.fromkeys(factors_of(classes), "as many classes as are known at run time")
    result = (*dims[:at], classes, *dims[at:])
    return Rule((dims, None, None), (result,), fixed, sizes=slots, reads={0: classes})
