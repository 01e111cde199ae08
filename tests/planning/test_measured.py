"""Losses measured on trial: they are what a direct computation finds, and the budget goes where they are small."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from graphs import save_net
from test_cli import small_model
from test_consumers import text_model
from torch import nn

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.compensation import Residuals, refit
from graphprune.errors import OptionError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.importance import Evidence
from graphprune.importance.context import readings
from graphprune.importance.final import finals_of, floating
from graphprune.importance.loss import Standard, divergence, log_softmax
from graphprune.importance.obs import RIDGE
from graphprune.importance.trials import WIDTHS, loss_curves, plan_trials, without
from graphprune.passes import MeasureLosses
from graphprune.passes.slice_groups import slice_edits
from graphprune.statistics.collect import collect
from graphprune.statistics.holdout import split_batches

RNG = np.random.default_rng(1)
X = (RNG.normal(size=(240, 8)) @ RNG.normal(size=(8, 8))).astype(np.float32)


def chain(path):
    """Two branches 8 -> 32 -> 8 in a row on a stream; what the second reads is all, and the first adds little to it."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], {}, "x"
    for i, size in enumerate((0.01, 1.0)):
        weights[f"{i}.in"], weights[f"{i}.out"] = rng.normal(size=(8, 32)), rng.normal(size=(32, 8)) * size
        weights[f"{i}.bias"] = rng.normal(size=32)
        nodes += [
            onnx.helper.make_node("MatMul", [last, f"{i}.in"], [f"{i}.a"], f"{i}.first"),
            onnx.helper.make_node("Add", [f"{i}.a", f"{i}.bias"], [f"{i}.b"], f"{i}.add"),
            onnx.helper.make_node("Relu", [f"{i}.b"], [f"{i}.c"], f"{i}.relu"),
            onnx.helper.make_node("MatMul", [f"{i}.c", f"{i}.out"], [f"{i}.d"], f"{i}.second"),
            onnx.helper.make_node("Tanh", [f"{i}.d"], [f"{i}.e"], f"{i}.tanh"),
            onnx.helper.make_node("Add", [last, f"{i}.e"], [f"{i}.f"], f"{i}.sum"),
        ]
        last = f"{i}.f"
    nodes.append(onnx.helper.make_node("Identity", [last], ["y"], "end"))
    return save_net(path, nodes, weights, (8, 8))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("model") / "chain.onnx")


@pytest.fixture
def measured(model):
    host = OnnxHost.load(model)
    analysis = analyze_graph(host.graph())
    fit, held = [{"x": X[:120]}, {"x": X[120:180]}], [{"x": X[180:]}]
    evidence = Evidence(analysis, host.read, statistics=collect(host, analysis, fit), host=host)
    scores = {group.name: RNG.uniform(0.5, 2, group.size) for group in analysis.groups}
    return evidence, scores, held


# -- what a trial computes -------------------------------------------------------------------------------------------


def test_a_refit_from_moments_is_the_refit_of_the_ladder(measured):
    evidence, _, _ = measured
    group = evidence.groups[0]
    reading = next(readings(evidence, evidence.statistics, group))
    lost = np.isin(reading.units, [3, 4, 17])
    kept = np.flatnonzero(~lost[0])
    inputs = evidence.host.partial_run(None, [reading.consumer.value])({"x": X[:180]})[1][reading.consumer.value]
    inputs = inputs.astype(np.float64)
    wanted = inputs @ reading.matrix[0].T
    sums = Residuals.zeros(1, len(kept), len(wanted[0]))
    sums.add(inputs[:, None, kept], (wanted - inputs[:, kept] @ reading.matrix[0][:, kept].T)[:, None], wanted[:, None])
    for rung, centre in (("affine", True), ("ols", False)):
        weight, bias = without(reading, lost, refit=True, centre=centre)
        best = refit(sums, rung, RIDGE)
        np.testing.assert_allclose(
            weight[0][:, kept], reading.matrix[0][:, kept] + best.weight[0], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(bias, best.biases[0], rtol=1e-4, atol=1e-5)
        assert not weight[0][:, lost[0]].any()


def test_without_a_refit_columns_are_zero_and_the_mean_is_made_good(measured):
    evidence, _, _ = measured
    reading = next(readings(evidence, evidence.statistics, evidence.groups[0]))
    lost = np.isin(reading.units, [0])
    weight, bias = without(reading, lost, refit=False, centre=True)
    np.testing.assert_array_equal(weight, np.where(lost[:, None], 0.0, reading.matrix))
    np.testing.assert_allclose(bias[0], reading.matrix[0][:, 0] * reading.moments.mean[0, 0])


@pytest.mark.parametrize("n_widths", sorted(WIDTHS))
def test_losses_are_those_of_a_model_with_these_weights(measured, n_widths):
    evidence, scores, held = measured
    curves = loss_curves(evidence, scores, evidence.groups, held, n_widths)
    standard = Standard(evidence.host.run, ((batch, None) for batch in held))
    assert len(evidence.groups) == 2
    for group in evidence.groups:
        reading = next(readings(evidence, evidence.statistics, group))
        assert len(curves[group.name]) == group.size + 1
        assert curves[group.name][-1] == 0.0
        assert (np.diff(curves[group.name]) <= 0).all()
        highest = 0.0
        for part in WIDTHS[n_widths]:
            count = round(part * group.size)
            gone = np.argsort(scores[group.name])[:count]
            use = reading.consumer
            weight, bias = without(reading, np.isin(reading.units, gone), refit=True, centre=True)
            host = evidence.host.biased({use.node: use.channel})
            name = next(
                v
                for v in host.graph().values
                if v not in evidence.host.graph().values and host.graph().values[v].stored
            )
            changed = host.replaced(
                {use.weight: use.weight_of(weight, host.read(use.weight).shape), name: bias.ravel()}
            )
            highest = max(highest, standard.loss(changed.run))  # curves never fall with more units gone
            assert curves[group.name][group.size - count] == pytest.approx(highest, rel=1e-3)


def test_groups_that_were_not_tried_are_on_the_scale_of_the_others(measured):
    evidence, scores, held = measured
    first, second = evidence.groups
    curves = loss_curves(evidence, scores, [first], held, 2)
    assert set(curves) == {first.name, second.name}
    per_score = [curves[name][0] / scores[name].sum() for name in (first.name, second.name)]
    assert 0.1 < per_score[0] / per_score[1] < 10


def test_units_of_no_score_cost_next_to_nothing(measured):
    evidence, scores, held = measured
    scores = {name: np.zeros_like(each) for name, each in scores.items()}
    for curve in loss_curves(evidence, scores, evidence.groups, held, 3).values():
        assert np.isfinite(curve).all()


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 70_000)])
def test_divergences_of_logits_are_exact(shape):
    rng = np.random.default_rng(0)
    wanted, found = (rng.normal(size=shape).astype(np.float32) * 5 for _ in range(2))
    log_p, log_q = log_softmax(wanted), log_softmax(found)
    assert divergence(wanted, found) == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean(), rel=1e-12)
    assert divergence(wanted, wanted + 3) == pytest.approx(0, abs=1e-12)


def test_work_is_bounded():
    assert plan_trials(12, 2, 4e9, 1) == (4, 1)  # small: all widths, all that is held apart
    assert plan_trials(60, 64, 7e10, 16) == (1, 2)  # large: about one walk over the data
    n_widths, n_batches = plan_trials(40, 256, 4e9, 64)
    assert 40 * n_widths * n_batches / 2 <= 2e12 / 4e9
    assert plan_trials(1000, 1, 1e15, 1) == (1, 1)


def test_what_is_judged_by_is_apart():
    assert split_batches(1) == ([0], [0])
    assert split_batches(2) == ([0], [1])
    fit, held = split_batches(11)
    assert sorted(fit + held) == list(range(11))
    assert held == [3, 7]


# -- what it is good for ---------------------------------------------------------------------------------------------


def test_the_budget_goes_where_outputs_lose_little(model):
    def pruned(allocation):
        return gp.prune(
            model, target={"macs": 0.7}, align=1, calibration={"x": X}, samples=240, allocation=allocation, verify=False
        )

    unseen = (np.random.default_rng(5).normal(size=(500, 8)) @ np.cov(X.T)).astype(np.float32) / 8
    wanted = OnnxHost.load(model).run({"x": unseen})["y"]
    errors, kept = {}, {}
    for allocation in (None, "isomorphic"):
        result = pruned(allocation)
        errors[allocation] = np.square(result.host.run({"x": unseen})["y"] - wanted).mean()
        kept[allocation] = [group.kept for group in result.report.groups]
    assert result.plan.options["allocation"] == "isomorphic"
    assert kept[None][0] < kept["isomorphic"][0]  # the branch that adds little loses more
    assert kept[None][1] > kept["isomorphic"][1]
    assert errors[None] < 0.5 * errors["isomorphic"]


def test_it_is_the_default_with_calibration_data_only(model):
    with_data = gp.prune(model, target={"macs": 0.8}, calibration={"x": X}, verify=False)
    assert with_data.plan.options["allocation"] == "measured"
    assert gp.prune(model, target={"macs": 0.8}, verify=False).plan.options["allocation"] == "isomorphic"
    with pytest.raises(OptionError, match="give some"):
        gp.prune(model, target={"macs": 0.8}, allocation="measured")
    with pytest.raises(OptionError, match="measure-losses"):
        gp.prune(
            model,
            calibration={"x": X},
            pipeline="analyze,calibrate,score{criterion=obs},allocate{targets=macs=0.8 allocation=measured}",
        )


def test_trials_are_made_once_for_several_targets(model, monkeypatch):
    session = gp.Session(model, data={"x": X})
    session.prune(target={"macs": 0.8}, verify=False)
    assert session.measured.any_of(MeasureLosses.name)
    monkeypatch.setattr("graphprune.passes.measure_losses.loss_curves", lambda *args, **kwargs: pytest.fail("again"))
    session.prune(target={"macs": 0.6}, verify=False)
    assert MeasureLosses.name == "measure-losses"


def test_statistics_are_written_once_and_read_again(model, tmp_path, monkeypatch):
    options = {"target": {"macs": 0.7}, "align": 1, "calibration": {"x": X}, "verify": False}
    file = tmp_path / "statistics.npz"
    first = gp.prune(model, statistics=file, **options)
    assert first.plan.parameters == gp.prune(model, **options).plan.parameters
    monkeypatch.setattr("graphprune.passes.calibrate.collect", lambda *args, **kwargs: pytest.fail("measured again"))
    assert gp.prune(model, statistics=file, **options).plan.parameters == first.plan.parameters
    with pytest.raises(OptionError, match="another model"):
        gp.prune(small_model(tmp_path / "other.onnx"), statistics=file, **options)
    with pytest.raises(OptionError, match="takes no statistics"):
        gp.prune(model, statistics=file, target={"macs": 0.7})


def test_statistics_without_products_are_refused(model, tmp_path):
    options = {"target": {"macs": 0.7}, "calibration": {"x": X}, "statistics": tmp_path / "few.npz"}
    gp.prune(model, criterion="wifv", allocation="isomorphic", **options)
    with pytest.raises(OptionError, match="no products"):
        gp.prune(model, **options)


# -- units that something reads which no trial refits ----------------------------------------------------------------


class Unseen(nn.Module):
    """States and units whose only readers have no weights of their own (or are read by themselves)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = nn.LSTM(6, 20, batch_first=True) if kind == "lstm" else nn.Linear(6, 20)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)[0] if self.kind == "lstm" else torch.relu(self.first(x))
        return (h * h).sum(-1, keepdim=True)


@pytest.mark.parametrize("onnx", [False, True], ids=["torch", "onnx"])
@pytest.mark.parametrize("kind", ["linear", "lstm"])
def test_a_trial_without_consumers_is_the_cut_model(kind, onnx, tmp_path):
    torch.manual_seed(0)
    net = Unseen(kind).eval()
    data = [{"x": RNG.standard_normal((8, 5, 6)).astype(np.float32)} for _ in range(4)]
    host = TorchHost.trace(net, (torch.from_numpy(data[0]["x"]),)).folded()
    if onnx:
        host.save_onnx(tmp_path / "net.onnx")
        host = OnnxHost.load(tmp_path / "net.onnx").folded()
    analysis = analyze_graph(host.graph())
    (group,) = [each for each in analysis.groups if each.size == 20]
    evidence = Evidence(analysis, host.read, statistics=collect(host, analysis, data[:2]), host=host)
    scores = {each.name: RNG.uniform(0.5, 2, each.size) for each in analysis.groups}
    curve = loss_curves(evidence, scores, [group], data[2:], 2)[group.name]
    standard = Standard(host.run, ((batch, None) for batch in data[2:]))
    for part in WIDTHS[2]:
        count = round(part * 20)
        kept = np.sort(np.argsort(scores[group.name])[count:])
        cut = host.edited(slice_edits(analysis, {group.factor: kept}))
        assert curve[20 - count] == pytest.approx(standard.loss(cut.run), rel=1e-3)
        assert curve[20 - count] > 1e-3


# -- probabilities ---------------------------------------------------------------------------------------------------


def ending(last: str, output: str = "float[N, c] y") -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    arrays = {"w1": (8, 24), "b1": (24,), "w2": (24, 5), "b2": (5,)}
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()}
    return text_model("h = Gemm(x, w1, b1) r = Relu(h) z = Gemm(r, w2, b2) " + last, made, output=output)


def final_of(graph):
    """What makes the first floating-point output a probability, if anything does, as a whole."""
    found = [each for name in floating(graph)[:1] for each in finals_of(graph, name)]
    return found[0] if len(found) == 1 and found[0].probable else None


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        ("y = Softmax <axis = 1> (z)", "softmax"),
        ("a = Softmax <axis = -1> (z) y = Identity(a)", "softmax"),
        ("y = LogSoftmax <axis = 1> (z)", "log-softmax"),
        ("y = Sigmoid(z)", "sigmoid"),
        ("a = Sigmoid(z) y = Transpose(a)", "sigmoid"),
        ("a = Softmax <axis = 1> (z) y = Add(a, b2)", None),
        ("a = Softmax <axis = 1> (z) y = Transpose(a)", "softmax"),
        ("y = Tanh(z)", None),
    ],
)
def test_losses_are_judged_before_probabilities(last, kind):
    """By the logits, which the same model without its last node gives."""
    model = ending(last)
    host = OnnxHost.load(model)
    found = final_of(host.graph())
    assert (found and found.kind) == kind
    if found is None:
        return
    logits, data = OnnxHost.load(ending("y = Identity(z)")), [{"x": X[:40] / 20}, {"x": X[40:80] / 20}]
    other = {"w2": host.read("w2") * 1.1}
    standard = Standard(host.run, ((batch, None) for batch in data), host.graph())
    wanted, changed = (
        np.concatenate([one.run(batch)["y"] for batch in data]).astype(np.float64)
        for one in (logits, logits.replaced(other))
    )
    if found.binary:
        p, q = 1 / (1 + np.exp(-wanted)), 1 / (1 + np.exp(-changed))
        expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    else:
        expected = divergence(wanted, changed)
    assert standard.loss(host.replaced(other).run) == pytest.approx(expected, rel=1e-2)


def test_the_axis_of_a_softmax_is_found_and_so_are_those_of_torch():
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x))).softmax(1)

    host = TorchHost.trace(Ends().eval(), (torch.randn(2, 3, 6, 6),)).folded()
    found = final_of(host.graph())
    assert found is not None
    assert (found.kind, found.axis) == ("softmax", 1)
    assert found.before(np.full((2, 4, 5, 6), 0.25, np.float32)).shape == (2, 5, 6, 4)


def test_the_report_says_what_losses_are_judged_by():
    result = gp.prune(ending("y = Softmax <axis = 1> (z)"), target="params=0.6", align=1, calibration={"x": X})
    assert (
        "losses are judged by what goes into the softmax at the end of the model, not by probabilities"
        in result.report.notes
    )
