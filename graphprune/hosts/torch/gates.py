"""Gates of the torch host: factors on what consumers read, with gradients for each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from graphprune.executor.losses import Loss, by_sample, gradients_of, spread
from graphprune.hosts.host import Gate
from graphprune.hosts.torch.masked import Interpreter
from graphprune.importance.final import floating
from graphprune.importance.judge import Judge
from graphprune.ir.graph import Graph


class GatedInterpreter(Interpreter):
    """Runs a graph in which some operands of some nodes are multiplied by gates along an axis."""

    def __init__(
        self,
        program: fx.Graph,
        tensors: Mapping[str, Any],
        names: Mapping[fx.Node, str],
        gates: Mapping[Gate, torch.Tensor],
    ) -> None:
        super().__init__(program, tensors)
        self._names = names
        self._by_node: dict[str, list[tuple[Gate, torch.Tensor]]] = {}
        for gate, values in gates.items():
            self._by_node.setdefault(gate.node, []).append((gate, values))

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """The arguments of a node, gated where there are gates."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        for gate, values in self._by_node.get(n.name, ()):
            for i, operand in enumerate(n.args):
                if isinstance(operand, fx.Node) and self._names.get(operand) == gate.value:
                    args = (*args[:i], args[i] * spread(values, args[i], gate.axis), *args[i + 1 :])
        return args, kwargs


def gate_gradients(
    program: fx.Graph,
    tensors: Mapping[str, Any],
    names: Mapping[fx.Node, str],
    flat: list[Any],
    gates: Sequence[Gate],
    loss: Loss,
    level: Mapping[Gate, float],
) -> dict[Gate, torch.Tensor]:
    """``∂ℓ_n/∂m_u`` of each sample and unit, ``[n, d]``, for one batch."""
    shapes = {value: node.meta["graphprune_spec"].shape for node, value in names.items()}
    values = {
        gate: torch.full(
            (shapes[gate.value][0] if gate.axis else 1, shapes[gate.value][gate.axis]),
            level.get(gate, 1.0),
            requires_grad=True,
        )
        for gate in gates
    }
    outputs = _outputs(GatedInterpreter(program, tensors, names, values), flat)
    samples = len(outputs[loss.heads[0][0]])
    found = gradients_of(loss.of(outputs), values)
    return {gate: by_sample(gradient, samples) for gate, gradient in found.items()}


def parameter_gradients(
    program: fx.Graph,
    tensors: Mapping[str, Any],
    flat: list[Any],
    wanted: Sequence[str],
    loss: Loss,
) -> dict[str, torch.Tensor]:
    """The gradients of some stored tensors for one batch, summed over its samples."""
    leaves = {name: tensors[name].detach().clone().requires_grad_() for name in wanted}
    outputs = _outputs(Interpreter(program, {**tensors, **leaves}), flat)
    return gradients_of(loss.of(outputs), leaves)


def _outputs(interpreter: Interpreter, flat: list[Any]) -> Sequence[Any]:
    """All outputs, in order."""
    with torch.enable_grad():
        outputs = interpreter.run(*flat, enable_io_processing=False)
    return outputs if isinstance(outputs, list | tuple) else (outputs,)


def first_judge(graph: Graph, *, categorical: bool) -> Judge:
    """How the first output is compared that is floating-point."""
    outputs = list(graph.outputs)
    first = outputs.index(floating(graph)[0])
    return Judge(outputs[first], first, "kl" if categorical else "mse")
