"""Numbers that follow a module's tensors because its constructor says so, whether the forward reads them or not.

That a number equals a size is no evidence that it means the size. The constructor is: a module is built anew, without
memory for its weights, from the arguments that it keeps. Where other arguments give the sizes that the pruned copy has,
the numbers that come with them are those that methods beside the forward (fusing, re-parametrisation) count on.
"""

from __future__ import annotations

import copy
import inspect
import random
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from graphprune.hosts.torch.spots import Spot, fewest_first, is_size, is_torchs, members, own_attributes

_MOST_PARTS = 256
"""Modules that are built anew have at most so many parts."""
_MOST_BUILDS = 64
"""Ways to choose the arguments of one module that are tried, and fewer for one of many parts."""
_MOST_BUILT = 1024
"""Parts that are built for one module in all."""
_LARGE = 32
"""Entries of what is a large dictionary."""
_SMALL = 1 << 20
"""Numbers in a module that is built with memory, where it cannot be built without."""

Shapes = dict[str, tuple[int, ...]]
Leaf = tuple[str, tuple[str, ...], int | None]
"""An argument, what leads to a number in it, and its place where it is a list."""


@dataclass(frozen=True)
class _Built:
    """What a constructor makes of arguments: the shapes of tensors, and the numbers in the module's own attributes."""

    shapes: Shapes
    numbers: Mapping[str, Any]


def constructed_changes(source: nn.Module, module: nn.Module) -> dict[Spot, Any]:
    """New values of numbers in the modules of a sliced copy, as their constructors give them with the new sizes.

    Args:
        source: The user's module.
        module: The copy, whose tensors are cut.
    """
    found: dict[Spot, Any] = {}
    budget = _Budget()
    cut = dict(module.named_modules(remove_duplicate=False))
    for path, layer in source.named_modules():
        if not is_torchs(layer) and path in cut and type(layer) is type(cut[path]):
            found.update((Spot(path, (), name), value) for name, value in _followers(layer, cut[path], budget).items())
    return found


def _followers(layer: nn.Module, cut: nn.Module, budget: _Budget) -> dict[str, Any]:
    """The numbers of one module that its constructor ties to sizes that have changed."""
    old, new = _shapes(layer), _shapes(cut)
    if old.keys() != new.keys():
        return {}
    became: dict[int, list[int]] = {}
    for name, shape in old.items():
        for a, b in zip(shape, new[name], strict=True):
            if a != b and b not in became.setdefault(a, []):
                became[a].append(b)
    numbers, parts = _numbers(layer), sum(1 for _ in layer.modules())
    equal = {name: value for name, value in numbers.items() if not became.keys().isdisjoint(_flat([value]))}
    if not equal or parts > _MOST_PARTS:
        return {}
    arguments = _arguments(layer, old, equal, budget)
    if arguments is None:
        return {}
    leaves = [(leaf, value) for leaf, value in _leaves(arguments) if value in became]
    values = [[value, *became[value]] for _, value in leaves]
    best: tuple[int, dict[str, Any]] = (0, {})
    for chosen in islice(fewest_first(list(map(len, values))), min(_MOST_BUILDS, _MOST_BUILT // parts)):
        moved = {leaf: (value, ways[k]) for (leaf, value), ways, k in zip(leaves, values, chosen, strict=True) if k}
        new_arguments = _replaced(arguments, {leaf: n for leaf, (_, n) in moved.items()})
        built = _build(layer, new_arguments, budget) if moved else None
        if built is None or built.shapes.keys() != old.keys():
            continue
        if built.shapes == new:  # all is explained
            return {name: built.numbers[name] for name in equal if built.numbers.get(name, equal[name]) != equal[name]}
        matched = _direct(old, built.shapes, new, set(moved.values()))
        if matched > best[0]:
            best = (
                matched,
                {
                    name: value
                    for name, value in built.numbers.items()
                    if name in equal and _moved(equal[name], value, set(moved.values()))
                },
            )
    return best[1]


def _moved(before: Any, after: Any, pairs: set[tuple[int, int]]) -> bool:
    """Whether a number, or those of a list that differ, changed as an argument did."""
    if isinstance(before, int) or isinstance(after, int):
        return (before, after) in pairs
    changes = {(a, b) for a, b in zip(before, after, strict=False) if a != b}
    return len(before) == len(after) and bool(changes) and changes <= pairs


def _direct(old: Shapes, built: Shapes, new: Shapes, pairs: set[tuple[int, int]]) -> int:
    """How many axes have the very size of a changed argument, before and after; 0 if the pruned one has another."""
    n = 0
    for name, shape in old.items():
        if len(built[name]) != len(shape):
            return 0
        for before, after, true in zip(shape, built[name], new[name], strict=True):
            if before != after and (before, after) in pairs:
                if true != after:
                    return 0
                n += 1
    return n


def _shapes(layer: nn.Module) -> Shapes:
    stored = (*layer.named_parameters(remove_duplicate=False), *layer.named_buffers(remove_duplicate=False))
    return {name: tuple(tensor.shape) for name, tensor in stored}


def _numbers(layer: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in own_attributes(layer).items() if is_size(value)}


@dataclass
class _Budget:
    """How many parts may still be built, for all modules together, and what is known of those that were.

    Attributes:
        parts: How many.
        tables: Large dictionaries of plain values (names of classes) in arguments, which need no deep copies.
        failed: Layers whose arguments were not found, by what they are made of.
    """

    parts: int = 8192
    tables: dict[int, dict[Any, Any]] = field(default_factory=dict)
    failed: set[Hashable] = field(default_factory=set)

    def copied(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A deep copy of arguments."""
        for value in arguments.values():
            for table in members(value).values() if hasattr(value, "__dict__") else ():
                if type(table) is dict and len(table) > _LARGE and id(table) not in self.tables and _is_plain(table):
                    self.tables[id(table)] = table
        return copy.deepcopy(dict(arguments), {key: dict(table) for key, table in self.tables.items()})


def _is_plain(table: dict[Any, Any]) -> bool:
    return {type(each) for each in (*table, *table.values())} <= {int, str, float, bool, type(None)}


def _build(layer: nn.Module, arguments: Mapping[str, Any], budget: _Budget) -> _Built | None:
    """A new module of a layer's class; ``None`` where its constructor refuses the arguments, or the budget is spent."""
    budget.parts -= sum(1 for _ in layer.modules())
    if budget.parts < 0:
        return None
    small = sum(tensor.numel() for tensor in layer.parameters()) <= _SMALL
    for device in ("meta", "cpu") if small else ("meta",):
        try:
            with torch.device(device), unfilled(), unseen():
                made = type(layer)(**budget.copied(arguments))
        except Exception:  # noqa: BLE001  # the user's code refuses sizes in any way
            continue
        return _Built(_shapes(made), _numbers(made))
    return None


@contextmanager
def unseen() -> Iterator[None]:
    """Leaves no trace of what a constructor prints, warns of, and draws."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def unfilled() -> Iterator[None]:
    """Tensors without memory are not given values to start with; others, which a thread may make meanwhile, are."""
    ways = {name: way for name, way in vars(nn.init).items() if name.endswith("_") and callable(way)}

    def filled(way: Callable[..., Any]) -> Callable[..., Any]:
        return lambda tensor, *args, **kwargs: tensor if tensor.is_meta else way(tensor, *args, **kwargs)

    try:
        for name, way in ways.items():
            setattr(nn.init, name, filled(way))
        yield
    finally:
        for name, way in ways.items():
            setattr(nn.init, name, way)


def _arguments(layer: nn.Module, shapes: Shapes, numbers: Mapping[str, Any], budget: _Budget) -> dict[str, Any] | None:
    """The arguments that a layer was made with: as it keeps them under their names, the others by trial.

    Args:
        layer: The layer.
        shapes: Of its tensors; what is built anew must have the same.
        numbers: Those of its numbers that matter; likewise.
        budget: What may be built.

    Returns:
        ``None`` if no arguments are found that make such a layer.
    """
    try:
        parameters = list(inspect.signature(type(layer)).parameters.values())
    except (TypeError, ValueError):
        return None
    sizes = list(dict.fromkeys([*(n for shape in shapes.values() for n in shape), *_flat(numbers.values())]))
    known: dict[str, Any] = {}
    guessed: dict[str, list[Any]] = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            return None
        kept, default = vars(layer), parameter.default
        name = next((each for each in (parameter.name, f"_{parameter.name}") if each in kept), "")
        if name and not isinstance(kept[name], nn.Module | torch.Tensor):
            known[parameter.name] = kept[name]
        elif default is parameter.empty:
            guessed[parameter.name] = sizes
        elif type(default) in (int, bool):
            others = [not default] if type(default) is bool else [size for size in (1, *sizes) if size != default]
            guessed[parameter.name] = list(dict.fromkeys([default, *others]))
    key = _key(layer, shapes, numbers, known)
    if key in budget.failed:
        return None
    for chosen in islice(fewest_first(list(map(len, guessed.values()))), _MOST_BUILDS):
        guess = {name: ways[k] for (name, ways), k in zip(guessed.items(), chosen, strict=True)}
        built = _build(layer, {**known, **guess}, budget)
        if built and built.shapes == shapes and all(built.numbers.get(name) == n for name, n in numbers.items()):
            return {**known, **guess}
    budget.failed.add(key)
    return None


def _key(layer: nn.Module, shapes: Shapes, numbers: Mapping[str, Any], known: Mapping[str, Any]) -> Hashable:
    """Equal for layers for which the same arguments are tried, with the same outcome."""
    kept = tuple(
        (name, type(value), value if isinstance(value, int | float | str | None) else id(value))
        for name, value in known.items()
    )
    return type(layer), tuple(shapes.items()), str(numbers), kept


def _flat(values: Any) -> Iterator[int]:
    for value in values:
        yield from value if isinstance(value, list | tuple) else (value,)


def _leaves(arguments: Mapping[str, Any]) -> Iterator[tuple[Leaf, int]]:
    """The whole numbers in arguments, and in what configs and dictionaries among them keep."""
    for name, value in arguments.items():
        if is_size(value):
            yield from _places(name, (), value)
        elif not callable(value) and not isinstance(value, str | float | bool) and value is not None:
            for key, each in members(value).items():
                if type(key) is str and is_size(each):
                    yield from _places(name, (key,), each)


def _places(name: str, chain: tuple[str, ...], value: Any) -> Iterator[tuple[Leaf, int]]:
    if isinstance(value, int):
        yield (name, chain, None), value
    else:
        yield from (((name, chain, i), each) for i, each in enumerate(value))


def _replaced(arguments: Mapping[str, Any], new: Mapping[Leaf, int]) -> dict[str, Any]:
    """The arguments with other numbers in them; what is changed is a copy."""
    found = dict(arguments)
    for name in {name for name, chain, _ in new if chain}:
        found[name] = copy.deepcopy(found[name])
    for (name, chain, place), number in new.items():
        keeper: Any = members(found[name]) if chain else found
        last = chain[-1] if chain else name
        value = number if place is None else _with(keeper[last], place, number)
        if keeper is found or type(found[name]) is dict:
            keeper[last] = value
        else:
            object.__setattr__(found[name], last, value)
    return found


def _with(values: Any, place: int, number: int) -> Any:
    return type(values)([*values[:place], number, *values[place + 1 :]])
