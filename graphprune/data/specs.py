"""What a model takes: the name, shape and type of each input, and which of them hold samples along axis 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import OptionError
from graphprune.ir.graph import Graph

Array = NDArray[Any]


class Model(Protocol):
    """What calibration needs to know of a host."""

    def graph(self) -> Graph:
        """The graph, whose values say which axes are dynamic."""

    def example_inputs(self, seed: int = 0) -> dict[str, Array]:
        """Inputs that fit the model, by name."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the model."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Its name.
        shape: Its shape in the example.
        dtype: Its element type.
        dynamic: Axes that may have any size.
        batched: Whether axis 0 counts samples. Other inputs (a scalar, a table) are the same for every batch.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dynamic: frozenset[int]
    batched: bool

    def __str__(self) -> str:
        return f"'{self.name}' ({self.dtype} {written(self.shape)})"

    def accepts(self, sample: tuple[int, ...]) -> bool:
        """Whether samples may have this shape (without axis 0)."""
        want = self.shape[1:]
        return len(want) == len(sample) and all(
            w == s or axis in self.dynamic for axis, (w, s) in enumerate(zip(want, sample, strict=True), start=1)
        )


def written(shape: tuple[int, ...]) -> str:
    """A shape as text: ``3x224x224``."""
    return "x".join(map(str, shape)) or "scalar"


def specs_of(host: Model) -> tuple[InputSpec, ...]:
    """The inputs of a model, in order.

    Samples lie along axis 0 of the first input with axes (of the first with a dynamic axis 0 where there is one) and of
    all that are alike in this.
    """
    values = host.graph().values
    example = host.example_inputs()
    dynamic = {name: values[name].dynamic if name in values else frozenset[int]() for name in example}
    if getattr(host, "takes_one", False):  # sample, whatever the axis says
        dynamic = {name: axes - {0} for name, axes in dynamic.items()}
    ranked = [name for name, array in example.items() if array.ndim]
    leading = [name for name in ranked if 0 in dynamic[name]] or ranked
    size = example[leading[0]].shape[0] if leading else 0
    return tuple(
        InputSpec(
            name, array.shape, array.dtype, dynamic[name], name in leading and bool(array.ndim) and len(array) == size
        )
        for name, array in example.items()
    )


def batch_of(specs: tuple[InputSpec, ...], batch_size: int | None, default: int) -> tuple[int, bool]:
    """How many samples a batch has, and whether it may have fewer.

    Raises:
        OptionError: The model has no input with samples, or takes batches of another size.
    """
    batched = [spec for spec in specs if spec.batched]
    if not batched:
        raise OptionError("the model has no input with an axis of samples; calibration data cannot be fed to it")
    require_batch_size(batch_size)
    if all(0 in spec.dynamic for spec in batched):
        return batch_size or default, True
    fixed = batched[0].shape[0]
    if batch_size not in (None, fixed):
        raise OptionError(
            f"input '{batched[0].name}' takes batches of {fixed} samples, got a batch size of {batch_size}; leave the "
            "batch size out, or make the model's first axis dynamic"
        )
    return fixed, False


def converted(array: Array, spec: InputSpec, where: str) -> Array:
    """An array as the element type that an input has.

    Raises:
        OptionError: That would lose something, or the array holds NaN.
    """
    have, want = array.dtype, spec.dtype
    if want.kind == "f" and have.kind in "fiub":
        array = array.astype(want, copy=False)
        if np.isnan(array).any():
            raise OptionError(f"{where} holds NaN for input '{spec.name}'; remove the samples with NaN")
        return array
    if have == want:
        return array
    if want.kind in "iub" and have.kind in "iub":
        cast = array.astype(want)
        if np.array_equal(cast, array):
            return cast
        raise OptionError(
            f"{where} holds values from {array.min()} to {array.max()} for input '{spec.name}', which is of type "
            f"{want}; give values that fit"
        )
    if "V" not in (have.kind, want.kind) and want.kind not in "fiubOUS":
        return array.astype(want)  # bfloat16 and the like, which NumPy knows by extension types
    raise OptionError(f"{where} has type {have} for input '{spec.name}', which is of type {want}; convert the data")


def joined(array: Array, spec: InputSpec, where: str) -> Array:
    """Samples of an input along axis 0, checked against the model's shape; values are not touched.

    An array with one axis more than the input holds batches, which are joined.

    Raises:
        OptionError: The shape does not fit.
    """
    if array.ndim == len(spec.shape) + 1 and array.shape[1] == spec.shape[0] and spec.accepts(array.shape[2:]):
        return array.reshape(-1, *array.shape[2:])
    if array.ndim == 0 or not spec.accepts(array.shape[1:]):
        got = f"samples of shape {written(array.shape[1:])}" if array.ndim else "a scalar"
        advice = f", or give the shape that it has (--shape {spec.name}=...)" if spec.dynamic else ""
        raise OptionError(
            f"{where} gives input '{spec.name}' {got}, the model takes {written(spec.shape[1:])}; "
            f"reshape the data{advice}"
        )
    return array


def constant(array: Array, spec: InputSpec, where: str) -> Array:
    """The value of an input that has no samples: the same for every batch.

    Raises:
        OptionError: Shape or type do not fit.
    """
    if array.ndim != len(spec.shape) or any(
        have != want and axis not in spec.dynamic
        for axis, (have, want) in enumerate(zip(array.shape, spec.shape, strict=True))
    ):
        raise OptionError(
            f"{where} gives input '{spec.name}' the shape {written(array.shape)}, the model takes "
            f"{written(spec.shape)}; this input is the same for every batch"
        )
    return converted(array, spec, where)


def require_batch_size(batch_size: int | None) -> None:
    """Refuses a size that no batch has.

    Raises:
        OptionError: It is below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"a batch cannot have {batch_size} samples; give a batch size of 1 or more")
