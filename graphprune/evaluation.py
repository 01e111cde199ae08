"""The user's own metric before and after: a function of the user's, or labelled data and a metric by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.brief import brief
from graphprune.data.batches import Batches, Inputs, open_batches, require_inputs
from graphprune.data.specs import Array, specs_of
from graphprune.data.text import role_of
from graphprune.errors import OptionError
from graphprune.hosts.host import Arrays, Runnable
from graphprune.measured import Measured
from graphprune.suggest import meant
from graphprune.user_code import is_object_name, load_object, raising_as

Function = Callable[["Runner"], "float | Mapping[str, float]"]
Pairs = Iterable[tuple[Array, Array]]
"""Batch by batch: the first output, and what is right."""


@dataclass(frozen=True, eq=False)
class Runner:
    """A model to be evaluated: call it with inputs by name, get outputs by name, in order.

    A function of a PyTorch user may call :attr:`module` instead, as any module::

        def evaluate(run):
            return {"accuracy": accuracy(run.module, loader)}

    Attributes:
        host: The model as graphprune holds it.
        module: The PyTorch module, in evaluation mode, the user's own before pruning; ``None`` for ONNX files.
    """

    __repr__ = brief

    host: Runnable
    module: Any = None

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Runs the model on one batch. Sizes of static axes are those of the example."""
        return self.host.run(inputs)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A metric, ready to be measured.

    Attributes:
        function: Gives the numbers for a model.
        name: What it is called where it gives one number.
        where: What it is, for messages.
        host: The original model.
        classes: Where labels come from the names of folders: the class of each.
    """

    __repr__ = brief

    function: Function
    name: str
    where: str
    host: Runnable
    classes: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, run: Runner) -> dict[str, float]:
        """The numbers of a model by name; of labelled data with what they are the means of.

        Raises:
            OptionError: The function raises, or returns no numbers.
        """
        with _evaluating(run.module), raising_as(OptionError, self.where, "mend the function"):
            found = self.function(run)
        numbers = dict(found) if isinstance(found, Mapping) else {self.name: found}
        try:
            return {
                str(name): value if isinstance(value, Measured) else float(value) for name, value in numbers.items()
            }
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"{self.where} returns {found!r:.80}; expected a number, or a mapping from names to numbers"
            ) from error

    @cached_property
    def before(self) -> dict[str, float]:
        """The numbers of the original model; measured once."""
        return self(runner_of(self.host))


def runner_of(host: Runnable, module: Any = None) -> Runner:
    """The runner of a host; its module is the one given, the user's own, or the host's graph as a module."""
    for name in ("source", "module"):
        module = getattr(host, name, None) if module is None else module
    return Runner(host, module)


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """A module in evaluation mode; what was in training mode is again afterwards."""
    training = [each for each in module.modules() if each.training] if module is not None else []
    try:
        for each in training:
            each.training = False
        yield
    finally:
        for each in training:
            each.training = True


def require_evaluation(source: Any, metric: str | None) -> None:
    """Refuses, before a model is opened, a metric without anything to take it on, one that there is not, and no data.

    Raises:
        OptionError: There is a metric and no source, or an unknown one, or the source leads nowhere.
    """
    if metric is not None and source is None:
        raise OptionError(
            f"there are no labelled data for the metric '{metric}'; give some (evaluate=..., --eval PATH)"
        )
    if isinstance(source, Evaluation):
        return
    _require_metric(metric)
    if isinstance(source, Inputs):
        require_inputs(source)


def _require_metric(metric: str | None) -> None:
    if metric is not None and metric not in METRICS:
        raise OptionError(
            f"unknown metric {meant(metric, METRICS)}; expected one of {', '.join(METRICS)}, or give a function"
        )


def open_evaluation(source: Any, host: Runnable, *, metric: str | None = None) -> Evaluation:
    """Opens a metric.

    Args:
        source: A function that takes a :class:`Runner` and returns a number or a mapping of numbers; the name of one
            (``"package.module:function"``); or labelled data: what :func:`open_batches` takes, all of it is used. An
            :class:`Evaluation` is taken over, with what the original gave if it is of this one.
        host: The original model.
        metric: For data: ``accuracy``, ``mse`` or ``perplexity`` (see :data:`METRICS`); by default by the labels.

    Raises:
        OptionError: It cannot be opened, or the data have no labels and need some.
    """
    if isinstance(source, Evaluation):
        return source if source.host is host else replace(source, host=host)  # what another model gave is not its own
    _require_metric(metric)
    if isinstance(source, str) and is_object_name(source):
        found = load_object(
            source,
            OptionError,
            of="metric",
            expected="'package.module:function' or the path of labelled data",
            returns="a function that takes a model and returns a number",
        )
        if callable(found):
            return Evaluation(found, found.__name__, f"'{source}'", host)
        source = found
    if callable(source) and not hasattr(source, "__iter__"):
        name = getattr(source, "__name__", "metric")
        return Evaluation(source, name, f"the function '{name}'", host)
    batches = open_batches(source, host, samples=None, padded=True)
    name = metric or _metric_of(batches)
    if batches.labels is None and name != "perplexity":
        raise OptionError(
            f"{batches.source} has no labels for the metric '{name}'; put them into an array 'labels', or give a "
            "function"
        )
    tokens = _tokens_of(host, batches) if name == "perplexity" else ""
    return Evaluation(
        lambda run: METRICS[name](_pairs(run, batches, tokens)), name, batches.source, host, batches.classes
    )


def _metric_of(batches: Batches) -> str:
    if batches.labels is None:
        return "perplexity"
    return "mse" if batches.labels.dtype.kind == "f" else "accuracy"


def _tokens_of(host: Runnable, batches: Batches) -> str:
    """The input that holds the tokens."""
    found = [spec.name for spec in specs_of(host) if role_of(spec) == "ids" and len(spec.shape) == 2]
    if len(found) != 1:
        raise OptionError(
            f"{batches.source} has no labels, and the model has no single input of tokens to take a perplexity of; put "
            "labels into an array 'labels', or give a function"
        )
    return found[0]


def _pairs(run: Runner, batches: Batches, tokens: str) -> Iterator[tuple[Array, Array]]:
    """For each batch the first output and what is right, without what fills up the last batch."""
    start = 0
    for batch in batches:
        size = min(batches.batch_size, batches.samples - start)
        output = next(iter(run(batch).values()))
        right = batch[tokens] if batches.labels is None else batches.labels[start : start + size]
        yield output[:size], right[:size]
        start += size


def accuracy(pairs: Pairs) -> Measured:
    """The fraction of labels that are the class with the largest score; classes lie along axis 1 or the last.

    Raises:
        OptionError: The labels do not fit the output.
    """

    def hits(scores: Array, labels: Array) -> tuple[Array, Array]:
        axes = [axis for axis in (scores.ndim - 1, 1) if scores.ndim > 1]
        shapes = {axis: scores.shape[:axis] + scores.shape[axis + 1 :] for axis in axes}
        flat = labels.reshape(labels.shape[:1]) if labels.shape[1:] == (1,) and scores.ndim == 2 else labels
        fitting = [axis for axis in axes if shapes[axis] == flat.shape]
        if not fitting:
            raise _misfit("accuracy", scores, labels, "one label less deep than the scores of classes")
        right = scores.argmax(fitting[0]) == flat
        return _by_sample(right), _by_sample(np.ones(right.shape))

    return _over(pairs, hits, "fraction")


def mse(pairs: Pairs) -> Measured:
    """The mean squared difference between the first output and the labels.

    Raises:
        OptionError: The labels do not have the output's shape.
    """

    def squares(output: Array, labels: Array) -> tuple[Array, Array]:
        if output.size != labels.size:
            raise _misfit("mse", output, labels, "as many numbers as the output has")
        difference = output.astype(np.float64).ravel() - labels.astype(np.float64).ravel()
        each = np.square(difference).reshape(len(labels), -1)
        return each.sum(1), np.full(len(each), each.shape[1])

    return _over(pairs, squares, "mean")


def perplexity(pairs: Pairs) -> Measured:
    """``exp`` of the mean cross entropy of each next token; the first output are scores, ``n s v``.

    Labels are the tokens themselves (they are shifted here), and -100 where a token does not count.

    Raises:
        OptionError: The output are no scores of tokens.
    """

    def losses(scores: Array, tokens: Array) -> tuple[Array, Array]:
        if scores.ndim != 3 or scores.shape[:2] != tokens.shape:
            raise _misfit("perplexity", scores, tokens, "scores n x length x vocabulary for tokens n x length")
        lost, counts = np.zeros(len(tokens)), np.zeros(len(tokens))
        for i, (row, right) in enumerate(zip(scores[:, :-1], tokens[:, 1:], strict=True)):
            counted = right >= 0
            row, right = row[counted], right[counted].astype(np.int64)
            top = row.max(axis=-1, keepdims=True, initial=-np.inf)
            norm = np.log(np.exp(row - top).sum(axis=-1, dtype=np.float64)) + top[:, 0]
            lost[i], counts[i] = (norm - row[np.arange(len(right)), right]).sum(dtype=np.float64), len(right)
        return lost, counts

    return _over(pairs, losses, "exp")


def _over(
    pairs: Pairs, each: Callable[[Array, Array], tuple[Array, Array]], scale: Literal["fraction", "mean", "exp"]
) -> Measured:
    """The mean over all batches of what one gives for each sample: sums and numbers of terms."""
    found = [each(output, right) for output, right in pairs]
    sums, counts = (np.concatenate([part[i] for part in found]) if found else np.zeros(0) for i in (0, 1))
    return Measured(sums, counts, scale)


def _by_sample(values: Array) -> Array:
    return np.asarray(values.reshape(len(values), -1).sum(1, dtype=np.float64))


METRICS: Mapping[str, Callable[[Pairs], Measured]] = {"accuracy": accuracy, "mse": mse, "perplexity": perplexity}
"""Metrics by name: from pairs of the first output and what is right, batch by batch, to a number."""


def _misfit(metric: str, output: NDArray[Any], labels: NDArray[Any], expected: str) -> OptionError:
    return OptionError(
        f"the metric '{metric}' does not fit: the first output has shape {list(output.shape)} and the labels "
        f"{list(labels.shape)}; expected {expected}: give a function (--eval package.module:function)"
    )
