"""The parts of recovery: what is kept apart, mixed, mirrored, remembered, computed twice, and what labels say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recovery.test_recovery import HOW, WIDTH, inputs, net, recovered
from torch import nn
from torch.nn import functional

import graphprune as gp
from graphprune.data.apart import filled, required
from graphprune.data.batches import open_batches
from graphprune.hosts.torch.host import TorchHost
from graphprune.importance.judge import Judge
from graphprune.passes import Recover
from graphprune.recipe import Recipe
from graphprune.recovery.checkpointing import checkpointed, repeated
from graphprune.recovery.distance import Distance
from graphprune.recovery.feeds import Fed, Feeds, are_pictures, mirrored, mixed
from graphprune.recovery.options import Recovering
from graphprune.recovery.teacher import Remembered

# -- options ---------------------------------------------------------------------------------------------------------


def test_options_are_those_of_one_class() -> None:
    how = Recovering(steps=7, rate=1e-3, weights="biases", precision="float32", memory="blocks")
    recipe = Recipe.of(**{f"recover_{name}": value for name, value in how.training().items()})
    assert recipe.recovery.training() == how.training() == Recover(**how.training()).training()
    assert recipe.to_dict()["recovery"]["steps"] == 7
    assert str(Recover(steps=7)) == "recover{steps=7}"
    with pytest.raises(gp.OptionError, match=r"^unknown precision 'half'; expected one of auto, float32, bfloat16$"):
        Recover(precision="half").check()
    with pytest.raises(gp.OptionError, match=r"^unknown recover_memory 'none'; expected one of all, blocks$"):
        Recipe.of(recover_memory="none")


# -- what is kept apart ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "single", "want"),
    [
        (256, 128, True, 32),  # few large batches: single samples of them
        (256, 128, False, 128),  # which see each other: whole ones
        (256, 32, True, 32),
        (256, 16, True, 32),
        (1024, 512, True, 128),
        (64, 64, True, 32),
        (40, 64, True, 0),
        (6, 2, True, 2),
    ],
)
def test_as_many_are_kept_as_decide(count: int, size: int, single: bool, want: int) -> None:
    assert required(count, size, single=single) == want


@pytest.mark.parametrize(("n", "size"), [(224, 128), (32, 128), (7, 3), (128, 128), (5, 16)])
def test_what_is_left_fills_batches_evenly(n: int, size: int) -> None:
    at = filled(np.arange(n), size)
    assert len(at) % size == 0
    counts = np.bincount(at, minlength=n)
    assert counts.max() - counts.min() <= 1
    assert at[:n].tolist() == list(range(n))


def test_a_model_of_fixed_size_gives_single_samples_away() -> None:
    host = TorchHost.trace(net(), torch.from_numpy(inputs()[:64]))
    whole = open_batches(inputs(128), host)
    assert whole.batch_size == 64
    train, held = whole.set_apart(needed=True)
    assert held is not None
    rows = [{tuple(row) for batch in part for row in batch["input"]} for part in (train, held)]
    assert [len(each) for each in rows] == [96, 32]
    assert not rows[0] & rows[1]
    assert all(len(batch["input"]) == 64 for part in (train, held) for batch in part)
    assert train.distinct(8).samples == 96


# -- what is mixed and mirrored --------------------------------------------------------------------------------------


def test_labels_are_mixed_as_their_samples_are() -> None:
    values = np.arange(16, dtype=np.float32)
    pictures = np.broadcast_to(values[:, None, None, None], (16, 3, 32, 32)).copy()
    fed = mixed(Fed({"x": pictures}, ((values, np.ones(16, np.float32)),)), (), np.random.default_rng(0))
    assert sum(weight for _, weight in fed.labels) == pytest.approx(np.ones(16), rel=1e-5)
    want = sum(right * weight for right, weight in fed.labels)
    assert fed.inputs["x"].mean((1, 2, 3)) == pytest.approx(want, abs=0.5)  # windows have whole sizes
    assert len({len(np.unique(picture)) for picture in fed.inputs["x"]}) > 1  # some have parts of others
    assert np.array_equal(pictures[:, 0, 0, 0], values)


def test_what_is_shared_stays() -> None:
    x, table = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    fed = mixed(Fed({"x": x, "table": table}), ("table",), np.random.default_rng(1))
    assert fed.inputs["table"] is table
    assert not np.array_equal(fed.inputs["x"], x)


def test_pictures_are_mirrored_along_their_width() -> None:
    for shape, axis in (((2, 3, 16, 12), 3), ((2, 16, 12, 3), 2)):
        x = np.random.default_rng(0).normal(size=shape)
        assert are_pictures({"x": x}, ())
        found = mirrored({"x": x}, (), np.array([True, False]))["x"]
        assert np.array_equal(found[0], np.flip(x[0], axis - 1))
        assert np.array_equal(found[1], x[1])
    assert not are_pictures({"x": np.zeros((2, 64))}, ())
    assert not are_pictures({"x": np.zeros((2, 3, 2, 64))}, ())


def picture_net(*, symmetric: bool) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 24, 3, padding=1)
    if symmetric:
        layer.weight.data = layer.weight.data + layer.weight.data.flip(-1)
    tail = (nn.ReLU(), nn.Conv2d(24, 8, (1, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    made = nn.Sequential(layer, *tail)
    if not symmetric:
        made = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(24 * 64, 16), nn.ReLU(), nn.Linear(16, 4))
    for each in made.parameters():
        each.data *= 2
    return made.eval()


@pytest.mark.parametrize("symmetric", [True, False])
def test_mirrored_where_the_teacher_sees_the_same(symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    fed = Feeds.fed

    def watched(self: Feeds, step: int) -> list[Fed]:
        seen.append(self.flip)
        return fed(self, step)

    monkeypatch.setattr(Feeds, "fed", watched)
    data = np.random.default_rng(0).normal(size=(96, 1, 8, 8)).astype(np.float32)
    how = {**HOW, "recover_steps": 3, "recover_rate": 1e-4}
    gp.prune(picture_net(symmetric=symmetric), torch.from_numpy(data[:2]), calibration=data, recover=True, **how)
    assert {*seen} == {symmetric}


# -- the teacher -----------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle, self.head = nn.Embedding(90, 8), nn.Linear(8, 40), nn.Linear(8, 90, bias=False)
        self.back = nn.Linear(40, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.back(torch.relu(self.middle(self.table(ids)))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("stacked", [True, False])
def test_what_was_answered_is_remembered_without_its_logits(stacked: bool) -> None:
    torch.manual_seed(0)
    model, calls = Reader(), []

    def answers(arrays: Any) -> list[torch.Tensor]:
        calls.append(len(arrays["ids"]))
        return [model(torch.from_numpy(arrays["ids"]))]

    ids = np.random.default_rng(0).integers(0, 90, size=(6, 5))
    known = Remembered(answers, model, stacked=stacked)
    with torch.no_grad():
        want = model(torch.from_numpy(ids))
    for _ in range(2):
        assert torch.allclose(known({"ids": ids})[0], want, atol=1e-6)
    assert calls == [6]
    assert known.held == 6 * 5 * 8 * 4  # what the head reads
    assert torch.allclose(known({"ids": ids[[3, 1]]})[0], want[[3, 1]], atol=1e-6)
    assert calls == ([6] if stacked else [6, 2])
    new = np.concatenate([ids[:1], ids[:1] + 1 - 2 * (ids[:1] > 80)])
    with torch.no_grad():
        assert torch.allclose(known({"ids": new})[0], model(torch.from_numpy(new)), atol=1e-6)
    assert calls[-1] == (1 if stacked else 2)


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    known = Remembered(lambda arrays: [torch.from_numpy(arrays["x"]) * 2], stacked=True, most=3 * 4 * 4)
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    for _ in range(2):
        assert torch.equal(known({"x": x})[0], torch.from_numpy(x * 2))
    assert known.held == 3 * 4 * 4


# -- computed twice --------------------------------------------------------------------------------------------------


def test_blocks_that_are_computed_twice_have_the_same_gradients() -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)) for _ in range(3))
    runs = []
    blocks[0][0].register_forward_hook(lambda *_: runs.append(1))

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = blocks, nn.Linear(WIDTH, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)  # type: ignore[no-any-return]

    model, x, found = Stack(), torch.randn(4, WIDTH), []
    assert repeated(model) == [*blocks]
    for twice in (False, True):
        model.zero_grad()
        runs.clear()
        if twice:
            with checkpointed(model):
                model(x).square().sum().backward()
        else:
            model(x).square().sum().backward()
        assert len(runs) == 1 + twice
        found.append([each.grad.clone() for each in model.parameters() if each.grad is not None])
    assert all(torch.allclose(a, b) for a, b in zip(*found, strict=True))
    assert "forward" not in vars(blocks[0])
    with pytest.raises(gp.OptionError, match="no repeated blocks"), checkpointed(nn.Sequential(nn.Linear(2, 2))):
        pass


# -- labels, narrow numbers, time ------------------------------------------------------------------------------------


def test_labels_count_as_much_as_the_teacher() -> None:
    torch.manual_seed(0)
    found, wanted = torch.randn(6, 5), torch.randn(6, 5)
    right = np.array([0, 1, 2, 3, 4, 0])
    distance = Distance((Judge("y", 0, "kl", 1),), (1.0,))
    got = distance([found], [wanted], ((right, np.ones(6, np.float32)),))
    want = functional.cross_entropy(found, torch.from_numpy(right))
    assert float(got) == pytest.approx(float((distance([found], [wanted]) + want) / 2), rel=1e-5)


def test_a_file_with_labels_is_learned_from(tmp_path: Path) -> None:
    """Labels that contradict the teacher: the student follows them half of the way."""
    data = inputs(400, 4)
    with torch.no_grad():
        labels = (net()(torch.from_numpy(data)).argmax(1).numpy() + 1) % 5
    np.savez(tmp_path / "labelled.npz", input=data, labels=labels)
    found = []
    for source in (tmp_path / "labelled.npz", data):
        given = gp.prune(net(), torch.from_numpy(inputs()[:4]), calibration=inputs(), **HOW)
        result = gp.recover(
            given, str(source) if isinstance(source, Path) else source, recover_steps=60, recover_rate=3e-3
        )
        with torch.no_grad():
            logits = result.module(torch.from_numpy(data))
        found.append(float(functional.cross_entropy(logits, torch.from_numpy(labels))))
    assert found[0] < 0.8 * found[1]


def test_bfloat16_trains_what_stays_float32() -> None:
    row, weights = {}, {}
    for precision in ("float32", "bfloat16"):
        result = recovered(net(), inputs(), recover_precision=precision)
        assert result.report.recovery is not None
        assert result.report.recovery.taken
        row[precision], weights[precision] = result.report.recovery, result.module[0].weight
    assert weights["bfloat16"].dtype == torch.float32
    assert not torch.equal(*weights.values())
    assert row["bfloat16"].after == pytest.approx(row["float32"].after, rel=0.1)


def test_a_run_by_the_clock_has_as_many_steps_when_it_goes_on(tmp_path: Path) -> None:
    how = {"recover_minutes": 0.01, "recover_steps": 40, "recover_folder": tmp_path}
    first = recovered(net(), inputs(), **how).report.recovery
    (noted,) = tmp_path.glob("*.json")
    assert first is not None
    assert json.loads(noted.read_text()) == first.steps
    noted.write_text("17")
    again = recovered(net(), inputs(), **how).report.recovery
    assert again is not None
    assert again.steps == 17
