"""The oracle of coupling rules: the real operator, run on cut operands, must give the cut result.

For every factor of a rule that is neither fixed nor normalized, some of its units are removed. The operator is run on
the cut operands, with the sizes that the rule says in its attributes, and compared with the cut result of the whole
operator. A factor that occurs in operands only is contracted: there the operands of the reference are zeroed instead;
so it is for one that is missing from some of the results, or that an operand holds twice (a recurrent weight). Where the operator chooses, the removed
units of the reference are such that they cannot be chosen. Elements that are positions of a cut axis are numbered anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import lcm

import numpy as np

from graphprune.ir.dims import Factor, Index, factors_of, positions
from graphprune.ir.rule import Rule

Arrays = Sequence[np.ndarray | None]
Run = Callable[[Arrays, Mapping[tuple[str, int | None], float]], Sequence[np.ndarray | None]]
"""Runs the operator on operands, with some attributes (or their elements) replaced; numpy in, numpy out."""


def free_factors(rule: Rule, mixed: Sequence[str] = ()) -> list[Factor]:
    """The factors that the rule lets be cut without a change to any other value.

    And those whose statistic the operator takes of zeros as of nothing: a maximum of what cannot be chosen, and what
    ``mixed`` names.
    """
    layouts = [layout for layout in (*rule.operands, *rule.results) if layout is not None]
    found = dict.fromkeys(factor for layout in layouts for dim in layout for factor in factors_of(dim))
    written = {factor for dim in rule.writes for factor in factors_of(dim)}  # goes only with what it writes to
    statistics = {f for f in rule.normalized - rule.choices.keys() if f.name not in mixed}
    return [factor for factor in found if factor not in rule.fixed and factor not in statistics | written]


def _take(array: np.ndarray, layout: tuple, kept: Mapping[Factor, Index]) -> np.ndarray:
    for axis, dim in enumerate(layout):
        index = positions(dim, kept)
        if len(index) != array.shape[axis]:
            array = np.take(array, index, axis)
    return array


def _fill(array: np.ndarray, layout: tuple, kept: Mapping[Factor, Index], value: float, zero: float = 0) -> np.ndarray:
    array = array.copy()
    if array.dtype.kind in "iu" and value:
        value = np.iinfo(array.dtype).max if value > 0 else np.iinfo(array.dtype).min
    elif array.dtype.kind == "b":
        value = value > 0  # the least truth value is no
    for axis, dim in enumerate(layout):
        mask = np.zeros(array.shape[axis], bool)
        mask[positions(dim, kept)] = True
        array[(slice(None),) * axis + (~mask,)] = value or zero
    return array


def failures(
    rule: Rule,
    operands: Arrays,
    run: Run,
    *,
    tolerance: float = 1e-9,
    zeros: Mapping[int, float] | None = None,
    mixed: Sequence[str] = (),
) -> list[str]:
    """What the operator says against the rule, one line for each factor; empty if the rule is right.

    Args:
        rule: The rule.
        operands: Operands of the call, float64 where they are floating point.
        run: The operator.
        tolerance: Largest accepted difference, relative to the largest value of the result.
        zeros: What a removed unit of an operand holds, where it is not 0 (zero points).
        mixed: Names of factors that the operator both sums over and makes; ``*`` for all.
    """
    found, zeros = [], zeros or {}
    rng = np.random.default_rng(0)
    for factor in free_factors(rule, mixed):
        n = max(1, factor.size - max(1, factor.size // 3), *(least for dim, least in rule.least if dim is factor))
        step = lcm(*(of for dim, of in rule.multiples if dim is factor))
        n = factor.size - -(-(factor.size - n) // step) * step
        if not 0 < n < factor.size:
            continue
        kept = {factor: np.sort(rng.choice(factor.size, n, replace=False))}
        found.extend(_judge(rule, factor, kept, operands, run, tolerance, zeros, mixed))
    return found


def _judge(
    rule: Rule,
    factor: Factor,
    kept: Mapping[Factor, Index],
    operands: Arrays,
    run: Run,
    tolerance: float,
    zeros: Mapping[int, float],
    mixed: Sequence[str],
) -> list[str]:
    layouts = _pad(rule.operands, len(operands))
    reference, cut = list(operands), []
    for i, (array, layout) in enumerate(zip(operands, layouts, strict=True)):
        if array is not None and i in rule.reads and factor in factors_of(rule.reads[i]):
            places = positions(rule.reads[i], kept)
            array = array % len(places)  # those that stay
            reference[i] = places[array.astype(np.int64)].astype(array.dtype)
        cut.append(None if array is None else array if layout is None else _take(array, layout, kept))
    sizes: dict[tuple[str, int | None], float] = {
        (slot.attribute, slot.index): slot.value(slot.dim, {factor: len(kept[factor])}) for slot in rule.sizes
    }
    sizes.update({(name, None): value for name, value in rule.pinned})
    try:
        got = run(cut, sizes)
    except Exception as error:  # noqa: BLE001  (the operator refuses the cut operands: that is the finding)
        return [f"{factor}: the operator refuses the cut operands: {error}"]
    in_results = all(any(factor in factors_of(dim) for dim in layout) for layout in rule.results if layout is not None)
    sums = not in_results or factor.name in mixed or "*" in mixed or _recurs(rule, factor)
    fills: list[float | None] = [0.0] if sums else [None]
    if factor in rule.choices:
        fills = [-1e30, 1e30]
    elif factor in rule.ordered:  # nothing is added to those behind it, or the case has nothing there
        fills = [0.0, None]
    answers = []
    for fill in fills:
        filled = [
            array
            if array is None or layout is None or fill is None
            else _fill(array, layout, kept, fill, zeros.get(i, 0))
            for i, (array, layout) in enumerate(zip(reference, layouts, strict=True))
        ]
        answers.append(_differences(rule, factor, kept, run(filled, {}), got, tolerance))
    return min(answers, key=len)


def _differences(
    rule: Rule, factor: Factor, kept: Mapping[Factor, Index], whole: Arrays, got: Arrays, tolerance: float
) -> list[str]:
    found = []
    for i, (layout, ours, full) in enumerate(zip(rule.results, got, whole, strict=False)):
        if layout is None or ours is None or full is None:
            continue
        expected = _take(full, layout, kept)
        if i in rule.makes and factor in factors_of(rule.makes[i]):
            expected = np.searchsorted(positions(rule.makes[i], kept), expected)
        if expected.shape != ours.shape:
            found.append(f"{factor}: result {i} has shape {list(ours.shape)}, the rule says {list(expected.shape)}")
            continue
        scale = max(1e-30, float(np.max(np.abs(full), initial=0.0, where=np.isfinite(full))))
        a, b = expected.astype(np.float64), ours.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            difference = float(np.max(np.where(same, 0.0, np.abs(a - b)), initial=0.0)) / scale
        if not difference <= tolerance:
            found.append(f"{factor}: result {i} differs by {difference:.2g} of its largest value")
    return found


def _recurs(rule: Rule, factor: Factor) -> bool:
    """Whether the factor is in one operand twice: a recurrent weight, packed projections of keys and values.

    Such an operator also contracts what it makes.
    """
    counts = (
        sum(list(factors_of(dim)).count(factor) for dim in layout) for layout in rule.operands if layout is not None
    )
    return any(count > 1 for count in counts)


def _pad(layouts: Sequence, n: int) -> list:
    return [*layouts, *([None] * n)][:n]


def mutants(rule: Rule) -> list[Rule]:
    """Wrong rules: in each, two free factors of equal kind have changed places in one operand or result."""
    factors = [factor for factor in free_factors(rule) if factor.size > 1]
    found = []
    for i, a in enumerate(factors):
        for b in factors[i + 1 :]:
            if a.size != b.size:
                continue
            for role in ("operands", "results"):
                layouts = getattr(rule, role)
                for at, layout in enumerate(layouts):
                    if layout is None:
                        continue
                    swapped = tuple(_swap(dim, a, b) for dim in layout)
                    if swapped == layout:
                        continue
                    changed = (*layouts[:at], swapped, *layouts[at + 1 :])
                    found.append(_with(rule, role, changed))
            for role in ("reads", "makes"):  # positions of another axis
                pointed = getattr(rule, role)
                swapped = {at: _swap(dim, a, b) for at, dim in pointed.items()}
                if swapped != pointed:
                    found.append(_with(rule, role, swapped))
    return found


def _swap(dim, a: Factor, b: Factor):
    if isinstance(dim, Factor):
        return b if dim is a else a if dim is b else dim
    return type(dim)(tuple(_swap(part, a, b) for part in dim.parts), dim.size)


def _with(rule: Rule, role: str, layouts: tuple) -> Rule:
    from dataclasses import replace

    return replace(rule, **{role: layouts})
