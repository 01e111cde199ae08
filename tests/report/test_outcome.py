"""The loss of the outputs on inputs that nothing was fitted to, against NumPy on what onnxruntime and torch give."""

import json

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn import functional

import graphprune as gp
from graphprune.data.batches import open_batches
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.importance.judge import Judge
from graphprune.importance.outcome import Outcome, Tally, output_loss
from graphprune.report import movement as moving
from graphprune.statistics import holdout

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(160, 8)) @ RNG.normal(size=(8, 8))).astype(np.float32)


class Net(nn.Module):
    """8 -> 48 -> heads, of random weights."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.body = kind, nn.Linear(8, 48)
        self.head, self.boxes = nn.Linear(48, {"regression": 1, "detector": 3}.get(kind, 5)), nn.Linear(48, 4)

    def forward(self, x: torch.Tensor):
        y = self.body(x).relu()
        match self.kind:
            case "embedding":
                return functional.normalize(self.head(y), dim=-1)
            case "detector":
                return 100 * self.boxes(y), self.head(y).sigmoid()
            case "softmax":
                return self.head(y).softmax(-1)
        return self.head(y)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(want, have, *, logits=True):
    """Of rows, and what the mean distribution of the original loses."""
    p, q = (log_softmax(each) if logits else np.log(each) for each in (want, have))
    mean = np.exp(p).mean(0)
    return (np.exp(p) * (p - q)).sum(-1).mean(), (np.exp(p) * (p - np.log(mean))).sum(-1).mean()


def bernoulli(want, have):
    def between(p, q):
        return (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()

    return between(want, have), between(want, want.mean(0))


def squares(want, have):
    return ((have - want) ** 2).mean() / want.var(), min(1.0, want.var(0, ddof=1).mean() / want.var())


def cosine(want, have):
    a, b = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (want, have))
    mean = a.mean(0) / np.linalg.norm(a.mean(0))
    return (1 - (a * b).sum(-1)).mean(), (1 - a @ mean).mean()


EXPECTED = {
    "classifier": [kl],
    "softmax": [lambda want, have: kl(want, have, logits=False)],
    "regression": [squares],
    "embedding": [cosine],
    "detector": [squares, bernoulli],
}


def run_torch(module, x):
    with torch.no_grad():
        found = module(torch.from_numpy(x))
    return [each.numpy().astype(np.float64) for each in (found if isinstance(found, tuple) else (found,))]


def run_file(path, x):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = [session.run(None, {session.get_inputs()[0].name: x[i : i + 1]}) for i in range(len(x))]
    return [np.concatenate(each).astype(np.float64) for each in zip(*rows, strict=True)]


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("host", ["onnx", "torch"])
def test_the_loss_is_that_of_an_independent_evaluation(kind, host, tmp_path):
    net, example = Net(kind).eval(), (torch.zeros(1, 8),)
    options = {"target": "params=0.7", "align": 1, "samples": 96, "criterion": "l2", "allocation": "uniform"}
    options |= {"compensation": "affine", "verify": True}
    if host == "onnx":
        gp.export_onnx(net, example, tmp_path / "net.onnx")
        model, how = tmp_path / "net.onnx", {}
    else:
        model, how = net, {"example_inputs": example}
    result = gp.prune(model, **how, calibration=X, **options)
    cut = gp.apply(model, result.plan, **how, verify=False)
    batches = open_batches(X, result.state.original, samples=96)
    held = np.concatenate([batch[next(iter(batch))] for batch in batches.unseen(64)])
    assert len(held) == result.report.moved.samples == 64
    if host == "onnx":
        sides = []
        for name, each in (("cut", cut), ("after", result)):
            each.save_onnx(tmp_path / f"{name}.onnx")
            sides.append(run_file(tmp_path / f"{name}.onnx", held))
        want, before, after = run_file(tmp_path / "net.onnx", held), *sides
    else:
        want, before, after = (run_torch(each, held) for each in (net, cut.module, result.module))
    losses = result.report.moved.losses
    assert len(losses) == len(EXPECTED[kind]) == len(want)
    for i, loss in enumerate(losses):
        lost, mean = EXPECTED[kind][i](want[i], after[i])
        assert loss.after == pytest.approx(lost, rel=2e-3, abs=1e-7)
        assert loss.before == pytest.approx(EXPECTED[kind][i](want[i], before[i])[0], rel=2e-3, abs=1e-7)
        assert loss.mean_answer == pytest.approx(mean, rel=2e-3)
        assert loss.after < loss.before
    assert result.report.moved.ruined == ""
    text = " ".join(str(result.report).split())
    assert f"{losses[0].before:.3g} before the refit, {losses[0].after:.3g} after it" in text
    assert "ruined" not in text
    data = json.loads(json.dumps(result.report.to_dict()))
    assert [each["after"] for each in data["moved"]["losses"]] == [each.after for each in losses]
    assert data["losses"] == [each.judged for each in losses] == list(result.plan.options["losses"])


@pytest.mark.parametrize("kind", ["classifier", "regression", "detector", "embedding"])
def test_a_model_that_is_ruined_on_purpose_says_so(kind):
    options = {"criterion": "random", "allocation": "uniform", "compensation": "none", "align": 1, "max_ratio": 0.99}
    result = gp.prune(
        Net(kind).eval(), (torch.zeros(1, 8),), target="params=0.04", seed=3, calibration=X, samples=96, **options
    )
    ruined = [each for each in result.report.moved.losses if each.ruined]
    assert ruined
    assert all(each.after >= each.mean_answer for each in ruined)
    assert result.report.moved.ruined == (
        f"the model is ruined: output '{ruined[0].output}' is no better than answering always the mean of the original's "
        "outputs; leave more of it (a larger --target), try another --allocation, give more and more varied inputs "
        "(--calibration, --samples), or train the result"
    )
    assert result.report.moved.ruined in " ".join(str(result.report).split())
    assert result.report.to_dict()["moved"]["ruined"] == result.report.moved.ruined


def test_on_made_up_inputs_nothing_is_said():
    options = {"criterion": "random", "allocation": "uniform", "compensation": "none", "align": 1, "max_ratio": 0.97}
    report = gp.prune(Net("regression").eval(), (torch.zeros(1, 8),), target="params=0.06", **options).report
    assert (report.moved.losses, report.moved.ruined, report.losses) == ((), "", ())


# -- in words ------------------------------------------------------------------------------------------------------------


def tallied(kind, want, have):
    tally = Tally(Judge("y", 0, kind, 1))
    tally.add(want, have)
    return tally.outcome()


def test_classes_that_agree_by_chance():
    want = np.eye(4)[np.arange(64) % 4] * 3.0
    moved = np.eye(4)[np.arange(64) // 16] * 3.0  # each class as often, in another order
    found = tallied("kl", want, moved)
    assert (found.agreement, found.by_chance) == (0.25, 0.25)
    found = Outcome("y", "", "kl", 0.6, 1.0, 0.25, 0.25, 64)
    assert found.ruin == "agrees with the original in 25% of the rows, and by chance in 25%"
    assert Outcome("y", "", "kl", 0.6, 1.0, 0.9, 0.25, 64).ruin == ""
    assert Outcome("y", "", "kl", 0.6, 1.0, 0.25, 0.25, 8).ruin == ""  # too few to say
    assert Outcome("y", "", "kl", 0.1, 1.0, 0.25, 0.25, 64).ruin == ""  # flat distributions, hardly changed
    assert Outcome("y", "", "kl", 0.1, 1.0, 1.0, 1.0, 64).ruin == ""  # one class only


@pytest.mark.parametrize("kind", ["kl", "bce", "mse", "cosine"])
def test_the_mean_is_what_it_is_held_against(kind):
    """The original loses nothing, the mean of its answers as much as the mean, up to the sample."""
    want = np.random.default_rng(1).normal(size=(400, 3)) + np.arange(3)
    if kind == "kl":
        mean = np.log(np.exp(log_softmax(want)).mean(0))
    elif kind == "bce":
        p = (1 / (1 + np.exp(-want))).mean(0)
        mean = np.log(p / (1 - p))
    else:
        mean = (want / (np.linalg.norm(want, axis=1, keepdims=True) if kind == "cosine" else 1)).mean(0)
    same, answer = tallied(kind, want, want), tallied(kind, want, np.broadcast_to(mean, want.shape))
    assert same.loss == pytest.approx(0, abs=1e-12)
    assert output_loss([same]) == pytest.approx(0, abs=1e-12)
    assert answer.loss == pytest.approx(answer.mean_answer, rel=5e-3)
    assert output_loss([same, answer]) == pytest.approx(0.5, rel=5e-3)


@pytest.mark.parametrize("kind", ["kl", "bce", "mse", "cosine"])
def test_what_is_no_number_is_ruined(kind):
    want = np.random.default_rng(1).normal(size=(16, 3))
    have = want.copy()
    have[3, 1] = np.nan
    assert tallied(kind, want, have).ruin == "gives numbers that are not finite"
    assert output_loss([tallied(kind, want, have)]) == np.inf
    assert np.isfinite(tallied(kind, have, want).loss)  # what the original does not know is left out


def test_outputs_that_do_not_vary_are_not_ruined():
    want = np.ones((16, 3))
    assert tallied("mse", want, want).ruin == ""
    assert tallied("mse", want, want).mean_answer == 0
    assert tallied("mse", want, want).loss == 0


# -- which inputs ----------------------------------------------------------------------------------------------------------


def samples(batches):
    return {row.tobytes() for batch in batches for row in batch["x"]}


@pytest.mark.parametrize(
    ("n", "asked", "fitted", "held"),
    [
        (300, {"samples": 64}, 64, 64),  # others of the source
        (64, {"samples": 64}, 64, None),  # as many as were asked for: all are used
        (64, {}, 56, 8),  # one in eight
        (64, {"samples": 100}, 56, 8),
        (256, {}, 224, 32),
        (63, {}, 63, None),  # too few
        (72, {"batch_size": 4}, 63, 9),
    ],
)
def test_samples_that_nothing_reads(n, asked, fitted, held):
    host = OnnxHost.load(dynamic())
    batches = open_batches(np.arange(n * 8, dtype=np.float32).reshape(n, 8), host, **asked)
    mine, others = batches.set_apart()
    assert batches.set_apart() == (mine, others)
    assert (mine.samples, None if others is None else others.samples) == (fitted, held)
    assert others is None or not samples(mine) & samples(others)


def dynamic():
    import onnx

    return onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 8] x) => (float[N, 8] y) { y = Relu(x) }'
    )


def test_made_up_inputs_are_all_used():
    batches = open_batches("random", OnnxHost.load(dynamic()))
    assert batches.set_apart() == (batches, None)


def test_labels_go_with_their_samples():
    x = np.arange(80 * 8, dtype=np.float32).reshape(80, 8)
    batches = open_batches({"x": x, "labels": np.arange(80)}, OnnxHost.load(dynamic()))
    for part in batches.set_apart():
        rows = np.concatenate([batch["x"] for batch in part])
        np.testing.assert_array_equal(part.labels, rows[:, 0] // 8)


def test_neither_scores_nor_refits_read_what_the_result_is_judged_by(tmp_path):
    """Other numbers in the samples that are kept apart change the loss, and no weight."""
    gp.export_onnx(Net("regression").eval(), (torch.zeros(1, 8),), tmp_path / "net.onnx")
    results = []
    for change in (0.0, 3.0):
        data = X.copy()
        data[7::8] += change
        results.append(gp.prune(tmp_path / "net.onnx", target="params=0.6", align=1, calibration=data, verify=True))
    first, second = results
    assert first.report.moved.inputs == moving.UNSEEN == holdout.UNSEEN
    assert first.report.moved.samples == 20
    graph = first.host.graph()
    for name in (value.name for value in graph.stored):
        np.testing.assert_array_equal(first.host.read(name), second.host.read(name))
    assert first.report.moved.losses[0].after != second.report.moved.losses[0].after
