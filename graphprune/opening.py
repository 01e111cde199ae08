"""From what a user has (a file, a module, the name of a factory) to a host."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from graphprune.data.batches import SAMPLES
from graphprune.errors import ModelError, OptionError
from graphprune.files import is_there
from graphprune.hosts.host import Array, Host
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.plugins import kind_of
from graphprune.suggest import in_module
from graphprune.user_code import load_object, raising_as

Shapes = Mapping[str, tuple[int, ...]]
Sizes = Mapping[str, int]


def open_host(
    model: Any,
    example_inputs: Any = None,
    *,
    shapes: Shapes | None = None,
    sizes: Sizes | None = None,
    trust: bool = False,
    dynamic_shapes: Any = None,
    stream: bool | None = None,
) -> Host:
    """Opens a model.

    Args:
        model: An ``.onnx`` file, an ``onnx.ModelProto``, ``"package.module:factory"``, a ``torch.nn.Module``, an
            ``ExportedProgram``, (with ``trust``) a ``.pt2`` file, the folder of a checkpoint of transformers, a host
            that is open already, or what a plug-in opens (:mod:`graphprune.hosts.plugins`).
        example_inputs: What a PyTorch model is called with: a tuple, a mapping of keyword arguments, or one tensor.
            For an ONNX file, arrays by the names of its inputs; those that are missing are random.
        shapes: Shapes of inputs by name: of dynamic axes of an ONNX file, or of the inputs of a factory's model.
        sizes: Sizes of symbols in the shapes of an ONNX file's inputs, by name: ``{"past": 5}``.
        trust: Whether a ``.pt2`` file or a checkpoint with code of its own may be loaded, which can run any code that
            its author put into it.
        dynamic_shapes: Which axes of the example inputs are dynamic, in the notation of ``torch.export.export``.
        stream: Whether the weights of a checkpoint's folder stay in their files; absent: where the memory that is free
            would not hold them.

    Raises:
        ModelError: The model cannot be read or traced.
        OptionError: Something is missing to open it.
    """
    for name, shape in (shapes or {}).items():
        if any(size < 1 for size in shape):
            raise OptionError(
                f"the shape {'x'.join(map(str, shape))} of input '{name}' holds nothing; expected sizes of 1 or more"
            )
    _require_sizes(model, sizes or {})
    given = {
        "example_inputs": example_inputs,
        "shapes": shapes,
        "dynamic_shapes": dynamic_shapes,
        "trust": trust,
    }
    if isinstance(model, str | os.PathLike):
        text = os.fspath(model)
        if text.endswith(".pt2"):
            return _torch_host(_load_program(Path(text), trust), None, None)
        if ":" in text and not is_there(Path(text)) and not text.endswith(".onnx"):
            built, inputs = _call_factory(text, shapes)
            return _torch_host(built, example_inputs if example_inputs is not None else inputs, dynamic_shapes)
        if not text.endswith(".onnx") and (kind := kind_of(model)):
            return kind.open(model, **given)
        if is_there(Path(text)) and Path(text).is_dir():
            if stream or (stream is None and outgrows_memory(Path(text))):
                return _streamed_host(Path(text), example_inputs, shapes, trust=trust)
            return _checkpoint_host(Path(text), example_inputs, shapes, dynamic_shapes, trust=trust)
        if stream:
            raise OptionError(f"'{text}' is no checkpoint's folder, and only the weights of one are streamed")
        _require_graph(text)
        return OnnxHost.load(Path(text), shapes, _arrays(example_inputs), sizes)
    if isinstance(model, OnnxHost) or type(model).__name__ in ("TorchHost", "CheckpointHost"):
        return cast("Host", model)
    if type(model).__name__ == "ModelProto":
        return OnnxHost.load(model, shapes, _arrays(example_inputs), sizes)
    if _is_torch(model):
        return _torch_host(model, example_inputs, dynamic_shapes)
    if kind := kind_of(model):
        return kind.open(model, **given)
    raise ModelError(
        f"cannot open a model of type '{type(model).__name__}'; expected the path of an .onnx file, "
        "'package.module:factory', an onnx.ModelProto, a torch.nn.Module or an ExportedProgram"
    )


def _require_sizes(model: Any, sizes: Sizes) -> None:
    """Refuses sizes that hold nothing, and sizes of a model whose axes have no names.

    Raises:
        OptionError: It is one of these.
    """
    if not sizes:
        return
    for name, size in sizes.items():
        if size < 1:
            raise OptionError(f"the size '{name}' is {size} and holds nothing; expected 1 or more")
    named = os.fspath(model).endswith(".onnx") if isinstance(model, str | os.PathLike) else False
    if not named and type(model).__name__ != "ModelProto":
        raise OptionError("only axes of an ONNX file have names; leave sizes out, or give shapes (shapes=, --shape)")


_WITHOUT_GRAPH = frozenset({".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl", ".pickle", ".h5", ".npz", ".gguf"})
"""How files end that hold weights, or a pickled module."""


def _require_graph(text: str) -> None:
    """Refuses what holds no graph to be pruned, with the way to one.

    Raises:
        ModelError: The text names a file of weights or a Python module.
    """
    path = Path(text)
    if path.suffix.lower() in _WITHOUT_GRAPH and not _begins_like_onnx(path):
        name = path.stem if path.stem.isidentifier() else "mymodels"
        raise ModelError(
            f"'{text}' is a file of weights, or of a pickled module, and has no graph that can be pruned; did you mean "
            f"a function that builds the model and loads them, such as '{name}:build', or the .onnx file that "
            "torch.onnx.export writes of it?"
        )
    words = text.split(".")
    source = Path(*words[:-1], f"{words[-1]}.py")
    if path.suffix == ".py":
        words, source = list(path.with_suffix("").parts), path
        words = words if all(map(str.isidentifier, words)) else [path.stem]
    elif is_there(path) or not (len(words) == 1 or is_there(source)) or not all(map(str.isidentifier, words)):
        return
    shown = " or ".join(f"'{'.'.join(words)}:{name}'" for name in in_module(source)[:3])
    shown = shown or f"a function that returns a model, such as '{'.'.join(words)}:build'"
    raise ModelError(
        f"'{text}' is no file of a model and names no function; did you mean {shown}? Expected the path of an .onnx "
        "file, or 'package.module:factory'"
    )


def _begins_like_onnx(path: Path) -> bool:
    """Whether a file begins with the first field of an ONNX model, its version."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"\x08"
    except OSError:
        return False


def require_samples(samples: int, calibration: Any) -> None:
    """Refuses a number of samples without data to take them from.

    Raises:
        OptionError: There are none.
    """
    if samples != SAMPLES and calibration is None:
        raise OptionError(
            "'samples' says how many calibration inputs are used, and there are none; did you mean "
            f"calibration='random' with samples={samples}, or data of yours (calibration=..., --calibration DATA)?"
        )


def _arrays(inputs: Any) -> dict[str, Array]:
    """Example inputs of an ONNX file."""
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping):
        raise OptionError(
            f"an ONNX file takes example inputs by name, got a '{type(inputs).__name__}'; "
            "pass a mapping from names of inputs to arrays"
        )
    return {name: np.asarray(array) for name, array in inputs.items()}


def layout_of(model: Any) -> object:
    """Where a PyTorch module holds its tensors, and of which types: what is traced is no longer the module where this
    has changed. Values do not count. ``None`` for anything else.
    """
    if not _is_torch(model) or not hasattr(model, "named_parameters") or type(model).__name__ == "ExportedProgram":
        return None
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return tuple((name, id(each), *_place(each)) for name, each in named)


def rebound(host: Host, model: Any, before: object, now: object) -> Host | None:
    """The host of a module that holds other tensors than it did, but of the same kinds; ``None`` if it is to be traced.

    Args:
        host: The module as it was.
        model: The module.
        before: Where its tensors were: :func:`layout_of`.
        now: Where they are.
    """
    if not (isinstance(before, tuple) and isinstance(now, tuple)) or host.kind != "torch":
        return None
    if [(name, *place[1:]) for name, _, *place in before] != [(name, *place[1:]) for name, _, *place in now]:
        return None
    from graphprune.hosts.torch.again import rebound as bound_again

    return bound_again(cast("Any", host), model)


def _place(tensor: Any) -> tuple[Any, ...]:
    try:
        return tensor.data_ptr(), str(tensor.dtype), tuple(tensor.shape)
    except RuntimeError:  # one that is made on the first call has none of these yet
        return ()


def _is_torch(model: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module | torch.export.ExportedProgram)


def _torch_host(model: Any, example_inputs: Any, dynamic_shapes: Any) -> Host:
    from graphprune.hosts.torch.host import TorchHost

    if example_inputs is None and type(model).__name__ != "ExportedProgram":
        raise OptionError(
            "a PyTorch model needs example inputs; pass example_inputs=(tensor, ...), let the factory return "
            "(model, example_inputs), or give --shape NAME=1x3x224x224 for each argument of forward"
        )
    return TorchHost.trace(model, example_inputs, dynamic_shapes)


def _require_config(folder: Path) -> None:
    """Refuses a folder that is no checkpoint.

    Raises:
        ModelError: It is none.
    """
    if not is_there(folder / "config.json"):
        raise ModelError(
            f"'{folder}' is a folder without a config.json; expected a checkpoint that save_pretrained of transformers "
            "has written, or the path of an .onnx file"
        )


def _checkpoint_host(
    folder: Path, example_inputs: Any, shapes: Shapes | None, dynamic_shapes: Any, *, trust: bool
) -> Host:
    """The model of a checkpoint's folder."""
    _require_config(folder)
    from graphprune.hosts.torch.checkpoints.reading import example_of, read_checkpoint

    model = read_checkpoint(folder, trust=trust)
    example = example_of(model, shapes) if example_inputs is None else example_inputs
    return _torch_host(model, example, dynamic_shapes)


def outgrows_memory(folder: Path) -> bool:
    """Whether a folder's files of weights take more than the memory that is free now; not where nobody says that."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        return sum(each.stat().st_size for each in folder.glob("*.safetensors")) > free
    except (OSError, ValueError, StopIteration):
        return False


def _streamed_host(folder: Path, example_inputs: Any, shapes: Shapes | None, *, trust: bool) -> Host:
    """The model of a checkpoint's folder, whose weights stay in their files."""
    _require_config(folder)
    from graphprune.hosts.checkpoint.host import CheckpointHost

    return CheckpointHost.open(folder, shapes, example_inputs, trust=trust)


def _call_factory(name: str, shapes: Shapes | None) -> tuple[Any, Any]:
    """Imports ``package.module:factory`` (from the current folder too), calls it, and finds the example inputs."""
    factory = load_object(
        name,
        ModelError,
        of="model",
        expected="'package.module:factory' or the path of an .onnx file",
        returns="a function that returns a model",
    )
    with raising_as(ModelError, f"'{name}'", "mend the factory"):
        built = factory() if callable(factory) and not _is_torch(factory) else factory
    model, inputs = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not _is_torch(model):
        raise ModelError(
            f"'{name}' returned a '{type(model).__name__}'; expected a torch.nn.Module or (module, example_inputs)"
        )
    if inputs is None and shapes:
        inputs = _random_inputs(model, shapes)
    return model, inputs


def _random_inputs(model: Any, shapes: Shapes) -> dict[str, Any]:
    """Random inputs by the names of ``forward``'s arguments; integers where the model begins with an embedding."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens = [m.num_embeddings for m in model.modules() if isinstance(m, torch.nn.Embedding)]

    def one(name: str, shape: Sequence[int]) -> torch.Tensor:
        if tokens and ("ids" in name or "token" in name):
            return torch.randint(0, min(tokens), tuple(shape), generator=generator)
        if "mask" in name:
            return torch.ones(tuple(shape), dtype=torch.int64)
        return torch.randn(tuple(shape), generator=generator)

    return {name: one(name, shape) for name, shape in shapes.items()}


def _load_program(path: Path, trust: bool) -> Any:
    if not trust:
        raise OptionError(
            f"'{path}' is an exported program, and loading one can run any code in it; "
            "pass --trust if you trust its author"
        )
    if not is_there(path) or not path.is_file():
        raise ModelError(f"no file '{path}'; give the path of an exported program")
    import torch

    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises many kinds for a broken archive
        raise ModelError(
            f"cannot load '{path}' as an exported program: {error}; write it with torch.export.save"
        ) from error
