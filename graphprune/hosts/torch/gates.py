"""Gates of the torch host: factors on what consumers read, with gradients for each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from graphprune.hosts.host import Array, Gate
from graphprune.hosts.torch.masked import Interpreter


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
                    args = (*args[:i], args[i] * _spread(values, args[i], gate.axis), *args[i + 1 :])
        return args, kwargs


def _spread(values: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """A gate of units ``[d]``, or of samples and units ``[n, d]``, in the shape in which it multiplies ``x``."""
    shape = [1] * x.ndim
    shape[axis] = values.shape[-1]
    if values.ndim == 2:
        shape[0] = values.shape[0]
    return values.reshape(shape).to(x.dtype)


@dataclass(frozen=True)
class Loss:
    """A loss of the first output.

    Attributes:
        target: What the output should be (classes, or values); ``None``: drawn from the model itself.
        categorical: Whether the output holds logits of classes along its last axis, and the loss is the cross entropy;
            otherwise it is half the mean squared error.
        seed: For drawn targets.
    """

    target: Array | None
    categorical: bool
    seed: int = 0

    def backward(self, output: torch.Tensor) -> None:
        """The gradients of what the output was computed from."""
        if self.target is None:
            generator = torch.Generator().manual_seed(self.seed)
            target = sampled_targets(output.detach(), self.categorical, generator)
        else:
            target = torch.from_numpy(np.asarray(self.target))
        torch.autograd.backward(loss_of(output, target, self.categorical))


def sampled_targets(output: torch.Tensor, categorical: bool, generator: torch.Generator) -> torch.Tensor:
    """Targets drawn from the model itself: classes from its distribution, or its output plus unit noise.

    The gradients of such a loss have the Fisher information of the model as their second moment; no labels are needed.
    """
    if categorical:
        table = output.float().softmax(-1).reshape(-1, output.shape[-1])
        return torch.multinomial(table, 1, generator=generator).reshape(output.shape[:-1])
    return output + torch.randn(output.shape, generator=generator)


def loss_of(output: torch.Tensor, target: torch.Tensor, categorical: bool) -> torch.Tensor:
    """The loss summed over samples; each sample's is the mean over its positions."""
    if categorical:
        each = torch.nn.functional.cross_entropy(
            output.float().reshape(-1, output.shape[-1]), target.reshape(-1).long(), reduction="none"
        )
        return each.reshape(len(output), -1).mean(1).sum()
    return (0.5 * (output - target).square()).reshape(len(output), -1).mean(1).sum()


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
    output = _first(GatedInterpreter(program, tensors, names, values), flat)
    loss.backward(output)
    found = {}
    for gate, tensor in values.items():
        gradient = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
        n = len(output) if len(gradient) % len(output) == 0 else 1  # samples may lie in one axis with positions
        found[gate] = gradient.reshape(n, -1, gradient.shape[1]).sum(1)
    return found


def parameter_gradients(
    program: fx.Graph,
    tensors: Mapping[str, Any],
    flat: list[Any],
    wanted: Sequence[str],
    loss: Loss,
) -> dict[str, torch.Tensor]:
    """The gradients of some stored tensors for one batch, summed over its samples."""
    leaves = {name: tensors[name].detach().clone().requires_grad_() for name in wanted}
    output = _first(Interpreter(program, {**tensors, **leaves}), flat)
    loss.backward(output)
    return {name: leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for name, leaf in leaves.items()}


def _first(interpreter: Interpreter, flat: list[Any]) -> torch.Tensor:
    """The first floating-point output."""
    with torch.enable_grad():
        outputs = interpreter.run(*flat, enable_io_processing=False)
    items = outputs if isinstance(outputs, list | tuple) else (outputs,)
    return next(item for item in items if isinstance(item, torch.Tensor) and item.is_floating_point())
