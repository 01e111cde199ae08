"""A pruner for training loops: two calls in the loop, and a dense, proven model at the end.

    pruner = gp.Pruner(model, example, target="macs=0.5", method="group-norm", steps=len(loader) * epochs)
    for batch in loader:
        loss(model, batch).backward()
        pruner.before_step()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    result = pruner.finish()

The module keeps its class, its forward and its parameters, which the optimiser goes on with: units that have gone are
zeros in them until :meth:`Pruner.finish` cuts them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from graphprune.compiling import with_note
from graphprune.data.batches import SAMPLES
from graphprune.errors import ModelError, OptionError
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.stored import to_numpy
from graphprune.hosts.torch.trace import inference
from graphprune.hosts.torch.untouched import untouched
from graphprune.pipeline.state import Check
from graphprune.proof.compare import compare, require
from graphprune.result import Result
from graphprune.session import Session
from graphprune.training.distillation import Teacher
from graphprune.training.method import Loop
from graphprune.training.options import Training
from graphprune.training.selection import Chooser

_SHIFTED = (
    "units of a stream that norms take statistics of have gone: the module of the loop counted their zeros, the dense "
    "one does not, and computes something else"
)
NAME = "masked-training"
"""The check that the module of the loop, with zeros, computes what the dense one does."""


class Pruner:
    """Prunes a module while it is trained.

    Args:
        model: A ``torch.nn.Module``, also one in ``DistributedDataParallel`` or of ``torch.compile``.
        example_inputs: What it is called with, as for :func:`graphprune.prune`.
        recipe: A recipe, its name, the path of its file, or a dictionary; files and dictionaries may have a table
            ``training``.
        calibration: Inputs for criteria that look at activations, as for :func:`graphprune.prune`.
        samples: At most so many of them are used.
        dynamic_shapes: As for :func:`graphprune.prune`.
        **keywords: The fields of :class:`graphprune.training.options.Training` (``method``, ``steps``, ``schedule``,
            ``begin``, ``end``, ``every``, ``distill``, ``refit``, ``options``), and those of a recipe (``target``,
            ``criterion``, ``allocation``, ``align``, ``only``, ``protect``, ...).

    Raises:
        GraphpruneError: One of its kinds, with a message that says what to do.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        recipe: Any = None,
        *,
        calibration: Any = None,
        samples: int = SAMPLES,
        dynamic_shapes: Any = None,
        **keywords: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise OptionError(f"a pruner takes a torch.nn.Module, got a '{type(model).__name__}'; use graphprune.prune")
        model = unwrapped(model)
        self.options, found = Training.read(recipe, keywords)
        self.method, schedule = self.options.made()
        if self.options.refit and calibration is None:
            raise OptionError("a refit looks at what layers read; give some inputs (calibration=...)")
        session = Session(model, example_inputs, data=calibration, samples=samples, dynamic_shapes=dynamic_shapes)
        self._session, self._chooser = session, Chooser(session, found)
        self._loop = Loop(model, self._chooser, schedule, found.seed, self.options.refit)
        if not self._loop.units.n:
            raise ModelError("no group of this model can be pruned while it is trained; see 'graphprune explain'")
        self._teacher = Teacher(model, session.host, self.options.distill) if self.options.distill else None
        self.method.start(self._loop)

    def __repr__(self) -> str:
        done, wanted = self._loop.step, self._loop.schedule.steps
        return f"Pruner({type(self._loop.module).__name__}, method={self.method.name}, {done} of {wanted} steps)"

    @property
    def alive(self) -> dict[str, Tensor]:
        """By the name of each group, which of its units have not gone for good."""
        units = self._loop.units
        return {n: torch.from_numpy(each > 0) for n, each in units.by_group(self._loop.alive).items()}

    @property
    def steps(self) -> int:
        """How many steps are done."""
        return self._loop.step

    @property
    def over(self) -> bool:
        """Whether the target is met; from there on, what is left trains on."""
        return self._loop.over

    @property
    def distance(self) -> float:
        """How far the answers were from the dense model's in the last forward, where ``distill`` is given."""
        return self._teacher.last if self._teacher is not None else 0.0

    def remains(self, metric: str = "macs") -> float:
        """The fraction of a cost that what has not gone for good would have, cut."""
        return self._chooser.remains(self._loop.alive, metric)

    def before_step(self) -> None:
        """Call it between ``backward`` and ``optimizer.step()``, where gradients are clipped or unscaled already."""
        self._follow()
        self.method.before_step(self._loop)

    def step(self) -> None:
        """Call it after ``optimizer.step()``."""
        self._follow()
        self._loop.step += 1
        self.method.after_step(self._loop)
        self._loop.hold()

    def _follow(self) -> None:
        """Goes where the module has gone, to another device."""
        if self._loop.alive.device != self._loop.units.device:
            self._moved()

    def _moved(self) -> None:
        self._loop.remove(self._loop.alive.to(self._loop.units.device), over=self._loop.over)
        self.method.load(self.method.state(), self._loop)

    def finish(self, *, verify: Any = True) -> Result:
        """Cuts what has gone (all that has to, if the loop was shorter than ``steps``), and proves it.

        The module that was trained stays as it is, with zeros; ``result.module`` is the dense one.

        Args:
            verify: As for :func:`graphprune.apply`.

        Raises:
            ProofError: The dense model computes something else.
        """
        if self._teacher is not None:
            self._teacher.close()
        self.method.finish(self._loop)
        self._loop.hold()  # weights of an earlier step, or means over steps, may have been loaded
        noted = {"criterion": self._chooser.recipe.score.criterion, "training": self.method.name}
        plan = self._chooser.plan(self._loop.alive, {**noted, "steps": self._loop.step})
        result = self._session.apply(plan, verify=verify)
        check = self._held_against(result)
        if check is None:
            return with_note(result, _SHIFTED) if result.state.inexact else result
        require((check,) if verify else ())
        return replace(result, report=replace(result.report, proof=(*result.report.proof, check)))

    def _held_against(self, result: Result) -> Check | None:
        """The module of the loop beside the dense one, on the example; not where norms count what has gone."""
        host, module = self._session.host, self._loop.module
        assert isinstance(host, TorchHost)
        if result.state.inexact or result.module is None:
            return None
        both, note = (module, result.module), "the module that was trained, with zeros = the dense one"
        found = compare(NAME, *(_run(each, host.example) for each in both), note=note)
        if found.passed:
            return found
        try:  # sums in another order: where that is all, nothing is left of it in double precision
            copies = [copy.deepcopy(each).double() for each in both]
            again = compare(NAME, *(_run(each, _doubled(host.example)) for each in copies), note=f"{note}, in float64")
        except Exception:  # noqa: BLE001  (a user's code may know one type only)
            return found
        return again

    # -- going on after a stop ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that changes while it runs, as tensors and plain values, beside that of the module and the optimiser."""
        return {
            "method": self.method.name,
            "step": self._loop.step,
            "over": self._loop.over,
            "alive": self._loop.alive.clone(),
            "state": self.method.state(),
            "teacher": None if self._teacher is None else self._teacher.module.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave; the module has the state that it had then.

        Raises:
            OptionError: It is of another method or another model.
        """
        if state["method"] != self.method.name or state["alive"].shape != self._loop.alive.shape:
            raise OptionError(
                f"the state is of method '{state['method']}' with {len(state['alive'])} units, this pruner is of "
                f"'{self.method.name}' with {self._loop.units.n}; make the pruner with the options that it had"
            )
        self._loop.step = int(state["step"])
        self._loop.remove(state["alive"].to(self._loop.alive.device), over=bool(state["over"]))
        self.method.load(state["state"], self._loop)
        if self._teacher is not None and state["teacher"] is not None:
            self._teacher.module.load_state_dict(state["teacher"])


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside of what trains on several devices, or compiles."""
    inside: Any = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
    return model if inside is None else unwrapped(inside)


def _doubled(example: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda each: each.double() if each.is_floating_point() else each, example)


def _run(module: nn.Module, example: Any) -> dict[str, Any]:
    """What a module returns for the example, in evaluation mode; it is left as it was."""
    device = next((each.device for each in module.parameters()), None)
    args, kwargs = pytree.tree_map_only(Tensor, lambda each: each.detach().clone().to(device), example)
    with untouched(module, runs=True), inference(module):
        torch.manual_seed(0)
        made = module(*args, **kwargs)
    leaves = [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)]
    return {str(i): to_numpy(leaf.detach()) for i, leaf in enumerate(leaves)}
