"""A traced call of a PyTorch model: a functional graph of ATen operators and a table of tensors.

All surgery happens on copies of the graph, which share their weights until they are cut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import fx

from graphprune.brief import brief
from graphprune.errors import ModelError, PlanError
from graphprune.executor.losses import Loss
from graphprune.hosts.edits import Edits
from graphprune.hosts.host import Array, Arrays, Gate, Gated, Masks, PartialRun
from graphprune.hosts.recurrent import Recurrent
from graphprune.hosts.torch import gates as torch_gates
from graphprune.hosts.torch import masked as torch_masked
from graphprune.hosts.torch import running, steps, stored
from graphprune.hosts.torch.biases import biased
from graphprune.hosts.torch.calls import Signature, example_of, signature_of
from graphprune.hosts.torch.cells import GATES, cells
from graphprune.hosts.torch.cuts import cut_tensors, require_there
from graphprune.hosts.torch.digests import digest_of_graph, digest_of_tensor, versions_of
from graphprune.hosts.torch.fold import dead_nodes, fold, used_tensors
from graphprune.hosts.torch.gains import adjusted
from graphprune.hosts.torch.graph import build_graph
from graphprune.hosts.torch.lazy_graph import LazyGraph
from graphprune.hosts.torch.normal_form import normal_form
from graphprune.hosts.torch.recording.forward import Narrow, Recording
from graphprune.hosts.torch.stored import module_of, owners, shared_names, tied_names, to_numpy, with_values
from graphprune.hosts.torch.trace import Example, Trace, draws
from graphprune.hosts.trying import Asked, Trial
from graphprune.hosts.windows import Window
from graphprune.importance.differentiable import Target
from graphprune.importance.judge import Judge
from graphprune.ir.graph import Graph


class _Known(NamedTuple):
    """What was read off a graph: the graph for the analysis, and the value that each node stands for."""

    lazy: LazyGraph
    graph: Graph
    names: Mapping[fx.Node, str]


@dataclass(frozen=True, eq=False)
class Program:
    """A traced call.

    Attributes:
        lazy: The graph, with changes that may not be written out yet.
        tensors: What the ``get_attr`` nodes of :attr:`program` stand for: stored tensors, and bodies of higher-order
            operators.
        example: Positional and keyword arguments of the example call.
        in_spec: How the arguments flatten into the graph's inputs.
        out_spec: How the graph's outputs make up what the user's module returns.
        shared: Names in the user's module that are one tensor, the one that the graph uses first. The graph may know
            one name only where the user has tied two.
        decisive: Tensors of the example whose values decided sizes and branches of the trace.
        known: What was read off the same graph with other values of the tensors.
        narrow: Where the graph is no more than what the user's code does on the example: what decides about it.
    """

    __repr__ = brief

    lazy: LazyGraph
    tensors: Mapping[str, Any]
    example: Example
    in_spec: Any = field(default=None, repr=False)
    out_spec: Any = field(default=None, repr=False)
    shared: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    decisive: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    known: _Known | None = field(default=None, repr=False)
    narrow: Narrow | None = field(default=None, repr=False)

    kind = "torch"
    exports = True
    given_example = True
    metadata = None

    @classmethod
    def of(cls, trace: Trace | Recording) -> Self:
        """The program of a trace."""
        if isinstance(trace, Recording):
            graph, tensors, example, narrow = trace.graph, trace.tensors, trace.example, trace.narrow
            specs, state = (trace.in_spec, trace.out_spec), trace.state
        else:
            spec, example, narrow = trace.program.call_spec, (trace.example[0], dict(trace.example[1])), None
            graph, tensors = normal_form(trace.program, example)
            specs, state = (spec.in_spec, spec.out_spec), trace.program.state_dict
        shared = shared_names(tensors, state)
        return cls(LazyGraph(graph), tensors, example, *specs, shared, trace.pinned, narrow=narrow)

    @property
    def program(self) -> fx.Graph:
        """The graph as it is now."""
        return self.lazy.written[0]

    @cached_property
    def module(self) -> fx.GraphModule:
        """The graph as a module: trainable, callable like the user's module, with the user's parameter names."""
        return module_of(self.program, self.tensors, self.shared)

    # -- reading -----------------------------------------------------------------------------------------------------

    @cached_property
    def _read(self) -> _Known:
        """The graph for the analysis, and the value that each node stands for: of the base of a graph without edits."""
        if self.known is not None and self.known.lazy is self.lazy:
            return self.known
        if self.lazy.edited:
            return _Known(self.lazy, *build_graph(self.program, self.tensors))
        return _Known(self.lazy, *build_graph(self.lazy.base, self.tensors, self.lazy.folding))

    @cached_property
    def _names(self) -> Mapping[fx.Node, str]:
        """The value that each node of :attr:`program` stands for."""
        names = self._read.names
        if self.lazy.edited:
            return names
        return {new: names[old] for old, new in self.lazy.written[1].items() if old in names}

    @cached_property
    def _nodes(self) -> Mapping[str, fx.Node]:
        return {node.name: node for node in self.program.nodes}

    def graph(self) -> Graph:
        """The graph that the analysis reads."""
        return self._read.graph

    def tensor(self, name: str) -> torch.Tensor:
        """A stored tensor itself."""
        found = self.tensors.get(name)
        if not isinstance(found, torch.Tensor):
            raise PlanError(f"'{name}' is no stored tensor of the model; see the names that 'graphprune explain' lists")
        return found

    def read(self, tensor: str) -> Array:
        """The values of a stored tensor; bfloat16 and 8-bit floats come as float32."""
        return to_numpy(stored.valued(self.tensor(tensor)))

    def digest(self, tensor: str) -> str:
        """The digest of a stored tensor as it is stored; see :func:`graphprune.arrays.digest_of`."""
        return digest_of_tensor(stored.valued(self.tensor(tensor)))

    def model_digest(self) -> str:
        """The digest of all that decides what the model computes, taken anew each time.

        The tensors are the user's, who may change them in place in ways that no version counter notices.

        Raises:
            ModelError: Weights have no values.
        """
        self._valued()
        return digest_of_graph(self.program, self.tensors)

    def stamp(self) -> tuple[int, ...]:
        """The version counters of the tensors."""
        return versions_of(self.tensors)

    @cached_property
    def is_meta(self) -> bool:
        """Whether weights have no values."""
        return any(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in self.tensors.values())

    def _valued(self) -> None:
        if self.is_meta:
            raise ModelError(stored.WITHOUT_VALUES)

    @cached_property
    def tied(self) -> Mapping[str, tuple[str, ...]]:
        """For each stored value, all names in the module that are the same tensor."""
        return tied_names(self.tensors, self.shared)

    @cached_property
    def adjusted(self) -> Mapping[str, frozenset[str]]:
        """Gains of weight norms and vectors of spectral norms, and the weights that they follow."""
        names = owners(self.tied)
        found = adjusted(self.program)
        return {names.get(n, n): frozenset(names.get(each, each) for each in of) for n, of in found.items()}

    @property
    def source_costs(self) -> Mapping[str, float]:
        """Nothing that the graph does not say."""
        return {}

    def stored_costs(self, *, inner: bool = False) -> Mapping[str, float]:
        """Nothing that the graph does not say."""
        return {}

    # -- editing -----------------------------------------------------------------------------------------------------

    def edited(self, edits: Edits) -> Self:
        """A copy with the edits made.

        Raises:
            PlanError: An edit names something that the model does not have.
        """
        _, graph, names = self._read
        require_there(edits, {node.name for node in graph.nodes}, self.tied, set(names.values()))
        lazy = LazyGraph(self.program) if self.lazy.edited else self.lazy
        tensors = cut_tensors(lazy.base, self.tensors, self.tied, edits)
        if not (edits.sizes or edits.pins or edits.shapes or edits.bypasses):  # units only change places
            return self.with_tensors(tensors)
        return replace(self, lazy=replace(lazy, edits=edits, names=names), tensors=tensors)

    def folded(self) -> Self:
        """A copy in which tables that depend on no input, parameter or buffer are constants."""
        if self.lazy.folded and not self.lazy.edited:
            return self
        folding, tensors = fold(self.program, self.tensors)
        return replace(self, lazy=LazyGraph(self.program, folding), tensors=tensors) if folding.constants else self

    def without_dead_nodes(self) -> Self:
        """A copy without nodes and stored tensors that no output needs."""
        lazy = LazyGraph(self.program) if self.lazy.edits.bypasses else self.lazy  # other edits make nothing dead
        dead = dead_nodes(lazy.base, lazy.folding)
        if dead == lazy.folding.dead:
            return self
        lazy = replace(lazy, folding=replace(lazy.folding, dead=dead))
        return replace(self, lazy=lazy, tensors=used_tensors(lazy.base, lazy.folding, self.tensors))

    def replaced(self, tensors: Arrays) -> Self:
        """A copy in which stored tensors have other values."""
        for name in tensors:
            self.tensor(name)
        return self.with_tensors(with_values(self.tensors, self.tied, tensors))

    def with_tensors(self, tensors: Mapping[str, Any]) -> Self:
        """A copy with other tensors of the same shapes and types; what was read off the graph is not read again."""
        return replace(self, tensors=tensors, known=vars(self).get("_read", self.known))

    def biased(self, biases: Mapping[str, int | None]) -> Self:
        """A copy in which the results of some nodes get a bias of zeros."""
        if not biases:
            return self
        graph, tensors = biased(self.program, self.tensors, biases)
        return replace(self, lazy=LazyGraph(graph), tensors=tensors)

    # -- running -----------------------------------------------------------------------------------------------------

    @cached_property
    def signature(self) -> Signature:
        """How the graph is called: its inputs and outputs by name."""
        return signature_of(self.program, self._names, self.example, self.in_spec, self.out_spec)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs: the keys under which the user's module returns them, else ``output_0``, ..."""
        return tuple(name for name in self.signature.outputs if name is not None)

    def example_inputs(self, seed: int = 0) -> dict[str, Array]:
        """The user's example by input name; with a ``seed`` other than 0, random ones of its types and ranges."""
        return example_of(self.signature, self.pinned, seed)

    @property
    def pinned(self) -> tuple[str, ...]:
        """Names of the inputs that must have the example's values: sizes or branches were taken from them."""
        return tuple(name for name, leaf in self.signature.inputs if any(leaf is tensor for tensor in self.decisive))

    @property
    def drawing(self) -> tuple[str, ...]:
        """The operators that draw random numbers."""
        nodes = self.without_dead_nodes().program.nodes
        return tuple(dict.fromkeys(str(node.target) for node in nodes if draws(node)))

    def at_other_sizes(self) -> None:
        """None: a trace is proven at the sizes of its example."""

    def arguments(self, inputs: Arrays) -> Example:
        """Positional and keyword arguments of a call of the user's module."""
        return self.signature.arguments(inputs)

    def run(self, inputs: Arrays, *, double: bool = False) -> dict[str, Array]:
        """Runs the model, in float64 where ``double``; outputs by name, in order."""
        return running.interpreted(self._interpreter(None, double=double), self.signature, inputs)

    def run_masked(self, inputs: Arrays, masks: Masks, *, double: bool = False) -> dict[str, Array]:
        """Runs the model with the removed units zeroed after every node; see :class:`graphprune.hosts.host.Host`.

        Raises:
            ProofError: A node normalizes over a masked axis and there is no masked form of it.
        """
        return running.interpreted(self._interpreter(masks, double=double), self.signature, inputs)

    def shown(
        self, inputs: Arrays, names: Sequence[str], masks: Masks | None = None, *, double: bool = False
    ) -> Iterator[tuple[str, Array]]:
        """A run that shows values on the way; see :class:`graphprune.hosts.host.Host`."""
        yield from running.shown(self._interpreter(masks, double=double), self.signature, inputs, self._names, names)

    def _interpreter(self, masks: Masks | None, *, double: bool) -> torch_masked.Interpreter:
        self._valued()
        if masks is None:
            return torch_masked.Interpreter(self.program, self.tensors, double=double)
        return torch_masked.MaskedInterpreter(
            self.program, self.tensors, self.graph(), self._names, masks, double=double
        )

    def partial_run(
        self, have: Collection[str] | None, outputs: Sequence[str], later: Sequence[str] = ()
    ) -> PartialRun:
        """A runner of part of the graph; see :class:`graphprune.hosts.host.Host`."""
        inputs = [node.name for node in self.program.nodes if node.op == "placeholder"]
        graph = self.program, self.tensors, self._names
        run = steps.partial_run(*graph, inputs if have is None else have, outputs, later)
        if have is not None:
            return run
        return lambda values: run(dict(zip(inputs, self.signature.flat(values), strict=True)))

    def trials(self, asked: Asked) -> Trial:
        """A runner of the rest of the model that takes some stored tensors when it runs."""
        prepared = steps.with_tensors(self.program, self._names, asked.have, asked.outputs)
        return lambda tensors: steps.rest(prepared(with_values(self.tensors, self.tied, tensors)), asked.threads)

    def gated(self, gates: Sequence[Gate]) -> Gated:
        """A runner of the model with gates; those that are not given are one."""

        def run(inputs: Arrays, factors: Mapping[Gate, Array]) -> dict[str, Array]:
            self._valued()
            values = {gate: torch.from_numpy(np.asarray(each, np.float32)) for gate, each in factors.items()}
            interpreter = torch_gates.GatedInterpreter(self.program, self.tensors, self._names, values)
            return running.interpreted(interpreter, self.signature, inputs)

        return run

    def gate_gradients(
        self,
        inputs: Arrays,
        gates: Sequence[Gate],
        target: Target,
        *,
        categorical: bool = False,
        judges: Sequence[Judge] = (),
        seed: int = 0,
        level: Mapping[Gate, float] | None = None,
    ) -> dict[Gate, Array]:
        """The gradients of a loss by gates; see :class:`graphprune.importance.differentiable.Differentiable`."""
        found = torch_gates.gate_gradients(
            self.program,
            self.tensors,
            self._names,
            self.signature.flat(inputs),
            gates,
            self._loss(target, categorical, judges, seed),
            level or {},
        )
        return {gate: to_numpy(each) for gate, each in found.items()}

    def parameter_gradients(
        self,
        inputs: Arrays,
        wanted: Sequence[str],
        target: Target,
        *,
        categorical: bool = False,
        judges: Sequence[Judge] = (),
        seed: int = 0,
    ) -> dict[str, Array]:
        """The gradients of a loss by stored tensors, summed over a batch; see :meth:`gate_gradients`."""
        loss = self._loss(target, categorical, judges, seed)
        flat = self.signature.flat(inputs)
        found = torch_gates.parameter_gradients(self.program, self.tensors, flat, wanted, loss)
        return {name: to_numpy(each) for name, each in found.items()}

    def _loss(self, target: Target, categorical: bool, judges: Sequence[Judge], seed: int) -> Loss:
        """The loss of the judged outputs; without judges of the first one that is floating-point."""
        judges = judges or (torch_gates.first_judge(self.graph(), categorical=categorical),)
        tensors = [at for at, name in enumerate(self.signature.outputs) if name is not None]
        return Loss([(tensors[judge.at], judge) for judge in judges], target, seed)

    # -- what its nodes are ------------------------------------------------------------------------------------------

    def window(self, node: str) -> Window | None:
        """What a convolution sees, also a transposed one; ``None`` for any other node."""
        return steps.window(self._nodes[node])

    def recurrent(self, node: str) -> Recurrent | str | None:
        """The cells of a recurrent layer; why they cannot be refitted; ``None`` for any other node."""
        found = self._nodes[node]
        if found.target not in GATES:
            return None
        return cells(found, next(each.operands for each in self.graph().nodes if each.name == node))

    def scales(self, node: str) -> tuple[float, float]:
        """What a node multiplies its product of two operands by, and what its bias."""
        return steps.scales(self._nodes[node])
