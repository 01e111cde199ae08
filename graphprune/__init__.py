"""graphprune: a graph-based structural pruning compiler.

In: a PyTorch model or an ONNX file. Out: a physically smaller, dense model that computes what the original computes
with the chosen units removed, with a proof.

    import graphprune as gp

    result = gp.prune("model.onnx", target={"macs": 0.5})
    result.save_onnx("smaller.onnx")
"""

from __future__ import annotations

import random
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from graphprune.version import __version__

if TYPE_CHECKING:
    from graphprune.analysis.dependency import DependencyGraph
    from graphprune.analysis.groups import Analysis, Group, Site
    from graphprune.api import apply, export_onnx, profile, prune, recover, restore, verify
    from graphprune.bounds import Bounds, bounded
    from graphprune.data.batches import SAMPLES, Batches, Inputs, open_batches
    from graphprune.data.preprocess import Preprocess
    from graphprune.errors import (
        BoundError,
        GraphpruneError,
        ModelError,
        OptionError,
        OutputError,
        PlanError,
        ProofError,
        RuleError,
        TargetError,
    )
    from graphprune.look import analyze
    from graphprune.planning.latency import Profile
    from graphprune.planning.plan import PruningPlan
    from graphprune.recipe import RECIPES, Recipe
    from graphprune.report.data import Report
    from graphprune.result import Result
    from graphprune.sensitivities import sensitivity
    from graphprune.session import Session
    from graphprune.sweeping import sweep
    from graphprune.training.callbacks import PruningCallback
    from graphprune.training.pruner import Pruner
    from graphprune.vocabulary import PrunedVocabulary, prune_vocabulary

__all__ = [
    "RECIPES",
    "SAMPLES",
    "Analysis",
    "Batches",
    "BoundError",
    "Bounds",
    "DependencyGraph",
    "GraphpruneError",
    "Group",
    "Inputs",
    "ModelError",
    "OptionError",
    "OutputError",
    "PlanError",
    "Preprocess",
    "Profile",
    "ProofError",
    "PrunedVocabulary",
    "Pruner",
    "PruningCallback",
    "PruningPlan",
    "Recipe",
    "Report",
    "Result",
    "RuleError",
    "Session",
    "Site",
    "TargetError",
    "__version__",
    "analyze",
    "apply",
    "bounded",
    "export_onnx",
    "open_batches",
    "profile",
    "prune",
    "prune_vocabulary",
    "recover",
    "restore",
    "sensitivity",
    "sweep",
    "verify",
]

_HOMES = {
    "analysis.dependency": ("DependencyGraph",),
    "analysis.groups": ("Analysis", "Group", "Site"),
    "api": ("apply", "export_onnx", "profile", "prune", "recover", "restore", "verify"),
    "bounds": ("Bounds", "bounded"),
    "data.batches": ("SAMPLES", "Batches", "Inputs", "open_batches"),
    "data.preprocess": ("Preprocess",),
    "errors": (
        "BoundError",
        "GraphpruneError",
        "ModelError",
        "OptionError",
        "OutputError",
        "PlanError",
        "ProofError",
        "RuleError",
        "TargetError",
    ),
    "look": ("analyze",),
    "planning.latency": ("Profile",),
    "planning.plan": ("PruningPlan",),
    "recipe": ("RECIPES", "Recipe"),
    "report.data": ("Report",),
    "result": ("Result",),
    "sensitivities": ("sensitivity",),
    "session": ("Session",),
    "sweeping": ("sweep",),
    "vocabulary": ("PrunedVocabulary", "prune_vocabulary"),
    "training.callbacks": ("PruningCallback",),
    "training.pruner": ("Pruner",),
}
"""Where the public names are defined. They are imported when they are first used: ``--version`` needs no runtime."""
_HOME = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # checkers read the imports above

    def __getattr__(name: str) -> object:
        """The public names, and the modules."""
        if name in _HOME:
            drawn = random.getstate()
            try:
                value = getattr(import_module(_HOME[name]), name)
            finally:
                random.setstate(drawn)  # rich draws one when it is imported
            setattr(sys.modules[__name__], name, value)
            return value
        path = f"{__name__}.{name}"
        if not name.startswith("_"):
            try:
                return import_module(path)
            except ModuleNotFoundError as error:
                if error.name != path:
                    raise
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
