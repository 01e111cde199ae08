"""Graphs of very many operators: looked at once an operator, and run without the runtime's own optimiser."""

import numpy as np
import pytest

from graphprune.analysis import adapters, blocks, groups
from graphprune.analysis.groups import analyze_graph
from graphprune.hosts.onnx import runtime
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.planning.cost import build_cost_model
from tools.bench import startup


@pytest.mark.parametrize(("most", "optimised"), [(15, [False]), (16, [True])])
def test_the_optimiser_is_for_graphs_that_it_is_worth_its_time(most, optimised, monkeypatch):
    host = OnnxHost.load(startup.chain(16))
    x = host.example_inputs()
    wanted = host.run(x)["y"]
    asked = []
    made = runtime._session
    monkeypatch.setattr(runtime, "OPTIMISED_NODES", most)
    monkeypatch.setattr(runtime, "_session", lambda *a, **k: asked.append(k["optimised"]) or made(*a, **k))
    assert np.allclose(wanted, OnnxHost.load(startup.chain(16)).run(x)["y"], atol=1e-5)
    assert asked == optimised


def test_what_only_the_optimiser_makes_run_is_optimised(monkeypatch):
    made = runtime._session

    def refusing(*arguments, optimised, **keywords):
        if not optimised:
            raise RuntimeError("no kernel")
        return made(*arguments, optimised=optimised, **keywords)

    monkeypatch.setattr(runtime, "OPTIMISED_NODES", 0)
    monkeypatch.setattr(runtime, "_session", refusing)
    host = OnnxHost.load(startup.chain(4))
    assert host.run(host.example_inputs())["y"].shape == (1, startup.WIDTH)


def test_shares_of_all_groups_are_those_of_each():
    model = build_cost_model(analyze_graph(OnnxHost.load(startup.residual(20)).graph()))
    for metric in ("macs", "params", "bytes"):
        function, total = model.functions[metric], model.cost(metric)
        each = {group.name: function.share(i, model.full) / total for i, group in enumerate(model.groups)}
        assert each == model.shares(metric)
        assert len(each) > 3


def test_blocks_and_adapters_share_what_is_found(monkeypatch):
    """Work in proportion to the graph: adapters of a graph are looked for once by the analysis and its blocks."""
    looked = []
    find = adapters.find_adapters
    for place in (groups, blocks):
        monkeypatch.setattr(place, "find_adapters", lambda graph: looked.append(graph) or find(graph), raising=False)
    analysis = analyze_graph(OnnxHost.load(startup.residual(20)).graph())
    assert len(analysis.blocks) == 4
    assert len(looked) == 1
