"""What is as large as a vocabulary: outputs to compare with wait on disk, weights are cut on trial in pieces."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.collector import frozen_garbage_collection, give_back
from graphprune.compensation.activation_cache import Shelf
from graphprune.hosts import export
from graphprune.hosts.torch.host import TorchHost
from graphprune.importance import context, outcome, trials
from graphprune.importance.context import Reading
from graphprune.importance.loss import Standard
from graphprune.passes import compensate, verify
from graphprune.passes.analyze import Analyze
from graphprune.pipeline import passes as pipeline
from graphprune.pipeline.passes import run_pipeline
from graphprune.pipeline.state import State
from graphprune.planning.plan import PruningPlan
from graphprune.statistics.collect import Statistics
from graphprune.statistics.consumers import Consumer
from graphprune.statistics.moments import Moments

Array = np.ndarray[Any, Any]
CELLS = 1 << 18
"""Numbers of one output."""


def outputs_of(batch: dict[str, Array]) -> dict[str, Array]:
    return {"y": np.random.default_rng(int(batch["x"][0])).standard_normal((64, CELLS // 64), np.float32)}


def others_of(batch: dict[str, Array]) -> dict[str, Array]:
    return {"y": 1.1 * outputs_of(batch)["y"]}


BATCHES = [{"x": np.array([seed])} for seed in range(12)]


def test_arrays_on_a_shelf_are_what_they_were_and_their_folder_goes_with_it():
    arrays = [np.arange(12, dtype=dtype).reshape(3, 4)[:, ::step] for dtype, step in (("f4", 1), ("i8", 2), ("f2", 1))]
    shelf = Shelf(48)
    found = [shelf.put(array) for array in arrays]
    folder = shelf._folder
    assert folder is not None
    assert sorted(each.name for each in folder.iterdir()) == ["1", "2"]
    for array, get in zip(arrays, found, strict=True):
        np.testing.assert_array_equal(get(), array)
        assert get().dtype == array.dtype
    del shelf
    assert not folder.exists()


def test_models_are_judged_alike_wherever_the_outputs_wait():
    losses = [
        Standard(outputs_of, ((each, None) for each in BATCHES), shelf=Shelf(memory)).loss(others_of)
        for memory in (0, 3 * 4 * CELLS, 1 << 40)
    ]
    assert losses[0] == losses[1] == losses[2] == pytest.approx(0.01, rel=0.01)


def test_judging_holds_the_outputs_of_few_batches():
    """Of one batch those of both models, and what a judge makes of them: not those of twelve."""
    tracemalloc.start()
    standard = Standard(outputs_of, ((each, None) for each in BATCHES), shelf=Shelf(0))
    standard.loss(others_of)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * 4 * CELLS


def test_a_tall_weight_is_cut_in_pieces(monkeypatch):
    """To what least squares make of it, in the precision that it is stored in, and without a copy in a better one."""
    rng = np.random.default_rng(0)
    rows, columns, n = 1 << 15, 12, 200
    x = rng.standard_normal((n, columns)) @ rng.standard_normal((columns, columns)) + 1
    table = rng.standard_normal((1, rows, columns), np.float32)
    moments = Moments.zeros(1, columns, full=True)
    moments.add(x[:, None])
    consumer = Consumer("n", "x", 1, "w", 1, 0, "y", 1, scale=0.5)
    reading = Reading(consumer, moments, np.arange(columns)[None], table, np.ones((1, rows)))
    lost = np.isin(np.arange(columns), [1, 4, 5])[None]
    monkeypatch.setattr(trials, "RIDGE", 0.0)
    whole, shift = trials.without(reading, lost, refit=True, centre=True)
    monkeypatch.setattr(trials, "CELLS", 1 << 14)
    monkeypatch.setattr(context, "CELLS", 1 << 14)
    tracemalloc.start()
    pieces, same = trials.without(reading, lost, refit=True, centre=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = np.column_stack([x[:, ~lost[0]], np.ones(n)])
    wanted = np.linalg.lstsq(kept, x @ (0.5 * table[0].astype(np.float64)).T, rcond=None)[0]
    np.testing.assert_allclose(whole[0][:, ~lost[0]], wanted[:-1].T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(shift[0], wanted[-1], rtol=1e-6, atol=1e-9)
    assert not whole[0][:, lost[0]].any()
    assert pieces.dtype == np.float32
    np.testing.assert_array_equal(pieces, whole.astype(np.float32))
    np.testing.assert_allclose(same, shift, rtol=1e-12)
    assert peak < 0.9 * 8 * table.size


@pytest.mark.parametrize("module", [verify, compensate], ids=["verify", "compensate"])
def test_nobody_holds_statistics_where_models_of_all_weights_are_made(module, monkeypatch):
    def held() -> list[Statistics]:
        gc.collect()
        return [each for each in gc.get_objects() if type(each) is Statistics]

    before, found = held(), []  # what other tests have left must not go meanwhile
    run = getattr(module, module.__name__.rpartition(".")[2])

    def noted(*args: Any, **options: Any) -> Any:
        found.append(len(held()) - len(before))
        return run(*args, **options)

    monkeypatch.setattr(module, run.__name__, noted)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    data = [{"input": np.random.default_rng(seed).standard_normal((4, 6), np.float32)} for seed in range(4)]
    gp.prune(net, (torch.zeros(4, 6),), target="macs=0.7", calibration=data, verify=module is verify, latency=False)
    assert found == [0]


@pytest.mark.parametrize(("limit", "given"), [(0, True), (1 << 40, False)])
def test_memory_is_given_back_beside_large_weights(limit, given, monkeypatch):
    """After each pass and each export, whose cycles nobody else collects while a model is compiled."""
    monkeypatch.setattr(pipeline, "LARGE", limit)
    asked: list[bool] = []
    for module in (pipeline, export):
        monkeypatch.setattr(module, "give_back", lambda: asked.append(True) or give_back())
    found: list[bool] = []
    with frozen_garbage_collection():
        for after in ("analyze", "check-export"):
            net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
            garbage = nn.ReLU()
            garbage.itself = [garbage]
            left = weakref.ref(garbage)
            del garbage
            state = State(TorchHost.trace(net, (torch.zeros(4, 6),)))
            if after == "analyze":
                run_pipeline([Analyze()], state)
            else:
                state = Analyze().run(state)
                export.exported(replace(state, plan=PruningPlan("", (), {})))[0].export.close()
            found.append(bool(asked) and left() is None)
            asked.clear()
    assert found == [given, given]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 17])
def test_classes_of_rows_are_those_of_all_at_once(chunk, monkeypatch):
    monkeypatch.setattr(outcome, "CHUNK", chunk)
    rows = np.random.default_rng(0).standard_normal((11, 3), np.float32)
    rows[2, 1], rows[3] = np.nan, np.nan
    np.testing.assert_array_equal(outcome._classes(rows), np.nan_to_num(rows, nan=-np.inf).argmax(-1))


def test_agreement_copies_no_outputs_of_a_vocabulary():
    rows = np.random.default_rng(0).standard_normal((64, 1 << 14), np.float32)
    tracemalloc.start()
    outcome._classes(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.6 * rows.nbytes
