"""An ONNX model as a PyTorch module that can be trained: its weights are parameters, under the names that they have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import quote, unquote

import onnx
import torch
from numpy.typing import NDArray
from onnx.inliner import inline_local_functions
from torch import nn

from graphprune.errors import ModelError
from graphprune.executor.program import Program, Reads, Step, program_of
from graphprune.executor.tensors import array_of, tensor_of
from graphprune.hosts.messages import DEFAULT

_MOST_FOLDED = 1 << 20
"""Elements of the largest constant that is computed once."""


def key_of(name: str) -> str:
    """The name of a stored tensor as an attribute of a module can be called; :func:`name_of` gives it back."""
    key = quote(name, safe="/:@ ").replace(".", "%2E")
    return f"%{ord(key[0]):02X}{key[1:]}" if key and hasattr(nn.Module(), key) else key or "%"


@cache
def name_of(key: str) -> str:
    """The name of a stored tensor, from what :func:`key_of` made of it."""
    return "" if key == "%" else unquote(key)


class OnnxModule(nn.Module):
    """A model in ONNX's operators, run by PyTorch.

    Parameters (in ``weights``) are the stored tensors of floating-point numbers, buffers (in ``constants``) all others,
    and the statistics of batch normalisations, which have no gradients. Single numbers are parameters without
    gradients unless an operator reads them as a weight or a bias: they are bounds, exponents, scales, and the small
    numbers of normalisations, which a step of an optimiser would make negative. All keep the element types of the file.

    Args:
        model: The model; a function of its own is inlined.
        tensors: Values of stored tensors that are not in the message.

    Raises:
        ModelError: Some operators cannot be run with gradients; it names all of them.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Mapping[str, NDArray[Any]] | None = None) -> None:
        super().__init__()
        if model.functions:
            model = inline_local_functions(model)
        opsets = {"" if entry.domain in DEFAULT else entry.domain: entry.version for entry in model.opset_import}
        self.program = program_of(model.graph, opsets)
        self.weights, self.constants = nn.Module(), nn.Module()
        given = tensors or {}
        statistics, weights = _statistics(self.program), _read_as_weights(self.program)
        for entry in model.graph.initializer:
            array = given[entry.name] if entry.name in given else onnx.numpy_helper.to_array(entry)
            tensor = tensor_of(array, entry.name)
            if tensor.dtype.is_floating_point and entry.name not in statistics:
                moves = tensor.numel() > 1 or entry.name in weights
                self.weights.register_parameter(key_of(entry.name), nn.Parameter(tensor, requires_grad=moves))
            else:
                self.constants.register_buffer(key_of(entry.name), tensor)
        stored = {entry.name for entry in model.graph.initializer}
        self.input_names = tuple(value.name for value in model.graph.input if value.name not in stored)
        self.output_names = tuple(value.name for value in model.graph.output)
        self._folded: dict[str, str] = {}
        self._programs: dict[tuple[str, ...], Program] = {}
        self._fold()

    def _fold(self) -> None:
        """Computes once what depends on no input and no weight."""
        known: dict[str, Any] = {name: each for name, each in self.named_stored() if not isinstance(each, nn.Parameter)}
        steps: list[Step] = []
        with torch.no_grad():
            for step in self.program.steps:
                if step.bodies or any(name not in known for name in step.reads):
                    steps.append(step)
                    continue
                found = dict(zip(step.results, step.run(known, {}), strict=False))
                if all(isinstance(each, torch.Tensor) and each.numel() <= _MOST_FOLDED for each in found.values()):
                    known.update(found)
                else:
                    steps.append(step)
        used = {name for step in steps for name in step.reads} | set(self.output_names)
        own = {name for name, _ in self.named_stored()}
        for name in known:
            if name in used and name not in own:
                self._folded[name] = f"folded_{len(self._folded)}"
                self.register_buffer(self._folded[name], known[name].contiguous(), persistent=False)
        self.program = Program(tuple(steps), self.program.inputs, self.program.outputs)

    def named_stored(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The stored tensors of the file by the names that they have there."""
        yield from self.named_weights()
        yield from ((name_of(key), tensor) for key, tensor in self.constants.named_buffers())

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters by the names that the stored tensors have in the file."""
        yield from ((name_of(key), weight) for key, weight in self.weights.named_parameters())

    def stored(self) -> dict[str, NDArray[Any]]:
        """The parameters as arrays of the file's types, by name: for ``OnnxHost.replaced``."""
        return {name: array_of(weight) for name, weight in self.named_weights()}

    def forward(
        self,
        inputs: Mapping[str, torch.Tensor],
        wanted: Sequence[str] | None = None,
        reads: Reads | None = None,
        replaced: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Runs the model.

        Args:
            inputs: By name.
            wanted: Names of values that are wanted, also of such on the way; ``None``: the outputs.
            reads: What some nodes read instead of a value, by the names of both: functions of it.
            replaced: Other values of stored tensors, in this run.

        Returns:
            What is wanted, by name, in order.

        Raises:
            ModelError: An input is missing, or a node has no exact counterpart for these operands.
        """
        missing = [name for name in self.input_names if name not in inputs]
        if missing:
            raise ModelError(
                f"the model got no input '{missing[0]}'; expected {', '.join(map(repr, self.input_names))}"
            )
        names = tuple(self.output_names if wanted is None else wanted)
        if names not in self._programs:
            known = {*self._folded, *self.input_names, *(name for step in self.program.steps for name in step.results)}
            unknown = [name for name in names if name not in known and name not in dict(self.named_stored())]
            if unknown:
                raise ModelError(f"the model has no value '{unknown[0]}'; ask for names of values of its graph")
            self._programs[names] = self.program.needed(names)
        values: dict[str, Any] = {name: getattr(self, key) for name, key in self._folded.items()}
        values.update(self.named_stored())
        values.update(replaced or {})
        values.update(inputs)
        found = self._programs[names].run(values, names, reads)
        return dict(found)


_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "com.microsoft::FusedConv", "com.microsoft::FusedMatMul")
_WEIGHTS: Mapping[str, range] = {
    **dict.fromkeys(_PRODUCTS, range(3)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), range(8)),
    **dict.fromkeys(("PRelu", "RMSNormalization", "SimplifiedLayerNormalization"), range(2)),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "LayerNormalization"), range(3)),
    "GroupNormalization": range(3),
}
"""Operators that read weights, whatever their size, and where."""


def _read_as_weights(program: Program) -> set[str]:
    """What operators read as weights, and what is added to a product, as biases are."""
    found, products = set[str](), set[str]()
    for step in program.steps:
        found.update(step.operands[i] for i in _WEIGHTS.get(step.op, ()) if i < len(step.operands))
        if step.op == "Add" and not products.isdisjoint(step.operands):
            found.update(step.operands)
        if step.op in _PRODUCTS:
            products.update(step.results)
        for body in step.bodies.values():
            found |= _read_as_weights(body)
    return found


def _statistics(program: Program) -> set[str]:
    """The operands of batch normalisations that hold means and variances."""
    found = {name for step in program.steps if step.op == "BatchNormalization" for name in step.operands[3:5]}
    for step in program.steps:
        for body in step.bodies.values():
            found |= _statistics(body)
    return found
