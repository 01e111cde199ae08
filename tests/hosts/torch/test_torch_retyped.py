"""What is saved is what the module is now: its element types, its layout in memory, the names of its sizes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.export import Dim

import graphprune as gp
from graphprune.errors import GraphpruneWarning, OutputError, ProofError
from graphprune.hosts import parity
from graphprune.runtime import sessions as runtime

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NAMES = onnx.TensorProto.DataType.Name


class Net(nn.Module):
    """With a type of its own in the graph: a table that is made in the type of the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        y = torch.relu(self.b(torch.relu(self.norm(self.a(x)))))
        scale = torch.full((1, 1, 1, 1), 0.5, dtype=self.a.weight.dtype)
        return self.head((y * scale).mean((2, 3)))


@cache
def once() -> gp.Result:
    return gp.prune(Net().eval(), (X,), target={"macs": 0.5}, align=1, verify=False)


def pruned() -> gp.Result:
    """A result with a module of its own."""
    return replace(once(), module=copy.deepcopy(once().module))


def types(model: onnx.ModelProto) -> set[str]:
    values = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    floats = [tensor.data_type for tensor in model.graph.initializer if "FLOAT" in NAMES(tensor.data_type)]
    doubles = [tensor.data_type for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.DOUBLE]
    return {NAMES(kind) for kind in (*values, *floats, *doubles)}


RETYPED: dict[str, tuple[Callable[[nn.Module], Any], str, str]] = {
    "half": (nn.Module.half, "FLOAT16", ""),
    "bfloat16": (nn.Module.bfloat16, "BFLOAT16", "onnxruntime has not checked '"),
    "double": (nn.Module.double, "DOUBLE", "', onnx's reference evaluator in float64 has: onnxruntime cannot load it"),
    "as it was": (lambda module: module, "FLOAT", ""),
    "channels last": (lambda module: module.to(memory_format=torch.channels_last), "FLOAT", ""),
}


@pytest.mark.parametrize("name", RETYPED)
def test_a_file_has_the_type_of_the_module(name: str, tmp_path: Path) -> None:
    change, kind, warning = RETYPED[name]
    result = pruned()
    change(result.module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result.save_onnx(tmp_path / "net.onnx")
    texts = [str(each.message) for each in caught if issubclass(each.category, GraphpruneWarning)]
    assert len(texts) == bool(warning)
    assert all(warning in text for text in texts)
    assert types(onnx.load(tmp_path / "net.onnx")) == {kind}
    if not warning:
        weights = next(result.module.parameters())
        session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"x": X.to(weights.dtype).numpy()})
        with torch.no_grad():
            expected = result.module.float()(X).numpy()
        np.testing.assert_allclose(got, expected, atol=1e-5 if kind == "FLOAT" else 5e-3)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # deepcopy of a graph module
def test_a_graph_module_of_another_type(tmp_path: Path) -> None:
    """The type of what a graph makes is written in it: without such tensors it is of the type of its weights."""
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    result = gp.prune(net, (torch.randn(2, 4),), target={"macs": 0.5}, align=1, verify=False)
    replace(result, module=copy.deepcopy(result.host.module).half()).save_onnx(tmp_path / "net.onnx")
    assert types(onnx.load(tmp_path / "net.onnx")) == {"FLOAT16"}
    result = pruned()
    with pytest.raises(
        OutputError, match="^the module's weights are of type float16 now, and so it cannot be traced: "
    ):
        replace(result, module=copy.deepcopy(result.host.module).half()).save_onnx(tmp_path / "net.onnx")


def test_types_that_do_not_go_together_are_one_clear_error(tmp_path: Path) -> None:
    result = pruned()
    result.module.b.half()
    with pytest.raises(OutputError) as caught:
        result.save_onnx(tmp_path / "net.onnx")
    assert str(caught.value) == (
        "the module's weights are of type float16 and float32 now, and so it cannot be traced: Input type (float) and "
        "bias type (c10::Half) should be the same; convert all of it (module.half()), or let its forward cast between "
        "layers of several types"
    )
    assert not (tmp_path / "net.onnx").exists()


def test_a_wrong_file_of_another_type_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = pruned()
    result.module.double()
    run, wide = runtime.run_file, gp.api.OnnxHost.run
    monkeypatch.setattr(runtime, "run_file", lambda *args: {k: v * 1.01 for k, v in run(*args).items()})
    monkeypatch.setattr(
        gp.api.OnnxHost, "run", lambda *args, **options: {k: v * 1.01 for k, v in wide(*args, **options).items()}
    )
    with pytest.raises(ProofError, match=r"^the proof 'reference evaluator' failed"):
        result.save_onnx(tmp_path / "net.onnx")
    result.module.half()
    single = parity.run_single
    monkeypatch.setattr(parity, "run_single", lambda *args: {k: v * 1.01 for k, v in single(*args).items()})
    with pytest.raises(ProofError, match=r"^the proof 'onnxruntime' failed"):
        result.save_onnx(tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_layout_in_memory_stays() -> None:
    model = Net().eval().to(memory_format=torch.channels_last)
    module = gp.prune(model, (X,), target={"macs": 0.5}, align=1, verify=False).module
    assert module.a.weight.shape[0] < 16
    for layer in (module.a, module.b):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert not layer.weight.is_contiguous()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x, others):
        return {"sum": self.down(torch.relu(self.up(x))) + others["y"], "twice": torch.cat((x, x), 0)}


def sizes(path: Path) -> dict[str, list[str | int]]:
    graph = onnx.load(path).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


BATCH = Dim("batch")
NAMED: dict[str, tuple[Any, Any]] = {
    "by name": ({"x": {0: BATCH}, "others": {"y": {0: BATCH}}}, dict),
    "by position": (({0: BATCH}, {"y": {0: BATCH}}), tuple),
    "all axes": (({0: BATCH, 1: None}, {"y": (BATCH, None)}), tuple),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_size_keeps_its_name(name: str, tmp_path: Path) -> None:
    shapes, kind = NAMED[name]
    x, others = torch.randn(3, 4), {"y": torch.randn(3, 4)}
    given = {"x": x, "others": others} if kind is dict else (x, others)
    gp.export_onnx(Two().eval(), given, tmp_path / "net.onnx", dynamic_shapes=shapes)
    found = sizes(tmp_path / "net.onnx")
    assert found["x"] == ["batch", 4]
    assert found["sum"] == ["batch", 4]
    assert found["twice"] == ["2*batch", 4]


def test_a_size_keeps_its_name_in_another_type(tmp_path: Path) -> None:
    given, shapes = (torch.randn(3, 4), {"y": torch.randn(3, 4)}), NAMED["by position"][0]
    result = gp.prune(Two().eval(), given, target={"macs": 0.5}, align=1, dynamic_shapes=shapes, verify=False)
    result.module.half()
    result.save_onnx(tmp_path / "net.onnx")
    assert sizes(tmp_path / "net.onnx")["x"] == ["batch", 4]
