"""The command line: the main job on the shipped model, and one clear error for each kind of bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import save_net
from typer.testing import CliRunner

from graphprune.cli import app
from graphprune.importance import CRITERIA

DEMO = Path(__file__).parents[2] / "graphprune" / "demo" / "demo_net.onnx"


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + result.stderr
    assert "Traceback" not in result.output + result.stderr
    return result


def error_of(*arguments):
    return run(*arguments, status=2).stderr.removeprefix("error: ").strip()


def small_model(path, *, dtype=onnx.TensorProto.FLOAT, width=24):
    """Two linear layers, 8 -> width -> 4."""
    rng = np.random.default_rng(0)
    weights = {
        "first.weight": rng.normal(size=(8, width)),
        "first.bias": rng.normal(size=width),
        "second.weight": rng.normal(size=(width, 4)),
    }
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "first.weight"], ["a"], "matmul_1"),
        onnx.helper.make_node("Add", ["a", "first.bias"], ["b"], "add_1"),
        onnx.helper.make_node("Relu", ["b"], ["c"], "relu_1"),
        onnx.helper.make_node("MatMul", ["c", "second.weight"], ["y"], "matmul_2"),
    ]
    return save_net(path, nodes, weights, (8, 4), dtype)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    result = run(
        "prune", DEMO, "-o", folder / "out.onnx", "--target", "macs=0.5", "--plan-out", folder / "plan.json", "--json"
    )
    return folder, json.loads(result.stdout)


def test_prune_meets_the_budget_and_proves_the_result(pruned):
    folder, report = pruned
    costs = {row["metric"]: row for row in report["costs"]}
    assert 0.4 < costs["macs"]["fraction"] <= 0.5
    assert costs["macs"]["requested"] == pytest.approx(0.5 * costs["macs"]["before"])
    assert {check["name"]: check["passed"] for check in report["proof"]} == {
        "masked": True,
        "permutation": True,
        "onnxruntime": True,
    }
    assert next(row["threads"] for row in report["latency"]) == 1
    assert (folder / "out.onnx").stat().st_size < DEMO.stat().st_size
    session = ort.InferenceSession(folder / "out.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.zeros((3, 1, 28, 28), np.float32)})[0].shape == (3, 10)


def test_the_plan_can_be_replayed_without_graphprune(pruned):
    folder, _ = pruned
    plan = json.loads((folder / "plan.json").read_text())
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer}
        for p in (DEMO, folder / "out.onnx")
    )
    assert plan["parameters"]
    for name, axes in plan["parameters"].items():
        array = before[name]
        for axis, kept in axes.items():
            array = np.take(array, kept, int(axis))
        np.testing.assert_array_equal(array, after[name])


def test_apply_replays_and_verify_proves(pruned, tmp_path):
    folder, _ = pruned
    run("apply", DEMO, "--plan", folder / "plan.json", "-o", tmp_path / "again.onnx", "--no-latency")
    result = run("verify", DEMO, tmp_path / "again.onnx", "--plan", folder / "plan.json")
    assert result.stdout.count("passed") == 7


def test_verify_finds_a_wrong_weight(pruned, tmp_path):
    folder, _ = pruned
    model = onnx.load(folder / "out.onnx")
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[0] *= 1.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    message = error_of("verify", DEMO, tmp_path / "wrong.onnx", "--plan", folder / "plan.json")
    assert message == f"'{tmp_path / 'wrong.onnx'}' is not what the plan makes of '{DEMO}': tensors failed"


def test_inspect_lists_groups_and_reasons():
    text = run("inspect", DEMO).stdout
    assert "channel" in text
    assert "what stays whole" in text
    data = json.loads(run("inspect", DEMO, "--json").stdout)
    assert data["prunable"] > 0.9
    assert {"name", "kind", "units", "exact", "macs_share", "params_share", "sites"} <= data["groups"][0].keys()


def test_inspect_writes_the_dependency_graph(tmp_path):
    run("inspect", DEMO, "--dot", tmp_path / "graph.dot", "--graphml", tmp_path / "graph.graphml")
    assert (tmp_path / "graph.dot").read_text().startswith("graph dependencies {")
    assert "graphml" in (tmp_path / "graph.graphml").read_text()


def test_explain_says_why(tmp_path):
    path = small_model(tmp_path / "small.onnx")
    coupled = json.loads(run("explain", path, "first.weight", "--axis", "1", "--json").stdout)["axes"][0]
    assert [(site["axis"], site["through"]) for site in coupled["groups"][0]["sites"]] == [
        ("first.bias[0]", ["MatMul", "Add"]),
        ("second.weight[0]", ["MatMul", "Add", "Relu", "MatMul"]),
    ]
    fixed = json.loads(run("explain", path, "second.weight", "--axis", "1", "--json").stdout)["axes"][0]
    assert fixed["fixed"] == ["axis of the model's output 'y'"]
    assert "stays whole: axis of the model's output 'y'" in run("explain", path, "second.weight").stdout


def test_options_reach_the_compiler(tmp_path):
    path = small_model(tmp_path / "small.onnx")
    result = run(
        "prune", path, "-o", tmp_path / "out.onnx", "--target", "params=0.6", "--align", "4", "--criterion", "l1",
        "--allocation", "uniform", "--only", "neuron", "--shape", "x=3x8", "--no-latency", "--time-passes",
        "--dump-after", "slice-groups", "--verify-each",
    )  # fmt: skip
    assert "slice-groups" in result.stdout
    assert "# after slice-groups" in result.stderr
    shapes = {t.name: list(t.dims) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert shapes == {"first.weight": [8, 12], "first.bias": [12], "second.weight": [12, 4]}


def test_a_pipeline_as_text(tmp_path):
    path = small_model(tmp_path / "small.onnx")
    run(
        "prune", path, "-o", tmp_path / "out.onnx", "--target", "macs=1", "--no-latency", "--pipeline",
        "fold-constants,analyze,score{criterion=random},allocate{macs=0.5},slice-groups,verify",
    )  # fmt: skip
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[0].dims[1] == 8


# -- bad input: one message, status 2, no output file ------------------------------------------------------------


def bad(tmp_path, *arguments):
    """The message of a failing prune, after checking that nothing was written."""
    before = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
    message = error_of("prune", *arguments)
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before
    return message


def test_not_a_model(tmp_path):
    path = tmp_path / "text.onnx"
    path.write_text("this is no model")
    message = bad(tmp_path, path, "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert f"'{path}'" in message
    assert "ONNX" in message


def test_missing_file(tmp_path):
    message = bad(tmp_path, tmp_path / "none.onnx", "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert f"'{tmp_path / 'none.onnx'}'" in message


def test_truncated_protobuf(tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(DEMO.read_bytes()[:-5000])
    message = bad(tmp_path, path, "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert f"'{path}'" in message


def external(tmp_path, location):
    """A model whose weights are said to be in another file."""
    model = onnx.load(small_model(tmp_path / "small.onnx", width=600))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 1024:
            data = tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", "0"), ("length", str(len(data)))):
                tensor.external_data.add(key=key, value=value)
    (tmp_path / "external.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "external.onnx"


def test_missing_external_data(tmp_path):
    message = bad(tmp_path, external(tmp_path, "weights.bin"), "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert "weights.bin" in message


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd"])
def test_external_data_outside_the_folder(tmp_path, location):
    (tmp_path / "weights.bin").write_bytes(bytes(100_000))
    folder = tmp_path / "folder"
    folder.mkdir()
    message = bad(tmp_path, external(folder, location), "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert location in message
    assert "folder" in message


def test_unknown_target(tmp_path):
    message = bad(tmp_path, DEMO, "-o", tmp_path / "out.onnx", "--target", "speed=0.5")
    assert (
        message
        == "unknown target 'speed'; expected one of macs, params, bytes, latency, active_params, kv_cache, as in 'macs=0.5'"
    )


def test_unmeetable_budget(tmp_path):
    message = bad(tmp_path, DEMO, "-o", tmp_path / "out.onnx", "--target", "macs=0.0001")
    assert message.startswith("target 'macs=0.0001' cannot be met: at least ")
    assert "What stands in the way: axis of the model's" in message
    assert message.endswith(
        "the limits max_ratio=0.9 and min_units=1 keep part of every group. Raise the target or relax these"
    )


def test_wrong_plan(pruned, tmp_path):
    folder, _ = pruned
    path = small_model(tmp_path / "small.onnx")
    message = error_of("apply", path, "--plan", folder / "plan.json", "-o", tmp_path / "out.onnx")
    assert message.startswith("the plan belongs to another model: its fingerprint is ")
    assert not (tmp_path / "out.onnx").exists()


def test_unwritable_output(tmp_path):
    message = bad(tmp_path, DEMO, "-o", tmp_path / "none" / "out.onnx", "--target", "macs=0.5")
    assert message == (
        f"cannot write '{tmp_path / 'none' / 'out.onnx'}': No such file or directory; "
        "give a path in a folder that exists and is writable"
    )


def test_output_is_a_folder(tmp_path):
    message = bad(tmp_path, DEMO, "-o", tmp_path, "--target", "macs=0.5")
    assert message == f"cannot write '{tmp_path}': it is a folder; give the path of a file"


def test_outputs_must_be_distinct(tmp_path):
    path = small_model(tmp_path / "small.onnx")
    for plan in (path, tmp_path / "out.onnx"):
        message = bad(tmp_path, path, "-o", tmp_path / "out.onnx", "--target", "macs=0.5", "--plan-out", plan)
        assert (
            message
            == f"'{plan}' would be written twice or over a file that is read; give each output a path of its own"
        )


def test_what_is_read_is_not_written_over(pruned, tmp_path):
    folder, _ = pruned
    plan, profile = tmp_path / "plan.json", tmp_path / "profile.json"
    path = small_model(tmp_path / "small.onnx")
    for file in (plan, profile):
        file.write_bytes((folder / "plan.json").read_bytes())
    before = {file: file.read_bytes() for file in (path, plan, profile)}
    for victim, *arguments in (
        (path, "inspect", path, "--dot", path),
        (path, "inspect", path, "--graphml", path),
        (path, "profile", path, "-o", path),
        (plan, "apply", DEMO, "--plan", plan, "-o", plan),
        (profile, "prune", path, "--profile", profile, "-o", tmp_path / "a.onnx", "--plan-out", profile),
    ):
        assert error_of(*arguments) == (
            f"'{victim}' would be written twice or over a file that is read; give each output a path of its own"
        )
    assert {file: file.read_bytes() for file in (path, plan, profile)} == before
    for arguments in (
        ("prune", path, "-o", path, "--target", "macs=0.5"),
        ("apply", path, "--plan", plan, "-o", path),
        ("prune", path, "-o", path.parent / ".." / path.parent.name / path.name, "--target", "macs=0.5"),
    ):
        assert error_of(*arguments).endswith(" is the model that is read; give another path with -o, or --force")
    assert path.read_bytes() == before[path]
    run("prune", path, "-o", path, "--target", "macs=0.5", "--no-latency", "--force")
    assert path.read_bytes() != before[path]


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("sweep", ["--target", "macs=0.001"], "target 'macs=0.001' cannot be met"),
        ("sweep", ["--target", "size=2"], "unknown target 'size'"),
        ("sensitivity", ["--only", "head"], "'head' of only selects no group"),
    ],
)
def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path, command, options, message):
    path = small_model(tmp_path / "small.onnx")
    for folder in (tmp_path / "new" / "folder", tmp_path / "old"):
        (tmp_path / "old").mkdir(exist_ok=True)
        assert message in error_of(command, path, "-o", folder, *options)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "old").is_dir()


def test_negative_seeds_and_threads(pruned, tmp_path):
    folder, _ = pruned
    path = small_model(tmp_path / "small.onnx")
    out = folder / "out.onnx"
    for arguments in (
        ("prune", path, "-o", tmp_path / "a.onnx", "--target", "macs=0.5"),
        ("sweep", path, "-o", tmp_path / "a", "--target", "macs=0.5"),
        ("sensitivity", path),
        ("verify", DEMO, out, "--plan", folder / "plan.json"),
    ):
        assert error_of(*arguments, "--seed", "-1") == "seed is -1; expected 0 or more"
    message = error_of("profile", path, "-o", tmp_path / "a.json", "--threads", "-1")
    assert message == "threads is -1; expected 1 or more, or 0 for all cores"


@pytest.mark.parametrize(
    "option", ["--criterion=l1", "--align=16", "--protect=last", "--max-ratio=0.5", "--only=neuron"]
)
def test_options_of_passes_are_refused_beside_a_pipeline(tmp_path, option):
    path = small_model(tmp_path / "small.onnx")
    pipeline = "fold-constants,analyze,score,allocate{macs=0.5},slice-groups"
    name = option[2:].partition("=")[0].replace("-", "_")
    assert bad(tmp_path, path, "-o", tmp_path / "out.onnx", "--pipeline", pipeline, option) == (
        f"'{name}' has no effect beside a pipeline; give it to the pass that takes it, as in "
        "'allocate{macs=0.5 align=16}'"
    )


def test_a_pipeline_carries_out_its_plan_and_meets_the_target(tmp_path):
    path = small_model(tmp_path / "small.onnx")
    start = "fold-constants,analyze,score,allocate"
    missing = "the pipeline plans a cut and does not make it; put 'slice-groups' after 'allocate' in it"
    uncut = "pass 'verify' needs a model that is cut as planned; put 'slice-groups' before it in the pipeline"
    unplanned = "pass 'slice-groups' needs a plan; put 'allocate' before it in the pipeline"
    twice = "the model has been cut since the analysis; keep one 'slice-groups' after each 'analyze' in the pipeline"
    for pipeline, expected in (
        (f"{start}{{macs=0.5}}", missing),
        (f"{start}{{macs=0.5}},verify", uncut),
        ("analyze,score,slice-groups,allocate{macs=0.5}", unplanned),
        (f"{start}{{macs=0.5}},slice-groups,slice-groups", twice),
    ):
        options = ("--no-latency", "--no-verify", "--pipeline", pipeline)
        assert bad(tmp_path, path, "-o", tmp_path / "out.onnx", *options) == expected
    pipeline = f"{start}{{macs=0.9}},slice-groups"
    assert bad(tmp_path, path, "-o", tmp_path / "out.onnx", "--target", "macs=50%", "--pipeline", pipeline) == (
        "the pipeline keeps 66.7% of the macs, which is more than target 'macs=0.5' allows; give the pipeline's "
        "'allocate' this target, or leave one of them out"
    )
    run("prune", path, "-o", tmp_path / "out.onnx", "--target", "macs=0.5", "--pipeline", f"{start},slice-groups")
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[0].dims[1] == 8


def test_a_profile_without_a_latency_target(tmp_path):
    path, profile = small_model(tmp_path / "small.onnx"), tmp_path / "profile.json"
    run("profile", path, "-o", profile, "--seconds", "0.1")
    result = run(
        "prune",
        path,
        "-o",
        tmp_path / "out.onnx",
        "--target",
        "macs=0.5",
        "--profile",
        profile,
        "--json",
        "--no-latency",
    )
    assert json.loads(result.stdout)["notes"] == [
        "33.3% of the multiply-accumulates remain, where target 'macs=0.5' allows 50.0%: the next step, 16 units of "
        "'first.weight[1]' (kind neuron, 24 units) in place of 8, would leave 66.7%; to come closer, allow align=1, for "
        "smaller steps",
        "no target is about latency, and the profile was not used",
    ]


def test_explain_counts_an_operator_once(tmp_path):
    path = small_model(tmp_path / "small.onnx")
    sites = json.loads(run("explain", path, "first.bias", "--json").stdout)["axes"][0]["groups"][0]["sites"]
    assert {site["axis"]: site["through"] for site in sites} == {
        "first.weight[1]": ["Add", "MatMul"],
        "second.weight[0]": ["Add", "Relu", "MatMul"],
    }


def test_an_operator_that_onnxruntime_lacks(tmp_path):
    model = onnx.load(small_model(tmp_path / "small.onnx"))
    model.graph.node.append(onnx.helper.make_node("Plug", ["y"], ["z"], "plug", domain="acme"))
    model.graph.output[0].name = "z"
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    onnx.save(model, tmp_path / "plug.onnx")
    options = (tmp_path / "plug.onnx", "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    message = bad(tmp_path, *options)
    assert message.startswith("onnxruntime cannot load the model: ")
    assert message.endswith(
        "; without this operator the result can only be written unproven and unmeasured (--no-verify --no-latency)"
    )
    run("prune", *options, "--no-verify", "--no-latency")
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[0].dims[1] == 8


def test_long_names_are_not_broken(tmp_path):
    model = onnx.load(small_model(tmp_path / "small.onnx"))
    name = "model.backbone.stages.0.blocks.11.depthwise_separable_convolution.pointwise.weight"
    model.graph.initializer[0].name = model.graph.node[0].input[1] = name
    onnx.save(model, tmp_path / "long.onnx")
    lines = run("explain", tmp_path / "long.onnx", "first.bias").stdout.splitlines()
    assert any(line.strip().startswith(f"{name}[1]") for line in lines)
    assert "1 group (1 neuron)" in run("inspect", tmp_path / "long.onnx").stdout


def test_weights_that_are_no_numbers(tmp_path):
    model = onnx.load(small_model(tmp_path / "small.onnx"))
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "first.weight"))
    onnx.save(model, tmp_path / "small.onnx")
    message = bad(tmp_path, tmp_path / "small.onnx", "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert message == (
        "criterion 'l2' gives scores that are no numbers for group 'first.weight[1]'; check 'first.weight' and the other "
        "weights of the group for NaN and infinity"
    )


def test_a_factory_that_raises(tmp_path, monkeypatch):
    (tmp_path / "broken_factory.py").write_text("def build():\n    raise ValueError('no weights')\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = bad(tmp_path, "broken_factory:build", "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert message == "'broken_factory:build' raises ValueError: no weights; mend the factory"


def test_unsupported_dtype(tmp_path):
    model = onnx.load(small_model(tmp_path / "small.onnx"))
    model.graph.initializer[0].data_type = 999
    (tmp_path / "small.onnx").write_bytes(model.SerializeToString())
    message = bad(tmp_path, tmp_path / "small.onnx", "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert "first.weight" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criterion", "magic"], f"unknown criterion 'magic'; expected one of {', '.join(sorted(CRITERIA))}"),
        (
            ["--allocation", "fair"],
            "unknown allocation 'fair'; expected one of isomorphic, global, uniform, zscore, log-ramp, kwon, dp, measured, spdy, evolution",
        ),
        (["--align", "0"], "align is 0; expected 1 or more"),
        (["--shape", "x=ax8"], "cannot read --shape 'x=ax8'; expected one like 'image=1x3x224x224'"),
        (["--shape", "x=0x8"], "the shape 0x8 of input 'x' holds nothing; expected sizes of 1 or more"),
        (["--shape", "x=-1x8"], "the shape -1x8 of input 'x' holds nothing; expected sizes of 1 or more"),
        (["--calibration", "random", "--samples", "0"], "cannot use 0 samples; give a number of 1 or more"),
        (["--block-criterion", "zz"], "unknown block criterion 'zz'; expected one of ablation, bi, l2, random"),
        (["--remove-block", "zz"], "'zz' names no block: the model has none that can be removed"),
        (
            ["--profile", "none.json"],
            "cannot read profile 'none.json': No such file or directory; make one with graphprune profile",
        ),
        (
            ["--metric", "mse"],
            "there are no labelled data for the metric 'mse'; give some (evaluate=..., --eval PATH)",
        ),
        (
            ["--preprocess", "scale=1/255"],
            "--preprocess says how data are read, and there are none; give some with --calibration",
        ),
        (["--only", "head"], "'head' of only selects no group; the kinds in this model are: neuron"),
        (["--pipeline", "analyze"], "the pipeline made no plan; it needs 'analyze', 'score' and 'allocate'"),
        (
            ["--dump-after", "slice"],
            "cannot dump after 'slice' (did you mean 'score'?); the passes are fold-constants, analyze, score, allocate, slice-groups, "
            "remove-blocks, remove-dead-nodes, verify",
        ),
    ],
)
def test_bad_options(tmp_path, options, message):
    path = small_model(tmp_path / "small.onnx")
    assert bad(tmp_path, path, "-o", tmp_path / "out.onnx", "--target", "macs=0.5", *options) == message


def test_a_pt2_program_needs_trust(tmp_path):
    message = bad(tmp_path, tmp_path / "program.pt2", "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert message == (
        f"'{tmp_path / 'program.pt2'}' is an exported program, and loading one can run any code in it; "
        "pass --trust if you trust its author"
    )


def test_debug_shows_the_traceback(tmp_path):
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "none.onnx"), "--debug"])
    assert result.exception is not None
    assert type(result.exception).__name__ == "ModelError"


def test_the_core_runs_without_torch(tmp_path):
    """The whole ONNX job in a process in which torch, transformers and onnxscript cannot be imported."""
    script = """
import sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnxscript", "safetensors"):
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Guard())
from graphprune.cli import app
app(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "demo", "--out", str(tmp_path), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["n_images"] == 1500
    assert outcome["accuracy_before"] > 0.9
    assert outcome["accuracy_after"] > outcome["accuracy_before"] - 0.05
    assert all(check["passed"] for check in outcome["proof"])
    assert (tmp_path / "demo_net_pruned.onnx").is_file()
    assert (tmp_path / "plan.json").is_file()
