"""What a host offers: the framework's own representation of a model, which stays the truth.

Hosts are values: every edit returns a new one and leaves the old one as it is; weights are shared until they are cut.
A host that can only be analysed and cut is a :class:`Model`; one that runs is :class:`Runnable`, one whose weights can
be refitted :class:`Refittable`. A :class:`Host` is what a whole compilation asks for; some have gradients as well
(:class:`graphprune.importance.differentiable.Differentiable`). Functions name the least that they need.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from graphprune.hosts.edits import Edits
from graphprune.hosts.recurrent import Recurrent
from graphprune.hosts.windows import Window
from graphprune.ir.graph import Graph

if TYPE_CHECKING:
    from graphprune.analysis.branch import Block
    from graphprune.analysis.groups import Analysis
    from graphprune.ir.dims import Factor, Index

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Masks = Mapping[str, Mapping[int, NDArray[np.bool_]]]
"""For some values and axes, which positions are kept."""


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
PartialRun: TypeAlias = Callable[[Carried], tuple[dict[str, Any], dict[str, Array]]]
"""Runs part of a graph: from values to those that later parts need, and the outputs (:meth:`Runnable.partial_run`)."""


class Model(Protocol):
    """A model that can be analysed, edited and saved."""

    @property
    def kind(self) -> str:
        """``onnx`` or ``torch``; what a plug-in calls its own."""

    @property
    def exports(self) -> bool:
        """Whether an ONNX file is made by a compiler of the framework, not by writing the model as it is."""

    @property
    def metadata(self) -> Mapping[str, str] | None:
        """What the file says of the model, by key (``metadata_props``); ``None`` where there is no file."""

    @property
    def keeps_code(self) -> bool:
        """Whether the user's own code is to run on the smaller tensors, which takes even splits for granted."""

    @property
    def made_by_code(self) -> frozenset[str]:
        """Names of stored tensors that the user's code makes when it runs, of the size that it was written for."""

    @property
    def adjusted(self) -> Mapping[str, frozenset[str]]:
        """Stored tensors to which a cut may give other values than those that stay, so that weights which are computed
        of them stay what they were, and the stored tensors that they follow.
        """

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

    def stamp(self) -> Hashable:
        """What is another one once a stored tensor has been written to in a way that can be noticed; takes no time."""

    def edited(self, edits: Edits) -> Self:
        """A copy with the edits made."""

    def folded(self) -> Self:
        """A copy in which what does not depend on inputs or weights is computed (shape arithmetic, tables)."""

    def without_dead_nodes(self) -> Self:
        """A copy without nodes and stored tensors that no output needs."""

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


class Runnable(Model, Protocol):
    """A model that runs on inputs: as a whole, with units masked, and part by part."""

    def example_inputs(self, seed: int = 0) -> dict[str, Array]:
        """Inputs to try the model on: the user's example, or random ones that fit."""

    @property
    def given_example(self) -> bool:
        """Whether ``example_inputs(0)`` is a call that the user gave, not one that was made up."""

    @property
    def pinned(self) -> tuple[str, ...]:
        """Names of the inputs that must have the example's values, since sizes or branches were taken from them."""

    @property
    def drawing(self) -> tuple[str, ...]:
        """The operators that draw random numbers which no other runtime draws alike."""

    def at_other_sizes(self) -> Self | None:
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

    def partial_run(
        self, have: Collection[str] | None, outputs: Sequence[str], later: Sequence[str] = ()
    ) -> PartialRun:
        """A runner of part of the graph, for going through a model step by step.

        Args:
            have: The keys of what the runner will be given, which is what a runner before it has returned; ``None``:
                the model's inputs.
            outputs: Values that are wanted, by name, as NumPy arrays.
            later: Values that later runners will be asked for.

        Raises:
            ModelError: The part cannot be run.
        """

    def gated(self, gates: Sequence[Gate]) -> Gated:
        """A runner of the model with gates; those that are not given are one."""


class Refittable(Model, Protocol):
    """A model whose weights can get other values, and that says what its weighted sums see."""

    def window(self, node: str) -> Window | None:
        """What a convolution sees, also a transposed one; ``None`` for any other node."""

    def recurrent(self, node: str) -> Recurrent | str | None:
        """The cells of a recurrent layer; why they cannot be refitted; ``None`` for any other node."""

    def scales(self, node: str) -> tuple[float, float]:
        """What a node multiplies its product of two operands by, and what its bias: ``alpha`` and ``beta``."""

    def replaced(self, tensors: Arrays) -> Self:
        """A copy in which stored tensors have other values; shapes and types stay."""

    def biased(self, biases: Mapping[str, int | None]) -> Self:
        """A copy in which the results of some nodes get a bias of zeros.

        Args:
            biases: For a node, the axis of its result along which the bias lies; ``None``: one number for all of it.
                The bias is a new stored tensor.
        """


class Host(Runnable, Refittable, Protocol):
    """A model that can be analysed, edited, run, refitted and saved."""


@dataclass(frozen=True)
class StandIn:
    """A small model that runs in the place of one that does not, and what the same plan makes of it.

    Attributes:
        original: The small model.
        pruned: What the plan leaves of it.
        analysis: The analysis of ``original``.
        kept: Its kept units.
        removed: The blocks of it that go.
        what: What it is, for the reader: ``a twin of hidden_size 64``.
    """

    original: Host
    pruned: Host
    analysis: Analysis
    kept: Mapping[Factor, Index]
    removed: tuple[Block, ...]
    what: str


@runtime_checkable
class Represented(Protocol):
    """A model that does not run, and that another one stands in for."""

    def stand_in(self, state: Any) -> StandIn:
        """What stands in for it, for the plan of a state (:class:`graphprune.pipeline.state.State`).

        Raises:
            ProofError: There is none.
        """


@runtime_checkable
class Mapped(Protocol):
    """A model whose weights lie in mapped files."""

    def mapped(self, tensor: str) -> Array:
        """The values of a stored tensor where they lie, none of which is read yet; bfloat16 as of ml_dtypes."""


AnyModel = TypeVar("AnyModel", bound=Model)
"""A host of some kind: what is made of it is of that kind."""
AnyRefittable = TypeVar("AnyRefittable", bound=Refittable)
"""A host whose weights can be replaced: what is made of it is of that kind."""


def bias_shape(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """The shape in which a bias along an axis is added to a value; without an axis it is one number."""
    return (1,) * min(1, len(shape)) if axis is None else (shape[axis], *[1] * (len(shape) - 1 - axis))
