"""One model, opened once: analysed, measured, pruned in several ways, and proven. What was measured is kept.

    session = gp.Session("model.onnx", data="train.npz")
    small, smaller = (session.prune(target={"macs": fraction}) for fraction in (0.7, 0.5))

The functions of :mod:`graphprune` are sessions of one call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from graphprune.analysis.groups import Analysis
from graphprune.collector import frozen_garbage_collection
from graphprune.compiling import Named, Running, compiled, split_keywords
from graphprune.errors import OptionError
from graphprune.hosts.cuts import cuts_of
from graphprune.hosts.onnx.blame import blaming_models
from graphprune.look import looked
from graphprune.observer import Observer, observing
from graphprune.opened import Opened
from graphprune.pipeline.state import Check
from graphprune.pipeline.trials import RATIOS, SAMPLES
from graphprune.planning.latency import Profile
from graphprune.planning.plan import PruningPlan
from graphprune.profiling.profile import Measuring, cut, make_profile
from graphprune.recipe import Recipe
from graphprune.replay import applied, checked_file
from graphprune.report.curves import Front, Sensitivity
from graphprune.result import Result
from graphprune.sensitivities import tried
from graphprune.sweeping import by_name, swept
from graphprune.turns import in_turn

if TYPE_CHECKING:
    from graphprune.hosts.onnx.host import OnnxHost
    from graphprune.hosts.torch.host import TorchHost

F = TypeVar("F", bound=Callable[..., Any])
Progress = Observer | Callable[[str], None] | None


def _one_at_a_time(method: F) -> F:
    """A method that waits for others of the session, and of all PyTorch models; it looks at weights and data anew."""

    @wraps(method)
    def run(session: Session, *args: Any, **keywords: Any) -> Any:
        with session._lock:
            session.begin()
            return method(session, *args, **keywords)

    return cast("F", blaming_models(in_turn(frozen_garbage_collection()(run))))


@dataclass(frozen=True, eq=False, repr=False)
class Session(Opened):
    """An opened model and what was measured on it.

    Nothing is measured twice: statistics, trials and the metric of the original are kept by digests of the weights, of
    the data and of the part of them that was used. Weights of a PyTorch module that change between two calls, and data
    that change in place, are other weights and other data.

    A module is traced once: training it, loading a checkpoint or moving its parameters needs no new trace, and what was
    pruned goes on in a session of its own (:meth:`Session.of`).

    Methods take the keywords of the functions of the same names. Threads wait for each other.

    Args:
        model: An ``.onnx`` file, an ``onnx.ModelProto``, a ``torch.nn.Module``, an ``ExportedProgram``, the folder of
            a checkpoint of transformers, or the name of a factory ``"package.module:factory"``.
        example_inputs: What a PyTorch model is called with: a tuple, a mapping of keyword arguments, or one tensor.
        data: Unlabelled inputs to measure the model on: ``calibration`` of :func:`graphprune.prune`.
        samples: At most so many of them are used.
        evaluate: Your metric, as for :func:`graphprune.prune`.
        metric: For labelled data: ``accuracy``, ``mse`` or ``perplexity``.
        shapes: Shapes of inputs by name, for dynamic axes of ONNX files.
        sizes: Sizes of dynamic axes of ONNX files by the names that the file gives them: ``{"past": 5}``.
        dynamic_shapes: Dynamic axes of a PyTorch model, in the notation of ``torch.export.export``.
        trust: Whether a ``.pt2`` file may be loaded, which can run its author's code.
        stream: Whether the weights of a checkpoint's folder stay in their files; see :func:`graphprune.prune`.

    Raises:
        OptionError: Samples without data, or a metric's name without anything to take it on.
    """

    _lock: AbstractContextManager[Any] = field(default_factory=threading.RLock, init=False, repr=False)

    @classmethod
    def of(cls, result: Result, **keywords: Any) -> Session:
        """A session on what was pruned, which goes on from there: train ``result.module``, and prune it again.

        The pruned module is not traced where it is of the user's class: its graph is known. ``ledger`` of the results
        is about the units of the model that was first.

        Args:
            result: The pruned model.
            **keywords: ``data``, ``samples``, ``evaluate`` and ``metric``, as for a new session.

        Raises:
            OptionError: One of them is wrong.
            PlanError: The plans of all rounds are not one plan.
        """
        ledger = result.ledger
        if result.module is None:
            own = result.host
            if cuts_of(own):  # the interface that it has now is its own
                own = replace(cast("OnnxHost", own), cuts={})
            return cls(own, before=ledger, **keywords).holding(own)
        from graphprune.hosts.torch.again import of_pruned
        from graphprune.hosts.torch.now import as_one

        pruned = cast("TorchHost", result.host)
        given, shapes = as_one(result.module, pruned.example), pruned.dynamic_shapes
        session = cls(result.module, given, dynamic_shapes=shapes, before=ledger, **keywords)
        host = of_pruned(pruned, result.module)
        return session if host is None else session.holding(host)

    @_one_at_a_time
    def analyze(self, protect: str | Sequence[str] = (), resize_io: str | Sequence[str] = ()) -> Analysis:
        """Finds what can be pruned; see :func:`graphprune.analyze`."""
        return looked(self.host, protect, resize_io)

    @_one_at_a_time
    def prune(self, recipe: Named = None, **keywords: Any) -> Result:
        """Prunes the model.

        Args:
            recipe: A recipe, its name, the path of its file, or its dictionary.
            **keywords: Of a recipe (``target``, ``criterion``, ...), before what ``recipe`` says; or of
                :class:`graphprune.compiling.Running`: ``statistics``, ``profile``, ``latency``, ``progress``, ...

        Raises:
            GraphpruneError: One of its kinds, with a message that says what to do.
        """
        running, rest = split_keywords(keywords)
        return compiled(self, Recipe.read(recipe, **rest), running)

    @_one_at_a_time
    def apply(
        self,
        plan: PruningPlan | str | Path,
        *,
        verify: bool | Literal["accept-unproven"] = True,
        latency: bool = False,
        export: bool = False,
        seed: int = 0,
        progress: Progress = None,
    ) -> Result:
        """Replays a plan, with its refit where there are data; see :func:`graphprune.apply`.

        Args:
            plan: The plan, or its file.
            verify: Whether to prove the result.
            latency: Whether to measure latency.
            export: Whether a file is written and proven at once; see :class:`graphprune.compiling.Running`.
            seed: Of the choice of samples, and of the proof's inputs.
            progress: Told each step before it begins.

        Raises:
            PlanError: The plan belongs to another model.
        """
        running = Running(latency=latency, export=export, progress=progress)
        return applied(self, plan, Recipe.of(verify=verify, seed=seed), running)

    @_one_at_a_time
    def verify(
        self, pruned: str | Path, plan: PruningPlan | str | Path, *, seed: int = 0, graph: str = "auto"
    ) -> tuple[Check, ...]:
        """Proves that an ONNX file is what a plan makes of the model; see :func:`graphprune.verify`."""
        return checked_file(self, pruned, plan, seed=Recipe.of(seed=seed).seed, graph=graph)

    @_one_at_a_time
    def sensitivity(
        self,
        recipe: Named = None,
        *,
        ratios: Sequence[float] = RATIOS,
        samples: int = SAMPLES,
        align: int = 1,
        folder: str | Path | None = None,
        progress: Progress = None,
        **keywords: Any,
    ) -> Sensitivity:
        """Removes part of each group alone and measures what that does; see :func:`graphprune.sensitivity`.

        Args:
            recipe: As for :meth:`prune`; its selection, its scoring and its seed count.
            ratios: Fractions of a group's units that are removed.
            samples: Outputs are compared on at most so many.
            align: Widths that are left are multiples of this where the width allows.
            folder: Where an interrupted run is noted, so that the next goes on from there.
            progress: Told each step before it begins.
            **keywords: Of a recipe, before what ``recipe`` says.

        Raises:
            GraphpruneError: One of its kinds, with a message that says what to do.
        """
        found = Recipe.read(recipe, **keywords)
        return tried(
            self, found, ratios=ratios, samples=samples, align=align, folder=folder, observer=observing(progress)
        )

    @_one_at_a_time
    def profile(
        self,
        *,
        threads: int = 1,
        provider: str = "CPUExecutionProvider",
        align: int = 8,
        quick: bool = False,
        seconds: float | None = None,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> Profile:
        """Measures what the operators of the model take at smaller widths; see :func:`graphprune.profile`."""
        how = Measuring(threads=threads, provider=provider, align=align, quick=quick, seconds=seconds)
        return make_profile(self.host, cut(self.host), how, advance=advance)

    @_one_at_a_time
    def sweep(
        self,
        recipes: Mapping[str, Recipe] | Iterable[Recipe],
        *,
        folder: str | Path | None = None,
        executor: Executor | None = None,
        latency: bool = True,
        **keywords: Any,
    ) -> Front:
        """Carries out several recipes, each from the original; the model is opened and measured once.

        Args:
            recipes: The recipes, or recipes by the names of their points; without names those are the targets.
            folder: Where the pruned models and their plans are written; nothing is if absent.
            executor: Carries the recipes out at the same time; see :func:`graphprune.sweep`.
            latency: Whether to measure latency.
            **keywords: Of :class:`graphprune.compiling.Running`.

        Returns:
            The original and one point for each recipe; targets that cannot be met say why.

        Raises:
            GraphpruneError: No recipe could be carried out, or an option is wrong.
        """
        running, rest = split_keywords({"latency": latency, **keywords})
        if unknown := next(iter(rest), None):
            raise OptionError(f"a sweep takes no '{unknown}'; give it to the recipes, as in Recipe.of({unknown}=...)")
        return swept(self, by_name(recipes), running, folder=folder, executor=executor)
