"""From names and kinds that a user writes to groups and axes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from math import ceil, inf, isnan

from graphprune.analysis.blocks import Block
from graphprune.analysis.groups import Analysis, Group
from graphprune.analysis.kinds import KINDS
from graphprune.errors import OptionError
from graphprune.ir.graph import Graph

_SELECTOR = re.compile(r"(?P<pattern>.+?)(?:\[(?P<axis>\d+)\])?$", re.DOTALL)


def protected_axes(graph: Graph, protect: Iterable[str]) -> list[tuple[str, int | None, str]]:
    """The stored tensors (and axes) that ``protect`` patterns name.

    A pattern is matched against the names of stored tensors and of the scopes that hold them (``layer1`` protects
    ``layer1.0.conv1.weight``), with ``*`` and ``?``; ``[0]`` at its end names one axis. A word that is a kind of group
    (``head``) protects the groups of that kind too, which is the business of :func:`chosen_groups`.

    Raises:
        OptionError: A pattern matches nothing, or no matching tensor has its axis.
    """
    found: list[tuple[str, int | None, str]] = []
    names = [value.name for value in graph.stored]
    for pattern in protect:
        text, axis = _parts(pattern)
        hits = [name for name in names if _matches(name, text)]
        if axis is not None and hits and all(axis >= len(graph.values[name].shape) for name in hits):
            rank = max(len(graph.values[name].shape) for name in hits)
            raise OptionError(f"protect pattern '{pattern}' names axis {axis}, '{hits[0]}' has {rank} axes, from 0")
        if not hits and pattern not in KINDS:
            near = ", ".join(f"'{name}'" for name in names[:3])
            raise OptionError(
                f"protect pattern '{pattern}' matches no stored tensor and no kind of group; names look like {near}, "
                f"kinds are {', '.join(KINDS)}"
            )
        found.extend((name, axis, f"protected by '{pattern}'") for name in hits)
    return found


def chosen_groups(analysis: Analysis, only: Iterable[str], protect: Iterable[str] = ()) -> tuple[Group, ...]:
    """The groups that ``only`` selectors name, without kinds that ``protect`` names; all where ``only`` is empty.

    A selector is a kind of group (``channel``), a group's name, or a pattern for the names of its tensors, with its
    axis if one is meant (``*.mlp.up_proj.weight[0]``).

    Raises:
        OptionError: A selector names no group.
    """
    kept = frozenset(protect) & KINDS.keys()
    candidates = [group for group in analysis.groups if group.kind not in kept]
    wanted = list(only)
    selectors = [selector for selector in wanted if selector not in BLOCK_KINDS]
    if not selectors:
        return () if wanted else tuple(candidates)
    chosen: dict[str, Group] = {}
    for selector in selectors:
        hits = [group for group in candidates if _selects(selector, group)]
        if not hits:
            kinds = ", ".join(dict.fromkeys(group.kind for group in analysis.groups)) or "none"
            raise OptionError(f"'{selector}' of only selects no group; the kinds in this model are: {kinds}")
        chosen.update((group.name, group) for group in hits)
    return tuple(group for group in candidates if group.name in chosen)


def most_sensitive(values: Mapping[str, float], ratio: float) -> tuple[str, ...]:
    """The names of the ⌈ratio · n⌉ groups with the largest values (NaN counts as largest), the worst first."""
    order = sorted(values, key=lambda name: -(inf if isnan(values[name]) else values[name]))
    return tuple(order[: ceil(ratio * len(order) - 1e-9)])


BLOCK_KINDS = frozenset({"layer", "block"})
"""Kinds of unit that are no groups."""


def block_candidates(analysis: Analysis, kind: str, protect: Iterable[str] = ()) -> tuple[Block, ...]:
    """The blocks of a kind that may be chosen: for ``block`` those that hold no others; none that is protected."""
    patterns = tuple(protect)
    if kind in patterns:
        return ()
    return tuple(
        block
        for block in analysis.blocks
        if block.kind == kind
        and (kind == "layer" or not block.parts)
        and not any(_matches(name, _parts(pattern)[0]) for name in block.tensors for pattern in patterns)
    )


def named_blocks(analysis: Analysis, selectors: Iterable[str]) -> tuple[Block, ...]:
    """The blocks that selectors name: a block's name, or a pattern for the last weight of a branch or for its scopes.

    ``layers.3`` names all branches that end in ``layers.3``, and so the whole layer.

    Raises:
        OptionError: A selector names no block.
    """
    chosen: dict[str, Block] = {}
    for selector in selectors:
        exact = analysis.branches.get(selector)
        ends = {b.name for b in analysis.blocks if any(_matches(name, selector) for name in b.closing)}
        hits = [b for b in analysis.blocks if (ends.issuperset(b.parts) if b.kind == "layer" else b.name in ends)]
        hits = hits if exact is None else [exact]
        if not hits and not analysis.blocks:
            raise OptionError(f"'{selector}' names no block: the model has none that can be removed")
        if not hits:
            names = ", ".join(f"'{block.name}'" for block in analysis.blocks[:3])
            raise OptionError(
                f"'{selector}' names no residual branch that can be removed; they are named after the last weight of "
                f"the branch, such as {names} ('graphprune inspect' lists all {len(analysis.blocks)})"
            )
        chosen.update((block.name, block) for block in hits)
    return tuple(chosen.values())


def how_many(text: str, n: int, kind: str) -> int:
    """How many of ``n`` blocks ``"2"``, ``"0.25"`` or ``"25%"`` means.

    Raises:
        OptionError: It is no number, is none of them, or more than there are.
    """
    try:
        value = float(text.removesuffix("%")) * (0.01 if text.endswith("%") else 1)
    except ValueError:
        raise OptionError(f"cannot read '{text}' {kind}s; expected a number like 2 or a fraction like 0.25") from None
    whole = text.isdigit()
    count = int(value) if whole else int(value * n + 1e-9)
    if not 1 <= count <= n or not (whole or value <= 1):
        raise OptionError(
            f"'{text}' {kind}s of {n} cannot be removed; expected a number from 1 to {n}, or a fraction of at least "
            f"one {kind}"
            if n
            else f"the model has no {kind} that can be removed; see 'graphprune inspect'"
        )
    return count


def _selects(selector: str, group: Group) -> bool:
    if selector in (group.kind, group.name):
        return True
    pattern, axis = _parts(selector)
    return any(_matches(site.tensor, pattern) and axis in (None, site.axis) for site in group.sites)


def _parts(selector: str) -> tuple[str, int | None]:
    """``fc.weight[0]`` as pattern and axis."""
    found = _SELECTOR.match(selector)
    if found is None or found["axis"] is None:
        return selector, None
    return found["pattern"], int(found["axis"])


def _matches(name: str, pattern: str) -> bool:
    scopes = [name]
    for separator in (".", "/"):
        parts = name.split(separator)
        scopes.extend(separator.join(parts[:i]) for i in range(1, len(parts)))
    return any(fnmatchcase(scope, pattern) for scope in scopes)
