"""Tensors of ONNX files as tensors of PyTorch, and back, with the element types that NumPy does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from graphprune.errors import ModelError

TYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
}
"""Element types of ONNX that tensors have here; those of less than two bytes that are floats, strings and complex
numbers are not computed with.
"""


def tensor_of(array: NDArray[Any], name: str) -> torch.Tensor:
    """A tensor of its own with the values of an array.

    Args:
        array: The values.
        name: What to call it in messages.

    Raises:
        ModelError: PyTorch has no such element type.
    """
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise ModelError(
            f"tensor '{name}' has elements of type {array.dtype}, which PyTorch does not compute gradients with; "
            "give a model in floating point"
        ) from error


def array_of(tensor: torch.Tensor) -> NDArray[Any]:
    """The values of a tensor as an array, in its own type."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.array(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.array(tensor.numpy())
