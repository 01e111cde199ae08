"""One plug-in of each kind: a rule, a criterion, an allocation, a pass and a host."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from graphprune import ops
from graphprune.errors import ModelError, TargetError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.plugins import HostKind
from graphprune.importance import Evidence, Scores
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.allocation import Counts, levels_of
from graphprune.planning.problem import Problem


def register_rules() -> None:
    """The rule of an operator of our own: it scales each feature."""
    ops.register("com.example::Scale", "n c, c -> n c")


def largest(evidence: Evidence) -> Scores:
    """The largest absolute weight of each unit."""
    scores = {}
    for group in evidence.analysis.groups:
        found = np.zeros(group.size)
        for site in group.sites:
            weights = np.abs(np.moveaxis(np.asarray(evidence.read(site.tensor), np.float64), site.axis, 0))
            if weights.shape[0] == group.size:
                found = np.maximum(found, weights.reshape(group.size, -1).max(axis=1))
        scores[group.name] = found
    return scores


def alike(problem: Problem) -> Counts:
    """All groups one step down at a time, until the targets are met."""
    groups = problem.model.groups
    counts = problem.model.full.copy()
    levels = {i: levels_of(group, problem.limits) for i, group in enumerate(groups) if group.name in problem.allowed}
    for step in range(max(map(len, levels.values()), default=0)):
        for i, found in levels.items():
            counts[i] = found[min(step, len(found) - 1)]
        if problem.met(counts):
            return counts
    raise TargetError("no equal steps of all groups meet the target; allow more")


@dataclass(frozen=True)
class Count(Pass):
    """Notes how many numbers the model holds.

    Attributes:
        word: What they are called.
    """

    name: ClassVar[str] = "example-count"
    word: str = "numbers"

    @property
    def needs(self) -> frozenset[str]:
        """A model that is cut."""
        return frozenset({keys.SLICED})

    @property
    def gives(self) -> frozenset[str]:
        """Nothing that others need."""
        return frozenset()

    def run(self, state: State) -> State:
        """The state with a note."""
        n = sum(value.n_elements for value in state.host.graph().stored)
        return replace(state, notes=(*state.notes, f"the model holds {n} {self.word}"))


def _accepts(model: Any) -> bool:
    return isinstance(model, str | os.PathLike) and os.fspath(model).endswith(".mlp.json")


def _open(model: str | os.PathLike[str], **_: Any) -> OnnxHost:
    """Opens a file like ``{"widths": [8, 24, 4], "seed": 0}``."""
    try:
        described = json.loads(Path(model).read_text("utf-8"))
        widths = described["widths"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read '{model}' as a list of widths: {error}; see the example") from error
    rng, helper = np.random.default_rng(described.get("seed", 0)), onnx.helper
    value = helper.make_tensor_value_info
    nodes, weights, last = [], [], "x"
    for i, shape in enumerate(pairwise(widths)):
        end = i == len(widths) - 2
        weights.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], ["y" if end else f"a{i}"], f"linear{i}"))
        last = f"a{i}"
    inputs, outputs = (
        [value(name, onnx.TensorProto.FLOAT, (2, size))] for name, size in (("x", widths[0]), ("y", widths[-1]))
    )
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, weights)
    return OnnxHost.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


mlp_files = HostKind(_accepts, _open)
