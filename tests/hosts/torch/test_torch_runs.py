"""What only runs in training mode, on a flag, or for nothing: cut along, kept whole with a reason, or said plainly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import graphprune as gp
from graphprune import cli
from graphprune.hosts.torch import module as torch_module
from graphprune.hosts.torch import other_ways as torch_other_ways
from graphprune.hosts.torch import runs as torch_runs
from graphprune.hosts.torch.host import TorchHost
from graphprune.report.explain import cut_along, explain_axis

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Stem(nn.Module):
    """Two convolutions and a classifier; subclasses add what runs at other times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.c, self.drop, self.fc = nn.Conv2d(16, 24, 3, padding=1), nn.Dropout(0.2), nn.Linear(24, 4)

    def parts(self, x):
        y = torch.relu(self.norm(self.a(x)))
        z = torch.relu(self.c(y))
        return y, z, self.fc(self.drop(z.mean((2, 3))))

    def forward(self, x):
        return self.parts(x)[2]


class Auxiliary(Stem):
    """As GoogLeNet: a head with a depthwise layer, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(
            nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
            nn.Linear(256, 12), nn.ReLU(), nn.Dropout(0.7), nn.Linear(12, 4),
        )  # fmt: skip

    def forward(self, x):
        y, _, logits = self.parts(x)
        return (logits, self.aux(y)) if self.training else logits


class Segmentation(Stem):
    """As PSPNet: a dict whose second entry is there in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.aux = nn.Conv2d(24, 5, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        y, z, _ = self.parts(x)
        out = {"out": F.interpolate(self.head(z), scale_factor=2)}
        if self.training:
            out["aux"] = F.interpolate(self.aux(y), scale_factor=2)
        return out


class DeepSupervision(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ModuleList([nn.Conv2d(16, 1, 1), nn.Conv2d(24, 1, 1)])

    def forward(self, x):
        y, z, _ = self.parts(x)
        sides = [side(feature) for side, feature in zip(self.sides, (y, z), strict=True)]
        return sides if self.training else sides[-1]


class Viewed(Stem):
    """A number that only training reads has to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.stride = 16, 16
        self.aux = nn.Linear(64, 3)

    def forward(self, x):
        y, _, logits = self.parts(x)
        return (logits, self.aux(y.view(len(x), self.width, 64)).mean(1)) if self.training else logits


class OnAFlag(Auxiliary):
    def forward(self, x, aux=False):
        y, _, logits = self.parts(x)
        return (logits, self.aux(y)) if aux else logits


class OwnNorm(Stem):
    """Batch statistics by a functional call, and stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Conv2d(16, 24, 1)

    def parts(self, x):
        norm = self.norm
        y = F.batch_norm(
            self.a(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training, 0.1, 1e-5
        )
        z = torch.relu(self.c(torch.relu(y)))
        if self.training:
            z = z + self.side(y) * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5))
        return y, z, self.fc(z.mean((2, 3)))


class Wave(nn.Module):
    """As WaveNet: the residual of the last layer goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.out = nn.Conv1d(3, 8, 1), nn.Conv1d(12, 4, 1)
        self.gate = nn.ModuleList(nn.Conv1d(8, 16, 3, padding=1) for _ in range(2))
        self.res = nn.ModuleList(nn.Conv1d(16, 8, 1) for _ in range(2))
        self.skip = nn.ModuleList(nn.Conv1d(16, 12, 1) for _ in range(2))

    def forward(self, x):
        x, total = self.inp(x[..., 0]), 0
        for gate, res, skip in zip(self.gate, self.res, self.skip, strict=True):
            z = torch.tanh(gate(x))
            total = total + skip(z)
            x = x + res(z)
        return self.out(torch.relu(total))


class Features(Stem):
    """Hands features out in training, for a loss on them."""

    def forward(self, x):
        y, _, logits = self.parts(x)
        return (logits, y) if self.training else logits


class Denoising(Stem):
    """As RT-DETR: needs targets in training, and parameters for them."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Linear(24, 24)

    def forward(self, x, targets=None):
        if self.training:
            assert targets is not None, "targets are missing"
            return self.fc(self.noise(self.parts(x)[1].mean((2, 3)))), targets
        return self.parts(x)[2]


class TwoTowers(Stem):
    """As CLIP: another method reads what the example does not."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.spare = nn.Linear(24, 4), nn.Parameter(torch.zeros(3))

    def encode_text(self, x):
        return self.text(self.parts(x)[1].mean((2, 3)))


@dataclass(frozen=True)
class Row:
    """A net, and what must become of it.

    Attributes:
        net: The class.
        cut: Parameters that no run in evaluation mode reads and that are cut along: by name, the axes.
        label: How it is run beside.
        notes: Beginnings of the notes.
        kwargs: Keyword arguments for the training step.
    """

    net: type[nn.Module]
    cut: dict[str, tuple[int, ...]]
    label: str = "in training mode"
    notes: tuple[str, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()


ROWS = (
    Row(Auxiliary, {"aux.0.weight": (0,), "aux.1.running_mean": (0,), "aux.4.weight": (1,)}),
    Row(Segmentation, {"aux.weight": (1,)}),
    Row(DeepSupervision, {"sides.0.weight": (1,)}),
    Row(OnAFlag, {"aux.0.weight": (0,), "aux.4.weight": (1,)}, "with aux=True", kwargs=(("aux", True),)),
    Row(OwnNorm, {"side.weight": (0, 1), "side.bias": (0,)}),
    Row(Wave, {"res.1.weight": (0, 1)}, "where its result is not used"),
)


def leaves(outputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def step(module: nn.Module, **kwargs: Any) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    sum(leaf.float().mean() for leaf in leaves(module.train()(IMAGE, **kwargs)) if leaf.requires_grad).backward()
    optimizer.step()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.net.__name__)
def test_what_runs_at_other_times_is_cut_along(row: Row) -> None:
    model = row.net()
    result = gp.prune(model, (IMAGE,), target="params=0.4", align=1, verify=False)
    assert [run.label for run in result.host.runs.runs] == [row.label]
    assert type(result.module) is row.net
    assert result.report.notes == ()
    tensors, before = result.module.state_dict(), model.state_dict()
    for name, axes in row.cut.items():
        assert set(result.plan.parameters[name]) == set(axes)
        for axis, kept in result.plan.parameters[name].items():
            assert tensors[name].shape[axis] == len(kept) < before[name].shape[axis]
    step(result.module, **dict(row.kwargs))
    again = gp.apply(model, result.plan, (IMAGE,), verify=False)
    assert {n: t.shape for n, t in again.module.state_dict().items()} == {n: t.shape for n, t in tensors.items()}


def test_numbers_that_only_training_reads_follow() -> None:
    result = gp.prune(Viewed(), (IMAGE,), target="params=0.4", align=1, verify=False)
    assert type(result.module) is Viewed
    assert result.report.notes == ()
    assert (result.module.width, result.module.stride) == (result.module.a.out_channels, 16)
    step(result.module)


def test_features_that_only_training_hands_out_stay_whole_for_a_reason() -> None:
    result = gp.prune(Features(), (IMAGE,), target="params=0.6", align=1, verify=False)
    assert type(result.module) is Features
    analysis = result.state.analysis
    assert analysis is not None
    (reason,) = analysis.site_reasons("a.weight", 0)
    assert str(reason) == "axis of the model's output 'relu' in training mode"
    (note,) = result.report.notes
    assert note == (
        "'a.weight[0]', 'a.bias[0]', 'norm.weight[0]', 'norm.bias[0]' and 1 more stay whole for what the model does in "
        "training mode"
    )
    _, feature = result.module.train()(IMAGE)
    assert feature.shape == (2, 16, 8, 8)


def test_a_training_mode_that_does_not_run_is_said() -> None:
    result = gp.prune(Denoising(), (IMAGE,), target="params=0.4", align=1, verify=False)
    assert type(result.module) is Denoising
    assert result.report.notes == (
        "no run of the example reads 'noise.weight', 'noise.bias': they stay as they are, and what they are for fails "
        "if it takes a feature that was cut; give an example that reaches them, or protect what they read",
        "what the model does in training mode was not seen (targets are missing), and may not fit what was cut",
    )


def test_parameters_that_no_run_reads_are_named() -> None:
    result = gp.prune(TwoTowers(), (IMAGE,), target="params=0.4", align=1, verify=False)
    (note,) = result.report.notes
    assert note == (
        "no run of the example reads 'spare', 'text.weight', 'text.bias': they stay as they are, and what they are for "
        "fails if it takes a feature that was cut; give an example that reaches them, or protect what they read"
    )


def test_explain_knows_what_only_training_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = gp.analyze(Auxiliary(), (IMAGE,))
    assert cut_along(analysis)["aux.4.weight"] == "in training mode"
    inner, outer = explain_axis(analysis, "aux.4.weight", 0), explain_axis(analysis, "aux.4.weight", 1)
    assert inner["fixed"] == ["nothing is pruned that the traced run does not read"]
    assert [group["name"] for group in outer["groups"]] == ["a.weight[0]"]
    monkeypatch.setattr(cli.gp, "analyze", lambda *_, **__: analysis)
    said = CliRunner().invoke(cli.app, ["explain", "net:net", "aux.4.weight"]).output
    assert said.startswith("read in training mode alone, and cut along\naux.4.weight[0]  12 = ")


def test_a_net_without_training_code_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(torch_runs, "differs_in_training", refuse)
    assert TorchHost.trace(Stem(), (IMAGE,)).runs.runs == ()


def test_a_wrong_cut_of_what_only_training_reads_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    following = torch_other_ways.outputs_in

    def shifted(module: nn.Module, run: torch_runs.OtherRun) -> list[torch.Tensor]:
        module.aux.weight.data = module.aux.weight.data.roll(1, 1)
        return following(module, run)

    monkeypatch.setattr(torch_other_ways, "outputs_in", shifted)
    monkeypatch.setattr(torch_module, "wrong_contents", lambda *_: "")
    result = gp.prune(Segmentation(), (IMAGE,), target="params=0.4", align=1, verify=False)
    (note,) = result.report.notes
    assert note.startswith("in training mode, the module returns values that differ by ")


def test_budgets_and_files_do_not_hold_what_only_training_reads(tmp_path: Any) -> None:
    plain, model = gp.analyze(Stem(), (IMAGE,)), Auxiliary()
    analysis = gp.analyze(model, (IMAGE,))
    assert [(g.name, g.size, g.exact) for g in analysis.groups] == [(g.name, g.size, g.exact) for g in plain.groups]
    result = gp.prune(model, (IMAGE,), target="params=0.4", align=1, verify=False)
    assert result.report.cost("params").before == sum(p.numel() for p in Stem().parameters())
    result.save_onnx(tmp_path / "net.onnx")
    result.save_state(tmp_path / "state")
    restored = gp.restore(Auxiliary(), tmp_path / "state", (IMAGE,))
    for ours, theirs in zip(leaves(restored.train()(IMAGE)), leaves(result.module.train()(IMAGE)), strict=True):
        assert ours.shape == theirs.shape
    np.testing.assert_array_equal(restored.aux[0].weight.detach(), result.module.aux[0].weight.detach())
