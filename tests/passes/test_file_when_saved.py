"""The ONNX file of a PyTorch model is exported once, when it is saved, and proven before it is in its place."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.hosts.torch.host import TorchHost

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


@pytest.fixture
def exports(monkeypatch):
    """The files that torch.onnx was asked for."""
    from graphprune.hosts.torch import onnx_export

    right, seen = onnx_export.save, []

    def save(*args, **options):
        seen.append(args[4].name)
        right(*args, **options)

    monkeypatch.setattr(onnx_export, "save", save)
    return seen


def pruned(**options):
    return gp.prune(net(), (X,), target={"macs": 0.5}, criterion="l2", **options)


@pytest.mark.parametrize(
    ("options", "at_once", "checks"),
    [
        ({}, 0, ["onnxruntime"]),
        ({"verify": False}, 0, []),
        ({"export": True}, 1, ["onnxruntime"]),
        ({"export": True, "verify": False}, 0, []),
    ],
)
def test_a_file_is_exported_once(options, at_once, checks, exports, tmp_path):
    result = pruned(**options)
    assert len(exports) == at_once
    assert ("onnxruntime" in [check.name for check in result.report.proof]) is bool(at_once)
    path = tmp_path / "net.onnx"
    found = result.save_onnx(path)
    assert len(exports) == 1
    assert [check.name for check in found] == checks
    assert all(check.passed for check in found)
    onnx.checker.check_model(str(path), full_check=True)
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]
    assert gp.Session(path).host.metadata["graphprune.targets"] == "macs=0.5"


def test_a_trained_module_is_exported_anew(exports, tmp_path):
    result = pruned(export=True)
    with torch.no_grad():
        result.module[0].weight.mul_(3)
    result.save_onnx(tmp_path / "net.onnx")
    assert len(exports) == 2
    assert np.array_equal(gp.Session(tmp_path / "net.onnx").host.read("0.weight"), result.module[0].weight.detach())


def test_a_wrong_file_is_not_left(monkeypatch, tmp_path):
    result, save = pruned(), TorchHost.save_onnx

    def wrong(self, *args, **options):
        save(self.replaced({"0.weight": self.read("0.weight") * 1.01}), *args, **options)

    monkeypatch.setattr(TorchHost, "save_onnx", wrong)
    with pytest.raises(gp.ProofError, match="^the proof 'onnxruntime' failed"):
        result.save_onnx(tmp_path / "net.onnx")
    assert not [*tmp_path.iterdir()]


def test_how_far_outputs_moved_is_measured_when_it_is_read():
    model = net()
    first, second = (gp.prune(model, (X,), target={"macs": 0.5}, criterion="l2").report for _ in range(2))
    assert callable(vars(first)["moved"])
    moved = first.moved
    assert moved.samples >= 4
    assert first.moved is moved
    assert "moved" in first.to_dict()
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert second.moved is None  # it would be about other weights
