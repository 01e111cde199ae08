"""Sums over the processes of ``torch.distributed``, each of which sees a part of the calibration data.

Where it is not initialised, or PyTorch is not there, a process is alone and sums stay as they are. All processes call
these in the same order.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def summed(array: NDArray[Any] | float) -> Float:
    """The sum of an array over all processes, in float64."""
    distributed = _distributed()
    if distributed is None:
        return np.asarray(array, np.float64)
    torch = sys.modules["torch"]
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.from_numpy(np.array(array, np.float64)).to(device)
    distributed.all_reduce(tensor)
    found: Float = tensor.cpu().numpy()
    return found


def averaged(array: NDArray[Any] | float) -> Float:
    """The mean of an array over all processes."""
    distributed = _distributed()
    return np.asarray(array, np.float64) if distributed is None else summed(array) / distributed.get_world_size()


def alone() -> bool:
    """Whether there is no other process to sum with."""
    return _distributed() is None


def joint(digest: str) -> str:
    """A digest that all processes share, of those that they have of their parts, in hexadecimal digits."""
    if _distributed() is None:
        return digest
    parts = summed(np.frombuffer(bytes.fromhex(digest), np.uint8))
    return hashlib.sha256(parts.tobytes()).hexdigest()


def _distributed() -> Any:
    """``torch.distributed`` where there are several processes."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed if distributed.get_world_size() > 1 else None
