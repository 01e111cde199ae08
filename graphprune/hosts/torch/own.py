"""Copies of a user's module, and the proof that a copy computes with tensors of its own.

``copy.deepcopy`` leaves functions as they are: a lambda, a nested function or a default argument that holds a layer
goes on holding the layer of the original. So functions that reach the module's layers or tensors are made anew around
the copies. What escapes that (a global, an attribute of a class) is found when the copy runs: every operator's operands
are held against the memory of the original's tensors, which is exact whatever an operand's effect on the outputs is.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn

from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.pairs import replaced_tensors
from graphprune.hosts.torch.scripts import give_scripts
from graphprune.hosts.torch.untouched import untouched
from graphprune.hosts.torch.writes import Memory, memory_of

_MOST_OBJECTS = 200_000
"""Objects that are looked at in search of functions: a module may hold a data set."""
_UNCHANGING = frozenset({str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size})


def sliced_copy(source: nn.Module, pruned: TorchHost, original: TorchHost | None = None) -> nn.Module:
    """A deep copy in which tensors of the graph are replaced by the pruned ones; ties stay ties."""
    tensors: dict[str, torch.Tensor] = {
        **dict(source.named_parameters(remove_duplicate=False)),
        **dict(source.named_buffers(remove_duplicate=False)),
    }
    memo: dict[int, Any] = {
        id(value): value.detach().clone()  # computed, as older norms of weights keep it; deepcopy refuses it
        for layer in source.modules()
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    for old, new in replaced_tensors(original or pruned, pruned, tensors):
        fresh = new.detach().clone()
        if isinstance(old[0], nn.Parameter):
            fresh = nn.Parameter(fresh, requires_grad=old[0].requires_grad)
        for tensor in old:
            memo.setdefault(id(tensor), fresh)
    module = _replicated(source, memo)
    give_scripts(module, pruned)
    for name, tensor in pruned.tensors.items():
        if name not in tensors and isinstance(tensor, torch.Tensor):
            add_bias(module, name, tensor)
    return module


def probe_of(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares all tensors: to run it, or to change its attributes, leaves no trace."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in _tensors(module)}
    probe = _replicated(module, memo)
    for layer in probe.modules():
        layer.training = False
    return probe


def add_bias(module: nn.Module, name: str, values: torch.Tensor) -> bool:
    """Gives a layer that was made without one a bias, as a refit asks for; whether there is such a layer."""
    path, _, last = name.rpartition(".")
    layer = dict(module.named_modules(remove_duplicate=False)).get(path)
    if last != "bias" or layer is None or layer._parameters.get("bias", values) is not None:
        return False
    layer.bias = nn.Parameter(values.detach().clone(), requires_grad=values.requires_grad)
    return True


def foreign_reads(
    module: nn.Module,
    source: nn.Module,
    pruned: TorchHost,
    run: Callable[[nn.Module], object],
    seen: set[Memory] | None = None,
    old: Callable[[str], str] = str,
) -> str:
    """Why a copy does not compute with its own tensors and with all that the pruned graph uses; empty if it does.

    Args:
        module: The copy.
        source: The user's module.
        pruned: The graph that the copy computes.
        run: Calls a module on the example.
        seen: The memory of all that was read when the copy, as it is now, computed what it should; absent: it is run.
        old: From names in the copy to those in the user's module, where they differ.
    """
    theirs = {memory_of(tensor): name for name, tensor in _named(source) if tensor.numel()}
    failed = False
    if seen is None:
        seen = set()
        try:
            with untouched(module, runs=True, seen=seen):
                run(module)
        except Exception:  # noqa: BLE001  # sizes do not fit, perhaps since layers of the original are among those used
            failed = True
    if shared := sorted({theirs[place] for place in seen & theirs.keys()}):
        return f"it computes with {_listed(shared)} of your own module, which its code reaches past the copy"
    ours = {} if failed else {old(name): tensor for name, tensor in _named(module)}
    used = (name for name in pruned.without_dead_nodes().tensors if name in ours)
    if unread := sorted(name for name in used if ours[name].numel() and memory_of(ours[name]) not in seen):
        return f"it does not compute with its own {_listed(unread)}, but with something that was made of the original's"
    return ""


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"


def _named(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """All tensors that a module holds, in whatever way."""
    return (item for item in _reached([module]) if isinstance(item, torch.Tensor))


# -- deep copies, functions included ---------------------------------------------------------------------------------


def _replicated(source: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy by a memo in which functions that hold the module's layers or tensors hold those of the copy."""
    own = {id(layer) for layer in source.modules()} | {id(tensor) for _, tensor in _named(source)}
    functions = [
        item
        for item in _reached([source])
        if isinstance(item, types.FunctionType) and any(id(each) in own for each in _reached(_held(item)))
    ]
    cells: dict[int, tuple[types.CellType, types.CellType]] = {}
    for function in functions:
        for cell in function.__closure__ or ():
            cells.setdefault(id(cell), (cell, types.CellType()))
        closure = tuple(cells[id(cell)][1] for cell in function.__closure__ or ()) or None
        new = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, closure)
        new.__dict__.update(function.__dict__)
        new.__qualname__, new.__module__, new.__doc__ = function.__qualname__, function.__module__, function.__doc__
        memo[id(function)] = new
    module = cast("nn.Module", copied(source, memo))

    def own_copy(item: Any) -> Any:
        return copy.deepcopy(item, memo) if any(id(each) in own for each in _reached([item])) else item

    for old, fresh in cells.values():
        try:
            content = old.cell_contents
        except ValueError:  # a name that is never bound
            continue
        fresh.cell_contents = own_copy(content)
    for function in functions:
        new = memo[id(function)]
        new.__defaults__ = tuple(map(own_copy, function.__defaults__)) if function.__defaults__ else None
        if function.__kwdefaults__:
            new.__kwdefaults__ = {name: own_copy(item) for name, item in function.__kwdefaults__.items()}
    if functions:
        _rebind(module, {function: memo[id(function)] for function in functions})
    return module


def copied(item: Any, memo: dict[int, Any]) -> Any:
    """As ``copy.deepcopy``, which looks up for every attribute of every layer how it is copied."""
    kind: Any = type(item)
    if kind in _UNCHANGING:
        return item
    if (known := memo.get(id(item))) is not None:
        return known
    if kind is dict or kind is OrderedDict:
        made = memo[id(item)] = kind()
        for key, value in item.items():
            made[key if type(key) is str else copy.deepcopy(key, memo)] = copied(value, memo)
        return made
    if isinstance(item, nn.Module) and _is_plain(kind):
        fresh = memo[id(item)] = kind.__new__(kind)
        for name, value in vars(item).items():
            vars(fresh)[name] = copied(value, memo)
        return fresh
    return copy.deepcopy(item, memo)


@functools.cache
def _is_plain(kind: Any) -> bool:
    """Whether a class of modules says nothing of its own about copies, and keeps all that it has in attributes."""
    names = ("__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__new__")
    if any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in names):
        return False
    slots = any(each.__dict__.get("__slots__") for each in kind.__mro__)
    restores = kind.__setstate__ not in (nn.Module.__setstate__, nn.modules.conv._ConvNd.__setstate__)  # of old files
    return not (restores or slots or kind in copyreg.dispatch_table or hasattr(kind, "__deepcopy__"))


def _rebind(module: nn.Module, functions: Mapping[Callable[..., Any], types.FunctionType]) -> None:
    """Makes methods of the new functions, where a copy has bound the old ones to its own layers."""
    for item in list(_reached([module])):
        held = item if isinstance(item, dict | list) else getattr(item, "__dict__", None)
        if not isinstance(held, dict | list) or isinstance(item, type):
            continue
        places: list[Any] = list(held) if isinstance(held, dict) else list(range(len(held)))
        for place in places:
            method = held[place]
            if isinstance(method, types.MethodType) and method.__func__ in functions:
                held[place] = types.MethodType(functions[method.__func__], method.__self__)


def _held(item: Any) -> Iterable[Any]:
    """What an object holds."""
    if isinstance(item, nn.Module):
        return list(vars(item).values())
    match item:
        case types.FunctionType():
            found = [*(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
            for cell in item.__closure__ or ():
                try:
                    found.append(cell.cell_contents)
                except ValueError:
                    continue
            return found
        case types.MethodType():
            return (item.__self__, item.__func__)
        case functools.partial():
            return (item.func, *item.args, *item.keywords.values())
        case dict():
            return list(item.values())
        case list() | tuple() | set() | frozenset():
            return item
        case str() | bytes() | int() | float() | type() | types.ModuleType() | None:
            return ()
        case torch.Tensor():
            return ()
    held = getattr(item, "__dict__", None)
    return list(held.values()) if isinstance(held, dict) else ()


def _reached(roots: Iterable[Any]) -> Iterator[Any]:
    """All objects that are reached from some, each once."""
    stack = list(roots)
    seen: set[int] = set()
    while stack and len(seen) < _MOST_OBJECTS:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        stack.extend(each for each in _held(item) if type(each) not in _UNCHANGING)
