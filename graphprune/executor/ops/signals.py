"""Rows of signals and geometry: Fourier transforms, grids, patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from graphprune.executor.ops.call import Call, RefusedError, listed
from graphprune.executor.tensors import TYPES

Tensor = torch.Tensor


def _complex(x: Tensor) -> Tensor:
    """Numbers of which the last axis holds the real part, and perhaps the imaginary one."""
    return torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0]


def fourier(c: Call) -> Tensor:
    """``DFT``, along an attribute's axis in old opsets, one- or two-sided, either way."""
    x = _complex(c.x)
    rank = c.x.ndim
    axis = c.get("axis", 1) if c.opset < 20 else (-2 if c.at(2) is None else int(listed(c.need(2))[0]))
    axis = axis % rank
    length = x.shape[axis] if c.at(1) is None else int(listed(c.need(1))[0])
    if c.get("inverse", 0):
        if c.get("onesided", 0):
            length = 2 * (x.shape[axis] - 1) if c.at(1) is None else length
            return torch.unsqueeze(torch.fft.irfft(x, length, axis), -1)
        return torch.view_as_real(torch.fft.ifft(x, length, axis))
    y = torch.fft.rfft(x, length, axis) if c.get("onesided", 0) else torch.fft.fft(x, length, axis)
    return torch.view_as_real(y)


def short_fourier(c: Call) -> Tensor:
    """``STFT``: windows of a signal, each transformed."""
    step, window = int(listed(c.need(1))[0]), c.at(2)
    size = int(listed(c.need(3))[0]) if c.at(3) is not None else len(c.need(2))
    x = _complex(c.x if c.x.ndim == 3 else c.x.unsqueeze(-1))
    frames = x.unfold(1, size, step)
    frames = frames if window is None else frames * window
    if c.get("onesided", 1) and not frames.is_complex():
        return torch.view_as_real(torch.fft.rfft(frames))
    return torch.view_as_real(torch.fft.fft(frames))


def mel_weights(c: Call) -> Tensor:
    """``MelWeightMatrix``: triangles between frequencies that are evenly spaced on the mel scale."""
    bins, length, rate, low, high = (listed(c.need(i))[0] for i in range(5))
    n = length // 2 + 1
    limits = [2595 * np.log10(1 + edge / 700) for edge in (low, high)]
    step = (limits[1] - limits[0]) / (bins + 2)
    hertz = 700 * (10 ** ((np.arange(bins + 2) * step + limits[0]) / 2595) - 1)
    edges = ((length + 1) * hertz // rate).astype(int)
    found = np.zeros((n, bins))
    for i in range(bins):
        first, middle, last = edges[i : i + 3]
        if middle == first:
            found[middle, i] = 1
        else:
            for j in range(first, middle + 1):
                found[j, i] = (j - first) / (middle - first)
        for j in range(middle, last):
            found[j, i] = (last - j) / (last - middle)
    return torch.from_numpy(found).to(TYPES[c.get("output_datatype", 1)])


_MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}


def grid_sample(c: Call) -> Tensor:
    """``GridSample`` of pictures and volumes."""
    mode = _MODES[c.get("mode", "linear" if c.opset >= 20 else "bilinear")]
    if mode == "bicubic" and c.x.ndim != 4:
        raise RefusedError("volumes sampled by cubic interpolation")
    padding, corners = c.get("padding_mode", "zeros"), bool(c.get("align_corners", 0))
    return functional.grid_sample(c.x, c.need(1).to(c.x.dtype), mode, padding, corners)


def affine_grid(c: Call) -> Tensor:
    """``AffineGrid``."""
    return functional.affine_grid(c.x, listed(c.need(1)), bool(c.get("align_corners", 0)))


def _pair(values: Sequence[Any]) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def patches(c: Call) -> Tensor:
    """``Col2Im`` of pictures: patches that are added up where they lie."""
    size, block = listed(c.need(1)), listed(c.need(2))
    n = len(size)
    if n != 2:
        raise RefusedError(f"patches over {n} axes")
    dilations, strides = c.get("dilations") or (1,) * n, c.get("strides") or (1,) * n
    pads = c.get("pads") or (0,) * (2 * n)
    whole = [size[i] + pads[i] + pads[n + i] for i in range(n)]
    y = functional.fold(c.x, _pair(whole), _pair(block), _pair(dilations), 0, _pair(strides))
    return y[..., pads[0] : pads[0] + size[0], pads[1] : pads[1] + size[1]]


SIGNALS: Mapping[str, Callable[[Call], Any]] = {
    "DFT": fourier,
    "STFT": short_fourier,
    "MelWeightMatrix": mel_weights,
    "GridSample": grid_sample,
    "com.microsoft::GridSample": grid_sample,
    "AffineGrid": affine_grid,
    "Col2Im": patches,
    "Det": lambda c: torch.linalg.det(c.x),
    "com.microsoft::Inverse": lambda c: torch.linalg.inv(c.x),
}
