"""Which group of an exported ONNX model is which group of the model that it was exported from.

Exporters keep the names of most weights; those that they rename (a transposed weight) are found by their values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from graphprune.analysis.groups import Analysis
from graphprune.hosts.host import Array, Model
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.ir.dims import factors_of

Place = tuple[str, int, int]
"""A tensor, an axis, and which of the groups on it, from the major one."""


def matching_groups(host: Model, analysis: Analysis, exported: OnnxHost, theirs: Analysis) -> dict[str, str]:
    """For each group of the exported model that is found again, its name in the original."""
    ours = dict(_places(analysis))
    renamed = _renamed(host, analysis, exported, theirs)
    votes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    sizes = {group.name: group.size for group in analysis.groups}
    other = {group.name: group.size for group in theirs.groups}
    for (tensor, axis, place), name in _places(theirs):
        source, flipped = renamed.get(tensor, (tensor, False))
        found = ours.get((source, 1 - axis if flipped else axis, place))
        if found is not None and sizes[found] == other[name]:
            votes[name][found] += 1
    return {name: max(counted, key=lambda each: counted[each]) for name, counted in votes.items()}


def _places(analysis: Analysis) -> Iterator[tuple[Place, str]]:
    for tensor in (value.name for value in analysis.graph.stored):
        for axis, dim in enumerate(analysis.layouts[tensor]):
            present = [factor for factor in dict.fromkeys(factors_of(dim)) if factor in analysis.group_of]
            for place, factor in enumerate(present):
                yield (tensor, axis, place), analysis.group_of[factor].name


def _renamed(host: Model, analysis: Analysis, exported: OnnxHost, theirs: Analysis) -> dict[str, tuple[str, bool]]:
    """Matrices under other names: the original's name, and whether it is transposed."""
    names = {value.name for value in analysis.graph.stored}
    wanted = {
        value.name: value.shape
        for value in theirs.graph.stored
        if value.name not in names and value.kind == "parameter" and len(value.shape) == 2
    }
    if not wanted:
        return {}
    keys: dict[tuple[object, ...], list[tuple[str, bool]]] = defaultdict(list)
    for value in analysis.graph.stored:
        if value.kind == "parameter" and len(value.shape) == 2:
            array = host.read(value.name)
            keys[_key(array)].append((value.name, False))
            keys[_key(array.T)].append((value.name, True))
    found = {}
    for name in wanted:
        candidates = keys.get(_key(exported.read(name)), [])
        if len(candidates) == 1:
            found[name] = candidates[0]
    return found


def _key(array: Array) -> tuple[object, ...]:
    """Corners of a matrix tell trained weights apart."""
    corners = np.concatenate([array[:8, :8].ravel(), array[-8:, -8:].ravel()]).astype(np.float32)
    return (*array.shape, corners.tobytes())
