"""Reading files of statistics, which strangers may have written: nothing is taken on trust, nothing large is made."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.data.samples import header_of
from graphprune.errors import OptionError
from graphprune.files import require_plain_source
from graphprune.statistics.moments import Moments
from graphprune.statistics.origin import Origin, read_origin, require_origin

Float = NDArray[np.float64]
_ADVICE = "collect them again"
LARGEST_TEXT = 1 << 28
"""Bytes of the text that says what the arrays are."""
ROUNDING = 1e-3
"""How far, relative to the largest, two sums of the same numbers may differ, which are taken in single precision."""


@dataclass(frozen=True)
class About:
    """What a file of statistics says of itself.

    Attributes:
        path: The file.
        samples: How many samples were seen.
        fingerprint: Of the model's structure.
        sources: What the arrays are of, in their order.
        spreads: By node.
        origin: What the statistics were taken of, if it says so.
    """

    path: Path
    samples: int
    fingerprint: str
    sources: tuple[str, ...]
    spreads: Mapping[str, Any]
    origin: Origin | None

    def spread(self, node: str, size: int) -> Float:
        """The variance of each channel of what a node gives.

        Raises:
            OptionError: The file has none, or another number of channels.
        """
        values = self.spreads.get(node)
        if not isinstance(values, list) or len(values) != size or not all(_is_variance(value) for value in values):
            raise OptionError(f"the statistics in '{self.path}' hold no {size} variances for node '{node}'; {_ADVICE}")
        return np.array(values, dtype=np.float64)


def _is_variance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300


def read_statistics(
    path: Path, wanted: str, shapes: Mapping[str, tuple[int, int]], origin: Origin | None = None
) -> tuple[About, dict[str, Moments]]:
    """Reads the arrays that are expected, each after its header was found to be of the size that it must have.

    Args:
        path: The ``.npz`` file.
        wanted: The fingerprint of the model.
        shapes: Groups and columns of each source.
        origin: What they have to be taken of; ``None``: whatever.

    Returns:
        What the file says of itself, and the moments by source.

    Raises:
        OptionError: The file is no such file, belongs to another model or other data, or holds what no data can give.
    """
    advice = "give a file that --statistics wrote"
    require_plain_source(path, OptionError, "statistics", advice)
    try:
        with zipfile.ZipFile(path) as archive:
            about = _about(path, array_of(archive, "about", (), "U"))
            if about.fingerprint != wanted:
                raise OptionError(f"the statistics in '{path}' belong to another model; {_ADVICE}")
            if origin is not None:
                require_origin(path, about.origin, origin)
            moments = {}
            for i, source in enumerate(about.sources):
                if source in shapes:
                    moments[source] = _moments(archive, i, shapes[source])
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        reason = str(error) or type(error).__name__
        raise OptionError(f"cannot read statistics from '{path}': {reason}; {advice}") from error
    if missing := next((source for source in shapes if source not in moments), None):
        raise OptionError(f"the statistics in '{path}' have none of {missing}; {_ADVICE}")
    return about, moments


def _about(path: Path, text: NDArray[Any]) -> About:
    try:
        data = json.loads(str(text))
        sources, spreads, samples = data["sources"], data["spreads"], data["samples"]
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"'about' does not say what the arrays are ({type(error).__name__}: {error})") from error
    named = isinstance(sources, list) and all(isinstance(source, str) for source in sources)
    if not named or not isinstance(spreads, dict) or type(samples) is not int or not 1 <= samples < 1 << 62:
        raise ValueError("'about' does not say what the arrays are")
    if len(set(sources)) != len(sources):
        raise ValueError("'about' names a source twice")
    origin = read_origin(data.get("origin"))
    return About(path, samples, str(data.get("fingerprint")), tuple(sources), spreads, origin)


def array_of(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], kinds: str) -> NDArray[Any]:
    """One array, which is read only if its header says that it has this shape and kind of elements.

    Raises:
        ValueError: It has not.
        KeyError: There is none of this name.
    """
    with archive.open(f"{name}.npy") as file:
        found, fortran, dtype = header_of(file)
        if found != shape or dtype.kind not in kinds or (fortran and len(shape) > 1):
            raise ValueError(f"'{name}' has type {dtype} and shape {list(found)}, expected {list(shape)}")
        if dtype.itemsize > LARGEST_TEXT:
            raise ValueError(f"'{name}' has {dtype.itemsize} bytes, expected at most {LARGEST_TEXT}")
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        data = file.read(size)
    if len(data) != size:
        raise EOFError(f"'{name}' ends after {len(data)} of {size} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _moments(archive: zipfile.ZipFile, i: int, flat: tuple[int, int]) -> Moments:
    """The moments of one source.

    Raises:
        ValueError: They are of another shape, or such as no data have.
    """
    count = array_of(archive, f"{i}.count", (), "iu")
    total, square, positive = (
        array_of(archive, f"{i}.{name}", flat, "f").astype(np.float64) for name in ("total", "square", "positive")
    )
    product = None
    if f"{i}.product.npy" in archive.namelist():
        product = array_of(archive, f"{i}.product", (*flat, flat[1]), "f").astype(np.float64)
    n = int(count)
    whole = all(np.isfinite(each).all() for each in (total, square, positive, *([] if product is None else [product])))
    if not whole or n < 1 or (square < 0).any() or (positive < 0).any() or (positive > n).any():
        raise ValueError(f"the moments of source {i} are none of {n} numbers")
    if product is not None:
        scale = ROUNDING * max(float(square.max(initial=0)), float(np.abs(product).max(initial=0)))
        diagonal = np.einsum("gcc->gc", product)
        if (
            np.abs(diagonal - square).max(initial=0) > scale
            or np.abs(product - product.swapaxes(1, 2)).max(initial=0) > scale
        ):
            raise ValueError(f"the products of source {i} do not go with its squares")
    return Moments(n, total, square, positive, product)
