"""Hard-concrete gates (Louizos et al. 2018, arXiv 1712.01312) with a Lagrangian (CoFi, Sheared LLaMA: 2310.06694).

``z = clamp(σ((log u - log(1 - u) + α)/β)(r - l) + l, 0, 1)`` with ``u`` uniform, ``l = -0.1``, ``r = 1.1`` and
``β = 2/3``; a gate is open with the probability ``1 - σ(β log(-l/r) - α)``. With ``s`` the expected fraction of the
cost (the project's cost model, a polynomial in the expected numbers of units) and ``t`` that of the schedule,
``λ₁ (s - t) + λ₂ (s - t)²`` is added to the loss; α falls along its gradient, λ rises. Towards a ``shape``, each group
has its own ``s``, ``t`` and ``λ``: the numbers of units that the allocation of the recipe gives. At the end of the
schedule the most probable units stay, and ``z`` without noise becomes part of their weights.

Proof: gradients of α and of the cost are those of autograd; the expected fraction comes to the target (tests/training).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphprune.errors import OptionError
from graphprune.planning.cost import CostFunction, Polynomial
from graphprune.training.gates import Gates
from graphprune.training.method import Loop, Method
from graphprune.training.units import Units

_LOW, _HIGH, _TEMPERATURE = -0.1, 1.1, 2 / 3


@dataclass(kw_only=True, repr=False)
class L0(Method):
    """Gates between 0 and 1 that are drawn, with probabilities that are learned.

    Attributes:
        towards: ``cost``: any numbers of units that cost what the target says; ``shape``: those of the allocation.
        rate: Of α and λ (Adam); 0: such that gates can close and open twice in the time of the schedule.
        initial: α at the begin.
    """

    name: ClassVar[str] = "l0"
    schedule: ClassVar[Mapping[str, Any]] = {"kind": "linear", "begin": 0.05, "end": 0.7}
    towards: str = "cost"
    rate: float = 0.0
    initial: float = 3.0

    def check(self) -> None:
        """Refuses options that mean nothing."""
        if self.towards not in ("cost", "shape") or self.rate < 0:
            raise OptionError(
                f"towards is '{self.towards}' and rate {self.rate:g}; expected 'cost' or 'shape', and at least 0"
            )

    def start(self, loop: Loop) -> None:
        """Gates are open, but for noise."""
        units = loop.units
        self.gates = Gates(units)
        if self.towards == "shape":
            kept = loop.chooser.choose(None, loop.chooser.fraction).to(units.dtype)
            self.tensors["shape"] = _by_group(units, kept) / _by_group(units, torch.ones_like(kept))
        parts = len(units.groups) if self.towards == "shape" else len(loop.chooser.targets)
        self.tensors["alpha"] = torch.full_like(units.zeros(), self.initial)
        self.tensors["lambdas"] = torch.zeros(2, parts, dtype=units.dtype, device=units.device)
        self._make_optimizer(loop)

    def before_step(self, loop: Loop) -> None:
        """α and λ move."""
        if loop.over:
            return
        slope = self.gates.gradient()
        self.gates.release()
        alpha, lambdas = (self.tensors[name].clone().requires_grad_() for name in ("alpha", "lambdas"))
        with torch.enable_grad():
            above = self._above(loop, alpha)
            penalty = (lambdas[0] * above + lambdas[1] * above.square()).sum()
            drawn = (drawn_gates(alpha, self._noise(loop)) * slope).sum()
            found = torch.autograd.grad(penalty + drawn, [alpha, lambdas])
        self.tensors["alpha"].grad, self.tensors["lambdas"].grad = found[0], -found[1]
        self._optimizer.step()
        self.tensors["lambdas"][1].clamp_min_(0.0)

    def after_step(self, loop: Loop) -> None:
        """Gates are drawn anew."""
        if loop.over:
            return
        if loop.due and loop.step >= loop.schedule.last:
            self._keep(loop)
            return
        self.gates.apply(drawn_gates(self.tensors["alpha"], self._noise(loop)))

    def scores(self, loop: Loop) -> Tensor | None:
        """How probable gates are."""
        return probability(self.tensors["alpha"])

    def finish(self, loop: Loop) -> None:
        """Gates become part of the weights."""
        if not loop.over:
            self.gates.release()
            self._keep(loop)

    def _keep(self, loop: Loop) -> None:
        alive = self.last(loop)
        values = drawn_gates(self.tensors["alpha"], torch.full_like(self.tensors["alpha"], 0.5))
        loop.units.multiply_(loop.units.gated, torch.where(alive & (values > 0), values, torch.ones_like(values)))
        loop.remove(alive, over=True)

    def _noise(self, loop: Loop) -> Tensor:
        """Of the gates that are drawn after this step; none before the schedule begins."""
        if loop.step < loop.schedule.first:
            return torch.full_like(self.tensors["alpha"], 0.5)
        found = torch.rand(loop.units.n, generator=loop.generator(), dtype=torch.float64)
        return found.clamp(1e-6, 1 - 1e-6).to(self.tensors["alpha"])

    def _above(self, loop: Loop, alpha: Tensor) -> Tensor:
        """How much more is expected to remain than the schedule allows, for each target or group."""
        units, remaining = loop.units, loop.remaining()
        gone = (1 - remaining) / max(1 - loop.chooser.fraction, 1e-12)
        share = _by_group(units, probability(alpha)) / _by_group(units, torch.ones_like(alpha))
        if self.towards == "shape":
            return share - (1 - gone * (1 - self.tensors["shape"]))
        model = loop.chooser.costs
        counts = _all_counts(units, share, model.full)
        found = []
        for target in loop.chooser.targets:
            whole = model.cost(target.metric)
            limit = min(1.0, target.limit(whole) / whole)
            found.append(expected(model.functions[target.metric], counts) / whole - (1 - gone * (1 - limit)))
        return torch.stack(found)

    def _make_optimizer(self, loop: Loop) -> None:
        time = max(1, loop.schedule.last - loop.schedule.first)
        rate = self.rate or min(1.0, 8 * self.initial / time)
        self._optimizer = torch.optim.Adam([self.tensors["alpha"], self.tensors["lambdas"]], lr=rate)

    def state(self) -> dict[str, Any]:
        """With the gates and the state of their optimiser."""
        return {**super().state(), "gates": self.gates.state(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any], loop: Loop) -> None:
        """Takes up what :meth:`state` gave."""
        super().load(state, loop)
        self.gates.load(state["gates"])
        self._make_optimizer(loop)
        self._optimizer.load_state_dict(state["optimizer"])


def drawn_gates(alpha: Tensor, uniform: Tensor) -> Tensor:
    """Hard-concrete gates for some uniform numbers; with 0.5, those without noise."""
    raw = torch.sigmoid((torch.logit(uniform) + alpha) / _TEMPERATURE) * (_HIGH - _LOW) + _LOW
    return raw.clamp(0, 1)


def probability(alpha: Tensor) -> Tensor:
    """That a gate is not zero."""
    return torch.sigmoid(alpha - _TEMPERATURE * math.log(-_LOW / _HIGH))


def expected(function: CostFunction, counts: Tensor) -> Tensor:
    """A cost at numbers of units, with its gradient."""
    if isinstance(function, Polynomial):
        padded = torch.cat([counts, counts.new_ones(1)])
        coefficients = torch.from_numpy(function.coefficients).to(counts)
        found: Tensor = (coefficients * padded[torch.from_numpy(function.powers).to(counts.device)].prod(1)).sum()
        return found
    return _Difference.apply(counts, function)  # type: ignore[no-any-return, no-untyped-call]


class _Difference(torch.autograd.Function):
    """A cost that is no polynomial, with differences of one unit for a gradient."""

    @staticmethod
    def forward(ctx: Any, counts: Tensor, function: CostFunction) -> Tensor:
        """The cost."""
        at = counts.detach().cpu().double().numpy()
        here = function(at)
        slopes = []
        for i in range(len(at)):
            less = at.copy()
            less[i] -= 1
            slopes.append(here - function(less))
        ctx.save_for_backward(torch.tensor(slopes).to(counts))
        return counts.new_tensor(here)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        """Along the differences."""
        return slope * ctx.saved_tensors[0], None


def _by_group(units: Units, values: Tensor) -> Tensor:
    """Sums over the units of each group."""
    return values.new_zeros(len(units.groups)).index_add_(0, units.group.to(values.device), values)


def _all_counts(units: Units, share: Tensor, full: Any) -> Tensor:
    """Numbers of units of all groups of the analysis; those without gates are whole."""
    at = {group.name: i for i, group in enumerate(units.groups)}
    rows = [share[at[g.name]] * n if g.name in at else share.new_tensor(n) for g, n in _with(units, full)]
    return torch.stack(rows)


def _with(units: Units, full: Any) -> list[tuple[Any, float]]:
    return list(zip(units.analysis.groups, map(float, full), strict=True))
