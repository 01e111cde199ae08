"""A user's module is as it was after it has been looked at, whatever its code keeps, counts or caches.

Two things change a module that is only run: its own code (tables that are made on first use, counters, buffers), and
tracing, which hands fake tensors to that code. All that can be reached from the module is noted before and put back
after: attributes, contents of dicts, lists and sets, plain objects, tensors, and the namespaces of the user's classes.
"""

from __future__ import annotations

import functools
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphprune.hosts.torch.writes import Memory, Writes, guards, storage_of

REACH = 1 << 17
"""Objects that are followed from a module, the nearest first: what lies beyond is no state of a model."""

_ATOMS = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size, np.ndarray)
_NOT_THE_USERS = sys.stdlib_module_names | {"torch", "numpy"}
_OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType)
_PLAIN = (OrderedDict, dict, list, set, deque)
_EMPTY: dict[type, Any] = {OrderedDict: {}, dict: {}, list: [], set: set(), deque: []}
"""What an empty container holds; never written to."""
_SORTS: dict[str, tuple[type, ...]] = {
    "atom": (*_ATOMS, *_OPAQUE),
    "tensor": (torch.Tensor,),
    "method": (types.MethodType,),
    "fixed": (tuple, frozenset),
    "container": (dict, list, set, deque),
}


class _Tensor(NamedTuple):
    """What a tensor is made of, apart from its elements."""

    tensor: torch.Tensor
    data: torch.Tensor
    grad: torch.Tensor | None
    requires_grad: bool


class Looked:
    """What was noted of a module.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.kept: list[tuple[Any, type, Any]] = []
        self.tensors: list[_Tensor] = []
        self.spaces = _namespaces(module)
        self.variables = [(space, dict(vars(space))) for space in self.spaces]
        self.cached = [(wrapper, wrapper.cache_info()) for wrapper in _cached_functions(self.spaces)]
        containers = [value for space in self.spaces for value in list(vars(space).values()) if _is_container(value)]
        self._walk([module, *containers])

    def _walk(self, roots: Iterable[Any]) -> None:
        seen: set[int] = set()
        waiting = deque(roots)
        sorts: dict[type, str] = {}  # asked for thousands of objects of few types
        while waiting and len(seen) < REACH:
            value = waiting.popleft()
            kind = type(value)
            sort = sorts.get(kind) or sorts.setdefault(kind, _sort_of(kind))
            if sort == "atom" or id(value) in seen:
                continue
            seen.add(id(value))
            if sort == "tensor":
                if not torch.nn.parameter.is_lazy(value):
                    grad = value.grad if value.is_leaf else None
                    self.tensors.append(_Tensor(value, value.data, grad, value.requires_grad))
            elif sort == "method":
                waiting.append(value.__self__)
            elif sort == "fixed":
                waiting.extend(value)
            elif kind in _PLAIN and not value:  # most of what a layer holds are tables of hooks that nobody has set
                self.kept.append((value, kind, _EMPTY[kind]))
            else:
                contents = _contents(value)
                if contents is not None:
                    self.kept.append((value, kind, contents))
                    waiting.extend(_children(contents))
                if sort == "container" and hasattr(value, "__dict__"):
                    self.kept.append((value, kind, _Attributes(vars(value))))

    @property
    def made(self) -> bool:
        """Whether a tensor lies now where none was, or another one: a table that was made on first use."""
        return any(_has_new_tensor(value, contents) for value, _, contents in self.kept)

    def restore(self, *, traced: bool) -> None:
        """Puts everything back.

        Args:
            traced: Whether fake tensors were about, which caches of functions have kept, if they have kept anything.
        """
        for value, kind, contents in self.kept:
            _put_back(value, kind, contents)
        for old in self.tensors:
            if type(old.tensor) is not type(old.data) and not isinstance(old.tensor, nn.Parameter):
                continue
            if not _same_memory(old.tensor, old.data):
                old.tensor.data = old.data
            if old.tensor.is_leaf:
                if old.tensor.requires_grad is not old.requires_grad:
                    old.tensor.requires_grad_(old.requires_grad)
                if old.tensor.grad is not old.grad:
                    old.tensor.grad = old.grad
        for space, before in self.variables:
            _rebind(space, before)
        for wrapper, info in self.cached if traced else ():
            if wrapper.cache_info().misses != info.misses:
                wrapper.cache_clear()


@contextmanager
def noticing(module: nn.Module, looked: Looked) -> Iterator[list[bool]]:
    """Says of every call inside whether the module holds new tensors after it, which the exporter may take away."""
    noticed: list[bool] = []
    handle = module.register_forward_hook(lambda *_: noticed.append(looked.made), always_call=True)
    try:
        yield noticed
    finally:
        handle.remove()


@contextmanager
def untouched(
    module: nn.Module, *, runs: bool = False, seen: set[Memory] | None = None, looked: Looked | None = None
) -> Iterator[Looked]:
    """Whatever happens to a module inside is undone; random numbers are drawn after as if nothing had been drawn.

    Args:
        module: The module.
        runs: Whether it is run on real tensors (else it is traced), so that elements of its tensors may change.
        seen: Takes the memory of all operands of what is run.
        looked: What was noted of the module as it is, if that was done.
    """
    looked = looked or Looked(module)
    with _as_before(looked, traced=not runs):
        if not runs:
            yield looked
            return
        writes = Writes((old.tensor for old in looked.tensors), seen)
        try:
            with writes:
                yield looked
        finally:
            writes.undo()


@contextmanager
def guarded(module: nn.Module) -> Iterator[None]:
    """As :func:`untouched` of a module that is run, for long: elements are watched only while somebody's code runs.

    That is inside of :func:`watching`, and of :func:`untouched` of another module. Watching everything costs as much as
    computing something small.
    """
    looked = Looked(module)
    with _as_before(looked, traced=False):
        guard = Writes(old.tensor for old in looked.tensors)
        guards.append(guard)
        try:
            yield
        finally:
            guards.remove(guard)
            guard.undo()


@contextmanager
def _as_before(looked: Looked, *, traced: bool) -> Iterator[None]:
    """Puts back a module and the states of random generators, NumPy's and Python's, too; all runs draw alike."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if cast("Any", torch.cuda).is_initialized() else None
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        looked.restore(traced=traced)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    one, other = storage_of(a), storage_of(b)
    if one is None or other is None:
        return a.shape == b.shape and a.dtype == b.dtype
    return (one._cdata, a.storage_offset(), a.shape, a.stride(), a.dtype) == (
        other._cdata,
        b.storage_offset(),
        b.shape,
        b.stride(),
        b.dtype,
    )


# -- contents ----------------------------------------------------------------------------------------------------------


class _Attributes(dict[str, Any]):
    """The attributes of an object."""


def _sort_of(kind: type) -> str:
    """What the walk does with objects of a type."""
    for sort, kinds in _SORTS.items():
        if issubclass(kind, kinds):
            return sort
    return "object"


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list | set | deque)


def _kind_of(value: Any) -> Any:
    """The plain container that an object is one of, past what its class makes of reading and writing."""
    kind = type(value)
    return kind if kind in _PLAIN else next(kind for kind in _PLAIN if isinstance(value, kind))


def _contents(value: Any) -> Any:
    """A copy of what an object holds; ``None`` for what cannot hold anything."""
    if (kind := type(value)) in _PLAIN:  # nearly all of them are, most of them empty
        copied = dict if kind is dict or kind is OrderedDict else set if kind is set else list
        return copied(value) if value else copied()
    if isinstance(value, dict):
        return {key: dict.__getitem__(value, key) for key in _kind_of(value).__iter__(value)}
    if _is_container(value):
        kind = _kind_of(value)
        return (set if kind is set else list)(kind.__iter__(value))
    own = getattr(value, "__dict__", None)
    return _Attributes(own) if isinstance(own, dict) else None


def _now(value: Any, before: Any) -> Any:
    """What an object holds now, read as ``before`` was: itself if that reads the same."""
    if isinstance(before, _Attributes):
        return vars(value)
    return value if type(value) in _PLAIN else _contents(value)


def _children(contents: Any) -> Iterable[Any]:
    return contents.values() if isinstance(contents, dict) else contents


def _same(now: Any, before: Any) -> bool:
    """Whether the same objects lie at the same places."""
    if len(now) != len(before):
        return False
    if not before:
        return True
    if isinstance(before, set):
        return {id(item) for item in now} == {id(item) for item in before}
    if isinstance(before, dict) and not all(map(is_, now.values(), before.values())):
        return False
    return all(map(is_, now, before))


def _put_back(value: Any, kind: type, before: Any) -> None:
    if not before and not value and type(value) is kind and kind in _PLAIN:
        return
    if type(value) is not kind:  # a lazy layer becomes a plain one
        object.__setattr__(value, "__class__", kind)
    if _same(_now(value, before), before):
        return
    holder = vars(value) if isinstance(before, _Attributes) else value
    plain = _kind_of(holder)
    plain.clear(holder)
    if isinstance(before, dict):
        for key, item in before.items():
            plain.__setitem__(holder, key, item)
    else:
        (plain.update if plain is set else plain.extend)(holder, before)


def _has_new_tensor(value: Any, before: Any) -> bool:
    now = _now(value, before)
    if _same(now, before):
        return False
    if isinstance(before, dict):  # while it is traced, a module's own tensors stand in for themselves
        new = [item for key, item in now.items() if not _alike(item, before.get(key))]
    else:
        old = {id(item) for item in before}
        new = [item for item in now if id(item) not in old]
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(new))


def _alike(now: Any, before: Any) -> bool:
    """Whether an object is the one before, or a tensor like it: norms of weights compute one anew for every call."""
    if isinstance(now, torch.Tensor) and isinstance(before, torch.Tensor):
        return now.shape == before.shape and now.dtype == before.dtype
    return now is before


# -- namespaces --------------------------------------------------------------------------------------------------------


def _namespaces(module: nn.Module) -> list[Any]:
    """The classes of a module's layers and the Python modules that define them, but for torch's own."""
    classes = dict.fromkeys(kind for layer in module.modules() for kind in type(layer).__mro__)
    own = [kind for kind in classes if kind.__module__.partition(".")[0] not in ("torch", "builtins", "typing", "abc")]
    files = dict.fromkeys(sys.modules[kind.__module__] for kind in own if kind.__module__ in sys.modules)
    return [*own, *files]


def _cached_functions(spaces: Iterable[Any]) -> list[Any]:
    """The functions with a cache (``functools.lru_cache``) that the code of some namespaces may call."""
    found: dict[int, Any] = {}
    reached = [  # 'import tables' of a neighbour
        value
        for space in spaces
        for value in (vars(space).values() if isinstance(space, types.ModuleType) else ())
        if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in _NOT_THE_USERS
    ]
    for space in (*spaces, *reached):
        for value in list(vars(space).values()):
            function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            if isinstance(function, functools._lru_cache_wrapper):
                found[id(function)] = function
    return list(found.values())


def _rebind(space: Any, before: dict[str, Any]) -> None:
    """Gives the variables of a namespace the objects that they stood for; modules imported since stay."""
    now = dict(vars(space))
    for name, value in now.items():
        if name not in before and not isinstance(value, types.ModuleType) and not name.startswith("__"):
            delattr(space, name)
    for name, value in before.items():
        if (name not in now or now[name] is not value) and not name.startswith("__"):
            setattr(space, name, value)
