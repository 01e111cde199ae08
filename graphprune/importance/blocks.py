"""Criteria for whole blocks: one score for each residual branch or layer, larger is more important."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis
from graphprune.arrays import widened
from graphprune.errors import OptionError
from graphprune.hosts.edits import Edits
from graphprune.hosts.host import Array, Arrays, Runnable
from graphprune.importance.context import CELLS, Evidence
from graphprune.importance.loss import Standard, labelled
from graphprune.ir.dims import factors_of
from graphprune.registry import Registry

BlockCriterion: TypeAlias = Callable[[Evidence], Mapping[str, float]]
"""Scores every block of the analysis, by name; layers come with the blocks that they are made of."""


def closing_norm(evidence: Evidence) -> dict[str, float]:
    """How much a branch adds to the stream, by its last weights: ``‖W‖_F / sqrt(n)`` for ``n`` features.

    For inputs of unit variance this is the root mean square of what the branch's last operator gives (a projection,
    the scale of a norm, a layer scale). Data-free and crude: it does not see what the branch gets. A layer scores as
    much as its blocks together.
    """
    blocks = evidence.analysis.blocks
    squares: dict[str, float] = {}
    for block in sorted(blocks, key=lambda block: block.kind == "layer"):
        if block.kind == "layer":
            squares[block.name] = sum(squares[part] for part in block.parts if part in squares)
        else:
            total = sum(_square_sum(evidence.stored(name)) for name in block.closing)
            squares[block.name] = total / block.features
    return {block.name: squares[block.name] ** 0.5 for block in blocks}


def _square_sum(weights: NDArray[Any]) -> float:
    """The sum of squares, some rows at a time."""
    if not weights.ndim or weights.dtype == np.float64:
        return float(np.square(weights, dtype=np.float64).sum())
    n = max(1, CELLS // max(1, weights[0].size))
    rows = (weights[start : start + n] for start in range(0, len(weights), n))
    return sum(float(np.square(widened(each), dtype=np.float64).sum()) for each in rows)


def random_blocks(evidence: Evidence) -> dict[str, float]:
    """Uniform random numbers from (0, 1), the same for the same seed and order of blocks."""
    blocks = evidence.analysis.blocks
    rng = np.random.default_rng(evidence.seed)
    return dict(zip((block.name for block in blocks), rng.uniform(size=len(blocks)).tolist(), strict=True))


def block_influence(evidence: Evidence) -> dict[str, float]:
    """``1 - cos(x, y)`` of what a block starts from and what stands in its place, the mean over all positions.

    The features of a position lie along the axes that the block's last weights give; where it has none, a sample is one
    position. One walk over the data for all blocks together (ShortGPT, arXiv 2403.03853).
    """
    blocks = evidence.analysis.blocks
    host, batches = _data(evidence, "bi")
    names = list(dict.fromkeys(name for block in blocks for name in (block.source, block.result)))
    axes = {block.name: _feature_axes(evidence.analysis, block) for block in blocks}
    total, count = dict.fromkeys(axes, 0.0), dict.fromkeys(axes, 0)
    run = host.partial_run(None, names)
    for batch in batches if blocks else ():
        _, arrays = run(batch)
        for block in blocks:
            x, y = (_by_position(arrays[name], axes[block.name]) for name in (block.source, block.result))
            squares = np.square(x).sum(1) * np.square(y).sum(1)
            cosine = np.where(squares > 0, (x * y).sum(1) / np.sqrt(np.where(squares > 0, squares, 1)), 0.0)
            cosine[(x == y).all(1)] = 1.0  # also where both are zero, as at padded positions
            total[block.name] += float((1 - cosine).sum())
            count[block.name] += len(cosine)
    return {name: total[name] / max(count[name], 1) for name in axes}


def _feature_axes(analysis: Analysis, block: Block) -> tuple[int, ...]:
    """The axes of a block's result that its last weights have too."""
    layout = analysis.layouts[block.result]
    of_weights = {f for name in block.closing for dim in analysis.layouts[name] for f in factors_of(dim) if f.size > 1}
    found = tuple(axis for axis, dim in enumerate(layout) if not of_weights.isdisjoint(factors_of(dim)))
    return found or tuple(range(1, len(layout)))


def _by_position(x: Array, axes: tuple[int, ...]) -> Array:
    """``[positions, features]`` in float64."""
    moved = np.moveaxis(np.asarray(x, dtype=np.float64), axes, range(-len(axes), 0))
    return moved.reshape(int(np.prod(moved.shape[: moved.ndim - len(axes)])), -1)


def block_ablation(evidence: Evidence) -> dict[str, float]:
    """``L(without the block) - L``: what leaving each block out alone costs. One walk over the data for each block.

    The loss is that of :mod:`graphprune.importance.loss`: against labels, else against the model's own outputs.
    """
    host, batches = _data(evidence, "ablation")
    blocks = evidence.analysis.blocks
    if not blocks:
        return {}
    labels = getattr(batches, "labels", None)
    standard = Standard(host.run, labelled(batches, labels), host.graph(), evidence.asked)
    whole = standard.loss(host.run)
    scores: dict[str, float] = {}
    for block in blocks:
        without = host.edited(Edits(bypasses=evidence.analysis.branches.skips([block]))).without_dead_nodes()
        scores[block.name] = standard.loss(without.run) - whole
    return scores


def _data(evidence: Evidence, criterion: str) -> tuple[Runnable, Iterable[Arrays]]:
    if evidence.host is None or evidence.batches is None:
        raise OptionError(
            f"block criterion '{criterion}' needs calibration data; give some (calibration=..., --calibration PATH)"
        )
    return evidence.host, evidence.batches


_BUILTIN: dict[str, BlockCriterion] = {
    "l2": closing_norm,
    "random": random_blocks,
    "bi": block_influence,
    "ablation": block_ablation,
}
BLOCK_CRITERIA = Registry("block criterion", _BUILTIN, group="graphprune.block_criteria")
"""The criteria of blocks by name; :func:`register_for_blocks` adds to them."""


def register_for_blocks(name: str, criterion: BlockCriterion, *, replace: bool = False) -> None:
    """Adds a criterion of the user's, for ``--block-criterion NAME``.

    Raises:
        OptionError: The name is taken, and ``replace`` is not said.
    """
    BLOCK_CRITERIA.register(name, criterion, replace=replace)


def block_criterion(name: str) -> BlockCriterion:
    """The criterion of a name.

    Raises:
        OptionError: There is none.
    """
    return BLOCK_CRITERIA.find(name)
