"""Ways past the dispatcher: values that become numbers or arrays, and tensors that are given other memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from graphprune.hosts.torch.recording.recorder import Recorder


@contextmanager
def watching(recorder: Recorder) -> Iterator[None]:
    """Says of every ``numpy()`` and ``tolist()`` that it takes values out of sight, and refuses ``x.data = y``."""
    names = ("numpy", "tolist", "__dlpack__", "data")
    kept = {name: getattr(torch.Tensor, name) for name in names}
    own = {name: name in vars(torch.Tensor) for name in names}

    def watched(function: Any) -> Any:
        def run(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            recorder.leaks(tensor)
            return function(tensor, *args, **kwargs)

        return run

    def given(tensor: Any, memory: torch.Tensor) -> None:
        recorder.refused = recorder.refused or "a tensor is given other memory"
        kept["data"].__set__(tensor, memory)

    try:
        for name in names[:-1]:
            setattr(torch.Tensor, name, watched(kept[name]))
        torch.Tensor.data = property(kept["data"].__get__, given)  # type: ignore[assignment]
        yield
    finally:
        for name in names:
            if own[name]:
                setattr(torch.Tensor, name, kept[name])
            else:
                delattr(torch.Tensor, name)
