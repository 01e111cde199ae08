"""Modules that decide by drawn numbers in training mode (layer drop, SpecAugment) are compared on equal draws."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp

DRAWS = {"torch": lambda: torch.rand([]).item(), "numpy": lambda: np.random.rand(), "python": lambda: random.random()}


class Dropped(nn.Module):
    """Leaves layers out in training mode, as speech models do."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by
        self.ups = nn.ModuleList(nn.Linear(6, 24) for _ in range(6))
        self.downs = nn.ModuleList(nn.Linear(24, 6) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for up, down in zip(self.ups, self.downs, strict=True):
            if self.training and DRAWS[self.by]() < 0.5:
                continue
            x = x + down(torch.relu(up(x)))
        return x


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("by", list(DRAWS))
def test_what_training_draws_is_no_difference(by: str, seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    model = Dropped(by).eval()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    result = gp.prune(model, (torch.ones(2, 40, 6),), target={"params": 0.5})
    assert type(result.module) is Dropped
    assert not [note for note in result.report.notes if "training mode" in note and "differ" in note]
    assert torch.equal(torch.get_rng_state(), before[0])  # the user's draws go on as they would have
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
