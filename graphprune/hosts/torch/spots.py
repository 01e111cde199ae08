"""The numbers that a user's module keeps, and which of them its forward hands to torch.

A spot is a whole number (or a list or tuple of them) in an attribute of a module, or in what a module keeps in an
attribute: a config, a dataclass, a dictionary. Which of them reach an operator is seen by running a probe in which
every number knows the spot that it comes from; what is computed from such numbers knows it too.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_OF_TORCH = frozenset(vars(nn.Module())) | {"training"}
_DEPTH = 3
"""Objects in objects that are looked into: a config with a part for text, say."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a number is kept.

    Attributes:
        path: Of the module.
        chain: Names that lead from the module to the object that keeps it; empty for the module itself.
        name: Of the attribute, or key of the dictionary.
        first: Where several modules keep the same object: path and chain of the first one, for all others.
    """

    path: str
    chain: tuple[str, ...]
    name: str
    first: tuple[str, tuple[str, ...]] | None = None

    def __str__(self) -> str:
        """``layers.0.attention.config.heads``."""
        return ".".join(part for part in (self.path, *self.chain, self.name) if part)

    @property
    def common(self) -> Spot:
        """The same number as the first module keeps it that shares the object."""
        return self if self.first is None else Spot(*self.first, self.name)

    def write(self, module: nn.Module, value: Any) -> None:
        """Sets the value in a module that is built like the one where the spot was found.

        It is set past whatever the class does when attributes are set, or forbids. An object that several modules share
        is changed by its first spot for all; by any other one, for that module alone, which gets a copy.
        """
        holder: Any = module.get_submodule(self.path)
        if self.first is not None and vars(holder)[self.chain[0]] is _kept(module, *self.first):
            vars(holder)[self.chain[0]] = copy.copy(vars(holder)[self.chain[0]])
        keeper = _kept(module, self.path, self.chain)
        if type(keeper) is dict:
            keeper[self.name] = value
        else:
            object.__setattr__(keeper, self.name, value)

    def restore(self, module: nn.Module, value: Any) -> None:
        """Takes all changes back that were made by the spots of one object of a module."""
        if self.first is None:
            self.write(module, value)
        else:
            vars(module.get_submodule(self.path))[self.chain[0]] = _kept(module, *self.first)


def _kept(module: nn.Module, path: str, chain: tuple[str, ...]) -> Any:
    keeper: Any = module.get_submodule(path)
    for name in chain:
        keeper = members(keeper)[name]
    return keeper


def members(item: Any) -> Mapping[str, Any]:
    """What an object keeps by name."""
    if type(item) is dict:
        return item
    kept = getattr(item, "__dict__", None)
    if isinstance(kept, dict):
        return kept
    return {name: getattr(item, name) for name in getattr(type(item), "__slots__", ()) if hasattr(item, name)}


def is_torchs(layer: nn.Module) -> bool:
    """Whether a layer's class is one of torch's own."""
    return type(layer).__module__.startswith("torch.nn.")


def find_spots(module: nn.Module) -> dict[Spot, Any]:
    """All spots of a module and their values, in the order of its parts."""
    found: dict[Spot, Any] = {}
    seen: dict[int, tuple[str, tuple[str, ...]]] = {}
    for path, layer in module.named_modules():
        stack: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), own_attributes(layer))]
        while stack:
            chain, keeper = stack.pop()
            first = seen[id(_kept(module, path, chain))] if chain else (path, chain)
            for name, value in keeper.items():
                if is_size(value):
                    found[Spot(path, chain, name, None if first == (path, chain) else first)] = value
                elif len(chain) < _DEPTH and _keeps_numbers(value) and (id(value) not in seen or not chain):
                    seen.setdefault(id(value), (path, (*chain, name)))
                    inner = members(value)
                    stack.append(((*chain, name), {key: each for key, each in inner.items() if type(key) is str}))
    return found


def own_attributes(layer: nn.Module) -> dict[str, Any]:
    """What the user's class keeps in a module's attributes: numbers and all else that is not torch's own."""
    return {name: value for name, value in vars(layer).items() if name not in _OF_TORCH}


def is_size(value: Any) -> bool:
    """Whether a value is a whole number, or a list or tuple of them."""
    return type(value) is int or (type(value) in (list, tuple) and value and all(type(item) is int for item in value))


def _keeps_numbers(value: Any) -> bool:
    if type(value) is dict:
        return True
    plain = isinstance(value, nn.Module | torch.Tensor | type | str | float) or callable(value)
    return not plain and (hasattr(value, "__dict__") or hasattr(type(value), "__slots__"))


def fewest_first(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Indices into lists of these sizes: all first ones, then one other, then two others, ..."""
    for n in range(len(sizes) + 1):
        for places in combinations(range(len(sizes)), n):
            for others in product(*(range(1, sizes[place]) for place in places)):
                chosen = dict(zip(places, others, strict=True))
                yield tuple(chosen.get(i, 0) for i in range(len(sizes)))


# -- where numbers go ------------------------------------------------------------------------------------------------


class _Traced(int):
    """A whole number that knows the spots that it was made of."""

    spots: frozenset[Spot]

    @classmethod
    def of(cls, value: int, spots: frozenset[Spot]) -> Self:
        made = cls(value)
        made.spots = spots
        return made


def _lifted(compute: Callable[..., Any]) -> Callable[..., Any]:
    def method(*operands: Any) -> Any:
        result = compute(*(int(each) if isinstance(each, _Traced) else each for each in operands))
        if type(result) is not int:
            return result
        spots = frozenset[Spot]().union(*(each.spots for each in operands if isinstance(each, _Traced)))
        return _Traced.of(result, spots)

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod", "pow", "neg", "abs", "pos"):
    _compute = getattr(operator, _name)
    setattr(_Traced, f"__{_name}__", _lifted(_compute))
    if _name not in ("neg", "abs", "pos"):
        setattr(_Traced, f"__r{_name}__", _lifted(lambda a, b, compute=_compute: compute(b, a)))


class _Watch(TorchFunctionMode):
    """Notes the spots of all numbers among the arguments of torch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Spot] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for item in _leaves((args, tuple((kwargs or {}).values()))):
            self.seen.update(item.spots)
        return func(*args, **(kwargs or {}))


def _leaves(values: Iterable[Any]) -> Iterator[_Traced]:
    for value in values:
        if isinstance(value, _Traced):
            yield value
        elif isinstance(value, list | tuple):
            yield from _leaves(value)
        elif isinstance(value, slice):
            yield from _leaves((value.start, value.stop, value.step))


def reaching(probe: nn.Module, spots: Mapping[Spot, Any], run: Callable[[nn.Module], object]) -> frozenset[Spot]:
    """The spots whose numbers, or what is computed of them, are handed to torch while a probe runs.

    Args:
        probe: A copy that is used for this only.
        spots: Its spots and their values.
        run: Calls it.
    """
    for spot, value in spots.items():
        marked: Any = (
            _Traced.of(value, frozenset({spot}))
            if type(value) is int
            else type(value)(_Traced.of(item, frozenset({spot})) for item in value)
        )
        spot.write(probe, marked)
    watch = _Watch()
    try:
        with watch:
            run(probe)
    except Exception:  # noqa: BLE001  # code that looks at the type of its numbers: what was seen so far counts
        pass
    return frozenset(watch.seen)
