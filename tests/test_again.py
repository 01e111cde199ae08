"""Pruning in a loop: a module is traced once, whatever becomes of its weights, and what was pruned is not traced again."""

import copy

import pytest
import torch
from torch import nn

import graphprune as gp

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 12, 3)
        self.width = 12
        self.out = nn.Linear(12, 4)

    def forward(self, x):
        y = torch.relu(self.b(torch.relu(self.norm(self.a(x)))))
        return self.out(y.mean((2, 3)).reshape(-1, self.width))


@pytest.fixture
def traces(monkeypatch):
    """How often a module was traced."""
    from graphprune.hosts.torch.host import TorchHost

    right, seen = TorchHost._of_module.__func__, []

    def counted(cls, model, *args):
        seen.append(type(model).__name__)
        return right(cls, model, *args)

    monkeypatch.setattr(TorchHost, "_of_module", classmethod(counted))
    return seen


def pruned(session, macs=0.6):
    return session.prune(target={"macs": macs}, criterion="l2", align=1)


def test_what_was_pruned_is_pruned_again_without_a_trace(traces):
    model = Net().eval()
    first = pruned(gp.Session(model, (X,)))
    with torch.no_grad():
        first.module.out.weight.mul_(2)  # trained on
    second = pruned(gp.Session.of(first))
    third = pruned(gp.Session.of(second))
    assert traces == ["Net"]
    assert type(third.module) is Net
    widths = [each.module.a.out_channels for each in (first, second, third)]
    assert 16 > widths[0] > widths[1] > widths[2]
    assert all(check.passed for check in third.report.proof)
    assert torch.equal(second.module.out.weight, first.module.out.weight[:, : second.module.out.in_features]) or (
        second.module.out.in_features < first.module.out.in_features
    )


def test_the_ledger_is_one_plan_on_the_model_that_was_first():
    model = Net().eval()
    first = pruned(gp.Session(model, (X,)))
    second = pruned(gp.Session.of(first))
    assert first.ledger == first.plan
    assert second.ledger == first.plan.then(second.plan)
    replayed = gp.apply(model, second.ledger, (X,)).module
    assert all(
        torch.equal(a, b)
        for a, b in zip(replayed.state_dict().values(), second.module.state_dict().values(), strict=True)
    )


def test_the_groups_are_those_of_a_fresh_trace():
    first = pruned(gp.Session(Net().eval(), (X,)))
    again, fresh = gp.Session.of(first).analyze(), gp.analyze(first.module, (X,))
    assert [(g.name, g.size, g.tensors) for g in again.groups] == [(g.name, g.size, g.tensors) for g in fresh.groups]


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).square().sum().backward()
    optimizer.step()


def loaded(model):
    model.load_state_dict({name: tensor * 2 for name, tensor in model.state_dict().items()}, assign=True)


def moved(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 2


def rebuffered(model):
    model.norm.running_mean = model.norm.running_mean + 1


@pytest.mark.parametrize("change", [step, loaded, moved, rebuffered])
def test_other_weights_are_seen_and_not_traced(change, traces):
    model = Net().eval()
    session = gp.Session(model, (X,))
    pruned(session)
    change(model)
    result = pruned(session)
    assert traces == ["Net"]
    fresh = gp.prune(copy.deepcopy(model), (X,), target={"macs": 0.6}, criterion="l2", align=1)
    assert result.plan.groups == fresh.plan.groups
    for name, tensor in fresh.module.state_dict().items():
        assert torch.equal(result.module.state_dict()[name], tensor), name


def retyped(model):
    model.double()


def untied(model):
    model.b.bias = model.a.bias


@pytest.mark.parametrize("change", [retyped, untied])
def test_other_types_and_sizes_are_traced_anew(change, traces):
    model, x = Net().eval(), X
    session = gp.Session(model, (x,))
    assert session.analyze().groups
    change(model)
    if change is untied:
        model.b.bias = nn.Parameter(torch.zeros(12))
        model.b = nn.Conv2d(16, 12, 3, bias=False)
        session.analyze()
    else:
        with pytest.raises(gp.ModelError):
            session.analyze()  # the example is of single precision
    assert len(traces) > 1


def test_an_onnx_result_goes_on_as_well(tmp_path):
    path = tmp_path / "net.onnx"
    gp.export_onnx(Net().eval(), (X,), path)
    first = pruned(gp.Session(path))
    second = pruned(gp.Session.of(first))
    assert second.report.cost("macs").before == first.report.cost("macs").after
    assert second.ledger == first.plan.then(second.plan)
