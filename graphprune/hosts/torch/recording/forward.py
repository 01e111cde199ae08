"""One forward of a user's module, recorded: a functional graph, and the tensors that it stands on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from graphprune.errors import ModelError
from graphprune.hosts.torch.normal_form import normalized
from graphprune.hosts.torch.quiet import quiet
from graphprune.hosts.torch.recording.known import VARYING
from graphprune.hosts.torch.recording.noted import Calls
from graphprune.hosts.torch.recording.operators import READS, Unrecordable
from graphprune.hosts.torch.recording.places import called
from graphprune.hosts.torch.recording.recorder import Recorder
from graphprune.hosts.torch.recording.ways_past import watching
from graphprune.hosts.torch.specs import SPEC
from graphprune.hosts.torch.trace import Example, inference
from graphprune.hosts.torch.untouched import Looked


@dataclass(frozen=True, eq=False)
class Narrow:
    """What is known of code of which a recording is one of several ways.

    Attributes:
        error: Why the exporter cannot follow it.
        where: What decides, and where: ``'aten.is_nonzero.default' reads values at model.py line 41``.
    """

    error: ModelError
    where: str


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded forward.

    Attributes:
        graph: What was computed, in normal form.
        tensors: What its ``get_attr`` nodes stand for.
        example: The call.
        in_spec: How the arguments flatten into the graph's inputs.
        out_spec: How the graph's outputs make up what the module returned.
        state: The module's parameters and buffers by all their names.
        doubts: Why the recording may be no more than one of several ways that the code takes.
        decisive: Tensors of the example whose values the code has read, or what follows from them.
        narrow: What is known of other ways, where it is in doubt and the exporter cannot take it instead.
        calls: The operators that have run.
    """

    graph: fx.Graph
    tensors: Mapping[str, Any]
    example: Example
    in_spec: Any
    out_spec: Any
    state: Mapping[str, torch.Tensor] = field(repr=False)
    doubts: tuple[str, ...] = ()
    decisive: tuple[torch.Tensor, ...] = ()
    narrow: Narrow | None = None
    calls: Calls = field(default_factory=Calls, repr=False)

    @property
    def pinned(self) -> tuple[torch.Tensor, ...]:
        """Tensors of the example that must keep their values, as far as the recording holds for no others."""
        return () if self.narrow is None else self.decisive


def record(model: nn.Module, example: Example, looked: Looked, *, training: bool = False) -> Recording:
    """Runs a module once and records what it computes; elements of its tensors and of the example are put back.

    What else its code changes (attributes, tables) is left for the caller to put back.

    Args:
        model: The module.
        example: The call.
        looked: What was noted of the module: all tensors that can be reached from it.
        training: Whether the user's own layers run in training mode.

    Raises:
        Unrecordable: The forward does what a recording cannot stand for.
        Exception: Whatever the user's code raises.
    """
    args, kwargs = example
    leaves, in_spec = pytree.tree_flatten((args, kwargs))
    recorder = Recorder(model)
    state = _named(model)
    if word := next((part for name in state for part in name.split(".") if iskeyword(part)), ""):
        raise Unrecordable(f"torch.fx cannot make code of a module that is named '{word}'")
    attributes = _attributes(model)
    recorder.stored({**state, **attributes}, (each.tensor for each in looked.tensors))
    origins: list[tuple[torch.Tensor, int]] = []
    for name, leaf in zip(_input_names(model, example), leaves, strict=True):
        origin = VARYING
        if isinstance(leaf, torch.Tensor):
            if not leaf.is_floating_point():
                origin = VARYING << 1 + len(origins)
            origins.append((leaf, origin))
        recorder.placeholder(name, leaf, origin)
    buffers = dict(model.named_buffers())
    try:
        with (
            quiet(),
            inference(model, training=training),
            torch._C._AutoDispatchBelowAutograd(),
            recorder.places.followed(),
            watching(recorder),
            recorder.calls.asking(),
            recorder,
        ):
            returned = called(model, args, kwargs)
        recorder.calls.note_outputs(returned)
        if recorder.refused:
            raise Unrecordable(recorder.refused)
        results, out_spec = pytree.tree_flatten(returned)
        outputs = tuple(_output(recorder, each) for each in results)
        now = dict(model.named_buffers())
        recorder.written_back({n: now[n] for n, old in buffers.items() if n in now and now[n] is not old})
    finally:
        recorder.undo()
    recorder.graph.output(outputs).meta = {SPEC: None}
    recorder.graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(_argument_names(model, example), in_spec, out_spec)))
    graph = _ordered(recorder, [*state, *attributes])
    tensors = normalized(graph, recorder.tensors)
    decided = recorder.decided
    return Recording(
        graph,
        tensors,
        example,
        in_spec,
        out_spec,
        state,
        tuple(dict.fromkeys(recorder.doubts)),
        tuple(leaf for leaf, origin in origins if decided & (origin | VARYING)),
        calls=recorder.calls,
    )


def _output(recorder: Recorder, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return recorder.value(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise Unrecordable(f"the module returns a '{type(value).__name__}', whose tensors are not found")


def _named(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _attributes(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that are plain attributes of modules."""
    found: dict[str, torch.Tensor] = {}
    for path, layer in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                found[prefix + name] = value
    return found


def _ordered(recorder: Recorder, names: Iterable[str]) -> fx.Graph:
    """The graph without what nothing needs, with what it stands on before all else: in the order of the module."""
    graph = recorder.graph
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "get_attr") and not node.users and not _matters(node):
            graph.erase_node(node)
    left = {str(node.target): node for node in graph.nodes if node.op == "get_attr"}
    order = dict.fromkeys(name for name in (*names, *left) if name in left)
    first = next(iter(graph.nodes))
    for name in order:
        if left[name] is not first:
            first.prepend(left[name])
    return graph


def _matters(node: fx.Node) -> bool:
    """Whether a node does something beside what it returns."""
    if node.target is torch.ops.aten.copy_.default or node.target in READS:
        return True
    return node.op == "call_function" and node.is_impure(impure_random=False)


def _input_names(model: nn.Module, example: Example) -> Iterator[str]:
    """A name for every leaf of the arguments, after the signature of the module's forward."""
    args, kwargs = example
    names = [*_positional(model, len(args)), *kwargs]
    for name, value in zip(names, (*args, *kwargs.values()), strict=True):
        for path, _ in pytree.tree_flatten_with_path(value)[0]:
            yield "_".join([_plain(name), *(_plain(_of_key(key)) for key in path)]).lower()


def _argument_names(model: nn.Module, example: Example) -> list[str]:
    args, kwargs = example
    return [*_positional(model, len(args)), *kwargs]


def _positional(model: nn.Module, n: int) -> list[str]:
    """The names of ``n`` positional arguments."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return [f"arg_{i}" for i in range(n)]
    names: list[str] = []
    for each in parameters:
        if each.kind is each.VAR_POSITIONAL:
            names.extend(f"{each.name}_{i}" for i in range(n - len(names)))
        elif each.kind is not each.KEYWORD_ONLY and each.kind is not each.VAR_KEYWORD:
            names.append(each.name)
    return names[:n] if len(names) >= n else [f"arg_{i}" for i in range(n)]


def _of_key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _plain(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]", "_", name)
