"""Recurrent layers that are stacked in one node: deeper ones are refitted on what the refitted ones below compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from graphprune.analysis.groups import analyze_graph
from graphprune.compensation.sequential import compensate
from graphprune.hosts.torch.host import TorchHost
from graphprune.passes.slice_groups import slice_edits

STAY = np.array([0, 1, 3, 4, 6, 7, 9, 10, 13])


class Stacked(nn.Module):
    """Two recurrent layers in one behind a layer of units; their first states may be stored or computed."""

    def __init__(self, kind: str, *, begins: bool = False, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 14)
        self.rnn = getattr(nn, kind)(14, 6, num_layers=2, batch_first=True, **options)
        self.begin = nn.Linear(5, 12) if begins else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.tanh(self.stem(x))
        if self.begin is None:
            return self.rnn(inner)[0]
        state = self.begin(x.mean(1)).reshape(-1, 2, 6).transpose(0, 1).contiguous()
        return self.rnn(inner, (state, state) if isinstance(self.rnn, nn.LSTM) else state)[0]


def layer_of(rnn: Any, depth: int, weights: dict[str, np.ndarray] | None = None) -> Any:
    """One layer of PyTorch's own that computes what one of a stack does, with other weights perhaps."""
    state = {
        name.replace(f"_l{depth}", "_l0"): torch.from_numpy(weights[name]) if weights else tensor
        for name, tensor in rnn.state_dict().items()
        if f"_l{depth}" in name
    }
    made = type(rnn)(
        state["weight_ih_l0"].shape[1], rnn.hidden_size, batch_first=True, bidirectional=rnn.bidirectional
    ).double()
    made.load_state_dict(state)
    return made


@pytest.mark.parametrize(
    ("kind", "options"),
    [("LSTM", {}), ("LSTM", {"bidirectional": True}), ("RNN", {}), ("LSTM", {"begins": True})],
)
def test_deeper_gates_are_fitted_to_what_the_pruned_layers_below_give(kind, options):
    torch.manual_seed(0)
    net, rng = Stacked(kind, **options).double().eval(), np.random.default_rng(4)
    mixing = rng.standard_normal((3, 5))
    data = [{"x": rng.standard_normal((8, 6, 3)) @ mixing} for _ in range(8)]
    example = torch.from_numpy(data[0]["x"])
    host = TorchHost.trace(net, (example,)).folded()
    analysis = analyze_graph(host.graph())
    (inputs,) = [group for group in analysis.groups if group.size == 14]
    kept = {inputs.factor: STAY}
    fitted, rows = compensate(host, host.edited(slice_edits(analysis, kept)), analysis, kept, data, ridges=(0.0,))
    assert {row.weight for row in rows} >= {"rnn.weight_ih_l0", "rnn.weight_ih_l1"}
    new = {name: fitted.read(f"rnn.{name}") for name in net.rnn.state_dict()}
    dense, below = layer_of(net.rnn, 0), layer_of(net.rnn, 0, new)
    above = layer_of(net.rnn, 1)
    seen, states, wanted, got = [], [], [], []
    w, r = (net.rnn.state_dict()[f"weight_{name}_l1"] for name in ("ih", "hh"))
    new_w, new_r = (torch.from_numpy(new[f"weight_{name}_l1"]) for name in ("ih", "hh"))
    moved = torch.from_numpy(new["bias_ih_l1"]) - net.rnn.state_dict()["bias_ih_l1"]
    with torch.no_grad():
        for batch in data:
            x = torch.from_numpy(batch["x"])
            inner, first = torch.tanh(net.stem(x)), [None, None]
            if net.begin is not None:
                state = net.begin(x.mean(1)).reshape(-1, 2, 6).transpose(0, 1).contiguous()
                first = [(state[i : i + 1], state[i : i + 1]) for i in range(2)]
            ours, theirs = below(inner[..., STAY], first[0])[0], dense(inner, first[0])[0]
            assert not torch.allclose(ours, theirs, atol=1e-3)  # so that it matters which of the two it is
            out = above(theirs, first[1])[0]
            start = torch.zeros_like(out[:, :1, :6]) if first[1] is None else first[1][0].transpose(0, 1)
            before = torch.cat([start, out[:, :-1, :6]], 1)
            seen.append(ours.reshape(-1, ours.shape[2]))
            states.append(before.reshape(-1, 6))
            wanted.append((theirs @ w.T + before @ r.T).reshape(-1, len(w)))
            got.append((ours @ new_w.T + before @ new_r.T + moved).reshape(-1, len(w)))
    design = torch.cat([torch.cat(seen), torch.cat(states), torch.ones(len(torch.cat(seen)), 1)], 1).numpy()
    target = torch.cat(wanted).numpy()
    best = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    assert np.abs(best - target).max() > 1e-3
    np.testing.assert_allclose(torch.cat(got).numpy(), best, rtol=1e-6, atol=1e-6)
