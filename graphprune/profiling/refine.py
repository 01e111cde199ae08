"""Meeting a latency target as measured: allocate by the profile, prune, measure, correct the prediction, repeat."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from graphprune.errors import TargetError
from graphprune.hosts.host import Runnable
from graphprune.pipeline.passes import Pass, flattened
from graphprune.pipeline.state import State
from graphprune.planning.allocation import Limits
from graphprune.planning.cost import build_cost_model
from graphprune.planning.latency import Attempt, LatencyModel
from graphprune.planning.target import Target, parse_targets
from graphprune.profiling.measure import clock_of
from graphprune.runtime import sessions as runtime

MISS = 0.05
"""A measured latency above the target, or this far below it, relative to it, is corrected."""
ROUNDS = 4
"""At most so many allocations."""
STEADY = 3.0
"""At most by this factor one measurement changes the predicted savings."""

ALLOCATE = "allocate"

Run = Callable[[Sequence[Pass], State], State]
Timing = Callable[[Runnable, Runnable], tuple[float, float]]
"""Milliseconds of the original and of the pruned model, measured together."""


def split(passes: Sequence[Pass]) -> tuple[Sequence[Pass], Sequence[Pass], Sequence[Pass]]:
    """What runs before the first allocation, what is repeated with it, and the proof and what follows it."""
    first = next((i for i, each in enumerate(passes) if each.name == ALLOCATE), len(passes))
    last = next((i for i, each in enumerate(passes) if i > first and each.name == "verify"), len(passes))
    return passes[:first], passes[first:last], passes[last:]


def alignment(passes: Sequence[Pass]) -> int:
    """Of the first allocation: widths are measured at what it chooses from."""
    return next((getattr(each, "align", Limits().align) for each in _allocations(passes)), Limits().align)


def _allocations(passes: Sequence[Pass]) -> list[Pass]:
    """The allocations among passes, those inside of others too."""
    return [each for each in flattened(passes) if each.name == ALLOCATE]


def _targets(each: Pass) -> tuple[str, ...]:
    found: tuple[str, ...] = getattr(each, "targets", ()) if each.name == ALLOCATE else ()
    return found


def latency_target(passes: Sequence[Pass]) -> Target | None:
    """The latency target of the first allocation, if it has one."""
    targets = next((parse_targets(each) for each in map(_targets, _allocations(passes)) if each), ())
    return next((target for target in targets if target.metric == "latency"), None)


def refine(
    scored: State,
    repeated: Sequence[Pass],
    model: LatencyModel,
    target: Target,
    host: Runnable,
    run: Run,
    timing: Timing,
    *,
    rounds: int = ROUNDS,
) -> tuple[State, tuple[Attempt, ...]]:
    """Repeats allocation and slicing until the measured latency meets the target by no more than :data:`MISS`.

    A latency is a bound: what is corrected aims at the middle of what is accepted, for no two measurements are equal.

    Args:
        scored: The state before allocation.
        repeated: The passes from the allocation on.
        model: What the model takes by the profile.
        target: The latency target.
        host: The original model.
        run: Runs passes.
        timing: Measures.
        rounds: At most so many allocations.

    Returns:
        The state of the attempt that came closest to the bound from below, or, if none met it, from above; and all
        attempts: the last one is the one returned.

    Raises:
        TargetError: The target cannot be met by the profile.
    """
    whole = model.profile.whole
    requested = target.limit(whole) / whole
    attempts: list[tuple[State, Attempt]] = []
    for _ in range(rounds):
        try:
            state = run(repeated, replace(scored, latency=model))
        except TargetError:
            if not attempts:
                raise
            break  # what was corrected cannot be met: the closest attempt stands
        predicted = predicted_ms(state, model) / whole
        measured = None
        if model.local:
            before, after = timing(host, state.host)
            measured = after / (before if target.relative else whole)
        attempts.append((state, Attempt(requested, predicted, measured)))
        if measured is None or requested * (1 - MISS) <= measured <= requested or predicted > 0.999:
            break
        if measured < requested and predicted < requested * (1 - MISS):
            break  # another target, or the alignment, asks for less
        factor = (1 - measured * (1 + MISS / 2)) / (1 - predicted)
        model = model.scaled(min(STEADY, max(1 / STEADY, factor)))
    best = min(attempts, key=lambda each: _shortfall(each[1]))
    others = [attempt for state, attempt in attempts if state is not best[0]]
    return best[0], (*others, best[1])


def _shortfall(attempt: Attempt) -> tuple[bool, float]:
    """Orders attempts, the best one first: those that meet the bound before those that do not, each by distance."""
    measured = attempt.requested if attempt.measured is None else attempt.measured
    return not attempt.meets, abs(measured - attempt.requested)


def predicted_ms(state: State, model: LatencyModel) -> float:
    """Milliseconds that a pruned state takes by the profile."""
    analysis = state.analyzed("allocate")
    costs = build_cost_model(analysis, model, without=analysis.branches.unneeded(state.removed))
    counts = costs.full.copy()
    for i, group in enumerate(costs.groups):
        if group.factor in state.kept:
            counts[i] = len(state.kept[group.factor])
    return costs.cost("latency", counts)


def timed(threads: int, provider: str, seconds: float = 3.0) -> Timing:
    """Measures in onnxruntime, interleaved; the lower quartile of the runs counts, as in the profile."""

    def timing(before: Runnable, after: Runnable) -> tuple[float, float]:
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            paths = [Path(folder) / "before.onnx", Path(folder) / "after.onnx"]
            for host, path in zip((before, after), paths, strict=True):
                host.save_onnx(path)
            inputs = before.example_inputs()
            (found,) = runtime.measure(
                paths, [inputs, inputs], threads=(threads,), provider=provider, seconds=seconds,
                most_runs=1000, quantile=0.25, clock=clock_of(threads),
            )  # fmt: skip
        return found.milliseconds[0], found.milliseconds[1]

    return timing


def sentences(attempts: Sequence[Attempt], model: LatencyModel) -> tuple[str, ...]:
    """What happened, for the report."""
    where = model.profile.machine
    if attempts[-1].measured is None:
        return (f"latency is predicted for another machine ({where}) and was not measured here",)
    best = attempts[-1]
    missed = "" if best.meets else "; no allocation met it: ask for less, and measure on an idle machine"
    if len(attempts) == 1:
        one = f"latency: {best.requested:.1%} of the original was asked for, {best.measured:.1%} was measured"
        return () if best.meets else (one + missed,)
    tries = ", ".join(f"{each.measured:.1%}" for each in attempts)
    taken = "the closest one that meets it was taken" if best.meets else "the closest one was taken"
    return (
        f"latency: {best.requested:.1%} of the original was asked for; {len(attempts)} allocations measured "
        f"{tries}, each corrected by the one before; {taken} (listed last){missed}",
    )
