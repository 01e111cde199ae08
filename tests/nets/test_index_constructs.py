"""Values that are positions, regular index maps, and the layouts of attention: exact, with the right kinds.

Every test runs both oracles, see ``torch_proof``.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_constructs import IMAGE, SEQUENCE, TOKENS, Net, cut, kept_of, kinds, language_model
from torch import nn
from torch_proof import prove

import graphprune as gp
from graphprune.hosts.torch import onnx_export as torch_onnx


def weight(*shape: int):
    return lambda: nn.Parameter(torch.randn(*shape) / shape[-1] ** 0.5)


# -- experts ---------------------------------------------------------------------------------------------------------


def looked_up(m, x):
    """Each token's experts by index, as batched products."""
    flat = x.reshape(-1, 12)
    scores, chosen = F.softmax(m.router(flat), -1).topk(2, -1)
    ids = chosen.reshape(-1)
    hidden = torch.bmm(m.up[ids], flat.repeat_interleave(2, 0).unsqueeze(-1))
    out = torch.bmm(m.down[ids], F.relu(hidden)).squeeze(-1) * scores.reshape(-1, 1)
    return out.reshape(-1, 2, 12).sum(1)


def experts(forward=looked_up, n: int = 6, **more) -> Net:
    return Net(forward, router=lambda: nn.Linear(12, n), up=weight(n, 8, 12), down=weight(n, 12, 8), **more)


EXPERTS = {"up[0]": ("expert", 6), "up[1]": ("expert-width", 8)}


def test_experts_looked_up() -> None:
    proof = prove(experts(), SEQUENCE)
    assert kinds(proof) == EXPERTS
    assert proof.group("router.bias[0]").minimum == 2
    assert not proof.group("router.bias[0]").exact
    assert tuple(proof.pruned.tensor("up").shape) == (3, 4, 12)


def test_experts_of_all_tokens_weighted_by_scattered_scores() -> None:
    def forward(m, x):
        flat = x.reshape(-1, 12)
        scores, chosen = m.router(flat).topk(2, -1)
        weights = torch.zeros(10, 6).scatter(1, chosen, scores.sigmoid())
        hidden = F.relu(torch.einsum("td,edf->tef", flat, m.up.transpose(1, 2)))
        return torch.einsum("tef,efd,te->td", hidden, m.down.transpose(1, 2), weights)

    assert kinds(prove(experts(forward), SEQUENCE)) == EXPERTS


def test_one_expert_by_one_hot_dispatch() -> None:
    def forward(m, x):
        flat = x.reshape(-1, 12)
        shares = F.softmax(m.router(flat), -1)
        mask = F.one_hot(shares.argmax(-1), 6).to(x.dtype)
        out = torch.einsum("te,edf,tf->td", mask, m.down, F.relu(torch.einsum("te,efd,td->tf", mask, m.up, flat)))
        return out * (shares * mask).sum(-1, keepdim=True)

    assert kinds(prove(experts(forward), SEQUENCE)) == EXPERTS


def test_mask_by_comparison_with_a_range() -> None:
    def forward(m, x):
        flat = x.reshape(-1, 12)
        scores, chosen = m.router(flat).topk(2, -1)
        mask = (chosen.unsqueeze(-1) == torch.arange(6)).to(x.dtype)
        weights = (mask * scores.unsqueeze(-1)).sum(1)
        return torch.einsum("te,edf,etf->td", weights, m.down, torch.einsum("efd,td->etf", m.up, flat).relu())

    proof = prove(experts(forward), SEQUENCE)
    assert kinds(proof) == EXPERTS
    (table,) = proof.analysis.positions
    assert proof.pruned.read(table).tolist() == [0, 1, 2]


def test_groups_of_experts() -> None:
    def forward(m, x):
        flat = x.reshape(-1, 12)
        shares = m.router(flat).sigmoid()
        grouped = shares.view(-1, 3, 4)
        best = grouped.topk(2, -1)[0].sum(-1).topk(2, -1)[1]
        mask = torch.zeros(10, 3).scatter(1, best, 1.0).unsqueeze(-1).expand(-1, 3, 4).reshape(-1, 12)
        chosen = shares.masked_fill(mask == 0, 0.0).topk(3, -1)[1]
        scores, ids = shares.gather(1, chosen), chosen.reshape(-1)
        hidden = F.relu(torch.bmm(m.up[ids], flat.repeat_interleave(3, 0).unsqueeze(-1)))
        out = torch.bmm(m.down[ids], hidden).squeeze(-1) * scores.reshape(-1, 1)
        return out.reshape(-1, 3, 12).sum(1)

    proof = prove(experts(forward, 12), SEQUENCE)
    assert sorted(kinds(proof).values()) == [("expert", 4), ("expert-group", 3), ("expert-width", 8)]
    assert {group.kind: group.minimum for group in proof.groups} == {"expert": 2, "expert-group": 2, "expert-width": 1}


def test_experts_singled_out_by_number_stay_whole() -> None:
    def forward(m, x):
        flat = x.reshape(-1, 12)
        scores, chosen = m.router(flat).topk(1, -1)
        out = torch.zeros_like(flat)
        for i in range(6):
            hidden = F.relu(flat @ m.up[i].T) @ m.down[i].T
            out = out + hidden * scores * (chosen == i)
        return out

    proof = prove(experts(forward), SEQUENCE)
    assert set(kinds(proof).values()) == {("neuron", 8)}
    assert "'aten.eq.Scalar' computes with positions of this axis" in proof.reasons("router.weight[0]")


def test_a_choice_that_is_an_output_stays_whole() -> None:
    net = experts(lambda m, x: (looked_up(m, x), m.router(x).argmax(-1)))
    proof = prove(net, SEQUENCE)
    assert kinds(proof) == {"up[1]": ("expert-width", 8)}
    assert proof.reasons("router.weight[0]") == ["axis of the model's output 'argmax'"]


def test_experts_are_pruned_when_asked_for_and_enough_stay() -> None:
    result = cut(experts(), SEQUENCE, target="params=0.5", only=["expert"], align=1, max_ratio=1)
    assert kept_of(result) == {"up[0]": (3, 6)}
    with pytest.raises(gp.TargetError, match="cannot be met: at least 410 of 1,230 parameters"):
        gp.prune(experts(), SEQUENCE, target="params=0.2", only=["expert"], align=1, max_ratio=1)


def test_width_of_experts_goes_before_experts() -> None:
    result = cut(experts(), SEQUENCE, target="params=0.7", align=1)
    assert {row.kind for row in result.report.groups if row.kept < row.size} == {"expert-width"}


# -- constant indices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5], [6, 6]),
        ([0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11], [3, 4]),
        ([8, 9, 10, 11, 0, 1, 2, 3, 4, 5], [2, 4, 6]),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [12]),
    ],
    ids=["swapped halves", "channel shuffle", "subset", "identity"],
)
def test_regular_index(index: list[int], expected: list[int]) -> None:
    net = Net(
        lambda m, x: m.b(m.a(x)[:, m.index]),
        a=lambda: nn.Conv2d(3, 12, 1), index=lambda: torch.tensor(index), b=lambda: nn.Conv2d(len(index), 4, 1),
    )  # fmt: skip
    assert sorted(group.size for group in prove(net, IMAGE).groups) == expected


def test_strided_index() -> None:
    net = Net(
        lambda m, x: m.b(m.a(x).index_select(1, m.index)),
        a=lambda: nn.Conv2d(3, 12, 1), index=lambda: torch.arange(1, 12, 3), b=lambda: nn.Conv2d(4, 4, 1),
    )  # fmt: skip
    proof = prove(net, IMAGE)
    assert [group.size for group in proof.groups] == [4]
    assert "an index takes every 3-th position of this axis" in proof.reasons("a.weight[0]")


def test_index_that_writes() -> None:
    def forward(m, x):
        y = torch.zeros(2, 5, 12).index_copy(2, torch.arange(8, 12), m.a(x)).index_add(2, torch.arange(8), m.b(x))
        return m.c(y)

    net = Net(forward, a=lambda: nn.Linear(12, 4), b=lambda: nn.Linear(12, 8), c=lambda: nn.Linear(12, 3))
    assert kinds(prove(net, SEQUENCE)) == {"a.weight[0]": ("neuron", 4), "b.weight[0]": ("neuron", 8)}


def test_window_bias_table() -> None:
    """As in Swin: a table of biases by relative position, looked up with a constant index, one column per head."""

    def forward(m, x):
        q, k, v = m.qkv(x).reshape(2, 4, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = m.table[m.index.view(-1)].view(4, 4, -1).permute(2, 0, 1).unsqueeze(0)
        y = ((q * 0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return m.out(y.transpose(1, 2).reshape(2, 4, 12))

    places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
    relative = (places[:, :, None] - places[:, None, :] + 1).permute(1, 2, 0)
    net = Net(
        forward, qkv=lambda: nn.Linear(12, 36), out=lambda: nn.Linear(12, 12), table=weight(9, 3),
        index=lambda: relative[..., 0] * 3 + relative[..., 1],
    )  # fmt: skip
    proof = prove(net, (torch.randn(2, 4, 12),))
    assert sorted(kinds(proof).values()) == [("head", 3), ("qk-dim", 4)]
    assert tuple(proof.pruned.tensor("table").shape) == (9, 1)
    assert proof.reasons("table[0]") == ["an index looks up positions of this axis"]


# -- einsum ----------------------------------------------------------------------------------------------------------


def test_einsum_with_an_ellipsis_and_a_diagonal() -> None:
    def forward(m, x):
        y = torch.einsum("...d,df->...f", x, m.up)
        gram = torch.einsum("bsf,bsg->bfg", y, y)
        return torch.einsum("bsf,bf,f...->bs...", y, torch.einsum("bff->bf", gram), m.down)

    assert kinds(prove(Net(forward, up=weight(12, 8), down=weight(8, 4)), SEQUENCE)) == {"up[1]": ("value-dim", 8)}


# -- attention -------------------------------------------------------------------------------------------------------


def attend(q, k, v, bias=None):
    scores = q @ k.transpose(-2, -1) * 0.5
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def projections(rows: int = 36):
    return {"qkv": lambda: nn.Linear(12, rows), "out": lambda: nn.Linear(12, 12)}


HEADS = [("head", 3), ("qk-dim", 4), ("value-dim", 4)]


@pytest.mark.parametrize("order", ["3 h d", "h 3 d", "h d 3", "split"])
def test_fused_projections_in_every_order(order: str) -> None:
    def forward(m, x):
        packed = m.qkv(x)
        if order == "split":
            q, k, v = (part.reshape(2, 5, 3, 4) for part in packed.split([12, 12, 12], -1))
        elif order == "3 h d":
            q, k, v = packed.reshape(2, 5, 3, 3, 4).unbind(2)
        elif order == "h 3 d":
            q, k, v = packed.reshape(2, 5, 3, 12).split(4, -1)
        else:
            q, k, v = packed.reshape(2, 5, 3, 4, 3).unbind(-1)
        y = attend(*(part.transpose(1, 2) for part in (q, k, v)))
        return m.out(y.transpose(1, 2).reshape(2, 5, 12))

    found = sorted(kinds(prove(Net(forward, **projections()), SEQUENCE)).values())
    assert found == HEADS if order in ("split", "h 3 d") else [("head", 3), ("qk-dim", 4)]


def test_grouped_fused_projection() -> None:
    """As in Falcon: each key-value head with its query heads, then its key and its value."""

    def forward(m, x):
        packed = m.qkv(x).view(2, 5, 2, 5, 4)
        q, k, v = packed[..., :-2, :], packed[..., -2:-1, :], packed[..., -1:, :]
        k, v = (part.expand(-1, -1, -1, 3, -1) for part in (k, v))
        q, k, v = (part.reshape(2, 5, 6, 4).transpose(1, 2) for part in (q, k, v))
        return m.out(attend(q, k, v).transpose(1, 2).reshape(2, 5, 24))

    proof = prove(Net(forward, qkv=lambda: nn.Linear(12, 40), out=lambda: nn.Linear(24, 12)), SEQUENCE)
    assert sorted(kinds(proof).values()) == [("kv-group", 2), ("qk-dim", 4), ("query-head", 3)]


def split_heads(x, n: int = 3):
    return x.reshape(2, 5, n, -1).transpose(1, 2)


def test_relative_position_buckets() -> None:
    """As in T5: an embedding of constant buckets, one column per head."""

    def forward(m, x):
        bias = m.bias(m.buckets).permute(2, 0, 1).unsqueeze(0)
        y = attend(*(split_heads(part) for part in m.qkv(x).chunk(3, -1)), bias)
        return m.out(y.transpose(1, 2).reshape(2, 5, 12))

    buckets = (torch.arange(5)[None, :] - torch.arange(5)[:, None]).clamp(-2, 2) + 2
    net = Net(forward, **projections(), bias=lambda: nn.Embedding(5, 3), buckets=lambda: buckets)
    proof = prove(net, SEQUENCE)
    assert sorted(kinds(proof).values()) == HEADS
    assert tuple(proof.pruned.tensor("bias.weight").shape) == (5, 1)


def test_slopes_per_head() -> None:
    """As in ALiBi: constant slopes are sliced with their heads."""

    def forward(m, x):
        slopes = 2.0 ** -torch.arange(1, 4)
        bias = slopes[:, None, None] * -(torch.arange(5)[None, :] - torch.arange(5)[:, None]).abs()
        y = attend(*(split_heads(part) for part in m.qkv(x).chunk(3, -1)), bias.unsqueeze(0))
        return m.out(y.transpose(1, 2).reshape(2, 5, 12))

    assert sorted(kinds(prove(Net(forward, **projections()), SEQUENCE)).values()) == HEADS


def rotated(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def test_partial_rotary_embedding() -> None:
    def forward(m, x):
        angles = torch.arange(5)[:, None] * (1.0 / 10 ** torch.arange(0, 1, 0.25))
        cos, sin = (f(torch.cat((angles, angles), -1)) for f in (torch.cos, torch.sin))
        q, k, v = (split_heads(part) for part in m.qkv(x).chunk(3, -1))
        q, k = (torch.cat((rotated(part[..., :8], cos, sin), part[..., 8:]), -1) for part in (q, k))
        return m.out(attend(q, k, v).transpose(1, 2).reshape(2, 5, 36))

    net = Net(forward, qkv=lambda: nn.Linear(12, 108), out=lambda: nn.Linear(36, 12))
    assert sorted(kinds(prove(net, SEQUENCE)).values()) == [
        ("head", 3), ("qk-dim", 4), ("rotary-pair", 4), ("value-dim", 12),
    ]  # fmt: skip


def test_attention_sinks() -> None:
    """As in GPT-OSS: a logit of each head beside those of the keys, dropped after the softmax."""

    def forward(m, x):
        q, k, v = (split_heads(part) for part in m.qkv(x).chunk(3, -1))
        scores = torch.cat([q @ k.transpose(-2, -1) * 0.5, m.sinks.reshape(1, -1, 1, 1).expand(2, -1, 5, -1)], -1)
        y = scores.softmax(-1)[..., :-1] @ v
        return m.out(y.transpose(1, 2).reshape(2, 5, 12))

    proof = prove(Net(forward, **projections(), sinks=weight(3)), SEQUENCE)
    assert sorted(kinds(proof).values()) == HEADS
    assert tuple(proof.pruned.tensor("sinks").shape) == (1,)


@pytest.mark.parametrize("per_head", [False, True])
def test_normalised_queries_and_keys(per_head: bool) -> None:
    def forward(m, x):
        q, k, v = (split_heads(part) for part in m.qkv(x).chunk(3, -1))
        q, k = (F.rms_norm(part, (4,)) * scale for part, scale in ((q, m.q_scale), (k, m.k_scale)))
        return m.out(attend(q, k, v).transpose(1, 2).reshape(2, 5, 12))

    shape = (3, 1, 4) if per_head else (4,)
    proof = prove(Net(forward, **projections(), q_scale=weight(*shape), k_scale=weight(*shape)), SEQUENCE)
    assert sorted(kinds(proof).values()) == HEADS
    assert {group.kind: group.exact for group in proof.groups} == {"head": True, "qk-dim": False, "value-dim": True}


def test_attention_between_convolutions() -> None:
    def forward(m, x):
        y = F.relu(m.stem(x))
        q, k, v = m.qkv(y).flatten(2).reshape(2, 3, 12, 64).split(4, 2)
        mixed = (q.transpose(-2, -1) @ k).softmax(-1)
        return m.out((v @ mixed.transpose(-2, -1)).reshape(2, 12, 8, 8) + m.local(y))

    net = Net(
        forward, stem=lambda: nn.Conv2d(3, 8, 3, padding=1), qkv=lambda: nn.Conv2d(8, 36, 1),
        local=lambda: nn.Conv2d(8, 12, 1), out=lambda: nn.Conv2d(12, 4, 1),
    )  # fmt: skip
    found = kinds(prove(net, IMAGE))
    assert sorted(size for _, size in found.values()) == [3, 4, 4, 8]
    assert found["stem.weight[0]"] == ("channel", 8)
    assert found["qkv.weight[0]"] == ("head", 3)


# -- export to ONNX --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(5, 0, 4), (7, -1, 2), (10,)])
def test_histogram_in_terms_of_known_operators(arguments: tuple[float, ...]) -> None:
    x = torch.arange(40) % 5 * 1.0 if len(arguments) > 1 else torch.randn(40)
    assert torch.equal(torch.histc(x, *arguments), torch_onnx._histc(x, *arguments))


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize(
    "x", [torch.randn(3, 4, 5), torch.randint(-3, 3, (3, 4, 5)), torch.ones(2, 3)], ids=["floats", "ties", "ones"]
)
def test_running_extremes_in_terms_of_known_operators(x: torch.Tensor, dim: int) -> None:
    for ours, theirs in ((torch_onnx._cummax, torch.cummax), (torch_onnx._cummin, torch.cummin)):
        for got, expected in zip(ours(x, dim), theirs(x, dim), strict=True):
            assert torch.equal(got, expected)


def test_checks_that_all_is_true_are_exported() -> None:
    def forward(m, x):
        y = F.relu(m.a(x))
        fine = torch.ops.aten._is_all_true(torch.isfinite(x))
        return torch.where(fine, m.b(y), 0.0)

    net = Net(forward, a=lambda: nn.Linear(12, 8), b=lambda: nn.Linear(8, 4))
    proof = gp.prune(net, SEQUENCE, target="macs=0.8", align=1, export=True).report.proof
    assert {check.name for check in proof if check.passed} == {"masked", "permutation", "onnxruntime"}


def test_grouped_product_in_terms_of_known_operators() -> None:
    x, weights, offsets = torch.randn(6, 8), torch.randn(3, 8, 12), torch.tensor([2, 2, 6], dtype=torch.int32)
    expected = torch.ops.aten._grouped_mm(x, weights, offsets)
    assert torch.allclose(expected, torch_onnx._grouped_mm(x, weights, offsets), atol=1e-5)


def test_grouped_experts_become_a_file_and_a_module() -> None:
    """The experts of transformers as they come: sorted, counted, multiplied group by group."""
    model = language_model("Mixtral", num_local_experts=4, num_experts_per_tok=2)
    result = gp.prune(model, TOKENS, target="params=0.9", only=["expert"], align=1, export=True)
    assert type(result.module) is type(model)
    assert {(row.kind, row.size) for row in result.report.groups if row.kept < row.size} == {("expert", 4)}
    assert {check.name for check in result.report.proof if check.passed} == {
        "masked",
        "permutation",
        "onnxruntime",
        "cached",
    }
