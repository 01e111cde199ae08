"""Prove that the pruned model computes what it should."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.blocks import Block
from graphprune.analysis.groups import Analysis, analyze_graph
from graphprune.errors import ModelError, OptionError, ProofError
from graphprune.ir.dims import Factor, Index, factors_of, positions
from graphprune.passes.slice_groups import slice_edits
from graphprune.pipeline.host import Arrays, Host
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import Check, State

TOLERANCES = {2: 2e-2, 4: 1e-5, 8: 1e-10}
"""Largest accepted difference by bytes of a number: rounding of sums in another order, far below any wrong unit."""

_SATURATED = {2: 1e-2, 4: 1e-4, 8: 1e-200}
"""Outputs that vary by less consist of rounding: the tail of a sigmoid in single precision, say."""

_AS_INFINITE = {2: 6.5e4, 4: 3.3e38, 8: 3.3e38}
"""Numbers that stand for infinity: masks write the largest one of half or single precision."""


@dataclass(frozen=True)
class Verify(Pass):
    """Runs the masked and the permutation oracle on the host's own executor.

    - masked: the pruned model equals the original with the removed units zeroed after every node and normalizers that
      count only the kept units;
    - permutation: the original with the units of *every* group permuted computes what it did before (but for groups on
      whose order an operator depends: their units may only be removed).

    Attributes:
        seed: Of the example input and the permutations.
    """

    name: ClassVar[str] = "verify"
    seed: int = 0

    def run(self, state: State) -> State:
        """The state with the proof's numbers.

        Raises:
            ProofError: A difference is larger than rounding explains.
            OptionError: The pipeline lacks a pass.
        """
        if state.original is None:
            raise OptionError("pass 'verify' needs an analysis; put 'analyze' before it in the pipeline")
        analysis = state.analyzed(self.name)
        checks = verify(state.original, state.host, analysis, state.kept, state.removed, seed=self.seed)
        if not all(check.passed for check in checks):
            state.require_sliced()
        require(checks)
        return replace(state, checks=(*state.checks, *checks))


def verify(
    original: Host,
    pruned: Host,
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    removed: Iterable[Block] = (),
    *,
    seed: int = 0,
) -> tuple[Check, ...]:
    """Runs both oracles and returns what they found, good or bad."""
    inputs = original.example_inputs(seed)
    removed = tuple(removed)
    zeros = masks(analysis, kept, removed)
    other = _at_other_sizes(original, kept, analysis, removed)
    permuted = original.edited(slice_edits(analysis, permutations(analysis, seed)))

    def masked(*, double: bool) -> Check:
        expected = original.run_masked(inputs, zeros, double=double)
        first = compare("masked", expected, pruned.run(inputs, double=double), note="pruned = masked original")
        if other is None or not first.passed:
            return first
        resized, zeros_there = other
        given = resized.example_inputs(seed)
        expected = resized.run_masked(given, zeros_there, double=double)
        note = f"{first.note}, at two sets of sizes"
        second = compare("masked", expected, pruned.run(given, double=double), note=note)
        return replace(max(second, first, key=lambda check: check.difference), note=note)

    def permutation(*, double: bool) -> Check:
        expected, got = original.run(inputs, double=double), permuted.run(inputs, double=double)
        return compare("permutation", expected, got, note="all units permuted = original")

    return (judged(masked), judged(permutation))


def _at_other_sizes(
    original: Host, kept: Mapping[Factor, Index], analysis: Analysis, removed: Iterable[Block]
) -> tuple[Host, dict[str, dict[int, NDArray[np.bool_]]]] | None:
    """The original at other sizes along its dynamic axes, and the same units' masks there, if it has such axes."""
    other = original.at_other_sizes()
    if other is None:
        return None
    again = analyze_graph(other.graph())
    groups = {group.name: group for group in again.groups}
    there: dict[Factor, Index] = {}
    for factor, index in kept.items():
        group = groups.get(analysis.group_of[factor].name)
        if group is None or group.size != factor.size:
            return None  # the sizes couple what is free at those of the example
        there[group.factor] = index
    return other, masks(again, there, removed)


def permutations(analysis: Analysis, seed: int) -> dict[Factor, Index]:
    """A random order of the units of every group whose units may change places."""
    rng = np.random.default_rng(seed)
    return {group.factor: rng.permutation(group.size) for group in analysis.groups if group.ordered is None}


def judged(check: Callable[..., Check]) -> Check:
    """A check in the model's own precision; in doubt, in float64, where rounding cannot be mistaken for an error.

    Deep networks amplify rounding, outputs that are saturated (a sigmoid at 1e-6) consist of it, and half precision
    hides much under it.
    """
    first = check(double=False)
    if first.passed and first.informative and first.tolerance < TOLERANCES[2]:
        return first
    try:
        second = check(double=True)
    except ModelError:  # the host has no float64 executor for this model
        return first if first.informative else replace(first, note=f"{first.note}; {_CONSTANT}")
    note = f"{second.note}, in float64 ({first.difference:.2g} in its own precision)"
    return replace(second, note=note if second.informative else f"{note}; {_CONSTANT}")


_CONSTANT = "the outputs hardly vary on the example input, so this says little: try other shapes or inputs"


def masks(
    analysis: Analysis, kept: Mapping[Factor, Index], removed: Iterable[Block] = ()
) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """For every value and axis that loses positions, which ones stay; none of a branch that is left out.

    Constants that are positions are left as they are: they point to what is removed, where there is nothing. So are
    indices that count what they belong to as well: zeros would point at the first element.
    """
    found: dict[str, dict[int, NDArray[np.bool_]]] = {}
    touched = frozenset(kept)
    natural = analysis.positions.keys() | analysis.inside
    for name, layout in analysis.layouts.items():
        for axis, dim in enumerate(layout if name not in natural else ()):
            if touched.isdisjoint(factors_of(dim)):
                continue
            mask = np.zeros(dim.size, dtype=np.bool_)
            mask[positions(dim, kept)] = True
            found.setdefault(name, {})[axis] = mask
    for bypass in (bypass for block in removed for bypass in block.bypasses):
        size = analysis.layouts[bypass.branch][0].size
        found.setdefault(bypass.branch, {})[0] = np.zeros(size, dtype=np.bool_)
    return found


def compare(name: str, expected: Arrays, got: Arrays, *, note: str = "", tolerance: float | None = None) -> Check:
    """The largest difference of outputs, relative to the largest absolute value of each output.

    Outputs are compared in order. Integer and boolean outputs must be equal; infinities, and the largest
    numbers, which masks write in their place, must be equal where they are.
    """
    worst, itemsize, informative = 0.0, 8, False
    if len(expected) != len(got):
        return Check(name, float("inf"), 0.0, f"{len(expected)} outputs became {len(got)}")
    for (output, want), have in zip(expected.items(), got.values(), strict=True):
        if want.shape != have.shape:
            return Check(
                name, float("inf"), 0.0, f"output '{output}' has shape {list(have.shape)} instead of {list(want.shape)}"
            )
        if want.dtype != have.dtype:
            return Check(name, float("inf"), 0.0, f"output '{output}' has type {have.dtype} instead of {want.dtype}")
        if want.dtype.kind != "f":
            worst = worst if np.array_equal(want, have) else float("inf")
            informative = informative or bool((want != want.flat[0]).any()) if want.size else informative
            continue
        itemsize = min(itemsize, want.dtype.itemsize)
        a, b = want.astype(np.float64), have.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        finite = np.isfinite(a) & (np.abs(a) < _AS_INFINITE[want.dtype.itemsize])
        scale = float(np.abs(a[finite]).max(initial=0.0)) or 1.0
        spread = float(np.ptp(a[finite])) if finite.any() else 0.0
        informative = informative or spread > max(1e-3 * scale, _SATURATED[want.dtype.itemsize])
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, np.abs(a - b)) / scale
        worst = max(worst, float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0)))
    return Check(name, worst, TOLERANCES[itemsize] if tolerance is None else tolerance, note, informative)


def require(checks: tuple[Check, ...]) -> None:
    """Raises a :class:`ProofError` for the first check that failed."""
    for check in checks:
        if not check.passed:
            raise ProofError(
                f"the proof '{check.name}' failed ({check.note}): largest relative difference {check.difference:.3g}, "
                f"accepted {check.tolerance:g}; nothing was written. Please report this with the model"
            )
