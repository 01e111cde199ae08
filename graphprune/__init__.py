"""graphprune: a graph-based structural pruning compiler.

In: a PyTorch model or an ONNX file. Out: a physically smaller, dense model that computes what the original computes
with the chosen units removed, with a proof.

    import graphprune as gp

    result = gp.prune("model.onnx", target={"macs": 0.5})
    result.save_onnx("smaller.onnx")
"""

from __future__ import annotations

from graphprune.analysis.dependency import DependencyGraph
from graphprune.analysis.groups import Analysis, Group, Site
from graphprune.api import Result, analyze, apply, export_onnx, profile, prune, restore, sensitivity, sweep, verify
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
from graphprune.planning.latency import Profile
from graphprune.planning.plan import PruningPlan
from graphprune.recipe import RECIPES, Recipe
from graphprune.report.data import Report
from graphprune.session import Session
from graphprune.version import __version__

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
    "restore",
    "sensitivity",
    "sweep",
    "verify",
]
