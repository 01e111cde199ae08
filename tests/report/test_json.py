"""What every JSON output says: schema, versions, files; and errors, on stdout too."""

import hashlib
import importlib.metadata
import json

import onnx
import pytest
from test_cli import DEMO, run, small_model
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli import app


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    model = small_model(folder / "model.onnx")
    options = ("--target", "macs=0.5", "--plan-out", folder / "plan.json", "--no-latency", "--json")
    return folder, model, json.loads(run("prune", model, "-o", folder / "out.onnx", *options).stdout)


def row(path):
    data = path.read_bytes()
    return {"path": str(path), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_prune_names_its_files_and_what_ran(made):
    folder, model, data = made
    assert data["schema"] == 1
    assert data["files"] == {
        "model": row(model), "output": row(folder / "out.onnx"), "plan": row(folder / "plan.json")
    }  # fmt: skip
    assert data["versions"]["graphprune"] == gp.__version__
    for package in ("onnx", "onnxruntime"):
        assert data["versions"][package] == importlib.metadata.version(package)


def test_every_command_does(made, tmp_path):
    folder, model, _ = made
    plan = folder / "plan.json"
    for command, files in {
        ("apply", model, "--plan", plan, "-o", tmp_path / "a.onnx", "--no-latency"): {"model", "plan", "output"},
        ("verify", model, folder / "out.onnx", "--plan", plan): {"model", "plan", "output"},
        ("inspect", model): {"model"},
        ("explain", model, "first.weight"): {"model"},
        ("sensitivity", model): {"model"},
        ("sweep", model, "-o", tmp_path / "front", "--target", "macs=0.5", "--no-latency", "--plot", "none"): {"model", "output"},
        ("profile", model, "-o", tmp_path / "p.json", "--seconds", "0.1"): {"model", "output"},
    }.items():  # fmt: skip
        data = json.loads(run(*command, "--json").stdout)
        assert (command[0], data["schema"], set(data["files"])) == (command[0], 1, files)
        assert all(len(each["sha256"]) == 64 for each in data["files"].values())
        assert "onnx" in data["versions"]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("inspect", "none.onnx"), "ModelError", "no file 'none.onnx'"),
        (("prune", "none.onnx", "-o", "out.onnx", "--target", "speed=1"), "TargetError", "unknown target 'speed'"),
        (("prune", "none.onnx", "-o", "out.onnx", "--align", "x"), "UsageError", "Invalid value for '--align'"),
        (("inspect",), "UsageError", "Missing argument 'MODEL'"),
        (("inspect", "none.onnx", "--bound", "fuel=3"), "OptionError", "there is no bound 'fuel'"),
    ],
)
def test_errors(arguments, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 2
    data = json.loads(result.stdout)
    assert (data["schema"], data["error"]["type"]) == (1, kind)
    assert message in data["error"]["message"]
    assert message in " ".join(result.stderr.replace("│", "").split())
    assert CliRunner().invoke(app, list(arguments)).stdout == ""


def test_a_bug_is_told_too(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(gp, "analyze", broken)
    data = json.loads(run("inspect", DEMO, "--json", status=1).stdout)
    assert data["error"] == {"type": "ZeroDivisionError", "message": "by zero"}


def test_a_file_that_fails_is_one_document(made, tmp_path):
    folder, model, _ = made
    proto = onnx.load(folder / "out.onnx")
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0]) * 2
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, proto.graph.initializer[0].name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    result = run("verify", model, tmp_path / "wrong.onnx", "--plan", folder / "plan.json", "--json", status=2)
    data = json.loads(result.stdout)
    assert (data["proven"], data["error"]["type"]) == (False, "ProofError")
    assert data["error"]["message"] in result.stderr.replace("\n", "")
