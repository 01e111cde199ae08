"""The editor interface of a host, the framework's own representation of a model, which stays the truth.

Hosts (``graphprune.hosts``) are values: every edit returns a new host and leaves the old one as it is; weights are
shared until they are cut. Edits are data (:class:`Edits`), so that they can be printed, tested and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from graphprune.brief import brief
from graphprune.ir.dims import Index
from graphprune.ir.graph import Graph
from graphprune.pipeline.recurrent import Recurrent

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Masks = Mapping[str, Mapping[int, NDArray[np.bool_]]]
"""For some values and axes, which positions are kept."""


@dataclass(frozen=True, slots=True)
class SizeEdit:
    """Writes ``new`` into an attribute (or into element ``index`` of one) of a node, where ``old`` stood."""

    node: str
    attribute: str
    index: int | None
    old: int
    new: int

    def __str__(self) -> str:
        index = "" if self.index is None else f"[{self.index}]"
        return f"set {self.node}.{self.attribute}{index} = {self.new} (was {self.old})"


@dataclass(frozen=True, slots=True)
class PinEdit:
    """Makes the value of an attribute explicit that the operator would otherwise derive from a size."""

    node: str
    attribute: str
    value: float

    def __str__(self) -> str:
        return f"pin {self.node}.{self.attribute} = {self.value!r}"


@dataclass(frozen=True, slots=True)
class Edits:
    """All that must change in a host for some units to go (or to change places).

    Attributes:
        slices: For each stored tensor and axis, the positions to take, in order.
        sizes: Attributes to rewrite.
        pins: Attributes to make explicit.
        shapes: The new shape of every value whose shape changes.
        bypasses: Values that give their place to another one, by the value that takes it in all their uses.
        renumbered: For each stored tensor whose elements are positions of a cut axis: the new position of each old
            one, -1 where it is gone (no element that stays is one of those).
        others: What must change where the same model is run in other ways, in the order of ``Graph.others``.
    """

    __repr__ = brief

    slices: Mapping[str, Mapping[int, Index]] = field(default_factory=dict)
    sizes: tuple[SizeEdit, ...] = ()
    pins: tuple[PinEdit, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bypasses: Mapping[str, str] = field(default_factory=dict)
    renumbered: Mapping[str, Index] = field(default_factory=dict)
    others: tuple[Edits, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"take {tensor} axis {axis}: {np.array2string(index, threshold=12, separator=', ')}"
            for tensor, axes in self.slices.items()
            for axis, index in axes.items()
        ]
        lines.extend(f"number {tensor} anew" for tensor in self.renumbered)
        bypassed = [f"put {new} for {old}" for old, new in self.bypasses.items()]
        return "\n".join([*lines, *map(str, self.sizes), *map(str, self.pins), *bypassed])


@dataclass(frozen=True, slots=True)
class Window:
    """What a convolution sees at each position of its result, by spatial axis.

    A transposed convolution is one, too: its input with zeros between the elements, padded (or cropped: a negative
    pad), seen through a kernel that is turned back to front.

    Attributes:
        kernel: Sizes of the kernel.
        strides: Steps from one position of the result to the next.
        dilations: Steps from one element of the kernel to the next.
        pads: Zeros before and after the input.
        spread: Of a transposed convolution: its stride, by which the elements of the input are set apart; else empty.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    spread: tuple[int, ...] = ()

    def places(self, shape: tuple[int, ...]) -> int:
        """How many positions the result has for an input of a shape, ``n c *sizes`` or ``c *sizes``, all batches."""
        n = len(self.kernel)
        found = shape[0] if len(shape) == n + 2 else 1
        for axis, size in enumerate(shape[-n:]):
            set_apart = (size - 1) * self.spread[axis] + 1 if self.spread else size
            extent = self.dilations[axis] * (self.kernel[axis] - 1)
            found *= (set_apart + sum(self.pads[axis]) - extent - 1) // self.strides[axis] + 1
        return int(found)

    def view(self, x: Array) -> Array:
        """A view ``[n, c, *positions, *kernel]`` of an input ``[n, c, *sizes]``, padded with zeros."""
        n = len(self.kernel)
        if x.ndim == n + 1:
            x = x[None]
        if self.spread:
            apart = tuple((size - 1) * step + 1 for size, step in zip(x.shape[2:], self.spread, strict=True))
            wide = np.zeros((*x.shape[:2], *apart), x.dtype)
            wide[(slice(None), slice(None), *(slice(None, None, step) for step in self.spread))] = x
            cropped = (slice(max(0, -a), size - max(0, -b)) for (a, b), size in zip(self.pads, apart, strict=True))
            x = wide[(slice(None), slice(None), *cropped)]
        pads = tuple((max(0, before), max(0, after)) for before, after in self.pads)
        if any(before or after for before, after in pads):
            x = np.pad(x, ((0, 0), (0, 0), *pads))
        extent = tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        seen: Any = sliding_window_view(x, extent, axis=tuple(range(2, 2 + n)))
        steps = [slice(None, None, each) for each in (*self.strides, *self.dilations)]
        view: Array = seen[(slice(None), slice(None), *steps)]
        return view


def transposed(
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
    more: Sequence[int],
) -> Window:
    """The window of a transposed convolution.

    Args:
        kernel: Sizes of the kernel.
        strides: How far neighbours in the input lie apart in the result.
        dilations: Steps from one element of the kernel to the next.
        pads: What is cut off the result before and after.
        more: What is added to the result at its end (``output_padding``).
    """
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    around = tuple((r - a, r - b + end) for r, (a, b), end in zip(reach, pads, more, strict=True))
    return Window(tuple(kernel), (1,) * len(reach), tuple(dilations), around, tuple(strides))


def bias_shape(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """The shape in which a bias along an axis is added to a value; without an axis it is one number."""
    return (1,) * min(1, len(shape)) if axis is None else (shape[axis], *[1] * (len(shape) - 1 - axis))


@dataclass(frozen=True, slots=True)
class Gate:
    """A factor on what one node reads of a value, along one axis; one for each position."""

    node: str
    value: str
    axis: int


Gated: TypeAlias = Callable[[Arrays, Mapping[Gate, Array]], dict[str, Array]]
"""Runs a model with gates: from inputs and factors to outputs."""

Carried: TypeAlias = Mapping[str, Any]
"""Values on their way through a model, in the host's own form."""
Stretch: TypeAlias = Callable[[Carried], tuple[dict[str, Any], dict[str, Array]]]
"""Runs part of a graph: from values to those that later parts need, and the outputs; see :meth:`Host.stretch`."""


class Host(Protocol):
    """A model that can be analysed, edited, run and saved."""

    @property
    def kind(self) -> str:
        """``onnx`` or ``torch``."""

    @property
    def keeps_code(self) -> bool:
        """Whether the user's own code is to run on the smaller tensors, which takes even splits for granted."""

    @property
    def made_by_code(self) -> frozenset[str]:
        """Names of stored tensors that the user's code makes when it runs, of the size that it was written for."""

    def graph(self) -> Graph:
        """The graph that the analysis reads. Cheap: names, shapes and rules, no weight."""

    def read(self, tensor: str) -> Array:
        """The values of a stored tensor; bfloat16 and 8-bit floats come as float32."""

    def digest(self, tensor: str) -> str:
        """The digest of a stored tensor as it is stored; see :func:`graphprune.arrays.digest_of`."""

    def model_digest(self) -> str:
        """The digest of all that decides what the model computes: operators, attributes, connections and the values of
        every stored tensor as they are at the moment. Names and texts that only describe the model do not count.
        """

    def edited(self, edits: Edits) -> Host:
        """A copy with the edits made."""

    def folded(self) -> Host:
        """A copy in which what does not depend on inputs or weights is computed (shape arithmetic, tables)."""

    def without_dead_nodes(self) -> Host:
        """A copy without nodes and stored tensors that no output needs."""

    def example_inputs(self, seed: int = 0) -> dict[str, Array]:
        """Inputs to try the model on: the user's example, or random ones that fit."""

    @property
    def adjusted(self) -> Mapping[str, frozenset[str]]:
        """Stored tensors to which a cut may give other values than those that stay, so that weights which are computed
        of them stay what they were, and the stored tensors that they follow.
        """

    @property
    def pinned(self) -> tuple[str, ...]:
        """Names of the inputs that must have the example's values, since sizes or branches were taken from them."""

    def at_other_sizes(self) -> Host | None:
        """The same model with other example sizes along its dynamic axes, if there are any and it takes them."""

    def run(self, inputs: Arrays, *, double: bool = False) -> dict[str, Array]:
        """Runs the model; outputs by name, in order.

        Args:
            inputs: By name.
            double: Run everything in float64, which tells rounding from errors; slow.

        Raises:
            ModelError: The model cannot be run (in float64).
        """

    def run_masked(self, inputs: Arrays, masks: Masks, *, double: bool = False) -> dict[str, Array]:
        """Runs the model with the removed units zeroed after every node, and normalizers counting only kept units.

        Args:
            inputs: As for :meth:`run`.
            masks: For values of :meth:`graph` and their axes, which positions are kept. Values that are not named
                are whole. Stored tensors are masked as well.
            double: As for :meth:`run`.

        Raises:
            ProofError: A node normalizes over a masked axis and the host has no masked form of it.
        """

    def shown(
        self, inputs: Arrays, names: Sequence[str], masks: Masks | None = None, *, double: bool = False
    ) -> Iterator[tuple[str, Array]]:
        """A run that shows values on the way, one after the other: only what is being looked at is held.

        Args:
            inputs: As for :meth:`run`.
            names: Values of :meth:`graph` that are wanted, in any order; not those of branches that need not run.
            masks: As for :meth:`run_masked`.
            double: As for :meth:`run`.

        Yields:
            The values by name, and after them the outputs, as ``>name``, in order.

        Raises:
            ModelError: As for :meth:`run`.
            ProofError: As for :meth:`run_masked`.
        """

    def stretch(self, have: Collection[str] | None, outputs: Sequence[str], later: Sequence[str] = ()) -> Stretch:
        """A runner of part of the graph, for going through a model step by step.

        Args:
            have: The keys of what the runner will be given, which is what a runner before it has returned; ``None``:
                the model's inputs.
            outputs: Values that are wanted, by name, as NumPy arrays.
            later: Values that later runners will be asked for.

        Raises:
            ModelError: The stretch cannot be run.
        """

    def gated(self, gates: Sequence[Gate]) -> Gated:
        """A runner of the model with gates; those that are not given are one."""

    def window(self, node: str) -> Window | None:
        """What a convolution sees, also a transposed one; ``None`` for any other node."""

    def recurrent(self, node: str) -> Recurrent | str | None:
        """The cells of a recurrent layer; why they cannot be refitted; ``None`` for any other node."""

    def adds(self, node: str) -> bool:
        """Whether a node is the plain sum of its two operands."""

    def optional(self, node: str) -> bool:
        """Whether a node lies in a branch that need not run, so that nothing in it can be measured."""

    def scales(self, node: str) -> tuple[float, float]:
        """What a node multiplies its product of two operands by, and what its bias: ``alpha`` and ``beta``."""

    def replaced(self, tensors: Arrays) -> Host:
        """A copy in which stored tensors have other values; shapes and types stay."""

    def biased(self, biases: Mapping[str, int | None]) -> Host:
        """A copy in which the results of some nodes get a bias of zeros.

        Args:
            biases: For a node, the axis of its result along which the bias lies; ``None``: one number for all of it.
                The bias is a new stored tensor.
        """

    @property
    def source_costs(self) -> Mapping[str, float]:
        """What the file holds that the host was loaded from: ``params`` and ``bytes``; empty where the graph says."""

    def stored_costs(self, *, inner: bool = False) -> Mapping[str, float]:
        """What the host would be written as holds; empty where the graph says.

        Args:
            inner: Count only what lies in bodies of operators, which the graph does not show.
        """

    def save_onnx(self, path: Path, metadata: Mapping[str, str] | None = None, *, beside: bool = False) -> None:
        """Writes a checked ONNX file, whole or not at all, with external data beside it above 2 GB.

        Args:
            path: The file.
            metadata: Entries for the model's ``metadata_props``.
            beside: Whether weights lie beside it whatever their size: then no copy of them is made.

        Raises:
            OutputError: It cannot be written.
        """
