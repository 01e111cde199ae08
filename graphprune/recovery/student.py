"""The model that is trained, as one thing whatever host it is of: arrays in by name, all output tensors in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphprune.errors import ModelError, OptionError
from graphprune.hosts.cuts import left_of
from graphprune.hosts.host import Array, Arrays, Host
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.now import as_it_is
from graphprune.hosts.torch.stored import to_numpy
from graphprune.hosts.torch.trace import inference
from graphprune.hosts.torch.untouched import untouched
from graphprune.recovery.checkpointing import checkpointed
from graphprune.recovery.options import Recovering
from graphprune.recovery.teacher import Answers

HUGE = 1e4
"""A stored tensor with a larger number, or one that is not finite, is a mask and no weight."""


class Learner(Protocol):
    """A pruned model that can be trained."""

    @property
    def module(self) -> nn.Module:
        """What holds the parameters."""

    def run(self, inputs: Arrays) -> list[Tensor]:
        """Runs it, with gradients where they are enabled; all output tensors, in order."""

    def ready(self) -> AbstractContextManager[Any]:
        """Within it, the module runs as its graph was made: norms and dropouts as in evaluation."""

    def host(self) -> Host:
        """The host with the values that the module has now."""


@dataclass(frozen=True)
class TorchLearner:
    """The user's own module, or a graph module.

    Attributes:
        module: The module.
        pruned: What it was made of.
        former: From names in the module to those in the graph, where they differ.
    """

    module: nn.Module
    pruned: TorchHost
    former: Callable[[str], str] = str

    def run(self, inputs: Arrays) -> list[Tensor]:
        """Calls it as the example was called."""
        args, kwargs = self.pruned.arguments(inputs)
        device = next((each.device for each in self.module.parameters()), None)
        args, kwargs = pytree.tree_map_only(Tensor, lambda each: each.to(device), (args, kwargs))
        leaves = pytree.tree_leaves(self.module(*args, **kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def ready(self) -> AbstractContextManager[Any]:
        """In evaluation mode."""
        return inference(self.module)

    def host(self) -> Host:
        """The traced graph with the module's values."""
        return as_it_is(self.pruned, self.module, self.former)[0]


class OnnxLearner:
    """An ONNX graph that PyTorch runs."""

    def __init__(self, pruned: OnnxHost) -> None:
        self.pruned = pruned
        self.module: Any = pruned.as_module()

    def run(self, inputs: Arrays) -> list[Tensor]:
        """Runs the graph."""
        given = left_of(self.pruned.cuts, inputs)
        return list(self.module({name: torch.from_numpy(np.array(each)) for name, each in given.items()}).values())

    def ready(self) -> AbstractContextManager[Any]:
        """Nothing has to be set."""
        return nullcontext()

    def host(self) -> Host:
        """The file with the values that are trained."""
        stored = self.module.stored()
        return self.pruned.replaced({n: a for n, a in stored.items() if not np.array_equal(a, self.pruned.read(n))})


def learner_of(host: Host, module: Any = None, former: Callable[[str], str] = str) -> Learner:
    """What is trained of a pruned model.

    Args:
        host: The model.
        module: For a PyTorch model the module that was made of it.
        former: From names in the module to those in the host, where they differ.

    Raises:
        ModelError: It cannot be trained; why.
    """
    if isinstance(host, OnnxHost):
        return OnnxLearner(host)
    if not isinstance(host, TorchHost):
        raise ModelError(f"a model of a host '{host.kind}' cannot be trained here; prune without recovery")
    module = host.module if module is None else module
    if not isinstance(module, nn.Module) or host.is_meta:
        raise ModelError("weights on the meta device have no values that could be trained; give a model with weights")
    return TorchLearner(module, host, former)


@contextmanager
def taught(teacher: Host) -> Iterator[tuple[Answers, nn.Module | None]]:
    """The teacher's outputs: of the user's own class, which may take any number of samples, or of its graph.

    With the module, where it is that class.
    """
    source = teacher.source if isinstance(teacher, TorchHost) and teacher.keeps_code else None
    if source is None:
        yield lambda inputs: [torch.from_numpy(np.array(each)) for each in teacher.run(inputs).values()], None
        return
    assert isinstance(teacher, TorchHost)
    learner = TorchLearner(source, teacher)
    with untouched(source, runs=True), inference(source):
        yield learner.run, source


def arrays_of(answers: Answers) -> Callable[[Arrays], Arrays]:
    """A model as a :class:`graphprune.importance.loss.Standard` runs one: arrays by position, without gradients."""

    def run(inputs: Arrays) -> dict[str, Array]:
        with torch.no_grad():
            return {str(i): to_numpy(each.detach()) for i, each in enumerate(answers(inputs))}

    return run


@dataclass(frozen=True)
class Student:
    """A model in training.

    Attributes:
        answers: Runs it.
        trained: The parameters that change, by name.
        size: Numbers in all parameters.
    """

    answers: Answers
    trained: Mapping[str, nn.Parameter]
    size: int = 0

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs as arrays, without gradients."""
        return arrays_of(self.answers)(inputs)

    def state(self) -> dict[str, Tensor]:
        """A copy of what is trained."""
        return {name: each.detach().clone() for name, each in self.trained.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Puts values back."""
        with torch.no_grad():
            for name, value in state.items():
                self.trained[name].copy_(value)


@contextmanager
def training(learner: Learner, how: Recovering) -> Iterator[Student]:
    """A model in training. What it required gradients of before, and its modes, are put back after.

    Args:
        learner: The model; its values change.
        how: Which weights, and whether blocks are computed twice; low-rank additions are merged in the end.

    Raises:
        OptionError: Nothing can be trained so.
    """
    asked = [(each, each.requires_grad) for each in learner.module.parameters()]
    with torch.inference_mode(mode=False), learner.ready(), torch.enable_grad():
        try:
            with (
                _low_rank(learner.module, how.rank) if how.weights == "lora" else nullcontext(),
                checkpointed(learner.module) if how.memory == "blocks" else nullcontext(),
            ):
                size = sum(each.numel() for each in learner.module.parameters())
                yield Student(learner.run, _trained(learner.module, how.weights), size)
        finally:
            for each, requires in asked:
                each.requires_grad_(requires)
                each.grad = None


def _trained(module: nn.Module, weights: str) -> dict[str, nn.Parameter]:
    """The parameters that are trained; the others require no gradients from here on."""
    found: dict[str, nn.Parameter] = {}
    for name, each in module.named_parameters():
        wanted = each.is_floating_point() and each.ndim > 0 and each.numel() > 0
        if weights == "lora":
            wanted = wanted and ".lora_" in name
        elif wanted:
            wanted = (weights == "all" or each.ndim == 1) and bool(each.detach().abs().max() <= HUGE)
        each.requires_grad_(wanted)
        if wanted:
            found[name] = each
    if not found:
        raise OptionError(f"the pruned model has no weights to train with recover_weights '{weights}'; give 'all'")
    return found


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
        raise OptionError("the pruned model has no linear layers for low-rank additions; give recover_weights 'all'")
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
