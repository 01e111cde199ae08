"""Say how many units of each group, and how many layers, a config of the model's class asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from graphprune.analysis.branch import Block
from graphprune.analysis.groups import Analysis
from graphprune.errors import OptionError, TargetError
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.layouts import Asked, asked_of, blocks_said
from graphprune.planning.select import block_candidates
from graphprune.planning.shape_target import Depth, counts_of, read_shape, shape_texts


@dataclass(frozen=True)
class FitShape(Pass):
    """Turns sizes by the names of a config into numbers of units and layers that ``allocate`` keeps to.

    The class says which shapes its tensors have with these values; groups keep so many units, the most important ones,
    and so many of the least important layers go. Other values of the config stay what they are, or follow where the
    class cannot be built otherwise.

    Attributes:
        shape: What the config is to say: ``hidden_size=2048``.
    """

    name: ClassVar[str] = "fit-shape"
    shape: tuple[str, ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """What groups there are, and scores of layers to choose by."""
        return frozenset({keys.ANALYSIS, keys.SCORES, keys.BLOCK_SCORES})

    @property
    def gives(self) -> frozenset[str]:
        """What the user wants of groups."""
        return frozenset({keys.DEMANDS})

    @property
    def uses(self) -> frozenset[str]:
        """What the user wants of groups besides."""
        return self.needs | {keys.DEMANDS, keys.SELECTION}

    @property
    def adds(self) -> frozenset[str]:
        """More of it."""
        return frozenset({keys.DEMANDS})

    @property
    def before(self) -> frozenset[str]:
        """It plans for the whole model."""
        return frozenset({keys.SLICED, keys.SHALLOWER})

    def check(self) -> None:
        """Refuses what are no sizes."""
        if not shape_texts(self.shape):
            raise OptionError(f"'{self.name}' has no sizes; give some, as in 'fit-shape{{shape=hidden_size=2048}}'")

    def run(self, state: State) -> State:
        """The state with what the user wants of groups, and the layers that go.

        Raises:
            OptionError: The model has no config, or its config no such number, or a smaller one.
            TargetError: The shape cannot be reached.
        """
        analysis, wanted = state.analyzed(self.name), read_shape(shape_texts(self.shape))
        asked = asked_of(state.original)
        shown = ", ".join(f"{name}={value}" for name, value in wanted.items())
        failure = ""
        for aim in asked.aims(wanted):
            counts, reason = counts_of(analysis, aim.shapes)
            if reason:
                failure = failure or reason
                continue
            gone = self._layers(state, analysis, asked, aim.depths)
            lost = analysis.branches.unneeded(gone).tensors if gone else frozenset()
            left = {g.name: counts[g.name] for g in analysis.groups if g.name in counts and not lost >= {*g.tensors}}
            selection = replace(
                state.selection,
                fitted=left,
                leave_out=(*state.selection.leave_out, *(block.name for block in gone)),
                config=aim.values,
            )
            selection.held(analysis)  # refuses what contradicts it
            return replace(state, selection=selection)
        raise TargetError(f"shape target '{shown}' cannot be reached: {failure}; take other sizes")

    def _layers(self, state: State, analysis: Analysis, asked: Asked, depths: Sequence[Depth]) -> tuple[Block, ...]:
        """The layers that go, the least important ones that can."""
        gone: tuple[Block, ...] = ()
        for depth in depths:
            found: dict[int, Block] = {}
            candidates = [
                b for kind in ("layer", "block") for b in block_candidates(analysis, kind, state.selection.protect)
            ]
            for block in candidates:
                place = _place_of(analysis, block, depth)
                if place is not None:
                    found.setdefault(place, block)
            count = depth.before - depth.after
            if len(found) < count:
                raise TargetError(
                    f"{count} of the {depth.before} layers in '{depth.path}' are to go, and {len(found)} of them can "
                    "be left out as a whole; take a larger number"
                )
            ranked = sorted(found.values(), key=lambda block: state.block_scores[block.name])
            gone = (*gone, *blocks_said(asked, analysis, gone, ranked, count))
        return gone


def _place_of(analysis: Analysis, block: Block, depth: Depth) -> int | None:
    """The one element of a list of modules of which nothing is left without a block."""
    gone = analysis.branches.unneeded([block]).tensors
    prefix = f"{depth.path}."
    places = {name.removeprefix(prefix).partition(".")[0] for name in gone if name.startswith(prefix)}
    if len(places) != 1 or not (place := places.pop()).isdecimal():
        return None
    stored = {value.name for value in analysis.graph.stored if value.name.startswith(f"{prefix}{place}.")}
    return int(place) if stored <= gone else None
