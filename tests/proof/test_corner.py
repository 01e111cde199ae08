"""Proofs on a corner of a large picture: what they take for one, what they still see, and when the whole one is run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import ProofError
from graphprune.passes import SliceGroups
from graphprune.proof.corner import CORNER, corner_of

IMAGE = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("shapes", "cut"),
    [
        ({"x": (1, 3, 224, 160)}, {"x": (1, 3, CORNER, CORNER)}),
        ({"x": (1, 3, 128, 128), "t": (1, 5)}, {"x": (1, 3, CORNER, CORNER), "t": (1, 5)}),
        ({"x": (1, 3, 127, 200)}, None),
        ({"x": (1, 3, 128, 128), "y": (1, 3, 256, 256)}, None),
        ({"t": (1, 5)}, None),
    ],
)
def test_what_a_corner_is(shapes, cut):
    found = corner_of({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    assert (found and {name: each.shape for name, each in found.items()}) == cut


def net(*, fixed):
    torch.manual_seed(0)
    pool = [nn.AvgPool2d(30), nn.Flatten()] if fixed else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    size = 12 * 4 if fixed else 12
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 12, 3),
        nn.ReLU(),
        *pool,
        nn.Linear(size, 4),
    ).eval()


@pytest.mark.parametrize("fixed", [False, True])
def test_the_whole_example_where_a_graph_holds_its_size(fixed):
    proof = gp.prune(net(fixed=fixed), IMAGE, target={"macs": 0.5}, criterion="l2").report.proof
    assert [check.note.endswith("on a corner of the example") for check in proof] == [not fixed] * 2
    assert all(check.passed for check in proof)


@pytest.mark.parametrize("fault", ["weight", "order"])
def test_faults_are_seen(fault, monkeypatch):
    right = SliceGroups.run

    def wrong(self, state):
        made = right(self, state)
        weight = made.host.read("3.weight").copy()
        weight = weight[:, ::-1] if fault == "order" else weight * np.float32(1.01)
        return replace(made, host=made.host.replaced({"3.weight": np.ascontiguousarray(weight)}))

    monkeypatch.setattr(SliceGroups, "run", wrong)
    with pytest.raises(ProofError, match="^the proof 'masked' failed"):
        gp.prune(net(fixed=False), IMAGE, target={"macs": 0.5}, criterion="l2")
