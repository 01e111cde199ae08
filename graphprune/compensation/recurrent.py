"""Refits of recurrent layers: the gates' pre-activations regressed on the inputs and states that are left.

``z_t = W x_t + R h_(t-1) + b`` is a weighted sum at each step, for all gates at once. Its target is the dense one, on
the dense model's inputs and states; its inputs are what the pruned model reads, and those of the dense states that stay
(a step that is right keeps the next one right). Layers within a node are refitted one after the other: what goes into a
deeper one is what the refitted layers below make of the pruned model's input. A GRU's candidate sees the reset state,
or resets the product with it: then both products are regressed on their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphprune.analysis.groups import Analysis
from graphprune.compensation.methods import Residuals, chosen_ridge, refit_shared
from graphprune.compensation.moved import is_own, made_of, put_back, value_of
from graphprune.compensation.stage import Compensated, Counter, Positions
from graphprune.hosts.host import Array, Arrays, Carried, Host, PartialRun
from graphprune.hosts.recurrent import Cell, Float, Part, Recurrent, Seen, run_cell
from graphprune.ir.dims import Factor, Index, factors_of, positions
from graphprune.statistics.collect import positions_to_count
from graphprune.statistics.holdout import split_batches

INPUTS, STATES, RESET = "x", "h", "rh"


@dataclass(frozen=True)
class System:
    """Rows of a cell's weights that are regressed together, on what they see.

    Attributes:
        dense: The rows that stay, in the dense model.
        pruned: The same rows in the pruned model.
        sees: :data:`INPUTS`, :data:`STATES`, :data:`RESET` (the states after the reset gate), or two of them.
        bias: Whether the change of the mean goes to the bias of the states rather than of the inputs.
    """

    dense: Index
    pruned: Index
    sees: tuple[str, ...]
    states_bias: bool = False


@dataclass(frozen=True)
class RecurrentStage:
    """All cells of one layer of a recurrent node.

    Attributes:
        node: The node.
        layer: Its cells in the dense model; the names are the same in the pruned one.
        dense: The dense model.
        depth: Which of the layers that are stacked in the node; those below it have been refitted.
    """

    node: str
    layer: Recurrent
    dense: Host
    depth: int = 0

    @property
    def cells(self) -> list[Cell]:
        """The cells that are refitted."""
        return [cell for cell in self.layer.cells if cell.layer == self.depth]

    def _states(self) -> list[str]:
        """The names of initial states that are computed."""
        stored = self.dense.graph().values
        return [name for name in self.layer.states if name is not None and not stored[name].stored]

    @property
    def start(self) -> str:
        """The input."""
        return self.layer.value

    @property
    def read(self) -> list[str]:
        """The input, and the states from which layers below begin."""
        return list(dict.fromkeys((self.layer.value, *(self._states() if self.depth else ()))))

    @property
    def targets(self) -> list[str]:
        """What the dense layer reads, from which it follows what its gates should be."""
        return list(dict.fromkeys((self.layer.value, *self._states())))

    @property
    def places(self) -> dict[str, tuple[str, int]]:
        """The input, and its axis."""
        return {self.node: (self.layer.value, 2)}

    def counter(
        self, analysis: Analysis, kept: Mapping[Factor, Index], pruned: Host, n_batches: int, rng: np.random.Generator
    ) -> Counter:
        """See :class:`graphprune.compensation.stage.Stage`."""
        return _Counter(self, analysis, kept, pruned, n_batches, rng)


class _Counter:
    """The sums of all systems of a layer."""

    def __init__(
        self,
        stage: RecurrentStage,
        analysis: Analysis,
        kept: Mapping[Factor, Index],
        pruned: Host,
        n_batches: int,
        rng: np.random.Generator,
    ) -> None:
        self._stage, self._pruned, self._n_batches, self._rng = stage, pruned, n_batches, rng
        self._kept = {
            cell: (_positions(analysis, kept, cell.w, -2), _positions(analysis, kept, cell.w, -1),
                   _positions(analysis, kept, cell.r, -1))
            for cell in stage.cells
        }  # fmt: skip
        self._held = split_batches(n_batches)[1] if n_batches > 1 else []
        self._batch = 0
        self._look: PartialRun | None = None
        self._sums: dict[tuple[Cell, int, bool], Residuals] = {}
        self._stored: dict[tuple[bool, Part], Float] = {}

    def add(self, values: Carried, wanted: Arrays, masks: Mapping[str, Positions]) -> None:
        """Counts one batch in."""
        layer = self._stage.layer
        if self._look is None:
            self._look = self._pruned.partial_run(list(values), self._stage.read)
        found = self._look(values)[1]
        x, states = self._below(wanted, dense=True)
        now, _ = self._below(found, dense=False)
        counted = self._counted(x.shape[:2], masks[self._stage.node])
        for cell in self._stage.cells:
            own = _of_cell(layer, cell, states)
            self._count(cell, run_cell(layer, cell, lambda part: self._read(part, dense=True), x, own), now, counted)
        self._batch += 1

    def _below(self, values: Arrays, *, dense: bool) -> tuple[Float, list[Float | None]]:
        """What goes into the layer, ``t b i``, in the dense or in the pruned model, and the initial states there."""
        layer, depth = self._stage.layer, self._stage.depth
        x: Float = layer.steps(values[layer.value]).astype(np.float64)
        if not dense and not depth:
            return x, []
        states = [None if name is None else self._state(name, values, dense=dense) for name in layer.states]
        for at in range(depth):
            x = np.concatenate(
                [
                    run_cell(
                        layer, cell, lambda part: self._read(part, dense=dense), x, _of_cell(layer, cell, states)
                    ).after
                    for cell in layer.cells
                    if cell.layer == at
                ],
                axis=2,
            )
        return x, states

    def _counted(self, shape: tuple[int, int], mask: Positions) -> Index:
        """The steps and samples that count, in the order ``t b``."""
        places = np.arange(shape[0] * shape[1]).reshape(shape)
        if self._stage.layer.batch_first:
            places = places.T
        flat = places.reshape(-1)
        columns = max(sum(map(len, each[1:])) for each in self._kept.values())
        pick = positions_to_count(len(flat), columns, self._n_batches, mask, self._rng)
        return flat if pick is None else flat[pick]

    def _state(self, name: str, values: Arrays, *, dense: bool) -> Float:
        """An initial state, ``l b h``."""
        array = values[name] if name in values else (self._stage.dense if dense else self._pruned).read(name)
        array = np.moveaxis(array, 0, 1) if self._stage.layer.states_first else array
        return array.astype(np.float64)

    def _read(self, part: Part, *, dense: bool) -> Float:
        key = dense, part
        if key not in self._stored:
            host = self._stage.dense if dense else self._pruned
            self._stored[key] = part.of(value_of(host, part.tensor)).astype(np.float64)
        return self._stored[key]

    def _count(self, cell: Cell, seen: Seen, now: Float, counted: Index) -> None:
        full = {INPUTS: _rows(seen.x, counted), STATES: _rows(seen.before, counted), RESET: _rows(seen.reset, counted)}
        stay = self._kept[cell][2]
        few = {INPUTS: _rows(now, counted), STATES: full[STATES][:, stay], RESET: full[RESET][:, stay]}
        for number, system in enumerate(self._systems(cell)):
            t = self._product(cell, system.sees, full, system.dense, dense=True)
            y = self._product(cell, system.sees, few, system.pruned, dense=False)
            x = np.concatenate([few[what] for what in system.sees], axis=1)
            key = cell, number, self._batch in self._held
            if key not in self._sums:
                self._sums[key] = Residuals.zeros(1, x.shape[1], t.shape[1])
            self._sums[key].add(x[:, None], (t - y)[:, None], t[:, None])

    def _product(
        self, cell: Cell, sees: Sequence[str], side: Mapping[str, Float], rows: Index, *, dense: bool
    ) -> Float:
        """What some rows make of what they see, ``[n, rows]``."""
        parts = [side[what] @ self._read(_weight(cell, what), dense=dense)[rows].T for what in sees]
        return np.asarray(sum(parts[1:], parts[0]))

    def _systems(self, cell: Cell) -> Iterator[System]:
        dense, gates = self._kept[cell][0], self._stage.layer.gates
        pruned = np.arange(len(dense))
        if len(gates) != 3:
            yield System(dense, pruned, (INPUTS, STATES))
            return
        candidate = pruned // (len(dense) // 3) == gates.index("n")
        yield System(dense[~candidate], pruned[~candidate], (INPUTS, STATES))
        if self._stage.layer.reset_after:
            yield System(dense[candidate], pruned[candidate], (INPUTS,))
            yield System(dense[candidate], pruned[candidate], (STATES,), states_bias=True)
        else:
            yield System(dense[candidate], pruned[candidate], (INPUTS, RESET))

    def solved(self, method: str, ridges: Sequence[float]) -> tuple[list[Compensated], dict[str, Array]]:
        """The best change of each cell's weights and biases."""
        changes: dict[str, Array] = {}
        done: list[Compensated] = []
        for cell in self._stage.cells:
            for number, system in enumerate(self._systems(cell)):
                bias = cell.r_bias if system.states_bias else cell.w_bias
                own = (
                    method
                    if bias is not None
                    else "ols"
                    if method == "affine"
                    else "none"
                    if method == "mean"
                    else method
                )
                parts = [self._summed(cell, number, system, held=held) for held in (False, True)]
                read = [self._read(_weight(cell, what), dense=False)[system.pruned] for what in system.sees]
                now, ridge = np.concatenate(read, axis=1)[None], ridges[0]
                if all(part.count for part in parts):
                    ridge = chosen_ridge(parts[:1], parts[1:], [own], ridges, now)
                found = refit_shared([parts[0] + parts[1]], [own], ridge, now)
                start = 0
                for what in system.sees:
                    weight = self._changing(changes, _weight(cell, what))
                    weight[system.pruned] += found.weight[0][:, start : start + weight.shape[1]]
                    start += weight.shape[1]
                if bias is not None:
                    self._changing(changes, bias)[system.pruned] += found.bias[0]
                name = cell.r.tensor if system.states_bias else cell.w.tensor
                done.append(
                    Compensated(
                        self._stage.node, name, bias.tensor if bias is not None else None, found.before, found.after
                    )
                )
        stored = put_back(self._pruned, changes)
        return ([], {}) if stored is None else (_named(done, self._pruned, stored), stored)

    def _changing(self, changes: dict[str, Array], part: Part) -> Array:
        """A view of a part of a tensor that changes."""
        if part.tensor not in changes:
            changes[part.tensor] = value_of(self._pruned, part.tensor).astype(np.float64)
        return part.of(changes[part.tensor])

    def _summed(self, cell: Cell, number: int, system: System, *, held: bool) -> Residuals:
        columns = sum(self._read(_weight(cell, what), dense=False).shape[1] for what in system.sees)
        own = self._sums.get((cell, number, held), Residuals.zeros(1, columns, len(system.pruned)))
        return own.over_processes()


def _named(done: Sequence[Compensated], host: Host, changed: Iterable[str]) -> list[Compensated]:
    """What was done, by stored tensors; the first row names all that changed."""
    graph = host.graph()

    def first(name: str) -> str:
        return min(each for each in made_of(graph, name)[1] if graph.values[each].kind == "parameter")

    rows = [replace(row, weight=first(row.weight), bias=row.bias and first(row.bias)) for row in done]
    return [replace(rows[0], others=tuple(sorted(changed))), *rows[1:]]


def _weight(cell: Cell, what: str) -> Part:
    return cell.w if what == INPUTS else cell.r


def _rows(x: Float, counted: Index) -> Float:
    return x.reshape(-1, x.shape[2])[counted]


def _of_cell(layer: Recurrent, cell: Cell, states: Sequence[Float | None]) -> tuple[Float | None, ...]:
    """The initial states of one cell, ``b h``."""
    at = layer.cells.index(cell)
    return tuple(None if state is None else state[at] for state in states)


def _positions(analysis: Analysis, kept: Mapping[Factor, Index], part: Part, axis: int) -> Index:
    return positions(analysis.layouts[part.tensor][axis], kept)


def recurrent_stages(
    dense: Host, pruned: Host, analysis: Analysis, kept: Mapping[Factor, Index]
) -> Iterable[RecurrentStage]:
    """The recurrent layers whose input or state is cut, whose weights nothing else reads."""
    graph = analysis.graph
    there = {node.name for node in pruned.graph().nodes}
    for node in graph.nodes:
        layer = dense.recurrent(node.name) if node.name in there else None
        if not isinstance(layer, Recurrent):
            continue
        parts = [p for cell in layer.cells for p in (cell.w, cell.r, cell.w_bias, cell.r_bias) if p is not None]
        axes = [analysis.layouts[part.tensor][-1] for cell in layer.cells for part in (cell.w, cell.r)]
        cut = any(factor in kept for dim in axes for factor in factors_of(dim))
        if cut and is_own(graph, node, [part.tensor for part in parts]):
            depths = sorted({cell.layer for cell in layer.cells})
            yield from (RecurrentStage(node.name, layer, dense, depth) for depth in depths)
