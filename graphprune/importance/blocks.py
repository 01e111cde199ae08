"""Criteria for whole blocks: one score for each residual branch or layer, larger is more important."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.blocks import Block
from graphprune.errors import OptionError


class BlockCriterion(Protocol):
    """A function that scores blocks."""

    def __call__(self, blocks: Sequence[Block], read: Callable[[str], NDArray[Any]], seed: int) -> Mapping[str, float]:
        """Scores every block, by name.

        Args:
            blocks: The blocks; layers come with the blocks that they are made of.
            read: Gives the values of a stored tensor by name.
            seed: For criteria that draw random numbers.
        """


def closing_norm(blocks: Sequence[Block], read: Callable[[str], NDArray[Any]], seed: int = 0) -> dict[str, float]:
    """How much a branch adds to the stream, by its last weights: ``‖W‖_F / sqrt(n)`` for ``n`` features.

    For inputs of unit variance this is the root mean square of what the branch's last operator gives (a projection,
    the scale of a norm, a layer scale). Data-free and crude: it does not see what the branch gets. A layer scores as
    much as its blocks together.
    """
    squares: dict[str, float] = {}
    for block in sorted(blocks, key=lambda block: block.kind == "layer"):
        if block.kind == "layer":
            squares[block.name] = sum(squares[part] for part in block.parts if part in squares)
        else:
            total = sum(float(np.square(read(name), dtype=np.float64).sum()) for name in block.closing)
            squares[block.name] = total / block.features
    return {block.name: squares[block.name] ** 0.5 for block in blocks}


def random_blocks(blocks: Sequence[Block], read: Callable[[str], NDArray[Any]], seed: int = 0) -> dict[str, float]:
    """Uniform random numbers from (0, 1), the same for the same seed and order of blocks."""
    rng = np.random.default_rng(seed)
    return dict(zip((block.name for block in blocks), rng.uniform(size=len(blocks)).tolist(), strict=True))


BLOCK_CRITERIA: dict[str, BlockCriterion] = {"l2": closing_norm, "random": random_blocks}
"""The built-in criteria; :func:`register_for_blocks` adds to them."""


def register_for_blocks(name: str, criterion: BlockCriterion) -> None:
    """Adds a criterion of the user's, for ``--block-criterion NAME``."""
    BLOCK_CRITERIA[name] = criterion


def block_criterion(name: str) -> BlockCriterion:
    """The criterion of a name.

    Raises:
        OptionError: There is none.
    """
    if name not in BLOCK_CRITERIA:
        raise OptionError(f"unknown block criterion '{name}'; expected one of {', '.join(sorted(BLOCK_CRITERIA))}")
    return BLOCK_CRITERIA[name]
