"""From names and kinds that a user writes to groups and axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from math import ceil, inf, isfinite, isnan

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis, Group
from graphprune.analysis.kinds import KINDS
from graphprune.errors import OptionError
from graphprune.ir.graph import Graph
from graphprune.planning.selectors import (
    BLOCK_KINDS,
    Selector,
    kind_groups,
    matches,
    means_blocks,
    parts,
    read_selector,
    scopes,
    selected,
)
from graphprune.suggest import meant


def protected_axes(graph: Graph, protect: Iterable[str]) -> list[tuple[str, int | None, str]]:
    """The stored tensors (and axes) that ``protect`` patterns name.

    A pattern is matched against the names of stored tensors and of the scopes that hold them (``layer1`` protects
    ``layer1.0.conv1.weight``), with ``*`` and ``?``; ``[0]`` at its end names one axis. A word that is a kind of group
    (``head``) protects the groups of that kind too, which is the business of :func:`chosen_groups`; ``name:head`` is a
    pattern only, ``kind:head`` a kind only.

    Raises:
        OptionError: A pattern matches nothing, or no matching tensor has its axis.
    """
    found: list[tuple[str, int | None, str]] = []
    names = [value.name for value in graph.stored]
    for selector in map(read_selector, protect):
        if not selector.may_be("name"):
            continue
        text, axis = parts(selector.word)
        hits = [name for name in names if matches(name, text)]
        if axis is not None and hits and all(axis >= len(graph.values[name].shape) for name in hits):
            rank = max(len(graph.values[name].shape) for name in hits)
            raise OptionError(
                f"protect pattern '{selector.text}' names axis {axis}, '{hits[0]}' has {rank} axes, from 0"
            )
        if not hits and selector.kind is None:
            near = ", ".join(f"'{name}'" for name in names[:3])
            known = [] if selector.reading else [*KINDS, *(scope for name in names for scope in scopes(name))]
            pattern = meant(selector.text, known)
            raise OptionError(
                f"protect pattern {pattern} matches no stored tensor and no kind of group; names look like "
                f"{near}, kinds are {', '.join(KINDS)}"
            )
        found.extend((name, axis, f"protected by '{selector.text}'") for name in hits)
    return found


def resizable_axes(graph: Graph, patterns: Iterable[str], *, file: bool = True) -> list[tuple[str, int]]:
    """The axes of inputs and outputs that patterns name, and that have a size of their own.

    ``present.*`` names all axes of these outputs, ``present.*[1]`` one of each. Axes whose size follows from the inputs
    at hand stay what they are.

    Raises:
        OptionError: A pattern matches no input or output, or none that has its axis; or the model is no ``file``.
    """
    patterns = tuple(patterns)
    if patterns and not file:
        raise OptionError(
            "resize_io is about inputs and outputs of ONNX files; those of a module are what its code takes and gives"
        )
    found: list[tuple[str, int]] = []
    names = [*graph.inputs, *graph.outputs]
    for pattern in patterns:
        text, axis = parts(pattern)
        hits = [name for name in names if matches(name, text)]
        if not hits:
            listed = ", ".join(f"'{name}'" for name in names[:6]) + (", ..." if len(names) > 6 else "")
            raise OptionError(
                f"resize_io pattern {meant(pattern, names)} matches no input or output of the model; these are {listed}"
            )
        axes = [
            (name, i)
            for name in hits
            for i in range(len(graph.values[name].shape))
            if axis in (None, i) and i not in graph.values[name].dynamic
        ]
        if not axes:
            what = "any axis of a size of its own" if axis is None else f"an axis {axis} of a size of its own"
            raise OptionError(f"resize_io pattern '{pattern}' matches '{hits[0]}', which has not {what}")
        found.extend(axes)
    return list(dict.fromkeys(found))


def chosen_groups(analysis: Analysis, only: Iterable[str], protect: Iterable[str] = ()) -> tuple[Group, ...]:
    """The groups that ``only`` names (all if it is empty), without the kinds and groups that ``protect`` names.

    A selector is a kind of group (``channel``), a group's name, or a pattern for the names of its tensors, with its
    axis if one is meant (``*.mlp.up_proj.weight[0]``); see :mod:`graphprune.planning.selectors` for what goes first.

    Raises:
        OptionError: A selector names no group.
    """
    kept: set[str] = set()
    for selector in map(read_selector, protect):
        kept.update(group.name for group in kind_groups(selector, analysis))
        if selector.reading == "group":
            kept.update(_named(selector, analysis))
    candidates = [group for group in analysis.groups if group.name not in kept]
    wanted = [read_selector(text) for text in only]
    selectors = [selector for selector in wanted if not means_blocks(selector, analysis)]
    if not selectors:
        return () if wanted else tuple(candidates)
    chosen: set[str] = set()
    for selector in selectors:
        hits = {group.name for group in selected(selector, analysis)} - kept
        if not hits:
            kinds = ", ".join(dict.fromkeys(group.kind for group in analysis.groups)) or "none"
            present = [] if selector.reading else [*KINDS, *(group.name for group in analysis.groups)]
            raise OptionError(
                f"{meant(selector.text, present)} of only selects no group; the kinds in this model are: {kinds}"
            )
        chosen.update(hits)
    return tuple(group for group in candidates if group.name in chosen)


def _named(selector: Selector, analysis: Analysis) -> list[str]:
    names = [group.name for group in analysis.groups if group.name == selector.word]
    if not names:
        shown = ", ".join(f"'{group.name}'" for group in analysis.groups[:3]) or "none"
        raise OptionError(f"'{selector.text}' of protect names no group of the model; groups are called {shown}")
    return names


def most_sensitive(values: Mapping[str, float], ratio: float) -> tuple[str, ...]:
    """The names of the ⌈ratio · n⌉ groups with the largest values (NaN counts as largest), the worst first."""
    order = sorted(values, key=lambda name: -(inf if isnan(values[name]) else values[name]))
    return tuple(order[: ceil(ratio * len(order) - 1e-9)])


def block_candidates(analysis: Analysis, kind: str, protect: Iterable[str] = ()) -> tuple[Block, ...]:
    """The blocks of a kind that may be chosen: for ``block`` those that hold no others; none that is protected."""
    selectors = [read_selector(text) for text in protect]
    if any(selector.kind == kind for selector in selectors):
        return ()
    return tuple(
        block
        for block in analysis.blocks
        if block.kind == kind
        and (kind == "layer" or not block.parts)
        and not any(selector.names(name) for name in block.tensors for selector in selectors)
    )


def block_kinds(only: Iterable[str]) -> list[str]:
    """The kinds of whole blocks that ``only`` names."""
    kinds = [read_selector(text).kind for text in only]
    return [kind for kind in kinds if kind is not None and kind in BLOCK_KINDS]


def named_blocks(analysis: Analysis, selectors: Iterable[str]) -> tuple[Block, ...]:
    """The blocks that selectors name: a block's name, or a pattern for the last weight of a branch or for its scopes.

    ``layers.3`` names all branches that end in ``layers.3``, and so the whole layer. Where no scope is called so, it is
    the end of one: ``model.layers.3``.

    Raises:
        OptionError: A selector names no block, or the ends of several scopes.
    """
    chosen: dict[str, Block] = {}
    for selector in selectors:
        exact = analysis.branches.get(selector)
        hits = _ending_in(analysis, selector) if exact is None else [exact]
        if not hits and not analysis.blocks:
            raise OptionError(f"'{selector}' names no block: the model has none that can be removed")
        if not hits:
            names = ", ".join(f"'{block.name}'" for block in analysis.blocks[:3])
            word = meant(selector, [block.name for block in analysis.blocks])
            raise OptionError(
                f"{word} names no residual branch that can be removed; they are named after the last weight of "
                f"the branch, such as {names} ('graphprune inspect' lists all {len(analysis.blocks)})"
            )
        chosen.update((block.name, block) for block in hits)
    return tuple(chosen.values())


def _ending_in(analysis: Analysis, selector: str) -> list[Block]:
    """The blocks whose last weight lies in a scope of this name, or else in one that ends so."""

    def hits(pattern: str) -> list[Block]:
        ends = {b.name for b in analysis.blocks if any(matches(name, pattern) for name in b.closing)}
        return [b for b in analysis.blocks if (ends.issuperset(b.parts) if b.kind == "layer" else b.name in ends)]

    found = hits(selector)
    if found:
        return found
    closing = {scope for block in analysis.blocks for name in block.closing for scope in scopes(name)}
    ends = sorted(scope for scope in closing if any(fnmatchcase(scope, f"*{at}{selector}") for at in "./"))
    # a pattern, or the scopes within one that it ends, may well be several
    before = {scope[: -len(selector)] for scope in ends}
    if "*" not in selector and "?" not in selector and len(before) > 1:
        shown = ", ".join(f"'{end}'" for end in ends[:4])
        raise OptionError(
            f"'{selector}' may be any of {shown}; write the whole name, or '*.{selector}' for all of them"
        )
    return [block for scope in ends for block in hits(scope)]


def how_many(text: str, n: int, kind: str) -> int:
    """How many of ``n`` blocks ``"2"``, ``"0.25"`` or ``"25%"`` means.

    Raises:
        OptionError: It is no number, is none of them, or more than there are.
    """
    value, whole = _number(text, kind)
    count = (int(value) if whole else int(value * n + 1e-9)) if isfinite(value) else 0
    if not 1 <= count <= n or not (whole or value <= 1):
        raise OptionError(
            f"'{text}' {kind}s of {n} cannot be removed; expected a number from 1 to {n}, or a fraction of at least "
            f"one {kind}"
            if n
            else f"the model has no {kind} that can be removed; see 'graphprune inspect'"
        )
    return count


def require_number(text: str, kind: str) -> None:
    """Refuses what is no number of blocks of any model.

    Raises:
        OptionError: It is not.
    """
    value, whole = _number(text, kind)
    if not isfinite(value) or not (value >= 1 if whole else 0 < value <= 1):
        raise OptionError(f"'{text}' {kind}s cannot be removed; expected a number of 1 or more, or a fraction up to 1")


def _number(text: str, kind: str) -> tuple[float, bool]:
    """What a text says, and whether that is a number of blocks; else it is a fraction of them.

    Raises:
        OptionError: It cannot be read.
    """
    try:
        return float(text.removesuffix("%")) * (0.01 if text.endswith("%") else 1), text.isdigit()
    except ValueError:
        raise OptionError(f"cannot read '{text}' {kind}s; expected a number like 2 or a fraction like 0.25") from None
