"""ONNX files that are right and once were refused or left whole: maps as outputs, maxima over channels, unpooling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from test_onnx_host import halved, ints, model, node, prove, weight

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.errors import ModelError
from graphprune.hosts.onnx import masked as onnx_masked
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.ops import spatial as onnx_spatial
from graphprune.hosts.onnx.ops import table as onnx_ops
from graphprune.passes.slice_groups import slice_edits
from graphprune.proof.compare import compare
from graphprune.proof.masks import masks

Array = NDArray[Any]


# -- maps, and other ends of classic models ------------------------------------------------------------------------


def ml(op: str, operands: str, results: str, **attributes: Any) -> onnx.NodeProto:
    made = node(op, operands, results, **attributes)
    made.domain = "ai.onnx.ml"
    return made


def classifier(*ends: onnx.NodeProto, outputs: dict[str, onnx.TypeProto], **constants: Array) -> onnx.ModelProto:
    """``x -> 24 -> 3 classes p``, with what converters of scikit-learn put behind."""
    proto = model(
        [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "l"), node("Softmax", "l", "p"), *ends],
        {"x": ["n", 8]}, [], {"w1": weight(8, 24), "w2": weight(24, 3), **constants}, opset=17,
    )  # fmt: skip
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    proto.graph.output.extend(helper.make_value_info(name, kind) for name, kind in outputs.items())
    onnx.checker.check_model(proto)
    return proto


def probabilities(key: int) -> onnx.TypeProto:
    held = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    return helper.make_sequence_type_proto(helper.make_map_type_proto(key, held))


LABELS = helper.make_tensor_type_proto(TensorProto.INT64, ["n"])
NUMBERS = ml("ZipMap", "p", "prob", classlabels_int64s=[7, 2, 5])
NAMES = ml("ZipMap", "p", "prob", classlabels_strings=["b", "c", "a"])
FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 3])
ENDS = {
    "map of numbers": classifier(NUMBERS, outputs={"prob": probabilities(TensorProto.INT64)}),
    "map of names": classifier(NAMES, outputs={"prob": probabilities(TensorProto.STRING)}),
    "label and map": classifier(
        node("ArgMax", "p", "best", axis=1, keepdims=0),
        ml("ArrayFeatureExtractor", "classes best", "label"),
        NUMBERS,
        outputs={"label": LABELS, "prob": probabilities(TensorProto.INT64)},
        classes=ints(7, 2, 5),
    ),
    "encoded label": classifier(
        node("ArgMax", "p", "best", axis=1, keepdims=0),
        ml("LabelEncoder", "best", "label", keys_int64s=[0, 1, 2], values_int64s=[7, 2, 5]),
        outputs={"label": LABELS},
    ),
    "normalised": classifier(ml("Normalizer", "p", "q", norm="L1"), outputs={"q": FLOATS}),
    "scaled": classifier(ml("Scaler", "p", "q", offset=[0.1, 0.2, 0.3], scale=[2.0, 3.0, 4.0]), outputs={"q": FLOATS}),
}


@pytest.mark.parametrize("name", ENDS)
def test_ends_of_classifiers(name: str, tmp_path) -> None:
    result = gp.prune(ENDS[name], target={"macs": 0.5}, align=1)
    assert result.report.cost("macs").fraction == 0.5
    assert [check.name for check in result.report.proof] == ["masked", "permutation", "onnxruntime"]
    result.save_onnx(tmp_path / "net.onnx")
    saved = onnx.load(tmp_path / "net.onnx")
    assert [value.type for value in saved.graph.output] == [value.type for value in ENDS[name].graph.output]
    given = {"x": weight(3, 8)}
    got, before = (
        ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, given)[-1]
        for each in (saved, ENDS[name])
    )
    assert type(got) is type(before)
    assert len(got) == 3
    if isinstance(got, list):
        assert [list(row) for row in got] == [list(row) for row in before]


def test_losses_are_measured_on_maps() -> None:
    data = [{"x": weight(4, 8)} for _ in range(8)]
    result = gp.prune(ENDS["label and map"], target={"macs": 0.5}, align=1, calibration=data)
    assert result.report.cost("macs").fraction <= 0.5


def test_a_wrong_weight_before_a_map_is_seen() -> None:
    host = OnnxHost.load(ENDS["map of numbers"])
    analysis = analyze_graph(host.graph())
    kept = halved(analysis)
    pruned = host.edited(slice_edits(analysis, kept))
    wrong = pruned.replaced({"w2": pruned.read("w2") * 1.01})
    given = host.example_inputs()
    expected = host.run_masked(given, masks(analysis, kept))
    assert expected["prob"].shape == (2, 3)
    assert compare("masked", expected, pruned.run(given)).passed
    assert not compare("masked", expected, wrong.run(given)).passed


def test_maps_as_inputs_are_refused_in_words() -> None:
    proto = classifier(NUMBERS, outputs={"prob": probabilities(TensorProto.INT64)})
    proto.graph.input.append(helper.make_value_info("m", probabilities(TensorProto.INT64).sequence_type.elem_type))
    with pytest.raises(ModelError) as caught:
        OnnxHost.load(proto)
    assert str(caught.value) == (
        "input 'm' of the model in memory is a map, expected a tensor; take what makes a tensor of it (DictVectorizer, "
        "CastMap) out of the model"
    )


def test_features_that_are_normalised() -> None:
    proto = model(
        [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), ml("Normalizer", "r", "n", norm="L2"), node("MatMul", "n w2", "y")],
        {"x": ["n", 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5)},
    )  # fmt: skip
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    _, analysis = prove(OnnxHost.load(proto))
    assert [str(group.normalized) for group in analysis.groups] == [
        "'ai.onnx.ml::Normalizer' takes a statistic over this axis (node 'n')"
    ]


# -- maxima over channels ------------------------------------------------------------------------------------------


def gated(*nodes: onnx.NodeProto, opset: int = 18, **constants: Array) -> onnx.ModelProto:
    """``x -> conv h``, a gate ``g`` made of it, and a convolution of what is gated."""
    return model(
        [node("Conv", "x w1", "h"), *nodes, node("Sigmoid", "g", "s"), node("Mul", "h s", "n"), node("Conv", "n w2", "y")],
        {"x": [2, 3, 4, 5]}, ["y"],
        {"w1": weight(12, 3, 1, 1) - 1, "w2": weight(5, 12, 1, 1), "axes": ints(1), **constants}, opset=opset,
    )  # fmt: skip


MAXIMA = {
    "mean and maximum": gated(
        node("ReduceMean", "h axes", "a"), node("ReduceMax", "h axes", "b"), node("Concat", "a b", "c", axis=1),
        node("Conv", "c w3", "g", pads=[1, 1, 1, 1]), w3=weight(1, 2, 3, 3),
    ),
    "minimum": gated(node("ReduceMin", "h", "g", axes=[1]), opset=13),
    "maximum of everything": gated(node("ReduceMax", "h", "g")),
    "range": gated(node("ReduceMax", "h axes", "a"), node("ReduceMin", "h axes", "b"), node("Sub", "a b", "g")),
}  # fmt: skip


@pytest.mark.parametrize("name", MAXIMA)
def test_a_maximum_counts_kept_units_only(name: str) -> None:
    _, analysis = prove(OnnxHost.load(MAXIMA[name]))
    (group,) = analysis.groups
    assert not group.exact
    assert "takes a statistic over this axis" in str(group.normalized)


def test_a_maximum_that_counts_zeros_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_masked, "_cannot_choose", lambda *_: None)
    with pytest.raises(AssertionError):
        prove(OnnxHost.load(MAXIMA["mean and maximum"]))


# -- unpooling -----------------------------------------------------------------------------------------------------


def unpooled(*nodes: onnx.NodeProto, operands: str = "p i", **constants: Array) -> onnx.ModelProto:
    return model(
        [
            node("Conv", "x w1", "h"), node("Conv", "x w3", "k"),
            node("MaxPool", "h", "p i", kernel_shape=[2, 2], strides=[2, 2]),
            node("MaxPool", "k", "q j", kernel_shape=[2, 2], strides=[2, 2]), *nodes,
            node("MaxUnpool", operands, "u", kernel_shape=[2, 2], strides=[2, 2]), node("Conv", "u w2", "y"),
        ],
        {"x": [2, 3, 4, 6]}, ["y"],
        {"w1": weight(12, 3, 1, 1), "w3": weight(12, 3, 1, 1), "w2": weight(5, 12, 1, 1), **constants},
    )  # fmt: skip


def test_unpooling_follows_its_pooling() -> None:
    """Indices count all elements of the tensor, those of the smaller one in the pruned model."""
    _, analysis = prove(OnnxHost.load(unpooled()).without_dead_nodes())
    assert [(group.size, group.exact, len(group.sites)) for group in analysis.groups] == [(12, True, 2)]


def test_unpooling_by_another_pooling_couples_both() -> None:
    _, analysis = prove(OnnxHost.load(unpooled(operands="p j")).without_dead_nodes())
    (group,) = analysis.groups
    assert set(group.tensors) == {"w1", "w2", "w3"}


def test_a_size_that_is_told_is_changed() -> None:
    host = OnnxHost.load(unpooled(operands="p i size", size=ints(2, 12, 4, 6))).without_dead_nodes()
    pruned, _ = prove(host)
    (node,) = [node for node in pruned.proto.graph.node if node.op_type == "MaxUnpool"]
    assert pruned.read(node.input[2]).tolist() == [2, 6, 4, 6]


def test_unpooling_by_computed_indices_keeps_channels_whole() -> None:
    host = OnnxHost.load(unpooled(node("Add", "i none", "m"), operands="p m", none=ints(0)))
    analysis = analyze_graph(host.graph())
    assert [reason.text for reason in analysis.site_reasons("w1", 0)] == ["'Add' computes with positions of this axis"]


def test_a_rule_that_forgets_what_indices_count_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(call):
        return replace(onnx_spatial.unpooled(call), reads={})

    monkeypatch.setitem(onnx_ops.ROWS, "MaxUnpool", wrong)
    with pytest.raises(AssertionError):
        prove(OnnxHost.load(unpooled(operands="p j")).without_dead_nodes())


# -- sizes that must be given --------------------------------------------------------------------------------------


def flattened(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    return model(
        [node("Conv", "x w1", "h"), node("Relu", "h", "r"), *nodes],
        {"x": ["n", 3, "h", None]}, ["y"], {"w1": weight(12, 3, 1, 1), "w2": weight(12 * 20, 5)},
    )  # fmt: skip


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_a_flattened_size_that_was_not_given_is_asked_for(op: str) -> None:
    proto = flattened([node("Flatten", "r", "f"), node(op, "f w2", "y")])
    with pytest.raises(ModelError) as caught:
        gp.prune(proto, target={"macs": 0.5})
    text = str(caught.value)
    assert text.startswith(
        "the model does not run at the sizes that are assumed for dynamic axes of its inputs ('x' as 2x3x64x64): "
    )
    assert text.endswith("; give sizes that it takes: --shape x=<n>x3x<h>x<axis 3>")
    assert (
        gp.prune(proto, target={"macs": 0.5}, align=1, shapes={"x": (2, 3, 4, 5)}).report.cost("macs").fraction <= 0.5
    )


def test_sizes_that_were_given_are_not_called_assumed() -> None:
    proto = flattened([node("Flatten", "r", "f"), node("Gemm", "f w2", "y")])
    host = OnnxHost.load(proto, {"x": (2, 3, 4, 6)})
    with pytest.raises(ModelError, match=r"^onnxruntime cannot run the model: .* give input shapes that fit"):
        host.run(host.example_inputs())
