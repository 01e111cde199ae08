"""The torch host: a functional graph of ATen operators that is analysed, edited, run and exported.

A module is exported once; all surgery happens on copies of the exported graph, which share their weights until they
are cut. The user's module is never touched. A graph and a table of tensors are all that surgery and proofs need; the
module that users call is generated from them when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from graphprune.brief import brief
from graphprune.errors import GraphpruneError, ModelError, OutputError, PlanError, first_line
from graphprune.hosts.torch import gates as torch_gates
from graphprune.hosts.torch import masked as torch_masked
from graphprune.hosts.torch import onnx_export as torch_onnx
from graphprune.hosts.torch import runs as torch_runs
from graphprune.hosts.torch import steps as torch_steps
from graphprune.hosts.torch.cells import GATES, cells
from graphprune.hosts.torch.digests import digest_of_graph, digest_of_tensor
from graphprune.hosts.torch.fold import dead_nodes, fold, used_tensors
from graphprune.hosts.torch.gains import adjusted, lengthened, rescaled
from graphprune.hosts.torch.graph import (
    SPEC,
    argument,
    build_graph,
    output_nodes,
    spec_of,
    storage_key,
)
from graphprune.hosts.torch.lazy_graph import Draft, copied, set_argument
from graphprune.hosts.torch.runs import OtherRuns
from graphprune.hosts.torch.slice import sliced
from graphprune.hosts.torch.trace import Example, Trace, draws, export, functional, normal_form, split_example
from graphprune.hosts.torch.untouched import noticing, untouched
from graphprune.importance.final import floating
from graphprune.importance.judge import Judge
from graphprune.ir.graph import Graph
from graphprune.pipeline.host import Array, Arrays, Edits, Gate, Gated, Masks, Stretch, Window, bias_shape
from graphprune.pipeline.recurrent import Recurrent
from graphprune.planning.transfer import METADATA, write_origins

_AS_FLOAT32 = frozenset(
    getattr(torch, name)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
)


def to_numpy(tensor: torch.Tensor) -> Array:
    """A tensor's values; types that NumPy lacks come as float32."""
    found: Array = (tensor.float() if tensor.dtype in _AS_FLOAT32 else tensor).numpy(force=True)
    return found


_OF_THE_GRAPH = ("_read", "_built", "_nodes", "_placeholders", "output_names")
"""What is computed once from the graph, whatever the values of tensors."""


@dataclass(frozen=True, eq=False)
class TorchHost:
    """A traced PyTorch model.

    Attributes:
        draft: The graph, with changes that may not be written out yet.
        tensors: What the ``get_attr`` nodes of :attr:`program` stand for: stored tensors, and bodies of higher-order
            operators.
        example: Positional and keyword arguments of the example call.
        dynamic_shapes: As for ``torch.export``; kept for the export to ONNX.
        in_spec: How the arguments flatten into the graph's inputs.
        out_spec: How the graph's outputs make up what the user's module returns.
        shared: Names in the user's module that are one tensor, the one that the graph uses first. The graph may know
            one name only where the user has tied two.
        source: The user's module, if it was one; only read.
        decisive: Tensors of the example whose values decided sizes and branches of the trace.
        runs: The module run in other ways.
    """

    __repr__ = brief

    draft: Draft
    tensors: Mapping[str, Any]
    example: Example
    dynamic_shapes: Any = None
    in_spec: Any = field(default=None, repr=False)
    out_spec: Any = field(default=None, repr=False)
    shared: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    source: torch.nn.Module | None = field(default=None, repr=False)
    decisive: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    runs: OtherRuns = field(default=OtherRuns(), repr=False)

    kind = "torch"

    @classmethod
    def trace(
        cls,
        model: torch.nn.Module | ExportedProgram,
        example_inputs: tuple[Any, ...] | Mapping[str, Any] | torch.Tensor | None = None,
        dynamic_shapes: Any = None,
    ) -> TorchHost:
        """Exports a model in evaluation mode, without side effects on it.

        Args:
            model: A module, or a program that the user exported.
            example_inputs: Positional arguments as a tuple, or keyword arguments as a mapping; may be absent for a
                program that holds its own.
            dynamic_shapes: As for ``torch.export.export``.

        Raises:
            ModelError: The model cannot be exported, or there is no example.
        """
        if isinstance(model, ExportedProgram):
            example = split_example(example_inputs) if example_inputs is not None else model.example_inputs
            program = functional(model)
        else:
            if example_inputs is None:
                raise ModelError("a module needs example inputs to be traced; pass a tuple or a mapping of tensors")
            example = split_example(example_inputs)
            return cls._of_module(model, example, dynamic_shapes)
        if example is None:
            raise ModelError("the exported program holds no example inputs; pass example_inputs")
        return replace(cls._of(Trace(program, example)), dynamic_shapes=dynamic_shapes)

    @classmethod
    def _of_module(cls, model: torch.nn.Module, example: Example, dynamic_shapes: Any) -> TorchHost:
        """The host of a module, which is traced on its second call if the first one makes what cannot be traced."""
        try:
            with untouched(model) as looked, noticing(model, looked) as noticed:
                host = cls._of(export(model, example, dynamic_shapes))
        except ModelError:
            again = torch_runs.second_call(model, example, dynamic_shapes, cls._of) if any(noticed) else None
            if again is None:
                raise
            model, host = again
            noticed = []
        runs = torch_runs.other_runs(model, example, host, cls._of, caches=any(noticed))
        return replace(host, dynamic_shapes=dynamic_shapes, source=model, runs=runs)

    @classmethod
    def _of(cls, trace: Trace) -> TorchHost:
        """The host of a trace."""
        program, spec = trace.program, trace.program.call_spec
        example = (trace.example[0], dict(trace.example[1]))
        graph, tensors = normal_form(program, example)
        return cls(
            Draft(graph),
            tensors,
            example,
            None,
            spec.in_spec,
            spec.out_spec,
            _shared(tensors, program.state_dict),
            decisive=trace.pinned,
        )

    @property
    def program(self) -> fx.Graph:
        """The graph as it is now."""
        return self.draft.written[0]

    @cached_property
    def module(self) -> fx.GraphModule:
        """The graph as a module: trainable, callable like the user's module, with the user's parameter names."""
        root = torch.nn.Module()
        for name, tensor in self.tensors.items():
            _assign(root, name, tensor)
        module = fx.GraphModule(root, self.program, class_name="PrunedModule")
        for target, others in self.shared.items():  # fx drops tied names that the graph does not use
            for name in others if target in self.tensors else ():
                if name not in self.tensors:
                    _assign(module, name, self.tensors[target])
        return module

    @property
    def keeps_code(self) -> bool:
        """Whether there is a user's class that is to run on the smaller tensors."""
        return self.source is not None and not self.is_meta

    @property
    def made_by_code(self) -> frozenset[str]:
        """Names of constants that are no parameter or buffer of the user's module, such as tables of frequencies."""
        if self.source is None:
            return frozenset()
        own = {name for name, _ in self.source.named_parameters(remove_duplicate=False)}
        own.update(name for name, _ in self.source.named_buffers(remove_duplicate=False))
        return frozenset(name for name, aliases in self.tied.items() if own.isdisjoint(aliases))

    # -- reading -----------------------------------------------------------------------------------------------------

    @cached_property
    def _read(self) -> tuple[Graph, Mapping[fx.Node, str]]:
        """The graph for the analysis, and the value that each node stands for: of the base of a draft without edits."""
        if self.draft.edited:
            graph, names = build_graph(self.program, self.tensors)
        else:
            graph, names = build_graph(self.draft.base, self.tensors, self.draft.folding)
        return replace(graph, others=self.runs.graphs(graph.values)), names

    @cached_property
    def _built(self) -> tuple[Graph, Mapping[fx.Node, str]]:
        """The graph for the analysis, and the value that each node of :attr:`program` stands for."""
        graph, names = self._read
        if not self.draft.edited:
            names = {new: names[old] for old, new in self.draft.written[1].items() if old in names}
        return graph, names

    def graph(self) -> Graph:
        """The graph that the analysis reads."""
        return self._read[0]

    def tensor(self, name: str) -> torch.Tensor:
        """A stored tensor itself."""
        found = self.tensors.get(name)
        if not isinstance(found, torch.Tensor):
            raise PlanError(f"'{name}' is no stored tensor of the model; see the names that 'graphprune explain' lists")
        return found

    def read(self, tensor: str) -> Array:
        """The values of a stored tensor; bfloat16 and 8-bit floats come as float32."""
        stored = self.tensor(tensor)
        if stored.is_meta:
            self._valued()
        return to_numpy(stored)

    def digest(self, tensor: str) -> str:
        """The digest of a stored tensor as it is stored; see :func:`graphprune.arrays.digest_of`."""
        stored = self.tensor(tensor)
        if stored.is_meta:
            self._valued()
        return digest_of_tensor(stored)

    def model_digest(self) -> str:
        """The digest of all that decides what the model computes, taken anew each time.

        The tensors are the user's, who may change them in place in ways that no version counter notices.

        Raises:
            ModelError: Weights have no values.
        """
        self._valued()
        return digest_of_graph(self.program, self.tensors)

    @cached_property
    def is_meta(self) -> bool:
        """Whether weights have no values."""
        return any(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in self.tensors.values())

    def _valued(self) -> None:
        if self.is_meta:
            raise ModelError(
                "the model is on the meta device, where weights have no values to read or to run with; load its "
                "weights, or make a plan by criterion='random' with verify=False"
            )

    @cached_property
    def tied(self) -> Mapping[str, tuple[str, ...]]:
        """For each stored value, all names in the module that are the same tensor."""
        found: dict[str, list[str]] = {}
        keys: dict[tuple[Any, ...], str] = {}
        for target, tensor in self.tensors.items():
            if isinstance(tensor, torch.Tensor):
                first = keys.setdefault(storage_key(tensor), target)
                for name in (target, *self.shared.get(target, ())):
                    if name not in found.setdefault(first, []):
                        found[first].append(name)
        return {name: tuple(names) for name, names in found.items()}

    # -- editing -----------------------------------------------------------------------------------------------------

    def edited(self, edits: Edits) -> TorchHost:
        """A copy with the edits made.

        Raises:
            PlanError: An edit names something that the model does not have.
        """
        graph, names = self._read
        nodes = {node.name for node in graph.nodes}
        if missing := [
            node for node in (*(e.node for e in edits.sizes), *(p.node for p in edits.pins)) if node not in nodes
        ]:
            raise PlanError(f"the model has no node '{missing[0]}'; the plan belongs to another model")
        tensors = dict(self.tensors)
        if missing := [tensor for tensor in edits.slices if tensor not in self.tied]:
            raise PlanError(f"the model has no stored tensor '{missing[0]}'; the plan belongs to another model")
        for tensor, cut in sliced(self.tensors, edits.slices).items():
            tensors.update((alias, cut) for alias in self.tied[tensor] if alias in tensors)
        owners = {alias: owner for owner, aliases in self.tied.items() for alias in aliases}
        program = self.program if self.draft.edited else self.draft.base
        given = program, self.tensors, tensors, edits.slices, owners
        for name, new in (*rescaled(*given), *lengthened(*given)):
            tensors.update((alias, new) for alias in self.tied[owners[name]] if alias in tensors)
        values = set(names.values())
        if missing := [old for pair in edits.bypasses.items() for old in pair if old not in values]:
            raise PlanError(f"the model has no value '{missing[0]}' to bypass; the plan belongs to another model")
        for tensor, places in edits.renumbered.items():
            table = torch.from_numpy(places)[tensors[tensor].cpu().long()].to(tensors[tensor])
            tensors.update((alias, table) for alias in self.tied[tensor] if alias in tensors)
        base = Draft(self.program) if self.draft.edited else self.draft
        runs = self.runs.edited(edits.others, tensors)
        return replace(self, draft=replace(base, edits=edits, names=names), tensors=tensors, runs=runs)

    def folded(self) -> TorchHost:
        """A copy in which tables that depend on no input, parameter or buffer are constants."""
        if self.draft.folded and not self.draft.edited:
            return self
        folding, tensors = fold(self.program, self.tensors)
        runs = self.runs.folded() if self.runs.runs else self.runs
        if not folding.constants:
            return replace(self, runs=runs) if runs is not self.runs else self
        return replace(self, draft=Draft(self.program, folding), tensors=tensors, runs=runs)

    def without_dead_nodes(self) -> TorchHost:
        """A copy without nodes and stored tensors that no output needs."""
        draft = Draft(self.program) if self.draft.edits.bypasses else self.draft  # other edits make nothing dead
        dead = dead_nodes(draft.base, draft.folding)
        if dead == draft.folding.dead:
            return self
        folding = replace(draft.folding, dead=dead)
        draft = replace(draft, folding=folding)
        return replace(self, draft=draft, tensors=used_tensors(draft.base, folding, self.tensors))

    # -- running -----------------------------------------------------------------------------------------------------

    @cached_property
    def _placeholders(self) -> tuple[tuple[str, Any], ...]:
        """Name and example of every placeholder, whether tensor or not."""
        args, kwargs = self.example
        leaves = fx._pytree.tree_flatten_spec((args, kwargs), self.in_spec)
        nodes = [node for node in self.program.nodes if node.op == "placeholder"]
        names = self._built[1]
        return tuple((names.get(node, node.name), leaf) for node, leaf in zip(nodes, leaves, strict=True))

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs: the keys under which the user's module returns them, else ``output_0``, ..."""
        nodes = list(output_nodes(self.program))
        tree = pytree.tree_unflatten(list(range(len(nodes))), self.out_spec)
        paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
        named = [_path_name(path) for path, node in zip(paths, nodes, strict=True) if node is not None]
        return tuple(named)

    def example_inputs(self, seed: int = 0) -> dict[str, Array]:
        """The user's example by input name; with a ``seed`` other than 0, random ones of its types and ranges."""
        found = {name: leaf for name, leaf in self._placeholders if isinstance(leaf, torch.Tensor)}
        arrays = {
            name: np.zeros(tuple(leaf.shape), dtype=to_numpy(leaf.new_empty(0, device="cpu")).dtype)
            if leaf.is_meta
            else to_numpy(leaf)
            for name, leaf in found.items()
        }
        if seed == 0:
            return arrays
        rng = np.random.default_rng(seed)
        return {name: array if name in self.pinned else _like(array, rng) for name, array in arrays.items()}

    @property
    def pinned(self) -> tuple[str, ...]:
        """Names of the inputs that must have the example's values: sizes or branches were taken from them."""
        return tuple(name for name, leaf in self._placeholders if any(leaf is tensor for tensor in self.decisive))

    @property
    def drawing(self) -> tuple[str, ...]:
        """The operators that draw random numbers."""
        nodes = self.without_dead_nodes().program.nodes
        return tuple(dict.fromkeys(str(node.target) for node in nodes if draws(node)))

    def at_other_sizes(self) -> None:
        """None: a trace is proven at the sizes of its example."""

    def _flat(self, inputs: Arrays) -> list[Any]:
        flat = []
        for name, leaf in self._placeholders:
            if isinstance(leaf, torch.Tensor):
                if name not in inputs:
                    raise ModelError(f"input '{name}' is missing; got {', '.join(inputs) or 'none'}")
                flat.append(torch.tensor(np.asarray(inputs[name])).to(leaf.device, leaf.dtype))
            else:
                flat.append(leaf)
        return flat

    def arguments(self, inputs: Arrays) -> Example:
        """Positional and keyword arguments of a call of the user's module."""
        args, kwargs = pytree.tree_unflatten(self._flat(inputs), self.in_spec)
        return args, kwargs

    def _named(self, outputs: Any) -> dict[str, Array]:
        items = outputs if isinstance(outputs, list | tuple) else (outputs,)
        kept = [item for item, node in zip(items, output_nodes(self.program), strict=True) if node is not None]
        return {name: to_numpy(item) for name, item in zip(self.output_names, kept, strict=True)}

    def run(self, inputs: Arrays, *, double: bool = False) -> dict[str, Array]:
        """Runs the model, in float64 where ``double``; outputs by name, in order."""
        return self._interpreted(torch_masked.Interpreter(self.program, self.tensors, double=double), inputs)

    def run_masked(self, inputs: Arrays, masks: Masks, *, double: bool = False) -> dict[str, Array]:
        """Runs the model with the removed units zeroed after every node; see :class:`graphprune.pipeline.host.Host`.

        Raises:
            ProofError: A node normalizes over a masked axis and there is no masked form of it.
        """
        graph, names = self._built
        return self._interpreted(
            torch_masked.MaskedInterpreter(self.program, self.tensors, graph, names, masks, double=double), inputs
        )

    def _interpreted(self, interpreter: torch_masked.Interpreter, inputs: Arrays) -> dict[str, Array]:
        self._valued()
        flat = self._flat(inputs)
        try:
            with torch.no_grad(), interpreter.precision():
                return self._named(interpreter.run(*flat, enable_io_processing=False))
        except GraphpruneError:
            raise
        except Exception as error:  # an operator raises what it likes
            raise _does_not_run(error) from error

    def shown(
        self, inputs: Arrays, names: Sequence[str], masks: Masks | None = None, *, double: bool = False
    ) -> Iterator[tuple[str, Array]]:
        """A run that shows values on the way; see :class:`graphprune.pipeline.host.Host`."""
        self._valued()
        graph, values = self._built
        interpreter = (
            torch_masked.Interpreter(self.program, self.tensors, double=double)
            if masks is None
            else torch_masked.MaskedInterpreter(self.program, self.tensors, graph, values, masks, double=double)
        )
        asked = frozenset(names)
        wanted = {node: name for node, name in values.items() if name in asked and node.op == "call_function"}
        flat = self._flat(inputs)
        try:
            for node, result in interpreter.steps(flat, wanted):
                if node in wanted:
                    yield wanted[node], to_numpy(result)
                else:
                    yield from ((f">{name}", each) for name, each in self._named(result).items())
        except GraphpruneError:
            raise
        except Exception as error:  # an operator raises what it likes
            raise _does_not_run(error) from error

    # -- step by step ------------------------------------------------------------------------------------------------

    @cached_property
    def _nodes(self) -> Mapping[str, fx.Node]:
        return {node.name: node for node in self.program.nodes}

    def stretch(self, have: Collection[str] | None, outputs: Sequence[str], later: Sequence[str] = ()) -> Stretch:
        """A runner of part of the graph; see :class:`graphprune.pipeline.host.Host`."""
        inputs = [node.name for node in self.program.nodes if node.op == "placeholder"]
        run = torch_steps.stretch(
            self.program, self.tensors, self._built[1], to_numpy, inputs if have is None else have, outputs, later
        )
        if have is not None:
            return run
        return lambda values: run(dict(zip(inputs, self._flat(values), strict=True)))

    def gated(self, gates: Sequence[Gate]) -> Gated:
        """A runner of the model with gates; those that are not given are one."""

        def run(inputs: Arrays, factors: Mapping[Gate, Array]) -> dict[str, Array]:
            values = {gate: torch.from_numpy(np.asarray(each, np.float32)) for gate, each in factors.items()}
            return self._interpreted(
                torch_gates.GatedInterpreter(self.program, self.tensors, self._built[1], values), inputs
            )

        return run

    def gate_gradients(
        self,
        inputs: Arrays,
        gates: Sequence[Gate],
        target: Array | Sequence[Array | None] | None,
        *,
        categorical: bool = False,
        judges: Sequence[Judge] = (),
        seed: int = 0,
        level: Mapping[Gate, float] | None = None,
    ) -> dict[Gate, Array]:
        """The gradients of a loss by gates, for each sample of a batch.

        Args:
            inputs: By name.
            gates: The gates.
            target: What the first output should be (classes, or values), or a sequence for each of the ``judges``;
                ``None``: drawn from the model itself.
            categorical: Without judges: whether the first output holds logits of classes along its last axis, and the
                loss is the cross entropy; otherwise it is half the mean squared error.
            judges: How outputs are compared; their losses add up.
            seed: For drawn targets.
            level: Where a gate stands, if not at one.

        Returns:
            ``[n, d]`` by gate: samples and positions.
        """
        found = torch_gates.gate_gradients(
            self.program,
            self.tensors,
            self._built[1],
            self._flat(inputs),
            gates,
            _targets(target),
            heads=self._heads(judges, categorical),
            generator=torch.Generator().manual_seed(seed),
            level=level or {},
        )
        return {gate: to_numpy(each) for gate, each in found.items()}

    def _heads(self, judges: Sequence[Judge], categorical: bool) -> list[torch_gates.Head]:
        """The judged outputs by position; without judges the first one that is floating-point."""
        graph = self.graph()
        outputs = list(graph.outputs)
        first = outputs.index(floating(graph)[0])
        judges = judges or (Judge(outputs[first], first, "kl" if categorical else "mse"),)
        tensors = [at for at, node in enumerate(output_nodes(self.program)) if node is not None]
        return [(tensors[judge.at], judge) for judge in judges]

    def parameter_gradients(
        self,
        inputs: Arrays,
        wanted: Sequence[str],
        target: Array | Sequence[Array | None] | None,
        *,
        categorical: bool = False,
        judges: Sequence[Judge] = (),
        seed: int = 0,
    ) -> dict[str, Array]:
        """The gradients of a loss by stored tensors, summed over a batch; see :meth:`gate_gradients`."""
        found = torch_gates.parameter_gradients(
            self.program,
            self.tensors,
            self._flat(inputs),
            wanted,
            _targets(target),
            heads=self._heads(judges, categorical),
            generator=torch.Generator().manual_seed(seed),
        )
        return {name: to_numpy(each) for name, each in found.items()}

    def window(self, node: str) -> Window | None:
        """What a convolution sees, also a transposed one; ``None`` for any other node."""
        return torch_steps.window(self._nodes[node])

    def recurrent(self, node: str) -> Recurrent | str | None:
        """The cells of a recurrent layer; why they cannot be refitted; ``None`` for any other node."""
        found = self._nodes[node]
        if found.target not in GATES:
            return None
        return cells(found, next(each.operands for each in self.graph().nodes if each.name == node))

    def adds(self, node: str) -> bool:
        """Whether a node is the plain sum of two tensors."""
        return torch_steps.adds(self._nodes[node])

    def optional(self, node: str) -> bool:
        """Whether a node need not run: a traced graph has no branches of its own."""
        return False

    def scales(self, node: str) -> tuple[float, float]:
        """What a node multiplies its product of two operands by, and what its bias."""
        return torch_steps.scales(self._nodes[node])

    def replaced(self, tensors: Arrays) -> TorchHost:
        """A copy in which stored tensors have other values."""
        changed = dict(self.tensors)
        for name, array in tensors.items():
            old = self.tensor(name)
            given = torch.from_numpy(np.require(array, requirements=["C", "W"]))
            new = given.to(old.device, old.dtype, copy=True).reshape(old.shape)
            if isinstance(old, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
            changed.update((alias, new) for alias in self.tied[name] if alias in changed)
        host = replace(self, tensors=changed, runs=self.runs.following(changed))
        vars(host).update({name: vars(self)[name] for name in _OF_THE_GRAPH if name in vars(self)})
        return host

    def with_values_of(self, module: torch.nn.Module) -> TorchHost:
        """A copy with the parameters and buffers that a module has under the same names; itself if they are the same.

        Args:
            module: The module that was made of this host, trained since, perhaps.

        Raises:
            OutputError: It has lost a parameter, or one has another shape.
        """
        named: dict[str, torch.Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        changed: dict[str, Array] = {}
        for name in self.tied:
            old, new = self.tensor(name), named.get(name)
            if new is None and not isinstance(old, torch.nn.Parameter):
                continue  # a constant of the graph
            if new is None or new.shape != old.shape:
                what = "is gone" if new is None else f"has shape {list(new.shape)}, not {list(old.shape)}"
                raise OutputError(
                    f"'{name}' of the module {what}: it was changed after pruning; write it as it is now with "
                    "graphprune.export_onnx(result.module, example_inputs, path)"
                )
            if not old.is_meta and not torch.equal(new.detach().to(old.device, old.dtype), old):
                changed[name] = to_numpy(new)
        return self.replaced(changed) if changed else self

    def biased(self, biases: Mapping[str, int | None]) -> TorchHost:
        """A copy in which the results of some nodes get a bias of zeros."""
        if not biases:
            return self
        program, copies = copied(self.program)
        tensors = dict(self.tensors)
        nodes = {node.name: node for node in copies.values()}
        for name, axis in biases.items():
            node = nodes[name]
            operands = [str(each.target) for each in node.all_input_nodes if str(each.target) in tensors]
            weight = max(reversed(operands), key=lambda name: tensors[name].ndim)
            spec, like = node.meta[SPEC], tensors[weight]
            own = node.target in torch_steps.BIASED and argument(node, "bias") is None
            shape = bias_shape(spec.shape, axis)[: 1 if own else None]
            bias = torch.nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device), like.requires_grad)
            stored = _bias_name(weight, tensors)
            tensors[stored] = bias
            with program.inserting_before(node):
                constant = program.create_node("get_attr", stored)
            constant.meta = {SPEC: spec_of(bias)}
            if own:
                set_argument(node, "bias", constant)
                continue
            with program.inserting_after(node):
                total = program.create_node("call_function", torch.ops.aten.add.Tensor)
            total.meta = dict(node.meta)
            node.replace_all_uses_with(total)
            total.args = (node, constant)
        return replace(self, draft=Draft(program), tensors=tensors)

    @cached_property
    def adjusted(self) -> Mapping[str, frozenset[str]]:
        """Gains of weight norms and vectors of spectral norms, and the weights that they follow."""
        owners = {alias: owner for owner, aliases in self.tied.items() for alias in aliases}
        found = adjusted(self.program)
        return {owners.get(n, n): frozenset(owners.get(each, each) for each in of) for n, of in found.items()}

    @property
    def source_costs(self) -> Mapping[str, float]:
        """Nothing that the graph does not say."""
        return {}

    def stored_costs(self, *, inner: bool = False) -> Mapping[str, float]:
        """Nothing that the graph does not say."""
        return {}

    def save_onnx(
        self,
        path: Path,
        metadata: Mapping[str, str] | None = None,
        proof: Callable[[Path], None] = lambda path: None,
        *,
        beside: bool = False,
    ) -> None:
        """Writes a checked ONNX file, whole or not at all, with external data beside it above 2 GB.

        Args:
            path: The file.
            metadata: Entries for ``metadata_props``.
            proof: Judges the file before it is in its place.
            beside: Whether weights lie beside it whatever their size.

        Raises:
            OutputError: It cannot be exported or written.
        """
        outputs, entries = self.output_names, metadata or {}
        example, shapes = self.example, self.dynamic_shapes
        torch_onnx.save(self.module, example, shapes, outputs, Path(path), lambda _: entries, proof, beside=beside)

    def export_onnx(self, path: Path, fingerprint: str) -> None:
        """Writes the unpruned model with the origins of its tensors, so that plans made on it apply to the file.

        Raises:
            OutputError: It cannot be exported or written.
        """
        stored = {value.name: self.tensor(value.name) for value in self.graph().stored}

        def metadata(model: Any) -> dict[str, str]:
            return {METADATA: write_origins(fingerprint, torch_onnx.origins(model, stored))}

        torch_onnx.save(self.module, self.example, self.dynamic_shapes, self.output_names, Path(path), metadata)


# -- stored tensors -------------------------------------------------------------------------------------------


def _shared(tensors: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """For each stored tensor of the graph, the other names under which the user's module has it."""
    names: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            names.setdefault(storage_key(tensor), []).append(name)
    found = {}
    for target, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            others = tuple(name for name in names.get(storage_key(tensor), ()) if name != target)
            if others:
                found[target] = others
    return found


def _bias_name(weight: str, tensors: Mapping[str, Any]) -> str:
    """The name of the bias that goes with a weight, as torch's own layers call it, or a free one like it."""
    name = f"{weight.removesuffix('.weight')}.bias" if weight.endswith(".weight") else f"{weight}_bias"
    base, n = name, 0
    while name in tensors:
        n += 1
        name = f"{base}_{n}"
    return name


def _assign(module: torch.nn.Module, name: str, tensor: Any) -> None:
    *path, last = name.split(".")
    owner = module
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, torch.nn.Module())
        owner = cast("torch.nn.Module", owner._modules[part])
    if isinstance(tensor, torch.nn.Module):
        owner.add_module(last, tensor)
    elif isinstance(tensor, torch.nn.Parameter):
        owner._parameters[last] = tensor  # a plain setattr refuses to change a buffer
    else:
        owner._buffers[last] = tensor


def _does_not_run(error: Exception) -> ModelError:
    return ModelError(
        f"the traced model does not run: {first_line(error)}; "
        "give example inputs of the types and values that the model takes"
    )


# -- names and examples ----------------------------------------------------------------------------------------------


def _path_name(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    if not parts:
        return "output"
    return f"output_{'.'.join(parts)}" if parts[0].isdigit() else ".".join(parts)


def _like(array: Array, rng: np.random.Generator) -> Array:
    """Random values in the range of an example; masks and constants stay as they are."""
    if array.size == 0 or array.dtype.kind not in "fiu":
        return array
    if array.dtype.kind == "f":
        spread = float(array.std()) or 1.0
        return (rng.standard_normal(array.shape) * spread + float(array.mean())).astype(array.dtype)
    low, high = int(array.min()), int(array.max())
    if (low, high) in ((0, 0), (0, 1), (1, 1)) or np.array_equal(array.ravel(), np.arange(array.size)):
        return array
    if array.ndim == 1 and array[0] == 0 and (array[1:] >= array[:-1]).all():  # offsets
        return array
    return rng.integers(low, high + 1, array.shape).astype(array.dtype)


def _targets(given: Array | Sequence[Array | None] | None) -> list[torch.Tensor | None]:
    """One target for each judged output."""
    each = list(given) if isinstance(given, list | tuple) else [given]
    return [None if target is None else torch.from_numpy(np.asarray(target)) for target in each]
