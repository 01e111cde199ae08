"""Sizes that the user's code computes from other sizes, set right where they are used.

Code may take a width for granted that pruning has changed, without an attribute that could be repaired: attention that
ends in ``x.reshape(B, N, C)``, where ``C`` is the width of its input, or begins with ``C // num_heads``. The class can
still be kept: its ``forward`` runs as it is, and the one number that a reshape is given wrongly is replaced. Which one
follows from the graph, which has the shape of every result; that all are right is proven as for any other copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.signatures import argument
from graphprune.hosts.torch.specs import SPEC, Spec

Shape = tuple[int, ...]
Kind = Literal["reshape", "split"]


@dataclass(frozen=True, slots=True)
class Resize:
    """One reshape (or split by a list of sizes) of the user's code in which numbers are replaced.

    Attributes:
        kind: ``reshape``, or ``split``, whose sizes add up to the length of the axis.
        rank: How many numbers it is given.
        places: For the places of those that change, what the code says and what it must be. Multiples of the one become
            multiples of the other: a place may hold the batch too, as in ``view(B * heads, N, d)``.
    """

    kind: Kind
    rank: int
    places: Mapping[int, tuple[int, int]]

    def of(self, asked: Shape, size: int) -> Shape | None:
        """What to use for ``asked``, if this is meant and it fits so many elements (positions of the axis)."""
        if len(asked) != self.rank or any(
            not isinstance(asked[i], int) or asked[i] <= 0 or asked[i] % old for i, (old, _) in self.places.items()
        ):
            return None
        shape = list(asked)
        for i, (old, new) in self.places.items():
            shape[i] = shape[i] // old * new
        return tuple(shape) if _fits(tuple(shape), size, kind=self.kind) else None


@dataclass
class Resized:
    """The ``forward`` of a module, with numbers replaced that it gives to reshapes (:class:`Resize`).

    An attribute of the module, so that copies and pickles of the module take it along.
    """

    module: nn.Module
    resizes: tuple[Resize, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the ``forward`` of the module's class."""
        with _Shapes(self._shape):
            return type(self.module).forward(self.module, *args, **kwargs)

    def _shape(self, asked: Shape, size: int, kind: Kind) -> Shape:
        found = (resize.of(asked, size) for resize in self.resizes if resize.kind == kind)
        return next((shape for shape in found if shape is not None), asked)


class _Shapes(TorchFunctionMode):
    """Shows the sizes of every reshape and split to a function, and uses what it returns."""

    def __init__(self, shape: Callable[[Shape, int, Kind], Shape]) -> None:
        super().__init__()
        self._shape = shape

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls ``func``, with another shape if it is a reshape."""
        kwargs = dict(kwargs or {})
        if func in _UNFLATTENS:
            named = dict(zip(("input", "dim", "sizes"), args, strict=False)) | kwargs
            x, dim, sizes = named["input"], named["dim"], tuple(named["sizes"])
            if isinstance(dim, int):
                dim %= x.dim()
                asked = (*x.shape[:dim], *sizes, *x.shape[dim + 1 :])
                return func(x, dim, self._shape(asked, x.numel(), "reshape")[dim : dim + len(sizes)])
        if func in _SPLITS:
            named = dict(zip(("tensor", "split_size_or_sections", "dim"), args, strict=False))
            named |= {"split_size_or_sections" if name == "split_size" else name: kwargs[name] for name in kwargs}
            sizes, dim = named["split_size_or_sections"], named.get("dim", 0)
            if isinstance(sizes, list | tuple) and all(isinstance(size, int) for size in sizes):
                length = named["tensor"].shape[dim]
                return func(named["tensor"], list(self._shape(tuple(sizes), length, "split")), dim)
        if func in _RESHAPES:
            x, *given = args
            given = given or list(kwargs.values())
            asked = tuple(given[0]) if given and isinstance(given[0], list | tuple) else tuple(given)
            if all(isinstance(size, int | torch.SymInt) for size in asked):
                return func(x, self._shape(asked, x.numel(), "reshape"))
        return func(*args, **kwargs)


_RESHAPES = frozenset({Tensor.reshape, Tensor.view, torch.reshape})
_SPLITS = frozenset({Tensor.split, torch.split})
_UNFLATTENS = frozenset({Tensor.unflatten, torch.unflatten})


def resize_forwards(module: nn.Module, pruned: TorchHost, run: Callable[[], str], attempt: Callable[[], str]) -> str:
    """Replaces numbers in reshapes of a module's code such that it computes what the pruned graph does.

    Args:
        module: A copy of the user's module with smaller tensors; forwards of its parts are changed.
        pruned: The pruned graph.
        run: Runs the module on the example.
        attempt: Says why the module does not compute what it should; empty if it does.

    Returns:
        What to tell the user; empty, and nothing changed, if that does not help.
    """
    expected = _expected(pruned)
    found = _Found()
    with _watched(module, expected, found):
        run()
    layers = dict(module.named_modules())
    before = {path: vars(layers[path]).get("forward") for path in found.resizes if path in layers}
    if not before or not all(forward is None or isinstance(forward, Resized) for forward in before.values()):
        return ""
    for path, forward in before.items():
        known = forward.resizes if forward is not None else ()
        layers[path].__dict__["forward"] = Resized(layers[path], (*found.resizes[path], *known))
    if not attempt():
        return (
            "in the module, sizes that code takes from other sizes are replaced where they are given to a reshape or "
            f"split, in the forward of {', '.join(repr(path) if path else 'the module itself' for path in before)}"
        )
    for path, forward in before.items():
        if forward is None:
            del layers[path].__dict__["forward"]
        else:
            layers[path].__dict__["forward"] = forward
    return ""


Known = dict[tuple[str, Kind], list[Shape]]
"""For a module: in order, the shapes of results (``reshape``), or the sizes of splits."""


def _expected(pruned: TorchHost) -> Known:
    """What each module's own code computes in the graph."""
    found: Known = {}
    for node in pruned.program.nodes:
        spec = node.meta.get(SPEC)
        if node.op != "call_function":
            continue
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        path = stack[-1] if stack else ""
        if node.target is torch.ops.aten.split_with_sizes.default:
            found.setdefault((path, "split"), []).append(tuple(argument(node, "split_sizes")))
        elif isinstance(spec, Spec):
            found.setdefault((path, "reshape"), []).append(tuple(spec.shape))
    return found


@dataclass
class _Found:
    """What a run with watched reshapes has found: by module, the reshapes to change."""

    resizes: dict[str, list[Resize]] = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)


@contextmanager
def _watched(module: nn.Module, expected: Known, found: _Found) -> Iterator[None]:
    """Runs of ``module`` set reshapes right that give shapes which the graph has not, and note how."""

    def shape(asked: Shape, size: int, kind: Kind) -> Shape:
        if not found.inside:  # what others compute meanwhile
            return asked
        path = found.inside[-1]
        known = expected.get((path, kind), ())
        if _fits(asked, size, kind=kind) and _full(asked, size) in known:
            return asked
        places = min(
            (_places(asked, each) for each in known if len(each) == len(asked) and _fits(each, size, kind=kind)),
            key=len,
            default={},
        )
        if not places:
            return asked
        resize = Resize(kind, len(asked), places)
        mine = found.resizes.setdefault(path, [])
        if resize not in mine:
            mine.append(resize)
        return resize.of(asked, size) or asked

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: found.inside.append(path)

    def leave(*_: Any) -> None:
        found.inside.pop()

    with ExitStack() as stack:
        for path, layer in module.named_modules():
            if isinstance(layer, torch.jit.ScriptModule):  # it takes no hooks
                continue
            stack.callback(layer.register_forward_pre_hook(enter(path)).remove)
            stack.callback(layer.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(_Shapes(shape))
        yield


def _places(asked: Shape, shape: Shape) -> dict[int, tuple[int, int]]:
    """Where numbers that were asked for differ from a shape; a size that is left open (-1) does not."""
    return {i: (old, new) for i, (old, new) in enumerate(zip(asked, shape, strict=True)) if old not in (-1, new)}


def _full(asked: Shape, n_elements: int) -> Shape:
    """A shape without the size that is left open, if it fits."""
    if -1 not in asked or not _fits(asked, n_elements):
        return asked
    return tuple(n_elements // max(1, -prod(asked)) if size == -1 else size for size in asked)


def _fits(shape: Shape, n_elements: int, *, kind: Kind = "reshape") -> bool:
    if kind == "split":
        return sum(shape) == n_elements
    if -1 in shape:
        return -prod(shape) > 0 and n_elements % -prod(shape) == 0
    return prod(shape) == n_elements
