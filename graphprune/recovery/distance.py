"""How far the student's outputs are from the teacher's, as a loss that can be trained with.

Each output is compared as its judge says (:mod:`graphprune.importance.judge`): the same judges choose candidates and
tell what a pruned model has lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graphprune.executor.losses import prepared
from graphprune.hosts.host import Array
from graphprune.importance.judge import Judge, with_labels

Labels = Sequence[tuple[Array, Array]]
"""What is right for each sample, and by which weight; of mixtures one for each part."""
_LEAST = -1e4
"""Logits that are masked out by minus infinity are taken for this: differences of infinities are no numbers."""


@dataclass(frozen=True)
class Distance:
    """The loss of some outputs against those of the teacher.

    Attributes:
        judges: How outputs are compared.
        scales: What each of their losses is divided by, so that one output does not hide the others.
    """

    judges: Sequence[Judge]
    scales: Sequence[float]

    def __call__(self, outputs: Sequence[Tensor], wanted: Sequence[Tensor], labels: Labels = ()) -> Tensor:
        """The mean over the judged outputs; with labels, the mean of that and of what these say of the first one.

        Args:
            outputs: All of the student's, in order.
            wanted: All of the teacher's.
            labels: What is right for each sample, with its weights, where that is known.
        """
        losses = [
            self._of(judge, prepared(outputs[judge.at], judge), prepared(wanted[judge.at], judge)) / scale
            for judge, scale in zip(self.judges, self.scales, strict=True)
        ]
        learned = torch.stack(losses).mean()
        return (learned + self._right(outputs, labels)) / 2 if labels else learned

    def _right(self, outputs: Sequence[Tensor], labels: Labels) -> Tensor:
        judge = with_labels(self.judges[0], labels[0][0])
        found, total = prepared(outputs[judge.at], judge), torch.zeros(())
        for right, weight in labels:
            target = torch.from_numpy(np.asarray(right)).to(found.device)
            if judge.kind == "kl":
                rows = found.reshape(-1, found.shape[-1]).clamp_min(_LEAST)
                each = functional.cross_entropy(rows, target.reshape(-1).long(), reduction="none")
            else:
                each = (found - target.reshape(found.shape)).square() / self.scales[0]
            total = total + (each.reshape(len(right), -1).mean(1) * torch.from_numpy(weight).to(each.device)).mean()
        return total

    def _of(self, judge: Judge, found: Tensor, wanted: Tensor) -> Tensor:
        if judge.kind == "kl":
            rows, goals = (
                each.reshape(-1, each.shape[-1]).clamp_min(_LEAST).log_softmax(-1) for each in (found, wanted)
            )
            return functional.kl_div(rows, goals, reduction="batchmean", log_target=True)
        if judge.kind == "bce":
            entropy = functional.binary_cross_entropy_with_logits(wanted, wanted.sigmoid())
            return functional.binary_cross_entropy_with_logits(found, wanted.sigmoid()) - entropy
        if judge.kind == "cosine":
            return (1 - functional.cosine_similarity(found, wanted, dim=-1)).mean()
        return functional.mse_loss(found, wanted)
