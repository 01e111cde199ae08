"""The user's own module, made as small as the pruned graph.

The graph module that torch.export gives is exact, but it has lost the methods of the user's class (``generate``) and
its training behaviour (dropout). So a copy of the user's module gets the pruned tensors, and the sizes that it keeps in
attributes (``num_heads``, ``out_features``) are repaired. Which attribute means which size cannot be known; it is tried
and proven: a copy is handed out only if it computes what the pruned graph computes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from itertools import combinations, islice, product
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from graphprune.errors import ModelError, first_line
from graphprune.frontends.torch_graph import SPEC, Spec, argument
from graphprune.hosts.torch_bypass import bypass_modules
from graphprune.hosts.torch_host import TorchHost
from graphprune.hosts.torch_other_ways import other_ways_notes
from graphprune.hosts.torch_runs import host_pairs, replaced_tensors
from graphprune.hosts.torch_trace import inference
from graphprune.hosts.torch_untouched import untouched
from graphprune.pipeline.state import State

TOLERANCE = 1e-5
"""Largest accepted difference to the pruned graph, relative to the largest output."""

ATTEMPTS = 256
"""Combinations of attribute values that are tried."""

_WARM = "the module holds the tables that its code makes on the first call, cut as the rest"

_SIZED_BY_HAND = (nn.Unflatten, nn.ChannelShuffle, nn.LayerNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
"""Layers of torch's own whose sizes may show in none of their tensors."""

Resized = tuple[int, int]
"""A size of the original graph and what became of it."""
Choices = dict[tuple[str, str], list[dict[str, Any]]]
"""For an attribute of alike modules (``layers.*.attn``): ways to set it, each with a value for every module by path."""


def pruned_module(state: State) -> tuple[nn.Module | None, str]:
    """The trainable module of a compiled model, and a note where it is not the user's own class.

    Its tensors are its own: training it leaves the user's module as it is.
    """
    pruned, original = state.host, state.original
    if not isinstance(pruned, TorchHost) or not isinstance(original, TorchHost):
        return None, ""
    looked = nullcontext() if pruned.source is None else untouched(pruned.source, runs=True)
    with torch.inference_mode(mode=False), looked:  # tensors that are made in this mode cannot be trained
        return _pruned_module(state, original, pruned)


def _pruned_module(state: State, original: TorchHost, pruned: TorchHost) -> tuple[nn.Module, str]:
    reason = "the model was given as an exported program" if pruned.source is None else ""
    if pruned.is_meta:
        reason = "weights on the meta device have no values, with which a copy of your class could be proven"
    elif pruned.source is not None:
        removed = state.removed if state.analysis is not None else ()
        sums = frozenset(state.analysis.branches.bypasses(removed)) if state.analysis and removed else frozenset[str]()
        for source in (pruned.source, pruned.runs.warm):
            module, why = (None, "") if source is None else sliced_module(source, original, pruned, sums)
            if module is not None and source is pruned.runs.warm:
                why = "; ".join(filter(None, (why, _WARM)))
            if module is not None:
                return module, "; ".join(filter(None, (why, *other_ways_notes(state, original, pruned, module))))
            reason = reason or why
    return _detached(pruned), (
        "the module is a graph module of torch.export, without dropout and without the methods of your class, "
        f"since {reason}"
    )


def sliced_module(
    source: nn.Module, original: TorchHost, pruned: TorchHost, sums: AbstractSet[str] = frozenset()
) -> tuple[nn.Module | None, str]:
    """A copy of ``source`` that computes what ``pruned`` computes.

    Args:
        source: The user's module; it is not touched.
        original: The graph of ``source``.
        pruned: The pruned graph.
        sums: Names of the sums that lost a branch.

    Returns:
        The module and a note (empty if there is nothing to say), or ``None`` and the reason why there is none.
    """
    note = ""
    try:
        module = _copied(source, original, pruned)
        if sums:
            example = original.arguments(original.example_inputs())
            paths = bypass_modules(module, source, original.program, pruned.program, sums, example)
            note = f"in the module, placeholders stand for what was left out: {', '.join(paths)}" if paths else ""
    except Exception as error:  # noqa: BLE001  # a user's class may forbid copies in any way
        return None, f"the module of class '{type(source).__name__}' cannot be copied: {error}"
    with inference(module):  # a parametrization may change its buffers when it is read in training mode
        _repair_known(module, original, pruned)
    examples = [pruned.example_inputs(0)]
    expected = [list(pruned.run(examples[0]).values())]
    try:
        other = pruned.example_inputs(1)
        expected.append(list(pruned.run(other).values()))
        examples.append(other)
    except ModelError:  # random values that the model does not take
        pass
    choices = _choices(module, original, pruned)
    reason = ""
    for options in islice(_combinations([len(ways) for ways in choices.values()]), ATTEMPTS):
        _apply(module, [ways[k] for ways, k in zip(choices.values(), options, strict=True)], list(choices))
        found = _difference(module, pruned, examples, expected)
        if not found:
            return module, note
        reason = reason or found
    return None, f"a sliced copy of '{type(source).__name__}' is not the pruned model: {reason}"


def _copied(source: nn.Module, original: TorchHost, pruned: TorchHost) -> nn.Module:
    """A deep copy in which tensors of the graph are replaced by the pruned ones; ties stay ties."""
    tensors: dict[str, torch.Tensor] = {
        **dict(source.named_parameters(remove_duplicate=False)),
        **dict(source.named_buffers(remove_duplicate=False)),
    }
    memo: dict[int, Any] = {
        id(value): value.detach().clone()  # computed, as older norms of weights keep it; deepcopy refuses it
        for layer in source.modules()
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    for before, after in replaced_tensors(original, pruned, tensors):
        fresh = after.detach().clone()
        if isinstance(before[0], nn.Parameter):
            fresh = nn.Parameter(fresh, requires_grad=before[0].requires_grad)
        for tensor in before:
            memo.setdefault(id(tensor), fresh)
    module = copy.deepcopy(source, memo)
    for name, tensor in pruned.tensors.items():
        if name not in tensors and isinstance(tensor, torch.Tensor):
            add_bias(module, name, tensor)
    return module


def add_bias(module: nn.Module, name: str, values: torch.Tensor) -> bool:
    """Gives a layer that was made without one a bias, as a refit asks for; whether there is such a layer."""
    path, _, last = name.rpartition(".")
    layer = dict(module.named_modules(remove_duplicate=False)).get(path)
    if last != "bias" or layer is None or layer._parameters.get("bias", values) is not None:
        return False
    layer.bias = nn.Parameter(values.detach().clone(), requires_grad=values.requires_grad)
    return True


def _detached(pruned: TorchHost) -> nn.Module:
    """The graph module with tensors of its own."""
    module = pruned.without_dead_nodes().module
    memo: dict[int, torch.Tensor] = {}
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in memo:
                    fresh = tensor.detach().clone()
                    kept = isinstance(tensor, nn.Parameter)
                    memo[id(tensor)] = nn.Parameter(fresh, requires_grad=tensor.requires_grad) if kept else fresh
                table[name] = memo[id(tensor)]  # type: ignore[assignment]
    return module


# -- attributes whose meaning is known -------------------------------------------------------------------------------


def _repair_known(module: nn.Module, original: TorchHost, pruned: TorchHost) -> None:
    """Sets the attributes of torch's own layers from the shapes of their tensors."""
    counts = _resized(original, pruned, ("groups", "num_groups"))
    for path, layer in module.named_modules(remove_duplicate=False):
        for hook in layer._forward_pre_hooks.values():
            if hasattr(hook, "compute_weight"):  # torch.nn.utils.weight_norm and spectral_norm
                hook(layer, ())
        weight: Any = getattr(layer, "weight", None)
        match layer:
            case nn.Linear():
                layer.out_features, layer.in_features = weight.shape
            case nn.Bilinear():
                layer.out_features, layer.in1_features, layer.in2_features = weight.shape
            case nn.Embedding() | nn.EmbeddingBag():
                layer.num_embeddings, layer.embedding_dim = weight.shape
            case nn.modules.conv._ConvNd():
                layer.groups = _renamed(layer.groups, counts.get(path, ()))
                outer, inner = (1, 0) if layer.transposed else (0, 1)
                sizes = {outer: weight.shape[outer], inner: weight.shape[inner]}
                layer.out_channels = sizes[outer] * (layer.groups if layer.transposed else 1)
                layer.in_channels = sizes[inner] * (1 if layer.transposed else layer.groups)
            case nn.GroupNorm():
                layer.num_groups = _renamed(layer.num_groups, counts.get(path, ()))
                if weight is not None:
                    layer.num_channels = weight.shape[0]
            case nn.LayerNorm() | nn.RMSNorm():
                if weight is not None:
                    layer.normalized_shape = tuple(weight.shape)
            case nn.modules.batchnorm._NormBase():
                stored = weight if weight is not None else layer.running_mean
                if stored is not None:
                    layer.num_features = stored.shape[0]
            case nn.modules.rnn.RNNCellBase():
                layer.hidden_size, layer.input_size = layer.weight_hh.shape[1], layer.weight_ih.shape[1]
            case nn.modules.rnn.RNNBase():
                hidden: Any = layer.weight_hh_l0
                source: Any = layer.weight_ih_l0
                gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
                layer.hidden_size, layer.input_size = hidden.shape[0] // gates, source.shape[1]
                layer.proj_size = hidden.shape[1] if layer.proj_size else 0


def _renamed(size: int, resized: Sequence[Resized]) -> int:
    return next((new for old, new in resized if old == size), size)


# -- attributes whose meaning must be tried --------------------------------------------------------------------------


def _resized(
    original: TorchHost, pruned: TorchHost, attributes: tuple[str, ...] | None = None
) -> dict[str, list[Resized]]:
    """For each module that a node stands in: the literals that pruning changed, in the order of the graph."""
    found: dict[str, list[Resized]] = {}
    pairs = [
        (node, new_nodes.get(node.name))
        for before, after in host_pairs(original, pruned)
        for new_nodes in ({node.name: node for node in after.program.nodes},)
        for node in before.program.nodes
    ]
    for node, other in pairs:
        if other is None or node.op != "call_function":
            continue
        if attributes is None:
            changed = list(_changes(node, other))
        else:
            changed = []
            for name in attributes:
                try:
                    changed.append((argument(node, name), argument(other, name)))
                except KeyError:
                    continue
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        for path in stack[-1:]:
            found.setdefault(path, []).extend(pair for pair in changed if pair[0] != pair[1])
    return found


def _changes(old: fx.Node, new: fx.Node) -> Iterator[Resized]:
    """Pairs of whole numbers at the same place in the arguments of two nodes, and of sizes of their results."""
    yield from zip(_numbers((old.args, old.kwargs)), _numbers((new.args, new.kwargs)), strict=False)
    specs, others = old.meta.get(SPEC), new.meta.get(SPEC)
    if isinstance(specs, Spec) and isinstance(others, Spec):
        yield from zip(specs.shape, others.shape, strict=True)


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)


def _choices(module: nn.Module, original: TorchHost, pruned: TorchHost) -> Choices:
    """For each attribute that may hold a changed size: what it may have become, the likeliest first.

    The same choice is made for all modules in alike places (``layers.*.attn``): the ``k``-th changed size that equals
    the attribute, counted in the order of the graph, so that layers of equal build may end up with different sizes.
    """
    resized = _resized(original, pruned)
    layers = dict(module.named_modules(remove_duplicate=False))
    found: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for path, layer in layers.items():
        if type(layer).__module__.startswith("torch.nn.") and not isinstance(layer, _SIZED_BY_HAND):
            continue
        nearby = _nearby(path, layers, resized)
        if not nearby:
            continue
        for name, value in vars(layer).items():
            options = _options(value, nearby) if not name.startswith("_") and name != "training" else []
            if options:
                found.setdefault((re.sub(r"\d+", "*", path), name), {})[path] = [*options, value]
    choices: Choices = {}
    for key, by_path in found.items():
        n = max(map(len, by_path.values()))
        ways: list[dict[str, Any]] = []
        for k in range(n):
            way = {path: options[min(k, len(options) - 1)] for path, options in by_path.items()}
            if way not in ways:
                ways.append(way)
        choices[key] = ways
    return choices


def _nearby(path: str, layers: Mapping[str, nn.Module], resized: Mapping[str, list[Resized]]) -> list[Resized]:
    """The changed sizes inside a module, then those of torch's own layers that it holds."""
    found = list(resized.get(path, ()))
    prefix = f"{path}." if path else ""
    for name, _ in layers[path].named_children():
        if type(layers[prefix + name]).__module__.startswith("torch.nn."):
            found.extend(resized.get(prefix + name, ()))
    return [pair for pair in found if pair[0] != pair[1]]


def _options(value: Any, resized: Sequence[Resized]) -> list[Any]:
    """What a number, or a list of numbers, may have become; without repetition."""
    options: list[Any] = []
    if isinstance(value, int) and not isinstance(value, bool):
        options = [new for old, new in resized if old == value]
    elif isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        renamed = [_renamed(item, resized) for item in value]
        places = [i for i, (new, old) in enumerate(zip(renamed, value, strict=True)) if new != old]
        options = [type(value)(renamed)] if places else []
        if len(places) > 1:  # equal sizes need not be the same one
            options.extend(type(value)([*value[:i], renamed[i], *value[i + 1 :]]) for i in places)
    return list(dict.fromkeys(options)) if not isinstance(value, list) else options


def _combinations(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Indices into lists of these sizes: all first ones, then one other, then two others, ..."""
    for n in range(len(sizes) + 1):
        for places in combinations(range(len(sizes)), n):
            for others in product(*(range(1, sizes[place]) for place in places)):
                chosen = dict(zip(places, others, strict=True))
                yield tuple(chosen.get(i, 0) for i in range(len(sizes)))


def _apply(module: nn.Module, ways: Sequence[Mapping[str, Any]], keys: Sequence[tuple[str, str]]) -> None:
    layers = dict(module.named_modules(remove_duplicate=False))
    for (_, name), by_path in zip(keys, ways, strict=True):
        for path, value in by_path.items():
            setattr(layers[path], name, value)


# -- the proof -------------------------------------------------------------------------------------------------------


def _difference(
    module: nn.Module, pruned: TorchHost, examples: Sequence[Mapping[str, Any]], expected: Sequence[list[Any]]
) -> str:
    """Why the module does not compute what the pruned graph does; empty if it does."""
    for inputs, want in zip(examples, expected, strict=True):
        args, kwargs = pruned.arguments(inputs)
        try:
            with untouched(module, runs=True), inference(module):
                torch.manual_seed(0)  # as the graph is run
                output = module(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # a wrong size makes the user's code fail in any way
            return f"it fails with '{first_line(error)}'"
        got = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        if len(got) != len(want):
            return f"it returns {len(got)} tensors instead of {len(want)}"
        for ours, theirs in zip(got, want, strict=True):
            if tuple(ours.shape) != theirs.shape:
                return f"an output has shape {list(ours.shape)} instead of {list(theirs.shape)}"
            a, b = ours.detach().cpu().double().numpy(), np.asarray(theirs, dtype=np.float64)
            scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0)) or 1.0
            differing = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b)) / scale
            if not float(differing.max(initial=0.0)) <= TOLERANCE:
                return f"its outputs differ by {float(differing.max(initial=0.0)):.2g} of the largest value"
    return ""
