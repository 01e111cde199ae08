"""onnxruntime's own operators for onnx's reference evaluator: what float64 proofs of optimised files run on.

In whatever precision the operands have, without masks of padding. Where a use is not covered, the evaluator raises,
and the proof stays with the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import erf
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from graphprune.hosts.host import Array

Operands: TypeAlias = Sequence[Array | None]
Attributes: TypeAlias = Mapping[str, Any]


def _at(operands: Operands, i: int) -> Array | None:
    return operands[i] if i < len(operands) else None


def _all(operands: Operands) -> list[Array]:
    return [operand for operand in operands if operand is not None]


def _erf(x: Array) -> Array:
    return np.asarray(np.vectorize(erf, otypes=[x.dtype])(x)) if x.size else x


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + _erf(x / np.sqrt(2.0))), x.dtype)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _activated(x: Array, name: str | None, parameters: Any) -> Array:
    match name:
        case None | "":
            return x
        case "Relu":
            return np.asarray(np.maximum(x, 0))
        case "LeakyRelu":
            return np.where(x < 0, x * (parameters[0] if parameters else 0.01), x)
        case "Tanh":
            return np.asarray(np.tanh(x))
        case "Sigmoid":
            return _sigmoid(x)
        case "Clip":
            return np.asarray(np.clip(x, *parameters))
        case "HardSigmoid":
            return np.asarray(np.clip(parameters[0] * x + parameters[1], 0, 1))
    raise NotImplementedError(f"the activation '{name}'")


def _normalised(x: Array, scale: Array, shift: Array | None, epsilon: float, *, centred: bool) -> Array:
    if centred:
        x = x - x.mean(-1, keepdims=True)
    y = np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale)
    return y if shift is None else y + shift


def _attended(q: Array, k: Array, v: Array, scale: float, *, bias: Array | None = None, causal: bool = False) -> Array:
    """Attention of ``b h s d``; grouped heads are repeated."""
    repeat = q.shape[1] // k.shape[1]
    k, v = (np.repeat(each, repeat, axis=1) for each in (k, v))
    scores = q @ np.swapaxes(k, -1, -2) * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        n, m = scores.shape[-2:]
        scores = np.where(np.tri(n, m, m - n, dtype=bool), scores, np.finfo(scores.dtype).min)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True) @ v)


def _heads(x: Array, n: int) -> Array:
    return np.swapaxes(x.reshape(*x.shape[:2], n, -1), 1, 2)


def _merged(x: Array) -> Array:
    x = np.swapaxes(x, 1, 2)
    return x.reshape(*x.shape[:2], -1)


def _turned(x: Array, cos: Array, sin: Array, *, interleaved: bool) -> Array:
    """Rotates the pairs of the last axis of ``b h s d``; ``cos, sin: b s p``."""
    n = cos.shape[-1]
    part, rest = x[..., : 2 * n], x[..., 2 * n :]
    cos, sin = cos[:, None], sin[:, None]
    if interleaved:
        a, b = part[..., 0::2], part[..., 1::2]
        turned = np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(part.shape)
    else:
        a, b = part[..., :n], part[..., n:]
        turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return np.concatenate([turned, rest], -1)


def _plain(op: str, operands: Operands, **attributes: Any) -> Array:
    """An operator of the default domain."""
    names = [f"x{i}" if operand is not None else "" for i, operand in enumerate(operands)]
    node = onnx.helper.make_node(op, names, ["y"], **attributes)
    feeds = {f"x{i}": operand for i, operand in enumerate(operands) if operand is not None}
    return np.asarray(next(iter(ReferenceEvaluator(node).run(None, feeds))))


def _conv(x: Operands, a: Attributes) -> tuple[Array, ...]:
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    y = _plain("Conv", x[:3], **{name: a[name] for name in names if name in a})
    summand = _at(x, 3)
    return (_activated(y if summand is None else y + summand, a.get("activation"), a.get("activation_params")),)


def _gemm(x: Operands, a: Attributes) -> tuple[Array, ...]:
    names = ("alpha", "beta", "transA", "transB")
    y = _plain("Gemm", x, **{name: a[name] for name in names if name in a})
    parameters = [a[name] for name in ("activation_alpha", "activation_beta") if name in a]
    return (_activated(y, a.get("activation"), parameters),)


def _matmul(x: Operands, a: Attributes) -> tuple[Array, ...]:
    left, right = (
        np.swapaxes(each, -1, -2) if a.get(flip, 0) and each.ndim > 1 else each
        for each, flip in zip(_all(x), ("transA", "transB"), strict=True)
    )
    return (a.get("alpha", 1.0) * (left @ right),)


def _fast_gelu(x: Operands, a: Attributes) -> tuple[Array, ...]:
    value = sum(_all(x))
    return (0.5 * value * (1 + np.tanh(np.sqrt(2 / np.pi) * (value + 0.044715 * value**3))),)


def _quick_gelu(x: Operands, a: Attributes) -> tuple[Array, ...]:
    (value,) = _all(x)
    return (value * _sigmoid(a.get("alpha", 1.702) * value),)


def _skip_norm(x: Operands, a: Attributes, *, centred: bool) -> tuple[Array, ...]:
    value, skip, scale = _all(x[:3])
    shift, bias = (_at(x, 3), _at(x, 4)) if centred else (None, _at(x, 3))
    total = value + skip if bias is None else value + skip + bias
    default = 1e-12 if centred else 1e-5
    nothing = np.zeros(0, total.dtype)
    return _normalised(total, scale, shift, a.get("epsilon", default), centred=centred), nothing, nothing, total


def _rms_norm(x: Operands, a: Attributes) -> tuple[Array, ...]:
    value, scale = _all(x)
    if a.get("axis", -1) not in (-1, value.ndim - 1):
        raise NotImplementedError("a normalisation over several axes")
    return (_normalised(value, scale, None, a.get("epsilon", 1e-5), centred=False),)


def _embed_norm(x: Operands, a: Attributes) -> tuple[Array, ...]:
    ids, segments, words, places, kinds, scale, shift = (_at(x, i) for i in range(7))
    positions = _at(x, 8)
    if ids is None or words is None or places is None or scale is None:
        raise NotImplementedError("a look-up without tables")
    total = words[ids] + (places[: ids.shape[1]] if positions is None else places[positions])
    if segments is not None and kinds is not None:
        total = total + kinds[segments]
    mask = _at(x, 7)
    counted = np.zeros(len(ids), np.int32) if mask is None else mask.sum(1).astype(np.int32)
    return _normalised(total, scale, shift, a.get("epsilon", 1e-12), centred=True), counted, total


def _multi_head(x: Operands, a: Attributes) -> tuple[Array, ...]:
    if any(_at(x, i) is not None for i in (4, 6, 7, 8, 9)) or any(each is None or each.ndim != 3 for each in x[:3]):
        raise NotImplementedError("padding, a cache or packed operands")
    heads, packed = a["num_heads"], _all(x[:3])
    bias = _at(x, 3)
    if bias is not None:
        ends = np.cumsum([each.shape[-1] for each in packed])[:-1]
        packed = [each + part for each, part in zip(packed, np.split(bias, ends), strict=True)]
    q, k, v = (_heads(each, heads) for each in packed)
    scale = a.get("scale", 0) or q.shape[-1] ** -0.5
    return (_merged(_attended(q, k, v, scale, bias=_at(x, 5), causal=bool(a.get("unidirectional", 0)))),)


def _packed_attention(x: Operands, a: Attributes) -> tuple[Array, ...]:
    if any(_at(x, i) is not None for i in (3, 4)) or a.get("do_rotary", 0):
        raise NotImplementedError("padding, a cache or a rotation")
    value, weights = _all(x[:2])
    bias = _at(x, 2)
    y = value @ weights if bias is None else value @ weights + bias
    sizes = a.get("qkv_hidden_sizes") or [y.shape[-1] // 3] * 3
    q, k, v = (_heads(each, a["num_heads"]) for each in np.split(y, np.cumsum(sizes)[:-1], axis=-1))
    scale = a.get("scale", 0) or q.shape[-1] ** -0.5
    return (_merged(_attended(q, k, v, scale, bias=_at(x, 5), causal=bool(a.get("unidirectional", 0)))),)


def _grouped_query(x: Operands, a: Attributes) -> tuple[Array, ...]:
    if (
        any(_at(x, i) is not None for i in (3, 4, 9, 10, 11, 14, 15))
        or a.get("softcap", 0)
        or a.get("smooth_softmax", 0)
    ):
        raise NotImplementedError("a cache, positions or a sink")
    if a.get("local_window_size", -1) >= 0:
        raise NotImplementedError("a window")
    heads, shared = a["num_heads"], a["kv_num_heads"]
    query, key, value, lengths = _at(x, 0), _at(x, 1), _at(x, 2), _at(x, 5)
    if query is None or lengths is None or bool((lengths != query.shape[1] - 1).any()):
        raise NotImplementedError("sequences of different lengths")
    if key is None or value is None:
        size = query.shape[-1] // (heads + 2 * shared)
        query, key, value = np.split(query, [heads * size, (heads + shared) * size], axis=-1)
    q, k, v = _heads(query, heads), _heads(key, shared), _heads(value, shared)
    cos, sin = _at(x, 7), _at(x, 8)
    if a.get("do_rotary", 0) and cos is not None and sin is not None:
        n = q.shape[2]
        tables = cos[None, :n], sin[None, :n]
        q, k = (_turned(each, *tables, interleaved=bool(a.get("rotary_interleaved", 0))) for each in (q, k))
    scale = a.get("scale", 0) or q.shape[-1] ** -0.5
    return _merged(_attended(q, k, v, scale, causal=True)), k, v


def _rotary(x: Operands, a: Attributes) -> tuple[Array, ...]:
    value, positions, cos, sin = _all(x)
    packed = value.ndim == 3
    heads = a.get("num_heads", 0) or value.shape[-1] // (2 * cos.shape[-1])
    split = _heads(value, heads) if packed else value
    n, b = split.shape[2], split.shape[0]
    at = positions if positions.ndim == 2 else np.broadcast_to(positions.reshape(1) + np.arange(n), (b, n))
    y = _turned(split, cos[at], sin[at], interleaved=bool(a.get("interleaved", 0)))
    return (_merged(y) if packed else y,)


def _gathered(x: Operands, a: Attributes) -> tuple[Array, ...]:
    """``GatherElements`` whose indices may cover only the first part of the other axes, which onnx's own refuses."""
    value, indices = _all(x)
    at = a.get("axis", 0) % value.ndim
    cut = value[tuple(slice(None) if i == at else slice(n) for i, n in enumerate(indices.shape))]
    return (np.take_along_axis(cut, indices, at),)


_TABLE: Mapping[str, Callable[[Operands, Attributes], tuple[Array, ...]]] = {
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul"), _matmul),
    **dict.fromkeys(("Gelu", "BiasGelu"), lambda x, a: (_gelu(np.asarray(sum(_all(x)))),)),
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": partial(_skip_norm, centred=True),
    "SkipSimplifiedLayerNormalization": partial(_skip_norm, centred=False),
    "EmbedLayerNormalization": _embed_norm,
    "MultiHeadAttention": _multi_head,
    "Attention": _packed_attention,
    "GroupQueryAttention": _grouped_query,
    "RotaryEmbedding": _rotary,
}


def _operator(name: str, domain: str, function: Callable[[Operands, Attributes], tuple[Array, ...]]) -> type[OpRun]:
    def run(self: OpRun, *operands: Array | None, **_: Any) -> tuple[Array, ...]:
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in self.onnx_node.attribute}
        given = {key: value.decode() if isinstance(value, bytes) else value for key, value in attributes.items()}
        return function(operands, given)[: len(self.onnx_node.output)]

    return type(name, (OpRun,), {"op_domain": domain, "_run": run})


OPERATORS: tuple[type[OpRun], ...] = (
    *(_operator(name, "com.microsoft", function) for name, function in _TABLE.items()),
    _operator("SimplifiedLayerNormalization", "", _rms_norm),
    _operator("GatherElements", "", _gathered),
)
"""For the evaluator's ``new_ops``."""
