"""Passes over large arrays: cuts and sums give what plain operations give."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.arrays import cut
from graphprune.importance.magnitude import BLOCK, _marginals

SHAPES = [(7,), (5, 6), (700, 600), (3, BLOCK + 5), (64, 48, 3, 3), (2, 300, 400), (4, 0, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_axes_are_cut_one_by_one(shape: tuple[int, ...], order: str) -> None:
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
