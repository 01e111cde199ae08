"""How far the student's outputs are from the teacher's, as a loss that can be trained with.

Each output is compared as its judge says (:mod:`graphprune.importance.judge`): the same judges choose candidates and
tell what a pruned model has lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from graphprune.executor.losses import prepared
from graphprune.importance.judge import Judge

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

    def __call__(self, outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """The mean over the judged outputs.

        Args:
            outputs: All of the student's, in order.
            wanted: All of the teacher's.
        """
        losses = [
            self._of(judge, prepared(outputs[judge.at], judge), prepared(wanted[judge.at], judge)) / scale
            for judge, scale in zip(self.judges, self.scales, strict=True)
        ]
        return torch.stack(losses).mean()

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
