"""The Python interface: prune, analyze, apply, verify, profile."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from graphprune.analysis.groups import Analysis, analyze_graph
from graphprune.collector import frozen_heap
from graphprune.data.batches import SAMPLES, open_batches
from graphprune.data.classes import told
from graphprune.defaults import ALLOCATION, CRITERION, MEASURED_ALLOCATION, MEASURED_CRITERION
from graphprune.early import n_leading, require_options, require_selected, with_reach
from graphprune.errors import GraphpruneWarning, ModelError, OptionError, OutputError, PlanError, TargetError
from graphprune.evaluation import Evaluation, Runner, open_evaluation, require_evaluation
from graphprune.hosts.onnx.blame import blaming_models
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.refits import exported_digests, with_refits
from graphprune.hosts.onnx.verify import file_checks
from graphprune.hosts.parity import EXPORTED_DOUBLE, file_parity
from graphprune.importance import block_criterion as find_block_criterion
from graphprune.importance import criterion as find_criterion
from graphprune.look import selectors
from graphprune.observer import Observer, observing
from graphprune.opening import Shapes, open_host, require_samples, require_seed
from graphprune.passes import (
    Allocate,
    Analyze,
    Calibrate,
    Compensate,
    MeasureLosses,
    ProtectSensitive,
    RemoveBlocks,
    RemoveDeadNodes,
    Score,
    Select,
    Verify,
    all_passes,
    default_pipeline,
)
from graphprune.passes.slice_groups import SliceGroups
from graphprune.passes.verify import verify as run_oracles
from graphprune.pipeline.host import Host
from graphprune.pipeline.passes import Pass, named, parse_pipeline, run_pipeline
from graphprune.pipeline.state import Check, State
from graphprune.planning.allocation import Limits
from graphprune.planning.cost import EVERYTHING_NEEDED, CostModel, build_cost_model
from graphprune.planning.latency import Attempt, LatencyModel, Profile
from graphprune.planning.plan import PruningPlan, fingerprint
from graphprune.planning.select import block_kinds
from graphprune.planning.share import MEASURED
from graphprune.planning.target import Target, parse_targets
from graphprune.planning.transfer import fitting
from graphprune.profiling.profile import cut, latency_model, make_profile
from graphprune.profiling.refine import latency_target, refine, sentences, split, timed
from graphprune.proof.compare import compare, require
from graphprune.proof.masks import masks
from graphprune.report.data import BlockRow, Cost, GroupRow, LatencyRow, Metric, Report, metric_row
from graphprune.report.inputs import input_rows
from graphprune.report.movement import Movement, movement
from graphprune.report.notes import already_met
from graphprune.report.titles import group_title
from graphprune.report.widths import whole_rows, width_rows
from graphprune.runtime import sessions as runtime
from graphprune.statistics.readers import told as told_of_readers
from graphprune.suggest import meant
from graphprune.turns import in_turn

if TYPE_CHECKING:
    from graphprune.hosts.torch.host import TorchHost

LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class Result:
    """A pruned model.

    Attributes:
        plan: Which units stay; JSON by ``plan.save(path)``.
        report: Requested and realised costs, latency, and the proof.
        host: The pruned model as graphprune holds it.
        module: For PyTorch input, the pruned module: the user's own class with sliced parameters where the proof says
            that this is right, otherwise the pruned graph module; ``None`` for ONNX input.
        state: The compiler's state after the last pass.
    """

    plan: PruningPlan = field(repr=False)
    report: Report
    host: Host = field(repr=False)
    state: State = field(repr=False)
    module: Any = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Result({self.report!r}, host={self.host.kind}, module={type(self.module).__name__})"

    def __str__(self) -> str:
        """The report's tables."""
        return str(self.report)

    @in_turn
    def save_onnx(self, path: str | Path) -> None:
        """Writes the pruned model as a checked ONNX file, whole or not at all.

        For PyTorch input with the weights and element types that :attr:`module` has now: train it, call ``half()``,
        and save again. A file of another type is proven anew in onnxruntime; where that cannot run it, a
        warning says so.

        Raises:
            OutputError: It cannot be written, or the module is no longer built as it was.
            ProofError: The file of another type does not compute what the module does.
        """
        if self.module is None:
            self.host.save_onnx(Path(path), metadata_of(self.plan))
            return
        from graphprune.hosts.torch.now import as_it_is

        host, retyped = as_it_is(cast("TorchHost", self.host), self.module)

        def proof(file: Path) -> None:
            try:
                require((file_parity(host, file, host.example_inputs()),))
            except ModelError as error:
                reason = str(error).replace(f"'{file}'", "it")
                checked = ", onnx's reference evaluator in float64 has" if _agrees_in_double(host, file) else ""
                text = f"onnxruntime has not checked '{path}'{checked}: {reason}"
                warnings.warn(text, GraphpruneWarning, stacklevel=4)

        host.save_onnx(Path(path), metadata_of(self.plan), *((proof,) if retyped else ()))

    @in_turn
    def save_state(self, folder: str | Path) -> None:
        """Writes ``model.safetensors`` and ``plan.json`` into a folder; :func:`restore` reads them. No pickle.

        Raises:
            OptionError: The model was an ONNX file, which has no module.
            OutputError: A file cannot be written.
        """
        if self.module is None:
            raise OptionError("an ONNX model has no module to save the state of; use save_onnx and plan.save")
        from graphprune.hosts.torch.state import save_state

        save_state(self.module, self.plan, Path(folder))


@blaming_models
@in_turn
@frozen_heap()
def prune(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str | Iterable[str] | Mapping[str, float | str] | None = None,
    calibration: Any = None,
    samples: int = SAMPLES,
    statistics: str | Path | None = None,
    evaluate: Any = None,
    metric: str | None = None,
    compensation: str | None = None,
    criterion: str | None = None,
    allocation: str | None = None,
    align: int = LIMITS.align,
    protect: str | Sequence[str] = (),
    protect_ratio: float = 0.0,
    only: str | Sequence[str] = (),
    blocks: float | str | None = None,
    layers: float | str | None = None,
    remove_blocks: str | Sequence[str] = (),
    block_criterion: str = "l2",
    min_units: int = LIMITS.min_units,
    max_ratio: float = LIMITS.max_ratio,
    seed: int = 0,
    shapes: Shapes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
    verify: bool | Literal["accept-unproven"] = True,
    latency: bool = False,
    profile: Profile | str | Path | None = None,
    pipeline: str | Sequence[Pass] | None = None,
    dump_after: Iterable[str] = (),
    dump: Callable[[str], None] = lambda text: None,
    verify_each: bool = False,
    progress: Observer | Callable[[str], None] | None = None,
) -> Result:
    """Prunes a model to a budget.

    Args:
        model: An ``.onnx`` file, an ``onnx.ModelProto``, a ``torch.nn.Module``, an ``ExportedProgram``, or the name of
            a factory ``"package.module:factory"``.
        example_inputs: What a PyTorch model is called with: a tuple, a mapping of keyword arguments, or one tensor.
        target: What remains, e.g. ``{"macs": 0.5}``: fractions of the original (at most 1) or absolute numbers of
            ``macs``, ``params``, ``bytes`` or ``latency`` (``0.6`` or ``"5ms"``, as measured in onnxruntime: the result
            is measured, and allocation is repeated where it is above the target, or more than 5 % below). May be absent
            where ``blocks``, ``layers``, ``remove_blocks`` or a ``pipeline`` is given; an ``allocate`` of a pipeline
            that names none takes it, and what any other makes has to meet it.
        calibration: Unlabelled inputs to measure the model on: a file, a folder, an iterable, ``"random"``, or
            :class:`Inputs` with options; see :func:`graphprune.data.batches.open_batches`.
        samples: At most so many of them are used.
        statistics: A file (``.npz``) of what was measured on them: read if it is there, else written.
        evaluate: Your metric, measured before and after: a function that takes a
            :class:`graphprune.evaluation.Runner` and returns a number or a mapping of numbers, its name
            (``"package.module:function"``), or labelled data.
        metric: For labelled data: ``accuracy``, ``mse`` or ``perplexity``.
        compensation: How consumers of removed units are refitted: ``affine`` (the default with calibration data),
            ``ols``, ``mean``, ``bn`` (running statistics of batch normalisations only) or ``none`` (without).
        criterion: How units are scored: a name of :data:`graphprune.importance.CRITERIA`, or one that was registered.
            The default is ``l2`` without calibration data and ``obs`` with it.
        allocation: How the budget is shared: a name of :data:`graphprune.planning.share.ALLOCATIONS`. The default is
            ``isomorphic`` without calibration data and ``measured`` with it (if there is a floating-point output).
        align: Widths stay multiples of this where the width allows.
        protect: Patterns of parameters (``layer4``, ``*.bias``, ``fc.weight[0]``) or kinds of group that stay whole. A
            word that is both in this model protects both, and a note says so; ``kind:head``, ``name:head`` and
            ``group:fc.weight[0]`` (a group by its name) mean one of them.
        protect_ratio: This fraction of the groups stays whole: those that the outputs depend on most.
        only: Kinds of group, names of groups, or patterns of parameters; nothing else is pruned. A word is a kind where
            the model has such units, then a group's name, then a pattern; ``kind:head``, ``group:NAME`` and
            ``name:head`` say which, and a note says where a word alone could mean two. Residual branches as a whole are
            left out to meet a target only where ``block`` or ``layer`` is named here, as few as need be and
            after all other kinds that are named.
        blocks: How many residual branches (attention, MLP, convolutional blocks) are left out, those with the lowest
            scores: a number, or a fraction as a float or text with a percent sign. What they save counts for targets.
        layers: How many layers are left out, likewise: an attention and an MLP branch together, say.
        remove_blocks: Names of blocks to leave out, or patterns of the last weights of branches (``layers.3``, also
            for ``model.layers.3``, if no other scope ends so).
        block_criterion: How blocks are scored: ``l2`` (the norm of a branch's last weights), ``random``, with
            calibration data ``bi`` (how far the stream turns) or ``ablation`` (what the outputs lose), or one that was
            registered.
        min_units: At least so many units stay in every group.
        max_ratio: At most this fraction of a group's units is removed.
        seed: Of random scores and of the proof's inputs.
        shapes: Shapes of inputs by name, for dynamic axes of ONNX files.
        dynamic_shapes: Dynamic axes of a PyTorch model, in the notation of ``torch.export.export``.
        trust: Whether a ``.pt2`` file may be loaded, which can run its author's code.
        verify: Whether to prove the result (masked and permutation oracles, onnxruntime on the exported file). A proof
            that cannot see anything, since outputs and what is inside hardly vary on the example, fails; with
            ``"accept-unproven"`` the report says so instead.
        latency: Whether to measure latency in onnxruntime before and after.
        profile: The table of latencies that :func:`profile` made, or its file; absent, a quick one is made where a
            latency target needs it. One of another machine is taken at its word: nothing is measured here.
        pipeline: Passes to run instead of the default ones, as text or as objects.
        dump_after: Names of passes after which the graph is given to ``dump``.
        dump: Takes the text of a graph.
        verify_each: Whether to check the model after every pass.
        progress: Told each step before it begins: a function that takes a sentence, or an :class:`Observer`.

    Returns:
        The pruned model with its plan and report.

    Raises:
        GraphpruneError: One of its kinds, with a message that says what to do.
    """
    observer = observing(progress)
    protect, only, remove_blocks = selectors(protect), selectors(only), selectors(remove_blocks)
    if pipeline is not None:
        _require_none_beside(
            criterion=criterion,
            allocation=allocation,
            compensation=compensation,
            statistics=statistics,
            align=align != LIMITS.align,
            min_units=min_units != LIMITS.min_units,
            max_ratio=max_ratio != LIMITS.max_ratio,
            protect=protect,
            protect_ratio=protect_ratio,
            only=only,
            blocks=blocks,
            layers=layers,
            remove_blocks=remove_blocks,
        )
    require_seed(seed)
    require_samples(samples, calibration)
    require_evaluation(evaluate, metric)
    find_block_criterion(block_criterion)
    if profile is not None and not isinstance(profile, Profile):
        profile = Profile.load(profile)
    whole = bool(blocks is not None or layers is not None or remove_blocks)
    parsed = () if target is None and (whole or pipeline is not None) else parse_targets(target or ())
    measured = calibration is not None
    criterion = criterion or (MEASURED_CRITERION if measured else CRITERION)
    rung = compensation or ("affine" if measured else "none")

    def default(allocation: str) -> Sequence[Pass]:
        calibrate = measuring(criterion, allocation)
        if statistics is not None:
            if calibrate is None:
                raise OptionError(f"criterion '{criterion}' takes no statistics; leave 'statistics' out")
            calibrate = replace(calibrate, file=str(statistics))
        return default_pipeline(
            Analyze(),
            Score(criterion, seed, block_criterion if whole or block_kinds(only) else ""),
            Allocate(
                tuple(map(str, parsed)),
                allocation,
                align,
                min_units,
                max_ratio,
                criterion,
                "" if blocks is None else str(blocks),
                "" if layers is None else str(layers),
                remove_blocks,
            ),
            Verify(seed, _unproven(verify)) if verify else None,
            ProtectSensitive(seed=seed) if protect_ratio else None,
            calibrate,
            Compensate(rung) if rung != "none" else None,
            MeasureLosses() if allocation == MEASURED and parsed else None,
            Select(only, protect, protect_ratio) if only or protect or protect_ratio else None,
        )

    passes: Sequence[Pass]
    if pipeline is None:
        passes = default(allocation or ALLOCATION)
    else:
        passes = parse_pipeline(pipeline, all_passes()) if isinstance(pipeline, str) else tuple(pipeline)
        passes = tuple(_targeted(each, parsed) for each in passes)
    require_options(passes, calibrated=measured)
    observer.begin("open")
    start = time.perf_counter()
    host = open_host(model, example_inputs, shapes=shapes, trust=trust, dynamic_shapes=dynamic_shapes)
    opened = time.perf_counter() - start
    if pipeline is None and allocation is None and measured and _has_loss(host):
        passes = default(MEASURED_ALLOCATION)
    wanted, present = set(dump_after), named(passes)
    if unknown := wanted.difference(present):
        raise OptionError(f"cannot dump after {meant(min(unknown), present)}; the passes are {', '.join(present)}")

    def run(part: Sequence[Pass], state: State) -> State:
        here = wanted.intersection(named(part))
        return run_pipeline(part, state, dump_after=here, dump=dump, verify_each=verify_each, observer=observer)

    n = n_leading(passes)
    state = run(passes[:n], State(host, seconds=(("open", opened),), observer=observer))
    require_selected(state, passes)  # before any data are read
    passes = passes[n:]
    state = with_reach(state, passes)
    if calibration is not None:
        state = replace(state, batches=open_batches(calibration, host, samples=samples, seed=seed))
    evaluation = None
    if evaluate is not None:
        observer.begin("evaluate the original")
        evaluation = open_evaluation(evaluate, host, metric=metric)
        _ = evaluation.before  # before the work: it may raise
    attempts: tuple[Attempt, ...] = ()
    if asked := latency_target(passes):
        first, repeated, rest = split(passes)
        state = run(first, state)
        model_latency = _latency_model(host, state, profile, align, observer)
        where = model_latency.profile.machine
        timing = timed(where.threads, where.provider)
        state, attempts = refine(state, repeated, model_latency, asked, host, run, timing)
        state = run(rest, state)
    else:
        state = run(passes, state)
    if pipeline is not None:
        state.require_sliced()
    result = _finish(
        host,
        state,
        verify=verify,
        latency=latency,
        observer=observer,
        seed=seed,
        evaluation=evaluation,
        attempts=attempts,
    )
    if pipeline is not None:
        _require_met(result, parsed)
    if profile is None or asked:
        return result
    note = "no target is about latency, and the profile was not used"
    return replace(result, report=replace(result.report, notes=(*result.report.notes, note)))


def _has_loss(host: Host) -> bool:
    """Whether an output is floating-point, so that what it loses can be measured: of a class or an index it cannot."""
    graph = host.graph()
    return any("float" in graph.values[name].dtype for name in graph.outputs)


def _require_none_beside(**options: Any) -> None:
    """Refuses options of passes beside a pipeline of the user's, where they do nothing."""
    if ignored := [name for name, value in options.items() if value]:
        raise OptionError(
            f"'{ignored[0]}' has no effect beside a pipeline; give it to the pass that takes it, as in "
            "'allocate{macs=0.5 align=16}'"
        )


def _targeted(each: Pass, targets: Sequence[Target]) -> Pass:
    """An allocation of a user's pipeline that says nothing about what remains, with the targets."""
    if isinstance(each, Allocate) and not (each.targets or each.blocks or each.layers or each.remove):
        return replace(each, targets=tuple(map(str, targets)))
    return each


def _require_met(result: Result, targets: Sequence[Target]) -> None:
    """Refuses what a pipeline of the user's makes if it is larger than the targets beside it allow.

    Biases that a refit has added are not counted: targets are about what is left of the model.
    """
    assert result.state.analysis is not None
    added = _added(result.state, result.state.analysis, _planned(result.state, result.state.analysis))
    for target in targets:
        cost = next((cost for cost in result.report.costs if cost.metric == target.metric), None)
        if cost is None or cost.measured is not None:
            continue
        if cost.after - added.get(target.metric, 0) > target.limit(cost.before) * (1 + 1e-9):
            raise TargetError(
                f"the pipeline keeps {cost.fraction:.1%} of the {target.metric}, which is more than target '{target}' "
                "allows; give the pipeline's 'allocate' this target, or leave one of them out"
            )


def _loaded(plan: PruningPlan | str | Path) -> PruningPlan:
    if isinstance(plan, PruningPlan):
        return plan
    if not isinstance(plan, str | Path):
        raise PlanError(f"a '{type(plan).__name__}' is no plan; give a PruningPlan or the path of its JSON file")
    return PruningPlan.load(plan)


def measuring(criterion: str, allocation: str = "") -> Calibrate | None:
    """The pass that takes what a criterion and an allocation need, if they need statistics."""
    needs = find_criterion(criterion).needs
    if allocation == MEASURED:
        return Calibrate(apart=True)
    return Calibrate(needs == "products") if needs in ("diagonal", "products") else None


def _latency_model(host: Host, state: State, profile: Profile | None, align: int, observer: Observer) -> LatencyModel:
    """What the model takes, by the profile given or by one that is made now."""
    observer.begin("profile")
    pieces = cut(host, state.analyzed("allocate"))
    if profile is None:
        profile = make_profile(
            host,
            pieces,
            align=align,
            quick=True,
            advance=observer.counter("profile"),
        )
    return latency_model(profile, pieces)


@blaming_models
@in_turn
@frozen_heap()
def profile(
    model: Any,
    example_inputs: Any = None,
    *,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    align: int = 8,
    quick: bool = False,
    seconds: float | None = None,
    shapes: Shapes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Measures what the operators of a model take in onnxruntime at smaller widths, on this machine.

    Args:
        model: As for :func:`prune`, and so the other arguments that are not listed.
        example_inputs: What a PyTorch model is called with.
        threads: Threads within an operator; 0 means all cores.
        provider: onnxruntime's execution provider.
        align: Widths are measured at multiples of this where possible.
        quick: Fewer widths and less time.
        seconds: About how long the runs may take in all (absent: 120, quick 20); loading the models comes on top.
        shapes: Shapes of inputs by name: latency is measured at these.
        dynamic_shapes: Dynamic axes of a PyTorch model.
        trust: Whether a ``.pt2`` file may be loaded.
        advance: Told how many operator shapes have been measured, of how many.

    Returns:
        The profile; ``profile.save(path)`` writes JSON, ``Profile.load(path)`` reads it.

    Raises:
        OptionError: The provider is unknown, or a number is not positive.
        ModelError: The model cannot be opened or run.
    """
    host = open_host(model, example_inputs, shapes=shapes, trust=trust, dynamic_shapes=dynamic_shapes)
    return make_profile(
        host,
        cut(host),
        threads=threads,
        provider=provider,
        align=align,
        quick=quick,
        seconds=seconds,
        advance=advance,
    )


@blaming_models
@in_turn
@frozen_heap()
def apply(
    model: Any,
    plan: PruningPlan | str | Path,
    example_inputs: Any = None,
    *,
    calibration: Any = None,
    samples: int = SAMPLES,
    shapes: Shapes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
    verify: bool | Literal["accept-unproven"] = True,
    latency: bool = False,
    progress: Observer | Callable[[str], None] | None = None,
) -> Result:
    """Replays a plan on the model that it was made for, or on another checkpoint of it.

    Where the plan was made with compensation, the weights are refitted again if there is ``calibration`` data, as for
    :func:`prune`; otherwise they are only cut, and the report says so.

    Raises:
        PlanError: The plan belongs to another model.
    """
    observer = observing(progress)
    observer.begin("open")
    require_samples(samples, calibration)
    plan = _loaded(plan)
    host = open_host(model, example_inputs, shapes=shapes, trust=trust, dynamic_shapes=dynamic_shapes)
    folded = host.folded()
    analysis = analyze_graph(folded.graph())
    plan = fitting(plan, analysis, _metadata_in(host))
    kept, removed = plan.kept_of(analysis), plan.blocks_of(analysis)
    rung = plan.options.get("compensation", "none")
    batches = None if calibration is None else open_batches(calibration, host, samples=samples)
    state = State(
        folded,
        folded,
        analysis,
        kept=kept,
        removed=removed,
        plan=plan.without_refit(),
        batches=batches,
        observer=observer,
    )
    passes: list[Pass] = [SliceGroups(), RemoveBlocks(), RemoveDeadNodes()]
    if verify:
        passes.append(Verify(unproven=_unproven(verify)))
    if batches is not None and rung != "none":
        passes.append(Compensate(rung))
    state = run_pipeline(passes, state, observer=observer)
    result = _finish(host, state, verify=verify, latency=latency, observer=observer)
    if rung == "none" or batches is not None:
        return result
    note = (
        f"the plan was made with compensation ({rung}), which is not repeated: weights are only cut; give calibration "
        "data to refit them"
    )
    return replace(result, report=replace(result.report, notes=(*result.report.notes, note)))


@blaming_models
@in_turn
@frozen_heap()
def verify(
    original: Any,
    pruned: str | Path,
    plan: PruningPlan | str | Path,
    example_inputs: Any = None,
    *,
    shapes: Shapes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
    seed: int = 0,
    graph: str = "auto",
) -> tuple[Check, ...]:
    """Proves that an ONNX file is what a plan makes of a model, whoever pruned it.

    Beside the oracles, in this order: ``interface``, ``graph`` (node by node) and ``tensors`` (bit for bit) must be
    those of the model that the plan makes, written as :meth:`Result.save_onnx` writes it; then ``numbers`` and
    ``onnxruntime`` run both. Of a file that another tool has written in its own way, a check compares what it can and
    is ``partial``: such a file is not proven, whether or not it has passed.

    Args:
        original: The model before, as for :func:`prune`.
        pruned: The ONNX file after.
        plan: The plan.
        example_inputs: For PyTorch originals.
        shapes: Shapes of inputs by name.
        dynamic_shapes: For PyTorch originals: those that the plan was made with.
        trust: Whether a ``.pt2`` file may be loaded.
        seed: Of the inputs.
        graph: What becomes of a file whose graph differs: ``auto`` refuses it where it looks edited and compares
            numbers where another tool has written it, ``exact`` always refuses, ``numeric`` always compares numbers.

    Returns:
        The checks, passed or not; those that come after one that has failed may be missing.

    Raises:
        PlanError: The plan belongs to another model.
        ModelError: A file cannot be read or run.
    """
    require_seed(seed)
    plan = _loaded(plan)
    if not isinstance(pruned, str | Path):
        raise OptionError(
            f"verify takes the path of an ONNX file, got a '{type(pruned).__name__}'; write one with result.save_onnx"
        )
    host = open_host(original, example_inputs, shapes=shapes, trust=trust, dynamic_shapes=dynamic_shapes).folded()
    analysis = analyze_graph(host.graph())
    plan = fitting(plan, analysis, _metadata_in(host))
    kept, removed = plan.kept_of(analysis), plan.blocks_of(analysis)
    path = Path(pruned)
    state = State(host, host, analysis, kept=kept, removed=removed, plan=plan)
    sliced = run_pipeline([SliceGroups(), RemoveBlocks(), RemoveDeadNodes()], state).host
    checks = run_oracles(host, sliced, analysis, kept, removed, seed=seed)
    sliced, refits = with_refits(path, plan, host, sliced, analysis, kept)
    checks = (*checks, *file_checks(path, sliced, metadata_of(plan), refits=refits, seed=seed, graph=graph))
    if not all(check.passed for check in checks) or not refits.complete:
        return checks
    return (
        *checks,
        replace(
            file_parity(sliced, path, host.example_inputs(seed), _zeroed(state)),
            note=f"file = plan replayed{refits.note and '; '}{refits.note}",
        ),
    )


@blaming_models
@in_turn
def restore(
    model: Any,
    folder: str | Path,
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
) -> Any:
    """The pruned module that :meth:`Result.save_state` wrote, on a fresh instance of the original module.

    Args:
        model: The original module.
        folder: The folder.
        example_inputs: As for :func:`prune`.
        dynamic_shapes: Those that the plan was made with.

    Raises:
        PlanError: The folder's plan belongs to another model, or a tensor has another shape.
    """
    from graphprune.hosts.torch.state import load_state

    result = apply(model, Path(folder) / "plan.json", example_inputs, dynamic_shapes=dynamic_shapes, verify=False)
    if result.module is None:
        raise PlanError("an ONNX model has no module to restore; use apply")
    load_state(result.module, Path(folder))
    return result.module


def _metadata_in(host: Host) -> Mapping[str, str] | None:
    return host.metadata if isinstance(host, OnnxHost) else None


@blaming_models
@in_turn
def export_onnx(
    model: Any,
    example_inputs: Any,
    path: str | Path,
    *,
    shapes: Shapes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
) -> None:
    """Exports a PyTorch model, unpruned, to an ONNX file that takes the plans that are made on the model.

    The file's metadata say which of its tensors is which of the model's (exporters keep few names), and of which model.

    Args:
        model: A ``torch.nn.Module``, an ``ExportedProgram``, or a factory's name, as for :func:`prune`.
        example_inputs: As for :func:`prune`; may be ``None`` where the model brings its own.
        path: The file; written whole or not at all.
        shapes: As for :func:`prune`.
        dynamic_shapes: As for :func:`prune`; plans must then be made with the same.
        trust: As for :func:`prune`.

    Raises:
        OptionError: The model is an ONNX file already.
        OutputError: It cannot be exported or written.
    """
    host = open_host(model, example_inputs, shapes=shapes, trust=trust, dynamic_shapes=dynamic_shapes)
    if isinstance(host, OnnxHost):
        raise OptionError("the model is an ONNX file already; export takes a PyTorch model")
    from graphprune.hosts.torch.host import TorchHost

    assert isinstance(host, TorchHost)
    host.export_onnx(Path(path), fingerprint(host.folded().graph()))


def metadata_of(plan: PruningPlan) -> dict[str, str]:
    """What graphprune writes into a file's ``metadata_props``."""
    from graphprune.version import __version__

    targets = ", ".join(plan.options.get("targets", ()))
    return {
        "graphprune.version": __version__,
        "graphprune.fingerprint": plan.fingerprint,
        "graphprune.targets": targets,
    }


def _moved(state: State, host: Host, macs: float, seed: int) -> Movement | None:
    """How far the outputs have moved, on inputs that nothing has been fitted to where there are some."""
    options = state.plan.options if state.plan is not None else {}
    held = options.get("allocation") == MEASURED and not state.compensated
    original = state.original or host
    return movement(original, state.host, state.batches, held=held, macs=macs, seed=seed)


def _finish(
    host: Host,
    state: State,
    *,
    verify: object,
    latency: bool,
    observer: Observer,
    seed: int = 0,
    evaluation: Evaluation | None = None,
    attempts: tuple[Attempt, ...] = (),
) -> Result:
    """Exports, proves the exported file, measures, builds the module and the report.

    A module that torch.onnx cannot write is still a result, proven by both oracles; a note says what is missing.
    """
    plan = state.plan
    if plan is None or state.analysis is None or state.original is None:
        raise OptionError("the pipeline made no plan; it needs 'analyze', 'score' and 'allocate'")
    rows: tuple[LatencyRow, ...] = ()
    seconds, notes = list(state.seconds), _notes(state)
    if verify or latency:
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            smaller = Path(folder) / "after.onnx"
            observer.begin("export")
            begin = time.perf_counter()
            try:
                state.host.save_onnx(smaller, metadata_of(plan))
            except OutputError as error:
                if latency or state.host.kind != "torch":
                    raise
                reason = str(error).replace(f"cannot write '{smaller}': ", "")
                notes = (*notes, f"there is no ONNX file, and onnxruntime has not checked the result: {reason}")
            if state.host.kind == "torch" and plan.options.get("compensated") and smaller.exists():
                plan = replace(plan, options={**plan.options, "exported": exported_digests(smaller)})
            seconds.append(("export", time.perf_counter() - begin))
            inputs = state.original.example_inputs(seed)
            if verify and smaller.exists():
                try:
                    state = replace(
                        state, checks=(*state.checks, file_parity(state.host, smaller, inputs, _zeroed(state)))
                    )
                except ModelError as error:
                    if latency or state.host.kind != "torch":
                        raise
                    reason = str(error).replace(f"'{smaller}'", "it")
                    notes = (*notes, f"onnxruntime has not checked the ONNX file: {reason}")
                require(state.checks)
            if latency:
                observer.begin("measure latency")
                before = Path(folder) / "before.onnx"
                host.save_onnx(before)
                rows = tuple(
                    LatencyRow(each.threads, *each.milliseconds)
                    for each in runtime.measure([before, smaller], [inputs, inputs])
                )
    if attempts and state.latency is not None:
        notes = (*notes, *sentences(attempts, state.latency))
    module, made = None, None
    if state.host.kind == "torch":
        observer.begin("module")
        from graphprune.hosts.torch.module import pruned_module

        made = pruned_module(state)
        module, notes = made.module, (*notes, *made.notes)
        if verify:
            state = replace(state, checks=(*state.checks, *made.checks))
        if made.attributes:
            plan = replace(
                plan,
                options={**plan.options, "attributes": {row.path: [row.before, row.after] for row in made.attributes}},
            )
    metrics: tuple[Metric, ...] = ()
    if evaluation is not None:
        observer.begin("evaluate")
        after = evaluation(Runner(state.host, module))
        metrics = tuple(metric_row(name, value, after.get(name, math.nan)) for name, value in evaluation.before.items())
        if evaluation.classes:
            notes = (*notes, told(evaluation.classes, evaluation.where))
    report = _report(state, attempts)
    moved = _moved(state, host, report.cost("macs").before, seed) if verify else None
    report = replace(
        report,
        latency=rows,
        metrics=metrics,
        notes=(*report.notes, *notes),
        moved=moved,
        seconds=tuple(seconds),
        attributes=made.attributes if made is not None else (),
        classes=evaluation.classes if evaluation is not None else {},
    )
    return Result(plan, report, state.host, state, module)


def _agrees_in_double(host: Host, path: Path) -> bool:
    """Whether a file that onnxruntime cannot run equals its host in float64; not if nothing else can run it either.

    Raises:
        ProofError: It does not equal it.
    """
    inputs = host.example_inputs()
    try:
        expected, got = host.run(inputs, double=True), OnnxHost.load(path).run(inputs, double=True)
    except ModelError:
        return False
    note = "file = pruned model, in float64"
    check = compare("reference evaluator", expected, got, note=note, rounding=EXPORTED_DOUBLE)
    require((replace(check, informative=True),))
    return True


def _unproven(verify: object) -> str:
    """What a proof makes of what it cannot see.

    Raises:
        OptionError: The option is none of those that there are.
    """
    if verify not in (True, False, "accept-unproven"):
        raise OptionError(f"unknown value '{verify}' of 'verify'; expected True, False or \"accept-unproven\"")
    return "accept" if verify == "accept-unproven" else "refuse"


def _zeroed(state: State) -> OnnxHost | None:
    """The original with zeros for the weights of removed units, where the model is an ONNX file."""
    if not isinstance(state.original, OnnxHost) or state.analysis is None:
        return None
    return state.original.zeroed(masks(state.analysis, state.kept, state.removed))


def _notes(state: State) -> tuple[str, ...]:
    notes = []
    if state.original is not None and state.original.pinned:
        names = ", ".join(f"'{name}'" for name in state.original.pinned)
        notes.append(
            f"sizes or branches of the model follow from the values of {names}, and were traced as in the example; "
            "a module refuses other values, an ONNX file does not notice them"
        )
    if state.batches is not None and state.batches.random:
        notes.append(
            "the calibration inputs are made up, and what is measured on them says little about yours; give real ones "
            "(--calibration)"
        )
    if state.protected:
        notes.append(f"the most sensitive groups stay whole: {', '.join(state.protected)}")
    if state.compensated:
        before = float(np.mean([row.before for row in state.compensated]))
        after = float(np.mean([row.after for row in state.compensated]))
        n_readers = len({row.node for row in state.compensated})
        notes.append(
            f"{n_readers} readers of removed units were refitted: the error of their outputs fell from "
            f"{before:.2%} to {after:.2%} of the outputs' variance on the calibration data, in the mean"
        )
    if state.left_alone:
        notes.append(f"these readers of removed units were not refitted: {told_of_readers(state.left_alone)}")
    if state.inexact:
        assert state.analysis is not None
        kinds = dict.fromkeys(g.kind for g in state.analysis.groups if not g.exact and g.factor in state.kept)
        notes.append(
            f"units of kind {', '.join(kinds)} were removed, which shifts the statistics of a normalisation (a mean, a "
            "norm, a maximum) for the others; the proof counts the kept units only"
        )
    if unseen := dict.fromkeys(name for check in state.checks for name in check.unproven):
        names = ", ".join(f"'{name}'" for name in unseen)
        notes.append(
            f"not proven on the example input, since their units look alike to what reads them: {names}; give an "
            "example that tells them apart"
        )
    if state.removed:
        names = ", ".join(f"'{block.name}'" for block in state.removed)
        notes.append(f"left out as a whole: {names}; the proof replaces what these branches add by zero")
    return (*notes, *dict.fromkeys(state.notes))


def _added(state: State, analysis: Analysis, planned: Mapping[str, float]) -> dict[str, float]:
    """What refits cost: biases of consumers that had none, and equal constants that are not equal any more."""
    held = state.host.stored_costs()
    if held:
        return {metric: max(0.0, held[metric] - planned[metric]) if state.compensated else 0.0 for metric in held}
    names = {row.bias for row in state.compensated if row.bias is not None} - analysis.graph.values.keys()
    values = state.host.graph().values if names else {}
    biases = [values[name] for name in sorted(names) if name in values]
    return {
        "params": float(sum(bias.n_elements for bias in biases)),
        "bytes": float(sum(bias.n_elements * bias.itemsize for bias in biases)),
    }


def _counts(state: State, model: CostModel) -> NDArray[np.float64]:
    """How many units are kept."""
    counts = model.full.copy()
    for i, group in enumerate(model.groups):
        if group.factor in state.kept:
            counts[i] = len(state.kept[group.factor])
    return counts


def _planned(state: State, analysis: Analysis) -> dict[str, float]:
    """What the plan leaves, by metric."""
    assert state.original is not None
    without = analysis.branches.unneeded(state.removed) if state.removed else EVERYTHING_NEEDED
    if state.original.source_costs:
        without |= analysis.branches.idle
    model = build_cost_model(analysis, state.latency, without=without, besides=state.original.stored_costs(inner=True))
    return model.costs(_counts(state, model))


def _report(state: State, attempts: tuple[Attempt, ...]) -> Report:
    analysis = state.analysis
    assert analysis is not None
    assert state.original is not None
    model = build_cost_model(analysis, state.latency, stated=state.original.source_costs)
    counts, before, after = _counts(state, model), model.costs(), _planned(state, analysis)
    if held := state.host.stored_costs():
        after.update(held)
    else:
        for metric, value in _added(state, analysis, after).items():
            after[metric] += value
    assert state.plan is not None
    targets = state.plan.options.get("targets")
    requested = {t.metric: t.limit(before[t.metric]) for t in parse_targets(targets)} if targets else {}
    costs = tuple(Cost(metric, before[metric], after[metric], requested.get(metric)) for metric in before)
    if attempts and attempts[-1].measured is not None:
        measured = attempts[-1].measured
        costs = tuple(replace(c, measured=measured * c.before) if c.metric == "latency" else c for c in costs)
    rows = tuple(
        GroupRow(g.name, g.kind, g.size, int(n), g.exact, group_title(analysis, g))
        for g, n in zip(model.groups, counts, strict=True)
    )
    blocks = tuple(BlockRow(block.name, block.kind, block.tensors) for block in state.removed)
    gone = analysis.branches.unneeded(state.removed).tensors if state.removed else frozenset()
    met = already_met(parse_targets(targets), costs) if targets and not (state.plan.groups or state.removed) else None
    return Report(
        costs,
        rows,
        state.inexact,
        state.checks,
        notes=(met,) if met else (),
        blocks=blocks,
        inputs=input_rows(analysis.graph),
        widths=width_rows(analysis, state.plan, gone),
        whole=whole_rows(analysis, state.left_whole),
    )
