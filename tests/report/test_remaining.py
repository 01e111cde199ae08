"""How long a command will take: from what its steps have taken, told as data."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from rich.console import Console
from test_cli import small_model

import graphprune as gp
from graphprune.observer import Observer, Several, Step, Within
from graphprune.pipeline.passes import Pass
from graphprune.report.progress import progress_bar
from graphprune.report.remaining import SHARES, Remaining, roughly


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def played(left, clock, steps, *, each=lambda name: None):
    """Runs through steps: their names, seconds, and in how many parts they are counted."""
    for name, seconds, parts in steps:
        left.step(Step(name))
        for part in range(1, parts + 1):
            clock.now += seconds / parts
            left.step(Step(name, part, parts))
            each(name)
        if not parts:
            clock.now += seconds
        left.finished(name, seconds, None)
        each(name)


RUN = [
    ("calibrate", 10, 5),
    ("score", 7, 0),
    ("measure-losses", 40, 20),
    ("choose-allocation", 80, 5),
    ("verify", 15, 0),
]


@pytest.mark.parametrize("factor", [1.0, 0.3, 20.0])
def test_a_run_of_the_usual_shares_is_foretold_and_counts_down(factor):
    clock = Clock()
    left, told = Remaining(clock=clock), []
    left.expected([name for name, _, _ in RUN])
    assert left.seconds() is None  # nothing is known yet
    end = clock.now + factor * sum(seconds for _, seconds, _ in RUN)
    run = [(name, factor * seconds, parts) for name, seconds, parts in RUN]
    played(left, clock, run, each=lambda name: told.append((left.seconds(), end - clock.now)))
    known = [(estimate, truth) for estimate, truth in told if estimate is not None]
    assert len(known) >= len(told) - 3
    for estimate, truth in known:
        assert estimate == pytest.approx(truth, rel=0.1, abs=0.5)
    assert known[-1][0] == 0


def test_what_turns_out_otherwise_is_followed_by_and_by():
    """Trials take ten times their share: the estimate grows, without a jump, and is right long before the end."""
    clock = Clock()
    left, told = Remaining(clock=clock), []
    left.expected(["calibrate", "measure-losses", "slice-groups"])
    played(left, clock, [("calibrate", 10, 5)])
    clock.now += 0.01
    first = left.seconds()
    assert first == pytest.approx(40, rel=0.05)
    played(left, clock, [("measure-losses", 400, 100)], each=lambda name: told.append(left.seconds()))
    assert all(later - before < 0.4 * (400 - before) + 1 for before, later in pairwise(told))
    assert told[50] == pytest.approx(200, rel=0.1)
    assert told[-2] < 10


def test_parts_of_a_step_and_steps_that_nobody_expects_are_none_of_their_own():
    clock = Clock()
    left = Remaining(clock=clock)
    left.expected(["analyze", "meet-latency", "verify"])
    played(left, clock, [("analyze", 3, 0)])
    left.step(Step("meet-latency"))
    played(left, clock, [("allocate", 1, 0), ("slice-groups", 1, 4)])
    assert left._now.name == "meet-latency"
    left.step(Step("verify"))  # some are left out
    assert (left._now.name, left._to_come) == ("verify", [])
    left.expected(["write"])
    assert left._now is None


def test_another_point_of_a_sweep_takes_what_the_last_one_took():
    clock = Clock()
    left = Remaining(clock=clock)
    inside = Within(left, "macs=0.5 (1 of 3)", 2)
    inside.expected(["score", "verify"])
    assert left._to_come == ["score", "verify"] * 3
    played(inside, clock, [("score", 50, 0), ("verify", 1, 0)])
    assert left.seconds() == pytest.approx(102)
    Within(left, "macs=0.4 (2 of 3)", 1).expected(["score", "verify"])
    played(inside, clock, [("score", 20, 0), ("verify", 1, 0)])
    for _ in range(50):
        found = left.seconds()
    assert found == pytest.approx(21, rel=0.01)


def test_short_commands_say_nothing():
    clock = Clock()
    left = Remaining(clock=clock)
    left.expected(["analyze", "slice-groups"])
    played(left, clock, [("analyze", 0.5, 0)])
    assert left.seconds() is None
    assert Remaining().seconds() is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "a few seconds left"),
        (9.9, "a few seconds left"),
        (44, "about 40 s left"),
        (100, "about 2 min left"),
        (1700, "about 28 min left"),
        (5400, "about 1.5 h left"),
    ],
)
def test_times_are_as_coarse_as_they_are_known(seconds, text):
    assert roughly(seconds) == text


class Seen(Observer):
    def __init__(self):
        self.told, self.names = [], []

    def expected(self, names):
        self.told.append([*names])

    def finished(self, name, seconds, state):
        self.names.append(name)


def test_commands_say_what_is_to_come(tmp_path):
    model, seen = small_model(tmp_path / "m.onnx"), Seen()
    data = {"x": np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)}
    result = gp.prune(model, target="macs=0.6", calibration=data, progress=Several((seen,)))
    (told,) = seen.told
    assert told == seen.names[-len(told) :]
    assert "measure-losses" in told
    assert set(told) <= set(SHARES)
    plan, again = result.plan, Seen()
    gp.apply(model, plan, progress=again)
    assert again.told[0] == again.names[-len(again.told[0]) :]
    swept = Seen()
    gp.sweep(model, targets=["macs=0.9", "macs=0.5"], latency=False, verify=False, progress=swept)
    first, last = swept.told
    assert first == 2 * last


def test_every_pass_of_the_default_pipelines_has_a_share():
    assert all(share > 0 for share in SHARES.values())
    passes = {each.name for each in Pass.__subclasses__() if each.__module__.startswith("graphprune.passes.")}
    assert sorted(passes - set(SHARES) - {"select"}) == []


def test_the_bar_shows_what_is_left(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress_bar(console, after=("write",)) as bar:
        bar.expected(["calibrate", "verify"])
        assert bar.remaining._to_come == ["calibrate", "verify", "write"]
        monkeypatch.setattr(Remaining, "seconds", lambda self: 130.0)
        bar.step(Step("calibrate", 1, 4))
        bar.progress.refresh()
        assert "about 2 min left" in console.file.getvalue()
