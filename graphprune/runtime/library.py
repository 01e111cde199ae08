"""onnxruntime itself, imported when something is run and not before: looking at a model needs none."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def onnxruntime() -> Any:
    """The module. Errors come as exceptions; its own log, which repeats them on stderr, is off."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    return ort
