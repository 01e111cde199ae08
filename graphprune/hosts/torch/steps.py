"""Going through a traced graph step by step, and the edits that a refit of weights needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from graphprune.errors import ModelError
from graphprune.hosts.host import Array, Carried, PartialRun
from graphprune.hosts.torch.signatures import argument
from graphprune.hosts.torch.stored import to_numpy
from graphprune.hosts.torch.threads import on_threads
from graphprune.hosts.trying import Rest
from graphprune.hosts.windows import Window, transposed
from graphprune.ir.liveness import Flow, part_of

_ATEN = torch.ops.aten
_CONVOLUTIONS = {
    _ATEN.conv1d.default: 1,
    _ATEN.conv2d.default: 2,
    _ATEN.conv3d.default: 3,
    _ATEN.conv1d.padding: 1,
    _ATEN.conv2d.padding: 2,
    _ATEN.conv3d.padding: 3,
    _ATEN.convolution.default: 0,
}
_TRANSPOSED = frozenset({_ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input})
_SCALED = frozenset({_ATEN.addmm.default, _ATEN.addmv.default, _ATEN.baddbmm.default})
BIASED = frozenset({*_CONVOLUTIONS, _ATEN.linear.default})
"""Operators whose third argument is a bias along the channel axis of the result."""


def partial_run(
    program: fx.Graph,
    tensors: Mapping[str, Any],
    names: Mapping[fx.Node, str],
    have: Collection[str],
    outputs: Sequence[str],
    later: Sequence[str],
) -> PartialRun:
    """A runner of the nodes between what there is and what is wanted, by node names; see ``Runnable.partial_run``."""
    return with_tensors(program, names, have, outputs, later)(tensors)


def with_tensors(
    program: fx.Graph,
    names: Mapping[fx.Node, str],
    have: Collection[str],
    outputs: Sequence[str],
    later: Sequence[str] = (),
) -> Callable[[Mapping[str, Any]], PartialRun]:
    """What makes runners of the nodes between what there is and what is wanted, with tensors as they are given."""
    by_value: dict[str, fx.Node] = {}
    for node, name in names.items():
        by_value.setdefault(name, node)
    unknown = [name for name in (*outputs, *later) if name not in by_value]
    if unknown:
        raise ModelError(f"the graph has no value '{unknown[0]}'; ask for names of values of its graph")
    flow = Flow(
        {node.name: node for node in program.nodes if node.op != "get_attr"},  # stored tensors are always there
        lambda node: (operand.name for operand in node.all_input_nodes),
        lambda node: (node.name,),
    )
    _, now, carried = part_of(flow, have, *([by_value[name].name for name in names] for names in (outputs, later)))
    order = [node for node in program.nodes if node in now and node.op != "get_attr"]
    wanted = {name: by_value[name] for name in outputs}
    last: dict[str, int] = {}
    for i, node in enumerate(order):
        for operand in node.all_input_nodes:
            last[operand.name] = i
    kept = carried | {node.name for node in wanted.values()}
    expiring: dict[int, list[str]] = {}
    for name, i in last.items():
        if name not in kept:
            expiring.setdefault(i, []).append(name)

    def runner(tensors: Mapping[str, Any]) -> PartialRun:
        def run(values: Carried) -> tuple[dict[str, Any], dict[str, Array]]:
            env = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in values.items()}

            def read(node: fx.Node) -> Any:
                return tensors[str(node.target)] if node.op == "get_attr" else env[node.name]

            with torch.no_grad():
                for i, node in enumerate(order):
                    if node.op == "placeholder":
                        raise ModelError(f"input '{node.name}' is missing; got {', '.join(values) or 'none'}")
                    args, kwargs = fx.node.map_arg((node.args, node.kwargs), read)
                    env[node.name] = node.target(*args, **kwargs)
                    for name in expiring.get(i, ()):
                        env.pop(name, None)
            arrays = {name: to_numpy(read(node)) for name, node in wanted.items()}
            return {name: env[name] for name in carried}, arrays

        return run

    return runner


def rest(run: PartialRun, threads: int) -> Rest:
    """A runner that gives outputs alone, with so many threads within an operator (0: as many as it takes anyway)."""

    def outputs(values: Carried) -> dict[str, Array]:
        with on_threads(threads):
            return run(values)[1]

    return outputs


def window(node: fx.Node) -> Window | None:
    """What a convolution sees, also a transposed one; ``None`` for any other node."""
    turned = node.target in _TRANSPOSED or (node.target is _ATEN.convolution.default and argument(node, "transposed"))
    if node.target not in _CONVOLUTIONS and not turned:
        return None
    kernel = tuple(node.args[1].meta["graphprune_spec"].shape[2:])  # type: ignore[union-attr]
    n = len(kernel)
    strides, dilations = (_spread(argument(node, name), n) for name in ("stride", "dilation"))
    padding = argument(node, "padding")
    if turned:
        more = _spread(argument(node, "output_padding"), n)
        return transposed(kernel, strides, dilations, [(pad, pad) for pad in _spread(padding, n)], more)
    if padding == "valid":
        pads: tuple[tuple[int, int], ...] = ((0, 0),) * n
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = tuple((pad, pad) for pad in _spread(padding, n))
    return Window(kernel, strides, dilations, pads)


def _spread(value: Any, n: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * n if len(values) == 1 else values


def scales(node: fx.Node) -> tuple[float, float]:
    """What a node multiplies its product of two operands by, and what its bias."""
    alpha, beta = ((node.kwargs.get(name, 1) if node.target in _SCALED else 1) for name in ("alpha", "beta"))
    return (
        (float(alpha), float(beta)) if isinstance(alpha, int | float) and isinstance(beta, int | float) else (0.0, 0.0)
    )
