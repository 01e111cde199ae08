"""What -o names: an ONNX file or a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli import error_of

from graphprune.commands.bundles import Writing
from graphprune.errors import OptionError


@pytest.mark.parametrize(
    ("to", "model", "output", "folder"),
    [
        (None, "whole", "small", True),
        (None, "whole", "small.onnx", False),
        (None, "nets:build", "small", True),
        (None, "net.onnx", "small", False),
        ("hf", "whole", "small.v2", True),
        ("onnx", "whole", "small", False),
    ],
)
def test_a_file_or_a_folder(to: str | None, model: str, output: str, folder: bool) -> None:
    assert Writing(to=to).checkpoint(model, Path(output)) is folder


@pytest.mark.parametrize(
    ("to", "model", "message"),
    [
        ("tf", "whole", "--to is 'tf'; expected onnx or hf"),
        ("hf", "net.onnx",
         "an ONNX file has no config, and no checkpoint can be written of it; leave --to hf out"),
    ],
)  # fmt: skip
def test_what_cannot_be_written(to: str, model: str, message: str) -> None:
    with pytest.raises(OptionError) as error:
        Writing(to=to).checkpoint(model, Path("small"))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("model", "output", "what"),
    [("net.onnx", "small", "MODEL is none"), ("whole", "small.onnx", "-o has a suffix; give it none")],
)
def test_what_cannot_be_streamed(tmp_path: Path, model: str, output: str, what: str) -> None:
    if "." not in model:
        (tmp_path / model).mkdir()
    given = ("prune", tmp_path / model, "-o", tmp_path / output, "--stream", "--target", "params=0.5")
    expected = f"--stream takes the weights of a checkpoint's folder and writes another one, and {what}"
    assert error_of(*given) == expected
