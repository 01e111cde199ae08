"""Readers of cut units: what sums over an axis is a consumer whatever its other sizes, or is named with a reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import test_aten_ops
import test_onnx_ops
import torch
from test_consumers import text_model
from torch import fx, nn
from torch.nn import functional as F

import graphprune as gp
from graphprune.compensation.sequential import compensate
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch import steps as torch_steps
from graphprune.hosts.torch.graph import build_graph
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.specs import annotate
from graphprune.ir.dims import factors_of
from graphprune.passes.slice_groups import slice_edits
from graphprune.statistics.consumers import Consumer, look
from graphprune.statistics.readers import summed_axes

# -- every row of the tables of operators ----------------------------------------------------------------------------


@dataclass
class Traced:
    """What ``look`` asks of a host, for one call in an ``fx`` graph."""

    nodes: Mapping[str, fx.Node]

    def window(self, node: str) -> Any:
        return torch_steps.window(self.nodes[node])

    def scales(self, node: str) -> Any:
        return torch_steps.scales(self.nodes[node])


def _aten(case: test_aten_ops.Case, judged: test_aten_ops.Judged, at: int) -> tuple[Any, Any]:
    """A graph of the call, and its host: floating-point tensors are stored, but for one."""
    graph, stored = fx.Graph(), {}
    seen: list[fx.Node] = []

    def leaf(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return [leaf(item) for item in value] if isinstance(value, list) else value
        if len(seen) != at and value.is_floating_point() and value.ndim:
            name = f"w{len(seen)}"
            stored[name] = nn.Parameter(value)
            seen.append(graph.create_node("get_attr", name))
        else:
            seen.append(graph.placeholder(f"x{len(seen)}"))
            seen[-1].meta["val"] = value
        return seen[-1]

    filled = {name: leaf(value) for name, value in judged.arguments.items()}
    given = tuple(filled.values())[: len(case.args)]
    call = graph.call_function(judged.target, given, dict(list(filled.items())[len(given) :]))
    results = judged.target(**judged.arguments)
    call.meta["val"] = results
    if isinstance(results, list | tuple):
        call.meta["val"] = list(judged.results)
        outputs = []
        for i, result in enumerate(judged.results):
            if result is not None:
                outputs.append(graph.call_function(__import__("operator").getitem, (call, i)))
                outputs[-1].meta["val"] = result
        graph.output(tuple(outputs))
    else:
        graph.output(call)
    annotate(graph, stored)
    return build_graph(graph, stored)[0], Traced({node.name: node for node in graph.nodes})


def _onnx(case: test_onnx_ops.Case, judged: test_onnx_ops.Judged, at: int) -> tuple[Any, Any]:
    """The same for an ONNX operator."""
    model = judged.model(judged.operands, case.attributes, stored=True)
    for n, value in enumerate(list(model.graph.input)):
        array = judged.operands[int(value.name[1:])]
        if n != at and array.ndim and (array.dtype.kind == "f" or array.dtype.itemsize == 1):
            model.graph.input.remove(value)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    host = OnnxHost.load(model)
    return host.graph(), host


def looked(tables: Any, build: Any) -> Iterator[tuple[str, str]]:
    """For each case whose operator sums over an axis that may be cut: its name, and ``""`` or why it is no consumer."""
    calls = ((index, case, at) for index, case in enumerate(tables.CASES) for at in (0, 1, 2))
    for index, case, at in calls:
        judged = tables.judged(index)
        if sum(operand is not None for operand in judged.operands) <= at:
            continue
        graph, host = build(case, judged, at)
        node = next((node for node in graph.nodes if node.rule is not None), None)
        if node is not None and any(
            not node.rule.fixed.keys() >= _factors(node, *place) for place in summed_axes(graph, node)
        ):
            found = look(host, graph)[node.name]
            yield case.op, "" if isinstance(found, Consumer) else found


def _factors(node: Any, name: str, axis: int, whole: bool) -> set[Any]:
    return set(factors_of(node.rule.operands[node.operands.index(name)][axis]))


TORCH = {
    "": """
        addmm.default addmv.default conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default
        conv3d.padding conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input
        convolution.default dot.default einsum.default linear.default matmul.default mm.default mv.default
    """,
    "its weight is no matrix": """
        einsum.default linear.default matmul.default
    """,
    "its weight is neither a matrix nor the kernel of a convolution": """
        baddbmm.default bmm.default einsum.default matmul.default
    """,
    "it is no product with one weight": """
        _grouped_mm.default bilinear.default scaled_dot_product_attention.default
        transformers.grouped_mm_fallback.default
    """,
    "it is no sum with weights": """
        _cdist_forward.default _is_any_true.default amax.default amin.default any.default any.dim any.dims
        argmax.default argmin.default cdist.default col2im.default cosine_similarity.default
        count_nonzero.default count_nonzero.dim_IntList einsum.default linalg_vector_norm.default
        logsumexp.default max.default max.dim mean.default mean.dim min.default min.dim nansum.default
        norm.Scalar norm.ScalarOpt_dim slice.Tensor std.correction std.default std.dim std_mean.correction
        std_mean.default std_mean.dim sum.default sum.dim_IntList topk.default var.correction var.default
        var.dim var_mean.correction var_mean.default var_mean.dim view.default
    """,
    "it has several results": """
        gru.input lstm.input rnn_relu.input rnn_tanh.input
    """,
    "it looks positions up": """
        _unsafe_index.Tensor _unsafe_index_put.default embedding.default gather.default index.Tensor
        index_add.default index_copy.default index_fill.int_Scalar index_put.default index_select.default
        scatter.value scatter_add.default scatter_reduce.two take_along_dim.default
    """,
}
"""Operators of the ATen table that sum over an axis which may be cut: consumers, and reasons why they are none."""
ONNX = {
    "": """
        Conv ConvTranspose Einsum Gemm MatMul com.microsoft::DynamicQuantizeMatMul com.microsoft::FusedConv
        com.microsoft::FusedGemm com.microsoft::FusedMatMul com.microsoft::TransposeMatMul
    """,
    "its weight is neither a matrix nor the kernel of a convolution": """
        Einsum MatMul com.microsoft::FusedMatMul
    """,
    "its weight is no matrix": """
        Einsum MatMul
    """,
    "it is no product with one weight": """
        Attention DeformConv com.microsoft::Attention com.microsoft::MatMulNBits
        com.microsoft::MultiHeadAttention
    """,
    "it has several results": """
        GRU LSTM RNN
    """,
    "it is no sum with weights": """
        ArgMax ArgMin Col2Im ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
        ReduceSum ReduceSumSquare Slice TopK
    """,
    "it looks positions up": """
        Gather GatherElements GatherND ScatterElements ai.onnx.ml::ArrayFeatureExtractor
    """,
    "its weights are whole numbers": """
        ConvInteger MatMulInteger QLinearConv QLinearMatMul com.microsoft::Attention
        com.microsoft::DynamicQuantizeLSTM com.microsoft::DynamicQuantizeMatMul
        com.microsoft::MatMulIntegerToFloat com.microsoft::MatMulNBits com.microsoft::QAttention
        com.microsoft::QGemm com.microsoft::QLinearConv
    """,
    "its weight has rows that are not in the result": """
        com.microsoft::Attention
    """,
}


@pytest.mark.parametrize(("tables", "build", "expected"), [(test_aten_ops, _aten, TORCH), (test_onnx_ops, _onnx, ONNX)])
def test_whatever_sums_over_an_axis_is_a_consumer_or_has_a_reason(tables, build, expected):
    found: dict[str, set[str]] = {}
    for op, reason in looked(tables, build):
        found.setdefault(reason, set()).add(op.removeprefix("aten."))
    assert {reason: set(ops.split()) for reason, ops in expected.items()} == found


# -- refits against least squares that know nothing of them ----------------------------------------------------------

UNITS, KEPT = 12, np.array([0, 2, 3, 5, 6, 7, 9, 11])
FLAT, IMAGE = (9, UNITS), (3, UNITS, 5, 4)


def _plus(y: Any, b: Any) -> Any:
    return y if b is None else y + b


KINDS = {
    "linear to 1": (FLAT, (1, UNITS), (1,), F.linear),
    "linear to 3": (FLAT, (3, UNITS), (3,), F.linear),
    "linear of one sample to 1": ((1, UNITS), (1, UNITS), (1,), F.linear),
    "linear to 1 in sequences": ((1, 7, UNITS), (1, UNITS), (1,), F.linear),
    "product with a column": (FLAT, (UNITS, 1), (1,), lambda h, w, b: _plus(h @ w, b)),
    "product with a matrix": (FLAT, (UNITS, 2), (2,), lambda h, w, b: _plus(h @ w, b)),
    "product with a vector": (FLAT, (UNITS,), (1,), lambda h, w, b: _plus(h @ w, b)),
    "row times columns": (FLAT, (1, UNITS), (1, 1), lambda h, w, b: _plus(w @ h.T, b)),
    "addmm to 1": (FLAT, (UNITS, 1), (1,), lambda h, w, b: torch.addmm(b, h, w, alpha=0.5)),
    "addmm to 1, scaled bias": (FLAT, (UNITS, 1), (1,), lambda h, w, b: torch.addmm(b, h, w, beta=2.0)),
    "addmv": (FLAT, (UNITS,), (1,), lambda h, w, b: torch.addmv(b, h, w, alpha=2.0)),
    "einsum to 1": (FLAT, (1, UNITS), (1,), lambda h, w, b: _plus(torch.einsum("nc,oc->no", h, w), b)),
    "einsum with a vector": (FLAT, (UNITS,), (1,), lambda h, w, b: _plus(torch.einsum("nc,c->n", h, w), b)),
    "conv to 1": (IMAGE, (1, UNITS, 3, 3), (1,), lambda h, w, b: F.conv2d(h, w, b, padding=1)),
    "conv 1x1 to 1": (IMAGE, (1, UNITS, 1, 1), (1,), F.conv2d),
    "conv to 2, strided": (IMAGE, (2, UNITS, 2, 2), (2,), lambda h, w, b: F.conv2d(h, w, b, stride=2)),
    "conv of a signal to 1": ((3, UNITS, 9), (1, UNITS, 3), (1,), F.conv1d),
    "conv of a volume to 1": ((2, UNITS, 3, 3, 3), (1, UNITS, 2, 2, 2), (1,), F.conv3d),
    "transposed conv to 1": (IMAGE, (UNITS, 1, 2, 2), (1,), lambda h, w, b: F.conv_transpose2d(h, w, b, stride=2)),
    "transposed conv to 3": (IMAGE, (UNITS, 3, 3, 3), (3,), lambda h, w, b: F.conv_transpose2d(h, w, b, padding=1)),
}
"""What is read, the shapes of weight and bias, and how."""


class Read(nn.Module):
    """A layer of units and one reader of them, in float64."""

    def __init__(self, kind: str, *, biased: bool) -> None:
        super().__init__()
        shape, weight, bias, self.read = KINDS[kind]
        made = {2: nn.Linear, 3: nn.Linear}.get(len(shape)) if shape[-1] == UNITS else None
        convolution = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        self.stem = made(6, UNITS) if made else convolution[len(shape)](6, UNITS, 1)
        self.w = nn.Parameter(torch.randn(weight) / 4)
        self.b = nn.Parameter(torch.randn(bias)) if biased else None
        self.double()

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.stem(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self.hidden(x), self.w, self.b)


def least(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What the best weights would give."""
    return design @ np.linalg.lstsq(design, target, rcond=None)[0]


BARE = (
    "linear to 1", "product with a column", "product with a vector", "row times columns", "einsum with a vector",
    "conv to 1", "transposed conv to 1",
)  # fmt: skip
"""Kinds that are tried without a bias as well, which the refit then adds."""


@pytest.mark.parametrize(("kind", "biased"), [*((kind, True) for kind in KINDS), *((kind, False) for kind in BARE)])
def test_refits_are_least_squares(kind, biased):
    torch.manual_seed(1)
    net, shape = Read(kind, biased=biased), list(KINDS[kind][0])
    axis = len(shape) - 1 if shape[-1] == UNITS else 1
    shape[axis] = 6
    data = [{"x": torch.randn(shape, dtype=torch.float64).numpy()} for _ in range(12)]
    host = TorchHost.trace(net, (torch.from_numpy(data[0]["x"]),)).folded()
    analysis = gp.analyze(net, (torch.from_numpy(data[0]["x"]),))
    (group,) = [each for each in analysis.groups if each.size == UNITS]
    kept = {group.factor: KEPT}
    fitted, rows = compensate(host, host.edited(slice_edits(analysis, kept)), analysis, kept, data, ridges=(0.0,))
    assert [row.weight for row in rows] == ["w"]
    at = next(i for i, size in enumerate(KINDS[kind][1]) if size == UNITS)
    w = net.w.detach().index_select(at, torch.from_numpy(KEPT))
    b = torch.zeros(KINDS[kind][2], dtype=torch.float64)
    designs, targets, got = [], [], []
    for batch in data:
        h = net.hidden(torch.from_numpy(batch["x"])).detach()
        few = h.index_select(axis, torch.from_numpy(KEPT))
        jacobians = torch.func.jacrev(lambda w, b: net.read(few, w, b), argnums=(0, 1))(w, b)  # noqa: B023
        n = net.read(h, net.w, net.b).numel()
        designs.append(torch.cat([each.reshape(n, -1) for each in jacobians], 1).numpy())
        targets.append((net.read(h, net.w, net.b) - net.read(few, 0 * w, b)).detach().numpy().ravel())
        out = next(iter(fitted.run(batch).values())).ravel()
        got.append(out - net.read(few, 0 * w, b).detach().numpy().ravel())
    best = least(np.concatenate(designs), np.concatenate(targets))
    np.testing.assert_allclose(np.concatenate(got), best, rtol=1e-6, atol=1e-6)


TEXTS = {
    "Gemm to 1": ("y = Gemm(r, w, b)", (UNITS, 1), (1,)),
    "Gemm to 1, turned": ("y = Gemm <transB = 1, alpha = 0.5> (r, w, b)", (1, UNITS), (1,)),
    "Gemm to 1 from the left": ("t = Transpose(r) y = Gemm(w, t)", (1, UNITS), None),
    "Gemm to 1, both turned": ("t = Transpose(r) y = Gemm <transA = 1, transB = 1> (t, w, b)", (1, UNITS), (1,)),
    "MatMul to 1": ("y = MatMul(r, w)", (UNITS, 1), None),
    "MatMul and Add to 1": ("z = MatMul(r, w) y = Add(z, b)", (UNITS, 1), (1,)),
    "MatMul with a vector": ("y = MatMul(r, w)", (UNITS,), None),
    "MatMul with a vector and Add": ("z = MatMul(r, w) y = Add(b, z)", (UNITS,), (1,)),
    "MatMul from the left": ("t = Transpose(r) y = MatMul(w, t)", (1, UNITS), None),
    "vector times MatMul": ("t = Transpose(r) y = MatMul(w, t)", (UNITS,), None),
    "turned weight": ("v = Transpose(w) y = MatMul(r, v)", (1, UNITS), None),
    "Einsum to 1": ('y = Einsum <equation = "nc,co->on"> (r, w)', (UNITS, 1), None),
    "Einsum with a vector": ('y = Einsum <equation = "nc,c->n"> (r, w)', (UNITS,), None),
    "Gemm to 4": ("y = Gemm(r, w, b)", (UNITS, 4), (4,)),
    "Conv to 1": ("y = Conv(i, w, b)", (1, UNITS, 1), (1,)),
    "Conv to 1, bare": ("y = Conv(i, w)", (1, UNITS, 2), None),
    "ConvTranspose to 1": ("y = ConvTranspose <strides = [2]> (i, w, b)", (UNITS, 1, 3), (1,)),
    "ConvTranspose to 2": ("y = ConvTranspose (i, w)", (UNITS, 2, 2), None),
}
"""Nodes that read the units ``r: [N, c]`` or ``i: [N, c, 3]``, and the shapes of their weight and bias."""


@pytest.mark.parametrize("kind", TEXTS)
def test_refits_of_onnx_are_least_squares(kind):
    body, weight, bias = TEXTS[kind]
    rng = np.random.default_rng(2)
    double = "Conv" not in kind  # onnxruntime has convolutions in single precision only
    dtype = np.float64 if double else np.float32
    shapes = {"w0": (8, UNITS), "b0": (UNITS,), "w": weight, "b": bias, "s": (1, 1, 3)}
    arrays = {n: (rng.standard_normal(s) / 2).astype(dtype) for n, s in shapes.items() if s is not None}
    stem = "h = Gemm(x, w0, b0) r = Tanh(h) o = Constant <value_ints = [2]> () e = Unsqueeze(r, o) i = Mul(e, s) "
    kind_of = "double" if double else "float"
    host = OnnxHost.load(text_model(stem + body, arrays, kind_of, f"{kind_of}[a] y")).folded()
    host = host.without_dead_nodes()
    analysis = gp.analyze(text_model(stem + body, arrays, kind_of, f"{kind_of}[a] y"))
    (group,) = [each for each in analysis.groups if each.size == UNITS]
    kept = {group.factor: KEPT}
    data = [{"x": rng.standard_normal((20, 8)).astype(dtype)} for _ in range(6)]
    sliced = host.edited(slice_edits(analysis, kept))
    fitted, rows = compensate(host, sliced, analysis, kept, data, ridges=(0.0,))
    assert [row.weight for row in rows] == ["w"]

    def outputs(model: Any) -> np.ndarray:
        return np.concatenate([next(iter(model.run(batch).values())).ravel() for batch in data]).astype(np.float64)

    empty = {name: 0 * sliced.read(name) for name in ("w", "b") if name in sliced.graph().values}
    none, columns = outputs(sliced.replaced(empty)), []
    for name, array in empty.items():
        for i in range(array.size):
            one = array.copy()
            one.flat[i] = 1
            columns.append(outputs(sliced.replaced({**empty, name: one})) - none)
    if bias is None:  # the refit adds one, for each row
        columns.extend(_rows_apart(fitted, rows[0].bias, outputs))
    best = least(np.stack(columns, 1), outputs(host) - none)
    np.testing.assert_allclose(outputs(fitted) - none, best, rtol=1e-6, atol=1e-6 if double else 2e-4)


def _rows_apart(fitted: Any, bias: str, outputs: Any) -> list[np.ndarray]:
    """What each element of an added bias adds to the outputs."""
    zero = 0 * fitted.read(bias)
    none, found = outputs(fitted.replaced({bias: zero})), []
    for i in range(zero.size):
        one = zero.copy()
        one.flat[i] = 1
        found.append(outputs(fitted.replaced({bias: one})) - none)
    return found


# -- recurrent layers ------------------------------------------------------------------------------------------------


class Recurrence(nn.Module):
    """A recurrent layer behind a layer of units; what reads its states is left as it is."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 14)
        self.rnn = getattr(nn, kind)(14, 10, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(torch.tanh(self.stem(x)))[0]


LAYERS = {
    "LSTM": ("LSTM", {}),
    "LSTM without biases": ("LSTM", {"bias": False}),
    "LSTM, both ways": ("LSTM", {"bidirectional": True}),
    "GRU": ("GRU", {}),
    "RNN": ("RNN", {}),
    "RNN, rectified": ("RNN", {"nonlinearity": "relu"}),
}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STAY, STATES = np.array([0, 1, 3, 4, 6, 7, 9, 10, 13]), np.array([0, 2, 3, 5, 6, 8, 9])


def sequences() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    mixing = rng.standard_normal((3, 5))
    return [{"x": rng.standard_normal((8, 6, 3)) @ mixing} for _ in range(8)]


@pytest.mark.parametrize("layer", LAYERS)
def test_gates_are_refitted_by_least_squares(layer):
    """Of the kept inputs and the states of the dense model, read off PyTorch's own layers, step by step."""
    kind, options = LAYERS[layer]
    torch.manual_seed(0)
    net, data = Recurrence(kind, **options).double().eval(), sequences()
    host = TorchHost.trace(net, (torch.from_numpy(data[0]["x"]),)).folded()
    analysis = gp.analyze(net, (torch.from_numpy(data[0]["x"]),))
    by_size = {group.size: group for group in analysis.groups}
    kept = {by_size[14].factor: STAY}
    fitted, rows = compensate(host, host.edited(slice_edits(analysis, kept)), analysis, kept, data, ridges=(0.0,))
    assert {row.weight for row in rows} >= {"rnn.weight_ih_l0"}
    for suffix in ("_l0", "_l0_reverse") if options.get("bidirectional") else ("_l0",):
        x, h = [], []
        for batch in data:
            inner = torch.tanh(net.stem(torch.from_numpy(batch["x"]))).detach()
            out = net.rnn(inner)[0].detach()
            zero = torch.zeros_like(out[:, :1, :10])
            if suffix == "_l0":
                before = torch.cat([zero, out[:, :-1, :10]], 1)
            else:
                before = torch.cat([out[:, 1:, 10:], zero], 1)
            x.append(inner.reshape(-1, 14).numpy())
            h.append(before.reshape(-1, 10).numpy())
        x, h = np.concatenate(x), np.concatenate(h)
        w, r = (getattr(net.rnn, f"weight_{name}{suffix}").detach().numpy() for name in ("ih", "hh"))
        ones = np.ones((len(x), 0 if options.get("bias") is False else 1))
        joint = len(w) if kind != "GRU" else 20  # the candidate of a GRU sees its state through a gate
        together = least(np.concatenate([x[:, STAY], h, ones], 1), x @ w[:joint].T + h @ r[:joint].T)
        alone = least(np.concatenate([x[:, STAY], ones], 1), x @ w[joint:].T)
        new_w, new_r = (fitted.read(f"rnn.weight_{name}{suffix}") for name in ("ih", "hh"))
        bias = fitted.read(f"rnn.bias_ih{suffix}") if ones.size else np.zeros(len(w))
        moved = bias - getattr(net.rnn, f"bias_ih{suffix}").detach().numpy() if ones.size else bias
        got = x[:, STAY] @ new_w.T + moved
        got[:, :joint] += h @ new_r[:joint].T
        np.testing.assert_allclose(got, np.concatenate([together, alone], 1), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(new_r[joint:], r[joint:], atol=1e-9)  # no state was cut


@pytest.mark.parametrize("layer", ["LSTM", "LSTM, both ways", "GRU"])
def test_recurrent_layers_lose_less_when_they_are_refitted(layer, tmp_path):
    kind, options = LAYERS[layer]
    torch.manual_seed(0)
    net, data = Recurrence(kind, **options).eval(), [{"x": b["x"].astype(np.float32)} for b in sequences()]
    unseen = [{"x": -batch["x"][::-1].copy()} for batch in data]
    example = torch.from_numpy(data[0]["x"])
    traced = TorchHost.trace(net, (example,)).folded()
    traced.save_onnx(tmp_path / "net.onnx")  # whose weights are put together from stored blocks, gate by gate
    for host in (traced, OnnxHost.load(tmp_path / "net.onnx").folded()):
        analysis = gp.analyze(net, (example,)) if host.kind == "torch" else gp.analyze(tmp_path / "net.onnx")
        (inputs,) = [group for group in analysis.groups if group.size == 14]
        kept = {inputs.factor: STAY}
        errors = []
        for ridges in ((), (1e-2, 1e-1, 1.0)):
            pruned = host.edited(slice_edits(analysis, kept))
            if ridges:
                pruned, rows = compensate(host, pruned, analysis, kept, data, ridges=ridges)
                assert rows
            pairs = [(next(iter(host.run(b).values())), next(iter(pruned.run(b).values()))) for b in unseen]
            errors.append(sum(float(np.square(want - got).sum()) for want, got in pairs))
        assert errors[1] < 0.3 * errors[0]


def _layer(kind: str, **attributes: Any) -> onnx.ModelProto:
    rng, n = np.random.default_rng(0), GATES[kind]
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    arrays = {
        "w0": rng.standard_normal((8, 14)), "b0": rng.standard_normal(14), "W": rng.standard_normal((ways, n * 10, 14)) / 4,
        "R": rng.standard_normal((ways, n * 10, 10)) / 4, "B": rng.standard_normal((ways, n * 20)) / 4,
        "P": rng.standard_normal((ways, 30)) / 4, "v": rng.standard_normal((10, 3)),
    }  # fmt: skip
    peep = ", '', '', '', P" if attributes.pop("peepholes", False) else ""
    peep = peep.replace("''", "")
    text = ", ".join(
        f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}" for name, value in attributes.items()
    )
    body = f"""
        a = MatMul(x, w0) c = Add(a, b0) d = Tanh(c)
        e, h = {kind} <hidden_size = 10{", " + text if text else ""}> (d, W, R, B{peep})
        f = ReduceSum <keepdims = 0> (e, o) y = MatMul(f, v)
    """
    model = text_model(
        body, {name: array.astype(np.float32) for name, array in arrays.items()}, output="float[t, b, j] y"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "o"))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims.insert(1, onnx.TensorShapeProto.Dimension(dim_value=4))
    dims[0].dim_value = 6
    return model


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("LSTM", {}), ("LSTM", {"direction": "reverse"}), ("LSTM", {"direction": "bidirectional"}), ("GRU", {}),
        ("GRU", {"linear_before_reset": 1}), ("GRU", {"direction": "bidirectional"}), ("RNN", {}),
    ],
)  # fmt: skip
def test_states_that_are_cut_are_made_good(kind, attributes):
    model, rng = _layer(kind, **attributes), np.random.default_rng(1)
    mixing = rng.standard_normal((3, 8))
    data, unseen = (
        [{"x": (rng.standard_normal((6, 4, 3)) @ mixing).astype(np.float32)} for _ in range(24)] for _ in range(2)
    )
    host, analysis = OnnxHost.load(model).folded(), gp.analyze(model)
    sizes = {group.size: group for group in analysis.groups}
    kept = {sizes[14].factor: STAY, sizes[10].factor: STATES}
    pruned = host.edited(slice_edits(analysis, kept))
    fitted, rows = compensate(host, pruned, analysis, kept, data)
    assert {"W", "v"} <= {row.weight for row in rows}
    assert rows[0].others == ("B", "R", "W")

    def error(other: Any) -> float:
        return sum(float(np.square(host.run(b)["y"] - other.run(b)["y"]).sum()) for b in unseen)

    plain, _ = compensate(host, pruned, analysis, {sizes[10].factor: STATES}, data, method="none")
    whole = fitted.replaced({name: pruned.read(name) for name in "WRB"})  # without the refit of the gates
    assert error(fitted) < 0.7 * error(whole)
    assert error(fitted) < 0.5 * error(plain)


def test_peepholes_are_left_alone_and_named():
    model = _layer("LSTM", peepholes=True)
    data = {"x": np.random.default_rng(1).standard_normal((6, 4, 8)).astype(np.float32)}
    result = gp.prune(model, target="params=0.6", align=1, calibration=[data] * 2)
    assert any("'W' (its gates look at its state through peepholes)" in note for note in result.report.notes)
