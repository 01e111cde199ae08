"""Export of the torch host's module to an ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxscript import opset18
from torch import fx
from torch._decomp import get_decompositions

from graphprune.errors import OutputError
from graphprune.hosts.torch.lazy_graph import copied
from graphprune.hosts.torch.quiet import quiet
from graphprune.hosts.torch.sizes import name_sizes
from graphprune.hosts.torch.trace import Example
from graphprune.hosts.writing import EXTERNAL_BYTES, invalid, place
from graphprune.planning.transfer import Origin

_GROUPED = torch.ops.aten._grouped_mm.default
OPSET = 20
"""The newest opset whose files every runtime of the last years loads."""

OPSET_OF_BFLOAT16 = 22
"""The oldest opset in which convolutions take bfloat16."""


def save(
    module: fx.GraphModule,
    example: Example,
    dynamic_shapes: Any,
    output_names: Sequence[str],
    path: Path,
    metadata: Callable[[Any], Mapping[str, str]],
    proof: Callable[[Path], None] = lambda path: None,
    *,
    beside: bool = False,
) -> None:
    """Exports, checks and writes, in this order; ``path`` appears whole or not at all.

    Args:
        module: The graph module.
        example: Its arguments.
        dynamic_shapes: As for ``torch.export``.
        output_names: Names for the outputs.
        path: The file.
        metadata: Gives the entries of ``metadata_props`` for the exported model (an ``onnx_ir.Model``).
        proof: Judges the file before it is in its place; raises if it must not get there.
        beside: Whether weights go into a file of their own whatever their size.

    Raises:
        OutputError: The exporter, the checker or the file system refuses.
    """
    tensors = list(module.state_dict(keep_vars=True).values())
    if any(tensor.is_meta for tensor in tensors):
        raise OutputError("a model on the 'meta' device has no weights to write; load them first")
    narrow = any(tensor.dtype is torch.bfloat16 for tensor in tensors)
    size = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                _traceable(_without_numbers(module)), *example, dynamic_shapes=dynamic_shapes, strict=False
            )
            table = _decompositions(program.graph)
            exported = torch.onnx.export(
                program.run_decompositions(table) if table else program,
                dynamo=True,
                optimize=not narrow,  # its rewriter makes float32 constants of what it folds into convolutions
                opset_version=OPSET_OF_BFLOAT16 if narrow else OPSET,
                custom_translation_table=_TRANSLATIONS,
                output_names=list(output_names),
                verbose=False,
            )
    except Exception as error:  # the exporters raise whatever they stumble over
        cause = error.__cause__ or error  # the exporter wraps what went wrong into advice for its own developers
        first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise OutputError(
            f"torch.onnx cannot export the model: {first.strip()[:300]}; the pruned module itself is intact, "
            "save it as a checkpoint or export it with another exporter"
        ) from error
    assert exported is not None
    _name_inputs(exported.model.graph, [str(node.target) for node in module.graph.nodes if node.op == "placeholder"])
    name_sizes(exported.model, program, dynamic_shapes)
    exported.model.metadata_props.update(metadata(exported.model))
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(at: Path) -> None:
        with quiet():
            exported.save(at, external_data=beside or size >= EXTERNAL_BYTES)

    def judge(at: Path) -> None:
        with quiet():
            error = invalid(at)
        if error is not None:
            raise OutputError(f"cannot write '{path}': {error}") from error
        proof(at)

    try:
        place(path, write, judge)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error}") from error


def _without_numbers(module: fx.GraphModule) -> fx.GraphModule:
    """The module without outputs that are plain numbers or texts, which ONNX does not have."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    returned = output.args[0]
    if not isinstance(returned, list | tuple) or all(isinstance(item, fx.Node | None) for item in returned):
        return module
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(module.graph, copies)
    graph.output(tuple(copies[item] for item in returned if isinstance(item, fx.Node)))
    return fx.GraphModule(module, graph)


def _traceable(module: fx.GraphModule) -> fx.GraphModule:
    """The module without operators that run on types which their shapes are not known for."""
    if all(node.target is not _GROUPED for node in module.graph.nodes):
        return module
    graph, _ = copied(module.graph)
    for node in graph.nodes:
        if node.target is _GROUPED:
            node.target = _grouped_mm
    return fx.GraphModule(module, graph)


def origins(model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, Origin]:
    """Which of a module's tensors the initializers of its export are: by name, else by equal values.

    Weights of matrix products may be transposed. Values that several tensors share say nothing.
    """
    found: dict[str, Origin] = {}
    unknown = []
    for name, value in model.graph.initializers.items():
        tensor = tensors.get(name)
        if (
            tensor is not None
            and value.const_value is not None
            and tuple(value.const_value.shape) == tuple(tensor.shape)
        ):
            found[name] = Origin(name, tuple(range(tensor.dim())))
        elif value.const_value is not None and len(value.const_value.shape) > 0:
            unknown.append((name, value.const_value))
    wanted = {tuple(constant.shape) for _, constant in unknown}
    by_value: dict[Hashable, list[Origin]] = {}
    taken = {origin.name for origin in found.values()}
    for name, tensor in tensors.items():
        if name in taken or tensor.dim() == 0:
            continue
        ways = [tuple(range(tensor.dim())), (1, 0)] if tensor.dim() == 2 else [tuple(range(tensor.dim()))]
        for axes in ways:
            if tuple(tensor.shape[i] for i in axes) in wanted:
                array = tensor.detach().permute(axes).cpu().contiguous()
                plain = array.view(torch.int16) if tensor.dtype is torch.bfloat16 else array  # as NumPy lacks it
                name_of_type = str(tensor.dtype).removeprefix("torch.")
                by_value.setdefault(_digest(plain.numpy(), name_of_type), []).append(Origin(name, axes))
    for name, constant in unknown:
        candidates = by_value.get(_digest(constant.numpy(), str(constant.numpy().dtype)), [])
        if len(candidates) == 1:
            found[name] = candidates[0]
    return found


def _digest(array: Any, dtype: str) -> Hashable:
    return array.shape, dtype, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def _grouped_mm(x: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor, *_rest: Any, **_more: Any) -> torch.Tensor:
    """Rows that are sorted by expert, each with the weights of its own."""
    rows = torch.arange(x.shape[0], device=x.device)
    expert = (rows.unsqueeze(1) >= offs.unsqueeze(0)).sum(1).clamp(max=weight.shape[0] - 1)
    return torch.bmm(x.unsqueeze(1), weight[expert]).squeeze(1)


def _histc(x: torch.Tensor, bins: int = 100, min: float = 0, max: float = 0) -> torch.Tensor:  # noqa: A002
    """How many elements fall into each of ``bins`` equal ranges; the last one includes its end."""
    low, high = (x.min(), x.max()) if min == max else (min, max)
    at = ((x - low) * bins / (high - low)).floor().clamp(max=bins - 1)
    inside = (x >= low) & (x <= high)
    hit = (at.unsqueeze(-1) == torch.arange(bins, device=x.device, dtype=x.dtype)) & inside.unsqueeze(-1)
    return hit.to(x.dtype).sum(0)


def _extremes(x: torch.Tensor, dim: int, *, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest (or smallest) element so far, and where the last such one is."""
    y = x.movedim(dim, -1)
    at = torch.arange(y.shape[-1], device=x.device)
    before = at <= at.unsqueeze(1)
    # what lies behind repeats the first element, which is in reach of all
    seen = torch.where(before, y.unsqueeze(-2), y[..., :1].unsqueeze(-2))
    values = seen.amax(-1) if largest else seen.amin(-1)
    last = torch.where(before & (y.unsqueeze(-2) == values.unsqueeze(-1)), at, -1).amax(-1)
    return values.movedim(-1, dim), last.movedim(-1, dim)


def _cummax(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _extremes(x, dim, largest=True)


def _cummin(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _extremes(x, dim, largest=False)


def _cdist(x: torch.Tensor, y: torch.Tensor, p: float = 2.0, compute_mode: int | None = None) -> torch.Tensor:
    distance: torch.Tensor = torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)
    return distance


_UNKNOWN: dict[str, Callable[..., Any]] = {
    "aten._cdist_forward.default": _cdist,
    "aten.cdist.default": _cdist,
    "aten._grouped_mm.default": _grouped_mm,
    "transformers.grouped_mm_fallback.default": _grouped_mm,
    "aten.histc.default": _histc,
    "aten.cummax.default": _cummax,
    "aten.cummin.default": _cummin,
    "aten._is_all_true.default": torch.all,
}
"""Operators that torch.onnx cannot translate, in terms of those that it can."""


def _n_elements(x: Any) -> Any:
    return opset18.Size(x)


_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.sym_numel.default: _n_elements}
"""Operators that torch.onnx does not know, in those of ONNX."""


def _decompositions(graph: fx.Graph) -> dict[Any, Callable[..., Any]]:
    """For the operators of a graph that torch.onnx cannot translate: others to put in their place."""
    table = {node.target: _UNKNOWN[str(node.target)] for node in graph.nodes if str(node.target) in _UNKNOWN}
    if any(node.target is torch.ops.aten.lstm.input and _is_projected(node) for node in graph.nodes):
        table.update(get_decompositions([torch.ops.aten.lstm.input]))
    return table


def _is_projected(lstm: fx.Node) -> bool:
    """Whether an LSTM has a projection, which ONNX's operator has not: step by step it is small products."""
    states: Any = lstm.args[1]
    hidden, cell = (state.meta["val"].shape for state in states)
    return bool(hidden != cell)


def _name_inputs(graph: Any, names: Sequence[str]) -> None:
    """Gives inputs their own names back: the exporter renames those that are returned as they are."""
    present = [value.name for value in graph.inputs]
    for value in graph.inputs:
        plain = value.name.removesuffix("_orig")
        if value.name not in names and plain in names and plain not in present:
            for node in graph:
                for output in node.outputs:
                    if output.name == plain:
                        output.name = f"{plain}_copy"
            value.name = plain
