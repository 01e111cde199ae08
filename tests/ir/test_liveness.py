"""Producers, users and liveness of graphs, against a plain search."""

import itertools

import numpy as np
import pytest

from graphprune.ir.graph import Graph, Node, Value
from graphprune.ir.liveness import flow_of, live_values, part_of


def net(nodes, outputs):
    """A graph of ``result: operands``; what nobody makes is an input where its name is short, else stored."""
    made = {name for results, _ in nodes for name in results.split()}
    names = dict.fromkeys(name for results, operands in nodes for name in (*results.split(), *operands.split()))
    kinds = {name: "computed" if name in made else "input" if len(name) == 1 else "parameter" for name in names}
    values = {name: Value(name, (2,), kind=kinds[name]) for name in names if name != "-"}
    found = [
        Node(f"n{i}", "Op", tuple(None if each == "-" else each for each in operands.split()), tuple(results.split()))
        for i, (results, operands) in enumerate(nodes)
    ]
    return Graph(values, tuple(found), tuple(name for name in values if kinds[name] == "input"), tuple(outputs))


CHAIN = net([("a", "x w1"), ("b", "a a"), ("c d", "b - w1"), ("e", "c"), ("f", "d x"), ("g", "f")], ["e", "f"])


def test_who_makes_and_who_reads_a_value():
    assert CHAIN.producers == {"a": 0, "b": 1, "c": 2, "d": 2, "e": 3, "f": 4, "g": 5}
    assert CHAIN.users == {"x": (0, 4), "w1": (0, 2), "a": (1, 1), "b": (2,), "c": (3,), "d": (4,), "f": (5,)}
    assert [node.name for node in CHAIN.readers("a")] == ["n1"]
    assert (CHAIN.n_uses("a"), CHAIN.n_uses("g"), CHAIN.readers("g")) == (2, 0, ())
    assert CHAIN.producer("d") is CHAIN.nodes[2]
    assert CHAIN.producer("x") is None


def test_what_outputs_need():
    assert live_values(CHAIN) == {*"xabcdef", "w1"}
    assert flow_of(CHAIN).needed(["f"]) == {0, 1, 2, 4}
    assert flow_of(CHAIN).needed(["f"], {"b"}) == {2, 4}
    assert flow_of(CHAIN).needed(["x", "w1"]) == set()
    assert live_values(net([("a", "x")], ["x"])) == {"x"}


def random_net(rng, n):
    names = ["x", "y", "w1", "w2"]
    nodes = []
    for i in range(n):
        operands = rng.choice([*names, "-"], rng.integers(1, 4))
        results = [f"v{i}"] if rng.random() < 0.8 else [f"v{i}", f"u{i}"]
        nodes.append((" ".join(results), " ".join(operands)))
        names += results
    return net(nodes, list(rng.choice(names, 2)))


@pytest.mark.parametrize("seed", range(40))
def test_parts_one_after_the_other_give_what_they_are_asked_for(seed):
    rng = np.random.default_rng(seed)
    graph, n = random_net(rng, 12), 3
    flow = flow_of(graph)
    asked = [list(rng.choice(list(graph.values), rng.integers(1, 3))) for _ in range(n)]
    stored = {value.name for value in graph.stored}
    there, run = {*graph.inputs}, set()
    for at, outputs in enumerate(asked):
        later = list(itertools.chain(*asked[at + 1 :]))
        part = part_of(flow, there, outputs, later)
        assert part.given == there
        got = {*there, *stored}
        for i in sorted(part.nodes):  # every operand is there when its node runs
            assert {name for name in graph.nodes[i].operands if name} <= got
            got |= {*flow.results(i)}
        assert {*outputs} <= got
        assert part.nodes == flow.needed(outputs, there)  # and nothing runs for nothing, or twice
        assert not part.nodes & run
        run |= part.nodes
        assert part.carried <= got
        for name in part.carried:  # nothing is carried for nothing
            less = part.carried - {name}
            assert flow.needed(later, less) != flow.needed(later, part.carried) or name in {*later, *graph.inputs}
        there = {*part.carried}
