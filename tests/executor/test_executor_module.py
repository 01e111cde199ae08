"""ONNX models as PyTorch modules: names, types, what is folded and let go, what is refused, and training."""

from __future__ import annotations

import weakref
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from onnx import helper as h

from graphprune.errors import ModelError
from graphprune.executor.module import OnnxModule, key_of, name_of
from graphprune.executor.ops.table import OPERATORS
from graphprune.hosts.onnx.host import OnnxHost

F, INT, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
NAMES = ("fc.weight", "a%2Eb", "forward", "training", "T_destination", "p/x:0@y.b", "größe 1", "%")


def weight(name: str, *shape: int, dtype: Any = np.float32) -> onnx.TensorProto:
    rng = np.random.default_rng(crc32(name.encode()))
    return onnx.numpy_helper.from_array(np.asarray(rng.standard_normal(shape)).astype(dtype), name)


def model_of(
    nodes: list[onnx.NodeProto], stored: list[onnx.TensorProto], kind: int = F, **options: Any
) -> onnx.ModelProto:
    """From ``x: 3 4`` (and ``go``, a truth value) to ``y``."""
    inputs = [h.make_tensor_value_info("x", kind, [3, 4])]
    if any("go" in node.input for node in nodes):
        inputs.append(h.make_tensor_value_info("go", B, []))
    graph = h.make_graph(nodes, "net", inputs, [h.make_tensor_value_info("y", kind, None)], stored)
    return h.make_model(graph, **{"opset_imports": [h.make_opsetid("", 18)], "ir_version": 9, **options})


def linear(weight: str = "w", x: str = "x", y: str = "y") -> onnx.NodeProto:
    return h.make_node("MatMul", [x, weight], [y], f"product of {weight}")


X = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_names_are_kept(name: str) -> None:
    assert name_of(key_of(name)) == name
    module = OnnxModule(model_of([linear(name)], [weight(name, 4, 2)]))
    assert [found for found, _ in module.named_weights()] == [name]
    assert list(module.stored()) == [name]
    assert module({"x": X})["y"].shape == (3, 2)
    module.load_state_dict(module.state_dict())


def test_names_do_not_collide() -> None:
    assert len({key_of(name) for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.BFLOAT16, ml_dtypes.bfloat16), (F, np.float32)]
)
def test_types_are_kept(kind: int, dtype: Any) -> None:
    module = OnnxModule(model_of([linear()], [weight("w", 4, 2, dtype=dtype)], kind))
    (parameter,) = module.parameters()
    y = module({"x": X.to(parameter.dtype)})["y"]
    assert y.dtype == parameter.dtype
    assert module.stored()["w"].dtype == dtype


def test_a_shared_tensor_is_one_parameter() -> None:
    nodes = [linear(y="a"), h.make_node("Relu", ["a"], ["b"]), linear(x="b")]
    module = OnnxModule(model_of(nodes, [weight("w", 4, 4)]))
    module({"x": X})["y"].sum().backward()
    (w,) = module.parameters()
    v = w.detach().clone().requires_grad_()
    (torch.relu(X @ v) @ v).sum().backward()
    torch.testing.assert_close(w.grad, v.grad)


def test_what_is_a_parameter() -> None:
    """Weights are; single numbers are without gradients; whole numbers and statistics are buffers."""
    nodes = [
        h.make_node("Reshape", ["x", "shape"], ["a"]),
        h.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"]),
        h.make_node("Pow", ["b", "two"], ["c"]),
        linear("w", "c"),
    ]
    stored = [weight(name, 4) for name in ("scale", "shift", "mean")] + [weight("w", 4, 2)]
    stored.append(onnx.numpy_helper.from_array(np.full(4, 2, np.float32), "variance"))
    stored.append(onnx.numpy_helper.from_array(np.array(2.0, np.float32), "two"))
    stored.append(onnx.numpy_helper.from_array(np.array([3, 4]), "shape"))
    module = OnnxModule(model_of(nodes, stored))
    module({"x": X})["y"].sum().backward()
    assert {name: each.grad is not None for name, each in module.named_weights()} == {
        "scale": True, "shift": True, "w": True, "two": False,
    }  # fmt: skip
    assert {name_of(name) for name, _ in module.constants.named_buffers()} == {"mean", "variance", "shape"}
    assert all(bool(each.grad.isfinite().all()) for each in module.parameters() if each.grad is not None)


SINGLE = {
    "the bias of a product": ([linear(y="a"), h.make_node("Add", ["a", "one"], ["y"])], True),
    "a slope": ([linear(y="a"), h.make_node("PRelu", ["a", "one"], ["y"])], True),
    "a scale": ([linear(y="a"), h.make_node("Mul", ["a", "one"], ["y"])], False),
    "a small number": (
        [linear(y="a"), h.make_node("Mul", ["a", "a"], ["b"]), h.make_node("Add", ["b", "one"], ["y"])],
        False,
    ),
}


@pytest.mark.parametrize("single", SINGLE)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_single_number_moves_where_it_is_a_weight(single: str, shape: tuple[int, ...]) -> None:
    nodes, moves = SINGLE[single]
    module = OnnxModule(model_of(nodes, [weight("w", 4, 1), weight("one", *shape)]))
    assert {name: each.requires_grad for name, each in module.named_weights()} == {"w": True, "one": moves}


def test_values_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def relu(c: Any) -> torch.Tensor:
        nonlocal most
        found = torch.relu(c.x)
        alive.append(weakref.ref(found))
        most = max(most, sum(each() is not None for each in alive))
        return found

    monkeypatch.setattr("graphprune.executor.program.OPERATORS", {**OPERATORS, "Relu": relu})
    chain = [h.make_node("Relu", [f"v{i}" if i else "x"], [f"v{i + 1}" if i < 9 else "y"]) for i in range(10)]
    module = OnnxModule(model_of(chain, []))
    with torch.no_grad():
        found = module({"x": X})
        assert most == 2
        shown = module({"x": X}, wanted=["v3", "y"])
    assert list(found) == ["y"]
    assert list(shown) == ["v3", "y"]


def test_constants_are_folded_once_and_weights_never(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counting(op: str) -> Any:
        return lambda c: (calls.append(op), OPERATORS[op](c))[1]

    counted = {op: counting(op) for op in ("Concat", "Transpose")}
    monkeypatch.setattr("graphprune.executor.program.OPERATORS", {**OPERATORS, **counted})
    nodes = [
        h.make_node("Concat", ["four", "three"], ["shape"], axis=0),
        h.make_node("Reshape", ["x", "shape"], ["a"]),
        h.make_node("Transpose", ["w"], ["v"]),
        linear("v", "a"),
    ]
    sizes = [onnx.numpy_helper.from_array(np.array([n]), name) for name, n in (("four", 4), ("three", 3))]
    module = OnnxModule(model_of(nodes, [weight("w", 2, 3), *sizes]))
    for _ in range(2):
        module({"x": X})
    assert calls == ["Concat", "Transpose", "Transpose"]


def test_runs_are_alike_to_the_bit() -> None:
    module = OnnxModule(model_of([linear()], [weight("w", 4, 2)]))
    gradients = []
    for _ in range(2):
        module.zero_grad()
        module({"x": X})["y"].square().sum().backward()
        gradients.append([each.grad.clone() for each in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def branches() -> onnx.ModelProto:
    def side(weight: str) -> onnx.GraphProto:
        name = f"y of {weight}"
        return h.make_graph([linear(weight, y=name)], weight, [], [h.make_tensor_value_info(name, F, None)])

    node = h.make_node("If", ["go"], ["y"], "choice", then_branch=side("w"), else_branch=side("v"))
    return model_of([node], [weight("w", 4, 2), weight("v", 4, 2)])


@pytest.mark.parametrize("go", [True, False])
def test_a_branch_is_chosen_at_run_time(go: bool) -> None:
    for module in (OnnxModule(branches()), OnnxHost.load(branches()).as_module()):
        module({"x": X, "go": torch.tensor(go)})["y"].sum().backward()
        assert {name: each.grad is not None for name, each in module.named_weights()} == {"w": go, "v": not go}


def test_a_loop_has_gradients() -> None:
    body = h.make_graph(
        [h.make_node("MatMul", ["s", "w"], ["t"]), h.make_node("Identity", ["c"], ["d"])],
        "body",
        [
            h.make_tensor_value_info("i", INT, []),
            h.make_tensor_value_info("c", B, []),
            h.make_tensor_value_info("s", F, None),
        ],
        [h.make_tensor_value_info("d", B, []), h.make_tensor_value_info("t", F, None)],
    )
    loop = h.make_node("Loop", ["trips", "", "x"], ["y"], body=body)
    trips = onnx.numpy_helper.from_array(np.array(3), "trips")
    module = OnnxModule(model_of([loop], [weight("w", 4, 4), trips]))
    (w,) = module.parameters()
    y = module({"x": X})["y"]
    torch.testing.assert_close(y, X @ w @ w @ w)
    y.sum().backward()
    assert w.grad is not None


def test_functions_are_inlined() -> None:
    twice = h.make_function(
        "own", "Twice", ["a"], ["b"], [h.make_node("Add", ["a", "a"], ["b"])], [h.make_opsetid("", 18)]
    )
    nodes = [h.make_node("Twice", ["x"], ["a"], domain="own"), linear(x="a")]
    opsets = [h.make_opsetid("", 18), h.make_opsetid("own", 1)]
    module = OnnxModule(model_of(nodes, [weight("w", 4, 2)], functions=[twice], opset_imports=opsets))
    torch.testing.assert_close(module({"x": X})["y"], 2 * X @ next(module.parameters()))


def test_sequences_are_what_the_runtime_makes_of_them() -> None:
    nodes = [
        h.make_node("Split", ["x"], ["a", "b", "c"], axis=0, num_outputs=3),
        h.make_node("SequenceConstruct", ["a", "b", "c"], ["all"]),
        h.make_node("SequenceErase", ["all", "one"], ["two"]),
        h.make_node("SequenceAt", ["two", "one"], ["last"]),
        h.make_node("SequenceInsert", ["two", "last", "one"], ["three"]),
        h.make_node("ConcatFromSequence", ["three"], ["y"], axis=1),
    ]
    model = model_of(nodes, [onnx.numpy_helper.from_array(np.array(1), "one")])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": X.numpy()})
    np.testing.assert_array_equal(OnnxModule(model)({"x": X})["y"].numpy(), wanted)


def test_all_that_is_unknown_is_named_before_anything_runs() -> None:
    nodes = [
        h.make_node("Mystery", ["x"], ["a"], domain="own"),
        h.make_node("RandomNormalLike", ["a"], ["b"]),
        h.make_node("DequantizeLinear", ["w", "s"], ["v"]),
        linear("v", "b"),
    ]
    with pytest.raises(ModelError, match="3 operators") as caught:
        OnnxModule(model_of(nodes, []))
    for said in ("own::Mystery (is not known here)", "RandomNormalLike (draws", "DequantizeLinear (rounds"):
        assert said in str(caught.value)


WRONG = {
    "an input is missing": ({}, None, "no input 'x'"),
    "a value is unknown": ({"x": X}, ["z"], "no value 'z'"),
    "sizes do not fit": (
        {"x": X[:, :2]},
        None,
        r"'product of w' \(MatMul\) cannot be run in PyTorch on float32\[3, 2\]",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_say_where(wrong: str) -> None:
    inputs, wanted, said = WRONG[wrong]
    with pytest.raises(ModelError, match=said):
        OnnxModule(model_of([linear()], [weight("w", 4, 2)]))(inputs, wanted)


def test_what_a_node_reads_can_be_changed() -> None:
    nodes = [linear("w", y="a"), linear("v", y="b"), h.make_node("Sub", ["a", "b"], ["y"])]
    module = OnnxModule(model_of(nodes, [weight("w", 4, 2), weight("v", 4, 2)]))
    w, v = module.parameters()
    found = module({"x": X}, reads={("product of w", "x"): lambda x: 3 * x})["y"]
    torch.testing.assert_close(found, 3 * X @ w - X @ v)


def test_trained_weights_go_back_into_the_file() -> None:
    nodes = [linear(y="a"), h.make_node("Tanh", ["a"], ["b"]), linear("v", "b")]
    host = OnnxHost.load(model_of(nodes, [weight("w", 4, 300), weight("v", 300, 2)]))  # one of them is mapped
    module = host.as_module()
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (module({"x": X})["y"] - 1).square().mean()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    trained = host.replaced(module.stored())
    np.testing.assert_allclose(trained.run({"x": X.numpy()})["y"], module({"x": X})["y"].detach(), rtol=1e-5, atol=1e-6)
    assert not np.allclose(host.run({"x": X.numpy()})["y"], trained.run({"x": X.numpy()})["y"])
    assert {name: host.read(name).dtype for name in module.stored()} == {"w": np.float32, "v": np.float32}
