"""How trials run: prepared once, with what changes handed in, beside each other, and no longer than they must."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from test_consumers import text_model
from torch import nn

from graphprune.analysis.groups import analyze_graph
from graphprune.data.batches import open_batches
from graphprune.errors import ModelError
from graphprune.hosts.onnx import steps
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.trying import Asked, trials
from graphprune.importance import Evidence, trial_runs
from graphprune.importance import trials as trials_module
from graphprune.importance.judge import parse_losses
from graphprune.importance.loss import Standard
from graphprune.importance.trial_runs import USUAL, Runs, Sparing, Start, beside, enough, in_order
from graphprune.importance.trials import follows, loss_curves
from graphprune.runtime import watchdog
from graphprune.statistics.collect import collect

RNG = np.random.default_rng(3)
DATA = [{"x": RNG.standard_normal((8, 8)).astype(np.float32)} for _ in range(6)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.c(torch.relu(self.b(torch.relu(self.a(x))))))


def hosts():
    torch.manual_seed(0)
    traced = TorchHost.trace(Net().eval(), (torch.from_numpy(DATA[0]["x"]),)).folded()
    made = {"w1": (8, 24), "b1": (24,), "w2": (24, 16), "b2": (16,), "w3": (16, 3)}
    arrays = {name: RNG.standard_normal(shape).astype(np.float32) / 3 for name, shape in made.items()}
    text = "h = Gemm(x, w1, b1) r = Relu(h) z = Gemm(r, w2, b2) s = Relu(z) t = MatMul(s, w3) y = Tanh(t)"
    file = text_model(text, arrays, output="float[N, 3] y")
    return {"torch": traced, "onnx": OnnxHost.load(file)}


HOSTS = hosts()


def measured(host, **options):
    analysis = analyze_graph(host.graph())
    evidence = Evidence(analysis, host.read, statistics=collect(host, analysis, DATA[:3]), host=host)
    scores = {group.name: np.random.default_rng(0).uniform(0.5, 2, group.size) for group in analysis.groups}
    return loss_curves(evidence, scores, evidence.groups, DATA[3:], options.pop("n_widths", 4), **options)


# -- what is handed in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTS)
def test_values_that_are_handed_in_are_those_of_a_changed_copy(kind):
    host = HOSTS[kind]
    names = [value.name for value in host.graph().stored if len(value.shape) == 2][1:]
    changes = {name: host.read(name) * factor for name, factor in zip(names, (0.5, 2.0), strict=True)}
    outputs = list(host.graph().outputs)
    start = next(iter(host.graph().nodes)).results[0]
    carried, _ = host.partial_run(None, [start], outputs)(DATA[0])
    prepared = host.trials(Asked(list(carried), outputs, names, 1))
    for changed in (changes, {name: array.astype(np.float64) for name, array in changes.items()}, changes):
        expected = host.replaced(changed).run(DATA[0])
        for got, wanted in zip(prepared(changed)(carried).values(), expected.values(), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    before = prepared({name: host.read(name) for name in names})(carried)
    for got, wanted in zip(before.values(), host.run(DATA[0]).values(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)  # nothing of the last trial is left


def test_one_session_serves_all_widths_of_a_group(monkeypatch):
    made = []
    prepare = steps.trials
    monkeypatch.setattr(steps, "trials", lambda *args: made.append(1) or prepare(*args))
    monkeypatch.setattr(OnnxHost, "replaced", lambda self, tensors: pytest.fail("a copy"))
    curves = measured(HOSTS["onnx"])
    assert len(made) == len(curves)


def test_what_cannot_be_handed_in_is_a_changed_copy(monkeypatch):
    """Random numbers begin anew with each session; some operators take only what is stored."""
    expected = measured(HOSTS["onnx"])
    monkeypatch.setattr(OnnxHost, "trials", lambda self, asked: None)
    for name, curve in measured(HOSTS["onnx"]).items():
        np.testing.assert_allclose(curve, expected[name], rtol=1e-4)

    def refuses(tensors):
        def run(values):
            raise ModelError("takes only what is stored")

        return run

    monkeypatch.setattr(OnnxHost, "trials", lambda self, asked: refuses)
    for name, curve in measured(HOSTS["onnx"]).items():
        np.testing.assert_allclose(curve, expected[name], rtol=1e-4)


def test_a_model_that_draws_is_prepared_anew_for_each_trial():
    noisy = text_model(
        "n = RandomNormalLike <seed = 1.0> (x) a = Add(x, n) y = Gemm(a, w, b)",
        {"w": np.eye(8, dtype=np.float32), "b": np.zeros(8, np.float32)},
        output="float[N, 8] y",
    )
    host = OnnxHost.load(noisy)
    asked = Asked(["x"], ["y"], ["w"])
    assert host.trials(asked) is None
    run = trials(host, asked)
    first, second = (run({"w": host.read("w")})(DATA[0])["y"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_what_a_model_takes_is_asked_once_for_all_values_of_its_weights(monkeypatch):
    asked = []
    monkeypatch.setattr("graphprune.hosts.onnx.host.require_affordable", lambda *args: asked.append(1))
    host = hosts()["onnx"]
    changed = host.replaced({"w1": host.read("w1") * 2})
    changed.run(DATA[0])
    assert len(asked) == 1  # nobody has asked before
    changed.replaced({"w1": host.read("w1")}).run(DATA[0])
    assert len(asked) == 1


# -- beside each other ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTS)
def test_trials_beside_each_other_find_what_they_find_alone(kind, monkeypatch):
    alone = measured(HOSTS[kind])
    seen, met = set(), threading.Barrier(2, timeout=60)
    points = trials_module.Tried.points

    def together(self, *args, **kwargs):
        met.wait()
        seen.add(threading.get_ident())
        return points(self, *args, **kwargs)

    monkeypatch.setattr(trials_module, "beside", lambda *given: 3)
    monkeypatch.setattr(trials_module.Tried, "points", together)
    threads = torch.get_num_threads()
    for name, curve in measured(HOSTS[kind]).items():
        np.testing.assert_allclose(curve, alone[name], rtol=1e-5)
    assert len(seen) == 2
    assert threading.get_ident() not in seen
    assert torch.get_num_threads() == threads


def test_results_come_in_order_and_errors_at_once():
    def task(n):
        time.sleep(0.02 * (4 - n))
        if n == 4:
            raise ValueError("four")
        return n

    assert list(in_order([lambda n=n: task(n) for n in range(4)], 3)) == [0, 1, 2, 3]
    made = []

    def tasks():
        for n in range(100):
            made.append(n)
            yield lambda n=n: task(n % 5 if n < 5 else 3)

    with pytest.raises(ValueError, match="four"):
        list(in_order(tasks(), 2))
    assert len(made) < 10  # no more are made than run


def test_as_many_run_as_there_is_memory_for(monkeypatch):
    graph = HOSTS["onnx"].graph()
    monkeypatch.setattr(trial_runs, "cores", lambda: 6)
    assert beside(graph, 1 << 30, 8) == 6
    assert beside(graph, 30_000, 8) < 6
    assert beside(graph, 1, 8) == 1
    assert beside(graph, 30_000, 800) == 1
    monkeypatch.setattr(trial_runs, "alone", lambda: False)
    assert beside(graph, 1 << 30, 8) == 1  # processes ask each other in one order


def test_seconds_of_runs_beside_each_other_are_shared():
    run = watchdog.Run(SimpleNamespace(terminate=False), 10.0, 100)
    watchdog._look(run, 50.0, 0, 4)
    watchdog._look(run, 80.0, 0, 4)
    assert (run.used, run.reason) == (7.5, "")
    watchdog._look(run, 90.0, 350, 4)
    assert not run.reason
    watchdog._look(run, 91.0, 350, 1)
    assert "10 processor seconds" in run.reason
    greedy = watchdog.Run(SimpleNamespace(terminate=False), 10.0, 100)
    watchdog._look(greedy, 50.0, 350, 2)
    assert "beyond its own size" in greedy.reason


# -- no longer than they must -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0], False),
        ([1.0, 1.1], False),
        ([1.0, 1.1, 1.2], True),
        ([1.0, 9.0, 0.1], False),
        ([1.0, 4.0, 2.0, 2.5, 2.0, 1.5], True),
        ([0.0, 0.0, 0.0], True),
        ([1.0, float("nan"), 1.0], False),
    ],
)
def test_losses_on_enough_batches(losses, expected):
    assert enough(losses, USUAL.precise) is expected
    assert not enough(losses, 0.0)


def test_a_trial_ends_when_its_loss_is_known():
    standard = SimpleNamespace(loss_on=lambda i, outputs: outputs)
    runs = Runs(None, ["y"], standard, precise=USUAL.precise)
    seen = []

    def rest(losses):
        return lambda i: seen.append(i) or losses[i]

    assert runs._loss(rest([1.0, 1.0, 1.0, 9.0]), Start([], 4, lambda i: i)) == 1.0
    assert seen == [0, 1, 2]
    assert runs._loss(rest([1.0, 9.0, 0.5, 5.5]), Start([], 4, lambda i: i)) == 4.0
    assert replace(runs, precise=0.0)._loss(rest([1.0, 1.0, 1.0, 9.0]), Start([], 4, lambda i: i)) == 3.0


@pytest.mark.parametrize(("power", "expected"), [(1.0, True), (1.2, True), (3.0, False), (0.2, False)])
def test_a_loss_follows_the_scores_where_it_grows_as_they_do(power, expected):
    scores = RNG.uniform(0.5, 2, 40)
    sums = np.cumsum(np.sort(scores))
    assert follows(scores, (10, 30), 0.1 * sums[[9, 29]] ** power, USUAL.smooth) is expected
    assert not follows(scores, (10, 30), (0.0, 1.0), USUAL.smooth)
    assert not follows(scores, (10,), (1.0,), USUAL.smooth)


@pytest.mark.parametrize(("smooth", "each"), [(1e9, 2), (0.0, 4)])
def test_more_widths_are_tried_where_two_do_not_tell(smooth, each, monkeypatch):
    tried = []
    loss = Runs._loss
    monkeypatch.setattr(Runs, "_loss", lambda self, *given: tried.append(1) or loss(self, *given))
    curves = measured(HOSTS["torch"], sparing=Sparing(smooth))
    assert len(tried) == each * len(curves)


def test_samples_come_in_pieces_where_the_model_takes_any_number():
    dynamic, fixed = HOSTS["onnx"], HOSTS["torch"]
    rows = np.arange(40 * 8, dtype=np.float32).reshape(40, 8)
    batches = open_batches(rows, dynamic)
    pieces = batches.in_pieces([1, 3], 8)
    assert (len(batches), batches.batch_size, len(pieces), pieces.batch_size) == (5, 8, 8, 2)
    np.testing.assert_array_equal(
        np.concatenate([each["x"] for each in pieces]), np.concatenate([batches[i]["x"] for i in (1, 3)])
    )
    assert batches.in_pieces([1, 3], 1).batch_size == 8
    whole = open_batches(rows, fixed).in_pieces([1, 3], 8)
    assert (len(whole), whole.batch_size) == (2, 8)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_squared_errors_of_a_few_samples_are_relative_to_the_variance_of_all(kind):
    """One sample's own numbers may be nearly equal: its error would count a thousand times what it should."""
    host = HOSTS["onnx"]
    rows = [{"x": DATA[0]["x"][i : i + 1] * scale} for i, scale in enumerate((1.0, 1e-3, 2.0, 1.0))]
    changed = host.replaced({"w3": host.read("w3") * 1.1})
    asked = parse_losses(kind)
    whole = {"x": np.concatenate([row["x"] for row in rows])}
    expected = Standard(host.run, [(whole, None)], host.graph(), asked).loss(changed.run)
    pooled = Standard(host.run, [(row, None) for row in rows], host.graph(), asked, pooled=True)
    assert pooled.loss(changed.run) == pytest.approx(expected, rel=1e-6)
    assert np.mean([pooled.loss_on(i, changed.run(row)) for i, row in enumerate(rows)]) == pytest.approx(expected)
    if kind == "mse":
        plain = Standard(host.run, [(row, None) for row in rows], host.graph(), asked).loss(changed.run)
        assert plain != pytest.approx(expected, rel=0.02)


def test_onnx_types_that_numpy_has_not_are_not_handed_in():
    host = HOSTS["onnx"]
    proto = onnx.ModelProto()
    proto.CopyFrom(host.proto)
    for tensor in proto.graph.initializer:
        tensor.data_type = onnx.TensorProto.BFLOAT16
    asked = Asked(["x"], ["y"], ["w1"])
    assert replace(host, proto=proto, known=None).trials is not None
    assert steps.trials(proto, host.store, host.inferred, asked) is None
    assert steps.trials(host.proto, host.store, host.inferred, asked) is not None
