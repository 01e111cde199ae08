"""Criteria that run the model with units taken out: exact ablation, and a regression over random sub-models.

Forward runs only, so they work on ONNX models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.importance.context import Evidence, Float
from graphprune.importance.fallback import with_fallback
from graphprune.importance.loss import Objective, gates_of
from graphprune.importance.output import wifv

MODELS = 256
"""Random sub-models that ``bonsai`` runs."""
RIDGE = 1e-2


def oracle(evidence: Evidence) -> dict[str, Float]:
    """``L(m_u = 0) - L``: what the removal of each unit alone costs. One walk over the data for each unit."""
    gates = gates_of(evidence, "oracle")
    objective = Objective(gates)
    whole = objective({})
    scores = {
        group.name: np.array(
            [objective(gates.factors({group.name: np.array([unit])})) - whole for unit in range(group.size)]
        )
        for group in evidence.groups
        if group.name in gates.by_group
    }
    return with_fallback(scores, evidence)


def bonsai(evidence: Evidence) -> dict[str, Float]:
    """Regression of the loss on which units are there, over random sub-models (Bonsai, arXiv 2402.05406).

    ``wifv`` is the prior: only the units that it ranks lowest are explored, half as many as there are sub-models; those
    that it ranks higher keep their order above them. Sub-models come in complementary pairs, which halves the
    variance; coefficients are pulled to the prior in closed form (docs/methods.md, Runs of sub-models).
    """
    gates = gates_of(evidence, "bonsai")
    prior = {name: values for name, values in wifv(evidence).items() if name in gates.by_group}
    names = [(name, unit) for name, values in prior.items() for unit in range(len(values))]
    flat = np.concatenate(list(prior.values()))
    explored = np.argsort(flat, kind="stable")[: min(len(flat), MODELS // 2)]
    rng = np.random.default_rng(evidence.seed)
    objective = Objective(gates)
    masks, losses = [], []
    for _ in range(MODELS // 2):
        there = rng.random(len(explored)) < 0.5
        for mask in (there, ~there):
            gone: dict[str, list[int]] = {}
            for at in explored[~mask]:
                name, unit = names[at]
                gone.setdefault(name, []).append(unit)
            masks.append(mask)
            losses.append(objective(gates.factors({name: np.array(units) for name, units in gone.items()})))
    believed = flat[explored]
    found = coefficients(np.array(masks), np.array(losses), believed)
    scale = max(float(np.abs(found).mean()), 1e-300) / max(float(believed.mean()), 1e-300)
    result = flat * scale
    lifted = max(0.0, float(found.max() - result[np.setdiff1d(np.arange(len(flat)), explored)].min(initial=np.inf)))
    result += lifted
    result[explored] = found
    scores: dict[str, Float] = {}
    at = 0
    for name, values in prior.items():
        scores[name] = result[at : at + len(values)]
        at += len(values)
    return with_fallback(scores, evidence)


def coefficients(masks: NDArray[Any], losses: Float, prior: Float) -> Float:
    """What each unit is worth: ridge regression of losses on which units are there, pulled to a prior.

    Args:
        masks: ``[models, units]``, which units are there.
        losses: ``[models]``.
        prior: ``[units]``, in any scale: it is brought to that of the coefficients.
    """
    design = np.asarray(masks, np.float64) - 0.5
    benefit = -(losses - losses.mean())
    moment = design.T @ benefit
    scale = float(np.abs(moment).mean() / (0.25 * len(design))) / max(float(prior.mean()), 1e-300)
    damping = RIDGE * len(design)
    gram = design.T @ design + damping * np.eye(len(prior))
    return np.linalg.solve(gram, moment + damping * scale * prior).astype(np.float64)
