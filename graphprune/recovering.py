"""Recovery of a model that is pruned already: a result, or what was written of one, trained towards the original."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from graphprune.compensation.sequential import adopted
from graphprune.compiling import Running, finished, noted
from graphprune.data.batches import open_batches
from graphprune.errors import OptionError, PlanError
from graphprune.files import made_folder
from graphprune.hosts.host import Host
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.pipeline import keys
from graphprune.pipeline.state import State
from graphprune.planning.plan import PruningPlan
from graphprune.recipe import Recipe
from graphprune.recovery.noting import with_weights_noted
from graphprune.replay import loaded
from graphprune.result import Result
from graphprune.session import Session

TYPES = "the pruned module has other types than it was pruned with; recover it in those, and convert it after"
BESIDE = ("plan.json", "{stem}.plan.json", "{stem}.json")
"""Where a plan is looked for: in a folder, or beside a file."""


def recovered_result(result: Result, data: Any, recipe: Recipe, running: Running) -> Result:
    """A result with trained weights, where these are better; the given one stays as it is.

    Args:
        result: The pruned model.
        data: What it is trained on, as for :func:`graphprune.recover`.
        recipe: How, in its section on recovery; the seed, and whether the result is proven.
        running: Where it is noted, and who is told.

    Raises:
        OptionError: There are no data, or nothing can be trained.
    """
    state = _as_it_is(result)
    if state.original is None:
        raise OptionError("the result does not hold the model that it was made of; recover it from its files")
    batches, held = state.batches, state.held
    if data is not None:
        found = open_batches(data, state.opened or state.original, samples=None, seed=recipe.seed)
        batches, held = found.set_apart(needed=True)
    if batches is None:
        raise OptionError("recovery needs inputs; give some (data=..., --calibration PATH)")
    folder = None if running.recover_folder is None else made_folder(Path(running.recover_folder), "--recover-folder")
    again = {keys.RECOVERY, keys.EXPORT, keys.LATENCY, keys.METRICS}
    state = replace(
        state, batches=batches, held=held, more=None, folder=folder, observer=running.observer, export=None,
        done=state.done - again,
    )  # fmt: skip
    made = Recipe.read(result.plan.recipe or None)
    how = replace(made, recovery=recipe.recovery, proof=recipe.proof, seed=recipe.seed)
    if result.plan.recipe:
        state = noted(state, how)
    return replace(finished(state, how, running), before=result.before)


def _as_it_is(result: Result) -> State:
    """The state of a result, with a module of its own that has the values of the result's now."""
    if result.module is None:
        return result.state
    from graphprune.hosts.torch.now import as_it_is

    module = copy.deepcopy(result.module)
    host, retyped = as_it_is(cast("Any", result.host), module, result.state.former)
    if retyped:
        raise OptionError(TYPES)
    return replace(result.state, host=host, module=module)


def opened_result(
    pruned: Any, original: Any, plan: PruningPlan | str | Path | None, example_inputs: Any, how: Mapping[str, Any]
) -> Result:
    """The result that a pruned model is of, with the values that it has now.

    Args:
        pruned: An ``.onnx`` file, the folder that ``save_state`` or ``save_pretrained`` wrote, or a module.
        original: The model that it was made of, as for :func:`graphprune.prune`.
        plan: The plan; ``None``: the one that lies beside.
        example_inputs: As for :func:`graphprune.prune`.
        how: ``shapes``, ``dynamic_shapes`` and ``trust``, likewise.

    Raises:
        OptionError: Something is missing.
        PlanError: The plan is of another model, or the pruned model is not what it makes.
    """
    if original is None:
        raise OptionError(
            "recovery needs the model that was pruned, which is the teacher; give it (original=..., ORIGINAL)"
        )
    path = Path(pruned) if isinstance(pruned, str | Path) else None
    known = loaded(_beside(path) if plan is None else plan)
    result = Session(original, example_inputs, **how).apply(known, verify=False)
    method = known.options.get("compensation", "none")
    cut, state = result.state.host, result.state
    if path is not None and path.suffix == ".onnx":
        host: Host = _with_values_of(path, state, known)
    elif result.module is None:
        raise OptionError(f"the original is an ONNX file, and the pruned model '{pruned}' is none; give an .onnx file")
    else:
        _load(result.module, pruned, path, trust=bool(how.get("trust")))
        host = _host_of(result.module, state, known, method)
    plan = replace(result.plan, options={**result.plan.options, "compensation": method}, recipe=known.recipe)
    plan = with_weights_noted(plan, cut, host)
    return replace(result, host=host, plan=plan, state=replace(state, host=host, plan=plan))


def _load(module: Any, pruned: Any, path: Path | None, *, trust: bool) -> None:
    """Gives a module that is only cut the values of the pruned model.

    Raises:
        PlanError: They do not fit.
    """
    from graphprune.hosts.torch.state import load_state, take_over

    if path is None:
        copied = {name: each.detach().clone() for name, each in pruned.state_dict().items()}
        take_over(module, copied, "the pruned module")
    elif (path / "config.json").exists():
        from graphprune.hosts.torch.checkpoints.reading import read_checkpoint

        take_over(module, dict(read_checkpoint(path, trust=trust).state_dict()), f"'{path}'")
    else:
        load_state(module, path)


def _host_of(module: Any, state: State, plan: PruningPlan, method: str) -> Host:
    """The graph of a module that was cut by a plan and given values, and biases where a refit has added some."""
    from graphprune.hosts.torch.now import as_it_is
    from graphprune.hosts.torch.stored import named_tensors, to_numpy

    assert state.original is not None
    assert state.analysis is not None
    had = {value.name for value in state.host.graph().stored}
    named = {state.former(name): tensor for name, tensor in named_tensors(module).items()}
    host = state.host
    if new := [name for name in plan.options.get("compensated", ()) if name not in had and name in named]:
        values = {name: to_numpy(named[name].detach()) for name in new}
        host = adopted(values, state.original, host, state.analysis, state.kept, method)
    found, retyped = as_it_is(cast("Any", host), module, state.former)
    if retyped:
        raise OptionError(TYPES)
    return found


def _beside(path: Path | None) -> Path:
    """The plan that lies in a folder, or beside a file.

    Raises:
        OptionError: None does.
    """
    if path is None:
        raise OptionError("which units a module has kept is said by its plan; give it (plan=..., --plan plan.json)")
    folder = path if path.is_dir() else path.parent
    tried = [folder / name.format(stem=path.stem) for name in BESIDE]
    for each in tried:
        if each.is_file():
            return each
    names = ", ".join(f"'{each.name}'" for each in tried)
    raise OptionError(f"no plan lies beside '{path}' (looked for {names}); give it (plan=..., --plan plan.json)")


def _with_values_of(path: Path, state: State, plan: PruningPlan) -> Host:
    """The pruned model with the values of an ONNX file.

    Raises:
        OptionError: The original is a PyTorch model.
        PlanError: The file is not what the plan makes of the original.
    """
    if not isinstance(state.host, OnnxHost):
        raise OptionError(
            f"'{path}' is an ONNX file, and its original a PyTorch model, whose tensors have other names there; give "
            "the folder that save_state wrote, or as the original the file that 'graphprune export' writes of it"
        )
    assert state.original is not None
    assert state.analysis is not None
    file = OnnxHost.load(path)
    stored = {value.name: value.shape for value in file.graph().stored}
    had = {value.name for value in state.host.graph().stored}
    host: Host = state.host
    if new := [name for name in plan.options.get("compensated", ()) if name not in had and name in stored]:
        method = plan.options.get("compensation", "none")
        values = {name: file.read(name) for name in new}
        host = adopted(values, state.original, host, state.analysis, state.kept, method)
    for value in host.graph().stored:
        if stored.get(value.name) != value.shape:
            raise PlanError(
                f"'{path}' is not what the plan makes of the original: its tensor '{value.name}' has shape "
                f"{list(stored.get(value.name, ()))}, expected {list(value.shape)}; give the plan that it was made by"
            )
    return host.replaced({value.name: file.read(value.name) for value in host.graph().stored})
