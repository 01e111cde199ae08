"""What a host offers that has gradients: those of losses by gates and by weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from graphprune.hosts.host import Array, Arrays, Gate
from graphprune.importance.judge import Judge

Target: TypeAlias = Array | Sequence[Array | None] | None
"""What the judged output should be, or a sequence for several; ``None``: drawn from the model itself."""


@runtime_checkable
class Differentiable(Protocol):
    """A model that has gradients; methods only, so that it costs nothing to ask whether a host is one."""

    def run(self, inputs: Arrays, *, double: bool = False) -> dict[str, Array]:
        """See :meth:`graphprune.hosts.host.Runnable.run`."""

    def gate_gradients(
        self,
        inputs: Arrays,
        gates: Sequence[Gate],
        target: Target,
        *,
        categorical: bool = False,
        judges: Sequence[Judge] = (),
        seed: int = 0,
        level: Mapping[Gate, float] | None = None,
    ) -> dict[Gate, Array]:
        """The gradients of a loss by gates, for each sample of a batch.

        Args:
            inputs: By name.
            gates: The gates.
            target: What the first output should be (classes, or values), or a sequence for each of the ``judges``;
                ``None``: drawn from the model itself.
            categorical: Without judges: whether the first output holds logits of classes along its last axis, and the
                loss is the cross entropy; otherwise it is half the mean squared error.
            judges: How outputs are compared; their losses add up.
            seed: For drawn targets.
            level: Where a gate stands, if not at one.

        Returns:
            ``[n, d]`` by gate: samples and positions.
        """

    def parameter_gradients(
        self,
        inputs: Arrays,
        wanted: Sequence[str],
        target: Target,
        *,
        categorical: bool = False,
        judges: Sequence[Judge] = (),
        seed: int = 0,
    ) -> dict[str, Array]:
        """The gradients of a loss by stored tensors, summed over a batch; see :meth:`gate_gradients`."""
