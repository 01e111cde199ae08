"""What sweeps share: cases in processes of their own, records from which a killed run goes on, a table of them.

A tool states a :class:`Sweep`, its cases and its own options; the command line of all of them takes ``--only``,
``--json``, ``--table``, ``--again``, ``--retry``, ``--seconds``, ``--memory`` and ``--jobs``.

    options = arguments(__doc__, seconds=900).parse_args()
    records = run(Sweep(("model",), measure, line, table), [{"model": name} for name in MODELS], options)
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing import connection
from pathlib import Path
from typing import Any

from graphprune.errors import GraphpruneError
from tools.bench.records import Record, Records, provenance

Measure = Callable[[Record], None]
"""Fills in the record of a case, which holds the key of the case. What it holds when an error comes is kept."""
EXPECTED = (GraphpruneError, LookupError, AssertionError)
"""Errors that say enough by their text; of others the record tells where they were raised."""


@dataclass(frozen=True)
class Sweep:
    """How cases are measured and shown.

    Attributes:
        key: The fields that say what was measured; ``--only`` goes by the first.
        measure: Measures one case, in its process: a function of a module, or a partial of one.
        line: What is printed of a record as soon as it is there.
        table: The records as text.
        fork: Whether processes are forks, which share what ``prepare`` has imported, or fresh ones (whose memory and
            times are those of the case alone).
        prepare: Done once before the first fork.
        quiet: Whether what libraries print and warn of is thrown away.
        shuffled: Whether the order is random (always the same one), so that a sweep that is stopped has seen a fair
            sample.
    """

    key: tuple[str, ...]
    measure: Measure
    line: Callable[[Record], str]
    table: Callable[[list[Record]], str]
    fork: bool = False
    prepare: Callable[[], None] | None = None
    quiet: bool = False
    shuffled: bool = False


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose program is the first ``python -m`` command of a tool's docstring."""
    assert doc is not None
    command = re.search(r"python -m [\w.]+", doc)
    assert command is not None, "the docstring of a tool shows its command"
    return argparse.ArgumentParser(
        prog=command[0], description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def arguments(doc: str | None, *, seconds: int, memory: int | None = None) -> argparse.ArgumentParser:
    """The options of all sweeps.

    Args:
        doc: The docstring of the tool.
        seconds: How long a case may take, unless the command line says otherwise.
        memory: How much address space it may use, in GiB; no limit without it.
    """
    parser = parser_of(doc)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names of cases, with * and ?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="records, one a line; what it holds is not run again")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table of all records here")
    parser.add_argument("--again", action="store_true", help="run what has a record, too")
    parser.add_argument("--retry", action="store_true", help="run what has failed, too")
    parser.add_argument("--seconds", type=float, default=seconds, help="limit of time for a case (%(default)s)")
    parser.add_argument("--memory", type=int, default=memory, help="limit of addresses for a case, GiB (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time; times are right with one only")
    return parser


def run(sweep: Sweep, cases: Sequence[Record], options: argparse.Namespace) -> list[Record]:
    """Measures the cases that are asked for and have no record, prints or writes the table.

    Args:
        sweep: What is done with a case.
        cases: Keys of records, in the order of the table.
        options: From :func:`arguments`.

    Returns:
        The records of the cases that were asked for.

    Raises:
        SystemExit: No case is called like that.
    """
    asked = _asked(sweep, cases, options.only)
    records = Records(options.json, sweep.key)
    missing = list(records.missing(asked, lambda record: _good(record, options)))
    if sweep.shuffled:
        random.Random(0).shuffle(missing)
    if missing and sweep.prepare is not None:
        sweep.prepare()
    for done, record in enumerate(processed(missing, sweep, options), start=1):
        records.add(record)
        print(f"[{done}/{len(missing)}] {sweep.line(record)}", flush=True)
    found = [record for record in map(records.get, asked) if record is not None]
    if options.table is not None:
        options.table.write_text(sweep.table(list(records)).rstrip("\n") + "\n")
    else:
        print(sweep.table(found).rstrip("\n"), flush=True)
    return found


def _asked(sweep: Sweep, cases: Sequence[Record], patterns: Sequence[str]) -> list[Record]:
    names = [str(case[sweep.key[0]]) for case in cases]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(dict.fromkeys(names))
            raise SystemExit(f"no case is called '{pattern}'; there are {known[:600]}")
    return [case for case, name in zip(cases, names, strict=True) if any(fnmatchcase(name, each) for each in patterns)]


def _good(record: Record, options: argparse.Namespace) -> bool:
    return bool(record) and not options.again and not (options.retry and "error" in record)


def processed(cases: Sequence[Record], sweep: Sweep, options: argparse.Namespace) -> Iterator[Record]:
    """The records of cases as they come, each from a process of its own within limits of time and memory."""
    context: Any = multiprocessing.get_context("fork" if sweep.fork else "spawn")
    running: dict[Any, tuple[Record, Any, float]] = {}
    waiting = list(reversed(cases))
    try:
        while waiting or running:
            while waiting and len(running) < max(1, options.jobs):
                case = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                arguments = (sweep, dict(case), theirs, options.memory)
                process = context.Process(target=_work, args=arguments)
                process.start()
                theirs.close()
                running[ours] = case, process, time.monotonic()
            connection.wait(list(running), timeout=0.2)
            for pipe, (case, process, begin) in list(running.items()):
                record = _result(pipe, case, process, time.monotonic() - begin, options.seconds)
                if record is not None:
                    del running[pipe]
                    pipe.close()
                    yield record
    finally:
        for _, process, _ in running.values():
            _end(process)


def _result(pipe: Any, case: Record, process: Any, spent: float, limit: float) -> Record | None:
    """The record, if the process has sent it, has ended otherwise, or has taken too long."""
    if pipe.poll():
        try:
            record = pipe.recv()
        except EOFError:
            process.join()
            record = {**case, "error": f"the process ended with status {process.exitcode}", "seconds": round(spent, 3)}
    elif spent > limit:
        record = {**case, "error": f"took longer than {limit:g} s", "seconds": round(spent, 3)}
    else:
        return None
    _end(process, ended="error" not in record)
    return {**record, **provenance()}


def _end(process: Any, *, ended: bool = False) -> None:
    """Ends a process and those that it has started."""
    process.join(5 if ended else 0)
    if process.is_alive():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def _work(sweep: Sweep, record: Record, pipe: Any, memory: int | None) -> None:
    """The process of one case."""
    with suppress(OSError):
        os.setsid()  # so that what it starts ends with it
    threading.Thread(target=_follow, daemon=True).start()
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory << 30, memory << 30))
    warnings.simplefilter("ignore")
    if sweep.quiet:
        logging.disable(logging.CRITICAL)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    begin, cpu = time.perf_counter(), time.process_time()
    try:
        sweep.measure(record)
    except BaseException as error:  # noqa: BLE001  (one that fails must not end the run; the record says how)
        record["error"] = error_line(error)
        if not isinstance(error, EXPECTED):
            record["where"] = traceback.format_exc()[-1500:]
    record.setdefault("seconds", round(time.perf_counter() - begin, 3))
    record.setdefault("cpu_seconds", round(time.process_time() - cpu, 3))
    pipe.send(_worded(record))
    if sweep.fork:
        os._exit(0)  # what was open before the fork is the parent's to tidy up


def _follow() -> None:
    """Ends this process and those that it has started, once the parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _worded(value: Any) -> Any:
    """A value as JSON has words for it: numbers that are none are text, those of NumPy are Python's."""
    match value:
        case dict():
            return {key: _worded(each) for key, each in value.items()}
        case list() | tuple():
            return [_worded(each) for each in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value.item() if type(value).__module__ == "numpy" else value


def error_line(error: BaseException) -> str:
    """An error in one line without paths of this machine: that of PyTorch's exporter is the one that it wraps."""
    while type(error).__name__ in ("ConversionError", "TorchExportError") and error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[\d*m", "", " ".join(str(error).split()))
    text = re.sub(r"'?/\S*/site-packages/", "", text)
    return f"{type(error).__name__}: {text}"[:300]
