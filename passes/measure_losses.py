"""Measure on trial what the outputs lose with the units of each group."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from graphprune.data.batches import Batches
from graphprune.errors import OptionError
from graphprune.importance import Evidence
from graphprune.importance.judge import judges_of
from graphprune.importance.trial_runs import PRECISE
from graphprune.importance.trials import SMOOTH, loss_curves, plan_trials
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.cost import build_cost_model
from graphprune.planning.plan import fingerprint
from graphprune.planning.whole import tiers
from graphprune.statistics.distributed import averaged
from graphprune.statistics.holdout import samples_of, split_batches

PIECES = 16
"""Inputs that are held apart are run in up to so many batches, of which a trial takes no more than it needs."""


@dataclass(frozen=True)
class MeasureLosses(Pass):
    """Takes units out of one group at a time, refits its consumers, and compares outputs: curves for ``measured``.

    Groups that are used only where a budget cannot be met without them are not tried; their curves are their scores,
    brought to the scale of the others. Needs scores, and products of activations (``calibrate``) of other data than
    the trials are made on (``calibrate{apart=true}``), which would flatter the refit.

    Groups that the selection leaves out are not tried.
    """

    name: ClassVar[str] = "measure-losses"
    selected: ClassVar[tuple[str, ...]] = ("only", "protect")

    @property
    def needs(self) -> frozenset[str]:
        """Scores, and products of activations."""
        return frozenset({keys.ANALYSIS, keys.SCORES, keys.CALIBRATION, keys.STATISTICS, keys.PRODUCTS})

    @property
    def gives(self) -> frozenset[str]:
        """Curves of losses."""
        return frozenset({keys.LOSSES})

    @property
    def uses(self) -> frozenset[str]:
        """What stays whole is not tried."""
        return self.needs | {keys.PROTECTION, keys.SELECTION}

    @property
    def before(self) -> frozenset[str]:
        """It tries the whole model."""
        return frozenset({keys.SLICED, keys.SHALLOWER})

    def subject(self, key: str) -> str:
        """The pass."""
        return f"'{self.name}'"

    def run(self, state: State) -> State:
        """The state with curves of losses.

        Raises:
            OptionError: There is no calibration data, or there are no scores.
        """
        analysis = state.analyzed(self.name)
        if state.batches is None:
            raise OptionError(f"'{self.name}' needs calibration data; give some (calibration=..., --calibration DATA)")
        if not state.scores:
            raise OptionError(f"'{self.name}' needs scores; put 'score' before it in the pipeline")
        chosen = [group for group in state.selection.groups(analysis) if group.name not in state.protected]
        allowed = next(iter(tiers(chosen, asked=bool(state.selection.only))), frozenset())
        groups = [group for group in chosen if group.name in allowed]
        _, held = split_batches(len(state.batches))
        pieces = state.batches.in_pieces(held, PIECES)
        n_widths, n_batches = self._planned(state, pieces, len(groups))
        judges = judges_of(analysis.graph, state.asked)
        key = self._key(state, held, allowed, (n_widths, n_batches, pieces.batch_size))
        found = state.measured.find(self.name, key)
        if found is None:
            found = loss_curves(
                Evidence(analysis, state.host.read, statistics=state.statistics, host=state.host, asked=state.asked),
                state.scores,
                groups,
                [pieces[i] for i in range(n_batches)],
                n_widths,
                smooth=SMOOTH,
                progress=state.observer.counter(self.name),
            )
            if key:
                state.measured.keep(self.name, key, found)
        kinds = dict.fromkeys(each.final.kind for each in judges if each.final is not None and each.final.probable)
        for kind in kinds:
            note = f"losses are judged by what goes into the {kind} at the end of the model, not by probabilities"
            state = replace(state, notes=(*state.notes, note))
        return replace(state, losses=found)

    def _planned(self, state: State, pieces: Batches, n_groups: int) -> tuple[int, int]:
        """How many widths are tried, and on how many of the pieces of the data."""
        model = build_cost_model(state.analyzed(self.name))
        assert state.batches is not None
        share = pieces.batch_size / state.batches.batch_size
        example = samples_of(state.analyzed(self.name).graph) if state.batches.flexible else state.batches.batch_size
        each = int(averaged(np.array(len(state.batches) / share)))  # all processes make the same trials
        macs = model.cost("macs", model.full) * pieces.batch_size / example
        return plan_trials(n_groups, each, macs, len(pieces))

    def _key(self, state: State, held: Sequence[int], allowed: Collection[str], planned: tuple[int, ...]) -> str:
        """A digest of all that the trials depend on; empty if nobody says what the statistics were taken of."""
        if state.statistics is None or state.statistics.origin is None:
            return ""
        assert state.batches is not None
        origins = (state.measured.origin(state.host, state.batches, held, products=False), state.statistics.origin)
        graph = state.analyzed(self.name).graph
        judged = [str(each) for each in judges_of(graph, state.asked)]
        key = hashlib.sha256(repr((fingerprint(graph), origins, planned, PRECISE, SMOOTH, judged)).encode())
        for name, scores in state.scores.items():
            key.update(f"{name} {name in allowed};".encode() + scores.tobytes())
        return key.hexdigest()
