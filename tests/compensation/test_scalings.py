"""Scales of normalisations whose width is cut, refitted channel by channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.compensation import sequential
from graphprune.hosts.torch.host import TorchHost

VOCABULARY, WIDTH, SHAPE = 40, 32, (4, 12)


class Rms(nn.Module):
    """A root-mean-square norm, written out as language models do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def layer_norm(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width)
    nn.init.normal_(norm.weight, 1, 0.3)
    nn.init.normal_(norm.bias, 0, 0.3)
    return norm


class Tied(nn.Module):
    """A small language model whose output layer is its embedding, which no refit may touch."""

    def __init__(self, norm) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.first, self.last = norm(WIDTH), norm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        x = x + self.down(torch.relu(self.up(self.first(x))))
        return nn.functional.linear(self.last(x), self.embed.weight)


def built(norm) -> Tied:
    torch.manual_seed(0)
    model = Tied(norm).eval()
    with torch.no_grad():
        model.embed.weight.mul_(torch.linspace(0.1, 2, WIDTH))  # some channels carry more than others
    return model


def batches(seed: int, n: int = 16) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"ids": rng.integers(0, VOCABULARY, SHAPE)} for _ in range(n)]


def pruned(model, **options) -> gp.Result:
    return gp.prune(
        model, target="params=0.6", only=("width",), align=1, criterion="l2", calibration=batches(1), **options
    )


def error(result: gp.Result, model: Tied) -> float:
    lost = 0.0
    for batch in batches(2):
        with torch.no_grad():
            want = model(torch.from_numpy(batch["ids"])).numpy()
        lost += float(np.square(next(iter(result.host.run(batch).values())) - want).sum())
    return lost


EXAMPLE = (torch.zeros(SHAPE, dtype=torch.int64),)
NORMS = [pytest.param(Rms, "ols", id="rms"), pytest.param(layer_norm, "affine", id="layer-norm")]


@pytest.mark.parametrize(("norm", "rung"), NORMS)
def test_scales_before_a_tied_layer_make_good_what_its_weights_cannot(norm, rung, monkeypatch):
    model = built(norm)
    found = pruned(model, example_inputs=EXAMPLE, compensation=rung)
    changed = {row.weight for row in found.state.compensated}
    assert {"first.weight", "last.weight", "up.weight"} <= changed
    assert "embed.weight" not in changed
    monkeypatch.setattr(sequential, "find_scalings", lambda *_: ())
    assert error(found, model) < 0.9 * error(pruned(model, example_inputs=EXAMPLE, compensation=rung), model)


@pytest.mark.parametrize(("norm", "rung"), NORMS)
def test_both_hosts_scale_alike(norm, rung, tmp_path):
    model = built(norm)
    TorchHost.trace(model, EXAMPLE).save_onnx(tmp_path / "model.onnx")
    hosts = [
        pruned(model, example_inputs=EXAMPLE, compensation=rung).host,
        pruned(tmp_path / "model.onnx", compensation=rung).host,
    ]
    for name in ("first.weight", "first.bias") if norm is layer_norm else ("first.weight",):
        ours, theirs = (host.read(name) for host in hosts)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("norm", "rung"), NORMS)
def test_each_channel_is_a_regression_of_its_own(norm, rung):
    model = built(norm)
    found = pruned(model, example_inputs=EXAMPLE, compensation=rung)
    plain = pruned(model, example_inputs=EXAMPLE, compensation="none")
    kept = plain.plan.to_dict()["parameters"]["first.weight"]["0"]
    ids = torch.from_numpy(np.concatenate([batch["ids"] for batch in batches(1)]))
    with torch.no_grad():
        want = model.first(model.embed(ids))[..., kept].reshape(-1, len(kept)).double()
        small = plain.module.double()
        shift = getattr(small.first, "bias", torch.zeros(len(kept)))
        scaled = (small.first(small.embed(ids)) - shift).reshape(-1, len(kept))
        for j in range(len(kept)):
            columns = [scaled[:, j]] if rung == "ols" else [scaled[:, j], torch.ones(len(scaled))]
            residual = want[:, j] - scaled[:, j] - shift[j]
            fitted = torch.linalg.lstsq(torch.stack(columns, 1), residual[:, None]).solution[:, 0]
            factor = (found.module.first.weight[j] / small.first.weight[j]).item()
            assert factor == pytest.approx(1 + fitted[0].item(), abs=0.02)  # the damping pulls it to one
