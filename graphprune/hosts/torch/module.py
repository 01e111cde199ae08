"""The user's own module, made as small as the pruned graph.

The graph module that torch.export gives is exact, but it has lost the methods of the user's class (``generate``) and
its training behaviour (dropout). So a copy of the user's module gets the pruned tensors, and the numbers that it keeps
in attributes (``num_heads``) change where the copy fails without it. Which number means which size cannot be known; it
is tried and proven: a copy is handed out only if it computes what the pruned graph computes, with tensors of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphprune.compensation.activation_cache import HELD, ActivationCache
from graphprune.errors import ModelError, first_line
from graphprune.hosts.host import Arrays
from graphprune.hosts.torch.alike import wrong_contents
from graphprune.hosts.torch.attention import adapt_attention
from graphprune.hosts.torch.attributes import Candidates, Changes, Use, fit
from graphprune.hosts.torch.batch import graph_module
from graphprune.hosts.torch.bypass import bypass_modules
from graphprune.hosts.torch.checkpoints.adopt import Adopted, adopt
from graphprune.hosts.torch.checkpoints.refusing import refuse_writing
from graphprune.hosts.torch.checkpoints.renumber import Renumbering
from graphprune.hosts.torch.checkpoints.stating import left_of
from graphprune.hosts.torch.fitting import fitted, uses_of, with_resizes
from graphprune.hosts.torch.generate import Cached
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.layers import repair_known, resized_sizes
from graphprune.hosts.torch.other_ways import other_uses, other_ways_notes
from graphprune.hosts.torch.own import foreign_reads, sliced_copy
from graphprune.hosts.torch.stored import to_numpy
from graphprune.hosts.torch.trace import inference
from graphprune.hosts.torch.untouched import Looked, guarded, untouched
from graphprune.hosts.torch.writes import Memory, watching
from graphprune.pipeline.state import Check, State
from graphprune.proof.differences import off_slices
from graphprune.report.data import AttributeRow

TOLERANCE = 1e-5
"""Largest accepted difference to the pruned graph, relative to the largest output of each slice."""

_EXAMPLES = 2
_NOISE = 8
"""Rounding steps of the largest output that are accepted anywhere."""

_WARM = "the module holds the tables that its code makes on the first call, cut as the rest"

_ONE_WAY = "what was cut is proven for the way that the example takes, in which all parameters are used"


@dataclass(frozen=True)
class Made:
    """The trainable module of a compiled model.

    Attributes:
        module: The user's own class, or a graph module; ``None`` where there is neither.
        notes: What to say about it.
        attributes: The numbers that differ from those of the user's module.
        checks: What was proven of it beside its forward.
        renumbering: What became of its lists of layers, of which some are gone.
        unsaid: By path of a part with a config: why no config says its shape.
    """

    module: nn.Module | None
    notes: tuple[str, ...] = ()
    attributes: tuple[AttributeRow, ...] = ()
    checks: tuple[Check, ...] = ()
    renumbering: Renumbering = field(default=Renumbering())
    unsaid: Mapping[str, str] = field(default_factory=dict)

    @property
    def former(self) -> Callable[[str], str]:
        """From names in the module to those in the host."""
        return self.renumbering.old


def pruned_module(state: State) -> Made:
    """The trainable module of a compiled model, and notes where it is not the user's own class.

    Its tensors are its own: training it leaves the user's module as it is.
    """
    pruned, original = state.host, state.original
    if not isinstance(pruned, TorchHost) or not isinstance(original, TorchHost):
        return Made(None)
    guard = nullcontext() if pruned.source is None else guarded(pruned.source)
    with torch.inference_mode(mode=False), guard:  # tensors that are made in this mode cannot be trained
        return _pruned_module(state, original, pruned)


def _pruned_module(state: State, original: TorchHost, pruned: TorchHost) -> Made:
    reason = "the model was given as an exported program"
    if pruned.is_meta and (left := left_of(original, state)) is not None:
        return Made(*left)
    if pruned.is_meta:
        reason = "weights on the meta device have no values, with which a copy of your class could be proven"
    elif pruned.source is not None:
        removed = state.removed if state.analysis is not None else ()
        sums = state.analysis.branches.carrying(removed) if state.analysis and removed else frozenset[str]()
        reason = ""
        for source in filter(None, (pruned.source, pruned.runs.warm)):
            known = state.answers[1] if state.answers is not None and state.answers[0] is pruned else None
            made = sliced_module(source, original, pruned, sums, proof=state.proves, known=known)
            if made.module is not None:
                held = (_WARM,) if source is pruned.runs.warm else ()
                if pruned.narrow is not None:
                    held = (*held, f"the code decides by values what it computes ({pruned.narrow.where}): {_ONE_WAY}")
                return replace(
                    made, notes=(*made.notes, *held, *other_ways_notes(state, original, pruned, made.module))
                )
            reason = reason or " ".join(made.notes)
    if pruned.narrow is not None:
        raise ModelError(
            f"the code decides by values what it computes ({pruned.narrow.where}), so that only your class may come "
            f"back, but {reason}; {pruned.narrow.error}"
        )
    graph, note = graph_module(state, original, pruned, reason)
    return Made(_detached(graph), (note,))


def sliced_module(
    source: nn.Module,
    original: TorchHost,
    pruned: TorchHost,
    sums: AbstractSet[str] = frozenset(),
    *,
    proof: bool = True,
    known: Arrays | None = None,
) -> Made:
    """A copy of ``source`` that computes what ``pruned`` computes.

    Args:
        source: The user's module; it is not touched.
        original: The graph of ``source``.
        pruned: The pruned graph.
        sums: Names of the sums that lost a branch.
        proof: Whether it is tried on random inputs beside the example.
        known: What ``pruned`` computes on the example, if it was run.

    Returns:
        The module and notes, or the reason why there is none.
    """
    with ActivationCache([{}] * _EXAMPLES, HELD) as expected:
        return _sliced_module(source, original, pruned, sums, _Forward(pruned, expected, proof=proof, known=known))


def _sliced_module(
    source: nn.Module, original: TorchHost, pruned: TorchHost, sums: AbstractSet[str], called: _Forward
) -> Made:
    try:
        module, notes = _cut_copy(source, original, pruned, sums)
    except Exception as error:  # noqa: BLE001  # a user's class may forbid copies in any way
        return Made(None, (f"the module of class '{type(source).__name__}' cannot be copied: {error}",))
    example = original.arguments(original.example_inputs())
    decoding = Cached(source, example)
    forward = called.use
    uses = uses_of(forward, decoding)
    sizes = [pair for changed in resized_sizes(original, pruned).values() for pair in changed]
    adopted = adopt(module, source, sizes)
    reasons = dict(adopted.reasons)
    if adopted.rows:
        reason = _wrongly_adopted(module, source, (original, pruned), adopted, uses, called)
        if not reason:
            refuse_writing(module, reasons)
            left = notes if not adopted.renumbering.gone else ()
            return Made(
                module,
                (*left, *filter(None, (decoding.note,))),
                adopted.rows,
                decoding.checks(module),
                adopted.renumbering,
                reasons,
            )
        reasons = {**reasons, **dict.fromkeys(adopted.roots, reason)}
        module, notes = _cut_copy(source, original, pruned, sums)
    candidates = Candidates.of(source, original, pruned)
    changes, reason = fitted(module, candidates, uses, called.forget)
    if reason and forward.judge(module):
        changes, told = with_resizes(module, candidates, forward, decoding, (original, pruned))
        reason, notes = ("", (*notes, told)) if told else (reason, notes)
        called.forget()
    for use in () if reason else other_uses(original, pruned):  # where it cannot be served, a note will say so
        if use.judge(module):
            changes, _ = fit(module, candidates, (*uses, use), changes)
            called.forget()
    reason = foreign_reads(module, source, pruned, called.run, called.seen_now) or reason
    reason = reason or wrong_contents(module, source, original, pruned, changes)
    if reason:
        return Made(None, (f"a sliced copy of '{type(source).__name__}' is not the pruned model: {reason}",))
    refuse_writing(module, reasons)
    notes = (*notes, *filter(None, (decoding.note,)))
    return Made(module, notes, _rows(candidates, changes), decoding.checks(module), unsaid=reasons)


def _cut_copy(
    source: nn.Module, original: TorchHost, pruned: TorchHost, sums: AbstractSet[str]
) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy with pruned tensors and placeholders for branches that are gone, and notes; it may not run yet."""
    module, notes = sliced_copy(source, pruned, original), tuple[str, ...]()
    if sums:
        example = original.arguments(original.example_inputs())
        paths = bypass_modules(module, source, original.program, pruned.program, sums, example)
        notes = (f"in the module, placeholders stand for what was left out: {', '.join(paths)}",) if paths else ()
    with inference(module):  # a parametrization may change its buffers when it is read in training mode
        repair_known(module, original, pruned)
        adapt_attention(module, resized_sizes(original, pruned))
    return module, notes


def _wrongly_adopted(
    module: nn.Module,
    source: nn.Module,
    hosts: tuple[TorchHost, TorchHost],
    adopted: Adopted,
    uses: Sequence[Use],
    called: _Forward,
) -> str:
    """Why a copy that is what a config says is not the pruned model; empty if it is."""
    original, pruned = hosts
    reason = next((reason for use in uses if (reason := use.judge(module))), "")
    reason = reason or next((why for use in other_uses(original, pruned) if (why := use.judge(module))), "")
    names = adopted.renumbering.old
    return (
        reason
        or foreign_reads(module, source, pruned, called.run, called.seen_now, names)
        or wrong_contents(module, source, original, pruned, adopted.changes, names)
    )


def _rows(candidates: Candidates, changes: Changes) -> tuple[AttributeRow, ...]:
    return tuple(AttributeRow(str(spot), candidates.spots[spot], value) for spot, value in changes.items())


def _detached(pruned: TorchHost) -> nn.Module:
    """The graph module with tensors of its own."""
    module = pruned.without_dead_nodes().module
    memo: dict[int, torch.Tensor] = {}
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in memo:
                    fresh = tensor.detach().clone()
                    kept = isinstance(tensor, nn.Parameter)
                    memo[id(tensor)] = nn.Parameter(fresh, requires_grad=tensor.requires_grad) if kept else fresh
                table[name] = memo[id(tensor)]  # type: ignore[assignment]
    return module


# -- the proof -------------------------------------------------------------------------------------------------------


class _Forward:
    """The use that the graph was traced from: one call in evaluation mode, on the example and on random inputs.

    Args:
        pruned: The graph.
        expected: Takes what it computes.
        proof: Whether random inputs are tried as well.
        known: What it computes on the example, if it was run.
    """

    def __init__(self, pruned: TorchHost, expected: ActivationCache, *, proof: bool, known: Arrays | None) -> None:
        self.pruned, self.expected = pruned, expected
        self.examples = [pruned.example_inputs(0)]
        expected[0] = dict(known) if known is not None else pruned.run(self.examples[0])
        self._seen, self._right = set[Memory](), False
        if not proof:
            return
        try:
            other = pruned.example_inputs(1)
            expected[1] = pruned.run(other)
            self.examples.append(other)
        except ModelError:  # random values that the model does not take
            pass

    def run(self, module: nn.Module) -> Any:
        """Calls a module on the example."""
        args, kwargs = self.pruned.arguments(self.examples[0])
        with watching(), inference(module), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # as the graph is run
            return module(*args, **kwargs)

    def judge(self, module: nn.Module) -> str:
        """Why a module does not compute what the graph does; empty if it does."""
        self._seen = set()
        # each in a call of its own, whose values are gone before the next: they may be of a whole vocabulary
        looked = Looked(module)
        found = (self._difference(module, i, looked) for i in range(len(self.examples)))
        reason = next(filter(None, found), "")
        self._right = not reason
        return reason

    @property
    def use(self) -> Use:
        """The use of a copy that this is."""
        return Use("forward", self.run, self.judge)

    @property
    def seen_now(self) -> set[Memory] | None:
        """What the module has read that was judged last, if it was right and is as it was then; else ``None``."""
        return self._seen if self._right else None

    def forget(self) -> None:
        """Says that the module is not any more, or may not be, what was judged last."""
        self._right = False

    def _difference(self, module: nn.Module, number: int, looked: Looked) -> str:
        """As :meth:`judge`, on one example."""
        args, kwargs = self.pruned.arguments(self.examples[number])
        try:
            seen = None if number else self._seen
            with untouched(module, runs=True, seen=seen, looked=looked), inference(module):
                torch.manual_seed(0)  # as the graph is run
                output = module(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # a wrong size makes the user's code fail in any way
            return f"it fails with '{first_line(error)}'"
        want = list(self.expected[number].values())
        got = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        if len(got) != len(want):
            return f"it returns {len(got)} tensors instead of {len(want)}"
        for ours, theirs in zip(got, want, strict=True):
            if tuple(ours.shape) != theirs.shape:
                return f"an output has shape {list(ours.shape)} instead of {list(theirs.shape)}"
            off = _off(ours, theirs)
            if not off <= TOLERANCE:
                return f"its outputs differ by {off:.2g} of the largest value"
        return ""


def _off(ours: torch.Tensor, theirs: Any) -> float:
    """The largest difference, relative to the largest value of the slice where it is: of every slice of every axis.

    A slice of numbers far smaller than others is not held to more than rounding of the largest allows.
    """
    step = torch.finfo(ours.dtype).eps if ours.is_floating_point() else 0.0
    pair = np.asarray(theirs), to_numpy(ours.detach())
    return off_slices([pair], _NOISE * step / TOLERANCE)
