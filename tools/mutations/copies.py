"""Faults of the copy of the user's class, planted before it is proven, and what tells two modules apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tools.mutations.faults import Dice, dice_of
from tools.mutations.models import Case

Altered = Callable[[Any, Any, Dice], str | None]
"""Changes a copy (first) of the user's module (second)."""


def swapped_units(module: Any, source: Any, dice: Dice) -> str | None:
    import torch

    names = [name for name, each in module.named_parameters() if each.ndim and len(each) > 1]
    name = names[int(dice.integers(len(names)))]
    with torch.no_grad():
        tensor = dict(module.named_parameters())[name]
        a, b = dice.choice(len(tensor), 2, replace=False).tolist()
        tensor[[a, b]] = tensor[[b, a]].clone()
    return f"{name}: rows {a} and {b} swapped"


def shared_tensor(module: Any, source: Any, dice: Dice) -> str | None:
    theirs = dict(source.named_parameters())
    names = [n for n, each in module.named_parameters() if n in theirs and each.shape == theirs[n].shape]
    if not names:
        return None
    name = names[int(dice.integers(len(names)))]
    path, _, last = name.rpartition(".")
    module.get_submodule(path)._parameters[last] = theirs[name]
    return f"{name} is the original's"


def shared_layer(module: Any, source: Any, dice: Dice) -> str | None:
    """A layer whose forward is bound to the layer of the original, as a closure or a hook would leave it."""
    layers = dict(source.named_modules())
    names = [
        name
        for name, layer in module.named_modules()
        if (own := list(layer.parameters()))
        and not list(layer.children())
        and all(a.shape == b.shape for a, b in zip(own, layers[name].parameters(), strict=True))
    ]
    if not names:
        return None
    name = names[int(dice.integers(len(names)))]
    module.get_submodule(name).forward = layers[name].forward
    return f"{name}.forward is that of the original"


def _numbers(module: Any) -> list[tuple[str, str, int]]:
    return [
        (path, name, value)
        for path, layer in module.named_modules()
        for name, value in vars(layer).items()
        if type(value) is int and not name.startswith("_")
    ]


def other_number(module: Any, source: Any, dice: Dice) -> str | None:
    """A whole number in an attribute is another one (a head count, a group count, an index of a layer)."""
    found = _numbers(module)
    own = [each for each in found if not type(module.get_submodule(each[0])).__module__.startswith("torch.")]
    if not own:
        return None
    path, name, value = own[int(dice.integers(len(own)))]
    setattr(module.get_submodule(path), name, value + 1)
    return f"{path}.{name} is {value + 1}, was {value}"


def layer_index(module: Any, source: Any, dice: Dice) -> str | None:
    """The index under which a layer keeps its cache is that of another layer."""
    found = [each for each in _numbers(module) if each[1] == "layer_idx"]
    if len(found) < 2:
        return None
    path, name, value = found[int(dice.integers(1, len(found)))]
    setattr(module.get_submodule(path), name, value - 1)
    return f"{path}.{name} is {value - 1}, was {value}"


def untied(module: Any, source: Any, dice: Dice) -> str | None:
    """Two names of one parameter become two parameters of equal values."""
    import torch

    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    second = [name for name in names if name not in dict(module.named_parameters())]
    if not second:
        return None
    path, _, last = second[0].rpartition(".")
    owner = module.get_submodule(path)
    owner._parameters[last] = torch.nn.Parameter(owner._parameters[last].detach().clone())
    return f"{second[0]} is a parameter of its own"


def wrong_buffer(module: Any, source: Any, dice: Dice) -> str | None:
    names = [name for name, each in module.named_buffers() if each.is_floating_point() and each.numel()]
    if not names:
        return None
    name = names[int(dice.integers(len(names)))]
    buffer = dict(module.named_buffers())[name]
    buffer.view(-1)[int(dice.integers(buffer.numel()))] += 0.5
    return f"{name}: one element 0.5 larger"


def lost_parameter_bias(module: Any, source: Any, dice: Dice) -> str | None:
    import torch

    names = [name for name, each in module.named_parameters() if name.endswith("bias") and bool(each.any())]
    if not names:
        return None
    name = names[int(dice.integers(len(names)))]
    with torch.no_grad():
        dict(module.named_parameters())[name].zero_()
    return f"{name} is zero"


MODULES: Mapping[str, Altered] = {
    "module-unit": swapped_units,
    "module-shared": shared_tensor,
    "module-closure": shared_layer,
    "module-number": other_number,
    "module-layer-index": layer_index,
    "module-untied": untied,
    "module-buffer": wrong_buffer,
    "module-bias": lost_parameter_bias,
}
"""Faults in the copy of the user's module."""


@contextmanager
def planted_in_module(case: Case, name: str, seed: int) -> Iterator[list[str]]:
    """While this is open, every copy of the case's module with other tensors comes with a fault; the list says which.

    Those are the copies for which ``copied`` is told what stands in the place of some objects; the copies that a
    proof makes of the original itself are left right.
    """
    from graphprune.hosts.torch import own

    texts: list[str] = []
    right = own.copied

    def wrong(value: Any, memo: dict[int, Any]) -> Any:
        sliced = value is not None and value is case.source and any(id(new) != old for old, new in memo.items())
        copied = right(value, memo)
        if sliced:
            text = MODULES[name](copied, case.source, dice_of(case.name, name, seed))
            texts.extend([text] if text else [])
        return copied

    with patch.object(own, "copied", wrong):
        yield texts


def signature(module: Any, source: Any) -> dict[str, Any]:
    """What can be wrong in a module: values, ties, attributes, and what is the original's."""
    theirs = {each.untyped_storage().data_ptr() for each in (*source.parameters(), *source.buffers())}
    layers = {id(layer) for layer in source.modules()}
    found: dict[str, Any] = {"class": type(module).__name__}
    first: dict[int, str] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        found[name] = tensor.detach().clone()
        found[f"{name} tied to"] = first.setdefault(id(tensor), name)
        found[f"{name} shared"] = tensor.untyped_storage().data_ptr() in theirs
    for path, layer in module.named_modules():
        for name, value in vars(layer).items():
            if name == "_flat_weight_refs":  # each copy has its own
                continue
            if type(value) in (int, float, bool, str) or isinstance(value, tuple | list):
                found[f"{path}.{name}"] = repr(value)
            elif id(getattr(value, "__self__", None)) in layers:
                found[f"{path}.{name}"] = "bound to the original"
    return found


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two signatures are equal."""
    import torch

    def alike(x: Any, y: Any) -> bool:
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return x.shape == y.shape and x.dtype == y.dtype and bool(torch.equal(x, y))
        return type(x) is type(y) and bool(x == y)

    return a.keys() == b.keys() and all(alike(a[name], b[name]) for name in a)
