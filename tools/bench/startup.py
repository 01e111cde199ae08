"""What commands cost before and beside the work: CPU seconds of whole commands, start-up included.

    python -m tools.bench.startup                      all rows, best of three
    python -m tools.bench.startup --only version inspect-small --repeat 5 --json startup.jsonl

Each command is a process of its own, on one thread; user and system time are added, for a busy machine changes those
least. Models are made here: chains of MatMul, Add, Relu and Mul, and residual pairs of convolutions.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tools.bench.records import Record
from tools.bench.runner import Sweep, arguments, run

WIDTH, CHANNELS = 32, 16
TARGETS = {"version": 0.45, "inspect-small": 0.7, "inspect-10000": 2.5, "inspect-residual-10000": 2.5}
"""CPU seconds that a row may take on a machine like that of the issue, where one is stated."""


def chain(n: int, width: int = WIDTH) -> onnx.ModelProto:
    """``n`` operators, four for each layer."""
    rng = np.random.default_rng(0)
    nodes, stored, before = [], [], "x"
    for i in range(n // 4):
        stored += [
            numpy_helper.from_array((rng.standard_normal((width, width)) / width**0.5).astype(np.float32), f"w{i}"),
            numpy_helper.from_array(rng.standard_normal(width).astype(np.float32), f"b{i}"),
            numpy_helper.from_array(rng.uniform(0.9, 1.1, width).astype(np.float32), f"s{i}"),
        ]
        after = "y" if i == n // 4 - 1 else f"y{i}"
        nodes += [
            helper.make_node("MatMul", [before, f"w{i}"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], [f"r{i}"]),
            helper.make_node("Mul", [f"r{i}", f"s{i}"], [after]),
        ]
        before = after
    return _model(nodes, stored, [1, width], [1, width])


def residual(n: int, channels: int = CHANNELS) -> onnx.ModelProto:
    """``n`` operators, five for each residual block of two convolutions."""
    rng = np.random.default_rng(0)
    nodes, stored, before = [], [], "x"
    for i in range(n // 5):
        for side in "ab":
            weight = rng.standard_normal((channels, channels, 3, 3)) * 0.3 / (9 * channels) ** 0.5
            stored += [
                numpy_helper.from_array(weight.astype(np.float32), f"w{i}{side}"),
                numpy_helper.from_array(np.zeros(channels, np.float32), f"b{i}{side}"),
            ]
        after = "y" if i == n // 5 - 1 else f"y{i}"
        nodes += [
            helper.make_node("Conv", [before, f"w{i}a", f"b{i}a"], [f"c{i}a"], pads=[1] * 4),
            helper.make_node("Relu", [f"c{i}a"], [f"r{i}"]),
            helper.make_node("Conv", [f"r{i}", f"w{i}b", f"b{i}b"], [f"c{i}b"], pads=[1] * 4),
            helper.make_node("Add", [before, f"c{i}b"], [f"s{i}"]),
            helper.make_node("Relu", [f"s{i}"], [after]),
        ]
        before = after
    return _model(nodes, stored, [1, channels, 4, 4], [1, channels, 4, 4])


def scaled(n: int, width: int = 8) -> onnx.ModelProto:
    """``n`` sums and products with stored vectors behind one layer, which all are one linear map."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t0"])]
    stored = [numpy_helper.from_array(np.ones((width, width), np.float32), "w")]
    for i in range(n):
        stored.append(numpy_helper.from_array(np.ones(width, np.float32), f"c{i}"))
        after = "y" if i == n - 1 else f"t{i + 1}"
        nodes.append(helper.make_node("Mul" if i % 2 else "Add", [f"t{i}", f"c{i}"], [after]))
    return _model(nodes, stored, [1, width], [1, width])


def stored(n: int) -> onnx.ModelProto:
    """``n`` initializers at one operator."""
    rows = [numpy_helper.from_array(np.full((1, 4), i, np.float32), f"i{i}") for i in range(n)]
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    nodes = [
        helper.make_node("Concat", ["x", *(row.name for row in rows)], ["c"], axis=0),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    return _model(nodes, [*rows, weight], [1, 4], [n + 1, 4])


def _model(
    nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], given: list[int], made: list[int]
) -> onnx.ModelProto:
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", given), ("y", made))
    )
    graph = helper.make_graph(nodes, "made", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


PRUNE = ("prune", "--target", "params=0.5", "--no-latency")
ROWS: dict[str, tuple[Callable[[], onnx.ModelProto] | None, tuple[str, ...]]] = {
    "version": (None, ("--version",)),
    "help": (None, ("--help",)),
    "inspect-small": (lambda: chain(12), ("inspect",)),
    "inspect-10000": (lambda: chain(10_000), ("inspect",)),
    "inspect-residual-10000": (lambda: residual(10_000), ("inspect",)),
    "inspect-initializers-10000": (lambda: stored(10_000), ("inspect",)),
    "inspect-100000": (lambda: chain(100_000), ("inspect",)),
    "prune-10000": (lambda: chain(10_000), PRUNE),
}
"""A model, if the command takes one, and the command."""


def least_seconds(command: list[str], repeat: int, environment: dict[str, str]) -> float:
    """The least CPU seconds of several runs, after one that compiles the modules' bytecode."""
    times = []
    for _ in range(repeat + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(times[1:] or times)


def measure(record: Record) -> None:
    """CPU seconds of one row."""
    make, (verb, *options) = ROWS[record["row"]]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-m", "graphprune", verb]
        if make is not None:
            model = Path(folder) / "model.onnx"
            onnx.save(make(), model)
            command.append(str(model))
        if verb == "prune":
            command += ["-o", str(Path(folder) / "pruned.onnx")]
        record["least_cpu_seconds"] = least_seconds([*command, *options], record["repeat"], environment)


def line(record: Record) -> str:
    """A record as a row of the table."""
    row = record["row"]
    if "error" in record:
        return f"{row:28} {record['error']}"
    target = f"   (at most {TARGETS[row]})" if row in TARGETS else ""
    return f"{row:28} {record['least_cpu_seconds']:7.2f} s{target}"


def table(records: list[Record]) -> str:
    """All rows."""
    return "\n".join(map(line, records))


def main() -> int:
    """Runs the commands; 1 if one has failed."""
    parser = arguments(__doc__, seconds=1800)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    cases = [{"row": row, "repeat": options.repeat} for row in ROWS]
    return int(any("error" in record for record in run(Sweep(("row", "repeat"), measure, line, table), cases, options)))


if __name__ == "__main__":
    sys.exit(main())
