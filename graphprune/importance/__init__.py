"""Importance criteria: one score for each unit of each group, larger is more important."""

from graphprune.importance.blocks import BLOCK_CRITERIA, BlockCriterion, block_criterion, register_for_blocks
from graphprune.importance.context import Evidence, Scores
from graphprune.importance.criteria import CRITERIA, Criterion, criterion, register

__all__ = [
    "BLOCK_CRITERIA",
    "CRITERIA",
    "BlockCriterion",
    "Criterion",
    "Evidence",
    "Scores",
    "block_criterion",
    "criterion",
    "register",
    "register_for_blocks",
]
