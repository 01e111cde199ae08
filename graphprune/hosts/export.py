"""The file of a compiled model: written once for all passes that look at it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path

from graphprune.collector import give_back
from graphprune.hosts.host import Model
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.refits import exported_digests
from graphprune.hosts.writing import copied
from graphprune.pipeline.passes import large
from graphprune.pipeline.state import State
from graphprune.planning.metadata import metadata_of
from graphprune.proof.masks import bypassed, masks


class Export:
    """An ONNX file in a folder that is removed with this object.

    Attributes:
        host: What was written.
        path: The file.
    """

    def __init__(self, host: Model) -> None:
        folder = tempfile.mkdtemp(prefix="graphprune-")
        self.host = host
        self.path = Path(folder) / "after.onnx"
        self._removed = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def save(self, path: Path) -> None:
        """Writes the file elsewhere, whole or not at all, with external data beside it above 2 GB.

        Raises:
            OutputError: It cannot be written.
        """
        copied(self.path, path)

    def close(self) -> None:
        """Removes the file."""
        self._removed()


def exported(state: State) -> tuple[State, Path]:
    """The file of the host as it is now, and the state that holds it; written where that was not done already.

    Where weights of a PyTorch model were refitted, the plan notes what the file holds: exporters keep few names.

    Raises:
        OutputError: It cannot be written; for PyTorch models: not by torch.onnx.
    """
    assert state.plan is not None
    if isinstance(state.export, Export) and state.export.host is state.host:
        return state, state.export.path
    made = Export(state.host)
    try:
        state.host.save_onnx(made.path, metadata_of(state.plan), beside=True)  # it is only looked at
    except BaseException:
        made.close()
        raise
    if large(state):
        give_back()
    plan = state.plan
    if state.host.exports and plan.options.get("compensated"):
        plan = replace(plan, options={**plan.options, "exported": exported_digests(made.path)})
    return replace(state, plan=plan, export=made), made.path


def zeroed(state: State) -> OnnxHost | None:
    """The original with zeros for the weights of removed units, where the model is an ONNX file."""
    if not isinstance(state.original, OnnxHost) or state.analysis is None:
        return None
    original = bypassed(state.original, state.removed)
    assert isinstance(original, OnnxHost)
    return original.zeroed(masks(state.analysis, state.kept, state.removed))
