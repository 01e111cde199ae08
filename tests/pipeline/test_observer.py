"""Steps as data: what observers are told, and that nobody reads numbers out of sentences."""

import io
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_cli import small_model

import graphprune as gp
from graphprune.observer import SILENT, Logged, Observer, Step, Timed, Told, Within, observing
from graphprune.report.progress import Bar, progress_bar

DATA = {"x": np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)}


class Seen(Observer):
    def __init__(self):
        self.steps, self.passes = [], []

    def step(self, step):
        self.steps.append(step)

    def finished(self, name, seconds, state):
        assert seconds >= 0
        self.passes.append((name, state.host.kind))


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Step("open"), "open"),
        (Step("calibrate", 0, 20), "calibrate 1 of 20"),
        (Step("calibrate", 20, 20), "calibrate 20 of 20"),
        (Step("group", 2, 5, "stem.weight[0]"), "group 3 of 5: stem.weight[0]"),
        (Step("score", within=("macs=0.5 (1 of 2)",)), "macs=0.5 (1 of 2): score"),
        (Step("read", detail="3 of 20 files"), "read: 3 of 20 files"),
    ],
)
def test_a_step_in_words(step, text):
    told = []
    Told(told.append).step(step)
    assert told == [str(step)] == [text]


def test_a_compilation_in_steps(tmp_path):
    model, seen, told = small_model(tmp_path / "m.onnx"), Seen(), []
    options = {"target": "macs=0.6", "calibration": DATA}
    result = gp.prune(model, progress=seen, **options)
    gp.prune(model, progress=told.append, **options)
    assert told == [str(step) for step in seen.steps]
    names = list(dict.fromkeys(step.name for step in seen.steps))
    assert names == [
        "open", "fold-constants", "analyze", "calibrate", "score", "measure-losses", "choose-allocation",
        "slice-groups", "remove-blocks", "remove-dead-nodes", "verify", "compensate", "check-export",
    ]  # fmt: skip
    for name in ("calibrate", "measure-losses", "compensate"):
        begin, *counted = [step for step in seen.steps if step.name == name]
        assert (begin.total, begin.done) == (None, 0)
        (total,) = {step.total for step in counted}
        assert [step.done for step in counted] == list(range(1, total + 1))
    assert [name for name, _ in seen.passes] == [name for name, _ in result.report.seconds[1:]] == names[1:]


def test_a_sweep_and_a_sensitivity_in_steps(tmp_path):
    model, seen = small_model(tmp_path / "m.onnx"), Seen()
    gp.sweep(model, targets=["macs=0.9", "macs=0.5"], latency=False, progress=seen)
    assert {step.within for step in seen.steps} == {(), ("macs=0.9 (1 of 2)",), ("macs=0.5 (2 of 2)",)}
    assert Step("score", within=("macs=0.5 (2 of 2)",)) in seen.steps
    seen = Seen()
    (name,) = {row.group for row in gp.sensitivity(model, progress=seen).rows}
    assert Step("group", 0, 1, name) in seen.steps


def test_the_bar_takes_its_numbers_from_the_step():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress_bar(console) as bar:
        assert isinstance(bar, Bar)
        for step, shown in (
            (Step("calibrate", 3, 20), ("calibrate 4 of 20 ...", 3, 20)),
            (Step("read", detail="9 of 10 [bold]"), (r"read: 9 of 10 \[bold] ...", 0, None)),
        ):
            bar.step(step)
            (task,) = bar.progress.tasks
            assert (task.description, task.completed, task.total) == shown
    with progress_bar(console, quiet=True) as bar:
        assert bar is SILENT
    with progress_bar(Console(file=io.StringIO())) as bar:
        assert bar is SILENT


def test_times_and_logs(caplog, tmp_path):
    timed = Timed()
    with caplog.at_level(logging.DEBUG, "graphprune"):
        result = gp.prune(small_model(tmp_path / "m.onnx"), target="macs=0.5", progress=timed, verify=False)
    assert [name for name, _ in timed.seconds] == [name for name, _ in result.report.seconds[1:]]
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("INFO", "allocate") in told
    assert any(level == "DEBUG" and re.fullmatch(r"allocate took \d\.\d+ s", text) for level, text in told)


def test_what_is_a_part_of_something_larger_is_logged_once(caplog, tmp_path):
    with caplog.at_level(logging.INFO, "graphprune"):
        gp.sweep(small_model(tmp_path / "m.onnx"), targets=["macs=0.9", "macs=0.5"], latency=False, verify=False)
    scored = [record.getMessage() for record in caplog.records if record.getMessage().endswith("allocate")]
    assert scored == ["macs=0.9 (1 of 2): allocate", "macs=0.5 (2 of 2): allocate"]


def test_what_progress_may_be():
    assert isinstance(observing(None), Logged)
    logged, silent = observing(SILENT).observers
    assert isinstance(logged, Logged)
    assert silent is SILENT
    seen = Seen()
    Within(observing(seen), "a").counter("b")(1, 2)
    assert seen.steps == [Step("b", 1, 2, within=("a",))]


def test_no_code_reads_numbers_out_of_a_sentence():
    root = Path(gp.__file__).parent
    found = [path for path in root.rglob("*.py") if re.search(r"\\d\+\)? of ", path.read_text("utf-8"))]
    assert found == []
