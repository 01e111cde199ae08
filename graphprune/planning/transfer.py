"""A plan that was made on a module, on the ONNX file that the module was exported to.

Exporters rename weights, transpose them, fold and deduplicate them. What is left of the names (:class:`Origin`, from
the file's metadata or by equal names and shapes) says of some axes of the file which positions the plan keeps; the
groups of the file say the same of all others. Nothing is guessed: a group that no known axis tells of, axes that
disagree, or a result that is not the plan again are errors.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis
from graphprune.errors import PlanError
from graphprune.ir.dims import Factor, Index, unit_of
from graphprune.planning.plan import PruningPlan, fingerprint, make_plan
from graphprune.planning.reading import MALFORMED, whole

METADATA = "graphprune.origins"
"""The key of the file's metadata under which its tensors' origins are written."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a stored tensor of a file comes from.

    Attributes:
        name: The tensor of the module.
        axes: For each axis of the file's tensor, the axis of the module's.
    """

    name: str
    axes: tuple[int, ...]


def write_origins(print_of: str, origins: Mapping[str, Origin]) -> str:
    """The text for the metadata: the fingerprint of the module and the origins that are known."""
    tensors = {name: [origin.name, list(origin.axes)] for name, origin in origins.items()}
    return json.dumps({"fingerprint": print_of, "tensors": tensors}, separators=(",", ":"))


def read_origins(text: str) -> tuple[str, dict[str, Origin]]:
    """Reads what :func:`write_origins` wrote.

    Raises:
        PlanError: It is malformed.
    """
    try:
        data = json.loads(text)
        tensors = {
            str(name): Origin(str(origin), tuple(map(whole, axes))) for name, (origin, axes) in data["tensors"].items()
        }
        if odd := next((n for n, each in tensors.items() if sorted(each.axes) != list(range(len(each.axes)))), None):
            raise ValueError(f"the axes of '{odd}' are {list(tensors[odd].axes)[:8]}, expected each of them once")
        return str(data["fingerprint"]), tensors
    except (*MALFORMED, RecursionError) as error:
        raise PlanError(f"the metadata '{METADATA}' of the file is malformed: {error}; export the file anew") from error


def fitting(plan: PruningPlan, analysis: Analysis, metadata: Mapping[str, str] | None) -> PruningPlan:
    """The plan itself where it was made on this model, or the same plan in terms of this file.

    Args:
        plan: The plan.
        analysis: The model's analysis.
        metadata: The metadata of the model's file; ``None`` where it is a module, which takes its own plans only.

    Raises:
        PlanError: The plan belongs to another model, or what it says cannot be found in the file.
    """
    if metadata is None or plan.made_on != "torch" or fingerprint(analysis.graph) == plan.fingerprint:
        return plan.on(analysis.graph)
    if METADATA in metadata:
        source, origins = read_origins(metadata[METADATA])
        if source != plan.fingerprint:
            raise PlanError(
                f"the plan belongs to another model: its fingerprint is '{plan.fingerprint}', the file was exported "
                f"from a module with fingerprint '{source}'; make a plan on that module"
            )
    else:
        origins = _by_name(plan, analysis)
    return _transferred(plan, analysis, origins)


def _by_name(plan: PruningPlan, analysis: Analysis) -> dict[str, Origin]:
    """Tensors that have kept their names and shapes, for files that others exported."""
    stored = {value.name: value.shape for value in analysis.graph.stored}
    found = {
        name: Origin(name, tuple(range(len(shape)))) for name, shape in plan.shapes.items() if stored.get(name) == shape
    }
    if not found and plan.shapes:
        raise PlanError(
            f"the plan belongs to another model: it was made on a module, and the file has no tensor "
            f"'{next(iter(plan.shapes))}' of shape {list(next(iter(plan.shapes.values())))} or any other that it cuts; "
            "export the module with 'graphprune export'"
        )
    return found


def _transferred(plan: PruningPlan, analysis: Analysis, origins: Mapping[str, Origin]) -> PruningPlan:
    stored = {value.name: value.shape for value in analysis.graph.stored}
    # exporters store equal constants of several layers once; loading gives each use a copy, and the name to any of them
    several = {value.use.tensor for value in analysis.graph.stored if value.use is not None}
    known = {name: origin for name, origin in origins.items() if name in stored and name not in several}
    for name, origin in known.items():
        expected = plan.shapes.get(origin.name)
        if expected is not None and (len(expected), *(expected[i] for i in origin.axes)) != (
            len(origin.axes),
            *stored[name],
        ):
            raise PlanError(
                f"tensor '{name}' of the file has shape {list(stored[name])}, which does not fit '{origin.name}' of "
                f"shape {list(expected)} in the plan; apply the plan to the file of the unpruned module"
            )
    kept = _units(plan, analysis, known)
    removed = _blocks(plan, analysis, known)
    made = make_plan(analysis, kept, plan.options, removed)
    for name, origin in known.items():
        planned = plan.parameters.get(origin.name, {})
        expected_axes = {i: planned[axis] for i, axis in enumerate(origin.axes) if axis in planned}
        if dict(made.parameters.get(name, {})) != expected_axes:
            raise PlanError(
                f"what the plan keeps of '{origin.name}' cannot be kept of '{name}' in the file, whose axes are "
                "coupled in another way; make a plan on the file itself"
            )
    missing = Counter((g.size, g.kept) for g in plan.groups) - Counter((g.size, g.kept) for g in made.groups)
    if missing:
        lost = next(group for group in plan.groups if (group.size, group.kept) in missing)
        raise PlanError(
            f"group '{lost.name}' of the plan ({lost.size} units) cannot be found in the file: none of its tensors "
            "kept its name; export the module with 'graphprune export', which writes the names into the file"
        )
    return replace(made, made_on="onnx")


def _units(plan: PruningPlan, analysis: Analysis, known: Mapping[str, Origin]) -> dict[Factor, Index]:
    """The units of each group that the plan keeps, read off the first axis of it that is known."""
    kept: dict[Factor, Index] = {}
    for group in analysis.groups:
        site = next((site for site in group.sites if site.tensor in known), None)
        if site is None:
            raise PlanError(
                f"no tensor of group '{group.name}' of the file ({group.size} units) is known by its name in the plan; "
                "export the module with 'graphprune export', or make a plan on the file itself"
            )
        origin = known[site.tensor]
        positions = plan.parameters.get(origin.name, {}).get(origin.axes[site.axis])
        if positions is not None:
            units = np.unique(unit_of(site.dim, group.factor)[np.array(positions, dtype=np.int64)])
            kept[group.factor] = units[units >= 0]
    return {factor: units for factor, units in kept.items() if 0 < len(units) < factor.size}


def _blocks(plan: PruningPlan, analysis: Analysis, known: Mapping[str, Origin]) -> Iterable[Block]:
    """The blocks that hold the same known tensors as those of the plan."""
    names = {origin.name for origin in known.values()}
    held = {
        block.name: (block.kind, frozenset(known[name].name for name in block.tensors if name in known))
        for block in analysis.blocks
    }
    found = []
    for planned in plan.blocks:
        wanted = (planned.kind, frozenset(names.intersection(planned.tensors)))
        hits = [block for block in analysis.blocks if held[block.name] == wanted]
        if len(hits) != 1 or not wanted[1]:
            raise PlanError(
                f"block '{planned.name}' of the plan cannot be found in the file by the names of its tensors; "
                "make a plan on the file itself"
            )
        found.extend(hits)
    return found
