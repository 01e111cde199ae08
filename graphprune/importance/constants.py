"""What of a model's values is the same whatever its inputs are, element by element.

Every operator is run alone, on what is known of its operands and on numbers of all signs and sizes for the rest. What
comes out the same each time is known then: zeros of a row of zeros, a bias behind a row of zeros, what an activation
makes of it. No operator has to be understood for that. Numbers come in pairs of opposite sign, so that nothing is taken
for a constant that an activation cuts off on one side. Whole numbers, which may be places in a table, are those of
example inputs; they do not meet all rows, so that beside them only units are believed whose weights are zeros alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis
from graphprune.errors import GraphpruneError
from graphprune.hosts.host import Array, Host
from graphprune.ir.dims import Dim, Factor, factors_of, unit_of
from graphprune.ir.graph import Node

SCALES = (1.0, 30.0, 1e4)
"""How large the numbers are; each comes with both signs."""
CLOSE = 1e-6
"""Numbers other than zero are the same if they differ by less than this fraction: sums round."""
FLOATS = frozenset({"float32", "float64", "float16"})
_EXAMPLES = 2
_FEWEST = 3
"""So many runs have to give numbers: a root of a negative one gives none."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a value.

    Attributes:
        value: Its elements; those that are not known are anything.
        mask: Which of them are known.
    """

    value: Array
    mask: NDArray[np.bool_]

    @property
    def whole(self) -> bool:
        """Whether all of it is known."""
        return bool(self.mask.all())


Constants = Mapping[str, Known]
"""By name of a computed value: what is known of it, if anything."""


def find_constants(host: Host, analysis: Analysis, seed: int = 0) -> dict[str, Known]:
    """What is known of the computed values of a graph.

    Args:
        host: The model.
        analysis: Of its graph.
        seed: Of the numbers.
    """
    graph, found = analysis.graph, dict[str, Known]()
    sparse: dict[str, bool] = {}
    observed: dict[str, list[Array]] = {}
    rng = np.random.default_rng(seed)

    def is_sparse(name: str) -> bool:
        if name not in sparse:
            array = host.read(name)
            sparse[name] = bool(((array == 0) | ~np.isfinite(array.astype(np.float64))).any())
        return sparse[name]

    for node in graph.nodes:
        results = [name for name in node.results if name is not None]
        operands = list(dict.fromkeys(name for name in node.operands if name is not None))
        stored = [name for name in operands if graph.values[name].stored]
        open_ = [name for name in operands if name not in stored and not (name in found and found[name].whole)]
        if not results or node.optional:
            continue
        if open_ and not any(name in found for name in operands) and not any(map(is_sparse, stored)):
            continue
        whole_numbers = [n for n in open_ if graph.values[n].dtype not in (*FLOATS, "bool")]
        if whole_numbers and not observed:
            observed.update(_observed(host, analysis))
        try:
            run = host.partial_run([name for name in operands if name not in stored], results)
            runs = [
                run(values)[1] for values in _draws(analysis, operands, stored, found, observed, rng, once=not open_)
            ]
        except (GraphpruneError, KeyError, RuntimeError, TypeError, ValueError, IndexError):
            continue  # nothing is known of what cannot be run alone
        for name in results:
            known = _agreed([each[name] for each in runs]) if open_ else _all(runs[0][name])
            if known is not None and whole_numbers:
                known = _where_zero(host, analysis, node, stored, name, known)
            if known is not None and known.mask.any():
                found[name] = known
    return found


def _observed(host: Host, analysis: Analysis) -> dict[str, list[Array]]:
    """What whole numbers and truth values are on example inputs."""
    values = analysis.graph.values
    inputs = {*analysis.graph.inputs}
    names = [
        name
        for name, value in values.items()
        if not value.stored and name not in inputs and value.dtype not in FLOATS and "int" in value.dtype
    ]
    found: dict[str, list[Array]] = {}
    for seed in range(_EXAMPLES):
        given = host.example_inputs(seed)
        for name, array in given.items():
            found.setdefault(name, []).append(array)
        for name, array in host.shown(given, names) if names else ():
            found.setdefault(name, []).append(array)
    return found


def _draws(
    analysis: Analysis,
    operands: list[str],
    stored: list[str],
    found: Mapping[str, Known],
    observed: Mapping[str, list[Array]],
    rng: np.random.Generator,
    *,
    once: bool,
) -> Iterator[dict[str, Array]]:
    """Values of the computed operands of a node."""
    graph = analysis.graph
    computed = [name for name in operands if name not in stored]
    if once:
        yield {name: found[name].value for name in computed}
        return
    for i, scale in enumerate(SCALES):
        bases: dict[str, Array] = {}
        for name in computed:
            value = graph.values[name]
            if value.dtype in FLOATS:
                drawn = (0.5 + rng.exponential(size=value.shape)) * rng.choice([-1.0, 1.0], size=value.shape)
                bases[name] = (scale * drawn).astype(value.dtype)
            elif value.dtype == "bool":
                bases[name] = rng.random(value.shape) < 0.5
            else:
                bases[name] = observed[name][i % len(observed[name])]
        for sign in (1, -1):
            given: dict[str, Array] = {}
            for name, base in bases.items():
                turned = (
                    base if sign > 0 else ~base if base.dtype == bool else -base if base.dtype.kind == "f" else base
                )
                known = found.get(name)
                given[name] = turned if known is None else np.where(known.mask, known.value, turned).astype(base.dtype)
            yield given


def _all(array: Array) -> Known:
    return Known(array, np.ones(array.shape, bool))


def _agreed(arrays: list[Array]) -> Known | None:
    """What is the same in several runs."""
    first = arrays[0]
    if first.dtype.kind != "f":
        return None
    stacked = np.stack([each.astype(np.float64) for each in arrays])
    numbers = ~np.isnan(stacked)
    low = np.where(numbers, stacked, np.inf).min(0)
    high = np.where(numbers, stacked, -np.inf).max(0)
    with np.errstate(invalid="ignore"):
        same = (low == high) | ((low * high > 0) & (high - low <= CLOSE * np.minimum(np.abs(low), np.abs(high))))
    mask = same & (numbers.sum(0) >= min(_FEWEST, len(arrays)))
    return Known(np.where(mask, low, 0).astype(first.dtype), mask) if mask.any() else None


def _where_zero(
    host: Host, analysis: Analysis, node: Node, stored: list[str], result: str, known: Known
) -> Known | None:
    """What is known where only some rows of tables were met: units whose weights are zero wherever they are stored."""
    mask = np.zeros(known.mask.shape, bool)
    layouts = analysis.layouts
    for axis, dim in enumerate(layouts[result]):
        for factor in dict.fromkeys(factors_of(dim)):
            zeros = [
                units_where(host.read(name) == 0, i, own, factor)
                for name in stored
                for i, own in enumerate(layouts[name])
                if factor in factors_of(own)
            ]
            if not zeros:
                continue
            zero = np.array(zeros).min(axis=0)
            units = unit_of(dim, factor)
            here = (units >= 0) & zero[np.maximum(units, 0)]
            mask |= here.reshape([-1 if i == axis else 1 for i in range(mask.ndim)])
    mask &= known.mask & (known.value == 0)
    return Known(known.value, mask) if mask.any() else None


def units_where(true: NDArray[np.bool_], axis: int, dim: Dim, factor: Factor) -> NDArray[np.bool_]:
    """For each unit of a factor of an axis: whether all its elements are true."""
    along = np.moveaxis(true, axis, 0).reshape(true.shape[axis], -1).min(axis=1, initial=True)
    units = unit_of(dim, factor)
    here = units >= 0
    wrong = np.bincount(units[here], ~along[here], factor.size)
    found: NDArray[np.bool_] = wrong == 0
    return found
