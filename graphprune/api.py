"""The Python interface: prune, apply, verify, profile, each a session of one call; restore and export."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from graphprune.collector import frozen_garbage_collection
from graphprune.compiling import Named, Running
from graphprune.data.batches import SAMPLES
from graphprune.errors import OptionError, PlanError
from graphprune.hosts.onnx.blame import blaming_models
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.observer import Observer
from graphprune.opening import Shapes, Sizes, open_host
from graphprune.pipeline.state import Check
from graphprune.planning.latency import Profile
from graphprune.planning.plan import PruningPlan, fingerprint
from graphprune.recipe import RECOVERING, Recipe
from graphprune.recipe.signature import takes_recipe
from graphprune.result import Result
from graphprune.session import Session
from graphprune.turns import in_turn

__all__ = [
    "Result", "apply", "export_onnx", "profile", "prune", "recover", "restore", "verify",
]  # fmt: skip

Progress = Observer | Callable[[str], None] | None


@blaming_models
@in_turn
@frozen_garbage_collection()
@takes_recipe()
def prune(
    model: Any,
    example_inputs: Any = None,
    *,
    calibration: Any = None,
    samples: int = SAMPLES,
    statistics: str | Path | None = None,
    recover_data: Any = None,
    recover_folder: str | Path | None = None,
    evaluate: Any = None,
    metric: str | None = None,
    shapes: Shapes | None = None,
    sizes: Sizes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
    stream: bool | None = None,
    latency: bool = False,
    export: bool = False,
    profile: Profile | str | Path | None = None,
    dump_after: Iterable[str] = (),
    dump: Callable[[str], None] = lambda text: None,
    verify_each: bool = False,
    progress: Progress = None,
    recipe: Named = None,
    **keywords: Any,
) -> Result:
    """Prunes a model to a budget.

    Args:
        model: An ``.onnx`` file, an ``onnx.ModelProto``, a ``torch.nn.Module``, an ``ExportedProgram``, the folder of
            a checkpoint of transformers, or the name of a factory ``"package.module:factory"``.
        example_inputs: What a PyTorch model is called with: a tuple, a mapping of keyword arguments, or one tensor.
        calibration: Unlabelled inputs to measure the model on: a file, a folder, an iterable, ``"random"``, or
            :class:`Inputs` with options; see :func:`graphprune.data.batches.open_batches`.
        samples: At most so many of them are used.
        statistics: A file (``.npz``) of what was measured on them: read if it is there and of this model and these
            data, else written.
        recover_data: What recovery trains on, instead of ``calibration``: any number of unlabelled inputs.
        recover_folder: Where recovery notes where it stands; a call that was stopped goes on from there.
        evaluate: Your metric, measured before and after: a function that takes a
            :class:`graphprune.evaluation.Runner` and returns a number or a mapping of numbers, its name
            (``"package.module:function"``), or labelled data.
        metric: For labelled data: ``accuracy``, ``mse`` or ``perplexity``.
        shapes: Shapes of inputs by name, for dynamic axes of ONNX files.
        sizes: Sizes of dynamic axes of ONNX files by the names that the file gives them: ``{"past": 5}``.
        dynamic_shapes: Dynamic axes of a PyTorch model, in the notation of ``torch.export.export``.
        trust: Whether a ``.pt2`` file may be loaded, which can run its author's code.
        stream: Whether the weights of a checkpoint's folder stay in their files, so that it may be larger than memory:
            they are scored tensor by tensor, and :meth:`Result.save_pretrained` streams slices of them. Absent: where
            the memory that is free would not hold them.
        latency: Whether to measure latency in onnxruntime before and after.
        export: Whether the ONNX file of a PyTorch model is written and proven at once, so that the report has its check
            and :meth:`Result.save_onnx` takes it; else it is exported and proven when it is saved.
        profile: The table of latencies that :func:`profile` made, or its file; absent, a quick one is made where a
            latency target needs it. One of another machine is taken at its word: nothing is measured here.
        dump_after: Names of passes after which the graph is given to ``dump``.
        dump: Takes the text of a graph.
        verify_each: Whether to check the model after every pass.
        progress: Told each step before it begins: a function that takes a sentence, or an
            :class:`graphprune.observer.Observer`.
        recipe: All options below at once: a :class:`Recipe`, the name of one of :data:`RECIPES`, the path of a TOML
            file, or a dictionary. Those that are given go before it.
        **keywords: The options of a :class:`Recipe`.

    Returns:
        The pruned model with its plan and report.

    Raises:
        GraphpruneError: One of its kinds, with a message that says what to do.
    """
    wanted = Recipe.read(recipe, **keywords)
    session = Session(
        model, example_inputs, data=calibration, samples=samples, evaluate=evaluate, metric=metric, shapes=shapes,
        sizes=sizes, dynamic_shapes=dynamic_shapes, trust=trust, stream=stream,
    )  # fmt: skip
    session.measured.passing = not wanted.passes  # a pipeline of the user's may look again
    return session.prune(
        wanted, statistics=statistics, recover_data=recover_data, recover_folder=recover_folder, latency=latency,
        export=export, profile=profile, dump_after=dump_after, dump=dump, verify_each=verify_each, progress=progress,
    )  # fmt: skip


@blaming_models
@in_turn
@frozen_garbage_collection()
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
    sizes: Sizes | None = None,
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
        sizes: Sizes of dynamic axes of ONNX files by the names that the file gives them: ``{"past": 5}``.
        dynamic_shapes: Dynamic axes of a PyTorch model.
        trust: Whether a ``.pt2`` file may be loaded.
        advance: Told how many operator shapes have been measured, of how many.

    Returns:
        The profile; ``profile.save(path)`` writes JSON, ``Profile.load(path)`` reads it.

    Raises:
        OptionError: The provider is unknown, or a number is not positive.
        ModelError: The model cannot be opened or run.
    """
    session = Session(model, example_inputs, shapes=shapes, sizes=sizes, dynamic_shapes=dynamic_shapes, trust=trust)
    return session.profile(
        threads=threads, provider=provider, align=align, quick=quick, seconds=seconds, advance=advance
    )


@blaming_models
@in_turn
@frozen_garbage_collection()
def apply(
    model: Any,
    plan: PruningPlan | str | Path,
    example_inputs: Any = None,
    *,
    calibration: Any = None,
    samples: int = SAMPLES,
    shapes: Shapes | None = None,
    sizes: Sizes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
    verify: bool | Literal["accept-unproven"] = True,
    latency: bool = False,
    export: bool = False,
    seed: int = 0,
    progress: Progress = None,
) -> Result:
    """Replays a plan on the model that it was made for, or on another checkpoint of it.

    Where the plan was made with compensation, the weights are refitted again if there is ``calibration`` data, as for
    :func:`prune`; otherwise they are only cut, and the report says so.

    Raises:
        PlanError: The plan belongs to another model.
    """
    session = Session(
        model, example_inputs, data=calibration, samples=samples, shapes=shapes, sizes=sizes,
        dynamic_shapes=dynamic_shapes, trust=trust,
    )  # fmt: skip
    return session.apply(plan, verify=verify, latency=latency, export=export, seed=seed, progress=progress)


@blaming_models
@in_turn
@frozen_garbage_collection()
def verify(
    original: Any,
    pruned: str | Path,
    plan: PruningPlan | str | Path,
    example_inputs: Any = None,
    *,
    shapes: Shapes | None = None,
    sizes: Sizes | None = None,
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
        sizes: Sizes of dynamic axes of ONNX files by the names that the file gives them: ``{"past": 5}``.
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
    session = Session(original, example_inputs, shapes=shapes, sizes=sizes, dynamic_shapes=dynamic_shapes, trust=trust)
    return session.verify(pruned, plan, seed=seed, graph=graph)


@blaming_models
@in_turn
@frozen_garbage_collection()
@takes_recipe(only=(*RECOVERING, "verify", "seed"))
def recover(
    pruned: Any,
    data: Any = None,
    *,
    original: Any = None,
    plan: PruningPlan | str | Path | None = None,
    example_inputs: Any = None,
    folder: str | Path | None = None,
    latency: bool = False,
    export: bool = False,
    shapes: Shapes | None = None,
    sizes: Sizes | None = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
    progress: Progress = None,
    **keywords: Any,
) -> Result:
    """Trains a pruned model to answer as the original does; it is never worse than before on inputs kept apart.

    Args:
        pruned: What :func:`prune` gave, whose module may have been trained since; or what was written of it: an
            ``.onnx`` file, or the folder of :meth:`Result.save_state` or :meth:`Result.save_pretrained`; or the pruned
            module. The given one stays as it is.
        data: What it is trained on, as ``calibration`` of :func:`prune`, all of it; with labels where the source holds
            some, and else without. Absent: the calibration inputs of the result.
        original: The model before, as for :func:`prune`, where ``pruned`` is no result.
        plan: The plan, likewise; absent: the one that lies beside.
        example_inputs: As for :func:`prune`, for the original.
        folder: Where training notes where it stands; a call that was stopped goes on from there.
        latency: As for :func:`prune`.
        export: As for :func:`prune`.
        shapes: As for :func:`prune`.
        sizes: As for :func:`prune`.
        dynamic_shapes: Those that the plan was made with.
        trust: As for :func:`prune`.
        progress: As for :func:`prune`.
        **keywords: The options of a :class:`Recipe` on recovery.

    Returns:
        The model with its report; ``report.recovery`` says what has come of training.

    Raises:
        OptionError: There are no data, or nothing can be trained.
        PlanError: The plan is of another model, or the pruned model is not what it makes.
    """
    from graphprune.recovering import opened_result, recovered_result

    recipe = Recipe.of(**{"recover": True, **keywords})
    given = original, plan, example_inputs
    if not isinstance(pruned, Result):
        opening = {"shapes": shapes, "sizes": sizes, "dynamic_shapes": dynamic_shapes, "trust": trust}
        pruned = opened_result(pruned, *given, opening)
    elif any(each is not None for each in given):
        raise OptionError("a result knows its original and its plan; leave 'original', 'plan' and 'example_inputs' out")
    running = Running(recover_folder=folder, latency=latency, export=export, progress=progress)
    return recovered_result(pruned, data, recipe, running)


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


@blaming_models
@in_turn
def export_onnx(
    model: Any,
    example_inputs: Any,
    path: str | Path,
    *,
    shapes: Shapes | None = None,
    sizes: Sizes | None = None,
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
        sizes: Of ONNX files alone.
        dynamic_shapes: As for :func:`prune`; plans must then be made with the same.
        trust: As for :func:`prune`.

    Raises:
        OptionError: The model is an ONNX file already.
        OutputError: It cannot be exported or written.
    """
    host = open_host(model, example_inputs, shapes=shapes, sizes=sizes, trust=trust, dynamic_shapes=dynamic_shapes)
    if isinstance(host, OnnxHost):
        raise OptionError("the model is an ONNX file already; export takes a PyTorch model")
    from graphprune.hosts.torch.host import TorchHost

    assert isinstance(host, TorchHost)
    host.export_onnx(Path(path), fingerprint(host.folded().graph()))
