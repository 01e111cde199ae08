"""A shrunken twin of a checkpoint: the same class with few layers, small widths and random weights, and the same plan.

What a proof of structure shows does not hang on the sizes, as long as the class runs the same operators in the same
order and its groups are the same: that is what a twin is held to. Its sizes are found by trying, value by value of the
config. The oracles run on it; then its weights go through the same writer as the checkpoint's, and are read again by
the class's own reader.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from graphprune.analysis.groups import Analysis, Group, analyze_graph
from graphprune.errors import GraphpruneError, ProofError
from graphprune.hosts.checkpoint.streaming import job_of, stream
from graphprune.hosts.host import StandIn
from graphprune.hosts.torch.checkpoints.asking import elements_without
from graphprune.hosts.torch.checkpoints.leaves import Leaf, changed, depth_moves, leaves
from graphprune.hosts.torch.checkpoints.reading import example_of, read_checkpoint
from graphprune.hosts.torch.checkpoints.renumber import Renumbering
from graphprune.hosts.torch.checkpoints.search import Base
from graphprune.hosts.torch.checkpoints.stating import lost_names
from graphprune.hosts.torch.checkpoints.twins import Twin, read_config
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.quiet import quiet
from graphprune.ir.dims import Factor, Index
from graphprune.pipeline.edits import smaller
from graphprune.pipeline.state import Check, State
from graphprune.planning.plan import make_plan
from graphprune.proof.compare import compare, require

if TYPE_CHECKING:
    from graphprune.hosts.checkpoint.host import CheckpointHost

DEPTH = 3
"""Layers of a twin, beside one that is left out."""
_SMALL = (8, 16, 32, 64, 128, 256, 512)
"""What a number of a config may become, the first that will do."""
_LARGE = 2_000_000
"""Elements below which a twin need not be smaller."""


@dataclass(frozen=True)
class Shape:
    """What a twin must have in common with the checkpoint: operators in order, groups by name and kind."""

    operators: tuple[str, ...]
    groups: frozenset[tuple[str, str]]


def stand_in(host: CheckpointHost, state: State) -> StandIn:
    """The twin of a checkpoint, and what a state's plan makes of it.

    Raises:
        ProofError: None was found that is of the same structure.
    """
    base, source, analysis = host.asking.bases.get(""), host.source, state.analysis
    assert analysis is not None
    if base is None or source is None:
        raise ProofError(f"no twin of '{host.shards.folder}' can be built: {host.asking.reason}; give verify=False")
    shallow, data = _shallow(base, source, lost_names(host, state))
    data = _narrow(base, data)
    module = _filled(base, data)
    example = example_of(module)
    original = TorchHost.trace(module, example).folded()
    twin = analyze_graph(original.graph())
    kept = _same_pattern(analysis, twin, state.kept, shallow)
    names = {shallow.new(name) for name in lost_names(host, state) if not shallow.is_gone(name)}
    removed = tuple(
        block
        for block in twin.blocks
        if block.tensors and set(block.tensors) <= names and _is_outer(block, twin, names)
    )
    if bool(removed) != bool(state.removed):
        raise ProofError(
            f"no twin of '{host.shards.folder}' with few layers was found in which the same layers go; give "
            "verify=False"
        )
    pruned = smaller(original, twin, kept, removed)
    n = sum(value.numel() for value in module.parameters())
    sizes = ", ".join(f"{leaf[-1]} {value}" for leaf, value in _differing(base.data, data))
    return StandIn(original, pruned, twin, kept, removed, f"a twin of {n:,} random parameters ({sizes})")


def _is_outer(block: Any, analysis: Analysis, names: set[str]) -> bool:
    """Whether no larger block goes that a block is part of."""
    return not any(
        block.name in other.parts and other.tensors and set(other.tensors) <= names for other in analysis.blocks
    )


def _shallow(base: Base, source: nn.Module, lost: frozenset[str]) -> tuple[Renumbering, dict[str, Any]]:
    """A config with few layers, one of those that go among them, and which layers of the checkpoint they are."""
    gone = elements_without(source, set(lost))
    lists = {
        path: len(layer)
        for path, layer in source.named_modules(remove_duplicate=False)
        if isinstance(layer, nn.ModuleList) and len(layer) > DEPTH + 1
    }
    outer = {p: n for p, n in lists.items() if not any(p.startswith(f"{other}.") for other in lists)}
    data = base.data
    found = Renumbering()
    for path, depth in outer.items():
        places = gone.gone.get(path, ())
        stay = [i for i in range(depth) if i not in places]
        chosen = {*places[:1], *(stay[i * (len(stay) - 1) // (DEPTH - 1)] for i in range(DEPTH))}
        out = tuple(i for i in range(depth) if i not in chosen)
        here = Renumbering({**found.gone, path: out}, {**found.depths, path: depth})
        wanted = {here.new(name): shape for name, shape in base.shapes.items() if not here.is_gone(name)}
        for move in depth_moves(data, out, depth):
            tried = changed(data, move)
            twin = Twin.of(type(base.source), tried, vars(base.source)["config"])
            if twin is not None and twin.shapes == wanted:
                found, data = here, tried
                break
    return found, dict(data)


def _narrow(base: Base, data: Mapping[str, Any]) -> dict[str, Any]:
    """A config with small numbers, of which the class runs the same operators and has the same groups."""
    now, structure = dict(data), _structure(base, data)
    if structure is None:
        raise ProofError(
            f"'{type(base.source).__name__}' cannot be traced with fewer layers, and no twin of it can be built; give "
            "verify=False"
        )
    tokens = {leaf: 1 for leaf, value in leaves(now) if str(leaf[-1]).endswith("_token_id") and type(value) is int}
    tokens = {leaf: value for leaf, value in tokens.items() if _number(now, leaf) > value}
    now = changed(now, tokens) if _structure(base, changed(now, tokens)) == structure else now
    for leaf, value in sorted(_sizes(base, now), key=lambda each: -each[1]):
        if _elements(base, now) <= _LARGE:
            break
        for small in _SMALL:
            if small >= value:
                break
            tried = changed(now, {leaf: small})
            if 0 < _elements(base, tried) < _elements(base, now) and _structure(base, tried) == structure:
                now = tried
                break
    return now


def _number(data: Mapping[str, Any], leaf: Leaf) -> int:
    return int(dict(leaves(data))[leaf])


def _sizes(base: Base, data: Mapping[str, Any]) -> Iterator[tuple[Leaf, int]]:
    """The large whole numbers of a config."""
    for leaf, value in leaves(data):
        if type(value) is int and value > _SMALL[0] and not str(leaf[-1]).endswith("_token_id"):
            yield leaf, value


def _elements(base: Base, data: Mapping[str, Any]) -> int:
    """Elements of all parameters under a config; 0 where nothing can be built."""
    twin = Twin.of(type(base.source), data, vars(base.source)["config"])
    return 0 if twin is None else sum(value.numel() for value in twin.module.parameters())


def _structure(base: Base, data: Mapping[str, Any]) -> Shape | None:
    """Operators and groups under a config; ``None`` where it cannot be built or run."""
    twin = Twin.of(type(base.source), data, vars(base.source)["config"])
    if twin is None:
        return None
    try:
        with quiet():
            traced = TorchHost.trace(twin.module.eval(), example_of(twin.module)).folded()
        analysis = analyze_graph(traced.graph())
    except (GraphpruneError, RuntimeError, ValueError):
        return None
    return Shape(
        tuple(node.op for node in analysis.graph.nodes),
        frozenset((group.name, group.kind) for group in analysis.groups),
    )


def _filled(base: Base, data: Mapping[str, Any]) -> nn.Module:
    """The class with random weights of every kind of value, so that nothing is one or zero by chance."""
    generator = torch.Generator().manual_seed(0)
    config = read_config(data, vars(base.source)["config"])
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        config.dtype = torch.float32
        module = type(base.source)(config).float().eval()
    with torch.no_grad():
        for value in module.parameters():
            spread = torch.randn(value.shape, generator=generator)
            value.copy_(spread / value.shape[-1] ** 0.5 if value.dim() > 1 else value + 0.1 * spread)
    return module


def _same_pattern(
    analysis: Analysis, twin: Analysis, kept: Mapping[Factor, Index], shallow: Renumbering
) -> dict[Factor, Index]:
    """The kept units of a twin: the same fraction of each group, at places like those of the original."""
    by_name = {shallow.new(group.name): group for group in analysis.groups if not shallow.is_gone(group.name)}
    found: dict[Factor, Index] = {}
    for group in twin.groups:
        large = by_name.get(group.name)
        if large is not None and large.factor in kept:
            found[group.factor] = _places(group, large.size, kept[large.factor])
    return found


def _places(group: Group, size: int, index: Index) -> Index:
    wanted = min(group.size - group.multiple, max(1, round(len(index) * group.size / size)))
    n = group.at_least(max(1, wanted))
    order = dict.fromkeys([*(index % group.size).tolist(), *range(group.size)])
    return np.sort(np.array(list(order)[:n], np.int64))


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> Sequence[tuple[Leaf, Any]]:
    """The numbers of a config that are others."""
    before = dict(leaves(old))
    return [(leaf, v) for leaf, v in leaves(new) if type(v) is int and type(leaf[-1]) is str and before.get(leaf) != v]


# -- written and read again --------------------------------------------------------------------------------------------


def reread(host: CheckpointHost, state: State) -> Check:
    """The twin's weights, streamed by the checkpoint's own writer and read again, compute what the pruned twin does.

    Raises:
        ProofError: They do not.
    """
    twin = host.stand_in(state)
    source: Any = twin.original.source  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="graphprune-") as name, quiet():
        whole, small = Path(name, "whole"), Path(name, "small")
        copy.deepcopy(source).save_pretrained(whole, max_shard_size="1MB")
        opened = type(host).open(whole).folded()
        analysis = analyze_graph(opened.graph())
        factors = {group.name: group.factor for group in analysis.groups}
        blocks = {block.name: block for block in analysis.blocks}
        kept = {factors[g.name]: twin.kept[g.factor] for g in twin.analysis.groups if g.factor in twin.kept}
        removed = tuple(blocks[block.name] for block in twin.removed)
        plan = make_plan(analysis, kept, {}, removed)
        streamed = State(opened, opened, analysis, kept=kept, removed=removed, plan=plan)
        stream(job_of(opened, streamed, shard=1_000_000), small, None, {"plan.json": plan.save})
        again = read_checkpoint(small).float()
        inputs = twin.original.example_inputs()
        expected = twin.pruned.run(inputs)
        got = TorchHost.trace(again, example_of(again)).run(inputs)
    check = compare("reloaded", expected, got, note=f"from_pretrained of streamed slices = pruned, on {twin.what}")
    require((check,))
    return check
