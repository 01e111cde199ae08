"""What code that is there only for speed gains of a user's whole waiting time: whole commands with and without it.

    python -m tools.bench.ablation                     all commands
    python -m tools.bench.ablation --only small 'bert*' --repeat 7 --json ablation.jsonl

Each run is a process of its own, imports and writing included. One round runs a command once with all parts and once
without each of them, and rounds begin elsewhere each time, so that a busy machine is as busy for all. The table shows
what a command takes without a part, as a multiple of what it takes with all of them: wall-clock time and processor
time, the medians over rounds of ratios within a round. A part stays where that is 1.05 or more.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.bench.records import Record
from tools.bench.records import table as columns
from tools.bench.runner import Sweep, arguments, run

WITH = "all"
GAIN = 1.05
"""A part that gains less than this of the whole is not worth its lines."""


# -- the parts, each a function that takes it away -------------------------------------------------------------------


def without_frozen_collection(_: bool) -> None:
    """The garbage collector as Python has it."""
    import graphprune.collector as collector

    @contextmanager
    def plain() -> Iterator[None]:
        yield

    collector.frozen_garbage_collection = plain


def without_threads(_: bool) -> None:
    """Passes over arrays on one core; what BLAS and onnxruntime do stays."""
    import graphprune.arrays as arrays

    arrays.cores = lambda: 1


def without_blocks(_: bool) -> None:
    """Arrays are cut and summed by one NumPy call for each axis."""
    import numpy as np

    import graphprune.arrays as arrays
    import graphprune.importance.magnitude as magnitude

    def cut(array: Any, axes: Any, out: Any = None) -> Any:
        for axis in sorted(axes):
            array = array.take(axes[axis], axis)
        if out is None:
            return array
        out[...] = array
        return out

    def marginals(weights: Any, axes: list[int], p: int) -> list[Any]:
        power = np.square(weights, dtype=np.float64) if p == 2 else np.abs(weights).astype(np.float64)
        return [power.sum(axis=tuple(i for i in range(weights.ndim) if i != axis)) for axis in axes]

    arrays.cut = cut
    magnitude._marginals = marginals


def without_one_block(torch_model: bool) -> None:
    """Each large tensor that is cut has memory of its own."""
    if not torch_model:
        return
    import torch

    import graphprune.hosts.torch.slice as cutting
    from graphprune.arrays import cut, cut_shape, on_all_cores

    def cut_large(arrays: Any, slices: Any) -> dict[str, Any]:
        found = {
            name: torch.from_numpy(__import__("numpy").empty(cut_shape(array.shape, slices[name]), array.dtype))
            for name, array in arrays.items()
        }
        sizes = {name: array.size for name, array in arrays.items()}
        on_all_cores(lambda name: cut(arrays[name], slices[name], found[name].numpy()), sizes)
        return found

    cutting._cut_large = cut_large


def without_lazy_graphs(torch_model: bool) -> None:
    """A traced graph is copied whenever it is folded, cut or tidied."""
    if not torch_model:
        return
    from dataclasses import replace

    from graphprune.hosts.torch.host import TorchHost
    from graphprune.hosts.torch.lazy_graph import LazyGraph

    def eager(method: Callable[..., Any]) -> Callable[..., Any]:
        def changed(self: Any, *given: Any) -> Any:
            new = method(self, *given)
            return new if new.program is new.lazy.base else replace(new, lazy=LazyGraph(new.program))

        return changed

    for name in ("edited", "folded", "without_dead_nodes"):
        setattr(TorchHost, name, eager(getattr(TorchHost, name)))


PARTS: dict[str, Callable[[bool], None]] = {
    "frozen collection": without_frozen_collection,
    "threads": without_threads,
    "blocks": without_blocks,
    "one block": without_one_block,
    "lazy graphs": without_lazy_graphs,
}
"""By name: what takes a part away; told whether the command has a PyTorch model."""


# -- the commands ----------------------------------------------------------------------------------------------------


def resnet50(folder: Path) -> None:
    """A ResNet-50, pruned by norms, proven, and written as ONNX."""
    import torch
    import transformers as hf

    import graphprune as gp

    torch.manual_seed(0)
    model = hf.ResNetForImageClassification(hf.ResNetConfig()).eval()
    inputs = {"pixel_values": torch.randn(1, 3, 224, 224)}
    gp.prune(model, inputs, target="macs=0.5").save_onnx(folder / "pruned.onnx")


def made_bert(folder: Path) -> None:
    """Writes a BERT of 12 layers as ONNX, and 16 sequences of 64 tokens."""
    import numpy as np
    import torch
    import transformers as hf

    torch.manual_seed(0)
    model = hf.BertModel(hf.BertConfig(), add_pooling_layer=False).eval()
    tokens = torch.randint(0, 30000, (1, 64))
    torch.onnx.export(
        model, (), folder / "bert.onnx", kwargs={"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
        external_data=False, verbose=False,
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(0, 30000, (16, 64))
    np.savez(folder / "tokens.npz", input_ids=ids, attention_mask=np.ones_like(ids))


def made_small(folder: Path) -> None:
    """The network of the demo, and its images."""
    import shutil

    import numpy as np

    from graphprune.demo import run as demo

    shutil.copy(demo.HERE / "demo_net.onnx", folder / "small.onnx")
    np.savez(folder / "images.npz", images=demo.demo_data()[0][:64])


def made_chain(folder: Path) -> None:
    """Ten thousand operators."""
    import onnx

    from tools.bench.startup import chain

    onnx.save(chain(10_000), folder / "chain.onnx")


def command(*words: str) -> Callable[[Path], None]:
    """A command line in this process; words with a dot are files of the folder."""

    def called(folder: Path) -> None:
        from graphprune.cli import main

        sys.argv = ["graphprune", *(str(folder / word) if word.endswith((".onnx", ".npz")) else word for word in words)]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise

    return called


PRUNE = ("-o", "pruned.onnx", "--target", "macs=0.5", "--force")
COMMANDS: dict[str, tuple[Callable[[Path], None] | None, Callable[[Path], None]]] = {
    "resnet50-torch": (None, resnet50),
    "bert-onnx": (made_bert, command("prune", "bert.onnx", *PRUNE)),
    "bert-onnx-calibrated": (made_bert, command("prune", "bert.onnx", *PRUNE, "--calibration", "tokens.npz")),
    "small": (made_small, command("prune", "small.onnx", *PRUNE, "--calibration", "images.npz")),
    "inspect-10000": (made_chain, command("inspect", "chain.onnx")),
}
"""By name: what makes its files, if it reads any, and what a user runs."""


# -- measuring -------------------------------------------------------------------------------------------------------


def taken(name: str, without: str, folder: Path) -> tuple[float, float]:
    """Wall-clock and processor seconds of one process."""
    call = [sys.executable, "-m", "tools.bench.ablation", "--run", name, without, str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise AssertionError(f"'{name}' without '{without}' failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def measure(record: Record) -> None:
    """Rounds of one command."""
    make = COMMANDS[record["command"]][0]
    with tempfile.TemporaryDirectory() as folder:
        if make is not None:
            make(Path(folder))
        cases = [WITH, *PARTS]
        taken(record["command"], WITH, Path(folder))  # compiles bytecode, fills the cache of files
        found: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
        for round_ in range(record["repeat"]):
            turn = round_ % len(cases)
            for case in cases[turn:] + cases[:turn]:
                found[case].append(taken(record["command"], case, Path(folder)))
    record["seconds_of"] = {case: [[round(t, 3) for t in each] for each in times] for case, times in found.items()}
    record["wall"] = statistics.median(wall for wall, _ in found[WITH])
    for column, name in enumerate(("wall_without", "cpu_without")):
        record[name] = {
            part: statistics.median(
                without[column] / whole[column] for without, whole in zip(found[part], found[WITH], strict=True)
            )
            for part in PARTS
        }


def cells(record: Record) -> list[str]:
    """What a part takes away, by the clock and by the processor."""
    if "error" in record:
        return [record["error"]]
    return [f"{record['wall_without'][part]:.2f} {record['cpu_without'][part]:.2f}" for part in record["wall_without"]]


def line(record: Record) -> str:
    """A record in one line."""
    return f"{record['command']}: {'; '.join(cells(record))}"


def table(records: list[Record]) -> str:
    """All commands: seconds, then wall-clock and processor ratio without each part."""
    rows = [[record["command"], round(record.get("wall", 0.0), 1), *cells(record)] for record in records]
    return columns(["command", "seconds", *PARTS], rows)


def main() -> int:
    """Runs the commands; 1 if one has failed."""
    if sys.argv[1:2] == ["--run"]:
        name, without, folder = sys.argv[2:]
        if without != WITH:
            PARTS[without](name.endswith("torch"))
        COMMANDS[name][1](Path(folder))
        return 0
    parser = arguments(__doc__, seconds=7200)
    parser.add_argument("--repeat", type=int, default=5, help="rounds (%(default)s)")
    options = parser.parse_args()
    cases = [{"command": name, "repeat": options.repeat} for name in COMMANDS]
    records = run(Sweep(("command", "repeat"), measure, line, table), cases, options)
    return int(any("error" in record for record in records))


if __name__ == "__main__":
    sys.exit(main())
