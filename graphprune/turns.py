"""One thread at a time: tracing and exporting PyTorch models changes state of the whole process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Holder:
    """What holds a model of the user's, so that whoever looks for one in the arguments of a call finds it."""

    model: Any


_turn = threading.RLock()
_changed = threading.Condition(_turn)


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


def waiting_out_of_turn(futures: Collection[Future[Any]]) -> None:
    """Waits until all are done; meanwhile others have their turn, who may be what does them, in threads."""
    with _changed:
        for future in futures:
            future.add_done_callback(_tell)
        while not all(future.done() for future in futures):
            _changed.wait(1.0)  # and looks again: an executor need not call back from a thread of this process


def _tell(future: Future[Any]) -> None:
    with _changed:
        _changed.notify_all()


def _is_onnx(model: Any) -> bool:
    """Whether a model is one that no framework is needed for."""
    model = model.model if isinstance(model, Holder) else model
    if isinstance(model, str | os.PathLike):
        return os.fspath(model).endswith(".onnx")
    return type(model).__name__ in ("ModelProto", "OnnxHost")
