"""Reports as data: plain dataclasses that turn into JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

from graphprune.analysis.groups import Analysis
from graphprune.brief import brief, written
from graphprune.measured import Interval, Measured, difference
from graphprune.planning.blockers import list_blockers
from graphprune.planning.cost import build_cost_model, costs_of, prunable_share
from graphprune.report.curves import finite
from graphprune.report.inputs import InputRow, input_rows
from graphprune.report.titles import axis_title, group_title, tensor_title

if TYPE_CHECKING:  # of prunes, not of inspections
    from graphprune.pipeline.state import Check
    from graphprune.report.movement import Movement
    from graphprune.report.widths import WholeRow, WidthRow


@dataclass(frozen=True)
class Cost:
    """One metric before and after.

    Attributes:
        metric: ``macs``, ``params``, ``bytes``, or (in milliseconds) ``latency``.
        before: Of the original.
        after: Of the pruned model; for latency, as predicted by the profile.
        requested: What was allowed.
        measured: For latency, what was measured: its fraction of the original, measured together, times ``before``.
    """

    metric: str
    before: float
    after: float
    requested: float | None = None
    measured: float | None = None

    @property
    def fraction(self) -> float:
        """What remains, as a fraction of the original."""
        return self.after / self.before if self.before else 1.0


@dataclass(frozen=True)
class GroupRow:
    """What became of one group; ``title`` is what a reader may know it by, where its name says nothing.

    ``asked`` says what the user wanted of it: ``keep layers.3.mlp=0-47``.
    """

    __repr__ = brief

    name: str
    kind: str
    size: int
    kept: int
    exact: bool
    title: str = ""
    asked: str = ""


@dataclass(frozen=True)
class BlockRow:
    """A residual branch or layer that was left out as a whole, and the stored tensors that went with it."""

    __repr__ = brief

    name: str
    kind: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class AttributeRow:
    """A number that the user's own module keeps, by its path, in the original and in the pruned module."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True)
class RecoveryRow:
    """What has come of training the pruned model towards the original's outputs.

    Attributes:
        before: What the outputs lost on inputs that were not trained on; relative to what answering always their mean
            would lose, where there are several.
        after: The same, with what was trained.
        taken: Whether that was taken; if not, the weights are what they were.
        steps: How many steps the last run had.
        at: After how many of them the state was reached that was taken.
        rate: The learning rate.
        samples: Of a step.
        data: How many samples there were to train on.
        rates: Pairs of a rate that was tried and what was lost with it.
        held: Pairs of a number of steps of the last run and what was lost after them.
        losses: The training loss of each step.
    """

    before: float
    after: float
    taken: bool
    steps: int
    at: int
    rate: float
    samples: int
    data: int
    rates: tuple[tuple[float, float], ...] = ()
    held: tuple[tuple[int, float], ...] = ()
    losses: tuple[float, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        """A sentence for the report."""
        how = (
            f"{self.steps} steps of {self.samples} of {self.data} samples without labels, learning rate {self.rate:.2g}"
        )
        lost = f"lost {self.before:.3g} before and {self.after:.3g} after it"
        if not self.taken:
            return f"training ({how}) did not help and was not taken: on inputs apart from it the outputs {lost}"
        return f"recovered by training towards the original's outputs ({how}): on inputs apart from it they {lost}"


@dataclass(frozen=True)
class InterfaceRow:
    """An axis of an input or output that has become smaller, since the user said that it may (``resize_io``).

    Attributes:
        name: Of the input or output.
        axis: The axis, from 0.
        before: Its size in the original.
        after: Its size now.
        kept: The positions of the original that are left.
    """

    __repr__ = brief

    name: str
    axis: int
    before: int
    after: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class LatencyRow:
    """Median milliseconds in onnxruntime before and after, on so many threads."""

    threads: int
    before: float
    after: float


@dataclass(frozen=True)
class Metric:
    """A number of the user's evaluation before and after.

    Attributes:
        name: What it is called.
        before: Of the original.
        after: Of the pruned model.
        n: Of how many samples it is the mean, where that is known: not of what a function of the user's returns.
        before_interval: Where the number before would lie on all data like these, 95 times of 100.
        after_interval: The same after.
        difference_interval: The same of the difference, from both numbers of each sample.
        by_chance: Whether there may be no difference: its interval holds zero.
    """

    name: str
    before: float
    after: float
    n: int | None = None
    before_interval: Interval | None = None
    after_interval: Interval | None = None
    difference_interval: Interval | None = None
    by_chance: bool | None = None


def metric_row(name: str, before: float, after: float) -> Metric:
    """The row of two numbers, with what is known of how sure they are."""
    apart = difference(before, after)
    return Metric(
        name,
        float(before),
        float(after),
        before.n if isinstance(before, Measured) else None,
        before.interval if isinstance(before, Measured) else None,
        after.interval if isinstance(after, Measured) else None,
        None if apart is None else apart.interval,
        None if apart is None else apart.by_chance,
    )


class _Later:
    """A field of a report that is worked out when it is first read, if a function was given for it.

    Made-up inputs cost several runs of both models, and most who prune a module in a program never read what comes out.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, report: Report | None, owner: type) -> Movement | None:
        if report is None:
            return None  # the default
        found = vars(report)[self._name]
        if callable(found):
            found = vars(report)[self._name] = found()
        return cast("Movement | None", found)

    def __set__(self, report: Report, value: Movement | Callable[[], Movement | None] | None) -> None:
        vars(report)[self._name] = value


@dataclass(frozen=True)
class Report:
    """What a compilation did.

    Attributes:
        costs: MACs, parameters and bytes, requested (absolute) and realised. Of ONNX files parameters and bytes are
            what the files hold: all stored tensors, each once, where floating-point numbers (running statistics and
            scalars, too) and quantised weights are parameters.
        groups: Every group.
        inexact: Whether groups that shift a normalizer lost units.
        proof: The checks that were run; all passed.
        latency: Measured latencies; empty if not asked for.
        metrics: What the user's evaluation gives; empty if there is none.
        classes: The class of each folder of images, where the evaluation takes its labels from these.
        seconds: Time taken by each step.
        notes: Sentences for the user.
        blocks: The residual branches and layers that were left out.
        attributes: The numbers in the attributes of the user's own module that had to change with its tensors; those
            of torch's own layers, which follow their weights, are not listed.
        inputs: The sizes of the inputs that all of this is for, and where they come from.
        moved: How far the outputs moved on the inputs at hand; ``None`` without a proof, or where a model cannot run.
            On made-up inputs it is measured when it is first asked for; ``None`` if the weights are others then.
        widths: The sizes of every stored weight before and after.
        whole: What could have been pruned and was left whole by default, or as the user said.
        losses: How outputs were compared wherever losses were measured, and why so; none without calibration data.
        recovery: What has come of training, if there was any.
        interface: The axes of inputs and outputs that have become smaller.
        cache_bytes: What the caches of a decoder's file hold for each token, before and after; ``None`` without any.
    """

    costs: tuple[Cost, ...]
    groups: tuple[GroupRow, ...]
    inexact: bool
    proof: tuple[Check, ...] = ()
    latency: tuple[LatencyRow, ...] = ()
    metrics: tuple[Metric, ...] = ()
    seconds: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    blocks: tuple[BlockRow, ...] = ()
    attributes: tuple[AttributeRow, ...] = ()
    classes: Mapping[str, int] = field(default_factory=dict)
    inputs: tuple[InputRow, ...] = field(default=(), repr=False)
    moved: _Later = _Later()
    widths: tuple[WidthRow, ...] = field(default=(), repr=False)
    whole: tuple[WholeRow, ...] = field(default=(), repr=False)
    losses: tuple[str, ...] = field(default=(), repr=False)
    recovery: RecoveryRow | None = field(default=None, repr=False)
    interface: tuple[InterfaceRow, ...] = field(default=(), repr=False)
    cache_bytes: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All fields as values, so that a report can go to another process."""
        return {**vars(self), "moved": self.moved}

    def cost(self, metric: str) -> Cost:
        """The row of a metric (``macs``, ``params``, ``bytes``; ``latency`` where a target was about it)."""
        return next(cost for cost in self.costs if cost.metric == metric)

    def __repr__(self) -> str:
        kept = {cost.metric: f"{cost.fraction:.1%} kept" for cost in self.costs}
        numbers = {row.name: f"{row.before:.4g} -> {row.after:.4g}" for row in self.metrics[:3]}
        passed = f"{sum(check.passed for check in self.proof)} of {len(self.proof)} checks passed"
        return written(self, **kept, **numbers, proof=passed, groups=self.groups, notes=self.notes)

    def __str__(self) -> str:
        """The tables of ``graphprune prune``, as text."""
        from graphprune.report.terminal import as_text, render_report

        return as_text(render_report(self, title="costs"))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        data = asdict(self)
        for row, cost in zip(data["costs"], self.costs, strict=True):
            row["fraction"] = cost.fraction
        for row, check in zip(data["proof"], self.proof, strict=True):
            row["passed"] = check.passed
        for row in data["metrics"]:
            row.update({side: finite(row[side]) for side in ("before", "after")})
        for row in (data["moved"] or {}).get("losses", ()):
            row.update({key: None if row[key] is None else finite(row[key]) for key in ("before", "after")})
        if (row := data["recovery"]) is not None:
            row.update({side: finite(row[side]) for side in ("before", "after")})
            row["losses"] = [finite(each) for each in row["losses"]]
            row.update({key: [[x, finite(y)] for x, y in row[key]] for key in ("rates", "held")})
        if self.moved is not None:
            data["moved"]["ruined"] = self.moved.ruined
        data["seconds"] = [{"step": step, "seconds": seconds} for step, seconds in self.seconds]
        return data


@dataclass(frozen=True)
class Inspection:
    """What can be pruned in a model, and what stays whole and why.

    Attributes:
        costs: The model's MACs (at the example's shapes), parameters and bytes.
        prunable: The fraction of all parameters in tensors with at least one prunable axis.
        groups: For each group its name, kind, number of units, whether removal is exact, tensors, and the shares of
            MACs and parameters that it is part of.
        blockers: For each reason, by what it costs: its text, kind (``barrier``: an operator without a rule) and first
            node, the axes that it keeps whole, the number and share of the parameters in tensors that are whole for it,
            and the number in tensors of which it keeps some axis.
        blocks: For each residual branch and layer that can be left out as a whole its name, kind, weights, parts, and
            the shares of MACs and parameters that go with it alone.
        inputs: The sizes of the inputs that costs are counted at, and where they come from.
    """

    __repr__ = brief

    costs: Mapping[str, float]
    prunable: float
    groups: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)
    blockers: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)
    blocks: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)
    inputs: tuple[InputRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The inspection as JSON data."""
        return asdict(self)


def inspect_analysis(analysis: Analysis) -> Inspection:
    """Collects what ``graphprune inspect`` shows."""
    model = build_cost_model(analysis)
    macs, params = model.shares("macs"), model.shares("params")
    groups = tuple(
        {
            "name": group.name,
            "title": group_title(analysis, group),
            "kind": group.kind,
            "units": group.size,
            "exact": group.exact,
            "macs_share": macs[group.name],
            "params_share": params[group.name],
            "sites": [f"{site.tensor}[{site.axis}]" for site in group.sites],
        }
        for group in analysis.groups
    )
    blocked = tuple(
        {
            "reason": blocker.reason.text,
            "node": blocker.reason.node,
            "kind": blocker.reason.kind,
            "axes": list(blocker.axes),
            "title": axis_title(analysis, blocker.axes[0]) if blocker.axes else "",
            "params": blocker.parameters,
            "params_share": blocker.share,
            "params_touched": blocker.touched,
        }
        for blocker in list_blockers(analysis)
    )
    return Inspection(
        model.costs(),
        prunable_share(analysis),
        groups,
        blocked,
        tuple(_blocks(analysis, model.costs())),
        input_rows(analysis.graph),
    )


def _blocks(analysis: Analysis, costs: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    parts = (analysis.branches.unneeded([block]) for block in analysis.blocks)
    for block, gone in zip(analysis.blocks, costs_of(analysis, parts), strict=True):
        yield {
            "name": block.name,
            "title": tensor_title(analysis, block.name),
            "kind": block.kind,
            "macs_share": gone["macs"] / max(costs["macs"], 1e-30),
            "params_share": gone["params"] / max(costs["params"], 1e-30),
            "tensors": list(block.tensors),
            "parts": list(block.parts),
        }
