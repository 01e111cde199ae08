"""The mode that writes down what a forward computes, operator by operator, while it computes it."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from graphprune.hosts.torch.recording.aliases import OPAQUE, Alias, Store, View, current, sizes_of_parts, write
from graphprune.hosts.torch.recording.operators import (
    Facts,
    Unrecordable,
    facts_of,
    in_training,
    named_arguments,
)
from graphprune.hosts.torch.recording.places import Places
from graphprune.hosts.torch.specs import LOCATION, SPEC, Spec

VARYING = 1
"""The origin of what follows from a parameter or from an input of real numbers."""

_ATEN = torch.ops.aten
_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)
_GETITEM = operator.getitem


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operators as nodes of a graph without writes.

    Args:
        model: The module that is run.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.places = Places(model)
        self.tensors: dict[str, torch.Tensor] = {}
        self.named: dict[str, Alias] = {}
        self.inputs: list[Alias] = []
        self.owned: dict[int, str] = {}
        self.owners: list[torch.Tensor] = []
        self.reached: set[int] = set()
        self.aliases: dict[int, Alias] = {}
        self.pointers: set[int] = set()
        self.saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.leaked = False
        self.doubts: list[str] = []
        self.refused = ""

    # -- what is there before ----------------------------------------------------------------------------------------

    def stored(self, named: Mapping[str, torch.Tensor], reached: Iterable[torch.Tensor]) -> None:
        """Makes tensors of the module known.

        Args:
            named: Parameters, buffers and attributes; of several names of one tensor, the last counts.
            reached: All tensors that lie in the module or beside it, in tables of its code.
        """
        self.reached = {id(tensor) for tensor in reached}
        plain = {name: tensor for name, tensor in named.items() if type(tensor) in _PLAIN and not tensor.is_sparse}
        keys = {name: _key(tensor) if tensor.numel() else id(tensor) for name, tensor in plain.items()}
        last = {key: name for name, key in keys.items()}
        self.owned = {id(tensor): last[keys[name]] for name, tensor in plain.items()}
        self.owners.extend(plain.values())

    def placeholder(self, name: str, leaf: Any, origin: int) -> None:
        """An input."""
        node = self.graph.placeholder(name)
        node.meta = {SPEC: None}
        if isinstance(leaf, torch.Tensor):
            node.meta[SPEC] = spec_of(leaf)
            alias = self.aliases[id(leaf)] = Alias(leaf, node, Store(origin=origin, first=node, known=leaf))
            self.inputs.append(alias)
            self.owners.append(leaf)

    def written_back(self, reassigned: Mapping[str, torch.Tensor]) -> None:
        """Puts what was written to stored tensors and inputs at the end of the graph.

        Args:
            reassigned: Buffers that are other tensors now.
        """
        for alias in (*self.named.values(), *self.inputs):
            store = alias.store
            if store.version and store.first is not None:
                self.emit(_ATEN.copy_.default, (store.first, current(alias, self.emit)), {}, alias.like)
        for name, tensor in reassigned.items():
            old = self.tensors.get(name)
            if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype:
                value = self.value(tensor)
                self.emit(_ATEN.copy_.default, (self.named[name].store.first, value), {}, (old.shape, old.dtype))

    # -- tensors -----------------------------------------------------------------------------------------------------

    def value(self, tensor: torch.Tensor) -> fx.Node:
        """The value that a tensor has now."""
        return current(self.alias(tensor), self.emit)

    def alias(self, tensor: torch.Tensor) -> Alias:
        """What is known of a tensor."""
        found = self.aliases.get(id(tensor))
        if found is None or found.ref() is not tensor:
            found = self.aliases[id(tensor)] = self._new(tensor)
        return found

    def _new(self, tensor: torch.Tensor) -> Alias:
        """A tensor that no recorded operator made: one of the module's, a view behind our back, or a constant."""
        if type(tensor) not in _PLAIN or tensor.layout is not torch.strided or tensor.is_quantized:
            raise Unrecordable(f"a tensor of class '{type(tensor).__name__}' is no plain one")
        name = self.owned.get(id(tensor))
        if name is not None:
            return self._attribute(tensor, name)
        storage = tensor.untyped_storage()._cdata
        for other in list(self.aliases.values()):
            known = other.ref()
            if known is None or known is tensor or known.untyped_storage()._cdata != storage:
                continue
            if (known.storage_offset(), known.shape, known.stride(), known.dtype) == (
                tensor.storage_offset(),
                tensor.shape,
                tensor.stride(),
                tensor.dtype,
            ):
                return Alias(tensor, current(other, self.emit), other.store, View(other, None))
        for known in self.owners:
            if type(known) in _PLAIN and tensor.numel() and known.numel() and _key(known) == _key(tensor):
                other = self.alias(known)
                return Alias(tensor, current(other, self.emit), other.store, View(other, None))
        if tensor.numel() and not tensor.is_meta and tensor.untyped_storage().data_ptr() in self.pointers:
            raise Unrecordable("a tensor shares memory with one that was computed, behind the back of the dispatcher")
        return self._constant(tensor, explained=id(tensor) in self.reached)

    def _attribute(self, tensor: torch.Tensor, name: str) -> Alias:
        known = self.named.get(name)
        if known is None:
            node = self._get_attr(name, tensor)
            origin = VARYING if isinstance(tensor, nn.Parameter) else 0
            known = self.named[name] = Alias(tensor, node, Store(origin=origin, first=node, known=tensor))
            return known
        return Alias(tensor, current(known, self.emit), known.store, View(known, None))

    def _get_attr(self, name: str, tensor: torch.Tensor) -> fx.Node:
        node = self.graph.create_node("get_attr", name, name=name.replace(".", "_"))
        node.meta = {SPEC: spec_of(tensor)}
        self.tensors[name] = tensor
        return node

    def _constant(self, tensor: torch.Tensor, *, explained: bool) -> Alias:
        """A tensor that lies nowhere in the module; its axes stay whole unless its origin is known."""
        n = sum(name.startswith(_LIFTED) for name in self.tensors)
        node = self._get_attr(f"{_LIFTED}{n}", tensor)
        store = Store(first=None, known=tensor)
        if not explained:
            node = self.emit(_ATEN.lift.default, (node,), {}, (tensor.shape, tensor.dtype))
        return Alias(tensor, node, store)

    # -- operators ---------------------------------------------------------------------------------------------------

    def emit(self, func: Any, args: Any, kwargs: Any, like: Any) -> fx.Node:
        """A node for a call with one result."""
        node = self._node(func, args, kwargs)
        shape, dtype = like
        node.meta[SPEC] = Spec(tuple(shape), _named(dtype), dtype.itemsize)
        return node

    def _node(self, func: Any, args: Any, kwargs: Any) -> fx.Node:
        name = func._overloadpacket.__name__
        node = self.graph.create_node("call_function", func, tuple(args), kwargs, name=name)
        place = self.places.now
        node.meta = {SPEC: None, "nn_module_stack": place.stack, LOCATION: self.places.line()}
        return node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and records it."""
        kwargs = kwargs or {}
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
        made = func(*args, **kwargs)
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
            self._read(str(func), operands)
        if facts.selects is not None:
            self._sized(func, facts, args, kwargs)
        return made

    def _apart(self, func: Any, facts: Facts, args: Any, kwargs: Any) -> Any:
        """Runs an operator as others, which are recorded; ``NotImplemented`` where that is not to be."""
        if facts.parts is not None:
            with self:
                return facts.parts(*args, **kwargs)
        if in_training(func, args, kwargs):
            given = named_arguments(func, args, kwargs)
            if given.get("running_mean") is not None:
                if func is not _ATEN.batch_norm.default:
                    self._refuse(f"'{func}' updates running statistics")
                return self._updating(given)
            if func is _ATEN.batch_norm.default:
                x, weight, bias, momentum, eps = (given[n] for n in ("input", "weight", "bias", "momentum", "eps"))
                with self:
                    return _ATEN._native_batch_norm_legit.no_stats(x, weight, bias, _COUNTS, momentum, eps)[0]
        return NotImplemented

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
        if type(made) not in _PLAIN:
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
        simple = args and args[0] is of and not any(_holds_node(each) for each in (*nodes[1:], *named.values()))
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
        promoted = bool(dtypes) and facts.sibling._overloadpacket.__name__ in _PROMOTED
        if facts.sibling is _ATEN.zeros_like.default:
            nodes, named = nodes[:1], {}
        made = func(*args, **kwargs)
        try:
            if promoted:
                wide = _result_type(target.dtype, dtypes)
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

    def _save(self, alias: Alias) -> None:
        """Keeps the memory of an input or a stored tensor, which is put back after."""
        known = alias.store.known
        if known is None or known.is_meta:
            return
        storage = known.untyped_storage()
        if storage._cdata in self.saved:
            return
        same = (each for each in self.owners if each.untyped_storage()._cdata == storage._cdata)
        if any(_key(each) != _key(known) for each in same):
            self._refuse("memory is written to that several tensors see in different ways")
        self.saved[storage._cdata] = storage, cast("Any", storage).clone()
        for name, tensor in self.tensors.items():
            if tensor is known and name.startswith(_LIFTED):
                self.tensors[name] = tensor.clone()

    def undo(self) -> None:
        """Writes back what was there."""
        for storage, before in self.saved.values():
            storage.copy_(before)

    # -- values that leave the graph ---------------------------------------------------------------------------------

    def _read(self, what: str, operands: list[torch.Tensor]) -> None:
        """The user's code gets to know values."""
        origin = self._origin(operands)
        if origin:
            self.doubts.append(f"'{what}' reads values")

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
            self.doubts.append("values leave the graph")

    def _refuse(self, reason: str) -> Any:
        self.refused = self.refused or reason
        raise Unrecordable(reason)


_COUNTS = True
"""A norm counts its own statistics."""
_NEW = Facts()
_LIFTED = "lifted_tensor_"


def spec_of(tensor: torch.Tensor) -> Spec:
    """The spec of a tensor of known sizes."""
    dtype = tensor.dtype
    return Spec(tuple(tensor.shape), _named(dtype), dtype.itemsize)


_NAMES: dict[torch.dtype, str] = {}


def _named(dtype: torch.dtype) -> str:
    found = _NAMES.get(dtype)
    if found is None:
        found = _NAMES[dtype] = str(dtype).removeprefix("torch.")
    return found


def _key(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)


def _holds_node(value: Any) -> bool:
    return isinstance(value, fx.Node) or (isinstance(value, list | tuple) and any(map(_holds_node, value)))


_PROMOTED = frozenset(
    (
        "add", "sub", "mul", "div", "pow", "atan2", "fmod", "remainder", "true_divide", "floor_divide", "addcmul",
        "addcdiv", "lerp", "hypot", "copysign", "bitwise_and", "bitwise_or", "bitwise_xor", "multiply", "subtract",
        "divide", "logical_and", "logical_or", "logical_xor",
    )
)  # fmt: skip


def _result_type(first: torch.dtype, others: set[torch.dtype]) -> torch.dtype:
    found = first
    for each in others:
        found = torch.promote_types(found, each)
    return found


@contextmanager
def watching(recorder: Recorder) -> Iterator[None]:
    """Says of every ``numpy()`` and ``tolist()`` that it takes values out of sight."""
    kept = {name: getattr(torch.Tensor, name) for name in ("numpy", "tolist", "__dlpack__")}

    def watched(function: Any) -> Any:
        def run(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            recorder.leaks(tensor)
            return function(tensor, *args, **kwargs)

        return run

    own = {name: name in vars(torch.Tensor) for name in kept}
    try:
        for name, function in kept.items():
            setattr(torch.Tensor, name, watched(function))
        yield
    finally:
        for name, function in kept.items():
            if own[name]:
                setattr(torch.Tensor, name, function)
            else:
                delattr(torch.Tensor, name)
