"""From a user's module to a functional graph module: export without side effects, and a normal form.

The normal form makes later edits simple: ``view`` is ``reshape`` (sliced tensors need not be contiguous), parts of an
axis are split by explicit sizes (they may become unequal), bounds of slices count from the start, axes to squeeze are
named (an axis that is cut down to size one must stay).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from keyword import iskeyword
from math import prod
from pathlib import PurePath
from typing import Any, NamedTuple, cast

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from graphprune.errors import ModelError
from graphprune.hosts.torch.graph import SLICE, SPEC, Spec, annotate, argument, attribute, has_example
from graphprune.hosts.torch.ops.rows import OPEN
from graphprune.hosts.torch.ops.table import ROWS
from graphprune.hosts.torch.quiet import quiet
from graphprune.hosts.torch.untouched import untouched
from graphprune.hosts.torch.values import GivenValues, read_values

Example = tuple[tuple[Any, ...], dict[str, Any]]


def _distinct(example: Example) -> Example:
    """The example with a tensor that occurs twice copied: torch.export would take the two inputs for one."""
    seen: set[int] = set()

    def fresh(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        known = id(leaf) in seen
        seen.add(id(leaf))
        return leaf.clone() if known else leaf

    args, kwargs = pytree.tree_map(fresh, example)
    return args, kwargs


def split_example(example: tuple[Any, ...] | Mapping[str, Any] | torch.Tensor) -> Example:
    """Positional and keyword arguments of an example: a tuple, a mapping of keywords, or one tensor."""
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return _distinct(((), dict(example)))
    return _distinct((tuple(example), {}))


@contextmanager
def inference(model: torch.nn.Module, *, training: bool = False) -> Iterator[None]:
    """The model in evaluation mode, in the forms that can be traced (:data:`_TRACEABLE`); all is put back after.

    Args:
        model: The module.
        training: The user's own layers in training mode instead; torch's own stay in evaluation mode, in which they
            couple the same axes and draw no random numbers.
    """
    modes = [(module, module.training) for module in model.modules()]
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    settings = [  # a config may hand a setting on to its sub-configs, which come after it
        (config, name, getattr(config, name))
        for name, forms in _TRACEABLE.items()
        if any(getattr(config, name, None) in forms for config in configs.values())
        for config in configs.values()
        if hasattr(config, name)
    ]
    mha = cast("Any", torch.backends).mha
    fast = mha.get_fastpath_enabled()
    try:
        mha.set_fastpath_enabled(False)
        for module, _ in modes:
            module.training = training and not type(module).__module__.startswith("torch.")
        for config, name, old in settings:
            setattr(config, name, _TRACEABLE[name].get(old, old))
        with torch.no_grad():
            yield
    finally:
        mha.set_fastpath_enabled(fast)
        for module, flag in modes:
            module.training = flag
        for config, name, old in settings:
            setattr(config, name, old)


_TRACEABLE: Mapping[str, Mapping[bool | str, bool | str]] = {
    "use_cache": {True: False},
    "_attn_implementation": dict.fromkeys(("flash_attention_2", "flash_attention_3", "flex_attention"), "sdpa"),
    "_experts_implementation": {"eager": "batched_mm"},
}
"""Settings of a ``config`` (transformers' convention) that keep a model from being traced, and what to trace instead.

The cache is an output that nobody asked for; the eager loop runs over the experts that tokens happen to choose.
"""


class Trace(NamedTuple):
    """A traced program.

    Attributes:
        program: The program.
        example: The example, with further inputs where there are any.
        pinned: Tensors of the example whose values decided sizes and branches.
    """

    program: ExportedProgram
    example: Example
    pinned: tuple[torch.Tensor, ...] = ()


def export(model: torch.nn.Module, example: Example, dynamic_shapes: Any = None, *, training: bool = False) -> Trace:
    """Exports a module as a functional program.

    A model of transformers that cannot be traced as it is gets a second try with what transformers' own exporter puts
    in place of untraceable code; what that computes beforehand (lengths of sequences, positions of patches) becomes
    further inputs. The last try gives sizes and branches that depend on inputs of whole numbers as they are in the
    example (:mod:`graphprune.hosts.torch.values`). Sizes that a model computes from its buffers are constants always.

    Raises:
        ModelError: torch.export cannot trace it.
    """
    with quiet(), inference(model, training=training):
        try:
            trace = Trace(_exported(model, example, dynamic_shapes), example)
            if any(node.target in _READS for node in trace.program.graph.nodes):
                trace = _with_values(model, example, dynamic_shapes, constants=True) or trace
        except Exception as error:  # the exporter raises whatever the user's code raises
            again = _with_patches(model, example, dynamic_shapes) or _with_values(model, example, dynamic_shapes)
            if again is None:
                raise ModelError(_failure(model, error)) from error
            trace = again
    return trace._replace(program=functional(trace.program))


def _exported(model: torch.nn.Module, example: Example, dynamic_shapes: Any) -> ExportedProgram:
    args, kwargs = example
    return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)


def _with_patches(model: torch.nn.Module, example: Example, dynamic_shapes: Any) -> Trace | None:
    """The program traced with transformers' patches, if transformers is there, knows the model, and they help."""
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    try:
        from transformers.exporters.exporter_dynamo import reset_model_state
        from transformers.exporters.utils import apply_patches, precompute_export_inputs
    except ImportError:  # an older transformers
        return None
    args, kwargs = example[0], dict(example[1])
    try:
        precompute_export_inputs(model, kwargs)
        with apply_patches("dynamo"), reset_model_state(model):
            return Trace(_exported(model, (args, kwargs), dynamic_shapes), (args, kwargs))
    except Exception:  # noqa: BLE001  (the error of the first try is the one that the user can act on)
        return None


def _with_values(
    model: torch.nn.Module, example: Example, dynamic_shapes: Any, *, constants: bool = False
) -> Trace | None:
    """The program traced with the values that the example's run reads, if all that it needs may be given.

    Args:
        model: The module.
        example: The example.
        dynamic_shapes: As for ``torch.export``.
        constants: Give what follows from no input only.
    """
    if dynamic_shapes is not None:  # values may depend on the sizes that are to stay open
        return None
    try:
        with untouched(model, runs=True):
            noted = read_values(model, *example)
        noted = noted.constants() if constants else noted
        if not noted:
            return None
        with GivenValues(noted):
            return Trace(_exported(model, example, None), example, noted.inputs)
    except Exception:  # noqa: BLE001  (as above)
        return None


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program without in-place operators and wrappers, but with ``linear``, ``conv`` and attention whole.

    Operators without a row of ours are taken apart where PyTorch says what they are made of (``lstm_cell``, ``vdot``).
    """
    with quiet(), torch.no_grad():
        try:
            program = cast("ExportedProgram", program.run_decompositions({}))
            taken_apart: set[Any] = set()
            while parts := {op: how for op, how in _parts_of_unknown(program).items() if op not in taken_apart}:
                program = cast("ExportedProgram", program.run_decompositions(parts))
                taken_apart.update(parts)
            return program
        except Exception as error:
            if reserved := [name for name in program.state_dict if any(map(iskeyword, name.split(".")))]:
                word = next(filter(iskeyword, reserved[0].split(".")))
                raise ModelError(
                    f"'{reserved[0]}' lies in a module that is named '{word}', a word of Python's own, of which "
                    "torch.fx cannot make code; give the module another name"
                ) from error
            raise ModelError(
                f"torch.export traced the model, but its program cannot be made functional: {_line(error)}; "
                "check that the model runs on the example inputs in evaluation mode"
            ) from error


def _parts_of_unknown(program: ExportedProgram) -> dict[torch._ops.OpOverload, Any]:
    """How the operators of a program that have no row are made of others; those that draw random numbers stay."""
    unknown = {
        node.target
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and node.target.namespace == "aten"
        and str(node.target) not in ROWS
        and not draws(node)
        and all("Tensor" in str(result.type) for result in node.target._schema.returns)
    }
    if not unknown:
        return {}
    known = torch.export.default_decompositions()
    return {target: known[target] for target in unknown if target in known}


def draws(node: fx.Node) -> bool:
    """Whether a node draws random numbers; a dropout that was traced in evaluation mode does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    for name, rest in (("train", False), ("training", False), ("dropout_p", 0.0)):
        try:
            if argument(node, name) == rest:
                return False
        except KeyError:
            continue
    return True


def _failure(model: torch.nn.Module, error: Exception) -> str:
    what = f"torch.export cannot trace '{type(model).__name__}': {_line(error)}"
    if "data-dependent" in str(error):
        frames = _CALLER.findall(str(error))
        place = f" at {PurePath(frames[-1][0]).name} line {frames[-1][1]}" if frames else ""
        return (
            f"{what}; a size or a branch depends on the values of a tensor{place}: take it from Python numbers or "
            "from shapes there, or pass an ExportedProgram of your own"
        )
    if found := _VIOLATED.findall(str(error)):
        return (
            f"torch.export cannot trace '{type(model).__name__}' with these dynamic_shapes: "
            f"{'; '.join(text.rstrip('.') for text in found)}; take bounds for which that holds (Dim(name, min=..., "
            "max=...)), or Dim.AUTO"
        )
    if output := _UNKNOWN_OUTPUT.search(str(error)):
        return (
            f"torch.export cannot trace '{type(model).__name__}': it returns a '{output[1]}', whose tensors it cannot "
            f"find; call torch.export.register_dataclass({output[1]}) before, or return a tuple or a dict"
        )
    return (
        f"{what}; check that it runs on the example inputs, that no 'if' depends on values, and that dynamic_shapes "
        "fit; or pass an ExportedProgram of your own"
    )


_VIOLATED = re.compile(r"^ *- (Not all values of .*)$", re.MULTILINE)
_UNKNOWN_OUTPUT = re.compile(r"Found <class '(?:[^']*\.)?(\w+)'> in output")
_CALLER = re.compile(r'File "([^"]+)", line (\d+), in')


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def normal_form(program: ExportedProgram, example: Example) -> tuple[fx.Graph, dict[str, Any]]:
    """The program's graph in normal form, and what its ``get_attr`` nodes stand for, under the user's names."""
    with quiet():
        module = program.module(check_guards=False)
    graph = module.graph
    tensors = {str(node.target): attribute(module, str(node.target)) for node in graph.nodes if node.op == "get_attr"}
    annotate(graph, tensors, _shapes_seen(module, program.call_spec.in_spec, example))
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
        elif node.op == "call_function":
            _normalize(tensors, node)
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return graph, {name: tensor for name, tensor in tensors.items() if name in used}


class _Shapes(fx.Interpreter):
    """Runs a module and notes the shapes of what it computes."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, Any] = {}
        self.empty = False

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node."""
        result = super().run_node(n)
        if n.op == "call_function":
            self.empty |= any(
                isinstance(each, torch.Tensor) and not each.numel() for each in pytree.tree_leaves(result)
            )
            self.shapes[n] = pytree.tree_map_only(torch.Tensor, lambda tensor: tuple(tensor.shape), result)
        return result


def _shapes_seen(module: fx.GraphModule, in_spec: Any, example: Example) -> Mapping[fx.Node, Any]:
    """The shapes of all values on the example, if there are sizes that tracing does not know since values decide.

    None where the example leaves some values empty, of which rules could say nothing.
    """
    values = (value for node in module.graph.nodes for value in pytree.tree_leaves(node.meta.get("val")))
    if all(has_example(value) for value in values if isinstance(value, torch.Tensor)):
        return {}
    shapes = _Shapes(module)
    try:
        with quiet(), torch.no_grad():
            shapes.run(*fx._pytree.tree_flatten_spec(example, in_spec), enable_io_processing=False)
    except Exception:  # noqa: BLE001  (weights without values, say: then sizes stay unknown)
        return {}
    return {} if shapes.empty else shapes.shapes


_ATEN = torch.ops.aten
_READS = (_ATEN.item.default, _ATEN._local_scalar_dense.default)
_VIEWS = (_ATEN.view.default, _ATEN._unsafe_view.default)
_SPLITS = (
    _ATEN.split.Tensor,
    _ATEN.unsafe_split.Tensor,
    _ATEN.chunk.default,
    _ATEN.unsafe_chunk.default,
    _ATEN.tensor_split.sections,
    _ATEN.unsafe_split_with_sizes.default,
)
_SQUEEZES = (_ATEN.squeeze.default, _ATEN.squeeze.dim, _ATEN.squeeze.dims)


def _normalize(tensors: Mapping[str, Any], node: fx.Node) -> None:
    target = node.target
    if target is _ATEN._assert_tensor_metadata.default:
        node.graph.erase_node(node)
    elif target in _VIEWS:
        node.target = _ATEN.reshape.default
    elif target in _SPLITS:
        _split_by_sizes(node)
    elif target in _SQUEEZES:
        _squeeze_named(node)
    elif target is SLICE:
        _count_from_start(node)
    elif target is _ATEN.index.Tensor:
        run = run_of(tensors, node, {})
        if run is not None:
            node.target, node.args, node.kwargs = SLICE, (node.args[0], *run), {}
    elif target is _ATEN.index_put.default:
        _where(node)
    elif target is _ATEN.masked_scatter.default:
        _mask_as_made(node)


def _spec(node: Any) -> Spec:
    return cast("Spec", node.meta[SPEC])


def _split_by_sizes(node: fx.Node) -> None:
    at = argument(node, "dim")
    parts = cast("tuple[Spec, ...]", node.meta[SPEC])
    at %= len(_spec(node.args[0]).shape)
    if any(axis == at for part in parts for axis, _ in part.dynamic):
        return
    node.args = (node.args[0], [part.shape[at] for part in parts], at)
    node.kwargs = {}
    node.target = _ATEN.split_with_sizes.default


def _squeeze_named(node: fx.Node) -> None:
    shape = _spec(node.args[0]).shape
    named = argument(node, "dim") if node.target is not _ATEN.squeeze.default else list(range(len(shape)))
    at = [i % len(shape) for i in ([named] if isinstance(named, int) else named)] if shape else []
    node.args, node.kwargs = (node.args[0], [i for i in at if shape[i] == 1]), {}
    node.target = _ATEN.squeeze.dims


def _count_from_start(node: fx.Node) -> None:
    operand = _spec(node.args[0])
    at = argument(node, "dim") % len(operand.shape)
    start, stop, step = (argument(node, name) for name in ("start", "end", "step"))
    if any(axis == at for axis, _ in operand.dynamic) or any(isinstance(b, fx.Node) for b in (start, stop, step)):
        return
    size = operand.shape[at]
    first, last, step = slice(start, stop, step).indices(size)
    node.args, node.kwargs = (node.args[0], at, first, OPEN if last >= size else last, step), {}


def _mask_as_made(node: fx.Node) -> None:
    """Takes the mask of a scatter from before it was expanded, so that it shows which axes it does not tell apart."""
    x, mask, source = node.args
    while cast("fx.Node", mask).target in (_ATEN.expand.default, *_COPIES):
        mask = cast("fx.Node", mask).args[0]
    node.args = (x, mask, source)


def _where(node: fx.Node) -> None:
    """One number that is written where a mask says so (``x[x < 0] = 0``) as a choice element by element."""
    x, indices, value = node.args[:3]
    masks = [(axis, index) for axis, index in enumerate(cast("list[Any]", indices)) if index is not None]
    if len(masks) != 1 or _spec(masks[0][1]).dtype != "bool" or argument(node, "accumulate"):
        return
    (axis, mask), into, number = masks[0], _spec(x), _spec(value)
    if prod(number.shape) != 1 or len(number.shape) > 1 or number.dtype != into.dtype:
        return
    for _ in range(len(into.shape) - axis - len(_spec(mask).shape)):
        spec = _spec(mask)
        with node.graph.inserting_before(node):
            wider = node.graph.call_function(_ATEN.unsqueeze.default, (mask, -1))
        wider.meta = {**node.meta, SPEC: spec._replace(shape=(*spec.shape, 1))}
        mask = wider
    node.target, node.args, node.kwargs = _ATEN.where.self, (mask, value, x), {}


def run_of(
    tensors: Mapping[str, Any], node: fx.Node, constants: Mapping[fx.Node, str]
) -> tuple[int, int, int, int] | None:
    """Axis, start, stop and step of the slice that an index by consecutive known positions is (``x[:, [-2]]``).

    As an index it would keep its axis whole.

    Args:
        tensors: The stored tensors.
        node: A call of ``aten.index``.
        constants: Nodes that stored tensors have taken the place of.
    """
    indices = cast("list[Any]", node.args[1])
    chosen = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(chosen) != 1:
        return None
    at, index = chosen[0]
    while index not in constants and index.op == "call_function" and index.target in _COPIES:
        index = index.args[0]
    name = constants.get(index, str(index.target) if index.op == "get_attr" else "")
    if not name or any(axis == at for axis, _ in _spec(node.args[0]).dynamic):
        return None
    value = tensors[name]
    if value.dim() != 1 or value.dtype in (torch.bool, torch.uint8) or value.is_meta or not 0 < value.numel() <= _RUN:
        return None
    size = _spec(node.args[0]).shape[at]
    first, last = int(value[0]) % size, int(value[-1]) % size + 1
    if last - first != len(value) or [i % size for i in value.tolist()] != list(range(first, last)):
        return None
    return at, first, OPEN if last >= size else last, 1


_COPIES = (_ATEN.clone.default, _ATEN.lift_fresh_copy.default, _ATEN.alias.default, _ATEN.detach.default)
_RUN = 1 << 16
"""Positions that are looked at: what is longer is a table."""
