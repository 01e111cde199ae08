"""Looking at a module leaves it as it was, whatever its code keeps, counts, caches or draws, and fails at."""

from __future__ import annotations

import copy
import functools
import random
import sys
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError
from graphprune.hosts.torch.untouched import untouched

N = 16
GLOBAL: dict[str, torch.Tensor] = {}


@functools.lru_cache
def table(n: int) -> torch.Tensor:
    return torch.arange(float(n)) * 0.1 + 1


class Base(nn.Module):
    """A net of two layers whose forward asks a subclass for a scale of its neurons."""

    SHARED: ClassVar[dict[str, torch.Tensor]] = {}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, N), nn.Linear(N, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)) * self.scale(x))

    def scale(self, x):
        return 1.0


class Attribute(Base):
    def scale(self, x):
        if not hasattr(self, "cached"):
            self.cached = torch.arange(float(N)) * 0.1 + 1
        return self.cached


class Late(Base):
    """An attribute that is there before, which the exporter itself puts back."""

    def __init__(self) -> None:
        super().__init__()
        self.cached: Any = None

    def scale(self, x):
        if self.cached is None:
            self.cached = torch.linspace(1, 2, N)
        return self.cached


class Registered(Base):
    """A buffer that is not there before, with which the exporter cannot do anything."""

    def scale(self, x):
        if not hasattr(self, "cached"):
            self.register_buffer("cached", torch.linspace(1, 2, N), persistent=False)
        return self.cached


class InDict(Base):
    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, Any] = {"deep": {}}

    def scale(self, x):
        tables = self.tables["deep"]
        if x.dtype not in tables:
            tables[x.dtype] = torch.arange(float(N)) * 0.1 + 1
        return tables[x.dtype]


class InList(Base):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Any] = []
        self.seen: set[Any] = set()

    def scale(self, x):
        if not self.tables:
            self.tables.append(torch.arange(float(N)) * 0.1 + 1)
        self.seen.add(tuple(x.shape))
        return self.tables[0]


class Plain:
    """An object that is no module."""

    def __init__(self) -> None:
        self.table: Any = None
        self.calls = 0


class InObject(Base):
    def __init__(self) -> None:
        super().__init__()
        self.keeper = Plain()

    def scale(self, x):
        self.keeper.calls += 1
        if self.keeper.table is None:
            self.keeper.table = torch.arange(float(N)) * 0.1 + 1
        return self.keeper.table


class Function(Base):
    def scale(self, x):
        return table(N)


class Global(Base):
    def scale(self, x):
        if "t" not in GLOBAL:
            GLOBAL["t"] = torch.arange(float(N)) * 0.1 + 1
        return GLOBAL["t"]


class OnClass(Base):
    def scale(self, x):
        if "t" not in Base.SHARED:
            Base.SHARED["t"] = torch.arange(float(N)) * 0.1 + 1
        type(self).latest = Base.SHARED["t"]
        return Base.SHARED["t"]


class Counting(Base):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("mean", torch.zeros(N))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def scale(self, x):
        self.calls += 1
        self.steps += 1
        self.mean.mul_(0.9)
        return 1 + self.mean


class Hooking(Base):
    def scale(self, x):
        self.a.register_forward_hook(lambda *_: None)
        self.late = nn.Linear(2, 2)
        return 1.0


class Drawing(Base):
    def scale(self, x):
        return 1 + 0.1 * random.random() + 0.1 * np.random.rand()


class Renormed(Base):
    """The weights are held on a sphere in forward, by assignment and in place."""

    def forward(self, x):
        self.a.weight.data = torch.renorm(self.a.weight.data, 2, 0, 0.5)
        self.b.weight.data.clamp_(-0.01, 0.01)
        return self.b(torch.relu(self.a(x)))


class Failing(Base):
    def scale(self, x):
        self.cached = torch.arange(float(N))
        self.tables = {"t": self.cached}
        raise RuntimeError("half-way")


NETS = (
    Attribute, Late, Registered, InDict, InList, InObject, Function, Global, OnClass, Counting, Hooking, Drawing, Renormed, Failing,
)  # fmt: skip

REFUSED = {Failing: "half-way", Renormed: "found a fake tensor"}


def trained(net: type[Base]) -> Base:
    """A model in use: partly frozen, with gradients, in a mixture of modes."""
    model = net().train()
    model.b.eval()
    model.a.bias.requires_grad_(requires_grad=False)
    model.a.weight.grad = torch.ones(N, 8)
    return model


def state(model: nn.Module) -> Any:
    """All that a user could see of a model and its surroundings."""

    def seen(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            assert type(value) in (torch.Tensor, nn.Parameter)
            return id(value), value.detach().tolist(), value.requires_grad, id(value.grad)
        if isinstance(value, dict):
            return [(key, seen(each)) for key, each in value.items()]
        if isinstance(value, list | tuple):
            return [seen(each) for each in value]
        return seen(vars(value)) if isinstance(value, Plain | nn.Module) else copy.copy(value)

    random_numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return seen(model), seen(GLOBAL), seen(Base.SHARED), hasattr(type(model), "latest"), random_numbers


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_analysis_leaves_the_module_as_it_was(net: type[Base]) -> None:
    model, x = trained(net), torch.randn(3, 8)
    before = state(model)
    if net in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[net]):
            gp.analyze(model, (x,))
    else:
        assert gp.analyze(model, (x,)).groups
    assert state(model) == before
    if net not in REFUSED:
        assert type(model(x)) is torch.Tensor  # no fake one is left in a cache
    GLOBAL.clear()
    Base.SHARED.clear()


@pytest.mark.parametrize("net", [Attribute, Late, Registered, InDict, InObject, Counting], ids=lambda net: net.__name__)
def test_pruning_leaves_the_module_as_it_was_and_keeps_its_class(net: type[Base]) -> None:
    model, x = trained(net), torch.randn(3, 8)
    before = state(model)
    result = gp.prune(model, (x,), target="params=0.7", verify=False)
    assert state(model) == before
    assert type(result.module) is net
    torch.testing.assert_close(result.module.eval()(x), torch.from_numpy(result.host.run({"x": x.numpy()})["output"]))
    assert result.module.train()(x).sum().backward() is None


def test_tables_of_the_first_call_come_cut_and_the_note_says_so() -> None:
    result = gp.prune(Attribute(), (torch.randn(3, 8),), target="params=0.7", verify=False)
    assert result.module.cached.shape == result.module.a.bias.shape < (N,)
    assert "the module holds the tables that its code makes on the first call, cut as the rest" in result.report.notes


def test_export_and_sensitivity_leave_the_module_as_it_was(tmp_path: Any) -> None:
    model, x = trained(InDict), torch.randn(3, 8)
    before = state(model)
    gp.export_onnx(model, (x,), tmp_path / "net.onnx")
    assert state(model) == before
    gp.sensitivity(model, (x,))
    assert state(model) == before


def test_a_run_is_undone_to_the_last_element() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = copy.deepcopy(model.state_dict())
    with untouched(model, runs=True):
        model(torch.randn(2, 3, 5)).sum().backward()
        model[0].weight.data.zero_()
        model[1].running_mean.set_(torch.ones(4))
        model.append(nn.ReLU())
        model[1].eval()
    assert len(model) == 3
    assert model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_what_the_exporter_prints_stays_off_the_terminal(capfd: Any) -> None:
    class Branching(Base):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Parameter(torch.ones(N)), nn.Parameter(torch.ones(N))

        def scale(self, x):
            sys.stderr.write("from forward")
            return self.one if x.sum() > 0 else self.two

    with pytest.raises(ModelError) as caught:
        gp.analyze(Branching(), (torch.randn(3, 8),))
    gp.prune(Attribute(), (torch.randn(3, 8),), target="params=0.7", verify=False)
    assert capfd.readouterr() == ("", "")
    chained: BaseException | None = caught.value
    notes = []
    while chained is not None:
        notes += getattr(chained, "__notes__", [])
        chained = chained.__cause__
    assert any("def forward(self, arg0_1" in note for note in notes)
