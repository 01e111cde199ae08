"""The losses of judged outputs, of modules and of ONNX graphs alike: against targets, or what the model itself says."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import functional

from graphprune.hosts.host import Array
from graphprune.importance.judge import Judge

Key = TypeVar("Key", bound=Hashable)
Head = tuple[int, Judge]
"""The position of an output, and how it is judged."""
Targets = Sequence[torch.Tensor | None]
"""What each judged output should be; ``None``, or missing: drawn from the model itself."""


@dataclass(frozen=True)
class Loss:
    """A loss of the outputs that are judged.

    Attributes:
        heads: Where they are, and how they are judged.
        target: What the first of them should be, or a sequence for all; ``None``: drawn from the model itself.
        seed: For drawn targets.
    """

    heads: Sequence[Head]
    target: Array | Sequence[Array | None] | None
    seed: int = 0

    def of(self, outputs: Sequence[Any]) -> torch.Tensor:
        """The loss of some outputs."""
        each = list(self.target) if isinstance(self.target, list | tuple) else [self.target]
        targets = [None if one is None else torch.from_numpy(np.asarray(one)) for one in each]
        return total_loss(outputs, self.heads, targets, torch.Generator().manual_seed(self.seed))


def prepared(output: torch.Tensor, judge: Judge) -> torch.Tensor:
    """What is compared of an output, as :meth:`Judge.prepared` of arrays: logits with classes last, or values."""
    output = output.float() if output.element_size() < 4 else output
    if judge.part is not None:
        axis, start, end = judge.part
        output = output.narrow(axis, start, end - start)
    final = judge.final
    limits = torch.finfo(output.dtype)
    if final is not None and final.kind == "softmax":
        return output.clamp_min(limits.tiny).log().movedim(final.axis, -1)
    if final is not None and final.kind == "sigmoid":
        return output.clamp_min(limits.tiny).log() - (1 - output).clamp_min(limits.eps / 2).log()
    return output.movedim(judge.axis, -1) if judge.kind in ("kl", "cosine") else output


def sampled_targets(output: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Targets drawn from the model itself: classes from its distribution, or its output plus unit noise.

    The gradients of such a loss have the Fisher information of the model as their second moment; no labels are needed.
    """
    if kind == "kl":
        table = output.float().softmax(-1).reshape(-1, output.shape[-1])
        return torch.multinomial(table, 1, generator=generator).reshape(output.shape[:-1])
    if kind == "bce":
        return torch.bernoulli(output.float().sigmoid(), generator=generator)
    if kind == "cosine":
        output = functional.normalize(output, dim=-1)
    return output + torch.randn(output.shape, generator=generator)


def loss_of(output: torch.Tensor, target: torch.Tensor, kind: str) -> torch.Tensor:
    """The loss of what is prepared, summed over samples; each sample's is the mean over its positions."""
    if kind == "kl":
        each = functional.cross_entropy(
            output.float().reshape(-1, output.shape[-1]), target.reshape(-1).long(), reduction="none"
        )
    elif kind == "bce":
        each = functional.binary_cross_entropy_with_logits(output.float(), target.float(), reduction="none")
    elif kind == "cosine":  # of unit vectors the squared distance is twice the cosine distance
        unit, goal = functional.normalize(output, dim=-1), target.reshape(output.shape)
        each = 0.5 * (unit - goal).square().sum(-1)
    else:
        each = 0.5 * (output - target.reshape(output.shape)).square()
    return each.reshape(len(output), -1).mean(1).sum()


def total_loss(
    outputs: Sequence[Any], heads: Sequence[Head], targets: Targets, generator: torch.Generator
) -> torch.Tensor:
    """The losses of all judged outputs together; of several, values count relative to their own variance."""
    total: Any = 0.0
    for n, (at, judge) in enumerate(heads):
        output = prepared(outputs[at], judge)
        target = targets[n] if n < len(targets) else None
        if target is None:
            target = sampled_targets(output.detach(), judge.kind, generator)
        loss = loss_of(output, target, judge.kind)
        if len(heads) > 1 and judge.kind == "mse":
            variance = float(output.detach().var(correction=0))
            loss = loss / variance if variance > 0 else loss
        total = total + loss
    assert isinstance(total, torch.Tensor)
    return total


def spread(values: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """A gate of units ``[d]``, or of samples and units ``[n, d]``, in the shape in which it multiplies ``x``."""
    shape = [1] * x.ndim
    shape[axis] = values.shape[-1]
    if values.ndim == 2:
        shape[0] = values.shape[0]
    return values.reshape(shape).to(x.dtype)


def by_sample(gradient: torch.Tensor, samples: int) -> torch.Tensor:
    """The gradient of a gate ``[k, d]`` for each sample, ``[n, d]``: samples may lie in one axis with positions."""
    n = samples if len(gradient) % samples == 0 else 1
    return gradient.reshape(n, -1, gradient.shape[1]).sum(1)


def gradients_of(loss: torch.Tensor, leaves: Mapping[Key, torch.Tensor]) -> dict[Key, torch.Tensor]:
    """Those of the leaves alone: no other tensor of the model gets one; zeros where the loss does not depend on it."""
    if not loss.requires_grad:
        return {key: torch.zeros_like(leaf) for key, leaf in leaves.items()}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))
