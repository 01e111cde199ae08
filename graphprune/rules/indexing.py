"""Rules of look-ups: embeddings and gathers."""

from __future__ import annotations

from graphprune.ir.dims import factors_of
from graphprune.ir.rule import Rule, Shape
from graphprune.rules.contraction import axes


def gather(table: Shape, indices: Shape, at: int, *, table_first: bool = True) -> Rule:
    """``take(table, indices, axis=at)``: the axis is fixed, its place is taken by the axes of the indices.

    An embedding is a gather along axis 0: ``v d, b s -> b s d``.
    """
    at %= len(table)
    dims, places = axes("x", table), axes("i", indices)
    fixed = dict.fromkeys(factors_of(dims[at]), "an index looks up positions of this axis")
    labels = {factor: "neuron" for i, dim in enumerate(dims) if i != at for factor in factors_of(dim)}
    operands = (dims, places) if table_first else (places, dims)
    return Rule(operands, ((*dims[:at], *places, *dims[at + 1 :]),), fixed, labels=labels)
