"""``verify``: any edit of a pruned file is refused, honest files are accepted, and what was not compared is said."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from edited_files import HARMFUL, HARMLESS, MODELS, Inapplicable, clipped, model, put, scaled_a_little
from torch import nn
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli import app
from graphprune.errors import ModelError, OptionError
from graphprune.hosts.host import Host
from graphprune.hosts.onnx.refits import Refits
from graphprune.hosts.onnx.verify import Comparison
from graphprune.pipeline.state import Check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.more, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 6)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.more(y)).mean((2, 3)))


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(48, 32), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(torch.relu(self.first(x.flatten(1))))


NAMES = (*MODELS, "torch")


@dataclass(frozen=True)
class Pruned:
    """A pruned file, and the model that its plan makes."""

    original: object
    example: object
    path: Path
    proto: onnx.ModelProto
    host: Host
    plan: gp.PruningPlan

    def checks(self, path: Path, graph: str = "auto") -> tuple[Check, ...]:
        return Comparison(path, self.path, self.host, Refits(), graph=graph).checks()

    def checks_of(self, proto: onnx.ModelProto, folder: Path, **more: str) -> tuple[Check, ...]:
        onnx.save(proto, folder / "edited.onnx")
        return self.checks(folder / "edited.onnx", **more)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The pruned files by name, each made once."""
    made = {}

    def get(name: str) -> Pruned:
        if name in made:
            return made[name]
        folder = tmp_path_factory.mktemp(name)
        original, example = Net().eval(), (torch.randn(2, 3, 8, 8),)
        more = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
        if name != "torch":
            original, example, more = folder / "original.onnx", None, {}
            onnx.save(model(name), original)
        result = gp.prune(original, example, target="params=0.7", align=1, **more)
        assert result.plan.parameters
        result.save_onnx(folder / "small.onnx")
        proto = onnx.load(folder / "small.onnx")
        made[name] = Pruned(original, example, folder / "small.onnx", proto, result.host, result.plan)
        return made[name]

    return get


def edited(pruned, edit) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The edited files of all models in which the edit finds something to change, one at least."""
    n = 0
    for name in NAMES:
        proto = onnx.ModelProto()
        proto.CopyFrom(pruned(name).proto)
        try:
            edit(proto)
        except Inapplicable:
            continue
        if proto != pruned(name).proto:
            n += 1
            yield name, proto
    assert n


def failed(checks: tuple[Check, ...]) -> list[str]:
    return [check.name for check in checks if not check.passed]


@pytest.mark.parametrize("name", NAMES)
def test_files_of_ours_are_what_they_are(pruned, name):
    checks = pruned(name).checks(pruned(name).path)
    assert [check.name for check in checks] == ["interface", "graph", "tensors", "numbers"]
    assert not failed(checks), checks
    assert not any(check.partial for check in checks)


@pytest.mark.parametrize("edit", HARMFUL)
def test_edits_are_refused(pruned, edit, tmp_path):
    passed = []
    for name, proto in edited(pruned, HARMFUL[edit]):
        try:
            checks = pruned(name).checks_of(proto, tmp_path)
        except ModelError:
            continue
        if not failed(checks):
            passed.append((name, checks))
    assert not passed


@pytest.mark.parametrize("edit", HARMLESS)
def test_what_changes_nothing_is_accepted(pruned, edit, tmp_path):
    for name, proto in edited(pruned, HARMLESS[edit]):
        checks = pruned(name).checks_of(proto, tmp_path)
        assert not failed(checks), (name, checks)
        assert not any(check.partial for check in checks), (name, checks)


# -- whole runs ---------------------------------------------------------------------------------------------------


def verified(pruned: Pruned, path: Path, plan=None, **more) -> tuple[Check, ...]:
    if pruned.example is not None:
        more = {**more, "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    return gp.verify(pruned.original, path, plan or pruned.plan, pruned.example, **more)


ALL = ["masked", "permutation", "interface", "graph", "tensors", "numbers", "onnxruntime"]


@pytest.mark.parametrize("name", ["block", "torch"])
def test_a_file_is_verified_wherever_its_data_is(pruned, name, tmp_path):
    assert [check.name for check in verified(pruned(name), pruned(name).path)] == ALL
    path = tmp_path / "small.onnx"
    proto = onnx.load(pruned(name).path)
    onnx.save(proto, path, save_as_external_data=True, location="small.data", size_threshold=200)
    checks = verified(pruned(name), path)
    assert [check.name for check in checks] == ALL
    assert not failed(checks)
    assert not any(check.partial for check in checks)
    data = bytearray((tmp_path / "small.data").read_bytes())
    data[100] ^= 1
    (tmp_path / "small.data").write_bytes(data)
    assert failed(verified(pruned(name), path)) == ["tensors"]


def batches(shape: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]


def test_refitted_tensors_are_known_by_their_digests(pruned, tmp_path):
    original, path = pruned("block").original, tmp_path / "small.onnx"
    result = gp.prune(original, target="params=0.7", align=1, calibration=batches((2, 5, 16)))
    result.save_onnx(path)
    assert result.plan.options["digests"].keys() == set(result.plan.options["compensated"]) != set()
    checks = gp.verify(original, path, result.plan)
    assert [check.name for check in checks] == ALL
    assert not failed(checks)
    n = len(result.plan.options["compensated"])
    assert checks[4].note.endswith(f"; {n} refitted tensors by their digests in the plan")

    proto = onnx.load(path)
    refitted = next(t for t in proto.graph.initializer if t.name in result.plan.options["compensated"])
    array = onnx.numpy_helper.to_array(refitted).copy()
    array.ravel()[0] += 1e-6
    refitted.CopyFrom(onnx.numpy_helper.from_array(array, refitted.name))
    onnx.save(proto, tmp_path / "edited.onnx")
    checks = gp.verify(original, tmp_path / "edited.onnx", result.plan)
    assert failed(checks) == ["tensors"]
    assert checks[4].note == f"no tensor of the file is the refitted '{refitted.name}' of the plan, to the last bit"

    renamed = onnx.load(path)
    for tensor in renamed.graph.initializer:
        for node in renamed.graph.node:
            node.input[:] = [f"{name}_new" if name == tensor.name else name for name in node.input]
        tensor.name = f"{tensor.name}_new"
    onnx.save(renamed, tmp_path / "renamed.onnx")
    assert not failed(gp.verify(original, tmp_path / "renamed.onnx", result.plan))

    cut = gp.apply(original, result.plan)
    cut.save_onnx(tmp_path / "cut.onnx")
    checks = gp.verify(original, tmp_path / "cut.onnx", result.plan)
    assert not failed(checks)
    assert "are only cut in this file" in checks[4].note

    old = dataclasses.replace(result.plan, options={k: v for k, v in result.plan.options.items() if k != "digests"})
    checks = gp.verify(original, path, old)
    assert not failed(checks)
    assert checks[4].partial
    assert checks[4].note.endswith(
        "taken from the file as they are: the plan is of an older version, which noted no digests of them"
    )


def test_refits_that_an_exporter_folds_are_known_too(tmp_path):
    example, more = (torch.randn(4, 3, 8, 8),), {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    result = gp.prune(Net().eval(), example, target="params=0.6", align=1, calibration=batches((4, 3, 8, 8)), **more)
    path = tmp_path / "small.onnx"
    result.save_onnx(path)
    plan = tmp_path / "plan.json"
    result.plan.save(plan)
    checks = gp.verify(Net().eval(), path, plan, example, **more)
    assert not failed(checks), checks
    assert "by their digests in the plan" in checks[4].note
    proto = onnx.load(path)
    tensor = next(each for each in proto.graph.initializer if each.name == "conv.weight")
    put(tensor, onnx.numpy_helper.to_array(tensor) * np.float32(1.000001))
    onnx.save(proto, tmp_path / "edited.onnx")
    assert failed(gp.verify(Net().eval(), tmp_path / "edited.onnx", plan, example, **more)) == ["tensors"]


# -- files of other tools -----------------------------------------------------------------------------------------


def optimised(source: Path, target: Path, level: str = "EXTENDED") -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.log_severity_level = 4
    ort.InferenceSession(str(source), options)
    return onnx.load(target)


@pytest.mark.parametrize("name", ["cnn", "block", "torch"])
def test_what_an_optimiser_writes_is_compared_by_numbers(pruned, name, tmp_path):
    optimised(pruned(name).path, tmp_path / "other.onnx")
    checks = pruned(name).checks(tmp_path / "other.onnx")
    assert not failed(checks), checks
    assert [check.name for check in checks if check.partial][:2] == ["interface", "graph"]
    assert "compared by numbers only" in checks[1].note
    assert "graph" in failed(pruned(name).checks(tmp_path / "other.onnx", graph="exact"))


@pytest.mark.parametrize("edit", ["clipped", "where_backdoor", "backdoor", "all_nan", "relu_gone"])
def test_an_optimised_file_that_was_edited_before_is_refused(pruned, edit, tmp_path):
    proto = onnx.load(pruned("block").path)
    HARMFUL[edit](proto)
    onnx.save(proto, tmp_path / "edited.onnx")
    optimised(tmp_path / "edited.onnx", tmp_path / "other.onnx")
    assert failed(pruned("block").checks(tmp_path / "other.onnx"))


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """The pruned module of ``Flat``, and what PyTorch's old exporter writes of it."""
    folder = tmp_path_factory.mktemp("by_hand")
    example = (torch.randn(2, 3, 16),)
    more = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    result = gp.prune(Flat().eval(), example, target="params=0.6", align=1, **more)
    result.save_onnx(folder / "ours.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            result.module.eval(),
            example,
            folder / "other.onnx",
            dynamo=False,
            input_names=["x"],
            output_names=["output"],
            dynamic_axes={"x": {0: "batch"}, "output": {0: "batch"}},
        )
    other = onnx.load(folder / "other.onnx")
    return Pruned(Flat().eval(), example, folder / "ours.onnx", other, result.host, result.plan)


def test_a_file_of_another_exporter_is_compared_by_numbers(by_hand, tmp_path):
    checks = by_hand.checks_of(by_hand.proto, tmp_path)
    assert not failed(checks), checks
    assert [check.name for check in checks if check.partial] == ["graph"]
    assert checks[1].note == (
        "not comparable node by node: another tool has written 1 node where the plan's model has 1 (3 are the same), "
        "compared by numbers only; run by themselves on 4 sets of values they agree within 0"
    )
    assert checks[2].note == "4 of 4 tensors were found bit for bit"


@pytest.mark.parametrize(
    "edit", ["clipped", "one_weight", "all_nan", "scaled", "relu_gone", "backdoor", "where_backdoor", "rename_output"]
)
def test_an_edited_file_of_another_exporter_is_refused(by_hand, edit, tmp_path):
    proto = onnx.ModelProto()
    proto.CopyFrom(by_hand.proto)
    HARMFUL[edit](proto)
    assert failed(by_hand.checks_of(proto, tmp_path))


def test_numbers_alone_are_called_so(pruned, tmp_path):
    proto = onnx.load(pruned("block").path)
    scaled_a_little(proto)
    assert failed(pruned("block").checks_of(proto, tmp_path)) == ["graph"]
    checks = pruned("block").checks_of(proto, tmp_path, graph="numeric")
    assert not failed(checks)
    assert checks[1].partial
    tagger = onnx.load(pruned("tagger").path)
    scaled_a_little(tagger)
    HARMFUL["one_row"](tagger)  # which no input may look up
    checks = pruned("tagger").checks_of(tagger, tmp_path, graph="numeric")
    assert failed(checks) == ["tensors"]
    assert checks[2].note == "the table 'table' is not in the file, or not bit for bit"
    with pytest.raises(OptionError, match="^graph is 'some'; expected one of auto, exact, numeric$"):
        gp.verify(pruned("block").original, pruned("block").path, pruned("block").plan, graph="some")


def test_the_command_says_what_was_compared(pruned, tmp_path):
    made, runner = pruned("cnn"), CliRunner()
    made.plan.save(tmp_path / "plan.json")
    optimised(made.path, tmp_path / "other.onnx")
    proto = onnx.load(made.path)
    clipped(proto)
    onnx.save(proto, tmp_path / "edited.onnx")

    def run(path: Path, *more: str):
        given = ["verify", str(made.original), str(path), "--plan", str(tmp_path / "plan.json"), *more]
        return runner.invoke(app, given, env={"COLUMNS": "400"})

    ours = run(made.path)
    assert ours.exit_code == 0
    assert "is what the plan makes of" in ours.stdout
    assert "in part" not in ours.stdout
    other = run(tmp_path / "other.onnx")
    assert other.exit_code == 0
    assert "in part" in other.stdout
    assert "not proven" in other.stdout
    assert run(tmp_path / "other.onnx", "--graph", "exact").exit_code == 2
    edited_file = run(tmp_path / "edited.onnx")
    assert edited_file.exit_code == 2
    assert "FAILED" in edited_file.stdout
    assert "not run" in edited_file.stdout
    data = json.loads(run(tmp_path / "other.onnx", "--json").stdout)
    assert data["proven"] is False
    assert [row["name"] for row in data["checks"]] == ALL
    assert [row["partial"] for row in data["checks"]][2:4] == [True, True]
    assert json.loads(run(made.path, "--json").stdout)["proven"] is True
