"""The host of an ONNX file: a weightless graph that is edited, and weights that stay where they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx

from graphprune.brief import brief
from graphprune.errors import ModelError
from graphprune.hosts.cuts import Cuts, joined, left_of
from graphprune.hosts.edits import Edits
from graphprune.hosts.host import Array, Arrays, Gate, Gated, Masks, PartialRun
from graphprune.hosts.onnx import gates as onnx_gates
from graphprune.hosts.onnx import steps as onnx_steps
from graphprune.hosts.onnx.branches import decided, flat
from graphprune.hosts.onnx.caches import sized
from graphprune.hosts.onnx.cells import cells
from graphprune.hosts.onnx.copies import Uses, merged, merged_names
from graphprune.hosts.onnx.decoding import Decoding
from graphprune.hosts.onnx.demand import require_affordable
from graphprune.hosts.onnx.double import run_double
from graphprune.hosts.onnx.draws import drawing, draws
from graphprune.hosts.onnx.edit import apply_edits
from graphprune.hosts.onnx.fold import fold
from graphprune.hosts.onnx.graph import build_graph
from graphprune.hosts.onnx.held import what_is_held
from graphprune.hosts.onnx.load import load_model
from graphprune.hosts.onnx.look import Known, look, tensors_of
from graphprune.hosts.onnx.masked import mask_stored, masked_model
from graphprune.hosts.onnx.ops.values import Inferred
from graphprune.hosts.onnx.reading import Reading
from graphprune.hosts.onnx.runtime import random_inputs, session_of
from graphprune.hosts.onnx.save import save, with_defaults
from graphprune.hosts.onnx.shapes import other_sizes, unfit
from graphprune.hosts.onnx.sizes import left_open
from graphprune.hosts.onnx.store import Store, n_bytes
from graphprune.hosts.onnx.surgery import Surgery
from graphprune.hosts.onnx.titles import titled
from graphprune.hosts.onnx.trace import traced
from graphprune.hosts.recurrent import Recurrent
from graphprune.hosts.trying import Asked, Trial
from graphprune.hosts.windows import Window
from graphprune.ir.graph import Graph
from graphprune.runtime.sessions import run_session

if TYPE_CHECKING:
    import onnxruntime as ort

MAXIMUM_FOLDS = 4
"""How often folding is repeated where a folded shape may let more shapes be inferred."""


@dataclass(frozen=True)
class OnnxHost(Reading, Decoding):
    """An ONNX model as a value: every edit returns a new one, and no weight is copied before it is run or saved.

    Attributes:
        proto: The graph, weightless: large tensors are headers.
        store: Where the data of the headers is, and what of it is taken.
        bound: The shapes of the inputs that the analysis and the examples use.
        sources: Data files that weights are mapped from.
        original: The weightless model as loaded.
        given: Inputs that the user gives; the others are random.
        assumed: The declared sizes of the inputs whose dynamic axes the user gave no sizes for.
        defaults: Inputs with a default, which the analysis takes for weights. Those that are neither cut nor folded
            are inputs again in what is saved; the others are constants from then on.
        uses: The tensors that the file stores once for several uses, and their copies.
        held: What the file holds that was loaded, by metric; ``None`` for a model that has been edited.
        size_sources: For each axis of an input where its size in ``bound`` comes from.
        cuts: What is left of inputs and outputs that have become smaller. Runs take the original's inputs, too.
        file: That it was loaded from.
        known: What is known of the same graph already.
    """

    __repr__ = brief

    proto: onnx.ModelProto
    store: Store
    bound: Mapping[str, tuple[int, ...]]
    sources: frozenset[Path] = frozenset()
    original: onnx.ModelProto = field(default_factory=onnx.ModelProto, repr=False)
    given: Arrays = field(default_factory=dict, repr=False)
    defaults: tuple[onnx.ValueInfoProto, ...] = ()
    assumed: Mapping[str, tuple[int | str | None, ...]] = field(default_factory=dict, repr=False)
    uses: Uses = field(default_factory=dict, repr=False)
    held: Mapping[str, float] | None = field(default=None, repr=False)
    size_sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    cuts: Cuts = field(default_factory=dict, repr=False)
    file: Path | None = None
    known: Known | None = field(default=None, repr=False, compare=False)

    kind = "onnx"
    exports = keeps_code = False  # a file is all there is
    made_by_code = frozenset[str]()
    adjusted = MappingProxyType[str, frozenset[str]]({})
    pinned = ()  # a file computes its sizes from the inputs that it is given

    @staticmethod
    def load(
        source: str | Path | onnx.ModelProto,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        given: Arrays | None = None,
        named: Mapping[str, int] | None = None,
    ) -> OnnxHost:
        """Opens a model.

        Args:
            source: A ``.onnx`` file, or a model in memory.
            shapes: Shapes of inputs, where dynamic axes should not have the sizes that :func:`bind` assumes.
            given: Example inputs by name; those that are missing are random.
            named: Sizes of symbols in the shapes of inputs.

        Raises:
            ModelError: The model is malformed, unsafe or of an unsupported version.
            OptionError: ``shapes`` names an unknown input or does not fit, or ``named`` an unknown symbol.
        """
        loaded = load_model(source)
        proto, store = flat(loaded.proto), loaded.store
        for value in proto.graph.output:
            if value.name in loaded.foreign:
                value.type.CopyFrom(loaded.foreign[value.name])
        sizes = {**(shapes or {}), **{name: array.shape for name, array in (given or {}).items()}}
        proto, bound = sized(proto, sizes, given or (), named or {})
        assumed = left_open(proto, sizes)
        own = loaded.files, proto, given or {}, loaded.defaults, assumed, loaded.uses, loaded.held, bound.sources
        path = None if isinstance(source, onnx.ModelProto) else Path(source)
        return OnnxHost(proto, store, bound.shapes, *own, file=path)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's ``metadata_props``."""
        return {entry.key: entry.value for entry in self.proto.metadata_props}

    @cached_property
    def inferred(self) -> Inferred:
        """Shapes, types, dynamic axes and small values; the runtime and a trial run say what inference leaves open."""
        if (known := self._still_known) is not None:
            return known.inferred
        return look(self.proto, self.store, self.bound, self._inputs, lambda error: self._require_fit(error, None))

    @cached_property
    def _affordable(self) -> bool:
        """True, or the error of a model that takes too much memory; asked before anything runs."""
        require_affordable(self.proto, self.inferred.shapes, self.inferred.types, n_bytes(self.proto))
        return True

    @property
    def _still_known(self) -> Known | None:
        known = self.known
        return known if known is not None and known.proto is self.proto and known.bound is self.bound else None

    @cached_property
    def _graph(self) -> Graph:
        if (known := self._still_known) is not None and known.graph is not None:
            return known.graph
        graph = build_graph(self.proto, self.inferred, self.uses)
        return replace(titled(graph, self.size_sources, self.proto), carried=self.carried)

    def _require_fit(self, error: ModelError, inputs: Arrays | None) -> None:
        """Says of a run that failed at the example's sizes which of them were assumed, if any were."""
        given = {name: self.bound[name] if inputs is None else inputs[name].shape for name in self.assumed}
        if given and all(shape == self.bound[name] for name, shape in given.items()):
            raise ModelError(unfit(self.assumed, self.bound, error)) from error

    def graph(self) -> Graph:
        """The graph that the analysis reads."""
        return self._graph

    def edited(self, edits: Edits) -> OnnxHost:
        """A copy with the edits made."""
        proto, store = apply_edits(self.proto, self.store, edits, self.inferred)
        bound = {name: edits.shapes.get(name, shape) for name, shape in self.bound.items()}
        given = left_of(edits.interface, self.given)
        cuts = joined(self.cuts, edits.interface)
        return replace(self, proto=proto, store=store, bound=bound, given=given, cuts=cuts, held=None)

    def folded(self) -> OnnxHost:
        """A copy in which static shape arithmetic and small tables are constants; each time the same one."""
        return self._folded or self

    @cached_property
    def _folded(self) -> OnnxHost | None:
        """The folded model; ``None``: this one, to which it should not refer."""
        host = self
        for _ in range(MAXIMUM_FOLDS):
            chosen = decided(host.proto, host.inferred.values)
            if chosen is not None:
                host = host._with(Surgery(chosen).result(cleanup=True), host.store, None)
            folded = fold(host.proto, host.store, host.inferred, host.graph())
            if folded is None:
                if chosen is None:
                    break
                continue
            proto, constants = folded
            complete = host.inferred.shapes.keys() >= tensors_of(host.proto.graph)
            values = {**host.inferred.values, **constants}
            host = host._with(proto, host.store, replace(host.inferred, values=values) if complete else None)
            if complete:
                break
        return None if host is self else host

    def without_dead_nodes(self) -> OnnxHost:
        """A copy without nodes and stored tensors that no output needs; inputs and outputs stay."""
        proto = Surgery(self.proto).result(cleanup=True)
        names = {tensor.name for tensor in proto.graph.initializer}
        store = {name: stored for name, stored in self.store.items() if name in names}
        known = self._still_known
        return self._with(proto, store, vars(self).get("inferred", known and known.inferred))

    def _with(
        self, proto: onnx.ModelProto, store: Store, inferred: Inferred | None, graph: Graph | None = None
    ) -> OnnxHost:
        """A copy with another graph, of which something may be known already."""
        known = None if inferred is None else Known(proto, self.bound, inferred, graph)
        return replace(self, proto=proto, store=store, known=known)

    def example_inputs(self, seed: int = 0) -> dict[str, Array]:
        """What the user gave, and random inputs that fit the types and the assumed shapes."""
        return self._inputs(self.bound, seed)

    @property
    def given_example(self) -> bool:
        """Whether the user gave all inputs."""
        return all(self._fits(name, array) for name, array in random_inputs(self.proto, self.bound, 0).items())

    @property
    def drawing(self) -> tuple[str, ...]:
        """The operators that draw random numbers."""
        return tuple(dict.fromkeys(drawing(self.proto.graph)))

    def at_other_sizes(self) -> OnnxHost | None:
        """The model with other sizes along the dynamic axes, if there are any and it takes them."""
        for bound in other_sizes(self.proto, self.bound):
            with suppress(ModelError):
                run_session(self._session, self._inputs(bound, 0))
                return self.resized(bound)
        return None

    def resized(self, bound: Mapping[str, tuple[int, ...]]) -> OnnxHost:
        """The model with other example sizes."""
        return replace(self, bound=bound)

    def _inputs(self, bound: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
        random = random_inputs(self.proto, bound, seed)
        return {name: self.given[name] if self._fits(name, array) else array for name, array in random.items()}

    def _fits(self, name: str, array: Array) -> bool:
        return name in self.given and self.given[name].shape == array.shape

    @property
    def _session(self) -> ort.InferenceSession:
        """A new one where random numbers are drawn: each session begins at the seed."""
        return session_of(self.proto, self.store) if self._affordable and self._draws else self._kept_session

    @cached_property
    def _kept_session(self) -> ort.InferenceSession:
        assert self._affordable
        return session_of(self.proto, self.store)

    @cached_property
    def _draws(self) -> bool:
        return draws(self.proto.graph)

    def run(self, inputs: Arrays, *, double: bool = False) -> dict[str, Array]:
        """Runs the model in onnxruntime, one thread (or in float64); outputs by name, in order."""
        inputs = left_of(self.cuts, inputs)
        if double:
            return run_double(self.proto, self.store, inputs)
        session = self._session
        try:
            return run_session(session, inputs)
        except ModelError as error:
            self._require_fit(error, inputs)
            raise

    def zeroed(self, masks: Masks) -> OnnxHost:
        """A copy with zeros in the stored tensors where units are removed; nothing else changes."""
        proto, store = mask_stored(self.proto, self.store, masks)
        return replace(self, proto=proto, store=store)

    def run_integer(self, inputs: Arrays) -> dict[str, Array]:
        """Runs the model as onnxruntime does by default: quantised operators in integer kernels."""
        return run_session(session_of(self.proto, self.store, integer=True), left_of(self.cuts, inputs))

    @cached_property
    def quantised(self) -> bool:
        """Whether the model rounds values to integers on the way."""
        return any("Quantize" in node.op_type or "QLinear" in node.op_type for node in self.proto.graph.node)

    def run_masked(self, inputs: Arrays, masks: Masks, *, double: bool = False) -> dict[str, Array]:
        """Runs the model with the removed units zeroed after every node."""
        assert self._affordable
        proto, store = masked_model(self.proto, self.store, masks, self.graph(), self.inferred)
        return run_double(proto, store, inputs) if double else run_session(session_of(proto, store), inputs)

    def masked(self, masks: Masks) -> OnnxHost:
        """The model that computes what :meth:`run_masked` does, to be run more than once."""
        proto, store = masked_model(self.proto, self.store, masks, self.graph(), self.inferred)
        return replace(self, proto=proto, store=store, known=None)

    def shown(
        self, inputs: Arrays, names: Sequence[str], masks: Masks | None = None, *, double: bool = False
    ) -> Iterator[tuple[str, Array]]:
        """A run that shows values on the way; see :class:`graphprune.hosts.host.Host`."""
        proto, store, inputs = self.proto, self.store, left_of(self.cuts, inputs)
        if masks is not None:
            proto, store = masked_model(self.proto, self.store, masks, self.graph(), self.inferred)
        yield from traced(proto, store, inputs, [self.graph().values[name] for name in names], double=double)

    def partial_run(
        self, have: Collection[str] | None, outputs: Sequence[str], later: Sequence[str] = ()
    ) -> PartialRun:
        """A runner of part of the graph; see :class:`graphprune.hosts.host.Host`."""
        assert self._affordable
        given = [value.name for value in self.proto.graph.input] if have is None else have
        run = onnx_steps.partial_run(self.proto, self.store, self.inferred, given, outputs, later)
        return (lambda values: run(left_of(self.cuts, values))) if self.cuts and have is None else run

    def trials(self, asked: Asked) -> Trial | None:
        """A runner of the rest that takes some stored tensors; none where it draws: only sessions begin at the seed."""
        return None if self._draws else onnx_steps.trials(self.proto, self.store, self.inferred, asked)

    def gated(self, gates: Sequence[Gate]) -> Gated:
        """A runner of the model with gates; those that are not given are one."""
        assert self._affordable
        return onnx_gates.gated(self.proto, self.store, self.inferred, gates)

    @cached_property
    def _nodes(self) -> Mapping[str, onnx.NodeProto]:
        return {node.name: node for node in self.proto.graph.node}

    def window(self, node: str) -> Window | None:
        """What a convolution sees, also a transposed one; ``None`` for any other node."""
        found = self._nodes[node]
        names = (*found.input[:2], *found.output[:1])
        if len(found.input) < 2 or not {*names} <= {*self.graph().values}:
            return None
        x, weight, result = (self.graph().values[name].shape for name in names)
        return onnx_steps.window(found, weight, x, result)

    def recurrent(self, node: str) -> Recurrent | str | None:
        """The cells of a recurrent layer; why they cannot be refitted; ``None`` for any other node."""
        return cells(self._nodes[node])

    def scales(self, node: str) -> tuple[float, float]:
        """What a node multiplies its product of two operands by, and what its bias."""
        return onnx_steps.scales(self._nodes[node])

    def replaced(self, tensors: Arrays) -> OnnxHost:
        """A copy in which stored tensors have other values."""
        proto, store = onnx_steps.replaced(self.proto, self.store, tensors)
        made = self._with(proto, store, self.inferred, self.graph())
        if "_affordable" in vars(self):  # values take what they took
            vars(made)["_affordable"] = True
        return made

    def biased(self, biases: Mapping[str, int | None]) -> OnnxHost:
        """A copy in which the results of some nodes get a bias of zeros."""
        return self._with(onnx_steps.biased(self.proto, self.inferred, biases), self.store, None) if biases else self

    @property
    def source_costs(self) -> Mapping[str, float]:
        """What the file holds that was loaded; what would be written, for a model that has been edited."""
        return self.stored_costs() if self.held is None else self.held

    def stored_costs(self, *, inner: bool = False) -> Mapping[str, float]:
        """What would be written holds: ``params`` and ``bytes``, equal copies once."""
        proto = self.proto
        if not inner and (renamed := merged_names(proto, self.store, self.uses)):
            proto, _ = merged(proto, self.store, renamed)
        return what_is_held(proto, inner=inner)

    def save_onnx(self, path: Path, metadata: Mapping[str, str] | None = None, *, beside: bool = False) -> None:
        """Writes a checked ONNX file, whole or not at all, with external data beside it above 2 GB or if asked for."""
        proto, store = merged(self.proto, self.store, merged_names(self.proto, self.store, self.uses))
        stored = {tensor.name for tensor in proto.graph.initializer}
        # an input that is a default for some of its uses alone, since the others are cut, would be one for the wrong
        apart = {use.tensor for name, use in self.uses.items() if name != use.tensor and name in stored}
        proto = with_defaults(proto, [value for value in self.defaults if value.name not in apart])
        sources, original, bound = self.sources, self.original, self.bound
        save(proto, store, Path(path), metadata, sources=sources, original=original, bound=bound, beside=beside)
