"""A module is run in training mode only where its code asks for the mode, and held against its recording."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphprune.hosts.torch import runs as torch_runs
from graphprune.hosts.torch.front import traced
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.modes import asks_for_training, differs_in_training

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """Asks for the mode in a method that the forward need not call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.drop = nn.Dropout(0.5)

    def is_training(self) -> bool:
        return self.training

    def forward(self, x):
        return self.b(self.drop(self.a(x)).relu())


class Asks(Base):
    """What it does is the same in both modes."""

    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.5, self.is_training()).relu())


class Differs(Base):
    def forward(self, x):
        y = self.a(x).relu()
        return self.b(y) + self.c(y) if self.training else self.b(y)


class ReturnsAnother(Base):
    """The same operators, of which another is returned."""

    def forward(self, x):
        y = self.a(x).relu()
        made = self.b(y), self.c(y)
        return made[1 if self.is_training() else 0]


class Norm(nn.BatchNorm1d):
    """A layer of the user's with the forward of torch's, which asks for the mode."""


class Inherits(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm(6)

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


# the class, whether a module of the user's is asked, whether the operators differ
ROWS = [
    (Base, False, False), (Asks, True, False), (Differs, True, True), (ReturnsAnother, True, True),
    (Inherits, True, True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "asked", "differs"), ROWS)
def test_the_recording_tells_what_a_run_would(kind: Any, asked: bool, differs: bool) -> None:
    model = kind().eval()
    calls = traced(model, ((X,), {})).calls
    assert asks_for_training(model)
    assert calls.asked is asked
    assert differs_in_training(model, ((X,), {})) == (differs, "")
    assert differs_in_training(model, ((X,), {}), calls) == (differs, "")
    assert not hasattr(nn.Module, "training")
    assert [each.training for each in model.modules()] == [False] * len(list(model.modules()))


@pytest.mark.parametrize(("kind", "asked", "differs"), ROWS)
def test_it_is_run_where_it_asks(kind: Any, asked: bool, differs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = torch_runs.differs_in_training
    monkeypatch.setattr(torch_runs, "differs_in_training", lambda *given: seen.append(given) or run(*given))
    host = TorchHost.trace(kind().eval(), (X,))
    assert len(seen) == asked
    assert len(host.runs.runs) == differs
    assert any("c.weight" in run.host.tensors for run in host.runs.runs) is (kind in (Differs, ReturnsAnother))
