"""A file with caches used as a decoder: which inputs are which, and what the next step is fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from graphprune.hosts.host import Array, Arrays
from graphprune.hosts.onnx.caches import Cache, bytes_of_caches, find_caches, relations, takes_one
from graphprune.hosts.onnx.runtime import random_inputs
from graphprune.hosts.onnx.sizes import bind, input_sizes
from graphprune.hosts.onnx.symbols import Relations

_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


@dataclass(frozen=True)
class Decoder:
    """A decoder.

    Attributes:
        proto: The weightless model.
        caches: Its caches.
        presents: By cache the output that it has become.
        tokens: The input that takes token ids.
        logits: The output that scores the next token.
    """

    proto: onnx.ModelProto
    caches: Mapping[str, Cache]
    presents: Mapping[str, str]
    tokens: str
    logits: str

    @cached_property
    def _relations(self) -> Relations:
        return relations(self.proto, self.caches.values())

    def shapes(self, past: int, n: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all inputs for one sequence of ``n`` new tokens after so many."""
        wanted = {"past": past, "sequence": n, "batch": 1}
        named = {role: size for role, size in wanted.items() if role in self._relations.roles}
        axes = {name: cache.axis for name, cache in self.caches.items()}
        return bind(self.proto, None, named=named, caches=axes, relations=self._relations).shapes

    def inputs(self, ids: Array | None, past: Mapping[str, Array] | int, n: int, seed: int = 0) -> dict[str, Array]:
        """What a step is fed.

        Args:
            ids: New tokens ``1 n``; ``None``: so many random ones.
            past: The caches as they are, or how long made-up ones are.
            n: How many new tokens there are.
            seed: Of what is made up.
        """
        first = next(iter(self.caches.values()))
        length = past if isinstance(past, int) else past[first.name].shape[first.axis]
        found = random_inputs(self.proto, self.shapes(length, n), seed)
        for name, array in found.items():
            if "position" in name.lower() and array.dtype.kind == "i" and array.ndim:
                found[name] = np.broadcast_to(np.arange(length, length + array.shape[-1]), array.shape).astype(
                    array.dtype
                )
        if ids is not None:
            found[self.tokens] = ids.astype(found[self.tokens].dtype)
        return {**found, **({} if isinstance(past, int) else past)}

    def following(self, outputs: Arrays) -> dict[str, Array]:
        """The caches of the next step."""
        return {name: outputs[present] for name, present in self.presents.items()}

    def chosen(self, outputs: Arrays) -> Array:
        """The token with the highest score: ``1 1``."""
        return np.asarray(outputs[self.logits][:, -1:].argmax(-1))


def decoder_of(proto: onnx.ModelProto) -> Decoder | None:
    """A model as a decoder; ``None`` if it is none: caches that come out again, ids that go in, scores of a vocabulary.

    Args:
        proto: A normalised, weightless model.
    """
    caches = find_caches(proto)
    outputs = {value.name: value for value in proto.graph.output}
    presents = {name: next((each for each in cache.present if each in outputs), "") for name, cache in caches.items()}
    declared = input_sizes(proto)
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    tokens = [
        name
        for name, sizes in declared.items()
        if len(sizes) == 2 and kinds[name] in _INTEGERS and not any(w in name.lower() for w in ("mask", "position"))
    ]
    scores = [n for n, v in outputs.items() if n not in presents.values() and len(v.type.tensor_type.shape.dim) == 3]
    others = [
        name for name, sizes in declared.items()
        if name not in caches and (name not in kinds or kinds[name] not in _INTEGERS) and "mask" not in name.lower()
    ]  # fmt: skip
    if not caches or not all(presents.values()) or len(tokens) != 1 or not scores or others:
        return None
    return Decoder(proto, caches, presents, tokens[0], scores[0])


class Decoding:
    """The part of a host that is about caches."""

    proto: onnx.ModelProto
    bound: Mapping[str, tuple[int, ...]]

    @cached_property
    def decoder(self) -> Decoder | None:
        """The model as a decoder with caches, if it is one."""
        return decoder_of(self.proto)

    @property
    def carried(self) -> frozenset[str]:
        """The outputs that are only carried to the next call."""
        return frozenset(self.decoder.presents.values()) if self.decoder is not None else frozenset()

    @property
    def takes_one(self) -> bool:
        """Whether operators take one sequence at a time, at the sizes of the example."""
        return takes_one(self.proto, self.bound)

    @property
    def cache_bytes(self) -> int:
        """How much the caches hold for each token of a sequence; 0 without caches."""
        return bytes_of_caches(self.proto, self.bound)
