"""Low-rank additions to the linear layers of a module that is pruned while these alone are trained.

LoRA (Hu et al. 2021, arXiv 2106.09685): a layer computes ``W x + s B A x`` with W frozen. Rows of W and of B belong to
the units that the layer makes, columns of W and of A to those that it reads; the rank belongs to none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from graphprune.errors import ModelError, OptionError
from graphprune.training.method import Loop, Method
from graphprune.training.units import Place, Units


@dataclass(frozen=True, eq=False)
class Pair:
    """The additions to one layer.

    Attributes:
        weight: ``W``, ``[o, i]``.
        a: ``A``, ``[r, i]``.
        b: ``B``, ``[o, r]``.
        scale: ``s``.
    """

    weight: nn.Parameter
    a: nn.Parameter
    b: nn.Parameter
    scale: float

    def product(self) -> Tensor:
        """``s B A``, what the additions come to."""
        return self.scale * (self.b.detach() @ self.a.detach())


class Adapters:
    """The additions of a module, from when they are put into it until they are merged.

    Args:
        module: The module: its linear layers become those of peft; what is trained from now on are the additions.
        rank: Of each.
        alpha: The scale is ``alpha / rank``.
        seed: Of ``A``, which begins at random; ``B`` begins at zero.

    Attributes:
        pairs: By the name that the weight has in the module without additions.

    Raises:
        ModelError: There is no layer to add to.
        OptionError: The module has additions, or there is no peft.
    """

    def __init__(self, module: nn.Module, rank: int, alpha: float, seed: int = 0) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
            from peft.tuners.tuners_utils import BaseTunerLayer
        except ImportError as error:
            raise OptionError("methods with low-rank additions need peft; pip install peft") from error
        if any(isinstance(each, BaseTunerLayer) for each in module.modules()):
            raise OptionError("the module has low-rank additions already; merge them, the method puts in its own")
        names = [name for name, each in module.named_modules() if type(each) is nn.Linear and name]
        shared = _shared(module)
        names = [name for name in names if id(module.get_submodule(name).weight) not in shared]
        if not names:
            raise ModelError("the module has no linear layers of its own for low-rank additions; take another method")
        self._module = module
        self._asked = [(each, each.requires_grad) for each in module.parameters()]
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names)  # type: ignore[arg-type]
        with torch.random.fork_rng():  # every process, and a run that goes on, begins with the same additions
            torch.manual_seed(seed)
            inject_adapter_in_model(config, module)
        self._layers: dict[str, Any] = {name: module.get_submodule(name) for name in names}
        self.pairs = {f"{name}.weight": _pair(layer) for name, layer in self._layers.items()}
        saving: Any = module.register_state_dict_post_hook
        loading: Any = module.register_load_state_dict_pre_hook
        self._handles = saving(partial(self._without)), loading(partial(self._with))  # attributes are set on them

    def places(self, units: Units) -> Iterator[tuple[Place, Pair]]:
        """Where units lie in a layer with additions."""
        return ((each, self.pairs[each.name]) for each in units.places if each.name in self.pairs)

    def hold(self, units: Units, alive: Tensor) -> None:
        """Puts zeros into the additions where units have gone."""
        values = alive.to(units.dtype)
        with torch.no_grad():
            for place, pair in self.places(units):
                (pair.b if place.axis == 0 else pair.a).mul_(units.at(place, values))

    def merge(self) -> None:
        """What the additions have come to goes into the weights; they begin anew."""
        with torch.no_grad():
            for pair in self.pairs.values():
                pair.weight.add_(pair.product())
                pair.b.zero_()

    def thaw(self) -> None:
        """Weights get gradients as they did before; none is to be stepped along."""
        for parameter, requires in self._asked:
            parameter.requires_grad_(requires)

    def freeze(self) -> None:
        """From now on the additions alone get gradients."""
        for parameter, _ in self._asked:
            parameter.requires_grad = False
            parameter.grad = None

    def close(self) -> None:
        """Merges, and gives the module its layers back."""
        if not self._layers:
            return
        self.merge()
        for name, layer in self._layers.items():
            parent, _, last = name.rpartition(".")
            setattr(self._module.get_submodule(parent), last, layer.get_base_layer())
        vars(self._module).pop("peft_config", None)
        for handle in self._handles:
            handle.remove()
        self.thaw()
        self._layers = {}

    def _without(self, _: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        """The state of the module has the names that it has without additions; these are in that of the pruner."""
        for name in self._layers:
            for key in [key for key in state if key.startswith(f"{prefix}{name}.")]:
                value, last = state.pop(key), key.removeprefix(f"{prefix}{name}.")
                if last.startswith(_BASE):
                    state[f"{prefix}{name}.{last.removeprefix(_BASE)}"] = value

    def _with(self, _: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        """A state without additions is loaded as one with those that there are."""
        for name, layer in self._layers.items():
            for key, value in layer.state_dict().items():
                given = f"{prefix}{name}.{key.removeprefix(_BASE)}"
                state[f"{prefix}{name}.{key}"] = state.pop(given, value) if key.startswith(_BASE) else value

    def state(self) -> dict[str, Tensor]:
        """A and B of all layers."""
        return {
            f"{name}.{part}": getattr(pair, part).detach().clone() for name, pair in self.pairs.items() for part in "ab"
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what :meth:`state` gave."""
        with torch.no_grad():
            for name, pair in self.pairs.items():
                pair.a.copy_(state[f"{name}.a"])
                pair.b.copy_(state[f"{name}.b"])


_BASE = "base_layer."
"""Before the names of what a layer of peft wraps."""


def _pair(layer: Any) -> Pair:
    (name,) = layer.lora_A
    return Pair(
        layer.get_base_layer().weight, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    )


def _shared(module: nn.Module) -> set[int]:
    """Parameters that are used in several places: what is added in one of them is not added in the others."""
    seen: set[int] = set()
    twice: set[int] = set()
    for _, each in module.named_parameters(remove_duplicate=False):
        (twice if id(each) in seen else seen).add(id(each))
    return twice


@dataclass(kw_only=True, repr=False)
class LowRank(Method):
    """Units go once, by the criterion of the recipe, before the first step; then low-rank additions alone are trained.

    Attributes:
        rank: Of the additions.
        alpha: Their scale is ``alpha / rank``.
    """

    name: ClassVar[str] = "lora"
    rank: int = 8
    alpha: float = 16.0

    def check(self) -> None:
        """Refuses numbers that mean nothing."""
        if self.rank < 1 or not self.alpha > 0:
            raise OptionError(f"rank is {self.rank} and alpha {self.alpha:g}; expected 1 or more, and more than 0")

    def start(self, loop: Loop) -> None:
        """Removes what has to go, and puts the additions in.

        Raises:
            OptionError: A refit is asked for, and units go when the additions are there.
        """
        self.begin(loop)
        if loop.refit and not loop.over:
            raise OptionError(
                f"method '{self.name}' removes units from layers with low-rank additions, which learn what a refit "
                "would do; leave 'refit' out, or take method 'lora'"
            )
        self.adapters = Adapters(loop.module, self.rank, self.alpha, loop.seed)

    def begin(self, loop: Loop) -> None:
        """Before the additions are there."""
        loop.remove(self.last(loop), over=True)

    def state(self) -> dict[str, Any]:
        """With the additions."""
        return {**super().state(), "additions": self.adapters.state()}

    def load(self, state: Mapping[str, Any], loop: Loop) -> None:
        """With the additions."""
        super().load(state, loop)
        self.adapters.load(state["additions"])

    def after_step(self, loop: Loop) -> None:
        """Holds what has gone at zero in the additions, too."""
        super().after_step(loop)
        self.adapters.hold(loop.units, loop.alive)

    def finish(self, loop: Loop) -> None:
        """Merges the additions."""
        super().finish(loop)
        self.adapters.hold(loop.units, loop.alive)
        self.adapters.close()
        loop.hold()


def importance(adapters: Adapters, units: Units) -> Tensor:
    """LoRAPrune's score of each unit (Zhang et al. 2023, arXiv 2305.18403), ``[n]``, from the gradients of A and B.

    The gradient of W that is not there is taken to be ``(∇B A + B ∇A - ∇B ∇A)``, and ``|that ⊙ (W + s B A)|`` is summed
    over the row or column of a unit. Each matrix counts alike: its scores are over their norm. Units without additions
    have their own norm instead.
    """
    total, scored = units.zeros(), torch.zeros(units.n, dtype=torch.bool, device=units.device)
    made: dict[str, Tensor] = {}
    with torch.no_grad():
        for place, pair in adapters.places(units):
            if pair.a.grad is None or pair.b.grad is None:
                continue
            if place.name not in made:
                slope = pair.b.grad @ pair.a + pair.b @ pair.a.grad - pair.b.grad @ pair.a.grad
                made[place.name] = (slope * (pair.weight + pair.product())).abs()
            row = made[place.name].sum(1 - place.axis, dtype=units.dtype)
            own = torch.zeros(units.n + 1, dtype=units.dtype, device=units.device)
            own = own.index_add_(0, place.index.to(units.device), row.to(units.device))[: units.n]
            total += own / own.norm().clamp_min(1e-30)
            scored[place.index[place.index < units.n]] = True
    if bool(scored.all()):
        return total
    norms = units.squares(units.making).sqrt()
    return torch.where(scored, total, norms / norms.norm().clamp_min(1e-30))
