"""Importance criteria: one score for each unit of each group, larger is more important."""

from graphprune.importance.criteria import CRITERIA, Criterion, criterion, register
from graphprune.importance.evidence import Evidence, Scores

__all__ = ["CRITERIA", "Criterion", "Evidence", "Scores", "criterion", "register"]
