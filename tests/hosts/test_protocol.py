"""What hosts offer: both wings all of it, and an analysis-only host no more than it must."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import small_model

from graphprune.analysis.groups import analyze_graph
from graphprune.hosts.host import Host, Model, Refittable, Runnable
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.program import Program
from graphprune.importance.differentiable import Differentiable
from graphprune.look import looked
from graphprune.pipeline.edits import smaller


def members(protocol):
    """The public members that a protocol names, with those of its bases."""
    return {name for base in protocol.__mro__ if base is not object for name in vars(base) if not name.startswith("_")}


WINGS = {"onnx": OnnxHost, "torch": TorchHost, "torch program": Program}


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_offers_all_that_a_compilation_asks_for(wing):
    missing = members(Host) - {"keeps_code", "made_by_code", "save_onnx"} - set(dir(WINGS[wing]))
    assert sorted(missing) == []
    assert wing == "torch program" or members(Host) <= set(dir(WINGS[wing]))  # a program alone is no user's model


def test_protocols_are_wings_of_their_own():
    assert members(Host) == members(Runnable) | members(Refittable)
    assert members(Runnable) & members(Refittable) == members(Model)


@pytest.fixture
def host(tmp_path):
    path = tmp_path / "net.onnx"
    small_model(path)
    return OnnxHost.load(path)


def test_who_has_gradients(host):
    traced = TorchHost.trace(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)).eval(), torch.ones(1, 4))
    assert isinstance(traced, Differentiable)
    assert isinstance(host, Differentiable)  # its graph is run by PyTorch
    assert not isinstance(Bare(host), Differentiable)


class Bare:
    """A host of which nothing but a model is there."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name not in members(Model):
            raise AttributeError(f"a model has no '{name}'")
        found = getattr(self.inner, name)
        if name in ("edited", "folded", "without_dead_nodes"):
            return lambda *given: Bare(found(*given))
        return found


def test_a_model_alone_is_analysed_cut_and_saved(host, tmp_path: Path):
    bare = Bare(host)
    with pytest.raises(AttributeError, match="a model has no 'run'"):
        bare.run({})
    analysis = looked(bare, ())
    assert [group.name for group in analysis.groups] == [g.name for g in analyze_graph(host.folded().graph()).groups]
    kept = {group.factor: np.arange(group.size // 2) for group in analysis.groups if group.size > 1}
    assert kept
    cut = smaller(bare.folded(), analysis, kept)
    cut.save_onnx(tmp_path / "cut.onnx")
    smaller(host.folded(), analysis, kept).save_onnx(tmp_path / "same.onnx")
    assert (tmp_path / "cut.onnx").read_bytes() == (tmp_path / "same.onnx").read_bytes()
    assert sum(v.n_elements for v in cut.graph().stored) < sum(v.n_elements for v in host.graph().stored)
