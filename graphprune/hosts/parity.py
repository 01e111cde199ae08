"""Whether an exported file computes in onnxruntime what the host does that it was exported from.

Runtimes round differently, and some of their optimisations move results by more than rounding does. So both sides run
with the same options, and what is accepted follows from the rounding that the model itself shows: from a run in its own
precision beside one in float64, or from what the same runtime makes of the original.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from graphprune.errors import ModelError
from graphprune.hosts.cuts import left_of
from graphprune.hosts.host import Arrays, Runnable
from graphprune.hosts.onnx.double import run_single
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.pipeline.state import Check
from graphprune.proof.compare import EPSILON, SEEN, Rounding, compare, noise_of
from graphprune.runtime import sessions as runtime

NAME, NOTE = "onnxruntime", "file = pruned model"
EXPORT_TOLERANCE = 1e-4
"""Largest accepted difference between PyTorch and onnxruntime (docs/methods.md, What proofs accept)."""
EXPORT_TOLERANCE_DOUBLE = 1e-5
"""The same where both run in float64: exporters store tables that they have computed in single precision."""
EXPORTED = Rounding(EXPORT_TOLERANCE, residue=4 * EPSILON[4], noise=32, most=SEEN)
"""Other kernels on the same numbers. Noise: PyTorch's own precision beside float64."""
EXPORTED_DOUBLE = Rounding(EXPORT_TOLERANCE_DOUBLE, residue=EPSILON[4], noise=1, most=SEEN)
HALF = Rounding(2e-2, residue=4 * EPSILON[2], noise=16, most=0.5)
"""Half precision, where two runtimes round at other places: enough to see that the file runs."""
HALF_WIDENED = Rounding(EXPORT_TOLERANCE, residue=4 * EPSILON[4], noise=2, most=SEEN)
"""The same file computed in single precision: what is left are tables that the exporter has stored rounded."""
MOVED = Rounding(2e-2, residue=1e-2, noise=8)
"""What integer kernels of a runtime may move; noise: what they move of the original."""


def file_parity(host: Runnable, path: Path, inputs: Arrays, original: Runnable | None = None) -> Check:
    """Compares an exported file in onnxruntime with the host that it was exported from.

    Args:
        host: What was exported.
        path: The file.
        inputs: By name.
        original: What the host was made of, with zeros for what was removed: of a quantised model it shows what the
            runtime's own optimiser moves.

    Raises:
        ModelError: onnxruntime cannot run it, or it draws random numbers, which no two runtimes draw alike.
    """
    if isinstance(host, OnnxHost):
        return _of_onnx(host, path, inputs, original if isinstance(original, OnnxHost) else None)
    if drawing := host.drawing:
        raise ModelError(
            f"the model draws random numbers ({', '.join(drawing)}), which onnxruntime draws differently; hand them in "
            "as an input, or draw only in training mode"
        )
    kinds = {value.dtype for value in host.graph().stored if value.kind == "parameter"}
    return _of_half(host, path, inputs) if "float16" in kinds else _of_torch(host, path, inputs)


def _of_onnx(host: OnnxHost, path: Path, inputs: Arrays, original: OnnxHost | None) -> Check:
    """A saved file: the same operators on the same numbers."""
    whole, inputs = inputs, left_of(host.cuts, inputs)
    got = runtime.run_file(path, inputs, floating=True)
    check = compare(NAME, host.run(inputs), got, note=NOTE)
    if check.difference > check.tolerance:
        try:
            expected, doubled = host.run(inputs, double=True), OnnxHost.load(path).run(inputs, double=True)
        except ModelError:  # there is no float64 executor for this model
            return replace(check, informative=True)
        second = compare(NAME, expected, doubled, note=NOTE)
        check = replace(second, note=f"{NOTE}, in float64 ({check.difference:.2g} in its own precision)")
    check = replace(check, informative=True)  # it computes nothing that the masked oracle has not proven
    if not check.passed or not host.quantised:
        return check
    moved = compare(NAME, got, runtime.run_file(path, inputs), note=NOTE, rounding=MOVED)
    if moved.difference > check.tolerance and original is not None:
        noise = noise_of(original.run(whole), original.run_integer(whole))
        before = compare(NAME, original.run(whole), original.run_integer(whole))
        moved = compare(NAME, got, runtime.run_file(path, inputs), note=NOTE, rounding=MOVED, noise=noise)
        note = (
            f"onnxruntime's integer kernels move it by {moved.difference:.2g}, the original by {before.difference:.2g}"
        )
        check = replace(check, note=f"{NOTE}; {note}")
    return check if moved.difference <= moved.tolerance else replace(moved, note=check.note, informative=True)


def _of_torch(host: Runnable, path: Path, inputs: Arrays) -> Check:
    got, own = runtime.run_file(path, inputs), host.run(inputs)
    first = compare(NAME, own, got, note=NOTE, rounding=replace(EXPORTED, noise=0))
    if first.difference <= first.tolerance:
        return replace(first, informative=True)
    check = first
    try:
        exact = host.run(inputs, double=True)
        noise = noise_of(exact, own)
        check = compare(NAME, _as(exact, own), got, note=NOTE, rounding=EXPORTED, noise=noise)
        if check.difference > check.tolerance:
            doubled = OnnxHost.load(path).run(inputs, double=True)
            check = compare(NAME, exact, doubled, note=NOTE, rounding=EXPORTED_DOUBLE, noise=noise)
    except ModelError:  # there is no float64 executor for this model
        pass
    note = f"{NOTE}, beside float64 ({first.difference:.2g} in its own precision)"
    return replace(check, note=note, informative=True)


def _of_half(host: Runnable, path: Path, inputs: Arrays) -> Check:
    """Half precision hides much: the file is compared as computed in single precision, and only run in its own."""
    got, own = runtime.run_file(path, inputs), host.run(inputs)
    try:
        exact = host.run(inputs, double=True)
    except ModelError:
        return replace(compare(NAME, own, got, note=NOTE, rounding=HALF), informative=True)
    noise = noise_of(exact, own)
    first = compare(NAME, _as(exact, own), got, note=NOTE, rounding=HALF, noise=noise)
    if first.difference > first.tolerance:
        return replace(first, informative=True)
    file = OnnxHost.load(path)
    try:
        wide = run_single(file.proto, file.store, inputs)
        single = {name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in exact.items()}
        check = compare(NAME, single, wide, note=NOTE, rounding=HALF_WIDENED, noise=noise)
    except ModelError:
        wide = file.run(inputs, double=True)
        check = compare(NAME, exact, wide, note=NOTE, rounding=HALF_WIDENED, noise=noise)
    note = f"{NOTE}, in single precision ({first.difference:.2g} in its own precision)"
    return replace(check, note=note, informative=True)


def _as(exact: Arrays, own: Arrays) -> dict[str, np.ndarray]:
    """Numbers of float64 in the types of the model."""
    with np.errstate(over="ignore"):
        return {name: array.astype(own[name].dtype) for name, array in exact.items()}
