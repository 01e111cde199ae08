"""One model, opened and measured once, and pruned in several ways: each as if it were the first."""

from __future__ import annotations

import inspect
import threading
import time
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graphs import save_net
from torch import nn

import graphprune as gp
from graphprune.errors import GraphpruneError, ModelError, OptionError, PlanError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.passes import MeasureLosses
from graphprune.recipe import recipe_options
from graphprune.statistics.measurements import Measurements

X = np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32)
EXAMPLE = (torch.from_numpy(X[:8]),)
PLAIN: dict[str, Any] = {"align": 1, "verify": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Three layers, so that budgets reach different groups."""
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
    return save_net(tmp_path_factory.mktemp("session") / "net.onnx", nodes, weights, (16, 8))


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


def plan_of(result: gp.Result) -> Any:
    return {name: dict(axes) for name, axes in result.plan.parameters.items()}


def counted(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Which of some functions, by module and name, are called, in order."""
    called: list[str] = []
    for name in names:
        module, _, function = name.rpartition(".")
        real = getattr(__import__(module, fromlist=[function]), function)

        def run(*args: Any, _real: Any = real, _name: str = function, **keywords: Any) -> Any:
            called.append(_name)
            return _real(*args, **keywords)

        monkeypatch.setattr(name, run)
    return called


RECIPES = {
    "default": {"target": "macs=0.6"},
    "lighter": {"target": "macs=0.9"},
    "diagonal": {"target": "macs=0.6", "criterion": "wifv", "allocation": "zscore", "compensation": "mean"},
    "all data": {"target": "macs=0.6", "allocation": "isomorphic"},
    "no data": {"target": "macs=0.6", "criterion": "l2", "allocation": "uniform", "compensation": "none"},
    "other samples": {"target": "macs=0.6", "seed": 3},
    "pipeline": {"pipeline": "fold-constants,analyze,calibrate,score{criterion=obs},allocate{macs=0.6 align=1},slice-groups"},
}  # fmt: skip


def test_what_ran_before_changes_nothing(model):
    data = gp.Inputs(X, samples=24)
    session = gp.Session(model, data=data)
    singles: dict[str, gp.Result] = {}
    for name in [*RECIPES, *reversed(RECIPES)]:
        options = {**PLAIN, **RECIPES[name]}
        if "pipeline" in options:
            del options["align"]
        if name not in singles:
            singles[name] = gp.prune(model, calibration=data, **options)
        alone, result = singles[name], session.prune(**options)
        assert plan_of(result) == plan_of(alone), name
        assert [vars(row) for row in result.state.compensated] == [vars(row) for row in alone.state.compensated], name
        assert result.report.cost("macs") == alone.report.cost("macs")


def test_a_sweep_opens_and_measures_once(model, monkeypatch):
    called = counted(
        monkeypatch,
        "graphprune.opened.open_host",
        "graphprune.opened.open_batches",
        "graphprune.passes.calibrate.collect",
        "graphprune.passes.measure_losses.loss_curves",
    )
    evaluated = []

    def evaluate(run: Any) -> float:
        evaluated.append(run)
        return 1.0

    front = gp.sweep(
        model, targets=["macs=0.9", "macs=0.7", "macs=0.5"], calibration=X, evaluate=evaluate, latency=False, **PLAIN
    )
    assert [point.error for point in front.points] == [""] * 4
    assert called == ["open_host", "open_batches", "collect", "loss_curves"]
    assert len(evaluated) == 4


def test_points_of_a_sweep_are_those_of_single_runs(model):
    session = gp.Session(model, data=X)
    recipes = [gp.Recipe.of(target=f"macs={left}", **PLAIN) for left in (0.9, 0.5)]
    recipes.append(gp.Recipe.named("flap").changed(target="macs=0.5", **PLAIN))
    front = session.sweep(recipes, latency=False)
    points = {point.target: point for point in front.points}
    assert next(iter(points)) == "original"
    assert {*points} == {"original", "macs=0.9", "macs=0.5", "macs=0.5 2"}
    for recipe, name in zip(recipes, ("macs=0.9", "macs=0.5", "macs=0.5 2"), strict=True):
        alone = gp.prune(model, calibration=X, recipe=recipe)
        assert points[name].costs == {cost.metric: cost.after for cost in alone.report.costs}


def test_recipes_of_a_sweep_may_have_names(model):
    recipes = {"a": gp.Recipe.of(target="macs=0.8", **PLAIN), "b": gp.Recipe.of(target="macs=0.5", **PLAIN)}
    assert [point.target for point in gp.Session(model).sweep(recipes, latency=False).points] == ["original", "a", "b"]


@pytest.mark.parametrize(
    "recipes, keywords, message",
    [
        ((), {}, "a sweep needs targets; give some, such as macs=0.9 and macs=0.8"),
        (["macs=0.5"], {}, r"a 'str' is no recipe; give Recipe.of\(target=...\), several of them"),
        ([], {"align": 4}, r"a sweep takes no 'align'; give it to the recipes, as in Recipe.of\(align=...\)"),
    ],
)
def test_sweeps_that_are_refused(model, recipes, keywords, message):
    with pytest.raises(OptionError, match=f"^{message}$"):
        gp.Session(model).sweep(recipes, **keywords)


def test_the_methods_are_the_functions(model, tmp_path):
    session = gp.Session(model, data=X)
    result = session.prune("default", target="macs=0.6", align=1)
    result.save_onnx(tmp_path / "small.onnx")
    result.plan.save(tmp_path / "plan.json")
    assert result.plan.recipe == gp.Recipe.of(target="macs=0.6", align=1).to_dict()
    assert result.state.export is None
    again = session.apply(tmp_path / "plan.json", verify=False)
    assert plan_of(again) == plan_of(result)
    assert again.state.compensated == result.state.compensated
    assert session.verify(tmp_path / "small.onnx", result.plan) == gp.verify(
        model, tmp_path / "small.onnx", result.plan
    )
    assert [group.name for group in session.analyze().groups] == [group.name for group in gp.analyze(model).groups]
    assert len(session.analyze(protect="a").groups) == len(gp.analyze(model, protect="a").groups) < 2
    assert session.sensitivity(ratios=(0.5,), samples=32).rows == gp.sensitivity(
        model, calibration=X, ratios=(0.5,)
    ).rows  # fmt: skip
    assert {*session.profile(quick=True, seconds=0.01).to_dict()} == {
        *gp.profile(model, quick=True, seconds=0.01).to_dict()
    }
    assert repr(session).startswith("Session(model=<PosixPath>, example_inputs=None, data=<ndarray [32, 16] float32>, ")


# -- models that change ------------------------------------------------------------------------------------------------


def other_tensors(module: nn.Module) -> None:
    module[0].weight = nn.Parameter(mlp(1)[0].weight.detach().clone())


def assigned(module: nn.Module) -> None:
    module.load_state_dict(mlp(1).state_dict(), assign=True)


def another_layer(module: nn.Module) -> None:
    module[0] = mlp(1)[0]


def another_type(module: nn.Module) -> None:
    module.double()


@pytest.mark.parametrize("change", [other_tensors, assigned, another_layer, another_type])
def test_a_module_that_holds_other_tensors_is_opened_again(change):
    module = mlp()
    data = {"input": X}
    session = gp.Session(module, EXAMPLE, data=data)
    options = {**PLAIN, "target": "params=0.5", "criterion": "act-rms", "allocation": "uniform"}
    if change is another_type:
        session.prune(**options)
        change(module)
        with pytest.raises(GraphpruneError, match="same dtype"):  # the example is of the type that the module had
            session.prune(**options)
        return
    before, host = session.prune(**options), session.host
    change(module)
    after, alone = session.prune(**options), gp.prune(module, EXAMPLE, calibration=data, **options)
    assert session.host is not host
    assert plan_of(after) == plan_of(alone) != plan_of(before)
    for name, tensor in after.module.state_dict().items():
        assert torch.equal(tensor, alone.module.state_dict()[name]), name


def test_the_metric_of_the_original_is_measured_once_until_its_weights_change():
    module, seen = mlp(), []

    def evaluate(run: Any) -> float:
        seen.append(float(np.abs(run({"input": X[:8]})["output"]).sum()))
        return seen[-1]

    session = gp.Session(module, EXAMPLE, evaluate=evaluate)
    results = [session.prune(target="params=0.5", **PLAIN) for _ in range(2)]
    assert len(seen) == 3
    assert results[0].report.metrics == results[1].report.metrics
    module[2].weight.data.mul_(2)
    after = session.prune(target="params=0.5", **PLAIN).report.metrics[0].before
    assert len(seen) == 5
    assert after == seen[3] != seen[0]


def test_data_that_can_be_read_once_serve_every_seed(model):
    session = gp.Session(model, data=iter([X[:8], X[8:16], X[16:]]))
    found = [session.prune(target="macs=0.6", seed=seed, **PLAIN) for seed in (0, 1)]
    assert [result.state.batches.samples for result in found] == [32, 32]


# -- what is refused, and when -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"compensation": "affin"}, "affin"),
        ({"allocation": "isomorfic"}, "isomorfic"),
        ({"criterion": "obss"}, "obss"),
        ({"max_ratio": 3.0}, "max_ratio"),
        ({"only": "kind:chanel"}, "chanel"),
        ({"verify": "maybe"}, "unknown value 'maybe' of 'verify'"),
        ({"pipeline": "fold-constants,analyze,allocate,slice-groups"}, "put 'score' before it in the pipeline"),
        ({"target": "macs=0.5", "criterion": "obs"}, "needs calibration data"),
        ({"target": "macs=0.5", "profil": "x"}, "there is no option 'profil'"),
        (
            {"target": "macs=0.5", "statistics": "s.npz", "pipeline": RECIPES["pipeline"]["pipeline"]},
            "'statistics' has no effect beside",
        ),
    ],
)
def test_a_wrong_option_is_refused_before_the_model_is_opened(options, message):
    session = gp.Session("nowhere.onnx")
    with pytest.raises(OptionError, match=message):
        session.prune(**options)
    with pytest.raises(ModelError, match="nowhere"):
        session.prune(target="macs=0.5")


def test_a_plan_that_is_none_is_refused_before_the_model_is_opened():
    with pytest.raises(PlanError, match="a 'int' is no plan"):
        gp.Session("nowhere.onnx").apply(3)


@pytest.mark.parametrize(
    "options, message",
    [({"samples": 5}, "'samples' says how many"), ({"metric": "accuracy"}, "no labelled data for the metric")],
)
def test_what_a_session_has_nothing_to_do_with_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        gp.Session("net.onnx", **options)


# -- signatures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function, without", [(gp.prune, ()), (gp.sweep, ("target",))], ids=["prune", "sweep"])
def test_functions_take_every_option_of_a_recipe(function, without):
    shown = inspect.signature(function).parameters
    for each in recipe_options():
        if each.keyword not in without:
            assert shown[each.keyword].default == each.default, each.keyword
            assert shown[each.keyword].kind is inspect.Parameter.KEYWORD_ONLY
            assert f"\n        {each.keyword}: " in function.__doc__, each.keyword
    assert not [each for each in shown.values() if each.kind is inspect.Parameter.VAR_KEYWORD]
    assert [name for name in without if name in shown] == []


def test_methods_take_few_parameters():
    for name, method in inspect.getmembers(gp.Session, inspect.isfunction):
        assert len(inspect.signature(method).parameters) <= 8 or name == "__init__", name


# -- threads -----------------------------------------------------------------------------------------------------------


def test_threads_share_a_session(model, monkeypatch):
    session = gp.Session(model, data=X)
    called = counted(monkeypatch, "graphprune.passes.calibrate.collect")
    found: dict[float, Any] = {}

    def work(left: float) -> None:
        found[left] = plan_of(session.prune(target={"macs": left}, **PLAIN))

    lefts = (0.5, 0.6, 0.5001)
    threads = [threading.Thread(target=work, args=(left,)) for left in lefts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {left: plan_of(session.prune(target={"macs": left}, **PLAIN)) for left in lefts}
    assert called == ["collect"]
    assert session.measured.any_of(MeasureLosses.name)
    assert isinstance(session.host, OnnxHost)


# -- what is kept --------------------------------------------------------------------------------------------------------


def test_the_oldest_measurement_goes_where_they_grow_too_large(monkeypatch):
    monkeypatch.setattr("graphprune.statistics.measurements.KEPT_BYTES", 100)
    kept = Measurements()
    for name, size in (("a", 60), ("b", 30), ("losses", 0), ("c", 20), ("d", 300)):
        kept.keep("calibrate", name, name.upper(), size)
        if name == "c":
            assert [kept.find("calibrate", each) for each in ("a", "b", "losses", "c")] == [None, "B", "LOSSES", "C"]
    assert [kept.find("calibrate", each) for each in ("b", "losses", "c", "d")] == [None, "LOSSES", None, "D"]


def test_the_size_of_statistics_is_that_of_their_moments(model):
    session = gp.Session(model, data=X)
    statistics = session.prune(target="macs=0.5", **PLAIN).state.statistics
    widths = [48, 32]
    assert statistics.n_bytes == sum(8 * (3 * width + width**2 + 1) for width in widths)


# -- whose fault, and whose turn -----------------------------------------------------------------------------------------


def test_an_unexpected_error_is_blamed_on_a_file_that_is_invalid(tmp_path, monkeypatch):
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x99 no model")

    def fail(*args: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("graphprune.session.compiled", fail)
    with pytest.raises(ModelError, match=r"bad.onnx' is not valid ONNX"):
        gp.Session(tmp_path / "bad.onnx").prune(target="macs=0.5")
    with pytest.raises(RuntimeError, match="boom"):
        gp.Session(mlp(), EXAMPLE).prune(target="macs=0.5")


@pytest.mark.parametrize("onnx_model", [True, False], ids=["onnx", "torch"])
def test_sessions_of_modules_wait_for_each_other(model, monkeypatch, onnx_model):
    """Tracing changes state of the whole process, so that one thread at a time may do it; files need no such thing."""
    inside, seen = [0], []

    def work(*args: Any) -> None:
        inside[0] += 1
        barrier.wait(30) if onnx_model else time.sleep(0.2)
        seen.append(inside[0])
        inside[0] -= 1

    barrier = threading.Barrier(2)
    monkeypatch.setattr("graphprune.session.compiled", work)
    made = [gp.Session(model) if onnx_model else gp.Session(mlp(), EXAMPLE) for _ in range(2)]
    threads = [threading.Thread(target=each.prune, kwargs={"target": "macs=0.5"}) for each in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 2
    assert max(seen) == (2 if onnx_model else 1)
