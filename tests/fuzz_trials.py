"""Trials of the command line with hostile files: each in a process of its own, and what may not come of it.

A trial is made again from its seed and number. ``test_fuzz.py`` runs a fixed few, ``tools/fuzz`` thousands.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_files
import numpy as np
import onnxruntime  # noqa: F401  (before trials are forked: it leaves a file of its own where temporary ones go)
from fuzz_edits import SECRET, edited_model, pick
from fuzz_models import MODELS

from graphprune.files import visible

SECONDS = 14
"""Processor seconds of a trial: the bound of one run, and what the rest of the work takes."""
MEGABYTES = 1800
"""Memory beyond that of the process before the trial: the bound of 1.5 GB, and what the rest of the work takes."""
PATIENCE = 90
"""Seconds on the clock."""
ROOM = 8 << 30
"""Addresses that a trial may use: what would take the whole machine fails in the trial alone."""


@dataclass(frozen=True)
class Trial:
    """One command on one hostile input.

    Attributes:
        number: Its number; with the seed, all that it is made of.
        kind: Which input is hostile.
        base: The model it is made from.
        edit: What was done.
        words: The command.
        action: What is run in place of the command, where it is none.
    """

    number: int
    kind: str
    base: str
    edit: str
    words: tuple[str, ...]
    action: Callable[[], None] | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        status: Its exit status; a negative number is the signal that ended it.
        seconds: Processor seconds.
        megabytes: Memory beyond that of the process before.
        problems: What should not have been.
        said: The end of what it wrote to stderr.
    """

    status: int
    seconds: float
    megabytes: float
    problems: tuple[str, ...]
    said: str


class Bench:
    """Where trials are run.

    Args:
        folder: For what they need; models, plans and so on are made there once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ready: set[tuple[str, str]] = set()

    def ready(self, base: str, *needs: str) -> Path:
        """The folder of a valid model with valid files of these kinds: ``plan``, ``profile``, ``statistics``."""
        folder = self.folder / "valid" / base
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / "model.onnx").write_bytes(MODELS[base]().SerializeToString())
        for need in needs:
            if (base, need) not in self._ready:
                made = run_apart(lambda need=need: fuzz_files.make(need), folder, self.folder / "made")
                if made.status:
                    raise RuntimeError(f"cannot make the {need} of {base}: {made.said}")
                self._ready.add((base, need))
        return folder

    def trial(self, seed: int, number: int, kinds: tuple[str, ...]) -> tuple[Trial, Outcome]:
        """Makes and runs a trial."""
        rng = np.random.default_rng([seed, number])
        place = self.folder / f"trial-{number}"
        shutil.rmtree(place, ignore_errors=True)
        (place / "model").mkdir(parents=True)
        (place / "outside").mkdir()
        canary = place / "outside" / "canary.bin"
        canary.write_bytes(SECRET * 4096)
        (place / "model" / "link.bin").symlink_to(canary)
        os.mkfifo(place / "model" / "pipe")
        try:
            trial = self._made(rng, number, kinds[number % len(kinds)], place / "model")
            os.utime(canary, ns=(0, canary.stat().st_mtime_ns))
            before = {path.name for path in (place / "model").iterdir()}
            outcome = run_apart(
                trial.action or (lambda: command(trial.words)), place / "model", place / "tmp", trial.words
            )
            found = (*outcome.problems, *_traces(place, before, outcome.status))
            return trial, Outcome(outcome.status, outcome.seconds, outcome.megabytes, found, outcome.said)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _made(self, rng: np.random.Generator, number: int, kind: str, folder: Path) -> Trial:
        if kind != "onnx":
            base, edit, words, action = fuzz_files.hostile(kind, rng, folder, self.ready)
            return Trial(number, kind, base, edit, words, action)
        base = pick(rng, list(MODELS))
        data, edit = edited_model(MODELS[base](), rng)
        (folder / "bad.onnx").write_bytes(data)
        choice = int(rng.integers(6))
        if choice >= 4:
            for name in ("model.onnx", "plan.json", "pruned.onnx"):
                shutil.copy(self.ready(base, "plan") / name, folder)
        words = (
            ("inspect", "bad.onnx", "--dot", "g.dot", "--graphml", "g.xml"),
            ("prune", "bad.onnx", "-o", "out.onnx", "--target", "params=0.6", "--no-latency"),
            ("prune", "bad.onnx", "-o", "out.onnx", "--target", "macs=0.7", "--no-latency", "--json"),
            ("prune", "bad.onnx", "-o", "out.onnx", "--target", "params=0.7", "--no-latency", "--calibration", "random",
             "--samples", "4"),
            ("apply", "bad.onnx", "--plan", "plan.json", "-o", "out.onnx", "--no-latency"),
            ("verify", *pick(rng, (("bad.onnx", "pruned.onnx"), ("model.onnx", "bad.onnx"))), "--plan", "plan.json"),
        )[choice]  # fmt: skip
        return Trial(number, kind, base, edit, words)


KINDS = ("onnx", *fuzz_files.KINDS)


def command(words: tuple[str, ...]) -> None:
    """The command line in this process; exits."""
    from graphprune import cli

    sys.argv = ["graphprune", *words]
    cli.main()


def run_apart(action: Callable[[], None], folder: Path, temporary: Path, words: tuple[str, ...] = ()) -> Outcome:
    """Runs something in a process of its own, with little time and memory, and looks at what it wrote and how it ended.

    Args:
        action: What is run.
        folder: Where.
        temporary: The folder for temporary files.
        words: The command, if it is one.
    """
    temporary.mkdir(exist_ok=True)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = os.fork()
        if not process:
            _child(action, folder, temporary, out.fileno(), err.fileno())
        _, ended, used = os.wait4(process, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    status = os.waitstatus_to_exitcode(ended)
    seconds, megabytes = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024 - _resident()
    found = (*_amounts(seconds, megabytes), *_problems(status, *texts, words))
    return Outcome(status, seconds, megabytes, found, texts[1][-600:])


def _child(action: Callable[[], None], folder: Path, temporary: Path, out: int, err: int) -> None:
    status = 0
    try:
        os.chdir(folder)
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS * 3, SECONDS * 3 + 1))
        resource.setrlimit(resource.RLIMIT_AS, (_addresses() + ROOM,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(PATIENCE)  # what waits for a pipe takes no time
        action()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  (whatever it is, it is the finding)
        traceback.print_exc()
        status = 70
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _statm(field: int) -> int:
    return int(Path("/proc/self/statm").read_text().split()[field]) * os.sysconf("SC_PAGE_SIZE")


def _addresses() -> int:
    return _statm(0)


def _resident() -> float:
    return _statm(1) / 2**20


def _amounts(seconds: float, megabytes: float) -> Iterator[str]:
    if seconds > SECONDS:
        yield f"{seconds:.0f} s"
    if megabytes > MEGABYTES:
        yield f"{megabytes:.0f} MB"


def _problems(status: int, out: str, err: str, words: tuple[str, ...]) -> Iterator[str]:
    theirs = any("hostile:" in word for word in words)  # code of the user's may print what it likes
    if status not in (0, 2):
        yield f"status {status}"
    if "Traceback" in err or "internal error" in err:
        yield "internal error"
    elif status == 2 and not theirs and (err.count("\n") != 1 or not err.startswith("error: ")):
        yield "not one line"
    elif status == 0 and err and not theirs:
        yield "noise"
    if visible(out + err) != out + err:
        yield "control characters"
    if status == 0 and "--json" in words and not _is_json(out):
        yield "no JSON"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _traces(place: Path, before: set[str], status: int) -> Iterator[str]:
    """What a trial left, and what it has read."""
    if (place / "outside" / "canary.bin").stat().st_atime_ns:
        yield "read outside the folder"
    left = [path for path in (place / "model").iterdir() if path.name not in before and path.name != "__pycache__"]
    if any(".graphprune-" in path.name for path in left) or any((place / "tmp").iterdir()):
        yield "leftovers"
    if status and any(path.name.startswith("out") for path in left):
        yield "an output in spite of the error"
    if any(path.is_file() and SECRET in path.read_bytes() for path in left):
        yield "the secret is in an output"


def canary_sings(folder: Path) -> bool:
    """Whether this file system tells that a file was read, without which no trial would."""
    file = folder / "canary"
    file.write_bytes(SECRET)
    os.utime(file, ns=(0, file.stat().st_mtime_ns))
    file.read_bytes()
    sings = bool(file.stat().st_atime_ns)
    file.unlink()
    return sings


def row_of(trial: Trial, outcome: Outcome) -> Mapping[str, Any]:
    """One line of the record."""
    return {
        "number": trial.number, "kind": trial.kind, "base": trial.base, "edit": trial.edit, "words": list(trial.words),
        "status": outcome.status, "seconds": round(outcome.seconds, 2), "megabytes": round(outcome.megabytes),
        "problems": list(outcome.problems), "said": outcome.said,
    }  # fmt: skip
