"""Methods that train low-rank additions alone, and what they prune."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from training_nets import Attention, made

import graphprune as gp
from graphprune.training.adapters import Adapters, importance
from graphprune.training.method import Loop
from graphprune.training.methods.lhspg import Lhspg
from graphprune.training.methods.lora_taylor import LoraTaylor

pytest.importorskip("peft")

METHODS = ("lora", "llm-pruner", "lora-taylor", "lhspg")


class Duplicates(nn.Module):
    """Units 3 to 5 are units 0 to 2 once more."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6, bias=False), nn.Linear(6, 2, bias=False)
        with torch.no_grad():
            self.up.weight[3:] = self.up.weight[:3]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


def duplicates() -> Duplicates:
    torch.manual_seed(0)
    return Duplicates().double()


def trained(
    model: nn.Module, example: Tensor, loss: Callable[[Tensor], Tensor], steps: int, lr: float = 1e-2, **how: Any
) -> gp.Result:
    """Runs a loop with a pruner, by Adam on what requires gradients."""
    pruner = gp.Pruner(model, example, steps=steps, align=1, **how)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=lr)
    for step in range(steps):
        x = torch.randn(16, *example.shape[1:], dtype=example.dtype, generator=torch.Generator().manual_seed(step))
        loss(x).backward()
        pruner.before_step()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    return pruner.finish()


@pytest.mark.parametrize("method", METHODS)
def test_a_transformer_keeps_its_layers_and_is_the_dense_one(method: str) -> None:
    model, example = made(Attention)
    teacher = copy.deepcopy(model).eval()
    names = {name: type(each) for name, each in model.named_modules()}
    asked = [each.requires_grad for each in model.parameters()]
    how: dict[str, Any] = {"method": method, "target": "params=0.6"}
    result = trained(
        model,
        example,
        lambda x: functional.mse_loss(model(x), teacher(x)),
        30,
        calibration=torch.randn(32, 7, 6).double(),
        **how,
    )
    assert result.report.cost("params").fraction <= 0.6
    assert {name: type(each) for name, each in model.named_modules()} == names
    assert [each.requires_grad for each in model.parameters()] == asked
    assert any(check.name == "masked-training" or check.name == "masked" for check in result.report.proof)
    model.eval()
    if not result.state.inexact:
        assert torch.allclose(model(example), result.module(example), atol=1e-9)


def with_additions(seed: int = 1) -> tuple[Duplicates, Adapters]:
    """A net whose additions are not zero."""
    model = duplicates()
    adapters = Adapters(model, 2, 4.0)
    for pair in adapters.pairs.values():
        with torch.no_grad():
            pair.b.normal_(generator=torch.Generator().manual_seed(seed))
    return model, adapters


def test_additions_come_to_what_merging_makes_of_them() -> None:
    model, adapters = with_additions()
    x = torch.randn(5, 4).double()
    before, unlike = model(x), duplicates()(x)
    adapters.close()
    assert not torch.allclose(before, unlike)
    assert torch.allclose(model(x), before, atol=1e-12)


def test_the_state_of_the_module_has_the_names_of_its_own() -> None:
    model, adapters = with_additions()
    state = model.state_dict()
    assert [*state] == ["up.weight", "down.weight"]
    other, others = with_additions(2)
    other.load_state_dict({name: each + 1 for name, each in state.items()})
    others.load(adapters.state())
    assert torch.equal(other.up.base_layer.weight, model.up.base_layer.weight + 1)
    assert torch.equal(others.pairs["up.weight"].b, adapters.pairs["up.weight"].b)
    adapters.close()
    assert [*model.state_dict()] == ["up.weight", "down.weight"]


def test_to_prune_and_merge_is_to_merge_and_prune() -> None:
    alive = torch.tensor([True, False, True, True, False, True])
    one, adapters = with_additions()
    x = torch.randn(5, 4).double()
    pruner = gp.Pruner(duplicates(), x, target="params=0.5", steps=1, align=1)
    units = pruner._loop.units
    order = [alive[each] for each in range(6)]
    assert units.n == len(order)

    adapters.hold(units, alive)  # the units of a net are those of its copy: names are the same
    with torch.no_grad():
        one.up.base_layer.weight[~alive] = 0
        one.down.base_layer.weight[:, ~alive] = 0
    adapters.close()
    other, merged = with_additions()
    merged.close()
    with torch.no_grad():
        other.up.weight[~alive] = 0
        other.down.weight[:, ~alive] = 0
    assert torch.allclose(one(x), other(x), atol=1e-6)
    assert torch.allclose(one.up.weight, other.up.weight, atol=1e-12)
    assert torch.allclose(one.down.weight, other.down.weight, atol=1e-12)


def test_where_b_is_zero_the_gradient_is_the_true_one_seen_through_a() -> None:
    model = duplicates()
    x = torch.randn(64, 4).double()
    functional.mse_loss(model(x), torch.ones(64, 2).double()).backward()
    true = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    pruner = gp.Pruner(model, x[:2], target="params=0.5", steps=1, align=1, method="lora-taylor")
    method = pruner.method
    assert isinstance(method, LoraTaylor)
    functional.mse_loss(model(x), torch.ones(64, 2).double()).backward()
    want = torch.zeros(6).double()
    for name, axis in (("up.weight", 0), ("down.weight", 1)):
        pair = method.adapters.pairs[name]
        slope = pair.scale * true[name] @ pair.a.T @ pair.a
        row = (slope * pair.weight).abs().sum(1 - axis)
        want += row / row.norm()
    assert torch.allclose(importance(method.adapters, pruner._loop.units), want.detach(), rtol=1e-9)


def test_llm_pruner_scores_by_all_elements_and_leaves_weights_alone() -> None:
    model = duplicates()
    with torch.no_grad():
        model.up.weight.normal_(generator=torch.Generator().manual_seed(3))
    x = torch.randn(64, 4).double()
    pruner = gp.Pruner(model, x[:2], target="params=0.5", steps=2, align=1, method="llm-pruner")
    functional.mse_loss(model(x), torch.ones(64, 2).double()).backward()
    layers = [each.base_layer for each in (model.up, model.down)]
    first = [each.weight.detach().clone() for each in layers]
    want = [0.0] * 6
    for i in range(6):
        for k in range(4):
            want[i] += abs(float(first[0][i, k] * layers[0].weight.grad[i, k]))
        for k in range(2):
            want[i] += abs(float(first[1][k, i] * layers[1].weight.grad[k, i]))
    pruner.before_step()
    best = sorted(range(6), key=lambda i: -want[i])[:3]
    assert pruner._loop.alive.tolist() == [i in best for i in range(6)]
    assert all(each.weight.grad is None and not each.weight.requires_grad for each in layers)
    assert torch.equal(layers[0].weight[best], first[0][best])
    assert not layers[0].weight[[i for i in range(6) if i not in best]].any()


def test_scores_from_additions_are_like_those_from_true_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Tanh(), nn.Linear(64, 8, bias=False)).double()
    with torch.no_grad():
        model[0].weight *= torch.randn(64, 1).double().exp()
    x, y = torch.randn(256, 32).double(), torch.randn(256, 8).double()
    functional.mse_loss(model(x), y).backward()
    want = torch.zeros(64).double()
    for each, axis in ((model[0].weight, 0), (model[2].weight, 1)):
        row = (each * each.grad).abs().sum(1 - axis)
        want += row / row.norm()
    pruner = gp.Pruner(model, x[:2], target="params=0.5", steps=1, align=1, method="lora-taylor", options={"rank": 16})
    functional.mse_loss(model(x), y).backward()
    method = pruner.method
    assert isinstance(method, LoraTaylor)
    found = importance(method.adapters, pruner._loop.units)
    ranks = torch.stack([each.argsort().argsort().double() for each in (found, want.detach())])
    assert float(torch.corrcoef(ranks)[0, 1]) >= 0.8


# -- half-space projection -----------------------------------------------------------------------------------------


def shrinking(projection: str, length: int) -> tuple[Duplicates, Loop, Lhspg]:
    """A loop in which units 1 and 4 are redundant, before the first step of their period."""
    model = duplicates()
    pruner = gp.Pruner(
        model, torch.randn(2, 4).double(), target="params=0.5", steps=length, align=1, method="lhspg",
        options={"protect": 0.0, "projection": projection},
    )  # fmt: skip
    method = pruner.method
    assert isinstance(method, Lhspg)
    method.tensors["norms"] = pruner._loop.units.squares(pruner._loop.units.making).sqrt()
    return model, pruner._loop, method


GOING = torch.tensor([False, True, False, False, True, False])


@pytest.mark.parametrize("projection", ["half-space", "decay"])
def test_redundant_rows_end_at_zero_and_others_have_their_additions(projection: str) -> None:
    length = 7
    _, loop, method = shrinking(projection, length)
    pair = method.adapters.pairs["up.weight"]
    first = pair.weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    norms = []
    for t in range(length):
        with torch.no_grad():
            pair.b.add_(0.01 * torch.randn(pair.b.shape, generator=generator).double())
        method.shrink(loop, GOING, length - 1 - t, length)
        assert not pair.b[GOING].any()
        norms.append(float(pair.weight[GOING].norm()))
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] == 0.0
    assert norms[-2] > 0.0
    assert torch.equal(pair.weight[~GOING], first[~GOING])
    want = first[~GOING] + pair.product()[~GOING]
    method.adapters.merge()
    assert torch.allclose(pair.weight[~GOING], want, atol=1e-12)


def test_decay_is_a_line() -> None:
    length = 5
    _, loop, method = shrinking("decay", length)
    weight = method.adapters.pairs["up.weight"].weight
    first = weight.detach().clone()
    for t in range(length):
        method.shrink(loop, GOING, length - 1 - t, length)
        assert torch.allclose(weight[GOING], first[GOING] * (length - t - 1) / length, atol=1e-12)


def test_units_that_the_descent_leads_through_zero_are_projected_and_others_are_not() -> None:
    """On ``‖W - W*‖²/2``, with a small penalty: ``<w*, w> < 0`` is projected."""
    length = 400
    _, loop, method = shrinking("half-space", length)
    pair = method.adapters.pairs["up.weight"]
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0]).double()
    wanted = 1.5 * sign[:, None] * pair.weight.detach().clone()
    everyone = torch.ones(6, dtype=torch.bool)
    with torch.no_grad():
        pair.a.copy_(torch.eye(8, 4))  # the descent is straight
    method.tensors["norms"] *= 0.01
    for _ in range(60):
        with torch.no_grad():
            slope = pair.weight - wanted
            pair.b.sub_(0.02 * slope @ pair.a.T)
        method.shrink(loop, everyone, length, length)
    assert [bool(row.any()) for row in pair.weight] == [True, False, True, False, True, True]


def test_a_period_may_begin_by_the_gradients_of_all_weights_and_moves_none() -> None:
    model = duplicates()
    x = torch.randn(64, 4).double()
    pruner = gp.Pruner(
        model, x[:2], target="params=0.5", steps=10, align=1, method="lhspg", begin=0.2, end=0.8,
        options={"protect": 0.0, "scores_of": "weights", "periods": 3},
    )  # fmt: skip
    weight = model.up.base_layer.weight
    asked = []
    for step in range(10):
        before = weight.detach().clone()
        functional.mse_loss(model(x + step), torch.ones(64, 2).double()).backward()
        asked.append(weight.grad is not None)
        pruner.before_step()
        assert weight.grad is None
        assert torch.equal(weight, before)
        pruner.step()
    assert [i for i, each in enumerate(asked) if each] == [2, 4, 6]
    assert pruner.over
    assert pruner.finish().report.cost("params").fraction == 0.5


def test_what_a_unit_knows_moves_to_its_double() -> None:
    model, teacher = duplicates(), duplicates()
    x = torch.randn(256, 4).double()
    result = trained(
        model, x[:2], lambda x: functional.mse_loss(model(x), teacher(x)), 500, 2e-2, target="params=0.5",
        method="lhspg", options={"protect": 0.0, "rank": 4},
    )  # fmt: skip
    assert result.report.cost("params").fraction == 0.5
    hard = gp.prune(duplicates(), x[:2], target="params=0.5", align=1)
    with torch.no_grad():
        assert functional.mse_loss(result.module(x), teacher(x)) < 1e-6
        assert functional.mse_loss(hard.module(x), teacher(x)) > 1e-3


class Weighed(nn.Module):
    """Two layers of neurons; without the first the answer is gone, without the second it hardly changes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.head = (
            nn.Linear(6, 16), nn.Linear(16, 6), nn.Linear(6, 16), nn.Linear(16, 6), nn.Linear(6, 3),
        )  # fmt: skip
        with torch.no_grad():
            self.d.weight *= 0.01

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.tanh(self.a(x)))
        return self.head(x + self.d(torch.tanh(self.c(x))))


def test_groups_that_know_most_stay_whole() -> None:
    torch.manual_seed(0)
    model = Weighed()
    pruner = gp.Pruner(
        model, torch.randn(2, 6), target="params=0.8", steps=10, align=1, method="lhspg", calibration=torch.randn(64, 6),
        only="neuron", options={"protect": 0.5},
    )  # fmt: skip
    assert {*pruner._loop.chooser._state.protected} == {"a.weight[0]", "b.weight[0]"}


def test_what_means_nothing_is_refused() -> None:
    model, example = made(Attention)
    how: dict[str, Any] = {"target": "params=0.6", "steps": 4}
    for options, message in (
        ({"rank": 0}, "rank is 0"),
        ({"projection": "no"}, "unknown projection 'no'"),
        ({"scores_of": "no"}, "unknown scores_of 'no'"),
        ({"protect": 1.0}, "fractions below 1"),
    ):
        with pytest.raises(gp.OptionError, match=message):
            gp.Pruner(model, example, method="lhspg", options=options, **how)
    with pytest.raises(gp.OptionError, match="leave 'refit' out"):
        gp.Pruner(model, example, method="lhspg", refit="as-is", calibration=example, options={"protect": 0.0}, **how)
    gp.Pruner(model, example, method="lora", refit="as-is", calibration=example, **how)
    with pytest.raises(gp.OptionError, match="has low-rank additions already"):
        gp.Pruner(model, example, method="lora", **how)
