"""Check that the exported file computes in onnxruntime what the pruned model does."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.errors import ModelError, OutputError
from graphprune.hosts.export import exported, zeroed
from graphprune.hosts.parity import file_parity
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.proof.compare import require


@dataclass(frozen=True)
class CheckExport(Pass):
    """Writes the model to a file and runs it in onnxruntime beside the model itself.

    A PyTorch model that torch.onnx cannot write, or onnxruntime cannot run, is still a result, which the oracles have
    proven; a note says what is missing.

    Attributes:
        seed: Of the example input.
        required: Whether a file that cannot be written or run is an error for PyTorch models, too.
    """

    name: ClassVar[str] = "check-export"
    seed: int = 0
    required: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """A model that is done."""
        return frozenset({keys.ANALYSIS, keys.PLAN, keys.SLICED})

    @property
    def gives(self) -> frozenset[str]:
        """A file that is checked."""
        return frozenset({keys.EXPORT})

    def run(self, state: State) -> State:
        """The state with a check more, or with a note.

        Raises:
            ProofError: A difference is larger than the rounding of runtimes explains.
            OutputError: The file cannot be written.
            ModelError: onnxruntime cannot run it.
        """
        state.analyzed(self.name)
        original = state.original
        assert original is not None
        state = replace(state, done=state.done | self.gives)
        excused = state.host.exports and not self.required
        try:
            state, path = exported(state)
        except OutputError as error:
            if not excused:
                raise
            reason = re.sub(r"^cannot write '[^']*': ", "", str(error))
            note = f"there is no ONNX file, and onnxruntime has not checked the result: {reason}"
            return replace(state, notes=(*state.notes, note))
        try:
            check = file_parity(state.host, path, original.example_inputs(self.seed), zeroed(state))
        except ModelError as error:
            if not excused:
                raise
            reason = str(error).replace(f"'{path}'", "it")
            return replace(state, notes=(*state.notes, f"onnxruntime has not checked the ONNX file: {reason}"))
        state = replace(state, checks=(*state.checks, check))
        require(state.checks)
        return state
