"""Gates: a factor for each unit, on one cut through all ways that the unit has into the outputs.

A gate multiplies the columns of the weights that read its unit, which is the same as multiplying the unit's values
before each reader: no hook and no change of a forward. Between two steps of the optimiser the parameters hold
``W · m``; for the step itself they hold ``W``, so that the optimiser moves weights whose gates are closed too.

``∂L/∂m(u) = Σ W · ∂L/∂(W m)`` over the columns of ``u``, and ``∂L/∂W = m · ∂L/∂(W m)``: docs/methods.md, Pruning
while training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from graphprune.training.units import Place, Units

_LATENT = "latent "


class Gates:
    """Gates of all units. Units whose weights of the cut need no gradients have gates without gradients.

    Args:
        units: The units.
    """

    def __init__(self, units: Units) -> None:
        self.units = units
        self.values = torch.ones(units.n, dtype=units.dtype, device=units.device)
        self._latent: dict[str, Tensor] = {}
        self._factors: dict[str, Tensor] = {}

    @cached_property
    def _by_parameter(self) -> dict[str, list[Place]]:
        found: dict[str, list[Place]] = {}
        for place in self.units.gated:
            found.setdefault(place.name, []).append(place)
        return found

    def apply(self, values: Tensor) -> None:
        """Multiplies the parameters by their gates; they hold ``W`` before."""
        self.values = values.to(self.units.dtype)
        parameters = self.units.parameters
        self._factors = self.units.factors(self.units.gated, self.values)
        with torch.no_grad():
            self._latent = {name: parameters[name].detach().clone() for name in self._factors}
            if self._factors:
                torch._foreach_mul_([parameters[n].data for n in self._factors], list(self._factors.values()))

    def gradient(self) -> Tensor:
        """``∂L/∂m``, ``[n]``, from the gradients that the parameters have; zero where they have none."""
        with torch.no_grad():
            found = self.units.sums(self.units.gated, self._element, alike=False)
            return found.nan_to_num_(0.0, 0.0, 0.0)  # of a step that a scaler of gradients leaves out

    def release(self) -> None:
        """Puts ``W`` back, and makes the gradients those of ``W``."""
        parameters = self.units.parameters
        with torch.no_grad():
            for name, factor in self._factors.items():
                parameters[name].copy_(self._latent[name])
                if (gradient := parameters[name].grad) is not None:
                    gradient.mul_(factor)
        self._latent, self._factors = {}, {}

    def _element(self, place: Place) -> Tensor | None:
        """``W · ∂L/∂(W m)``, where ``W`` has the gates that other groups have on it."""
        parameter = place.parameter
        if parameter.grad is None:
            return None
        product = self._latent.get(place.name, parameter.detach()) * parameter.grad
        for other in self._by_parameter[place.name]:
            if other is not place and place.name in self._factors:
                product = product * self.units.at(other, self.values)
        return product

    def state(self) -> dict[str, Tensor]:
        """The gates and what is behind them."""
        return {"gates": self.values.clone(), **{_LATENT + n: each.clone() for n, each in self._latent.items()}}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what :meth:`state` gave; the parameters hold ``W · m``."""
        self.values = state["gates"].to(self.units.device)
        parameters = self.units.parameters
        self._latent = {
            name.removeprefix(_LATENT): each.clone().to(parameters[name.removeprefix(_LATENT)].device)
            for name, each in state.items()
            if name.startswith(_LATENT)
        }
        factors = self.units.factors(self.units.gated, self.values)
        self._factors = {name: each for name, each in factors.items() if name in self._latent}
