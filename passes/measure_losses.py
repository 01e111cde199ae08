"""Measure on trial what the outputs lose with the units of each group."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from graphprune.data.batches import Batches
from graphprune.errors import OptionError, OutputError
from graphprune.files import is_there
from graphprune.importance import Evidence
from graphprune.importance.context import Float, Scores
from graphprune.importance.judge import judges_of
from graphprune.importance.trial_runs import USUAL
from graphprune.importance.trials import loss_curves, plan_trials
from graphprune.pipeline import keys
from graphprune.pipeline.passes import Pass
from graphprune.pipeline.state import State
from graphprune.planning.cost import build_cost_model
from graphprune.planning.plan import fingerprint
from graphprune.planning.whole import tiers
from graphprune.statistics.distributed import averaged
from graphprune.statistics.holdout import samples_of, split_batches
from graphprune.statistics.losses import Losses, add_losses, read_losses

PIECES = 16
"""Inputs that are held apart are run in up to so many batches, of which a trial takes no more than it needs."""
MANY = 1000
"""Where a model gives so many numbers for a sample (maps, boxes, sequences); what is lost of a few scores differs too
much from sample to sample to be told by few of them, and batches stay as they are."""


@dataclass(frozen=True)
class MeasureLosses(Pass):
    """Takes units out of one group at a time, refits its consumers, and compares outputs: curves for ``measured``.

    Groups that are used only where a budget cannot be met without them are not tried; their curves are their scores,
    brought to the scale of the others. Needs scores, and products of activations (``calibrate``) of other data than
    the trials are made on (``calibrate{apart=true}``), which would flatter the refit.

    Groups that the selection leaves out are not tried.

    Attributes:
        file: Losses are read from this file of statistics (that of ``calibrate``) if it has those of the same model,
            data, scores, groups and loss, and added to it if it has not.
    """

    name: ClassVar[str] = "measure-losses"
    selected: ClassVar[tuple[str, ...]] = ("only", "protect")
    file: str = ""

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
        judges = judges_of(analysis.graph, state.asked)
        numbers = sum(analysis.graph.values[each].n_elements for each in {judge.output for judge in judges})
        many = numbers >= MANY * samples_of(analysis.graph)
        pieces = state.batches.in_pieces(held, PIECES) if many else state.batches.part(held)
        n_widths, n_batches = self._planned(state, pieces, len(groups))
        of = self._of(state, held, allowed, (n_widths, n_batches, pieces.batch_size))
        key = _digest(of, state.scores) if of else ""
        found, notes = state.measured.find(self.name, key), list[str]()
        if found is None and of and self.file:
            found, notes = self._read(of, state)
        if found is None:
            found = loss_curves(
                Evidence(analysis, state.host.read, statistics=state.statistics, host=state.host, asked=state.asked),
                state.scores,
                groups,
                [pieces[i] for i in range(n_batches)],
                n_widths,
                sparing=USUAL,
                progress=state.observer.counter(self.name),
            )
            if of and self.file:
                notes += self._written(Losses(of, state.scores, found))
        if key:
            state.measured.keep(self.name, key, found)
        state = replace(state, notes=(*state.notes, *notes))
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

    def _of(
        self, state: State, held: Sequence[int], allowed: Collection[str], planned: tuple[int, ...]
    ) -> dict[str, str]:
        """All that the trials depend on but for the scores; empty if nobody says what the statistics were taken of."""
        if state.statistics is None or state.statistics.origin is None:
            return {}
        assert state.batches is not None
        judged, fitted = state.measured.origin(state.host, state.batches, held, products=False), state.statistics.origin
        graph = state.analyzed(self.name).graph
        return {
            "weights": f"{fingerprint(graph)} {judged.weights} {fitted.weights}",
            "data": f"{judged.data} {fitted.data}",
            "split": f"{judged.split}, {fitted.split}",
            "loss": "; ".join(str(each) for each in judges_of(graph, state.asked)),
            "groups": hashlib.sha256("\n".join(sorted(allowed)).encode()).hexdigest(),
            "trials": repr((*planned, USUAL, fitted.products)),
        }

    def _read(self, of: Mapping[str, str], state: State) -> tuple[dict[str, Float] | None, list[str]]:
        """What the file has of these, and what to say if it has others."""
        if not is_there(Path(self.file)):
            return None, []
        kept = read_losses(Path(self.file), {name: len(each) for name, each in state.scores.items()})
        reasons = [each.differs(of, state.scores) for each in kept]
        if "" in reasons:
            return dict(kept[reasons.index("")].curves), []
        return None, [
            f"the losses in '{self.file}' are of {_OTHER[reason]}; they were measured anew" for reason in reasons[:1]
        ]

    def _written(self, losses: Losses) -> list[str]:
        """Adds losses to the file, and says if that cannot be done: the result needs no file."""
        if not is_there(Path(self.file)):
            return []
        try:
            add_losses(Path(self.file), losses)
        except OutputError as error:
            return [f"losses are not kept: {error}"]
        return []


_OTHER = {
    "weights": "other weights",
    "data": "other data",
    "split": "another part of the data",
    "loss": "other losses of outputs (--loss)",
    "groups": "other groups (--only, --protect)",
    "trials": "other trials",
    "scores": "other scores (--criterion)",
}
"""What to say of the parts of :attr:`Losses.of`."""


def _digest(of: Mapping[str, str], scores: Scores) -> str:
    key = hashlib.sha256(repr(of).encode())
    for name, each in scores.items():
        key.update(f"{name};".encode() + each.tobytes())
    return key.hexdigest()
