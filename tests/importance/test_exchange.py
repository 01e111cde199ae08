"""Local exchange of units after the elimination (OSSCAR; docs/methods.md, Exchange of units)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import OptionError
from graphprune.importance.exchange import Swept, exchange
from graphprune.importance.obs import Problem, eliminate

N, C, ROWS, GONE = 4000, 12, 5, 4


def correlated(seed: int, c: int = C) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, c)) @ rng.standard_normal((c, c)) + rng.standard_normal(c)


def swept_of(seed: int, m: int = 1, c: int = C) -> Swept:
    weight = np.random.default_rng(seed + 50).standard_normal((ROWS, c))
    return Swept(np.cov(correlated(seed, c).T, bias=True), weight, np.arange(c).reshape(-1, m))


def loss_of(found: list[Swept], kept: np.ndarray) -> float:
    """The error of the exact refit, by the inverse of the whole covariance (docs/methods.md, Refits)."""
    total = 0.0
    for each in found:
        gone = np.setdiff1d(np.arange(len(each.covariance)), each.columns[kept])
        inner = np.linalg.inv(np.linalg.inv(each.covariance)[np.ix_(gone, gone)])
        total += np.trace(each.weight[:, gone] @ inner @ each.weight[:, gone].T)
    return total


def greedy_of(found: list[Swept], keep: int, rounds: int) -> np.ndarray:
    problems = [Problem(each.weight.copy(), np.linalg.inv(each.covariance), each.columns) for each in found]
    size = len(found[0].columns)
    return np.sort(np.argsort(-eliminate(problems, size, rounds=rounds), kind="stable")[:keep])


@pytest.mark.parametrize("m", [1, 3])
def test_what_is_swept_in_and_out_has_the_loss_of_the_refit(m):
    found = swept_of(0, m)
    kept = np.arange(len(found.columns))[1:]
    found.start(kept)
    assert found.loss() == pytest.approx(loss_of([found], kept), rel=1e-8)
    costs = found.costs(kept)
    for unit, cost in zip(kept, costs, strict=True):
        without = np.setdiff1d(kept, unit)
        assert cost == pytest.approx(loss_of([found], without) - loss_of([found], kept), rel=1e-6)
    found.take_out(kept[:1])
    assert found.loss() == pytest.approx(loss_of([found], kept[1:]), rel=1e-8)
    gains = found.gains(np.array([0, kept[0]]))
    for unit, gain in zip([0, kept[0]], gains, strict=True):
        more = np.sort([*kept[1:], unit])
        assert gain == pytest.approx(loss_of([found], kept[1:]) - loss_of([found], more), rel=1e-6)
    found.put_in(np.array([0]))
    assert found.loss() == pytest.approx(loss_of([found], np.sort([0, *kept[1:]])), rel=1e-8)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("consumers", [1, 2])
def test_exchanges_never_raise_the_loss_and_end_near_the_optimum(seed, consumers):
    found = [swept_of(seed + 100 * i) for i in range(consumers)]
    greedy = greedy_of(found, C - GONE, rounds=C)
    better = exchange(found, greedy, C)
    assert len(better) == C - GONE
    assert loss_of(found, better) <= loss_of(found, greedy) * (1 + 1e-9)
    assert sum(each.loss() for each in found) == pytest.approx(loss_of(found, better), rel=1e-7)
    best = min(loss_of(found, np.array(kept)) for kept in combinations(range(C), C - GONE))
    assert loss_of(found, greedy) <= 1.5 * best
    assert loss_of(found, better) <= 1.5 * best


def test_exchanges_find_what_greedy_elimination_misses():
    missed = 0
    for seed in range(8):
        found = [swept_of(seed)]
        greedy = greedy_of(found, C - GONE, rounds=1)  # all at once, with scores that nobody brings up to date
        better = exchange(found, greedy, C)
        missed += loss_of(found, better) < 0.9 * loss_of(found, greedy)
    assert missed >= 6


def test_a_bad_choice_is_mended():
    found = [swept_of(3, c=64)]
    rng = np.random.default_rng(0)
    poor = np.sort(rng.choice(64, 40, replace=False))
    better = exchange(found, poor, 64, rounds=200)
    assert loss_of(found, better) < 0.5 * loss_of(found, poor)
    assert loss_of(found, better) <= 1.5 * loss_of(found, greedy_of(found, 40, rounds=64))


def test_nothing_to_exchange_is_left_alone():
    found = [swept_of(1)]
    everything = np.arange(C)
    np.testing.assert_array_equal(exchange(found, everything, C), everything)
    np.testing.assert_array_equal(exchange(found, everything[:1], C), everything[:1])


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 24), nn.Linear(24, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


PASSES = "fold-constants,analyze,calibrate,score{criterion=obs},allocate{macs=0.6 align=1}"


def test_the_pass_keeps_the_numbers_and_lowers_the_loss():
    torch.manual_seed(1)
    model, example = Mlp().eval(), (torch.zeros(64, 10),)
    rng = np.random.default_rng(0)
    data = [{"x": (rng.standard_normal((64, 10)) @ rng.standard_normal((10, 10))).astype(np.float32)} for _ in range(9)]
    rest = "slice-groups,remove-dead-nodes,verify,compensate"
    errors = {}
    for name, passes in (("plain", f"{PASSES},{rest}"), ("exchanged", f"{PASSES},exchange-units,{rest}")):
        result = gp.prune(model, example, pipeline=passes, calibration=data)
        assert all(check.passed for check in result.report.proof)
        assert len(result.plan.parameters["first.weight"][0]) == len(result.plan.parameters["second.weight"][1])
        errors[name] = (len(result.plan.parameters["first.weight"][0]), result.state.compensated[0].after)
    assert errors["plain"][0] == errors["exchanged"][0]
    assert errors["exchanged"][1] <= errors["plain"][1] * (1 + 1e-3)


def test_the_pass_says_what_it_needs():
    model, example = Mlp().eval(), (torch.zeros(64, 10),)
    with pytest.raises(OptionError, match="'exchange-units' needs a plan; put 'allocate' before it"):
        gp.prune(model, example, pipeline="analyze,exchange-units")
    weights = "analyze,score{criterion=l2},allocate{macs=0.6},exchange-units"
    with pytest.raises(OptionError, match="'exchange-units' needs statistics; put 'calibrate' before it"):
        gp.prune(model, example, pipeline=weights)  # whatever data there may be
    with pytest.raises(OptionError, match="'calibrate' needs calibration data"):
        gp.prune(model, example, pipeline=f"{PASSES},exchange-units,slice-groups")
