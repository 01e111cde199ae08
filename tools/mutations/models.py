"""The models in which faults are planted, opened and analysed once each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

import graphprune as gp
from graphprune.analysis.groups import Analysis, analyze_graph
from graphprune.hosts.host import Host
from graphprune.ir.dims import Factor, Index
from graphprune.opening import open_host
from graphprune.planning.plan import PruningPlan, make_plan
from tools.mutations import onnx_models

INEXACT = 0.3
"""How often a group is cut whose removal shifts a normalisation, and how often any other one."""
EXACT = 0.8
WHOLE = {
    **dict.fromkeys(("llama", "llama-fp16"), ("rotary-pair", "value-dim")),
    "moe": ("expert",),
    "tied": ("width", "qk-dim"),
}
"""Kinds that are left whole, for which the class has no attribute: it would not be kept, and its faults not tried."""


@dataclass(frozen=True, eq=False)
class Case:
    """A model and a random plan for it.

    Attributes:
        name: In :data:`MODELS`.
        host: The original, opened and folded.
        analysis: Of ``host``.
        kept: The units that stay.
        plan: The same as a plan.
        source: The user's module, for PyTorch.
    """

    name: str
    host: Host
    analysis: Analysis
    kept: Mapping[Factor, Index]
    plan: PruningPlan
    source: Any = field(default=None, repr=False)

    @property
    def cut(self) -> tuple[str, ...]:
        """Stored tensors that lose positions."""
        return tuple(self.plan.parameters)


def _torch(name: str) -> Callable[[int], Any]:
    def build(seed: int) -> Any:
        from tools.mutations import torch_models

        return getattr(torch_models, name)(seed)

    return build


def _exported(name: str) -> Callable[[int], Any]:
    def build(seed: int) -> Any:
        import onnx

        from tools.mutations import torch_models

        module, inputs = getattr(torch_models, name)(seed)
        with tempfile.TemporaryDirectory() as folder:
            gp.export_onnx(module, inputs, Path(folder) / "m.onnx")
            return onnx.load(Path(folder) / "m.onnx")

    return build


def _demo(seed: int) -> Any:
    import onnx

    import graphprune.demo

    return onnx.load(Path(graphprune.demo.__file__).parent / "demo_net.onnx")


MODELS: dict[str, Callable[[int], Any]] = {
    "detector.onnx": onnx_models.detector,
    "two-outputs.onnx": onnx_models.two_outputs,
    "qdq.onnx": onnx_models.quantised,
    "lstm.onnx": onnx_models.recurrent,
    "hidden.onnx": onnx_models.hidden,
    "saturated.onnx": onnx_models.saturated,
    "attention.onnx": onnx_models.expanded,
    "attention-fp16.onnx": lambda seed: onnx_models.halved(onnx_models.expanded(seed)),
    "demo.onnx": _demo,
    "vit.onnx": _exported("vit"),
    "vit": _torch("vit"),
    "vit-bf16": _torch("vit_bf16"),
    "residual": _torch("residual"),
    "unet": _torch("unet"),
    "moe": _torch("experts"),
    "tied": _torch("tied"),
    "lstm": _torch("recurrent"),
    "llama": _torch("llama"),
    "llama-fp16": _torch("llama_fp16"),
}
"""Builders from a seed: an ONNX model, or a module with its inputs."""


@cache
def opened(name: str, seed: int) -> tuple[Host, Analysis, Any]:
    """A model of :data:`MODELS` with its analysis, and the module where it is one."""
    built = MODELS[name](seed)
    source, inputs = built if isinstance(built, tuple) else (None, None)
    host = open_host(built if source is None else source, inputs).folded()
    return host, analyze_graph(host.graph()), source


def case(name: str, seed: int = 0, plan: int = 0) -> Case:
    """A model with a random plan.

    Args:
        name: In :data:`MODELS`.
        seed: Of the model's weights.
        plan: Of what is removed.
    """
    host, analysis, source = opened(name, seed)
    return planned(name, host, analysis, source, plan)


def planned(name: str, host: Host, analysis: Analysis, source: Any, seed: int, *, all_exact: bool = False) -> Case:
    """A case with a random plan; with ``all_exact`` every group that can be cut exactly is.

    Groups of one kind and size (of one size, with ``all_exact``) keep equally many units, as modules want it.
    """
    kept: dict[Factor, Index] = {}
    counts: dict[tuple[str, int], int] = {}
    for group in analysis.groups:
        if group.kind in WHOLE.get(name, ()):
            continue
        alike = "" if all_exact else group.kind, group.size
        rng = np.random.default_rng([seed, crc32(group.name.encode())])
        if alike not in counts:
            chance = (1.0 if all_exact else EXACT) if group.exact else (0.0 if all_exact else INEXACT)
            n = group.at_least(max(1, round(group.size * rng.uniform(0.4, 0.8))))
            counts[alike] = n if rng.random() < chance else group.size
        n = group.at_least(counts[alike])
        if n < group.size:
            kept[group.factor] = np.sort(rng.choice(group.size, n, replace=False))
    return Case(name, host, analysis, kept, make_plan(analysis, kept), source)
