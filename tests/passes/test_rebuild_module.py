"""A module is rebuilt wherever the host can, whatever kind of host it is."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from graphs import save_net
from torch import nn

import graphprune as gp
from graphprune.passes import RebuildModule
from graphprune.passes.rebuild_module import Rebuildable


def cut(model, example=None):
    return gp.prune(model, example, target="params=0.6", align=1, verify=False).state


class Other:
    """A host of another kind, which knows how to make modules."""

    kind = "other"

    def rebuilt(self, state):
        return SimpleNamespace(module=("made of", state.host.kind), notes=("a note",), attributes=(), checks=("seen",))


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return cut(nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)).eval(), (torch.randn(2, 4),))


@pytest.mark.parametrize("proof", [True, False])
def test_any_host_that_can_is_asked(state, proof):
    given = replace(state, host=Other(), module=None, notes=(), checks=())
    made = RebuildModule(proof=proof).run(given)
    assert (made.module, made.notes) == (("made of", "other"), ("a note",))
    assert made.checks == (("seen",) if proof else ())


def test_the_hosts_that_can(state, tmp_path):
    import numpy as np
    import onnx

    assert isinstance(state.host, Rebuildable)
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(4, 12)), "b": rng.normal(size=(12, 3))}
    nodes = [onnx.helper.make_node("MatMul", ["x", "a"], ["h"]), onnx.helper.make_node("MatMul", ["h", "b"], ["y"])]
    file = cut(save_net(tmp_path / "net.onnx", nodes, weights, (4, 3)))
    assert not isinstance(file.host, Rebuildable)
    assert RebuildModule().run(file).module is None
