"""The command line. It parses, calls the Python interface, and prints; errors are one message and exit status 2."""

from __future__ import annotations

import functools
import inspect as inspect_
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import graphprune as gp
from graphprune.analysis.dependency import DependencyGraph
from graphprune.bounds import parse_bound
from graphprune.defaults import (
    ALLOCATION,
    ALLOCATIONS,
    COMPENSATIONS,
    CRITERIA,
    CRITERION,
    MEASURED_ALLOCATION,
    MEASURED_CRITERION,
    SENSITIVITY_SAMPLES,
)
from graphprune.errors import GraphpruneError, OptionError, OutputError, ProofError
from graphprune.files import output_folder, require_writable, visible, write_text
from graphprune.observer import Observer
from graphprune.report.console import SafeConsole, end_quietly, libraries_quiet, one_line, stdout_of_ours
from graphprune.report.data import inspect_analysis
from graphprune.report.envelope import described, enveloped, failure
from graphprune.report.explain import cut_along, explain_axis, layout_of
from graphprune.report.plots import FORMATS, drawn, plot_front, plot_sensitivity
from graphprune.report.progress import progress_bar
from graphprune.report.terminal import (
    render_checks,
    render_front,
    render_inspection,
    render_profile,
    render_report,
    render_sensitivity,
    render_verdict,
)
from graphprune.report.titles import named
from graphprune.suggest import meant, nearest
from graphprune.usage import JsonErrors
from graphprune.user_code import is_object_name

app = typer.Typer(
    cls=JsonErrors,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Makes PyTorch and ONNX models smaller by removing whole channels, heads and neurons, and proves the result.",
)
out = SafeConsole(soft_wrap=False)
err = SafeConsole(stderr=True)
P = ParamSpec("P")

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An .onnx file, package.module:factory for a Python model, or (with --trust) a .pt2 program.",
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="OUT.onnx", help="The ONNX file to write.")]
ShapeOptions = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=1x3x224x224", help="Shape of an input, where it is dynamic. Repeatable."),
]
Trust = Annotated[bool, typer.Option("--trust", help="Allow loading .pt2 files, which can run their author's code.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Full = Annotated[bool, typer.Option("--full", help="Show the sizes of every weight before and after, too.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Criterion = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"How units are scored: {', '.join(CRITERIA)}. Default: {CRITERION}, with calibration data "
        f"{MEASURED_CRITERION}.",
    ),
]
Allocation = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"How the budget is shared: {', '.join(ALLOCATIONS)}. Default: {ALLOCATION}, with calibration "
        f"data {MEASURED_ALLOCATION}.",
    ),
]
Compensation = Annotated[
    str | None,
    typer.Option(
        metavar="RUNG",
        help=f"How what was lost is made good: {', '.join(COMPENSATIONS)}. Default: affine with calibration data, "
        "else none.",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="DATA",
        help="Unlabelled inputs: .npz, .npy, a folder of images, a text, package.module:loader, or random.",
    ),
]
Samples = Annotated[
    int | None, typer.Option("--samples", help=f"At most so many calibration samples (default {gp.SAMPLES}).")
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Samples of a batch, where it may have any.")]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", metavar="PATH", help="For texts: tokenizer.json, or a tokenizer's folder.")
]
PreprocessOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--preprocess",
        metavar="KEY=VALUE",
        help="For images: fit=crop|stretch|pad, resize=256, resample=bicubic, scale=1/255, mean=0.5,0.5,0.5, "
        "std=0.5,0.5,0.5, color=rgb|bgr, layout=nchw|nhwc; for texts: length=512. Repeatable.",
    ),
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        "--eval",
        metavar="METRIC",
        help="Your metric before and after: package.module:function, or labelled data (as --calibration, with labels).",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Which folder of images is which class: JSON, or a text with one name a line. Default: by number or name.",
    ),
]
MetricName = Annotated[str | None, typer.Option("--metric", help="Of labelled data: accuracy, mse, perplexity.")]
BoundOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--bound",
        metavar="NAME=N",
        help="What a model may ask for: nodes, tensors, memory (bytes beyond its own), seconds (of one run), file "
        "(bytes of a plan, say). Repeatable.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Allow -o to name MODEL itself, which is then replaced.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Skip the proof.")]
AcceptUnproven = Annotated[
    bool, typer.Option("--accept-unproven", help="Take a result whose proof cannot see anything on the example input.")
]
NoLatency = Annotated[bool, typer.Option("--no-latency", help="Skip the latency measurement.")]


class _ToldError(ProofError):
    """An error that the JSON output has told already."""


def _guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turns errors into one message and an exit status: 2 for what a user can mend, 1 for a bug."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        given: Any = kwargs.pop("bound", None)
        debug = bool(kwargs.get("debug"))
        try:
            with (
                libraries_quiet(unless=debug) as warned,
                stdout_of_ours(out),
                gp.bounded(**dict(map(parse_bound, given or ()))),
            ):
                command(*args, **kwargs)
            for text in warned:
                err.print(f"[yellow]warning:[/] {escape(one_line(text))}", soft_wrap=True, highlight=False)
        except BrokenPipeError as error:
            raise typer.Exit(end_quietly(error)) from None
        except (GraphpruneError, KeyboardInterrupt) as error:
            if debug:
                raise
            text = one_line(str(error)) or "interrupted"
            err.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False)
            if kwargs.get("as_json") and not isinstance(error, _ToldError):
                _print_json(failure(error))
            raise typer.Exit(2) from None
        except typer.Exit:
            raise
        except Exception as error:
            if debug:
                raise
            text = f"internal error: {type(error).__name__}: {error}; run again with --debug and report it"
            err.print(f"[bold red]{escape(one_line(text))}[/]", soft_wrap=True, highlight=False)
            if kwargs.get("as_json"):
                _print_json(failure(error))
            raise typer.Exit(1) from None

    own = inspect_.signature(command, eval_str=True)
    bound = inspect_.Parameter("bound", inspect_.Parameter.KEYWORD_ONLY, default=None, annotation=BoundOptions)
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), bound])  # type: ignore[attr-defined]
    return run


def _progress(quiet: bool = False) -> AbstractContextManager[Observer]:
    """The present step, on stderr so that stdout can be piped."""
    return progress_bar(err, quiet=quiet)


def _shapes(options: list[str] | None) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for option in options or ():
        name, _, sizes = option.partition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split("x"))
        except ValueError:
            raise OptionError(f"cannot read --shape '{option}'; expected one like 'image=1x3x224x224'") from None
    return shapes


def _data(
    calibration: str | None,
    evaluate: str | None,
    samples: int | None,
    batch_size: int | None,
    tokenizer: str | None,
    preprocess: list[str] | None,
    labels: Path | None,
    *,
    needed: bool = True,
) -> tuple[gp.Inputs | None, Any]:
    """What ``--calibration`` and ``--eval`` name, and how they are read."""
    read = evaluate is not None and not is_object_name(evaluate)
    if calibration is None and not read:
        options: dict[str, Any] = {"--batch-size": batch_size, "--tokenizer": tokenizer, "--preprocess": preprocess}
        options["--labels"] = labels
        if unused := next((name for name, value in options.items() if value is not None), None):
            raise OptionError(f"{unused} says how data are read, and there are none; give some with --calibration")
    if calibration is None and samples is not None and needed:
        raise OptionError(
            "--samples says how many calibration inputs are used, and there are none; did you mean "
            f"'--calibration DATA --samples {samples}'?"
        )
    how = (batch_size, tokenizer, preprocess)
    inputs = None if calibration is None else gp.Inputs(calibration, samples, *how, None if read else labels)
    return inputs, gp.Inputs(evaluate, None, *how, labels) if read else evaluate


@app.command()
@_guarded
def prune(
    model: Model,
    output: Output,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="METRIC=VALUE",
            help="What remains: macs=0.5, params=2M, bytes=50%, latency=5ms. Repeatable.",
        ),
    ] = None,
    calibration: Calibration = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    tokenizer: Tokenizer = None,
    preprocess: PreprocessOptions = None,
    statistics: Annotated[
        Path | None,
        typer.Option(metavar="statistics.npz", help="What calibration measured: read if it is there, else written."),
    ] = None,
    evaluate: Evaluate = None,
    metric: MetricName = None,
    labels: Labels = None,
    criterion: Criterion = None,
    allocation: Allocation = None,
    compensation: Compensation = None,
    align: Annotated[int, typer.Option(help="Widths stay multiples of this where the width allows.")] = 8,
    min_units: Annotated[int, typer.Option(help="At least so many units stay in every group.")] = 1,
    max_ratio: Annotated[float, typer.Option(help="At most this fraction of a group's units is removed.")] = 0.9,
    protect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Tensors, scopes or kinds that stay whole; kind:head or name:head, where a word is both. Repeatable.",
        ),
    ] = None,
    protect_ratio: Annotated[
        float, typer.Option(help="This fraction of the groups stays whole: those that the outputs depend on most.")
    ] = 0.0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Prune nothing but these kinds, groups or tensors; kind:head or name:head, where a word is both. "
            "Repeatable.",
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(metavar="N|FRACTION", help="Leave out so many residual branches, the least important ones."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="N|FRACTION", help="Leave out so many layers (several branches each), likewise."),
    ] = None,
    remove_block: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Leave out the residual branches of this name or scope (layers.3). Repeatable."
        ),
    ] = None,
    block_criterion: Annotated[
        str, typer.Option(help="How whole blocks are scored: l2, random; with calibration data: bi, ablation.")
    ] = "l2",
    shape: ShapeOptions = None,
    plan_out: Annotated[Path | None, typer.Option(metavar="plan.json", help="Write the plan.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="profile.json", help="Latencies that 'graphprune profile' measured, on any machine."),
    ] = None,
    pipeline: Annotated[str | None, typer.Option(help="Passes to run instead of the default ones, as text.")] = None,
    time_passes: Annotated[bool, typer.Option("--time-passes", help="Show how long each pass took.")] = False,
    dump_after: Annotated[
        list[str] | None, typer.Option(metavar="PASS", help="Print the graph after a pass, on stderr. Repeatable.")
    ] = None,
    verify_each: Annotated[bool, typer.Option("--verify-each", help="Check the model after every pass.")] = False,
    seed: Annotated[int, typer.Option(help="Of random scores and of the proof's inputs.")] = 0,
    no_verify: NoVerify = False,
    accept_unproven: AcceptUnproven = False,
    no_latency: NoLatency = False,
    force: Force = False,
    trust: Trust = False,
    full: Full = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prune MODEL to a budget and write a smaller ONNX file."""
    read = (model, profile, statistics, calibration, evaluate, tokenizer)
    _require_distinct(read, plan_out, model=output, force=force)
    inputs, evaluation = _data(calibration, evaluate, samples, batch_size, tokenizer, preprocess, labels)
    for path in _files(output, plan_out):
        require_writable(path)
    files = described(model=model, profile=profile) if as_json else {}
    with _progress(as_json) as progress:
        result = gp.prune(
            model,
            target=target,
            calibration=inputs,
            statistics=statistics,
            evaluate=evaluation,
            metric=metric,
            criterion=criterion,
            allocation=allocation,
            compensation=compensation,
            align=align,
            min_units=min_units,
            max_ratio=max_ratio,
            protect=tuple(protect or ()),
            protect_ratio=protect_ratio,
            only=tuple(only or ()),
            blocks=blocks,
            layers=layers,
            remove_blocks=tuple(remove_block or ()),
            block_criterion=block_criterion,
            shapes=_shapes(shape),
            profile=profile,
            pipeline=pipeline,
            dump_after=tuple(dump_after or ()),
            dump=_dump,
            verify_each=verify_each,
            seed=seed,
            trust=trust,
            verify=_proof(no_verify, accept_unproven),
            latency=not no_latency,
            progress=progress,
        )
        progress.begin("write")
        result.save_onnx(output)
        if plan_out is not None:
            result.plan.save(plan_out)
    files |= described(output=output, plan=plan_out) if as_json else {}
    _show(result, output, files if as_json else None, time_passes=time_passes, full=full)


@app.command()
@_guarded
def apply(
    model: Model,
    plan: Annotated[Path, typer.Option(metavar="plan.json", help="The plan that prune --plan-out wrote.")],
    output: Output,
    calibration: Calibration = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    tokenizer: Tokenizer = None,
    preprocess: PreprocessOptions = None,
    shape: ShapeOptions = None,
    no_verify: NoVerify = False,
    accept_unproven: AcceptUnproven = False,
    no_latency: NoLatency = False,
    force: Force = False,
    trust: Trust = False,
    full: Full = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Replay a plan on MODEL (or on another checkpoint of it) and write a smaller ONNX file."""
    _require_distinct((model, plan, calibration, tokenizer), model=output, force=force)
    inputs, _ = _data(calibration, None, samples, batch_size, tokenizer, preprocess, None)
    require_writable(output)
    files = described(model=model, plan=plan) if as_json else {}
    with _progress(as_json) as progress:
        result = gp.apply(
            model,
            plan,
            calibration=inputs,
            shapes=_shapes(shape),
            trust=trust,
            verify=_proof(no_verify, accept_unproven),
            latency=not no_latency,
            progress=progress,
        )
        progress.begin("write")
        result.save_onnx(output)
    files |= described(output=output) if as_json else {}
    _show(result, output, files if as_json else None, full=full)


def _proof(no_verify: bool, accept_unproven: bool) -> bool | Literal["accept-unproven"]:
    """What the two options ask for."""
    if no_verify and accept_unproven:
        raise OptionError("--accept-unproven is about the proof that --no-verify skips; leave one of them out")
    return "accept-unproven" if accept_unproven else not no_verify


@app.command()
@_guarded
def verify(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The model before.")],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="The ONNX file after, whoever made it.")],
    plan: Annotated[Path, typer.Option(metavar="plan.json", help="The plan.")],
    shape: ShapeOptions = None,
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    graph: Annotated[
        str,
        typer.Option(
            metavar="auto|exact|numeric",
            help="A graph that differs: refuse it unless another tool has clearly written it, always, or never (then "
            "only numbers are compared, and nothing is proven).",
        ),
    ] = "auto",
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove that PRUNED is what a plan makes of ORIGINAL, node by node and bit for bit."""
    with _progress(as_json):
        checks = gp.verify(original, pruned, plan, shapes=_shapes(shape), trust=trust, seed=seed, graph=graph)
    failed = [check.name for check in checks if not check.passed]
    partial = [check.name for check in checks if check.partial]
    message = f"'{pruned}' is not what the plan makes of '{original}': {', '.join(failed)} failed"
    wrong = ProofError(message) if failed else None
    if as_json:
        rows = [{**vars(check), "passed": check.passed} for check in checks]
        told = failure(wrong) if wrong is not None else {}
        files = described(model=original, output=pruned, plan=plan)
        _print_json({"proven": not failed and not partial, "checks": rows, **told}, files)
    else:
        out.print(render_checks(checks))
        out.print(render_verdict(str(pruned), original, failed, partial), soft_wrap=True, highlight=False)
    if wrong is not None:
        raise _ToldError(message) if as_json else wrong


@app.command()
@_guarded
def export(
    model: Model,
    output: Output,
    shape: ShapeOptions = None,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Write a Python MODEL, unpruned, to an ONNX file that takes the plans made on the model."""
    _require_distinct((model,), output)
    require_writable(output)
    with _progress():
        gp.export_onnx(model, None, output, shapes=_shapes(shape), trust=trust)


@app.command()
@_guarded
def inspect(
    model: Model,
    shape: ShapeOptions = None,
    dot: Annotated[
        Path | None, typer.Option(metavar="FILE.dot", help="Write the dependency graph for Graphviz.")
    ] = None,
    graphml: Annotated[
        Path | None, typer.Option(metavar="FILE.graphml", help="Write the dependency graph as GraphML.")
    ] = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what can be pruned in MODEL, and what stays whole and why."""
    _require_distinct((model,), dot, graphml)
    for path in _files(dot, graphml):
        require_writable(path)
    with _progress(as_json):
        analysis = gp.analyze(model, shapes=_shapes(shape), trust=trust)
    inspection = inspect_analysis(analysis)
    if dot is not None or graphml is not None:
        graph = DependencyGraph(analysis)
        if dot is not None:
            write_text(dot, graph.to_dot())
        if graphml is not None:
            graph.save_graphml(graphml)
    if as_json:
        _print_json(inspection.to_dict(), described(model=model))
    else:
        out.print(render_inspection(inspection, title=model))


@app.command()
@_guarded
def explain(
    model: Model,
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="The name of a stored tensor (a weight).")],
    axis: Annotated[int | None, typer.Option(help="One axis only, from 0.")] = None,
    shape: ShapeOptions = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say why the dimensions of TENSOR are coupled to others, or why they stay whole."""
    with _progress(as_json):
        analysis = gp.analyze(model, shapes=_shapes(shape), trust=trust)
    along = cut_along(analysis)
    names = [*(value.name for value in analysis.graph.stored), *along]
    if tensor not in names:
        near = [name for name in names if tensor in name][:5] or list(nearest(tensor, names)) or names[:5]
        raise OptionError(
            f"no stored tensor '{tensor}' in '{model}'; there are {len(names)}, such as {', '.join(near)}"
        )
    rank = len(layout_of(analysis, tensor))
    if axis is not None and not 0 <= axis < rank:
        raise OptionError(f"'{tensor}' has no axis {axis}; it has {rank} axes, from 0")
    facts = [explain_axis(analysis, tensor, i) for i in (range(rank) if axis is None else (axis,))]
    if as_json:
        _print_json({"tensor": tensor, "axes": facts}, described(model=model))
        return
    if tensor in along:
        out.print(f"read {along[tensor]} alone, and cut along", highlight=False)
    for fact in facts:
        out.print(
            f"[bold]{escape(named(fact['axis'], fact['title']))}[/]  {fact['size']} = {escape(fact['layout'])}",
            highlight=False,
            soft_wrap=True,
        )
        for group in fact["groups"]:
            exact = "removal is exact" if group["exact"] else f"removal shifts statistics: {group['normalized']}"
            out.print(
                f"  {group['units']} units of kind [cyan]{group['kind']}[/], {escape(exact)}; coupled with",
                highlight=False,
                soft_wrap=True,
            )
            for site in group["sites"]:
                out.print(
                    f"    {escape(site['axis'])}  [dim]{escape(' → '.join(site['through']))}[/]",
                    highlight=False,
                    soft_wrap=True,
                )
        for reason in fact["fixed"]:
            out.print(f"  [yellow]stays whole:[/] {escape(reason)}", highlight=False, soft_wrap=True)


Folder = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write to; made if need be.")]
Plot = Annotated[str, typer.Option("--plot", metavar="FORMAT", help="png, svg or none.")]
Protect = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="What stays whole, as for prune. Repeatable.")
]
Only = Annotated[
    list[str] | None, typer.Option(metavar="KIND", help="Prune nothing but these, as for prune. Repeatable.")
]
Seed = Annotated[int, typer.Option(help="Of random scores, made-up inputs and the proof's inputs.")]


@app.command()
@_guarded
def sweep(
    model: Model,
    output: Folder,
    target: Annotated[
        list[str], typer.Option("--target", metavar="METRIC=VALUE", help="One point, as for prune. Repeatable.")
    ],
    calibration: Calibration = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    tokenizer: Tokenizer = None,
    preprocess: PreprocessOptions = None,
    evaluate: Evaluate = None,
    metric: MetricName = None,
    labels: Labels = None,
    criterion: Criterion = None,
    allocation: Allocation = None,
    compensation: Compensation = None,
    align: Annotated[int, typer.Option(help="Widths stay multiples of this where the width allows.")] = 8,
    protect: Protect = None,
    protect_ratio: Annotated[float, typer.Option(help="This fraction of the groups stays whole.")] = 0.0,
    only: Only = None,
    shape: ShapeOptions = None,
    seed: Seed = 0,
    save_models: Annotated[bool, typer.Option("--save-models", help="Write each pruned model and its plan.")] = False,
    plot: Plot = "png",
    no_verify: NoVerify = False,
    no_latency: NoLatency = False,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prune MODEL to several targets; write front.json and a plot of metric, latency and size."""
    _require_plot(plot)
    _require_distinct((model, calibration, evaluate, tokenizer), output / "front.json", output / f"front.{plot}")
    inputs, evaluation = _data(calibration, evaluate, samples, batch_size, tokenizer, preprocess, labels)
    with output_folder(output), _progress(as_json) as progress:
        require_writable(output / "front.json")
        front = gp.sweep(
            model,
            targets=target,
            folder=output if save_models else None,
            calibration=inputs,
            evaluate=evaluation,
            metric=metric,
            criterion=criterion,
            allocation=allocation,
            compensation=compensation,
            align=align,
            protect=tuple(protect or ()),
            protect_ratio=protect_ratio,
            only=tuple(only or ()),
            shapes=_shapes(shape),
            seed=seed,
            verify=not no_verify,
            latency=not no_latency,
            trust=trust,
            progress=progress,
        )
    write_text(output / "front.json", json.dumps(front.to_dict(), indent=1))
    if plot != "none":
        path = output / f"front.{plot}"
        front = replace(front, notes=(*front.notes, *drawn(lambda: plot_front(front, path), path)))
    if as_json:
        _print_json(front.to_dict(), described(model=model, output=output / "front.json"))
    else:
        out.print(render_front(front, title=model))


@app.command()
@_guarded
def sensitivity(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write sensitivity.json and a plot here.")
    ] = None,
    calibration: Calibration = None,
    samples: Annotated[int, typer.Option(help="At most so many calibration samples.")] = SENSITIVITY_SAMPLES,
    batch_size: BatchSize = None,
    tokenizer: Tokenizer = None,
    preprocess: PreprocessOptions = None,
    evaluate: Evaluate = None,
    metric: MetricName = None,
    labels: Labels = None,
    ratios: Annotated[
        str, typer.Option(metavar="R,R,...", help="Fractions of a group's units to remove on trial.")
    ] = "0.25,0.5,0.75",
    criterion: Criterion = None,
    protect: Protect = None,
    only: Only = None,
    shape: ShapeOptions = None,
    seed: Seed = 0,
    plot: Plot = "png",
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what removing part of each group alone does to the outputs or to --eval; with -o it can be continued."""
    _require_plot(plot if output is not None else "none")
    if output is not None:
        written = (output / "sensitivity.json", output / f"sensitivity.{plot}")
        _require_distinct((model, calibration, evaluate, tokenizer), *written)
    inputs, evaluation = _data(calibration, evaluate, samples, batch_size, tokenizer, preprocess, labels, needed=False)
    with output_folder(output) if output is not None else nullcontext(), _progress(as_json) as progress:
        if output is not None:
            require_writable(output / "sensitivity.json")
        found = gp.sensitivity(
            model,
            calibration=inputs,
            samples=samples,
            evaluate=evaluation,
            metric=metric,
            ratios=_ratios(ratios),
            criterion=criterion,
            protect=tuple(protect or ()),
            only=tuple(only or ()),
            shapes=_shapes(shape),
            seed=seed,
            trust=trust,
            folder=output,
            progress=progress,
        )
    if output is not None:
        write_text(output / "sensitivity.json", json.dumps(found.to_dict(), indent=1))
        if plot != "none":
            path, whole = output / f"sensitivity.{plot}", found
            found = replace(found, notes=(*found.notes, *drawn(lambda: plot_sensitivity(whole, path), path)))
    if as_json:
        table = None if output is None else output / "sensitivity.json"
        _print_json(found.to_dict(), described(model=model, output=table))
    else:
        out.print(render_sensitivity(found, title=model))


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"cannot read --ratios '{text}'; expected fractions like 0.25,0.5,0.75") from None


def _require_plot(plot: str) -> None:
    if plot not in (*FORMATS, "none"):
        raise OptionError(
            f"unknown format {meant(plot, (*FORMATS, 'none'))} of --plot; expected {', '.join(FORMATS)} or none"
        )


@app.command("profile")
@_guarded
def profile_(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="profile.json", help="The table to write.")],
    threads: Annotated[int, typer.Option(help="Threads within an operator; 0 means all cores.")] = 1,
    provider: Annotated[str, typer.Option(help="onnxruntime's execution provider.")] = "CPUExecutionProvider",
    align: Annotated[int, typer.Option(help="Widths are measured at multiples of this where possible.")] = 8,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer widths and less time.")] = False,
    seconds: Annotated[
        float | None, typer.Option(help="About how long to measure in all; default 120, with --quick 20.")
    ] = None,
    shape: ShapeOptions = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what the operators of MODEL take in onnxruntime at smaller widths, for latency targets."""
    _require_distinct((model,), output)
    require_writable(output)
    with Progress(console=err, transient=True, disable=as_json or not err.is_terminal) as bars:
        task = bars.add_task("measure operators", total=None)
        made = gp.profile(
            model,
            threads=threads,
            provider=provider,
            align=align,
            quick=quick,
            seconds=seconds,
            shapes=_shapes(shape),
            trust=trust,
            advance=lambda done, total: bars.update(task, completed=done, total=total),
        )
    made.save(output)
    if as_json:
        _print_json({"output": str(output), **made.to_dict()}, described(model=model, output=output))
    else:
        out.print(render_profile(made, title=str(output)))


@app.command()
@_guarded
def demo(
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write the pruned files.")] = Path(
        "graphprune-demo"
    ),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prune a small trained CNN that ships with graphprune, and show accuracy, size, latency and proof."""
    from graphprune.demo.run import run_demo

    with _progress(as_json) as progress:
        outcome = run_demo(out_dir, progress)
    if as_json:
        _print_json(outcome.to_dict(), described(output=outcome.output))
    else:
        out.print(outcome.render())


def _version(wanted: bool) -> None:
    if wanted:
        out.print(gp.__version__, highlight=False)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[  # eager: the rest of the line is not read, and what reads it is not imported
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def _show(
    result: gp.Result,
    output: Path,
    files: Mapping[str, Any] | None,
    *,
    time_passes: bool = False,
    full: bool = False,
) -> None:
    """Prints the report; as JSON where the files that it is of are given."""
    if files is not None:
        _print_json({"output": str(output), **result.report.to_dict()}, files)
        return
    out.print(render_report(result.report, title=str(output), full=full))
    if time_passes:
        table = Table(title="time", title_justify="left", show_edge=False)
        table.add_column("pass")
        table.add_column("seconds", justify="right")
        for step, seconds in result.report.seconds:
            table.add_row(step, f"{seconds:.3f}")
        out.print("", table)


def _files(*paths: Path | None) -> tuple[Path, ...]:
    return tuple(path for path in paths if path is not None)


def _require_distinct(
    read: tuple[str | Path | None, ...], *written: Path | None, model: Path | None = None, force: bool = False
) -> None:
    """Refuses to write two things into one file, or over one that is read; with ``force`` the model may be replaced.

    Args:
        read: What is read: the model first.
        *written: What is written.
        model: The model that is written.
        force: Whether it may take the place of the one that is read.
    """
    original, *others = (Path(each).resolve() for each in read if each is not None)
    taken = set(others)
    for path in _files(model, *written):
        resolved = path.resolve()
        itself = resolved == original
        if itself and path is model and path.suffix == ".onnx" and resolved not in taken:
            if not force:
                raise OptionError(f"'{path}' is the model that is read; give another path with -o, or --force")
        elif itself or resolved in taken:
            raise OptionError(
                f"'{path}' would be written twice or over a file that is read; give each output a path of its own"
            )
        taken.add(resolved)


def _dump(text: str) -> None:
    sys.stderr.write("\n".join(map(visible, text.split("\n"))))


def _print_json(data: Mapping[str, Any], files: Mapping[str, Any] | None = None) -> None:
    out.write(json.dumps(enveloped(data, files), indent=1) + "\n")


def main() -> None:
    """The entry point of the ``graphprune`` command."""
    try:
        app()
    except (OSError, OutputError) as error:  # stderr or the help on stdout, which nobody reads or which is full
        cause = error if isinstance(error, OSError) else error.__cause__
        sys.exit(end_quietly(cause) if isinstance(cause, OSError) else 2)
