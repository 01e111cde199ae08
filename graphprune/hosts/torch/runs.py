"""The other ways in which a user's module runs: in training mode, with a flag, on its second call, dead code and all.

A trace in evaluation mode does not see what only runs in training (auxiliary heads, deep supervision), what only an
argument switches on, and what is computed for nothing. Their weights read what is pruned all the same, and the module
that people get back has them. So the module is traced again where its code asks for the mode, or where parameters are
left that the first trace did not meet. These runs are analysed and cut along with the first one; nothing else of them
is pruned, exported or counted.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from graphprune.errors import first_line
from graphprune.hosts.edits import Edits
from graphprune.hosts.torch.front import traced
from graphprune.hosts.torch.modes import Downstream, asks_for_training, differs_in_training, flipped_flags, reads_any
from graphprune.hosts.torch.program import Program
from graphprune.hosts.torch.quiet import quiet
from graphprune.hosts.torch.recording.forward import Recording
from graphprune.hosts.torch.recording.noted import Calls
from graphprune.hosts.torch.specs import storage_key
from graphprune.hosts.torch.trace import Example, Trace, inference
from graphprune.hosts.torch.untouched import untouched
from graphprune.ir.graph import Graph


@dataclass(frozen=True, eq=False)
class OtherRun:
    """A module run in another way.

    Attributes:
        label: The way: ``in training mode``.
        host: What it computes.
        shared: What its stored tensors are called in the main host.
        training: Whether the user's own layers ran in training mode.
    """

    label: str
    host: Program
    shared: Mapping[str, str]
    training: bool

    def graph(self, values: Mapping[str, Any]) -> Graph:
        """Its graph, as an other of a graph with some values."""
        shared = {name: main for name, main in self.shared.items() if main in values}
        return replace(self.host.graph(), label=self.label, shared=shared)

    def edited(self, edits: Edits, tensors: Mapping[str, Any]) -> OtherRun:
        """Edited; what it shares is taken from the main host's edited tensors."""
        cut = {name: axes for name, axes in edits.slices.items() if self.shared.get(name) not in tensors}
        numbered = {name: new for name, new in edits.renumbered.items() if self.shared.get(name) not in tensors}
        host = self.host.edited(replace(edits, slices=cut, renumbered=numbered))
        return replace(self, host=replace(host, tensors=self._own(host, tensors)))

    def following(self, tensors: Mapping[str, Any]) -> OtherRun:
        """With other values of the main host's tensors."""
        return replace(self, host=self.host.with_tensors(self._own(self.host, tensors)))

    def _own(self, host: Program, tensors: Mapping[str, Any]) -> dict[str, Any]:
        own = dict(host.tensors)
        for name, main in self.shared.items():
            if main in tensors:
                own.update((alias, tensors[main]) for alias in host.tied.get(name, (name,)) if alias in own)
        return own


@dataclass(frozen=True, eq=False)
class OtherRuns:
    """All other runs of a module.

    Attributes:
        runs: The runs.
        unreached: Names of the parameters that no run meets.
        failure: Why there is no run in training mode, although the code asks for the mode.
        warm: The module after a call of its own, with the user's weights, where its code makes tables on first use.
    """

    runs: tuple[OtherRun, ...] = ()
    unreached: tuple[str, ...] = ()
    failure: str = ""
    warm: nn.Module | None = None

    def graphs(self, values: Mapping[str, Any]) -> tuple[Graph, ...]:
        """Their graphs."""
        return tuple(run.graph(values) for run in self.runs)

    def edited(self, edits: Sequence[Edits], tensors: Mapping[str, Any]) -> OtherRuns:
        """Edited along with the main host, whose tensors are these now; not at all where nobody says how."""
        if len(edits) != len(self.runs):
            return self
        runs = zip(self.runs, edits, strict=True)
        return replace(self, runs=tuple(run.edited(each, tensors) for run, each in runs))

    def following(self, tensors: Mapping[str, Any]) -> OtherRuns:
        """With the main host's tensors."""
        return replace(self, runs=tuple(run.following(tensors) for run in self.runs))

    def folded(self) -> OtherRuns:
        """Folded."""
        return replace(self, runs=tuple(replace(run, host=run.host.folded()) for run in self.runs))


AnyProgram = TypeVar("AnyProgram", bound=Program)


def other_runs(
    model: nn.Module, example: Example, main: Program, *, caches: bool, calls: Calls | None = None
) -> OtherRuns:
    """Runs a module in the other ways that matter; it is left as it was.

    Args:
        model: The module.
        example: A call of it.
        main: Its trace in evaluation mode.
        caches: Whether its code makes tables on first use.
        calls: The operators that it runs through in evaluation mode, where it was recorded.
    """
    looking = _Looking(model, example, main)
    warm = looking.again() if caches else None
    unreached = looking.unreached()
    failure = ""
    asks = asks_for_training(model)
    differs = False
    if asks and not main.is_meta and (calls is None or calls.asked):
        differs, failure = differs_in_training(model, example, calls)
    if differs or (unreached and not failure):
        label = "in training mode" if asks else "where its result is not used"
        failure = looking.try_run(label, example, needed=differs)
    for name, value in flipped_flags(model, example) if looking.unreached() else ():
        flipped = (example[0], {**example[1], name: value})
        way = f"with {name}={value}"
        looking.try_run(f"in training mode {way}" if asks else way, flipped)
    return OtherRuns(tuple(looking.runs), looking.unreached(), failure if asks else "", warm)


@dataclass(eq=False)
class _Looking:
    """The search for other runs, and those that were found."""

    model: nn.Module
    example: Example
    main: Program
    runs: list[OtherRun] = field(default_factory=list)

    def unreached(self) -> tuple[str, ...]:
        """The parameters that no run so far meets."""
        hosts = (self.main, *(run.host for run in self.runs))
        met = {storage_key(t) for host in hosts for t in host.tensors.values() if isinstance(t, torch.Tensor)}
        named = self.model.named_parameters()
        return tuple(name for name, tensor in named if tensor.numel() and storage_key(tensor) not in met)

    def try_run(self, label: str, example: Example, *, needed: bool = False) -> str:
        """Traces the module with all that becomes of unreached parameters; why not, if it cannot be.

        The run is kept where it meets one of them, or where it is ``needed``.
        """
        left = self.unreached()
        if not needed and not self.main.is_meta:
            met, failure = reads_any(self.model, example, left)
            if not met:
                return failure
        try:
            with untouched(self.model), quiet(), _downstream(self.model, left):
                host = _without_more(Program.of(traced(self.model, example, training=True)))
        except Exception as error:  # noqa: BLE001  (the user's code raises what it likes)
            return first_line(error.__cause__ or error)
        before = len(self.unreached())
        self._keep(label, host, training=True)
        if not needed and len(self.unreached()) == before:
            self.runs.pop()
        return ""

    def again(self) -> nn.Module | None:
        """The module as its first call leaves it, whose second call is a run of its own."""
        found = second_call(self.model, self.example, None, Program.of)
        if found is None:
            return None
        warm, host = found
        self._keep("on the second call", host, training=False)
        return warm

    def _keep(self, label: str, host: Program, *, training: bool) -> None:
        names = {storage_key(self.main.tensors[name]): name for name in self.main.tied}
        keys = {name: storage_key(host.tensors[name]) for name in host.tied}
        shared = {name: names[key] for name, key in keys.items() if key in names}
        self.runs.append(OtherRun(label, host, shared, training))


def second_call(
    model: nn.Module, example: Example, dynamic_shapes: Any, build: Callable[[Trace | Recording], AnyProgram]
) -> tuple[nn.Module, AnyProgram] | None:
    """A module as its first call leaves it, with the weights of the user's module, and the trace of its second call.

    Args:
        model: The module.
        example: A call of it.
        dynamic_shapes: As for ``torch.export``.
        build: Makes a host of a trace.
    """
    args, kwargs = example
    try:
        with untouched(model, runs=True), quiet():
            with inference(model):
                model(*args, **kwargs)
            host = build(traced(model, example, dynamic_shapes))
            shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
            shared |= {id(t): t for t in host.tensors.values() if isinstance(t, torch.Tensor)}
            return copy.deepcopy(model, dict(shared)), host
    except Exception:  # noqa: BLE001  (the user's code raises what it likes)
        return None


# -- tracing what nobody asks for --------------------------------------------------------------------------------------


class _More(NamedTuple):
    """What a run returns, and what else it has computed."""

    result: Any
    more: list[torch.Tensor]


@contextmanager
def _downstream(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """The module returning as well what becomes of some of its parameters, which tracing would leave out if unused."""
    forward = model.forward

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> _More:
        named = dict(model.named_parameters())
        with Downstream(named[name] for name in names if name in named) as mode:
            result = forward(*args, **kwargs)
        sources = mode.sources
        return _More(result, [tensor for place, tensor in mode.found.items() if place not in sources])

    own = vars(model).get("forward")
    vars(model)["forward"] = run
    try:
        yield
    finally:
        del vars(model)["forward"]
        if own is not None:
            vars(model)["forward"] = own


def _without_more(host: Program) -> Program:
    """The host of a run of :func:`_downstream` with the module's own outputs; what else it computes stays in it."""
    spec = host.out_spec.children()[0]
    graph = host.lazy.base
    (output,) = (node for node in graph.nodes if node.op == "output")
    returned = output.args[0]
    output.args = (tuple(returned[: spec.num_leaves]),)
    return replace(host, out_spec=spec)
