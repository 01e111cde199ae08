"""Where single precision leaves doubt of outputs alone, float64 runs both models once more, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.hosts.torch.program import Program
from graphprune.proof import oracles
from graphprune.proof.compare import Rounding

X = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
STRICT = Rounding(1e-14)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)).eval()


def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool, bool]]:
    """Of each run that shows values: whether some are inside, whether it is masked, and whether it is in float64."""
    seen: list[tuple[bool, bool, bool]] = []
    shown = Program.shown

    def noted(self: Program, inputs: Any, names: Any, masks: Any = None, *, double: bool = False) -> Any:
        seen.append((bool(names), masks is not None, double))
        return shown(self, inputs, names, masks, double=double)

    monkeypatch.setattr(Program, "shown", noted)
    return seen


def pruned() -> gp.Result:
    return gp.prune(net(), (X,), target="params=0.5", align=1)


def test_one_run_of_each_where_nothing_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = runs(monkeypatch)
    pruned()
    assert sorted(seen) == [(True, False, False), (True, True, False)]


def test_outputs_alone_where_only_they_are_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracles, "SINGLE", STRICT)
    seen = runs(monkeypatch)
    check = next(each for each in pruned().state.checks if each.name == "masked")
    assert sorted(seen[2:]) == [(False, False, True), (False, True, True)]
    assert "in float64" in check.note
    assert check.informative
    assert check.passed


@pytest.mark.parametrize("rounding", ["SINGLE", "SINGLE_INSIDE"])
def test_a_fault_is_found_in_float64(rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that single precision would take for rounding: the smaller model's last bias is off by a little."""
    monkeypatch.setattr(oracles, rounding, STRICT)
    edited = Program.edited

    def wrong(self: Program, edits: Any) -> Any:
        made = edited(self, edits)
        if not edits.shapes:  # units that only change places
            return made
        return made.with_tensors({**made.tensors, "4.bias": nn.Parameter(made.tensors["4.bias"] * (1 + 1e-6))})

    monkeypatch.setattr(Program, "edited", wrong)
    with pytest.raises(gp.ProofError, match="the proof 'masked' failed"):
        pruned()
