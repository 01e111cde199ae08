"""A pruned copy of a configured module takes over what its class builds from the config that says its shape.

The class itself says which attributes follow from a config: it is built from both, and what differs between the two is
what has to differ between the original and the copy. Configs that the copy's parts hold are changed where they lie, so
that all that shared one goes on sharing it; the user's own are never touched, since the copy has its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from graphprune.hosts.torch.checkpoints.apart import inseparable
from graphprune.hosts.torch.checkpoints.implied import IMPLIED
from graphprune.hosts.torch.checkpoints.renumber import Renumbering, close_gaps, placeholders_in
from graphprune.hosts.torch.checkpoints.search import Base, Statement, Wanted, find_statement, pairs_of, torn
from graphprune.hosts.torch.checkpoints.twins import configured_roots, is_config, is_plain, passing_shapes, shapes_of
from graphprune.hosts.torch.spots import Spot, is_torchs, own_attributes
from graphprune.report.data import AttributeRow


@dataclass(frozen=True)
class Adopted:
    """What became of a copy.

    Attributes:
        rows: The values that differ from those of the user's module.
        changes: Those of them that are numbers of modules and their configs.
        renumbering: What became of its lists of modules.
        reasons: By path of a configured module: why no config says its shape.
        roots: The paths of those of which one does.
    """

    rows: tuple[AttributeRow, ...] = ()
    changes: Mapping[Spot, Any] = field(default_factory=dict)
    renumbering: Renumbering = field(default=Renumbering())
    reasons: Mapping[str, str] = field(default_factory=dict)
    roots: tuple[str, ...] = ()


def adopt(module: nn.Module, source: nn.Module, pairs: Iterable[tuple[int, int]] = ()) -> Adopted:
    """Finds the configs that say what a copy's configured modules are, and changes the copy accordingly.

    Where none is found, a configured module stays as it is.

    Args:
        module: The copy, with pruned tensors, and placeholders where branches are left out.
        source: The user's module; it is only read.
        pairs: Sizes that have changed, beside those of its tensors.
    """
    every, pairs = placeholders_in(module), tuple(pairs)
    rows: list[AttributeRow] = []
    changes: dict[Spot, Any] = {}
    reasons: dict[str, str] = {}
    stated: list[str] = []
    closed = Renumbering()
    for path, root in configured_roots(source).items():
        mine, below = module.get_submodule(path), every.below(path)
        old, left = shapes_of(root), shapes_of(mine)
        shapes = {below.new(name): shape for name, shape in left.items() if not below.is_gone(name)}
        if old == shapes:
            continue
        renamed = {below.new(name): shape for name, shape in old.items() if not below.is_gone(name)}
        if reason := inseparable(root, old, left):
            reasons[path] = reason
            continue
        base, reason = Base.of(root)
        statement = None
        if base is not None and not (reason := torn(base, renamed, shapes)):
            statement, reason = find_statement(base, Wanted(shapes, pairs_of(renamed, shapes, pairs), below))
        if statement is None or (reason := _remade(statement, mine, below)):
            reasons[path] = reason
            continue
        stated.append(path)
        close_gaps(mine, below)
        found = tuple(_take_over(mine, root, statement, below, path))
        changes.update((spot, after) for spot, _, after in found)
        rows.extend(AttributeRow(str(spot), before, after) for spot, before, after in found)
        gone = {_joined(path, each): places for each, places in below.gone.items()}
        depths = {_joined(path, each): depth for each, depth in below.depths.items()}
        closed = Renumbering({**closed.gone, **gone}, {**closed.depths, **depths})
    return Adopted(tuple(rows), changes, closed, reasons, tuple(stated))


def _remade(statement: Statement, mine: nn.Module, renumbering: Renumbering) -> str:
    """Which table the class would make anew with other numbers than the copy holds; empty if it would none.

    A table of another size is one of other values, as a rule: frequencies of a head of another width, say.
    """
    before, after = statement.before.passing, statement.after.passing
    names = renumbering.names(passing_shapes(mine))
    for new, shape in after.items():
        old = names.get(new)
        if old is None or old not in before or tuple(mine.get_buffer(old).shape) != shape or before[old] != shape:
            return f"its class makes '{new}' anew, which would not be what was cut"
    return ""


def _take_over(
    mine: nn.Module, source: nn.Module, statement: Statement, renumbering: Renumbering, root: str
) -> Iterator[tuple[Spot, Any, Any]]:
    """Gives the parts of a copy the plain values that differ between what is built from both configs."""
    seen: set[int] = set()
    old_paths = renumbering.names(path for path, _ in statement.before.module.named_modules(remove_duplicate=False))
    for path, built in statement.after.module.named_modules(remove_duplicate=False):
        old = old_paths.get(path)
        if old is None or (is_torchs(built) and not isinstance(built, nn.ModuleList)):
            continue
        place, layer = _joined(root, path), mine.get_submodule(path)
        before, theirs = own_attributes(statement.before.module.get_submodule(old)), source.get_submodule(old)
        for name, value in own_attributes(built).items():
            if name not in before or name not in vars(layer):
                continue
            if is_config(value) and is_config(before[name]):
                for chain, one, other in _configured(vars(layer)[name], before[name], value, seen, (name,)):
                    yield Spot(place, chain[:-1], chain[-1]), one, other
            elif is_plain(value) and value != before[name] and vars(theirs).get(name) == before[name]:
                object.__setattr__(layer, name, copy.deepcopy(value))
                yield Spot(place, (), name), before[name], value


def _configured(
    mine: Any, before: Any, after: Any, seen: set[int], chain: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Gives a config the values that differ between two others, the parts of it likewise."""
    if id(mine) in seen or not is_config(mine):
        return
    seen.add(id(mine))
    old, new = vars(before), vars(after)
    for key, value in new.items():
        if is_config(value):
            if is_config(old.get(key)):
                yield from _configured(vars(mine).get(key), old[key], value, seen, (*chain, key))
        elif is_plain(value) and (old.get(key) != value or (key in IMPLIED and vars(mine).get(key) is None)):
            yield (*chain, key), vars(mine).get(key), value  # what was implied has to be stated
            vars(mine)[key] = copy.deepcopy(value)


def _joined(path: str, more: str) -> str:
    return ".".join(part for part in (path, more) if part)
