"""The oracles: the pruned model equals the masked original, and permuting units changes nothing.

Both are judged at the outputs; the masked oracle also where units are read inside (:mod:`graphprune.proof.watch`), so
that no later scale, saturation or zero hides a fault. Where single precision leaves doubt, float64 decides: what is
accepted then follows from the rounding that the same run shows in the model's own precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis
from graphprune.errors import ModelError
from graphprune.hosts.cuts import Cuts, cuts_of, left_of
from graphprune.hosts.host import Array, Arrays, Host
from graphprune.ir.dims import Factor, Index, factors_of, positions
from graphprune.pipeline.state import Check
from graphprune.proof.compare import (
    EPSILON,
    TOLERANCES,
    Deviation,
    Rounding,
    compare,
    deviation,
    noise_of,
    place,
    worse,
)
from graphprune.proof.corner import Example
from graphprune.proof.findings import Findings, Pair
from graphprune.proof.masks import bypassed, masks
from graphprune.proof.other_sizes import at_other_sizes
from graphprune.proof.redraw import redrawn
from graphprune.proof.watch import Watched, watched

SINGLE = Rounding(TOLERANCES[4], residue=2 * EPSILON[4], noise=4, most=1e-3)
"""Of outputs in single precision; the noise is that of the permutation."""
SINGLE_INSIDE = Rounding(1e-4, floor=256 * EPSILON[4])
"""Of values inside: what is wrong there is wrong by more than this, and some slices are small for what cancels."""
UNDECIDED = {2: Rounding(TOLERANCES[2], residue=1e-2), 4: Rounding(1e-4, floor=1e-4, residue=1e-5)}
"""Where float64 is not to be had."""
GAIN = 1e6
"""How much more than the difference of two precisions predicts is accepted of rounding in the better one."""

_NARROW = ("float16", "bfloat16")


def precision_of(analysis: Analysis) -> int:
    """Bytes of the numbers that a model computes with: 2 where any weight has so few."""
    kinds = {value.dtype for value in analysis.graph.stored if value.kind == "parameter"}
    return 2 if kinds & {*_NARROW} else 8 if kinds == {"float64"} else 4


def masked(
    pair: Pair,
    inputs: Arrays,
    precision: int,
    *,
    note: str,
    noise: Arrays | None = None,
    answers: dict[str, Array] | None = None,
) -> tuple[Check, frozenset[Factor]]:
    """Compares a pruned model with the masked original; in doubt, in float64.

    Args:
        pair: Both models.
        inputs: By name.
        precision: Bytes of a number.
        note: What is compared, for the reader.
        noise: By output, differences that are rounding for sure.
        answers: Takes the outputs of the pruned model, if it is run in its own precision.

    Returns:
        The check, and the groups that some value inside cannot tell apart.

    Raises:
        ModelError: A model cannot be run.
    """
    first: Findings | None = None
    if precision > 2:
        rounding = (SINGLE, SINGLE_INSIDE) if precision == 4 else (double_rounding(8), double_rounding(8))
        first = _run(pair, inputs, rounding, note, noise, answers)
        if first.passed:
            return first.as_check(), first.blind
    try:
        second = _run_double(pair, inputs, precision, note)
    except ModelError:  # the host has no float64 executor for this model
        loose = UNDECIDED[min(4, precision)]
        first = _run(pair, inputs, (loose, loose), note, noise)
        return first.as_check(), first.blind
    check = second.as_check()
    beside = "" if first is None else f" ({first.as_check().difference:.2g} in its own precision)"
    return replace(check, note=f"{check.note}, in float64{beside}"), second.blind


def double_rounding(precision: int) -> Rounding:
    """What is accepted in float64, where the noise is that of a precision, in bytes of a number."""
    return Rounding(
        TOLERANCES[8], floor=1e3 * EPSILON[8], residue=1e3 * EPSILON[8], noise=GAIN * EPSILON[8] / EPSILON[precision]
    )


def _run(
    pair: Pair,
    inputs: Arrays,
    rounding: tuple[Rounding, Rounding],
    note: str,
    noise: Arrays | None,
    answers: dict[str, Array] | None = None,
) -> Findings:
    names = [each.name for each in pair.watched]
    got = pair.pruned.shown(inputs, names)
    if answers is not None:
        got = _noted(got, answers)
    return _compared(pair, rounding, note, noise, pair.original.shown(inputs, names, pair.masks), got)


def _noted(run: Iterator[tuple[str, Array]], answers: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    """A run whose outputs are kept as well."""
    for name, value in run:
        if name.startswith(">"):
            answers[name[1:]] = value
        yield name, value


def _run_double(pair: Pair, inputs: Arrays, precision: int, note: str) -> Findings:
    names = [each.name for each in pair.watched]
    rounding = double_rounding(precision)
    return _compared(
        pair,
        (rounding, rounding),
        note,
        None,
        pair.original.shown(inputs, names, pair.masks, double=True),
        pair.pruned.shown(inputs, names, double=True),
        pair.original.shown(inputs, names, pair.masks) if precision < 8 else None,
    )


def _compared(
    pair: Pair,
    rounding: tuple[Rounding, Rounding],
    note: str,
    noise: Arrays | None,
    wanted: Iterator[tuple[str, Array]],
    got: Iterator[tuple[str, Array]],
    own: Iterator[tuple[str, Array]] | None = None,
) -> Findings:
    """Runs both sides, and the original in its own precision, in step; holds one value of each at a time."""
    inside, cuts = {each.name: each for each in pair.watched}, cuts_of(pair.pruned)
    findings = Findings(Check("masked", 0.0, rounding[0].tolerance, note))
    outputs: tuple[dict[str, Array], ...] = ({}, {}, {})
    blind: set[Factor] = set()
    for name, values in _in_step(*(each for each in (wanted, got, own) if each is not None)):
        if name.startswith(">"):
            for found, value in zip(outputs, values, strict=False):
                if value is not None:  # what has become smaller is compared as far as it is there
                    found[name[1:]] = value if found is outputs[1] else left_of(cuts, {name[1:]: value})[name[1:]]
            continue
        want, have, *rest = values
        watch = inside[name]
        if want is None or have is None:
            continue
        blind |= watch.blind(want)
        want = watch.restricted(want)
        if want.shape != have.shape or want.dtype != have.dtype:
            found_here = Deviation(float("inf"))
        else:
            measured = None
            if rest and rest[0] is not None:
                measured = _difference(want, watch.restricted(rest[0]))
            found_here = deviation(want, have, rounding[1], measured)
        findings.seen += 1
        if found_here.excess > findings.inside.excess:
            findings.inside, findings.where = found_here, place(f"value '{name}'", found_here)
    if outputs[2]:
        noise = noise_of(outputs[0], outputs[2])
    findings.check = compare("masked", outputs[0], outputs[1], note=note, rounding=rounding[0], noise=noise)
    findings.blind = frozenset(blind)
    return findings


def _difference(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        found: Array = np.abs(a - b.astype(a.dtype))
    return found


def _in_step(*runs: Iterator[tuple[str, Array]]) -> Iterator[tuple[str, tuple[Array | None, ...]]]:
    """The values of several runs side by side, as soon as all have them; what one alone has comes last."""
    held: list[dict[str, Array]] = [{} for _ in runs]
    open_runs = dict(enumerate(runs))
    while open_runs:
        for i, run in list(open_runs.items()):
            item = next(run, None)
            if item is None:
                del open_runs[i]
                continue
            name, value = item
            held[i][name] = value
            if all(name in each for each in held):
                yield name, tuple(each.pop(name) for each in held)
    for name in dict.fromkeys(name for each in held for name in each):
        yield name, tuple(each.get(name) for each in held)


# -- the proof of a pruned model -------------------------------------------------------------------------------------


def prove(
    original: Host,
    pruned: Host,
    permuted: Host | Callable[[], Host],
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    removed: Iterable[Block] = (),
    *,
    example: Example | None = None,
) -> tuple[Check, ...]:
    """Runs both oracles and returns what they found, good or bad.

    Args:
        original: The model before.
        pruned: The model after.
        permuted: The model with the units of all groups permuted, or what makes it: then it is only there as long as
            it runs, with all its weights.
        analysis: The analysis of the original.
        kept: The units that stay, by group.
        removed: Branches that are left out.
        example: What they run on; absent: the user's own.

    Raises:
        ModelError: A model cannot be run.
        ProofError: There is no masked form of a node.
    """
    example, removed = example or Example(), tuple(removed)
    inputs = original.example_inputs(example.seed) if example.inputs is None else example.inputs
    answers = example.answers if example.inputs is None else None
    precision = precision_of(analysis)
    permutation, noise = permuted_alike(original, permuted, inputs, precision)
    noise = noise and {name: each for name, each in noise.items() if name not in cuts_of(pruned)}
    inside = watched(analysis, kept, pruned.graph(), original.adjusted)
    pair = Pair(bypassed(original, removed), pruned, masks(analysis, kept, removed), inside)
    note = "pruned = masked original"
    check, blind = masked(pair, inputs, precision, note=note, noise=noise, answers=answers)
    if check.difference <= check.tolerance and (wrong := wrong_tensor(pair, analysis, kept)):
        check = replace(check, difference=float("inf"), where=wrong)
    if check.difference <= check.tolerance:
        check = _at_two_sizes(check, pair, analysis, kept, removed, example.seed, precision)
    if check.difference <= check.tolerance and blind:
        check, blind = _with_other_weights(check, pair, analysis, kept, inputs, precision, blind)
    return _concluded(check, blind, inside, analysis, kept), replace(permutation, informative=True)


def permuted_alike(
    original: Host, permuted: Host | Callable[[], Host], inputs: Arrays, precision: int
) -> tuple[Check, dict[str, Array] | None]:
    """All units permuted = original; and the noise of outputs that this shows."""
    name, note = "permutation", "all units permuted = original"
    noise: dict[str, Array] | None = None
    first: Check | None = None
    if precision > 2:
        got, expected, _ = _both(permuted, original, inputs)
        first = compare(name, expected, got, note=note, rounding=SINGLE if precision == 4 else double_rounding(8))
        noise = (
            noise_of(expected, got) if [*map(np.shape, got.values())] == [*map(np.shape, expected.values())] else None
        )
        if first.difference <= first.tolerance:
            return first, noise
    try:
        got, expected, cuts = _both(permuted, original, inputs, double=True)
    except ModelError:  # the host has no float64 executor for this model
        got, expected, _ = _both(permuted, original, inputs)
        return compare(name, expected, got, note=note, rounding=UNDECIDED[min(4, precision)]), noise
    own = noise_of(expected, left_of(cuts, original.run(inputs))) if precision < 8 else None
    second = compare(name, expected, got, note=note, rounding=double_rounding(precision), noise=own)
    beside = "" if first is None else f" ({first.difference:.2g} in its own precision)"
    return replace(second, note=f"{second.note}, in float64{beside}"), noise


def _both(
    permuted: Host | Callable[[], Host], original: Host, inputs: Arrays, *, double: bool = False
) -> tuple[dict[str, Array], dict[str, Array], Cuts]:
    """The outputs of a permuted model, those of the original in the order that it has them in, and that order."""
    got, cuts = _run_of(permuted() if callable(permuted) else permuted, inputs, double=double)
    return got, left_of(cuts, original.run(inputs, double=double)), cuts


def _run_of(made: Host, inputs: Arrays, *, double: bool) -> tuple[dict[str, Array], Cuts]:
    """The outputs of a model that need not be there any longer then."""
    return made.run(inputs, double=double), cuts_of(made)


def _at_two_sizes(
    check: Check,
    pair: Pair,
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    removed: tuple[Block, ...],
    seed: int,
    precision: int,
) -> Check:
    """The check, made at other sizes along dynamic axes as well, if the model has any."""
    other = at_other_sizes(pair.original, kept, analysis, removed)
    if other is None:
        return check
    resized, zeros = other
    there = Pair(resized, pair.pruned, zeros)
    note = f"{check.note}, at two sets of sizes"
    second, _ = masked(there, resized.example_inputs(seed), precision, note=note)
    return replace(worse(second, check), note=note, informative=check.informative)


def _with_other_weights(
    check: Check,
    pair: Pair,
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    inputs: Arrays,
    precision: int,
    blind: frozenset[Factor],
) -> tuple[Check, frozenset[Factor]]:
    """The proof once more, with weights drawn for those that hide units: what rules say holds for all weights.

    A branch behind weights of zeros is the case: nothing is seen behind it, whatever the inputs.
    """
    for thorough in (False, True):
        tensors = redrawn(pair.original, analysis, kept, blind if thorough else None)
        if not tensors:
            continue
        whole = {name: array for name, (array, _) in tensors.items()}
        cut = {name: array for name, (_, array) in tensors.items()}
        again = replace(pair, original=pair.original.replaced(whole), pruned=pair.pruned.replaced(cut))
        try:
            second, still = masked(again, inputs, precision, note=check.note)
        except ModelError:
            continue
        check = worse(check, replace(second, note=check.note, informative=check.informative))
        blind &= still
        if not blind or check.difference > check.tolerance:
            break
    return check, blind


def _concluded(
    check: Check,
    blind: frozenset[Factor],
    inside: tuple[Watched, ...],
    analysis: Analysis,
    kept: Mapping[Factor, Index],
) -> Check:
    """The check with what it could not see."""
    looked = {factor for each in inside for factor in each.units}
    informative = check.informative or bool(looked and not blind)
    names = tuple(group.name for group in analysis.groups if group.factor in blind)
    note = check.note
    if inside:
        note = f"{note}, also in {len(inside)} values inside"
    if not check.informative:
        note = f"{note}; the outputs hardly vary on the example input"
        if informative:
            note = f"{note}, the values inside do"
    if names:
        listed = ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")
        note = f"{note}; unproven: units of {len(names)} of {len(kept)} groups look alike where they are read: {listed}"
    return replace(check, note=note, informative=informative, unproven=names)


def wrong_tensor(pair: Pair, analysis: Analysis, kept: Mapping[Factor, Index]) -> str:
    """The first stored tensor of the pruned model that is not, bit for bit, what is kept of the original's; or ``""``.

    Units that are zero on the example input cannot be told apart by running. What a cut adjusts is judged by what is
    computed of it.
    """
    natural = analysis.positions.keys() | analysis.inside | pair.original.adjusted.keys()
    for value in pair.pruned.graph().stored:
        layout = analysis.layouts.get(value.name)
        before = analysis.graph.values.get(value.name)
        if layout is None or before is None or not before.stored or value.name in natural:
            continue
        want, have = pair.original.read(value.name), pair.pruned.read(value.name)
        if want.shape == have.shape and want.__array_interface__["data"] == have.__array_interface__["data"]:
            continue
        for axis, dim in enumerate(layout):
            if not kept.keys().isdisjoint(factors_of(dim)):
                want = want.take(positions(dim, kept), axis=axis)
        if want.shape != have.shape or not np.array_equal(want, have, equal_nan=want.dtype.kind == "f"):
            return f"stored tensor '{value.name}'"
    return ""
