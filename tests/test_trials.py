"""Sweeps and sensitivity: what they find is what a direct computation finds, and nothing half-written is left."""

import json
import sys

import numpy as np
import onnx
import pytest
from graphs import save_net
from test_cli import DEMO, error_of, run, small_model

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.errors import OptionError, OutputError, TargetError
from graphprune.opening import open_host
from graphprune.passes.allocate import keep_counts
from graphprune.proof.masks import masks
from graphprune.report.curves import Front, FrontPoint, Sensitivity, SensitivityRow
from graphprune.report.plots import plot_front, plot_sensitivity

X = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)
BRANCHES = {"unimportant": 0.01, "vital": 1.0, "useless": 1e-4}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def branches(path):
    """Three branches 8 -> 32 -> 4 that are added; only one of them matters."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], {}, None
    for name, scale in BRANCHES.items():
        weights[f"{name}.in"] = rng.normal(size=(8, 32))
        weights[f"{name}.out"] = rng.normal(size=(32, 4)) * scale
        nodes += [
            onnx.helper.make_node("MatMul", ["x", f"{name}.in"], [f"{name}.a"], f"{name}.first"),
            onnx.helper.make_node("Relu", [f"{name}.a"], [f"{name}.b"], f"{name}.relu"),
            onnx.helper.make_node("MatMul", [f"{name}.b", f"{name}.out"], [f"{name}.c"], f"{name}.second"),
        ]
        if last is not None:
            nodes.append(onnx.helper.make_node("Add", [last, f"{name}.c"], [f"{name}.sum"], f"{name}.add"))
        last = f"{name}.c" if last is None else f"{name}.sum"
    nodes.append(onnx.helper.make_node("Identity", [last], ["y"], "end"))
    return save_net(path, nodes, weights, (8, 4))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return branches(tmp_path_factory.mktemp("model") / "branches.onnx")


# -- sensitivity ---------------------------------------------------------------------------------------------------


def test_the_error_is_that_of_the_masked_model(model):
    found = gp.sensitivity(model, calibration=X, samples=40, criterion="l1", ratios=(0.25, 0.6))
    host = open_host(model)
    analysis = analyze_graph(host.graph())
    wanted = host.run({"x": X})["y"].astype(float)
    assert len(found.rows) == 6
    for row in found.rows:
        group = next(group for group in analysis.groups if group.name == row.group)
        assert row.removed == round(row.ratio * 32)
        scores = sum(np.abs(host.read(site.tensor)).sum(1 - site.axis) for site in group.sites)
        kept = keep_counts((group,), {group.name: scores}, {group.name: 32 - row.removed})
        masked = host.run_masked({"x": X}, masks(analysis, kept))["y"].astype(float)
        assert row.value == pytest.approx(np.linalg.norm(masked - wanted) / np.linalg.norm(wanted), rel=1e-4)


def test_one_layer_is_all_important_and_the_ratio_picks_it(model):
    found = gp.sensitivity(model, calibration=X)
    assert [name.split(".")[0] for name in found.most_sensitive(1.0)] == ["vital", "unimportant", "useless"]
    assert found.most_sensitive(0.01) == found.most_sensitive(1 / 3) == (found.most_sensitive(1.0)[0],)
    assert len(found.most_sensitive(0.34)) == 2
    assert found.most_sensitive(0.0) == ()
    plain = gp.prune(model, target="macs=0.6", calibration=X, allocation="uniform")
    kept = gp.prune(model, target="macs=0.6", calibration=X, allocation="uniform", protect_ratio=0.3)
    assert {row.name.split(".")[0] for row in plain.report.groups if row.kept < row.size} == set(BRANCHES)
    assert {row.name.split(".")[0] for row in kept.report.groups if row.kept < row.size} == {"unimportant", "useless"}
    assert kept.report.notes[0] == "the most sensitive groups stay whole: vital.in[1]"
    assert kept.plan.options["protected"] == ["vital.in[1]"]
    assert kept.report.cost("macs").fraction <= 0.6


def test_more_removed_is_worse_on_average():
    rng = np.random.default_rng(0)
    found = gp.sensitivity(DEMO, calibration=rng.normal(size=(16, 1, 28, 28)), ratios=(0.2, 0.5, 0.7, 0.9))
    means = [np.mean([row.value for row in found.rows if row.ratio == ratio]) for ratio in (0.2, 0.5, 0.7, 0.9)]
    assert means == sorted(means)
    assert means[0] < means[-1]


def test_the_users_metric_is_measured_and_the_model_left_as_it_was(model):
    host = open_host(model)
    before = host.run({"x": X})["y"]
    calls = []

    def evaluate(run):
        calls.append(run)
        return {"error": float(np.abs(run({"x": X})["y"] - before).max()), "other": 5}

    found = gp.sensitivity(host, evaluate=evaluate, only=["vital.in"], ratios=(0.5,))
    assert (found.measure, found.baseline, len(calls)) == ("error", 0.0, 2)
    (row,) = found.rows
    assert row.value > 0
    np.testing.assert_array_equal(host.run({"x": X})["y"], before)


def test_an_interrupted_run_goes_on_where_it_was(model, tmp_path, monkeypatch):
    module = sys.modules["graphprune.sensitivities"]
    real, tried = module.trials, []

    def failing(host, analysis, groups, *rest):
        tried.append(groups[0].name)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return real(host, analysis, groups, *rest)

    monkeypatch.setattr(module, "trials", failing)
    with pytest.raises(KeyboardInterrupt):
        gp.sensitivity(model, calibration=X, folder=tmp_path)
    assert names(tmp_path) == [module.PARTIAL]
    changed = gp.sensitivity(
        model, calibration=2 * X, folder=tmp_path / ".." / tmp_path.name, ratios=(0.5,), only=["vital.in"]
    )
    assert len(changed.rows) == 1
    tried.clear()
    with pytest.raises(KeyboardInterrupt):
        gp.sensitivity(model, calibration=X, folder=tmp_path)
    tried[:] = [""] * 5
    found = gp.sensitivity(model, calibration=X, folder=tmp_path)
    assert tried[5:] == ["useless.in[1]"]
    assert names(tmp_path) == []
    monkeypatch.setattr(module, "trials", real)
    assert found == gp.sensitivity(model, calibration=X)


def test_the_command_writes_json_and_a_plot(model, tmp_path):
    np.save(tmp_path / "x.npy", X)
    folder = tmp_path / "new" / "folder"
    text = run(
        "sensitivity", model, "-o", folder, "--calibration", tmp_path / "x.npy", "--ratios", "0.5", "--plot", "svg"
    )
    assert names(folder) == ["sensitivity.json", "sensitivity.svg"]
    data = json.loads((folder / "sensitivity.json").read_text())
    assert [row["group"] for row in data["rows"]] == ["unimportant.in[1]", "vital.in[1]", "useless.in[1]"]
    assert text.stdout.index("vital") < text.stdout.index("unimportant") < text.stdout.index("useless")
    assert "made up" in run("sensitivity", model).stdout
    shown = run("sensitivity", model, "--calibration", tmp_path / "x.npy", "--ratios", "0.5", "--json").stdout
    assert data.items() <= json.loads(shown).items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ratios", "0.5,1"], "the ratios are 0.5, 1; expected fractions of units between 0 and 1, such as 0.25,0.5,0.75"),
        (["--ratios", "half"], "cannot read --ratios 'half'; expected fractions like 0.25,0.5,0.75"),
        (["--protect", "neuron"], "no group of this model can be pruned, so there is nothing to try; see 'graphprune inspect'"),
        (["--plot", "gif", "-o", "."], "unknown format 'gif' of --plot; expected png, svg or none"),
        (["--calibration", "none.npy"], "no data 'none.npy'; expected an .npz or .npy file, a folder of images, a text file, 'package.module:attribute' or 'random'"),
    ],
)  # fmt: skip
def test_errors_of_sensitivity(model, options, message):
    assert error_of("sensitivity", model, *options) == message


def test_errors_of_the_protect_ratio(model):
    with pytest.raises(OptionError) as caught:
        gp.prune(model, target="macs=0.5", protect_ratio=1.0)
    assert str(caught.value) == "protect_ratio is 1; expected a fraction of the groups, at least 0, below 1"
    with pytest.raises(TargetError, match=r"min_units=1, protect_ratio \(2 groups\) keep part of every group"):
        gp.prune(model, target="macs=0.2", protect_ratio=0.6)
    with pytest.raises(TargetError) as failed:
        gp.prune(model, target="macs=0.2", protect_ratio=0.9)
    assert str(failed.value) == "no group of this model can be pruned; protect_ratio keeps all of them whole"
    with pytest.raises(OptionError) as caught:
        gp.prune(model, target="macs=0.5", pipeline="analyze,protect-sensitive{ratio=0.3 ratios=0.5|0.75}")
    assert str(caught.value) == "pass 'protect-sensitive' needs scores; put 'score' before it in the pipeline"


# -- sweep ---------------------------------------------------------------------------------------------------------


def test_each_point_is_what_prune_gives(model, tmp_path):
    def evaluate(run):
        return {"norm": float(np.linalg.norm(run({"x": X})["y"]))}

    front = gp.sweep(
        model, targets=["macs=0.5", "macs=0.8", {"params": 0.6}, "macs=0.5", "macs=0.01"], evaluate=evaluate,
        folder=tmp_path, latency=False,
    )  # fmt: skip
    assert [point.target for point in front.points] == ["original", "macs=0.8", "params=0.6", "macs=0.5", "macs=0.01"]
    for point in front.points[1:4]:
        result = gp.prune(model, target=point.target, evaluate=evaluate)
        assert point.costs == {cost.metric: cost.after for cost in result.report.costs}
        assert point.metrics == {"norm": result.report.metrics[0].after}
        saved = open_host(tmp_path / point.files[0])
        np.testing.assert_array_equal(saved.run({"x": X})["y"], result.host.run({"x": X})["y"])
        assert gp.PruningPlan.load(tmp_path / point.files[1]) == result.plan
    assert front.points[0].costs == {cost.metric: cost.before for cost in result.report.costs}
    assert front.points[0].metrics == {"norm": result.report.metrics[0].before}
    assert front.points[4].error.startswith("target 'macs=0.01' cannot be met: ")


def test_the_command_writes_the_front(model, tmp_path):
    folder = tmp_path / "front"
    shown = run("sweep", model, "-o", folder, "--target", "macs=0.9", "--target", "macs=0.5", "--save-models").stdout
    assert names(folder) == [
        "front.json", "front.png", "macs-0.5.onnx", "macs-0.5.plan.json", "macs-0.9.onnx", "macs-0.9.plan.json",
    ]  # fmt: skip
    points = json.loads((folder / "front.json").read_text())["points"]
    assert [point["target"] for point in points] == ["original", "macs=0.9", "macs=0.5"]
    assert all(set(point["latency"]) == set(points[0]["latency"]) != set() for point in points)
    assert "50.0%" in shown
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")


def test_errors_of_sweep(model, tmp_path):
    assert error_of("sweep", model, "-o", tmp_path, "--target", "macs=0.01").startswith("target 'macs=0.01' cannot")
    assert error_of("sweep", model, "-o", tmp_path, "--target", "speed=1") == (
        "unknown target 'speed'; expected one of macs, params, bytes, latency, active_params, kv_cache, as in 'macs=0.5'"
    )
    assert names(tmp_path) == []
    with pytest.raises(OptionError) as caught:
        gp.sweep(model, targets=[])
    assert str(caught.value) == "a sweep needs targets; give some, such as macs=0.9 and macs=0.8"
    (tmp_path / "file").write_text("")
    assert error_of("sweep", model, "-o", tmp_path / "file", "--target", "macs=0.5") == (
        f"cannot make folder '{tmp_path / 'file'}': File exists; give a writable path with -o"
    )


# -- plots ---------------------------------------------------------------------------------------------------------

ROWS = tuple(SensitivityRow(f"g{i}", "neuron", 10, r, round(10 * r), r * i) for i in range(12) for r in (0.2, 0.5))
POINTS = tuple(
    FrontPoint(f"macs={f}", {"macs": f, "params": f, "bytes": f}, {1: f}, {1: f}, {"acc": 1 - f}) for f in (1.0, 0.5)
)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plots_are_written_whole_or_not_at_all(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    one, two = tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}"
    plot_sensitivity(Sensitivity("output error", 0.0, ROWS), one)
    plot_front(Front(POINTS), two)
    if suffix == "svg":
        assert all(path.read_text().rstrip().endswith("</svg>") for path in (one, two))
    bare = Front(tuple(FrontPoint(p.target, p.costs, {}, {}, {"acc": float("nan")}) for p in POINTS))
    plot_front(bare, tmp_path / f"three.{suffix}")
    plot_front(Front(tuple(FrontPoint(p.target, p.costs, {}, {}, {}) for p in POINTS)), tmp_path / f"four.{suffix}")
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())
    with pytest.raises(OutputError):
        plot_front(Front(POINTS), tmp_path / "missing" / f"two.{suffix}")
    assert len(names(tmp_path)) == 4


def test_without_matplotlib_the_data_are_written(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for command, stem in (
        (["sweep", "--target", "macs=0.5", "--no-latency"], "front"),
        (["sensitivity"], "sensitivity"),
    ):
        note = f"there is no '{tmp_path / stem}.png': plots need matplotlib; pip install matplotlib, or leave them out (--plot none)"
        found = run(*command, model, "-o", tmp_path, "--json")
        assert note in json.loads(found.stdout)["notes"]
        text = run(*command, model, "-o", tmp_path).stdout
        assert "pip install matplotlib" in " ".join(text.split())
    assert names(tmp_path) == ["front.json", "sensitivity.json"]
    run("sensitivity", model, "-o", tmp_path, "--plot", "none")


def test_an_unknown_format_of_plots(model, tmp_path):
    message = error_of("sensitivity", model, "-o", tmp_path, "--plot", "svgz")
    assert message == "unknown format 'svgz' (did you mean 'svg'?) of --plot; expected png, svg or none"


def test_calibration_of_the_command_line_says_when_it_is_made_up(tmp_path):
    model = small_model(tmp_path / "m.onnx")
    result = run("prune", model, "-o", tmp_path / "o.onnx", "--target", "macs=0.5", "--calibration", "random", "--json")
    assert json.loads(result.stdout)["notes"][:1] == [
        "the calibration inputs are made up, and what is measured on them says little about yours; give real ones "
        "(--calibration)"
    ]
