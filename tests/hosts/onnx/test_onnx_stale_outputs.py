"""What a file says of its outputs and its own operators contradict: exporters write what they saw on one example."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from test_onnx_host import FLOAT, model, node, weight

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.errors import OutputError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.passes.slice_groups import slice_edits
from graphprune.runtime.sessions import run_file

LAYERS = [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "l")]


def net(ends: list[onnx.NodeProto], said: list[int | str], n: int, **constants: np.ndarray) -> onnx.ModelProto:
    """``x -> 12 -> relu -> n`` and what stands behind, declared as an output of some shape; the checker passes it."""
    proto = model(
        [*LAYERS, *ends], {"x": ["batch", 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, n), **constants}, opset=11
    )
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, said))
    onnx.checker.check_model(proto, full_check=True)
    return proto


# traced with one example: whatever has one element is dropped, the axis of examples too
SCALAR = net([node("Squeeze", "l", "s"), node("Sigmoid", "s", "y")], [], 1)
# inference does not follow numbers through floating point, folding does
UNSEEN = net([node("Cast", "sizes", "t", to=7), node("Reshape", "l t", "y")], [3, 5], 5, sizes=np.float32([-1]))


@pytest.mark.parametrize(
    ("proto", "said"), [(SCALAR, []), (UNSEEN, [None])], ids=["a batch of one", "folded before it is written"]
)
@pytest.mark.parametrize("batch", [1, 4])
def test_outputs_that_were_declared_wrong_are_written(
    proto: onnx.ModelProto, said: list[int | None], batch: int, tmp_path: Path
) -> None:
    """They are as they were at all sizes of the inputs, not at those alone that the model was looked at with."""
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(proto, before)
    result = gp.prune(before, shapes={"x": (4, 8)}, target={"params": 0.5})
    result.save_onnx(after)
    inputs = {"x": np.random.default_rng(0).standard_normal((batch, 8), np.float32)}
    assert run_file(before, inputs)["y"].shape == run_file(after, inputs)["y"].shape
    dims = onnx.load(after).graph.output[0].type.tensor_type.shape.dim
    assert said == [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]


def test_an_axis_that_is_cut_to_one_unit_stays_at_a_batch_of_one() -> None:
    """It is not dropped, while an axis that was dropped before is: the axes are named then."""
    proto = model(
        [node("Unsqueeze", "x", "u", axes=[1]), node("MatMul", "u w1", "h"), node("Squeeze", "h", "s"), node("MatMul", "s w2", "y")],
        {"x": ["batch", 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5)}, opset=11,
    )  # fmt: skip
    host = OnnxHost.load(proto, {"x": (4, 8)})
    analysis = analyze_graph(host.graph())
    for units, axes in ((1, [[1]]), (3, [])):
        cut = host.edited(slice_edits(analysis, {group.factor: np.arange(units) for group in analysis.groups}))
        squeeze = next(each for each in cut.proto.graph.node if each.op_type == "Squeeze")
        assert axes == [list(each.ints) for each in squeeze.attribute]


def test_an_output_that_a_cut_has_made_wrong_is_not_declared_anew(tmp_path: Path) -> None:
    """The checker finds it, as the model that was loaded says nothing of the kind."""
    host = OnnxHost.load(net([node("Sigmoid", "l", "y")], ["batch", 5], 5))
    wrong = onnx.ModelProto()
    wrong.CopyFrom(host.proto)
    wrong.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    with pytest.raises(OutputError, match=r"the model that would be written to 'm\.onnx' is not valid ONNX: .*"):
        replace(host, proto=wrong).save_onnx(tmp_path / "m.onnx")
