"""Parts of one group removed on trial, and what that does to the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis, Group
from graphprune.data.batches import Batches
from graphprune.defaults import SENSITIVITY_RATIOS, SENSITIVITY_SAMPLES
from graphprune.errors import OptionError
from graphprune.hosts.host import Array, Host, Runnable
from graphprune.importance.judge import Judge
from graphprune.importance.outcome import Tally, add, output_loss
from graphprune.pipeline.edits import slice_edits
from graphprune.planning.allocation import Limits, levels_of
from graphprune.planning.keep import keep_counts

RATIOS = SENSITIVITY_RATIOS
"""Fractions of a group's units that are removed on trial."""
SAMPLES = SENSITIVITY_SAMPLES
"""How many samples are tried where nothing else is said."""
REFERENCE_BYTES = 1 << 30
"""The original's outputs are kept up to this size, and computed again for each trial above it."""

Measure = Callable[[Runnable], float]
"""From a model with some units removed to a number that is larger the worse that is."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A model with part of one group removed.

    Attributes:
        group: The group.
        ratio: The fraction of its units that was asked for.
        removed: How many units are gone.
        host: The model. It computes what the masked original computes, and faster.
    """

    group: Group
    ratio: float
    removed: int
    host: Host


def trials(
    host: Host,
    analysis: Analysis,
    groups: Iterable[Group],
    scores: Mapping[str, NDArray[np.float64]],
    ratios: Sequence[float],
    align: int = 1,
) -> Iterator[Trial]:
    """Each group alone without part of its units, those with the lowest scores; at least one goes and one stays.

    No more go than a group can spare, and groups that can spare none are left out. With ``align``, the width that is
    left is the multiple of it that is closest, where the width of the group allows.
    """
    check_ratios(ratios)
    for group in groups:
        spare = group.size - group.at_least(1)
        for ratio in ratios if spare else ():
            removed = group.size - group.at_least(group.size - min(max(1, round(ratio * group.size)), spare))
            if removed == 0:  # less than a multiple that an operator wants
                removed = group.multiple
            if align > 1 and (levels := levels_of(group, Limits(align, 1, 1.0))[1:]):
                removed = group.size - min(reversed(levels), key=lambda n: abs(n - group.size + removed))
            kept = keep_counts((group,), scores, {group.name: group.size - removed})
            yield Trial(group, ratio, removed, host.edited(slice_edits(analysis, kept)))


def check_ratios(ratios: Sequence[float]) -> None:
    """Refuses fractions that are none.

    Raises:
        OptionError: There is none, or one is not between 0 and 1.
    """
    if not ratios or any(not 0 < ratio < 1 for ratio in ratios):
        given = ", ".join(f"{ratio:g}" for ratio in ratios) or "none"
        raise OptionError(f"the ratios are {given}; expected fractions of units between 0 and 1, such as 0.25,0.5,0.75")


def output_error(original: Runnable, batches: Batches, samples: int = SAMPLES) -> Measure:
    """A measure: the relative error of the outputs, ``|y' - y| / |y|`` over all samples, mean square over outputs.

    Only floating-point outputs count; values that are not finite in the original are left out.

    Args:
        original: The original model.
        batches: What to run.
        samples: At most so many samples are used, in whole batches.
    """
    n_batches = min(len(batches), max(1, samples // batches.batch_size))
    reference = remembered(original)

    def measure(host: Runnable) -> float:
        errors: dict[int, float] = {}
        powers: dict[int, float] = {}
        for index in range(n_batches):
            batch = batches[index]
            wanted, found = reference(index, batch), host.run(batch)
            for i, (want, have) in enumerate(zip(wanted.values(), found.values(), strict=True)):
                if want.dtype.kind != "f":
                    continue
                finite = np.isfinite(want)
                a, b = want[finite].astype(np.float64), have[finite].astype(np.float64)
                errors[i] = errors.get(i, 0.0) + float((b - a) @ (b - a))
                powers[i] = powers.get(i, 0.0) + float(a @ a)
        relative = [errors[i] / powers[i] for i in errors if powers[i] > 0]
        if not relative:
            raise OptionError("the outputs are no floating-point numbers, or all zero; give your metric (--eval)")
        return sqrt(sum(relative) / len(relative))

    return measure


def judged_loss(original: Runnable, batches: Batches, judges: Sequence[Judge], samples: int = SAMPLES) -> Measure:
    """A measure: the loss of the outputs as they are judged, relative to answering always their mean.

    Args:
        original: The original model.
        batches: What to run.
        judges: How outputs are compared.
        samples: At most so many samples are used, in whole batches.
    """
    n_batches = min(len(batches), max(1, samples // batches.batch_size))
    reference = remembered(original)

    def measure(host: Runnable) -> float:
        tallies = [Tally(judge) for judge in judges]
        for index in range(n_batches):
            batch = batches[index]
            add(tallies, reference(index, batch), host.run(batch))
        return output_loss(tally.outcome() for tally in tallies)

    return measure


def remembered(original: Runnable) -> Callable[[int, Mapping[str, Array]], Mapping[str, Array]]:
    """Runs the original on batches by number, each once as long as its outputs fit into :data:`REFERENCE_BYTES`."""
    kept: dict[int, dict[str, Array]] = {}
    held = 0

    def reference(index: int, batch: Mapping[str, Array]) -> dict[str, Array]:
        nonlocal held
        if index in kept:
            return kept[index]
        outputs = original.run(batch)
        size = sum(array.nbytes for array in outputs.values())
        if held + size <= REFERENCE_BYTES:
            kept[index] = outputs
            held += size
        return outputs

    return reference
