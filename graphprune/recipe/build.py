"""From a recipe to the passes that carry it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from graphprune.compensation.methods import ADDING
from graphprune.defaults import (
    ALLOCATION,
    COMPENSATION,
    CRITERION,
    LAYOUT,
    MEASURED_ALLOCATION,
    MEASURED_COMPENSATION,
    MEASURED_CRITERION,
    STOCK,
    STOCK_COMPENSATION,
)
from graphprune.errors import OptionError
from graphprune.importance import criterion as find_criterion
from graphprune.passes import (
    Allocate,
    Analyze,
    Calibrate,
    Compensate,
    FindDead,
    FitShape,
    FoldDead,
    MeasureLosses,
    Pass,
    ProtectSensitive,
    Score,
    Select,
    Verify,
    choosing,
    default_pipeline,
)
from graphprune.planning.layouts import is_bound
from graphprune.planning.select import block_kinds
from graphprune.planning.share import METHODS
from graphprune.planning.target import parse_targets
from graphprune.recipe.sections import Selection

if TYPE_CHECKING:
    from graphprune.recipe.recipe import Recipe


def pipeline(recipe: Recipe, *, calibrated: bool, measurable: bool, statistics: str = "") -> tuple[Pass, ...]:
    """The passes of a recipe; see :meth:`graphprune.recipe.Recipe.pipeline`."""
    if recipe.passes:
        return tuple(targeted(each, recipe.targets) for each in recipe.passes)
    if recipe.zeros:
        return _without_zeros(recipe)
    select, sharing, proof, seed = recipe.select, recipe.allocate, recipe.proof, recipe.seed
    if not (recipe.targets or sharing.whole or select.demands):
        parse_targets(())
    criterion = recipe.score.criterion or (MEASURED_CRITERION if calibrated else CRITERION)
    allocation = sharing.allocation or (MEASURED_ALLOCATION if calibrated and measurable else ALLOCATION)
    layout = sharing.layout or (STOCK if sharing.shape_target else LAYOUT)
    bound = is_bound(layout)
    refit = STOCK_COMPENSATION if bound else MEASURED_COMPENSATION
    method = recipe.refit.compensation or (refit if calibrated else COMPENSATION)
    if sharing.shape_target and not bound:
        raise OptionError(
            f"a shape target is what a config says, and layout '{layout}' leaves more than that; take 'stock'"
        )
    if bound and method in ADDING:
        raise OptionError(
            f"compensation '{method}' gives layers biases that no config says; with layout '{layout}' take "
            f"'{STOCK_COMPENSATION}', 'ols' or 'none'"
        )
    calibrate = measuring(criterion, allocation)
    if statistics:
        if calibrate is None:
            raise OptionError(f"criterion '{criterion}' takes no statistics; leave 'statistics' out")
        calibrate = replace(calibrate, file=statistics)
    scores_blocks = sharing.whole or block_kinds(select.only)
    passes = default_pipeline(
        Analyze(),
        Score(criterion, seed, recipe.score.block_criterion if scores_blocks else ""),
        Allocate(
            recipe.targets,
            allocation,
            sharing.align,
            sharing.min_units,
            sharing.max_ratio,
            criterion,
            sharing.blocks or "",
            sharing.layers or "",
            sharing.remove_blocks,
            layout=layout,
        ),
        Verify(seed, proof.unproven) if proof.verify else None,
        ProtectSensitive(seed=seed) if select.protect_ratio else None,
        calibrate,
        Compensate(method) if method != "none" else None,
        FitShape(sharing.shape_target) if sharing.shape_target else None,
        MeasureLosses(file=statistics) if goes_by_losses(allocation) and recipe.targets else None,
        Select(
            select.only,
            select.protect,
            select.protect_ratio,
            select.keep,
            select.remove,
            resize_io=select.resize_io,
        )
        if select != Selection()
        else None,
    )
    if allocation != MEASURED_ALLOCATION or sharing.allocation:
        return passes
    return choosing(passes, method, criteria=not recipe.score.criterion)


def _without_zeros(recipe: Recipe) -> tuple[Pass, ...]:
    """The passes that remove what is dead already."""
    select, sharing, proof, seed = recipe.select, recipe.allocate, recipe.proof, recipe.seed
    besides = {
        "blocks, layers and remove_blocks": sharing.blocks or sharing.layers or sharing.remove_blocks,
        "shape_target": sharing.shape_target,
        "keep and remove": select.demands,
        "compensation": recipe.refit.compensation not in (None, "none"),
        "recovery": recipe.recovery.on,
    }
    if given := next((name for name, here in besides.items() if here), None):
        raise OptionError(f"target 'zeros' changes nothing of what the model computes; leave {given} out beside it")
    layout = sharing.layout or LAYOUT
    return default_pipeline(
        Analyze(),
        FindDead(layout, seed),
        Allocate(layout=layout),
        Verify(seed, proof.unproven) if proof.verify else None,
        FoldDead(bool(proof.verify), seed),
        Select(select.only, select.protect, select.protect_ratio) if select != Selection() else None,
    )


def measuring(criterion: str, allocation: str = "") -> Calibrate | None:
    """The pass that takes what a criterion and an allocation need, if they need statistics."""
    needs = find_criterion(criterion).needs
    if allocation and goes_by_losses(allocation):
        return Calibrate(holdout=True)
    return Calibrate(needs == "products") if needs in ("diagonal", "products") else None


def goes_by_losses(allocation: str) -> bool:
    """Whether an allocation needs losses that are measured on trial."""
    return METHODS.find(allocation).needs == "losses"


def targeted(each: Pass, targets: Sequence[str]) -> Pass:
    """An allocation of a user's pipeline that says nothing about what remains, with the targets."""
    if isinstance(each, Allocate) and not (each.targets or each.blocks or each.layers or each.remove):
        return replace(each, targets=tuple(targets))
    return each
