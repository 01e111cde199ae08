"""The ONNX host: loading what can be trusted, editing without loss, proving, saving whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from graphprune.analysis.groups import Analysis, analyze_graph
from graphprune.errors import ModelError, OptionError, OutputError, PlanError, ProofError
from graphprune.hosts.edits import Edits, SizeEdit
from graphprune.hosts.onnx import masked as onnx_masked
from graphprune.hosts.onnx import masked_forms as onnx_masked_forms
from graphprune.hosts.onnx import save as onnx_save
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.opening import open_host
from graphprune.passes.slice_groups import slice_edits
from graphprune.passes.verify import verify
from graphprune.proof.masks import masks

RNG = np.random.default_rng(0)
FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64
Array = NDArray[Any]


def weight(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str | None]],
    outputs: Sequence[str],
    initializers: dict[str, Array],
    *,
    opset: int = 18,
    types: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """A model of float inputs and outputs, with the latter's shapes left open."""
    types = types or {}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, types.get(name, FLOAT), shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, types.get(name, FLOAT), None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node whose operands and results are words; its name is that of the first result."""
    return helper.make_node(
        op, [w if w != "-" else "" for w in inputs.split()], outputs.split(), outputs.split()[0], **attributes
    )


def mlp(**dims: Any) -> onnx.ModelProto:
    """``x -> 12 -> relu -> 5`` in two linear layers."""
    return model(
        [node("MatMul", "x w1", "h"), node("Add", "h b1", "a"), node("Relu", "a", "r"), node("MatMul", "r w2", "y")],
        {"x": dims.get("x", ["batch", 8])},
        ["y"],
        {"w1": weight(8, 12), "b1": weight(12), "w2": weight(12, 5)},
    )


def original(proto: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, inputs)]


def halved(analysis: Analysis) -> dict[Any, Any]:
    rng = np.random.default_rng(1)
    return {
        group.factor: np.sort(rng.choice(group.size, max(1, group.size // 2), replace=False))
        for group in analysis.groups
    }


def prove(host: OnnxHost, tolerance: float = 1e-5) -> tuple[OnnxHost, Analysis]:
    """Halves every group and compares with the masked model; also with every unit permuted."""
    analysis = analyze_graph(host.graph())
    assert analysis.groups, "nothing to prune"
    inputs, kept = host.example_inputs(0), halved(analysis)
    pruned = host.edited(slice_edits(analysis, kept)).without_dead_nodes()
    expected = host.run_masked(inputs, masks(analysis, kept))
    for name, array in pruned.run(inputs).items():
        np.testing.assert_allclose(array, expected[name], rtol=tolerance, atol=tolerance)
    rng = np.random.default_rng(2)
    shuffled = {group.factor: rng.permutation(group.size) for group in analysis.groups}
    permuted = host.edited(slice_edits(analysis, shuffled)).run(inputs)
    for name, array in host.run(inputs).items():
        np.testing.assert_allclose(permuted[name], array, rtol=tolerance, atol=tolerance)
    return pruned, analysis


def sizes(analysis: Analysis) -> list[tuple[str, int]]:
    return [(group.name, group.size) for group in analysis.groups]


# -- loading -----------------------------------------------------------------------------------------------------


def write_external(folder: Path, *, location: str = "net.data") -> Path:
    path = folder / "net.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def tampered(path: Path, **entries: str) -> Path:
    """Changes external-data entries of ``w1``."""
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key in entries:
            entry.value = entries.pop(entry.key)
    for key, value in entries.items():
        proto.graph.initializer[0].external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


def refusal(path: Path | onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as caught:
        OnnxHost.load(path)
    return str(caught.value)


def test_load_runs_like_the_file(tmp_path: Path) -> None:
    proto = mlp()
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    host = OnnxHost.load(path)
    x = weight(3, 8)
    np.testing.assert_array_equal(original(proto, {"x": x})[0], host.run({"x": x})["y"])
    assert host.kind == "onnx"


def test_external_data_stays_on_disk_until_it_is_read(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    proto = onnx.load(path)
    big = model([node("MatMul", "x w", "y")], {"x": [1, 64]}, ["y"], {"w": weight(64, 64)})
    onnx.save(big, path, save_as_external_data=True, location="net.data", size_threshold=0)
    host = OnnxHost.load(path)
    assert isinstance(host.store["w"].base, ir.ExternalTensor)
    assert host.proto.ByteSize() < 500
    assert host.sources == {tmp_path / "net.data"}
    np.testing.assert_array_equal(host.read("w"), numpy_helper.to_array(big.graph.initializer[0], str(tmp_path)))
    assert proto.graph.node


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.onnx") == f"no file '{tmp_path / 'no.onnx'}'; give the path of an ONNX model"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (b"\x08\x0a", "its message holds no graph"),
    ],
)
def test_not_a_model(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    assert refusal(path) == f"'{path}' is not an ONNX model: {what}; download or export it again"


def test_truncated_model(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(mlp().SerializeToString()[:200])
    assert refusal(path) == (
        f"'{path}' is not an ONNX model, or it is cut off after 200 bytes; download or export it again"
    )


def test_external_data_missing(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    (tmp_path / "net.data").unlink()
    assert refusal(path) == (
        f"tensor 'w1' of '{path}' keeps its data in 'net.data', which is missing; put it beside the model"
    )


@pytest.mark.parametrize("location", ["../net.data", "/etc/passwd", "a/../../net.data", ""])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    path = tampered(write_external(tmp_path), location=location)
    assert refusal(path) == (
        f"tensor 'w1' of '{path}' keeps its data in '{location}', outside the model's folder; "
        "external data must be a plain file in the model's folder"
    )


def test_external_data_behind_a_symbolic_link(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    (tmp_path / "net.data").rename(tmp_path / "real.data")
    (tmp_path / "net.data").symlink_to(tmp_path / "real.data")
    assert refusal(path) == (
        f"tensor 'w1' of '{path}' keeps its data in 'net.data', which is a symbolic link; "
        "external data must be a plain file in the model's folder"
    )


def test_external_data_behind_a_hard_link(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    os.link(tmp_path / "net.data", tmp_path / "other.data")
    assert refusal(path) == (
        f"tensor 'w1' of '{path}' keeps its data in 'net.data', which is a device, a folder or a hard link; "
        "external data must be a plain file in the model's folder"
    )


def test_external_data_past_the_end(tmp_path: Path) -> None:
    path = tampered(write_external(tmp_path), offset="600")
    size = (tmp_path / "net.data").stat().st_size
    assert refusal(path) == (
        f"tensor 'w1' of '{path}' lies at bytes 600 to 984 of 'net.data', which has {size}; the file is cut off or damaged"
    )


def test_external_data_of_another_length(tmp_path: Path) -> None:
    path = tampered(write_external(tmp_path), length="10")
    assert refusal(path) == (
        f"tensor 'w1' of '{path}' has 10 bytes of external data, expected 384 for its shape [8, 12]; the file is damaged"
    )


def test_external_data_in_memory(tmp_path: Path) -> None:
    proto = onnx.load(write_external(tmp_path), load_external_data=False)
    assert refusal(proto) == (
        "tensor 'w1' of the model in memory keeps its data in 'net.data', which has no folder; give the path of the model's file"
    )


def test_negative_and_huge_sizes() -> None:
    proto = mlp()
    proto.graph.initializer[0].dims[0] = -8
    text = "tensor 'w1' of the model in memory has the shape [{}, 12], expected sizes of at least 0 and at most {} elements; the file is damaged"
    assert refusal(proto) == text.format(-8, 1 << 40)
    proto.graph.initializer[0].dims[0] = 1 << 60
    assert refusal(proto) == text.format(1 << 60, 1 << 40)


def test_data_that_does_not_fill_its_shape() -> None:
    proto = mlp()
    proto.graph.initializer[0].dims[0] = 9
    assert refusal(proto) == (
        "tensor 'w1' of the model in memory holds 384 bytes, expected 432 for its shape [9, 12]; the file is damaged"
    )


def test_unknown_element_type() -> None:
    proto = mlp()
    proto.graph.initializer[0].data_type = 99
    assert refusal(proto) == (
        "tensor 'w1' of the model in memory has the unknown element type 99; update onnx or export the model again"
    )


def test_unknown_versions() -> None:
    proto = mlp()
    newest = onnx.defs.onnx_opset_version()
    proto.opset_import[0].version = newest + 1
    assert refusal(proto) == (
        f"the model in memory has opset {newest + 1}, expected 1 to {newest}; "
        "convert it with onnx.version_converter or update onnx"
    )
    del proto.opset_import[:]
    assert refusal(proto) == (
        f"the model in memory names no opset of the default domain; expected one from 1 to {newest}; export it again"
    )
    proto = mlp()
    proto.ir_version = 99
    assert refusal(proto) == (
        f"the model in memory has IR version 99, expected 3 to {int(onnx.IR_VERSION)}; export it again or update onnx"
    )


def test_two_initializers_of_one_name() -> None:
    proto = mlp()
    proto.graph.initializer.append(proto.graph.initializer[0])
    assert refusal(proto) == ("the model in memory has two initializers named 'w1'; expected unique names; rename one")


def sparse_mlp(indices: Array, *shape: int) -> onnx.ModelProto:
    """:func:`mlp` with a sparse first weight."""
    proto = mlp()
    del proto.graph.initializer[0]
    values = numpy_helper.from_array(np.arange(1, 1 + len(indices), dtype=np.float32), "w1")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "i"), shape)
    )
    return proto


@pytest.mark.parametrize("indices", [ints(3, 13, 50), np.array([[0, 3], [1, 1], [4, 2]])])
def test_sparse_initializers_become_dense(indices: Array) -> None:
    host = OnnxHost.load(sparse_mlp(indices, 8, 12))
    assert host.read("w1")[[0, 1, 4], [3, 1, 2]].tolist() == [1, 2, 3]
    assert int((host.read("w1") != 0).sum()) == 3
    prove(host)


@pytest.mark.parametrize(
    ("indices", "shape", "what"),
    [
        (ints(3, 96), (8, 12), "has indices outside its shape [8, 12]; the file is damaged"),
        (ints(-1), (8, 12), "has indices outside its shape [8, 12]; the file is damaged"),
        (np.array([[0, 12]]), (8, 12), "has indices outside its shape [8, 12]; the file is damaged"),
        (
            ints(0),
            (1 << 20, 1 << 20),
            "has the shape [1048576, 1048576]; dense, the sparse initializers take more than 1.5 GB; allow more with --bound memory=N",
        ),
    ],
)
def test_sparse_initializers_that_do_not_fit(indices: Array, shape: tuple[int, ...], what: str) -> None:
    assert refusal(sparse_mlp(indices, *shape)) == f"sparse initializer 'w1' of the model in memory {what}"


def test_old_models_are_read() -> None:
    proto = mlp()
    proto.opset_import[0].version = 9
    proto.ir_version = 3
    for tensor in proto.graph.initializer:  # what IR version 3 demands
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
    host = OnnxHost.load(proto)
    assert host.graph().inputs == ("x",)
    prove(host)
    proto.opset_import[0].version = 7
    assert OnnxHost.load(proto).proto.opset_import[0].version == 11


def test_inputs_with_a_default_stay_inputs_unless_they_are_cut(tmp_path: Path) -> None:
    proto = mlp(x=[2, 8])
    proto.graph.node.append(node("Mul", "y factor", "z"))
    proto.graph.output[0].name = "z"
    proto.graph.initializer.append(numpy_helper.from_array(weight(5), "factor"))
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
    pruned, analysis = prove(OnnxHost.load(proto))
    assert sizes(analysis) == [("w1[1]", 12)]
    pruned.save_onnx(tmp_path / "out.onnx")
    session = ort.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["x"]
    assert [value.name for value in session.get_overridable_initializers()] == ["factor"]
    x = weight(2, 8)
    np.testing.assert_array_equal(session.run(None, {"x": x, "factor": np.zeros(5, np.float32)})[0], np.zeros((2, 5)))
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], pruned.run({"x": x})["z"])


def test_options_name_inputs_and_fit() -> None:
    def message(**shapes: tuple[int, ...]) -> str:
        with pytest.raises(OptionError) as caught:
            OnnxHost.load(mlp(), shapes)
        return str(caught.value)

    assert message(z=(1, 8)) == "the model has no input 'z'; expected one of 'x'"
    assert message(x=(1, 9)) == "input 'x' has the shape batchx8, got 1x9; give sizes that fit"
    assert message(x=(8,)) == "input 'x' has the shape batchx8, got 8; give sizes that fit"
    two = model([node("Add", "x z", "y")], {"x": ["n", 4], "z": ["n", 4]}, ["y"], {})
    with pytest.raises(OptionError) as caught:
        OnnxHost.load(two, {"x": (2, 4), "z": (3, 4)})
    assert str(caught.value) == "the size 'n' of input 'z' is 3 here and 2 elsewhere; give one size"


def test_dynamic_sizes_are_assumed_or_given() -> None:
    image = model([node("Relu", "x", "y")], {"x": ["n", None, "h", "w"]}, ["y"], {})
    assert OnnxHost.load(image).bound == {"x": (2, 3, 64, 64)}
    assert OnnxHost.load(image, {"x": (1, 4, 8, 8)}).bound == {"x": (1, 4, 8, 8)}
    assert OnnxHost.load(mlp()).graph().values["y"].dynamic == {0}


def test_constant_nodes_become_initializers() -> None:
    value = numpy_helper.from_array(weight(8, 12))
    proto = model(
        [helper.make_node("Constant", [], ["w"], value=value), node("MatMul", "x w", "h"), node("MatMul", "h v", "y")],
        {"x": [2, 8]},
        ["y"],
        {"v": weight(12, 5)},
    )
    host = OnnxHost.load(proto)
    assert [entry.op_type for entry in host.proto.graph.node] == ["MatMul", "MatMul"]
    prove(host)


def test_functions_are_inlined() -> None:
    function = helper.make_function(
        "local", "Twice", ["a", "w"], ["c"], [node("MatMul", "a w", "b"), node("Relu", "b", "c")],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    proto = model(
        [node("Twice", "x w1", "h", domain="local"), node("MatMul", "h w2", "y")],
        {"x": [2, 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5)},
    )  # fmt: skip
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    _, analysis = prove(OnnxHost.load(proto))
    assert sizes(analysis) == [("w1[1]", 12)]


# -- the graph ---------------------------------------------------------------------------------------------------


def two_layers(**initializers: Array) -> onnx.ModelProto:
    return model(
        [
            node("Gemm", "x w1 b1", "h1"), node("Relu", "h1", "r1"), node("Gemm", "r1 w2 b1", "h2"),
            node("Relu", "h2", "r2"), node("Gemm", "r2 w3", "y"),
        ],
        {"x": [3, 8]}, ["y"],
        {"w1": weight(8, 12), "w2": weight(12, 12), "w3": weight(12, 5), **initializers},
    )  # fmt: skip


def test_deduplicated_zeros_do_not_tie_layers() -> None:
    _, analysis = prove(OnnxHost.load(two_layers(b1=np.zeros(12, np.float32))))
    assert sizes(analysis) == [("w1[1]", 12), ("w2[1]", 12)]


def test_weights_with_several_uses_stay_tied() -> None:
    _, analysis = prove(OnnxHost.load(two_layers(b1=weight(12))))
    assert sizes(analysis) == [("w1[1]", 12)]


def test_identities_of_weights_are_uses_of_them() -> None:
    proto = two_layers(b1=np.ones(12, np.float32))
    proto.graph.node.insert(0, node("Identity", "b1", "copy"))
    proto.graph.node[3].input[2] = "copy"
    _, analysis = prove(OnnxHost.load(proto))
    assert sizes(analysis) == [("w1[1]", 12), ("w2[1]", 12)]


def test_kinds_of_values() -> None:
    proto = model(
        [node("Resize", "x - scales", "u"), node("Conv", "u w", "y")],
        {"x": [1, 3, 4, 4]}, ["y"],
        {"scales": np.array([1, 1, 2, 2], np.float32), "w": weight(4, 3, 1, 1)},
    )  # fmt: skip
    values = OnnxHost.load(proto).graph().values
    assert {name: value.kind for name, value in values.items()} == {
        "scales": "constant", "w": "parameter", "x": "input", "u": "computed", "y": "computed",
    }  # fmt: skip
    assert (values["w"].shape, values["w"].dtype, values["w"].itemsize) == ((4, 3, 1, 1), "float32", 4)


def test_unknown_operators_are_barriers() -> None:
    proto = model(
        [node("MatMul", "x w1", "h"), node("Strange", "h", "z", domain="com.example"), node("MatMul", "z w2", "y")],
        {"x": [2, 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5)},
    )  # fmt: skip
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    analysis = analyze_graph(OnnxHost.load(proto).graph())
    assert analysis.groups == ()
    assert [str(reason) for reason in analysis.site_reasons("w1", 1)] == [
        "no coupling rule for 'com.example::Strange' (node 'z')"
    ]


def test_packed_elements_are_not_cut() -> None:
    proto = model(
        [node("DequantizeLinear", "q s", "w", axis=0), node("MatMul", "x w", "h"), node("MatMul", "h v", "y")],
        {"x": [2, 4]}, ["y"], {"s": np.float32([1, 2, 3, 4]), "v": weight(6, 5)}, opset=21,
    )  # fmt: skip
    proto.graph.initializer.append(helper.make_tensor("q", TensorProto.INT4, [4, 6], list(range(-8, 8)) + [0] * 8))
    host = OnnxHost.load(proto)
    analysis = analyze_graph(host.graph())
    assert [str(reason) for reason in analysis.site_reasons("v", 0)] == [
        "operand 'q' of 'DequantizeLinear' packs several elements into one byte, and is not cut (node 'w')"
    ]
    x = host.example_inputs()
    np.testing.assert_array_equal(original(proto, x)[0], host.without_dead_nodes().run(x)["y"])


def test_bfloat16_is_read_as_float32() -> None:
    proto = model([node("Cast", "w", "y", to=1)], {}, ["y"], {})
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1.0, 2.5]))
    host = OnnxHost.load(proto)
    np.testing.assert_array_equal(np.float32([1, 2.5]), host.read("w"))
    assert host.graph().values["w"].dtype == "bfloat16"
    with pytest.raises(ModelError, match="the model stores no tensor 'v'; expected the name of an initializer"):
        host.read("v")


# -- editing -----------------------------------------------------------------------------------------------------


def test_slices_compose() -> None:
    proto = model([node("MatMul", "x w", "y")], {"x": [1, 64]}, ["y"], {"w": weight(64, 64), "small": weight(3)})
    host = OnnxHost.load(proto)
    once = host.edited(Edits({"w": {0: ints(*range(0, 64, 2)), 1: ints(*range(10, 60))}}))
    twice = once.edited(Edits({"w": {1: ints(3, 1), 0: ints(5, 30)}}))
    np.testing.assert_array_equal(host.read("w")[np.ix_([10, 60], [13, 11])], twice.read("w"))
    assert host.read("w").shape == (64, 64)
    assert host.edited(Edits({"small": {0: ints(2, 0)}})).read("small").shape == (2,)


def test_edits_of_what_is_not_there() -> None:
    host = OnnxHost.load(mlp())
    with pytest.raises(PlanError, match="the model stores no tensor 'w9' to be cut; make the plan for this model"):
        host.edited(Edits({"w9": {0: ints(0)}}))
    with pytest.raises(PlanError, match="the model has no node 'n9' to be edited; make the plan for this model"):
        host.edited(Edits(sizes=(SizeEdit("n9", "group", None, 2, 1),)))


def test_attributes_carry_sizes() -> None:
    proto = model(
        [node("Conv", "x w1", "h"), node("Conv", "h w2", "d", group=12), node("Conv", "d w3", "y")],
        {"x": [1, 3, 4, 4]}, ["y"], {"w1": weight(12, 3, 1, 1), "w2": weight(12, 1, 1, 1), "w3": weight(5, 12, 1, 1)},
    )  # fmt: skip
    pruned, _ = prove(OnnxHost.load(proto))
    assert pruned.proto.graph.node[1].attribute[0].i == 6


def test_shared_size_constants_are_copied_for_each_use() -> None:
    proto = model(
        [
            node("MatMul", "x w1", "h"), node("Reshape", "h shape", "s"), node("Transpose", "s", "t", perm=[0, 2, 1]),
            node("Reshape", "t back", "u"), node("MatMul", "u w2", "z"), node("Reshape", "z shape", "y"),
        ],
        {"x": [2, 8]}, ["y"],
        {"w1": weight(8, 12), "w2": weight(12, 12), "shape": ints(2, 4, 3), "back": ints(2, 12)},
    )  # fmt: skip
    pruned, analysis = prove(OnnxHost.load(proto))
    assert sizes(analysis) == [("w1[1]", 4), ("w1[1]#2", 3)]
    assert pruned.run(pruned.example_inputs())["y"].shape == (2, 4, 3)
    stored = {
        entry.name: numpy_helper.to_array(entry).tolist()
        for entry in pruned.proto.graph.initializer
        if entry.data_type == INT64
    }
    assert stored == {"shape": [2, 4, 3], "s:shape": [2, 2, 1], "u:shape": [2, 2]}


def attention_shapes(flattened: bool) -> onnx.ModelProto:
    """Heads split by a computed shape ``[batch, seq, 4, 3]``, or ``[batch * 4, seq, 3]``."""
    nodes = [
        node("MatMul", "x w1", "h"), node("Shape", "x", "shape"), node("Gather", "shape zero", "b"),
        node("Gather", "shape one", "t"), node("Unsqueeze", "b axes", "b1"), node("Unsqueeze", "t axes", "t1"),
        node("Concat", "b1 t1 heads depth", "split", axis=0), node("Reshape", "h split", "s"),
        node("Transpose", "s", "p", perm=[0, 2, 1, 3]),
    ]  # fmt: skip
    if flattened:
        nodes += [
            node("Mul", "b1 heads", "bh"), node("Concat", "bh t1 depth", "flat", axis=0),
            node("Reshape", "p flat", "f"), node("Relu", "f", "g"),
            node("Concat", "b1 heads t1 depth", "unflat", axis=0), node("Reshape", "g unflat", "q"),
        ]  # fmt: skip
    else:
        nodes += [node("Relu", "p", "q")]
    nodes += [
        node("Transpose", "q", "r", perm=[0, 2, 1, 3]), node("Concat", "b1 t1 minus", "join", axis=0),
        node("Reshape", "r join", "j"), node("MatMul", "j w2", "y"),
    ]  # fmt: skip
    constants = {
        "zero": np.array(0), "one": np.array(1), "axes": ints(0), "heads": ints(4), "depth": ints(3), "minus": ints(-1),
    }  # fmt: skip
    return model(nodes, {"x": ["batch", "seq", 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5), **constants})


@pytest.mark.parametrize("flattened", [False, True])
def test_computed_shapes_with_dynamic_sizes(flattened: bool) -> None:
    proto = attention_shapes(flattened)
    host = OnnxHost.load(proto).folded()
    pruned, analysis = prove(host)
    assert sizes(analysis) == [("w1[1]", 4), ("w1[1]#2", 3)]
    ops = [entry.op_type for entry in pruned.proto.graph.node]
    assert ops.count("Div") == (1 if flattened else 0)  # batch * 4 * 2 / 4
    x = weight(5, 7, 8)  # other sizes than the example's
    other = OnnxHost.load(proto, {"x": (5, 7, 8)}).folded()
    again = analyze_graph(other.graph())
    masked = other.run_masked({"x": x}, masks(again, halved(again)))
    np.testing.assert_allclose(pruned.run({"x": x})["y"], masked["y"], rtol=1e-5, atol=1e-5)


def test_sizes_that_are_read_off_a_cut_tensor_are_left_alone() -> None:
    proto = model(
        [
            node("Conv", "x w1", "h"), node("Shape", "h", "shape", start=0, end=2), node("Concat", "shape space", "target", axis=0),
            node("Resize", "h - - target", "u", mode="nearest"), node("Conv", "u w2", "y"),
        ],
        {"x": ["n", 3, 4, 4]}, ["y"],
        {"w1": weight(12, 3, 1, 1), "w2": weight(5, 12, 1, 1), "space": ints(8, 8)},
    )  # fmt: skip
    pruned, analysis = prove(OnnxHost.load(proto))
    assert sizes(analysis) == [("w1[0]", 12)]
    assert [entry.op_type for entry in pruned.proto.graph.node] == ["Conv", "Shape", "Concat", "Resize", "Conv"]


def test_sizes_from_an_operator_that_is_not_evaluated_are_scaled_as_a_whole() -> None:
    proto = model(
        [node("MatMul", "x w1", "h"), node("Shape", "x", "s"), node("Gather", "s zero", "n"),
         node("Concat", "n rest", "c", axis=0), node("Clip", "c one", "target"), node("Reshape", "h target", "r"),
         node("Squeeze", "r two", "q"), node("MatMul", "q w2", "y")],
        {"x": ["batch", 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5), "zero": ints(0), "rest": ints(12, 1),
         "one": np.array(1), "two": ints(2)},
    )  # fmt: skip
    _, analysis = prove(OnnxHost.load(proto))
    assert sizes(analysis) == [("w1[1]", 12)]


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_split_into_equal_parts_gets_sizes(opset: int) -> None:
    attributes = {"num_outputs": 2} if opset == 18 else {}
    proto = model(
        [
            node("MatMul", "x w1", "h"), node("Split", "h", "a b", axis=1, **attributes), node("Relu", "a", "r"),
            node("MatMul", "r w2", "p"), node("MatMul", "b w3", "q"), node("Add", "p q", "y"),
        ],
        {"x": [2, 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(6, 5), "w3": weight(6, 5)}, opset=opset,
    )  # fmt: skip
    host = OnnxHost.load(proto)
    analysis = analyze_graph(host.graph())
    assert sizes(analysis) == [("w1[1]", 6), ("w1[1]#2", 6)]
    kept = {group.factor: np.arange(n) for group, n in zip(analysis.groups, (2, 5), strict=True)}
    pruned = host.edited(slice_edits(analysis, kept))
    x = host.example_inputs()
    expected = host.run_masked(x, masks(analysis, kept))["y"]
    np.testing.assert_allclose(pruned.run(x)["y"], expected, rtol=1e-5, atol=1e-6)


def test_pins_become_attributes() -> None:
    proto = model(
        [node("MatMul", "x w1", "q"), node("Reshape", "q shape", "h"), node("Transpose", "h", "t", perm=[0, 2, 1, 3]),
         node("Attention", "t t t", "a"), node("Transpose", "a", "u", perm=[0, 2, 1, 3]), node("Reshape", "u flat", "f"),
         node("MatMul", "f w2", "y")],
        {"x": [2, 3, 8]}, ["y"],
        {"w1": weight(8, 12), "w2": weight(12, 5), "shape": ints(0, 0, 2, 6), "flat": ints(0, 0, -1)}, opset=24,
    )  # fmt: skip
    pruned, analysis = prove(OnnxHost.load(proto))
    assert [(group.kind, group.size) for group in analysis.groups] == [("head", 2), ("qk-dim", 6)]
    attention = next(entry for entry in pruned.proto.graph.node if entry.op_type == "Attention")
    assert [(a.name, round(a.f, 6)) for a in attention.attribute] == [("scale", round(6**-0.5, 6))]


def test_scales_and_zero_points_are_cut() -> None:
    proto = model(
        [node("DequantizeLinear", "q s z", "w1", axis=1), node("MatMul", "x w1", "h"), node("MatMul", "h w2", "y")],
        {"x": [2, 8]}, ["y"],
        {"q": RNG.integers(-9, 9, (8, 12)).astype(np.int8), "s": np.abs(weight(12)), "z": np.zeros(12, np.int8), "w2": weight(12, 5)},
    )  # fmt: skip
    pruned, analysis = prove(OnnxHost.load(proto))
    assert analysis.groups[0].tensors == ("q", "s", "z", "w2")
    assert pruned.read("z").shape == (6,)


def test_recurrent_layers_are_cut() -> None:
    proto = model(
        [node("LSTM", "x w r b", "s h c", hidden_size=12, direction="bidirectional"), node("Squeeze", "h", "q"),
         node("ReduceSum", "h axes", "d", keepdims=0), node("MatMul", "d v", "y")],
        {"x": [4, 2, 8]}, ["y"],
        {"w": weight(2, 48, 8), "r": weight(2, 48, 12), "b": weight(2, 96), "v": weight(12, 5), "axes": ints(0)},
    )  # fmt: skip
    pruned, analysis = prove(OnnxHost.load(proto).without_dead_nodes())
    assert sizes(analysis) == [("w[1]", 12)]
    assert {a.name: a.i for a in pruned.proto.graph.node[0].attribute}["hidden_size"] == 6


# -- normalizers in the masked model -----------------------------------------------------------------------------


def normalized(*nodes: onnx.NodeProto, opset: int = 18, width: int = 12, **initializers: Array) -> onnx.ModelProto:
    """``x -> conv -> normalisation from h to n -> conv``."""
    return model(
        [node("Conv", "x w1", "h"), *nodes, node("Conv", "n w2", "y")],
        {"x": [2, 3, 4, 5]}, ["y"],
        {"w1": weight(width, 3, 1, 1), "w2": weight(5, width, 1, 1), "axes": ints(1), **initializers}, opset=opset,
    )  # fmt: skip


NORMALIZERS = {
    "ReduceMean, axes as operand": normalized(node("ReduceMean", "h axes", "m"), node("Sub", "h m", "n")),
    "ReduceMean, axes as attribute": normalized(node("ReduceMean", "h", "m", axes=[1]), node("Sub", "h m", "n"), opset=13),
    "ReduceMean of everything": normalized(node("ReduceMean", "h", "m"), node("Sub", "h m", "n")),
    "LayerNormalization": normalized(
        node("LayerNormalization", "h s b", "n", axis=1), s=weight(12, 1, 1), b=weight(12, 1, 1)
    ),
    "LayerNormalization over the last axis": normalized(
        node("Transpose", "h", "t", perm=[0, 2, 3, 1]), node("LayerNormalization", "t s b", "l", epsilon=0.1),
        node("Transpose", "l", "n", perm=[0, 3, 1, 2]), s=weight(12), b=weight(12),
    ),
    "RMSNormalization": normalized(
        node("Transpose", "h", "t", perm=[0, 2, 3, 1]), node("RMSNormalization", "t s", "l"),
        node("Transpose", "l", "n", perm=[0, 3, 1, 2]), s=weight(12), opset=23,
    ),
    "GroupNormalization per channel": normalized(
        node("GroupNormalization", "h s b", "n", num_groups=3), s=weight(12), b=weight(12), opset=21
    ),
    "GroupNormalization per group": normalized(
        node("GroupNormalization", "h s b", "n", num_groups=3), s=weight(3), b=weight(3), opset=18
    ),
    "GroupNormalization, as exported": normalized(
        node("Reshape", "h blocks", "r"), node("InstanceNormalization", "r s b", "i"), node("Reshape", "i back", "n"),
        blocks=ints(0, 3, -1), back=ints(2, 12, 4, 5), s=weight(3), b=weight(3),
    ),
    "InstanceNormalization": normalized(node("InstanceNormalization", "h s b", "n"), s=weight(12), b=weight(12)),
    "LpNormalization": normalized(node("LpNormalization", "h", "n", axis=1)),
    "MeanVarianceNormalization": normalized(node("MeanVarianceNormalization", "h", "n", axes=[1, 2, 3])),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers_count_kept_units_only(name: str) -> None:
    prove(OnnxHost.load(NORMALIZERS[name]))


def test_a_normalizer_without_masked_form_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    known = onnx_masked.facts_of
    for module in (onnx_masked, onnx_masked_forms):
        monkeypatch.setattr(module, "facts_of", lambda name: replace(known(name), masked=""))
    host = OnnxHost.load(normalized(node("MeanVarianceNormalization", "h", "n", axes=[1])))
    analysis = analyze_graph(host.graph())
    with pytest.raises(ProofError) as caught:
        host.run_masked(host.example_inputs(), masks(analysis, halved(analysis)))
    assert str(caught.value) == (
        "'MeanVarianceNormalization' (node 'n') takes a statistic over an axis that is cut, and no masked form of it is "
        "known; protect what reaches it, or add one to graphprune/hosts/onnx/masked_forms.py"
    )


# -- folding and dead nodes --------------------------------------------------------------------------------------


def test_folding_freezes_what_static_sizes_say() -> None:
    proto = model(
        [
            node("MatMul", "x w1", "h"), node("Shape", "h", "shape"), node("Gather", "shape last", "size"),
            node("Cast", "size", "f", to=1), node("Sqrt", "f", "root"), node("Div", "h root", "d"), node("MatMul", "d w2", "y"),
        ],
        {"x": ["n", 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5), "last": np.array(-1)},
    )  # fmt: skip
    host = OnnxHost.load(proto).folded()
    assert [entry.op_type for entry in host.proto.graph.node] == ["MatMul", "Div", "MatMul"]
    assert host.read("root") == np.float32(12**0.5)
    assert host.read("root").shape == ()
    prove(host)


def test_folding_leaves_dynamic_sizes_and_weights() -> None:
    proto = model(
        [node("Shape", "x", "s"), node("Reshape", "x s", "r"), node("Mul", "w half", "v"), node("MatMul", "r v", "y")],
        {"x": ["n", 8]}, ["y"], {"w": weight(8, 5), "half": np.array(0.5, np.float32)},
    )  # fmt: skip
    host = OnnxHost.load(proto)
    assert [entry.op_type for entry in host.folded().proto.graph.node] == ["Shape", "Reshape", "Mul", "MatMul"]


def test_tables_of_ranges_are_folded_and_cut() -> None:
    proto = model(
        [
            node("Range", "zero n one", "i"), node("Cast", "i", "f", to=1), node("Cos", "f", "c"), node("MatMul", "x w1", "h"),
            node("Mul", "h c", "m"), node("MatMul", "m w2", "y"),
        ],
        {"x": [2, 8]}, ["y"],
        {"w1": weight(8, 12), "w2": weight(12, 5), "zero": np.array(0), "n": np.array(12), "one": np.array(1)},
    )  # fmt: skip
    host = OnnxHost.load(proto)
    assert analyze_graph(host.graph()).groups == ()
    pruned, analysis = prove(host.folded())
    assert sizes(analysis) == [("w1[1]", 12)]
    assert pruned.read("c").shape == (6,)


def test_folding_stays_within_its_budget() -> None:
    proto = model(
        [node("ConstantOfShape", "huge", "c"), node("Shape", "c", "s"), node("Cast", "s", "f", to=1), node("Add", "x f", "y")],
        {"x": [2]}, ["y"], {"huge": ints(1 << 20, 1 << 19)},
    )  # fmt: skip
    folded = OnnxHost.load(proto).folded()
    assert [entry.op_type for entry in folded.proto.graph.node] == ["Add"]
    np.testing.assert_array_equal(np.float32([1 << 20, 1 << 19]), folded.run({"x": np.zeros(2, np.float32)})["y"])


def test_dead_nodes_go_and_inputs_stay() -> None:
    proto = mlp()
    proto.graph.input.append(helper.make_tensor_value_info("unused", FLOAT, [1]))
    proto.graph.node.append(node("MatMul", "x dead", "nothing"))
    proto.graph.initializer.append(numpy_helper.from_array(weight(8, 64), "dead"))
    host = OnnxHost.load(proto).without_dead_nodes()
    assert [entry.name for entry in host.proto.graph.node] == ["h", "a", "r", "y"]
    assert [entry.name for entry in host.proto.graph.input] == ["x", "unused"]
    assert "dead" not in host.store


# -- subgraphs ---------------------------------------------------------------------------------------------------


def branching() -> onnx.ModelProto:
    """A branch that uses a weight and a value of the main graph, and keeps a weight of its own."""
    then = helper.make_graph([node("MatMul", "h w3", "t0"), node("Add", "t0 own", "t")], "then", [],
                             [helper.make_tensor_value_info("t", FLOAT, None)], [numpy_helper.from_array(weight(64), "own")])  # fmt: skip
    other = helper.make_graph(
        [node("Neg", "h", "e0"), node("MatMul", "e0 w3", "e")],
        "else",
        [],
        [helper.make_tensor_value_info("e", FLOAT, None)],
    )
    return model(
        [node("MatMul", "x w1", "g"), node("MatMul", "g w2", "h"),
         helper.make_node("If", ["flag"], ["y"], "branch", then_branch=then, else_branch=other)],
        {"x": ["n", 8], "flag": []}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 32), "w3": weight(32, 64)},
        types={"flag": TensorProto.BOOL},
    )  # fmt: skip


@pytest.mark.parametrize("flag", [False, True])
def test_subgraphs_are_kept(tmp_path: Path, flag: bool) -> None:
    proto = branching()
    host = OnnxHost.load(proto)
    pruned, analysis = prove(host)
    assert sizes(analysis) == [("w1[1]", 12), ("w2[1]", 32)]  # through both branches
    inputs = {"x": weight(2, 8), "flag": np.array(flag)}
    expected = original(proto, inputs)[0]
    np.testing.assert_allclose(host.folded().without_dead_nodes().run(inputs)["y"], expected, rtol=1e-5)
    pruned.save_onnx(tmp_path / "out.onnx")
    np.testing.assert_array_equal(pruned.run(inputs)["y"], OnnxHost.load(tmp_path / "out.onnx").run(inputs)["y"])


def test_conditions_that_are_known_are_decided(tmp_path: Path) -> None:
    """An exporter asks whether an axis has one element; the answer is in the shapes, and the branch is gone."""
    proto = branching()
    proto.graph.input.pop()
    for at, each in enumerate(
        [node("Shape", "h", "shape"), node("Gather", "shape last", "size"), node("Equal", "size last", "flag")]
    ):
        proto.graph.node.insert(2 + at, each)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1), "last"))
    host = OnnxHost.load(proto).folded().without_dead_nodes()
    assert [entry.op_type for entry in host.proto.graph.node] == ["MatMul", "MatMul", "Neg", "MatMul", "Identity"]
    _, analysis = prove(host)
    assert sizes(analysis) == [("w1[1]", 12), ("w2[1]", 32)]


def nested_branches() -> onnx.ModelProto:
    """A branch in a branch; the other sides hand on a value that was made outside of them."""
    inner = helper.make_node(
        "If", ["second"], ["i"], "inner",
        then_branch=helper.make_graph([node("Relu", "a", "t1")], "then", [], [helper.make_tensor_value_info("t1", FLOAT, None)]),
        else_branch=helper.make_graph([node("Identity", "a", "e1")], "else", [], [helper.make_tensor_value_info("e1", FLOAT, None)]),
    )  # fmt: skip
    outer = helper.make_node(
        "If", ["first"], ["o"], "outer",
        then_branch=helper.make_graph([node("Neg", "h", "a"), inner], "then", [], [helper.make_tensor_value_info("i", FLOAT, None)]),
        else_branch=helper.make_graph([node("Identity", "h", "e0")], "else", [], [helper.make_tensor_value_info("e0", FLOAT, None)]),
    )  # fmt: skip
    return model(
        [node("MatMul", "x w1", "h"), outer, node("MatMul", "o w2", "y")],
        {"x": ["n", 8], "first": [], "second": []}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5)},
        types={"first": TensorProto.BOOL, "second": TensorProto.BOOL},
    )  # fmt: skip


@pytest.mark.parametrize(("first", "second"), [(False, False), (True, False), (True, True)])
def test_branches_in_branches(tmp_path: Path, first: bool, second: bool) -> None:
    host = OnnxHost.load(nested_branches(), given={"first": np.array(first), "second": np.array(second)})
    x = np.asarray(host.example_inputs()["x"])
    h = x @ host.read("w1")
    h = np.maximum(-h, 0) if first and second else -h if first else h
    np.testing.assert_allclose(host.run(host.example_inputs())["y"], h @ host.read("w2"), rtol=1e-4)
    pruned, analysis = prove(host)
    assert sizes(analysis) == [("w1[1]", 12)]
    pruned.save_onnx(tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    inputs = host.example_inputs()
    np.testing.assert_array_equal(pruned.run(inputs)["y"], OnnxHost.load(tmp_path / "out.onnx").run(inputs)["y"])


def test_what_a_loop_body_uses_stays_whole() -> None:
    body = helper.make_graph(
        [node("Identity", "c", "again"), node("Add", "s h", "t")], "body",
        [helper.make_tensor_value_info("i", INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("s", FLOAT, None)],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, []), helper.make_tensor_value_info("t", FLOAT, None)],
    )  # fmt: skip
    proto = model(
        [node("MatMul", "x w1", "g"), node("MatMul", "g w2", "h"), helper.make_node("Loop", ["n", "", "h"], ["y"], "loop", body=body)],
        {"x": [2, 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5), "n": np.array(3)},
    )  # fmt: skip
    _, analysis = prove(OnnxHost.load(proto))
    assert sizes(analysis) == [("w1[1]", 12)]
    assert [str(reason) for reason in analysis.site_reasons("w2", 1)] == [
        "what a loop body uses stays whole (node 'loop')"
    ]


def test_sequences_are_barriers() -> None:
    proto = model(
        [node("MatMul", "x w1", "g"), node("Relu", "g", "r"), node("MatMul", "r w2", "h"),
         node("SplitToSequence", "h", "parts", axis=1, keepdims=1), node("ConcatFromSequence", "parts", "c", axis=1),
         node("MatMul", "c w3", "d"), node("MatMul", "d w4", "y")],
        {"x": [2, 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 6), "w3": weight(6, 7), "w4": weight(7, 5)},
    )  # fmt: skip
    _, analysis = prove(OnnxHost.load(proto))
    assert sizes(analysis) == [("w1[1]", 12), ("w3[1]", 7)]
    for tensor, axis, at in (("w2", 1, "parts"), ("w3", 0, "c")):
        (reason,) = analysis.site_reasons(tensor, axis)
        assert str(reason) == f"sequences of tensors are not followed (node '{at}')"


def test_entries_written_at_several_coordinates_stay() -> None:
    """A removed entry would not be written: what lies there in the data would show."""
    places = np.stack([np.arange(6) % 3, np.arange(6) % 4], 1)
    proto = model(
        [node("MatMul", "x w1", "h"), node("Transpose", "h", "t", perm=[1, 0]), node("ScatterND", "data places t", "s"),
         node("MatMul", "s w2", "g"), node("Relu", "g", "r"), node("MatMul", "r w3", "y")],
        {"x": [2, 8]}, ["y"],
        {"w1": weight(8, 6), "data": weight(3, 4, 2), "places": places, "w2": weight(2, 7), "w3": weight(7, 5)},
    )  # fmt: skip
    _, analysis = prove(OnnxHost.load(proto))
    assert sizes(analysis) == [("w2[1]", 7)]
    assert [str(reason) for reason in analysis.site_reasons("w1", 1)] == [
        "every position of this axis writes something (node 's')"
    ]


def test_selections_that_are_empty_on_the_example() -> None:
    """The runtime gives a mean over nothing the shape of its operand; what ONNX infers is right."""
    proto = model(
        [node("Greater", "x limit", "m"), node("NonZero", "m", "n"), node("Transpose", "n", "i", perm=[1, 0]),
         node("MatMul", "x3 w1", "h"), node("Relu", "h", "r"), node("GatherND", "r i", "g"),
         node("ReduceMean", "g last", "mean", keepdims=1), node("Add", "mean one", "a"), node("Div", "g a", "d"),
         node("Reshape", "d flat", "f"), node("Reshape", "f rows", "back"), node("ScatterND", "r i back", "s"),
         node("MatMul", "s w2", "t"), node("Relu", "t", "u"), node("MatMul", "u w3", "y")],
        {"x": [2, 3], "x3": [2, 3, 8]}, ["y"],
        {"w1": weight(8, 6), "limit": np.float32([1e9])[0], "last": ints(-1), "flat": ints(-1), "rows": ints(0, 6),
         "one": np.ones(1, np.float32), "w2": weight(6, 7), "w3": weight(7, 5)},
    )  # fmt: skip
    proto.graph.node[10].attribute.append(helper.make_attribute("allowzero", 1))
    _, analysis = prove(OnnxHost.load(proto))
    assert sizes(analysis) == [("w2[1]", 7)]


def test_indices_of_part_of_an_axis_in_double_precision() -> None:
    """onnx's own evaluator refuses them."""
    proto = model(
        [node("GatherElements", "x i", "y", axis=1)], {"x": [4, 5, 3]}, ["y"], {"i": ints(4, 0, -1, 2).reshape(2, 2, 1)}
    )
    host = OnnxHost.load(proto)
    inputs = host.example_inputs(0)
    np.testing.assert_allclose(host.run(inputs, double=True)["y"], host.run(inputs)["y"], rtol=1e-6)


def test_random_numbers_are_the_same_in_every_run(tmp_path: Path) -> None:
    proto = model(
        [node("MatMul", "x w1", "h"), node("RandomNormalLike", "x", "noise"), node("MatMul", "noise w1", "n"),
         node("Add", "h n", "a"), node("Relu", "a", "r"), node("MatMul", "r w2", "y")],
        {"x": [2, 8]}, ["y"], {"w1": weight(8, 6), "w2": weight(6, 5)},
    )  # fmt: skip
    host = OnnxHost.load(proto)
    pruned, analysis = prove(host)
    assert sizes(analysis) == [("w1[1]", 6)]
    assert all(check.passed for check in verify(host, pruned, analysis, halved(analysis)))
    pruned.save_onnx(tmp_path / "net.onnx")
    assert not onnx.load(tmp_path / "net.onnx").graph.node[1].attribute  # as it was: no seed


# -- sizes -------------------------------------------------------------------------------------------------------


def test_a_size_that_is_computed_with_stays() -> None:
    """A sum over batch and channels, divided by their number: the channels may not go."""
    proto = model(
        [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("Size", "r", "n"), node("Cast", "n", "f", to=FLOAT),
         node("Div", "r f", "d"), node("MatMul", "d w2", "a"), node("MatMul", "a w3", "y")],
        {"x": ["batch", 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 7), "w3": weight(7, 5)},
    )  # fmt: skip
    host = OnnxHost.load(proto).folded()
    _, analysis = prove(host)
    assert sizes(analysis) == [("w2[1]", 7)]
    assert [str(reason) for reason in analysis.site_reasons("w1", 1)] == [
        "the model computes with the size of this axis (node 'n')"
    ]


def test_a_batch_that_is_computed_with_fixes_nothing_else() -> None:
    proto = model(
        [node("MatMul", "x w1", "h"), node("Shape", "h", "s"), node("Gather", "s zero", "n"), node("Cast", "n", "f", to=FLOAT),
         node("Div", "h f", "d"), node("MatMul", "d w2", "y")],
        {"x": ["batch", 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5), "zero": np.array(0)},
    )  # fmt: skip
    _, analysis = prove(OnnxHost.load(proto).folded())
    assert sizes(analysis) == [("w1[1]", 12)]


@pytest.mark.parametrize("opset", [11, 18])
def test_squeeze_without_axes_keeps_an_axis_of_one_unit(opset: int) -> None:
    proto = model(
        [node("Unsqueeze", "x", "u", axes=[1]) if opset < 13 else node("Unsqueeze", "x one", "u"),
         node("MatMul", "u w1", "h"), node("Squeeze", "h", "s"), node("MatMul", "s w2", "y")],
        {"x": [2, 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5), "one": ints(1)}, opset=opset,
    )  # fmt: skip
    host = OnnxHost.load(proto)
    analysis = analyze_graph(host.graph())
    single = {group.factor: np.array([3]) for group in analysis.groups}
    pruned = host.edited(slice_edits(analysis, single))
    inputs = host.example_inputs()
    np.testing.assert_allclose(
        pruned.run(inputs)["y"], host.run_masked(inputs, masks(analysis, single))["y"], rtol=1e-5
    )


# -- saving ------------------------------------------------------------------------------------------------------


def described() -> onnx.ModelProto:
    proto = mlp()
    proto.doc_string, proto.domain, proto.model_version = "about the model", "org.example", 7
    proto.producer_name, proto.producer_version = "maker", "1.2"
    proto.metadata_props.add(key="author", value="someone")
    proto.graph.doc_string = "about the graph"
    proto.graph.metadata_props.add(key="graph", value="entry")
    proto.graph.node[0].doc_string = "about the node"
    proto.graph.node[0].metadata_props.add(key="scope", value="layers.0")
    proto.graph.initializer[0].doc_string = "about the weight"
    proto.graph.value_info.append(helper.make_tensor_value_info("h", FLOAT, ["batch", 12]))
    return proto


def test_save_keeps_everything_else(tmp_path: Path) -> None:
    host, _ = prove(OnnxHost.load(described()))
    host.save_onnx(tmp_path / "out.onnx", {"graphprune": "{}", "author": "someone else"})
    saved = onnx.load(tmp_path / "out.onnx")
    before = described()
    for name in ("doc_string", "domain", "model_version", "producer_name", "producer_version", "ir_version"):
        assert getattr(saved, name) == getattr(before, name)
    assert [(entry.domain, entry.version) for entry in saved.opset_import] == [("", 18)]
    assert {entry.key: entry.value for entry in saved.metadata_props} == {"author": "someone else", "graphprune": "{}"}
    assert saved.graph.doc_string == "about the graph"
    assert [(entry.key, entry.value) for entry in saved.graph.metadata_props] == [("graph", "entry")]
    first = saved.graph.node[0]
    assert (first.doc_string, [(entry.key, entry.value) for entry in first.metadata_props]) == (
        "about the node",
        [("scope", "layers.0")],
    )
    assert saved.graph.initializer[0].doc_string == "about the weight"
    assert saved.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    inferred = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in saved.graph.value_info
    }
    assert inferred["h"] == ["batch", 6]
    onnx.checker.check_model(saved, full_check=True)


def test_surgery_keeps_attributes_that_graphsurgeon_would_lose() -> None:
    proto = mlp()
    strange = node("Strange", "y", "z", domain="com.example", empty="", floats=[1.0, 2.0])
    strange.attribute.append(onnx.AttributeProto(name="none", type=onnx.AttributeProto.INTS))
    strange.attribute.append(onnx.AttributeProto(name="bytes", type=onnx.AttributeProto.STRING, s=b"\xff\xfe"))
    kind = helper.make_attribute("type", helper.make_tensor_type_proto(FLOAT, [1]))
    strange.attribute.append(kind)
    proto.graph.node.append(strange)
    proto.graph.output.append(onnx.ValueInfoProto(name="z"))
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    host = OnnxHost.load(proto)
    kept = {a.name: a.SerializeToString() for a in host.without_dead_nodes().proto.graph.node[-1].attribute}
    assert {a.name: a.SerializeToString() for a in strange.attribute} == kept


def test_large_models_get_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model([node("MatMul", "x w", "h"), node("MatMul", "h v", "y")], {"x": ["n", 64]}, ["y"],
                  {"w": weight(64, 96), "v": weight(96, 4)})  # fmt: skip
    monkeypatch.setattr(onnx_save, "EXTERNAL_BYTES", 1000)
    host, _ = prove(OnnxHost.load(proto))
    host.save_onnx(tmp_path / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    again = OnnxHost.load(tmp_path / "out.onnx")
    x = host.example_inputs()
    np.testing.assert_array_equal(host.run(x)["y"], again.run(x)["y"])
    assert again.sources == {tmp_path / "out.onnx.data"}
    with pytest.raises(OutputError) as caught:
        again.save_onnx(tmp_path / "out.onnx")
    assert str(caught.value) == (
        f"'{tmp_path / 'out.onnx.data'}' holds the weights of the model that is being read; give another path"
    )


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = OnnxHost.load(mlp())
    (tmp_path / "out.onnx").write_text("what was there")

    def refuse(checked: object, **_: object) -> None:
        if isinstance(checked, str):  # what was written, not what was loaded
            raise onnx.checker.ValidationError("broken\nin detail")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(OutputError) as caught:
        host.save_onnx(tmp_path / "out.onnx")
    assert str(caught.value) == (
        "the model that would be written to 'out.onnx' is not valid ONNX: broken; "
        "nothing was written. Please report this with the model"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_text() == "what was there"


def test_save_to_nowhere(tmp_path: Path) -> None:
    host = OnnxHost.load(mlp())
    with pytest.raises(OutputError) as caught:
        host.save_onnx(tmp_path / "no" / "out.onnx")
    assert str(caught.value) == (
        f"cannot write '{tmp_path / 'no' / 'out.onnx'}': no folder '{tmp_path / 'no'}'; give a path in a folder that exists"
    )
    with pytest.raises(OutputError) as caught:
        host.save_onnx(tmp_path)
    assert str(caught.value) == f"cannot write '{tmp_path}': it is a folder; give the path of a file"


# -- inputs ------------------------------------------------------------------------------------------------------


def test_example_inputs_fit() -> None:
    proto = model(
        [node("Gather", "table ids", "e"), node("Cast", "attention_mask", "m", to=1), node("Unsqueeze", "m axes", "u"), node("Mul", "e u", "y")],
        {"ids": ["n", "s"], "attention_mask": ["n", "s"], "flag": [], "f": [3]}, ["y"], {"table": weight(5, 4), "axes": ints(2)},
        types={"ids": INT64, "attention_mask": INT64, "flag": TensorProto.BOOL},
    )  # fmt: skip
    inputs = OnnxHost.load(proto).example_inputs(3)
    assert inputs["ids"].shape == (2, 16)
    assert (inputs["ids"].min(), inputs["ids"].max()) == (0, 4)
    assert inputs["attention_mask"].all()
    assert inputs["flag"].dtype == np.bool_
    assert inputs["f"].dtype == np.float32
    np.testing.assert_array_equal(inputs["f"], OnnxHost.load(proto).example_inputs(3)["f"])


def test_example_inputs_that_are_given() -> None:
    """One model takes only numbers of its own kind, and only as many: what is given decides, the rest is random."""
    proto = mlp(x=["batch", 8])
    x = weight(3, 8)
    host = open_host(proto, {"x": x})
    np.testing.assert_array_equal(host.example_inputs(5)["x"], x)
    assert host.graph().values["y"].shape == (3, 5)
    with pytest.raises(OptionError) as caught:
        open_host(proto, (x,))
    assert str(caught.value) == (
        "an ONNX file takes example inputs by name, got a 'tuple'; pass a mapping from names of inputs to arrays"
    )


def test_the_proof_is_made_at_two_sets_of_sizes() -> None:
    host = OnnxHost.load(mlp())
    analysis = analyze_graph(host.graph())
    kept = halved(analysis)
    pruned = host.edited(slice_edits(analysis, kept))
    other = host.at_other_sizes()
    assert other is not None
    assert (host.bound["x"], other.bound["x"]) == ((2, 8), (3, 8))
    check = verify(host, pruned, analysis, kept)[0]
    assert (check.passed, check.note) == (
        True,
        "pruned = masked original, at two sets of sizes, also in 1 values inside",
    )
    # right at the first sizes only: a bias that is as long as the batch
    proto = onnx.ModelProto()
    proto.CopyFrom(pruned.proto)
    proto.graph.node.append(node("Shape", "y", "shape"))
    proto.graph.node.append(node("Gather", "shape first", "n"))
    proto.graph.node.append(node("Cast", "n", "f", to=FLOAT))
    proto.graph.node.append(node("Sub", "f two", "d"))
    proto.graph.node.append(node("Add", "y d", "z"))
    proto.graph.initializer.extend(
        [numpy_helper.from_array(np.array(0), "first"), numpy_helper.from_array(np.array(2, np.float32), "two")]
    )
    proto.graph.output[0].name = "z"
    wrong = verify(host, replace(pruned, proto=proto), analysis, kept)[0]
    assert not wrong.passed
    assert OnnxHost.load(mlp(x=[2, 8])).at_other_sizes() is None


def test_run_refuses_inputs_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="onnxruntime cannot run the model: .* give input shapes that fit"):
        OnnxHost.load(mlp()).run({"x": weight(2, 9)})


def test_a_model_on_which_the_optimiser_fails_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ort.InferenceSession

    def failing(source, options, **more):
        if options.graph_optimization_level != ort.GraphOptimizationLevel.ORT_DISABLE_ALL:
            raise RuntimeError("Attempt to replace the existing tensor")
        return made(source, options, **more)

    host = OnnxHost.load(mlp())
    expected = host.run(host.example_inputs())
    monkeypatch.setattr(ort, "InferenceSession", failing)
    assert all(np.allclose(expected[name], y) for name, y in host.run(host.example_inputs()).items())


def test_shapes_that_depend_on_data_are_found_by_a_run() -> None:
    proto = model(
        [node("NonZero", "x", "i"), node("Transpose", "i", "t"), node("GatherND", "x t", "v"), node("ReduceSum", "v", "y", keepdims=0)],
        {"x": [2, 3]}, ["y"], {},
    )  # fmt: skip
    values = OnnxHost.load(proto).graph().values
    assert values["i"].shape == (2, 6)
    assert values["i"].dynamic == {0, 1}
