"""A file against the model that the plan makes: what it must look like, node by node and bit for bit, then its numbers.

The plan says exactly what the file must be: it is replayed and written with the writer that writes results, and the
file is compared with that. So a file of ours passes by construction, and any edit of it does not. A file that another
tool has written in its own way is compared as far as that goes, and the checks say that they are partial.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from graphprune.arrays import digest_of
from graphprune.errors import OptionError
from graphprune.hosts.host import Host
from graphprune.hosts.onnx.contents import Contents, dtype_name, stated_attributes
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.interface import Interface, interface, oddities
from graphprune.hosts.onnx.numbers import side_by_side
from graphprune.hosts.onnx.refits import Refits
from graphprune.hosts.onnx.rewritten import TOLERANCES, Rewriting, foreign, rewriting
from graphprune.hosts.onnx.sameness import Sameness, Side, compared
from graphprune.pipeline.state import Check
from graphprune.suggest import meant

GRAPHS = ("auto", "exact", "numeric")
"""What is done with a graph that differs: refused unless another tool has clearly written it, always, or never."""
ROUNDING = 1e-5
"""Largest accepted difference of a tensor that another exporter has folded, relative to its largest element."""
_SHOWN = 3
"""How many differences a note tells."""
_SMALLEST = 2
"""Elements of the smallest tensor that is looked for: single numbers are everywhere."""
_TABLES = ("Gather", "GatherElements", "GatherND")
_FOLDED = ("float32", "float64", "float16", "bfloat16")


def file_checks(
    path: Path,
    replayed: Host,
    metadata: Mapping[str, str],
    *,
    refits: Refits,
    seed: int,
    graph: str = "auto",
) -> tuple[Check, ...]:
    """Compares a file with the model that the plan makes.

    Args:
        path: The file.
        replayed: The model that the plan makes, refitted tensors included where they could be found.
        metadata: What graphprune writes into a file's metadata.
        refits: What is known about refitted tensors.
        seed: Of the inputs.
        graph: One of :data:`GRAPHS`.

    Returns:
        ``interface``, ``graph`` and ``tensors``; where these have passed, ``numbers`` too.

    Raises:
        ModelError: The file cannot be read.
        OutputError: The model that the plan makes cannot be written.
        OptionError: ``graph`` is none of these.
    """
    require_graph(graph)
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        wanted = Path(folder) / "plan.onnx"
        replayed.save_onnx(wanted, metadata)
        return Comparison(path, wanted, replayed, refits, seed, graph).checks()


def require_graph(graph: str) -> None:
    """Refuses what says nothing of files whose graph differs.

    Raises:
        OptionError: It is none of :data:`GRAPHS`.
    """
    if graph not in GRAPHS:
        raise OptionError(f"graph is {meant(graph, GRAPHS)}; expected one of {', '.join(GRAPHS)}")


class Comparison:
    """A file beside the one that graphprune writes; see :func:`file_checks`, whose arguments these are.

    Attributes:
        file: The file.
        plan: What graphprune writes.
        walk: How their graphs differ.
    """

    def __init__(
        self, path: Path, wanted: Path, replayed: Host, refits: Refits, seed: int = 0, graph: str = "auto"
    ) -> None:
        self.path, self.wanted, self.replayed, self.refits, self.seed = path, wanted, replayed, refits, seed
        self.graph = graph
        self.file, self.plan = Side(Contents.load(path)), Side(Contents.load(wanted))
        self.inputs = replayed.example_inputs(seed)
        self.walk: Sameness = compared(self.file, self.plan)

    def checks(self) -> tuple[Check, ...]:
        """The checks, in their order."""
        raw = [onnx.load_model(str(each), load_external_data=False) for each in (self.path, self.wanted)]
        found = interface(raw[0], raw[1])
        odd = sorted(set(oddities(raw[0])) - set(oddities(raw[1])))
        del raw
        comparable = not any("puts are" in each for each in found.differences)
        judged = None
        if self.walk.graph and comparable and self.graph != "exact":
            judged = rewriting(self.walk, (self.file, self.plan), self._hosts(), anyhow=self.graph == "numeric")
        foreign_style = not self.walk.graph and self._restyled() and self.graph != "exact"
        rewritten = foreign_style or (judged is not None and not judged.refused)
        checks = [self._interface_check(found, odd, rewritten=rewritten), self._graph_check(judged)]
        checks.append(self._tensor_check(rewritten=rewritten, judged=judged))
        if all(check.passed for check in checks) and (self.refits.complete or any(check.partial for check in checks)):
            checks.append(self._number_check(partial=any(check.partial for check in checks)))
        return tuple(checks)

    def _restyled(self) -> bool:
        """Whether another exporter has written the same graph: attributes that differ only in how they are written."""
        worded = sum(
            bool(stated_attributes(self.file.nodes[a]) or stated_attributes(self.plan.nodes[b]))
            for a, b in self.walk.pairs.items()
        )
        return self.walk.restyled > 0 and 2 * self.walk.restyled >= worded

    def _hosts(self) -> tuple[OnnxHost, OnnxHost]:
        """The file and the plan's model, to be run."""
        shapes = {name: array.shape for name, array in self.inputs.items()}
        found = []
        for path, side in ((self.path, self.file), (self.wanted, self.plan)):
            names = {value.name for value in side.contents.proto.graph.input}
            fitting = {name: shape for name, shape in shapes.items() if name in names}
            try:
                found.append(OnnxHost.load(path, fitting))
            except OptionError:  # it does not take inputs of these shapes, which the interface tells
                found.append(OnnxHost.load(path))
        return found[0], found[1]

    def _interface_check(self, found: Interface, odd: Sequence[str], *, rewritten: bool) -> Check:
        wrong = [*found.differences, *odd]
        said = list(found.notes)
        (said if rewritten else wrong).extend(found.written)
        if rewritten and (domains := set(foreign(self.file)) - set(foreign(self.plan))):
            said.append(f"it uses operators of {_listed(domains)}")
        n_in, n_out = (len(each) for each in (self.inputs, self.plan.contents.proto.graph.output))
        note = _told(wrong) or "; ".join(
            [f"{_count(n_in, 'input')} and {_count(n_out, 'output')} by name, order, type and shape", *said]
        )
        return Check("interface", float(len(wrong)), 0.0, note, partial=bool(rewritten and found.written))

    def _graph_check(self, judged: Rewriting | None) -> Check:
        n = len(self.walk.pairs)
        if not self.walk.graph:
            return Check("graph", 0.0, 0.0, f"{_count(n, 'node')} one by one, with attributes and connections")
        if judged is None:
            return Check("graph", float(len(self.walk.graph)), 0.0, _told(self.walk.graph))
        if judged.refused:
            advice = "" if judged.runs else _REWRITTEN
            return Check("graph", float(len(self.walk.graph)), 0.0, f"{judged.refused}{advice}")
        by_itself = (
            f"; run by themselves on {_count(judged.runs, 'set')} of values they agree within {judged.difference:.2g}"
            if judged.runs
            else ""
        )
        note = (
            f"not comparable node by node: another tool has written {_count(judged.n_file, 'node')} where the plan's "
            f"model has {judged.n_plan} ({judged.shared} are the same), compared by numbers only{by_itself}"
        )
        return Check("graph", 0.0, 0.0, note, partial=True)

    def _tensor_check(self, *, rewritten: bool, judged: Rewriting | None) -> Check:
        if self.refits.wrong:
            return Check("tensors", float("inf"), 0.0, self.refits.wrong)
        extra = [f"tensor '{name}' is stored and never read" for name in sorted(self.walk.unread)]
        if judged is not None and not judged.refused:
            return self._tensors_anywhere()
        wrong, folded = [], []
        for mine, theirs in self.walk.tensors:
            if self.refits.exported.get(theirs) == self.file.digest(mine) or (
                rewritten and self._rounded(mine, theirs)
            ):
                folded.append(mine)
            else:
                wrong.append(self._described(mine, theirs))
        n = len(self.file.read())
        note = f"{_count(n, 'tensor')} bit for bit"
        by_rounding = [name for name in folded if self.file.digest(name) not in self.refits.exported.values()]
        if by_rounding:
            note += f", but for {len(by_rounding)} that another exporter has folded, which differ by rounding"
        if self.refits.note:
            note += f"; {self.refits.note}"
        problems = [*wrong, *extra]
        partial = bool(by_rounding) or self.refits.unknown
        return Check("tensors", float(len(problems)), 0.0, _told(problems) or note, partial=partial)

    def _described(self, mine: str, theirs: str) -> str:
        one, other = self.file.header(mine), self.plan.header(theirs)
        if one.data_type != other.data_type or list(one.dims) != list(other.dims):
            names = [
                f"{onnx.helper.tensor_dtype_to_string(each.data_type).rpartition('.')[2]}{list(each.dims)}"
                for each in (one, other)
            ]
            return f"tensor '{mine}' is {names[0]} instead of {names[1]}"
        a, b = self.file.contents.array(one), self.plan.contents.array(other)
        return f"tensor '{mine}' differs in {int((a != b).sum()) or 'the bits of some'} of {a.size} elements"

    def _rounded(self, mine: str, theirs: str) -> bool:
        """Whether two tensors differ by rounding: never of a table, where each row is read alone."""
        one, other = self.file.header(mine), self.plan.header(theirs)
        a, b = self.file.contents.tensor(one), self.plan.contents.tensor(other)
        if a.dtype != b.dtype or list(one.dims) != list(other.dims) or dtype_name(a.dtype) not in _FOLDED:
            return False
        if theirs in self._tables():
            return False
        x, y = (np.asarray(each.numpy()).astype(np.float64) for each in (a, b))
        return bool(np.abs(x - y).max(initial=0.0) <= ROUNDING * np.abs(y).max(initial=0.0))

    def _tables(self) -> set[str]:
        """Tensors of the plan's model of which single rows are looked up: inputs hardly ever reach all of them."""
        headers = self.plan.contents.headers
        looked_up = {
            self.plan.source(node.input[0]).name for node in self.plan.nodes if node.op_type in _TABLES
        } & headers.keys()
        return {name for name in looked_up if dtype_name(self.plan.contents.tensor(headers[name]).dtype) in _FOLDED}

    def _tensors_anywhere(self) -> Check:
        """Which tensors of the plan's model the file has, wherever they stand; tables must be there."""
        held, own = _flat(self.file), _flat(self.plan)
        there = {digest for digests in held.values() for digest in digests}
        known = {digest for digests in own.values() for digest in digests}
        missing = sorted(name for name, digests in own.items() if there.isdisjoint(digests))
        added = sorted(name for name, digests in held.items() if known.isdisjoint(digests))
        lost = [name for name in missing if name in self._tables()]
        note = f"{len(own) - len(missing)} of {_count(len(own), 'tensor')} were found bit for bit"
        if missing:
            note += f"; not {_listed(missing)}, which the tool may have folded into others"
        if added:
            note += f"; not compared: {_listed(added)} of the file"
        if self.refits.note:
            note += f"; {self.refits.note}"
        wrong = [f"the table '{name}' is not in the file, or not bit for bit" for name in lost]
        return Check("tensors", float(len(wrong)), 0.0, _told(wrong) or note, partial=bool(missing or added))

    def _number_check(self, *, partial: bool) -> Check:
        file, plan = self._hosts()
        numbers = side_by_side((self.path, file), (self.wanted, plan), self.inputs, self.seed)
        tolerance = max((TOLERANCES[size] for size in _float_sizes(plan)), default=TOLERANCES[4])
        note = f"{_count(numbers.runs, 'input')} at {_count(numbers.sizes, 'set')} of sizes, outputs by name"
        if numbers.problem and not numbers.difference <= tolerance:
            note = numbers.problem
        if partial and not numbers.informative:
            note += "; the outputs do not vary, so this says nothing"
        return Check("numbers", numbers.difference, tolerance, note, informative=numbers.informative or not partial)


_REWRITTEN = (
    "; if another tool has written it so on purpose, compare its numbers only: graph='numeric' (--graph numeric)"
)


def _float_sizes(host: OnnxHost) -> set[int]:
    """Bytes of a number of the outputs that are floats."""
    kinds = {onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.FLOAT: 4, onnx.TensorProto.DOUBLE: 8}
    types = {value.type.tensor_type.elem_type for value in host.proto.graph.output}
    return {kinds[each] for each in types if each in kinds}


def _flat(side: Side) -> dict[str, set[str]]:
    """For each tensor that is read and is no size: the digests of its bytes, in any shape, and of a matrix turned."""
    found: dict[str, set[str]] = {}
    for name in side.read():
        tensor = side.contents.tensor(side.header(name))
        kind = dtype_name(tensor.dtype)
        if tensor.size < _SMALLEST or kind in ("int64", "str"):
            continue
        array = np.asarray(tensor.numpy())
        ways = [array, array.T] if array.ndim == 2 else [array]
        found[name] = {digest_of(kind, [array.size], np.ascontiguousarray(way).tobytes()) for way in ways}
    return found


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _listed(names: Collection[str]) -> str:
    some = sorted(names)
    more = f" and {len(some) - _SHOWN} more" if len(some) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in some[:_SHOWN]) + more


def _told(sentences: Sequence[str]) -> str:
    more = f"; and {len(sentences) - _SHOWN} more" if len(sentences) > _SHOWN else ""
    return "; ".join(sentences[:_SHOWN]) + more
