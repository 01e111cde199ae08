"""Losses that were measured on trial, in a file of statistics: added by one run, found again by the next.

Each entry says what it was measured on, in parts with a name, so that a run that cannot use one can say why. Files are
not taken on trust: an entry has a finite number for each width of each group, or is none.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import OptionError
from graphprune.files import replaced, require_plain_source
from graphprune.statistics.store import array_of

Float = NDArray[np.float64]
_PREFIX = "losses"
MOST = 64
"""So many entries are looked at."""
ALIKE = 1e-6
"""Scores that differ by less, relatively, are the same: sums are not taken in the same order on every machine."""


@dataclass(frozen=True)
class Losses:
    """Losses of one model on some data.

    Attributes:
        of: What they were measured on: by the name of each part its digest, or a text.
        scores: Of all groups: in their order units were removed.
        curves: Of all groups: what is lost when ``0, 1, ..., size`` units are kept.
    """

    of: Mapping[str, str]
    scores: Mapping[str, Float]
    curves: Mapping[str, Float]

    def differs(self, of: Mapping[str, str], scores: Mapping[str, Float]) -> str:
        """The first part in which what is asked for differs from what was measured; empty if nothing does."""
        for name in (*of, *self.of):
            if of.get(name) != self.of.get(name):
                return name
        same = all(np.allclose(scores[name], each, rtol=ALIKE, atol=0) for name, each in self.scores.items())
        return "" if same else "scores"


def read_losses(path: Path, sizes: Mapping[str, int]) -> list[Losses]:
    """The entries of a file, the last one first; of one that is of other groups, only that it is.

    Args:
        path: The ``.npz`` file that ``--statistics`` names.
        sizes: The units of each group of the model.

    Raises:
        OptionError: The file is no such file, or holds what no measurement gives.
    """
    advice = "give a file that --statistics wrote"
    require_plain_source(path, OptionError, "statistics", advice)
    found = []
    try:
        with zipfile.ZipFile(path) as archive:
            for n in reversed(range(_count(archive))):
                found.append(_entry(archive, n, sizes))
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        reason = str(error) or type(error).__name__
        raise OptionError(f"cannot read losses from '{path}': {reason}; {advice}") from error
    return found


def add_losses(path: Path, found: Losses) -> None:
    """Adds an entry to a file, which is written anew whole or not at all.

    Raises:
        OutputError: It cannot be written.
        OptionError: It is no such file.
    """
    about = {"of": dict(found.of), "sizes": {name: len(each) for name, each in found.scores.items()}}
    arrays = {
        "about": np.array(json.dumps(about)),
        "scores": np.concatenate([*found.scores.values()]),
        "curves": np.concatenate([found.curves[name] for name in found.scores]),
    }
    with replaced(path) as temporary:
        shutil.copyfile(path, temporary)
        if not zipfile.is_zipfile(temporary):  # it would be made one, with all that it holds before it
            raise OptionError(f"'{path}' holds no statistics; give a file that --statistics wrote")
        with zipfile.ZipFile(temporary, "a") as archive:
            n = _count(archive)
            for name, array in arrays.items() if n < MOST else ():
                with archive.open(f"{_PREFIX}.{n}.{name}.npy", "w") as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _count(archive: zipfile.ZipFile) -> int:
    names = {*archive.namelist()}
    return next((n for n in range(MOST) if f"{_PREFIX}.{n}.about.npy" not in names), MOST)


def _entry(archive: zipfile.ZipFile, n: int, sizes: Mapping[str, int]) -> Losses:
    of, own = _about(array_of(archive, f"{_PREFIX}.{n}.about", (), "U"))
    if own != dict(sizes):
        return Losses({**of, "groups": ""}, {}, {})
    ends = np.cumsum([*own.values()])
    total = int(ends[-1]) if len(ends) else 0
    scores = array_of(archive, f"{_PREFIX}.{n}.scores", (total,), "f").astype(np.float64)
    curves = array_of(archive, f"{_PREFIX}.{n}.curves", (total + len(ends),), "f").astype(np.float64)
    if not (np.isfinite(scores).all() and np.isfinite(curves).all() and (curves >= 0).all()):
        raise ValueError(f"the losses of entry {n} are no numbers from 0")
    return Losses(of, _split(own, scores, 0), _split(own, curves, 1))


def _split(sizes: Mapping[str, int], flat: Float, more: int) -> dict[str, Float]:
    parts: Sequence[Any] = np.split(flat, np.cumsum([size + more for size in sizes.values()])[:-1])
    return dict(zip(sizes, parts, strict=True))


def _about(text: NDArray[Any]) -> tuple[dict[str, str], dict[str, int]]:
    """What an entry is of, and the units of its groups."""
    try:
        data = json.loads(str(text))
        of, sizes = data["of"], data["sizes"]
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"an entry does not say what it is of ({type(error).__name__}: {error})") from error
    texts = isinstance(of, dict) and all(isinstance(each, str) for each in of.values())
    if not texts or not isinstance(sizes, dict):
        raise ValueError("an entry does not say what it is of")
    return of, sizes
