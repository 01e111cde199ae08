"""Data sources by how much each has suffered: what LoRAShear calls dynamic recovery, for loops of the user's own.

A source whose loss is further above the dense model's is drawn from more often, and no source falls below a share of
its own, so that what is fine stays so (LoRAShear, Chen et al. 2023, arXiv 2310.18356, algorithm 5; the law is that of
DoReMi, Xie et al. 2023, arXiv 2305.10429, and of Sheared LLaMA, Xia et al. 2023, arXiv 2310.06694).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from graphprune.errors import OptionError


class Sources:
    """Shares of data sources, which follow what the pruned model has lost on each.

    Args:
        reference: The dense model's loss on samples of each source, by name.
        eta: How strongly shares follow the excess of losses.
        floor: This part of all is drawn from all sources alike.

    Attributes:
        shares: By name; their sum is 1.

    Example:
        >>> sources = Sources({"web": 3.0, "code": 2.0})
        >>> sources.update({"web": 3.1, "code": 3.1})
        >>> sources.shares["code"] > sources.shares["web"]
        True
    """

    def __init__(self, reference: Mapping[str, float], *, eta: float = 1.0, floor: float = 0.1) -> None:
        if not reference or not eta >= 0 or not 0 <= floor <= 1:
            raise OptionError(
                f"there are {len(reference)} sources, eta is {eta:g} and floor {floor:g}; expected some, 0 or "
                "more, and a fraction"
            )
        self._reference, self._eta, self._floor = dict(reference), eta, floor
        self.shares = dict.fromkeys(reference, 1 / len(reference))

    def update(self, losses: Mapping[str, float]) -> None:
        """Follows the losses of the pruned model as it is now, on the samples of the reference.

        Raises:
            OptionError: A source is missing, or its loss is no number.
        """
        for name in self._reference:
            if not np.isfinite(losses.get(name, np.nan)):
                raise OptionError(f"the loss of source '{name}' is {losses.get(name)}; give a number for each source")
        excess = np.array([max(0.0, losses[name] - self._reference[name]) for name in self._reference])
        logs = np.log(np.array(list(self.shares.values()))) + self._eta * excess
        shares = np.exp(logs - logs.max())
        shares = (1 - self._floor) * shares / shares.sum() + self._floor / len(shares)
        self.shares = dict(zip(self._reference, map(float, shares), strict=True))

    def draw(self, n: int, step: int, seed: int = 0) -> dict[str, int]:
        """How many of the ``n`` samples of a step are of each source; by its number alone."""
        counts = np.random.default_rng((seed, step)).multinomial(n, list(self.shares.values()))
        return dict(zip(self.shares, map(int, counts), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What changes."""
        return {"shares": dict(self.shares)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        self.shares = dict(state["shares"])
