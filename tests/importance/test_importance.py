"""Criteria: invariances, closed forms and their agreement with what really happens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import OptionError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.importance import CRITERIA, Evidence, ablation
from graphprune.importance.ablation import coefficients
from graphprune.importance.loss import gates_of
from graphprune.importance.structure import fpgm, lamp
from graphprune.statistics.collect import collect

SHAPE = (64, 10)
UNITS = 24
SCALE_FREE = ("wanda", "wifv", "obs", "apoz", "taylor", "fisher")
MEASURED = [name for name, each in CRITERIA.items() if each.needs != "weights"]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, UNITS)
        self.second = nn.Linear(UNITS, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def batches(n: int = 40) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((10, 10))
    return [{"x": (rng.standard_normal(SHAPE) @ mixing).astype(np.float32)} for _ in range(n)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return Mlp().eval()


def evidence_of(model: nn.Module) -> Evidence:
    example = (torch.zeros(SHAPE),)
    host = TorchHost.trace(model, example).folded()
    analysis = gp.analyze(model, example)
    return Evidence(analysis, host.read, 0, collect(host, analysis, batches()), host, batches(4))


@pytest.fixture(scope="module")
def evidence(model):
    return evidence_of(model)


def scores_of(name: str, evidence: Evidence) -> np.ndarray:
    (group,) = evidence.groups
    return np.asarray(CRITERIA[name].score(evidence)[group.name])


def activations(model: nn.Module) -> torch.Tensor:
    x = torch.from_numpy(np.concatenate([batch["x"] for batch in batches()])).double()
    return torch.relu(model.double().first(x)).detach()


@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in ("random", "bn-gamma", "bonsai")])
def test_scores_move_with_their_units(name, model, evidence):
    order = torch.randperm(UNITS, generator=torch.Generator().manual_seed(0))
    moved = Mlp().eval()
    moved.load_state_dict(model.float().state_dict())
    with torch.no_grad():
        moved.first.weight.copy_(moved.first.weight[order].clone())
        moved.first.bias.copy_(moved.first.bias[order].clone())
        moved.second.weight.copy_(moved.second.weight[:, order].clone())
    want, got = scores_of(name, evidence)[order.numpy()], scores_of(name, evidence_of(moved))
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("name", [*SCALE_FREE, "l2", "act-rms"])
def test_what_scaling_a_unit_does(name, model, evidence):
    factor = torch.linspace(0.3, 3, UNITS)
    scaled = Mlp().eval()
    scaled.load_state_dict(model.float().state_dict())
    with torch.no_grad():  # the function stays: relu is positively homogeneous
        scaled.first.weight.mul_(factor[:, None])
        scaled.first.bias.mul_(factor)
        scaled.second.weight.div_(factor)
    want, got = scores_of(name, evidence), scores_of(name, evidence_of(scaled))
    if name in SCALE_FREE:
        np.testing.assert_allclose(got, want, rtol=1e-5)
    else:
        assert np.abs(got / want - 1).max() > 0.5


def test_wifv_is_the_error_that_remains_when_the_mean_is_made_good(model, evidence):
    x, weight = activations(model), model.double().second.weight.detach()
    spread = (x @ weight.T).var(0, correction=0)
    exact = [(((x[:, [u]] - x[:, [u]].mean()) @ weight[:, [u]].T).square() / spread).mean() for u in range(UNITS)]
    np.testing.assert_allclose(scores_of("wifv", evidence), np.array(exact), rtol=1e-4)


def test_activation_criteria_are_what_they_say(model, evidence):
    x = activations(model)
    np.testing.assert_allclose(scores_of("act-rms", evidence), x.square().mean(0).sqrt(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores_of("act-var", evidence), x.var(0, correction=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores_of("apoz", evidence), (x > 0).double().mean(0), atol=1e-9)
    wanda = model.double().second.weight.detach().abs().mean(0) * x.square().mean(0).sqrt()
    np.testing.assert_allclose(scores_of("wanda", evidence), wanda, rtol=1e-4, atol=1e-7)


def test_sums_of_obs_scores_are_errors_after_the_refit(model, evidence):
    x, weight = activations(model).numpy(), model.double().second.weight.detach().numpy()
    scores = scores_of("obs", evidence)
    kept = np.sort(np.argsort(scores, kind="stable")[8:])
    design = np.concatenate([x[:, kept], np.ones((len(x), 1))], axis=1)
    target = x @ weight.T
    fit = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    exact = (np.square(fit - target) / target.var(0)).mean()
    assert np.sort(scores)[:8].sum() == pytest.approx(exact, rel=0.35, abs=1e-4)


def test_redundant_units_go_first_by_obs():
    torch.manual_seed(2)
    net = Mlp().eval()
    with torch.no_grad():  # unit 5 is a copy of unit 3, and large
        net.first.weight[5], net.first.bias[5] = net.first.weight[3], net.first.bias[3]
        net.second.weight[:, 5] = 3 * net.second.weight[:, 3]
    scores = scores_of("obs", evidence_of(net))
    assert min(np.argsort(np.argsort(scores))[[3, 5]]) <= 2
    assert scores_of("wifv", evidence_of(net)).argsort()[0] not in (3, 5)


def test_gradients_of_gates_are_sums_over_weights_of_consumers_and_of_producers(model, evidence):
    """∂L/∂m_u = Σ W_u · ∂L/∂W_u at the consumer, and at the producer too, since relu is positively homogeneous."""
    model.float()
    host, batch = evidence.host, batches(1)[0]
    (gate,) = gates_of(evidence, "taylor").all
    target = np.random.default_rng(0).standard_normal((64, 7)).astype(np.float32)
    got = host.gate_gradients(batch, [gate], target, categorical=False)[gate].sum(0)
    names = ["first.weight", "first.bias", "second.weight"]
    by_name = host.parameter_gradients(batch, names, target, categorical=False)
    consumer = (host.read("second.weight") * by_name["second.weight"]).sum(0)
    producer = (host.read("first.weight") * by_name["first.weight"]).sum(1)
    producer += host.read("first.bias") * by_name["first.bias"]
    np.testing.assert_allclose(got, consumer, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got, producer, rtol=1e-4, atol=1e-4)


def test_gradients_leave_the_users_module_alone(evidence):
    module = Mlp().eval()
    kept = torch.ones_like(module.first.weight)
    module.first.weight.grad = kept.clone()
    host = TorchHost.trace(module, (torch.zeros(SHAPE),))
    batch = batches(1)[0]
    host.parameter_gradients(batch, ["second.weight"], None)
    host.gate_gradients(batch, gates_of(evidence, "taylor").all, None)
    assert torch.equal(module.first.weight.grad, kept)
    assert all(each.grad is None for name, each in module.named_parameters() if name != "first.weight")


def test_the_oracle_is_the_same_on_both_hosts(evidence, tmp_path):
    evidence.host.save_onnx(tmp_path / "net.onnx")
    host = OnnxHost.load(tmp_path / "net.onnx").folded()
    other = Evidence(gp.analyze(tmp_path / "net.onnx"), host.read, host=host, batches=evidence.batches)
    (got,), want = CRITERIA["oracle"].score(other).values(), scores_of("oracle", evidence)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-7)
    (got,), want = CRITERIA["taylor"].score(other).values(), scores_of("taylor", evidence)
    np.testing.assert_allclose(got, want, rtol=1e-4)


class WithoutGradients:
    """A host that only runs."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name.endswith("_gradients"):
            raise AttributeError(name)
        return getattr(self.inner, name)


def test_criteria_of_gradients_ask_for_a_host_that_has_some(evidence):
    bare = Evidence(evidence.analysis, evidence.read, host=WithoutGradients(evidence.host), batches=evidence.batches)
    with pytest.raises(OptionError, match="needs gradients, which hosts of kind 'torch' do not have"):
        CRITERIA["taylor"].score(bare)


def test_criteria_agree_with_the_oracle_better_than_chance(evidence):
    def ranks(values):
        return np.argsort(np.argsort(values))

    want = ranks(scores_of("oracle", evidence))
    found = {name: np.corrcoef(want, ranks(scores_of(name, evidence)))[0, 1] for name in ("fisher", "taylor", "wifv")}
    assert found["fisher"] > 0.7
    assert found["taylor"] > 0.7
    assert found["wifv"] > 0.4


def test_regression_over_random_sub_models_finds_what_units_are_worth():
    rng = np.random.default_rng(0)
    worth = rng.random(30)
    half = rng.random((64, 30)) < 0.5
    masks = np.concatenate([half, ~half])  # complementary pairs
    losses = -(masks @ worth) + 0.02 * rng.standard_normal(len(masks))
    found = coefficients(masks, losses, prior=np.full(30, 0.5))
    assert np.corrcoef(np.argsort(np.argsort(found)), np.argsort(np.argsort(worth)))[0, 1] > 0.95


@pytest.mark.parametrize("name", MEASURED)
def test_measured_criteria_ask_for_data(name, evidence):
    with pytest.raises(OptionError, match=f"'{name}' needs calibration data"):
        CRITERIA[name].score(Evidence(evidence.analysis, evidence.read))


def test_lamp_scores_end_in_one(evidence):
    (scores,) = lamp(evidence).values()
    (norms,) = CRITERIA["l2"].score(evidence).values()
    assert scores.max() == 1.0
    np.testing.assert_array_equal(np.argsort(scores, kind="stable"), np.argsort(norms, kind="stable"))


def test_fpgm_is_the_sum_of_distances(model, evidence):
    model.float()
    rows = torch.cat([model.first.weight, model.first.bias[:, None], model.second.weight.T], dim=1).double()
    (scores,) = fpgm(evidence).values()
    np.testing.assert_allclose(scores, torch.cdist(rows, rows).sum(1).detach(), rtol=1e-6)


def test_bn_gamma_reads_the_scales_and_says_when_there_are_none(evidence):
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.norm(self.conv(x))))

    net = Normed().eval()
    with torch.no_grad():
        net.norm.weight.copy_(torch.linspace(-2, 1, 8))
    example = (torch.zeros(1, 3, 8, 8),)
    host = TorchHost.trace(net, example).folded()
    (scores,) = CRITERIA["bn-gamma"].score(Evidence(gp.analyze(net, example), host.read)).values()
    np.testing.assert_allclose(scores, torch.linspace(-2, 1, 8).abs(), rtol=1e-6)
    with pytest.raises(OptionError, match="needs batch normalisations"):
        CRITERIA["bn-gamma"].score(evidence)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_prunes_a_model_end_to_end(name, monkeypatch):
    monkeypatch.setattr(ablation, "MODELS", 16)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 16, 5),
    ).eval()  # fmt: skip
    rng = np.random.default_rng(0)
    data = [{"input": rng.standard_normal((4, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    result = gp.prune(
        net, (torch.zeros(4, 3, 8, 8),), target={"macs": 0.6}, criterion=name, align=1, calibration=data, seed=3
    )
    assert all(check.passed for check in result.report.proof)
    assert result.report.cost("macs").after <= 0.6 * result.report.cost("macs").before


# -- a trained net ---------------------------------------------------------------------------------------------------


class Grating(nn.Module):
    """Two convolutions and two linear layers: 52 units in three groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.third, self.head = nn.Linear(16 * 16, 24), nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(torch.relu(self.third(x.flatten(1))))


def gratings(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy waves in four directions."""
    labels = rng.integers(0, 4, n)
    rows, columns = np.mgrid[:8, :8]
    angle, phase = (each[:, None, None] for each in (labels * np.pi / 4, rng.uniform(0, 2 * np.pi, n)))
    waves = np.sin(1.3 * (np.cos(angle) * rows + np.sin(angle) * columns) + phase)
    return (waves + 0.9 * rng.standard_normal(waves.shape))[:, None].astype(np.float32), labels


class Labelled(list):
    labels: np.ndarray


def correlations(seed: int) -> dict[str, float]:
    """Spearman's correlation of each criterion with exact ablation, inside groups, on a net trained for a second."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    x, y = map(torch.from_numpy, gratings(1024, rng))
    net = Grating()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3, weight_decay=1e-4)
    for _ in range(150):
        chosen = torch.randint(0, len(x), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
    net.eval().requires_grad_(requires_grad=False)
    images, labels = gratings(512, rng)
    data = Labelled({"x": images[at : at + 64]} for at in range(0, 512, 64))
    data.labels = labels
    example = (torch.zeros(64, 1, 8, 8),)
    host, analysis = TorchHost.trace(net, example).folded(), gp.analyze(net, example)
    found = Evidence(analysis, host.read, seed, collect(host, analysis, data), host, data)
    oracle = CRITERIA["oracle"].score(found)
    assert len(oracle) == 3

    def ranks(values):
        return np.argsort(np.argsort(values))

    def agreement(scores):
        return float(np.mean([np.corrcoef(ranks(oracle[n]), ranks(scores[n]))[0, 1] for n in oracle]))

    return {name: agreement(CRITERIA[name].score(found)) for name in ("taylor", "fisher", "obs", "wifv", "random")}


def test_criteria_agree_with_exact_ablation_on_trained_nets():
    """``obs`` says what is lost after a refit, which exact ablation knows nothing of, so less is asked of it."""
    rows = [correlations(seed) for seed in range(5)]
    mean = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    assert mean["taylor"] >= 0.7
    assert mean["fisher"] >= 0.7
    assert mean["obs"] >= 0.5
    assert mean["wifv"] >= 0.4
    assert abs(mean["random"]) < 0.2
