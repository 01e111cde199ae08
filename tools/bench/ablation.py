"""What code that is there only for speed gains of a user's whole waiting time.

    python -m tools.bench.ablation                     all commands
    python -m tools.bench.ablation --only small 'bert*' --repeat 3 --json ablation.jsonl

A whole command runs in a process of its own, imports and writing included. Wherever it comes to such a part, the same
work is done with the part and without it, one right after the other, so that a busy machine is as busy for both; what
is done twice is taken off the whole. The garbage collector cannot be tried so: a second process runs without
freezing, and both count what collections take. The table shows by how many percent of the whole a user would wait
longer without a part (medians over repetitions); one that gains less than five is not worth its lines.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
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

BEGIN = time.perf_counter()
FROZEN = "frozen collection"
Variant = Callable[..., Any]


class Clock:
    """Seconds with and without parts, and those that were spent on doing things twice."""

    def __init__(self) -> None:
        self.saved: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.twice = self.collecting = 0.0

    def collected(self, phase: str, _: object) -> None:
        """Told by the garbage collector that it begins or ends."""
        now = time.perf_counter()
        if phase == "start":
            self._since = now
        else:
            self.collecting += now - self._since


# -- the parts -------------------------------------------------------------------------------------------------------


def without_frozen_collection() -> None:
    """The garbage collector as Python has it."""
    import graphprune.collector as collector

    @contextmanager
    def plain() -> Iterator[None]:
        yield

    collector.frozen_garbage_collection = collector.rare_garbage_collection = plain


def watch_torch(clock: Clock) -> None:
    """Copies of traced graphs."""
    from graphprune.hosts.torch.host import TorchHost
    from graphprune.hosts.torch.lazy_graph import LazyGraph

    written = LazyGraph.written.func  # type: ignore[attr-defined]

    def eager(method: Variant) -> Variant:
        def changed(self: Any, *given: Any) -> Any:
            new = method(self, *given)
            if new is not self:
                begin = time.perf_counter()
                written(new.lazy)  # a copy, which is thrown away
                took = time.perf_counter() - begin
                clock.saved["lazy graphs"] += took
                clock.twice += took
            return new

        return changed

    for name in ("edited", "folded", "without_dead_nodes"):
        setattr(TorchHost, name, eager(getattr(TorchHost, name)))

    def counted(self: Any) -> Any:
        begin = time.perf_counter()
        found = written(self)
        clock.saved["lazy graphs"] -= time.perf_counter() - begin
        return found

    LazyGraph.written.func = counted  # type: ignore[attr-defined]


PARTS = {
    FROZEN: "objects of the frameworks are left out of garbage collections",
    "lazy graphs": "a traced graph is copied when it is run, and not whenever it changes",
}
"""By name: what there is only for speed."""


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
    "bert-onnx-calibrated": (
        made_bert,
        command("prune", "bert.onnx", *PRUNE, "--calibration", "tokens.npz", "--allocation", "uniform"),
    ),
    "small": (made_small, command("prune", "small.onnx", *PRUNE)),
    "inspect-10000": (made_chain, command("inspect", "chain.onnx")),
}
"""By name: what makes its files, if it reads any, and what a user runs."""


# -- measuring -------------------------------------------------------------------------------------------------------


def watched(name: str, folder: Path, *, frozen: bool) -> Record:
    """What a command took in this process: the whole without what was done twice, what parts saved, collections."""
    clock = Clock()
    if not frozen:
        without_frozen_collection()
    elif name.endswith("torch"):
        watch_torch(clock)
    gc.callbacks.append(clock.collected)
    COMMANDS[name][1](folder)
    whole = time.perf_counter() - BEGIN - clock.twice
    return {"whole": whole, "saved": clock.saved, "collecting": clock.collecting}


def taken(name: str, which: str, folder: Path) -> Record:
    """What a process of its own has measured."""
    out = folder / "measured.json"
    call = [sys.executable, "-m", "tools.bench.ablation", "--run", name, which, str(folder), str(out)]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"'{name}' failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(out.read_text())


def longer(frozen: Record, plain: Record) -> dict[str, float]:
    """By part: percent of the whole that a user would wait longer without it."""
    saved = {part: 100 * seconds / frozen["whole"] for part, seconds in frozen["saved"].items()}
    with_, without = (1 / (1 - each["collecting"] / each["whole"]) for each in (frozen, plain))  # to the work itself
    return {**saved, FROZEN: 100 * (without / with_ - 1)}


def measure(record: Record) -> None:
    """Rounds of one command."""
    make = COMMANDS[record["command"]][0]
    with tempfile.TemporaryDirectory() as folder:
        if make is not None:
            make(Path(folder))
        rounds = []
        for _ in range(record["repeat"]):
            frozen, plain = (taken(record["command"], which, Path(folder)) for which in ("frozen", "plain"))
            rounds.append((frozen, plain))
    record["whole"] = statistics.median(frozen["whole"] for frozen, _ in rounds)
    gains = [longer(*pair) for pair in rounds]
    record["longer"] = {part: statistics.median(gain[part] for gain in gains) for part in PARTS}


def cells(record: Record) -> list[str]:
    """Percent by part."""
    if "error" in record:
        return [record["error"]]
    return [f"{record['longer'][part]:+.1f} %" for part in PARTS]


def line(record: Record) -> str:
    """A record in one line."""
    return f"{record['command']}: {'; '.join(cells(record))}"


def table(records: list[Record]) -> str:
    """All commands: seconds, and percent by part."""
    rows = [[record["command"], round(record.get("whole", 0.0), 1), *cells(record)] for record in records]
    return columns(["command", "seconds", *PARTS], rows)


def main() -> int:
    """Runs the commands; 1 if one has failed."""
    if sys.argv[1:2] == ["--run"]:
        name, which, folder, out = sys.argv[2:]
        found = watched(name, Path(folder), frozen=which == "frozen")
        Path(out).write_text(json.dumps(found))
        return 0
    parser = arguments(__doc__, seconds=7200)
    parser.add_argument("--repeat", type=int, default=3, help="rounds (%(default)s)")
    options = parser.parse_args()
    cases = [{"command": name, "repeat": options.repeat} for name in COMMANDS]
    records = run(Sweep(("command", "repeat"), measure, line, table), cases, options)
    return int(any("error" in record for record in records))


if __name__ == "__main__":
    sys.exit(main())
