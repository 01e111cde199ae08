"""Every public object, and what it holds, says in less than a kilobyte what it is."""

import dataclasses

import numpy as np
import pytest
from graphs import save_net
from onnx import helper

import graphprune as gp

DEEP = 40
LIMIT = 1000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Forty layers with long names: what is listed somewhere is long."""
    rng = np.random.default_rng(0)
    names = [f"model.backbone.stages.{i}.depthwise_separable_convolution.pointwise.weight" for i in range(DEEP)]
    nodes = []
    for i, name in enumerate(names):
        nodes.append(helper.make_node("MatMul", ["x" if i == 0 else f"r{i - 1}", name], [f"m{i}"], f"matmul_{i}"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], ["y" if i == DEEP - 1 else f"r{i}"], f"relu_{i}"))
    return save_net(
        tmp_path_factory.mktemp("deep") / "m.onnx", nodes, {n: rng.normal(size=(8, 8)) * 0.5 for n in names}, (8, 8)
    )


@pytest.fixture(scope="module")
def objects(model):
    """For each public name what it is or returns."""
    calibration = gp.Inputs(np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32), samples=8)
    result = gp.prune(model, target="macs=0.5", calibration=calibration, criterion="l2", allocation="uniform", align=1)
    analysis = gp.analyze(model)
    host = result.host
    made = {
        "Analysis": analysis,
        "Batches": result.state.batches,
        "Bounds": gp.Bounds(),
        "DependencyGraph": gp.DependencyGraph(analysis),
        "Group": analysis.groups[0],
        "Inputs": gp.Inputs(list(range(100_000)), preprocess=["mean=0.5"] * 100),
        "Preprocess": gp.Preprocess(mean=(0.5,) * 300),
        "Profile": gp.profile(model, seconds=0.01, quick=True),
        "PruningPlan": result.plan,
        "RECIPES": gp.RECIPES,
        "Recipe": gp.Recipe.of(target="macs=0.5", only=["group:" + group.name for group in analysis.groups]),
        "Report": result.report,
        "Result": result,
        "Session": gp.Session(model, data=calibration),
        "Site": analysis.groups[0].sites[0],
        "SAMPLES": gp.SAMPLES,
        "__version__": gp.__version__,
        "analyze": analysis,
        "apply": gp.apply(model, result.plan, verify=False),
        "open_batches": gp.open_batches(calibration, host),
        "prune": result,
        "sensitivity": gp.sensitivity(model, ratios=(0.25, 0.5), samples=2),
        "sweep": gp.sweep(model, targets=[f"macs={0.5 + i / 100}" for i in range(9)], verify=False, latency=False),
    }
    with gp.bounded(memory=8) as made["bounded"]:
        pass
    return made


# functions without a result of their own, or with one that needs a PyTorch model or a file
WITHOUT = {
    "Pruner",
    "PruningCallback",
    "PrunedVocabulary",
    "export_onnx",
    "profile",
    "prune_vocabulary",
    "recover",
    "restore",
    "verify",
}


def test_every_public_name_is_looked_at(objects):
    errors = {name for name in gp.__all__ if name.endswith("Error")}
    assert set(objects) | WITHOUT | errors == set(gp.__all__)


def inside(value, path, seen, depth=0):
    """The objects of graphprune that one holds, with the path to each."""
    if isinstance(value, str | bytes | int | float | type(None)) or id(value) in seen or depth > 6:
        return
    seen[id(value)] = value
    if type(value).__module__.startswith("graphprune"):
        yield path, value
        names = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else ()
        for name in names or getattr(value, "__dict__", ()):
            yield from inside(getattr(value, name), f"{path}.{name}", seen, depth + 1)
    elif isinstance(value, dict | list | tuple):
        for i, each in enumerate([*(value.values() if isinstance(value, dict) else value)][:4]):
            yield from inside(each, f"{path}[{i}]", seen, depth + 1)


def test_all_of_it_is_short(objects):
    seen = {}
    found = [pair for name, value in objects.items() for pair in inside(value, name, seen)]
    assert len(found) > 100
    assert {path: len(repr(value)) for path, value in found if len(repr(value)) >= LIMIT} == {}


def test_a_print_of_an_analysis_is_short_and_says_what_there_is(objects):
    text = str(objects["analyze"])
    assert len(text) < LIMIT
    assert f"groups=<{DEEP - 1} Group>" in text
    assert "macs='" in repr(objects["prune"])
    assert "macs" in str(objects["prune"])  # the tables


def test_a_pytorch_model(model):
    torch = pytest.importorskip("torch")
    layers = [layer for _ in range(20) for layer in (torch.nn.Linear(8, 8), torch.nn.ReLU())]
    result = gp.prune(torch.nn.Sequential(*layers), torch.ones(2, 8), target="params=0.6", verify=False, align=1)
    found = list(inside(result, "result", {}))
    assert {path: len(repr(value)) for path, value in found if len(repr(value)) >= LIMIT} == {}
