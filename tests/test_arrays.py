"""Passes over large arrays: blocks and threads give what one plain operation gives."""

from __future__ import annotations

import os

import numpy as np
import pytest

from graphprune import arrays
from graphprune.arrays import BLOCK, cores, cut, on_all_cores
from graphprune.importance.magnitude import _marginals

SHAPES = [(7,), (5, 6), (700, 600), (3, BLOCK + 5), (64, 48, 3, 3), (2, 300, 400), (4, 0, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_are_cut_as_the_whole(shape: tuple[int, ...], order: str) -> None:
    rng = np.random.default_rng(0)
    array = np.asarray(rng.standard_normal(shape), np.float32, order=order)
    for axes in ([0], [len(shape) - 1], [*range(len(shape))], [*range(1, len(shape))] or [0]):
        taken = {axis: rng.permutation(shape[axis])[: shape[axis] // 2 + 1] for axis in axes}
        expected = array
        for axis, index in taken.items():
            expected = np.take(expected, index, axis)
        out = np.empty(expected.shape, array.dtype)
        assert np.array_equal(cut(array, taken), expected)
        assert cut(array, taken, out) is out
        assert np.array_equal(out, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p", [1, 2])
def test_blocks_are_summed_as_the_whole(shape: tuple[int, ...], p: int) -> None:
    weights = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    powers = np.abs(weights.astype(np.float64)) ** p
    for axis, found in enumerate(_marginals(weights, [*range(len(shape))], p)):
        expected = powers.sum(axis=tuple(i for i in range(len(shape)) if i != axis))
        np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_item_is_done_once(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(arrays, "cores", lambda: threads)
    arrays._pool.cache_clear()
    done = np.zeros(200, np.int64)

    def work(i: int) -> None:
        done[i] += 1

    on_all_cores(work, {i: BLOCK + i % 2 for i in range(200)})  # some small, some large
    arrays._pool.cache_clear()
    assert (done == 1).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_an_item_is_raised(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(arrays, "cores", lambda: threads)
    arrays._pool.cache_clear()

    def work(i: int) -> None:
        if i == 7:
            raise KeyError(i)

    with pytest.raises(KeyError):
        on_all_cores(work, dict.fromkeys(range(20), BLOCK + 1))
    arrays._pool.cache_clear()


def test_threads_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for asked, expected in (("1", 1), ("", allowed), ("1000", allowed), ("all", allowed)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert cores() == expected
