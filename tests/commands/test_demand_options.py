"""Units by name on the command line, of an ONNX file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import error_of, run, small_model

import graphprune as gp
from graphprune.recipe import Recipe

GROUP = "first.weight[1]"


def planned(folder: Path, *options: Any) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """What stays of each group, and the report."""
    model, plan = small_model(folder / "m.onnx"), folder / "plan.json"
    result = run(
        "prune", model, "-o", folder / "out.onnx", "--plan-out", plan, "--no-latency", "--json", *options
    )  # fmt: skip
    return {group.name: list(group.kept) for group in gp.PruningPlan.load(plan).groups}, json.loads(result.stdout)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (("--remove", "first=0,5-7"), [i for i in range(24) if i not in (0, 5, 6, 7)]),
        (("--keep", "first=0,5-7"), [0, 5, 6, 7]),
        (("--keep", "neuron=0,5-7"), [0, 5, 6, 7]),
        (("--remove", "first=0", "--remove", "first.weight[1]=2"), [1, *range(3, 24)]),
    ],
)
def test_units_stay_and_go_by_index(tmp_path: Path, options: tuple[str, ...], kept: list[int]) -> None:
    plan, report = planned(tmp_path, *options)
    assert plan == {GROUP: kept}
    (row,) = report["groups"]
    asked = ", ".join(f"{way.removeprefix('--')} {text}" for way, text in zip(options[::2], options[1::2], strict=True))
    assert (row["kept"], row["asked"]) == (len(kept), asked)
    assert all(check["passed"] for check in report["proof"])


def test_a_number_and_a_file(tmp_path: Path) -> None:
    assert len(planned(tmp_path, "--keep", "first=count:9")[0][GROUP]) == 9
    (tmp_path / "ranking.json").write_text(json.dumps({"first": [9, 4, 17, 3]}))
    assert planned(tmp_path, "--keep", f"@{tmp_path / 'ranking.json'}:3")[0] == {GROUP: [4, 9, 17]}
    (tmp_path / "own.toml").write_text("[select.keep]\nfirst = [9, 4]\n")
    assert planned(tmp_path, "--recipe", tmp_path / "own.toml")[0] == {GROUP: [4, 9]}
    recipe = Recipe.from_dict(gp.PruningPlan.load(tmp_path / "plan.json").recipe)
    assert recipe.select.keep == ("first=4,9",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep", "first=24"), "'keep first=24' asks for unit 24, and group 'first.weight[1]' (neuron, 24 units) counts "
                                 "from 0 to 23: neurons of linear layers"),
        (("--remove", "second=0"), "'second' of remove cannot be cut: axis of the model's output 'y' keeps "
                                   "second.weight[1] whole"),
        (("--remove", "frist=0"), "'frist' (did you mean 'first'?) of remove names no module, group or kind of unit of "
                                  "this model; groups are called 'first.weight[1]', the kinds are: neuron ('graphprune "
                                  "inspect' lists all)"),
        (("--keep", "first=0", "--target", "macs=0.5", "--pipeline", "analyze,allocate{macs=0.5},slice-groups"),
         "'keep' has no effect beside a pipeline; give it to the pass that takes it, as in 'allocate{macs=0.5 align=16}'"),
    ],
)  # fmt: skip
def test_what_cannot_be_had(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    model = small_model(tmp_path / "m.onnx")
    said = error_of("prune", model, "-o", tmp_path / "out.onnx", *options)
    assert " ".join(said.split()) == message
    assert not (tmp_path / "out.onnx").exists()


def test_a_demand_is_printed_in_the_pipeline(tmp_path: Path) -> None:
    text = run(
        "prune", "none.onnx", "-o", tmp_path / "o.onnx", "--keep", "first=0,2", "--print-pipeline"
    ).stdout.strip()  # fmt: skip
    assert "select{keep=first=0,2}" in text or 'select{keep="first=0,2"}' in text
    model = small_model(tmp_path / "m.onnx")
    run(
        "prune", model, "-o", tmp_path / "o.onnx", "--plan-out", tmp_path / "p.json", "--no-latency", "--pipeline", text
    )  # fmt: skip
    assert [list(group.kept) for group in gp.PruningPlan.load(tmp_path / "p.json").groups] == [[0, 2]]
