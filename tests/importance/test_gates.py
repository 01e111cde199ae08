"""Gates of recurrent layers score and refit the units that they read, inputs and states alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.compensation.gates import find_gates, widths, with_gates
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.importance import criterion, trials
from graphprune.importance.context import Evidence
from graphprune.importance.gates import gate_readings, refitted_gates
from graphprune.importance.magnitude import l2
from graphprune.importance.obs import problems
from graphprune.statistics.collect import Statistics, collect

INPUTS, STATES = 8, 5


class Recurrence(nn.Module):
    """A recurrent layer behind a layer of units, with nothing else that reads these."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Linear(4, INPUTS)
        self.rnn = getattr(nn, kind)(INPUTS, STATES, batch_first=True, **options)
        self.head = nn.Linear(STATES * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(torch.tanh(self.stem(x)))[0])


LAYERS = {
    "LSTM": ("LSTM", {}),
    "LSTM without biases": ("LSTM", {"bias": False}),
    "LSTM, both ways": ("LSTM", {"bidirectional": True}),
    "LSTM, two layers": ("LSTM", {"num_layers": 2}),
    "GRU": ("GRU", {}),
    "RNN": ("RNN", {}),
}


def net_of(layer: str) -> tuple[Any, list[dict[str, np.ndarray]]]:
    kind, options = LAYERS[layer]
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = Recurrence(kind, **options).double().eval()
    return net, [{"x": rng.standard_normal((6, 5, 4))} for _ in range(4)]


def evidence_of(host: Any, analysis: Any, data: Any, *, full: bool = True) -> Evidence:
    statistics = with_gates(collect(host, analysis, data, full=full), host, analysis, data, full=full)
    return Evidence(analysis, host.read, statistics=statistics, host=host)


def seen_by(net: Any, data: Any, depth: int, *, backward: bool = False) -> np.ndarray:
    """What a cell sees, ``[n, i + h]``, by PyTorch's own layers."""
    rows = []
    with torch.no_grad():
        for batch in data:
            x = torch.tanh(net.stem(torch.from_numpy(batch["x"])))
            if depth:
                below = type(net.rnn)(INPUTS, STATES, batch_first=True).double()
                below.load_state_dict({n: t for n, t in net.rnn.state_dict().items() if n.endswith("_l0")})
                x, out = below(x)[0], net.rnn(x)[0]
            else:
                one = type(net.rnn)(
                    INPUTS, STATES, batch_first=True, bias=net.rnn.bias, bidirectional=net.rnn.bidirectional
                ).double()
                one.load_state_dict({n: t for n, t in net.rnn.state_dict().items() if "_l0" in n})
                out = one(x)[0]
            zero = torch.zeros_like(out[:, :1, :STATES])
            before = (
                torch.cat([out[:, 1:, STATES:], zero], 1) if backward else torch.cat([zero, out[:, :-1, :STATES]], 1)
            )
            rows.append(torch.cat([x, before], 2).reshape(-1, x.shape[2] + STATES).numpy())
    return np.concatenate(rows)


@pytest.mark.parametrize("layer", LAYERS)
def test_what_a_unit_costs_is_what_least_squares_lose(layer):
    net, data = net_of(layer)
    example = torch.from_numpy(data[0]["x"])
    host, analysis = TorchHost.trace(net, (example,)).folded(), gp.analyze(net, (example,))
    evidence = evidence_of(host, analysis, data)
    assert evidence.statistics is not None
    looked = 0
    for group in analysis.groups:
        for gates, reading in gate_readings(evidence, evidence.statistics, group):
            found = problems([reading], group.size, ridge=0.0)
            (problem,) = found
            seen = seen_by(net, data, gates.cell.layer, backward=gates.cell.backward)
            matrix = np.concatenate([host.read(gates.cell.w.tensor), host.read(gates.cell.r.tensor)], 1)
            z = seen @ matrix.T
            spread = z.var(0)
            scale = len(spread) * np.maximum(spread, 0.1 * np.median(spread))
            for unit in (0, group.size - 1):
                left = np.flatnonzero(reading.units[0] != unit)
                assert len(left) < seen.shape[1]
                design = np.concatenate([seen[:, left], np.ones((len(seen), 1))], 1)
                rest = z - design @ np.linalg.lstsq(design, z, rcond=None)[0]
                lost = float((np.square(rest).mean(0) / scale).sum())
                assert problem.losses(np.array([unit]))[0] == pytest.approx(lost, rel=1e-6)
                looked += 1
    assert looked >= 4


@pytest.mark.parametrize("layer", LAYERS)
def test_trials_refit_gates_by_least_squares(layer, monkeypatch):
    monkeypatch.setattr(trials, "RIDGE", 0.0)
    net, data = net_of(layer)
    example = torch.from_numpy(data[0]["x"])
    host, analysis = TorchHost.trace(net, (example,)).folded(), gp.analyze(net, (example,))
    evidence = evidence_of(host, analysis, data)
    assert evidence.statistics is not None
    for group in analysis.groups:
        gone = np.array([1, 3])
        found = list(gate_readings(evidence, evidence.statistics, group))
        assert found
        changes = refitted_gates(host, found, gone, trials.without)
        for gates, reading in found:
            cell = gates.cell
            seen = seen_by(net, data, cell.layer, backward=cell.backward)
            old, new = (
                np.concatenate([read(cell.w.tensor), read(cell.r.tensor)], 1)
                for read in (host.read, changes.__getitem__)
            )
            z, lost = seen @ old.T, np.isin(reading.units[0], gone)
            assert not new[:, lost].any()
            ones = np.ones((len(seen), 0 if cell.w_bias is None else 1))
            design = np.concatenate([seen[:, ~lost], ones], 1)
            best = design @ np.linalg.lstsq(design, z, rcond=None)[0]
            moved = 0.0 if cell.w_bias is None else changes[cell.w_bias.tensor] - host.read(cell.w_bias.tensor)
            np.testing.assert_allclose(seen @ new.T + moved, best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["obs", "wanda", "wifv"])
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_units_that_gates_do_not_look_at_score_lowest(name, kind, tmp_path):
    """Whatever the weights that make them: these are the largest, and without the gates they would count."""
    net, data = net_of("LSTM, both ways")
    idle = [2, 5]
    with torch.no_grad():
        for suffix in ("", "_reverse"):
            getattr(net.rnn, f"weight_ih_l0{suffix}")[:, idle] *= 1e-3
        net.stem.weight[idle] *= 20
    net, data = net.float(), [{"x": batch["x"].astype(np.float32)} for batch in data]
    example = torch.from_numpy(data[0]["x"])
    host: Any = TorchHost.trace(net, (example,)).folded()
    if kind == "onnx":
        host.save_onnx(tmp_path / "net.onnx")
        host = OnnxHost.load(tmp_path / "net.onnx").folded()
    analysis = gp.analyze(net, (example,)) if kind == "torch" else gp.analyze(tmp_path / "net.onnx")
    (group,) = (each for each in analysis.groups if each.size == INPUTS)
    evidence = evidence_of(host, analysis, data, full=name == "obs")
    assert set(np.argsort(l2(evidence)[group.name])[-2:]) == set(idle)
    assert set(np.argsort(criterion(name).score(evidence)[group.name])[:2]) == set(idle)


def test_statistics_of_gates_go_through_files(tmp_path):
    net, data = net_of("GRU")
    example = torch.from_numpy(data[0]["x"])
    host, analysis = TorchHost.trace(net, (example,)).folded(), gp.analyze(net, (example,))
    evidence = evidence_of(host, analysis, data)
    assert evidence.statistics is not None
    evidence.statistics.save(tmp_path / "s.npz")
    gates = find_gates(host, analysis)
    again = Statistics.load(tmp_path / "s.npz", host, analysis, None, widths(gates, analysis))
    (source,) = widths(gates, analysis)
    np.testing.assert_array_equal(again.moments[source].product, evidence.statistics.moments[source].product)
    results = [
        gp.prune(
            net, (example,), target="params=0.7", align=1, calibration=data, verify=False,
            statistics=tmp_path / "of_prune.npz",
        )
        for _ in range(2)
    ]  # fmt: skip
    assert results[0].plan.groups == results[1].plan.groups
    assert results[0].plan.groups


def test_weights_that_others_read_are_no_gates_of_their_own():
    net, data = net_of("LSTM")

    class Shared(nn.Module):
        """The recurrent weights are looked at elsewhere, too."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) + self.net.rnn.weight_ih_l0.sum()

    example = torch.from_numpy(data[0]["x"])
    host, analysis = TorchHost.trace(Shared().eval(), (example,)).folded(), gp.analyze(Shared().eval(), (example,))
    assert find_gates(host, analysis) == {}
