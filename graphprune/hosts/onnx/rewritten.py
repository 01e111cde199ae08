"""Graphs that differ: one that was edited, or one that another tool has written in its own way?

An edited file is refused. What an optimiser has fused or another exporter has written can only be compared by its
numbers, which a change that the inputs do not reach passes: so it is called that, and as little as can be is left to
numbers. What is written otherwise is cut out of both models and run by itself, on what flows through the model and on
that much larger, smaller and turned around; and no operator may choose by its data (``If``, comparisons) that has
nothing to stand for in the plan's model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graphprune.errors import ModelError
from graphprune.hosts.host import Array
from graphprune.hosts.onnx.contents import DEFAULT_DOMAINS, Contents, attributes_of, bodies_of
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.numbers import differing
from graphprune.hosts.onnx.sameness import MAIN, Sameness, Side, is_identity, likeness

ALIKE = 0.5
"""Graphs of which this much is the same, to the attributes that are spelled out, come from one exporter."""
TOLERANCES = {2: 2e-2, 4: 1e-4, 8: 1e-7}
"""Largest accepted difference by bytes of a number: tools fold constants in the model's own precision."""
FACTORS = {2: (-1.0, 0.1, 4.0), 4: (-1.0, 1e-2, 50.0), 8: (-1.0, 1e-2, 50.0)}
"""What the values that flow into a part are multiplied by, by bytes of a number."""

_CHOOSING = frozenset(
    (
        *("If", "Loop", "Scan", "Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
        *("Not", "And", "Or", "Xor", "BitwiseNot", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "IsNaN", "IsInf"),
        *("NonZero", "Compress", "Unique", "OneHot", "Hardmax", "ArgMax", "ArgMin", "TopK", "StringNormalizer"),
    )
)
_SIZES = ("Shape", "Size")


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What was found where two graphs differ.

    Attributes:
        refused: Why the file is not the plan's model, or ``""``.
        n_file: Nodes of the file that are written otherwise.
        n_plan: Those of the plan's model that they stand for.
        shared: Nodes that are the same.
        difference: The largest one when the part is run by itself, relative to the largest value.
        tolerance: What is accepted.
        runs: On how many sets of values it was run; 0 where that was not possible.
    """

    refused: str
    n_file: int
    n_plan: int
    shared: int
    difference: float = 0.0
    tolerance: float = 0.0
    runs: int = 0


def rewriting(
    sameness: Sameness, sides: tuple[Side, Side], hosts: tuple[OnnxHost, OnnxHost], *, anyhow: bool
) -> Rewriting:
    """Judges a file whose graph differs from the plan's model.

    Args:
        sameness: What the walk found.
        sides: The file and the plan's model.
        hosts: The same, to be run.
        anyhow: Whether a graph that looks edited is compared by its numbers, too.
    """
    file, plan = sides
    mine, theirs = _digests(file), _digests(plan)
    common = set(mine.values()) & set(theirs.values())
    parts = [
        [
            i
            for i, node in enumerate(side.nodes)
            if i not in paired
            and not is_identity(node)
            and not any(digests.get(name) in common for name in node.output if name)
        ]
        for side, digests, paired in (
            (file, mine, set(sameness.pairs)),
            (plan, theirs, set(sameness.pairs.values())),
        )
    ]
    n_file, n_plan = map(len, parts)
    shared = len(sameness.pairs)
    if not anyhow:
        if not sameness.gaps or (n_file >= n_plan and likeness(file, plan) >= ALIKE):
            return Rewriting(_first(sameness.graph), n_file, n_plan, shared)
        extra = _choices(file, parts[0]) - _choices(plan, parts[1])
        if extra > 0:
            names = sorted({file.nodes[i].op_type for i in parts[0]} & _CHOOSING)
            return Rewriting(
                f"{_first(sameness.structure)}; and what is written otherwise chooses by its data ({', '.join(names)})",
                n_file,
                n_plan,
                shared,
            )
    found = _apart(sameness, sides, hosts, (mine, theirs), common)
    if found is None:
        return Rewriting("", n_file, n_plan, shared)
    difference, tolerance, runs = found
    refused = ""
    if not difference <= tolerance:
        refused = f"{_first(sameness.structure)}; run by itself, it differs by {difference:.2g}"
    return Rewriting(refused, n_file, n_plan, shared, difference, tolerance, runs)


def _first(sentences: tuple[str, ...]) -> str:
    more = f", and {len(sentences) - 1} more" if len(sentences) > 1 else ""
    return f"{sentences[0]}{more}" if sentences else "it differs"


def _digests(side: Side) -> dict[str, str]:
    """For each value of the main graph: a hash of all that it is computed from."""
    contents: Contents = side.contents
    found = {value.name: f"input {value.name}" for value in contents.proto.graph.input}
    found.update(side.digests())
    for node in contents.proto.graph.node:
        if is_identity(node):
            found[node.output[0]] = found.get(node.input[0], node.input[0])
            continue
        digest = hashlib.sha256(f"{node.domain or 'ai.onnx'}:{node.op_type}".encode())
        if bodies_of(node):
            digest.update(node.SerializeToString(deterministic=True))
        for name, value in sorted(attributes_of(node, contents.opset).items()):
            digest.update(name.encode() + b"=" + value)
        digest.update("".join(found.get(name, name) + "," for name in node.input).encode())
        found.update({name: f"{digest.hexdigest()}:{i}" for i, name in enumerate(node.output) if name})
    return found


def _choices(side: Side, part: list[int]) -> int:
    """How many nodes of a part choose by the values (not the sizes) of inputs, and all that is of other domains."""
    data = {value.name for value in side.contents.proto.graph.input}
    for node in side.nodes:  # sorted, but for bodies, which come after the node that they are of
        reads = set(node.input) | {value.name for body in bodies_of(node).values() for value in body.input}
        if bodies_of(node) or (node.op_type not in _SIZES and not data.isdisjoint(reads)):
            data.update(node.output)
            data.update(value.name for body in bodies_of(node).values() for value in body.input)
    return sum(
        side.nodes[i].op_type in _CHOOSING
        and (bool(bodies_of(side.nodes[i])) or not data.isdisjoint(side.nodes[i].input))
        for i in part
    )


def foreign(side: Side) -> list[str]:
    """Domains of operators that ONNX does not define."""
    return sorted({node.domain for node in side.nodes if node.domain not in (*DEFAULT_DOMAINS, "ai.onnx.ml")})


def _apart(
    sameness: Sameness,
    sides: tuple[Side, Side],
    hosts: tuple[OnnxHost, OnnxHost],
    digests: tuple[Mapping[str, str], Mapping[str, str]],
    common: set[str],
) -> tuple[float, float, int] | None:
    """Runs what is written otherwise by itself: the largest difference, what is accepted, on how many values."""
    file, plan = sides
    by_digest: dict[str, str] = {}
    for name, digest in digests[1].items():
        by_digest.setdefault(digest, name)
    ends = [(a, b) for (here, a), (there, b) in sameness.gaps if here == there == MAIN]
    if len(ends) < len(sameness.gaps):
        return None
    names = [[pair[i] for pair in ends] for i in range(2)]
    made, fixed = [], []
    for side, each in zip(sides, names, strict=True):
        sources = {name: side.source(name) for name in each}
        if any(source.kind not in ("result", "stored") for source in sources.values()):
            return None
        made.append([name for name, source in sources.items() if source.kind == "result"])
        headers = {name: side.header(source.name) for name, source in sources.items() if source.kind == "stored"}
        fixed.append({name: side.contents.array(header) for name, header in headers.items()})
    mine, theirs = _border(file, digests[0], common, made[0]), _border(plan, digests[1], common, made[1])
    if mine is None or theirs is None or not ends:
        return None
    given = {digests[0][name]: name for name in mine}
    need = {digest: by_digest[digest] for digest in {*given, *(digests[1][name] for name in theirs)}}
    wanted, found = [], []
    try:
        flowing = _values(hosts[1], list(need.values()))
        run_file = hosts[0].partial_run([*given.values()], made[0])
        run_plan = hosts[1].partial_run([*need.values()], made[1])
        for values in _varied(flowing):
            want = {**run_plan(values)[1], **fixed[1]}
            if all(_finite(array) for array in want.values()):
                got = {**run_file({name: values[need[digest]] for digest, name in given.items()})[1], **fixed[0]}
                wanted.append({str(i): want[b] for i, (_, b) in enumerate(ends)})
                found.append({str(i): got[a] for i, (a, _) in enumerate(ends)})
    except ModelError:
        return None
    if not wanted:
        return None
    worst = max(differing([want], [got])[0] for want, got in zip(wanted, found, strict=True))
    return worst, _tolerance(wanted[0]), len(wanted)


def _border(side: Side, digests: Mapping[str, str], common: set[str], ends: list[str]) -> list[str] | None:
    """The values that both models have from which the ends are computed; ``None`` where bodies are in the way."""
    made = {name: node for node in side.contents.proto.graph.node for name in node.output if name}
    stored = side.digests().keys()
    found: dict[str, None] = {}
    seen: set[str] = set()
    pending = list(ends)
    while pending:
        name = pending.pop()
        if name in seen or not name or name in stored:
            continue
        seen.add(name)
        if name not in ends and digests.get(name) in common:
            found[name] = None
            continue
        node = made.get(name)
        if node is None or bodies_of(node):
            return None
        pending.extend(node.input)
    return list(found)


def _values(host: OnnxHost, names: list[str]) -> dict[str, Array]:
    inputs = host.example_inputs(0)
    outside = [name for name in names if name not in inputs]
    found = host.partial_run(None, outside)(inputs)[1] if outside else {}
    return {name: inputs[name] if name in inputs else found[name] for name in names}


def _varied(values: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Values as they flow, and with the floats among them made larger, smaller and turned around."""
    sizes = [array.dtype.itemsize for array in values.values() if array.dtype.kind == "f"]
    factors = (1.0, *FACTORS.get(min(sizes), ())) if sizes else (1.0,)
    return [
        {
            name: (array * factor).astype(array.dtype) if array.dtype.kind == "f" else array
            for name, array in values.items()
        }
        for factor in factors
    ]


def _finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _tolerance(arrays: Mapping[str, Array]) -> float:
    sizes = [array.dtype.itemsize for array in arrays.values() if array.dtype.kind == "f"]
    return TOLERANCES.get(min(sizes, default=4), TOLERANCES[4])
