"""Closed-form refits of one weighted sum (docs/methods.md, Refits).

A consumer of the pruned model computes ``y = W x + b`` from inputs ``x`` that have lost columns, and should compute
the target ``t`` of the dense model. With the residual ``r = t - y`` the best change ``(ΔW, Δb)`` is the regression of
``r`` on ``x``:

    none     nothing
    mean     Δb = E r                                                    (FLAP's mean shift)
    ols      ΔW = E[r xᵀ] E[x xᵀ]⁻¹                                      (ThiNet, OBC, ZipLM, OSSCAR)
    affine   ΔW = Cov(r, x) Cov(x)⁻¹,  Δb = E r - ΔW E x                 (CORP)

Where the inputs are those of the dense model these are the classical ones; where they come from the pruned prefix
they make good what earlier layers have lost as well. The ridge pulls ``ΔW`` to zero: to the weights as they were. How
far is right depends on how much data there is for how many inputs: :func:`chosen_ridge` tries it on data held apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import OptionError
from graphprune.statistics.distributed import summed
from graphprune.statistics.products import (
    Rows,
    centre_of,
    centred,
    product_of,
    square_of,
    total_of,
    uncentred,
)
from graphprune.suggest import meant

Float = NDArray[np.float64]

METHODS = ("none", "mean", "ols", "affine")
"""From nothing to the best: each adds to the one before, ``mean`` and ``ols`` are alternatives."""
AS_IS = "as-is"
"""``affine`` without new biases, for layouts: a layer that has none is refitted by ``ols``."""
ADDING = ("mean", "affine")
"""Methods that give a layer a bias where it has none."""
STEP, MOST_RIDGE = 10.0, 1e4
"""Larger ridges than those that were asked for are tried in such steps up to here, where weights hardly change."""
SILENT = 1e-2
"""Inputs that add less than this fraction of what a typical one adds are damped as if they added as much."""
NORMS = "bn"
"""What can be done instead: only the running statistics of batch normalisations are brought up to date."""


def require_method(method: str) -> None:
    """Refuses what is neither a method nor :data:`NORMS`.

    Raises:
        OptionError: It is not.
    """
    if method not in (*METHODS, AS_IS, NORMS):
        raise OptionError(
            f"unknown compensation {meant(method, (*METHODS, NORMS))}; expected one of {', '.join((*METHODS, NORMS))}"
        )


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

    def __add__(self, other: Residuals) -> Residuals:
        """The sums over the positions of both."""
        return Residuals(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def over_processes(self) -> Residuals:
        """The sums over the positions that all processes have seen."""
        found = {each.name: summed(getattr(self, each.name)) for each in fields(self) if each.name != "count"}
        return Residuals(count=int(summed(np.array(self.count))), **found)

    def add(self, x: Rows, r: Rows, t: Rows) -> None:
        """Counts positions in: ``x: [n, g, c]``, ``r`` and ``t: [n, g, o]``, in single or double precision."""
        if not len(x):
            return
        n = len(x)
        centres = [centre_of(each) for each in (x, r, t)]
        x_shift, r_shift, t_shift = (each.astype(np.float64) for each in centres)
        x_rest, r_rest, t_rest = np.zeros_like(self.x), np.zeros_like(self.r), np.zeros_like(self.t)
        for x_part, r_part, t_part in zip(*map(centred, (x, r, t), centres), strict=True):
            self.xx += product_of(x_part, x_part)
            self.rx += product_of(r_part, x_part)
            for square, rest, part in ((self.rr, r_rest, r_part), (self.tt, t_rest, t_part)):
                square += square_of(part)
                rest += total_of(part)
            x_rest += total_of(x_part)
        uncentred(self.xx, (x_shift, x_rest), (x_shift, x_rest), n)
        uncentred(self.rx, (r_shift, r_rest), (x_shift, x_rest), n)
        for square, rest, shift in ((self.rr, r_rest, r_shift), (self.tt, t_rest, t_shift)):
            square += shift * (2 * rest + n * shift)
        self.count += n
        self.x += x_rest + n * x_shift
        self.r += r_rest + n * r_shift
        self.t += t_rest + n * t_shift


@dataclass(frozen=True)
class Refit:
    """The change of a weighted sum, and what it does.

    Attributes:
        weight: ``ΔW``, ``[g, o, c]``.
        biases: ``Δb``, ``[g, o]``; one for each bias that the weight is used with.
        before: Expected squared residual before, as a fraction of the target's variance.
        after: The same with the change, on the positions that it was fitted to.
    """

    weight: Float
    biases: tuple[Float, ...]
    before: float
    after: float

    @property
    def bias(self) -> Float:
        """``Δb`` where there is one."""
        return self.biases[0]


def refit(sums: Residuals, method: str, ridge: float) -> Refit:
    """The best change of a method.

    Args:
        sums: Over the positions of the calibration data.
        method: One of :data:`METHODS`.
        ridge: Damping of each input, relative to its variance.

    Raises:
        OptionError: There is no such method.
    """
    return refit_shared([sums], [method], ridge)


def refit_shared(
    parts: Sequence[Residuals], methods: Sequence[str], ridge: float, weight: Float | None = None
) -> Refit:
    """The best change of one weight that is used several times: the normal equations of all uses are added up.

    Args:
        parts: The sums of the uses; those that share a bias are one part.
        methods: For each part one of :data:`METHODS`: ``affine`` and ``mean`` change its bias. Either all of them
            change the weight or none does.
        ridge: Damping of each input, relative to its variance.
        weight: The weight that changes, ``[g, o, c]``: then inputs that hardly vary are damped more (:func:`floors`).

    Raises:
        OptionError: There is no such method.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise OptionError(f"unknown compensation '{unknown[0]}'; expected one of {', '.join(METHODS)}")
    xx, rx = np.zeros_like(parts[0].xx), np.zeros_like(parts[0].rx)
    before = after = energy = 0.0
    for sums, method in zip(parts, methods, strict=True):
        n = max(1, sums.count)
        before += float(sums.rr.sum())
        energy += float((sums.tt - sums.t**2 / n).sum())
        if method in ("mean", "affine"):
            after -= float((sums.r**2).sum() / n)
        if method in ("ols", "affine"):
            xx += sums.xx
            rx += sums.rx
        if method == "affine":
            xx -= sums.x[:, :, None] * (sums.x[:, None, :] / n)
            rx -= sums.r[:, :, None] * (sums.x[:, None, :] / n)
    change = np.zeros_like(rx)
    after += before
    if "ols" in methods or "affine" in methods:
        change = regression(xx, rx, ridge, None if weight is None else floors(xx, weight))
        after += float(np.sum((change @ xx - 2 * rx) * change))
    biases = tuple(
        (sums.r - (change @ sums.x[:, :, None])[:, :, 0]) / max(1, sums.count)
        if method in ("mean", "affine")
        else np.zeros_like(sums.r)
        for sums, method in zip(parts, methods, strict=True)
    )
    energy = energy or 1.0
    return Refit(change, biases, before / energy, max(after, 0.0) / energy)


def chosen_ridge(
    fit: Sequence[Residuals],
    held: Sequence[Residuals],
    methods: Sequence[str],
    ridges: Sequence[float],
    weight: Float | None = None,
) -> float:
    """The ridge whose change, fitted to some positions, leaves the least squared residual at others.

    Args:
        fit: The sums that are fitted to, as for :func:`refit_shared`.
        held: The sums over other positions.
        methods: As for :func:`refit_shared`.
        ridges: What is tried. Where the last one of several is best, larger ones are, as long as they are better.
        weight: As for :func:`refit_shared`.
    """
    if len(ridges) == 1 or not {"ols", "affine"}.intersection(methods):
        return ridges[0]
    errors = [_left(held, refit_shared(fit, methods, ridge, weight)) for ridge in ridges]
    best = int(np.argmin(errors))
    if best < len(ridges) - 1:
        return ridges[best]
    ridge, error = ridges[-1], errors[-1]
    while ridge < MOST_RIDGE:
        more = _left(held, refit_shared(fit, methods, STEP * ridge, weight))
        if more >= error:
            break
        ridge, error = STEP * ridge, more
    return ridge


def _left(parts: Sequence[Residuals], change: Refit) -> float:
    """What a change leaves of the squared residuals, less what they were."""
    left = 0.0
    for sums, bias in zip(parts, change.biases, strict=True):
        shift = (change.weight @ sums.x[:, :, None])[:, :, 0]
        left += float(np.sum((change.weight @ sums.xx - 2 * sums.rx) * change.weight))
        left += float(np.sum(bias * (2 * (shift - sums.r) + sums.count * bias)))
    return left


def floors(xx: Float, weight: Float) -> Float:
    """The least variance by which each input is damped, ``[g, c]``.

    An input that is silent on the data and speaks up on others (a unit behind a ReLU) is not told by least squares from
    one of a small scale, and gets weights of any size. What a typical input adds to the results, with the weights as
    they are, says the scale: a change of a weight by its own size counts as much as :data:`SILENT` of that, at least.

    Args:
        xx: Products of the inputs, ``[g, c, c]``.
        weight: ``[g, o, c]``.
    """
    squares = np.einsum("goc,goc->gc", weight, weight)
    typical = (squares * np.einsum("gcc->gc", xx)).mean(axis=1, keepdims=True)
    usual = np.median(squares, axis=1, keepdims=True)
    usual = SILENT * np.where(usual > 0, usual, squares.mean(axis=1, keepdims=True))  # weights of zero may grow
    found: Float = SILENT * typical / np.maximum(np.maximum(squares, usual), np.finfo(np.float64).tiny)
    return found


def regression(xx: Float, rx: Float, ridge: float, least: Float | None = None) -> Float:
    """``rx (xx + λ·diag(xx))⁻¹`` for each group: ``[g, c, c]``, ``[g, o, c]`` -> ``[g, o, c]``."""
    solved = np.linalg.solve(damped(xx, ridge, least), rx.transpose(0, 2, 1))
    return np.asarray(solved.transpose(0, 2, 1), np.float64)


def damped(xx: Float, ridge: float, least: Float | None = None) -> Float:
    """``xx + λ·diag(xx)``; columns that are always zero get a one, which leaves them alone.

    Each column is damped by its own variance, so that the scale of a unit does not matter, or by ``least`` (``[g, c]``)
    where that is more.
    """
    found = xx.copy()
    diagonal = np.einsum("gcc->gc", found)
    floor = np.finfo(np.float64).eps * found.shape[-1] * diagonal.mean(axis=1, keepdims=True)
    dead = diagonal <= np.maximum(floor, np.finfo(np.float64).tiny)
    diagonal += ridge * (diagonal if least is None else np.maximum(diagonal, least))
    diagonal[dead] += 1.0
    return found
