"""Consumers as weighted sums: what they read, what they compute from it, and refits of weights that are used oddly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.compensation import Residuals, refit
from graphprune.compensation.activation_cache import ActivationCache
from graphprune.compensation.sequential import compensate
from graphprune.errors import OptionError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.passes.slice_groups import slice_edits
from graphprune.statistics import collect as collecting
from graphprune.statistics.collect import MASK, Masks, collect
from graphprune.statistics.consumers import count_of, find_consumers, inputs_of
from graphprune.statistics.moments import Moments


class Upsampling(nn.Module):
    """Transposed convolutions of every sort: stride, padding, cropping, output padding, dilation, groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.ups = nn.Sequential(
            nn.ConvTranspose2d(16, 12, 2, 2),
            nn.Tanh(),
            nn.ConvTranspose2d(12, 16, 3, 2, padding=1, output_padding=1, bias=False),
            nn.Tanh(),
            nn.ConvTranspose2d(16, 12, 3, (2, 1), padding=(0, 3), dilation=(1, 2), groups=2),
            nn.Tanh(),
        )
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.ups(torch.relu(self.stem(x))))


class Twice(nn.Module):
    """One weight used twice, at different depths and in two branches of one sum."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 32)
        self.shared = nn.Linear(32, 32, bias=bias)
        self.inner = nn.Linear(32, 24)
        self.both = nn.Linear(24, 16, bias=bias)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.shared(x))
        x = torch.relu(self.shared(x))
        y = self.inner(x)
        return self.head(torch.tanh(self.both(torch.relu(y)) + self.both(torch.sigmoid(y))))


def built(make, *args) -> nn.Module:
    torch.manual_seed(0)
    return make(*args).eval()


def hosts_of(model: nn.Module, example: torch.Tensor, folder):
    torch_host = TorchHost.trace(model, (example,)).folded()
    torch_host.save_onnx(folder / "net.onnx")
    return torch_host, OnnxHost.load(folder / "net.onnx").folded()


@pytest.mark.parametrize(
    ("make", "shape"), [(Upsampling, (2, 3, 5, 6)), (Twice, (4, 12))], ids=["transposed", "linear"]
)
def test_what_a_consumer_computes_is_its_inputs_times_its_matrix(make, shape, tmp_path):
    for host in hosts_of(built(make), torch.randn(shape), tmp_path):
        found = find_consumers(host, host.graph())
        assert len(found) >= 5
        run = host.partial_run(None, [name for each in found for name in (each.value, each.result)])
        values = run(host.example_inputs())[1]
        for each in found:
            weight = host.read(each.weight)
            x = inputs_of(each.source, values[each.value], None)
            assert len(x) == count_of(each.source, values[each.value])
            assert x.dtype == np.float32
            y = np.einsum("ngc,grc->ngr", x, each.matrix(weight)).reshape(len(x), -1)
            got = each.rows_of(values[each.result], None)
            own = each.bias is not None and host.graph().values[each.bias].shape == (y.shape[1],)
            y = y + host.read(each.bias) if own else y
            np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-5, err_msg=str(each))
            np.testing.assert_array_equal(each.weight_of(each.matrix(weight), weight.shape), weight)
            pick = np.arange(len(x))[1::3]
            np.testing.assert_array_equal(inputs_of(each.source, values[each.value], pick), x[pick])
            np.testing.assert_array_equal(each.rows_of(values[each.result], pick), got[pick])


def test_a_cropped_transposed_convolution_of_onnx(tmp_path):
    """``output_shape`` and ``auto_pad`` say what to crop instead of ``pads``."""
    for attributes in (
        {"output_shape": [9, 12]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"},
        {"pads": [1, 0, 2, 1], "output_padding": [1, 0]},
    ):  # fmt: skip
        node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", strides=[2, 2], **attributes)
        weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
        graph = onnx.helper.make_graph(
            [node], "g", [onnx.helper.make_tensor_value_info("x", 1, [2, 4, 5, 6])],
            [onnx.helper.make_tensor_value_info("y", 1, None)], [onnx.numpy_helper.from_array(weight, "w")],
        )  # fmt: skip
        host = OnnxHost.load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
        (each,) = find_consumers(host, host.graph())
        inputs = host.example_inputs()
        got = next(iter(host.run(inputs).values()))
        y = np.einsum("ngc,grc->ngr", inputs_of(each.source, inputs["x"], None), each.matrix(weight))
        np.testing.assert_allclose(each.rows_of(got, None), y[:, 0], rtol=1e-4, atol=1e-4, err_msg=str(attributes))


def batches_of(shape: tuple[int, ...], n: int = 8, seed: int = 3, name: str = "x") -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((shape[-1], shape[-1])) / np.sqrt(shape[-1])
    return [{name: (rng.standard_normal(shape) @ mixing).astype(np.float32)} for _ in range(n)]


def lost(host, model: nn.Module, batches) -> float:
    error = energy = 0.0
    for batch in batches:
        with torch.no_grad():
            want = model(torch.from_numpy(batch["x"])).numpy()
        error += float(np.square(next(iter(host.run(batch).values())) - want).sum())
        energy += float(np.square(want - want.mean(0)).sum())
    return error / energy


@pytest.mark.parametrize("bias", [True, False])
def test_weights_used_twice_are_refitted_to_all_uses(bias):
    model, shape = built(Twice, bias), (32, 12)
    data, unseen = batches_of(shape, 24), batches_of(shape, 24)[12:]
    errors = {}
    for rung in ("none", "mean", "affine"):
        result = gp.prune(
            model, (torch.randn(shape),), target={"macs": 0.7}, align=1, criterion="wifv", calibration=data,
            compensation=rung, allocation="isomorphic", protect=("stem.weight[1]", "head"),
        )  # fmt: skip
        errors[rung] = lost(result.host, model, unseen)
        refitted = {row.weight for row in result.state.compensated}
        assert ("both.weight" in refitted) == (rung == "affine" or (bias and rung == "mean"))
        assert type(result.module) is Twice
    assert errors["affine"] < 0.6 * errors["none"]
    assert errors["affine"] < errors["mean"]


def test_two_uses_in_one_sum_are_one_least_squares_problem():
    """``W x1 + W x2 + 2 b`` is refitted on ``x1 + x2``: the same as by lstsq on the sum."""
    model, shape = built(Twice), (64, 12)
    data = batches_of(shape, 16)
    host = TorchHost.trace(model, (torch.randn(shape),)).folded()
    analysis = gp.analyze(model, (torch.randn(shape),))
    (group,) = [g for g in analysis.groups if any(s.tensor == "both.weight" and s.axis == 1 for s in g.sites)]
    kept = np.arange(24)[:14]
    sliced = host.edited(slice_edits(analysis, {group.factor: kept}))
    fitted, rows = compensate(host, sliced, analysis, {group.factor: kept}, data, ridges=(0.0,))
    assert [row.weight for row in rows] == ["both.weight", "both.weight"]
    with torch.no_grad():
        y = torch.cat([
            model.inner(torch.relu(model.shared(torch.relu(model.shared(torch.relu(model.stem(torch.from_numpy(b["x"]))))))))
            for b in data
        ]).double()  # fmt: skip
        x = torch.relu(y) + torch.sigmoid(y)
        target = x @ model.both.weight.double().T + 2 * model.both.bias.double()
    design = np.concatenate([x[:, :14].numpy(), 2 * np.ones((len(x), 1))], axis=1)
    best = np.linalg.lstsq(design, target.numpy(), rcond=None)[0]
    np.testing.assert_allclose(fitted.read("both.weight"), best[:14].T, rtol=1e-2, atol=2e-3)
    np.testing.assert_allclose(fitted.read("both.bias"), best[14], rtol=1e-2, atol=2e-3)


def test_transposed_convolutions_are_refitted(tmp_path):
    model, shape = built(Upsampling), (2, 3, 6, 6)
    data, unseen = batches_of(shape, 10), batches_of(shape, 14)[10:]
    TorchHost.trace(model, (torch.randn(shape),)).save_onnx(tmp_path / "net.onnx")
    errors = {}
    options = {"target": {"macs": 0.8}, "align": 1, "criterion": "act-var", "allocation": "isomorphic"}
    for source in (model, tmp_path / "net.onnx"):
        session = gp.Session(source, (torch.randn(shape),) if source is model else None, data=data)
        for rung in ("none", "mean", "affine"):
            result = session.prune(compensation=rung, **options)
            errors[rung, source is model] = lost(result.host, model, unseen)
    assert errors["affine", True] < 0.95 * errors["mean", True]
    assert errors["affine", False] == pytest.approx(errors["affine", True], rel=1e-2)
    assert errors["mean", True] < errors["none", True]


# -- precision and memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 30.0, 1e3])
def test_products_in_single_precision_are_good_to_six_digits(mean):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((20000, 1, 24)) @ rng.standard_normal((24, 24)) + mean).astype(np.float32)
    r = (x[:, :, :5] * 0.1 + rng.standard_normal((20000, 1, 5))).astype(np.float32)
    single, exact = Moments.zeros(1, 24, full=True), Moments.zeros(1, 24, full=True)
    diagonal = Moments.zeros(1, 24, full=False)
    a, b = Residuals.zeros(1, 24, 5), Residuals.zeros(1, 24, 5)
    for rows in np.array_split(np.arange(len(x)), 7):
        single.add(x[rows])
        diagonal.add(x[rows])
        exact.add(x[rows].astype(np.float64))
        a.add(x[rows], r[rows], r[rows] + 1)
        b.add(*(each[rows].astype(np.float64) for each in (x, r, r + 1)))
    scale = np.sqrt(np.outer(exact.variance, exact.variance))
    assert np.abs(single.covariance - exact.covariance).max() < 1e-5 * scale.max()
    np.testing.assert_allclose(single.variance, exact.variance, rtol=1e-5)
    np.testing.assert_allclose(diagonal.variance, exact.variance, rtol=1e-5)
    np.testing.assert_allclose(single.mean, exact.mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        exact.covariance[0], np.cov(x[:, 0].T.astype(np.float64), bias=True), rtol=1e-6, atol=1e-6
    )
    for rung in ("mean", "ols", "affine"):
        one, two = refit(a, rung, 1e-2), refit(b, rung, 1e-2)
        np.testing.assert_allclose(one.weight, two.weight, rtol=1e-3, atol=1e-4 if mean else 1e-5)
        assert one.after == pytest.approx(two.after, rel=1e-3)


def test_short_stretches_and_spilled_activations_change_nothing(monkeypatch):
    model, shape = built(Upsampling), (2, 3, 6, 6)
    data = batches_of(shape, 5)
    host = TorchHost.trace(model, (torch.randn(shape),)).folded()
    analysis = gp.analyze(model, (torch.randn(shape),))
    whole = collect(host, analysis, data)
    monkeypatch.setattr(collecting, "TAPPED", 1)
    parts = collect(host, analysis, data)
    assert list(parts.moments) == list(whole.moments)
    for source, moments in whole.moments.items():
        np.testing.assert_array_equal(parts.moments[source].product, moments.product)
    for group in analysis.groups[:2]:
        kept = {group.factor: np.arange(group.size)[::2]}
        sliced = host.edited(slice_edits(analysis, kept))
        held, _ = compensate(host, sliced, analysis, kept, data)
        with monkeypatch.context() as without:
            without.setattr("graphprune.compensation.sequential.MEMORY", 0)
            spilled, _ = compensate(host, sliced, analysis, kept, data)
        for batch in data[:2]:
            for got, want in zip(spilled.run(batch).values(), held.run(batch).values(), strict=True):
                np.testing.assert_array_equal(got, want)


def test_a_spool_keeps_what_fits_in_memory_and_gives_back_all(tmp_path):
    values = [{"a": np.full((100,), i), "b": torch.arange(50.0) + i, "c": None} for i in range(4)]
    with ActivationCache([{}] * 4, memory=1200) as spool:
        for i, each in enumerate(values):
            spool[i] = each
        folder = spool._folder
        assert folder is not None
        assert len(list(Path(folder.name).iterdir())) == 5  # the first batch and one array of the second stay
        for _ in range(2):
            for i, each in enumerate(values):
                got = spool[i]
                assert list(got) == ["a", "b", "c"]
                np.testing.assert_array_equal(got["a"], each["a"])
                np.testing.assert_array_equal(np.asarray(got["b"]), each["b"].numpy())
        spool[3] = {"a": np.zeros(1)}
        assert not Path(folder.name, "3-1").exists()
    assert not Path(folder.name).exists()


# -- padding ---------------------------------------------------------------------------------------------------------


class Padded(nn.Module):
    """Tokens with a mask; attention, and a feed-forward branch that also sees the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        b, s, _ = x.shape
        q, k, v = (f(x).view(b, s, 4, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        mask = (1 - attention_mask[:, None, None, :].float()) * -1e4
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o(y.transpose(1, 2).reshape(b, s, 16))
        x = x + self.down(torch.relu(self.up(x)))
        weight = attention_mask.unsqueeze(-1).float()
        return self.head((x * weight).sum(1) / weight.sum(1))


def test_padding_has_no_weight_in_statistics_and_refit(tmp_path):
    model, rng = built(Padded), np.random.default_rng(0)
    example = {"input_ids": torch.randint(0, 40, (4, 8)), MASK: torch.ones(4, 8, dtype=torch.long)}
    lengths = rng.integers(3, 8, (6, 4))
    data = [
        {"input_ids": rng.integers(1, 40, (4, 8)), MASK: (np.arange(8) < each[:, None]).astype(np.int64)}
        for each in lengths
    ]
    other = [{**batch, "input_ids": np.where(batch[MASK] > 0, batch["input_ids"], 0)} for batch in data]
    torch_host = TorchHost.trace(model, example).folded()
    torch_host.save_onnx(tmp_path / "net.onnx")
    for source in (model, tmp_path / "net.onnx"):
        host = torch_host if source is model else OnnxHost.load(source).folded()
        analysis = analyze_graph(host.graph())
        statistics = collect(host, analysis, data)
        seen = {c.weight: c.source for found in statistics.consumers.values() for c in found}
        values = {each[0] for each in statistics.moments}
        masks = Masks(analysis)
        assert sum(masks.of(data[0], value, 2) is not None for value in values) >= 3
        again = collect(host, analysis, other)  # other tokens in the padding: nothing that counts is different
        for name, each in seen.items():
            tokens = int(lengths.sum()) if name != "head.weight" else 24
            assert statistics.moments[each].count == tokens, name
            np.testing.assert_allclose(
                again.moments[each].product, statistics.moments[each].product, rtol=1e-4, atol=1e-4
            )
        options = {"target": {"macs": 0.7}, "align": 1, "criterion": "obs", "allocation": "isomorphic"}
        inputs = example if source is model else None
        one, two = (gp.prune(source, inputs, calibration=each, **options) for each in (data, other))
        got, want = (next(iter(each.host.run(data[0]).values())) for each in (one, two))
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-3)


# -- products that are scaled, turned, optional or in half precision ---------------------------------------------------


def text_model(body: str, arrays: dict[str, np.ndarray], types: str = "float", output: str = "float[a, b] y"):
    """An ONNX model of a text, whose weights are these."""
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18]> g ({types}[N, 8] x) => ({output}) {{ {body} }}'
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


def gemm_weights(**scales: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 24), "b1": (24,), "w2": (24, 5), "b2": (5,)}
    return {
        name: (rng.standard_normal(shape) * scales.get(name, 1.0)).astype(np.float32) for name, shape in shapes.items()
    }


GEMMS = "h = Gemm(x, w1, b1) r = Relu(h) "
SAMPLES = {"x": np.random.default_rng(1).standard_normal((256, 8)).astype(np.float32)}


def refitted_output(model) -> np.ndarray:
    result = gp.prune(
        model, target="params=0.6", align=1, calibration=SAMPLES, criterion="random", allocation="uniform"
    )
    assert len(result.state.compensated) == 1
    return next(iter(result.host.run(SAMPLES).values()))


@pytest.mark.parametrize(
    ("last", "alpha", "beta"),
    [
        ("y = Gemm <alpha = 0.5> (r, w2, b2)", 0.5, 1.0),
        ("y = Gemm <beta = 3.0> (r, w2, b2)", 1.0, 3.0),
        ("y = Gemm <alpha = 2.0, beta = 0.0> (r, w2, b2)", 2.0, 0.0),
        ("y = Gemm <alpha = 2.0, beta = 0.5> (r, w2)", 2.0, 0.0),
    ],
)
def test_scaled_products_are_refitted_like_plain_ones(last, alpha, beta):
    plain = text_model(GEMMS + "y = Gemm(r, w2, b2)", gemm_weights(w2=alpha, b2=beta))
    scaled = text_model(GEMMS + last, gemm_weights())
    np.testing.assert_allclose(refitted_output(scaled), refitted_output(plain), rtol=1e-3, atol=1e-3)


def test_products_with_the_weight_on_the_left_are_refitted():
    arrays = gemm_weights()
    plain = text_model(GEMMS + "y = Gemm(r, w2)", arrays)
    turned = {
        "w1": arrays["w1"].T.copy(),
        "b1": arrays["b1"][:, None],
        "w2": arrays["w2"].T.copy(),
    }
    left = "t = Transpose(x) h = Gemm(w1, t, b1) r = Relu(h) z = Gemm(w2, r) y = Transpose(z)"
    np.testing.assert_allclose(refitted_output(text_model(left, turned)), refitted_output(plain), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("body", "dtype"),
    [
        ("v = Transpose(w2) h = Gemm(x, w1, b1) r = Relu(h) z = MatMul(r, v) y = Add(z, b2)", np.float32),
        ("v = Cast <to = 1> (w2) h = Gemm(x, w1, b1) r = Relu(h) y = Gemm <transB = 1> (r, v, b2)", np.float16),
        ("u = Cast <to = 1> (w2) v = Transpose(u) h = Gemm(x, w1, b1) r = Relu(h) y = Gemm(r, v, b2)", np.float16),
    ],
)
def test_weights_that_are_turned_or_cast_are_refitted(body, dtype):
    arrays = gemm_weights()
    arrays["w2"] = arrays["w2"].astype(dtype).astype(np.float32)
    plain = text_model(GEMMS + "y = Gemm(r, w2, b2)", arrays)
    turned = text_model(body, arrays | {"w2": arrays["w2"].T.astype(dtype)})
    np.testing.assert_allclose(
        refitted_output(turned), refitted_output(plain), rtol=1e-3, atol=1e-3 if dtype == np.float32 else 2e-2
    )


def test_weights_of_whole_numbers_are_left_alone():
    """``QGemm`` has a scale for each row, which is no bias."""
    rng = np.random.default_rng(5)
    one = {name: np.array(0.05, np.float32) for name in ("xs", "rs", "ys")}
    zero = {name: np.array(128, np.uint8) for name in ("xz", "rz", "yz")}
    arrays = {
        **one,
        **zero,
        "w1": gemm_weights()["w1"],
        "b1": gemm_weights()["b1"],
        "w2": rng.integers(-127, 127, (5, 24)).astype(np.int8),
        "ws": rng.uniform(0.005, 0.01, 5).astype(np.float32),
        "wz": np.zeros(5, np.int8),
        "b2": rng.integers(-99, 99, 5).astype(np.int32),
    }
    body = """
        h = Gemm(x, w1, b1)
        r = Relu(h)
        q = QuantizeLinear(r, rs, rz)
        z = com.microsoft.QGemm <transB = 1> (q, rs, rz, w2, ws, wz, b2, ys, yz)
        y = DequantizeLinear(z, ys, yz)
    """
    model = text_model(body, arrays)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    host = OnnxHost.load(model)
    assert [each.weight for each in find_consumers(host, host.graph())] == ["w1"]
    result = gp.prune(model, target="params=0.6", align=1, calibration=SAMPLES)
    np.testing.assert_array_equal(result.host.read("ws"), arrays["ws"])
    assert result.report.notes == (
        "these readers of removed units were not refitted: 'w2' (its weights are whole numbers)",
    )


def test_a_table_that_is_looked_up_and_turned_is_used_twice():
    body = "v = Transpose(w2) h = Gemm(x, w1, b1) r = Relu(h) z = MatMul(r, v) e = ReduceMean(w2, one) y = Add(z, e)"
    arrays = gemm_weights() | {"one": np.array([0, 1])}
    arrays["w2"] = arrays["w2"].T.copy()
    host = OnnxHost.load(text_model(body, arrays))
    assert [(each.weight, each.uses) for each in find_consumers(host, host.graph())] == [("w1", 1), ("w2", 2)]


def test_a_bias_along_the_other_axis_is_none_of_the_rows():
    """A square result: a vector of as many numbers as there are rows is added along the columns."""
    arrays = gemm_weights() | {"w2": np.random.default_rng(2).standard_normal((8, 24)).astype(np.float32)}
    arrays |= {"w1": arrays["w1"].T.copy(), "b1": arrays["b1"][:, None], "b2": np.ones(8, np.float32)}
    body = "t = Transpose(x) h = Gemm(w1, t, b1) r = Relu(h) y = Gemm(w2, r, b2)"
    model = text_model(body, arrays)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    host = OnnxHost.load(model)
    assert [each.bias for each in find_consumers(host, host.graph())] == ["b1", None]


class Added(nn.Module):
    """``addmm``, as transformers' Conv1D has it, scaled."""

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        for name, array in gemm_weights().items():
            self.register_parameter(name, nn.Parameter(torch.from_numpy(array)))
        self.alpha, self.beta = alpha, beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(torch.addmm(self.b1, x, self.w1))
        return torch.addmm(self.b2, hidden, self.w2, alpha=self.alpha, beta=self.beta)


def test_addmm_is_refitted_with_its_own_bias():
    data = [{"x": batch} for batch in np.array_split(SAMPLES["x"], 8)]
    result = gp.prune(
        Added(), (torch.randn(32, 8),), target="params=0.6", align=1, calibration=data, criterion="l2",
        allocation="uniform",
    )  # fmt: skip
    (row,) = result.state.compensated
    assert (row.weight, row.bias) == ("w2", "b2")
    assert row.after < 0.5 * row.before
    scaled = gp.prune(Added(2.0, 3.0), (torch.randn(32, 8),), target="params=0.6", align=1, calibration=data)
    assert all(check.passed for check in scaled.report.proof)


@pytest.mark.parametrize("rung", ["mean", "affine", "bn"])
def test_what_lies_in_branches_is_not_measured(rung):
    body = """
        h = Gemm(x, w1, b1)
        c = ReduceMax <keepdims = 0> (x)
        zero = Constant <value_float = 0.0> ()
        some = Greater(c, zero)
        i = If (some) <
            then_branch = t () => (float[a, b] to) { n = BatchNormalization(h, s, o, m, v) r = Relu(n) to = Gemm(r, w2, b2) },
            else_branch = e () => (float[a, b] eo) { q = Sigmoid(h) eo = Gemm(q, w2, b2) }
        >
        k = Relu(i)
        y = MatMul(k, w3)
    """
    rng = np.random.default_rng(3)
    arrays = gemm_weights() | {"w3": rng.standard_normal((5, 4)).astype(np.float32)}
    arrays |= {name: np.ones(24, np.float32) for name in "so"}
    arrays |= {name: rng.uniform(1, 2, 24).astype(np.float32) for name in "mv"}
    result = gp.prune(text_model(body, arrays), target="params=0.6", align=1, calibration=SAMPLES, compensation=rung)
    assert all(check.passed for check in result.report.proof)


def test_statistics_that_two_normalisations_share_stay():
    body = """
        z = Gemm(x, w0, b0)
        q = Relu(z)
        h = Gemm(q, w1, b1)
        n = BatchNormalization(h, s, s, m, v)
        r = Relu(n)
        k = BatchNormalization(r, s, s, m, u)
        y = Gemm(k, w2, b2)
    """
    rng = np.random.default_rng(4)
    arrays = gemm_weights() | {name: rng.uniform(1, 2, 24).astype(np.float32) for name in "smvu"}
    arrays |= {"w0": arrays["w1"][:, :8], "b0": arrays["b1"][:8]}
    model = text_model(body, arrays)
    result = gp.prune(model, target="params=0.6", align=1, calibration=SAMPLES, compensation="bn")
    (kept,) = {axes[0] for name, axes in result.plan.parameters.items() if name == "m"}
    np.testing.assert_array_equal(arrays["m"][list(kept)], result.host.read("m"))


def test_losses_of_half_precision_do_not_overflow():
    arrays = {name: array.astype(np.float16) for name, array in gemm_weights(w2=300.0).items()}
    model = text_model(GEMMS + "y = Gemm(r, w2, b2)", arrays, "float16", "float16[a, b] y")
    data = {"x": SAMPLES["x"].astype(np.float16)}
    result = gp.prune(model, target="params=0.6", align=1, calibration=data)
    assert all(np.isfinite(curve).all() and curve.max() > 0 for curve in result.state.losses.values())


def test_a_model_that_gives_classes_has_no_loss():
    model = text_model(GEMMS + "z = Gemm(r, w2, b2) y = ArgMax <axis = 1> (z)", gemm_weights(), output="int64[a, b] y")
    options = {"target": "params=0.6", "align": 1, "calibration": SAMPLES}
    assert gp.prune(model, **options).plan.options["allocation"] == "isomorphic"
    with pytest.raises(OptionError) as caught:
        gp.prune(model, allocation="measured", **options)
    assert str(caught.value) == (
        "the model has no floating-point output on which a loss could be measured; use a criterion without loss, such "
        "as obs, and allocation isomorphic"
    )
