"""Passes over large arrays at the speed of memory: in blocks that stay in the cache, on all cores."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T")

_THREAD = threading.local()

BLOCK = 1 << 17
"""Elements of a block: it stays in the cache from one operation to the next, and calls take little beside it."""


def cores() -> int:
    """How many threads to use: the cores that this process may run on, or fewer if ``OMP_NUM_THREADS`` says so."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(asked)) if asked.isdecimal() and int(asked) else allowed


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay: what a new one sets up takes longer than its part of a small model."""
    return ThreadPoolExecutor(max(1, cores() - 1), thread_name_prefix="graphprune")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def on_all_cores(function: Callable[[_T], object], sizes: Mapping[_T, int]) -> None:
    """Calls a function once for each item, given with its number of elements, in no certain order.

    Large items are shared among all cores, the largest first; what is no larger than a block is not worth a thread.
    Only what runs outside the interpreter's lock gains by this, as NumPy's loops over large arrays do.
    """
    for item, size in sizes.items():
        if size <= BLOCK:
            function(item)
    pending = sorted([item for item, size in sizes.items() if size > BLOCK], key=sizes.__getitem__)

    def work() -> None:
        while pending:
            try:
                item = pending.pop()
            except IndexError:  # another thread was faster
                return
            function(item)

    others = min(cores(), len(pending)) - 1
    if others < 1:
        work()
        return
    running = [_pool().submit(work) for _ in range(others)]
    try:
        work()
    finally:
        wait(running)
    for thread in running:
        thread.result()


def scratch(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array to write into. Up to a block its memory belongs to the thread: the next call has it again."""
    if prod(shape) * np.dtype(dtype).itemsize > BLOCK * 8:
        return np.empty(shape, dtype)
    if not hasattr(_THREAD, "memory"):
        _THREAD.memory = np.empty(BLOCK * 8, np.uint8)
    return np.ndarray(shape, dtype, _THREAD.memory)


def cut_shape(shape: tuple[int, ...], axes: Mapping[int, NDArray[np.int64]]) -> tuple[int, ...]:
    """The shape of an array of which only some positions of some axes are taken."""
    return tuple([len(axes[axis]) if axis in axes else size for axis, size in enumerate(shape)])


def cut(array: NDArray[Any], axes: Mapping[int, NDArray[np.int64]], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Takes positions of some axes, in the order given.

    Args:
        array: The array.
        axes: For some axes, the positions; all of them exist.
        out: Where the result goes, contiguous; otherwise it is a new array.
    """
    if out is None:
        out = np.empty(cut_shape(array.shape, axes), array.dtype)
    if len(axes) == 1 or array.size <= BLOCK:
        *first, last = sorted(axes)
        for axis in first:
            array = array.take(axes[axis], axis)
        return array.take(axes[last], last, out=out, mode="clip")  # this mode writes to 'out' without a copy
    array = np.ascontiguousarray(array)  # 'take' would copy the whole array for every block
    rows = axes.get(0)
    *inner, last = sorted(axis for axis in axes if axis)
    n = max(1, BLOCK // max(1, prod(array.shape[1:])))
    taken = scratch((n, *array.shape[1:]), array.dtype)
    for start in range(0, len(out), n):
        end = min(start + n, len(out))
        if rows is None:
            block = array[start:end]
        else:
            block = array.take(rows[start:end], 0, out=taken[: end - start], mode="clip")
        for axis in inner:
            block = block.take(axes[axis], axis)
        block.take(axes[last], last, out=out[start:end], mode="clip")
    return out


def digest_of(dtype: str, shape: Sequence[int], data: bytes | memoryview) -> str:
    """A hash of a stored tensor: of its type, its shape and its bytes, so that one bit more or less is another one.

    Args:
        dtype: The element type as NumPy names it (``float32``, ``bfloat16``, ...).
        shape: The shape.
        data: The elements in row-major order, little-endian, as ONNX stores them.
    """
    digest = hashlib.sha256(f"{dtype}:{list(map(int, shape))}:".encode())
    digest.update(data)
    return digest.hexdigest()
