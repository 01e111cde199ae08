"""The dense model as a teacher of the one that is pruned, whatever the loop's loss is.

The gradient of the distance of the outputs is added to the gradient that arrives at them in ``backward``: no line of
the loop changes, and it works where a forward computes its loss itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphprune.errors import OptionError
from graphprune.hosts.host import Runnable
from graphprune.importance.judge import Judge, judges_of
from graphprune.recovery.distance import Distance


class Teacher:
    """A copy of the dense model that answers the inputs of the loop.

    Args:
        module: The module that is trained, dense still.
        host: Its graph, which says which outputs are how compared.
        weight: What the distance counts in the loss.

    Raises:
        OptionError: The weight is no positive number, or the module cannot be copied.
    """

    def __init__(self, module: nn.Module, host: Runnable, weight: float) -> None:
        if not weight > 0:
            raise OptionError(f"distill is {weight:g}; expected what the distance to the dense model counts, above 0")
        try:
            self.module = copy.deepcopy(module)
        except Exception as error:
            raise OptionError(f"the module cannot be copied for a teacher: {error}; leave 'distill' out") from error
        self.module.eval().requires_grad_(requires_grad=False)
        self.weight = weight
        judges: Sequence[Judge] = judges_of(host.graph(), ())
        self._count = len(host.graph().outputs)
        self._distance = Distance(judges, [1.0] * len(judges))
        self._handle = module.register_forward_hook(self._answered, with_kwargs=True)
        self.last = 0.0
        """The distance in the last forward."""

    def _answered(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any) -> None:
        """After a forward of the module: the outputs get a gradient more, if they have any."""
        if not (module.training and torch.is_grad_enabled()):
            return
        own = self._outputs(made)
        if own and (device := own[0].device) != next((each.device for each in self.module.parameters()), device):
            self.module.to(device)
        with torch.no_grad():
            wanted = self._outputs(self.module(*args, **kwargs))
        loss, gradients = self._gradients(own, wanted)
        self.last = loss
        for output, gradient in zip(own, gradients, strict=True):
            if gradient is not None and output.requires_grad:
                output.register_hook(_adding(gradient))  # type: ignore[no-untyped-call]

    def _outputs(self, made: Any) -> list[Tensor]:
        """The tensors that a forward returns, as the graph has them: without a loss that comes with them here."""
        found = [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)]
        return found if len(found) == self._count else [leaf for leaf in found if leaf.ndim]

    def _gradients(self, own: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[float, list[Tensor | None]]:
        """The distance, and its gradient at each output."""
        with torch.enable_grad():
            free = [each.detach().requires_grad_(each.is_floating_point()) for each in own]
            loss = self._distance(free, wanted)
            judged = [each for each in free if each.requires_grad]
            found = torch.autograd.grad(self.weight * loss, judged, allow_unused=True)
        by_output = dict(zip(map(id, judged), found, strict=True))
        return float(loss.detach()), [by_output.get(id(each)) for each in free]

    def close(self) -> None:
        """Takes the hook off."""
        self._handle.remove()


def _adding(more: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda found: found + more.to(found.dtype)
