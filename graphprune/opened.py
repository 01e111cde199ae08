"""An opened model and what was measured on it: where every compilation of a session begins."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any, Self

from graphprune.brief import brief
from graphprune.data.batches import SAMPLES, Batches, Inputs, open_batches, require_inputs
from graphprune.evaluation import Evaluation, open_evaluation, require_evaluation
from graphprune.hosts.host import Host
from graphprune.observer import Observer
from graphprune.opening import Shapes, Sizes, layout_of, open_host, rebound, require_samples
from graphprune.pipeline.state import State
from graphprune.planning.plan import PruningPlan
from graphprune.statistics.measurements import Measurements
from graphprune.turns import Holder


@dataclass(eq=False)
class _Held:
    """What an opened model holds, and changes as it is used.

    Attributes:
        host: The model.
        layout: Where the tensors of the user's module were when it was opened.
        batches: Calibration data by the seed of their choice.
        evaluation: The metric, and the digest of the model that it has been measured on.
        known: The digest of a model, and what the metric gives for it, where somebody else has measured that.
    """

    host: Host | None = None
    layout: object = None
    batches: dict[int, Batches] = field(default_factory=dict)
    evaluation: tuple[str, Evaluation] | None = None
    known: tuple[str, Mapping[str, float]] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Opened(Holder):
    """A model, its data and its metric, each opened when it is first needed and then kept.

    Attributes:
        model: As for :func:`graphprune.prune`.
        example_inputs: As for :func:`graphprune.prune`.
        data: Unlabelled inputs to measure the model on: ``calibration`` of :func:`graphprune.prune`.
        samples: At most so many of them are used.
        evaluate: As for :func:`graphprune.prune`.
        metric: As for :func:`graphprune.prune`.
        shapes: As for :func:`graphprune.prune`.
        sizes: As for :func:`graphprune.prune`.
        dynamic_shapes: As for :func:`graphprune.prune`.
        trust: As for :func:`graphprune.prune`.
        stream: As for :func:`graphprune.prune`.
        before: What has been made of another model to get this one; see :meth:`graphprune.Session.of`.
        measured: What was measured, by digests of what it was measured on.

    Raises:
        OptionError: Samples without data, or a metric's name without anything to take it on.
    """

    __repr__ = brief

    model: Any
    example_inputs: Any = None
    _: KW_ONLY
    data: Any = None
    samples: int = SAMPLES
    evaluate: Any = None
    metric: str | None = None
    shapes: Shapes | None = None
    sizes: Sizes | None = None
    dynamic_shapes: Any = None
    trust: bool = False
    stream: bool | None = None
    before: PruningPlan | None = field(default=None, kw_only=True, repr=False)
    measured: Measurements = field(default_factory=Measurements, init=False, repr=False)
    _held: _Held = field(default_factory=_Held, init=False, repr=False)

    def __post_init__(self) -> None:
        require_samples(self.samples, self.data)
        require_evaluation(self.evaluate, self.metric)
        given = self.data if isinstance(self.data, Inputs) else Inputs(self.data, self.samples)
        require_inputs(given)

    def holding(self, host: Host) -> Self:
        """This, with its model opened already."""
        self._held.host, self._held.layout = host, layout_of(self.model)
        return self

    def begin(self) -> None:
        """Begins something: weights and data may have changed in place since the last thing that was done."""
        self.measured.begin()
        for each in self._held.batches.values():
            each.forget_digests()

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was made with, by name."""
        return {each.name: getattr(self, each.name) for each in fields(Opened) if each.init}

    def take_over(self, measured: Measurements, evaluated: tuple[str, Mapping[str, float]] | None) -> None:
        """Takes over what somebody else has measured on the same model.

        Args:
            measured: What was measured on data.
            evaluated: The digest of the model, and what the metric gives for it.
        """
        self.measured.update(measured)
        self._held.known = evaluated

    @property
    def host(self) -> Host:
        """The model, opened now if need be: also where a module holds tensors of other types or sizes than it did.

        Others of the same kinds, as a checkpoint brings them, take the places of those that were there.

        Raises:
            GraphpruneError: It cannot be opened; see :func:`graphprune.opening.open_host`.
        """
        held, layout = self._held, layout_of(self.model)
        if held.host is not None and held.layout != layout:
            held.host = rebound(held.host, self.model, held.layout, layout)
            if held.host is not None:
                held.layout = layout
        if held.host is None or held.layout != layout:
            held.host = open_host(
                self.model,
                self.example_inputs,
                shapes=self.shapes,
                sizes=self.sizes,
                trust=self.trust,
                dynamic_shapes=self.dynamic_shapes,
                stream=self.stream,
            )
            held.layout = layout
            if not self._once:
                held.batches.clear()  # they fit the types that the model had
        return held.host

    @property
    def calibrated(self) -> bool:
        """Whether there are data to measure the model on."""
        return self.data is not None

    @property
    def measurable(self) -> bool:
        """Whether it can be measured what outputs lose: one is floating-point, and not a class or an index."""
        graph = self.host.graph()
        return any("float" in graph.values[name].dtype for name in graph.outputs)

    @property
    def _once(self) -> bool:
        """Whether data can be gone through only once, so that all seeds have the same samples of them."""
        return hasattr(self.data.source if isinstance(self.data, Inputs) else self.data, "__next__")

    def start(self, observer: Observer) -> State:
        """The state that a pipeline begins with; the model is opened if it is not."""
        observer.begin("open")
        begin = time.perf_counter()
        host = self.host
        taken = time.perf_counter() - begin
        return State(host, opened=host, seconds=(("open", taken),), observer=observer, measured=self.measured)

    def batches(self, seed: int) -> Batches | None:
        """The calibration data, opened now if need be; ``None`` if there are none.

        Args:
            seed: Of the choice of samples.

        Raises:
            OptionError: They cannot be read, or do not fit.
        """
        if self.data is None:
            return None
        found, key = self._held.batches, 0 if self._once else seed
        if key not in found:
            found[key] = open_batches(self.data, self.host, samples=self.samples, seed=seed)
        return found[key]

    def more(self, data: Any, seed: int) -> Batches | None:
        """Other data for the model than its calibration data; all of them; ``None`` if there are none.

        Raises:
            OptionError: They cannot be read, or do not fit.
        """
        return None if data is None else open_batches(data, self.host, samples=None, seed=seed)

    def evaluation(self, observer: Observer) -> Evaluation | None:
        """The user's metric, measured on the original as it is now; ``None`` if there is none.

        Raises:
            OptionError: It cannot be opened or measured.
        """
        if self.evaluate is None:
            return None
        observer.begin("evaluate the original")
        host = self.host
        digest = self.measured.digest(host)
        held = self._held
        if held.evaluation is None:
            found = open_evaluation(self.evaluate, host, metric=self.metric)
        elif held.evaluation[0] != digest:
            found = replace(held.evaluation[1], host=host)
        else:
            found = held.evaluation[1]
        if held.known is not None and held.known[0] == digest:
            vars(found).setdefault("before", dict(held.known[1]))
        _ = found.before  # before the work: it may raise
        held.evaluation = digest, found
        return found
