"""From a user's module to a graph: recorded as it runs, or exported where that is asked for or recording is not sure.

A recording is the example's own run, so it is exact about that run, at a fraction of the time. What it says of other
runs hangs on the code: where sizes or branches follow from the values of inputs or weights, or values leave the graph,
``torch.export`` has the first word.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from torch import nn

from graphprune.errors import ModelError
from graphprune.hosts.torch.recording.forward import Narrow, Recording, record
from graphprune.hosts.torch.trace import Example, Trace, export
from graphprune.hosts.torch.untouched import Looked


def traced(
    model: nn.Module,
    example: Example,
    dynamic_shapes: Any = None,
    *,
    training: bool = False,
    looked: Looked | None = None,
) -> Trace | Recording:
    """A module's forward as a graph.

    Where values decide what the code does and the exporter cannot follow it, the recording holds for what it does on
    the example, and for nothing else.

    Args:
        model: The module; what its code keeps is left as it is.
        example: The call.
        dynamic_shapes: As for ``torch.export``, which then is used.
        training: Whether the user's own layers run in training mode.
        looked: What was noted of the module as it is, if that was done.

    Raises:
        ModelError: torch.export cannot trace it.
    """
    if dynamic_shapes is not None:
        return export(model, example, dynamic_shapes, training=training)
    looked = looked or Looked(model)
    recording = _recorded(model, example, looked, training=training)
    if recording is not None and not recording.doubts:
        return recording
    looked.restore(traced=True)
    try:
        return export(model, example, training=training)
    except ModelError as error:
        if recording is None or training or any(leaf.is_meta for leaf in recording.state.values()):
            raise
        return replace(recording, narrow=Narrow(error, recording.doubts[0]))


def _recorded(model: nn.Module, example: Example, looked: Looked, *, training: bool) -> Recording | None:
    """The recording; ``None`` where there is none, whose reason the exporter will tell in its own words."""
    try:
        return record(model, example, looked, training=training)
    except Exception as error:  # noqa: BLE001  (the user's code raises what it likes)
        if "HigherOrderOperator" in str(error) and "torch._dynamo" in sys.modules:
            sys.modules["torch._dynamo"].reset()  # it has noted code that it could not compile
        return None
