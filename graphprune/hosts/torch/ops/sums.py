"""Rows of the ATen table for weighted sums: products, convolutions, attention, recurrent layers, distances."""

from __future__ import annotations

from dataclasses import replace

from graphprune.hosts.torch.ops.rows import _only_first, broadcast, fixing, present
from graphprune.ir.dims import ONE, factors_of
from graphprune.ir.notation import parse_rule
from graphprune.ir.rule import Rule
from graphprune.rules import contraction, pointwise, recurrent
from graphprune.rules.call import Call, Refusal
from graphprune.rules.contraction import axes

# -- weighted sums ---------------------------------------------------------------------------------------------------


def linear(call: Call) -> Rule:
    """``n ci, co ci, co -> n co``, refused where the weight is no matrix."""
    weight = call.operand(1)
    if weight is None or len(weight) != 2:
        raise Refusal(f"'{call.op}' with a weight that is no matrix")
    return contraction.linear(call.x, weight, call.operand(2))


def matmul(call: Call) -> Rule:
    """``b m k, b k n -> b m n`` with broadcast batch axes; a vector operand lacks ``m`` or ``n``."""
    other = call.operand(1)
    assert other is not None
    return contraction.matmul(call.x, other, weights=any(call.stored))


def addmm(call: Call) -> Rule:
    """``m n, m k, k n -> m n``, the first operand broadcast; batched and for vectors too."""
    bias, a, b = call.operands[:3]
    assert bias is not None
    assert a is not None
    assert b is not None
    product_ = contraction.matmul(a, b, weights=any(call.stored[1:]))
    (result,) = product_.results
    assert result is not None
    aligned = tuple(ONE if size == 1 else result[i - len(bias)] for i, size in enumerate(bias))
    return replace(product_, operands=(aligned, *product_.operands))


def outer(call: Call) -> Rule:
    """``m, n -> m n``."""
    return parse_rule("m, n -> m n; macs m n", call.operands)


def bilinear(call: Call) -> Rule:
    """``n a, n b, co a b, co -> n co``."""
    n = " ".join(f"n{i}" for i in range(len(call.x) - 1))
    bias = "_" if call.operand(3) is None else "co"
    text = f"{n} a, {n} b, co a b, {bias} -> {n} co; macs {n} co a b; label a=neuron b=neuron co=neuron"
    return parse_rule(text, call.operands)


def conv(call: Call) -> Rule:
    """``n (g ci) s, (g co) ci k, (g co) -> n (g co) o``, transposed where the operator says so."""
    weight = call.operand(1)
    assert weight is not None
    transposed = "transpose" in call.op or bool(call.get("transposed", False))
    return contraction.conv(
        call.x, weight, call.operand(2), call.y, groups=call.get("groups", 1), transposed=transposed
    )


def sdpa(call: Call) -> Rule:
    """``b h q d, b h k d, b h k v, 1 1 q k -> b h q v``; causal attention fixes ``q`` as well."""
    q, k, v = call.operands[:3]
    assert q is not None
    assert k is not None
    assert v is not None
    rule = contraction.sdpa(q, k, v, call.operand(3), scale=call.get("scale"))
    if call.get("is_causal", False):
        assert rule.operands[0] is not None
        rule = fixing(rule, rule.operands[0][-2:-1], "causal attention depends on the order along this axis")
    return rule


def einsum(call: Call) -> Rule:
    """What the equation says."""
    return contraction.einsum(call.attributes["equation"], present(call), weights=any(call.stored))


def grouped_mm(call: Call) -> Rule:
    """``t k, e k n, e -> t n``: rows are sorted by expert, offsets say where those of each expert end.

    The fallback that transformers traces has no need of aligned rows, but the user's module runs the kernel.
    """
    x, weight, offsets = (call.operand(i) for i in range(3))
    if x is None or weight is None or offsets is None or (len(x), len(weight)) != (2, 3) or call.operand(3) is not None:
        raise Refusal(f"'{call.op}' with operands of these ranks, or with a bias")
    itemsize = 2 if str(call.attributes["dtypes"][1]).endswith("16") else 4
    rows = 16 // itemsize  # its kernels want rows of a multiple of 16 bytes
    text = f"t k, e k n, e -> t n; fixed t; macs t k n; label k=neuron n=neuron; ordered e; multiple k={rows}"
    text += f"; multiple n={rows}"
    return parse_rule(text, (x, weight, offsets), why="rows are sorted by expert")


def cdist(call: Call) -> Rule:
    """``b p m, b r m -> b p r``."""
    batch = " ".join(f"b{i}" for i in range(len(call.x) - 2))
    if call.get("p", 2.0) <= 0 or len(call.operand(1) or ()) != len(call.x):
        raise Refusal(f"'{call.op}' with p <= 0 or broadcast operands")
    return parse_rule(f"{batch} p m, {batch} r m -> {batch} p r", call.operands)


def cosine_similarity(call: Call) -> Rule:
    """Element by element, contracted over the axis, over which both operands are normalised."""
    at = call.get("dim", 1) % (len(call.y) + 1)
    rule = pointwise.pointwise(call.operands[:2], broadcast(present(call)))
    (dims,) = rule.results
    assert dims is not None
    statistic = frozenset(factors_of(dims[at]))
    return replace(rule, results=((*dims[:at], *dims[at + 1 :]),), normalized=statistic)


def grid_sampler(call: Call) -> Rule:
    """``n c s, n o xy -> n c o``."""
    s, o = ("s0 s1", "o0 o1") if len(call.x) == 4 else ("s0 s1 s2", "o0 o1 o2")
    text = f"n c {s}, n {o} xy -> n c {o}; fixed {s} xy"
    return parse_rule(text, call.operands, call.results, why="a sampling grid addresses positions of this axis")


def embedding_bag(call: Call) -> Rule:
    """``v d, n, o -> b d``: rows of a table, summed or averaged or the largest of each bag."""
    _only_first(call)
    weighted = "_" if call.operand(3) is None else "n"
    text = f"v d, n, o, {weighted} -> b d, _, _, _; fixed v n o b; label d=neuron"
    if len(call.operand(1) or ()) == 2:
        raise Refusal(f"'{call.op}' with bags as rows")
    return parse_rule(text, call.operands, call.results, why="an index looks up rows of this axis")


def weight_norm(call: Call) -> Rule:
    """``co ci k, co 1 1 -> co ci k``; the norm is taken over all axes but one.

    Stored gains follow the norm of what stays (:mod:`graphprune.hosts.torch.gains`), which then shifts nothing.
    """
    dims = axes("x", call.x)
    gain = call.operand(1)
    assert gain is not None
    at = call.get("dim", 0)
    follows = len(call.stored) > 1 and all(call.stored[:2])
    inner = [] if follows else [f for i, dim in enumerate(dims) if i != at for f in factors_of(dim)]
    gains = tuple(ONE if s == 1 else dims[i] for i, s in enumerate(gain))
    return Rule((dims, gains), (dims,), normalized=frozenset(inner))


def lstm(call: Call) -> Rule:
    """An LSTM, GRU or plain recurrent layer, see :func:`graphprune.rules.recurrent.recurrent`."""
    gates = 4 if "lstm" in call.op else 3 if "gru" in call.op else 1
    return recurrent.recurrent(
        call.operands,
        gates=gates,
        n_states=2 if gates == 4 else 1,
        n_layers=call.attributes["num_layers"],
        biases=call.attributes["has_biases"],
        bidirectional=call.attributes["bidirectional"],
        batch_first=call.attributes["batch_first"],
    )
