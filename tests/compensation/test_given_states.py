"""Refits of layers whose states are inputs of the model: they are carried past the refits that come before."""

import numpy as np
import onnx
import pytest

import graphprune as gp
from graphprune.compensation.sequential import compensate
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.passes.slice_groups import slice_edits

NET = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[6,4,8] x, float[1,4,10] h, float[1,4,10] c) => (float[6,1,4,10] y)
<float[8,14] first, float[14,12] second, float[1,G,12] w, float[1,G,10] r, float[1,B] b> {
    one = MatMul(x, first)
    two = Tanh(one)
    three = MatMul(two, second)
    four = Tanh(three)
    y = LAYER<hidden_size = 10>(four, w, r, b, , STATES)
}
"""
GATES = {"LSTM": (4, "h, c"), "GRU": (3, "h")}


@pytest.mark.parametrize("kind", GATES)
def test_states_that_are_inputs_are_carried(kind):
    gates, states = GATES[kind]
    text = NET.replace("G,", f"{10 * gates},").replace("B]", f"{20 * gates}]")
    model = onnx.parser.parse_model(text.replace("LAYER", kind).replace("STATES", states))
    rng = np.random.default_rng(0)
    for info in list(model.graph.value_info):
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        values = (rng.standard_normal(shape) * 0.5).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, info.name))
    data = [
        {
            "x": rng.standard_normal((6, 4, 8)).astype(np.float32),
            **{name: rng.standard_normal((1, 4, 10)).astype(np.float32) for name in "hc"},
        }
        for _ in range(6)
    ]
    host, analysis = OnnxHost.load(model).folded(), gp.analyze(model)
    sizes = {group.size: group for group in analysis.groups}
    kept = {sizes[14].factor: np.arange(0, 14, 2), sizes[12].factor: np.arange(0, 12, 2)}
    pruned = host.edited(slice_edits(analysis, kept))
    fitted, rows = compensate(host, pruned, analysis, kept, data)
    assert {row.weight for row in rows} >= {"second", "w"}

    def error(other):
        return sum(float(np.square(host.run(batch)["y"] - other.run(batch)["y"]).sum()) for batch in data)

    assert error(fitted) < 0.7 * error(pruned)
