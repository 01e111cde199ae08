"""Compensation: closed-form refits of the consumers of removed units, so that their outputs stay what they were."""

from graphprune.compensation.ladder import RUNGS, Refit, Residuals, refit
from graphprune.compensation.sequential import Compensated, compensate

__all__ = ["RUNGS", "Compensated", "Refit", "Residuals", "compensate", "refit"]
