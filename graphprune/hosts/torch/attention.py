"""``nn.MultiheadAttention`` with heads of any size: what is left of the layer when heads or their units are removed.

torch's own layer takes it for granted that the heads together are as wide as the input. :func:`adapt_attention` makes a
layer whose weights are no longer so an :class:`Attention`, which reads every size off its weights and the number of
heads, and computes what torch's layer would: all masks, weights, dropout in training, either order of axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Attention(nn.MultiheadAttention):
    """torch's layer, where heads need not share the width of the input evenly. Made by :func:`adapt_attention` only."""

    def _projected(self, *inputs: Tensor) -> Iterator[Tensor]:
        """Queries, keys and values, ``b s (h d)``."""
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        start = 0
        for x, weight in zip(inputs, weights, strict=True):
            end = start + len(weight)
            yield F.linear(x, weight, None if self.in_proj_bias is None else self.in_proj_bias[start:end])
            start = end

    def _heads(self, x: Tensor) -> Tensor:
        """``b s (h d) -> b h s d``."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # the signature of torch's layer
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``."""
        batched = query.dim() == 3
        if batched and not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        elif not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        q, k, v = self._projected(query, key, value)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([x, more.expand(len(x), 1, -1)], 1) for x, more in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        mask = self._mask(attn_mask, key_padding_mask, q, k.shape[2])
        scale = self.head_dim**-0.5  # of the original: units of a head that are gone added nothing
        dropout = self.dropout if self.training else 0.0
        shares: Tensor | None = None
        if need_weights:
            scores = (q * scale) @ k.transpose(-2, -1)
            shares = (scores if mask is None else scores + mask).softmax(-1)
            shares = F.dropout(shares, dropout) if dropout else shares
            mixed = shares @ v
            shares = shares.mean(1) if average_attn_weights else shares
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)
        output = F.linear(mixed.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if batched:
            return (output if self.batch_first else output.transpose(0, 1)), shares
        return output.squeeze(0), None if shares is None else shares.squeeze(0)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, length: int) -> Tensor | None:
        """What is added to the scores, ``b h q k``; the positions that the layer adds are seen by all."""
        masks = []
        if attn_mask is not None:
            masks.append(
                attn_mask.view(-1, self.num_heads, *attn_mask.shape[1:]) if attn_mask.dim() == 3 else attn_mask
            )
        if padding is not None:
            masks.append(padding[:, None, None])
        found: Tensor | None = None
        for mask in masks:
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -torch.inf)
            each = F.pad(mask, (0, length - mask.shape[-1]))
            found = each if found is None else found + each
        return found


def adapt_attention(module: nn.Module, resized: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Makes attention layers with smaller weights compute with them, where torch's own code would not.

    Args:
        module: A copy of the user's module, with its new weights.
        resized: For each path, sizes that the graph has there and what became of them.
    """
    for path, layer in module.named_modules(remove_duplicate=False):
        if type(layer) is nn.MultiheadAttention:
            _adapt(layer, resized.get(path, ()))


def _adapt(layer: nn.MultiheadAttention, resized: Sequence[tuple[int, int]]) -> None:
    stacked = layer.in_proj_weight
    rows = layer.q_proj_weight.shape[0] if stacked is None else stacked.shape[0] // 3
    columns = layer.q_proj_weight.shape[1] if stacked is None else stacked.shape[1]
    if (rows, columns) == (layer.embed_dim, layer.embed_dim) and layer.out_proj.weight.shape == (rows, rows):
        return
    layer.__class__ = Attention
    layer._qkv_same_embed_dim = False  # keeps the fused code of encoder layers away, which reads the old sizes
    if rows != layer.embed_dim:
        found = [new for old, new in resized if old == layer.num_heads and rows % new == 0]
        layer.num_heads = found[0] if found else layer.num_heads
    layer.embed_dim = columns
    if stacked is not None:
        layer.kdim = layer.vdim = columns
    else:
        layer.kdim, layer.vdim = layer.k_proj_weight.shape[1], layer.v_proj_weight.shape[1]
