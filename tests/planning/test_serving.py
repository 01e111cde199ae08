"""What a token costs whoever serves a model: keys and values that are kept, and parameters of chosen experts."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.errors import TargetError


class Decoder(nn.Module):
    """Two causal attentions of 8 query heads that share 4 of keys and values, 6 wide."""

    def __init__(self, *, causal: bool = True, repeat: bool = False) -> None:
        super().__init__()
        self.causal, self.repeat = causal, repeat
        self.q, self.o = (
            nn.ModuleList(nn.Linear(24, 48) for _ in range(2)),
            nn.ModuleList(nn.Linear(48, 24) for _ in range(2)),
        )
        self.k, self.v = (nn.ModuleList(nn.Linear(24, 24) for _ in range(2)) for _ in range(2))
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        b, n, _ = x.shape
        for q, k, v, o in zip(self.q, self.k, self.v, self.o, strict=True):
            q, k, v = (each(x).view(b, n, -1, 6).transpose(1, 2) for each in (q, k, v))
            if self.repeat:
                k, v = (each.repeat_interleave(2, 1) for each in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=not self.repeat)
            x = x + o(y.transpose(1, 2).reshape(b, n, -1))
        return self.head(x)


X = (torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(0)),)


@cache
def session(**options: Any) -> Any:
    torch.manual_seed(0)
    return gp.Session(Decoder(**options).eval(), X)


@pytest.mark.parametrize("repeat", [False, True])
def test_keys_and_values_are_kept_once_for_all_query_heads_that_share_them(repeat: bool) -> None:
    costs = session(repeat=repeat).prune(keep={"q.0": 3}, verify=False).report.cost("kv_cache")
    whole = 2 * 2 * 4 * 6 * 4  # layers, keys and values, heads, their width, bytes
    assert (costs.before, costs.after) == (whole, whole - 2 * 6 * 4)
    parts = session(repeat=repeat).prune(keep={"query-head": 1}, verify=False)
    assert parts.report.cost("kv_cache").fraction == 1
    assert parts.report.cost("params").fraction < 1


def test_a_budget_of_the_cache() -> None:
    result = session().prune(target={"kv_cache": 0.5}, criterion="l1", verify=False)
    cost = result.report.cost("kv_cache")
    assert (cost.fraction, cost.requested) == (0.5, 0.5 * cost.before)
    assert {group.kind for group in result.plan.groups} == {"kv-group"}
    assert "bytes of cache for a token" in str(result.report)
    deep = session().prune(remove_blocks="o.0", verify=False)
    assert deep.report.cost("kv_cache").fraction == 0.5


class Experts(nn.Module):
    """Two of six experts answer."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 6)
        self.up, self.down = nn.Parameter(torch.randn(6, 8, 12)), nn.Parameter(torch.randn(6, 12, 8))
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        probs = self.router(x).softmax(-1)
        weights, places = probs.topk(2, -1)
        share = torch.zeros_like(probs).scatter(-1, places, weights)
        y = torch.einsum("eth,ehd->etd", F.silu(torch.einsum("td,edh->eth", x, self.up)), self.down)
        return self.out(torch.einsum("te,etd->td", share, y))


ROUTER, ONE, OUT = 8 * 6 + 6, 2 * 8 * 12, 8 * 3 + 3


def test_a_token_reads_the_experts_that_are_chosen() -> None:
    torch.manual_seed(0)
    opened = gp.Session(Experts().eval(), (torch.randn(9, 8),))
    fewer = opened.prune(keep={"expert": 3}, verify=False).report.cost("active_params")
    assert (fewer.before, fewer.after) == (ROUTER + 2 * ONE + OUT, ROUTER / 2 + 2 * ONE + OUT)
    result = opened.prune(target={"active_params": 0.7}, align=1, criterion="l1", verify=False)
    assert 0.6 < result.report.cost("active_params").fraction <= 0.7
    assert result.report.cost("params").fraction < 0.7
    assert {group.kind for group in result.plan.groups} == {"expert-width"}


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("kv_cache", "no causal attention was found in this model"),
        ("active_params", "no router of this model chooses among experts that can be told apart"),
    ],
)
def test_models_that_have_none(metric: str, reason: str) -> None:
    with pytest.raises(TargetError) as error:
        session(causal=False).prune(target={metric: 0.5}, verify=False)
    assert str(error.value) == f"target '{metric}' means nothing here: {reason}; take another metric"
    assert {cost.metric for cost in session(causal=False).prune(keep={"q.0": 3}, verify=False).report.costs} == {
        "macs", "params", "bytes"
    }  # fmt: skip
