"""The mode that writes down what a forward computes, operator by operator, while it computes it."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from graphprune.hosts.torch.recording.aliases import OPAQUE, Alias, Store, View, current, sizes_of_parts, write
from graphprune.hosts.torch.recording.known import VARYING, Known
from graphprune.hosts.torch.recording.noted import Calls
from graphprune.hosts.torch.recording.operators import (
    READS,
    Facts,
    Unrecordable,
    facts_of,
    in_training,
    named_arguments,
)
from graphprune.hosts.torch.recording.tensors import PLAIN, PROMOTED, holds_node, promoted_type, spec_of
from graphprune.hosts.torch.recording.without_values import number
from graphprune.hosts.torch.specs import SPEC

_ATEN = torch.ops.aten
_GETITEM = operator.getitem


class Recorder(Known, TorchDispatchMode):
    """Records operators as nodes of a graph without writes.

    Args:
        model: The module that is run.
    """

    def __init__(self, model: nn.Module) -> None:
        TorchDispatchMode.__init__(self)  # type: ignore[no-untyped-call]
        Known.__init__(self, model)
        self.calls = Calls()
        self.inside = False  # of an operator that runs as others

    # -- operators ---------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and records it."""
        if self.inside:
            return self._recorded(func, args, kwargs or {})
        made = self._recorded(func, args, kwargs or {})
        self.calls.note(func, made)
        return made

    def _recorded(self, func: Any, args: Any, kwargs: Any) -> Any:
        facts = facts_of(func)
        if facts.passes:
            return self._passed(func, args, kwargs)
        if facts.refused:
            self._refuse(facts.refused)
        if facts.parts is not None or facts.norm:
            made = self._apart(func, facts, args, kwargs)
            if made is not NotImplemented:
                return made
        operands: list[torch.Tensor] = []
        try:
            nodes = tuple([self._operand(each, operands) for each in args])
            named = {name: self._operand(each, operands) for name, each in kwargs.items()} if kwargs else {}
        except Unrecordable as error:
            self._refuse(str(error))
        if facts.writes:
            return self._written(func, facts, args, kwargs, (nodes, named, operands))
        made = self._without_values(func, nodes, named, operands) if func in READS else None
        made = func(*args, **kwargs) if made is None else made
        if isinstance(made, torch.Tensor):
            if facts.views and any(made is each for each in operands):
                return made
            node = self._node(func, nodes, named)
            node.meta[SPEC] = spec_of(made)
            self._bind(made, node, facts, operands, (func, args, nodes, named, None))
        elif isinstance(made, tuple | list) and any(isinstance(each, torch.Tensor) for each in made):
            node = self._node(func, nodes, named)
            node.meta[SPEC] = tuple([spec_of(each) if isinstance(each, torch.Tensor) else None for each in made])
            named = sizes_of_parts(func, args, named, made) if facts.views else named
            for i, each in enumerate(made):
                if isinstance(each, torch.Tensor):
                    item = self.graph.create_node("call_function", _GETITEM, (node, i), name="getitem")
                    item.meta = {**node.meta, SPEC: node.meta[SPEC][i]}
                    self._bind(each, item, facts, operands, (func, args, nodes, named, i))
        elif made is None:
            self._node(func, nodes, named)
        elif operands:
            self._handed_over(func, operands, nodes, named)
        if facts.selects is not None:
            self._sized(func, facts, args, kwargs)
        return made

    def _without_values(self, func: Any, nodes: Any, named: Any, operands: list[torch.Tensor]) -> Any:
        """What code asks of tensors on the meta device that follow from nothing; ``None`` of all others."""
        if self._origin(operands) or not any(each.is_meta for each in operands):
            return None
        with torch._C._DisableTorchDispatch():
            return number(func, nodes, named, self.tensors)

    def _apart(self, func: Any, facts: Facts, args: Any, kwargs: Any) -> Any:
        """Runs an operator as others, which are recorded; ``NotImplemented`` where that is not to be."""
        if facts.parts is not None:
            with self._as_parts():
                return facts.parts(*args, **kwargs)
        if in_training(func, args, kwargs):
            given = named_arguments(func, args, kwargs)
            if given.get("running_mean") is not None:
                if func is not _ATEN.batch_norm.default:
                    self._refuse(f"'{func}' updates running statistics")
                return self._updating(given)
            if func is _ATEN.batch_norm.default:
                x, weight, bias, momentum, eps = (given[n] for n in ("input", "weight", "bias", "momentum", "eps"))
                with self._as_parts():
                    return _ATEN._native_batch_norm_legit.no_stats(x, weight, bias, _COUNTS, momentum, eps)[0]
        return NotImplemented

    @contextmanager
    def _as_parts(self) -> Iterator[None]:
        """Operators that run inside are parts of one."""
        outer, self.inside = self.inside, True
        try:
            with self:
                yield
        finally:
            self.inside = outer

    def _updating(self, given: Mapping[str, Any]) -> torch.Tensor:
        """Runs a batch norm that updates its running statistics."""
        names = ("input", "weight", "bias", "running_mean", "running_var")
        taken = [given[name] for name in names]
        operands: list[torch.Tensor] = []
        nodes = [self._operand(each, operands) for each in taken]
        kept = [self.alias(given[name]) for name in names[3:]]
        for alias in kept:
            self._save(alias)
        made: torch.Tensor = _ATEN.batch_norm.default(
            *taken, _COUNTS, given["momentum"], given["eps"], given["cudnn_enabled"]
        )
        func = _ATEN._native_batch_norm_legit_functional.default
        node = self._node(func, (*nodes, _COUNTS, given["momentum"], given["eps"]), {})
        stored = spec_of(given["running_mean"])
        node.meta[SPEC] = (spec_of(made), stored, stored, stored, stored)
        items = {}
        for i in (0, 3, 4):
            items[i] = self.graph.create_node("call_function", _GETITEM, (node, i), name="getitem")
            items[i].meta = {**node.meta, SPEC: node.meta[SPEC][i]}
        for i, alias in zip((3, 4), kept, strict=True):
            alias.store.origin |= VARYING
            write(alias, items[i], self.emit)
        self._bind(made, items[0], _NEW, operands, ())
        return made

    def _passed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operator that hands a tensor on as it is; what it gets is a constant if nobody knows it."""
        tensor = args[0]
        try:
            known = self.aliases.get(id(tensor))
            if known is None or known.ref() is not tensor:
                lifts = func is _ATEN.lift_fresh.default and not self.leaked and id(tensor) not in self.owned
                if lifts and (tensor.is_meta or tensor.untyped_storage().data_ptr() not in self.pointers):
                    self.aliases[id(tensor)] = self._constant(tensor, explained=True)
            alias = self.alias(tensor)
            made = func(*args, **kwargs)
            if made is not tensor:
                self.aliases[id(made)] = Alias(made, current(alias, self.emit), alias.store, View(alias, None))
        except Unrecordable as error:
            self._refuse(str(error))
        return made

    def _operand(self, value: Any, operands: list[torch.Tensor]) -> Any:
        if isinstance(value, torch.Tensor):
            operands.append(value)
            found = self.aliases.get(id(value))
            if found is not None and found.version == found.store.version and found.ref() is value:
                return found.node
            return self.value(value)
        if isinstance(value, list | tuple):
            return [self._operand(each, operands) for each in value]
        return value

    def _origin(self, operands: list[torch.Tensor]) -> int:
        origin = 0
        for each in operands:
            origin |= self.aliases[id(each)].store.origin
        return origin

    def _bind(
        self, made: torch.Tensor, node: fx.Node, facts: Facts, operands: list[torch.Tensor], call: tuple[Any, ...]
    ) -> None:
        """Says what a result is: new, or a view of an operand."""
        if type(made) not in PLAIN:
            self._refuse(f"a tensor of class '{type(made).__name__}' is no plain one")
        if facts.views:
            storage = made.untyped_storage()._cdata
            for each in operands:
                if each.untyped_storage()._cdata == storage:
                    self.aliases[id(made)] = self._view(made, node, self.aliases[id(each)], each, call)
                    return
        origin = 0 if facts.filled else self._origin(operands)
        self.aliases[id(made)] = Alias(made, node, Store(origin=origin))
        if not made.is_meta:
            self.pointers.add(made.data_ptr())

    def _view(self, made: torch.Tensor, node: fx.Node, parent: Alias, of: torch.Tensor, call: tuple[Any, ...]) -> Alias:
        func, args, nodes, named, at = call
        simple = args and args[0] is of and not any(holds_node(each) for each in (*nodes[1:], *named.values()))
        view = View(parent, func if simple else OPAQUE, tuple(nodes[1:]), named, at)
        return Alias(made, node, parent.store, view)

    def _written(self, func: Any, facts: Facts, args: Any, kwargs: Any, taken: Any) -> Any:
        """Runs an operator that writes to its first operand, and records the one that returns the result instead."""
        nodes, named, operands = taken
        target: torch.Tensor = args[0]
        alias = self.alias(target)
        if target.layout is not torch.strided:
            self._refuse("a sparse tensor is written to")
        self._save(alias)
        dtypes = {each.dtype for each in operands[1:] if each.dim()} - {target.dtype, torch.bool}
        promoted = bool(dtypes) and facts.sibling._overloadpacket.__name__ in PROMOTED
        if facts.sibling is _ATEN.zeros_like.default:
            nodes, named = nodes[:1], {}
        made = func(*args, **kwargs)
        try:
            if promoted:
                wide = promoted_type(target.dtype, dtypes)
                node = self.emit(facts.sibling, nodes, named, (target.shape, wide))
                if wide is not target.dtype:
                    node = self.emit(_ATEN._to_copy.default, (node,), {"dtype": target.dtype}, alias.like)
            else:
                node = self.emit(facts.sibling, nodes, named, alias.like)
            alias.store.origin |= self._origin(operands)
            write(alias, node, self.emit)
        except Unrecordable as error:
            self._refuse(str(error))
        if made is not target and isinstance(made, torch.Tensor):
            self.aliases[id(made)] = Alias(made, alias.node, alias.store, View(alias, None))
        return made

    # -- values that leave the graph ---------------------------------------------------------------------------------

    def _handed_over(self, func: Any, operands: list[torch.Tensor], nodes: Any, named: Any) -> None:
        """Notes an operator that gives no tensor; one number, which the graph needs if it is no constant."""
        self._read(str(func), operands)
        if self._origin(operands):
            if func not in READS:
                self._refuse(f"'{func}' reads more than one number")
            self._node(func, nodes, named)

    def _read(self, what: str, operands: list[torch.Tensor]) -> None:
        """The user's code gets to know values."""
        origin = self._origin(operands)
        if origin:
            self.decided |= origin
            self.doubts.append(f"'{what}' reads values at {self.places.line()}")

    def _sized(self, func: Any, facts: Facts, args: Any, kwargs: Any) -> None:
        """The size of a result depends on values."""
        given = named_arguments(func, args, kwargs)
        deciding = [given.get(name) for name in facts.selects or ()] if facts.selects != ("",) else list(given.values())
        tensors: list[torch.Tensor] = []
        for each in deciding:
            tensors.extend(
                t for t in (each if isinstance(each, list | tuple) else [each]) if isinstance(t, torch.Tensor)
            )
        if func is _ATEN.index.Tensor and not any(t.dtype in (torch.bool, torch.uint8) for t in tensors):
            return
        self._read(str(func), tensors)

    def leaks(self, tensor: torch.Tensor) -> None:
        """The values of a tensor are taken out of sight (``numpy()``, ``tolist()``)."""
        found = self.aliases.get(id(tensor))
        if found is None or found.ref() is not tensor:
            constant = id(tensor) in self.reached and not isinstance(tensor, nn.Parameter)
        else:
            constant = not found.store.origin
        if not constant:
            self.leaked = True
            self.decided |= VARYING
            self.doubts.append(f"values leave the graph at {self.places.line()}")


_COUNTS = True
"""A norm counts its own statistics."""
_NEW = Facts()
