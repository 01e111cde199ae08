"""Carrying out a recipe on an opened model: the passes in order, the data when they are needed, and the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graphprune.data.batches import set_apart
from graphprune.early import n_leading, require_named, require_options, require_selected, with_reach
from graphprune.errors import GraphpruneError, OptionError, TargetError
from graphprune.files import made_folder
from graphprune.hosts.host import Represented
from graphprune.importance.judge import known_losses, parse_losses
from graphprune.observer import Observer, observing
from graphprune.opened import Opened
from graphprune.passes import CheckExport, Evaluate, MeasureLatency, Pass, RebuildModule, Recover, meeting_latency
from graphprune.pipeline import keys
from graphprune.pipeline.passes import named, run_pipeline
from graphprune.pipeline.state import State
from graphprune.planning.latency import Profile
from graphprune.planning.target import Target, parse_targets
from graphprune.profiling.refine import latency_target
from graphprune.recipe import Recipe
from graphprune.report.assemble import added_costs, report_of
from graphprune.result import Result


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a recipe is carried out, and what is done beside it; no other plan comes of that.

    Attributes:
        statistics: A file (``.npz``) of what is measured on the data: read if it is there, else written.
        profile: The table of latencies that :meth:`graphprune.Session.profile` made, or its file.
        latency: Whether to measure latency in onnxruntime before and after.
        recover_data: What recovery trains on, instead of the calibration data.
        recover_folder: Where recovery notes where it stands, and goes on from after a stop.
        export: Whether a file of a PyTorch model is written and proven at once, and not only by
            :meth:`graphprune.result.Result.save_onnx`, which takes it then: its check is in the report.
        dump_after: Names of passes after which the graph is given to ``dump``.
        dump: Takes the text of a graph.
        verify_each: Whether to check the model after every pass.
        progress: Told each step before it begins: a function that takes a sentence, or an
            :class:`graphprune.observer.Observer`.
    """

    statistics: str | Path | None = None
    profile: Profile | str | Path | None = None
    latency: bool = False
    recover_data: Any = None
    recover_folder: str | Path | None = None
    export: bool = False
    dump_after: Iterable[str] = ()
    dump: Callable[[str], None] = field(default=lambda text: None, repr=False)
    verify_each: bool = False
    progress: Observer | Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dump_after", tuple(self.dump_after))
        if self.profile is not None and not isinstance(self.profile, Profile):
            object.__setattr__(self, "profile", Profile.load(self.profile))

    @property
    def file(self) -> str:
        """The file of statistics as passes take it."""
        return "" if self.statistics is None else str(self.statistics)

    @property
    def observer(self) -> Observer:
        """Who is told each step."""
        return observing(self.progress)

    @property
    def table(self) -> Profile | None:
        """The table of latencies."""
        return self.profile if isinstance(self.profile, Profile) else None


Named = Recipe | str | Path | Mapping[str, Any] | None
"""A recipe, its name, its file, or its dictionary; see :meth:`graphprune.Recipe.read`."""
Reach = Callable[[State, Sequence[Pass]], State]
"""From an analysed state and the passes to come to the state that says which groups are to be measured."""


def compiled(opened: Opened, recipe: Recipe, running: Running, reach: Reach = with_reach) -> Result:
    """Carries out a recipe.

    Args:
        opened: The model.
        recipe: The recipe.
        running: How it is carried out.
        reach: Says which groups are to be measured: those that the recipe can cut.

    Raises:
        GraphpruneError: One of its kinds, with a message that says what to do.
    """
    state, rest, run = _begun(opened, recipe, running, reach)
    behind = finishing(state, recipe, running)
    running.observer.expected([each.name for each in (*rest, *behind)])
    state = run(rest, state)
    if recipe.passes:
        state.require_sliced()
    result = replace(finished(noted(state, recipe), recipe, running), before=opened.before)
    if recipe.passes:
        require_met(result, parse_targets(recipe.targets) if recipe.targets else ())
    if running.profile is None or latency_target(rest):
        return result
    return with_note(result, "no target is about latency, and the profile was not used")


_Run = Callable[[Sequence[Pass], State], State]


def _begun(opened: Opened, recipe: Recipe, running: Running, reach: Reach) -> tuple[State, tuple[Pass, ...], _Run]:
    """A compilation before anything is measured on data: its state, the passes to come, and what runs them."""
    observer = running.observer
    require_recoverable(recipe, running, calibrated=opened.calibrated)
    if recipe.passes and running.statistics is not None:
        raise OptionError(
            "'statistics' has no effect beside a pipeline; give it to the pass that takes it, as in "
            "'allocate{macs=0.5 align=16}'"
        )
    passes = passes_of(opened, recipe, running)
    require_options(passes, calibrated=opened.calibrated, evaluated=opened.evaluate is not None)
    measured = (passes_of(opened, recipe, running, measurable=True),) if opened.calibrated else ()
    require_named(running.dump_after, passes, *measured)
    asked = parse_losses(recipe.judge.loss, used=opened.calibrated or bool(recipe.select.protect_ratio))
    state = opened.start(observer)
    state = replace(state, profile=running.table, asked=known_losses(asked, state.host))
    if opened.calibrated:
        passes = passes_of(opened, recipe, running, measurable=opened.measurable)
    require_named(running.dump_after, passes)

    def run(part: Sequence[Pass], state: State) -> State:
        here = {*running.dump_after}.intersection(named(part))
        return run_pipeline(
            part, state, dump_after=here, dump=running.dump, verify_each=running.verify_each, observer=observer
        )

    n = n_leading(passes)
    state = run(passes[:n], state)
    require_selected(state, passes)  # before any data are read
    state = reach(state, passes[n:])
    fitted, held = set_apart(opened.batches(recipe.seed), needed=recipe.recovery.on)
    more = opened.more(running.recover_data, recipe.seed)
    folder = None if running.recover_folder is None else made_folder(Path(running.recover_folder), "--recover-folder")
    state = replace(state, batches=fitted, held=held, more=more, folder=folder, evaluation=opened.evaluation(observer))
    return state, passes[n:], run


@dataclass(frozen=True)
class Reaching:
    """Says that some groups are to be measured, whatever the passes to come can cut.

    Attributes:
        names: Of the groups; ``None``: all.
    """

    names: frozenset[str] | None

    def __call__(self, state: State, passes: Sequence[Pass]) -> State:
        """The state that says so."""
        return state if self.names is None else replace(state, reach=self.names)


def measure_before(opened: Opened, recipes: Iterable[Recipe], running: Running) -> Reaching:
    """Measures on data all that recipes ask for before they allocate, once for all, and keeps it.

    Returns:
        What says which groups were measured.
    """
    recipes = list(recipes)
    reach = reach_of(opened, recipes, running)
    for recipe in recipes:
        with suppress(GraphpruneError):  # whoever carries the recipe out meets it again, and says so
            state, rest, run = _begun(opened, recipe, running, reach)
            run(rest[: next((i for i, each in enumerate(rest) if keys.PLAN in each.gives), 0)], state)
    return reach


def require_recoverable(recipe: Recipe, running: Running, *, calibrated: bool) -> None:
    """Refuses a recovery without inputs, and inputs without a recovery.

    Raises:
        OptionError: It is one of these.
    """
    if recipe.recovery.on and not calibrated:
        raise OptionError("recovery needs inputs; give some (calibration=..., --calibration PATH)")
    given = next((n for n in ("recover_data", "recover_folder") if getattr(running, n) is not None), None)
    if given and not recipe.recovery.on:
        raise OptionError(f"'{given}' is about recovery, and the model is not recovered; give 'recover' too")


def reach_of(opened: Opened, recipes: Iterable[Recipe], running: Running) -> Reaching:
    """What says that the groups are to be measured that one of several recipes can cut, so that one walk is enough."""
    names: frozenset[str] = frozenset()
    for recipe in recipes:
        passes = passes_of(opened, recipe, running, measurable=opened.calibrated and opened.measurable)
        n = n_leading(passes)
        found = with_reach(run_pipeline(passes[:n], State(opened.host)), passes[n:]).reach
        if found is None:
            return Reaching(None)
        names |= found
    return Reaching(names)


def passes_of(opened: Opened, recipe: Recipe, running: Running, *, measurable: bool = False) -> tuple[Pass, ...]:
    """The passes of a recipe up to the refit; what follows is the business of :func:`finished`."""
    found = recipe.pipeline(calibrated=opened.calibrated, measurable=measurable, statistics=running.file)
    return meeting_latency(found)


def noted(state: State, recipe: Recipe) -> State:
    """The state with a plan that says which recipe it is of.

    Raises:
        OptionError: There is no plan.
    """
    if state.plan is None or state.analysis is None or state.original is None:
        raise OptionError("the pipeline made no plan; it needs 'analyze', 'score' and 'allocate'")
    return replace(state, plan=replace(state.plan, recipe=recipe.to_dict()))


def finishing(state: State, recipe: Recipe, running: Running) -> tuple[Pass, ...]:
    """What is done with a model that is cut and refitted: its file, its latency, the user's module, their metric.

    The file of a PyTorch model is written where somebody looks at it now: a plan that notes what a refit has made of it
    does. Most who prune a module never want one.
    """
    verify, seed = bool(recipe.proof.verify), recipe.seed
    how, recover = recipe.recovery, None
    if how.on:
        recover = Recover(**how.training(), seed=seed)
    refitted = recover is not None or (state.plan is not None and bool(state.plan.options.get("compensated")))
    file = running.export or running.latency or refitted or not state.host.exports
    rebuild = RebuildModule(proof=verify) if state.host.exports else None
    passes: tuple[Pass | None, ...] = (
        *((rebuild, recover) if recover is not None else ()),  # what follows is of trained weights
        CheckExport(seed, required=running.latency) if verify and file else None,
        MeasureLatency(seed) if running.latency else None,
        rebuild if recover is None else None,
        Evaluate() if state.evaluation is not None else None,
    )
    return tuple(each for each in passes if each is not None and not each.gives <= state.done)


def finished(state: State, recipe: Recipe, running: Running) -> Result:
    """The result of a state with a plan and a model that is what the plan says.

    Args:
        state: The state.
        recipe: Whether to prove the result, and by which seed.
        running: Whether to measure latency, and whether to write a file now.
    """
    state = run_pipeline(finishing(state, recipe, running), state)
    if state.export is not None and not state.host.exports:  # of what is a file already, another is soon written
        state.export.close()
        state = replace(state, export=None)
    plan, verify = state.plan, bool(recipe.proof.verify)
    assert plan is not None
    report = report_of(state, moved=verify and not isinstance(state.original, Represented), seed=recipe.seed)
    return Result(plan, report, state.host, state, state.module, proves=verify)


def with_note(result: Result, note: str) -> Result:
    """The result with a sentence more."""
    return replace(result, report=replace(result.report, notes=(*result.report.notes, note)))


def require_met(result: Result, targets: Sequence[Target]) -> None:
    """Refuses what a pipeline of the user's makes if it is larger than the targets beside it allow.

    Biases that a refit has added are not counted: targets are about what is left of the model.

    Raises:
        TargetError: It is larger.
    """
    added = added_costs(result.state)
    for target in targets:
        cost = next((cost for cost in result.report.costs if cost.metric == target.metric), None)
        if cost is None or cost.measured is not None:
            continue
        if cost.after - added.get(target.metric, 0) > target.limit(cost.before) * (1 + 1e-9):
            raise TargetError(
                f"the pipeline keeps {cost.fraction:.1%} of the {target.metric}, which is more than target '{target}' "
                "allows; give the pipeline's 'allocate' this target, or leave one of them out"
            )


def split_keywords(keywords: dict[str, Any]) -> tuple[Running, dict[str, Any]]:
    """Keywords of :class:`Running`, and those of a recipe."""
    names = Running.__dataclass_fields__
    return Running(**{n: v for n, v in keywords.items() if n in names}), {
        n: v for n, v in keywords.items() if n not in names
    }
