"""Importance criteria: one score for each unit of each group, larger is more important."""

from graphprune.importance.criteria import CRITERIA, Criterion, criterion, register

__all__ = ["CRITERIA", "Criterion", "criterion", "register"]
