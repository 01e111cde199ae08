"""What a pruner is asked for beside a recipe: the method and its options, the schedule, the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from graphprune.errors import OptionError
from graphprune.recipe import Recipe
from graphprune.recipe.text import read_toml
from graphprune.training.method import Method, made
from graphprune.training.methods import METHODS
from graphprune.training.schedule import Schedule

REFITS = ("as-is", "ols", "bn")
_SCHEDULE = ("begin", "end", "every")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is pruned while it is trained.

    Attributes:
        method: One of :data:`graphprune.training.methods.METHODS`, or a :class:`graphprune.training.method.Method`.
        steps: How often the loop calls ``optimizer.step()``, in all.
        schedule: One of :data:`graphprune.training.schedule.KINDS`; absent: that of the method.
        begin: The fraction of the steps before anything is removed; absent: that of the method.
        end: The fraction of the steps after which the target is met; absent: that of the method.
        every: Steps from one removal to the next; absent: that of the method.
        distill: What the distance to the answers of the dense model counts beside the loop's own loss; 0: nothing.
        refit: When units go, what reads them is refitted on the calibration data so that little is lost: ``as-is``
            (weights, and biases where there are some), ``ols`` or ``bn``; absent: it is not.
        options: Of the method, by name.
    """

    method: str | Method = "iterative"
    steps: int = 0
    schedule: str | None = None
    begin: float | None = None
    end: float | None = None
    every: int | None = None
    distill: float = 0.0
    refit: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, source: Any, keywords: Mapping[str, Any]) -> tuple[Self, Recipe]:
        """The options and the recipe out of what a pruner is given.

        Args:
            source: A recipe, its name, its file, or a dictionary. Files and dictionaries may have a table ``training``
                with the fields of this class.
            keywords: Fields of this class and of recipes, before what ``source`` says.

        Raises:
            OptionError: Something is wrong with them.
        """
        names = {each.name for each in fields(cls)}
        own = {name: value for name, value in keywords.items() if name in names}
        rest = {name: value for name, value in keywords.items() if name not in names}
        if isinstance(source, Path) or (isinstance(source, str) and source.endswith(".toml")):
            source = read_toml(Path(source))
        if isinstance(source, Mapping):
            table = source.get("training", {})
            source = {name: value for name, value in source.items() if name != "training"}
            if unknown := next((name for name in table if name not in names), None):
                raise OptionError(f"training has no option '{unknown}'; expected one of {', '.join(sorted(names))}")
            own = {**table, **own}
        return cls(**own), Recipe.read(source, **rest)

    def made(self) -> tuple[Method, Schedule]:
        """The method, and the schedule that it has where nothing else is said.

        Raises:
            OptionError: One of them is not what it can be.
        """
        method = self.method
        if isinstance(method, Method):
            if self.options:
                raise OptionError("options are those of a method that is given by name; give them to the method itself")
        else:
            method = made(METHODS.find(method), self.options)
        how = dict(method.schedule)
        how.update({n: getattr(self, n) for n in _SCHEDULE if getattr(self, n) is not None})
        if self.schedule is not None:
            how["kind"] = self.schedule
        if self.refit not in ("", *REFITS):
            raise OptionError(
                f"refit is '{self.refit}'; expected one of {', '.join(REFITS)}, which give no layer a bias that it has "
                "not"
            )
        if not self.steps:
            raise OptionError("a pruner needs 'steps': how often the loop calls optimizer.step() in all")
        return method, Schedule(self.steps, **how)
