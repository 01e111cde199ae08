"""Re-score, remove, train on: iterative pruning with any criterion of the project.

Han et al. 2015 (arXiv 1506.02626), Li et al. 2016 (1608.08710), Molchanov et al. 2016 (1611.06440); the cubic schedule
is that of Zhu and Gupta 2017 (1710.01878) and of TF-MOT's polynomial decay. At each time of the schedule the units that
are left are scored on the weights as they are; those with the lowest scores go for good.

Proof: two rounds are one with the union of what they remove; the masked net is the dense one (tests/training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from graphprune.training.method import Method


@dataclass(kw_only=True, repr=False)
class Iterative(Method):
    """Units go for good, some at each time of the schedule, by the criterion of the recipe."""

    name: ClassVar[str] = "iterative"
    schedule: ClassVar[Mapping[str, Any]] = {}
