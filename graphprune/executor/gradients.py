"""The gradients of losses by gates and by stored tensors of an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from graphprune.executor.losses import Loss, by_sample, gradients_of, spread
from graphprune.executor.module import OnnxModule
from graphprune.executor.tensors import array_of, tensor_of
from graphprune.hosts.host import Array, Arrays, Gate


def gate_gradients(
    module: OnnxModule, inputs: Arrays, gates: Mapping[Gate, int], loss: Loss, level: Mapping[Gate, float]
) -> dict[Gate, Array]:
    """``∂ℓ_n/∂m_u`` of each sample and unit, ``[n, d]``, for one batch.

    Args:
        module: The graph.
        inputs: By name.
        gates: The size of each.
        loss: Of its outputs.
        level: Where gates stand, if not at one.
    """
    values: dict[Gate, torch.Tensor] = {}

    def gated(gate: Gate) -> Callable[[torch.Tensor], torch.Tensor]:
        def read(x: torch.Tensor) -> torch.Tensor:
            if gate not in values:  # only now is it known how large the batch is
                shape = (x.shape[0] if gate.axis else 1, x.shape[gate.axis])
                values[gate] = torch.full(shape, level.get(gate, 1.0), requires_grad=True)
            return x * spread(values[gate], x, gate.axis)

        return read

    reads: dict[tuple[str, str], Callable[[torch.Tensor], torch.Tensor]] = {}
    for gate in gates:
        at, one = (gate.node, gate.value), gated(gate)
        reads[at] = _after(reads[at], one) if at in reads else one
    with torch.enable_grad():
        outputs = list(module(_tensors(inputs), reads=reads).values())
        found_by = gradients_of(loss.of(outputs), values)
    samples = len(outputs[loss.heads[0][0]])
    found: dict[Gate, Array] = {}
    for gate in gates:
        gradient = found_by.get(gate)
        if gradient is None:  # its node lies in a branch that was not taken
            gradient = torch.zeros(samples, gates[gate])
        found[gate] = array_of(by_sample(gradient, samples))
    return found


def _after(
    first: Callable[[torch.Tensor], torch.Tensor], second: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: second(first(x))


def parameter_gradients(module: OnnxModule, inputs: Arrays, wanted: Sequence[str], loss: Loss) -> dict[str, Array]:
    """The gradients of some stored tensors for one batch, summed over its samples."""
    stored = dict(module.named_stored())
    leaves = {name: stored[name].detach().clone().requires_grad_() for name in wanted}
    with torch.enable_grad():
        outputs = list(module(_tensors(inputs), replaced=leaves).values())
        found = gradients_of(loss.of(outputs), leaves)
    return {name: array_of(each.float() if each.element_size() < 4 else each) for name, each in found.items()}


def _tensors(inputs: Arrays) -> dict[str, torch.Tensor]:
    return {name: tensor_of(array, name) for name, array in inputs.items()}
