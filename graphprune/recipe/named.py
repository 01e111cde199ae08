"""Recipes by name: the default, and those of the literature on our groups."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "default": {},
        "flap": {"criterion": "wifv", "allocation": "zscore", "compensation": "mean"},
        "wanda-sp": {"criterion": "wanda", "allocation": "uniform", "compensation": "none"},
        "llm-pruner": {"criterion": "taylor-elem", "allocation": "uniform", "compensation": "none"},
        "magnitude": {"criterion": "l2", "allocation": "isomorphic", "compensation": "none"},
    }
)
"""Keywords by name. ``magnitude`` is what ``default`` is without calibration data, and stays that with some."""
