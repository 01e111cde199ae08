"""Intervals of metrics against the literature and against draws, and what reports make of them."""

import json

import numpy as np
import pytest
from test_cli import DEMO, run, small_model

import graphprune as gp
from graphprune.demo.run import demo_data
from graphprune.evaluation import METRICS
from graphprune.measured import Measured, difference


def hits(right, n):
    return Measured(np.arange(n) < right, np.ones(n), "fraction")


@pytest.mark.parametrize(
    ("right", "n", "interval"),
    [  # Wilson's interval, to four digits (Newcombe 1998, table I, method 3)
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (29, 29, (0.8830, 1.0)),
    ],
)
def test_wilson(right, n, interval):
    assert hits(right, n).interval == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize("scale", ["mean", "exp", "fraction"])
def test_intervals_hold_the_truth_nineteen_times_of_twenty(scale):
    rng = np.random.default_rng(0)
    held = apart = 0
    for _ in range(400):
        counts = rng.integers(1, 9, 60)
        noise = rng.normal(size=60)  # of a whole sample: its terms are no draws of their own
        first, second = (counts * np.clip(0.5 + 0.2 * (noise + rng.normal(size=60)), 0, 1) for _ in range(2))
        one, two = Measured(first, counts, scale), Measured(second, counts, scale)
        truth = np.exp(0.5) if scale == "exp" else 0.5
        held += one.interval[0] <= truth <= one.interval[1]
        apart += not difference(one, two).by_chance
    assert 0.91 <= held / 400 <= 0.985
    assert 0.015 <= apart / 400 <= 0.09


def test_a_difference_is_taken_pair_by_pair():
    before, after = hits(900, 1000), hits(880, 1000)  # the 20 that are lost are among those that were right
    assert before.interval[0] < float(after) < before.interval[1]  # each alone would say nothing
    found = difference(before, after)
    assert found.interval == pytest.approx((-0.0292, -0.0107), abs=5e-4)
    assert not found.by_chance
    assert difference(before, before).by_chance
    assert difference(before, hits(10, 11)) is None
    assert difference(0.5, before) is None


def test_too_few_samples_and_no_finite_numbers_have_no_interval():
    assert hits(1, 1).interval is None
    endless = METRICS["perplexity"](
        [(np.zeros((2, 2, 6), np.float32) - 1e30 * (np.arange(6) != 3), np.array([[0, 2], [0, 3]]))]
    )
    assert endless.n == 2
    assert endless.interval is None
    assert difference(endless, endless) is None


def test_a_metric_counts_samples_and_not_what_is_inside_them():
    rng = np.random.default_rng(1)
    pixels = METRICS["accuracy"]([(rng.normal(size=(4, 3, 5, 5)), rng.integers(0, 3, (4, 5, 5)))])
    assert (pixels.n, pixels.counts.tolist()) == (4, [25] * 4)
    tokens = METRICS["perplexity"](
        [(np.zeros((3, 4, 6)), np.array([[0, 1, 2, 3], [5, -100, -100, -100], [1, 2, 3, -100]]))]
    )
    assert (tokens.n, tokens.counts.tolist()) == (2, [3, 0, 2])


def test_the_report_says_how_sure_a_metric_is(tmp_path):
    images, labels = demo_data()
    np.savez(tmp_path / "test.npz", image=images[:200], labels=labels[:200])
    options = ("prune", DEMO, "-o", tmp_path / "o.onnx", "--no-latency", "--no-verify", "--eval", tmp_path / "test.npz")
    text = " ".join(run(*options, "--target", "macs=0.2").stdout.split())
    assert "accuracy of 200 samples, 95 % intervals: 0.8" in text
    assert "is more than chance" in text
    (row,) = json.loads(run(*options, "--target", "macs=0.9", "--json").stdout)["metrics"]
    assert row["n"] == 200
    assert row["before_interval"] == pytest.approx(hits(round(row["before"] * 200), 200).interval)
    assert row["before_interval"][0] < row["before"] < row["before_interval"][1]
    assert row["by_chance"] is (row["difference_interval"][0] <= 0 <= row["difference_interval"][1])


def test_of_a_function_nothing_is_known(tmp_path):
    result = gp.prune(small_model(tmp_path / "m.onnx"), target="macs=0.5", evaluate=lambda run: 0.5, verify=False)
    (row,) = result.report.metrics
    assert (row.n, row.before_interval, row.difference_interval, row.by_chance) == (None, None, None, None)
    assert "interval" not in str(result.report)


def test_a_sweep_says_it_for_each_point(tmp_path):
    images, labels = demo_data()
    data = {"image": images[:60], "labels": labels[:60]}
    front = gp.sweep(DEMO, targets=["macs=0.9", "macs=0.5"], evaluate=data, verify=False, latency=False)
    for point in front.points:
        assert point.samples == {"accuracy": 60}
        assert point.intervals["accuracy"] == hits(round(point.metrics["accuracy"] * 60), 60).interval
    assert sum("95 % intervals" in note for note in front.notes) == 2
