"""What a student is trained on: samples drawn anew for each step, by its number alone, mixed where inputs are numbers.

A step's samples depend on the seed and on the step, not on what was drawn before: a run that was stopped goes on with
the samples that it would have drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from graphprune.data.batches import Batches
from graphprune.hosts.host import Array, Arrays

MOST_SAMPLES = 64
"""Samples of a step, at most."""
MACS = 4e9
"""What the student may compute for the samples of a step: a step of about a second on one core."""


@dataclass(frozen=True)
class Feeds:
    """Inputs for steps.

    Attributes:
        batches: The data.
        samples: Of a step.
        chunk: Of one run; a divisor of ``samples``.
        seed: Of what is drawn.
        mix: Whether inputs of floating-point numbers are mixed with each other (mixup, Zhang et al. 2018, arXiv
            1710.09412, with weights that are uniform between 0 and 1); the teacher answers the mixtures.
    """

    batches: Batches
    samples: int
    chunk: int
    seed: int = 0
    mix: bool = False

    def __call__(self, step: int) -> list[Arrays]:
        """The inputs of a step, run by run."""
        unit = self.batches.unit
        units = _row(self.seed, self.batches.samples // unit, step * self.samples // unit, self.samples // unit)
        rows = (np.sort(units)[:, None] * unit + np.arange(unit)).reshape(-1)
        found: Arrays = self.batches.take(rows)
        if self.mix:
            found = mixed(found, self.batches.shared, np.random.default_rng((self.seed, step)))
        if self.chunk == self.samples:
            return [found]
        return [
            {n: a if n in self.batches.shared else a[start : start + self.chunk] for n, a in found.items()}
            for start in range(0, self.samples, self.chunk)
        ]


def feeds_of(batches: Batches, macs: float, *, seed: int = 0, stacked: bool = False) -> Feeds:
    """The feeds that fit a model.

    Args:
        batches: The data.
        macs: Of the student on one sample.
        seed: Of what is drawn.
        stacked: Whether it takes any number of samples in one run; else as many as a batch has.
    """
    wanted = int(2 ** np.floor(np.log2(np.clip(MACS / max(1.0, macs), 1, MOST_SAMPLES))))
    wanted = min(wanted, max(1, batches.samples))
    chunk = wanted if stacked else min(batches.batch_size, batches.samples)
    wanted = ceil(wanted / chunk) * chunk
    first = batches.take(np.arange(min(batches.samples, chunk)))
    varying = [array for name, array in first.items() if name not in batches.shared]
    alone = wanted > 1 and batches.unit == 1
    return Feeds(batches, wanted, chunk, seed, mix=alone and all(array.dtype.kind == "f" for array in varying))


def _row(seed: int, count: int, start: int, n: int) -> Array:
    """Numbers ``start`` to ``start + n`` of an endless row of permutations of ``count`` samples."""
    rounds: Sequence[int] = range(start // count, (start + n - 1) // count + 1)
    row = np.concatenate([np.random.default_rng((seed, 1, each)).permutation(count) for each in rounds])
    found: Array = row[start - rounds[0] * count :][:n]
    return found


def mixed(inputs: Arrays, shared: Collection[str], rng: np.random.Generator) -> Arrays:
    """Half of the samples, each with one drawn among all, by a weight of its own; the others stay what they are.

    Inputs in ``shared`` do, too.
    """
    n = next(len(array) for name, array in inputs.items() if name not in shared)
    partner, weight = rng.permutation(n), rng.random(n)
    weight[rng.permutation(n)[: n // 2]] = 1.0
    return {
        name: array if name in shared else _between(array, array[partner], weight) for name, array in inputs.items()
    }


def _between(a: Array, b: Array, weight: Array) -> Array:
    w = weight.reshape(-1, *[1] * (a.ndim - 1))
    found: Array = (w * a + (1 - w) * b).astype(a.dtype)
    return found
