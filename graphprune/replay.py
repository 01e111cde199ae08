"""A plan on an opened model: replayed, or held against a file that somebody has made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from graphprune.analysis.groups import analyze_graph
from graphprune.compiling import Running, finished, finishing, with_note
from graphprune.data.batches import set_apart
from graphprune.defaults import ZEROS
from graphprune.errors import OptionError, PlanError
from graphprune.hosts.export import zeroed
from graphprune.hosts.host import Runnable
from graphprune.hosts.onnx.refits import with_refits
from graphprune.hosts.onnx.verify import file_checks, require_graph
from graphprune.hosts.parity import file_parity
from graphprune.importance.judge import Asked, known_losses, parse_losses
from graphprune.observer import observing
from graphprune.opened import Opened
from graphprune.passes import Compensate, FoldDead, Pass, RemoveBlocks, RemoveDeadNodes, SliceGroups, Verify
from graphprune.passes.verify import verify as run_oracles
from graphprune.pipeline.passes import run_pipeline
from graphprune.pipeline.state import Check, State
from graphprune.planning.metadata import metadata_of
from graphprune.planning.plan import PruningPlan
from graphprune.planning.select import resizable_axes
from graphprune.planning.transfer import fitting
from graphprune.recipe import Recipe
from graphprune.result import Result


def loaded(plan: PruningPlan | str | Path) -> PruningPlan:
    """A plan, or the one in a file.

    Raises:
        PlanError: It is none.
    """
    if isinstance(plan, PruningPlan):
        return plan
    if not isinstance(plan, str | Path):
        raise PlanError(f"a '{type(plan).__name__}' is no plan; give a PruningPlan or the path of its JSON file")
    return PruningPlan.load(plan)


def _planned(state: State, plan: PruningPlan) -> State:
    """The state of a folded model that has a plan for it.

    Raises:
        PlanError: The plan belongs to another model.
    """
    folded = state.host.folded()
    graph = folded.graph()
    analysis = analyze_graph(graph, resizable=resizable_axes(graph, plan.options.get("resize_io", ())))
    plan = fitting(plan, analysis, state.host.metadata)
    kept, removed = plan.kept_of(analysis), plan.blocks_of(analysis)
    return replace(state, host=folded, original=folded, analysis=analysis, kept=kept, removed=removed, plan=plan)


def _losses(plan: PruningPlan, host: Runnable) -> tuple[tuple[Asked, ...], str]:
    """How the plan's recipe compares outputs; what to say where this model has other ones."""
    said = Recipe.read(plan.recipe).judge.loss if plan.recipe else ()
    try:
        return known_losses(parse_losses(said), host), ""
    except OptionError as error:  # of the same model elsewhere, whose outputs have other names
        return (), f"outputs are compared as the graph says, not as when the plan was made: {error}"


def applied(opened: Opened, plan: PruningPlan | str | Path, recipe: Recipe, running: Running) -> Result:
    """Replays a plan, with its refit where there are data.

    Args:
        opened: The model.
        plan: The plan, or its file.
        recipe: Whether to prove the result, and by which seed.
        running: How passes are run, and whether to measure latency.

    Raises:
        PlanError: The plan belongs to another model.
    """
    observer = observing(running.progress)
    plan = loaded(plan)
    state = _planned(opened.start(observer), plan)
    assert state.plan is not None
    method = state.plan.options.get("compensation", "none")
    batches, held = set_apart(opened.batches(recipe.seed))
    asked, unknown = _losses(plan, state.host)
    state = replace(state, batches=batches, held=held, plan=state.plan.without_refit(), asked=asked)
    passes: list[Pass] = [SliceGroups(), RemoveBlocks(), RemoveDeadNodes()]
    if recipe.proof.verify:
        passes.append(Verify(recipe.seed, recipe.proof.unproven))
    if plan.options.get(ZEROS):
        passes.append(FoldDead(bool(recipe.proof.verify), recipe.seed))
        method = "none"
    elif batches is not None and method != "none":
        passes.append(Compensate(method))
    behind = finishing(state, recipe, running)
    observer.expected([each.name for each in (*passes, *behind)])
    state = run_pipeline(
        passes, state, dump_after=running.dump_after, dump=running.dump, verify_each=running.verify_each
    )
    result = replace(finished(state, recipe, running), before=opened.before)
    if plan.options.get("recovered"):
        result = with_note(result, "the plan was made with recovery, which is not repeated: nothing is trained here")
    if batches is not None and unknown:
        result = with_note(result, unknown)
    if method == "none" or batches is not None:
        return result
    return with_note(
        result,
        f"the plan was made with compensation ({method}), which is not repeated: weights are only cut; give "
        "calibration data to refit them",
    )


def checked_file(
    opened: Opened, pruned: str | Path, plan: PruningPlan | str | Path, *, seed: int = 0, graph: str = "auto"
) -> tuple[Check, ...]:
    """Proves that an ONNX file is what a plan makes of a model; see :func:`graphprune.verify`."""
    require_graph(graph)
    plan = loaded(plan)
    if not isinstance(pruned, str | Path):
        raise OptionError(
            f"verify takes the path of an ONNX file, got a '{type(pruned).__name__}'; write one with result.save_onnx"
        )
    path, begun = Path(pruned), State(opened.host)
    state = _planned(begun, plan)
    host, analysis, kept, removed = state.host, state.analysis, state.kept, state.removed
    assert analysis is not None
    assert state.plan is not None
    plan = state.plan
    sliced = run_pipeline([SliceGroups(), RemoveBlocks(), RemoveDeadNodes()], state).host
    checks = run_oracles(host, sliced, analysis, kept, removed, seed=seed)
    sliced, refits = with_refits(path, plan, host, sliced, analysis, kept)
    checks = (*checks, *file_checks(path, sliced, metadata_of(plan), refits=refits, seed=seed, graph=graph))
    if not all(check.passed for check in checks) or not refits.complete:
        return checks
    parity = file_parity(sliced, path, host.example_inputs(seed), zeroed(state))
    return *checks, replace(parity, note=f"file = plan replayed{refits.note and '; '}{refits.note}")
