"""Two files run side by side: several inputs at two sets of sizes, outputs by name, each slice by its own size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphprune.errors import ModelError
from graphprune.hosts.host import Array, Arrays
from graphprune.hosts.onnx.draws import draws
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.proof.differences import off_slices
from graphprune.runtime import sessions as runtime

SEEDS = 3
"""How many random inputs at the sizes of the example; at other sizes one less."""
_TINY = 1e-7
"""Slices smaller than this, relative to the whole output, consist of rounding."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What running two files has shown.

    Attributes:
        difference: The largest one of any output, relative to the largest value of the slice that it is in.
        runs: On how many inputs they were run.
        sizes: At how many sets of sizes.
        problem: What is wrong beside numbers, or ``""``.
        informative: Whether the outputs vary at all.
    """

    difference: float
    runs: int
    sizes: int
    problem: str = ""
    informative: bool = True


def side_by_side(file: tuple[Path, OnnxHost], plan: tuple[Path, OnnxHost], inputs: Arrays, seed: int) -> Numbers:
    """Runs a file and the plan's model on the same inputs.

    Args:
        file: The file's path, and the file as a host.
        plan: The same of the plan's model.
        inputs: The first inputs to try; the others are random.
        seed: Of the others.
    """
    given = [inputs] + [plan[1].example_inputs(seed + n) for n in range(SEEDS)]
    other = plan[1].at_other_sizes()
    if other is not None:
        given.extend(other.example_inputs(seed + n) for n in range(SEEDS - 1))
    run_plan, run_file = _runner(*plan, like=plan[1]), _runner(*file, like=plan[1])
    wanted: list[Arrays] = []
    found: list[Arrays] = []
    sizes: set[tuple[tuple[int, ...], ...]] = set()
    for values in given:
        with suppress(ModelError):  # random numbers may be no valid input
            wanted.append(run_plan(values))
            try:
                found.append(run_file(values))
            except ModelError as error:
                shapes = ", ".join(f"'{name}' of shape {list(array.shape)}" for name, array in values.items())
                return Numbers(np.inf, len(wanted), len(sizes), f"it does not run on {shapes}: {error}")
            sizes.add(tuple(array.shape for array in values.values()))
    if not wanted:
        return Numbers(np.inf, 0, 0, "the plan's model itself does not run on any input that was tried")
    difference, problem = differing(wanted, found)
    return Numbers(difference, len(wanted), len(sizes), problem, _informative(wanted))


def _runner(path: Path, host: OnnxHost, *, like: OnnxHost) -> Callable[[Arrays], Arrays]:
    if draws(like.proto.graph):
        return host.run
    session = runtime.session(path)
    return lambda values: runtime.run_session(session, values)


def differing(wanted: Sequence[Arrays], found: Sequence[Arrays]) -> tuple[float, str]:
    """The largest difference of outputs, matched by name, relative to the slice that it is in, and what else is wrong.

    Integers must be equal, and a NaN or an infinity stands where the expected one does.
    """
    worst, problem = 0.0, ""
    for name in wanted[0]:
        if any(name not in got for got in found):
            return np.inf, f"output '{name}' is missing"
        pairs = [(want[name], got[name]) for want, got in zip(wanted, found, strict=True)]
        for a, b in pairs:
            if a.shape != b.shape or a.dtype != b.dtype:
                return np.inf, (
                    f"output '{name}' is {b.dtype} of shape {list(b.shape)} instead of {a.dtype} of {list(a.shape)}"
                )
            if a.dtype.kind == "f" and bool((np.isnan(b) & ~np.isnan(a)).any()):
                return np.inf, f"output '{name}' holds NaN where the plan's model has numbers"
            if a.dtype.kind != "f" and not np.array_equal(a, b):
                return np.inf, f"output '{name}', which holds {a.dtype}, is not equal"
        if pairs[0][0].dtype.kind != "f":
            continue
        for shape in {a.shape for a, _ in pairs}:
            both = [(a, b) for a, b in pairs if a.shape == shape]
            relative = off_slices(both, _TINY)
            if relative > worst:
                worst, problem = relative, f"most in output '{name}'"
    return worst, problem


def _informative(outputs: Sequence[Mapping[str, Array]]) -> bool:
    """Whether any output differs anywhere between two elements or two inputs."""
    for name in outputs[0]:
        flat = np.concatenate([run[name].ravel() for run in outputs])
        if flat.size and not (flat.dtype.kind == "f" and np.isnan(flat).all()) and bool((flat != flat[0]).any()):
            return True
    return False
