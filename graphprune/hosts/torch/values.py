"""Values that a model's code reads out of tensors: noted in a run of the example, and given while tracing.

``for length in lengths.tolist()`` and ``if mask.any()`` cannot be traced: sizes and branches hang on values. Where such
a value follows from constants and from inputs of whole numbers alone (grids of patches, lengths, masks, ids), the
example's is as static as the example's shapes, and the program that is traced checks that it is still the same. What
depends on a parameter or on an input of real numbers (the experts that tokens are sent to) is not given.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_NOT_THE_USERS = (str(Path(torch.__file__).parent) + os.sep, __file__)
_VARYING = -1
Place = tuple[str, str, int]
"""Name of a function, and file and line of the call."""

Origin = frozenset[int]
"""Positions of the inputs of whole numbers that something follows from; :data:`_VARYING` where anything else."""


@dataclass
class Readings:
    """What the code of a model read, in order, at each place.

    Attributes:
        values: Python values, and what they follow from.
        sizes: Shapes of tensors whose sizes depend on values, likewise.
        whole: The example's tensors of whole numbers.
    """

    values: dict[Place, list[tuple[Any, Origin]]] = field(default_factory=lambda: defaultdict(list))
    sizes: dict[Place, list[tuple[list[tuple[int, ...]], Origin]]] = field(default_factory=lambda: defaultdict(list))
    whole: tuple[torch.Tensor, ...] = ()

    def constants(self) -> Readings:
        """The readings that follow from no input, and for the others that they may not be given."""
        return Readings(_closed(self.values), _closed(self.sizes), self.whole)

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """The tensors of the example that the readings which may be given follow from."""
        told = frozenset[int]().union(*(origin for origin in self._origins if _VARYING not in origin))
        return tuple(tensor for position, tensor in enumerate(self.whole) if position in told)

    def __bool__(self) -> bool:
        """Whether anything may be given."""
        return any(_VARYING not in origin for origin in self._origins)

    @property
    def _origins(self) -> list[Origin]:
        return [origin for found in (self.values, self.sizes) for each in found.values() for _, origin in each]


def _closed(found: dict[Place, list[tuple[Any, Origin]]]) -> dict[Place, list[tuple[Any, Origin]]]:
    return {
        place: [(value, frozenset((_VARYING,)) if origin else origin) for value, origin in each]
        for place, each in found.items()
    }


def read_values(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Readings:
    """Runs a model once and notes what its code reads out of tensors."""
    inputs = list(_tensors((args, kwargs)))
    whole = [tensor for tensor in inputs if not tensor.is_floating_point()]
    origins = _Origins([*model.parameters(), *(t for t in inputs if t.is_floating_point())], whole)
    noted = Readings(whole=tuple(whole))
    with origins, _Noted(noted, origins):
        model(*args, **kwargs)
    return noted


_FILLED = frozenset(f"{fill}_like" for fill in ("zeros", "ones", "full", "empty")) | frozenset(
    f"new_{fill}" for fill in ("zeros", "ones", "full", "empty", "empty_strided")
)
"""Operators that take no more than shape and type from their operand."""


class _Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what storages depend on: inputs of whole numbers by position, and anything that varies."""

    def __init__(self, varying: Iterable[torch.Tensor], whole: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.origins = {_storage(tensor): frozenset((position,)) for position, tensor in enumerate(whole)}
        self.origins.update(dict.fromkeys(map(_storage, varying), frozenset((_VARYING,))))

    def of(self, *values: Any) -> Origin:
        """What the tensors among the values depend on."""
        return frozenset[int]().union(*(self.origins.get(_storage(tensor), ()) for tensor in _tensors(values)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator: what it makes or writes to depends on all that it reads."""
        kwargs = kwargs or {}
        found = self.of(args, kwargs) if func._schema.name.removeprefix("aten::") not in _FILLED else frozenset()
        read = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        written = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
        changed = [*(a for a, is_written in zip(args, written, strict=False) if is_written), kwargs.get("out")]
        made = func(*args, **kwargs)
        for storage in {_storage(tensor) for tensor in _tensors((made, changed))}:
            # one that was not read is new, whatever lay at its address before
            self.origins[storage] = found | self.origins.get(storage, frozenset()) if storage in read else found
        return made


class _Reader(TorchFunctionMode):
    def _number(self, tensor: torch.Tensor) -> Any:
        return cast("Any", self).__torch_function__(_T.item, (), (tensor,))


class _Noted(_Reader):
    """Notes what is read."""

    def __init__(self, noted: Readings, origins: _Origins) -> None:
        super().__init__()
        self.noted, self.origins = noted, origins

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function, notes what it reads."""
        kwargs = kwargs or {}
        args, kwargs = _read_apart(func, args, kwargs, self._number)
        made = func(*args, **kwargs)
        if func in _READS or func is _T.tolist:
            place, origin = _place(func), self.origins.of(args, kwargs)
            if func is _T.tolist:  # while tracing, it reads one element after the other
                values, place = args[0].flatten().tolist(), ("item", *place[1:])
            else:
                values = [made]
            self.noted.values[place].extend((value, origin) for value in values)
        elif _sized_by_values(func, args, kwargs):
            shapes = [tuple(tensor.shape) for tensor in _tensors(made)]
            self.noted.sizes[_place(func)].append((shapes, self.origins.of(*_deciding(func, args, kwargs))))
        return made


class GivenValues(_Reader):
    """Gives what was read before, and has the program check it."""

    def __init__(self, noted: Readings) -> None:
        super().__init__()
        self.noted = noted
        self.seen: Counter[Place] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function, or gives what it read."""
        kwargs = kwargs or {}
        args, kwargs = _read_apart(func, args, kwargs, self._number)
        if func in _READS:
            value, origin = self._next(self.noted.values, func)
            if _VARYING not in origin:
                _check(args[0], value)
                return value
        made = func(*args, **kwargs)
        if _sized_by_values(func, args, kwargs):
            shapes, origin = self._next(self.noted.sizes, func)
            tensors = list(_tensors(made))
            if _VARYING not in origin and len(shapes) == len(tensors):
                for tensor, shape in zip(tensors, shapes, strict=True):
                    for size, known in zip(tensor.shape, shape, strict=True):
                        torch._check(size == known)  # type: ignore[no-untyped-call]
        return made

    def _next(self, noted: Any, func: Any) -> Any:
        place = _place(func)
        found, at = noted.get(place, []), self.seen[place]
        self.seen[place] += 1
        return found[at % len(found)] if found else (None, {_VARYING})  # the exporter runs the code more than once


def _check(tensor: torch.Tensor, value: Any) -> None:
    """Puts a check into the program that a tensor has the values that were given for it."""
    known = torch.tensor(value, dtype=tensor.dtype, device=tensor.device)
    same = torch.isclose(tensor, known) if tensor.is_floating_point() else tensor == known
    torch._assert_async(same.all(), "a value that decides sizes or branches is not that of the example")


def _read_apart(func: Any, args: Any, kwargs: Any, read: Callable[[torch.Tensor], Any]) -> tuple[Any, Any]:
    """Arguments in which tensors that stand for a size or a bound are numbers: they would be read unseen."""

    def number(value: Any) -> Any:
        whole = isinstance(value, torch.Tensor) and value.dim() == 0 and not value.is_floating_point()
        return read(value) if whole else value

    def sizes(value: Any) -> Any:
        if not isinstance(value, tuple | list) or any(isinstance(each, torch.Tensor) and each.dim() for each in value):
            return value
        return type(value)(number(each) for each in value)

    def position(part: Any) -> Any:
        if isinstance(part, slice):
            return slice(*(number(bound) for bound in (part.start, part.stop, part.step)))
        return sizes(part)

    if func in (_T.__getitem__, _T.__setitem__):
        index = args[1]
        return (
            args[0],
            tuple(map(position, index)) if isinstance(index, tuple) else position(index),
            *args[2:],
        ), kwargs
    if func in _TAKE_SIZES:
        return cast("tuple[Any, Any]", pytree.tree_map(number, (args, kwargs)))
    change = number if func in _TAKE_SIZES_OF else sizes
    return (*args[:1], *map(change, map(sizes, args[1:]))), {name: change(sizes(each)) for name, each in kwargs.items()}


def _sized_by_values(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the sizes of a result depend on values."""
    if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
        parts = args[1] if isinstance(args[1], tuple | list) else (args[1],)
        return func is torch.Tensor.__getitem__ and any(
            isinstance(p, torch.Tensor) and p.dtype in (torch.bool, torch.uint8) for p in parts
        )
    if func is torch.where:
        return len(args) + len(kwargs) == 1
    if func in (torch.repeat_interleave, torch.Tensor.repeat_interleave):
        return any(isinstance(a, torch.Tensor) for a in (*args[1:], *kwargs.values())) or len(args) == 1
    return func in _SIZED


def _deciding(func: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Arguments whose values decide the sizes of the result: a mask does, what it selects from does not."""
    second = (_T.__getitem__, torch.masked_select, _T.masked_select, torch.repeat_interleave, _T.repeat_interleave)
    return (args[1:], kwargs) if func in second and len(args) + len(kwargs) > 1 else (args, kwargs)


def _place(func: Any) -> Place:
    """The function, and the line of the model's code that calls it."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    return func.__name__, frame.f_code.co_filename, frame.f_lineno


def _tensors(values: Any) -> Iterable[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


_T = torch.Tensor
_READS: frozenset[Callable[..., Any]] = frozenset((_T.item, _T.__bool__, _T.__int__, _T.__float__, _T.__index__))
_SIZED: frozenset[Callable[..., Any]] = frozenset(
    (
        torch.nonzero, _T.nonzero, torch.argwhere, _T.argwhere, torch.masked_select, _T.masked_select, torch.unique,
        _T.unique, torch.unique_consecutive, _T.unique_consecutive, torch.bincount, _T.bincount,
    )
)  # fmt: skip
_TAKE_SIZES: frozenset[Callable[..., Any]] = frozenset(
    (torch.tensor, torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.linspace, torch.eye)
)
_TAKE_SIZES_OF: frozenset[Callable[..., Any]] = frozenset(
    (
        torch.split, _T.split, torch.narrow, _T.narrow, _T.view, torch.reshape, _T.reshape, _T.expand, _T.repeat,
        _T.new_zeros, _T.new_ones, _T.new_full, _T.new_empty,
    )
)  # fmt: skip
