"""Recovery: what is trained, on what, how it is judged, and that it never harms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.data.batches import Batches, open_batches
from graphprune.hosts.torch.host import TorchHost
from graphprune.importance.judge import Judge
from graphprune.observer import Observer, Step
from graphprune.recovery.distance import Distance
from graphprune.recovery.feeds import feeds_of
from graphprune.recovery.stage import sets_of

WIDTH, CLASSES = 12, 5
HOW: dict[str, Any] = {"target": {"macs": 0.4}, "allocation": "isomorphic", "samples": 700, "verify": False}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Linear(WIDTH, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, CLASSES))
    made = nn.Sequential(*layers)
    for each in made.parameters():
        each.data *= 3
    return made.eval()


def inputs(count: int = 800, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def recovered(model: nn.Module, data: Any, **more: Any) -> gp.Result:
    how = {"recover_steps": 60, "recover_rate": 3e-3, **HOW, **more}
    return gp.prune(model, torch.from_numpy(inputs()[:4]), calibration=data, recover=True, **how)


def batches(count: int = 30) -> Batches:
    return open_batches(inputs(count), TorchHost.trace(net(), torch.from_numpy(inputs()[:4])))


# -- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "axis"), [("kl", 1), ("bce", -1), ("mse", -1), ("cosine", 1)])
def test_the_loss_that_is_trained_is_the_one_that_judges(kind: str, axis: int) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(7, 4, 3)).astype(np.float32) for _ in range(2))
    judge = Judge("y", 0, kind, axis)
    want = judge.loss(judge.prepared({"y": a}), judge.prepared({"y": b}))
    got = Distance((judge,), (1.0,))([torch.from_numpy(b)], [torch.from_numpy(a)])
    assert float(got) == pytest.approx(want, rel=1e-5)


def test_masked_logits_are_no_reason_for_numbers_that_are_none() -> None:
    wanted = torch.tensor([[1.0, 2.0, -torch.inf]])
    found = torch.tensor([[1.0, 1.0, -torch.inf]], requires_grad=True)
    loss = Distance((Judge("y", 0, "kl", 1),), (1.0,))([found], [wanted])
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss > 0
    assert found.grad is not None
    assert bool(found.grad.isfinite().all())


# -- the inputs ----------------------------------------------------------------------------------------------------


def test_each_epoch_sees_each_sample_once() -> None:
    feeds = feeds_of(batches(24), macs=4e9 / 8, stacked=True)
    assert feeds.samples == 8
    plain = type(feeds)(feeds.batches, feeds.samples, feeds.chunk, feeds.seed)
    for epoch in range(2):
        seen = np.concatenate([plain(3 * epoch + step)[0]["input"] for step in range(3)])
        assert sorted(seen[:, 0]) == sorted(inputs(24)[:, 0])


def test_a_step_depends_on_its_number_alone() -> None:
    feeds = feeds_of(batches(), macs=1e6, seed=3, stacked=True)
    assert feeds.mix
    one, other = (feeds_of(batches(), macs=1e6, seed=3, stacked=True)(5)[0]["input"] for _ in range(2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, feeds(6)[0]["input"])


def test_what_judges_is_not_trained_on() -> None:
    train, held = open_batches(inputs(160), TorchHost.trace(net(), torch.from_numpy(inputs()[:4]))).set_apart()
    assert held is not None
    sets = sets_of(train, held)
    rows = [{tuple(row) for batch in each for row in batch["input"]} for each in (sets.train, sets.choose, sets.accept)]
    assert not rows[0] & (rows[1] | rows[2])
    for single in (False, True):  # too few to keep any apart from the start: then from training
        sets = sets_of(batches(32), None, single=single)
        assert not {*map(tuple, sets.train[0]["input"])} & {*map(tuple, sets.accept[0]["input"])}
        assert sets.train.samples + sets.accept.samples == 32


# -- what comes out ------------------------------------------------------------------------------------------------


def lost(dense: nn.Module, pruned: nn.Module) -> float:
    """The mean divergence on inputs that nobody has seen."""
    with torch.no_grad():
        a, b = (each(torch.from_numpy(inputs(500, 9))).log_softmax(-1) for each in (dense, pruned))
    return float((a.exp() * (a - b)).sum(-1).mean())


def test_a_module_gets_better_and_keeps_its_class() -> None:
    model = net()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    plain = gp.prune(model, torch.from_numpy(inputs()[:4]), calibration=inputs(), **HOW)
    result = recovered(model, inputs())
    row = result.report.recovery
    assert row is not None
    assert row.taken
    assert row.after < row.before
    assert lost(model, result.module) < 0.85 * lost(model, plain.module)
    assert type(result.module) is nn.Sequential
    assert all(each.requires_grad and each.grad is None for each in result.module.parameters())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert any("recovered by training" in note for note in result.report.notes)
    assert result.report.to_dict()["recovery"]["after"] == row.after


def test_the_file_is_what_was_trained(tmp_path: Path) -> None:
    result = recovered(net(), inputs(), verify=True)
    result.save_onnx(tmp_path / "small.onnx")
    checks = gp.verify(net(), tmp_path / "small.onnx", result.plan, torch.from_numpy(inputs()[:4]))
    assert all(check.passed for check in checks)
    other = gp.prune(net(), torch.from_numpy(inputs()[:4]), calibration=inputs(), **HOW)
    other.save_onnx(tmp_path / "untrained.onnx")
    checks = gp.verify(net(), tmp_path / "untrained.onnx", result.plan, torch.from_numpy(inputs()[:4]))
    assert not all(check.passed for check in checks)


def test_a_plan_that_is_applied_says_that_nothing_is_trained() -> None:
    plan = recovered(net(), inputs()).plan
    assert plan.options["recovered"]
    for data in (None, inputs()):
        result = gp.apply(net(), plan, torch.from_numpy(inputs()[:4]), calibration=data)
        assert any("recovery, which is not repeated" in note for note in result.report.notes)
        assert "recovered" not in result.plan.options


def test_a_folder_is_made_or_refused_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(gp.OutputError, match="cannot make folder"):
        recovered(net(), inputs(), recover_folder=tmp_path / "file")
    recovered(net(), inputs(), recover_folder=tmp_path / "new" / "folder")
    assert [each.suffix for each in (tmp_path / "new" / "folder").iterdir()] == [".pt"]


def test_a_file_gets_better(tmp_path: Path) -> None:
    gp.export_onnx(net(), torch.from_numpy(inputs()[:4]), tmp_path / "dense.onnx")
    result = gp.prune(
        tmp_path / "dense.onnx", calibration=inputs(), recover=True, recover_steps=60, recover_rate=3e-3, **HOW
    )
    row = result.report.recovery
    assert row is not None
    assert row.taken
    assert row.after < row.before
    result.save_onnx(tmp_path / "small.onnx")
    assert all(each.passed for each in gp.verify(tmp_path / "dense.onnx", tmp_path / "small.onnx", result.plan))


@pytest.mark.parametrize("rate", [1.0, 1e4])
def test_a_rate_far_too_high_harms_nothing(rate: float) -> None:
    plain = gp.prune(net(), torch.from_numpy(inputs()[:4]), calibration=inputs(), **HOW)
    result = recovered(net(), inputs(), recover_rate=rate)
    row = result.report.recovery
    assert row is not None
    assert not row.taken
    want = plain.module.state_dict()
    assert all(torch.equal(each, want[name]) for name, each in result.module.state_dict().items())
    assert any("not taken" in note for note in result.report.notes)
    assert row.after > row.before
    json.dumps(result.report.to_dict(), allow_nan=False)


def test_a_rate_is_found() -> None:
    row = recovered(net(), inputs(), recover_rate=0.0).report.recovery
    assert row is not None
    rates = dict(row.rates)
    assert row.rate == min(rates, key=lambda each: rates[each])
    assert len(rates) >= 3
    assert row.taken


def test_two_runs_are_equal() -> None:
    one, other = (recovered(net(), inputs()) for _ in range(2))
    assert one.report.recovery == other.report.recovery
    want = other.module.state_dict()
    assert all(torch.equal(each, want[name]) for name, each in one.module.state_dict().items())


class Stop(Exception):
    """Stands for a kill."""


class StopsAt(Observer):
    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, step: Step) -> None:
        if step.name == "recover" and step.done == self.at:
            raise Stop


def test_a_run_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path) -> None:
    want = recovered(net(), inputs())
    with pytest.raises(Stop):
        recovered(net(), inputs(), recover_folder=tmp_path, progress=StopsAt(30))
    assert [each.suffix for each in tmp_path.iterdir()] == [".pt"]
    result = recovered(net(), inputs(), recover_folder=tmp_path)
    assert want.report.recovery is not None
    assert result.report.recovery is not None
    assert result.report.recovery.losses == want.report.recovery.losses
    state = want.module.state_dict()
    assert all(torch.equal(each, state[name]) for name, each in result.module.state_dict().items())


def test_notes_of_another_run_are_refused(tmp_path: Path) -> None:
    recovered(net(), inputs(), recover_folder=tmp_path)
    with pytest.raises(gp.OptionError, match="is not of this recovery"):
        recovered(net(), inputs(), recover_folder=tmp_path, target={"macs": 0.7})


# -- which weights -------------------------------------------------------------------------------------------------


def changed(weights: str) -> set[str]:
    plain = gp.prune(net(), torch.from_numpy(inputs()[:4]), calibration=inputs(), **HOW)
    result = recovered(net(), inputs(), recover_weights=weights, recover_rank=2)
    before, after = plain.module.state_dict(), result.module.state_dict()
    assert before.keys() == after.keys()
    assert result.report.recovery is not None
    assert result.report.recovery.taken
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_biases_alone() -> None:
    assert changed("biases") == {"0.bias", "2.bias", "4.bias"}


def test_low_rank_additions_are_merged() -> None:
    pytest.importorskip("peft")
    assert changed("lora") == {"0.weight", "2.weight", "4.weight"}


# -- wrong options -------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no data": ({"recover": True}, "recovery needs inputs"),
    "steps and no data": ({"recover_steps": 5}, "recovery needs inputs"),
    "weights": ({"recover": True, "recover_weights": "al"}, "unknown recover_weights 'al'"),
    "rate": ({"recover": True, "recover_rate": -1.0}, "expected 0 or more"),
    "data alone": ({"recover_data": np.zeros((4, WIDTH), np.float32)}, "give 'recover' too"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_refused(name: str) -> None:
    keywords, message = WRONG[name]
    with pytest.raises(gp.OptionError, match=message):
        gp.prune(net(), torch.from_numpy(inputs()[:4]), target="macs=0.5", **keywords)


def test_other_data_are_trained_on() -> None:
    row = recovered(net(), inputs(), recover_data=inputs(400, 5)).report.recovery
    assert row is not None
    assert 300 < row.data < 400  # some are kept apart
