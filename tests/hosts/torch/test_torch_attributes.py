"""Numbers that the user's module keeps: changed where the copy fails without it, the fewest, never by coincidence."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_proof import prove

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.hosts.torch.constructor import constructed_changes
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.module import Made, sliced_module
from graphprune.hosts.torch.spots import Spot, find_spots, reaching
from graphprune.passes.slice_groups import slice_edits

IMAGE = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)
ROWS = (torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0)),)


def made(model: nn.Module, example: Any) -> Made:
    proof = prove(model.eval(), example, n=1)
    return sliced_module(model, proof.host, proof.pruned)


class Detector(nn.Module):
    """All numbers serve the loss and the post-processing; each equals a width by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = self.stride = 8
        self.max_detections, self.anchors, self.levels = 16, [4, 8, 16], (8, 16)
        self.settings = {"top": 16, "chunk": 8}
        self.stem, self.mid = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.out = nn.Conv2d(16, 4 + 8, 1)

    def forward(self, x):
        return self.out(F.relu(self.mid(F.relu(self.stem(x)))))

    def decode(self, y):
        box, classes = y.split([4, self.num_classes], 1)
        return box * self.stride, classes


class Chunked(nn.Module):
    """The forward reads the size of its windows, which works with any: it must stay what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.chunk_size = self.window = 8
        self.up, self.down = nn.Linear(12, 8), nn.Linear(8, 12)

    def forward(self, x):
        x = torch.cat([self.up(part) for part in x.split(self.chunk_size, 1)], 1)
        return self.down(F.gelu(x)[:, -self.window :])


class Indexed(nn.Module):
    """A block's index equals the number of heads, and so does the length of the parts that the forward works in."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index, self.heads, self.head_dim, self.chunk = index, 4, 3, 4
        self.value, self.out = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x, states):
        b, s, _ = x.shape
        v = self.value(x).view(b, s, self.heads, self.head_dim)
        v = torch.cat([part * part.sigmoid() for part in v.split(self.chunk, 1)], 1)
        states[self.index] = v.cumsum(1).reshape(b, s, -1)
        return x + self.out(states[self.index])


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Indexed(i) for i in range(5))

    def forward(self, x):
        states: dict[int, torch.Tensor] = {}
        for layer in self.layers:
            x = layer(x, states)
        return x


@dataclass
class Sizes:
    heads: int = 4
    head_dim: int = 3


@dataclass(frozen=True, slots=True)
class Frozen:
    heads: int = 4
    head_dim: int = 3


@dataclass
class Config:
    inner: Any = field(default_factory=Sizes)
    num_labels: int = 4
    window: int = 12


class Configured(nn.Module):
    """Sizes are read from an object in an object."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.value, self.out = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        b, s, _ = x.shape
        inner = self.config.inner
        v = self.value(x).view(b, s, inner.heads, inner.head_dim)
        return self.out(v.cumsum(1).flatten(2))


class Reader(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.value, self.out = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        b, s, _ = x.shape
        return x + self.out(self.value(x).view(b, s, self.config.heads, -1).cumsum(1).flatten(2))


class Readers(nn.Module):
    """Layers read their sizes from one object."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Sizes()
        self.layers = nn.ModuleList(Reader(self.config) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Parts(nn.Module):
    """Sizes of parts in a list; a tuple beside it that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.strides = [8, 6], (8, 6)
        self.both, self.a, self.b = nn.Linear(12, 14), nn.Linear(8, 4), nn.Linear(6, 4)

    def forward(self, x):
        a, b = self.both(x).split(self.parts, -1)
        return self.a(a) + self.b(b.tanh())


class Branches(nn.Module):
    """A block that is fused for deployment: the fused layer is built from numbers that the forward never reads."""

    def __init__(self, in_chs: int, out_chs: int, groups: int = 1, kernel_size: int = 3) -> None:
        super().__init__()
        self.in_chs, self.out_chs, self.groups, self.kernel_size = in_chs, out_chs, groups, kernel_size
        self.wide = nn.Conv2d(in_chs, out_chs, kernel_size, padding=kernel_size // 2, groups=groups)
        self.point = nn.Conv2d(in_chs, out_chs, 1, groups=groups)
        self.stride = 8

    def forward(self, x):
        return self.wide(x) + self.point(x)

    def fuse(self):
        fused = nn.Conv2d(
            self.in_chs, self.out_chs, self.kernel_size, padding=self.kernel_size // 2, groups=self.groups
        )
        fused.weight.data = self.wide.weight.data + F.pad(self.point.weight.data, [self.kernel_size // 2] * 4)
        fused.bias.data = self.wide.bias.data + self.point.bias.data
        return fused


class Grouped(Branches):
    """Arguments that the block does not keep, or keeps under other names."""

    def __init__(self, inner: int, out_chs: int, size: int = 3, group_size: int = 0) -> None:
        super().__init__(inner, out_chs, inner // group_size if group_size else 1, size)


class Fusible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise, self.last = Branches(3, 8), Branches(8, 8, groups=8), Branches(8, 6)
        self.grouped = Grouped(8, 8, 5, group_size=1)

    def forward(self, x):
        return self.last(F.relu(self.grouped(self.depthwise(F.relu(self.first(x))))))

    def fused(self, x):
        return self.last.fuse()(F.relu(self.grouped.fuse()(self.depthwise.fuse()(F.relu(self.first.fuse()(x))))))


class Widened(nn.Module):
    """The constructor derives the inner width; only the outer one is known by its argument."""

    def __init__(self, dim: int, ratio: int = 2, steps: int = 12) -> None:
        super().__init__()
        self.dim, self.ratio, self.steps = dim, ratio, steps
        self.up, self.down = nn.Linear(dim, ratio * dim), nn.Linear(ratio * dim, dim)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(x)))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.block, self.out = nn.Linear(12, 12), Widened(12), nn.Linear(12, 5)

    def forward(self, x):
        return self.out(self.block(self.into(x)))


def changed(result: Made) -> set[str]:
    return {row.path for row in result.attributes}


TABLE = [
    ("detector", Detector, IMAGE, set()),
    ("windows", Chunked, ROWS, set()),
    ("indices", Stack, ROWS, {"heads", "head_dim"}),
    ("config", lambda: Configured(Config()), ROWS, {"heads", "head_dim"}),
    ("frozen config", lambda: Configured(Config(inner=Frozen())), ROWS, {"heads", "head_dim"}),
    ("namespace", lambda: Configured(SimpleNamespace(inner=Sizes(), top=12)), ROWS, {"heads", "head_dim"}),
    ("list of parts", Parts, ROWS, {"parts"}),
    ("fused blocks", Fusible, IMAGE, {"in_chs", "out_chs", "groups"}),
    ("derived width", Wide, ROWS, {"dim"}),
]


@pytest.mark.parametrize(("build", "example", "allowed"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_only_what_must_change_changes_and_is_listed(build: Any, example: Any, allowed: set[str]) -> None:
    torch.manual_seed(0)
    model = build()
    result = made(model, example)
    assert type(result.module) is type(model), result.notes
    before, after = find_spots(model), find_spots(result.module)
    listed = {row.path: (row.before, row.after) for row in result.attributes}
    ours = {
        str(spot): (value, after[spot])
        for spot, value in before.items()
        if value != after[spot] and not type(model.get_submodule(spot.path)).__module__.startswith("torch.nn")
    }
    assert ours == listed
    assert {path.rpartition(".")[2] for path in listed} <= allowed
    assert bool(listed) == bool(allowed)


@pytest.mark.parametrize("heads", [(2, 2, 2), (4, 3, 2), (2, 4, 2)])
def test_an_object_stays_shared_where_its_readers_agree(heads: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Readers().eval()
    host = TorchHost.trace(model, ROWS).folded()
    analysis = analyze_graph(host.graph())
    kept = {}
    for i, n in enumerate(heads):
        (group,) = (
            group
            for group in analysis.groups
            if group.size == 4 and any(site.tensor == f"layers.{i}.value.weight" for site in group.sites)
        )
        kept[group.factor] = np.arange(n)
    pruned = host.edited(slice_edits(analysis, {factor: index for factor, index in kept.items() if len(index) < 4}))
    result = sliced_module(model, host, pruned)
    assert type(result.module) is Readers, result.notes
    assert tuple(layer.config.heads for layer in result.module.layers) == heads
    same = len(set(heads)) == 1
    assert [layer.config is result.module.config for layer in result.module.layers] == [same or n == 4 for n in heads]
    assert {str(row.path) for row in result.attributes} == (
        {"config.heads"} if same else {f"layers.{i}.config.heads" for i in range(3) if heads[i] < 4}
    )
    assert (model.config.heads, model.layers[2].config is model.config) == (4, True)


def test_other_methods_work() -> None:
    torch.manual_seed(0)
    detector = made(Detector(), IMAGE).module
    box, classes = detector.decode(detector(*IMAGE))
    assert (box.shape[1], classes.shape[1]) == (4, 8)
    fusible = made(Fusible(), IMAGE).module
    assert fusible.depthwise.groups == fusible.depthwise.wide.weight.shape[0] < 8
    assert {block.stride for block in (fusible.first, fusible.depthwise, fusible.last)} == {8}
    torch.testing.assert_close(fusible.fused(*IMAGE), fusible(*IMAGE))


def test_a_constructor_that_says_nothing_changes_nothing() -> None:
    """A number that its argument sets, but no weight: equal to a width by chance."""
    model = Wide()
    cut = Wide()
    cut.block = Widened(7)
    cut.block.dim = 12
    assert constructed_changes(model, cut) == {Spot("block", (), "dim"): 7}


def test_building_anew_leaves_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    class Loud(Widened):
        def __init__(self, dim: int) -> None:
            super().__init__(dim)
            sys.stdout.write(f"{random.random()} {np.random.rand()} {torch.rand(1)}")

    model, cut = Loud(12), Loud(7)
    cut.dim = 12
    capsys.readouterr()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert constructed_changes(model, cut) == {Spot("", (), "dim"): 7}
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert capsys.readouterr().out == ""


def test_numbers_are_followed_through_what_is_computed_of_them() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.unread = 6, [1, 2], {"n": 4}, 12

        def forward(self, x):
            assert self.unread
            return x.view(2, 5, self.a * self.b[1]).view(-1, 12 // self.c["n"])

    spots = find_spots(Computed())
    seen = reaching(Computed(), spots, lambda module: module(*ROWS))
    assert {str(spot) for spot in seen} == {"a", "b", "c.n"}


def test_report_and_plan_list_the_changes() -> None:
    torch.manual_seed(0)
    result = gp.prune(Stack().eval(), ROWS, target="params=0.6", verify=False)
    data = result.report.to_dict()["attributes"]
    assert data
    assert {row["path"]: [row["before"], row["after"]] for row in data} == result.plan.options["attributes"]
    assert all(row["path"].rpartition(".")[2] in ("heads", "head_dim") for row in data)
    assert [layer.index for layer in result.module.layers] == [0, 1, 2, 3, 4]
    text = str(result.report)
    assert "attributes of the module" in text
    assert "layers.*.head" in text
