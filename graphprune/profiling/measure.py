"""Milliseconds of small models in onnxruntime, by its own profiler.

The kernels' times are summed, without those that only convert layouts at the borders of a segment: inside a model the
neighbours hand over the blocked layout (NCHWc) that convolutions compute in. Sessions of all widths of a segment run
interleaved, so that noise of the machine hits all alike; of each kernel the lower quartile of its runs counts, since
other processes can only make a run slower.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphprune.errors import ModelError, OptionError, first_line
from graphprune.hosts.host import Arrays
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.runtime import MAXIMUM_IR_VERSION
from graphprune.hosts.onnx.store import fill_inline, with_weights
from graphprune.planning.latency import Machine
from graphprune.runtime.library import onnxruntime
from graphprune.suggest import meant

if TYPE_CHECKING:
    import onnxruntime as ort

LAYOUT_OPERATORS = frozenset({"ReorderInput", "ReorderOutput"})
"""onnxruntime's own operators between plain and blocked layouts."""
LEAST_RUNS, MOST_RUNS = 4, 200
QUANTILE = 0.25

Measure = Callable[[Sequence[tuple[OnnxHost, Arrays]], float], list[float]]
"""Takes models with their inputs and the seconds to spend on all of them; gives milliseconds of each."""


def clock_of(threads: int) -> Callable[[], float]:
    """Wall time; for one thread its processor time, which is the same on an idle machine and stays so on a busy one."""
    return time.thread_time if threads == 1 else time.perf_counter


def machine(threads: int, provider: str) -> Machine:
    """This machine.

    Raises:
        OptionError: This onnxruntime does not have the provider.
    """
    present = onnxruntime().get_available_providers()
    if provider not in present:
        raise OptionError(
            f"this onnxruntime has no provider {meant(provider, present)}; expected one of {', '.join(present)}"
        )
    return Machine(_cpu(), os.cpu_count() or 1, threads or os.cpu_count() or 1, provider, onnxruntime().__version__)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def kernels(threads: int, provider: str) -> Measure:
    """The measure function of so many threads on a provider."""

    def measure(pieces: Sequence[tuple[OnnxHost, Arrays]], seconds: float) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            clock = clock_of(threads)
            runs: list[list[float]] = [[] for _ in pieces]
            sessions = [_session(piece, threads, provider, f"{folder}/{i}") for i, (piece, _) in enumerate(pieces)]
            try:
                start = time.perf_counter()
                for n in range(MOST_RUNS):
                    if n >= LEAST_RUNS and time.perf_counter() - start > seconds:
                        break
                    for session, (_, inputs), taken in zip(sessions, pieces, runs, strict=True):
                        begin = clock()
                        session.run(None, inputs)
                        taken.append((clock() - begin) * 1e3)
            except Exception as error:  # onnxruntime's errors have no common base
                raise ModelError(f"onnxruntime cannot run a segment: {first_line(error)}") from error
            times = [_milliseconds(Path(session.end_profiling())) for session in sessions]
            # on one thread a run's processor time bounds that of its kernels, whatever else the machine does
            return [min(ms, _typical(taken)) for ms, taken in zip(times, runs, strict=True)]

    return measure


def _session(piece: OnnxHost, threads: int, provider: str, prefix: str) -> ort.InferenceSession:
    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = prefix
    model = with_weights(piece.proto, piece.store, fill_inline)
    model.ir_version = min(model.ir_version, MAXIMUM_IR_VERSION)
    providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
    try:
        return onnxruntime().InferenceSession(model.SerializeToString(), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base, and neither have protobuf's
        raise ModelError(f"onnxruntime cannot load a segment: {first_line(error)}") from error


def _milliseconds(log: Path) -> float:
    """The sum over kernels of the lower quartile of their times, the first run left out."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(log.read_text(encoding="utf-8")):
        name = event.get("name", "")
        kernel = event.get("cat") == "Node" and name.endswith("_kernel_time")
        if kernel and event["args"].get("op_name") not in LAYOUT_OPERATORS:
            times[name].append(event["dur"] / 1e3)
    return sum(_typical(taken) for taken in times.values())


def _typical(taken: Sequence[float]) -> float:
    return float(np.quantile(taken[1:] or taken, QUANTILE))
