"""What the ONNX frontend is told by the host: shapes, types and small values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.brief import brief
from graphprune.hosts.host import Array

JOIN_DOMAIN, JOIN = "graphprune", "Join"
"""What stands for an ``If`` whose branches were laid flat: ``condition, then results, else results -> results``."""

_UNCUTTABLE = {
    "FLOAT8E4M3FNUZ": "is an FNUZ 8-bit float",
    "FLOAT8E5M2FNUZ": "is an FNUZ 8-bit float",
    "STRING": "holds strings",
}


@dataclass(frozen=True, slots=True)
class Partial:
    """A small tensor of which some elements are known.

    Attributes:
        values: The values in the example.
        known: For each element, whether it has that value for every input.
    """

    values: Array
    known: NDArray[np.bool_]

    @property
    def constant(self) -> bool:
        """Whether all elements are known."""
        return bool(self.known.all())

    def elements(self) -> tuple[int | None, ...]:
        """The integers, flattened; ``None`` where an element is only known at run time."""
        flat, known = self.values.ravel(), self.known.ravel()
        return tuple(int(value) if sure else None for value, sure in zip(flat, known, strict=True))


def known(values: Array) -> Partial:
    """A tensor of which everything is known."""
    return Partial(values, np.ones(values.shape, dtype=np.bool_))


@dataclass(frozen=True, slots=True)
class Inferred:
    """What is known about the values of a model.

    Attributes:
        shapes: By value; values that are no tensors, or whose shape depends on data, are absent.
        types: Element types (of ``onnx.TensorProto``).
        dynamic: Axes whose size is not known before run time.
        values: Small tensors of shape arithmetic.
        sized: By value, the axes whose size is read at run time and computed with.
    """

    __repr__ = brief

    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]
    dynamic: Mapping[str, frozenset[int]]
    values: Mapping[str, Partial]
    sized: Mapping[str, frozenset[int]] = field(default_factory=dict)


def uncuttable(data_type: int) -> str | None:
    """Why tensors of an element type are never cut, or ``None``."""
    dtype = ir.DataType(data_type)
    if dtype.bitwidth < 8 and dtype != ir.DataType.BOOL:
        return "packs several elements into one byte"
    return _UNCUTTABLE.get(dtype.name)


def counts(dtype: ir.DataType, rank: int) -> bool:
    """Whether elements of a stored tensor are parameters: floating-point numbers, and quantised weights.

    A vector of 8-bit integers holds zero points.
    """
    return dtype.is_floating_point() or (dtype in (ir.DataType.INT8, ir.DataType.UINT8) and rank > 1)


def no_tensors(graph: onnx.GraphProto) -> frozenset[str]:
    """Outputs that are declared as something else than a tensor: sequences, maps, optional values."""
    kinds = ("sequence_type", "map_type", "optional_type", "sparse_tensor_type")
    return frozenset(value.name for value in graph.output if any(value.type.HasField(kind) for kind in kinds))
