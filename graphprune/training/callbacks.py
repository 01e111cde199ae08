"""A pruner in the loops of others: Hugging Face's ``Trainer`` and Lightning's, which call it at their events.

Neither has to be installed: both ask a callback for methods by the names of events, and have nothing to say about its
class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from graphprune.errors import OptionError
from graphprune.files import replaced
from graphprune.training.pruner import Pruner

FILE = "pruner.pt"
"""The state of the pruner in a checkpoint of the ``Trainer``."""


class PruningCallback:
    """Calls :meth:`Pruner.before_step` and :meth:`Pruner.step` around the steps of an optimiser.

    The state of the pruner is written into the checkpoints that are written, and taken up with them. After the training
    call ``pruner.finish()``.

    Args:
        pruner: The pruner, of the model that is trained.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner
        self._pending = False

    def _before(self) -> None:
        self.pruner.before_step()
        self._pending = True

    def _after(self) -> None:
        if self._pending:
            self.pruner.step()
        self._pending = False

    # -- transformers ------------------------------------------------------------------------------------------------

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Gradients are clipped, weights have not moved."""
        self._before()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Weights have moved."""
        self._after()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Where a version knows no event behind the step of the optimiser."""
        self._after()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint was written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            with replaced(folder / FILE) as beside:
                torch.save(self.pruner.state_dict(), beside)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Takes up a checkpoint that training goes on from.

        Raises:
            OptionError: It has no state of a pruner.
        """
        if state.global_step == self.pruner.steps:
            return
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE
        if not file.exists():
            raise OptionError(
                f"training begins at step {state.global_step}, the pruner is at {self.pruner.steps} and there is no "
                f"'{file}'; call pruner.load_state_dict with the state of that step before"
            )
        self.pruner.load_state_dict(torch.load(file, weights_only=True))

    # -- Lightning ---------------------------------------------------------------------------------------------------

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Gradients are there."""
        self._before()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Weights have moved, unless gradients are gathered over several batches."""
        self._after()

    @property
    def state_key(self) -> str:
        """Under which name a checkpoint holds the state."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self.pruner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.pruner.load_state_dict(state)

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Nothing is done at any other event."""
        if name.startswith("on_") or name in ("setup", "teardown"):
            return _nothing
        raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")


def _nothing(*_: Any, **__: Any) -> None:
    pass
