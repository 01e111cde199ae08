"""Rows of attention and of experts: ONNX's own operator and those of onnxruntime's optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from graphprune.executor.ops.call import Call, RefusedError, listed
from graphprune.executor.tensors import TYPES

Tensor = torch.Tensor


def heads(x: Tensor, n: int) -> Tensor:
    """``b s (h d)`` as ``b h s d``."""
    return x.reshape(*x.shape[:2], n, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """``b h s d`` as ``b s (h d)``."""
    return x.transpose(1, 2).flatten(2)


def _repeated(k: Tensor, n: int) -> Tensor:
    return k if k.shape[1] == n else k.repeat_interleave(n // k.shape[1], 1)


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Attention of ``b h s d``; grouped heads are repeated."""
    scores = q @ _repeated(k, q.shape[1]).mT * scale
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1) @ _repeated(v, q.shape[1])


def _causal(q: Tensor, k: Tensor) -> Tensor:
    """What is added to scores so that no query reads a later key."""
    n, m = q.shape[-2], k.shape[-2]
    later = torch.ones((n, m), dtype=torch.bool, device=q.device).triu(m - n + 1)
    return torch.zeros((n, m), dtype=q.dtype, device=q.device).masked_fill(later, torch.finfo(q.dtype).min)


def attention(c: Call) -> tuple[Tensor | None, ...]:
    """``Attention`` of the default domain."""
    q, k, v = c.x, c.need(1), c.need(2)
    packed = q.ndim == 3
    if packed:
        q, k, v = heads(q, c.get("q_num_heads")), heads(k, c.get("kv_num_heads")), heads(v, c.get("kv_num_heads"))
    past = 0
    if c.at(4) is not None and c.at(5) is not None:
        past = c.need(4).shape[2]
        k, v = torch.cat([c.need(4), k], 2), torch.cat([c.need(5), v], 2)
    present = k, v
    scale = c.get("scale") or q.shape[-1] ** -0.5
    scores = (q * scale**0.5) @ (_repeated(k, q.shape[1]) * scale**0.5).mT
    cap = c.get("softcap", 0.0)
    capped = cap * torch.tanh(scores / cap) if cap else scores
    bias, allowed = _bias(c, scores, past)
    total = (capped + bias).masked_fill(~allowed, torch.finfo(scores.dtype).min)
    kind = TYPES.get(c.get("softmax_precision", 0), total.dtype)
    weights = total.to(kind).softmax(-1).masked_fill(~allowed.any(-1, keepdim=True), 0).to(q.dtype)
    y = weights @ _repeated(v, q.shape[1])
    mode = c.get("qk_matmul_output_mode", 0)
    shown = (scores, capped, total.masked_fill(~allowed, float("-inf")) if mode == 2 else total, weights)[mode]
    return merged(y) if packed else y, *present, shown


def _bias(c: Call, scores: Tensor, past: int) -> tuple[Tensor, Tensor]:
    """What is added to the scores ``b h n m``, and which keys each query may read."""
    n, m = scores.shape[-2:]
    bias = torch.zeros((1, 1, n, m), dtype=scores.dtype, device=scores.device)
    allowed = torch.ones((1, 1, n, m), dtype=torch.bool, device=scores.device)
    mask = c.at(3)
    if mask is not None:
        missing = m - mask.shape[-1]
        if mask.dtype == torch.bool:
            mask = functional.pad(mask, (0, missing), value=False)
            allowed = allowed & mask
        else:
            mask = functional.pad(mask, (0, missing), value=float("-inf"))
            bias = bias + mask.clamp_min(torch.finfo(scores.dtype).min)
            allowed = allowed & (mask > float("-inf"))
    keys = torch.arange(m, device=scores.device)
    offset = torch.tensor([past], device=scores.device)
    if c.at(6) is not None:
        valid = c.need(6).long()
        allowed = allowed & (keys < valid[:, None])[:, None, None]
        offset = valid - n if past == 0 else offset
    places = (offset[:, None] + torch.arange(n, device=scores.device))[:, None, :, None]
    if c.get("is_causal", 0):
        allowed = allowed & (keys <= places)
    left, right = c.get("left_window_size", -1), c.get("right_window_size", -1)
    if left >= 0:
        allowed = allowed & (keys >= places - left)
    if right >= 0:
        allowed = allowed & (keys <= places + right)
    return bias, allowed | torch.zeros_like(bias, dtype=torch.bool)


def turned(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotates the pairs of the last axis of ``b h s d``; ``cos, sin: b s p``."""
    n = cos.shape[-1]
    part, rest = x[..., : 2 * n], x[..., 2 * n :]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        a, b = part[..., 0::2], part[..., 1::2]
        pairs = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = part[..., :n], part[..., n:]
        pairs = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([pairs, rest], -1)


def rotary(c: Call) -> Tensor:
    """``RotaryEmbedding`` of both domains."""
    own = c.op.startswith("com.microsoft")
    positions, cos, sin = (c.at(1), c.need(2), c.need(3)) if own else (c.at(3), c.need(1), c.need(2))
    packed = c.x.ndim == 3
    n = c.get("num_heads", 0) or c.x.shape[-1] // (2 * cos.shape[-1])
    x = heads(c.x, n) if packed else c.x
    if positions is not None and positions.numel() == 1 and own:
        positions = (positions.reshape(1) + torch.arange(x.shape[2], device=x.device)).expand(len(x), -1)
    if positions is not None:
        cos, sin = cos[positions.long()], sin[positions.long()]
    size = c.get("rotary_embedding_dim", 0)
    half = size // 2 if size else cos.shape[-1]
    y = turned(x, cos[..., :half], sin[..., :half], interleaved=bool(c.get("interleaved", 0)))
    return merged(y) if packed else y


def multi_head(c: Call) -> Tensor:
    """``MultiHeadAttention`` of three operands, without padding or a cache."""
    if any(c.at(i) is not None for i in (4, 6, 7, 8, 9)) or any(c.at(i) is None or c.at(i).ndim != 3 for i in range(3)):
        raise RefusedError("padding, a cache or packed operands")
    packed = [c.need(i) for i in range(3)]
    if c.at(3) is not None:
        parts = c.need(3).split_with_sizes([each.shape[-1] for each in packed])
        packed = [each + part for each, part in zip(packed, parts, strict=True)]
    q, k, v = (heads(each, c.get("num_heads")) for each in packed)
    return merged(attended(q, k, v, _scale(c, q), _masked(c, q, k)))


def _scale(c: Call, q: Tensor) -> float:
    return float(c.get("scale", 0) or q.shape[-1] ** -0.5)


def _masked(c: Call, q: Tensor, k: Tensor) -> Tensor | None:
    bias: Tensor | None = c.at(5)
    if not c.get("unidirectional", 0):
        return bias
    return _causal(q, k) if bias is None else bias + _causal(q, k)


def packed_attention(c: Call) -> Tensor:
    """``Attention`` of com.microsoft: the weights of all three projections are one operand."""
    if any(c.at(i) is not None for i in (3, 4)) or c.get("do_rotary", 0):
        raise RefusedError("padding, a cache or a rotation")
    y = c.x @ c.need(1) if c.at(2) is None else c.x @ c.need(1) + c.need(2)
    sizes = list(c.get("qkv_hidden_sizes") or [y.shape[-1] // 3] * 3)
    q, k, v = (heads(each, c.get("num_heads")) for each in y.split_with_sizes(sizes, -1))
    return merged(attended(q, k, v, _scale(c, q), _masked(c, q, k)))


def grouped_query(c: Call) -> tuple[Tensor, ...]:
    """``GroupQueryAttention`` of a whole prompt, without a cache."""
    if any(c.at(i) is not None for i in (3, 4, 9, 10, 11, 14, 15)) or c.get("softcap", 0) or c.get("smooth_softmax", 0):
        raise RefusedError("a cache, positions or a sink")
    if c.get("local_window_size", -1) >= 0:
        raise RefusedError("a window")
    n, shared, query = c.get("num_heads"), c.get("kv_num_heads"), c.x
    if any(length != query.shape[1] - 1 for length in listed(c.need(5))):
        raise RefusedError("sequences of different lengths")
    key, value = c.at(1), c.at(2)
    if key is None or value is None:
        size = query.shape[-1] // (n + 2 * shared)
        query, key, value = query.split_with_sizes([n * size, shared * size, shared * size], -1)
    q, k, v = heads(query, n), heads(key, shared), heads(value, shared)
    if c.get("do_rotary", 0) and c.at(7) is not None and c.at(8) is not None:
        cos, sin = (c.need(i)[: q.shape[2]].unsqueeze(0) for i in (7, 8))
        q, k = (turned(each, cos, sin, interleaved=bool(c.get("rotary_interleaved", 0))) for each in (q, k))
    return merged(attended(q, k, v, _scale(c, q), _causal(q, k))), k, v


_EXPERT: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
    "identity": lambda x: x,
}


def experts(c: Call) -> Tensor:
    """``MoE``: all experts are run, and those that a router does not choose count nothing."""
    kind, fused = c.get("activation_type", "relu"), c.get("swiglu_fusion", 0)
    if c.at(6) is not None or fused == 2 or (kind == "swiglu") != (fused == 1):
        raise RefusedError("a gate that is not interleaved with what it gates")
    x, router = c.x.reshape(-1, c.x.shape[-1]), c.need(1)
    best, chosen = torch.topk(router, c.get("k", 1), dim=-1)
    shares = best.softmax(-1) if c.get("normalize_routing_weights", 0) else router.softmax(-1).gather(1, chosen)
    shares = torch.zeros_like(router).scatter(1, chosen, shares)
    inner = torch.einsum("no,efo->nef", x, c.need(2))
    inner = inner if c.at(3) is None else inner + c.need(3)
    if kind == "swiglu":
        limit = c.get("swiglu_limit", float("inf"))
        gate, value = inner[..., 0::2].clamp(max=limit), inner[..., 1::2].clamp(-limit, limit)
        swish = gate * torch.sigmoid(c.get("activation_alpha", 1.0) * gate)
        inner = swish * (value + c.get("activation_beta", 0.0))
    else:
        inner = _EXPERT[kind](inner)
    outer = torch.einsum("nef,eof->neo", inner, c.need(4))
    outer = outer if c.at(5) is None else outer + c.need(5)
    return torch.einsum("neo,ne->no", outer, shares).reshape(c.x.shape)


ATTENTION: Mapping[str, Callable[[Call], Any]] = {
    "Attention": attention,
    "RotaryEmbedding": rotary,
    "com.microsoft::RotaryEmbedding": rotary,
    "com.microsoft::MultiHeadAttention": multi_head,
    "com.microsoft::Attention": packed_attention,
    "com.microsoft::GroupQueryAttention": grouped_query,
    "com.microsoft::MoE": experts,
}
