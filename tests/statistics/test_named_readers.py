"""What contracts a cut axis and cannot be refitted is named in the report, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_readers import ONNX, TORCH, _layer
from torch import nn

import graphprune as gp
from graphprune.hosts.onnx import cells as onnx_cells
from graphprune.hosts.torch import cells as torch_cells


def test_what_goes_through_states_is_described_as_cells():
    """Each recurrent operator of the tables is one that a host can tell the gates of."""
    several = "it has several results"
    assert set(TORCH[several].split()) == {str(op).removeprefix("aten.") for op in torch_cells.GATES}
    assert set(ONNX[several].split()) == {*onnx_cells.GATES}


class Products(nn.Module):
    """Products of what is computed, in the ways that models write them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(5, 3)
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.q(x), self.k(x)
        match self.way:
            case "bmm":
                scores = torch.bmm(q, k.transpose(1, 2))
            case "einsum":
                scores = torch.einsum("bid,bjd->bij", q, k)
            case "attention":
                scores = nn.functional.scaled_dot_product_attention(q, k, x[..., :5])
            case "sum":
                scores = (q[:, :, None] * k[:, None]).sum(-1)
            case _:
                scores = q @ k.transpose(1, 2)
        return self.out(torch.tanh(scores))


REASONS = {
    "matmul": "it multiplies what is computed",
    "bmm": "it multiplies what is computed",
    "einsum": "it multiplies what is computed",
    "attention": "it multiplies what is computed",
    "sum": "it is no sum with weights",
}


@pytest.mark.parametrize("way", REASONS)
def test_products_of_what_is_computed_are_named(way):
    torch.manual_seed(0)
    model, rng = Products(way).eval(), np.random.default_rng(0)
    data = [{"x": rng.standard_normal((4, 5, 6)).astype(np.float32)} for _ in range(4)]
    example = (torch.from_numpy(data[0]["x"]),)
    group = next(group for group in gp.analyze(model, example).groups if group.size == 10)
    result = gp.prune(model, example, target="params=0.8", align=1, only=group.kind, calibration=data)
    (note,) = (each for each in result.report.notes if each.startswith("these readers of removed units were not"))
    assert REASONS[way] in note


def test_a_bilinear_form_is_named():
    class Form(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.form = nn.Linear(6, 10), nn.Bilinear(10, 6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.form(torch.tanh(self.a(x)), x)

    torch.manual_seed(0)
    data = [{"x": np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)}] * 4
    result = gp.prune(Form().eval(), (torch.from_numpy(data[0]["x"]),), target="params=0.8", align=1, calibration=data)
    assert any("'form.weight' (it is no product with one weight)" in note for note in result.report.notes)


@pytest.mark.parametrize(
    ("kind", "activations", "usual"),
    [
        ("LSTM", ["Sigmoid", "Tanh", "Tanh"], True),
        ("LSTM", ["sigmoid", "tanh", "tanh"], True),
        ("LSTM", ["HardSigmoid", "Tanh", "Tanh"], False),
        ("GRU", ["Sigmoid", "Relu"], False),
        ("RNN", ["Relu"], True),
    ],
)
def test_gates_with_other_activations_are_named(kind, activations, usual):
    model: Any = _layer(kind)
    node = next(node for node in model.graph.node if node.op_type == kind)
    attribute = node.attribute.add(name="activations", type=8)  # of texts
    attribute.strings.extend(each.encode() for each in activations)
    found = onnx_cells.cells(node)
    assert (found == "its activations are not those of its kind") is not usual
