"""Further constructs of real models: variants of attention, caches, windows, loops, writes in place, open sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_constructs import IMAGE, SEQUENCE, Net, kinds
from torch import nn
from torch._higher_order_ops import scan, while_loop
from torch_proof import prove

SIX = (torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(4)),)


# -- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {"need_weights": False}),
        ({}, {"need_weights": True}),
        ({}, {"need_weights": True, "average_attn_weights": False}),
        ({"bias": False}, {"need_weights": False}),
        ({"batch_first": False}, {"need_weights": False}),
        ({"add_zero_attn": True}, {"need_weights": False}),
        ({}, {"need_weights": False, "is_causal": True, "attn_mask": torch.ones(5, 5).triu(1).bool()}),
        ({}, {"need_weights": False, "key_padding_mask": torch.tensor([[False] * 4 + [True]] * 2)}),
    ],
    ids=["plain", "averaged weights", "weights", "no bias", "sequence first", "zero", "causal", "padding"],
)
def test_multihead_attention(options: dict[str, bool], call: dict[str, object]) -> None:
    def forward(m, x):
        y, weights = m.attend(x, x, x, **call)
        return m.out(y), None if weights is None else weights.sum(-1)

    options = {"batch_first": True, **options}
    net = Net(forward, attend=lambda: nn.MultiheadAttention(12, 3, **options), out=lambda: nn.Linear(12, 5))
    proof = prove(net, SEQUENCE)
    heads = [("head", 3)] if call.get("average_attn_weights", True) else []
    assert sorted(kinds(proof).values()) == [*heads, ("neuron", 12), ("qk-dim", 4)]
    assert bool(heads) or "axis of the model's output 'sum_1'" in proof.reasons("attend.out_proj.weight[1]")


@pytest.mark.parametrize("bias", [False, True])
def test_cross_attention_of_other_widths(bias: bool) -> None:
    def forward(m, x):
        keys, values = m.k(x), m.v(x)
        return m.out(m.attend(x, keys, values, need_weights=False)[0])

    net = Net(
        forward, k=lambda: nn.Linear(12, 7), v=lambda: nn.Linear(12, 9), out=lambda: nn.Linear(12, 5),
        attend=lambda: nn.MultiheadAttention(12, 3, kdim=7, vdim=9, add_bias_kv=bias, batch_first=True),
    )  # fmt: skip
    found = kinds(prove(net, SEQUENCE))
    assert found["k.weight[0]"] == ("neuron", 7)
    assert found["v.weight[0]"] == ("neuron", 9)
    assert ("head", 3) in found.values()


def test_sliding_window() -> None:
    """A mask from distances, which is made anew for every length."""

    def forward(m, x):
        q, k, v = (t.view(2, 6, 3, 4).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
        at = torch.arange(x.shape[1])
        near = (at[:, None] - at[None, :]).abs() < 2
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=near)
        return m.out(y.transpose(1, 2).reshape(2, 6, 12))

    net = Net(forward, qkv=lambda: nn.Linear(12, 36), out=lambda: nn.Linear(12, 5))
    assert {"head", "qk-dim", "value-dim"} == {kind for kind, _ in kinds(prove(net, SIX)).values()}


def test_sliding_chunks() -> None:
    """Overlapping chunks of the keys, as in Longformer, by unfolding."""

    def forward(m, x):
        q, k, v = (t.view(2, 6, 3, 4).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
        k, v = (F.pad(t, (0, 0, 1, 1)).unfold(2, 3, 1) for t in (k, v))  # b h s d w
        weights = (torch.einsum("bhsd,bhsdw->bhsw", q, k) * 0.5).softmax(-1)
        return m.out(torch.einsum("bhsw,bhsdw->bhsd", weights, v).transpose(1, 2).reshape(2, 6, 12))

    net = Net(forward, qkv=lambda: nn.Linear(12, 36), out=lambda: nn.Linear(12, 5))
    assert {"head", "qk-dim", "value-dim"} == {kind for kind, _ in kinds(prove(net, SIX)).values()}


def test_shifted_windows() -> None:
    """As in Swin: windows of a shifted image, attention within each, and all of it back."""

    def forward(m, x):
        y = m.embed(x).permute(0, 2, 3, 1)  # b 8 8 c
        windows = torch.roll(y, (-2, -2), (1, 2)).view(2, 2, 4, 2, 4, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 12)
        q, k, v = m.qkv(windows).reshape(8, 16, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        z = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        z = m.proj(z.transpose(1, 2).reshape(8, 16, 12))
        z = z.view(2, 2, 2, 4, 4, 12).permute(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 12)
        return m.out((y + torch.roll(z, (2, 2), (1, 2))).permute(0, 3, 1, 2))

    net = Net(
        forward, embed=lambda: nn.Conv2d(3, 12, 1), qkv=lambda: nn.Linear(12, 36), proj=lambda: nn.Linear(12, 12),
        out=lambda: nn.Conv2d(12, 4, 1),
    )  # fmt: skip
    proof = prove(net, IMAGE)
    assert sorted(kinds(proof).values()) == [("channel", 12), ("head", 3), ("qk-dim", 4)]


def _cached(m, x, past_k, past_v):
    q, k, v = (t.view(2, 5, 3, 4).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
    k, v = torch.cat((past_k, k), 2), torch.cat((past_v, v), 2)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 12)
    return m.down(F.gelu(m.up(m.out(y)))), k, v


class Cached(Net):
    def forward(self, x, past_k, past_v):
        return self.function(self, x, past_k, past_v)


def test_cache_of_keys_and_values() -> None:
    """The heads of a cache are part of the interface, and stay; what is between stays prunable."""
    net = Cached(
        _cached, qkv=lambda: nn.Linear(12, 36), out=lambda: nn.Linear(12, 12), up=lambda: nn.Linear(12, 20),
        down=lambda: nn.Linear(20, 12),
    )  # fmt: skip
    proof = prove(net, (*SEQUENCE, torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)))
    assert kinds(proof) == {"up.weight[0]": ("neuron", 20), "out.weight[0]": ("neuron", 12)}
    assert "axis of the model's input 'past_k'" in proof.reasons("qkv.weight[0]")


# -- loops -----------------------------------------------------------------------------------------------------------


def test_loop_while_a_condition_holds() -> None:
    def forward(m, x):
        y = m.b(torch.relu(m.a(x)))

        def step(i, t):
            return i + 1, torch.tanh(t) * 0.5

        _, y = while_loop(lambda i, t: i < 3, step, (torch.tensor(0), y))
        return m.c(y)

    net = Net(forward, a=lambda: nn.Linear(12, 8), b=lambda: nn.Linear(8, 7), c=lambda: nn.Linear(7, 3))
    proof = prove(net, SEQUENCE)
    assert kinds(proof) == {"a.weight[0]": ("neuron", 8)}
    assert proof.reasons("c.weight[1]") == ["'while_loop' runs a graph of its own, into which no factor is followed"]


def test_scan_over_a_sequence() -> None:
    def forward(m, x):
        y = m.b(torch.relu(m.a(x)))
        _, y = scan(lambda h, t: (h * 0.5 + t, h + t), torch.zeros(2, 7), y, dim=1)
        return m.c(y)

    net = Net(forward, a=lambda: nn.Linear(12, 8), b=lambda: nn.Linear(8, 7), c=lambda: nn.Linear(7, 3))
    proof = prove(net, SEQUENCE)
    assert kinds(proof) == {"a.weight[0]": ("neuron", 8)}
    assert proof.reasons("c.weight[1]") == ["'scan' runs a graph of its own, into which no factor is followed"]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_plain_recurrent_layers(bidirectional: bool) -> None:
    width = 16 if bidirectional else 8
    net = Net(
        lambda m, x: m.out(m.run(x)[0]),
        run=lambda: nn.RNN(12, 8, num_layers=2, batch_first=True, bidirectional=bidirectional),
        out=lambda: nn.Linear(width, 3),
    )  # fmt: skip
    assert kinds(prove(net, SEQUENCE)) == {"run.weight_ih_l0[0]": ("recurrent", 8)}


# -- views and writes ------------------------------------------------------------------------------------------------


def test_interleaved_rotary_embedding_that_is_written_in_place() -> None:
    def forward(m, x):
        q, k, v = (t.view(2, 6, 3, 4).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))

        def turned(t):
            y = torch.empty_like(t)
            y[..., ::2] = -t[..., 1::2]
            y[..., 1::2] = t[..., ::2]
            return t * m.cos + y * m.sin

        y = F.scaled_dot_product_attention(turned(q), turned(k), v)
        return m.out(y.transpose(1, 2).reshape(2, 6, 12))

    angles = (torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.1])).repeat_interleave(2, 1)
    net = Net(
        forward, qkv=lambda: nn.Linear(12, 36), out=lambda: nn.Linear(12, 5), cos=angles.cos, sin=angles.sin,
    )  # fmt: skip
    assert sorted(kinds(prove(net, SIX)).values()) == [("head", 3), ("rotary-pair", 2), ("value-dim", 4)]


def test_writes_in_place_through_views_of_views() -> None:
    def forward(m, x):
        y = m.a(x)
        left, right = y.transpose(1, 2).chunk(2, 1)
        left[:, :, 0].mul_(2)  # a view of a view of a view
        right.transpose(1, 2)[:, 1:].add_(1).relu_()
        z = y.clone()
        z[..., 4:] += m.b(x)
        return m.c(z.transpose(1, 2).contiguous().view(2, 60).view(2, 12, 5).transpose(1, 2))

    net = Net(forward, a=lambda: nn.Linear(12, 12), b=lambda: nn.Linear(12, 8), c=lambda: nn.Linear(12, 3))
    assert sorted(size for _, size in kinds(prove(net, SEQUENCE)).values()) == [2, 4, 6]


@pytest.mark.parametrize("axes", [{2}, {0, 2, 3}])
def test_images_of_open_size(axes: set[int]) -> None:
    def forward(m, x):
        y = F.relu(m.norm(m.a(x)))
        small = F.max_pool2d(y, 2)
        y = torch.cat((y, F.interpolate(small, size=y.shape[-2:])), 1)
        b, _, h, w = y.shape
        y = m.mix(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, 10, h, w)
        return m.out(y), F.adaptive_avg_pool2d(y, 1)[:, 0]

    net = Net(
        forward, a=lambda: nn.Conv2d(3, 8, 3, padding=1), norm=lambda: nn.BatchNorm2d(8),
        mix=lambda: nn.Linear(16, 10), out=lambda: nn.Conv2d(10, 4, 1),
    ).eval()  # fmt: skip
    open_sizes = {"x": dict.fromkeys(axes, torch.export.Dim.DYNAMIC)}
    assert kinds(prove(net, (torch.randn(2, 3, 12, 10),), open_sizes)) == {"a.weight[0]": ("channel", 8)}
