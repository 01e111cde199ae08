"""The example of a proof: as it is, or a corner of it where a picture is large.

How units meet does not depend on the size of a picture. Where a graph holds no size of its picture it runs on a corner
of it just as well, for a tenth of the time, and what holds there for both sides holds for the same weights.
A corner only ever proves: what fails on one, sees nothing there or does not run is tried on the whole example.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graphprune.hosts.host import Array, Arrays

LARGE, CORNER = 128, 64
"""Height and width from which a picture is large, and those of its corner: multiples of what networks reduce by."""


@dataclass(frozen=True)
class Example:
    """What a proof runs on.

    Attributes:
        seed: Of the inputs; 0 is the user's own.
        inputs: Others than those of the seed.
        answers: Takes what the pruned model computes on the inputs of the seed, where it is run in its own precision.
    """

    seed: int = 0
    inputs: Arrays | None = None
    answers: dict[str, Array] = field(default_factory=dict)


def corner_of(inputs: Arrays) -> dict[str, Array] | None:
    """Inputs whose pictures (``n c h w``, all of one size) are cut down to a corner; ``None`` if none is large."""
    pictures = {name: array for name, array in inputs.items() if array.ndim == 4 and array.dtype.kind == "f"}
    sizes = {array.shape[2:] for array in pictures.values()}
    if len(sizes) != 1 or min(next(iter(sizes))) < LARGE:
        return None
    return {name: array[..., :CORNER, :CORNER].copy() if name in pictures else array for name, array in inputs.items()}
