"""The plan: which units of which group stay. Frozen, JSON, by original index.

``plan.to_dict()["parameters"][name][str(axis)]`` lists the kept positions of every cut axis of a stored tensor in the
original numbering, so that anyone can replay or check a plan without graphprune. The names are those of the file. In a
file, long lists are written in short (:mod:`graphprune.planning.compact`).

A tensor that a file stores once for several uses, equal constants of different layers, may be cut otherwise for each of
them. Then ``to_dict()["uses"][tensor]`` lists the uses that are cut: ``use`` is ``RESULT:i``, what the node with the
result ``RESULT`` reads as its operand ``i`` (from 0; through a ``DequantizeLinear`` if need be), ``axes`` the kept
positions as above, and ``name`` what this copy is called where groups, blocks and reports speak of it:
``TENSOR@RESULT:i``, or the tensor's own name for one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis
from graphprune.brief import brief
from graphprune.errors import PlanError
from graphprune.files import read_json, write_text
from graphprune.ir.dims import Dim, Factor, Index, factors_of, positions
from graphprune.ir.graph import Graph, Use
from graphprune.planning.compact import SHORT, Reader, Written, dumped
from graphprune.planning.noted import options_of
from graphprune.planning.reading import MALFORMED, mapping, texts, whole

FORMAT = 3
"""The version of the JSON form; a plan of format 1 had no blocks, one of format 2 called copies ``TENSOR__1``."""


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """The units of one group that stay, as sorted original indices."""

    __repr__ = brief

    name: str
    kind: str
    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """A residual branch (or a layer of several) that is left out, and the stored tensors that go with it."""

    __repr__ = brief

    name: str
    kind: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class PruningPlan:
    """Which units of which groups stay, and which blocks go.

    Attributes:
        fingerprint: Of the graph that the plan belongs to.
        groups: The groups that lose units.
        parameters: For each cut stored tensor and axis, the original positions that stay.
        shapes: The original shape of each weight and of every other stored tensor that is cut.
        options: How the plan was made (targets, criterion, ...), for the reader.
        blocks: The residual branches that are left out.
        made_on: ``torch`` or ``onnx``: what the fingerprint and the names are of.
        uses: Which of the names in :attr:`parameters` and :attr:`shapes` are copies of one tensor of the file.
        recipe: What asked for it, as :meth:`graphprune.Recipe.to_dict` writes it; empty in plans of older versions.
    """

    __repr__ = brief

    fingerprint: str
    groups: tuple[GroupPlan, ...]
    parameters: Mapping[str, Mapping[int, tuple[int, ...]]]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple[BlockPlan, ...] = ()
    made_on: str = ""
    uses: Mapping[str, Use] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def on(self, graph: Graph) -> PruningPlan:
        """The same plan with the present names of copies, where a plan of format 2 calls them otherwise."""
        present = {
            value.use.former: value
            for value in graph.stored
            if value.use is not None and value.use.former and value.use.former not in graph.values
        }
        listed = {*self.parameters, *self.shapes, *(name for block in self.blocks for name in block.tensors)}
        listed.update(name for group in self.groups for name in present if group.name.startswith(f"{name}["))
        if self.uses or present.keys().isdisjoint(listed):
            return self

        def new(name: str) -> str:
            return present[name].name if name in present else name

        def new_group(name: str) -> str:
            tensor, bracket, rest = name.rpartition("[")
            return f"{new(tensor)}{bracket}{rest}" if bracket else name

        parameters = {new(name): axes for name, axes in self.parameters.items()}
        shapes = {new(name): shape for name, shape in self.shapes.items()}
        return replace(
            self,
            groups=tuple(replace(group, name=new_group(group.name)) for group in self.groups),
            parameters=parameters,
            shapes=shapes,
            blocks=tuple(
                replace(block, name=new(block.name), tensors=tuple(map(new, block.tensors))) for block in self.blocks
            ),
            options={
                key: [new(name) for name in value] if key == "compensated" else value
                for key, value in self.options.items()
            },
            uses=_uses(graph, {*parameters, *shapes}),
        )

    def blocks_of(self, analysis: Analysis) -> tuple[Block, ...]:
        """The blocks of an analysed graph that are left out.

        Raises:
            PlanError: The graph has no such block.
        """
        found = []
        for planned in self.blocks:
            block = analysis.branches.get(planned.name)
            if block is None or set(block.tensors) != set(planned.tensors):
                raise PlanError(
                    f"block '{planned.name}' of the plan is not a block of this model with the same weights; make the "
                    "plan anew"
                )
            found.append(block)
        return tuple(found)

    def without_refit(self) -> PruningPlan:
        """The plan of the cuts alone, without what compensation has noted."""
        notes = ("compensation", "compensated", "digests", "exported", "recovered")
        return replace(self, options={key: value for key, value in self.options.items() if key not in notes})

    def kept_of(self, analysis: Analysis) -> dict[Factor, Index]:
        """The kept units by factor of an analysed graph.

        Raises:
            PlanError: The plan belongs to another model.
        """
        found = fingerprint(analysis.graph)
        if found != self.fingerprint:
            raise PlanError(
                f"the plan belongs to another model: its fingerprint is '{self.fingerprint}', this model's is "
                f"'{found}'; make a plan with 'graphprune prune MODEL --plan-out plan.json'"
            )
        by_name = {group.name: group for group in analysis.groups}
        kept: dict[Factor, Index] = {}
        for planned in self.groups:
            group = by_name.get(planned.name)
            if group is None or group.size != planned.size:
                what = "is not a group of this model" if group is None else f"has {group.size} units in this model"
                raise PlanError(f"group '{planned.name}' of the plan ({planned.size} units) {what}; make the plan anew")
            if group.factor in kept:
                raise PlanError(f"group '{planned.name}' is listed twice in the plan; make the plan anew")
            if group.at_least(len(planned.kept)) != len(planned.kept):
                raise PlanError(
                    f"group '{planned.name}' keeps {len(planned.kept)} units in the plan, but its operators need at "
                    f"least {group.minimum}, and units to go in multiples of {group.multiple}; make the plan anew"
                )
            kept[group.factor] = np.array(planned.kept, dtype=np.int64)
        derived = make_plan(analysis, kept).parameters
        if derived != self.parameters:
            differing = next((n for n in (*derived, *self.parameters) if derived.get(n) != self.parameters.get(n)), "")
            raise PlanError(f"what the plan keeps of '{differing}' does not follow from its groups; make the plan anew")
        return kept

    def then(self, later: PruningPlan) -> PruningPlan:
        """This plan and, on its result, a ``later`` one, as one plan on the original (the unit ledger).

        Original indices survive any number of rounds, so that the sum of all rounds can be replayed on any earlier
        checkpoint (rewinding).

        Raises:
            PlanError: ``later`` was not made on the result of this plan.
        """
        for name, shape in later.shapes.items():
            kept = self.parameters.get(name, {})
            now = tuple(len(kept[i]) if i in kept else size for i, size in enumerate(self.shapes.get(name, shape)))
            if now != shape:
                raise PlanError(
                    f"the later plan was made on another model: '{name}' has shape {list(now)} after this plan, "
                    f"it says {list(shape)}; make it on the result of this plan"
                )
        groups = {group.name: group for group in self.groups}
        for group in later.groups:
            before = groups.get(group.name)
            if before is None:
                groups[group.name] = group
            elif group.size != len(before.kept):
                raise PlanError(
                    f"group '{group.name}' keeps {len(before.kept)} units, the later plan counts {group.size}: its "
                    "name has passed to another group; apply the plans one after the other"
                )
            else:
                units = tuple(before.kept[i] for i in group.kept)
                groups[group.name] = GroupPlan(group.name, group.kind, before.size, units)
        parameters = {name: dict(axes) for name, axes in self.parameters.items()}
        shapes = {**later.shapes, **self.shapes}
        for name, axes in later.parameters.items():
            for axis, index in axes.items():
                mine = parameters.setdefault(name, {})
                mine[axis] = tuple(mine[axis][i] for i in index) if axis in mine else index
        blocks = (*self.blocks, *later.blocks)
        return PruningPlan(
            self.fingerprint,
            tuple(groups.values()),
            parameters,
            shapes,
            later.options,
            blocks,
            self.made_on,
            {**later.uses, **self.uses},
            later.recipe,
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "made_on": self.made_on,
            "options": dict(self.options),
            **({"recipe": dict(self.recipe)} if self.recipe else {}),
            "groups": [{"name": g.name, "kind": g.kind, "size": g.size, "kept": list(g.kept)} for g in self.groups],
            "parameters": {name: _written(axes) for name, axes in self.parameters.items() if name not in self.uses},
            **({"uses": uses} if (uses := self._uses()) else {}),
            "shapes": {
                self.uses[name].tensor if name in self.uses else name: list(shape)
                for name, shape in self.shapes.items()
            },
            "blocks": [{"name": b.name, "kind": b.kind, "tensors": list(b.tensors)} for b in self.blocks],
        }

    def _uses(self) -> dict[str, list[dict[str, Any]]]:
        """What is kept of tensors that have several uses, for each use of which the plan speaks."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name, use in self.uses.items():
            axes = _written(self.parameters.get(name, {}))
            found.setdefault(use.tensor, []).append({"name": name, "use": use.reader, "axes": axes})
        return found

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> PruningPlan:
        """Reads the JSON form.

        Raises:
            PlanError: Something is missing or of the wrong type, or the format is newer.
        """
        try:
            if data["format"] not in (1, 2, FORMAT, SHORT):
                raise PlanError(
                    f"the plan has format {data['format']}, this graphprune reads format {FORMAT}; update one of them"
                )
            reader = Reader(data.get("positions", ()))
            shapes = {str(name): tuple(map(whole, shape)) for name, shape in data.get("shapes", {}).items()}
            uses: dict[str, Use] = {}
            cut: list[tuple[str, Mapping[str, Any]]] = []
            for tensor, copies in data.get("uses", {}).items():
                for copy in copies:
                    name = str(copy["name"])
                    uses[name] = Use(str(tensor), str(copy["use"]))
                    shapes[name] = shapes[tensor]
                    cut.extend([(name, copy["axes"])] if copy["axes"] else [])
                if tensor not in uses:  # it is listed for its shape alone
                    del shapes[tensor]
            return PruningPlan(
                str(data["fingerprint"]),
                tuple(
                    GroupPlan(str(g["name"]), str(g["kind"]), size, reader.rising(g["kept"], size, g["name"]))
                    for g, size in ((g, whole(g["size"])) for g in data["groups"])
                ),
                {
                    str(name): {
                        int(axis): reader.rising(index, shapes[name][int(axis)], f"{name}[{axis}]")
                        for axis, index in axes.items()
                    }
                    for name, axes in (*data["parameters"].items(), *cut)
                },
                shapes,
                options_of(data.get("options", {})),
                tuple(BlockPlan(str(b["name"]), str(b["kind"]), texts(b["tensors"])) for b in data.get("blocks", ())),
                str(data.get("made_on", "")),
                uses,
                mapping(data.get("recipe", {})),
            )
        except MALFORMED as error:
            raise PlanError(
                f"the plan is malformed ({type(error).__name__}: {error}); expected what --plan-out writes"
            ) from error

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON, whole or not at all.

        Raises:
            OutputError: The file cannot be written.
        """
        write_text(Path(path), dumped(Written().data(self.to_dict())))

    @staticmethod
    def load(path: str | Path) -> PruningPlan:
        """Reads a plan.

        Raises:
            PlanError: The file is missing or is no plan.
        """
        data = read_json(Path(path), PlanError, "plan", "give the file that --plan-out wrote")
        return PruningPlan.from_dict(data)


def _written(axes: Mapping[int, tuple[int, ...]]) -> dict[str, list[int]]:
    return {str(axis): list(index) for axis, index in axes.items()}


def _uses(graph: Graph, names: Collection[str]) -> dict[str, Use]:
    """Which of these names are copies of a tensor, and for what use."""
    found = ((value.name, value.use) for value in graph.stored if value.name in names)
    # what a copy was called says nothing to whoever reads the plan
    return {name: replace(use, former="") for name, use in found if use is not None}


def make_plan(
    analysis: Analysis,
    kept: Mapping[Factor, Index],
    options: Mapping[str, Any] | None = None,
    removed: Iterable[Block] = (),
) -> PruningPlan:
    """The plan that keeps these units (all units of factors that are not named), without some blocks."""
    cut = {factor: index for factor, index in kept.items() if len(index) < factor.size}
    held = tuple(group for group in analysis.groups if group.factor in cut)
    groups = tuple(GroupPlan(g.name, g.kind, g.size, tuple(cut[g.factor].tolist())) for g in held)
    parameters: dict[str, dict[int, tuple[int, ...]]] = {}
    alike: dict[Dim, tuple[int, ...]] = {
        group.factor: planned.kept for group, planned in zip(held, groups, strict=True)
    }
    for group in held:
        for site in group.sites:
            axes = parameters.setdefault(site.tensor, {})
            if site.axis not in axes:
                if site.dim not in alike:
                    alike[site.dim] = tuple(positions(site.dim, cut).tolist())
                axes[site.axis] = alike[site.dim]
    shapes = {v.name: v.shape for v in analysis.graph.stored if v.kind == "parameter" or v.name in parameters}
    for name, axes, shape in _cut_along(analysis, cut):
        parameters[name], shapes[name] = axes, shape
    blocks = tuple(BlockPlan(block.name, block.kind, block.tensors) for block in removed)
    return PruningPlan(
        fingerprint(analysis.graph),
        groups,
        parameters,
        shapes,
        dict(options or {}),
        blocks,
        uses=_uses(analysis.graph, shapes),
    )


def _cut_along(
    analysis: Analysis, cut: Mapping[Factor, Index]
) -> Iterator[tuple[str, dict[int, tuple[int, ...]], tuple[int, ...]]]:
    """The stored tensors that only other ways to run the model read, and what stays of them."""
    for other in analysis.others:
        for value in other.graph.stored:
            if value.name in analysis.graph.values or value.name in other.graph.shared:
                continue
            layout = other.layouts[value.name]
            axes = {axis: dim for axis, dim in enumerate(layout) if not cut.keys().isdisjoint(factors_of(dim))}
            if axes:
                kept = {axis: tuple(positions(dim, cut).tolist()) for axis, dim in axes.items()}
                yield value.name, kept, value.shape


def fingerprint(graph: Graph) -> str:
    """A hash of the structure: operators with their attributes, connections, names and shapes of stored tensors; not of
    weights or of the sizes of the example input, so that a retrained model takes the same plan.
    """
    digest = hashlib.sha256()
    former = {value.name: value.use.former for value in graph.stored if value.use is not None and value.use.former}
    for value in graph.stored:
        digest.update(f"{former.get(value.name, value.name)}:{value.dtype}:{list(value.shape)};".encode())
    for node in graph.nodes:
        operands = ",".join(former.get(str(name), str(name)) for name in node.operands)
        names = f"({operands})->{','.join(map(str, node.results))}"
        digest.update(f"{node.op}{names}{node.options};".encode())
    return digest.hexdigest()[:16]
