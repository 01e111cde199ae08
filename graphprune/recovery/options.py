"""How a pruned model is trained: the options of recovery, once for recipes, the pass, functions and the stage itself.

They know no framework: recipes are written and checked without one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from graphprune.defaults import MEMORY, PRECISIONS, TRAINED
from graphprune.errors import OptionError


def _one_of(default: str, choices: tuple[str, ...], metavar: str) -> Any:
    return field(default=default, metadata={"choices": choices, "metavar": metavar})


@dataclass(frozen=True, kw_only=True)
class Recovering:
    """How a pruned model is trained.

    Attributes:
        steps: Steps of training; 0 for 300 to 1500, the fewer the larger the model is.
        minutes: Train at most so long; 0 for as long as the steps take.
        rate: The learning rate; 0 for the one that inputs kept apart like best.
        weights: Which weights are trained. ``biases`` are those of norms, too; low-rank additions to linear
            layers (``lora``) are merged in the end.
        rank: The rank of low-rank additions.
        precision: In which numbers the model is trained: ``auto`` computes large PyTorch models in bfloat16 where the
            machine does that fast. Weights and losses are float32 in any case.
        memory: What is kept for gradients. With ``blocks``, of repeated blocks only what goes into them: what is inside
            is computed twice.
    """

    steps: int = 0
    minutes: float = 0.0
    rate: float = 0.0
    weights: str = _one_of("all", TRAINED, "WHICH")
    rank: int = 16
    precision: str = _one_of("auto", PRECISIONS, "WHICH")
    memory: str = _one_of("all", MEMORY, "WHAT")

    def require_meaningful(self, prefix: str = "") -> None:
        """Refuses numbers and names that mean nothing.

        Args:
            prefix: What stands before the names of options where the user gives them.

        Raises:
            OptionError: One does not.
        """
        for name, known in (("weights", TRAINED), ("precision", PRECISIONS), ("memory", MEMORY)):
            if getattr(self, name) not in known:
                raise OptionError(f"unknown {prefix}{name} '{getattr(self, name)}'; expected one of {', '.join(known)}")
        for name in ("steps", "minutes", "rate"):
            if not 0 <= getattr(self, name) < 1e9:
                raise OptionError(f"{prefix}{name} is {getattr(self, name)}; expected 0 or more")
        if self.rank < 1:
            raise OptionError(f"{prefix}rank is {self.rank}; expected 1 or more")

    def training(self) -> dict[str, Any]:
        """The options by name, for another dataclass that has them."""
        return {each.name: getattr(self, each.name) for each in fields(Recovering)}
