"""A pruner in the loops of others: several processes, Hugging Face's Trainer, Lightning."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from training_nets import Attention, batch, made

import graphprune as gp

STEPS = 8
SHARED = ("iterative", "dhspg", "movement", "l0")
"""Those that look at weights, at gradients, and at gradients of gates."""


# -- several processes ---------------------------------------------------------------------------------------------


def pruned(rank: int, size: int) -> dict[str, list[torch.Tensor]]:
    """What each method makes of a net; each process sees its part of every batch."""
    found = {}
    for method in SHARED:
        model, example = made(Attention)
        run: nn.Module = DistributedDataParallel(model) if size > 1 else model
        pruner = gp.Pruner(run, (example,), target="macs=0.5", method=method, steps=STEPS, align=1)
        optimizer = torch.optim.AdamW(run.parameters(), lr=1e-2)
        for step in range(STEPS):
            x, y = batch(step, example)
            functional.cross_entropy(run(x[rank::size]), y[rank::size]).backward()
            pruner.before_step()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
        assert pruner.over
        found[method] = [pruner._loop.alive, *(each.detach().clone() for each in model.parameters())]
    return found


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        torch.save(pruned(rank, 2), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    started = [context.Process(target=process, args=(rank, str(tmp_path))) for rank in range(2)]
    for each in started:
        each.start()
    want = pruned(0, 1)
    for each in started:
        each.join(120)
        assert each.exitcode == 0
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for method in SHARED:
            assert torch.equal(want[method][0], got[method][0]), method
            for a, b in zip(want[method][1:], got[method][1:], strict=True):
                assert torch.allclose(a, b, rtol=1e-5, atol=1e-7), method


# -- Hugging Face --------------------------------------------------------------------------------------------------


class WithLoss(nn.Module):
    """A model as the Trainer takes it: it computes its loss itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = made(Attention, dtype=torch.float32)[0]

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        loss = {} if labels is None else {"loss": functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def data() -> list[dict[str, torch.Tensor]]:
    example = made(Attention, dtype=torch.float32)[1]
    x, y = batch(0, example, 32)
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


def train(folder: Path, *, stop: int = 0, resume: bool = False, own: bool = False) -> gp.Pruner:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == stop

    model, rows = WithLoss(), data()
    pruner = gp.Pruner(model, (rows[0]["x"][None],), target="macs=0.5", method="movement", steps=STEPS, align=1)
    if own:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(STEPS):
            chosen = rows[4 * step : 4 * step + 4]
            model(**{name: torch.stack([row[name] for row in chosen]) for name in rows[0]})["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            pruner.before_step()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
        return pruner
    how = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.1, optim="sgd",
        lr_scheduler_type="constant", use_cpu=True, report_to=[], disable_tqdm=True, save_steps=2, logging_steps=100,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = Trainer(model, how, train_dataset=rows, callbacks=[gp.PruningCallback(pruner), Stop()])
    trainer.train(resume_from_checkpoint=resume)
    return pruner


def test_a_trainer_prunes_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    want, own = train(tmp_path / "a"), train(tmp_path, own=True)
    for a, b in zip(want._loop.module.parameters(), own._loop.module.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)
    assert want.steps == STEPS
    assert want.over
    stopped = train(tmp_path / "b", stop=4)
    assert stopped.steps == 4
    again = train(tmp_path / "b", resume=True)
    assert again.steps == STEPS
    states = [each._loop.module.state_dict() for each in (want, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert want.finish().report.cost("macs").fraction <= 0.5
    (tmp_path / "b" / "checkpoint-8" / "pruner.pt").unlink()
    other = gp.PruningCallback(stopped)
    with pytest.raises(gp.OptionError, match="training begins at step 8, the pruner is at 4"):
        other.on_train_begin(SimpleNamespace(output_dir=str(tmp_path / "b")), SimpleNamespace(global_step=8), None)


# -- Lightning -----------------------------------------------------------------------------------------------------


def test_lightning_calls_it_at_its_events() -> None:
    models = []
    for lightning in (False, True):
        model, example = made(Attention)
        pruner = gp.Pruner(model, (example,), target="macs=0.5", steps=STEPS, align=1)
        callback = gp.PruningCallback(pruner)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        callback.on_fit_start(None, model)
        for step in range(2 * STEPS):  # two batches for a step
            x, y = batch(step, example)
            functional.cross_entropy(model(x), y).backward()
            if step % 2:
                callback.on_before_optimizer_step(None, model, optimizer) if lightning else pruner.before_step()
                optimizer.step()
            if lightning:
                callback.on_train_batch_end(None, model, None, None, step)
            elif step % 2:
                pruner.step()
            if step % 2:
                optimizer.zero_grad()
        assert pruner.steps == STEPS
        assert callback.state_dict()["step"] == STEPS
        models.append(copy.deepcopy(model).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        callback.other  # noqa: B018
