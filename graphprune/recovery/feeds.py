"""What a student is trained on: samples drawn anew for each step, by its number alone, mixed where inputs are numbers.

A step's samples depend on the seed and on the step, not on what was drawn before: a run that was stopped goes on with
the samples that it would have drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from graphprune.data.batches import Batches
from graphprune.hosts.host import Array, Arrays

MOST_SAMPLES = 64
"""Samples of a step, at most."""
ROUNDS = 2
"""Rounds of mixing: a mixture has up to four parts. A few hundred samples are few otherwise."""
LONG = 8
"""Along axes of this length parts of samples can be exchanged."""
MACS = 4e9
"""What the student may compute for the samples of a step: a step of about a second on one core."""


@dataclass(frozen=True)
class Fed:
    """What one run of a step takes.

    Attributes:
        inputs: By name.
        labels: Where samples have some: what is right for each, and the weight that this has; of mixtures several.
    """

    inputs: Arrays
    labels: tuple[tuple[Array, Array], ...] = ()


@dataclass(frozen=True)
class Feeds:
    """Inputs for steps.

    Attributes:
        batches: The data.
        samples: Of a step.
        chunk: Of one run; a divisor of ``samples``.
        seed: Of what is drawn.
        mix: Whether inputs of floating-point numbers are mixed with each other; the teacher answers the mixtures.
            Parts of pictures are exchanged (CutMix, Yun et al. 2019, arXiv 1905.04899), and all are blended twice
            (mixup, Zhang et al. 2018, arXiv 1710.09412), with weights that are uniform between 0 and 1.
        flip: Whether half of the samples are mirrored before that.
    """

    batches: Batches
    samples: int
    chunk: int
    seed: int = 0
    mix: bool = False
    flip: bool = False

    def __call__(self, step: int) -> list[Arrays]:
        """The inputs of a step, run by run."""
        return [each.inputs for each in self.fed(step)]

    def fed(self, step: int) -> list[Fed]:
        """The same, with labels where there are some."""
        unit = self.batches.unit
        units = _row(self.seed, self.batches.samples // unit, step * self.samples // unit, self.samples // unit)
        rows = (np.sort(units)[:, None] * unit + np.arange(unit)).reshape(-1)
        found: Arrays = self.batches.take(rows)
        labels = () if self.batches.labels is None else ((self.batches.labels[rows], np.ones(len(rows), np.float32)),)
        fed = Fed(found, labels)
        if self.flip:
            which = np.random.default_rng((self.seed, step, 1)).random(len(rows)) < 0.5
            fed = Fed(mirrored(fed.inputs, self.batches.shared, which), fed.labels)
        if self.mix:
            fed = mixed(fed, self.batches.shared, np.random.default_rng((self.seed, step)))
        return [self._part(fed, start) for start in range(0, self.samples, self.chunk)]

    def _part(self, fed: Fed, start: int) -> Fed:
        if self.chunk == self.samples:
            return fed
        part = slice(start, start + self.chunk)
        inputs = {name: each if name in self.batches.shared else each[part] for name, each in fed.inputs.items()}
        return Fed(inputs, tuple((right[part], weight[part]) for right, weight in fed.labels))


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


def mixed(fed: Fed, shared: Collection[str], rng: np.random.Generator) -> Fed:
    """Samples mixed with others: parts of pictures are exchanged, then all are blended, each half of the times.

    Inputs in ``shared`` stay what they are. Labels are those of all that has gone into a mixture, by its share.
    """
    varying = [name for name in fed.inputs if name not in shared]
    n = len(fed.inputs[varying[0]])
    inputs, shares = dict(fed.inputs), np.eye(n, dtype=np.float32)
    if all(_axes(fed.inputs[name]) for name in varying):
        partner = rng.permutation(n)
        for i in rng.permutation(n)[: n // 2]:
            share, start = np.sqrt(rng.random()), rng.random(2)
            for name in varying:
                array = fed.inputs[name]
                part = _window(array, i, share, start)
                inputs[name] = inputs[name].copy() if inputs[name] is array else inputs[name]
                inputs[name][part] = array[(partner[i], *part[1:])]
            shares[i, i] -= share**2
            shares[i, partner[i]] += share**2
    blend = np.eye(n, dtype=np.float32)
    for _ in range(ROUNDS):
        partner, weight = rng.permutation(n), rng.random(n).astype(np.float32)
        weight[rng.permutation(n)[: n // 2]] = 1.0
        blend = weight[:, None] * blend + (1 - weight)[:, None] * blend[partner]
    inputs = {name: array if name in shared else _combined(blend, array) for name, array in inputs.items()}
    if not fed.labels:
        return Fed(inputs)
    shares = blend @ shares
    most = np.argsort(-shares, axis=1, kind="stable")[:, : 2 ** (ROUNDS + 1)]
    right = fed.labels[0][0]
    return Fed(inputs, tuple((right[at], shares[np.arange(n), at]) for at in most.T))


def mirrored(inputs: Arrays, shared: Collection[str], which: Array) -> Arrays:
    """Inputs with some of the samples mirrored, left to right."""
    found = dict(inputs)
    for name, array in inputs.items():
        if name not in shared:
            axis = _axes(array)[-1]
            found[name] = np.where(which.reshape(-1, *[1] * (array.ndim - 1)), np.flip(array, axis), array)
    return found


def are_pictures(inputs: Arrays, shared: Collection[str]) -> bool:
    """Whether inputs can be mirrored: all have channels and two long axes."""
    return all(array.ndim == 4 and len(_axes(array)) == 2 for name, array in inputs.items() if name not in shared)


def _axes(array: Array) -> tuple[int, ...]:
    """The axes along which parts of samples can be exchanged: up to two of pictures, spectra and sequences."""
    long = tuple(axis for axis in range(1, array.ndim) if array.shape[axis] >= LONG)
    return long[-2:] if array.ndim > 2 else ()


def _window(array: Array, at: int, share: float, start: Array) -> tuple[Any, ...]:
    """A part of a sample, of some share of the length of each axis (of the square of it, where there is one)."""
    axes = _axes(array)
    part: list[Any] = [at, *[slice(None)] * (array.ndim - 1)]
    for axis, where in zip(axes, start, strict=False):
        size = array.shape[axis]
        length = max(1, round(size * (share if len(axes) == 2 else share**2)))
        first = int(where * (size - length + 1))
        part[axis] = slice(first, first + length)
    return tuple(part)


def _combined(blend: Array, array: Array) -> Array:
    found: Array = (blend @ array.reshape(len(array), -1).astype(np.float32)).reshape(array.shape).astype(array.dtype)
    return found
