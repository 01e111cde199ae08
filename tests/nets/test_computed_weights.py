"""Weights that are computed from others, and normalisers made of several operators: unchanged, or called inexact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from test_onnx_host import ints, model, node, weight
from test_onnx_host import prove as prove_file
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch_proof import prove

import graphprune as gp
from graphprune.analysis import groups
from graphprune.errors import PlanError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch import cuts


class Gate(nn.Module):
    """Element by element: what is removed changes nothing else."""

    def forward(self, w):
        return w * torch.sigmoid(w)


class Divided(nn.Module):
    """By the sum of squares of each row."""

    def forward(self, w):
        return w * torch.rsqrt((w * w).sum(1, keepdim=True) + 1e-6)


class Convs(nn.Module):
    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = wrap(nn.Linear(5, 16)), wrap(nn.Linear(16, 16))
        self.c = wrap(nn.Linear(16, 3))

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def custom(layer: nn.Module, how: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", how)
    return layer


WRAPS: dict[str, tuple[Callable[[Any], nn.Module], bool]] = {
    "plain": (lambda layer: layer, True),
    "weight norm": (parametrizations.weight_norm, True),
    "weight norm of columns": (lambda layer: parametrizations.weight_norm(layer, dim=1), True),
    "weight norm by a hook": (torch.nn.utils.weight_norm, True),
    "spectral norm": (parametrizations.spectral_norm, True),
    "spectral norm by a hook": (torch.nn.utils.spectral_norm, True),
    "element by element": (lambda layer: custom(layer, Gate()), True),
    "divided by a norm": (lambda layer: custom(layer, Divided()), False),
}


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_kept_weights_are_what_they_were_or_the_group_is_called_inexact(name: str) -> None:
    wrap, exact = WRAPS[name]
    net = Convs(wrap).train()
    for _ in range(5):
        net(torch.randn(4, 5))
    net.eval()
    result = gp.prune(net, (torch.randn(2, 5),), target={"macs": 0.5}, align=1, criterion="random", only="*")
    kept = result.plan.to_dict()["parameters"]
    key = next(key for key in kept if key.startswith("b.") and "1" in kept[key] and "0" in kept[key])
    rows, columns = (list(kept[key][axis]) for axis in "01")
    before, after = net.b.weight.detach()[rows][:, columns], result.module.b.weight.detach()
    assert torch.allclose(before, after, atol=1e-6) == exact
    assert all(group.exact == exact for group in result.report.groups)
    assert any("shifts the statistics" in note for note in result.report.notes) != exact


class Convolved(nn.Module):
    """Grouped and transposed convolutions with normalised weights; a layer may be used twice."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module], *, twice: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice = twice
        self.a, self.b = norm(nn.Conv1d(3, 16, 3, padding=1)), norm(nn.Conv1d(16, 16, 3, padding=1))
        self.c, self.d = norm(nn.Conv1d(16, 16, 3, padding=1, groups=4)), norm(nn.ConvTranspose1d(16, 4, 4, 2))

    def forward(self, x):
        y = torch.relu(self.b(torch.relu(self.a(x))))
        y = torch.relu(self.b(y)) if self.twice else y
        return self.d(torch.relu(self.c(y)))


NORMS = {
    "rescaled": lambda: Convolved(parametrizations.weight_norm, twice=True),
    "lengthened": lambda: Convolved(parametrizations.spectral_norm, twice=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalised_weights_stay_what_they_were(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = prove(NORMS[name](), (torch.randn(2, 3, 12),))
    assert proof.groups
    assert all(group.exact for group in proof.groups)
    monkeypatch.setattr(cuts, name, lambda *_: ())  # and where they do not, it is seen
    with pytest.raises(AssertionError):
        prove(NORMS[name](), (torch.randn(2, 3, 12),))


def test_a_vector_that_something_else_reads_is_left_alone() -> None:
    """No length of it is right for both: the group is called inexact."""

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.w = nn.Linear(3, 8), nn.Parameter(torch.randn(6, 8))
            self.register_buffer("u", torch.rand(6))
            self.register_buffer("v", torch.rand(8))

        def forward(self, x):
            w = self.w / torch.dot(self.u, torch.mv(self.w, self.v))
            return functional.linear(torch.relu(self.first(x)), w) + self.u

    (group,) = prove(Read(), (torch.randn(2, 3),)).groups
    assert not group.exact


def test_a_pruned_spectral_norm_trains() -> None:
    net = Convs(parametrizations.spectral_norm).eval()
    module = gp.prune(net, (torch.randn(2, 5),), target={"macs": 0.5}, align=1, verify=False).module.train()
    module(torch.randn(4, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    norm = torch.linalg.matrix_norm(module.b.weight.detach(), 2)
    for _ in range(50):
        module(torch.randn(4, 5))
    assert norm > 0
    assert abs(float(torch.linalg.matrix_norm(module.b.weight.detach(), 2)) - 1) < 1e-2


def test_gains_that_weights_share_follow_none() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v, self.w = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6, 8))
            self.g, self.first = nn.Parameter(torch.rand(6, 1) + 0.5), nn.Linear(3, 8)

        def forward(self, x):
            x = torch.relu(self.first(x))
            return functional.linear(x, torch._weight_norm(self.v, self.g)) + functional.linear(
                x, torch._weight_norm(self.w, self.g)
            )

    with pytest.raises(PlanError, match="^weights 'w' and 'v' share the gains 'g'; protect their inputs"):
        prove(Shared(), (torch.randn(2, 3),))


class Head(nn.Module):
    """``how`` makes outputs of 12 features and the weights of 5 classes."""

    def __init__(self, how: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.w, self.how = nn.Linear(8, 12), nn.Parameter(torch.randn(5, 12)), how

    def forward(self, x):
        return self.how(torch.relu(self.a(x)) + 0.1, self.w)


def shares(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    e = torch.exp(h)
    return functional.linear(e / e.sum(-1, keepdim=True), w)


def gram(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return functional.linear(h / torch.einsum("nc,nc->n", h, h).unsqueeze(-1), w)


SUMS = "sums over this axis what then scales its other units"
HEADS: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "cosine": (lambda h, w: functional.linear(functional.normalize(h), functional.normalize(w)), SUMS),
    "normalised weights": (lambda h, w: functional.linear(h, functional.normalize(w)), SUMS),
    "normalised features": (lambda h, w: functional.linear(functional.normalize(h, p=1.0), w), SUMS),
    "similarity": (
        lambda h, w: functional.cosine_similarity(h.unsqueeze(1), w.unsqueeze(0), dim=-1),
        "takes a statistic over this axis",
    ),
    "weight norm of a computed weight": (
        lambda h, w: functional.linear(h, torch._weight_norm(torch.tanh(w), torch.ones(5, 1))),
        "takes a statistic over this axis",
    ),
    "sum of squares": (lambda h, w: functional.linear(h * torch.rsqrt((h * h).sum(-1, keepdim=True)), w), SUMS),
    "shares": (shares, SUMS),
    "product with itself": (gram, SUMS),
    "maximum": (lambda h, w: functional.linear(h / h.amax(-1, keepdim=True), w), "takes a statistic over this axis"),
    "maximum with its position": (lambda h, w: functional.linear(h - h.max(-1, keepdim=True)[0], w), "statistic"),
    "minimum": (lambda h, w: functional.linear(h * h.min(-1, keepdim=True)[0], w), "takes a statistic over this axis"),
    "a gate through a weight": (lambda h, w: functional.linear(h * torch.sigmoid(h @ w.sum(0).unsqueeze(1)), w), ""),
    "a sum elsewhere": (lambda h, w: functional.linear(h, w) / h.sum(-1, keepdim=True), ""),
    "a product": (lambda h, w: functional.linear(h, w), ""),
}


@pytest.mark.parametrize("name", HEADS)
def test_what_scales_its_own_units_is_a_normaliser(name: str) -> None:
    how, reason = HEADS[name]
    proof = prove(Head(how), (torch.randn(3, 8),))
    (group,) = proof.groups
    assert group.exact == (not reason)
    assert reason in str(group.normalized or "")


def test_explain_says_which_operator_sums() -> None:
    analysis = gp.analyze(Head(HEADS["normalised weights"][0]), (torch.randn(3, 8),))
    assert [str(group.normalized) for group in analysis.groups] == [
        f"'aten.linalg_vector_norm.default' {SUMS} (node 'linalg_vector_norm')"
    ]


def test_normalisers_that_are_not_looked_for_are_called_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masked oracle cannot see them: both sides are scaled alike."""
    monkeypatch.setattr(groups, "find_normalizers", lambda *_: {})
    (group,) = prove(Head(HEADS["cosine"][0]), (torch.randn(3, 8),)).groups
    assert group.exact


FILES: dict[str, onnx.ModelProto] = {
    "norm of a weight": model(
        [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("ReduceL2", "w2 axes", "n"), node("Div", "w2 n", "v"),
         node("MatMul", "r v", "y")],
        {"x": [2, 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5), "axes": ints(0)},
    ),
    "LpNormalization of a weight": model(
        [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("LpNormalization", "w2", "v", axis=0), node("MatMul", "r v", "y")],
        {"x": [2, 8]}, ["y"], {"w1": weight(8, 12), "w2": weight(12, 5)},
    ),
    "norm of features": model(
        [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("ReduceL2", "r axes", "n"), node("Add", "n e", "m"),
         node("Expand", "m size", "k"), node("Div", "r k", "d"), node("MatMul", "d w2", "y")],
        {"x": [2, 8]}, ["y"],
        {"w1": weight(8, 12), "w2": weight(12, 5), "axes": ints(1), "e": np.float32([1e-6]), "size": ints(2, 12)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_normalisers_in_files(name: str) -> None:
    _, analysis = prove_file(OnnxHost.load(FILES[name]))
    assert [group.exact for group in analysis.groups] == [False]


class Unpooled(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = nn.Conv2d if n == 2 else nn.Conv3d
        self.a, self.b = conv(3, 12, 3, padding=1), conv(12, 4, 3, padding=1)
        self.pool = (nn.MaxPool2d if n == 2 else nn.MaxPool3d)(2, return_indices=True)
        self.unpool = (nn.MaxUnpool2d if n == 2 else nn.MaxUnpool3d)(2)

    def forward(self, x):
        y, at = self.pool(self.a(x))
        return self.b(self.unpool(torch.tanh(y), at))


@pytest.mark.parametrize("n", [2, 3])
def test_unpooling(n: int) -> None:
    (group,) = prove(Unpooled(n), (torch.randn(2, 3, *[4] * n),)).groups
    assert (group.kind, group.size, group.exact) == ("channel", 12, True)
