"""Inputs that are nearly silent on the data get no weights of any size: what they say elsewhere nobody has seen."""

import numpy as np
import onnx
import pytest

from graphprune.analysis.groups import analyze_graph
from graphprune.compensation.methods import Residuals, chosen_ridge, floors, refit_shared
from graphprune.compensation.sequential import compensate
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.pipeline.edits import slice_edits

RNG = np.random.default_rng(0)


def sums(x, r):
    found = Residuals.zeros(1, x.shape[1], r.shape[1])
    found.add(x[:, None], r[:, None], r[:, None])
    return found


def case(n=400, columns=6, scale=1.0):
    """Inputs of which the last one is on in one of fifty positions, by a hair, and residuals that look like it."""
    x = RNG.standard_normal((n, columns))
    x[:, -1] = 1e-4 * (RNG.random(n) < 0.02) * scale
    r = x[:, :2] @ RNG.standard_normal((2, 3)) + 0.2 * (x[:, -1:] > 0)
    weight = RNG.standard_normal((1, 3, columns))
    weight[..., -1] /= scale
    return x, r, weight


def test_a_silent_input_keeps_about_its_weight():
    x, r, weight = case()
    free, held = (refit_shared([sums(x, r)], ["affine"], 1e-2, each).weight[0] for each in (None, weight))
    assert np.abs(free[:, -1]).min() > 100 * np.abs(weight).max()  # 2,000 for 1e-4: right here, and ruin elsewhere
    assert np.abs(held[:, -1]).max() < np.abs(weight[..., -1]).max()
    np.testing.assert_allclose(held[:, :-1], free[:, :-1], atol=0.02)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_scale_of_an_input_does_not_matter(scale):
    """Where the weight is as much larger as the input is smaller, what the refit adds is the same."""
    x, r, weight = case()
    x, weight = x[:, :-1], weight[..., :-1]
    factor = np.ones(x.shape[1])
    factor[1] = scale
    plain = refit_shared([sums(x, r)], ["affine"], 1e-1, weight).weight
    scaled = refit_shared([sums(x * factor, r)], ["affine"], 1e-1, weight / factor).weight
    np.testing.assert_allclose(plain, scaled * factor, rtol=1e-6, atol=1e-9)


def test_inputs_that_all_speak_are_damped_as_before():
    x, r = RNG.standard_normal((300, 5)), RNG.standard_normal((300, 2))
    weight = RNG.standard_normal((1, 2, 5))
    for ridges in ((1e-2,), (1e-2, 1e-1, 1.0)):
        parts = [sums(x[:200], r[:200])], [sums(x[200:], r[200:])], ["affine"], ridges
        assert chosen_ridge(*parts) == chosen_ridge(*parts, weight)
        np.testing.assert_array_equal(
            refit_shared([sums(x, r)], ["affine"], ridges[0]).weight,
            refit_shared([sums(x, r)], ["affine"], ridges[0], weight).weight,
        )


@pytest.mark.parametrize("weight", [np.zeros((1, 2, 3)), np.array([[[0.0, 1, 2], [0, 1, 2]]])])
def test_weights_of_zero_give_numbers(weight):
    xx = np.eye(3)[None]
    assert np.isfinite(floors(xx, weight)).all()
    x, r = RNG.standard_normal((50, 3)), RNG.standard_normal((50, 2))
    assert np.isfinite(refit_shared([sums(x, r)], ["affine"], 1e-2, weight).weight).all()


NET = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[n,8] x) => (float[n,4] y) <float[8,12] first, float[12] bias, float[12,4] second> {
    a = MatMul(x, first)
    b = Add(a, bias)
    c = Relu(b)
    y = MatMul(c, second)
}
"""


def test_a_unit_behind_a_relu_that_speaks_up_elsewhere_ruins_nothing():
    """Two removed units make a step; one that stays is on where that is, by a hair, and by much for larger inputs."""
    rng = np.random.default_rng(3)
    model = onnx.parser.parse_model(NET)
    first, second, bias = rng.standard_normal((8, 12)) * 0.5, rng.standard_normal((12, 4)), np.zeros(12)
    data = rng.standard_normal((512, 8)).astype(np.float32)
    along = first[:, 0].copy()
    least = np.quantile(data @ along, 0.98)
    for unit, steep, more in ((0, 1e-4, 0), (6, 1e3, 0), (7, 1e3, -1)):
        first[:, unit], bias[unit] = steep * along, more - steep * least
    second[7] = -second[6]
    for name, value in {"first": first, "bias": bias, "second": second}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    dense = OnnxHost.load(model)
    analysis = analyze_graph(dense.graph())
    kept = {group.factor: np.array([0, 1, 2, 3, 4, 5, 8, 9, 10, 11]) for group in analysis.groups}
    sliced = dense.edited(slice_edits(analysis, kept))
    pruned, _ = compensate(dense, sliced, analysis, kept, [{"x": data[:256]}, {"x": data[256:]}])
    larger = {"x": 2 * rng.standard_normal((512, 8)).astype(np.float32)}
    wanted, found, plain = (host.run(larger)["y"] for host in (dense, pruned, sliced))
    assert np.square(found - wanted).mean() < 1.1 * np.square(plain - wanted).mean()
