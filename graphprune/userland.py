"""What users name as ``package.module:attribute``: imported from the current folder too, with their errors told."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from graphprune.errors import GraphpruneError
from graphprune.suggest import meant


def is_object_name(text: str) -> bool:
    """Whether a text looks like ``package.module:attribute``."""
    module, colon, attribute = text.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


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
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise kind(f"cannot import '{module_name}' of {of} '{name}': {error}; expected {expected}") from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise kind(f"importing '{module_name}' raises {type(error).__name__}: {error}; mend the module") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        present = [each for each in vars(module) if each[0] != "_"]
        raise kind(f"module '{module_name}' has no {meant(attribute, present)}; expected {returns}") from error
    except (Exception, SystemExit) as error:  # a module may have a __getattr__ of its own
        raise kind(f"'{name}' raises {type(error).__name__}: {error}; mend the module") from error
