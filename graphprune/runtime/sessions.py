"""onnxruntime: running an exported file and measuring its latency."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import ModelError, first_line
from graphprune.runtime.library import onnxruntime
from graphprune.runtime.watchdog import sized, watched

if TYPE_CHECKING:
    import onnxruntime as ort

CPU = "CPUExecutionProvider"
LARGE = 1 << 28
"""Bytes of weights above which a file that runs once is not made ready to run fast."""


def session(
    path: Path, *, threads: int = 1, provider: str = CPU, floating: bool = False, once: bool = False
) -> ort.InferenceSession:
    """A session, on the CPU unless another provider is asked for.

    Args:
        path: The ONNX file.
        threads: Threads within an operator; 0 means all cores.
        provider: The execution provider that comes first.
        floating: Whether quantised operators run as they are written, in floating point between two roundings, and not
            in integer kernels, which round elsewhere.
        once: Whether it is to run once: then large weights are not laid out anew, of which copies would be made.

    Raises:
        ModelError: onnxruntime refuses the file.
    """
    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if floating:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        size = sum(each.stat().st_size for each in (path, data_of(path)) if each.is_file())
        without = {}
        if once and size > LARGE:  # a folded transpose of a table of words is a second one
            options.add_session_config_entry("session.disable_prepacking", "1")
            without["disabled_optimizers"] = ["ConstantFolding"]
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # outputs hold on to an arena
        providers = list(dict.fromkeys([provider, CPU]))
        found = onnxruntime().InferenceSession(str(path), options, providers=providers, **without)
        return sized(found, size)
    except Exception as error:  # onnxruntime's errors have no common base
        raise refused(error, f"'{path}'") from error


def data_of(path: Path) -> Path:
    """Where the weights of a file lie that is too large to hold them itself."""
    return path.with_name(f"{path.name}.data")


def refused(error: Exception, what: str) -> ModelError:
    """What onnxruntime says of a model that it does not load, and what a user can do about it."""
    reason = first_line(error)
    if "is not a registered function/op" in reason:
        advice = (
            "without this operator the result can only be written unproven and unmeasured (--no-verify --no-latency)"
        )
    elif "NOT_IMPLEMENTED" in reason:
        advice = "it has few operators in float64 and none of other domains; export a float32 model or another opset"
    else:
        advice = "check it with onnx.checker.check_model"
    return ModelError(f"onnxruntime cannot load {what}: {reason}; {advice}")


def run_file(path: Path, inputs: Mapping[str, NDArray[Any]], *, floating: bool = False) -> dict[str, NDArray[Any]]:
    """Runs a file once; outputs by name, in order. See :func:`session` for ``floating``.

    Raises:
        ModelError: onnxruntime refuses the file or the inputs.
    """
    return run_session(session(path, floating=floating, once=True), inputs)


def run_session(session: ort.InferenceSession, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Runs a session; outputs by name, in order. Inputs that the model does not have are left out.

    Raises:
        ModelError: onnxruntime refuses the inputs.
    """
    return {name: as_array(result) for name, result in run_raw(session, inputs).items()}


def run_raw(session: ort.InferenceSession, inputs: Mapping[str, NDArray[Any]]) -> dict[str, object]:
    """As :func:`run_session`; outputs that are no tensors come as the runtime gives them."""
    wanted = {entry.name for entry in session.get_inputs()}
    names = [entry.name for entry in session.get_outputs()]
    given = {name: array for name, array in inputs.items() if name in wanted}
    try:
        with watched(session, sum(array.nbytes for array in given.values())) as options:
            results = session.run(names, given, options)
    except ModelError:
        raise
    except Exception as error:  # onnxruntime's errors have no common base
        raise ModelError(
            f"onnxruntime cannot run the model: {first_line(error)}; "
            "give input shapes that fit (--shape NAME=2x3x64x64)"
        ) from error
    return dict(zip(names, results, strict=True))


def as_array(result: object) -> NDArray[Any]:
    """What the runtime gives for an output, as numbers: the elements of sequences, and the values of maps by key."""
    if isinstance(result, Mapping):  # from class to probability, which comes as a number of Python
        return np.asarray([result[key] for key in sorted(result)], np.float32)
    if isinstance(result, list) and result and isinstance(result[0], Mapping):
        return np.stack([as_array(item) for item in result])
    if isinstance(result, list):  # a sequence of tensors
        return np.concatenate([np.asarray(item).ravel() for item in result]) if result else np.zeros(0)
    return np.asarray(result)


@dataclass(frozen=True, slots=True)
class Latency:
    """Median milliseconds of one run, for each of several files, on so many threads."""

    threads: int
    milliseconds: tuple[float, ...]


def measure(
    paths: Sequence[Path],
    inputs: Sequence[Mapping[str, NDArray[Any]]],
    *,
    threads: Sequence[int] = (1, 0),
    provider: str = CPU,
    seconds: float = 1.0,
    most_runs: int = 100,
    quantile: float = 0.5,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Latency, ...]:
    """Median latencies of several files in interleaved runs, so that noise of the machine hits all alike.

    Args:
        paths: The files.
        inputs: For each file, its inputs.
        threads: Numbers of threads to measure with; 0 means all cores.
        seconds: About how long to measure for each number of threads.
        provider: The execution provider.
        most_runs: At most so many runs of each file.
        quantile: What is taken of the runs: their median, or less, which other processes disturb less.
        clock: Gives seconds.
    """
    found = []
    for n in threads:
        runners = [session(path, threads=n, provider=provider) for path in paths]
        feeds = [
            {each.name: given[each.name] for each in runner.get_inputs()}
            for runner, given in zip(runners, inputs, strict=True)
        ]
        for runner, feed in zip(runners, feeds, strict=True):  # the first run allocates
            runner.run(None, feed)
        times: list[list[float]] = [[] for _ in runners]
        start = time.perf_counter()
        while len(times[0]) < 3 or (time.perf_counter() - start < seconds and len(times[0]) < most_runs):
            for runner, feed, taken in zip(runners, feeds, times, strict=True):
                begin = clock()
                runner.run(None, feed)
                taken.append((clock() - begin) * 1e3)
        found.append(Latency(n or os.cpu_count() or 1, tuple(float(np.quantile(taken, quantile)) for taken in times)))
    return tuple(found)
