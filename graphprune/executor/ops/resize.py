"""Rows of resized pictures: along each axis, every result is a weighted sum of a few elements.

Which ones, and how much they weigh, follows from sizes alone, so that every mode of ONNX is computed as it is written,
and nothing but look-ups and sums has gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphprune.executor.ops.call import Call, RefusedError, along, listed

Tensor = torch.Tensor
Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Axis:
    """How one axis is resized: its sizes, its scale, and the region of interest."""

    size: int
    result: int
    scale: float
    region: tuple[float, float] = (0.0, 1.0)

    def places(self, mode: str) -> Float:
        """Where in the operand the elements of the result lie."""
        at = np.arange(self.result, dtype=np.float64)
        match mode:
            case "half_pixel":
                return np.asarray((at + 0.5) / self.scale - 0.5)
            case "tf_half_pixel_for_nn":
                return np.asarray((at + 0.5) / self.scale)
            case "pytorch_half_pixel":
                return np.asarray((at + 0.5) / self.scale - 0.5 if self.result > 1 else at * 0)
            case "asymmetric":
                return np.asarray(at / self.scale)
            case "align_corners":
                return np.asarray(at * (self.size - 1) / (self.result - 1) if self.result > 1 else at * 0)
            case "half_pixel_symmetric":
                adjusted = self.result / (self.scale * self.size)
                return np.asarray(self.size / 2 * (1 - adjusted) + (at + 0.5) / self.scale - 0.5)
            case "tf_crop_and_resize":
                start, end = self.region
                if self.result == 1:
                    return np.asarray(at * 0 + 0.5 * (start + end) * (self.size - 1))
                return np.asarray((start + at * (end - start) / (self.result - 1)) * (self.size - 1))
        raise RefusedError(f"the coordinates '{mode}'")


def _nearest(places: Float, mode: str) -> NDArray[np.int64]:
    match mode:
        case "round_prefer_floor":
            found = np.ceil(places - 0.5)
        case "round_prefer_ceil":
            found = np.floor(places + 0.5)
        case "floor":
            found = np.floor(places)
        case _:
            found = np.ceil(places)
    return np.asarray(found.astype(np.int64))


def _linear(x: Float) -> Float:
    return np.asarray(np.clip(1 - np.abs(x), 0, None))


def _cubic(a: float) -> Callable[[Float], Float]:
    def weight(x: Float) -> Float:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.asarray(np.where(x <= 1, near, np.where(x < 2, far, 0.0)))

    return weight


def _taps(c: Call, axis: _Axis, places: Float) -> tuple[NDArray[np.int64], Float]:
    """For each element of the result: which elements are added up, and their weights, ``[result, taps]``."""
    mode = c.get("mode", "nearest")
    if mode == "nearest":
        found = _nearest(places, c.get("nearest_mode", "round_prefer_floor"))
        return np.clip(found, 0, axis.size - 1)[:, None], np.ones((axis.result, 1))
    reach, kernel = (1, _linear) if mode == "linear" else (2, _cubic(c.get("cubic_coeff_a", -0.75)))
    scale = min(1.0, axis.scale) if c.get("antialias", 0) else 1.0
    first = int(np.floor(-reach / scale)) + 1
    base = np.floor(places)
    steps = np.arange(first, 2 - first if scale < 1 else reach + 1)
    taps = base[:, None] + steps[None]
    weights = kernel((taps - places[:, None]) * scale)
    inside = (taps >= 0) & (taps < axis.size)
    if c.get("exclude_outside", 0):
        weights = weights * inside
    if scale < 1 or c.get("exclude_outside", 0):
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(taps, 0, axis.size - 1).astype(np.int64), weights


def resize(c: Call) -> Tensor:
    """``Resize``, and ``Upsample`` of old opsets."""
    old = c.op == "Upsample" or c.opset < 11
    scales, sizes = (c.numbers("scales", 1), None) if old else (_given(c, 2), _given(c, 3))
    coordinates = "asymmetric" if old else c.get("coordinate_transformation_mode", "half_pixel")
    rank = c.x.ndim
    axes = [int(axis) % rank for axis in c.get("axes", range(rank))]
    given = _given(c, 1) if coordinates == "tf_crop_and_resize" else None
    y = c.x if c.x.dtype.is_floating_point else c.x.double()
    outside = torch.zeros(1, dtype=torch.bool)
    for n, each in enumerate(_axes(c, axes, scales, sizes, given)):
        if each.size == each.result and each.scale == 1 and coordinates != "tf_crop_and_resize":
            continue
        places = each.places(coordinates)
        call = Call(c.op, c.operands, {**c.attributes, **(_OLD if old else {})}, c.opset)
        indices, weights = _taps(call, each, places)
        if coordinates == "tf_crop_and_resize":
            beyond = (places < 0) | (places > each.size - 1)
            outside = outside | along(torch.from_numpy(beyond), rank, axes[n])
        y = _along(y, axes[n], indices, weights)
    if coordinates == "tf_crop_and_resize":
        y = torch.where(outside.to(y.device), torch.tensor(c.get("extrapolation_value", 0.0), dtype=y.dtype), y)
    return y.to(c.x.dtype) if y.dtype == c.x.dtype else y.round().to(c.x.dtype)


_OLD = {"nearest_mode": "floor"}


def _given(c: Call, operand: int) -> list[Any] | None:
    """The numbers of an operand that says nothing if it is empty."""
    found = c.at(operand)
    return None if found is None or found.numel() == 0 else listed(found)


def _axes(
    c: Call, axes: list[int], scales: list[Any] | None, sizes: list[Any] | None, given: list[Any] | None
) -> list[_Axis]:
    old = [c.x.shape[axis] for axis in axes]
    if sizes is not None:
        ratios = [size / was for size, was in zip(sizes, old, strict=True)]
        policy = c.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(old)
            sizes = [int(np.floor(ratio * was + 0.5)) for was in old]
        results = [int(size) for size in sizes]
    elif scales is not None:
        ratios = [float(scale) for scale in scales]
        results = [int(np.floor(np.float32(was) * np.float32(ratio))) for was, ratio in zip(old, ratios, strict=True)]
    else:
        raise RefusedError("neither scales nor sizes are given")
    regions = [(0.0, 1.0)] * len(old) if given is None else list(zip(given[: len(old)], given[len(old) :], strict=True))
    return [_Axis(*each) for each in zip(old, results, ratios, regions, strict=True)]


def _along(x: Tensor, axis: int, indices: NDArray[np.int64], weights: Float) -> Tensor:
    """The weighted sums along one axis."""
    total: Tensor | None = None
    for tap in range(indices.shape[1]):
        weight = torch.from_numpy(np.ascontiguousarray(weights[:, tap])).to(x.device, x.dtype)
        part = x.index_select(axis, torch.from_numpy(np.ascontiguousarray(indices[:, tap])).to(x.device))
        if indices.shape[1] == 1:
            return part
        part = part * along(weight, x.ndim, axis)
        total = part if total is None else total + part
    assert total is not None
    return total


RESIZES: Mapping[str, Callable[[Call], Any]] = {"Resize": resize, "Upsample": resize}
