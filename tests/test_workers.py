"""Sweeps on workers: the same plans, files and numbers as one point after the other, and one clear error."""

import json
import multiprocessing
import pickle
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from graphs import save_net
from torch import nn
from typer.testing import CliRunner
from worker_metrics import X, failing, leaving, mean_output

import graphprune as gp
from graphprune.cli import app
from graphprune.commands import curves
from graphprune.errors import OptionError
from graphprune.planning.plan import PruningPlan
from graphprune.runtime import sessions

PLAIN = {"align": 1, "verify": False, "latency": False}
TARGETS = ["macs=0.9", "macs=0.7", "macs=0.5"]


class Pickling(Executor):
    """Carries out in this thread, and sends both ways as if to another process."""

    def __init__(self):
        self.sent = []

    def submit(self, function, /, *args, **keywords):
        self.sent.append(pickle.dumps((function, args, keywords)))
        function, args, keywords = pickle.loads(self.sent[-1])
        future = Future()
        try:
            future.set_result(pickle.loads(pickle.dumps(function(*args, **keywords))))
        except BaseException as error:  # noqa: BLE001
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(16, 48)), "b": rng.normal(size=(48, 32)), "c": rng.normal(size=(32, 8))}
    nodes, last = [], "x"
    for name in weights:
        nodes.append(onnx.helper.make_node("MatMul", [last, name], [f"{name}.y"], f"{name}.matmul"))
        last = f"{name}.y"
        if name != "c":
            nodes.append(onnx.helper.make_node("Relu", [last], [f"{name}.r"], f"{name}.relu"))
            last = f"{name}.r"
    nodes[-1].output[0] = "y"
    return save_net(tmp_path_factory.mktemp("workers") / "net.onnx", nodes, weights, (16, 8))


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


def plans_in(folder):
    return {path.name: PruningPlan.load(path) for path in sorted(folder.glob("*.plan.json"))}


@pytest.fixture
def folders(tmp_path):
    """One for a sweep without workers, and one for a sweep with them."""
    found = tmp_path / "0", tmp_path / "1"
    for each in found:
        each.mkdir()
    return found


def same_files(one, other):
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert len(names) == 2 * len(TARGETS)
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


OPTIONS = {
    "weights": {"verify": True},
    "data": {"calibration": X},
    "metric": {"evaluate": mean_output},
    "statistics in a file": {"calibration": X, "statistics": "FOLDER"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_points_are_those_of_one_after_the_other(name, model, folders, tmp_path):
    options = {**PLAIN, **OPTIONS[name]}
    fronts = []
    for i, executor in enumerate((None, Pickling())):
        if "statistics" in options:
            options["statistics"] = tmp_path / f"statistics{i}.npz"
        fronts.append(gp.sweep(model, targets=TARGETS, folder=folders[i], executor=executor, **options))
    assert fronts[0].to_dict() == fronts[1].to_dict()
    same_files(*folders)


def test_data_are_measured_once_and_here(model, monkeypatch):
    here = []
    for place in ("graphprune.passes.calibrate.collect", "graphprune.passes.measure_losses.loss_curves"):
        name, _, function = place.rpartition(".")
        real = getattr(__import__(name, fromlist=[function]), function)
        monkeypatch.setattr(place, lambda *a, real=real, f=function, **k: here.append(f) or real(*a, **k))
    gp.sweep(model, targets=TARGETS, calibration=X, executor=Pickling(), **PLAIN)
    assert here == ["collect", "loss_curves"]


def test_processes(model, folders):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        front = gp.sweep(
            model, targets=TARGETS, folder=folders[1], executor=pool, evaluate=mean_output, calibration=X, **PLAIN
        )
    serial = gp.sweep(model, targets=TARGETS, folder=folders[0], evaluate=mean_output, calibration=X, **PLAIN)
    assert serial.to_dict() == front.to_dict()
    same_files(*folders)


def test_modules_in_threads_take_turns(folders):
    example = (torch.from_numpy(X[:8]),)
    serial = gp.sweep(module(), example, targets=TARGETS[1:], folder=folders[0], **PLAIN)
    with ThreadPoolExecutor(2) as pool:
        front = gp.sweep(module(), example, targets=TARGETS[1:], folder=folders[1], executor=pool, **PLAIN)
    assert serial.to_dict() == front.to_dict()
    assert plans_in(folders[0]) == plans_in(folders[1])


def test_sessions_take_an_executor(model):
    recipes = [gp.Recipe.of(target=target, align=1, verify=False) for target in TARGETS]
    executor = Pickling()
    assert gp.Session(model).sweep(recipes, latency=False).to_dict() == (
        gp.Session(model).sweep(recipes, latency=False, executor=executor).to_dict()
    )
    assert len(executor.sent) == 3


def test_latency_is_measured_here_when_all_workers_are_done(model, monkeypatch):
    order = []
    real = sessions.measure

    def measure(paths, inputs, **keywords):
        order.append(("measured", threading.current_thread()))
        return real(paths, inputs, **{**keywords, "seconds": 0.02})

    class Noting(Pickling):
        def submit(self, *args, **keywords):
            order.append(("carried out", threading.current_thread()))
            return super().submit(*args, **keywords)

    monkeypatch.setattr(sessions, "measure", measure)
    front = gp.sweep(model, targets=TARGETS, executor=Noting(), **{**PLAIN, "latency": True})
    here = threading.current_thread()
    assert order == [("carried out", here)] * 3 + [("measured", here)] * 3
    for point in front.points:
        assert [threads > 0 and time > 0 for threads, time in point.latency.items()]
        assert point.latency.keys() == point.latency_kept.keys()
        assert point.files == ()
    assert {*front.points[0].latency_kept.values()} == {1.0}


def test_latency_targets_are_not_met_beside_neighbours(model):
    executor = Pickling()
    front = gp.sweep(model, targets=["macs=0.7", "latency=0.99"], executor=executor, align=1, verify=False)
    assert len(executor.sent) == 1
    assert {point.target for point in front.points} == {"original", "macs=0.7", "latency=0.99"}


def test_a_point_that_cannot_be_met_says_why(model):
    kept = {"max_ratio": 0.1, **PLAIN}
    serial = gp.sweep(model, targets=["macs=0.95", "macs=0.01"], **kept)
    front = gp.sweep(model, targets=["macs=0.95", "macs=0.01"], executor=Pickling(), **kept)
    assert serial.to_dict() == front.to_dict()
    assert [bool(point.error) for point in front.points] == [False, False, True]


def test_an_error_of_a_worker_is_one_of_ours(model):
    with pytest.raises(OptionError, match="'failing' returns") as alone:
        gp.sweep(model, targets=TARGETS, evaluate=failing, **PLAIN)
    with pytest.raises(OptionError) as error:
        gp.sweep(model, targets=TARGETS, evaluate=failing, executor=Pickling(), **PLAIN)
    assert str(alone.value) == str(error.value)


def test_what_cannot_be_sent_is_refused(model):
    with pytest.raises(
        OptionError, match="^the model, its data or its metric cannot be sent to other workers: .*lambda"
    ):
        gp.sweep(model, targets=TARGETS, evaluate=lambda run: 1.0, executor=Pickling(), **PLAIN)
    with pytest.raises(OptionError, match="^graphs cannot be dumped after passes that run on other workers; leave"):
        gp.sweep(model, targets=TARGETS, dump_after=["analyze"], executor=Pickling(), **PLAIN)


def test_a_pool_whose_workers_die_is_one_error(model):
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with pool, pytest.raises(OptionError, match="^the workers are gone before their work was done: .* give fewer"):
        gp.sweep(model, targets=TARGETS, evaluate=leaving, executor=pool, **PLAIN)
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(OptionError, match="^the workers are gone before their work was done: cannot schedule new"):
        gp.sweep(model, targets=TARGETS, executor=closed, **PLAIN)


def test_bounds_hold_on_workers(model):
    executor = Pickling()
    with gp.bounded(seconds=7):
        gp.sweep(model, targets=["macs=0.5"], executor=executor, **PLAIN)
    _, (shared, *_), _ = pickle.loads(executor.sent[0])
    assert pickle.loads(shared).bounds.seconds == 7


def test_the_command_line(model, folders, monkeypatch):
    asked = []

    def pool(n, context):
        asked.append((n, context.get_start_method()))
        return Pickling()

    monkeypatch.setattr(curves, "ProcessPoolExecutor", pool)
    for folder, more in zip(folders, ((), ("--workers", "2")), strict=True):
        options = [word for target in TARGETS for word in ("--target", target)]
        options += ["--align", "1", "--no-verify", "--no-latency", "--plot", "none", "--save-models", "--json", *more]
        result = CliRunner().invoke(app, ["sweep", str(model), "-o", str(folder), *options])
        assert result.exit_code == 0, result.output
    assert asked == [(2, "spawn")]
    fronts = [folder / "front.json" for folder in folders]
    assert len(json.loads(fronts[0].read_text())["points"]) == 4
    assert fronts[0].read_text() == fronts[1].read_text()
    for front in fronts:
        front.unlink()
    same_files(*folders)
    refused = CliRunner().invoke(
        app, ["sweep", str(model), "-o", str(folders[0]), "--target", "macs=1", "--workers", "0"]
    )
    assert (refused.exit_code, refused.stderr.strip()) == (2, "error: --workers is 0; expected 1 or more")
