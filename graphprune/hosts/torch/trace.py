"""From a user's module to a functional program: export without side effects."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from keyword import iskeyword
from pathlib import PurePath
from typing import Any, NamedTuple, cast

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from graphprune.errors import ModelError
from graphprune.hosts.torch.ops.table import ROWS
from graphprune.hosts.torch.quiet import quiet
from graphprune.hosts.torch.signatures import argument
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


_ATEN = torch.ops.aten
_READS = (_ATEN.item.default, _ATEN._local_scalar_dense.default)
