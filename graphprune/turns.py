"""One thread at a time: tracing and exporting PyTorch models changes state of the whole process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Holder:
    """What holds a model of the user's, so that whoever looks for one in the arguments of a call finds it."""

    model: Any


_turn = threading.RLock()


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """Lets calls wait for each other, those of one thread aside, unless the model (the first argument) is an ONNX one.

    ``torch.export`` and the ONNX exporter patch modules, warnings, logs and standard streams while they run.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if _is_onnx(next(iter((*args, *kwargs.values())), None)):
            return function(*args, **kwargs)
        with _turn:
            return function(*args, **kwargs)

    return run


def _is_onnx(model: Any) -> bool:
    """Whether a model is one that no framework is needed for."""
    model = model.model if isinstance(model, Holder) else model
    if isinstance(model, str | os.PathLike):
        return os.fspath(model).endswith(".onnx")
    return type(model).__name__ in ("ModelProto", "OnnxHost")
