"""The ladder of refits against closed forms and brute force; the sequential refit on whole models."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.compensation import Residuals, refit
from graphprune.compensation.methods import MOST_RIDGE, chosen_ridge, damped
from graphprune.errors import OptionError, PlanError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.importance.obs import Problem, eliminate
from graphprune.statistics.collect import Statistics, collect
from graphprune.statistics.consumers import find_consumers
from graphprune.statistics.moments import Moments

N, C, ROWS = 4000, 12, 5


def correlated(seed: int = 0, n: int = N, c: int = C) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, c)) @ rng.standard_normal((c, c)) + rng.standard_normal(c)


@pytest.fixture
def weighted_sum():
    x = correlated()
    weight = np.random.default_rng(1).standard_normal((ROWS, C))
    return x, weight, np.array([1, 4, 7, 8])


def closed_form(x, weight, gone, rung):
    """The expected squared error after removing columns, from the moments alone (docs/methods.md, Refits)."""
    second, mean = x.T @ x / len(x), x.mean(0)
    centred = second - np.outer(mean, mean)
    lost = weight[:, gone]
    inner = {
        "none": second[np.ix_(gone, gone)],
        "mean": centred[np.ix_(gone, gone)],
        "ols": np.linalg.inv(np.linalg.inv(second)[np.ix_(gone, gone)]),
        "affine": np.linalg.inv(np.linalg.inv(centred)[np.ix_(gone, gone)]),
    }[rung]
    return np.trace(lost @ inner @ lost.T)


def fitted(x, weight, gone, rung, ridge=0.0):
    kept = np.setdiff1d(np.arange(x.shape[1]), gone)
    target, got = x @ weight.T, x[:, kept] @ weight[:, kept].T
    sums = Residuals.zeros(1, len(kept), len(weight))
    for rows in np.array_split(np.arange(len(x)), 7):  # moments add up over batches
        sums.add(x[rows][:, None, kept], (target - got)[rows][:, None], target[rows][:, None])
    found = refit(sums, rung, ridge)
    new = got + x[:, kept] @ found.weight[0].T + found.bias[0]
    return found, np.square(target - new).sum(1).mean(), target.var(0).sum()


@pytest.mark.parametrize("rung", ["none", "mean", "ols", "affine"])
def test_error_of_each_rung_is_its_closed_form(weighted_sum, rung):
    found, error, energy = fitted(*weighted_sum, rung)
    assert error == pytest.approx(closed_form(*weighted_sum, rung), rel=1e-8)
    assert found.after * energy == pytest.approx(error, rel=1e-8)
    assert found.before * energy == pytest.approx(closed_form(*weighted_sum, "none"), rel=1e-8)


def test_each_rung_is_at_least_as_good_as_the_ones_below(weighted_sum):
    errors = {rung: fitted(*weighted_sum, rung)[1] for rung in ("none", "mean", "ols", "affine")}
    assert errors["none"] > errors["mean"] > errors["affine"]
    assert errors["none"] > errors["ols"] > errors["affine"]


def test_ridge_pulls_towards_the_weights_as_they_were(weighted_sum):
    sizes = [np.abs(fitted(*weighted_sum, "affine", ridge)[0].weight).sum() for ridge in (0.0, 1.0, 1e6)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 1e-3 * sizes[0]


def sums_of(x, target, weight):
    sums = Residuals.zeros(1, x.shape[1], len(weight))
    sums.add(x[:, None], (target - x @ weight.T)[:, None], target[:, None])
    return sums


@pytest.mark.parametrize("rung", ["ols", "affine"])
@pytest.mark.parametrize(("n", "noise"), [(20, 5.0), (2000, 0.01)])
def test_the_ridge_is_the_one_that_is_best_on_data_held_apart(n, noise, rung):
    rng = np.random.default_rng(4)
    x, weight = correlated(n=n + 500), rng.standard_normal((ROWS, C))
    target = x @ (weight + 0.1 * rng.standard_normal(weight.shape)).T + noise * rng.standard_normal((len(x), ROWS))
    fit, held = sums_of(x[:n], target[:n], weight), sums_of(x[n:], target[n:], weight)
    ridges = (1e-3, 1e-1, 10.0)

    def error(ridge: float) -> float:
        found = refit(fit, rung, ridge)
        return float(np.square(target[n:] - x[n:] @ (weight + found.weight[0]).T - found.bias[0]).sum())

    best = min(ridges, key=error)
    while best >= ridges[-1] and best < MOST_RIDGE and error(10 * best) < error(best):  # the list is no end of it
        best *= 10
    assert chosen_ridge([fit], [held], [rung], ridges) == best
    assert (best == ridges[0]) == (n == 2000)  # few positions and much noise need more damping
    assert chosen_ridge([fit], [held], [rung], (0.5,)) == 0.5


def test_sums_add_up():
    x, weight = correlated(n=100), np.random.default_rng(4).standard_normal((ROWS, C))
    target = x @ weight.T + 1
    whole, parts = sums_of(x, target, weight), [sums_of(x[i::2], target[i::2], weight) for i in range(2)]
    for name, value in vars(parts[0] + parts[1]).items():
        np.testing.assert_allclose(value, getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_an_input_that_is_always_zero_is_left_alone():
    x = correlated()
    x[:, 3] = 0.0
    weight = np.random.default_rng(1).standard_normal((ROWS, C))
    found, _, _ = fitted(x, weight, np.array([1]), "affine")
    assert np.isfinite(found.weight).all()
    assert np.abs(found.weight[0][:, 2]).max() < 1e-6  # column 3 of 12 is column 2 of those that stay


def test_unknown_rung_names_the_known_ones():
    with pytest.raises(OptionError, match="none, mean, ols, affine"):
        refit(Residuals.zeros(1, 2, 2), "best", 0.0)


# -- the local solver ------------------------------------------------------------------------------------------------


def problem_of(x, weight, m=1):
    covariance = np.cov(x.T, bias=True)
    return Problem(weight.copy(), np.linalg.inv(covariance), np.arange(x.shape[1]).reshape(-1, m))


@pytest.mark.parametrize("m", [1, 3])
def test_loss_of_a_unit_is_the_error_of_the_exact_refit(m):
    x, weight = correlated(), np.random.default_rng(1).standard_normal((ROWS, C))
    losses = problem_of(x, weight, m).losses(np.arange(C // m))
    exact = [closed_form(x, weight, np.arange(u * m, u * m + m), "affine") for u in range(C // m)]
    np.testing.assert_allclose(losses, exact, rtol=1e-8)


def test_downdates_are_the_inverse_and_the_refit_of_what_is_left():
    x, weight = correlated(), np.random.default_rng(1).standard_normal((ROWS, C))
    problem = problem_of(x, weight)
    gone = np.array([2, 5, 9])
    cost = problem.remove(gone[:1]) + problem.remove(gone[1:])
    kept = np.setdiff1d(np.arange(C), gone)
    centred = np.cov(x.T, bias=True)
    np.testing.assert_allclose(
        problem.inverse[np.ix_(kept, kept)], np.linalg.inv(centred[np.ix_(kept, kept)]), rtol=1e-8, atol=1e-12
    )
    best = weight @ centred[:, kept] @ np.linalg.inv(centred[np.ix_(kept, kept)])
    np.testing.assert_allclose(problem.weight[:, kept], best, rtol=1e-8, atol=1e-12)
    assert cost == pytest.approx(closed_form(x, weight, gone, "affine"), rel=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_elimination_is_near_the_exhaustive_optimum(seed):
    x, weight = correlated(seed), np.random.default_rng(seed + 50).standard_normal((ROWS, C))
    order = np.argsort(eliminate([problem_of(x, weight)], C, rounds=C), kind="stable")
    greedy = closed_form(x, weight, np.sort(order[:4]), "affine")
    best = min(closed_form(x, weight, np.array(gone), "affine") for gone in combinations(range(C), 4))
    assert greedy <= 1.5 * best


def test_damping_needs_no_inverse_of_a_singular_matrix():
    singular = np.zeros((1, 4, 4))
    singular[0, :2, :2] = 1.0
    assert np.isfinite(np.linalg.inv(damped(singular, 1e-2))).all()


# -- whole models ----------------------------------------------------------------------------------------------------


class Branchy(nn.Module):
    """Convolutions of every sort: plain, grouped, depthwise, transposed, in residual branches, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.depth = nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=32)
        self.narrow = nn.Conv2d(32, 16, 1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.head = nn.Linear(8, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.narrow(torch.relu(self.depth(torch.relu(self.norm(self.wide(x))))))
        return self.head(torch.relu(self.up(x)).mean((2, 3)))


class Gated(nn.Module):
    """Two gated feed-forward branches on a stream, with layer norms; the last weight is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(24, 48) for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(24, 48, bias=False) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(48, 24, bias=False) for _ in range(2))
        self.inner = nn.Linear(24, 32)
        self.tied = nn.Linear(32, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, gate, up, down in zip(self.norms, self.gates, self.ups, self.downs, strict=True):
            y = norm(x)
            x = x + down(torch.nn.functional.silu(gate(y)) * up(y))
        y = self.inner(x)
        return self.tied(torch.relu(y)) + self.tied(torch.tanh(y))


def batches_of(shape: tuple[int, ...], n: int = 12, seed: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((shape[-1], shape[-1])) / np.sqrt(shape[-1])
    return [{"x": (rng.standard_normal(shape) @ mixing).astype(np.float32)} for _ in range(n)]


CASES = [
    pytest.param(Branchy, (4, 3, 16, 16), id="convolutions"),
    pytest.param(Gated, (4, 6, 24), id="gated"),
]


def built(cls: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = cls().eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    return model


def error(host, model, batches) -> float:
    lost = energy = 0.0
    for batch in batches:
        with torch.no_grad():
            want = model(torch.from_numpy(batch["x"])).numpy()
        got = next(iter(host.run(batch).values()))
        lost += np.square(got - want).sum()
        energy += np.square(want - want.mean()).sum()
    return lost / energy


@pytest.mark.parametrize(("cls", "shape"), CASES)
def test_refits_lower_the_error_on_unseen_data_rung_by_rung(cls, shape):
    model, example = built(cls), (torch.randn(shape),)
    data = batches_of(shape, 60)
    batches, unseen = data[:48], data[48:]
    errors = {}
    session = gp.Session(model, example, data=batches)
    for rung in ("none", "mean", "affine"):
        result = session.prune(
            target={"macs": 0.6},
            align=1,
            criterion="random",
            allocation="isomorphic",
            compensation=rung,
            protect=("stem.weight",) if cls is Branchy else ("inner.weight",),  # no refit of what reads these
        )
        errors[rung] = error(result.host, model, unseen)
        assert all(check.passed for check in result.report.proof)
        assert type(result.module) is cls
    assert errors["affine"] < 0.85 * errors["none"]
    assert errors["affine"] < errors["mean"]


@pytest.mark.parametrize(("cls", "shape"), CASES)
def test_both_hosts_refit_alike(cls, shape, tmp_path):
    model, example, batches = built(cls), (torch.randn(shape),), batches_of(shape)
    TorchHost.trace(model, example).save_onnx(tmp_path / "dense.onnx")
    # a file has its batch norms folded: what looks at weights or at outputs may choose other units there
    options = {"target": {"macs": 0.7}, "align": 1, "criterion": "act-var", "allocation": "isomorphic"}
    options["calibration"] = batches
    from_torch = gp.prune(model, example, **options)
    from_onnx = gp.prune(tmp_path / "dense.onnx", **options)
    assert len(from_torch.state.compensated) == len(from_onnx.state.compensated) > 0
    unseen = batches_of(shape, 4, seed=9)
    assert error(from_onnx.host, model, unseen) == pytest.approx(error(from_torch.host, model, unseen), rel=1e-3)


def test_what_is_refitted_is_in_the_plan_and_nothing_else_changes():
    model, shape = built(Gated), (4, 6, 24)
    options = {
        "target": {"macs": 0.7},
        "align": 1,
        "criterion": "wifv",
        "allocation": "isomorphic",
    }
    session = gp.Session(model, (torch.randn(shape),), data=batches_of(shape))
    refitted = session.prune(compensation="affine", **options)
    sliced = session.prune(compensation="none", **options)
    assert refitted.plan.options["compensation"] == "affine"
    named = set(refitted.plan.options["compensated"])
    after, before = refitted.module.state_dict(), sliced.module.state_dict()
    changed = {n for n in after if n not in before or not torch.equal(after[n], before[n])}
    assert changed <= named
    assert changed
    assert "tied.weight" in changed  # two nodes use it, and it is refitted to both
    assert {"downs.0.bias", "downs.1.bias"} <= changed  # layers that had no bias get one


def test_a_state_with_new_biases_is_restored(tmp_path):
    model, shape = built(Gated), (4, 6, 24)
    example = (torch.randn(shape),)
    options = {"align": 1, "allocation": "isomorphic", "calibration": batches_of(shape)}
    result = gp.prune(model, example, target={"macs": 0.7}, **options)
    result.save_state(tmp_path)
    again = gp.restore(model, tmp_path, example)
    assert torch.equal(again(*example), result.module(*example))


def test_the_target_of_a_branch_is_the_stream():
    host = TorchHost.trace(built(Branchy), (torch.randn(2, 3, 16, 16),)).folded()
    found = {each.weight: each for each in find_consumers(host, host.graph())}
    assert found["narrow.weight"].target != found["narrow.weight"].result
    assert found["narrow.weight"].groups == 2
    assert found["wide.weight"].target == found["wide.weight"].result
    assert "depth.weight" not in found  # a depthwise convolution sums over no channel
    assert found["up.weight"].window.spread == (2, 2)
    assert found["wide.weight"].window.kernel == (3, 3)


def test_a_bias_that_is_added_in_onnx_is_found(tmp_path):
    TorchHost.trace(built(Gated), (torch.randn(4, 6, 24),)).save_onnx(tmp_path / "net.onnx")
    host = OnnxHost.load(tmp_path / "net.onnx").folded()
    biased = [each for each in find_consumers(host, host.graph()) if each.bias is not None]
    assert len(biased) >= 2
    for each in biased:
        assert host.graph().values[each.bias].shape == (host.graph().values[each.result].shape[-1],)


def test_new_biases_change_nothing_by_themselves(tmp_path):
    model, example = built(Gated), (torch.randn(4, 6, 24),)
    torch_host = TorchHost.trace(model, example).folded()
    torch_host.save_onnx(tmp_path / "net.onnx")
    for host in (torch_host, OnnxHost.load(tmp_path / "net.onnx").folded()):
        bare = {c.node: c.channel for c in find_consumers(host, host.graph()) if c.bias is None}
        assert bare
        inputs = host.example_inputs()
        np.testing.assert_allclose(
            *(next(iter(each.run(inputs).values())) for each in (host, host.biased(bare))), rtol=1e-6, atol=1e-6
        )
        left = [c for c in find_consumers(host.biased(bare), host.biased(bare).graph()) if c.bias is None]
        assert {c.node for c in left} <= {c.node for c in find_consumers(host, host.graph()) if not c.plain}


def test_a_step_by_step_walk_is_a_run(tmp_path):
    model, example = built(Branchy), (torch.randn(4, 3, 16, 16),)
    torch_host = TorchHost.trace(model, example).folded()
    torch_host.save_onnx(tmp_path / "net.onnx")
    for host in (torch_host, OnnxHost.load(tmp_path / "net.onnx").folded()):
        values = [node.results[0] for node in host.graph().nodes]
        inputs = host.example_inputs()
        whole = host.partial_run(None, values)(inputs)[1]
        carried, have = inputs, None
        for i, value in enumerate(values):
            carried, got = host.partial_run(have, [value], values[i + 1 :])(carried)
            have = list(carried)
            np.testing.assert_allclose(got[value], whole[value], rtol=1e-5, atol=1e-5)


# -- statistics ------------------------------------------------------------------------------------------------------


def test_moments_add_up_over_batches_and_processes():
    x = correlated()[:, None, :]
    whole, left, right = (Moments.zeros(1, C, full=True) for _ in range(3))
    whole.add(x)
    left.add(x[:1000])
    right.add(x[1000:])
    left.merge(right)
    for name, array in whole.arrays().items():
        np.testing.assert_allclose(left.arrays()[name], array, rtol=1e-12)
    np.testing.assert_allclose(whole.covariance[0], np.cov(x[:, 0].T, bias=True), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(whole.variance[0], x[:, 0].var(0), rtol=1e-8)


def test_statistics_are_saved_and_read_for_the_same_model_only(tmp_path):
    host = TorchHost.trace(built(Branchy), (torch.randn(4, 3, 16, 16),)).folded()
    analysis = gp.analyze(built(Branchy), (torch.randn(4, 3, 16, 16),))
    found = collect(host, analysis, batches_of((4, 3, 16, 16), 3))
    found.save(tmp_path / "statistics.npz")
    again = Statistics.load(tmp_path / "statistics.npz", host, analysis)
    assert list(again.moments) == list(found.moments)
    for node, spread in found.spreads.items():
        np.testing.assert_array_equal(again.spreads[node], spread)
    for source, moments in found.moments.items():
        np.testing.assert_array_equal(again.moments[source].total, moments.total)
    other = TorchHost.trace(built(Gated), (torch.randn(4, 6, 24),)).folded()
    with pytest.raises(OptionError, match="another model"):
        Statistics.load(tmp_path / "statistics.npz", other, gp.analyze(built(Gated), (torch.randn(4, 6, 24),)))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(OptionError, match="cannot read statistics"):
        Statistics.load(tmp_path / "broken.npz", host, analysis)


def test_little_memory_takes_more_walks_and_gives_the_same():
    host = TorchHost.trace(built(Branchy), (torch.randn(4, 3, 16, 16),)).folded()
    analysis = gp.analyze(built(Branchy), (torch.randn(4, 3, 16, 16),))
    batches = batches_of((4, 3, 16, 16), 3)
    walks: list[tuple[int, int]] = []
    small = collect(host, analysis, batches, memory=1, progress=lambda *done: walks.append(done))
    large = collect(host, analysis, batches)
    assert walks[-1][1] == len(batches) * len(large.moments)
    for source, moments in large.moments.items():
        np.testing.assert_allclose(small.moments[source].product, moments.product, rtol=1e-12)


def test_compensation_without_data_says_so(tmp_path):
    onnx_file = tmp_path / "net.onnx"
    TorchHost.trace(built(Gated), (torch.randn(4, 6, 24),)).save_onnx(onnx_file)
    with pytest.raises(OptionError, match="needs calibration data"):
        gp.prune(onnx_file, target={"macs": 0.7}, compensation="affine")
    with pytest.raises(OptionError, match="needs calibration data"):
        gp.prune(onnx_file, target={"macs": 0.7}, criterion="wifv")
    assert onnx.load(onnx_file)


def test_a_refitted_file_is_verified_and_its_plan_replayed(tmp_path):
    model, shape = built(Gated), (4, 6, 24)
    path, batches = tmp_path / "net.onnx", batches_of(shape)
    TorchHost.trace(model, (torch.randn(shape),)).save_onnx(path)
    result = gp.prune(path, target={"macs": 0.7}, align=1, calibration=batches)
    result.save_onnx(tmp_path / "small.onnx")
    checks = gp.verify(path, tmp_path / "small.onnx", result.plan)
    assert all(check.passed for check in checks)
    assert "refitted" in checks[-1].note
    cut = gp.apply(path, result.plan)
    assert "only cut" in cut.report.notes[-1]
    assert "compensated" not in cut.plan.options
    again = gp.apply(path, result.plan, calibration=batches)
    assert again.plan.options["compensated"] == result.plan.options["compensated"]
    batch = batches[0]
    (want,), (got,), (other,) = (list(each.host.run(batch).values()) for each in (result, again, cut))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.abs(other - want).max() > 1e-3
    with pytest.raises(PlanError, match="has no such tensor"):
        gp.verify(path, path, result.plan)


def test_onnx_files_are_calibrated_and_compensated_without_torch(tmp_path):
    TorchHost.trace(built(Branchy), (torch.randn(4, 3, 16, 16),)).save_onnx(tmp_path / "net.onnx")
    np.save(tmp_path / "data.npy", np.concatenate([each["x"] for each in batches_of((4, 3, 16, 16))]))
    program = (
        "import sys, pathlib, graphprune as gp\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "result = gp.prune(folder / 'net.onnx', target={'macs': 0.7}, align=1, calibration=folder / 'data.npy')\n"
        "result.save_onnx(folder / 'small.onnx')\n"
        "assert result.state.compensated and all(check.passed for check in result.report.proof)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SHARED = {
    "default": {},
    "runs": {"criterion": "bonsai", "allocation": "evolution"},
    "protected": {"protect_ratio": 0.3},
}
"""How the two processes prune, by name."""


def _prunes(folder, data, options, out: str) -> None:
    result = gp.prune(folder / "net.onnx", target={"macs": 0.6}, align=1, calibration=data, verify=False, **options)
    result.save_onnx(folder / out)


def _rank(rank: int, folder) -> None:
    """One of two processes: to start one takes longer than what it does."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    host = OnnxHost.load(folder / "net.onnx").folded()
    analysis = gp.analyze(folder / "net.onnx")
    collect(host, analysis, batches_of((4, 6, 24), 6)[rank::2]).save(folder / f"{rank}.npz")
    for name, options in SHARED.items():  # seven and six batches
        _prunes(folder, batches_of((4, 6, 24), 13)[rank::2], options, f"{name}-{rank}.onnx")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with what two processes have written that share the calibration data."""
    folder = tmp_path_factory.mktemp("shared")
    TorchHost.trace(built(Gated), (torch.randn(4, 6, 24),)).save_onnx(folder / "net.onnx")
    torch.multiprocessing.spawn(_rank, args=(folder,), nprocs=2)
    return folder


def weights_of(path) -> dict[str, np.ndarray]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_prune_and_refit_alike_on_all_of_the_data(shared, name):
    first, second = (weights_of(shared / f"{name}-{rank}.onnx") for rank in range(2))
    assert first.keys() == second.keys()
    for tensor, value in first.items():
        np.testing.assert_array_equal(value, second[tensor], err_msg=tensor)
    _prunes(shared, batches_of((4, 6, 24), 13)[::2], SHARED[name], f"{name}-alone.onnx")
    other = weights_of(shared / f"{name}-alone.onnx")
    # what one of them does with its half of the data alone is something else
    assert any(each not in other or not np.array_equal(value, other[each]) for each, value in first.items())


def test_two_processes_share_the_calibration_data(shared):
    host, analysis = OnnxHost.load(shared / "net.onnx").folded(), gp.analyze(shared / "net.onnx")
    whole = collect(host, analysis, batches_of((4, 6, 24), 6))
    for rank in range(2):
        found = Statistics.load(shared / f"{rank}.npz", host, analysis)
        assert found.samples == whole.samples
        for source, moments in whole.moments.items():
            assert found.moments[source].count == moments.count
            np.testing.assert_allclose(found.moments[source].product, moments.product, rtol=1e-5, atol=1e-6)
        for node, spread in whole.spreads.items():
            np.testing.assert_allclose(found.spreads[node], spread, rtol=1e-5)


# -- batch normalisation ---------------------------------------------------------------------------------------------


class Shallow(nn.Module):
    """Without padding, so that the shift of the mean is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3, bias=False)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.second(torch.relu(self.first(x))))))


def test_running_means_move_by_what_the_removed_channels_gave():
    model, shape = built(Shallow), (4, 3, 12, 12)
    batches = batches_of(shape)
    x = torch.from_numpy(np.concatenate([each["x"] for each in batches]))
    patches = nn.functional.unfold(torch.relu(model.first(x)), 3).mean((0, 2)).detach().numpy()  # (c kh kw)
    result = gp.prune(
        model, (torch.randn(shape),), target={"macs": 0.7}, align=1, only=("first.weight[0]",), compensation="bn",
        criterion="l2", calibration=batches,
    )  # fmt: skip
    kept = result.plan.parameters["first.weight"][0]
    gone = np.setdiff1d(np.arange(16), kept)
    weight = model.second.weight.detach().numpy()
    shift = np.einsum("ock,ck->o", weight[:, gone].reshape(12, len(gone), 9), patches.reshape(16, 9)[gone])
    moved = result.module.norm.running_mean - model.norm.running_mean
    np.testing.assert_allclose(moved.numpy(), -shift, rtol=1e-4, atol=1e-5)
    assert result.plan.options["compensated"] == ["norm.running_mean", "norm.running_var"]
    assert type(result.module) is Shallow
    plain = gp.prune(model, (torch.randn(shape),), target={"macs": 0.7}, align=1, only=("first.weight[0]",))
    assert error(result.host, model, batches) < error(plain.host, model, batches)
