"""From what users give as data (paths, names, arrays, iterables) to samples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.data.images import of_folder
from graphprune.data.preprocess import Preprocess
from graphprune.data.samples import Pick, Samples, of_arrays, of_npy, of_npz
from graphprune.data.specs import InputSpec
from graphprune.data.streams import as_array, is_array, of_calls, of_iterable
from graphprune.data.text import of_text
from graphprune.errors import OptionError
from graphprune.files import is_there, require_plain_source
from graphprune.user_code import load_object, raising_as


def open_source(
    source: Any,
    specs: tuple[InputSpec, ...],
    limit: int,
    pick: Pick,
    tokenizer: Any,
    options: Preprocess,
    *,
    unit: int = 1,
) -> Samples:
    """The samples of a source, by what it is; with a ``unit`` above 1 items of iterables are calls."""
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        path = Path(text)
        if not is_there(path):
            return open_source(_called(text), specs, limit, pick, tokenizer, options, unit=unit)
        where = f"'{text}'"
        if path.is_dir():
            return of_folder(path, specs, where, options)
        require_plain_source(path, OptionError, "data", "give a file, or a folder of images")
        if path.suffix == ".npz":
            return of_npz(path, specs, where, pick)
        if path.suffix == ".npy":
            return of_npy(path, specs, where)
        return of_text(path, specs, where, tokenizer, options.length, pick)
    where = f"the given '{type(source).__name__}'"
    if isinstance(source, Mapping):
        return of_arrays({str(name): as_array(value) for name, value in source.items()}, specs, where)
    if is_array(source) and not isinstance(source, np.generic):
        if len(specs) != 1:
            raise OptionError(f"{where} is one array, the model takes {', '.join(map(str, specs))}; give a mapping")
        return of_arrays({specs[0].name: as_array(source)}, specs, where)
    if hasattr(source, "__iter__") or hasattr(source, "__getitem__"):
        if unit > 1:
            return of_calls(source, specs, where, limit, unit)
        return of_iterable(source, specs, where, limit, pick)
    raise OptionError(
        f"cannot read data from a '{type(source).__name__}'; expected the path of a file or folder, arrays or an "
        "iterable"
    )


def _called(name: str) -> Any:
    """What ``package.module:attribute`` is, or returns if it is a function."""
    found = load_object(
        name,
        OptionError,
        of="data",
        expected="'package.module:attribute' or the path of a file or folder",
        returns="data, or a function that returns them",
    )
    if hasattr(found, "__iter__") or hasattr(found, "__getitem__") or not callable(found):
        return found
    with raising_as(OptionError, f"'{name}'", "mend the function"):
        return found()
