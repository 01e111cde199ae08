"""What something was measured on, by digests: weights, data, the part of the data, and what was taken.

Whatever is kept of a measurement is found again by all of these, and by nothing less: checkpoints of one architecture,
and the two parts of data that is split, differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphprune.errors import OptionError

_SHOWN = 12
"""Digits of a digest in a message."""
_AGAIN = "remove it, or name another file, to collect them again"


@dataclass(frozen=True, slots=True)
class Origin:
    """What statistics were taken of.

    Attributes:
        weights: The digest of the model.
        data: The digest of the batches that were used.
        split: Which of how many batches these are.
        products: Whether products were taken.
    """

    weights: str
    data: str
    split: str
    products: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def read_origin(data: object) -> Origin | None:
    """What a file says of itself; ``None`` if it does not say that."""
    texts = ("weights", "data", "split")
    if not isinstance(data, Mapping) or not all(isinstance(data.get(name), str) for name in texts):
        return None
    return Origin(data["weights"], data["data"], data["split"], data.get("products") is True)


def require_origin(path: Path, got: Origin | None, expected: Origin) -> None:
    """Refuses statistics of something else.

    Raises:
        OptionError: They are of other weights, of other data or another part of it, or lack products.
    """
    what = f"the statistics in '{path}'"
    if got is None:
        raise OptionError(
            f"{what} do not say which weights and data they were taken of, as files of this version do; {_AGAIN}"
        )
    if got.weights != expected.weights:
        raise OptionError(
            f"{what} were taken of other weights (digest {got.weights[:_SHOWN]}, those of this model have "
            f"{expected.weights[:_SHOWN]}); {_AGAIN}"
        )
    if expected.products and not got.products:
        raise OptionError(f"{what} hold no products, which are needed here; collect them anew")
    if got.split != expected.split:
        raise OptionError(
            f"{what} were taken of {got.split}, and {expected.split} are used here (allocation 'measured' holds one of "
            f"four apart, to judge by); {_AGAIN}"
        )
    if got.data != expected.data:
        raise OptionError(
            f"{what} were taken of other data (digest {got.data[:_SHOWN]}, those that are given have "
            f"{expected.data[:_SHOWN]}); give the same data, number of samples and seed, or {_AGAIN}"
        )
