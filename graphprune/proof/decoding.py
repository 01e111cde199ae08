"""A decoder with caches, step by step: each model goes on from what it has given itself, with an empty cache first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis
from graphprune.errors import ModelError
from graphprune.hosts.cuts import cuts_of, left_of
from graphprune.hosts.host import Arrays, Host
from graphprune.ir.dims import Factor, Index
from graphprune.pipeline.state import Check
from graphprune.proof.compare import Rounding, compare, worse
from graphprune.proof.masks import bypassed
from graphprune.proof.oracles import SINGLE, UNDECIDED, double_rounding, precision_of
from graphprune.proof.other_sizes import masks_at

TOKENS = 20
"""So many tokens are chosen, each by the highest score."""
PROMPT = 5
"""Tokens of the prompt, which meets an empty cache."""

Runs = tuple[Callable[[Arrays], dict[str, Any]], Callable[[Arrays], dict[str, Any]]]


def decoded(
    original: Host,
    pruned: Host,
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    removed: Iterable[Block] = (),
) -> tuple[Check, ...]:
    """Compares tokens and caches of the masked original and the pruned model; nothing where the model is no decoder.

    Args:
        original: The model before.
        pruned: The model after.
        analysis: The analysis of the original.
        kept: The units that stay.
        removed: Branches that are left out.

    Raises:
        ModelError: A model cannot be run.
    """
    decoder = getattr(original, "decoder", None)
    if decoder is None:
        return ()
    whole: Any = original  # masks and sizes of one wing alone
    single = whole.resized(decoder.shapes(PROMPT, 1))
    there = masks_at(single, kept, analysis, removed)
    if there is None:
        return ()
    whole = bypassed(single, removed)
    reference = whole.masked(there)
    cuts, precision = cuts_of(pruned), precision_of(analysis)

    def steps(rounding: Rounding, *, double: bool = False) -> Check:
        runs = (lambda x: reference.run(x, double=double)), (lambda x: pruned.run(x, double=double))
        for begin in (0, 1):  # some models take no empty cache
            try:
                return _steps(decoder, runs, cuts, rounding, begin)
            except ModelError:
                if begin:
                    raise
        raise AssertionError

    if precision > 2:
        check = steps(SINGLE if precision == 4 else double_rounding(8))
        if check.difference <= check.tolerance:
            return (check,)
    try:
        check = steps(double_rounding(precision), double=True)
        return (replace(check, note=f"{check.note}, in float64"),)
    except ModelError:  # the host has no float64 executor for this model
        return (steps(UNDECIDED[min(4, precision)]),)


def _steps(decoder: Any, runs: Runs, cuts: Any, rounding: Rounding, begin: int) -> Check:
    """One run of both models, from a prompt on."""
    feed = decoder.inputs(None, begin, 1 if begin else PROMPT)
    n = feed[decoder.tokens].shape[1]
    feeds, check, same = (feed, feed), None, 0
    for step in range(TOKENS):
        want, have = (run(each) for run, each in zip(runs, feeds, strict=True))
        found = compare("decode", left_of(cuts, want), have, rounding=rounding)
        found = replace(found, where=f"{found.where} of step {step}" if found.where else "")
        check = found if check is None else replace(
            worse(found, check), informative=check.informative or found.informative
        )  # fmt: skip
        if not np.isfinite(found.difference):
            break
        token, own = decoder.chosen(want), decoder.chosen(have)
        same += int((token == own).all())
        feeds = tuple(decoder.inputs(token, decoder.following(outputs), 1) for outputs in (want, have))
    assert check is not None
    empty = "a cache of one token" if begin else f"{n} tokens and an empty cache"
    note = f"{same} of {TOKENS} greedy tokens of pruned = masked original, from {empty} on, caches too"
    return replace(check, note=note)
