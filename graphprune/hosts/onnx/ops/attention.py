"""Rows of the ONNX table for attention: of the default domain, and the fused ones of onnxruntime.

All are one rule over query heads ``(h r)`` (``r`` for each key-value head ``h``), query-key dims ``d`` and value dims
``v``. The scale, which defaults to the root of the head size, is pinned to what it is now.
"""

from __future__ import annotations

from graphprune.hosts.onnx.ops.rows import shape_of, told
from graphprune.ir.rule import Rule, Shape
from graphprune.rules.call import Call, Refusal

_LABELS = "d=qk-dim v=value-dim h=head r=query-head"
_WHY = {
    "k": "the softmax of attention runs over this axis",
    "q": "causal attention counts along this axis",
    "new": "the softmax of attention runs over this axis",
    "short": "the softmax of attention runs over this axis",
    "past": "a key-value cache",
    "p": "pairs of a rotary embedding",
    "m": "positions of a rotary embedding",
    "two": "pairs and parts of packed heads",
    "three": "pairs and parts of packed heads",
    "d": "onnxruntime takes head sizes in steps of 8 or 16 here",
}


def _mask(shape: Shape | None) -> str:
    """A mask or bias that broadcasts to ``b (h r) q k``."""
    if shape is None:
        return "_"
    names = ("b", "(h r)", "q", "k")[4 - len(shape) :]
    return " ".join("1" if size == 1 else name for size, name in zip(shape, names, strict=True)) or "[]"


def _padding(shape: Shape | None, batch: int) -> str:
    """A padding mask: a length for each of the batch, or numbers along the keys."""
    if shape is None or (len(shape) == 1 and shape[0] != batch) or len(shape) > 3:
        return "_"
    return ("b", "b k", "b q k")[len(shape) - 1]


def _scale(c: Call, head_size: int) -> str:
    scale = c.get("scale", 0.0) or head_size**-0.5
    return f"pin scale={float(scale)!r}"


def _macs(keys: str, value: str = "v", heads: str = "h r") -> tuple[str, str]:
    return f"macs b {heads} q {keys} d", f"macs b {heads} q {keys} {value}"


def attention(c: Call) -> Rule:
    """``Attention`` (opset 23) of ``b h s d``, or of ``b s (h d)`` with head counts in attributes, and with a cache."""
    q, k, past = c.x, shape_of(c, 1), c.operand(4)
    packed = len(q) == 3
    heads, shared = (c.attributes["q_num_heads"], c.attributes["kv_num_heads"]) if packed else (q[1], k[1])
    total = k[-2] + (past[2] if past is not None else 0)
    new = "k" if past is None else "new"
    if packed:
        data, result = f"b q (h r d), b {new} (h d), b {new} (h v)", "b q (h r v)"
    else:
        data, result = f"b (h r) q d, b h {new} d, b h {new} v", "b (h r) q v"
    mask = c.operand(3)
    masked = _mask(mask)
    if mask is not None and mask[-1] not in (1, total):  # padded to the keys
        masked = f"{_mask((*mask[:-1], 1)).removesuffix('1')}short"
    counting = c.get("is_causal", 0) or c.get("left_window_size", -1) >= 0 or c.get("right_window_size", -1) >= 0
    return told(
        c, f"{data}, {masked}, b h past d, b h past v, b", f"{result}, b h k d, b h k v, b (h r) q k",
        *_macs(new), *(("size q_num_heads=(h r)", "size kv_num_heads=h") if packed else ()),
        _scale(c, q[-1] // heads if packed else q[-1]),
        fixed="k new past short" + (" q" if counting else ""), labels=_LABELS, why=_WHY,
        h=shared, r=heads // shared, k=total,
    )  # fmt: skip


def multi_head(c: Call) -> Rule:
    """``MultiHeadAttention``: equally many heads everywhere; query, key and value apart, or packed per head."""
    if any(c.operand(i) is not None for i in (8, 9)):
        raise Refusal("an attention with a shared cache buffer")
    q, key, value, past, heads = c.x, c.operand(1), c.operand(2), c.operand(6), c.attributes["num_heads"]
    v = "v"
    if len(q) == 5:
        new, v, data, length = "q", "d", "b q h three d, _, _", q[1]
    elif key is None:
        raise Refusal("an attention without keys")
    elif len(key) == 5:
        new, v, length = "new", "d", key[1]
        data = "b q (h d), b new h two d, _"
    elif len(key) == 4:
        new, v, data, length = "k", "d", "b q (h d), b h k d, b h k d", key[2]
    else:
        new, length = "k" if past is None else "new", key[1]
        v = "v" if past is None else "d"
        data = f"b q (h d), b {new} (h d), b {new} (h {v})"
    if value is None and len(key or q) != 5:
        raise Refusal("an attention without values")
    bias = _mask(c.operand(5)).replace("(h r)", "h")
    return told(
        c, f"{data}, (h d)+(h d)+(h {v}), {_padding(c.operand(4), q[0])}, {bias}, b h past d, b h past {v}",
        f"b q (h {v}), b h k d, b h k {v}, b h q k", *_macs(new, v, "h"), "size num_heads=h",
        _scale(c, q[-1] if len(q) == 5 else q[-1] // heads),
        fixed="k new past two three" + (" q" if c.get("unidirectional", 0) else ""), labels=_LABELS, why=_WHY,
        h=heads, k=length + (past[2] if past is not None else 0),
    )  # fmt: skip


def packed_weights(c: Call, quantized: bool = False) -> Rule:
    """Onnxruntime's first ``Attention``, and ``QAttention``: it holds the projections ``i (h d)+(h d)+(h v)`` too.

    Without ``qkv_hidden_sizes`` values are as wide as keys, and their units go together.
    """
    if c.get("do_rotary", 0):
        raise Refusal("an attention that rotates inside")
    heads, weight = c.attributes["num_heads"], c.operands[1]
    assert weight is not None
    sizes = tuple(c.get("qkv_hidden_sizes", ()))
    query = sizes[0] if sizes else weight[1] // 3
    v = "v" if sizes else "d"
    columns = f"(h d)+(h d)+(h {v})"
    past = c.operand(8 if quantized else 4)
    slots = ("size num_heads=h", *(() if not sizes else (
        "size qkv_hidden_sizes[0]=(h d)", "size qkv_hidden_sizes[1]=(h d)", f"size qkv_hidden_sizes[2]=(h {v})"
    )))  # fmt: skip
    cache = "two b h past d"
    if quantized:
        scale = c.operand(4)
        per_column = columns if scale is not None and scale != (1,) and scale != () else "_"
        zero = c.operand(7)
        zeros = columns if zero is not None and zero != (1,) and zero != () else "_"
        mask = _padding(c.operand(5), c.x[0])
        data = f"b q i, i {columns}, {columns}, _, {per_column}, {mask}, _, {zeros}, {cache}"
    else:
        bias = _mask(c.operand(5)).replace("(h r)", "h")
        data = f"b q i, i {columns}, {columns}, {_padding(c.operand(3), c.x[0])}, {cache}, {bias}"
    total = c.x[1] + (past[3] if past is not None else 0)
    return told(
        c, data, f"b q (h {v}), two b h k d", f"macs b q i {columns}", *_macs("q", v, "h"), *slots,
        _scale(c, query // heads), fixed="q k past two", labels=f"{_LABELS} i=neuron", why=_WHY, h=heads,
        d=query // heads, k=total,
    )  # fmt: skip


def grouped_query(c: Call) -> Rule:
    """``GroupQueryAttention``: packed heads, ``r`` query heads for each key-value head; one size for all heads."""
    heads, shared, _past = c.attributes["num_heads"], c.attributes["kv_num_heads"], c.operand(3)
    if any(c.operand(i) is not None for i in (12, 13)):
        raise Refusal("an attention with a quantised cache")
    apart = c.operand(1) is not None
    d = c.x[-1] // heads if apart else c.x[-1] // (heads + 2 * shared)
    query = "b q (h r d)" if apart else "b q (h r d)+(h d)+(h d)"
    bias = _mask(c.operand(10))
    return told(
        c,
        f"{query}, b q (h d), b q (h d), b h past d, b h past d, b, _, m p, m p, _, {bias}, (h r), _, _, d, d",
        "b q (h r d), b h k d, b h k d, b (h r) q k", *_macs("q", "d"),
        "size num_heads=(h r)", "size kv_num_heads=h", _scale(c, d),
        fixed="q k past d m p", labels=_LABELS, why=_WHY, h=shared, r=heads // shared, d=d,
    )  # fmt: skip


def rotary(c: Call) -> Rule:
    """``RotaryEmbedding`` of opset 23 and of onnxruntime: units are pairs, each with a column of the caches.

    The two differ in the order of their operands, and in that positions are always there in the latter.
    """
    fused = c.op != "RotaryEmbedding"
    at = {"positions": 1, "cos": 2, "sin": 3} if fused else {"cos": 1, "sin": 2, "positions": 3}
    if c.get("is_packed_batching", 0):
        raise Refusal("a rotary embedding of a packed batch")
    cos = c.operands[at["cos"]]
    assert cos is not None
    n_pairs, part, heads = cos[-1], c.get("rotary_embedding_dim", 0), c.get("num_heads", 0)
    turned = "(p two)" if c.get("interleaved", 0) else "p+p"
    size = c.x[-1]
    if len(c.x) == 3:
        heads = heads or c.x[-1] // (2 * n_pairs)
        size //= heads
    dims = turned if size == 2 * n_pairs else f"{turned}+rest"
    data = f"b h s {dims}" if len(c.x) == 4 else f"b s (h {dims})" if heads > 1 else f"b s {dims}"
    cache = "m p" if len(cos) == 2 else "b s p"
    texts = {0: data, at["cos"]: cache, at["sin"]: cache}
    positions = c.operand(at["positions"])
    if positions is not None and len(positions) == 2 and not fused:
        texts[at["positions"]] = "b s"
    slots = [f"size rotary_embedding_dim={turned}"] if part else []
    if len(c.x) == 3 and heads > 1 and c.get("num_heads", 0):
        slots.append("size num_heads=h")
    return told(
        c, ", ".join(texts.get(i, "_") for i in range(4)), data, *slots, fixed="m two" + (" s b" if fused else ""),
        why=_WHY, p=n_pairs, two=2, **({"h": heads} if len(c.x) == 3 else {}),
    )  # fmt: skip


def linear_attention(c: Call) -> Rule:
    """``LinearAttention``: a recurrent state ``b h d v`` for each key-value head."""
    heads, shared = c.attributes["q_num_heads"], c.attributes["kv_num_heads"]
    decay, beta = c.operand(4), c.operand(5)
    d = c.x[-1] // heads
    decays = "b t h" if decay is not None and decay[-1] == shared and d > 1 else "b t (h d)"
    rates = "b t 1" if beta is not None and beta[-1] == 1 else "b t h"
    return told(
        c, f"b t (h r d), b t (h d), b t (h v), b h d v, {decays}, {rates}", "b t (h r v), b h d v",
        "macs b t h r d v", "size q_num_heads=(h r)", "size kv_num_heads=h", _scale(c, d),
        fixed="t", labels=_LABELS, why="a recurrent state runs along this axis", h=shared, r=heads // shared,
    )  # fmt: skip
