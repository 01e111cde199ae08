"""What a row of the executor's table is given: the operands and attributes of one node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import torch

Value: TypeAlias = Any
"""A tensor; a tuple of them, for what ONNX calls a sequence; ``None`` for what is absent."""
Body: TypeAlias = Callable[..., tuple[Value, ...]]
"""Runs a subgraph: from the values of its inputs to those of its outputs."""


class RefusedError(Exception):
    """A use of an operator that has no exact counterpart; the reason is what a user reads."""


@dataclass(frozen=True, slots=True)
class Call:
    """One node that is about to be run.

    Attributes:
        op: The operator, with its domain as in the table.
        operands: Absent ones are ``None``.
        attributes: As Python values.
        opset: Of the operator's domain.
        n_results: How many results the node has.
        bodies: Runners of its subgraphs, by attribute.
    """

    op: str
    operands: Sequence[Value]
    attributes: Mapping[str, Any]
    opset: int
    n_results: int = 1
    bodies: Mapping[str, Body] = field(default_factory=dict)

    @property
    def x(self) -> torch.Tensor:
        """The first operand."""
        return self.need(0)

    def at(self, i: int) -> Value:
        """An operand that may be absent."""
        return self.operands[i] if i < len(self.operands) else None

    def need(self, i: int) -> torch.Tensor:
        """An operand that must be there.

        Raises:
            RefusedError: It is absent.
        """
        found = self.at(i)
        if found is None:
            raise RefusedError(f"operand {i} is absent")
        assert isinstance(found, torch.Tensor)
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def numbers(self, name: str, operand: int) -> list[Any] | None:
        """Numbers that are an attribute in old opsets and an operand in new ones; ``None`` where they are absent."""
        if (given := self.get(name)) is not None:
            return list(given) if isinstance(given, tuple) else [given]
        found = self.at(operand)
        return None if found is None else listed(found)

    def axis(self, default: int = 0) -> int:
        """The attribute ``axis``, counted from the front."""
        found: int = self.get("axis", default)
        return found + self.x.ndim if found < 0 else found


def listed(tensor: torch.Tensor) -> list[Any]:
    """The values of a small tensor, as Python numbers."""
    return list(tensor.detach().reshape(-1).tolist())


def size_to(shape: Sequence[int], axis: int) -> tuple[int, int]:
    """How many elements there are before an axis, and from it on."""
    return prod(shape[:axis]), prod(shape[axis:])


def positive(indices: torch.Tensor, size: int) -> torch.Tensor:
    """Indices of which negative ones count from the end, as int64 from the front."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def along(tensor: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    """A vector in the shape in which it is broadcast along an axis."""
    shape = [1] * rank
    shape[axis] = -1
    return tensor.reshape(shape)
