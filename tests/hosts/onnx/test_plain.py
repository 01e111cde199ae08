"""Models that need no normalising: taken as they are, they are byte for byte what the normalising passes make of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from graphprune.hosts.onnx import load, plain
from tools.bench import startup


def weight(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def made(nodes, stored, *, inputs=("x",), **more):
    """A model of four features in and out."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in (*inputs, "y")]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "made", values[:-1], values[-1:], tensors)
    return helper.make_model(graph, **{"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 9, **more})


def two(op="Relu", **attributes):
    """A layer, and what follows it."""
    return [helper.make_node("MatMul", ["x", "w"], ["a"], "first"), helper.make_node(op, ["a"], ["y"], **attributes)]


def described():
    model = made(two(), {"w": weight(4, 4)}, doc_string="about", producer_name="somebody")
    helper.set_model_props(model, {"b": "2", "a": "1"})
    model.graph.node[1].metadata_props.add(key="pkg.scope", value="here")
    model.graph.node[0].metadata_props.add(key="z", value="")
    model.graph.node[0].metadata_props.add(key="k", value="v")
    model.graph.node[0].domain = model.graph.node[0].doc_string = ""
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 4]))
    return model


PLAIN = {
    "chain without names": lambda: startup.chain(16),
    "residual": lambda: startup.residual(10),
    "many tensors": lambda: startup.stored(6),
    "large weights": lambda: startup.chain(8, 64),
    "described": described,
    "attributes": lambda: made(two("Elu", alpha=0.5, name="elu"), {"w": weight(4, 4)}),
    "a weight used twice": lambda: made(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
            helper.make_node("MatMul", ["a", "w"], ["y"], "second"),
        ],
        {"w": weight(4, 4)},
    ),
    "an older IR": lambda: made(two(), {"w": weight(4, 4)}, ir_version=3),
}
OTHERS = {
    "unsorted": lambda: made(two()[::-1], {"w": weight(4, 4)}),
    "a constant node": lambda: made(
        [
            helper.make_node("Constant", [], ["w"], "stored", value=numpy_helper.from_array(weight(4, 4), "w")),
            *two(name="relu"),
        ],
        {},
    ),
    "equal names": lambda: made(two(name="first"), {"w": weight(4, 4)}),
    "a name like those that are given": lambda: made(two(name="node_1"), {"w": weight(4, 4)}),
    "an input with a default": lambda: made(two(), {"w": weight(4, 4)}, inputs=("x", "w")),
    "the same weight by another name": lambda: made(
        [helper.make_node("Identity", ["v"], ["w"], "again"), *two()], {"v": weight(4, 4)}
    ),
    "one number for two uses": lambda: made(
        [
            helper.make_node("Mul", ["x", "ones"], ["a"], "first"),
            helper.make_node("Mul", ["a", "ones"], ["y"], "second"),
        ],
        {"ones": np.ones(4, np.float32)},
    ),
    "a branch": lambda: made(
        [
            helper.make_node(
                "If",
                ["c"],
                ["y"],
                "if",
                **{
                    f"{side}_branch": helper.make_graph(
                        [helper.make_node(op, ["x"], [side], side)],
                        side,
                        [],
                        [helper.make_empty_tensor_value_info(side)],
                    )
                    for side, op in (("then", "Relu"), ("else", "Neg"))
                },
            )
        ],
        {"c": np.array([True])},
    ),
    "a spelled-out domain": lambda: made(two(domain="ai.onnx"), {"w": weight(4, 4)}),
}


def both_ways(source, monkeypatch):
    """The model as it is loaded, and as the passes normalise it; whether the first was taken as it is."""
    taken = []

    def noted(*arguments):
        found = plain.taken_as_it_is(*arguments)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(load, "taken_as_it_is", noted)
    loaded = load.load_model(source)
    monkeypatch.setattr(load, "taken_as_it_is", lambda *_: None)
    return loaded, load.load_model(source), taken == [True]


def same(one, other):
    assert one.proto.SerializeToString(deterministic=True) == other.proto.SerializeToString(deterministic=True)
    assert [*one.store] == [*other.store]
    assert all(one.store[name].numpy().tobytes() == other.store[name].numpy().tobytes() for name in one.store)
    assert (one.uses, one.held, one.files, one.defaults) == (other.uses, other.held, other.files, other.defaults)


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_normal_is_taken_as_it_is(name, monkeypatch):
    loaded, wanted, as_it_is = both_ways(PLAIN[name](), monkeypatch)
    assert as_it_is
    same(loaded, wanted)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_normal_is_normalised(name, monkeypatch):
    loaded, wanted, as_it_is = both_ways(OTHERS[name](), monkeypatch)
    assert not as_it_is
    same(loaded, wanted)


def test_external_data_is_mapped_from_where_it_lies(tmp_path, monkeypatch):
    model = startup.chain(8, 64)
    convert_model_to_external_data(model, location="weights", size_threshold=0)
    onnx.save(model, tmp_path / "model.onnx")
    loaded, wanted, as_it_is = both_ways(tmp_path / "model.onnx", monkeypatch)
    assert as_it_is
    assert {tmp_path / "weights"} == loaded.files
    same(loaded, wanted)


def test_the_model_in_memory_is_left_as_it_is():
    model = startup.chain(8)
    before = model.SerializeToString(deterministic=True)
    load.load_model(model)
    assert before == model.SerializeToString(deterministic=True)
