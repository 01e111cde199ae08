"""Criteria of gradients: how the loss changes with a gate on a unit, and with its weights.

A gate multiplies what all consumers of a unit read (one cut, so that nothing counts twice). Without labels, targets
are drawn from the model itself, whose gradients' second moment is the Fisher information.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from graphprune.errors import OptionError
from graphprune.hosts.host import Array, Arrays, Gate
from graphprune.importance.context import Evidence, Float
from graphprune.importance.differentiable import Differentiable
from graphprune.importance.fallback import with_fallback
from graphprune.importance.judge import Judge, judges_of, with_labels
from graphprune.importance.loss import NO_LOSS, Gates, gates_of
from graphprune.ir.dims import unit_of

_POINTS = tuple(zip(*np.polynomial.legendre.leggauss(5), strict=True))


def taylor(evidence: Evidence) -> dict[str, Float]:
    """``mean_n |∂ℓ_n/∂m_u|`` (Molchanov et al. 2016): the first-order change of each sample's loss."""
    return _from_gates(evidence, "taylor", np.abs)


def fisher(evidence: Evidence) -> dict[str, Float]:
    """``½ mean_n (∂ℓ_n/∂m_u)²`` (Molchanov et al. 2019, OBD, Kwon et al. 2022), from gradients of single samples."""
    return _from_gates(evidence, "fisher", lambda gradient: 0.5 * gradient**2)


def taylor_elem(evidence: Evidence) -> dict[str, Float]:
    """``Σ |w · ∂L/∂w|`` over all weights of a unit (LLM-Pruner, arXiv 2305.11627)."""
    gates = gates_of(evidence, "taylor-elem")
    host = _differentiable(gates, "taylor-elem")
    wanted = list({site.tensor for group in evidence.groups for site in group.sites if site.parameter})
    total: dict[str, Array] = {}
    for n, (batch, labels) in enumerate(gates.labelled()):
        judges = _judges(gates, labels)
        found = host.parameter_gradients(batch, wanted, [labels], judges=judges, seed=evidence.seed + n)
        for name, gradient in found.items():
            total[name] = total.get(name, 0.0) + gradient
    scores = {}
    for group in evidence.groups:
        score = np.zeros(group.size)
        for site in group.sites:
            if site.parameter:
                change = np.abs(evidence.read(site.tensor) * total[site.tensor])
                each = np.moveaxis(change, site.axis, 0).reshape(change.shape[site.axis], -1).sum(1)
                score += _summed(each, unit_of(site.dim, group.factor), group.size)
        scores[group.name] = score
    return scores


def path_taylor(evidence: Evidence) -> dict[str, Float]:
    """``|∫₀¹ ∂L/∂m_u dm|`` along the path that closes all gates of a group together, by five-point quadrature.

    The shares of a group's units in what its removal costs (the idea of CRIC); against labels or the model as it was.
    """
    gates = gates_of(evidence, "path-taylor")
    host = _differentiable(gates, "path-taylor")
    data = []
    for batch, labels in gates.labelled():
        judges = _judges(gates, labels)
        outputs = host.run(batch) if labels is None else {}
        own = [_own(each, each.prepared(outputs)) for each in judges] if labels is None else [labels]
        data.append((batch, own, judges))
    scores: dict[str, Float] = {}
    for group in evidence.groups:
        found = gates.by_group.get(group.name, ())
        if not found:
            continue
        score = np.zeros(group.size)
        for point, weight in _POINTS:
            level = {gate: (1 + point) / 2 for gate, _ in found}
            for batch, targets, judges in data:
                gates_here = [gate for gate, _ in found]
                gradients = host.gate_gradients(batch, gates_here, targets, judges=judges, level=level)
                for gate, unit in found:
                    score += weight / 2 * _summed(gradients[gate].mean(0), unit, group.size) / len(data)
        scores[group.name] = np.abs(score)
    return with_fallback(scores, evidence)


def _from_gates(evidence: Evidence, criterion: str, of: Callable[[Float], Float]) -> dict[str, Float]:
    """The mean over samples of a function of the gates' gradients, those of all consumers of a unit added up."""
    gates = gates_of(evidence, criterion)
    host = _differentiable(gates, criterion)
    totals: dict[str, Float] = {}
    sizes = {group.name: group.size for group in evidence.groups}
    samples = 0
    for n, (batch, labels) in enumerate(gates.labelled()):
        gradients = _gradients(host, batch, gates, labels, evidence.seed + n)
        for name, found in gates.by_group.items():
            each = sum(np.stack([_summed(row, unit, sizes[name]) for row in gradients[gate]]) for gate, unit in found)
            totals[name] = totals.get(name, 0.0) + of(np.asarray(each)).sum(0)
        samples += len(next(iter(gradients.values()), ()))
    return with_fallback({name: total / max(1, samples) for name, total in totals.items()}, evidence)


def _gradients(
    host: Differentiable, batch: Arrays, gates: Gates, labels: Array | None, seed: int
) -> Mapping[Gate, Array]:
    judges = _judges(gates, labels)
    found: Mapping[Gate, Array] = host.gate_gradients(batch, gates.all, [labels], judges=judges, seed=seed)
    return found


def _judges(gates: Gates, labels: Array | None) -> tuple[Judge, ...]:
    """How outputs are compared: all that count with the model itself, the first one with labels."""
    judges = judges_of(gates.host.graph(), gates.asked)
    if not judges:
        raise OptionError(NO_LOSS)
    return judges if labels is None else (with_labels(judges[0], labels),)


def _own(judge: Judge, prepared: Array) -> Array:
    """What the model says itself: its likeliest classes, its probabilities, its values."""
    if judge.kind == "kl":
        return np.asarray(prepared.argmax(-1))
    return np.asarray(0.5 * (1 + np.tanh(0.5 * prepared))) if judge.kind == "bce" else prepared


def _summed(values: Array, units: Array, size: int) -> Float:
    inside = units >= 0
    return np.bincount(units[inside], np.asarray(values)[inside], minlength=size).astype(np.float64)


def _differentiable(gates: Gates, criterion: str) -> Differentiable:
    """The host, if it has gradients.

    Raises:
        OptionError: It has none.
    """
    if not isinstance(gates.host, Differentiable):
        raise OptionError(
            f"criterion '{criterion}' needs gradients, which hosts of kind '{gates.host.kind}' do not have; use obs, "
            "wifv, bonsai or oracle"
        )
    return gates.host
