"""Rows of the ONNX table for whole layers: attention, rotary embedding, recurrent layers, quantisation, sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graphprune.frontends.onnx_rows import shape_of
from graphprune.ir.dims import Layout, factors_of
from graphprune.ir.notation import parse_rule
from graphprune.ir.rule import Rule, Shape
from graphprune.rules.call import Call, Refusal
from graphprune.rules.contraction import axes, axis, sdpa


def attention(c: Call) -> Rule:
    """``Attention`` (opset 23) without a cache: ``b h s d``, or ``b s (h d)`` with head counts in attributes."""
    if any(shape is not None for shape in c.operands[4:]) or any(shape is not None for shape in c.results[1:]):
        raise Refusal("an attention with a key-value cache changes the interface of the model")
    q, k, v, mask = c.x, shape_of(c, 1), shape_of(c, 2), c.operand(3)
    scale = c.get("scale")
    if len(q) == 4:
        rule = sdpa(q, k, v, mask, scale=scale)
    else:
        rule = _packed_attention(c, q, k, v, mask, scale)
    if c.get("is_causal", 0):
        queries = (rule.operands[0] or ())[-2 if len(q) == 4 else 1]
        rule = replace(
            rule, fixed={**rule.fixed, **dict.fromkeys(factors_of(queries), "causal attention counts along this axis")}
        )
    rest = (None,) * (len(c.operands) - len(rule.operands))
    return replace(
        rule,
        operands=(*rule.operands, *rest)[: len(c.operands)],
        results=(*rule.results, *(None for _ in c.results[1:])),
    )


def _packed_attention(c: Call, q: Shape, k: Shape, v: Shape, mask: Shape | None, scale: float | None) -> Rule:
    heads, shared = c.attributes["q_num_heads"], c.attributes["kv_num_heads"]
    names = ("b", "(h r)", "q", "k")
    if mask is None:
        masked = "_"
    else:
        pairs = zip(mask, names[4 - len(mask) :], strict=True)
        masked = " ".join("1" if size == 1 else name for size, name in pairs)
    value = scale if scale is not None else (q[-1] // heads) ** -0.5
    text = (
        f"b q (h r d), b k (h d), b k (h v), {masked} -> b q (h r v); fixed k; macs b h r q k d; macs b h r q k v"
        f"; size q_num_heads=(h r); size kv_num_heads=h; label d=qk-dim v=value-dim h=head r=query-head"
        f"; pin scale={value!r}"
    )
    why = "the softmax of attention runs over this axis"
    return parse_rule(text, (q, k, v, mask), (c.y,), why=why, h=shared, r=heads // shared)


def quantized(c: Call) -> Rule:
    """``QuantizeLinear`` and ``DequantizeLinear``, per tensor or per axis: scales and zero points are sites."""
    if c.get("block_size", 0):
        raise Refusal("blocked quantisation shares a scale among neighbours")
    dims = axes("x", c.x)
    at = c.get("axis", 1)
    vectors: list[Layout | None] = []
    for shape in c.operands[1:]:
        if shape is None or len(shape) == 0:
            vectors.append(None if shape is None else ())
        elif len(shape) == 1:
            vectors.append((axis("one", 1) if shape[0] == 1 else dims[at],))
        else:
            raise Refusal("blocked quantisation shares a scale among neighbours")
    return Rule((dims, *vectors), (dims,))


def rotary(c: Call) -> Rule:
    """``RotaryEmbedding`` (opset 23) of 4-D operands: units are pairs, the caches hold one column for each."""
    if len(c.x) != 4 or c.get("rotary_embedding_dim", 0):
        raise Refusal("a rotary embedding of part of a head, or of packed heads")
    pair = "(p two)" if c.get("interleaved", 0) else "p+p"
    caches = "m p, m p, b s" if c.operand(3) is not None else "b s p, b s p, _"
    text = f"b h s {pair}, {caches} -> b h s {pair}; fixed" + (" m" if c.operand(3) is not None else "")
    if c.get("interleaved", 0):
        text += " two"
    if text.endswith("fixed"):
        text = text[: -len("; fixed")]
    operands = [*c.operands, *([None] * (4 - len(c.operands)))]
    rule = parse_rule(text, operands, (c.y,), why="pairs and positions of a rotary embedding", p=c.x[-1] // 2)
    return replace(rule, operands=rule.operands[: len(c.operands)])


def grid_sample(c: Call) -> Rule:
    """``n c s..., n o... d -> n c o...``."""
    n = len(c.x) - 2
    s, o = (" ".join(f"{name}{i}" for i in range(n)) for name in "so")
    return parse_rule(
        f"n c {s}, n {o} d -> n c {o}; fixed {s} d", (c.x, shape_of(c, 1)), (c.y,), why="a grid of positions"
    )


_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ZERO_KEEPING: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "LSTM": (("Sigmoid", "Tanh", "Tanh"),),
    "GRU": (("Sigmoid", "Tanh"),),
    "RNN": (("Tanh",), ("Relu",)),
}


def recurrent(c: Call) -> Rule:
    """``LSTM``, ``GRU``, ``RNN``: both directions share their hidden units.

    A removed unit is one whose weights, biases and initial state are zero: its state stays zero, so the others do not
    see it. That takes activations that keep zero where the operator has them.
    """
    activations = tuple(c.get("activations", ()))
    usual = _ZERO_KEEPING[c.op]
    n = len(usual[0])
    if any(activations[i : i + n] not in usual for i in range(0, len(activations), n)):
        raise Refusal(f"a removed unit may not stay zero under the activations {', '.join(activations)} of '{c.op}'")
    batch_first = bool(c.get("layout", 0))
    sequence, state = ("b t i", "b l h") if batch_first else ("t b i", "l b h")
    result = "b t l h" if batch_first else "t l b h"
    present = [*c.operands, *([None] * (8 - len(c.operands)))]
    operands = (sequence, "l (gate h) i", "l (gate h) h", "l (bias h)", "b", state, state, "l (peep h)")
    left = ", ".join("_" if shape is None else text for text, shape in zip(operands, present, strict=True))
    results = zip((result, state, state), c.results, strict=False)
    right = ", ".join("_" if shape is None else text for text, shape in results)
    fixed = ["t", "l", "gate"]
    fixed.extend(name for name, i in (("bias", 3), ("peep", 7)) if present[i] is not None)
    text = (
        f"{left} -> {right}; fixed {' '.join(fixed)}; macs t b l gate h i; macs t b l gate h h"
        "; size hidden_size=h; label i=neuron h=recurrent"
    )
    why = {"t": "a recurrent layer runs along this axis", "l": "directions of a recurrent layer"}
    why.update(dict.fromkeys(("gate", "bias", "peep"), "gates of a recurrent layer"))
    rule = parse_rule(text, present, c.results, why=why, gate=_GATES[c.op])
    return replace(rule, operands=rule.operands[: len(c.operands)])
