"""The writer of ONNX files, for all hosts: what is written is checked, and appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import onnx

from graphprune.errors import OutputError
from graphprune.files import require_plain, temporary_folder

EXTERNAL_BYTES = (1 << 31) - (1 << 27)
"""From this size of all tensors on, data goes to a file of its own: a protobuf message holds less than 2 GiB."""


def data_of(path: Path) -> Path:
    """Where the weights of a model lie that do not fit into its file."""
    return path.with_name(f"{path.name}.data")


def place(path: Path, write: Callable[[Path], None], judge: Callable[[Path], None]) -> None:
    """Writes a model, and what lies beside it, in a folder of its own, and moves it to its place if it is right.

    Args:
        path: The file.
        write: Writes the model to a path of the same name; data goes beside that.
        judge: Raises if the file at a path must not get there.

    Raises:
        OSError: It cannot be written.
        OutputError: Something that is no plain file is in the way.
    """
    with temporary_folder(path) as folder:
        write(folder / path.name)
        judge(folder / path.name)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            require_plain(path.parent / file.name)
            file.replace(path.parent / file.name)  # the model comes last: until then the old one is whole


def copied(source: Path, path: Path) -> None:
    """Writes a model that was checked to another place, as any other: what lay beside it comes into it if it fits.

    Raises:
        OutputError: It cannot be written.
    """

    def write(at: Path) -> None:
        model = onnx.load(source)
        size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        beside = size >= EXTERNAL_BYTES
        onnx.save(model, at, save_as_external_data=beside, location=data_of(at).name if beside else None)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place(path, write, lambda at: None)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error}") from error


def invalid(model: Path | onnx.ModelProto) -> Exception | None:
    """Why ONNX's checker, with strict inference, does not accept a model; ``None`` if it does."""
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model, full_check=True)
    except (onnx.checker.ValidationError, cast("Any", onnx).shape_inference.InferenceError) as error:
        return error
    return None
