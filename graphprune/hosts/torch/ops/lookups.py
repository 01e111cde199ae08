"""Rows of the ATen table for look-ups: gathers, scatters and writes at positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphprune.hosts.torch.ops.rows import ORDER, broadcast, fixing
from graphprune.ir.dims import ONE, Dim
from graphprune.ir.rule import Rule
from graphprune.rules import indexing
from graphprune.rules.call import Call, Refusal
from graphprune.rules.contraction import axes, axis

# -- look-ups --------------------------------------------------------------------------------------------------------


def embedding(call: Call) -> Rule:
    """``v d, b s -> b s d``."""
    indices = call.operand(1)
    assert indices is not None
    return indexing.gather(call.x, indices, 0)


def index_select(call: Call) -> Rule:
    """``v d, i -> i d``."""
    indices = call.operand(1)
    assert indices is not None
    return indexing.gather(call.x, indices or (1,), call.attributes["dim"])


def index(call: Call) -> Rule:
    """Advanced indexing: the indices' own axes take the place of the indexed ones (or come first)."""
    dims, operands, taken, result = _indexed(call)
    return _addressed(Rule((dims, *operands), (result,), carries=(0,)), call, dims, taken)


def index_put(call: Call) -> Rule:
    """``v d, i @v, i d -> v d``: written at indexed positions."""
    if call.attributes["dtypes"][1:-1].count("bool"):
        raise Refusal("values are written where a mask says so")
    dims, operands, taken, written = _indexed(replace(call, operands=call.operands[:-1]))
    values = call.operands[-1]
    assert values is not None
    source = tuple(ONE if size == 1 else written[i - len(values)] for i, size in enumerate(values))
    places = tuple(dim for operand in operands if operand is not None for dim in operand)
    return _addressed(Rule((dims, *operands, source), (dims,), writes=places), call, dims, taken)


def _addressed(rule: Rule, call: Call, dims: Sequence[Dim], taken: Sequence[int]) -> Rule:
    """What the indices say of the axes that they address; a mask fixes them."""
    if call.attributes["dtypes"][1 + taken[0]] in ("bool", "uint8"):
        return fixing(rule, [dims[i] for i in taken], "positions of this axis are chosen by a mask")
    return replace(rule, reads={1 + i: dims[i] for i in taken})


def _indexed(call: Call) -> tuple[tuple[Dim, ...], list[tuple[Dim, ...] | None], list[int], tuple[Dim, ...]]:
    dims = axes("x", call.x)
    indices = call.operands[1:]
    taken = [i for i, shape in enumerate(indices) if shape is not None]
    if any(call.attributes["dtypes"][1 + i] in ("bool", "uint8") for i in taken):
        if len(taken) > 1:
            raise Refusal("positions are chosen by several masks")
        return _masked(call, dims, taken[0])
    places = axes("i", broadcast([shape for shape in indices if shape is not None]))
    operands = [
        None if shape is None else tuple(ONE if size == 1 else places[i - len(shape)] for i, size in enumerate(shape))
        for shape in indices
    ]
    rest = [dim for i, dim in enumerate(dims) if i not in taken]
    at = taken[0] if taken == list(range(taken[0], taken[-1] + 1)) else 0
    return dims, operands, taken, (*rest[:at], *places, *rest[at:])


def _masked(
    call: Call, dims: tuple[Dim, ...], at: int
) -> tuple[tuple[Dim, ...], list[tuple[Dim, ...] | None], list[int], tuple[Dim, ...]]:
    mask = call.operands[1 + at]
    assert mask is not None
    taken = list(range(at, at + len(mask)))
    found = axis("found", call.y[at])
    operands = [None if i != at else dims[at : at + len(mask)] for i in range(len(call.operands) - 1)]
    return dims, operands, taken, (*dims[:at], found, *dims[at + len(mask) :])


def gather(call: Call) -> Rule:
    """``torch.gather``: ``n e, n k @e -> n k``."""
    return indexing.elements(call.x, call.operands[1:], call.attributes["dim"], writes=False)


def take_along(call: Call) -> Rule:
    """As :func:`gather`, where nothing is broadcast or flattened."""
    at, shape = call.get("dim"), call.operand(1) or ()
    if (
        at is None
        or len(shape) != len(call.x)
        or any(a != b for i, (a, b) in enumerate(zip(call.x, shape, strict=True)) if i != at % len(shape))
    ):
        raise Refusal(f"'{call.op}' with broadcast or flattened operands")
    return gather(call)


def scatter(call: Call) -> Rule:
    """``torch.scatter`` and its kin: ``n e, n k @e, n k -> n e``."""
    return indexing.elements(call.x, call.operands[1:], call.attributes["dim"], writes=True)


def masked_scatter(call: Call) -> Rule:
    """``b s d, b s 1, n d -> b s d``: rows are put where a mask says; axes that it does not tell apart are free."""
    mask, source = call.operand(1), call.operand(2)
    assert mask is not None
    assert source is not None
    told = max((i for i, size in enumerate(mask, len(call.x) - len(mask)) if size != 1), default=-1) + 1
    whole = len(call.x) - told
    if len(mask) > len(call.x) or len(source) < whole or source[len(source) - whole :] != call.x[told:]:
        raise Refusal(f"'{call.op}' from a source whose rows are not those that the mask chooses")
    dims, rows = axes("x", call.x), axes("n", source[: len(source) - whole])
    chosen = tuple(ONE if size == 1 else dims[i - len(mask)] for i, size in enumerate(mask))
    rule = Rule((dims, chosen, (*rows, *dims[told:])), (dims,))
    return fixing(rule, (*dims[:told], *rows), "values are written where a mask says so")


def index_add(call: Call) -> Rule:
    """``v d, i @v, i d -> v d``."""
    at = call.attributes["dim"] % max(1, len(call.x))
    dims, places, source = axes("x", call.x), call.operand(1), call.operand(2)
    own = axis("i", places[0]) if places else ONE
    third = () if source is None else ((*dims[:at], own, *dims[at + 1 :]) if source else (),)
    operands = (dims, (own,) if places else (), *third)
    return Rule(operands, (dims,), reads={1: dims[at]} if dims else {}, writes=(own,))


def bucketize(call: Call) -> Rule:
    """Element by element; the edges are fixed."""
    dims, edges = axes("x", call.x), axes("e", call.operand(1) or ())
    return fixing(Rule((dims, edges), (dims,)), edges, ORDER)
