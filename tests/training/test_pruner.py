"""A pruner in a training loop: the target, the proof, what stays as it is, and going on after a stop."""

from __future__ import annotations

import copy
import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from training_nets import Attention, Residual, batch, made, trained

import graphprune as gp
from graphprune.proof.compare import compare
from graphprune.training.methods import METHODS
from graphprune.training.pruner import NAME
from graphprune.training.schedule import Schedule
from graphprune.training.units import Units

STEPS = 20


def run(cls: type[nn.Module], method: Any, optimizer: Any = torch.optim.SGD, **more: Any) -> tuple[Any, Any, Any]:
    model, example = made(cls)
    how = {"target": {"macs": 0.5}, "align": 1, "steps": STEPS, **more}
    pruner = gp.Pruner(model, (example,), method=method, **how)
    trained(model, pruner, optimizer(model.parameters(), lr=1e-2), example, range(STEPS))
    return model, pruner, example


# -- every method --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "cls"),
    [(method, cls) for method in METHODS for cls in (Residual, Attention) if (method, cls) != ("slimming", Attention)],
)
def test_a_method_ends_in_a_dense_model_of_the_target_that_computes_what_was_trained(method, cls):
    model, pruner, example = run(cls, method)
    assert pruner.over
    result = pruner.finish()
    fraction = result.report.cost("macs").fraction
    assert 0.44 < fraction <= 0.5
    assert pruner.remains("macs") == pytest.approx(fraction)
    with torch.no_grad():
        want, got = model.eval()(example), result.module.eval()(example)
    assert float((want - got).abs().max() / want.abs().max()) < 1e-6
    check = next(check for check in result.report.proof if check.name == NAME)
    assert check.passed
    assert all(each.passed for each in result.report.proof)
    assert result.plan.options["training"] == method


@pytest.mark.parametrize(
    ("method", "stop"), [*((method, 8) for method in METHODS), ("iterative", 15), ("movement", 15)]
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not(method, stop):
    more: dict[str, Any] = {"target": {"macs": 0.5}, "align": 1, "steps": STEPS, "method": method, "distill": 0.5}
    states = []
    for stopped in (False, True):
        model, example = made(Residual)
        pruner = gp.Pruner(model, (example,), **more)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        trained(model, pruner, optimizer, example, range(stop))
        if stopped:
            file = io.BytesIO()
            torch.save([each.state_dict() for each in (model, pruner, optimizer)], file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            model, example = made(Residual)
            model.load_state_dict(saved[0])
            pruner = gp.Pruner(model, (example,), **more)
            pruner.load_state_dict(saved[1])
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            optimizer.load_state_dict(saved[2])
        trained(model, pruner, optimizer, example, range(stop, STEPS))
        states.append(pruner.finish().module.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_weights_that_are_loaded_before_the_end_are_cut_too():
    model, pruner, _ = run(Residual, "iterative")
    model.load_state_dict(made(Residual, seed=5)[0].state_dict())
    result = pruner.finish()
    assert all(check.passed for check in result.report.proof)
    kept = torch.nonzero(pruner.alive["a.weight[0]"]).flatten()
    assert torch.equal(result.module.a_bn.weight, model.a_bn.weight[kept])


def test_a_module_with_units_that_are_not_zero_fails_the_check(monkeypatch):
    model, pruner, _ = run(Residual, "iterative")
    model.load_state_dict(made(Residual, seed=5)[0].state_dict())
    monkeypatch.setattr(type(pruner._loop), "hold", lambda loop: None)
    with pytest.raises(gp.ProofError, match=f"the proof '{NAME}' failed"):
        pruner.finish()


def test_where_only_rounding_is_in_the_way_both_are_run_in_double_precision(monkeypatch):
    model, example = made(Residual, dtype=torch.float32)
    pruner = gp.Pruner(model, (example,), target="macs=0.5", steps=4, align=1)
    trained(model, pruner, torch.optim.SGD(model.parameters(), lr=1e-2), example, range(4))

    def strict(name, want, got, *, note):
        return compare(name, want, got, note=note, tolerance=1e-12)

    monkeypatch.setattr("graphprune.training.pruner.compare", strict)
    check = next(check for check in pruner.finish().report.proof if check.name == NAME)
    assert check.note.endswith("in float64")
    model.load_state_dict(made(Residual, seed=5, dtype=torch.float32)[0].state_dict())
    monkeypatch.setattr(type(pruner._loop), "hold", lambda loop: None)
    with pytest.raises(gp.ProofError, match=f"the proof '{NAME}' failed"):
        pruner.finish()


# -- what stays as it is -------------------------------------------------------------------------------------------


def test_the_module_stays_what_it_is():
    model, example = made(Residual)
    names, tensors = [*dict(model.named_modules())], [*model.parameters()]
    forward, hooks = model.forward, len(model._forward_hooks)
    pruner = gp.Pruner(model, (example,), target="macs=0.5", steps=STEPS)
    trained(model, pruner, torch.optim.SGD(tensors, lr=1e-2), example, range(STEPS))
    pruner.finish()
    assert [*dict(model.named_modules())] == names
    assert all(a is b for a, b in zip(model.parameters(), tensors, strict=True))
    assert model.forward == forward
    assert len(model._forward_hooks) == hooks
    assert model.training
    assert all(each.training for each in model.modules())


def test_units_that_have_gone_stay_zero_whatever_the_optimizer_does():
    _, pruner, _ = run(Residual, "iterative", lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9))
    units: Units = pruner._loop.units
    assert int((~pruner._loop.alive).sum()) > 3
    norms = units.squares(units.places)
    assert norms[~pruner._loop.alive].abs().max() == 0
    assert norms[pruner._loop.alive].min() > 0


def test_without_a_pruner_the_loop_is_the_same_until_something_goes():
    losses = []
    for pruned in (False, True):
        model, example = made(Residual)
        pruner = gp.Pruner(model, (example,), target="macs=0.5", steps=STEPS, begin=0.5) if pruned else None
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for step in range(8):
            x, y = batch(step, example)
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            if pruner is not None:
                pruner.before_step()
            optimizer.step()
            if pruner is not None:
                pruner.step()
        losses.append(loss.item())
    assert losses[0] == losses[1]


# -- units ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Residual, Attention])
def test_norms_of_units_are_those_of_the_criterion(cls):
    model, example = made(cls)
    units = Units(gp.analyze(model, (example,)), model)
    scores = gp.Session(model, (example,)).prune(target="macs=0.9", verify=False, align=1).state.scores
    found = units.by_group(units.squares(units.places).sqrt())
    for name, want in scores.items():  # relative to their mean in the group
        assert found[name] / found[name].mean() == pytest.approx(want)
    again = units.by_group(units.of_groups(scores))
    assert all(np.allclose(again[name], scores[name]) for name in scores)


def test_what_reads_units_is_told_from_what_makes_them():
    model, example = made(Attention)
    units = Units(gp.analyze(model, (example,)), model)
    reading = {(p.name, p.axis, units.groups[p.group].kind) for p in units.places if p.reads}
    assert {("o.weight", 1, "head"), ("o.weight", 1, "value-dim"), ("down.weight", 1, "neuron")} <= reading
    assert not any(name.startswith(("q", "k", "v")) and axis == 0 for name, axis, _ in reading)
    gated = {(p.name, units.groups[p.group].kind) for p in units.gated}
    assert ("q.weight", "qk-dim") in gated, "no weight reads what queries and keys sum over"
    assert ("down.weight", "neuron") in gated
    assert ("up.weight", "neuron") not in gated


def test_a_square_weight_between_one_stream_is_read_on_one_axis_and_made_on_the_other():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.net[1](self.net[0](x))
            return self.net[4](x + self.net[3](self.net[2](x)))

    model = Loop()
    units = Units(gp.analyze(model, (torch.randn(2, 4).double(),)), model)
    assert {(p.name, p.axis): p.reads for p in units.places}[("net.2.weight", 1)]
    assert not {(p.name, p.axis): p.reads for p in units.places}[("net.2.weight", 0)]


@pytest.mark.parametrize("method", ["iterative", "movement", "l0", "hesso"])
def test_a_module_may_go_to_another_device(method):
    states = []
    for moved in (False, True):
        model, example = made(Residual)
        pruner = gp.Pruner(model, (example,), target="macs=0.5", steps=STEPS, align=1, method=method)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        trained(model, pruner, optimizer, example, range(7))
        if moved:
            pruner._moved()  # what it does then; there is one device only
        trained(model, pruner, optimizer, example, range(7, STEPS))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# -- schedules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "cubic", "geometric", "once"])
def test_a_schedule_ends_at_the_target_and_never_rises(kind):
    schedule = Schedule(200, kind, 0.1, 0.6)
    remaining = [schedule.remaining(step, 0.3) for step in range(201)]
    assert remaining[0] == 1
    assert all(b <= a + 1e-12 for a, b in pairwise(remaining))
    assert all(each == pytest.approx(0.3) for each in remaining[120:])
    due = [step for step in range(1, 201) if schedule.due(step)]
    assert due[-1] == 120
    assert len(due) == (1 if kind == "once" else 21)
    if kind == "cubic":
        assert remaining[70] == pytest.approx(0.3 + 0.7 * (1 - schedule.passed(70)) ** 3)


def test_units_that_have_gone_do_not_come_back():
    model, example = made(Residual)
    how: dict[str, Any] = {"criterion": "random", "allocation": "uniform", "every": 1, "end": 1.0}
    pruner = gp.Pruner(model, (example,), target="macs=0.3", steps=STEPS, align=1, **how)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = pruner._loop.alive.clone()
    for step in range(STEPS):
        trained(model, pruner, optimizer, example, range(step, step + 1))
        assert bool((before | ~pruner._loop.alive).all())
        before = pruner._loop.alive.clone()
    assert pruner.remains() <= 0.3


def test_units_that_are_named_stay_and_go_as_they_are_named():
    model, example = made(Residual)
    pruner = gp.Pruner(
        model, (example,), target="macs=0.6", steps=10, align=1, keep="a=0,1,2,3,7", allocation="uniform"
    )
    chooser, within = pruner._chooser, torch.ones(pruner._loop.units.n, dtype=torch.bool)
    within[:3] = False  # of the other group, so that more of it may be wanted than there are
    kept = chooser.choose(None, 0.6, within)
    assert torch.nonzero(kept[12:]).flatten().tolist() == [0, 1, 2, 3, 7]
    assert not bool(kept[:3].any())


def test_what_an_allocation_wants_back_is_made_up_by_others():
    model, example = made(Residual)
    pruner = gp.Pruner(model, (example,), target="macs=0.5", steps=STEPS, align=1, allocation="uniform")
    chooser, units = pruner._chooser, pruner._loop.units
    within = torch.ones(units.n, dtype=torch.bool)
    within[:11] = False  # of twelve channels of the first group
    kept = chooser.choose(torch.rand(units.n, dtype=torch.float64), 0.6, within)
    assert bool((within | ~kept).all())
    assert chooser.remains(kept, "macs") <= 0.6
    fuller = kept.clone()
    spare = torch.nonzero(within & ~kept)[:1]
    if len(spare):
        fuller[spare[0]] = True
        assert chooser.remains(fuller, "macs") > 0.6


@pytest.mark.parametrize("refit", ["", "ols"])
def test_a_refit_makes_good_what_goes(refit):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for each in (model[0].weight, model[0].bias):
            each[4:] = each[:4]  # twins: what one of them gave, the other can give
    data = torch.randn(200, 6)
    want = model(data).detach()
    pruner = gp.Pruner(
        model, (data[:2],), target="macs=0.5", steps=4, begin=0.0, end=0.0, align=1, criterion="obs", refit=refit,
        calibration=data.numpy(),
    )  # fmt: skip
    pruner.before_step()
    pruner.step()
    assert pruner.over
    lost = float((model(data).detach() - want).square().mean() / want.var())
    assert lost < 1e-3 if refit else lost > 0.05
    assert pruner.finish().module[0].out_features == 4


# -- the teacher ---------------------------------------------------------------------------------------------------


def test_the_teacher_adds_the_gradient_of_the_distance():
    model, example = made(Attention)
    dense = copy.deepcopy(model).eval()
    pruner = gp.Pruner(model, (example,), target="macs=0.5", steps=STEPS, distill=0.7)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.1 * torch.randn(each.shape, dtype=each.dtype))
    other = copy.deepcopy(model)
    other._forward_hooks.clear()
    x, y = batch(3, example)
    functional.cross_entropy(model(x), y).backward()
    logits = other(x)
    teacher = dense(x).log_softmax(-1)
    divergence = functional.kl_div(logits.log_softmax(-1), teacher, reduction="batchmean", log_target=True)
    (functional.cross_entropy(logits, y) + 0.7 * divergence).backward()
    assert pruner.distance == pytest.approx(float(divergence.detach()))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-12)


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"method": "movment", "target": "macs=0.5"}, "unknown method 'movment'"),
        ({"target": "macs=0.5", "steps": 0}, "a pruner needs 'steps'"),
        ({"target": "macs=0.5", "schedule": "cube"}, "unknown schedule 'cube'"),
        ({"target": "macs=0.5", "begin": 0.7, "end": 0.2}, "begin is 0.7 and end is 0.2"),
        ({"target": "macs=0.5", "method": "group-norm", "options": {"strenght": 1.0}}, "has no option 'strenght'"),
        ({"target": "macs=0.5", "method": "group-norm", "options": {"every": 0.5}}, "option 'every' of method"),
        ({"target": "macs=0.5", "method": "group-norm", "options": {"reach": 0.0}}, "reach 0"),
        ({"target": "latency=0.5"}, "is measured on a model that is cut"),
        ({"target": "macs=0.5", "layers": "1"}, "'layers' is not for training"),
        ({"target": "macs=0.5", "recover": True}, "leave 'recover' out"),
        ({}, "no target given"),
        ({"target": "macs=0.5", "refit": "affine"}, "refit is 'affine'; expected one of as-is, ols, bn"),
        ({"target": "macs=0.5", "refit": "ols"}, "a refit looks at what layers read"),
        ({"target": "macs=0.5", "distill": -1.0}, "distill is -1"),
        ({"recipe": {"training": {"step": 3}}, "target": "macs=0.5"}, "training has no option 'step'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(keywords, message):
    model, example = made(Residual)
    with pytest.raises(gp.GraphpruneError, match=message):
        gp.Pruner(model, (example,), **{"steps": STEPS, **keywords})


def test_a_recipe_may_say_how_it_is_trained(tmp_path):
    model, example = made(Residual)
    file = tmp_path / "recipe.toml"
    file.write_text('targets = ["macs=0.5"]\n[training]\nmethod = "group-norm"\nsteps = 9\nend = 0.5\n')
    pruner = gp.Pruner(model, (example,), file, end=0.8)
    assert repr(pruner) == "Pruner(Residual, method=group-norm, 0 of 9 steps)"
    assert (pruner._loop.schedule.last, pruner._loop.schedule.kind) == (7, "once")


def test_a_state_of_another_pruner_is_refused():
    model, example = made(Residual)
    pruners = [gp.Pruner(model, (example,), target="macs=0.5", steps=9, method=m) for m in ("soft", "iterative")]
    with pytest.raises(gp.OptionError, match="the state is of method 'soft' with 28 units"):
        pruners[1].load_state_dict(pruners[0].state_dict())


def test_a_loop_that_is_shorter_than_it_said_ends_at_the_target():
    model, example = made(Residual)
    pruner = gp.Pruner(model, (example,), target="macs=0.5", steps=1000, align=1)
    trained(model, pruner, torch.optim.SGD(model.parameters(), lr=1e-2), example, range(3))
    assert pruner.finish().report.cost("macs").fraction <= 0.5


def test_of_units_that_norms_count_it_is_said_that_the_dense_model_computes_something_else():
    model, example = made(Attention)
    pruner = gp.Pruner(model, (example,), target="macs=0.7", only="width", steps=4, align=1)
    trained(model, pruner, torch.optim.SGD(model.parameters(), lr=1e-2), example, range(4))
    result = pruner.finish()
    assert NAME not in {check.name for check in result.report.proof}
    assert all(check.passed for check in result.report.proof)
    assert any("the module of the loop counted their zeros" in note for note in result.report.notes)


def test_a_target_of_parameters_and_calibrated_criteria():
    model, example = made(Attention, dtype=torch.float32)
    data = np.random.default_rng(0).normal(size=(24, 7, 6)).astype(np.float32)
    pruner = gp.Pruner(
        model, (example,), target={"params": 0.6, "macs": 0.7}, criterion="wifv", calibration=data, steps=6, align=1,
    )  # fmt: skip
    trained(model, pruner, torch.optim.SGD(model.parameters(), lr=1e-2), example, range(6))
    result = pruner.finish()
    assert result.report.cost("params").fraction <= 0.6
    assert result.report.cost("macs").fraction <= 0.7
