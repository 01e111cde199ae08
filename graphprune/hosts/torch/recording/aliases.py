"""Tensors that share memory, as values of a graph in which nothing is ever written.

Every storage has a version. What is written to one tensor becomes a new value of it, which is put into the tensors
that it is a view of at once; other views of the same storage are taken anew when they are read next.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import fx

from graphprune.hosts.torch.recording.operators import Unrecordable

_ATEN = torch.ops.aten


class Emitting(Protocol):
    """Puts calls into a graph."""

    def __call__(self, func: Any, args: Any, kwargs: Any, like: Any) -> fx.Node:
        """A node for a call, whose result has the shape and type of ``like``."""


@dataclass(eq=False, slots=True)
class Store:
    """A storage.

    Attributes:
        version: How often it was written to.
        origin: What its values follow from: a bit for anything that varies, and one for each input of whole numbers.
        first: What it was before it was written to, if the graph does not compute it: an input, or a stored tensor.
        known: A tensor that has it, if it is kept: that of an input, or of a stored tensor.
    """

    version: int = 0
    origin: int = 0
    first: fx.Node | None = None
    known: torch.Tensor | None = None


@dataclass(eq=False, slots=True)
class View:
    """How a tensor came out of another one that it shares memory with.

    Attributes:
        parent: The other one.
        func: The operator; ``None`` where it is the same tensor.
        args: Its arguments after the first.
        kwargs: Its keyword arguments.
        at: The position among the results, if there are several.
    """

    parent: Alias
    func: Any
    args: tuple[Any, ...] = ()
    kwargs: Any = None
    at: int | None = None


class Alias:
    """A tensor: the value that it has now, and the storage that it is a view of."""

    __slots__ = ("dtype", "node", "ref", "shape", "store", "version", "view")

    def __init__(self, tensor: torch.Tensor, node: fx.Node, store: Store, view: View | None = None) -> None:
        self.ref = weakref.ref(tensor)
        self.node, self.store, self.view = node, store, view
        self.version = store.version
        self.shape, self.dtype = tensor.shape, tensor.dtype

    @property
    def like(self) -> tuple[torch.Size, torch.dtype]:
        """Shape and type."""
        return self.shape, self.dtype


def current(alias: Alias, emit: Emitting) -> fx.Node:
    """The value that a tensor has now."""
    if alias.version == alias.store.version:
        return alias.node
    view = alias.view
    if view is None:
        raise Unrecordable("a storage lost its first tensor")
    alias.node = _again(view, current(view.parent, emit), alias, emit)
    alias.version = alias.store.version
    return alias.node


def write(alias: Alias, value: fx.Node, emit: Emitting) -> None:
    """Gives a tensor another value, and all that it is a view of."""
    chain = [alias]
    while (view := chain[-1].view) is not None:
        current(view.parent, emit)
        chain.append(view.parent)
    alias.store.version += 1
    alias.node, alias.version = value, alias.store.version
    for child, parent in pairwise(chain):
        assert child.view is not None
        parent.node = _put(child.view, parent, child, emit)
        parent.version = alias.store.version


def _again(view: View, parent: fx.Node, alias: Alias, emit: Emitting) -> fx.Node:
    if view.func is None:
        return parent
    if view.func is OPAQUE:
        raise Unrecordable("a tensor is read that shares memory with one that was written to since")
    if view.at is None:
        return emit(view.func, (parent, *view.args), view.kwargs, alias.like)
    start, stop, axis = _part(view)
    if start is None:
        return emit(_ATEN.select.int, (parent, axis, stop), {}, alias.like)
    return emit(_ATEN.slice.Tensor, (parent, axis, start, stop), {}, alias.like)


def _put(view: View, parent: Alias, child: Alias, emit: Emitting) -> fx.Node:
    """The value of a tensor with a new value in the part of it that is seen as a view."""
    func, old, new = view.func, parent.node, child.node
    if func is None:
        return new
    if view.at is not None:
        start, stop, axis = _part(view)
        if start is None:
            return emit(_ATEN.select_scatter.default, (old, new, axis, stop), {}, parent.like)
        return emit(_ATEN.slice_scatter.default, (old, new, axis, start, stop), {}, parent.like)
    if func in _RESHAPES:
        return emit(_ATEN.reshape.default, (new, list(parent.shape)), {}, parent.like)
    if func in _SWAPS:
        return emit(func, (new, *view.args), view.kwargs, parent.like)
    if func is _ATEN.permute.default:
        dims = [d % len(child.shape) for d in view.args[0]]
        return emit(func, (new, [dims.index(i) for i in range(len(dims))]), {}, parent.like)
    if func in (_ATEN.movedim.int, _ATEN.movedim.intlist):
        return emit(func, (new, view.args[1], view.args[0]), {}, parent.like)
    if func is _ATEN.slice.Tensor:
        return emit(_ATEN.slice_scatter.default, (old, new, *view.args), view.kwargs, parent.like)
    if func is _ATEN.select.int:
        return emit(_ATEN.select_scatter.default, (old, new, *view.args), view.kwargs, parent.like)
    if func is _ATEN.narrow.default:
        axis, start, length = view.args
        return emit(_ATEN.slice_scatter.default, (old, new, axis, start, start + length), {}, parent.like)
    raise Unrecordable(f"what is written to a view by '{func}' cannot be put back")


def _part(view: View) -> tuple[int | None, int, int]:
    """Start, stop and axis of a part; without a start, the index in place of the stop."""
    at = view.at
    assert at is not None
    func, args, kwargs = view.func, view.args, view.kwargs or {}
    default = 0
    if func is _ATEN.unbind.int:
        return None, at, args[0] if args else kwargs.get("dim", default)
    if func in _PARTS:
        axis = args[1] if len(args) > 1 else kwargs.get("dim", default)
        sizes = kwargs["sizes"]
        return sum(sizes[:at]), sum(sizes[: at + 1]), axis
    raise Unrecordable(f"what is written to a part by '{func}' cannot be put back")


def sizes_of_parts(func: Any, args: tuple[Any, ...], kwargs: Any, parts: Any) -> dict[str, Any]:
    """What is kept of a call that took a tensor apart: the sizes of the parts, and the axis."""
    if func not in _PARTS:
        return dict(kwargs)
    axis = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    return {**kwargs, "dim": axis, "sizes": [part.shape[axis] for part in parts]}


OPAQUE = object()
"""Stands for an operator that cannot be run again."""

_RESHAPES = frozenset(
    (
        _ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.reshape.default, _ATEN.flatten.using_ints,
        _ATEN.unflatten.int, _ATEN.unsqueeze.default, _ATEN.squeeze.default, _ATEN.squeeze.dim, _ATEN.squeeze.dims,
        _ATEN.view_as.default, _ATEN.reshape_as.default, _ATEN._reshape_alias.default,
    )
)  # fmt: skip
_SWAPS = frozenset(
    (_ATEN.transpose.int, _ATEN.t.default, _ATEN.swapaxes.default, _ATEN.mT.default, _ATEN.numpy_T.default)
)
_PARTS = frozenset(
    (
        _ATEN.split.Tensor, _ATEN.split_with_sizes.default, _ATEN.chunk.default, _ATEN.tensor_split.sections,
        _ATEN.split.sizes, _ATEN.unsafe_chunk.default, _ATEN.unsafe_split.Tensor,
    )
)  # fmt: skip
