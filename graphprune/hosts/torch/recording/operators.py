"""What recording must know of an operator: whether it writes, what it may share memory with, what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, cast

import torch

from graphprune import ops
from graphprune.hosts.torch.ops.table import ROWS


class Unrecordable(Exception):  # noqa: N818  (it is no error of the user's)
    """A forward does what a recording cannot stand for."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an operator.

    Attributes:
        writes: Positions of the arguments that are written to.
        sibling: For what writes to its first argument: the operator that returns the result instead.
        refused: Why it cannot be recorded; empty where it can.
        views: Whether a result may share memory with an operand.
        filled: Whether it takes no more than shape and type from its operands.
        passes: Whether it hands its first operand on as it is.
        selects: Names of the operands whose values decide the size of the result, if values do; ``None`` if not.
        parts: Runs it as other operators, where it has no row.
        norm: Whether it is a norm that may keep running statistics.
    """

    writes: tuple[int, ...] = ()
    sibling: Any = None
    refused: str = ""
    views: bool = False
    filled: bool = False
    passes: bool = False
    selects: tuple[str, ...] | None = None
    parts: Callable[..., Any] | None = None
    norm: bool = False


READS = frozenset(
    (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.is_nonzero.default)
)
"""Operators that hand one number to Python."""
_PASSES = frozenset(("detach", "detach_", "lift_fresh", "alias", "resolve_conj", "resolve_neg", "lift"))
_FILLED = frozenset(f"{fill}_like" for fill in ("zeros", "ones", "full", "empty")) | frozenset(
    f"new_{fill}" for fill in ("zeros", "ones", "full", "empty", "empty_strided")
)
_SELECTS: Mapping[str, tuple[str, ...]] = {
    "index": ("indices",),
    "masked_select": ("mask",),
    "repeat_interleave": ("repeats",),
}
_STATISTICS = frozenset(
    ("batch_norm", "instance_norm", "_batch_norm_impl_index", "native_batch_norm", "cudnn_batch_norm")
)
_SIBLINGS: Mapping[str, str] = {"zero_": "zeros_like"}


@lru_cache(maxsize=4096)
def facts_of(func: Any) -> Facts:
    """What is known of an operator."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return Facts(refused=f"'{func}' runs a graph of its own")
    name = schema.name.removeprefix("aten::")
    if name in _PASSES:
        return Facts(passes=True)
    selects = None
    if torch.Tag.dynamic_output_shape in func.tags:
        selects = _SELECTS.get(name, ("",))
    composite = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    writes = tuple(
        i for i, each in enumerate(schema.arguments) if each.alias_info is not None and each.alias_info.is_write
    )
    if writes:
        sibling = _sibling(func, schema, name) if writes == (0,) else None
        refused = "" if sibling is not None else f"'{func}' writes in a way that has no functional form"
        return Facts(writes=writes, sibling=sibling, refused=refused)
    aliases = any(each.alias_info is not None for each in schema.arguments)
    return Facts(
        views=composite or aliases,
        filled=name in _FILLED,
        selects=selects,
        parts=_parts(func, schema, composite=composite),
        norm=name in _STATISTICS,
    )


def named_arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a call gives, by name."""
    return {**dict(zip((each.name for each in func._schema.arguments), args, strict=False)), **kwargs}


def in_training(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a norm counts statistics of its own; it writes to its running ones then, and does not say so."""
    given = named_arguments(func, args, kwargs)
    return bool(given.get("training", given.get("use_input_stats", True)))


def _sibling(func: Any, schema: Any, name: str) -> Any:
    if not schema.name.startswith("aten::") or not name.endswith("_") or name.startswith("_foreach"):
        return None
    if torch.Tag.inplace_view in func.tags:
        return None
    packet = getattr(
        torch.ops.aten,
        _SIBLINGS.get(name, name[:-1].removeprefix("__i") if name.startswith("__i") else name[:-1]),
        None,
    )
    overload = schema.overload_name or "default"
    found = getattr(packet, overload if name not in _SIBLINGS else "default", None)
    if found is None:
        return None
    theirs = [each.name for each in found._schema.arguments]
    ours = [each.name for each in schema.arguments]
    if name in _SIBLINGS:
        return found
    return found if theirs[: len(ours)] == ours and len(found._schema.returns) == 1 else None


def _parts(func: Any, schema: Any, *, composite: bool) -> Callable[..., Any] | None:
    """How an operator without a row is run as others; those that draw random numbers stay."""
    if not schema.name.startswith("aten::"):
        if composite and ops.lookup(schema.name) is None:
            return func.decompose  # type: ignore[no-any-return]
        return None
    if str(func) in ROWS or torch.Tag.nondeterministic_seeded in func.tags:
        return None
    if func in _COMPARED:
        return _COMPARED[func]
    if composite:
        return None if func in READS else func.decompose
    if any("Tensor" not in str(each.type) for each in schema.returns):
        return None
    return _decompositions().get(func)


def _close(x: torch.Tensor, y: torch.Tensor, *tolerances: Any, **named: Any) -> bool:
    return bool(torch.isclose(x, y, *tolerances, **named).all())


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.shape == y.shape and bool((x == y).all())


_COMPARED: Mapping[Any, Callable[..., Any]] = {
    torch.ops.aten.allclose.default: _close,
    torch.ops.aten.equal.default: _equal,
}
"""Operators that compare two tensors and hand the answer to Python, as those that hand over one number."""


@cache
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    from torch._decomp import core_aten_decompositions

    return dict(cast("Any", core_aten_decompositions()).items())
