"""Branches left out of the user's own module: what has nothing left to compute becomes a placeholder.

Which submodules those are is read off the traced graph: every operator call of the submodule is gone. A placeholder
has no parameters; it returns zeros of the shapes that the submodule returned or, where the sum that was bypassed is
inside the submodule, its input. Whether the module then computes what the pruned graph does is proven by the caller.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from graphprune.hosts.torch.trace import Example, inference
from graphprune.hosts.torch.untouched import untouched

_PLAIN = (bool, int, float, str, type(None))


class Bypassed(nn.Module):
    """Stands where a branch was; returns zeros, or its input, in the form of what the branch returned.

    Args:
        leaves: For each leaf of the output: ``"input"``, a tuple of sizes (``None`` where the input's own size at that
            place counts), or ``(value,)`` in a list for what is no tensor.
        form: How the leaves make up the output.
    """

    def __init__(self, leaves: list[Any], form: pytree.TreeSpec) -> None:
        super().__init__()
        self.leaves = leaves
        self.form = pytree.tree_unflatten(list(range(len(leaves))), form)  # with numbers of leaves, which can be copied

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, or the first tensor among the arguments."""
        source = next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))

        def made(leaf: Any) -> Any:
            if isinstance(leaf, list):
                return leaf[0]
            if leaf == "input":
                return source
            return source.new_zeros([source.shape[i] if size is None else size for i, size in enumerate(leaf)])

        return pytree.tree_map(lambda i: made(self.leaves[i]), self.form)

    def extra_repr(self) -> str:
        """What it returns."""
        return "input" if "input" in self.leaves else "zeros"


def bypass_modules(
    module: nn.Module, source: nn.Module, original: fx.Graph, pruned: fx.Graph, sums: AbstractSet[str], example: Example
) -> tuple[str, ...]:
    """Puts placeholders for the submodules of which nothing is left.

    Args:
        module: The copy of the user's module that is changed.
        source: The user's module; it is run once.
        original: The graph of ``source``.
        pruned: The graph without the branches and without dead nodes.
        sums: Names of the sums that were bypassed.
        example: A call of ``source``.

    Returns:
        The paths that hold a placeholder now.
    """
    left = {node.name for node in pruned.nodes}
    gone: dict[str, bool] = {}
    summing: set[str] = set()
    for node in original.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values() if node.op == "call_function" else ():
            gone[path] = gone.get(path, True) and node.name not in left
            if node.name in sums:
                summing.add(path)
    paths = [
        path for path, nothing in gone.items() if path and nothing and not gone.get(path.rpartition(".")[0], False)
    ]
    known = dict(source.named_modules(remove_duplicate=False))
    seen: dict[str, tuple[Any, Any]] = {}
    hooks = [
        known[path].register_forward_hook(
            lambda _, args, kwargs, output, path=path: seen.update({path: ((args, kwargs), output)}), with_kwargs=True
        )
        for path in paths
        if path in known
    ]
    try:
        with untouched(source, runs=True), inference(source):
            source(*example[0], **example[1])
    finally:
        for hook in hooks:
            hook.remove()
    done = []
    for path, (inputs, output) in seen.items():
        placeholder = _placeholder(inputs, output, passes=path in summing)
        if placeholder is None:
            continue
        for name, value in vars(known[path]).items():
            if not name.startswith("_") and isinstance(value, _PLAIN):
                setattr(placeholder, name, value)
        parent, _, last = path.rpartition(".")
        module.get_submodule(parent)._modules[last] = placeholder
        done.append(path)
    return tuple(done)


def _placeholder(inputs: Any, output: Any, *, passes: bool) -> Bypassed | None:
    """A placeholder for a module that returned ``output``; ``None`` where the output is of an unknown class."""
    source = next((leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)), None)
    if source is None:
        return None
    leaves, form = pytree.tree_flatten(output)
    made: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            if passes and leaf.shape == source.shape and "input" not in made:
                made.append("input")
            else:
                made.append(
                    tuple(
                        None if i < source.dim() and source.shape[i] == size else size
                        for i, size in enumerate(leaf.shape)
                    )
                )
        elif isinstance(leaf, _PLAIN):
            made.append([leaf])
        else:
            return None
    return Bypassed(made, form)
