"""Losses in a file of statistics: found again by the next run, measured anew where they are of something else."""

from __future__ import annotations

import shutil
import zipfile

import numpy as np
import pytest
from test_measured import X, chain

import graphprune as gp
from graphprune.errors import OptionError, OutputError
from graphprune.statistics.losses import MOST, Losses, add_losses, read_losses

OPTIONS = {"align": 1, "calibration": {"x": X}, "verify": False}
TRIALS = "graphprune.passes.measure_losses.loss_curves"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("model") / "chain.onnx")


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    file = tmp_path_factory.mktemp("statistics") / "statistics.npz"
    return file, gp.prune(model, target={"macs": 0.7}, statistics=file, **OPTIONS)


@pytest.fixture
def file(written, tmp_path):
    return shutil.copy(written[0], tmp_path / "statistics.npz")


def notes(result):
    return [each for each in result.report.notes if "measured anew" in each or "not kept" in each]


def test_another_target_takes_them_from_the_file(model, file, written, monkeypatch):
    plain = gp.prune(model, target={"macs": 0.5}, **OPTIONS)
    before = file.read_bytes()
    monkeypatch.setattr(TRIALS, lambda *args, **kwargs: pytest.fail("measured again"))
    again = gp.prune(model, target={"macs": 0.7}, statistics=file, **OPTIONS)
    assert again.plan.parameters == written[1].plan.parameters
    other = gp.prune(model, target={"macs": 0.5}, statistics=file, **OPTIONS)
    assert other.plan.parameters == plain.plan.parameters
    assert not notes(other)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"loss": "cosine"}, "other losses of outputs (--loss)"),
        ({"protect": ("0.in",)}, "other groups (--only, --protect)"),
        ({"criterion": "wifv", "allocation": "measured"}, "other scores (--criterion)"),
    ],
)
def test_losses_of_something_else_are_measured_anew_and_kept_beside(model, file, options, reason, monkeypatch):
    result = gp.prune(model, target={"macs": 0.7}, statistics=file, **OPTIONS, **options)
    assert notes(result) == [f"the losses in '{file}' are of {reason}; they were measured anew"]
    monkeypatch.setattr(TRIALS, lambda *args, **kwargs: pytest.fail("measured again"))
    for given in (options, {}):
        assert not notes(gp.prune(model, target={"macs": 0.7}, statistics=file, **OPTIONS, **given))


def test_other_data_are_refused_as_before(model, file):
    with pytest.raises(OptionError, match="other data"):
        gp.prune(model, target={"macs": 0.7}, statistics=file, **{**OPTIONS, "calibration": {"x": X + 1}})


def test_losses_that_cannot_be_kept_are_no_error(model, file, monkeypatch):
    def full(path, found):
        raise OutputError("the disk is full")

    monkeypatch.setattr("graphprune.passes.measure_losses.add_losses", full)
    result = gp.prune(model, target={"macs": 0.7}, statistics=file, loss="cosine", **OPTIONS)
    assert notes(result)[1:] == ["losses are not kept: the disk is full"]


def test_where_none_are_measured_none_are_written(model, tmp_path):
    file = tmp_path / "statistics.npz"
    gp.prune(model, target={"macs": 0.7}, statistics=file, allocation="dp", **OPTIONS)
    assert not any("losses" in name for name in zipfile.ZipFile(file).namelist())


SCORES = {"a": np.array([0.5, 1.0, 2.0]), "b": np.array([1.0, 3.0])}
CURVES = {"a": np.array([9.0, 2.0, 1.0, 0.0]), "b": np.array([3.0, 1.0, 0.0])}
SIZES = {"a": 3, "b": 2}


def kept(path, **changes):
    if not path.exists():
        np.savez(path, about=np.array("{}"))
    entry = Losses({"weights": "w", "loss": "kl"}, SCORES, CURVES)
    add_losses(path, Losses(**{**{name: getattr(entry, name) for name in ("of", "scores", "curves")}, **changes}))
    return path


def test_entries_are_read_as_they_were_written_and_the_last_first(tmp_path):
    path = kept(kept(tmp_path / "s.npz"), of={"weights": "w", "loss": "mse"})
    last, first = read_losses(path, SIZES)
    assert (last.of["loss"], first.of["loss"]) == ("mse", "kl")
    for name in SIZES:
        np.testing.assert_array_equal(first.curves[name], CURVES[name])
        np.testing.assert_array_equal(first.scores[name], SCORES[name])
    assert read_losses(path, {"b": 2, "a": 3})[0].curves["b"].tolist() == CURVES["b"].tolist()
    assert [each.differs(first.of, SCORES) for each in read_losses(path, {"a": 3})] == ["loss", "groups"]
    with np.load(path) as stored:
        assert str(stored["about"]) == "{}"


@pytest.mark.parametrize(
    ("of", "factor", "expected"),
    [
        ({"weights": "w", "loss": "kl"}, 1.0, ""),
        ({"weights": "w", "loss": "kl"}, 1 + 1e-9, ""),
        ({"weights": "w", "loss": "kl"}, 1.01, "scores"),
        ({"weights": "v", "loss": "mse"}, 1.0, "weights"),
        ({"weights": "w"}, 1.0, "loss"),
        ({"weights": "w", "loss": "kl", "more": "m"}, 1.0, "more"),
    ],
)
def test_what_differs_is_said(of, factor, expected):
    entry = Losses({"weights": "w", "loss": "kl"}, SCORES, CURVES)
    assert entry.differs(of, {name: each * factor for name, each in SCORES.items()}) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"curves": {"a": np.array([9.0, 2.0, np.nan, 0.0]), "b": CURVES["b"]}},
        {"curves": {"a": np.array([9.0, 2.0, -1.0, 0.0]), "b": CURVES["b"]}},
        {"curves": {"a": CURVES["a"][1:], "b": CURVES["b"]}},
        {"scores": {"a": np.array([0.5, np.inf, 2.0]), "b": SCORES["b"]}},
        {"of": {"weights": 3}},
    ],
    ids=["not a number", "negative", "short", "infinite scores", "no text"],
)
def test_what_no_measurement_gives_is_refused(changes, tmp_path):
    path = kept(tmp_path / "s.npz", **changes)
    with pytest.raises(OptionError, match="cannot read losses"):
        read_losses(path, SIZES)


def test_a_file_that_is_none_is_refused_and_stays(tmp_path):
    path = tmp_path / "s.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(OptionError, match="cannot read losses"):
        read_losses(path, SIZES)
    with pytest.raises(OptionError, match="holds no statistics"):
        add_losses(path, Losses({}, SCORES, CURVES))
    assert path.read_bytes() == b"no archive"


def test_a_file_does_not_grow_without_end(tmp_path):
    path = tmp_path / "s.npz"
    for _ in range(MOST + 2):
        kept(path)
    assert len(read_losses(path, SIZES)) == MOST
    assert len(zipfile.ZipFile(path).namelist()) == 3 * MOST + 1
