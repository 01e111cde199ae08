"""Work that grows with the model and not with its square: lines of ours that run are counted, no seconds measured."""

import sys
from pathlib import Path

import pytest

import graphprune as gp
from graphprune.report.data import inspect_analysis
from tools.bench import startup

OURS = str(Path(gp.__file__).parent)


def lines_of(work):
    """How many lines of graphprune run, each turn of a comprehension or generator for itself."""
    count = 0

    def line(frame, event, argument):
        nonlocal count
        count += event == "line"
        return line

    def call(frame, event, argument):
        return line if frame.f_code.co_filename.startswith(OURS) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def growth(work, n=350):
    """How much more is added by doubling the larger of two sizes than by doubling the smaller: 2 if linear, else 4."""
    a, b, c = (lines_of(lambda n=n: work(n)) for n in (n, 2 * n, 4 * n))
    return (c - b) / (b - a)


@pytest.mark.parametrize("make", [startup.chain, startup.residual, startup.scaled, startup.stored])
def test_looking_at_a_model_is_linear(make):
    inspect_analysis(gp.analyze(make(40)))  # what is imported and cached once is not counted
    assert growth(lambda n: inspect_analysis(gp.analyze(make(n)))) == pytest.approx(2, abs=0.25)


def test_the_count_sees_a_square(monkeypatch):
    from graphprune.analysis import groups

    found = groups.find_normalizers
    monkeypatch.setattr(groups, "find_normalizers", _squared(found))
    assert growth(lambda n: gp.analyze(startup.chain(n)), 120) > 2.5


def _squared(function):
    scope = {"function": function}
    text = "def run(graph, *given):\n    sum(1 for a in graph.nodes for b in graph.nodes)\n    return function(graph, *given)"
    exec(compile(text, f"{OURS}/planted.py", "exec"), scope)
    return scope["run"]
