"""A sliced copy is given the numbers that it needs to be used as the user's module is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from graphprune.hosts.torch.attributes import Candidates, Changes, Use, apply_changes, fit, likeliest, shrunk
from graphprune.hosts.torch.batch import wrong_in_batches
from graphprune.hosts.torch.constructor import constructed_changes
from graphprune.hosts.torch.generate import Cached
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.resizes import resize_forwards
from graphprune.hosts.torch.writes import watching


def fitted(
    module: nn.Module, candidates: Candidates, uses: Sequence[Use], forget: Callable[[], None]
) -> tuple[Changes, str]:
    """Changes the numbers of a sliced copy: those that it fails without, and those that constructors tie to sizes."""
    tied = constructed_changes(candidates.source, module)
    if found := _with_tied(module, candidates, uses, {}, tied):  # most often they are right, and one run shows it
        return found, ""
    needed, reason = fit(module, candidates, uses[:1], {})
    if reason:
        return needed, reason
    if needed and (found := _with_tied(module, candidates, uses, needed, tied)):
        return found, ""
    if tied:
        forget()
    return fit(module, candidates, uses, needed, known="")


def _with_tied(
    module: nn.Module, candidates: Candidates, uses: Sequence[Use], needed: Changes, tied: Changes
) -> Changes:
    """All changes with which a copy serves its uses, those that constructors tie to sizes among them; else none."""
    wanted = {**tied, **needed}
    if wanted == needed:
        return {}
    apply_changes(module, candidates, needed, wanted)
    changes, reason = wanted, uses[0].judge(module)
    if not reason:
        changes, reason = fit(module, candidates, uses, wanted, known="")
    if reason:
        apply_changes(module, candidates, changes, needed)
    return {} if reason else changes


def uses_of(forward: Use, decoding: Cached) -> tuple[Use, ...]:
    """What a copy must serve, in order."""
    if decoding.decoding is None:
        return (forward,)

    def run(module: nn.Module) -> None:
        with watching():
            decoding.run(module)

    def judge(module: nn.Module) -> str:
        with watching():
            return decoding.judge(module)

    return forward, Use("cached", run, judge)


def with_resizes(
    module: nn.Module,
    candidates: Candidates,
    forward: Use,
    decoding: Cached,
    hosts: tuple[TorchHost, TorchHost],
) -> tuple[Changes, str]:
    """Replaces sizes where code gives them to reshapes; with the user's numbers if that will do, else with new ones.

    Returns:
        The changed numbers and what to tell the user; empty if that does not help.
    """
    original, pruned = hosts

    def judge(module: nn.Module) -> str:
        return forward.judge(module) or decoding.judge(module) or wrong_in_batches(module, original, pruned)

    for parts in ([], [constructed_changes(candidates.source, module)], likeliest(candidates, forward)):
        changes = {spot: value for part in parts for spot, value in part.items()}
        apply_changes(module, candidates, {}, changes)
        if told := resize_forwards(module, pruned, lambda: forward.judge(module), lambda: judge(module)):
            return shrunk(module, candidates, {}, parts, [Use("resized", forward.run, judge)]), told
        apply_changes(module, candidates, changes, {})
    return {}, ""
