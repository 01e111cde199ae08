"""Options of commands come out of the dataclasses: the same ones where they mean the same, and the explicit ones first."""

import inspect
import json
from typing import get_args

import pytest
import typer
from test_cli import DEMO, bad, error_of, run, small_model

import graphprune as gp
from graphprune.cli import COMMANDS, app
from graphprune.commands.offered import RECIPE
from graphprune.recipe import Recipe, recipe_options

ALL = {each.keyword for each in recipe_options()}
MEANT = {
    "prune": ALL,
    "sweep": ALL,
    "sensitivity": {"protect", "only", "criterion", "align", "loss", "seed"},
    "inspect": {"protect", "resize_io"},
    "explain": {"protect", "resize_io"},
    "apply": {"verify", "seed"},
    "verify": {"seed"},
}
"""The options of a recipe that mean something to a command."""


def parameters(name):
    """What a command takes, by name: how typer knows it."""
    command = next(each for each in app.registered_commands if each.name == name)
    return {
        each.name: (get_args(each.annotation)[1], each.default)
        for each in inspect.signature(command.callback).parameters.values()
    }


def test_every_command_is_registered_under_its_name():
    assert [each.name for each in app.registered_commands] == [each.__name__ for each in COMMANDS]


@pytest.mark.parametrize("command", MEANT)
def test_commands_have_the_options_that_mean_something_to_them(command):
    found = parameters(command)
    for each in recipe_options():
        names = [name.replace("-", "_") for name in each.shown.flags] or [each.keyword]
        assert (each.keyword in MEANT[command]) == (set(names) <= found.keys()), each.keyword
    assert (RECIPE in found) == (command in ("prune", "sweep", "sensitivity", "inspect", "explain"))


def test_an_option_says_the_same_everywhere():
    said = {}
    for command in (each.name for each in app.registered_commands):
        for name, (info, default) in parameters(command).items():
            if isinstance(info, typer.models.OptionInfo) and name in ALL and (command, name) != ("sweep", "target"):
                said.setdefault(name, set()).add((info.help, info.param_decls, info.metavar, repr(default)))
    said.pop("align")  # 'profile' measures at multiples of a number of its own, 'sensitivity' takes single units
    assert {name: len(each) for name, each in said.items()} == dict.fromkeys(said, 1)
    assert "protect" in said


def test_no_default_stands_in_the_way_of_a_recipe():
    for command in ("prune", "sweep", "sensitivity"):
        for name, (_, default) in parameters(command).items():
            if name in ALL - {
                "target",
                "align",
                "recover",
            }:  # the last is a flag, which says nothing where it is not given
                assert default is None, name


# -- what goes before what -----------------------------------------------------------------------------------------


def printed(*options):
    return run("prune", "none.onnx", "-o", "out.onnx", "--print-pipeline", *options).stdout.strip()


def test_options_go_before_a_file_and_that_before_a_name(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        'recipe = "magnitude"\ntargets = ["macs=0.7"]\nseed = 3\n[score]\ncriterion = "l1"\n[allocate]\nalign = 4\n'
    )
    text = printed("--recipe", path, "--align", "2", "--target", "params=0.5")
    assert "score{criterion=l1 seed=3}" in text
    assert "allocate{targets=params=0.5 align=2 criterion=l1}" in text
    assert "verify{seed=3}" in text
    assert "allocate{targets=macs=0.7 align=4 criterion=l1}" in printed("--recipe", path)
    assert "align=8" not in printed("--recipe", path, "--align", "8")  # the default, said again
    assert "align" not in printed("--recipe", path, "--align", "8")


def test_a_named_recipe_is_what_its_keywords_are(tmp_path):
    model, folder = small_model(tmp_path / "m.onnx"), tmp_path
    options = ("--target", "macs=0.6", "--calibration", "random", "--samples", "16", "--no-latency")
    run("prune", model, "-o", folder / "a.onnx", "--plan-out", folder / "a.json", "--recipe", "flap", *options)
    run(
        "prune", model, "-o", folder / "b.onnx", "--plan-out", folder / "b.json", *options,
        "--criterion", "wifv", "--compensation", "mean", "--allocation", "zscore",
    )  # fmt: skip
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    assert json.loads((folder / "a.json").read_text()) == json.loads((folder / "b.json").read_text())
    recipe = Recipe.from_dict(gp.PruningPlan.load(folder / "a.json").recipe)
    assert recipe == Recipe.named("flap").changed(target="macs=0.6")
    result = gp.prune(
        model, recipe="flap", target="macs=0.6", calibration=gp.Inputs("random", samples=16), verify=False
    )
    assert result.plan.groups == gp.PruningPlan.load(folder / "a.json").groups


def test_a_recipe_reads_back_out_of_a_plan_and_makes_it_again(tmp_path):
    model = small_model(tmp_path / "m.onnx")
    first = gp.prune(model, target="macs=0.6", criterion="l1", align=2, seed=5, only="neuron")
    assert Recipe.from_dict(first.plan.recipe) == Recipe.of(
        target="macs=0.6", criterion="l1", align=2, seed=5, only="neuron"
    )
    (tmp_path / "again.toml").write_text(Recipe.from_dict(first.plan.recipe).to_toml())
    again = gp.prune(model, recipe=tmp_path / "again.toml")
    assert again.plan == first.plan


# -- what would run ------------------------------------------------------------------------------------------------

DATA = ("--calibration", "random", "--samples", "16")
RUNS = {
    "default": ((), ()),
    "options": (
        ("--criterion", "l1", "--allocation", "uniform", "--align", "4", "--max-ratio", "0.7"),
        ("--seed", "2"),
    ),
    "selection": (("--only", "neuron", "--protect", "second.weight[1]"), ("--no-verify",)),
    "calibrated": ((), DATA),
    "refit": (("--compensation", "mean"), DATA),
}
"""What stands in a pipeline, and what beside it."""


@pytest.mark.parametrize("name", RUNS)
def test_what_is_printed_can_be_run_and_does_the_same(tmp_path, name):
    model, (inside, beside) = small_model(tmp_path / "m.onnx"), RUNS[name]
    where = ("-o", tmp_path / "out.onnx", "--plan-out", tmp_path / "plan.json", "--no-latency")
    options = ("--target", "macs=0.6", *inside, *beside)
    text = run("prune", model, *where, *options, "--print-pipeline").stdout.strip()
    assert not (tmp_path / "out.onnx").exists()
    assert "\n" not in text
    run("prune", model, *where, *options)
    plan, file = json.loads((tmp_path / "plan.json").read_text()), (tmp_path / "out.onnx").read_bytes()
    run("prune", model, *where, "--pipeline", text, *beside)
    again = json.loads((tmp_path / "plan.json").read_text())
    assert again.pop("recipe") != plan.pop("recipe")
    assert again == plan
    assert (tmp_path / "out.onnx").read_bytes() == file


def test_what_is_repeated_is_printed_inside():
    text = printed("--target", "latency=0.6")
    assert ',meet-latency{passes="allocate{targets=latency=0.6 criterion=l2},slice-groups,' in text
    recipe = Recipe.of(pipeline=text)
    assert [each.name for each in recipe.passes][-2:] == ["meet-latency", "verify"]
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_a_sweep_prints_a_pipeline_for_each_point(tmp_path):
    options = ("sweep", "none.onnx", "-o", tmp_path / "f", "--target", "macs=0.6", "--target", "macs=0.4,params=0.5")
    lines = run(*options, "--criterion", "l1", "--print-pipeline").stdout.splitlines()
    assert ["allocate{targets=macs=0.6" in lines[0], "allocate{targets=macs=0.4|params=0.5" in lines[1]] == [True, True]
    assert json.loads(run(*options, "--print-pipeline", "--json").stdout)["pipelines"][0].startswith("fold-constants,")
    assert not (tmp_path / "f").exists()


# -- what commands lacked ------------------------------------------------------------------------------------------


def test_inspect_and_explain_show_what_is_protected(tmp_path):
    model = small_model(tmp_path / "m.onnx")
    (tmp_path / "own.toml").write_text('[select]\nprotect = ["first.weight"]\n')
    for options in (("--protect", "first.weight"), ("--recipe", tmp_path / "own.toml")):
        assert json.loads(run("inspect", model, "--json", *options).stdout)["groups"] == []
        text = run("explain", model, "first.bias", *options).stdout
        assert "stays whole: protected by 'first.weight'" in text
    assert len(json.loads(run("inspect", model, "--json").stdout)["groups"]) == 1


def test_sweep_has_the_limits_of_prune(tmp_path):
    model = small_model(tmp_path / "m.onnx")
    options = ("--target", "macs=0.4", "--no-latency", "--plot", "none")
    run("sweep", model, "-o", tmp_path / "a", *options)
    message = error_of("sweep", model, "-o", tmp_path / "b", *options, "--min-units", "16")
    assert message.startswith("target 'macs=0.4' cannot be met: at least ")
    assert "min_units=16" in message
    pipeline = "fold-constants,analyze,score{criterion=l1},allocate{align=1},slice-groups"
    run("sweep", model, "-o", tmp_path / "c", *options, "--pipeline", pipeline, "--save-models")
    plan = gp.PruningPlan.load(tmp_path / "c" / "macs-0.4.plan.json")
    assert (plan.options["align"], plan.options["targets"]) == (1, ["macs=0.4"])


@pytest.mark.parametrize(
    ("align", "of_24", "of_7"),
    [((), [6, 12, 18], [2, 4, 5]), (("--align", "1"), [6, 12, 18], [2, 4, 5]), (("--align", "8"), [8, 16, 16], [3, 5, 5])],
)  # fmt: skip
def test_trials_keep_to_the_multiples_of_prune(tmp_path, align, of_24, of_7):
    """A width of 7 goes in steps of 2, as in an allocation."""
    for width, removed in ((24, of_24), (7, of_7)):
        model = small_model(tmp_path / f"{width}.onnx", width=width)
        found = json.loads(run("sensitivity", model, "--json", *align).stdout)
        assert [row["removed"] for row in found["rows"]] == removed


def test_a_pipeline_may_evaluate(tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text("def metric(run):\n    return {'one': 1.0}\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = small_model(tmp_path / "m.onnx")
    pipeline = "fold-constants,analyze,score,allocate{macs=0.5},slice-groups,verify,evaluate"
    line = ("prune", model, "-o", tmp_path / "o.onnx", "--no-latency", "--json", "--pipeline", pipeline)
    data = json.loads(run(*line, "--eval", "own_metric:metric").stdout)
    assert [(row["name"], row["after"]) for row in data["metrics"]] == [("one", 1.0)]
    assert error_of(*line) == "pass 'evaluate' needs a metric; give one (evaluate=..., --eval)"


def test_apply_takes_a_seed(tmp_path):
    model = small_model(tmp_path / "m.onnx")
    run(
        "prune",
        model,
        "-o",
        tmp_path / "a.onnx",
        "--target",
        "macs=0.5",
        "--plan-out",
        tmp_path / "p.json",
        "--no-latency",
    )
    options = ("--plan", tmp_path / "p.json", "-o", tmp_path / "b.onnx", "--no-latency")
    run("apply", model, *options, "--seed", "3")
    assert error_of("apply", model, *options, "--seed", "-3") == "seed is -3; expected 0 or more"


# -- passes --------------------------------------------------------------------------------------------------------


def test_passes_are_listed_with_what_they_need_and_take():
    text = " ".join(run("passes").stdout.split())
    listed = {each["name"]: each for each in json.loads(run("passes", "--json").stdout)["passes"]}
    assert list(listed)[:3] == ["select", "fold-constants", "analyze"]
    score = listed["score"]
    assert "an analysis" in score["needs"]
    assert score["gives"] == ["scores"]
    assert score["options"][0] == {
        "name": "criterion", "type": "str", "required": False, "default": "l2", "doc": "The name of the criterion."
    }  # fmt: skip
    for name, each in listed.items():
        assert f"{name} {each['doc']}" in text
        assert each["doc"].endswith("."), name
        assert all(option["doc"] for option in each["options"]), name


# -- errors --------------------------------------------------------------------------------------------------------


def test_a_recipe_is_a_file_that_is_read(tmp_path):
    model, path = small_model(tmp_path / "m.onnx"), tmp_path / "own.toml"
    path.write_text("targets = ['macs=0.6']\n")
    for line in (
        ("prune", model, "-o", tmp_path / "out.onnx", "--plan-out", path),
        ("inspect", model, "--dot", path),
    ):
        assert error_of(*line, "--recipe", path) == (
            f"'{path}' would be written twice or over a file that is read; give each output a path of its own"
        )
    data = json.loads(
        run("prune", model, "-o", tmp_path / "out.onnx", "--recipe", path, "--json", "--no-latency").stdout
    )
    assert data["files"]["recipe"]["path"] == str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--recipe", "flop"), "unknown recipe 'flop' (did you mean 'flap'?); expected one of default, "),
        (("--recipe", "none.toml"), "cannot read recipe 'none.toml': No such file or directory; "),
        (("--pipeline", "analyze,scor"), "unknown pass 'scor' (did you mean 'score'?) in pipeline "),
        (("--pipeline", "analyze"), "the pipeline made no plan; it needs 'analyze', 'score' and 'allocate'"),
        (("--recipe", "flap", "--pipeline", "analyze,score,allocate"), "'criterion' has no effect beside a pipeline; "),
        (
            ("--no-verify", "--accept-unproven"),
            "--accept-unproven is about the proof that --no-verify skips; leave one ",
        ),
        (("--dump-after", "scor"), "cannot dump after 'scor' (did you mean 'score'?); the passes are fold-constants, "),
        (("--blocks", "few"), "cannot read 'few' blocks; expected a number like 2 or a fraction like 0.25"),
    ],
)
def test_wrong_recipes_are_one_line(tmp_path, options, message):
    """The model is not there, which would be found next."""
    line = ("none.onnx", "-o", tmp_path / "out.onnx", "--target", "macs=0.5", *options)
    assert bad(tmp_path, *line).startswith(message)
    data = json.loads(run("prune", *line, "--json", status=2).stdout)
    assert data["error"]["message"].startswith(message)
    assert data["error"]["type"] == "OptionError"


DATA_AT_ONCE = [
    (("prune", "--calibration", "random", "--preprocess", "fit=crp"), "cannot read preprocessing option 'fit=crp' (did you mean 'fit=crop'?)"),
    (("prune", "--calibration", "none.npz"), "no data 'none.npz'; expected an .npz or .npy file, "),
    (("prune", "--eval", "none.npz"), "no data 'none.npz'; expected an .npz or .npy file, "),
    (("prune", "--calibration", "random", "--samples", "0"), "cannot use 0 samples; give a number of 1 or more"),
    (("prune", "--calibration", "random", "--batch-size", "0"), "a batch cannot have 0 samples; give a batch size of 1 or more"),
    (("prune", "--eval", "none.npz", "--metric", "acuracy"), "unknown metric 'acuracy' (did you mean 'accuracy'?); "),
    (("prune", "--eval", "none.npz", "--labels", "none.txt"), "cannot read labels 'none.txt': No such file or directory; "),
    (("prune", "--calibration", "random", "--statistics", "none/s.npz"), "cannot write 'none/s.npz': No such file or directory; "),
    (("profile", "--provider", "CPU"), "this onnxruntime has no provider 'CPU'"),
    (("profile", "--align", "0"), "align is 0; expected 1 or more"),
    (("profile", "--seconds", "-1"), "seconds is -1; expected a positive number"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), DATA_AT_ONCE)
def test_what_no_model_is_needed_for_is_refused_before_one_is_opened(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    target = ("--target", "macs=0.5") if line[0] == "prune" else ()
    assert error_of(line[0], "none.onnx", "-o", "out.onnx", *target, *line[1:]).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_is_known_before_a_model_is_opened():
    message = "graph is 'exakt' (did you mean 'exact'?); expected one of auto, exact, numeric"
    assert error_of("verify", "none.onnx", "out.onnx", "--plan", "none.json", "--graph", "exakt") == message


def test_the_demo_by_a_recipe(tmp_path):
    (tmp_path / "own.toml").write_text(Recipe.of(target="macs=0.6", allocation="uniform").to_toml())
    run(
        "prune",
        DEMO,
        "-o",
        tmp_path / "out.onnx",
        "--recipe",
        tmp_path / "own.toml",
        "--no-latency",
        "--plan-out",
        tmp_path / "p",
    )
    plan = gp.PruningPlan.load(tmp_path / "p")
    assert plan.options["allocation"] == "uniform"
    assert plan.recipe["allocate"]["allocation"] == "uniform"
