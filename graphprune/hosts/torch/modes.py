"""Whether a module computes something else in training mode, and what an argument switches on."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from graphprune.errors import first_line
from graphprune.hosts.torch.quiet import quiet
from graphprune.hosts.torch.recording.noted import Calls
from graphprune.hosts.torch.trace import Example, inference
from graphprune.hosts.torch.untouched import untouched

FLAGS = 4
"""Arguments of ``forward`` that are true or false and are tried the other way round."""


def asks_for_training(model: nn.Module) -> bool:
    """Whether the code of a module's classes, but for torch's own, reads ``training``."""
    return any(_reads_training(kind) for kind in {type(layer) for layer in model.modules()})


def _reads_training(kind: type) -> bool:
    """Whether a method of a class reads ``training``, if it is not one of torch's own."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == "torch":
            continue
        if any(name not in seen and _mentions(value, "training") for name, value in vars(base).items()):
            return True
        seen.update(vars(base))
    return False


def _mentions(value: Any, name: str) -> bool:
    value = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
    code = value if isinstance(value, types.CodeType) else getattr(value, "__code__", None)
    if not isinstance(code, types.CodeType):
        return False
    return name in code.co_names or name in code.co_consts or any(_mentions(c, name) for c in code.co_consts)


def differs_in_training(model: nn.Module, example: Example, known: Calls | None = None) -> tuple[bool, str]:
    """Whether the example runs through other operators in training mode, and why it does not run there.

    Args:
        model: The module; it is left as it was.
        example: A call of it.
        known: The operators that it runs through in evaluation mode, where they were noted.
    """
    args, kwargs = example
    calls: list[list[Any]] = [] if known is None else [known.noted]
    for training in (False, True)[len(calls) :]:
        noted = _Noting()
        below = nullcontext() if known is None else cast("Any", torch._C)._AutoDispatchBelowAutograd()
        try:
            with (
                untouched(model, runs=True), quiet(), inference(model, training=training), below, WithoutDropout(),
                noted,
            ):  # fmt: skip
                noted.calls.note_outputs(model(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  (the user's code raises what it likes)
            return False, first_line(error) if training else ""
        calls.append(noted.calls.noted)
    return calls[0] != calls[1], ""


def reads_any(model: nn.Module, example: Example, names: Sequence[str]) -> tuple[bool, str]:
    """Whether an example reads some parameters in training mode, and why it does not run there."""
    args, kwargs = example
    named = dict(model.named_parameters())
    mode = Downstream(named[name] for name in names)
    try:
        with untouched(model, runs=True), quiet(), inference(model, training=True), mode:
            model(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  (the user's code raises what it likes)
        return False, first_line(error)
    return bool(mode.found), ""


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operators and the shapes of what they make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = Calls()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator."""
        made = func(*args, **(kwargs or {}))
        self.calls.note(func, made)
        return made


_DROPOUTS = frozenset(
    getattr(place, name)
    for place in (torch, functional)
    for name in (
        "dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "alpha_dropout_",
        "feature_dropout", "feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_",
    )
    if hasattr(place, name)
)  # fmt: skip


class WithoutDropout(TorchFunctionMode):
    """Dropout drops nothing, so that a run in training mode can be compared with another one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function."""
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is functional.scaled_dot_product_attention:
            args, kwargs = (*args[:4], *(0.0 for _ in args[4:5]), *args[5:]), kwargs
            kwargs.update(dict.fromkeys(("dropout_p",) if "dropout_p" in kwargs else (), 0.0))
        return func(*args, **kwargs)


def flipped_flags(model: nn.Module, example: Example) -> Iterator[tuple[str, bool]]:
    """Arguments of ``forward`` that are true or false by default and not given, the other way round."""
    try:
        signature = inspect.signature(model.forward)
        given = signature.bind(*example[0], **example[1]).arguments
    except (TypeError, ValueError):
        return
    n = 0
    for name, parameter in signature.parameters.items():
        if isinstance(parameter.default, bool) and name not in given and n < FLAGS:
            n += 1
            yield name, not parameter.default


class Downstream(WithoutDropout):
    """Collects what is computed from some tensors."""

    def __init__(self, sources: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.found: dict[int, torch.Tensor] = {}
        self.sources = {id(tensor): tensor for tensor in sources}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function."""
        made = super().__torch_function__(func, types, args, kwargs)
        if self.sources and any(
            id(leaf) in self.sources or id(leaf) in self.found for leaf in pytree.tree_leaves((args, kwargs or {}))
        ):
            leaves = pytree.tree_leaves(made)
            self.found.update((id(leaf), leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))
        return made
