"""What users name as ``package.module:attribute``: imported from the current folder too, with their errors told."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graphprune.errors import GraphpruneError
from graphprune.suggest import meant


def is_object_name(text: str) -> bool:
    """Whether a text looks like ``package.module:attribute``."""
    module, colon, attribute = text.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


@contextmanager
def raising_as(kind: type[GraphpruneError], what: str, advice: str) -> Iterator[None]:
    """Tells what code of the user's raises, which may be anything: the end of the process and its own kinds included.

    Args:
        kind: The error to raise.
        what: What is run: ``'nets:small'``.
        advice: What to do: ``mend the factory``.

    Raises:
        GraphpruneError: Of ``kind``; errors of ours, and an interrupt from the keyboard, pass through.
    """
    try:
        yield
    except (GraphpruneError, KeyboardInterrupt):
        raise
    except BaseException as error:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise kind(f"{what} raises {text}; {advice}") from error


def load_object(name: str, kind: type[GraphpruneError], *, of: str, expected: str, returns: str) -> Any:
    """Imports ``package.module:attribute``.

    Args:
        name: The name.
        kind: The error to raise.
        of: What it is for: ``model``.
        expected: What a user may write: ``'package.module:factory' or the path of an .onnx file``.
        returns: What the attribute should be: ``a function that returns a model``.

    Raises:
        GraphpruneError: Of ``kind``: it cannot be imported, or there is no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        with raising_as(kind, f"importing '{module_name}'", "mend the module"):
            module = importlib.import_module(module_name)
    except GraphpruneError as error:
        if isinstance(error.__cause__, ImportError):
            reason = error.__cause__
            raise kind(f"cannot import '{module_name}' of {of} '{name}': {reason}; expected {expected}") from reason
        raise
    with raising_as(kind, f"looking up '{attribute}' of '{module_name}'", "mend the module"):
        if hasattr(module, attribute):
            return getattr(module, attribute)
    present = [each for each in vars(module) if each[0] != "_"]
    raise kind(f"module '{module_name}' has no {meant(attribute, present)}; expected {returns}")
