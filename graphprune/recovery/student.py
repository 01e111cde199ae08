"""The model that is trained, as one thing whatever host it is of: tensors in by name, all output tensors out in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphprune.errors import ModelError, OptionError
from graphprune.hosts.host import Array, Arrays, Host
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.stored import to_numpy
from graphprune.hosts.torch.trace import inference

WEIGHTS = ("all", "biases", "lora")
"""Which weights are trained: all, those of one axis (biases and norms), or low-rank additions to all linear layers."""


class Called(nn.Module):
    """A module that takes a batch of arrays by name, and gives all tensors that it returns, in order.

    Attributes:
        module: The user's module, or a graph module.
    """

    def __init__(self, module: nn.Module, host: TorchHost) -> None:
        super().__init__()
        self.module = module
        self._call = host.arguments
        self.names = host.output_names

    def forward(self, inputs: Arrays) -> list[Tensor]:
        """Calls it as the example of its host was called."""
        args, kwargs = self._call(inputs)
        device = next((each.device for each in self.module.parameters()), None)
        args, kwargs = pytree.tree_map_only(Tensor, lambda each: each.to(device), (args, kwargs))
        leaves = pytree.tree_leaves(self.module(*args, **kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Student:
    """A model in training.

    Attributes:
        called: The module as it is run.
        module: The module as it is handed out.
        trained: The parameters that change, by name.
        host: What it was made of.
        low_rank: Whether ``called`` holds additions that are to be merged.
    """

    called: nn.Module
    module: nn.Module
    trained: Mapping[str, nn.Parameter]
    host: Host
    low_rank: bool = False

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name, without gradients; how a :class:`graphprune.importance.loss.Standard` runs a model."""
        with torch.no_grad():
            found = self.called(inputs)
        return {str(i): to_numpy(each.detach()) for i, each in enumerate(found)}

    def state(self) -> dict[str, Tensor]:
        """A copy of what is trained."""
        return {name: each.detach().clone() for name, each in self.trained.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Puts values back."""
        with torch.no_grad():
            for name, value in state.items():
                self.trained[name].copy_(value)


@contextmanager
def training(module: nn.Module, host: Host, weights: str = "all", rank: int = 16) -> Iterator[Student]:
    """A module in training: as its graph was traced (norms and dropouts as in evaluation), with gradients.

    What it required gradients of before, and its modes, are put back after. Low-rank additions are merged.

    Args:
        module: The module; its values change.
        host: The host that it was made of.
        weights: One of :data:`WEIGHTS`.
        rank: Of low-rank additions.

    Raises:
        OptionError: Nothing can be trained so.
    """
    asked = [(each, each.requires_grad) for each in module.parameters()]
    called = Called(module, cast("TorchHost", host))
    with torch.inference_mode(mode=False), inference(module), torch.enable_grad():
        try:
            if weights == "lora":
                with _low_rank(module, rank):
                    yield _student(called, module, host, lambda name, each: ".lora_" in name, low_rank=True)
            else:
                yield _student(called, module, host, lambda name, each: weights == "all" or each.ndim == 1)
        finally:
            for each, requires in asked:
                each.requires_grad_(requires)
                each.grad = None


def _student(called: nn.Module, module: nn.Module, host: Host, chosen: Any, *, low_rank: bool = False) -> Student:
    trained: dict[str, nn.Parameter] = {}
    for name, each in module.named_parameters():
        wanted = each.is_floating_point() and chosen(name, each)
        each.requires_grad_(wanted)
        if wanted:
            trained[name] = each
    if not trained:
        raise OptionError("the pruned model has no weights that could be trained so; expected 'recover_weights=\"all\"'")
    return Student(called, module, trained, host, low_rank)


@contextmanager
def _low_rank(module: nn.Module, rank: int) -> Iterator[None]:
    """Low-rank additions to linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685), merged into them at the end."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise OptionError("low-rank recovery needs peft; pip install peft") from error
    names = [name for name, each in module.named_modules() if type(each) is nn.Linear and name]
    if not names:
        raise OptionError("the pruned model has no linear layers for low-rank recovery; use 'recover_weights=\"all\"'")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=names), module)
    try:
        yield
    finally:
        for name, each in list(module.named_modules()):
            if isinstance(each, BaseTunerLayer):
                each.merge()
                parent, _, last = name.rpartition(".")
                setattr(module.get_submodule(parent), last, each.get_base_layer())
        vars(module).pop("peft_config", None)


def answers(teacher: Host, inputs: Arrays, device: Any = None) -> list[Tensor]:
    """All outputs of the teacher, in order."""
    found: Sequence[Any] = list(teacher.run(inputs).values())
    return [torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in found]


def require_module(module: Any) -> nn.Module:
    """The module of a result.

    Raises:
        ModelError: There is none that could be trained.
    """
    if not isinstance(module, nn.Module):
        raise ModelError("there is no module that could be trained; recover a result of a PyTorch model")
    if any(each.is_meta for each in module.parameters()):
        raise ModelError("weights on the meta device have no values that could be trained; give a model with weights")
    return module
