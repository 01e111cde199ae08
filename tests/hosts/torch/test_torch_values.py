"""Values that a model reads out of its example: given where they follow from whole numbers, refused elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_proof import prove

import graphprune as gp
from graphprune.errors import ModelError
from graphprune.hosts.torch.host import TorchHost

X = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([4, 2, 3])


class Packed(nn.Module):
    """Sequences of different lengths one after the other, each normalised by itself, and its longest padded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("stride", torch.tensor(2))

    def forward(self, x, lengths):
        y = F.relu(self.up(x))
        parts = [part.softmax(0) for part in torch.split(y, lengths.tolist())]
        y = F.pad(torch.cat(parts), (0, 0, 0, lengths.max() % self.stride))
        if (lengths > 3).any():
            y = y + y[: lengths[0]].mean(0)
        rows = torch.arange(lengths.sum())
        y = y[rows][torch.repeat_interleave(torch.arange(3), lengths) != 1]
        return self.down(y) * torch.tensor([lengths.min(), lengths[2], 1, 1])


def test_sizes_and_branches_are_those_of_the_example() -> None:
    model = Packed().eval()
    proof = prove(model, (X, LENGTHS))
    assert [group.size for group in proof.groups] == [8]
    assert proof.host.pinned == ("lengths",)
    feeds = proof.host.example_inputs()
    assert np.allclose(proof.host.run(feeds)["output"], model(X, LENGTHS).detach(), atol=1e-6)
    assert np.array_equal(proof.host.example_inputs(1)["lengths"], LENGTHS)
    assert not np.array_equal(proof.host.example_inputs(1)["x"], X)


@pytest.mark.parametrize("lengths", [[4, 3, 2], [3, 3, 3], [4, 2, 2]])
def test_other_values_are_refused(lengths: list[int]) -> None:
    pruned = prove(Packed().eval(), (X, LENGTHS), n=1).pruned
    with pytest.raises(RuntimeError, match="a value that decides sizes or branches is not that of the example"):
        pruned.module(X, torch.tensor(lengths))


def test_the_report_and_the_file(tmp_path: Path) -> None:
    result = gp.prune(Packed().eval(), (X, LENGTHS), target="params=0.7", align=1)
    assert result.report.notes[0] == (
        "sizes or branches of the model follow from the values of 'lengths', and were traced as in the example; a module "
        "refuses other values, an ONNX file does not notice them"
    )
    result.save_onnx(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    feeds = {name: array for name, array in result.host.example_inputs().items() if name in known}
    expected = result.host.run(result.host.example_inputs())["output"]
    assert np.allclose(expected, session.run(None, feeds)[0], atol=1e-5)


class Branching(nn.Module):
    """Branches on what a function of the inputs and the weights says."""

    def __init__(self, decide) -> None:
        super().__init__()
        self.linear, self.decide = nn.Linear(6, 6), decide

    def forward(self, x, n):
        return self.linear(x) if self.decide(self, x, n) else x


def _written(net, x, n):
    mask = torch.zeros(6)
    mask[2:4] = x[0, 2:4]  # through a view
    return mask.sum() > 0


def _filled(net, x, n):
    return torch.zeros(()).copy_(x.sum()) > 0


@pytest.mark.parametrize(
    "decide",
    [
        lambda net, x, n: x.sum() > 0,
        lambda net, x, n: net.linear.weight.sum() > 0,
        lambda net, x, n: (n + x.sum().long()).item() > 3,
        lambda net, x, n: n[x[:3, 0] > 0].sum() > 3,
        lambda net, x, n: len(x[:, 0].nonzero()) < 3,  # the way without the layer: with it, its class may be pruned
        _written,
        _filled,
    ],
)
def test_what_depends_on_weights_or_real_numbers_is_not_given(decide) -> None:
    with pytest.raises(ModelError, match="^torch.export cannot trace 'Branching': "):
        TorchHost.trace(Branching(decide), (X, LENGTHS))


def test_a_mask_may_select_from_what_varies() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x, n):
            y = self.up(x)
            chosen = torch.zeros_like(y[:, 0], dtype=torch.bool)  # of a shape that is known, not of values
            chosen[:] = (n > 2).repeat(3)
            if y[chosen].shape[0] != 6:
                raise ValueError("two of three")
            return self.down(y)

    assert prove(Net().eval(), (X, LENGTHS)).host.pinned == ("n",)


def test_sizes_from_buffers_are_constants() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 4, 3)
            self.register_buffer("stride", torch.tensor(4))
            self.register_buffer("padding", torch.tensor(2))

        def forward(self, x, n):
            missing = -x.shape[-1] % self.stride
            y = self.first(F.pad(x, (self.padding, missing)))
            return self.second(y), y.mean((1, 2)) * n[: n.max()].sum()  # a size that an input decides stays open

    proof = prove(Net().eval(), (torch.randn(2, 3, 13), torch.tensor([1, 2, 1])))
    assert [group.size for group in proof.groups] == [8]
    assert proof.host.pinned == ()
    first = proof.host.graph().values["conv1d"]
    assert (first.shape, first.dynamic) == ((2, 8, 16), frozenset())
    feeds = proof.host.example_inputs()
    assert np.isfinite(proof.host.run(feeds | {"n": np.array([1, 1, 1])})["output_1"]).all()


def test_open_sizes_are_not_closed() -> None:
    with pytest.raises(ModelError, match="^torch.export cannot trace 'Packed': "):
        TorchHost.trace(Packed(), (X, LENGTHS), {"x": {0: torch.export.Dim.AUTO}, "lengths": None})


@pytest.mark.parametrize("unused", [False, True])
def test_rows_sorted_by_the_expert_that_they_choose(unused: bool) -> None:
    """The parts are as long as values say, which depend on weights: their axis stays, the width goes through."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.router, self.up, self.out = nn.Linear(6, 3), nn.Linear(6, 8), nn.Linear(7, 4)
            self.experts = nn.Parameter(torch.randn(3, 7, 8))
            if unused:
                self.router.bias.data[1] = -99

        def forward(self, x):
            choice = self.router(x).argmax(-1)
            order = choice.argsort(stable=True)
            sizes = (choice.unsqueeze(1) == torch.arange(3)).sum(0).tolist()
            parts = self.up(x)[order].split(sizes)
            y = torch.cat([F.linear(part, self.experts[i]) for i, part in enumerate(parts)])
            return self.out(torch.zeros_like(y).index_add(0, order, y))

    proof = prove(Net().eval(), X)
    assert sorted(group.size for group in proof.groups) == ([8] if unused else [7, 8])
    if unused:  # nothing can be said of the rows that the example does not have, and sizes are made up
        assert "does not fit the shape" in " ".join(proof.reasons("experts[1]"))
