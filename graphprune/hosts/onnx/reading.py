"""What the ONNX host has of its stored tensors: their values and digests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import onnx

from graphprune.errors import ModelError
from graphprune.hosts.host import Array
from graphprune.hosts.onnx.contents import Contents, digest, digest_of_model
from graphprune.hosts.onnx.gradients import Gradients
from graphprune.hosts.onnx.quantized import dequantized
from graphprune.hosts.onnx.store import inline_array


class Reading(Gradients):
    """The part of a host that reads what is stored."""

    def read(self, tensor: str) -> Array:
        """The values of a stored tensor; narrow floats come as float32, quantised weights as the numbers they mean."""
        array = self._stored(tensor)
        if array.dtype in (np.int8, np.uint8) and array.ndim > 1:
            return dequantized(self.proto.graph, tensor, array, self._stored)
        return array if array.dtype.kind in "fiub" else array.astype(np.float32)

    @cached_property
    def _headers(self) -> Mapping[str, onnx.TensorProto]:
        return {entry.name: entry for entry in self.proto.graph.initializer}

    def _stored(self, tensor: str) -> Array:
        if tensor in self.store:
            return self.store[tensor].numpy()
        header = self._headers.get(tensor)
        if header is None:
            raise ModelError(f"the model stores no tensor '{tensor}'; expected the name of an initializer")
        return inline_array(header)

    def digest(self, tensor: str) -> str:
        """The digest of a stored tensor as it is stored; see :func:`graphprune.arrays.digest_of`."""
        return digest(Contents(self.proto, self.store).named(tensor))

    def model_digest(self) -> str:
        """The digest of all that decides what the model computes; each weight is read once."""
        return self._model_digest

    def stamp(self) -> None:
        """Nothing: what is stored is never written to."""

    @cached_property
    def _model_digest(self) -> str:
        return digest_of_model(Contents(self.proto, self.store))
