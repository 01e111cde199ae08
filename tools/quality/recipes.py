"""The recipes of graphprune that the benchmark compares; what is theirs as tools is in ``rivals.py``."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import graphprune as gp
from tools.quality.cases import Case, Run, module_runner, onnx_runner

DEFAULT = "default"
"""The recipe that the summary compares with the others."""

RECIPES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "isomorphic": {"allocation": "isomorphic"},
    "recovered": {"recover": True},
    "isomorphic-recovered": {"allocation": "isomorphic", "recover": True},
    **{name: dict(gp.RECIPES[name]) for name in ("flap", "wanda-sp", "llm-pruner")},
    "l2": dict(gp.RECIPES["magnitude"]),
    "dp": {"allocation": "dp"},
    "global": {"allocation": "global"},
    "uniform": {"allocation": "uniform"},
    "uncompensated-global": {"compensation": "none", "allocation": "global"},
    "ols-global": {"compensation": "ols", "allocation": "global"},
    "wifv-dp": {"criterion": "wifv", "allocation": "dp"},
    "wifv-isomorphic": {"criterion": "wifv", "allocation": "isomorphic"},
    "wifv-mean-global": {"criterion": "wifv", "compensation": "mean", "allocation": "global"},
    "fisher-global": {"criterion": "fisher", "allocation": "global"},
    "l2-refit": {"criterion": "l2", "compensation": "affine", "allocation": "uniform"},
    "l2-uniform": {"criterion": "l2", "compensation": "none", "allocation": "uniform"},
    "random-refit": {"criterion": "random", "compensation": "affine", "allocation": "uniform"},
}
"""Name -> keyword arguments of :func:`graphprune.prune` besides the budget and the data. One line adds a recipe."""

PRESETS = ("flap", "wanda-sp", "llm-pruner", "l2")
"""Rivals that are recipes of ours: their criterion, compensation and allocation on our groups."""

TABLE = (DEFAULT, "isomorphic", *PRESETS)
"""What is run unless others are asked for."""

GRADIENTS = ("taylor", "fisher")
"""Beginnings of criteria that need gradients, which ONNX models do not have."""


def applies(case: Case, name: str) -> bool:
    """Whether a recipe takes such a model."""
    return not (isinstance(case.model, Path) and RECIPES[name].get("criterion", "").startswith(GRADIENTS))


@lru_cache(maxsize=1)  # of one model at a time: a session holds activations
def _session_of(case: Case, batches: int | None) -> gp.Session:
    """A case, opened once: statistics and trials on its data serve all recipes and ratios."""
    return gp.Session(case.model, case.example, data=case.calibration[:batches], shapes=case.shapes)


def prune(case: Case, name: str, ratio: float, *, seed: int = 0, batches: int | None = None) -> tuple[gp.Result, Run]:
    """Prunes a case by a recipe to a fraction of its MACs.

    Args:
        case: The model and its data.
        name: Of the recipe.
        ratio: Fraction of MACs to keep.
        seed: Of graphprune.
        batches: At most so many batches of its calibration data; all by default.

    Returns:
        The result, and how to run it: an ONNX file as written, in onnxruntime; a module as it is handed out.
    """
    session = _session_of(case, batches)
    result = session.prune(target={"macs": ratio}, seed=seed, verify=False, **RECIPES[name])
    if not isinstance(case.model, Path):
        return result, module_runner(result.module)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.onnx"
        result.save_onnx(path)
        return result, onnx_runner(path)
