"""The analysis: groups, kinds, sites, reasons, and the dependency graph."""

import networkx as nx
import pytest
from graphs import RESIDUAL, gqa_attention

from graphprune.analysis.dependency import DependencyGraph
from graphprune.analysis.groups import analyze_graph, multiplicity
from graphprune.errors import RuleError
from graphprune.ir.dims import Factor, concat, factors_of, product
from graphprune.ir.text import parse_graph, print_graph
from graphprune.planning.blockers import list_blockers


def summary(analysis):
    return [(g.name, g.kind, g.size, [f"{s.tensor}[{s.axis}]" for s in g.sites]) for g in analysis.groups]


def test_a_residual_stream_is_one_group():
    assert summary(analyze_graph(parse_graph(RESIDUAL))) == [
        ("stem.weight[0]", "channel", 16, ["stem.weight[0]", "a.weight[1]", "b.weight[0]", "fc.weight[1]"]),
        ("a.weight[0]", "channel", 24, ["a.weight[0]", "b.weight[1]"]),
    ]


def test_grouped_query_attention_has_four_groups():
    assert summary(analyze_graph(gqa_attention())) == [
        ("wq[0]", "kv-group", 2, ["wq[0]", "wk[0]", "wv[0]", "wo[1]"]),
        ("wq[0]#2", "query-head", 4, ["wq[0]", "wo[1]"]),
        ("wq[0]#3", "qk-dim", 16, ["wq[0]", "wk[0]"]),
        ("wv[0]", "value-dim", 16, ["wv[0]", "wo[1]"]),
    ]


def test_groups_partition_the_sites():
    """Every unfixed factor of a parameter belongs to exactly one group, at exactly its sites."""
    for graph in (parse_graph(RESIDUAL), gqa_attention()):
        analysis = analyze_graph(graph)
        seen = set()
        for group in analysis.groups:
            for site in group.sites:
                assert (site.tensor, site.axis, group.factor) not in seen
                seen.add((site.tensor, site.axis, group.factor))
        expected = {
            (value.name, axis, factor)
            for value in graph.stored
            for axis, dim in enumerate(analysis.layouts[value.name])
            for factor in factors_of(dim)
            if factor not in analysis.fixed
        }
        assert seen == expected


def test_inputs_and_outputs_are_kept_with_a_reason():
    analysis = analyze_graph(parse_graph(RESIDUAL))
    assert [str(reason) for reason in analysis.site_reasons("stem.weight", 1)] == ["axis of the model's input 'x'"]
    assert [str(reason) for reason in analysis.site_reasons("fc.weight", 0)] == ["axis of the model's output 'y'"]


def test_an_unknown_operator_is_a_barrier():
    text = RESIDUAL.replace("relu: r = relu(a) : n:2 c:24 h:8 w:8 -> n c h w", "odd: r = odd(a) : barrier")
    analysis = analyze_graph(parse_graph(text))
    assert [group.name for group in analysis.groups] == ["stem.weight[0]"]
    assert [str(reason) for reason in analysis.site_reasons("a.weight", 0)] == [
        "no coupling rule for 'odd' (node 'odd')"
    ]


def test_blockers_are_merged_and_ranked_by_what_they_cost():
    text = RESIDUAL.replace("relu: r = relu(a) : n:2 c:24 h:8 w:8 -> n c h w", "odd: r = odd(a) : barrier")
    text = text.replace("add: t = add(s, b) : n:2 c:16 h:8 w:8, n c h w -> n c h w", "odd2: t = odd(b) : barrier")
    found = list_blockers(analyze_graph(parse_graph(text)))
    # b.weight and fc.weight are whole; a.weight can still lose inputs
    assert [(b.reason.text, b.reason.node, b.shown, b.parameters, b.touched) for b in found] == [
        ("no coupling rule for 'odd'", "odd", "a.weight[0] and 3 more axes", 544, 928),
        ("axis of the model's output 'y'", "", "fc.weight[0]", 160, 160),
        ("fixed by the operator", "stem", "stem.weight[2] and 1 more axis", 0, 432),
        ("axis of the model's input 'x'", "", "stem.weight[1]", 0, 432),
    ]


def test_protected_dimensions_stay_whole():
    analysis = analyze_graph(parse_graph(RESIDUAL), [("b.weight", 1, "protected by 'b'")])
    assert [group.name for group in analysis.groups] == ["stem.weight[0]"]
    assert [str(reason) for reason in analysis.site_reasons("a.weight", 0)] == ["protected by 'b'"]


def test_a_rule_of_the_wrong_rank_is_an_error():
    text = RESIDUAL.replace("n:2 c:24 h:8 w:8 -> n c h w", "n:2 c:24 -> n c")
    with pytest.raises(RuleError) as error:
        analyze_graph(parse_graph(text))
    assert str(error.value) == (
        "the rule of 'relu' (node 'relu') gives operand 'a' 2 axes, it has 4; mend the rule's builder"
    )


def test_graph_text_round_trip():
    for text in (print_graph(parse_graph(RESIDUAL)), print_graph(gqa_attention())):
        assert print_graph(parse_graph(text)) == text


def test_dependency_graph_connects_each_group():
    analysis = analyze_graph(gqa_attention())
    graph = DependencyGraph(analysis)
    for group in analysis.groups:
        assert nx.is_connected(graph.of_group(group))
    assert [op for op, _ in graph.path(analysis.groups[0], "wq[0]", "wk[0]")] == [
        "linear", "view", "transpose", "sdpa", "transpose", "view", "linear",
    ]  # fmt: skip


def test_dependency_graph_exports(tmp_path):
    graph = DependencyGraph(analyze_graph(parse_graph(RESIDUAL)))
    graph.save_graphml(tmp_path / "graph.graphml")
    assert nx.read_graphml(tmp_path / "graph.graphml").number_of_edges() == graph.graph.number_of_edges()
    dot = graph.to_dot()
    assert '"stem.weight[0]" [shape=box, tooltip="stem.weight[0]"];' in dot
    assert dot.count(" -- ") == graph.graph.number_of_edges()


def test_multiplicity_counts_positions_of_a_unit():
    h, d = Factor("h", 3), Factor("d", 4)
    assert multiplicity(product(h, d), h) == 4
    assert multiplicity(product(h, d), d) == 3
    assert multiplicity(concat(d, d), d) == 2
    assert multiplicity(concat(h, d), d) == 1
