"""What the ONNX host has of gradients: its graph run by PyTorch, which is imported when it is first asked for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

import onnx

from graphprune.errors import OptionError
from graphprune.hosts.host import Array, Arrays, Gate
from graphprune.hosts.onnx.branches import nested
from graphprune.hosts.onnx.store import Store
from graphprune.importance.differentiable import Target
from graphprune.importance.final import floating
from graphprune.importance.judge import Judge
from graphprune.ir.graph import Graph

if TYPE_CHECKING:
    from graphprune.executor.losses import Loss
    from graphprune.executor.module import OnnxModule


class Gradients:
    """The part of a host that is :class:`graphprune.importance.differentiable.Differentiable`."""

    proto: onnx.ModelProto
    store: Store

    def graph(self) -> Graph:
        """The graph that the analysis reads."""
        raise NotImplementedError

    @cached_property
    def _affordable(self) -> bool:
        """True, or the error of a model that takes too much memory; asked before anything runs."""
        raise NotImplementedError

    def as_module(self) -> OnnxModule:
        """The model as a PyTorch module of its own, to be trained; :meth:`replaced` takes what it has ``stored()``.

        Raises:
            ModelError: Some operators cannot be run with gradients; it names all of them. Or the model takes too much
                memory.
            OptionError: PyTorch is not installed.
        """
        if find_spec("torch") is None:
            raise OptionError(
                "gradients of ONNX models are computed by PyTorch, which is not installed; install graphprune[torch], "
                "or use a criterion that needs none, such as obs"
            )
        from graphprune.executor.module import OnnxModule

        assert self._affordable
        return OnnxModule(nested(self.proto), {name: stored.numpy() for name, stored in self.store.items()})

    @cached_property
    def _run_by_torch(self) -> OnnxModule:
        return self.as_module()

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
        """The gradients of a loss by gates; see :class:`graphprune.importance.differentiable.Differentiable`."""
        module, loss = self._run_by_torch, self._loss(target, categorical, judges, seed)
        from graphprune.executor import gradients

        values = self.graph().values
        sizes = {gate: values[gate.value].shape[gate.axis] for gate in gates}
        return gradients.gate_gradients(module, inputs, sizes, loss, level or {})

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
        module, loss = self._run_by_torch, self._loss(target, categorical, judges, seed)
        from graphprune.executor import gradients

        return gradients.parameter_gradients(module, inputs, wanted, loss)

    def _loss(self, target: Target, categorical: bool, judges: Sequence[Judge], seed: int) -> Loss:
        """The loss of the judged outputs; without judges of the first one that is floating-point."""
        from graphprune.executor.losses import Loss

        outputs = list(self.graph().outputs)
        first = outputs.index(floating(self.graph())[0])
        judges = judges or (Judge(outputs[first], first, "kl" if categorical else "mse"),)
        return Loss([(judge.at, judge) for judge in judges], target, seed)
