"""Whose fault an unexpected exception is: that of an ONNX file which ONNX's own checker refuses, or ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import onnx

from graphprune.errors import BoundError, GraphpruneError, ModelError, first_line
from graphprune.turns import Holder

P = ParamSpec("P")
R = TypeVar("R")


def blamed(error: BaseException, models: Iterable[Any]) -> GraphpruneError | None:
    """The error to raise in place of an unexpected one, or ``None`` where it is a bug of ours.

    Args:
        error: What was raised.
        models: What was given as models: paths, ``onnx.ModelProto``, or anything else.
    """
    if isinstance(error, MemoryError):
        return BoundError("the memory of this machine is not enough; give smaller shapes, or use a larger machine")
    if not isinstance(error, Exception):  # such as sys.exit in a module's forward, or a panic of a library in Rust
        return ModelError(f"code of the model or of the data raises {type(error).__name__}: {error}; mend that code")
    for given in models:
        model = given.model if isinstance(given, Holder) else given
        is_file = isinstance(model, str | os.PathLike) and os.fspath(model).endswith(".onnx")
        if not is_file and not isinstance(model, onnx.ModelProto):
            continue
        where = f"'{os.fspath(model)}'" if is_file else "the model in memory"
        try:
            onnx.checker.check_model(os.fspath(model) if is_file else model, full_check=True)
        except Exception as reason:  # noqa: BLE001  (the checker raises what its parsers raise)
            return ModelError(
                f"{where} is not valid ONNX: {first_line(reason)}; export it again, or mend it until "
                "onnx.checker.check_model takes it"
            )
    return None


def blaming_models(function: Callable[P, R]) -> Callable[P, R]:
    """Turns unexpected exceptions that an invalid model in the arguments explains into errors that say so."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (GraphpruneError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            found = blamed(error, (*args, *kwargs.values()))
            if found is None:
                raise
            raise found from error

    return run
