"""The module that is handed out computes with tensors of its own, however small their effect is."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_proof import prove

import graphprune as gp
from graphprune.hosts.torch.module import sliced_module
from graphprune.hosts.torch.own import foreign_reads, probe_of, sliced_copy

Holder = Callable[["Shared"], None]


class Shared(nn.Module):
    """A branch of layers that the forward reaches by something else than their names."""

    held: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self, hold: Holder, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.o = nn.Linear(6, 16), nn.Linear(16, 6), nn.Linear(6, 4)
        self.scale = scale
        self.to(dtype)
        hold(self)

    def forward(self, x):
        return self.o(x + self.scale * self.held(x))


def branch(a, b, x):
    return b(F.relu(a(x)))


def closure(module: Shared) -> None:
    a, b = module.a, module.b
    module.held = lambda x: b(F.relu(a(x)))


def nested(module: Shared) -> None:
    a = module.a

    def first(x):
        return F.relu(a(x))

    def both(x, b=module.b):
        return b(first(x))

    module.held = both


def keyword(module: Shared) -> None:
    def both(x, *, a=module.a, b=module.b):
        return b(F.relu(a(x)))

    module.held = both


def partial(module: Shared) -> None:
    module.held = functools.partial(branch, module.a, module.b)


def bound(module: Shared) -> None:
    module.held = types.MethodType(lambda layer, x, b=module.b: b(F.relu(layer(x))), module.a)


def steps(module: Shared) -> None:
    a, b = module.a, module.b
    module.steps = [a.forward, F.relu, lambda x: b(x)]
    module.held = lambda x: functools.reduce(lambda y, step: step(y), module.steps, x)


def weights(module: Shared) -> None:
    u, v = module.a.weight, module.b.weight
    module.held = lambda x: F.linear(F.relu(F.linear(x, u)), v)


def recursive(module: Shared) -> None:
    a, b = module.a, module.b

    def again(x, n=1):
        return again(x, n - 1) if n else b(F.relu(a(x)))

    module.held = again


def hooked(module: Shared) -> None:
    a, b = module.a, module.b
    module.held = torch.zeros_like
    module.o.register_forward_pre_hook(lambda _, args: (args[0] + module.scale * b(F.relu(a(args[0]))),))


KNOWN: dict[int, nn.Module] = {}


def by_global(module: Shared) -> None:
    KNOWN.update({0: module.a, 1: module.b})
    module.held = lambda x: KNOWN[1](F.relu(KNOWN[0](x)))


HOLDERS = [closure, nested, keyword, partial, bound, steps, weights, recursive, hooked]


def changes(module: nn.Module, source: nn.Module, x: torch.Tensor) -> tuple[bool, bool]:
    """Whether a module's output changes when its own tensors do, and when the original's do."""
    before = module(x)
    with torch.no_grad():
        for tensor in source.parameters():
            tensor.copy_(1e3 * torch.randn_like(tensor))
        theirs = not torch.equal(before, module(x))
        for tensor in (module.a.weight, module.b.weight):
            tensor.copy_(1e9 * torch.randn_like(tensor))
    return not torch.equal(before, module(x)), theirs


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("hold", HOLDERS)
def test_functions_hold_the_layers_of_the_copy(hold: Holder, scale: float) -> None:
    source, x = Shared(hold, scale).eval(), torch.randn(3, 6)
    proof = prove(source, (x,), n=1)
    made = sliced_module(source, proof.host, proof.pruned)
    assert type(made.module) is Shared, made.notes
    assert changes(made.module, source, x) == (True, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-6])
def test_what_cannot_be_copied_is_refused_at_any_scale(scale: float, dtype: torch.dtype) -> None:
    source, x = Shared(by_global, scale, dtype).eval(), torch.randn(3, 6, dtype=dtype)
    result = gp.prune(source, (x,), target="params=0.6", verify=False)
    assert type(result.module) is not Shared
    (note,) = result.report.notes
    assert "it computes with 'a.bias', 'a.weight', 'b.bias' and 1 more tensors of your own module, which its" in note
    before = result.module(x)
    with torch.no_grad():
        source.a.weight.zero_()
    assert torch.equal(before, result.module(x))


def test_a_copy_of_values_that_goes_stale_is_refused() -> None:
    def stale(module: Shared) -> None:
        module.kept = {"a": module.a.weight.detach().clone(), "b": module.b.weight.detach().clone()}
        module.held = lambda x: F.linear(F.relu(F.linear(x, module.kept["a"])), module.kept["b"])

    source, x = Shared(stale).eval(), torch.randn(3, 6)
    proof = prove(source, (x,), n=1)
    copy = sliced_copy(source, proof.host)
    assert foreign_reads(copy, source, proof.host, lambda module: module(x)) == ""  # the graph has no 'a.weight' either
    with_layers = prove(Shared(closure).eval(), (x,), n=1)
    reason = foreign_reads(copy, source, with_layers.host, lambda module: module(x))
    assert reason.startswith("it does not compute with its own 'a.bias', 'a.weight', 'b.bias' and 1 more tensors")


def test_a_probe_shares_tensors_and_nothing_else() -> None:
    source = Shared(closure).train()
    source.settings = {"n": [1]}
    probe = probe_of(source)
    assert probe.a is not source.a
    assert probe.a.weight is source.a.weight
    assert not probe.training
    probe.settings["n"].append(2)
    probe.a.weight = None
    assert (source.settings, source.training) == ({"n": [1]}, True)
    assert source.a.weight is not None
