"""Recovery of what is pruned already: results, files, folders and modules, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recovery.test_recovery import HOW, inputs, lost, net

import graphprune as gp

TRAIN: dict[str, Any] = {"recover_steps": 60, "recover_rate": 3e-3}
EXAMPLE = torch.from_numpy(inputs()[:4])


def pruned(model: Any = None, **more: Any) -> gp.Result:
    model = net() if model is None else model
    example = None if isinstance(model, Path) else EXAMPLE
    return gp.prune(model, example, calibration=inputs(), **{**HOW, **more})


def test_a_result_gets_better_and_the_given_one_stays() -> None:
    given = pruned()
    before = {name: each.clone() for name, each in given.module.state_dict().items()}
    result = gp.recover(given, inputs(400, 3), **TRAIN)
    assert result.report.recovery is not None
    assert result.report.recovery.taken
    assert lost(net(), result.module) < 0.85 * lost(net(), given.module)
    assert all(torch.equal(each, before[name]) for name, each in given.module.state_dict().items())
    assert result.plan.options["recovered"]
    assert "recovered" not in given.plan.options


def test_a_result_goes_on_from_what_its_module_has_become(tmp_path: Path) -> None:
    given = pruned()
    with torch.no_grad():
        given.module[4].bias[0].add_(3.0)
    result = gp.recover(given, inputs(), **TRAIN)
    assert result.report.recovery is not None
    assert result.report.recovery.before > 0.2
    assert lost(net(), result.module) < lost(net(), given.module)
    result.save_onnx(tmp_path / "small.onnx")
    assert all(check.passed for check in gp.verify(net(), tmp_path / "small.onnx", result.plan, EXAMPLE))


def saved(folder: Path, kind: str) -> dict[str, Any]:
    """A pruned model as it was written, and the arguments that say what it is of."""
    if kind == "file":
        gp.export_onnx(net(), EXAMPLE, folder / "dense.onnx")
        result = pruned(folder / "dense.onnx")
        result.save_onnx(folder / "small.onnx")
        result.plan.save(folder / "plan.json")
        return {"pruned": folder / "small.onnx", "original": folder / "dense.onnx"}
    result = pruned()
    if kind == "module":
        return {"pruned": result.module, "original": net(), "plan": result.plan, "example_inputs": EXAMPLE}
    result.save_state(folder / "small")
    return {"pruned": str(folder / "small"), "original": net(), "example_inputs": EXAMPLE}


@pytest.mark.parametrize("kind", ["file", "state", "module"])
def test_what_was_written_is_recovered_as_the_result_is(kind: str, tmp_path: Path) -> None:
    given = saved(tmp_path, kind)
    result = gp.recover(given.pop("pruned"), inputs(400, 3), **given, **TRAIN)
    whole = pruned(tmp_path / "dense.onnx") if kind == "file" else pruned()
    want = gp.recover(whole, inputs(400, 3), **TRAIN)
    assert result.report.recovery is not None
    assert want.report.recovery is not None
    assert result.report.recovery.taken
    assert result.report.recovery.after == pytest.approx(want.report.recovery.after, rel=1e-3)
    result.save_onnx(tmp_path / "done.onnx")
    example = None if kind == "file" else EXAMPLE
    checks = gp.verify(given["original"], tmp_path / "done.onnx", result.plan, example)
    assert all(check.passed for check in checks)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no original": ({"pruned": "small.onnx", "data": inputs()}, "needs the model that was pruned"),
    "no plan": (
        {"pruned": "small.onnx", "data": inputs(), "original": "dense.onnx"},
        "no plan lies beside 'small.onnx'",
    ),
    "a module's plan": ({"pruned": net(), "data": inputs(), "original": net()}, "is said by its plan"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_missing_is_said(name: str) -> None:
    keywords, message = WRONG[name]
    with pytest.raises(gp.OptionError, match=message):
        gp.recover(**keywords)


def test_a_plan_of_other_widths_is_refused(tmp_path: Path) -> None:
    given = saved(tmp_path, "file")
    other = pruned(tmp_path / "dense.onnx", target={"macs": 0.7})
    with pytest.raises(gp.PlanError, match="is not what the plan makes"):
        gp.recover(given.pop("pruned"), inputs(), **given, plan=other.plan, **TRAIN)


def test_the_command_does_what_the_function_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from graphprune.cli import app

    saved(tmp_path, "file")
    np.save(tmp_path / "data.npy", inputs(400, 3))
    words = ["recover", str(tmp_path / "small.onnx"), str(tmp_path / "dense.onnx"), "-o", str(tmp_path / "done.onnx")]
    words += ["--calibration", str(tmp_path / "data.npy"), "--plan-out", str(tmp_path / "new.json"), "--json"]
    words += ["--recover-steps", "60", "--recover-rate", "0.003", "--no-latency"]
    app(words, standalone_mode=False)
    row = json.loads(capsys.readouterr().out)["recovery"]
    assert row["taken"]
    assert row["after"] < row["before"]
    plan = gp.PruningPlan.load(tmp_path / "new.json")
    assert all(each.passed for each in gp.verify(tmp_path / "dense.onnx", tmp_path / "done.onnx", plan))
