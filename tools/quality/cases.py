"""What a case of the benchmark is, and how models are run on its data.

A :class:`Case` hands a model to every recipe and rival in the same way. ``evaluate`` takes a function that maps a
batch (inputs by name, at the static shape of the calibration batches) to the model's first output, so that one
measurement serves our results, PyTorch modules and ONNX files alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]
Run = Callable[[Batch], np.ndarray]
Values = dict[str, float]

ERROR = "standard error"
"""The key of the standard error of the first value, where there is one."""


@dataclass(frozen=True, eq=False)
class Case:
    """A trained model with data.

    Attributes:
        name: Of the record.
        metric: Name of the measured value, e.g. ``top-1``; the key of the first entry that ``evaluate`` returns.
        model: A module in eval mode or an ONNX file.
        example: What `gp.prune` takes: a mapping of inputs, or ``None`` for an ONNX file with ``shapes``.
        calibration: Unlabelled batches, at the shape of the example.
        evaluate: Runs the model on held-out data; the metric first, then others.
        n: How many items ``evaluate`` looks at.
        source: Where model and data come from, and under which licences.
        labels: For rivals that need them, one array for each calibration batch.
        labels_are: Where they come from.
        residual: Patterns of names of modules that write the residual stream or the output; a rival that is confined
            to inner widths ignores them.
        heads: Names of modules whose outputs are heads, and how many, as rivals want to be told.
        shapes: Of the inputs of an ONNX file.
        higher: Whether a larger value is better.
    """

    name: str
    metric: str
    model: Any
    example: dict[str, Any] | None
    calibration: list[Batch]
    evaluate: Callable[[Run], Values]
    n: int = 0
    source: str = ""
    labels: list[np.ndarray] = field(default_factory=list)
    labels_are: str = ""
    residual: tuple[str, ...] = ()
    heads: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] | None = None
    higher: bool = True


def batches(array: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Chunks of exactly ``size`` rows, the last one filled up with the first rows, and how many of them count."""
    for start in range(0, len(array), size):
        chunk = array[start : start + size]
        n = len(chunk)
        yield (chunk if n == size else np.concatenate([chunk, array[: size - n]])), n


def outputs(run: Run, name: str, array: np.ndarray, size: int, **others: np.ndarray) -> np.ndarray:
    """The first output for every row; ``others`` are further inputs with the same rows."""
    rows = []
    for i, (chunk, n) in enumerate(batches(array, size)):
        extra = {key: list(batches(value, size))[i][0] for key, value in others.items()}
        rows.append(np.atleast_1d(run({name: chunk, **extra}))[:n])
    return np.concatenate(rows)


def mean(name: str, items: Any) -> Values:
    """A value that is the mean of one number an item (right or wrong, an overlap), with its standard error."""
    array = np.asarray(items, dtype=np.float64)
    return {name: float(array.mean()), ERROR: float(array.std() / max(len(array), 1) ** 0.5)}


def relative_error(name: str, found: np.ndarray, dense: np.ndarray) -> Values:
    """Root mean square of the difference from the dense model's numbers, in units of their standard deviation."""
    squares = np.square((found - dense) / dense.std()).astype(np.float64).ravel()
    root = float(np.sqrt(squares.mean()))
    # delta method: the error of a root is that of the square over twice the root
    return {name: root, ERROR: float(squares.std() / len(squares) ** 0.5 / max(2 * root, 1e-12))}


def module_runner(model: Any) -> Run:
    """Runs a module on a batch; the first output."""
    import torch

    def run(batch: Batch) -> np.ndarray:
        with torch.no_grad():
            result = model(**{name: torch.from_numpy(array) for name, array in batch.items()})
        return getattr(result, "logits", result).float().numpy()

    return run


def onnx_runner(path: Path) -> Run:
    """Runs an ONNX file in onnxruntime, one thread; the first output."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}
    first = session.get_outputs()[0].name
    return lambda batch: session.run([first], {name: batch[name] for name in batch if name in names})[0]


def dense_runner(case: Case) -> Run:
    """Runs the model of a case as it is."""
    return onnx_runner(case.model) if isinstance(case.model, Path) else module_runner(case.model)
