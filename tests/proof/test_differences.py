"""How far outputs lie apart, against the definition written out."""

import itertools

import numpy as np
import pytest

from graphprune.proof import parts
from graphprune.proof.differences import off_slices, off_whole

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("want", "have", "whole", "slices"),
    [
        ([[1.0, 100.0], [1.0, 100.0]], [[1.5, 100.0], [1.0, 100.0]], 0.005, 0.5),
        ([[0.0, 100.0], [0.0, 100.0]], [[0.0, 100.0], [1.0, 100.0]], 0.01, 1.0),  # of the floor: 1 % of the largest
        ([INF, NAN, 2.0], [INF, NAN, 2.0], 0.0, 0.0),
        ([INF, 1.0], [-INF, 1.0], INF, INF),
        ([NAN, 1.0], [1.0, 1.0], INF, INF),
        ([1.0, 1.0], [NAN, 1.0], INF, INF),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0),
        ([0.0, 0.0], [0.0, 0.25], 0.25, 25.0),
        ([], [], 0.0, 0.0),
        (2.0, 3.0, 0.5, 0.5),
        ([3, 4], [3, 5], 0.25, 0.25),
        ([True, False], [True, True], 1.0, 100.0),
    ],
)
def test_rows(want, have, whole, slices):
    want, have = np.array(want), np.array(have)
    assert off_whole(want, have) == pytest.approx(whole)
    assert off_slices([(want, have)], 0.01) == pytest.approx(slices)


def defined(pairs, floor):
    """Slice by slice."""
    want, have = (np.stack(each) for each in zip(*pairs, strict=True))
    largest = np.abs(want).max()
    worst = np.abs(want - have).max() / largest
    for axis in range(1, want.ndim):
        for i in range(want.shape[axis]):
            a, b = want.take(i, axis), have.take(i, axis)
            worst = max(worst, np.abs(a - b).max() / max(np.abs(a).max(), floor * largest))
    return worst


@pytest.mark.parametrize(("cells", "n"), list(itertools.product([8, 1 << 22], [1, 3])))
def test_values_part_by_part_and_of_several_runs(monkeypatch, cells, n):
    monkeypatch.setattr(parts, "CELLS", cells)
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.integers(-6, 2, (4, 1, 5))
    for _ in range(20):
        want = [rng.normal(size=(4, 3, 5)) * scale for _ in range(n)]
        pairs = [(each, each + rng.normal(size=each.shape) * 1e-3 * (rng.random(each.shape) < 0.1)) for each in want]
        assert off_slices(pairs, 1e-4) == pytest.approx(defined(pairs, 1e-4))
