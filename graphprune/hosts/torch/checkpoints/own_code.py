"""Checkpoints of modules whose layers have sizes of their own, which no config says: a few lines of code go with them.

The code is the same for every model but for the name of its class (``modeling.txt``); all sizes stand in the config. It
is loaded with ``trust_remote_code``, as the code of any checkpoint is.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.errors import OutputError
from graphprune.hosts.torch.bypass import Bypassed
from graphprune.hosts.torch.checkpoints.reading import CONFIG
from graphprune.hosts.torch.checkpoints.twins import Twin, is_plain, passing_shapes, shapes_of
from graphprune.hosts.torch.spots import own_attributes
from graphprune.hosts.torch.untouched import untouched

MODELING = "modeling_pruned.py"
_OF_PLACEHOLDERS = ("leaves", "form")
_STAYS = frozenset(vars(nn.Module())) | {"training"}


def write_with_code(module: nn.Module, folder: Path, **options: Any) -> None:
    """Writes a module with the code that builds it.

    Args:
        module: A configured module of a class of transformers.
        folder: The folder.
        **options: Of the class's writer.

    Raises:
        OutputError: The code cannot say what the module is.
    """
    kind, auto = type(module), auto_class_of(module)
    said = sizes_of(module)
    writer: Any = kind
    config: Any = vars(module)["config"]
    with untouched(module, runs=True):
        config.pruned, config.auto_map = said, {auto: f"{Path(MODELING).stem}.Pruned{kind.__name__}"}
        writer.save_pretrained(module, folder, **options)
    data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    data["architectures"] = [f"Pruned{kind.__name__}"]
    (folder / CONFIG).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    text = (files("graphprune.hosts.torch.checkpoints") / "modeling.txt").read_text(encoding="utf-8")
    text = text.replace("transformers.BASE", f"transformers.{kind.__name__}").replace("CLASS", f"Pruned{kind.__name__}")
    (folder / MODELING).write_text(text, encoding="utf-8")


def auto_class_of(module: nn.Module) -> str:
    """The name of the automatic class that stands for a module's class.

    Raises:
        OutputError: There is none.
    """
    import transformers

    config, kind = vars(module)["config"], type(module)
    for name in sorted(dir(transformers)):
        mapping = getattr(getattr(transformers, name), "_model_mapping", None) if name.startswith("AutoModel") else None
        if mapping is not None and type(config) in mapping:
            found = mapping[type(config)]
            if kind in (found if isinstance(found, tuple) else (found,)):
                return name
    raise OutputError(f"transformers has no automatic class for '{kind.__name__}'; prune with layout='stock'")


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """What differs between a module and what its class builds from its config.

    Raises:
        OutputError: It cannot be built, or something differs that code of ours cannot say.
    """
    config: Any = vars(module)["config"]
    kind = type(module).__name__
    twin = Twin.of(type(module), config.to_dict(), config)
    if twin is None or type(module).__module__.split(".")[0] != "transformers":
        raise OutputError(f"'{kind}' is no class of transformers that its config builds; keep it with save_state")
    built = dict(twin.module.named_modules(remove_duplicate=False))
    without: dict[str, Any] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for path, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, Bypassed):
            without[path] = _placeholder(path, layer)
            continue
        if vars(layer).get("forward") is not None or path not in built:
            raise OutputError(
                f"'{path}' of '{kind}' computes in a way that its class does not; prune with layout='stock'"
            )
        before = own_attributes(built[path])
        changed = {
            name: value
            for name, value in own_attributes(layer).items()
            if name in before and is_plain(value) and is_plain(before[name]) and value != before[name]
        }
        if changed:
            numbers[path] = changed
        if any(_other_config(value, before[name]) for name, value in own_attributes(layer).items() if name in before):
            raise OutputError(f"'{path}' of '{kind}' has a config of its own now; prune with layout='stock'")
    passing = passing_shapes(module)
    shapes = {
        name: list(shape)
        for name, shape in (*shapes_of(module).items(), *passing.items())
        if {**twin.shapes, **twin.passing}.get(name) != shape
    }
    if table := next((name for name in passing if name in shapes), ""):
        raise OutputError(f"'{kind}' would make the table '{table}' anew, of other values; prune with layout='stock'")
    return {"shapes": shapes, "numbers": numbers, "without": without}


def _other_config(value: Any, before: Any) -> bool:
    if not callable(getattr(value, "to_dict", None)) or not callable(getattr(before, "to_dict", None)):
        return False
    one, other = value.to_dict(), before.to_dict()
    return any(one.get(key) != other[key] for key in other if type(other[key]) is int)


def _placeholder(path: str, layer: Bypassed) -> dict[str, Any]:
    """A placeholder as data.

    Raises:
        OutputError: What it gives is neither a tensor nor a tuple of leaves.
    """
    form = layer.form
    if not isinstance(form, int) and form != tuple(range(len(layer.leaves))):
        raise OutputError(f"what '{path}' gave cannot be written; prune with layout='stock'")
    leaves = [
        leaf if leaf == "input" else {"value": leaf[0]} if isinstance(leaf, list) else list(leaf)
        for leaf in layer.leaves
    ]
    held = {name: value for name, value in vars(layer).items() if name not in _STAYS and name not in _OF_PLACEHOLDERS}
    return {"leaves": leaves, "as_tuple": not isinstance(form, int), "numbers": held}


def read_with_code(folder: Path, auto: str, **options: Any) -> Any:
    """Reads a folder as its users do: by its automatic class, with the code that lies in it."""
    import transformers

    with torch.no_grad():
        return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, **options)
