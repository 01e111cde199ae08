"""The ladder of closed-form refits of one weighted sum (methods.md §1.4).

A consumer of the pruned model computes ``y = W x + b`` from inputs ``x`` that have lost columns, and should compute
the target ``t`` of the dense model. With the residual ``r = t - y`` the best change ``(ΔW, Δb)`` is the regression of
``r`` on ``x``:

    none     nothing
    mean     Δb = E r                                                    (FLAP's mean shift)
    ols      ΔW = E[r xᵀ] E[x xᵀ]⁻¹                                      (ThiNet, OBC, ZipLM, OSSCAR)
    affine   ΔW = Cov(r, x) Cov(x)⁻¹,  Δb = E r - ΔW E x                 (CORP)

Where the inputs are those of the dense model these are the classical rungs; where they come from the pruned prefix
they make good what earlier layers have lost as well. The ridge pulls ``ΔW`` to zero: to the weights as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import OptionError

Float = NDArray[np.float64]

RUNGS = ("none", "mean", "ols", "affine")
"""From nothing to the best: each adds to the one before, ``mean`` and ``ols`` are alternatives."""
NORMS = "bn"
"""What can be done instead: only the running statistics of batch normalisations are brought up to date."""


@dataclass
class Residuals:
    """Sums over positions of the inputs ``x: [g, c]``, residuals ``r: [g, o]`` and targets ``t: [g, o]``."""

    count: int
    x: Float
    xx: Float
    r: Float
    rx: Float
    rr: Float
    t: Float
    tt: Float

    @staticmethod
    def zeros(groups: int, columns: int, rows: int) -> Residuals:
        """No position yet."""
        flat = (groups, rows)
        return Residuals(
            0,
            np.zeros((groups, columns)),
            np.zeros((groups, columns, columns)),
            np.zeros(flat),
            np.zeros((groups, rows, columns)),
            np.zeros(flat),
            np.zeros(flat),
            np.zeros(flat),
        )

    def add(self, x: Float, r: Float, t: Float) -> None:
        """Counts positions in: ``x: [n, g, c]``, ``r`` and ``t: [n, g, o]``."""
        by_group, residual = x.transpose(1, 2, 0), r.transpose(1, 2, 0)
        self.count += len(x)
        self.x += x.sum(0)
        self.xx += by_group @ by_group.transpose(0, 2, 1)
        self.r += r.sum(0)
        self.rx += residual @ by_group.transpose(0, 2, 1)
        self.rr += np.einsum("ngo,ngo->go", r, r)
        self.t += t.sum(0)
        self.tt += np.einsum("ngo,ngo->go", t, t)


@dataclass(frozen=True)
class Refit:
    """The change of a weighted sum, and what it does.

    Attributes:
        weight: ``ΔW``, ``[g, o, c]``.
        bias: ``Δb``, ``[g, o]``.
        before: Expected squared residual before, as a fraction of the target's variance.
        after: The same with the change, on the positions that it was fitted to.
    """

    weight: Float
    bias: Float
    before: float
    after: float


def refit(sums: Residuals, rung: str, ridge: float) -> Refit:
    """The best change of a rung.

    Args:
        sums: Over the positions of the calibration data.
        rung: One of :data:`RUNGS`.
        ridge: Damping of each input, relative to its variance.

    Raises:
        OptionError: There is no such rung.
    """
    if rung not in RUNGS:
        raise OptionError(f"unknown compensation '{rung}'; expected one of {', '.join(RUNGS)}")
    n = max(1, sums.count)
    mean_x, mean_r = sums.x / n, sums.r / n
    xx, rx = sums.xx / n, sums.rx / n
    error = sums.rr.sum() / n
    weight, bias = np.zeros_like(rx), np.zeros_like(mean_r)
    after = error
    if rung == "mean":
        bias = mean_r
        after = error - np.sum(mean_r**2)
    elif rung in ("ols", "affine"):
        if rung == "affine":
            xx = xx - mean_x[:, :, None] * mean_x[:, None, :]
            rx = rx - mean_r[:, :, None] * mean_x[:, None, :]
        weight = regression(xx, rx, ridge)
        after = error - 2 * np.sum(weight * rx) + np.sum((weight @ xx) * weight)
        if rung == "affine":
            bias = mean_r - np.einsum("goc,gc->go", weight, mean_x)
            after -= np.sum(mean_r**2)
    energy = float((sums.tt / n - (sums.t / n) ** 2).sum()) or 1.0
    return Refit(weight, bias, float(error) / energy, float(max(after, 0.0)) / energy)


def regression(xx: Float, rx: Float, ridge: float) -> Float:
    """``rx (xx + λ·diag(xx))⁻¹`` for each group: ``[g, c, c]``, ``[g, o, c]`` -> ``[g, o, c]``."""
    solved = np.linalg.solve(damped(xx, ridge), rx.transpose(0, 2, 1))
    return np.asarray(solved.transpose(0, 2, 1), np.float64)


def damped(xx: Float, ridge: float) -> Float:
    """``xx + λ·diag(xx)``; columns that are always zero get a one, which leaves them alone.

    Each column is damped by its own variance, so that the scale of a unit does not matter.
    """
    found = xx.copy()
    diagonal = np.einsum("gcc->gc", found)
    floor = np.finfo(np.float64).eps * found.shape[-1] * diagonal.mean(axis=1, keepdims=True)
    dead = diagonal <= np.maximum(floor, np.finfo(np.float64).tiny)
    diagonal *= 1 + ridge
    diagonal[dead] += 1.0
    return found
