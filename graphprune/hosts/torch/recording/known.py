"""Tensors that a recording knows, and the nodes that stand for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import fx, nn

from graphprune.hosts.torch.recording.aliases import Alias, Store, View, current
from graphprune.hosts.torch.recording.operators import Unrecordable
from graphprune.hosts.torch.recording.places import Places
from graphprune.hosts.torch.recording.tensors import PLAIN, memory_key, spec_of, type_name
from graphprune.hosts.torch.specs import LOCATION, SPEC, Spec

VARYING = 1
"""The origin of what follows from a parameter or from an input of real numbers."""

_ATEN = torch.ops.aten


class Known:
    """What is known of tensors while a module runs.

    Args:
        model: The module that is run.
    """

    def __init__(self, model: nn.Module) -> None:
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
        self.decided = 0
        self.refused = ""

    # -- what is there before ----------------------------------------------------------------------------------------

    def stored(self, named: Mapping[str, torch.Tensor], reached: Iterable[torch.Tensor]) -> None:
        """Makes tensors of the module known.

        Args:
            named: Parameters, buffers and attributes; of several names of one tensor, the last counts.
            reached: All tensors that lie in the module or beside it, in tables of its code.
        """
        self.reached = {id(tensor) for tensor in reached}
        plain = {name: tensor for name, tensor in named.items() if type(tensor) in PLAIN and not tensor.is_sparse}
        keys = {name: memory_key(tensor) if tensor.numel() else id(tensor) for name, tensor in plain.items()}
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
        if type(tensor) not in PLAIN or tensor.layout is not torch.strided or tensor.is_quantized:
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
            if type(known) in PLAIN and tensor.numel() and known.numel() and memory_key(known) == memory_key(tensor):
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

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def emit(self, func: Any, args: Any, kwargs: Any, like: Any) -> fx.Node:
        """A node for a call with one result."""
        node = self._node(func, args, kwargs)
        shape, dtype = like
        node.meta[SPEC] = Spec(tuple(shape), type_name(dtype), dtype.itemsize)
        return node

    def _node(self, func: Any, args: Any, kwargs: Any) -> fx.Node:
        name = func._overloadpacket.__name__
        node = self.graph.create_node("call_function", func, tuple(args), kwargs, name=name)
        place = self.places.now
        node.meta = {SPEC: None, "nn_module_stack": place.stack, LOCATION: self.places.line()}
        return node

    # -- memory --------------------------------------------------------------------------------------------------------

    def _save(self, alias: Alias) -> None:
        """Keeps the memory of an input or a stored tensor, which is put back after."""
        known = alias.store.known
        if known is None or known.is_meta:
            return
        storage = known.untyped_storage()
        if storage._cdata in self.saved:
            return
        same = (each for each in self.owners if each.untyped_storage()._cdata == storage._cdata)
        if any(memory_key(each) != memory_key(known) for each in same):
            self._refuse("memory is written to that several tensors see in different ways")
        self.saved[storage._cdata] = storage, cast("Any", storage).clone()
        for name, tensor in self.tensors.items():
            if tensor is known and name.startswith(_LIFTED):
                self.tensors[name] = tensor.clone()

    def undo(self) -> None:
        """Writes back what was there."""
        for storage, before in self.saved.values():
            storage.copy_(before)

    def _refuse(self, reason: str) -> Any:
        self.refused = self.refused or reason
        raise Unrecordable(reason)


_LIFTED = "lifted_tensor_"
