"""Calls of a traced graph by the names of its inputs and outputs, and examples of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from graphprune.errors import ModelError
from graphprune.hosts.host import Array, Arrays
from graphprune.hosts.torch.specs import output_nodes
from graphprune.hosts.torch.stored import to_numpy
from graphprune.hosts.torch.trace import Example


@dataclass(frozen=True, eq=False)
class Signature:
    """How a graph is called.

    Attributes:
        inputs: Name and example of every placeholder, whether tensor or not.
        outputs: For each output of the graph its name; ``None`` for what is no tensor. Names are the keys under which
            the user's module returns them, else ``output_0``, ...
        in_spec: How the arguments flatten into the placeholders.
    """

    inputs: tuple[tuple[str, Any], ...]
    outputs: tuple[str | None, ...]
    in_spec: Any

    def flat(self, inputs: Arrays) -> list[Any]:
        """What the placeholders get."""
        flat = []
        for name, leaf in self.inputs:
            if isinstance(leaf, torch.Tensor):
                if name not in inputs:
                    raise ModelError(f"input '{name}' is missing; got {', '.join(inputs) or 'none'}")
                flat.append(torch.tensor(np.asarray(inputs[name])).to(leaf.device, leaf.dtype))
            else:
                flat.append(leaf)
        return flat

    def arguments(self, inputs: Arrays) -> Example:
        """Positional and keyword arguments of a call of the user's module."""
        args, kwargs = pytree.tree_unflatten(self.flat(inputs), self.in_spec)
        return args, kwargs

    def named(self, outputs: Any) -> dict[str, Array]:
        """What the graph returns, by name and in order."""
        items = outputs if isinstance(outputs, list | tuple) else (outputs,)
        pairs = zip(self.outputs, items, strict=True)
        return {name: to_numpy(item) for name, item in pairs if name is not None}


def signature_of(
    graph: fx.Graph, names: Mapping[fx.Node, str], example: Example, in_spec: Any, out_spec: Any
) -> Signature:
    """How a graph is called.

    Args:
        graph: The graph.
        names: The values that its nodes stand for.
        example: A call.
        in_spec: How its arguments flatten into the placeholders.
        out_spec: How the outputs make up what the user's module returns.
    """
    leaves = fx._pytree.tree_flatten_spec(example, in_spec)
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    inputs = tuple((names.get(node, node.name), leaf) for node, leaf in zip(nodes, leaves, strict=True))
    made = list(output_nodes(graph))
    tree = pytree.tree_unflatten(list(range(len(made))), out_spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    outputs = tuple(None if node is None else _path_name(path) for path, node in zip(paths, made, strict=True))
    return Signature(inputs, outputs, in_spec)


def _path_name(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    if not parts:
        return "output"
    return f"output_{'.'.join(parts)}" if parts[0].isdigit() else ".".join(parts)


def example_of(signature: Signature, pinned: tuple[str, ...], seed: int) -> dict[str, Array]:
    """The user's example by input name; with a ``seed`` other than 0, random ones of its types and ranges.

    Args:
        signature: How the graph is called.
        pinned: Names of the inputs that keep the example's values.
        seed: 0 for the example itself.
    """
    found = {name: leaf for name, leaf in signature.inputs if isinstance(leaf, torch.Tensor)}
    arrays = {
        name: np.zeros(tuple(leaf.shape), dtype=to_numpy(leaf.new_empty(0, device="cpu")).dtype)
        if leaf.is_meta
        else to_numpy(leaf)
        for name, leaf in found.items()
    }
    if seed == 0:
        return arrays
    rng = np.random.default_rng(seed)
    return {name: array if name in pinned else _like(array, rng) for name, array in arrays.items()}


def _like(array: Array, rng: np.random.Generator) -> Array:
    """Random values in the range of an example; masks and constants stay as they are."""
    if array.size == 0 or array.dtype.kind not in "fiu":
        return array
    if array.dtype.kind == "f":
        spread = float(array.std()) or 1.0
        return (rng.standard_normal(array.shape) * spread + float(array.mean())).astype(array.dtype)
    low, high = int(array.min()), int(array.max())
    if (low, high) in ((0, 0), (0, 1), (1, 1)) or np.array_equal(array.ravel(), np.arange(array.size)):
        return array
    if array.ndim == 1 and array[0] == 0 and (array[1:] >= array[:-1]).all():  # offsets
        return array
    return rng.integers(low, high + 1, array.shape).astype(array.dtype)
