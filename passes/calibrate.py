"""Take statistics of activations on calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from graphprune.compensation.gates import find_gates, widths, with_gates
from graphprune.errors import OptionError
from graphprune.files import is_there
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.statistics.collect import MEMORY, Statistics, collect
from graphprune.statistics.holdout import split_batches


@dataclass(frozen=True)
class Calibrate(Pass):
    """Walks over the calibration data and takes the moments of what the consumers of each group read.

    Groups that the pipeline cannot cut (:attr:`State.reach`) are left out, but of what goes into a file, which other
    pipelines may read. Statistics that are there already (saved ones) are kept.

    Attributes:
        products: Whether to take products of activations, which least squares need, or means and squares only.
        memory: Bytes that products may take at a time; what does not fit is collected in further walks.
        holdout: Whether one batch of four is left out, for trials of what is fitted to the others.
        file: Statistics are read from this ``.npz`` file if it is there, and written to it if it is not.
    """

    name: ClassVar[str] = "calibrate"
    renamed: ClassVar[Mapping[str, str]] = {"apart": "holdout"}
    products: bool = True
    memory: int = MEMORY
    holdout: bool = False
    file: str = ""

    @property
    def needs(self) -> frozenset[str]:
        """Data."""
        return frozenset({keys.ANALYSIS, keys.CALIBRATION})

    @property
    def gives(self) -> frozenset[str]:
        """Moments, and products where it takes them."""
        taken = {keys.STATISTICS} | ({keys.PRODUCTS} if self.products else set())
        return frozenset(taken)

    @property
    def before(self) -> frozenset[str]:
        """It looks at the whole model."""
        return frozenset({keys.SLICED, keys.SHALLOWER})

    def subject(self, key: str) -> str:
        """The pass."""
        return f"'{self.name}'"

    def run(self, state: State) -> State:
        """The state with statistics.

        Raises:
            OptionError: There is no calibration data, or the file holds statistics of another model or of other data.
            OutputError: The file cannot be written.
        """
        analysis = state.analyzed(self.name)
        if state.statistics is not None and state.statistics.fits(analysis, full=self.products, groups=state.reach):
            return state
        if state.batches is None:
            raise OptionError("'calibrate' needs calibration data; give some (calibration=..., --calibration PATH)")
        batches = state.batches
        numbers = split_batches(len(batches))[0] if self.holdout else range(len(batches))
        groups = None if self.file else state.reach
        if self.file and is_there(Path(self.file)):
            origin = state.measured.origin(state.host, batches, numbers, products=self.products)
            gates = find_gates(state.host, analysis)
            loaded = Statistics.load(self.file, state.host, analysis, origin, widths(gates, analysis))
            known = replace(loaded, gates=gates)
            if not known.fits(analysis, full=self.products):
                raise OptionError(
                    f"the statistics in '{self.file}' hold no products, which are needed here; collect them anew"
                )
            return replace(state, statistics=known)
        if state.measured.any_of(self.name):  # before any are there, data need not be read for their digest first
            origin = state.measured.origin(state.host, batches, numbers, products=self.products)
            kept = state.measured.find(self.name, (origin, self.memory))
            if kept is not None and kept.fits(analysis, full=self.products, groups=groups):
                if self.file:
                    kept.save(self.file)
                return replace(state, statistics=kept)
        taken = [batches[i] for i in numbers] if self.holdout else batches
        found = collect(
            state.host,
            analysis,
            taken,
            full=self.products,
            groups=groups,
            memory=self.memory,
            progress=state.observer.counter(self.name),
        )
        found = with_gates(found, state.host, analysis, taken, full=self.products)
        origin = state.measured.origin(state.host, batches, numbers, products=self.products)
        found = replace(found, origin=origin)
        state.measured.keep(self.name, (origin, self.memory), found, found.n_bytes)
        if self.file:
            found.save(self.file)
        return replace(state, statistics=found)
