"""The methods, each against what its source says: gradients by autograd, and small cases whose answer is known."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from training_nets import Attention, Residual, batch, made, trained

import graphprune as gp
from graphprune.training.gates import Gates
from graphprune.training.methods.dhspg import Dhspg, penalties
from graphprune.training.methods.group_norm import GroupNorm, importance
from graphprune.training.methods.l0 import _Difference, drawn_gates, expected, probability
from graphprune.training.units import Units

STEPS = 20


def pruner_of(model: nn.Module, example: Tensor, method: Any, **more: Any) -> gp.Pruner:
    how = {"target": {"macs": 0.5}, "align": 1, "steps": STEPS, **more}
    return gp.Pruner(model, (example,), method=method, **how)


def backward(model: nn.Module, example: Tensor, step: int = 0) -> None:
    x, y = batch(step, example)
    model.zero_grad()
    functional.cross_entropy(model(x), y).backward()


# -- gates ---------------------------------------------------------------------------------------------------------


def gated(model: nn.Module, gates: dict[str, Tensor]) -> None:
    """Puts gates into a forward by hooks, the way that units are written down in the nets."""

    def before(name: str, factor: Tensor) -> None:
        module = model.get_submodule(name)
        axis = 1 if isinstance(module, nn.Conv2d) else -1
        view = factor.view(-1, 1, 1) if axis == 1 else factor
        module.register_forward_pre_hook(lambda _, args: (args[0] * view,))

    def after(name: str, factor: Tensor) -> None:
        model.get_submodule(name).register_forward_hook(lambda _, args, made: made * factor)

    if isinstance(model, Residual):
        before("b", gates["a.weight[0]"])
        before("a", gates["stem.weight[0]"])
        before("head", gates["stem.weight[0]"])
        return
    before("down", gates["neuron"])
    before("o", (gates["head"][:, None] * gates["value-dim"][None, :]).reshape(-1))
    for name in ("q", "k"):
        after(name, gates["qk-dim"].repeat(4))
    for name in ("q", "k", "v", "up", "head"):  # weights with gates on both axes
        before(name, gates["width"])


@pytest.mark.parametrize("cls", [Residual, Attention])
def test_gradients_of_gates_are_those_of_autograd(cls):
    model, example = made(cls)
    other = copy.deepcopy(model)
    units = Units(gp.analyze(model, (example,)), model)
    gates = Gates(units)
    values = 0.5 + torch.rand(units.n, dtype=torch.float64)
    values[::5] = 0.0
    named = {group.name if cls is Residual else group.kind: group for group in units.groups}
    parts = dict(zip(named, values.split([group.size for group in units.groups]), strict=True))
    leaves = {name: part.clone().requires_grad_() for name, part in parts.items()}
    gated(other, leaves)
    backward(other, example)
    want = torch.cat([each.grad for each in leaves.values()])
    latent = {name: each.detach().clone() for name, each in model.named_parameters()}
    gates.apply(values)
    backward(model, example)
    assert torch.allclose(gates.gradient(), want, rtol=1e-9, atol=1e-14)
    assert float(want[::5].abs().max()) > 1e-6, "closed gates have gradients"
    gates.release()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, latent[name])
        assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-14)


# -- penalties -----------------------------------------------------------------------------------------------------


def added(model: nn.Module, example: Tensor, pruner: gp.Pruner) -> dict[str, Tensor]:
    backward(model, example)
    before = {name: each.grad.clone() for name, each in model.named_parameters()}
    pruner.before_step()
    return {name: each.grad - before[name] for name, each in model.named_parameters()}


def same(found: dict[str, Tensor], penalty: Tensor, model: nn.Module) -> None:
    want = torch.autograd.grad(penalty, [*model.parameters()], allow_unused=True)
    assert float(max(each.abs().max() for each in found.values())) > 0
    for each, gradient in zip(found.values(), want, strict=True):
        assert torch.allclose(each, torch.zeros_like(each) if gradient is None else gradient, rtol=1e-7, atol=1e-10)


def squares(units: Units, strength: Tensor) -> Tensor:
    """``Σ_u s(u) ‖w(u)‖²``, element by element."""
    total = torch.zeros((), dtype=torch.float64)
    for place in units.places:
        weights = torch.cat([strength, strength.new_zeros(1)])[place.index]
        shape = [-1 if axis == place.axis else 1 for axis in range(place.parameter.ndim)]
        total = total + (weights.view(shape) * place.parameter.square()).sum()
    return total


@pytest.mark.parametrize("cls", [Residual, Attention])
def test_group_norm_adds_the_gradients_of_its_penalty(cls):
    model, example = made(cls)
    pruner = pruner_of(model, example, "group-norm", options={"strength": 0.3})
    loop = pruner._loop
    norms = loop.units.by_group(importance(loop))
    gamma = loop.units.of_groups(
        {name: 16 ** ((each.max() - each) / (each.max() - each.min())) for name, each in norms.items()}
    )
    same(added(model, example, pruner), 0.15 * squares(loop.units, gamma), model)
    assert loop.units.by_group(gamma)["a.weight[0]" if cls is Residual else "up.weight[0]"].min() == pytest.approx(1)


def test_the_importance_of_a_unit_is_the_mean_over_its_members():
    model, example = made(Residual)
    pruner = pruner_of(model, example, GroupNorm())
    found = pruner._loop.units.by_group(importance(pruner._loop))["a.weight[0]"]
    members = [model.a.weight.flatten(1), model.a_bn.weight[:, None], model.a_bn.bias[:, None]]
    want = [*(each.square().sum(1) for each in members), model.b.weight.square().sum((0, 2, 3))]
    assert found == pytest.approx(torch.stack(want).mean(0).sqrt().detach().numpy())


def test_growing_adds_the_gradients_of_its_penalty_and_it_grows():
    model, example = made(Residual)
    pruner = pruner_of(model, example, "growing", begin=0.1, end=0.6, options={"most": 2.0, "every": 1})
    sizes = []
    for step in range(12):
        found = added(model, example, pruner)
        if step >= 2:
            going = pruner.method.tensors["going"]
            strength = 2.0 * (step - 1) / 10
            same(found, 0.5 * strength * squares(pruner._loop.units, going), model)
        torch.optim.SGD(model.parameters(), lr=0.2).step()
        pruner.step()
        sizes.append(pruner._loop.units.squares(pruner._loop.units.places))
    assert pruner.over
    going = pruner.method.tensors["going"] > 0
    assert torch.equal(~going, pruner._loop.alive)
    assert float((sizes[-2] / sizes[0])[going].mean()) < 0.3 < float((sizes[-2] / sizes[0])[~going].mean())


def test_slimming_adds_the_gradients_of_its_penalty_and_goes_by_the_scales():
    model, example = made(Residual)
    pruner = pruner_of(model, example, "slimming", options={"strength": 0.4})
    with torch.no_grad():
        model.a_bn.weight.copy_(torch.randn(16).double())
    norms = [each.weight for each in (model.stem_bn, model.a_bn, model.b_bn)]
    same(added(model, example, pruner), 0.4 * sum(each.abs().sum() for each in norms), model)
    scores = pruner._loop.units.by_group(pruner.method.scores(pruner._loop))
    assert scores["a.weight[0]"] == pytest.approx(model.a_bn.weight.abs().detach().numpy())
    model, example = made(Attention)
    with pytest.raises(gp.OptionError, match="needs batch normalisations whose channels can be pruned"):
        pruner_of(model, example, "slimming")


# -- OTO -----------------------------------------------------------------------------------------------------------


def test_units_of_hesso_fall_to_zero_in_a_line():
    model, example = made(Residual)
    pruner = pruner_of(model, example, "hesso", begin=0.2, end=0.7, options={"periods": 2})
    making = pruner._loop.units.making
    norms = []
    for step in range(STEPS):
        backward(model, example, step)
        pruner.before_step()
        norms.append(pruner._loop.units.squares(making).sqrt())  # no optimiser: only the decay moves
        pruner.step()
    begin, end = 4, 9  # of the first period, whose steps are five
    gone = norms[end] == 0
    assert 0 < int(gone.sum()) < int((norms[14] == 0).sum())
    for step in range(begin, end + 1):
        assert torch.allclose(norms[step][gone], norms[begin][gone] * (end - step) / (end - begin), rtol=1e-9)
    assert torch.equal(norms[14] == 0, ~pruner._loop.alive)
    assert torch.equal(norms[end - 1][~gone], norms[0][~gone]), "others have no decay"
    assert pruner.over
    assert 0.4 < pruner.remains() <= 0.5


def test_a_penalty_of_dhspg_leads_downhill_for_the_loss_and_for_the_norm():
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(1000, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    norm, slope, inner = x.norm(dim=1), g.norm(dim=1), (x * g).sum(1)
    assert int((inner < 0).sum()) > 400
    found = penalties(norm, slope, inner, 1e-3, 2.0)
    direction = g + found[:, None] * x / norm[:, None]
    assert float((direction * g).sum(1).min()) >= -1e-12
    assert float((direction * x).sum(1).min()) >= -1e-12
    assert float(found.min()) >= 0


def test_dhspg_projects_what_leaves_its_half_space_and_nothing_else():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(5, 8, bias=False), nn.Linear(8, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(functional.relu(self.a(x)))

    torch.manual_seed(0)
    model = Net().double()
    goal = model.a.weight.detach().clone()
    goal[:4] *= -1  # ½‖x - x*‖² leads these through zero
    method = Dhspg(penalty=0.0, amplify=1.0, epsilon=0.0)
    pruner = gp.Pruner(model, (torch.randn(3, 5).double(),), target="macs=0.5", method=method, steps=40, align=1)
    method.tensors["going"] = torch.tensor([True] * 6 + [False] * 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    gone = []
    for _ in range(5):
        optimizer.zero_grad()
        (0.5 * (model.a.weight - goal).square().sum() + 0 * model.head.weight.sum()).backward()
        pruner._loop.step = 4  # where ε begins to rise
        pruner.before_step()
        optimizer.step()
        pruner._loop.step = 3
        pruner.step()
        gone.append((~pruner._loop.alive).tolist())
    assert gone[-1] == [True] * 4 + [False] * 4


# -- gates that are learned ----------------------------------------------------------------------------------------


def test_movement_keeps_what_moves_away_from_zero_and_magnitude_what_is_large():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 1, bias=False)
            self.a.weight.data = torch.eye(6)
            self.head.weight.data = torch.tensor([[0.2, 0.2, 0.2, 1.0, 1.0, 1.0]])

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x))

    stays = {}
    for method in ("movement", "iterative"):
        model = Net().double()
        pruner = gp.Pruner(
            model, (torch.randn(3, 6).double(),), target="macs=0.5", method=method, steps=30, align=1, end=0.5
        )
        optimizer = torch.optim.SGD([model.head.weight], lr=0.01)
        generator = torch.Generator().manual_seed(0)
        for _ in range(15):
            x = torch.randn(64, 6, generator=generator, dtype=torch.float64)
            functional.mse_loss(model(x)[:, 0], x[:, :3].sum(1)).backward()
            pruner.before_step()
            optimizer.step()
            pruner.step()
            model.zero_grad()
        stays[method] = pruner.alive["a.weight[0]"].tolist()
    assert stays["movement"] == [True] * 3 + [False] * 3
    assert stays["iterative"] == [False] * 3 + [True] * 3


def test_a_gate_of_movement_may_open_again_and_its_weights_are_still_there():
    model, example = made(Residual)
    pruner = pruner_of(model, example, "movement", begin=0.1, end=0.9, every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    closed = []
    for step in range(17):
        trained(model, pruner, optimizer, example, range(step, step + 1))
        if step == 8:
            pruner.method.tensors["scores"].neg_()
        closed.append(pruner.method.gates.values == 0)
    assert bool((closed[8] & ~closed[16]).any())
    assert bool(pruner._loop.alive.all())
    columns = pruner._loop.units.squares(pruner._loop.units.gated)
    assert torch.equal(columns == 0, closed[-1])
    backward(model, example)
    pruner.before_step()
    assert float(pruner._loop.units.squares(pruner._loop.units.gated).min()) > 0


def test_soft_movement_closes_gates_by_a_threshold():
    model, example = made(Residual)
    pruner = pruner_of(
        model, example, "movement", end=1.0, options={"mode": "soft", "rate": 0.2, "penalty": 0.5, "threshold": 0.6}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    trained(model, pruner, optimizer, example, range(STEPS - 1))
    scores, gates = pruner.method.tensors["scores"], pruner.method.gates.values
    assert torch.equal(gates > 0, torch.sigmoid(scores) > 0.6)
    assert 0 < int((gates == 0).sum()) < pruner._loop.units.n
    trained(model, pruner, optimizer, example, range(STEPS - 1, STEPS))
    assert pruner.over


@pytest.mark.parametrize("towards", ["cost", "shape"])
def test_the_expected_cost_of_l0_comes_to_the_target(towards):
    model, example = made(Residual)
    pruner = pruner_of(model, example, "l0", target={"macs": 0.4}, steps=150, end=1.0, options={"towards": towards})
    trained(model, pruner, torch.optim.SGD(model.parameters(), lr=1e-2), example, range(149))
    loop, chance = pruner._loop, probability(pruner.method.tensors["alpha"])
    model_of_costs = loop.chooser.costs
    assert bool(loop.alive.all())
    counts = np.array([part.sum() for part in loop.units.by_group(chance).values()])
    fraction = model_of_costs.cost("macs", counts) / model_of_costs.cost("macs")
    assert fraction == pytest.approx(0.4, abs=0.08)
    closed = pruner.method.gates.values
    assert 0 < float((closed == 0).double().mean()) < 0.8


def test_the_expected_cost_is_that_of_the_cost_model_with_its_gradient():
    model, example = made(Residual)
    costs = pruner_of(model, example, "l0")._chooser.costs
    counts = torch.tensor([5.5, 7.25], dtype=torch.float64, requires_grad=True)
    for metric in ("macs", "params"):
        found = expected(costs.functions[metric], counts)
        assert found.item() == pytest.approx(costs.cost(metric, counts.detach().numpy()))
        (slope,) = torch.autograd.grad(found, counts)
        for i in range(2):
            more, less = counts.detach().clone().numpy(), counts.detach().clone().numpy()
            more[i] += 1e-4
            less[i] -= 1e-4
            difference = (costs.cost(metric, more) - costs.cost(metric, less)) / 2e-4
            assert slope[i].item() == pytest.approx(difference, rel=1e-5)
    found = _Difference.apply(counts, lambda at: float(at[0] * at[1]))
    assert torch.autograd.grad(found, counts)[0].tolist() == pytest.approx([7.25, 5.5])


def test_gates_of_l0_open_as_often_as_they_should():
    generator = torch.Generator().manual_seed(0)
    for alpha in (-2.0, 0.0, 3.0):
        drawn = drawn_gates(torch.tensor(alpha), torch.rand(20000, generator=generator))
        assert float((drawn > 0).float().mean()) == pytest.approx(float(probability(torch.tensor(alpha))), abs=0.01)
        assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1


# -- units that come back, weights that come back ------------------------------------------------------------------


def test_a_unit_that_soft_sets_to_zero_grows_again():
    model, example = made(Residual)
    for norm in (model.stem_bn, model.a_bn, model.b_bn):
        norm.bias.data.fill_(0.3)
    pruner = pruner_of(model, example, "soft", begin=0.1, end=0.9, every=3, options={"whole": True})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    filters = [place for place in pruner._loop.units.places if not (place.reads or place.carries)]
    assert {place.name for place in filters} == {"stem.weight", "a.weight", "b.weight"}
    norms = []
    for step in range(STEPS):
        trained(model, pruner, optimizer, example, range(step, step + 1))
        norms.append(pruner._loop.units.squares(filters))
    zeros = [each == 0 for each in norms]
    assert bool(zeros[1].any()), "set to zero at step 2"
    assert not bool(zeros[2].any()), "and grown again a step later"
    assert torch.equal(zeros[-1], ~pruner._loop.alive)
    assert bool((zeros[1] & pruner._loop.alive).any()) or bool((zeros[4] & pruner._loop.alive).any())


def test_a_round_of_imp_begins_with_the_plan_of_all_rounds_on_the_early_weights():
    model, example = made(Residual)
    pruner = pruner_of(model, example, "imp", options={"rounds": 2, "rewind": 0.1})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    early = None
    for step in range(15):  # rounds end at 5 and 15
        trained(model, pruner, optimizer, example, range(step, step + 1))
        if step == 1:
            early = copy.deepcopy(model)
    assert early is not None
    assert pruner.over
    result = pruner.finish()
    replayed = gp.apply(early, result.plan, (example,), verify=False).module
    for (name, a), b in zip(result.module.state_dict().items(), replayed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_two_rounds_are_one_with_the_union_of_what_they_remove():
    model, example = made(Residual)
    dense = copy.deepcopy(model)
    first = pruner_of(model, example, "iterative", target={"macs": 0.7})
    trained(model, first, torch.optim.SGD(model.parameters(), lr=1e-2), example, range(STEPS))
    one = first.finish()
    session = gp.Session.of(one)
    two = session.prune(target={"macs": 0.7}, align=1, verify=False)
    union = gp.apply(dense, two.ledger, (example,), verify=False).module
    kept = {group.name: set(group.kept) for group in two.ledger.groups}
    for group in one.plan.groups:
        assert kept.get(group.name, set()) <= set(group.kept)
    shapes = [{n: tuple(t.shape) for n, t in each.state_dict().items()} for each in (union, two.module)]
    assert shapes[0] == shapes[1]
    again = gp.apply(gp.apply(dense, one.plan, (example,), verify=False).module, two.plan, (example,), verify=False)
    for a, b in zip(again.module.state_dict().values(), union.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_rounds_take_the_same_fraction_of_what_is_left():
    model, example = made(Residual)
    pruner = pruner_of(model, example, "imp", target={"macs": 0.25}, options={"rounds": 3}, begin=0.2, end=0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    left = []
    for step in range(16):
        trained(model, pruner, optimizer, example, range(step, step + 1))
        left.append(pruner.remains())
    found = [b for a, b in pairwise([1.0, *left]) if b < a]
    assert found == pytest.approx([0.25 ** (i / 3) for i in (1, 2, 3)], abs=0.05)


# -- the loop's own gradients --------------------------------------------------------------------------------------


def test_scores_by_gradients_are_means_of_the_squared_gradients_of_gates():
    model, example = made(Residual)
    pruner = pruner_of(model, example, "iterative", options={"gradients": True, "memory": 0.5})
    squared = []
    for step in range(3):
        other = copy.deepcopy(model)
        gates = {group.name: torch.ones(group.size).double() for group in pruner._loop.units.groups}
        leaves = {name: each.requires_grad_() for name, each in gates.items()}
        gated(other, leaves)
        backward(other, example, step)
        squared.append(torch.cat([each.grad for each in leaves.values()]).square())
        backward(model, example, step)
        pruner.before_step()
    want = (squared[0] / 4 + squared[1] / 2 + squared[2]) / 1.75
    assert torch.allclose(pruner.method.scores(pruner._loop), want, rtol=1e-9)
