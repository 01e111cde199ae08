"""The state of a pruned module on disk: safetensors and the plan, no pickle."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from graphprune.errors import OutputError, PlanError, first_line
from graphprune.files import replaced, require_plain_source
from graphprune.hosts.torch.own import add_bias
from graphprune.planning.plan import PruningPlan

STATE, PLAN = "model.safetensors", "plan.json"


def save_state(module: torch.nn.Module, plan: PruningPlan, folder: Path) -> None:
    """Writes the state dict and the plan into a folder, which is made if need be.

    Tied tensors are written once; loading restores the ties, since the module has them.

    Raises:
        OutputError: A file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make folder '{folder}': {error.strerror}; give a writable path") from error
    tensors: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in module.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        tensors[name] = tensor.detach().contiguous()
    with replaced(folder / STATE) as temporary:
        save_file(tensors, temporary)
    plan.save(folder / PLAN)


def load_state(module: torch.nn.Module, folder: Path) -> None:
    """Loads what :func:`save_state` wrote into a module that was pruned by the same plan.

    Raises:
        PlanError: The file is missing or broken, or a tensor is missing or has another shape.
    """
    path = folder / STATE
    require_plain_source(path, PlanError, "state", "give the folder that save_state wrote")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise PlanError(f"cannot read '{path}': {first_line(error)}; give the folder that save_state wrote") from error
    take_over(module, tensors, f"'{path}'")


def take_over(module: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Gives a module that was pruned by the same plan the values of another, and the biases that a refit has added.

    Args:
        module: The module.
        tensors: By name; of tied ones one is enough.
        source: What they are of, for messages.

    Raises:
        PlanError: A tensor is missing or has another shape or type.
    """
    for name in sorted(tensors.keys() - module.state_dict().keys()):
        _add_bias(module, name, tensors[name], source)
    own = module.state_dict()
    by_storage = {(own[name].data_ptr(), tuple(own[name].shape)) for name in tensors if name in own}
    for name, tensor in own.items():
        if name in tensors:
            if tensors[name].is_floating_point() != tensor.is_floating_point():
                raise PlanError(
                    f"tensor '{name}' of {source} is of type {tensors[name].dtype}, the pruned module's of "
                    f"{tensor.dtype}; give the folder that save_state wrote"
                )
            if tensors[name].shape != tensor.shape:
                raise PlanError(
                    f"tensor '{name}' of {source} has shape {list(tensors[name].shape)}, the pruned module has "
                    f"{list(tensor.shape)}; restore it on the model that the plan was made for"
                )
        elif (tensor.data_ptr(), tuple(tensor.shape)) not in by_storage and tensor.numel():
            raise PlanError(
                f"{source} lacks tensor '{name}' of the pruned module; give the folder that save_state wrote"
            )
    members = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    named: dict[str, torch.Tensor] = dict(members)
    for name, tensor in tensors.items():
        target = named.get(name)
        if target is None:
            continue
        key = (target.data_ptr(), tuple(target.shape))
        ties = [other for other in named.values() if (other.data_ptr(), tuple(other.shape)) == key and other.numel()]
        for other in ties or [target]:  # another type than the module's: it was saved after half(), say
            other.data = tensor.to(other.device)


def _add_bias(module: torch.nn.Module, name: str, values: torch.Tensor, source: str) -> None:
    """Gives a layer the bias that a refit has given it.

    Raises:
        PlanError: The module has no such layer without a bias, or the bias has another size than its outputs.
    """
    layer = dict(module.named_modules(remove_duplicate=False)).get(name.rpartition(".")[0])
    wide = next((getattr(layer, each) for each in ("out_features", "out_channels") if hasattr(layer, each)), None)
    fits = values.is_floating_point() and values.ndim == 1 and wide in (None, len(values))
    if not fits or not add_bias(module, name, values.requires_grad_()):
        raise PlanError(
            f"{source} holds tensor '{name}' of shape {list(values.shape)}, which the pruned module has no place for; "
            "restore it on the model that the plan was made for"
        )
