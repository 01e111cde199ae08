"""What a registered row says beside the rule is honoured like what a table says: the masked form of a statistic."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from graphprune import ops
from graphprune.analysis.groups import analyze_graph
from graphprune.errors import ProofError, RuleError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.passes.slice_groups import slice_edits
from graphprune.passes.verify import verify
from graphprune.proof.compare import require

UNIT = ops.Text("n c -> n c; normalized c")
NORM = ops.Text("n c, c, c -> n c; normalized c")


@torch.library.custom_op("graphprune_forms::unit", mutates_args=())
def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@unit.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(unit(self.first(x)))


def normed() -> OnnxHost:
    """A product, a layer normalisation, a product."""
    rng, make = np.random.default_rng(0), onnx.helper.make_node
    stored = {"a": (5, 12), "scale": (12,), "shift": (12,), "b": (12, 3)}
    nodes = [
        make("MatMul", ["x", "a"], ["h"], "first"),
        make("LayerNormalization", ["h", "scale", "shift"], ["n"], "norm"),
        make("MatMul", ["n", "b"], ["y"], "last"),
    ]
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", (4, 5)), ("y", (4, 3)))
    )
    weights = [
        onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in stored.items()
    ]
    graph = onnx.helper.make_graph(nodes, "net", [x], [y], weights)
    return OnnxHost.load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch):
    monkeypatch.setattr(ops._ROWS, "_registered", dict(ops._ROWS._registered))


def proven(host) -> None:
    """Cuts a third of the one group and proves it."""
    analysis = analyze_graph(host.graph())
    (group,) = analysis.groups
    kept = {group.factor: np.setdiff1d(np.arange(group.size), [0, 3, 5, 11])}
    require(verify(host, host.edited(slice_edits(analysis, kept)), analysis, kept))


CASES = {
    "torch": ("graphprune_forms::unit", UNIT, ops.EXACT, lambda: TorchHost.trace(Net().eval(), (torch.randn(4, 5),))),
    "onnx": ("LayerNormalization", NORM, "layer_norm", normed),
}


@pytest.mark.parametrize("name", CASES)
def test_the_form_that_a_registered_row_names_is_taken(name):
    op, rule, form, make = CASES[name]
    ops.register(op, ops.Op(rule, masked=form))
    proven(make())


@pytest.mark.parametrize("name", CASES)
def test_without_a_form_a_statistic_cannot_be_proven(name):
    op, rule, _, make = CASES[name]
    ops.register(op, rule)
    with pytest.raises(ProofError, match="takes a statistic over an axis that"):
        proven(make())


@pytest.mark.parametrize("name", CASES)
def test_a_form_that_there_is_not_is_refused(name):
    op, rule, _, make = CASES[name]
    ops.register(op, ops.Op(rule, masked="layer_nrom"))
    with pytest.raises(
        RuleError, match=r"states the masked form 'layer_nrom', which there is not; expected one of .*layer_norm"
    ):
        proven(make())
