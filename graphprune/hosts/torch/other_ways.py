"""What the pruned module does in the other ways to run it, proven against the masked original."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import nn

from graphprune.analysis.groups import Analysis
from graphprune.errors import GraphpruneError, first_line
from graphprune.hosts.host import Array
from graphprune.hosts.torch.attributes import Use
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.runs import OtherRun
from graphprune.hosts.torch.stored import to_numpy
from graphprune.hosts.torch.training import outputs_in, train_step
from graphprune.ir.dims import factors_of
from graphprune.pipeline.state import State
from graphprune.proof.differences import off_whole
from graphprune.proof.masks import masks

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest value of an output: there is no second run in float64."""

_NAMED = 4
"""Names that a note lists."""


def other_ways_notes(state: State, original: TorchHost, pruned: TorchHost, module: nn.Module) -> Iterator[str]:
    """Sentences on what people should know of the module in other ways than the one that was proven.

    Without a proof, the module is not run in these ways.

    Args:
        state: The state after the last pass.
        original: The host of the original.
        pruned: The pruned host.
        module: The pruned module, of the user's class.
    """
    runs, analysis = original.runs, state.analysis
    if analysis is None:
        return
    for run, other in zip(runs.runs if state.proves else (), analysis.others, strict=False):
        if run.training and (reason := _failing(state, run, other, module)):
            yield f"{run.label}, the module {reason}; what proves it is the run in evaluation mode alone"
    for run in runs.runs:
        if whole := _kept_whole(analysis, run.label):
            yield f"{_listed(whole)} stay whole for what the model does {run.label}"
    if runs.unreached:
        yield (
            f"no run of the example reads {_listed(runs.unreached)}: they stay as they are, and what they are for "
            "fails if it takes a feature that was cut; give an example that reaches them, or protect what they read"
        )
    source = original.source
    trains = runs.failure or (state.proves and any(run.training for run in runs.runs))
    failing = train_step(module, original.example) if trains else ""
    if failing and source is not None and not train_step(source, original.example):
        yield f"a training step of the module fails, where one of the original does not: {failing}"
    elif failing and runs.failure:
        yield f"what the model does in training mode was not seen ({runs.failure}), and may not fit what was cut"


def other_uses(original: TorchHost, pruned: TorchHost) -> Iterator[Use]:
    """The other ways to run a module, as uses that its numbers have to serve."""
    refitted = bool(pruned.tensors.keys() - original.tensors.keys())  # with biases that the other runs do not have
    for run in pruned.runs.runs:
        if run.training:
            yield Use(run.label, partial(outputs_in, run=run), partial(_judged, run=run, refitted=refitted))


def _judged(module: nn.Module, run: OtherRun, *, refitted: bool) -> str:
    try:
        got = outputs_in(module, run)
    except Exception as error:  # noqa: BLE001  (a wrong size makes the user's code fail in any way)
        return f"it fails with '{first_line(error)}'"
    if run.host.drawing or refitted:
        return ""
    return _difference(list(run.host.run(run.host.example_inputs()).values()), got)


def _listed(names: Iterable[str]) -> str:
    names = tuple(names)
    more = len(names) - _NAMED
    return ", ".join(f"'{name}'" for name in names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _kept_whole(analysis: Analysis, label: str) -> list[str]:
    """The axes of weights that another way to run the model keeps whole."""
    return [
        f"{value.name}[{axis}]"
        for value in analysis.graph.stored
        if value.kind == "parameter"
        for axis, dim in enumerate(analysis.layouts[value.name])
        if any(
            factor in analysis.fixed and analysis.fixed[factor].text.endswith(f" {label}") for factor in factors_of(dim)
        )
    ]


def _failing(state: State, run: OtherRun, other: Analysis, module: nn.Module) -> str:
    """What a module does wrong in one way; empty if it computes what the masked original does."""
    try:
        got = outputs_in(module, run)
    except Exception as error:  # noqa: BLE001  (the user's code raises what it likes)
        return f"fails with '{first_line(error)}'"
    if state.removed or state.compensated or run.host.drawing:
        return ""  # other values are right there
    try:
        expected = run.host.run_masked(run.host.example_inputs(), masks(other, state.kept))
    except GraphpruneError:  # a normaliser that has no masked form
        return ""
    return _difference(list(expected.values()), got)


def _difference(expected: list[Array], got: list[torch.Tensor]) -> str:
    if len(got) != len(expected):
        return f"returns {len(got)} tensors instead of {len(expected)}"
    for want, tensor in zip(expected, got, strict=True):
        have = to_numpy(tensor)
        if have.shape != want.shape:
            return f"returns the shape {list(have.shape)} instead of {list(want.shape)}"
        worst = off_whole(want, have)
        if worst > TOLERANCE:
            return f"returns values that differ by {worst:.2g} of the largest"
    return ""
