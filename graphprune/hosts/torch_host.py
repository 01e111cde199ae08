"""The torch host: a functional graph of ATen operators that is analysed, edited, run and exported.

A module is exported once; all surgery happens on copies of the exported graph, which share their weights until they
are cut. The user's module is never touched. A graph and a table of tensors are all that surgery and proofs need; the
module that users call is generated from them when it is asked for.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from graphprune.errors import ModelError, PlanError
from graphprune.frontends.torch_graph import (
    SPEC,
    Spec,
    argument,
    argument_position,
    build_graph,
    output_nodes,
    spec_of,
    storage_key,
)
from graphprune.hosts import torch_gates, torch_masked, torch_onnx, torch_steps
from graphprune.hosts.torch_slice import sliced
from graphprune.hosts.torch_trace import Example, export, functional, normal_form, slice_by_run, split_example
from graphprune.ir.graph import Graph
from graphprune.pipeline.host import Array, Arrays, Edits, Gate, Gated, Masks, PinEdit, SizeEdit, Stretch, Window
from graphprune.planning.transfer import METADATA, write_origins

FOLD_BUDGET = 1 << 26
"""Bytes that one folded constant may take."""

_AS_FLOAT32 = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"})
_FRESH = ("zeros", "ones", "full", "empty", "new_", "scalar_tensor", "rand", "bernoulli", "normal", "multinomial")


def to_numpy(tensor: torch.Tensor) -> Array:
    """A tensor's values; types that NumPy lacks come as float32."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype).removeprefix("torch.") in _AS_FLOAT32:
        tensor = tensor.float()
    return tensor.resolve_conj().resolve_neg().numpy()


@dataclass(frozen=True, eq=False)
class TorchHost:
    """A traced PyTorch model.

    Attributes:
        program: The graph.
        tensors: What its ``get_attr`` nodes stand for: stored tensors, and bodies of higher-order operators.
        example: Positional and keyword arguments of the example call.
        dynamic_shapes: As for ``torch.export``; kept for the export to ONNX.
        in_spec: How the arguments flatten into the graph's inputs.
        out_spec: How the graph's outputs make up what the user's module returns.
        shared: Names in the user's module that are one tensor, the one that the graph uses first. The graph may know
            one name only where the user has tied two.
        source: The user's module, if it was one; only read.
    """

    program: fx.Graph
    tensors: Mapping[str, Any]
    example: Example
    dynamic_shapes: Any = None
    in_spec: Any = field(default=None, repr=False)
    out_spec: Any = field(default=None, repr=False)
    shared: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    source: torch.nn.Module | None = field(default=None, repr=False)

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
            program, example = export(model, example, dynamic_shapes)
        if example is None:
            raise ModelError("the exported program holds no example inputs; pass example_inputs")
        spec = program.call_spec
        graph, tensors = normal_form(program)
        return cls(
            graph,
            tensors,
            (example[0], dict(example[1])),
            dynamic_shapes,
            spec.in_spec,
            spec.out_spec,
            _shared(tensors, program.state_dict),
            None if isinstance(model, ExportedProgram) else model,
        )

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

    # -- reading -----------------------------------------------------------------------------------------------------

    @cached_property
    def _built(self) -> tuple[Graph, Mapping[fx.Node, str]]:
        return build_graph(self.program, self.tensors)

    def graph(self) -> Graph:
        """The graph that the analysis reads."""
        return self._built[0]

    def tensor(self, name: str) -> torch.Tensor:
        """A stored tensor itself."""
        found = self.tensors.get(name)
        if not isinstance(found, torch.Tensor):
            raise PlanError(f"'{name}' is no stored tensor of the model; see the names that 'graphprune explain' lists")
        return found

    def read(self, tensor: str) -> Array:
        """The values of a stored tensor; bfloat16 and 8-bit floats come as float32."""
        return to_numpy(self.tensor(tensor))

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
        program, copies = _copied(self.program)
        tensors = dict(self.tensors)
        if missing := [tensor for tensor in edits.slices if tensor not in self.tied]:
            raise PlanError(f"the model has no stored tensor '{missing[0]}'; the plan belongs to another model")
        for tensor, cut in sliced(self.tensors, edits.slices).items():
            tensors.update((alias, cut) for alias in self.tied[tensor] if alias in tensors)
        for tensor, places in edits.renumbered.items():
            table = torch.from_numpy(places)[tensors[tensor].cpu().long()].to(tensors[tensor])
            tensors.update((alias, table) for alias in self.tied[tensor] if alias in tensors)
        nodes = {node.name: node for node in copies.values()} if edits.sizes or edits.pins else {}
        for edit in edits.sizes:
            _write_size(_node(nodes, edit), edit)
        for pin in edits.pins:
            _set_argument(_node(nodes, pin), pin.attribute, pin.value)
        for old, value in self._built[1].items():
            node = copies[old]
            if value in edits.shapes and isinstance(node.meta[SPEC], Spec):
                node.meta[SPEC] = _reshaped(node.meta[SPEC], edits.shapes[value])
        for node in copies.values():
            if isinstance(node.meta[SPEC], tuple):  # a tuple follows the getitem nodes that take it apart
                specs = list(node.meta[SPEC])
                for user in node.users:
                    if isinstance(user.args[1] if len(user.args) > 1 else None, int) and user.meta[SPEC] is not None:
                        specs[cast("int", user.args[1])] = user.meta[SPEC]
                node.meta[SPEC] = tuple(specs)
        if edits.bypasses:
            values = {value: copies[node] for node, value in self._built[1].items()}
            for old_value, new_value in edits.bypasses.items():
                if old_value not in values or new_value not in values:
                    raise PlanError(
                        f"the model has no value '{old_value}' to bypass; the plan belongs to another model"
                    )
                values[old_value].replace_all_uses_with(values[new_value])
        return replace(self, program=program, tensors=tensors)

    def folded(self) -> TorchHost:
        """A copy in which tables that depend on no input, parameter or buffer are constants.

        Only what contains a range or a computation is folded; a lone ``zeros`` or ``ones`` keeps its free axes.
        """
        found = _foldable(self.program)
        if not found:
            return self
        program, copies = _copied(self.program)
        tensors = dict(self.tensors)
        interpreter = torch_masked.Interpreter(program, tensors)
        for original in found:
            node = copies[original]
            with torch.no_grad():
                value = _evaluate(interpreter, node)
            name = f"_folded_{node.name}"
            tensors[name] = value.detach().clone()
            with program.inserting_before(node):
                constant = program.create_node("get_attr", name)
            constant.meta = {**node.meta, SPEC: spec_of(value)}
            node.replace_all_uses_with(constant)
        for node in program.nodes:
            if node.target is torch.ops.aten.index.Tensor:
                slice_by_run(tensors, node)
        return replace(self, program=program, tensors=_tidied(program, tensors))

    def without_dead_nodes(self) -> TorchHost:
        """A copy without nodes and stored tensors that no output needs."""
        if not any(_is_dead(node) for node in self.program.nodes):
            return self
        program, _ = _copied(self.program)
        return replace(self, program=program, tensors=_tidied(program, self.tensors))

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
        return {name: _like(array, rng) for name, array in arrays.items()}

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
        with torch.no_grad(), interpreter.precision():
            return self._named(interpreter.run(*self._flat(inputs), enable_io_processing=False))

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
        target: Array | None,
        *,
        categorical: bool,
        seed: int = 0,
        level: Mapping[Gate, float] | None = None,
    ) -> dict[Gate, Array]:
        """The gradients of a loss by gates, for each sample of a batch.

        Args:
            inputs: By name.
            gates: The gates.
            target: What the first output should be (classes, or values); ``None``: drawn from the model itself.
            categorical: Whether the first output holds logits of classes along its last axis, and the loss is the
                cross entropy; otherwise it is half the mean squared error.
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
            None if target is None else torch.from_numpy(np.asarray(target)),
            categorical=categorical,
            generator=torch.Generator().manual_seed(seed),
            level=level or {},
        )
        return {gate: to_numpy(each) for gate, each in found.items()}

    def parameter_gradients(
        self, inputs: Arrays, wanted: Sequence[str], target: Array | None, *, categorical: bool, seed: int = 0
    ) -> dict[str, Array]:
        """The gradients of a loss by stored tensors, summed over a batch; see :meth:`gate_gradients`."""
        found = torch_gates.parameter_gradients(
            self.program,
            self.tensors,
            self._flat(inputs),
            wanted,
            None if target is None else torch.from_numpy(np.asarray(target)),
            categorical=categorical,
            generator=torch.Generator().manual_seed(seed),
        )
        return {name: to_numpy(each) for name, each in found.items()}

    def window(self, node: str) -> Window | None:
        """What a convolution sees; ``None`` for any other node."""
        return torch_steps.window(self._nodes[node])

    def adds(self, node: str) -> bool:
        """Whether a node is the plain sum of two tensors."""
        return torch_steps.adds(self._nodes[node])

    def replaced(self, tensors: Arrays) -> TorchHost:
        """A copy in which stored tensors have other values."""
        changed = dict(self.tensors)
        for name, array in tensors.items():
            old = self.tensor(name)
            new = torch.from_numpy(np.array(array)).to(old.device, old.dtype).reshape(old.shape)
            if isinstance(old, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
            changed.update((alias, new) for alias in self.tied[name] if alias in changed)
        return replace(self, tensors=changed)

    def biased(self, biases: Mapping[str, int]) -> TorchHost:
        """A copy in which the results of some nodes get a bias of zeros."""
        if not biases:
            return self
        program, copies = _copied(self.program)
        tensors = dict(self.tensors)
        nodes = {node.name: node for node in copies.values()}
        for name, axis in biases.items():
            node = nodes[name]
            weight = str(cast("fx.Node", node.args[1]).target)
            spec, like = node.meta[SPEC], tensors[weight]
            own = node.target in torch_steps.BIASED and argument(node, "bias") is None
            shape = (spec.shape[axis], *(() if own else [1] * (len(spec.shape) - 1 - axis)))
            bias = torch.nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device), like.requires_grad)
            stored = _bias_name(weight, tensors)
            tensors[stored] = bias
            with program.inserting_before(node):
                constant = program.create_node("get_attr", stored)
            constant.meta = {SPEC: spec_of(bias)}
            if own:
                _set_argument(node, "bias", constant)
                continue
            with program.inserting_after(node):
                total = program.create_node("call_function", torch.ops.aten.add.Tensor)
            total.meta = dict(node.meta)
            node.replace_all_uses_with(total)
            total.args = (node, constant)
        return replace(self, program=program, tensors=tensors)

    def save_onnx(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Writes a checked ONNX file, whole or not at all, with external data beside it above 2 GB.

        Raises:
            OutputError: It cannot be exported or written.
        """
        torch_onnx.save(
            self.module, self.example, self.dynamic_shapes, self.output_names, Path(path), lambda _: metadata or {}
        )

    def export_onnx(self, path: Path, fingerprint: str) -> None:
        """Writes the unpruned model with the origins of its tensors, so that plans made on it apply to the file.

        Raises:
            OutputError: It cannot be exported or written.
        """
        stored = {value.name: self.tensor(value.name) for value in self.graph().stored}

        def metadata(model: Any) -> dict[str, str]:
            return {METADATA: write_origins(fingerprint, torch_onnx.origins(model, stored))}

        torch_onnx.save(self.module, self.example, self.dynamic_shapes, self.output_names, Path(path), metadata)


# -- edits of single nodes -------------------------------------------------------------------------------------------


def _tidied(program: fx.Graph, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Removes dead nodes from a graph; the tensors that are left."""
    for node in reversed(program.nodes):
        if _is_dead(node):
            program.erase_node(node)
    used = {str(node.target) for node in program.nodes if node.op == "get_attr"}
    return {name: tensor for name, tensor in tensors.items() if name in used}


def _is_dead(node: fx.Node) -> bool:
    """Whether nothing needs a node; attention counts as random to torch, since it may have dropout."""
    return not node.users and node.op in ("call_function", "get_attr") and not node.is_impure(impure_random=False)


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


def _copied(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of the graph, and what each node became; what describes the module's interface is shared."""
    new = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        nodes[node] = new.node_copy(node, nodes.__getitem__)
    new.set_codegen(graph._codegen)
    return new, nodes


def _bias_name(weight: str, tensors: Mapping[str, Any]) -> str:
    """The name of the bias that goes with a weight, as torch's own layers call it, or a free one like it."""
    name = f"{weight.removesuffix('.weight')}.bias" if weight.endswith(".weight") else f"{weight}_bias"
    base, n = name, 0
    while name in tensors:
        n += 1
        name = f"{base}_{n}"
    return name


def _node(nodes: Mapping[str, fx.Node], edit: SizeEdit | PinEdit) -> fx.Node:
    node = nodes.get(edit.node)
    if node is None:
        raise PlanError(f"the model has no node '{edit.node}'; the plan belongs to another model")
    return node


def _set_argument(node: fx.Node, name: str, value: Any) -> None:
    at = argument_position(node, name)
    if at is not None and at < len(node.args):
        node.update_arg(at, value)
    else:
        node.update_kwarg(name, value)


def _write_size(node: fx.Node, edit: SizeEdit) -> None:
    present = argument(node, edit.attribute)
    if edit.index is None:
        _set_argument(node, edit.attribute, _scaled(node, present, edit))
        return
    values = list(present)
    values[edit.index] = _scaled(node, values[edit.index], edit)
    _set_argument(node, edit.attribute, values)


def _scaled(node: fx.Node, present: Any, edit: SizeEdit) -> Any:
    """The new size; one that is computed at run time (``batch * 12``) is multiplied by the ratio of the two sizes."""
    if not isinstance(present, fx.Node):
        return edit.new
    common = gcd(edit.old, edit.new)
    graph = node.graph
    with graph.inserting_before(node):
        scaled = graph.call_function(_mul, (present, edit.new // common))
        divided = graph.call_function(_floordiv, (scaled, edit.old // common))
    for made in (scaled, divided):
        made.meta[SPEC] = None
    return divided


_mul, _floordiv = operator.mul, operator.floordiv


def _reshaped(spec: Spec, shape: tuple[int, ...]) -> Spec:
    dynamic = []
    for axis, static in spec.dynamic:
        scaled, rest = divmod(static * shape[axis], spec.shape[axis])
        dynamic.append((axis, 0 if rest else scaled))
    return replace(spec, shape=tuple(shape), dynamic=tuple(dynamic))


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


# -- folding ---------------------------------------------------------------------------------------------------------


def _foldable(graph: fx.Graph) -> list[fx.Node]:
    """The last nodes of computations that start from nothing (ranges, fills) and are worth a constant."""
    free: set[fx.Node] = set()
    worthy: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        operands = node.all_input_nodes
        if any(operand not in free for operand in operands) or not isinstance(node.meta[SPEC], Spec):
            continue
        spec = node.meta[SPEC]
        if spec.dynamic or spec.itemsize * int(np.prod(spec.shape, dtype=np.int64)) > FOLD_BUDGET:
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        free.add(node)
        fresh = str(node.target).split(".")[1].startswith(_FRESH)
        if any(operand in worthy for operand in operands) or (not operands and not fresh):
            worthy.add(node)
    return [node for node in graph.nodes if node in worthy and any(user not in free for user in node.users)]


def _evaluate(interpreter: fx.Interpreter, node: fx.Node) -> torch.Tensor:
    for operand in node.all_input_nodes:
        if operand not in interpreter.env:
            _evaluate(interpreter, operand)
    interpreter.env[node] = interpreter.run_node(node)
    return cast("torch.Tensor", interpreter.env[node])


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
    return rng.integers(low, high + 1, array.shape).astype(array.dtype)
