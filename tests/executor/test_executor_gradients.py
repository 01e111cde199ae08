"""Criteria of gradients on ONNX files: the scores of the module that the file was exported from."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from test_cli import small_model
from test_executor_module import X, branches, model_of
from torch import nn

import graphprune as gp
from graphprune.errors import BoundError, ModelError, OptionError
from graphprune.executor.module import OnnxModule
from graphprune.hosts.host import Gate
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.importance import CRITERIA
from graphprune.importance.context import Evidence
from graphprune.importance.differentiable import Differentiable

GRADIENTS = ("taylor", "fisher", "taylor-elem", "path-taylor")


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, padding=1)
        self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.inner(x))
        return self.head(nn.functional.gelu(self.hidden(x.mean((2, 3))))).softmax(-1)


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rnn, self.head = nn.Linear(4, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(torch.tanh(self.stem(x)))[0])


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table(x)
        q, k, v = (each(self.norm(x)).unflatten(2, (2, 4)).transpose(1, 2) for each in (self.q, self.k, self.v))
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(torch.sigmoid(self.up(x)))


NETS: dict[str, tuple[type[nn.Module], tuple[int, ...], str]] = {
    "pictures": (Pictures, (4, 3, 9, 9), "float32"),
    "sequences": (Sequences, (4, 5, 4), "float32"),
    "words": (Words, (4, 6), "int64"),
}


@cache
def both(net: str) -> tuple[Evidence, Evidence]:
    """What criteria look at: of the module, and of its file."""
    kind, shape, dtype = NETS[net]
    torch.manual_seed(0)
    module = kind().eval()
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal(shape) if dtype == "float32" else rng.integers(0, 11, shape) for _ in range(2)]
    data = [each.astype(dtype) for each in drawn]
    example = (torch.from_numpy(data[0]),)
    host = TorchHost.trace(module, example).folded()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        host.save_onnx(path)
        proto = onnx.load(path)
    file = OnnxHost.load(proto).folded()
    found: list[Evidence] = []
    for each, analysis in ((host, gp.analyze(module, example)), (file, gp.analyze(proto))):
        (name,) = each.example_inputs()
        found.append(Evidence(analysis, each.read, host=each, batches=[{name: array} for array in data]))
    return found[0], found[1]


@pytest.mark.parametrize("criterion", GRADIENTS)
@pytest.mark.parametrize("net", NETS)
def test_a_file_has_the_scores_of_its_module(net: str, criterion: str) -> None:
    wanted, found = (sorted(_scores(criterion, each), key=_place) for each in both(net))
    assert len(wanted) == len(found) > 1
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())


def _scores(criterion: str, evidence: Evidence) -> list[np.ndarray]:
    return list(CRITERIA[criterion].score(evidence).values())


def _place(scores: np.ndarray) -> tuple[int, float]:
    """Groups have other names in a file: they are told apart by their size and what their units sum to."""
    return len(scores), round(float(scores.sum()), 4)


def test_gates_of_branches_have_the_gradients_of_difference_quotients() -> None:
    host = OnnxHost.load(branches())
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {"x": rng.standard_normal((3, 4)).astype(np.float32), "go": np.ones((), np.bool_)}
    gates = [Gate("product of w", "x", 1), Gate("product of v", "x", 1)]
    target = rng.standard_normal((3, 2)).astype(np.float32)
    found = host.gate_gradients(inputs, gates[:1], target)[gates[0]].sum(0)
    run = host.gated(gates)

    def loss(factor: np.ndarray) -> float:
        y = run(inputs, {gates[0]: factor.astype(np.float32)})["y"].astype(np.float64)
        return float(0.5 * np.square(y - target).mean(1).sum())

    for unit in range(4):
        step = np.zeros(4)
        step[unit] = 0.05
        assert found[unit] == pytest.approx((loss(1 + step) - loss(1 - step)) / 0.1, rel=1e-3, abs=1e-4)
    with_other = host.gate_gradients(inputs, gates, target)
    assert not with_other[gates[1]].any()  # the branch is not taken


def test_only_what_is_asked_for_gets_gradients() -> None:
    host = OnnxHost.load(branches())
    inputs: dict[str, Any] = {"x": X.numpy(), "go": np.ones((), np.bool_)}
    found = host.parameter_gradients(inputs, ["w", "v"], None)
    host.gate_gradients(inputs, [Gate("product of w", "x", 1)], None)
    assert found["w"].any()
    assert not found["v"].any()  # of the branch that is not taken
    assert all(each.grad is None for each in host._run_by_torch.parameters())


def test_halves_have_gradients_too(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    small_model(path, dtype=onnx.TensorProto.FLOAT16)
    host = OnnxHost.load(path)
    inputs = {name: each.astype(np.float16) for name, each in host.example_inputs().items()}
    found = host.parameter_gradients(inputs, ["first.weight"], None)["first.weight"]
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert found.any()


def test_a_quantised_file_is_refused_with_its_operators() -> None:
    model = branches()
    node = onnx.helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], "rounded")
    model.graph.node.append(node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.1, np.float32), "scale"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("q", onnx.TensorProto.UINT8, None))
    with pytest.raises(ModelError, match=r"QuantizeLinear \(rounds to integers"):
        OnnxHost.load(model).parameter_gradients({}, ["w"], None)


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    small_model(path)
    host = OnnxHost.load(path)
    assert isinstance(host, Differentiable)
    monkeypatch.setattr("graphprune.hosts.onnx.gradients.find_spec", lambda name: None)
    with pytest.raises(OptionError, match="install graphprune\\[torch\\]"):
        host.parameter_gradients(host.example_inputs(), ["first.weight"], None)


def test_a_file_that_takes_too_much_memory_is_not_run() -> None:
    nodes = [
        onnx.helper.make_node("Expand", ["x", "shape"], ["big"]),
        onnx.helper.make_node("ReduceSum", ["big"], ["y"]),
    ]
    shape = onnx.numpy_helper.from_array(np.array([100_000, 1000, 3, 4]), "shape")
    host = OnnxHost.load(model_of(nodes, [shape]))
    with pytest.raises(BoundError):
        host.as_module()


def test_a_loop_that_does_not_end_is_stopped() -> None:
    value = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["c"], ["d"]), onnx.helper.make_node("Add", ["s", "s"], ["t"])],
        "body",
        [value("i", 7, []), value("c", 9, []), value("s", 1, None)],
        [value("d", 9, []), value("t", 1, None)],
    )
    go = onnx.numpy_helper.from_array(np.array(True), "on")  # noqa: FBT003
    module = OnnxModule(model_of([onnx.helper.make_node("Loop", ["", "on", "x"], ["y"], body=body)], [go]))
    with gp.bounded(seconds=1), pytest.raises(BoundError, match="more than 1 seconds"):
        module({"x": X})
