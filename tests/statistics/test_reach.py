"""What a budget cannot reach is not measured, and what is as tall as a vocabulary is read in pieces."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.arrays import digest_of
from graphprune.compensation.activation_cache import ActivationCache
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch import module as torch_module
from graphprune.hosts.torch.digests import digest_of_tensor
from graphprune.hosts.torch.host import TorchHost
from graphprune.importance import context, criterion
from graphprune.importance.context import Evidence
from graphprune.passes import calibrate
from graphprune.runtime import sessions
from graphprune.statistics import products
from graphprune.statistics.collect import collect
from graphprune.statistics.moments import Moments

WORDS, WIDTH, INNER = 3000, 12, 40


class Words(nn.Module):
    """A residual stream between a table of words and a head that is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return self.head(x + self.down(torch.relu(self.up(self.norm(x)))))


def words() -> tuple[Words, torch.Tensor, list[dict[str, np.ndarray]]]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [{"ids": rng.integers(0, WORDS, (2, 8))} for _ in range(4)]
    return Words().eval(), torch.from_numpy(batches[0]["ids"]), batches


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """For each walk over calibration data the weights whose readers are measured."""
    found: list[set[str]] = []

    def noted(*args: Any, **options: Any) -> Any:
        statistics = collect(*args, **options)
        found.append({use.weight for uses in statistics.consumers.values() for use in uses})
        return statistics

    monkeypatch.setattr(calibrate, "collect", noted)
    return found


LAYER, ALL = {"down.weight"}, {"down.weight", "up.weight", "head.weight"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target": "macs=0.99"}, LAYER),
        ({"target": "params=0.99"}, LAYER),
        ({"target": "macs=0.5"}, ALL),  # the layer alone cannot give so much
        ({"target": "macs=0.99", "max_ratio": 0.1}, ALL),
        ({"target": "macs=0.99", "protect": "neuron"}, ALL - LAYER),
        ({"target": "macs=0.99", "protect_ratio": 0.1}, ALL),
        ({"target": "macs=0.5", "only": "hidden"}, ALL - LAYER),
        ({"target": "macs=0.99", "criterion": "wanda", "allocation": "uniform"}, LAYER),
    ],
)
def test_readers_of_what_cannot_be_cut_are_not_measured(options, expected, measured):
    model, example, batches = words()
    if "only" in options:
        (stream,) = (group for group in gp.analyze(model, example).groups if group.size == WIDTH)
        options = {**options, "only": stream.kind}
    result = gp.prune(model, example, calibration=batches, verify=False, align=1, **options)
    assert [expected] == measured
    assert result.plan.groups


def test_statistics_are_taken_anew_where_a_later_target_reaches_further(measured):
    model, example, data = words()
    session = gp.Session(model, example, data=data)
    for target in ("macs=0.99", "macs=0.995", "macs=0.5", "macs=0.99"):
        session.prune(target=target, verify=False, align=1)
    assert measured == [LAYER, ALL]


def test_what_goes_into_a_file_is_measured_for_all_groups(measured, tmp_path):
    model, example, batches = words()
    for target in ("macs=0.99", "macs=0.5"):
        gp.prune(
            model, example, target=target, calibration=batches, verify=False, align=1, statistics=tmp_path / "s.npz"
        )
    assert measured == [ALL]


def test_measuring_copies_no_outputs_of_a_vocabulary(monkeypatch):
    """Numbers of NumPy at the peak, beside the outputs of a batch that PyTorch holds: a part of these."""
    monkeypatch.setattr(products, "CELLS", 1 << 18)
    rng = np.random.default_rng(0)
    rows, columns = 64, 1 << 17
    outputs = rng.standard_normal((rows, 1, columns), np.float32)
    moments = Moments.zeros(1, columns, full=False)
    tracemalloc.start()
    moments.add(outputs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.4 * outputs.nbytes
    np.testing.assert_allclose(moments.variance, outputs.var(0, dtype=np.float64), rtol=1e-4)
    np.testing.assert_array_equal(moments.positive, (outputs > 0).sum(0))


@pytest.mark.parametrize("name", ["obs", "wanda", "wifv"])
def test_scores_are_the_same_in_pieces_and_copy_no_weight(name, monkeypatch):
    model, example, data = words()
    host = TorchHost.trace(model, (example,)).folded()
    analysis = gp.analyze(model, example)
    evidence = Evidence(analysis, host.read, statistics=collect(host, analysis, data), host=host)
    whole = criterion(name).score(evidence)
    monkeypatch.setattr(context, "CELLS", 100 * WIDTH)
    tracemalloc.start()
    pieces = criterion(name).score(evidence)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for group in analysis.groups:
        np.testing.assert_allclose(pieces[group.name], whole[group.name], rtol=1e-6)
    assert peak < 8 * WORDS * WIDTH  # bytes of the table in double precision


def test_chunks_of_wide_rows_are_small(monkeypatch):
    monkeypatch.setattr(products, "CELLS", 10)
    assert products.few_of(np.zeros((50, 2, 3))) == 1
    assert products.few_of(np.zeros((50, 1, 3))) == 3
    assert products.few_of(np.zeros((50, 1, 1))) == 10


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_weights_lie_beside_a_file_where_they_are_asked_to(kind, tmp_path):
    model, example, data = words()
    host: Any = TorchHost.trace(model, (example,))
    host.save_onnx(tmp_path / "whole.onnx")
    if kind == "onnx":
        host = OnnxHost.load(tmp_path / "whole.onnx")
    host.save_onnx(tmp_path / "beside.onnx", beside=True)
    assert (tmp_path / "beside.onnx.data").stat().st_size > 4 * WORDS * WIDTH
    assert (tmp_path / "beside.onnx").stat().st_size < 4 * WORDS * WIDTH
    (want,) = sessions.run_file(tmp_path / "whole.onnx", data[0]).values()
    (got,) = sessions.run_file(tmp_path / "beside.onnx", data[0]).values()
    np.testing.assert_array_equal(got, want)


def test_large_files_run_once_as_they_do_otherwise(monkeypatch, tmp_path):
    model, example, data = words()
    TorchHost.trace(model, (example,)).save_onnx(tmp_path / "net.onnx")
    (want,) = sessions.run_file(tmp_path / "net.onnx", data[0]).values()
    monkeypatch.setattr(sessions, "LARGE", 0)
    (got,) = sessions.run_file(tmp_path / "net.onnx", data[0]).values()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_what_was_measured_is_gone_once_nothing_asks_for_it(monkeypatch):
    """And the module is proven as ever where the outputs that it is held against wait on disk."""
    written: list[bool] = []
    save = TorchHost.save_onnx

    def noted(host: TorchHost, *args: Any, beside: bool = False) -> None:
        written.append(beside)
        save(host, *args, beside=beside)

    monkeypatch.setattr(TorchHost, "save_onnx", noted)
    monkeypatch.setattr(torch_module, "HELD", 0)
    model, example, data = words()
    result = gp.prune(model, example, target="macs=0.99", calibration=data, align=1)
    assert result.state.statistics is None
    assert written == [True]  # the file that is checked, and thrown away
    assert len(result.state.measured) == 0
    assert result.plan.groups
    assert isinstance(result.module, Words)
    with torch.no_grad():
        (want,) = result.state.host.run(data[1]).values()
        np.testing.assert_allclose(result.module(torch.from_numpy(data[1]["ids"])).numpy(), want, rtol=1e-4, atol=1e-5)
    session = gp.Session(model, example, data=data)
    session.prune(target="macs=0.99", align=1)
    assert len(session.measured) > 0


def test_a_module_that_is_wrong_on_one_example_is_refused(monkeypatch):
    """Whichever of the two it is, and wherever these wait."""
    monkeypatch.setattr(torch_module, "HELD", 0)
    model, example, _ = words()
    host = TorchHost.trace(model, (example,))
    for wrong in range(torch_module._EXAMPLES):
        with ActivationCache([{}] * torch_module._EXAMPLES, 0) as expected:
            use = torch_module._Forward(host, expected, proof=True, known=None)
            assert use.judge(model) == ""
            expected[wrong] = {name: array + 0.1 for name, array in expected[wrong].items()}
            assert "its outputs differ" in use.judge(model)


def test_digests_copy_no_weight():
    tensor = torch.randn(1 << 18)
    tracemalloc.start()
    found = digest_of_tensor(tensor)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < tensor.numel()
    assert found == digest_of("float32", tensor.shape, tensor.numpy().tobytes())
