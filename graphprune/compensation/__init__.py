"""Compensation: closed-form refits of the consumers of removed units, so that their outputs stay what they were."""

from graphprune.compensation.methods import METHODS, NORMS, Refit, Residuals, refit
from graphprune.compensation.norms import reestimate
from graphprune.compensation.sequential import compensate
from graphprune.compensation.stage import Compensated

__all__ = ["METHODS", "NORMS", "Compensated", "Refit", "Residuals", "compensate", "reestimate", "refit"]
