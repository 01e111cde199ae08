"""What is kept of a measurement is of these weights, these data and this part of them, and is found again by nothing less."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graphs import save_net
from torch import nn

import graphprune as gp
from graphprune.data.batches import open_batches
from graphprune.errors import OptionError
from graphprune.evaluation import open_evaluation
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost

X = np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32)
EXAMPLE = (torch.from_numpy(X[:8]),)
OPTIONS: dict[str, Any] = {"target": "params=0.5", "align": 1, "verify": False}
BY_DATA = {"criterion": "act-rms", "allocation": "uniform", "compensation": "none"}
"""What stays follows from the statistics alone."""


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


def onnx_mlp(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    weights = {"first": rng.normal(size=(16, 64)), "bias": rng.normal(size=64), "second": rng.normal(size=(64, 8))}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "first"], ["a"], "a"),
        onnx.helper.make_node("Add", ["a", "bias"], ["b"], "b"),
        onnx.helper.make_node("LeakyRelu", ["b"], ["c"], "c", alpha=0.1),
        onnx.helper.make_node("MatMul", ["c", "second"], ["y"], "y"),
    ]
    return save_net(path, nodes, weights, (16, 8))


def kept(model: Any, calibration: Any = None, example: Any = EXAMPLE, **options: Any) -> tuple[int, ...]:
    """The units that stay, of a model and data or of a session."""
    options = {**OPTIONS, **BY_DATA, **options}
    if isinstance(model, gp.Session):
        return model.prune(**options).plan.groups[0].kept
    return gp.prune(model, example, calibration=calibration, **options).plan.groups[0].kept


def sessions(*models: Any, data: Any, example: Any = EXAMPLE) -> list[gp.Session]:
    """Sessions that share all that any of them has measured."""
    shared = [gp.Session(model, example, data=data) for model in models]
    for each in shared[1:]:
        vars(each)["measured"] = shared[0].measured
    return shared


# -- other weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [BY_DATA, {"criterion": "obs", "allocation": "measured"}], ids=["moments", "losses"]
)
def test_two_checkpoints_that_share_batches_and_measurements_get_plans_of_their_own(tmp_path, options):
    paths = [onnx_mlp(tmp_path / f"{seed}.onnx", seed) for seed in (0, 1)]
    batches = open_batches({"x": X}, OnnxHost.load(paths[0]))
    alone = [kept(path, {"x": X}, None, **options) for path in paths]
    assert alone[0] != alone[1]
    assert [kept(path, batches, None, **options) for path in paths] == alone
    a, b = sessions(*paths, data=batches, example=None)
    assert [kept(each, **options) for each in (a, b, a)] == [*alone, alone[0]]


def test_two_modules_that_share_batches_and_measurements_get_plans_of_their_own():
    models = mlp(0), mlp(1)
    alone = [kept(model, {"input": X}) for model in models]
    assert alone[0] != alone[1]
    assert [kept(each) for each in sessions(*models, data={"input": X})] == alone


def through_data(weight: torch.Tensor) -> None:
    weight.data.mul_(torch.linspace(0.1, 3, 64)[:, None])


def through_numpy(weight: torch.Tensor) -> None:
    array = weight.detach().numpy()
    array *= np.linspace(3, 0.1, 64, dtype=np.float32)[:, None]


def as_an_optimizer(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.copy_(torch.roll(weight, 7, 0))


@pytest.mark.parametrize("change", [through_data, through_numpy, as_an_optimizer], ids=lambda change: change.__name__)
def test_weights_that_change_in_place_are_noticed(change):
    model = mlp(0)
    session = gp.Session(model, EXAMPLE, data={"input": X})
    before, host = kept(session), session.host
    change(model[0].weight)
    after = kept(session)
    assert session.host is host
    assert after == kept(model, {"input": X})
    assert after != before


def test_data_that_change_in_place_are_noticed(tmp_path):
    path, data = onnx_mlp(tmp_path / "net.onnx", 0), X.copy()
    session = gp.Session(path, data={"x": data})
    before = kept(session)
    data[:, :8] *= -5
    assert kept(session) == kept(path, {"x": data}, None) != before


def edited(path: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path.with_name("edited.onnx"))
    return path.with_name("edited.onnx")


def one_bit(model: onnx.ModelProto) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == "second")
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.view(np.uint32)[3, 5] ^= 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def two_rows(model: onnx.ModelProto) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == "second")
    array = onnx.numpy_helper.to_array(tensor)[[1, 0, *range(2, 64)]]
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def an_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[2].attribute[0].f = 0.2


def texts(model: onnx.ModelProto) -> None:
    model.producer_name, model.doc_string = "another", "text"
    model.graph.node[0].doc_string = "text"
    model.metadata_props.add(key="a", value="b")


@pytest.mark.parametrize("change, same", [(one_bit, False), (two_rows, False), (an_attribute, False), (texts, True)])
def test_the_digest_of_a_file_is_that_of_what_it_computes(tmp_path, change, same):
    path = onnx_mlp(tmp_path / "net.onnx", 0)
    digests = [OnnxHost.load(each).folded().model_digest() for each in (path, path, edited(path, change))]
    assert digests[0] == digests[1]
    assert (digests[2] == digests[0]) == same


class Body(nn.Module):
    """An attribute, and a branch of its own."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(16, eps=eps), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(x))


def test_the_digest_of_a_module_is_that_of_what_it_computes():
    def digest(eps: float, row: float = 0.0) -> str:
        torch.manual_seed(0)
        module = Body(eps)
        module.last.weight.data[1, 2] += row
        return TorchHost.trace(module, EXAMPLE).folded().model_digest()

    assert digest(1e-5) == digest(1e-5)
    assert len({digest(1e-5), digest(1e-6), digest(1e-5, 1e-3)}) == 3


# -- another part of the data --------------------------------------------------------------------------------------


def test_the_part_that_is_held_apart_is_not_in_the_statistics_whatever_ran_before(tmp_path):
    path = onnx_mlp(tmp_path / "net.onnx", 0)
    session = gp.Session(path, data={"x": X})
    found = [
        session.prune(allocation=allocation, criterion="obs", **OPTIONS)
        for allocation in ("isomorphic", "measured", "isomorphic")
    ]
    fresh = gp.prune(path, calibration={"x": X}, allocation="measured", criterion="obs", **OPTIONS)
    assert [result.state.statistics.samples for result in found] == [32, 24, 32]
    assert found[1].plan.parameters == fresh.plan.parameters


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_file_is_refused_where_it_does_not_fit(tmp_path):
    file, a, b = tmp_path / "s.npz", *(onnx_mlp(tmp_path / f"{seed}.onnx", seed) for seed in (0, 1))
    first = kept(a, {"x": X}, None, statistics=file)
    assert kept(a, {"x": X}, None, statistics=file) == first
    other = X.copy()
    other[31, 15] += 1
    for model, data, options, message in (
        (b, X, {}, r"were taken of other weights \(digest {0}, those of this model have {0}\); remove it, or name another file, to collect them again"),
        (a, X[::-1], {}, r"were taken of other data \(digest {0}, those that are given have {0}\); give the same data, number of samples and seed, or remove it, or name another file, to collect them again"),
        (a, other, {}, "were taken of other data .*"),
        (a, X[:16], {}, r"were taken of 4 of 4 batches, and 2 of 2 batches are used here .*"),
        (a, X, {"allocation": "measured"}, "hold no products, which are needed here; collect them anew"),
    ):  # fmt: skip
        expected = message.replace("{0}", "[0-9a-f]{12}")
        with pytest.raises(OptionError, match=f"^the statistics in '{re.escape(str(file))}' {expected}$"):
            kept(model, {"x": X if data is X else data.copy()}, None, statistics=file, **options)


def test_a_file_of_all_data_is_refused_where_some_are_held_apart(tmp_path):
    path = onnx_mlp(tmp_path / "net.onnx", 0)
    options = {"criterion": "obs", "statistics": tmp_path / "s.npz"}
    kept(path, {"x": X}, None, **options)
    with pytest.raises(
        OptionError,
        match=r"were taken of 4 of 4 batches, and 3 of 4 batches are used here \(allocation 'measured' holds one of "
        r"four apart, to judge by\); remove it",
    ):
        kept(path, {"x": X}, None, allocation="measured", **options)


def test_a_file_that_does_not_say_what_it_is_of_is_refused(tmp_path):
    file, path = tmp_path / "s.npz", onnx_mlp(tmp_path / "net.onnx", 0)
    kept(path, {"x": X}, None, statistics=file)
    with np.load(file) as held:
        arrays = {name: held[name] for name in held.files}
    for origin in (None, 3, {"weights": "a", "data": 1, "split": "4 of 4 batches"}):
        about = {**json.loads(str(arrays["about"])), "origin": origin}
        np.savez(file, **{**arrays, "about": np.array(json.dumps(about))})
        with pytest.raises(OptionError, match="do not say which weights and data they were taken of, as files of this"):
            kept(path, {"x": X}, None, statistics=file)


def test_a_file_is_written_also_where_the_measurement_is_kept(tmp_path):
    path = onnx_mlp(tmp_path / "net.onnx", 0)
    session = gp.Session(path, data={"x": X})
    first = kept(session)
    kept(session, statistics=tmp_path / "s.npz")
    assert (tmp_path / "s.npz").exists()
    assert kept(path, {"x": X}, None, statistics=tmp_path / "s.npz") == first


# -- numbers of the original -----------------------------------------------------------------------------------------


def test_the_metric_of_one_original_is_not_that_of_another(tmp_path):
    data = {"x": X, "labels": X @ np.ones((16, 8), np.float32)}
    a, b = (onnx_mlp(tmp_path / f"{seed}.onnx", seed) for seed in (0, 1))
    shared = open_evaluation(data, OnnxHost.load(a), metric="mse")
    before = [gp.prune(model, evaluate=shared, **OPTIONS).report.metrics[0].before for model in (a, b)]
    fresh = gp.prune(b, evaluate=data, metric="mse", **OPTIONS).report.metrics[0]
    assert before[0] != before[1] == fresh.before


@pytest.mark.parametrize("other", ["data", "weights"])
def test_an_interrupted_analysis_of_something_else_is_not_gone_on_with(tmp_path, other):
    """All scores are alike, and what comes out for the first batch."""
    left = tmp_path / "sensitivity.partial.json"
    more = np.concatenate([X[:8], X[8:] * 3]) if other == "data" else X

    class Stop(Exception):
        pass

    def interrupted(step: str) -> None:
        if left.exists():
            raise Stop

    def found(path: Path, data: np.ndarray, folder: Path | None, progress: Any = lambda step: None) -> Any:
        return gp.sensitivity(
            path, calibration={"x": data}, criterion="random", ratios=(0.5,), folder=folder, progress=progress
        )

    first, second = (two_layers(tmp_path / f"{i}.onnx", negative) for i, negative in enumerate((1, 5)))
    with pytest.raises(Stop):
        found(first, X, tmp_path, interrupted)
    assert left.exists()
    path = second if other == "weights" else first
    assert found(path, more, tmp_path) == found(path, more, None) != found(first, X, None)


def two_layers(path: Path, negative: float) -> Path:
    """For the first eight of the samples nothing depends on ``negative``: it stands behind what only others reach."""
    rng = np.random.default_rng(0)
    weights = {
        "first": rng.normal(size=(16, 32)),
        "second": rng.normal(size=(32, 32)),
        "third": rng.normal(size=(32, 8)),
    }
    limit = float(np.maximum(X[:8] @ weights["first"], 0).max())
    weights["limit"], weights["scale"] = np.array(limit), np.array(negative)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "first"], ["a"], "a"),
        onnx.helper.make_node("Relu", ["a"], ["b"], "b"),
        onnx.helper.make_node("Sub", ["b", "limit"], ["over"], "over"),
        onnx.helper.make_node("Relu", ["over"], ["more"], "more"),
        onnx.helper.make_node("Mul", ["more", "scale"], ["scaled"], "scaled"),
        onnx.helper.make_node("Add", ["b", "scaled"], ["c"], "c"),
        onnx.helper.make_node("MatMul", ["c", "second"], ["d"], "d"),
        onnx.helper.make_node("Relu", ["d"], ["e"], "e"),
        onnx.helper.make_node("MatMul", ["e", "third"], ["y"], "y"),
    ]
    return save_net(path, nodes, weights, (16, 8))
