"""What a method of pruning while training is, and what it has to work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from graphprune.brief import brief
from graphprune.errors import OptionError
from graphprune.suggest import meant
from graphprune.training.schedule import Schedule
from graphprune.training.selection import Chooser
from graphprune.training.units import Units


class Loop:
    """Where a training loop stands, and what can be done to its units.

    Args:
        module: The module that is trained.
        chooser: Chooses units.
        schedule: When what goes.
        seed: Of all that is drawn.
        refit: How what reads units makes good what goes, where it does.

    Attributes:
        step: How many steps of the optimiser are done.
        alive: Which units have not gone for good, ``[n]`` of booleans.
        over: Whether the target is met by what is :attr:`alive`.
    """

    def __init__(self, module: nn.Module, chooser: Chooser, schedule: Schedule, seed: int = 0, refit: str = "") -> None:
        self.module, self.chooser, self.schedule, self.seed, self.refit = module, chooser, schedule, seed, refit
        self.step = 0
        self.alive = torch.ones(self.units.n, dtype=torch.bool, device=self.units.device)
        self.over = False
        self._held: dict[str, Tensor] = {}

    @property
    def units(self) -> Units:
        """All units."""
        return self.chooser.units

    @property
    def due(self) -> bool:
        """Whether something goes after this step."""
        return self.schedule.due(self.step)

    def remaining(self) -> float:
        """The fraction of the cost that may remain now."""
        return self.schedule.remaining(self.step, self.chooser.fraction)

    def choose(self, scores: Tensor | None = None, remaining: float | None = None, *, anew: bool = False) -> Tensor:
        """The units that stay, ``[n]``; see :meth:`graphprune.training.selection.Chooser.choose`.

        Args:
            scores: By which; ``None``: the criterion of the recipe, on the weights as they are.
            remaining: The fraction of the cost; ``None``: as the schedule has it now.
            anew: Whether units may be among them that have gone.
        """
        fraction = self.remaining() if remaining is None else remaining
        return self.chooser.choose(scores, fraction, None if anew else self.alive)

    def remove(self, alive: Tensor, *, over: bool = False) -> None:
        """From now on all weights of units that are not ``alive`` are zero, whatever the optimiser does.

        Args:
            alive: The units that stay, ``[n]`` of booleans.
            over: Whether that is all: the target is met.
        """
        if self.refit and bool((self.alive & ~alive).any()):
            with torch.no_grad():
                for name, value in self.chooser.refitted(alive, self.refit).items():
                    self.units.stored[name].copy_(value)
        self.alive, self.over = alive, over
        self._held = self.units.factors(self.units.places, alive.to(self.units.dtype))
        self.hold()

    def hold(self) -> None:
        """Puts zeros where units have gone."""
        if self._held:
            parameters = self.units.parameters
            with torch.no_grad():
                torch._foreach_mul_([parameters[n].data for n in self._held], list(self._held.values()))

    def generator(self, *more: int) -> torch.Generator:
        """Random numbers of this step alone: the same after a stop, and on every process."""
        seed = hash((self.seed, self.step, *more)) & 0x7FFFFFFF
        return torch.Generator(device="cpu").manual_seed(seed)


@dataclass(kw_only=True)
class Method:
    """A method: a dataclass whose fields are its options. A subclass says what it does at which time.

    The hooks are called in this order: :meth:`start` once; for each step :meth:`before_step` (gradients are there) and
    :meth:`after_step` (weights have moved); :meth:`finish` at the end. What changes while it runs is in
    :attr:`tensors` and :attr:`numbers`, which are stored and loaded with the pruner.

    This class itself chooses all units once, at the end of the schedule, by :meth:`scores`.
    """

    __repr__ = brief

    name: ClassVar[str] = ""
    schedule: ClassVar[Mapping[str, Any]] = {"kind": "once"}
    """Where its schedule differs from the default one."""

    def __post_init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.numbers: dict[str, float] = {}
        self.check()

    def check(self) -> None:
        """Refuses options that mean nothing."""

    def start(self, loop: Loop) -> None:
        """Before the first step."""

    def before_step(self, loop: Loop) -> None:
        """Between ``backward`` and the step of the optimiser: gradients may change."""

    def after_step(self, loop: Loop) -> None:
        """After the step of the optimiser."""
        if loop.due and not loop.over:
            self.remove(loop)

    def remove(self, loop: Loop) -> None:
        """Removes what has to go by now."""
        over = loop.step >= loop.schedule.last
        loop.remove(self.last(loop) if over else loop.choose(self.scores(loop)), over=over)

    def last(self, loop: Loop) -> Tensor:
        """The units that stay in the end."""
        return loop.choose(self.scores(loop), loop.chooser.fraction)

    def scores(self, loop: Loop) -> Tensor | None:
        """How important units are, ``[n]``; ``None``: as the criterion of the recipe says."""
        return None

    def finish(self, loop: Loop) -> None:
        """After the last step: what has not gone yet goes now; gates are made part of the weights."""
        if not loop.over:
            loop.remove(self.last(loop), over=True)

    def state(self) -> dict[str, Any]:
        """All that changes while it runs."""
        return {"tensors": {n: t.detach().clone() for n, t in self.tensors.items()}, "numbers": dict(self.numbers)}

    def load(self, state: Mapping[str, Any], loop: Loop) -> None:
        """Takes up what :meth:`state` gave."""
        device = loop.units.device
        self.tensors = {name: each.clone().to(device) for name, each in state["tensors"].items()}
        self.numbers = dict(state["numbers"])


def made(cls: type[Method], options: Mapping[str, Any]) -> Method:
    """A method with some options.

    Raises:
        OptionError: It has no such option, or one is of another type.
    """
    known = {each.name: each for each in fields(cls)}
    for name, value in options.items():
        if name not in known:
            some = f"expected one of {', '.join(known)}" if known else "it has none"
            raise OptionError(f"method '{cls.name}' has no option {meant(name, known)}; {some}")
        default = known[name].default
        kind: Any = (int, float) if type(default) is float else type(default)
        if not isinstance(value, kind) or (isinstance(value, bool) and type(default) is not bool):
            raise OptionError(f"option '{name}' of method '{cls.name}' is {value!r:.60}; expected one like {default!r}")
    return cls(**options)
