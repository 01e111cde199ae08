"""From values that a config is to have to the shapes that its class builds of them.

What is asked for is set, and the class built. Where that cannot be, or does not fit, other values follow: those that
were equal to one that changes, or in proportion to it (as many key-value heads as heads, heads and the width that they
share). A number of layers is told from a width by what is missing from the class when it is smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from torch import nn

from graphprune.errors import OptionError, TargetError
from graphprune.hosts.torch.checkpoints.leaves import (
    Leaf,
    Move,
    changed,
    depth_moves,
    exact_moves,
    leaves,
    scaled_moves,
)
from graphprune.hosts.torch.checkpoints.search import Base
from graphprune.hosts.torch.checkpoints.twins import Twin
from graphprune.planning.shape_target import Aim, Depth
from graphprune.suggest import meant

_MOST_PAIRS = 12
"""Values that follow are tried two at once up to so many."""
_MOST_SAID = 200
"""So many letters of what a class says are told."""


def aims(bases: Mapping[str, Base], names: Mapping[str, tuple[str, ...]], wanted: Mapping[str, int]) -> Iterator[Aim]:
    """What stored tensors become, first where nothing but what is asked for changes, then where other values follow.

    Args:
        bases: The configured modules by path.
        names: For each stored tensor of the graph, its names in the module.
        wanted: Values by the names of the config, those of parts of it with dots.

    Raises:
        OptionError: The config has no such number, or it is smaller.
        TargetError: The class refuses all that was tried.
    """
    (path, base), leaf_of = _base_of(bases, wanted)
    held = dict(leaves(base.data))
    for name, leaf in leaf_of.items():
        if wanted[name] > held[leaf]:
            raise OptionError(f"shape target '{name}={wanted[name]}' is more than {held[leaf]}, which it is now")
    resolved = {".".join(map(str, leaf)): wanted[name] for name, leaf in leaf_of.items()}
    depths: list[Depth] = []
    widths: Move = {}
    for name, leaf in leaf_of.items():
        if wanted[name] == held[leaf]:
            continue
        lists = _layers_of(base, leaf, held[leaf], wanted[name])
        if lists:
            depths.extend(Depth(_joined(path, each), held[leaf], wanted[name]) for each in lists)
        else:
            widths[leaf] = wanted[name]
    told, tried = False, 0
    for move in _moves(base, widths, held):
        twin = Twin.of(type(base.source), changed(base.data, move), vars(base.source)["config"])
        tried += 1
        if twin is None or twin.shapes.keys() != base.shapes.keys():
            continue
        told = True
        if widths and twin.shapes == base.shapes and move == widths:
            first = next(name for name, leaf in leaf_of.items() if leaf in widths)
            raise OptionError(f"shape target '{first}={wanted[first]}' is no size: no tensor has another shape for it")
        yield Aim(_by_stored(twin, base, names, path), tuple(depths), resolved)
    if not told:
        raise TargetError(_refusal(base, widths, tried))


def _base_of(bases: Mapping[str, Base], wanted: Mapping[str, int]) -> tuple[tuple[str, Base], dict[str, Leaf]]:
    """The module whose config has all of some names, and where they stand in it."""
    failures: list[OptionError] = []
    for path, base in bases.items():
        try:
            return (path, base), {name: _leaf(base, name) for name in wanted}
        except OptionError as error:
            failures.append(error)
    raise failures[0]


def _leaf(base: Base, name: str) -> Leaf:
    """Where a name stands in a config: at its place, under the name that the class has for it, or once inside.

    Raises:
        OptionError: It is no number of the config, or one of several.
    """
    numbers = [leaf for leaf, value in leaves(base.data) if type(value) is int and all(type(k) is str for k in leaf)]
    also: Any = getattr(type(vars(base.source)["config"]), "attribute_map", {})
    wanted = tuple(name.split("."))
    for leaf in (wanted, (*wanted[:-1], also.get(wanted[-1], wanted[-1]))):
        if leaf in numbers:
            return leaf
    inside = [leaf for leaf in numbers if leaf[-len(wanted) :] == wanted]
    if len(inside) == 1:
        return inside[0]
    known = [".".join(map(str, leaf)) for leaf in numbers]
    if inside:
        shown = " or ".join(f"'{'.'.join(map(str, leaf))}'" for leaf in inside)
        raise OptionError(f"shape target '{name}' may be {shown}; write one of them")
    raise OptionError(
        f"the config of '{type(base.source).__name__}' has no number {meant(name, known)}; it has {', '.join(known)}"
    )


def _layers_of(base: Base, leaf: Leaf, before: int, after: int) -> tuple[str, ...]:
    """The lists of modules of which a value says the length; none if it says something else."""
    if after < 1:
        return ()
    for move in depth_moves(base.data, tuple(range(after, before)), before):
        if move.get(leaf) != after:
            continue
        twin = Twin.of(type(base.source), changed(base.data, move), vars(base.source)["config"])
        if twin is None or not twin.shapes.keys() < base.shapes.keys():
            continue
        now = _lengths(twin.module)
        found = [path for path, n in _lengths(base.source).items() if n == before and now.get(path) == after]
        return tuple(path for path in found if not any(path.startswith(f"{other}.") for other in found))
    return ()


def _lengths(module: nn.Module) -> dict[str, int]:
    return {path: len(each) for path, each in module.named_modules() if isinstance(each, nn.ModuleList)}


def _moves(base: Base, widths: Move, held: Mapping[Leaf, Any]) -> Iterator[Move]:
    """What is asked for; the same with one other value that follows; with two."""
    yield dict(widths)
    pairs = [(held[leaf], value) for leaf, value in widths.items()]
    follow = [
        move
        for move in (*exact_moves(base.data, pairs), *scaled_moves(base.data, pairs))
        if not any(_apart(leaf, base) or leaf in widths for leaf in move)
    ]
    yield from ({**widths, **move} for move in follow)
    for one, other in combinations(follow[:_MOST_PAIRS], 2):
        if one.keys() != other.keys():
            yield {**widths, **one, **other}


def _apart(leaf: Leaf, base: Base) -> bool:
    return leaf[-1] in base.common or str(leaf[-1]).endswith("_token_id")


def _by_stored(twin: Twin, base: Base, names: Mapping[str, tuple[str, ...]], path: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a twin by the names of stored tensors, of those that the module has."""
    prefix = f"{path}." if path else ""
    found = {}
    for stored, aliases in names.items():
        for alias in aliases:
            name = alias.removeprefix(prefix)
            if alias.startswith(prefix) and name in twin.shapes and name in base.shapes:
                found[stored] = twin.shapes[name]
                break
    return found


def _refusal(base: Base, widths: Move, tried: int) -> str:
    """Why a class builds none of what was tried."""
    asked = ", ".join(f"'{'.'.join(map(str, leaf))}={value}'" for leaf, value in widths.items())
    said = "it has other tensors then"
    try:
        Twin.built(type(base.source), changed(base.data, widths), vars(base.source)["config"])
    except Exception as error:  # noqa: BLE001  # classes refuse sizes in any way
        said = " ".join(str(error).split())[:_MOST_SAID] or type(error).__name__
    more = f", nor with another value that follows ({tried - 1} were tried)" if tried > 1 else ""
    return f"'{type(base.source).__name__}' cannot be built with {asked} ({said}){more}"


def _joined(path: str, more: str) -> str:
    return ".".join(part for part in (path, more) if part)
