"""Budgets, reports and plans speak of what files hold: a constant that is stored once for several uses counts once."""

import json
from math import prod

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune as gp
from graphprune.errors import PlanError
from graphprune.planning.plan import PruningPlan

FLOAT = TensorProto.FLOAT


def model_of(nodes, stored, inputs, outputs, **more):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
    values = [[helper.make_tensor_value_info(n, FLOAT, s) for n, s in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "net", *values, tensors, **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def weight(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def full(value, n):
    return np.full(n, value, "f4")


def convolutions(n=3, width=16, more=()):
    """As exporters write it: the batch norms of all layers read the same four vectors."""
    rng = np.random.default_rng(0)
    stored = {}
    nodes, x, c = [], "x", 3
    for i in range(n):
        stored[f"w{i}"] = rng.standard_normal((width, c, 1, 1)).astype("f4")
        nodes.append(helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"]))
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", "g", "b", "m", "v"], [f"n{i}"]))
        nodes.append(helper.make_node("Relu", [f"n{i}"], [f"r{i}"]))
        x, c = f"r{i}", width
    stored["wo"] = rng.standard_normal((4, width, 1, 1)).astype("f4")
    nodes.append(helper.make_node("Conv", [x, "wo"], ["y"]))
    stored.update({name: full(value, width) for name, value in (("g", 1), ("b", 0), ("m", 0), ("v", 1))})
    stored.update(more)
    return model_of(nodes, stored, {"x": [2, 3, 8, 8]}, {"y": [2, 4, 8, 8]})


def with_dead_weights():
    model = convolutions(more={"dead": weight(10, 10), "idle": weight(10, 10, seed=1), "table": np.arange(50)})
    model.graph.node.append(helper.make_node("Relu", ["idle"], ["unread"]))
    return model


def with_constant_nodes():
    model = convolutions()
    for name in ("w1", "g", "b"):
        tensor = next(each for each in model.graph.initializer if each.name == name)
        model.graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))
        model.graph.initializer.remove(tensor)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["half"], value_float=0.5))
    model.graph.node.append(helper.make_node("Mul", ["y", "half"], ["z"]))
    model.graph.output[0].name = "z"
    return model


def with_sparse_weight():
    model = convolutions()
    dense = next(each for each in model.graph.initializer if each.name == "w1")
    array = numpy_helper.to_array(dense).copy()
    array[np.abs(array) < 1] = 0
    model.graph.initializer.remove(dense)
    places = np.flatnonzero(array)
    values = numpy_helper.from_array(array.ravel()[places], "w1")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places, "at"), array.shape)
    model.graph.sparse_initializer.append(sparse)
    return model


def layers(n=3, width=32, hidden=64):
    """Pre-norm MLPs: unit scales and zero biases of all layers are one vector each, and one shape does for all."""
    stored = {
        "one": full(1, width),
        "zero": full(0, width),
        "none": full(0, hidden),
        "shape": np.array([2, -1, hidden]),
    }
    nodes, x = [], "x"
    for i in range(n):
        stored[f"up{i}"], stored[f"down{i}"] = weight(width, hidden, seed=i), weight(hidden, width, seed=9 + i)
        nodes += [
            helper.make_node("LayerNormalization", [x, "one", "zero"], [f"l{i}"]),
            helper.make_node("MatMul", [f"l{i}", f"up{i}"], [f"u{i}"]),
            helper.make_node("Reshape", [f"u{i}", "shape"], [f"s{i}"]),
            helper.make_node("Add", [f"s{i}", "none"], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", f"down{i}"], [f"d{i}"]),
            helper.make_node("Add", [f"d{i}", "zero"], [f"e{i}"]),
            helper.make_node("Add", [f"e{i}", x], [f"x{i}"]),
        ]
        x = f"x{i}"
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    return model_of(nodes, stored, {"x": [2, 5, width]}, {"y": [2, 5, width]})


def branches():
    """Both branches of an ``If`` and what comes before read one vector of zeros."""

    def side(name):
        nodes = [
            helper.make_node("Gemm", ["h", f"{name}_up", "zero"], [f"{name}_u"]),
            helper.make_node("Relu", [f"{name}_u"], [f"{name}_r"]),
            helper.make_node("Gemm", [f"{name}_r", f"{name}_down"], [f"{name}_y"]),
        ]
        tensors = [numpy_helper.from_array(weight(32, 32), f"{name}_{part}") for part in ("up", "down")]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", FLOAT, [2, 32])], tensors)

    nodes = [
        helper.make_node("Gemm", ["x", "w", "zero"], ["h"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "limit"], ["c"]),
        helper.make_node("If", ["c"], ["i"], then_branch=side("then"), else_branch=side("else")),
        helper.make_node("Gemm", ["i", "out"], ["y"]),
    ]
    stored = {"w": weight(8, 32), "zero": full(0, 32), "limit": np.float32(0), "out": weight(32, 4)}
    return model_of(nodes, stored, {"x": [2, 8]}, {"y": [2, 4]})


def loop():
    """The body of a loop holds a table of its own."""
    table = numpy_helper.from_array(weight(2, 16), "table")
    body = [
        helper.make_node("Constant", [], ["k"], value=table),
        helper.make_node("Mul", ["state", "k"], ["next"]),
        helper.make_node("Identity", ["on"], ["still"]),
    ]
    boolean = TensorProto.BOOL
    inside = helper.make_graph(
        body,
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", boolean, []),
            helper.make_tensor_value_info("state", FLOAT, [2, 16]),
        ],
        [
            helper.make_tensor_value_info("still", boolean, []),
            helper.make_tensor_value_info("next", FLOAT, [2, 16]),
        ],
    )
    nodes = [
        helper.make_node("Gemm", ["x", "w", "zero"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "zero"], ["u"]),
        helper.make_node("Relu", ["u"], ["s"]),
        helper.make_node("Gemm", ["s", "out"], ["o"]),
        helper.make_node("Loop", ["times", "yes", "o"], ["y"], body=inside),
    ]
    stored = {"w": weight(8, 32), "v": weight(32, 32), "zero": full(0, 32), "out": weight(32, 16)}
    stored.update(times=np.array(2), yes=np.ones((), bool))
    return model_of(nodes, stored, {"x": [2, 8]}, {"y": [2, 16]})


NETS = {
    "convolutions": convolutions,
    "dead weights": with_dead_weights,
    "constant nodes": with_constant_nodes,
    "sparse weight": with_sparse_weight,
    "layers": layers,
    "branches": branches,
    "loop": loop,
}


def graphs_of(graph):
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs_of(attribute.g)


def tensors_of(model):
    """Element type and shape of all that a file stores, by name."""
    for graph in graphs_of(model.graph):
        yield from ((each.name, each.data_type, tuple(each.dims)) for each in graph.initializer)
        yield from ((s.values.name, s.values.data_type, tuple(s.dims)) for s in graph.sparse_initializer)
        for node in graph.node:
            for entry in node.attribute if node.op_type == "Constant" else ():
                scalar = entry.name == "value_float"
                yield node.output[0], *((FLOAT, ()) if scalar else (entry.t.data_type, tuple(entry.t.dims)))


def held(model):
    """Counted without graphprune: floats are parameters, and all tensors have bytes."""
    size = {FLOAT: 4, TensorProto.INT64: 8, TensorProto.BOOL: 1}
    found = list(tensors_of(model))
    return {
        "params": sum(prod(shape) for _, dtype, shape in found if dtype == FLOAT),
        "bytes": sum(prod(shape) * size[dtype] for _, dtype, shape in found),
    }


def names_in(plan, model):
    """The tensors that a plan speaks of, each as the file calls it."""
    data = plan.to_dict()
    for uses in data.get("uses", {}).values():
        for use in uses:  # the node with this result reads the tensor there
            result, _, place = use["use"].rpartition(":")
            node = next(n for graph in graphs_of(model.graph) for n in graph.node if result in n.output)
            assert node.input[int(place)] in data["uses"]
    return {*data["parameters"], *data.get("uses", {}), *data["shapes"]}


@pytest.mark.parametrize("metric", ["params", "bytes"])
@pytest.mark.parametrize("net", NETS)
def test_report_target_and_plan_are_those_of_the_files(net, metric, tmp_path):
    model = NETS[net]()
    onnx.save(model, tmp_path / "in.onnx", save_as_external_data=net == "layers", location="in.data")
    result = gp.prune(tmp_path / "in.onnx", target={metric: 0.6}, align=1, max_ratio=1, verify=False)
    result.save_onnx(tmp_path / "out.onnx")
    before, after = held(model), held(onnx.load(tmp_path / "out.onnx"))
    for each in ("params", "bytes"):
        cost = result.report.cost(each)
        assert (cost.before, cost.after) == (before[each], after[each])
    assert 0.5 * before[metric] < after[metric] <= 0.6 * before[metric]
    assert names_in(result.plan, model) <= {name for name, *_ in tensors_of(model)}
    result.plan.save(tmp_path / "plan.json")
    gp.apply(tmp_path / "in.onnx", tmp_path / "plan.json", verify=False).save_onnx(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


def test_a_target_of_bytes_holds_though_uses_get_shapes_of_their_own(tmp_path):
    model = layers()
    result = gp.prune(model, target={"bytes": 0.508}, align=1, max_ratio=1, verify=False)
    assert len({row.kept for row in result.report.groups if row.kept < row.size}) > 0
    result.save_onnx(tmp_path / "out.onnx")
    assert held(onnx.load(tmp_path / "out.onnx"))["bytes"] <= 0.508 * held(model)["bytes"]


def test_a_target_is_met_to_one_unit_by_what_the_file_holds(tmp_path):
    model = convolutions(6, 64)
    result = gp.prune(model, target={"params": 0.5}, align=1)
    result.save_onnx(tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    unit = 2 * 64 + 4
    assert 0.5 * held(model)["params"] - unit <= held(written)["params"] <= 0.5 * held(model)["params"]
    kept = {row.kept for row in result.report.groups}
    vectors = [name for name, _, shape in tensors_of(written) if len(shape) == 1]
    assert len(vectors) == 4 * len(kept)  # one for each width
    assert {"g", "b", "m", "v"} <= {*vectors}


def test_copies_that_are_equal_again_have_their_own_name(tmp_path):
    result = gp.prune(convolutions(), target={"params": 0.7}, allocation="uniform", align=4)
    assert {row.kept for row in result.report.groups} == {12}
    result.save_onnx(tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert {each.name for each in written.graph.initializer} == {"w0", "w1", "w2", "wo", "g", "b", "m", "v"}
    assert [list(node.input[1:]) for node in written.graph.node if node.op_type == "BatchNormalization"] == [
        ["g", "b", "m", "v"]
    ] * 3


def test_copies_that_a_refit_makes_unequal_are_stored_apart_and_counted(tmp_path):
    samples = [{"x": weight(2, 3, 8, 8, seed=i)} for i in range(4)]
    result = gp.prune(
        convolutions(), target={"params": 0.7}, allocation="uniform", calibration=samples, compensation="bn", align=4
    )
    result.save_onnx(tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    means = [node.input[3] for node in written.graph.node if node.op_type == "BatchNormalization"]
    assert len({*means}) > 1
    assert result.report.cost("params").after == held(written)["params"]
    assert all(check.passed for check in gp.verify(convolutions(), tmp_path / "out.onnx", result.plan))


def test_a_plan_says_of_each_use_what_it_keeps():
    model = convolutions(2, 8)
    analysis = gp.analyze(model)
    result = gp.prune(model, target={"params": 0.9}, only=("w1[0]",), align=1, verify=False)
    data = result.plan.to_dict()
    kept = list(result.plan.groups[0].kept)
    assert data["format"] == 3
    assert data["parameters"] == {"w1": {"0": kept}, "wo": {"1": kept}}
    assert data["uses"]["g"] == [
        {"name": "g", "use": "n0:1", "axes": {}},
        {"name": "g@n1:1", "use": "n1:1", "axes": {"0": kept}},
    ]
    assert {"g@n1:1", "g"} <= analysis.graph.values.keys()
    assert PruningPlan.from_dict(json.loads(json.dumps(data))) == result.plan


def test_a_plan_of_format_2_is_read(tmp_path):
    result = gp.prune(convolutions(), target={"params": 0.5}, align=1, verify=False)
    data = result.plan.to_dict()
    uses = data.pop("uses")
    data["format"] = 2
    for tensor, listed in uses.items():
        for n, use in enumerate(listed):
            name = f"{tensor}__{n}" if n else tensor
            data["parameters"][name] = use["axes"]
            data["shapes"][name] = [16]
    (tmp_path / "old.json").write_text(json.dumps(data))
    again = gp.apply(convolutions(), tmp_path / "old.json")
    again.save_onnx(tmp_path / "again.onnx")
    result.save_onnx(tmp_path / "out.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    assert again.plan.to_dict()["uses"] == uses
    assert all(check.passed for check in gp.verify(convolutions(), tmp_path / "out.onnx", tmp_path / "old.json"))


def test_the_fingerprint_is_that_of_format_2():
    assert gp.prune(convolutions(), target="params=0.9", verify=False).plan.fingerprint == "d288878992b09f6c"


def test_a_use_that_the_file_lacks_is_refused():
    result = gp.prune(convolutions(), target={"params": 0.5}, align=1, verify=False)
    data = result.plan.to_dict()
    data["uses"]["g"][1]["axes"]["0"][0] += 1
    with pytest.raises(PlanError, match="^what the plan keeps of 'g@n1:1' does not follow from its groups; "):
        gp.apply(convolutions(), PruningPlan.from_dict(data))


def test_an_input_whose_default_is_cut_for_some_uses_is_no_input_any_more(tmp_path):
    model = convolutions(2, 8)
    model.graph.input.append(helper.make_tensor_value_info("g", FLOAT, [8]))
    whole = gp.prune(model, target={"params": 1.0})
    whole.save_onnx(tmp_path / "whole.onnx")
    assert [value.name for value in onnx.load(tmp_path / "whole.onnx").graph.input] == ["x", "g"]
    result = gp.prune(model, target={"params": 0.9}, only=("w1[0]",), align=1)
    result.save_onnx(tmp_path / "out.onnx")
    assert [value.name for value in onnx.load(tmp_path / "out.onnx").graph.input] == ["x"]
