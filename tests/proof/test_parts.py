"""Large values are compared part by part: the verdict is that of the whole, and nothing of its size is copied."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.hosts.torch import module as torch_module
from graphprune.hosts.torch.host import TorchHost
from graphprune.passes.slice_groups import slice_edits
from graphprune.proof import compare, parts
from graphprune.proof.compare import Rounding, deviation, varies
from graphprune.proof.masks import permutations
from graphprune.proof.oracles import permuted_alike
from graphprune.report.movement import _Tally

SHAPES = ((), (1,), (40,), (3, 40), (1, 5, 31), (2, 7, 9), (30, 1, 2))
WAYS = {
    "single": (Rounding(1e-6), False),
    "floor": (Rounding(1e-7, floor=1e-6, residue=1e-6), False),
    "noise": (Rounding(1e-7, noise=4.0, most=1e-3), True),
}


def pair(shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """A value, what is nearly it, and the noise of it."""
    want = np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape), np.float32)
    have = np.asarray(want * (1 + 3e-7 * rng.standard_normal(shape)), np.float32)
    if kind == "infinite":
        want[rng.random(shape) < 0.3] = -np.inf
        have = np.where(np.isinf(want), want, have)
    if kind == "nan":
        want[..., :1] = np.nan
    if kind == "half":
        want, have = want.astype(np.float16), have.astype(np.float16)
    if kind == "zero":
        want, have = want * 0, have * 0 + 1e-9
    return want, have, np.abs(np.asarray(rng.standard_normal(shape)) * 1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["plain", "infinite", "nan", "half", "zero"])
def test_parts_give_the_verdict_of_the_whole(way, kind, monkeypatch):
    rounding, noisy = WAYS[way]
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        if kind == "nan" and not shape:
            continue
        want, have, noise = pair(shape, kind, rng)
        monkeypatch.setattr(parts, "CELLS", 1 << 22)
        whole = deviation(want, have, rounding, noise if noisy else None), varies(want)
        monkeypatch.setattr(parts, "CELLS", 6)
        in_parts = deviation(want, have, rounding, noise if noisy else None), varies(want)
        assert in_parts[1] == whole[1]
        assert in_parts[0].excess == pytest.approx(whole[0].excess, rel=1e-12)
        if kind != "nan" and whole[0].excess:
            assert in_parts[0].at == whole[0].at


def test_a_wrong_number_is_found_in_whatever_part_it_is(monkeypatch):
    monkeypatch.setattr(parts, "CELLS", 6)
    rng = np.random.default_rng(0)
    want = rng.standard_normal((4, 50)).astype(np.float32)
    for at in ((0, 0), (3, 49), (2, 17)):
        have = want.copy()
        have[at] += 1e-2
        found = deviation(want, have, Rounding(1e-5))
        assert found.excess > 1
        assert found.at == at


def test_comparing_copies_nothing_of_the_size_of_a_value(monkeypatch):
    monkeypatch.setattr(parts, "CELLS", 1 << 12)
    rng = np.random.default_rng(0)
    want = rng.standard_normal((20, 20000)).astype(np.float32)
    have = want + np.float32(1e-7)
    tally = _Tally(scores=False)
    tracemalloc.start()
    deviation(want, have, Rounding(1e-9, noise=4.0), want)
    varies(want)
    torch_module._off(torch.from_numpy(have), want)
    tally.add(want, have)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * want.nbytes
    assert tally.error == pytest.approx(1e-7 / want.std(), rel=0.2)
    assert compare.noise_of({"y": want}, {"y": have})["y"].dtype == np.float32


def test_the_permuted_model_is_gone_when_its_run_is_over():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    host = TorchHost.trace(net, (torch.randn(2, 4),)).folded()
    analysis = gp.analyze(net, (torch.randn(2, 4),))
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def permuted() -> TorchHost:
        found = host.edited(slice_edits(analysis, permutations(analysis, 0)))
        made.append(weakref.ref(found.tensors["0.weight"]))
        return found

    class Watching:
        """The original, which notes what is left of the permuted model while it runs."""

        def run(self, inputs: Any, *, double: bool = False) -> Any:
            alive.append(sum(each() is not None for each in made))
            return host.run(inputs, double=double)

    gc.disable()
    try:
        check, _ = permuted_alike(Watching(), permuted, host.example_inputs(), 4)  # type: ignore[arg-type]
    finally:
        gc.enable()
    assert check.passed
    assert alive == [0]
    assert len(made) == 1
