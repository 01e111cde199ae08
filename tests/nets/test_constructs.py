"""The constructs on which rival tools were seen to be wrong: here each one is exact, or refused with its reason.

Every test runs both oracles: pruned = masked, and the original with permuted units = the original.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_proof import Proof, prove

import graphprune as gp
from graphprune import ops
from graphprune.passes.verify import verify
from graphprune.planning.blockers import list_blockers
from graphprune.registry import Registry

IMAGE = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)
ROW = (torch.randn(2, 6, generator=torch.Generator().manual_seed(2)),)
SEQUENCE = (torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3)),)


class Net(nn.Module):
    """A module whose forward is a function of itself and the input."""

    def __init__(self, forward, **modules) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = forward
        for name, module in modules.items():
            made = module()
            if isinstance(made, torch.Tensor) and not isinstance(made, nn.Parameter):
                self.register_buffer(name, made)
            else:
                setattr(self, name, made)
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, x):
        return self.function(self, x)


def kinds(proof: Proof) -> dict[str, tuple[str, int]]:
    return {group.name: (group.kind, group.size) for group in proof.groups}


def cut(model, example, **options) -> gp.Result:
    """``gp.prune`` with both oracles, but without the export to ONNX, which takes seconds."""
    result = gp.prune(model, example, verify=False, **options)
    state = result.state
    checks = verify(state.original, state.host, state.analysis, state.kept)
    assert {check.name: check.passed for check in checks} == {"masked": True, "permutation": True}, checks
    return result


def kept_of(result: gp.Result) -> dict[str, tuple[int, int]]:
    """For every group that lost units: how many it keeps, and of how many."""
    return {row.name: (row.kept, row.size) for row in result.report.groups if row.kept < row.size}


def test_conv_permute_flatten_linear() -> None:
    net = Net(
        lambda m, x: m.fc(torch.flatten(m.conv(x).permute(0, 2, 3, 1), 1)),
        conv=lambda: nn.Conv2d(3, 6, 3, stride=2), fc=lambda: nn.Linear(54, 4),
    )  # fmt: skip
    proof = prove(net, IMAGE)
    assert kinds(proof) == {"conv.weight[0]": ("channel", 6)}
    assert str(proof.group("fc.weight[1]")) != "((f:9 f_1:6))"
    assert proof.pruned.tensor("fc.weight").shape[1] == 3 * 9


def test_flip_is_refused_with_its_reason() -> None:
    net = Net(lambda m, x: m.b(m.a(x).flip(1)), a=lambda: nn.Conv2d(3, 6, 1), b=lambda: nn.Conv2d(6, 4, 1))
    proof = prove(net, IMAGE)
    assert kinds(proof) == {}
    assert proof.reasons("a.weight[0]") == ["a flip reverses this axis"]


def test_flip_of_another_axis_is_exact() -> None:
    net = Net(lambda m, x: m.b(m.a(x).flip(3)), a=lambda: nn.Conv2d(3, 6, 1), b=lambda: nn.Conv2d(6, 4, 1))
    assert kinds(prove(net, IMAGE)) == {"a.weight[0]": ("channel", 6)}


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2 + 1

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def test_custom_autograd_function() -> None:
    net = Net(lambda m, x: m.b(Doubled.apply(m.a(x))), a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(8, 4))
    assert kinds(prove(net, ROW)) == {"a.weight[0]": ("neuron", 8)}


def test_frozen_parameters_are_pruned_and_stay_frozen() -> None:
    net = Net(lambda m, x: m.b(F.relu(m.a(x))), a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(8, 4))
    net.a.requires_grad_(requires_grad=False)
    proof = prove(net, ROW)
    assert kinds(proof) == {"a.weight[0]": ("neuron", 8)}
    assert not proof.pruned.tensor("a.weight").requires_grad
    assert proof.pruned.tensor("b.weight").requires_grad


def test_backbone_under_no_grad() -> None:
    def forward(m, x):
        with torch.no_grad():
            x = F.relu(m.a(x))
        return m.b(x)

    net = Net(forward, a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(8, 4))
    assert kinds(prove(net, ROW)) == {"a.weight[0]": ("neuron", 8)}


def test_broadcast_mask() -> None:
    def forward(m, x):
        return m.b(m.a(x) * torch.sigmoid(m.gate(x)))

    net = Net(forward, a=lambda: nn.Conv2d(3, 6, 1), gate=lambda: nn.Conv2d(3, 1, 1), b=lambda: nn.Conv2d(6, 4, 1))
    assert kinds(prove(net, IMAGE)) == {"a.weight[0]": ("channel", 6)}


def test_gated_mlp_by_chunk() -> None:
    def forward(m, x):
        gate, up = m.gate_up(x).chunk(2, -1)
        return m.down(F.silu(gate) * up)

    net = Net(forward, gate_up=lambda: nn.Linear(12, 16), down=lambda: nn.Linear(8, 12))
    proof = prove(net, SEQUENCE)
    assert kinds(proof) == {"gate_up.weight[0]": ("neuron", 8)}
    assert tuple(proof.pruned.tensor("gate_up.weight").shape) == (8, 12)


def test_gated_mlp_by_chunk_gets_the_ratio_that_was_asked() -> None:
    def forward(m, x):
        gate, up = m.gate_up(x).chunk(2, -1)
        return m.down(F.silu(gate) * up)

    net = Net(forward, gate_up=lambda: nn.Linear(12, 64), down=lambda: nn.Linear(32, 12))
    result = cut(net, SEQUENCE, target="macs=0.5")
    assert kept_of(result) == {"gate_up.weight[0]": (16, 32)}
    assert result.report.cost("macs").fraction == 0.5
    assert tuple(result.module.gate_up.weight.shape) == (32, 12)
    assert tuple(result.module.down.weight.shape) == (12, 16)


def _thirty_two() -> Net:
    return Net(lambda m, x: m.b(m.a(x)), a=lambda: nn.Conv2d(3, 32, 1), b=lambda: nn.Conv2d(32, 4, 1))


def test_aligned_channels_at_a_high_ratio_are_pruned() -> None:
    assert kept_of(cut(_thirty_two(), IMAGE, target="macs=0.25", align=8)) == {"a.weight[0]": (8, 32)}


def test_a_ratio_that_alignment_forbids_is_an_error() -> None:
    with pytest.raises(gp.TargetError) as caught:
        gp.prune(_thirty_two(), IMAGE, target="macs=0.1", align=8)
    assert str(caught.value).startswith(
        "target 'macs=0.1' cannot be met: at least 7,168 of 28,672 multiply-accumulates (25.0%) remain, 2,867 are allowed"
    )
    assert kept_of(cut(_thirty_two(), IMAGE, target="macs=0.1", align=1, max_ratio=1)) == {"a.weight[0]": (3, 32)}


def test_chunks_that_become_unequal() -> None:
    def forward(m, x):
        left, right = m.a(x).chunk(2, -1)
        return m.b(left) + m.c(right)

    net = Net(forward, a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(4, 3), c=lambda: nn.Linear(4, 3))
    proof = prove(net, ROW)
    assert kinds(proof) == {"a.weight[0]": ("neuron", 4), "a.weight[0]#2": ("neuron", 4)}


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_concatenation_on_any_axis(axis: int) -> None:
    net = Net(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], axis).mean((2, 3))),
        a=lambda: nn.Conv2d(3, 6, 1), b=lambda: nn.Conv2d(3, 6, 1), c=lambda: nn.Linear(12 if axis == 1 else 6, 4),
    )  # fmt: skip
    expected = {"a.weight[0]": ("channel", 6)} | ({"b.weight[0]": ("channel", 6)} if axis == 1 else {})
    assert expected == kinds(prove(net, IMAGE))


def test_literal_sizes_in_view_split_and_slice() -> None:
    def forward(m, x):
        x = m.a(x).view(2, 4, 3)
        left, right = x.split([1, 3], dim=1)
        x = torch.cat([right, left], 1).reshape(2, 12)
        return m.b(x[:, :6] + x[:, 6:12])

    net = Net(forward, a=lambda: nn.Linear(6, 12), b=lambda: nn.Linear(6, 4))
    proof = prove(net, ROW)
    assert proof.groups
    assert proof.pruned.tensor("a.weight").shape[0] < 12


def test_pixel_shuffle_and_unshuffle() -> None:
    net = Net(
        lambda m, x: m.c(F.pixel_unshuffle(m.b(F.pixel_shuffle(m.a(x), 2)), 2)),
        a=lambda: nn.Conv2d(3, 24, 1), b=lambda: nn.Conv2d(6, 5, 1), c=lambda: nn.Conv2d(20, 4, 1),
    )  # fmt: skip
    proof = prove(net, IMAGE)
    assert kinds(proof) == {"a.weight[0]": ("channel", 6), "b.weight[0]": ("channel", 5)}


def test_channel_shuffle() -> None:
    net = Net(
        lambda m, x: m.b(m.shuffle(m.a(x))),
        a=lambda: nn.Conv2d(3, 12, 1), shuffle=lambda: nn.ChannelShuffle(3), b=lambda: nn.Conv2d(12, 4, 1),
    )  # fmt: skip
    assert sorted(group.size for group in prove(net, IMAGE).groups) == [3, 4]


def test_repeat_interleave() -> None:
    net = Net(
        lambda m, x: m.b(m.a(x).repeat_interleave(3, dim=1)),
        a=lambda: nn.Conv2d(3, 6, 1),
        b=lambda: nn.Conv2d(18, 4, 1),
    )
    assert sorted(group.size for group in prove(net, IMAGE).groups) == [3, 6]


def test_irregular_index_is_refused_with_its_reason() -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    net = Net(
        lambda m, x: m.b(m.a(x)[:, m.order]),
        a=lambda: nn.Conv2d(3, 6, 1), order=lambda: order, b=lambda: nn.Conv2d(6, 4, 1),
    )  # fmt: skip
    proof = prove(net, IMAGE)
    assert proof.reasons("a.weight[0]") == ["a constant index takes positions of this axis in no regular order"]


def test_index_by_a_known_run_is_a_slice() -> None:
    net = Net(lambda m, x: m.b(m.a(x)[:, [-3, -2, -1]]), a=lambda: nn.Conv2d(3, 6, 1), b=lambda: nn.Conv2d(3, 4, 1))
    assert [group.size for group in prove(net, IMAGE).groups] == [3, 3]


def test_einsum() -> None:
    net = Net(
        lambda m, x: torch.einsum("bsf,fo->bso", torch.einsum("bsd,df->bsf", x, m.w), m.v),
        w=lambda: nn.Parameter(torch.randn(12, 8)), v=lambda: nn.Parameter(torch.randn(8, 4)),
    )  # fmt: skip
    assert kinds(prove(net, SEQUENCE)) == {"w[1]": ("neuron", 8)}


def test_bare_parameter() -> None:
    net = Net(
        lambda m, x: F.gelu(x @ m.w) @ m.v + m.bias,
        w=lambda: nn.Parameter(torch.randn(6, 8)), v=lambda: nn.Parameter(torch.randn(8, 4)),
        bias=lambda: nn.Parameter(torch.randn(4)),
    )  # fmt: skip
    assert kinds(prove(net, ROW)) == {"w[1]": ("neuron", 8)}


def test_buffer_per_channel() -> None:
    net = Net(
        lambda m, x: m.b(m.a(x) * m.scale), a=lambda: nn.Conv2d(3, 6, 1), scale=lambda: torch.rand(6, 1, 1),
        b=lambda: nn.Conv2d(6, 4, 1),
    )  # fmt: skip
    proof = prove(net, IMAGE)
    assert tuple(sorted(proof.group("scale[0]").tensors, key=["a.weight", "a.bias", "scale", "b.weight"].index)) == (
        "a.weight",
        "a.bias",
        "scale",
        "b.weight",
    )
    assert tuple(proof.pruned.tensor("scale").shape) == (3, 1, 1)


def test_module_used_twice() -> None:
    net = Net(
        lambda m, x: m.c(m.b(F.relu(m.b(F.relu(m.a(x)))))),
        a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(8, 8), c=lambda: nn.Linear(8, 4),
    )  # fmt: skip
    proof = prove(net, ROW)
    assert kinds(proof) == {"a.weight[0]": ("neuron", 8)}
    assert tuple(proof.pruned.tensor("b.weight").shape) == (4, 4)


def test_tied_embedding_stays_tied() -> None:
    def tied():
        return nn.Embedding(11, 8)

    net = Net(
        lambda m, x: m.head(m.middle(m.embed(x))),
        embed=tied,
        middle=lambda: nn.Linear(8, 8),
        head=lambda: nn.Linear(8, 11),
    )
    net.head.weight = net.embed.weight
    proof = prove(net, (torch.tensor([[1, 2, 3], [4, 5, 6]]),))
    module = proof.pruned.module
    assert module.head.weight is module.embed.weight
    assert tuple(module.head.weight.shape) == (11, 4)


def test_tied_embedding_counts_once_and_stays_tied_in_the_result() -> None:
    net = Net(
        lambda m, x: m.head(F.relu(m.middle(m.embed(x)))),
        embed=lambda: nn.Embedding(11, 8), middle=lambda: nn.Linear(8, 8), head=lambda: nn.Linear(8, 11, bias=False),
    )  # fmt: skip
    net.head.weight = net.embed.weight
    result = cut(net, (torch.tensor([[1, 2, 3], [4, 5, 6]]),), target="params=0.6", align=1)
    assert isinstance(result.module, Net)
    assert result.module.head.weight is result.module.embed.weight
    before, after = (sum(p.numel() for p in module.parameters()) for module in (net, result.module))
    cost = result.report.cost("params")
    assert (before, after) == (cost.before, cost.after)
    assert after <= 0.6 * before


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm(bidirectional: bool) -> None:
    width = 16 if bidirectional else 8
    net = Net(
        lambda m, x: m.head(m.lstm(m.embed(x))[0]),
        embed=lambda: nn.Linear(12, 10), head=lambda: nn.Linear(width, 4),
        lstm=lambda: nn.LSTM(10, 8, num_layers=2, batch_first=True, bidirectional=bidirectional),
    )  # fmt: skip
    proof = prove(net, SEQUENCE)
    assert sorted(kinds(proof).values()) == [("neuron", 10), ("recurrent", 8)]
    assert tuple(proof.pruned.tensor("lstm.weight_ih_l0").shape) == (16, 5)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm_with_a_projection(bidirectional: bool) -> None:
    """Cells and what they show of themselves are groups of their own; more cells than projections stay."""
    width = 12 if bidirectional else 6
    net = Net(
        lambda m, x: m.head(m.lstm(m.embed(x))[0]),
        embed=lambda: nn.Linear(12, 10), head=lambda: nn.Linear(width, 4),
        lstm=lambda: nn.LSTM(10, 16, num_layers=2, batch_first=True, bidirectional=bidirectional, proj_size=6),
    )  # fmt: skip
    proof = prove(net, SEQUENCE)
    assert sorted(kinds(proof).values()) == [("neuron", 10), ("recurrent", 6), ("recurrent", 16)]
    assert proof.group("lstm.weight_ih_l0[0]").minimum == 7
    assert tuple(proof.pruned.tensor("lstm.weight_hr_l0").shape) == (3, 8)
    result = gp.prune(net, SEQUENCE, target="macs=0.6", align=1)
    assert isinstance(result.module, Net)
    lstm = result.module.lstm
    assert lstm.proj_size == lstm.weight_hr_l0.shape[0] < lstm.hidden_size == lstm.weight_hr_l0.shape[1] < 16


def test_recurrent_layers_that_are_calls_of_their_own() -> None:
    net = Net(
        lambda m, x: m.head(m.b(m.a(x)[0])[0][:, -1]),
        a=lambda: nn.GRU(12, 8, batch_first=True), b=lambda: nn.LSTM(8, 6, batch_first=True),
        head=lambda: nn.Linear(6, 4),
    )  # fmt: skip
    assert sorted(kinds(prove(net, SEQUENCE)).values()) == [("recurrent", 6), ("recurrent", 8)]


def test_gru() -> None:
    net = Net(
        lambda m, x: m.head(m.gru(x)[0][:, -1]),
        gru=lambda: nn.GRU(12, 8, batch_first=True), head=lambda: nn.Linear(8, 4),
    )  # fmt: skip
    assert kinds(prove(net, SEQUENCE)) == {"gru.weight_ih_l0[0]": ("recurrent", 8)}


@torch.library.custom_op("graphprune_tests::scaled", mutates_args=())
def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


@scaled.register_fake
def _(x: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.empty_like(x)


def _custom() -> Net:
    return Net(lambda m, x: m.b(scaled(m.a(x), 2.0)), a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(8, 4))


def test_custom_operator_is_a_barrier() -> None:
    proof = prove(_custom(), ROW)
    assert kinds(proof) == {}
    assert proof.reasons("a.weight[0]") == ["no coupling rule for 'graphprune_tests.scaled.default'"]


def test_custom_operator_with_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_ROWS", Registry("rule", {}))
    ops.register("graphprune_tests::scaled", "n c -> n c")
    assert kinds(prove(_custom(), ROW)) == {"a.weight[0]": ("neuron", 8)}


def test_the_example_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """The custom operator there is a barrier without its rule, and hangs its operands together with it."""
    text = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    (code,) = (part for part in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "custom_op(" in part)
    monkeypatch.setattr(ops, "_ROWS", Registry("rule", {}))
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "guide.md", "exec", dont_inherit=True), names)

    def net() -> Net:
        return Net(
            lambda m, x: m.c(names["fused_gate"](m.a(x), m.b(x))),
            a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(6, 8), c=lambda: nn.Linear(8, 4),
        )  # fmt: skip

    proof = prove(net(), ROW)
    assert kinds(proof) == {"a.weight[0]": ("neuron", 8)}
    assert {"a.weight", "a.bias", "b.weight", "b.bias", "c.weight"} == set(proof.groups[0].tensors)
    del ops._ROWS["mylib::fused_gate"]
    barrier = prove(net(), ROW)
    assert kinds(barrier) == {}
    (first, *_) = list_blockers(barrier.analysis)
    assert (
        first.reason.text, first.reason.kind, first.parameters,
    ) == ("no coupling rule for 'mylib.fused_gate.default'", "barrier", 144)  # fmt: skip


class Attention(nn.Module):
    """A fused qkv block as in vision transformers, with separate heads for keys where ``n_kv`` is given."""

    def __init__(self, dim: int = 12, n_heads: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        b, s, c = x.shape
        q, k, v = (
            self.qkv(self.norm(x)).reshape(b, s, 3, self.n_heads, c // self.n_heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(b, s, c))


def test_fused_qkv() -> None:
    proof = prove(Attention(), SEQUENCE)
    assert kinds(proof) == {"qkv.weight[0]": ("head", 3), "qkv.weight[0]#2": ("qk-dim", 4)}
    (call,) = (n for n in proof.pruned.module.graph.nodes if "scaled_dot" in str(n.target))
    assert call.kwargs["scale"] == 0.5


def test_attention_with_a_scale_from_the_shape() -> None:
    def forward(m, x):
        q, k, v = m.qkv(x).chunk(3, -1)
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        return m.out(weights @ v)

    net = Net(forward, qkv=lambda: nn.Linear(12, 24), out=lambda: nn.Linear(8, 12))
    assert sorted(kind for kind, _ in kinds(prove(net, SEQUENCE)).values()) == ["qk-dim", "value-dim"]


def test_multihead_attention_module() -> None:
    net = Net(
        lambda m, x: m.norm(m.attend(x, x, x, need_weights=False)[0] + x),
        attend=lambda: nn.MultiheadAttention(12, 3, batch_first=True), norm=lambda: nn.LayerNorm(12),
    )  # fmt: skip
    assert {"head", "qk-dim"} == {kind for kind, _ in kinds(prove(net, SEQUENCE)).values()}


def test_group_norm_keeps_groups_and_channels_apart() -> None:
    net = Net(
        lambda m, x: m.b(m.norm(m.a(x))),
        a=lambda: nn.Conv2d(3, 12, 1), norm=lambda: nn.GroupNorm(3, 12), b=lambda: nn.Conv2d(12, 4, 1),
    )  # fmt: skip
    proof = prove(net, IMAGE)
    assert {group.kind: group.exact for group in proof.groups} == {"norm-group": True, "width": False} or {
        group.kind: group.exact for group in proof.groups
    } == {
        "norm-group": True,
        "channel": False,
    }


def test_grouped_and_depthwise_convolutions() -> None:
    net = Net(
        lambda m, x: m.d(m.c(m.b(m.a(x)))),
        a=lambda: nn.Conv2d(3, 12, 1), b=lambda: nn.Conv2d(12, 12, 3, groups=12), c=lambda: nn.Conv2d(12, 8, 1, groups=4),
        d=lambda: nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    proof = prove(net, IMAGE)
    assert sorted(group.size for group in proof.groups) == [2, 3, 4]


def test_train_mode_statistics_keep_the_batch() -> None:
    net = Net(lambda m, x: m.b(F.instance_norm(m.a(x))), a=lambda: nn.Conv2d(3, 6, 1), b=lambda: nn.Conv2d(6, 4, 1))
    assert kinds(prove(net, IMAGE)) == {"a.weight[0]": ("channel", 6)}


def test_standardized_weights() -> None:
    def forward(m, x):
        w = m.b.weight
        w = F.batch_norm(w.reshape(1, len(w), -1), None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(w)
        return m.c(F.relu(F.conv2d(m.a(x), w, m.b.bias)))

    net = Net(forward, a=lambda: nn.Conv2d(3, 6, 1), b=lambda: nn.Conv2d(6, 8, 3), c=lambda: nn.Conv2d(8, 4, 1))
    proof = prove(net, IMAGE)
    assert {name: (size, proof.group(name).exact) for name, (_, size) in kinds(proof).items()} == {
        "a.weight[0]": (6, False),
        "b.weight[0]": (8, True),
    }


class Merged(nn.Module):
    """Rows of an image encoder take the place of marked tokens of a text."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.look, self.out = nn.Embedding(9, 12), nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, ids, image):
        text = self.words(ids)
        marked = (ids == 7).unsqueeze(-1).expand_as(text)
        return self.out(torch.tanh(text.masked_scatter(marked, self.look(image))))


def test_images_among_words() -> None:
    ids, image = torch.tensor([[1, 7, 7, 2, 3], [7, 4, 7, 5, 6]]), torch.randn(4, 6)
    assert kinds(prove(Merged(), (ids, image))) == {"words.weight[1]": ("neuron", 12)}


class Chosen(nn.Module):
    """As many rows as a mask says: their number is known at run time only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x, mask):
        rows = self.a(x)[mask].view(-1, 2, 4)
        return self.b(torch.cat([rows, rows]).flatten(1))


def test_rows_that_a_mask_chooses() -> None:
    proof = prove(Chosen(), (torch.randn(5, 6), torch.tensor([True, False, True, True, False])))
    assert {group.size for group in proof.groups} == {2, 4}


def test_random_numbers_inside_the_model() -> None:
    def forward(m, x):
        return m.c(torch.relu(m.b(torch.relu(m.a(x)) + torch.rand(2, 8))))

    net = Net(forward, a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(8, 7), c=lambda: nn.Linear(7, 3))
    proof = prove(net, ROW)
    assert kinds(proof) == {"b.weight[0]": ("neuron", 7)}
    assert proof.reasons("a.weight[0]") == ["no coupling rule for 'aten.rand.default'"]


def test_branches_are_whole_and_say_so() -> None:
    def forward(m, x):
        y = m.b(torch.relu(m.a(x)))
        (y,) = torch.cond(y.sum() > 0, lambda t: (torch.relu(t),), lambda t: (torch.tanh(t),), (y,))
        return m.c(y)

    net = Net(forward, a=lambda: nn.Linear(6, 8), b=lambda: nn.Linear(8, 7), c=lambda: nn.Linear(7, 3))
    proof = prove(net, ROW)
    assert kinds(proof) == {"a.weight[0]": ("neuron", 8)}
    assert proof.reasons("c.weight[1]") == ["'cond' runs a graph of its own, into which no factor is followed"]


def test_dynamic_batch_with_heads_folded_into_it() -> None:
    def forward(m, x):
        b, s, _ = x.shape
        q, k, v = (t.view(b, s, 3, 4).transpose(1, 2).reshape(b * 3, s, 4) for t in m.qkv(x).chunk(3, -1))
        y = torch.bmm((torch.bmm(q, k.transpose(1, 2)) * 0.5).softmax(-1), v)
        return m.out(y.view(b, 3, s, 4).transpose(1, 2).reshape(b, s, 12))

    net = Net(forward, qkv=lambda: nn.Linear(12, 36), out=lambda: nn.Linear(12, 12))
    proof = prove(net, SEQUENCE, ({0: torch.export.Dim.DYNAMIC},))
    assert {3, 4} == {group.size for group in proof.groups}
    other = {"x": torch.randn(5, 5, 12).numpy()}
    assert proof.pruned.run(other)["output"].shape == (5, 5, 12)


def test_strided_slices_of_channels() -> None:
    net = Net(
        lambda m, x: m.b(torch.cat([m.a(x)[:, ::2], m.a(x)[:, 1::2]], 1)),
        a=lambda: nn.Conv2d(3, 8, 1), b=lambda: nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    assert [group.size for group in prove(net, IMAGE).groups] == [4]


def test_squeeze_of_an_axis_that_is_cut_to_one() -> None:
    def forward(m, x):
        return m.b(m.a(x).squeeze())

    net = Net(forward, a=lambda: nn.Linear(6, 2), b=lambda: nn.Linear(2, 4))
    assert kinds(prove(net, ROW)) == {"a.weight[0]": ("neuron", 2)}


TOKENS = {"input_ids": torch.tensor([[3, 1, 4, 1, 5]])}
ATTENTION = {"kv-group": 2, "query-head": 2}


def language_model(name: str, **more) -> nn.Module:
    """One layer of a decoder with random weights: 4 query heads over 2 key-value heads."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    options = {
        "vocab_size": 31, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 16, **more,
    }  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**options))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_heads_with_normalized_queries_and_keys() -> None:
    proof = prove(language_model("Qwen3", head_dim=8), TOKENS)
    assert {group.kind: group.size for group in proof.groups} == {
        **ATTENTION,
        "rotary-pair": 4,
        "value-dim": 8,
        "neuron": 32,
        "width": 24,
    }
    assert proof.group("model.layers.0.self_attn.q_norm.weight[0]").kind == "rotary-pair"
    shapes = {
        name: tuple(proof.pruned.tensor(f"model.layers.0.self_attn.{name}.weight").shape)
        for name in ("q_proj", "k_proj", "q_norm")
    }
    assert shapes == {"q_proj": (4, 12), "k_proj": (4, 12), "q_norm": (4,)}


@pytest.mark.parametrize(("only", "rows"), [("kv-group", (12, 6)), ("query-head", (12, 12))])
def test_grouped_queries_under_global_ranking(only: str, rows: tuple[int, int]) -> None:
    model = language_model("Llama")
    result = cut(model, TOKENS, target="params=0.9", allocation="global", only=[only])
    assert {(row.kind, row.kept, row.size) for row in result.report.groups if row.kept < row.size} == {(only, 1, 2)}
    attention = result.module.model.layers[0].self_attn
    assert rows == (attention.q_proj.weight.shape[0], attention.k_proj.weight.shape[0])
    assert result.report.cost("params").fraction <= 0.9


def test_grouped_queries_and_neurons_under_global_ranking() -> None:
    result = cut(language_model("Llama"), TOKENS, target="macs=0.6", allocation="global")
    assert {"kv-group", "neuron"} == {row.kind for row in result.report.groups if row.kept < row.size}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 6}),
    ],
)
def test_width_of_experts_and_of_the_residual(name: str, options: dict[str, int]) -> None:
    proof = prove(language_model(name, **options), TOKENS)
    experts = "model.layers.0.mlp.experts"
    neurons, width = proof.group(f"{experts}.gate_up_proj[1]"), proof.group("model.embed_tokens.weight[1]")
    assert (neurons.kind, neurons.size, neurons.exact) == ("expert-width", 32, True)
    assert (width.kind, width.size, width.exact) == ("width", 24, False)
    assert {f"{experts}.gate_up_proj", f"{experts}.down_proj", "model.layers.0.mlp.gate.weight"} <= set(width.tensors)
    whole = proof.group(f"{experts}.gate_up_proj[0]")
    assert (whole.kind, whole.size, whole.exact, whole.minimum) == ("expert", 4, False, 2)
    assert tuple(proof.pruned.tensor(f"{experts}.gate_up_proj").shape) == (2, 32, 12)
    assert tuple(proof.pruned.tensor(f"{experts}.down_proj").shape) == (2, 12, 16)
    assert tuple(proof.pruned.tensor("model.layers.0.mlp.gate.weight").shape) == (2, 12)
