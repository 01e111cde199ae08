"""Rows of operators with bodies: branches chosen at run time, loops, scans."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from graphprune.bounds import present
from graphprune.errors import BoundError
from graphprune.executor.ops.call import Call, RefusedError, listed

Tensor = torch.Tensor
_ENDLESS = 1 << 62


def branch(c: Call) -> tuple[Any, ...]:
    """``If``: only the branch that is taken is run."""
    return c.bodies["then_branch" if bool(c.x.reshape(-1)[0]) else "else_branch"]()


def loop(c: Call) -> tuple[Any, ...]:
    """``Loop``: so many times, or while its condition holds.

    Raises:
        BoundError: It goes on for longer than a run may.
    """
    body, states = c.bodies["body"], list(c.operands[2:])
    trips = _ENDLESS if c.at(0) is None else int(listed(c.need(0))[0])
    end = time.process_time() + present().seconds
    go = c.at(1) is None or bool(c.need(1))
    found: list[list[Tensor]] = [[] for _ in range(c.n_results - len(states))]
    trip = 0
    while go and trip < trips:
        if trip and time.process_time() > end:
            raise BoundError(
                f"a loop runs for more than {present().seconds} seconds; allow more with --bound seconds=N"
            )
        condition, *values = body(torch.tensor(trip), torch.tensor(go), *states)
        go, trip = bool(condition), trip + 1
        states, shown = values[: len(states)], values[len(states) :]
        for each, value in zip(found, shown, strict=False):
            each.append(value)
    if trip == 0 and found:
        raise RefusedError("a loop that is not run has no results whose sizes are known")
    return *states, *(torch.stack(each) for each in found)


def scan(c: Call) -> tuple[Any, ...]:
    """``Scan`` along any axes, either way."""
    if c.opset < 9:
        raise RefusedError("a scan of opset 8, which has an axis of samples")
    body, n = c.bodies["body"], c.get("num_scan_inputs")
    states, scanned = list(c.operands[: len(c.operands) - n]), list(c.operands[len(c.operands) - n :])
    axes = c.get("scan_input_axes") or (0,) * n
    back = c.get("scan_input_directions") or (0,) * n
    moved = [x.movedim(axis, 0) for x, axis in zip(scanned, axes, strict=True)]
    moved = [x.flip(0) if way else x for x, way in zip(moved, back, strict=True)]
    shown: list[list[Tensor]] = [[] for _ in range(c.n_results - len(states))]
    for step in zip(*moved, strict=True):
        values = body(*states, *step)
        states = list(values[: len(states)])
        for each, value in zip(shown, values[len(states) :], strict=True):
            each.append(value)
    axes = c.get("scan_output_axes") or (0,) * len(shown)
    back = c.get("scan_output_directions") or (0,) * len(shown)
    rows = [torch.stack(each[::-1] if way else each) for each, way in zip(shown, back, strict=True)]
    return *states, *(row.movedim(0, axis) for row, axis in zip(rows, axes, strict=True))


CONTROL: Mapping[str, Callable[[Call], Any]] = {"If": branch, "Loop": loop, "Scan": scan}
