"""onnxruntime's own operators and quantised models: found, pruned and proven like any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_cases import CASES, Case
from test_onnx_ops import Judged

from graphprune.analysis.groups import Analysis, analyze_graph
from graphprune.hosts.onnx import masked as onnx_masked
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.reference import _TABLE as REFERENCE
from graphprune.hosts.onnx.reference import OPERATORS
from graphprune.importance.context import Evidence
from graphprune.importance.magnitude import l2
from graphprune.passes.slice_groups import slice_edits
from graphprune.passes.verify import verify

RNG = np.random.default_rng(0)
Array = NDArray[Any]


def weight(*shape: int) -> Array:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def bytes_(*shape: int, signed: bool = False) -> Array:
    return RNG.integers(-100 if signed else 20, 100 if signed else 220, shape).astype(np.int8 if signed else np.uint8)


def zero(value: int) -> Array:
    return np.array(value, np.uint8)


def scale(value: float) -> Array:
    return np.array(value, np.float32)


def node(op: str, operands: str, results: str, **attributes: Any) -> onnx.NodeProto:
    """A node; operators with a star are onnxruntime's own."""
    names = [name if name != "-" else "" for name in operands.split()]
    outputs = [name if name != "-" else "" for name in results.split()]
    domain = "com.microsoft" if op.startswith("*") else ""
    return helper.make_node(op.lstrip("*"), names, outputs, outputs[0], domain=domain, **attributes)


def host(
    nodes: Sequence[onnx.NodeProto],
    x: Sequence[int | str],
    initializers: dict[str, Array],
    kind: int = TensorProto.FLOAT,
) -> OnnxHost:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return OnnxHost.load(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def prove(model: OnnxHost) -> Analysis:
    """Removes a random half of every group and proves the result."""
    analysis = analyze_graph(model.graph())
    rng = np.random.default_rng(1)
    kept = {g.factor: np.sort(rng.choice(g.size, max(1, g.size // 2), replace=False)) for g in analysis.groups}
    pruned = model.edited(slice_edits(analysis, kept))
    checks = verify(model, pruned, analysis, kept)
    assert [check.name for check in checks if not check.passed] == []
    assert all(check.informative for check in checks)
    return analysis


def kinds(analysis: Analysis) -> list[tuple[str, int]]:
    return [(group.kind, group.size) for group in analysis.groups]


def attention_block() -> OnnxHost:
    """A block as the optimiser writes it: fused attention, a sum with its normalisation, a fused activation."""
    return host(
        [node("*FusedMatMul", "x wq", "q", alpha=0.5), node("MatMul", "x wk", "k"), node("MatMul", "x wv", "v"),
         node("*MultiHeadAttention", "q k v bias", "a", num_heads=4), node("MatMul", "a wo", "o"),
         node("*SkipLayerNormalization", "o r g b", "n - - s"), node("MatMul", "n w1", "h"),
         node("*BiasGelu", "h b1", "f"), node("MatMul", "f w2", "m"),
         node("*SkipSimplifiedLayerNormalization", "m s g2", "z"), node("MatMul", "z w3", "y"),
         node("MatMul", "x wr", "r")],
        ["batch", 6, 10],
        {"wq": weight(10, 16), "wk": weight(10, 16), "wv": weight(10, 24), "bias": weight(56), "wo": weight(24, 12),
         "wr": weight(10, 12), "g": weight(12), "b": weight(12), "w1": weight(12, 20), "b1": weight(20),
         "w2": weight(20, 12), "g2": weight(12), "w3": weight(12, 5)},
    )  # fmt: skip


def embeddings() -> OnnxHost:
    """Three tables, their sum, its normalisation, and the first fused attention with its own projections."""
    return host(
        [node("*EmbedLayerNormalization", "x - words places - g b", "e - s"),
         node("*Attention", "e w wb", "a", num_heads=2), node("*FastGelu", "a fb", "f"),
         node("*QuickGelu", "s", "q"), node("MatMul", "f w1", "m"), node("Add", "m q", "t"), node("MatMul", "t w2", "y")],
        [2, 6],
        {"words": weight(9, 12), "places": weight(8, 12), "g": weight(12), "b": weight(12), "w": weight(12, 48),
         "wb": weight(48), "fb": weight(16), "w1": weight(16, 12), "w2": weight(12, 5)},
        TensorProto.INT32,
    )  # fmt: skip


def grouped_queries() -> OnnxHost:
    """Grouped-query attention with rotation inside, as in an optimised Llama."""
    return host(
        [node("SimplifiedLayerNormalization", "x g", "n"), node("MatMul", "n wqkv", "p"),
         node("*GroupQueryAttention", "p - - - - lengths total cos sin", "a k v", num_heads=4, kv_num_heads=2, do_rotary=1),
         node("MatMul", "a wo", "y")],
        [2, 5, 10],
        {"g": weight(10), "wqkv": weight(10, 128), "lengths": np.array([4, 4], np.int32), "total": np.array(5, np.int32),
         "cos": weight(9, 8), "sin": weight(9, 8), "wo": weight(64, 6)},
    )  # fmt: skip


def convolutions() -> OnnxHost:
    """Fused convolutions with a summand."""
    return host(
        [node("*FusedConv", "x w1 b1", "h", activation="Relu", pads=[1, 1, 1, 1]),
         node("*FusedConv", "h w2 b2 h", "s", activation="LeakyRelu", activation_params=[0.1], pads=[1, 1, 1, 1]),
         node("GlobalAveragePool", "s", "p"), node("Flatten", "p", "f"),
         node("*FusedGemm", "f w3 b3", "y", activation="Tanh", transB=1)],
        [2, 3, 6, 6],
        {"w1": weight(8, 3, 3, 3), "b1": weight(8), "w2": weight(8, 8, 3, 3), "b2": weight(8), "w3": weight(5, 8), "b3": weight(5)},
    )  # fmt: skip


FUSED: dict[str, tuple[Callable[[], OnnxHost], list[tuple[str, int]]]] = {
    "attention": (
        attention_block,
        [("head", 4), ("qk-dim", 4), ("value-dim", 6), ("width", 12), ("neuron", 20)],
    ),
    "embeddings": (embeddings, [("width", 12), ("head", 2), ("qk-dim", 8)]),
    "grouped queries": (grouped_queries, [("kv-group", 2), ("query-head", 2)]),
    "convolutions": (convolutions, [("channel", 8)]),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_operators(name: str) -> None:
    build, expected = FUSED[name]
    assert sorted(kinds(prove(build()))) == sorted(expected)


def quantised_operators() -> OnnxHost:
    """``QLinear`` operators from a float input to a float output; no zero point is zero."""
    return host(
        [node("QuantizeLinear", "x s1 z1", "q"),
         node("QLinearConv", "q s1 z1 w1 sw1 zw1 s2 z2 b1", "c", pads=[1, 1, 1, 1]),
         node("*QLinearLeakyRelu", "c s2 z2 s3 z3", "l", alpha=0.1), node("MaxPool", "l", "m", kernel_shape=[2, 2]),
         node("QLinearConv", "m s3 z3 w2 sw2 zw2 s2 z2", "d"), node("*QLinearSigmoid", "d s2 z2 s4 z4", "g"),
         node("*QLinearMul", "d s2 z2 g s4 z4 s3 z3", "u"), node("*QLinearConcat", "s2 z2 u s3 z3 d s2 z2", "k", axis=1),
         node("*QLinearGlobalAveragePool", "k s2 z2 s3 z3", "p"), node("Flatten", "p", "f"),
         node("*QGemm", "f s3 z3 w3 sw1 zw1 - s2 z2", "o"), node("DequantizeLinear", "o s2 z2", "y")],
        [2, 3, 8, 8],
        {"s1": scale(0.02), "z1": zero(120), "w1": bytes_(8, 3, 3, 3), "sw1": scale(0.004), "zw1": zero(110),
         "s2": scale(0.01), "z2": zero(100), "b1": RNG.integers(-99, 99, 8).astype(np.int32), "s3": scale(0.012),
         "z3": zero(90), "w2": bytes_(6, 8, 3, 3, signed=True), "sw2": np.full(6, 0.004, np.float32),
         "zw2": np.zeros(6, np.int8), "s4": scale(0.004), "z4": zero(7), "w3": bytes_(12, 5)},
    )  # fmt: skip


def quantised_pairs() -> OnnxHost:
    """``DequantizeLinear`` and ``QuantizeLinear`` around plain operators, weights per channel."""
    return host(
        [node("QuantizeLinear", "x s z", "xq"), node("DequantizeLinear", "xq s z", "xd"),
         node("DequantizeLinear", "w1 sw zw", "w1d", axis=0), node("Conv", "xd w1d", "c"),
         node("QuantizeLinear", "c s2 z2", "cq"), node("DequantizeLinear", "cq s2 z2", "cd"), node("Relu", "cd", "r"),
         node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "f"),
         node("DequantizeLinear", "w2 s2 z2", "w2d"), node("MatMul", "f w2d", "y")],
        [2, 3, 8, 8],
        {"s": scale(0.02), "z": zero(120), "w1": bytes_(8, 3, 3, 3, signed=True), "sw": weight(8) ** 2 * 0.1,
         "zw": np.zeros(8, np.int8), "s2": scale(0.05), "z2": zero(130), "w2": bytes_(8, 5)},
    )  # fmt: skip


def quantised_as_they_come() -> OnnxHost:
    """Activations that are quantised at run time, before integer products; and the fused form."""
    return host(
        [node("DynamicQuantizeLinear", "x", "xq xs xz"), node("MatMulInteger", "xq w1 xz zw", "i"),
         node("Cast", "i", "f", to=1), node("Mul", "xs sw", "s"), node("Mul", "f s", "h"), node("Relu", "h", "r"),
         node("*DynamicQuantizeMatMul", "r w2 sw2 zw2", "d"), node("Tanh", "d", "g"),
         node("DynamicQuantizeLinear", "g", "gq gs gz"), node("*MatMulIntegerToFloat", "gq w3 gs sw gz zw", "y")],
        [4, 6],
        {"w1": bytes_(6, 16), "zw": zero(110), "sw": scale(0.01), "w2": bytes_(16, 12), "sw2": weight(12) ** 2 * 0.1,
         "zw2": bytes_(12), "w3": bytes_(12, 5)},
    )  # fmt: skip


def four_bits() -> OnnxHost:
    """Weights of four bits: rows one by one, inputs in blocks of 16 (in pairs of blocks where zeros are packed)."""
    return host(
        [node("*MatMulNBits", "x w1 s1", "h", K=32, N=64, bits=4, block_size=16), node("Relu", "h", "r"),
         node("*MatMulNBits", "r w2 s2 z2", "y", K=64, N=8, bits=4, block_size=16)],
        [3, 32],
        {"w1": bytes_(64, 2, 8), "s1": weight(128) * 0.1, "w2": bytes_(8, 4, 8), "s2": weight(32) * 0.1, "z2": bytes_(16)},
    )  # fmt: skip


QUANTISED: dict[str, tuple[Callable[[], OnnxHost], list[int]]] = {
    "QLinear": (quantised_operators, [8, 6]),
    "QDQ": (quantised_pairs, [8]),
    "dynamic": (quantised_as_they_come, [16, 12]),
    "4 bits": (four_bits, [2]),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_models(name: str) -> None:
    build, expected = QUANTISED[name]
    assert [group.size for group in prove(build()).groups] == expected


def test_deduplicated_quantised_zeros_do_not_tie_layers() -> None:
    """Exporters store equal biases once, and quantisers dequantise them once: two layers have nothing else in common."""
    model = host(
        [node("DequantizeLinear", "b s z", "bias"), node("MatMul", "x w1", "a"), node("Add", "a bias", "c"),
         node("Relu", "c", "r"), node("MatMul", "r w2", "d"), node("Add", "d bias", "e"), node("MatMul", "e w3", "y")],
        [3, 6],
        {"b": np.zeros(12, np.int8), "s": scale(0.1), "z": np.array(0, np.int8), "w1": weight(6, 12),
         "w2": weight(12, 12), "w3": weight(12, 5)},
    )  # fmt: skip
    assert [group.size for group in prove(model).groups] == [12, 12]


def test_a_removed_unit_of_a_quantised_tensor_holds_the_zero_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the zero points of the masked model the proof fails: it is they that make it true."""
    known = onnx_masked.facts_of
    monkeypatch.setattr(onnx_masked, "facts_of", lambda name: replace(known(name), zero_point=None))
    with pytest.raises(AssertionError):
        prove(quantised_operators())


def test_quantised_weights_are_scored_as_the_numbers_they_mean() -> None:
    model = quantised_pairs()
    stored = np.asarray(model._stored("w2"))
    np.testing.assert_allclose(model.read("w2"), (stored.astype(np.float32) - 130) * 0.05, rtol=1e-6)
    numbers = model.read("w1")
    scales = np.asarray(model.read("sw"))
    np.testing.assert_allclose(numbers, np.asarray(model._stored("w1")) * scales[:, None, None, None], rtol=1e-6)
    analysis = analyze_graph(model.graph())
    (group,) = analysis.groups
    want = np.sqrt((numbers**2).sum((1, 2, 3)) + scales**2 + (model.read("w2") ** 2).sum(1))
    np.testing.assert_allclose(l2(Evidence(analysis, model.read))[group.name], want, rtol=1e-5)


def test_packed_weights_are_scored_by_all_numbers_in_a_byte() -> None:
    model = four_bits()
    packed, scales = np.asarray(model._stored("w2")), np.asarray(model._stored("s2")).reshape(8, 4)
    zeros = np.asarray(model._stored("z2")).reshape(8, 2)
    zeros = np.stack([zeros & 15, zeros >> 4], -1).reshape(8, 4, 1).astype(np.float32)
    low, high = ((part.astype(np.float32) - zeros) * scales[:, :, None] for part in (packed & 15, packed >> 4))
    np.testing.assert_allclose(model.read("w2"), np.sqrt(low**2 + high**2), rtol=1e-5)


@pytest.mark.parametrize("name", FUSED)
def test_fused_operators_in_float64(name: str) -> None:
    """The evaluator of the float64 proof and onnxruntime agree."""
    model = FUSED[name][0]()
    inputs = model.example_inputs()
    np.testing.assert_allclose(model.run(inputs)["y"], model.run(inputs, double=True)["y"], rtol=1e-3, atol=1e-5)
    assert model.run(inputs, double=True)["y"].dtype == np.float64


ALONE = [case for case in CASES if case.op in {f"com.microsoft::{op}" for op in REFERENCE}]


UNCOVERED = {
    "com.microsoft::Attention-20(2x5x8 8x24 24 2x5 num_heads=4 unidirectional=1)",
    "com.microsoft::MultiHeadAttention-20(2x5x12 2x4x7x3 2x4x7x3 - - 1x4x5x7 num_heads=4)",
    "com.microsoft::MultiHeadAttention-20(2x5x12 2x5x12 2x5x12 - - - 2x4x3x3 2x4x3x3 num_heads=4 scale=0.3)",
}
"""Padding, caches and packed operands, which the evaluator leaves to the runtime."""


@pytest.mark.parametrize("case", ALONE, ids=[case.id for case in ALONE])
def test_the_evaluator_computes_what_the_runtime_does(case: Case) -> None:
    judged = Judged(case)
    model = judged.model(judged.operands, case.attributes, stored=False)
    feeds = {f"x{i}": array for i, array in enumerate(judged.operands) if array is not None}
    try:
        got = ReferenceEvaluator(model, new_ops=list(OPERATORS)).run(None, feeds)
    except NotImplementedError:
        assert case.id in UNCOVERED
        return
    for have, want in zip(got, judged.run(judged.operands, {}), strict=False):
        if want is not None:
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)
