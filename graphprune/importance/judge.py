"""How outputs of two models are compared: one judge for each output, found on the graph or given by the user.

``kl`` compares distributions over classes (or tokens) along an axis, ``bce`` every element as a probability of its own,
``cosine`` the directions of vectors along an axis, ``mse`` values, relative to their variance. Where the graph says
nothing, values are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphprune.defaults import LOSSES
from graphprune.errors import OptionError
from graphprune.hosts.host import Runnable
from graphprune.importance.final import Final, binary_divergence, finals_of, floating, on_the_way
from graphprune.ir.graph import Graph
from graphprune.suggest import meant

Array = NDArray[Any]
Given: TypeAlias = str | Mapping[str, str] | Sequence[str] | None
"""A loss as the user gives it: ``"kl"``, ``"kl:1"``, ``["boxes=mse", "scores=bce"]``, ``{"boxes": "mse"}``."""

AUTO = "auto"
ALONG = ("kl", "cosine")
"""Losses along an axis."""
CHUNK = 1 << 17
"""Logits that are compared at a time: vocabularies of language models would fill the memory many times over."""

_OF_KINDS = {
    "softmax": "kl",
    "log-softmax": "kl",
    "tokens": "kl",
    "many": "kl",
    "scores": "kl",
    "sigmoid": "bce",
    "unit": "cosine",
}
_FOUND = {
    "softmax": "found: softmax at the end",
    "log-softmax": "found: log-softmax at the end",
    "tokens": "found: as many as tokens are looked up in",
    "many": "found: a last layer with many more rows than inputs",
    "scores": "taken for scores: one row of a last layer for each sample",
    "sigmoid": "found: sigmoid at the end",
    "unit": "found: vectors of length one",
    "": "nothing on the graph says otherwise",
}


@dataclass(frozen=True)
class Asked:
    """What the user says about one output, or (with an empty name) about all others."""

    kind: str
    axis: int | None = None
    output: str = ""
    at: int | None = None
    """The position of the output, once a model is open."""


@dataclass(frozen=True)
class Judge:
    """How one output, or a part of it, is compared.

    Attributes:
        output: The output's name in the graph.
        at: Its position among the outputs, which a run may give under other names.
        kind: ``kl``, ``bce``, ``mse`` or ``cosine``.
        axis: Along which classes or vectors lie.
        final: What makes probabilities of it; the logits before are compared.
        part: The axis, start and end of the part; ``None``: all of it.
        why: Where this comes from.
        name: What the output is called for the user.
    """

    output: str
    at: int
    kind: str
    axis: int = -1
    final: Final | None = None
    part: tuple[int, int, int] | None = None
    why: str = ""
    name: str = ""

    @property
    def title(self) -> str:
        """The output, and which part of it."""
        if self.part is None:
            return f"'{self.name or self.output}'"
        axis, start, end = self.part
        return f"'{self.name or self.output}'[{start}:{end} of axis {axis}]"

    def __str__(self) -> str:
        """One phrase."""
        how = {
            "kl": f"KL of classes over axis {self.axis}",
            "bce": "KL of every element as a probability",
            "mse": "squared error relative to the variance",
            "cosine": f"cosine distance over axis {self.axis}",
        }[self.kind]
        return f"{self.title} by {how} ({self.why})"

    def prepared(self, outputs: Mapping[str, Array]) -> Array:
        """What is compared: logits, vectors along the last axis, or values; half precision, which holds no sums, as
        float32.
        """
        output = outputs[self.output] if self.output in outputs else list(outputs.values())[self.at]
        if output.dtype.itemsize < 4:
            output = output.astype(np.float32)
        if self.part is not None:
            axis, start, end = self.part
            output = output[(*[slice(None)] * axis, slice(start, end))]
        if self.final is not None:
            return self.final.before(output)
        return np.moveaxis(output, self.axis, -1) if self.kind in ALONG else output

    def loss(self, wanted: Array, found: Array) -> float:
        """The mean loss of what is prepared; of ``mse`` not yet relative to a variance."""
        if self.kind == "kl":
            return divergence(wanted, found)
        if self.kind == "bce":
            return binary_divergence(wanted, found)
        if self.kind == "cosine":
            return float(np.mean(1 - np.einsum("nc,nc->n", unit(wanted), unit(found))))
        return float(np.square(found - wanted.reshape(found.shape)).mean(dtype=np.float64))


def unit(vectors: Array) -> NDArray[np.float64]:
    """``[n, c]`` of length one, in float64; zeros stay zero."""
    flat = vectors.reshape(-1, vectors.shape[-1]).astype(np.float64)
    norms = np.sqrt(np.einsum("nc,nc->n", flat, flat))
    result: NDArray[np.float64] = flat / np.where(norms > 0, norms, 1.0)[:, None]
    return result


def divergence(wanted: Array, found: Array) -> float:
    """The mean Kullback-Leibler divergence of softmax distributions along the last axis, from logits, in float64."""
    p, q = (each.reshape(-1, each.shape[-1]) for each in (wanted, found))
    step = max(1, CHUNK // max(1, p.shape[-1]))
    total = 0.0
    for start in range(0, len(p), step):
        a, b = (each[start : start + step].astype(np.float64) for each in (p, q))
        a -= a.max(axis=-1, keepdims=True)
        b -= b.max(axis=-1, keepdims=True)
        difference = a - b
        np.exp(a, out=a)
        np.exp(b, out=b)
        norm = a.sum(axis=-1)
        total += float((np.einsum("nc,nc->n", a, difference) / norm + np.log(b.sum(axis=-1) / norm)).sum())
    return total / max(1, len(p))


def parse_losses(given: Given, *, used: bool = True) -> tuple[Asked, ...]:
    """Reads ``--loss`` before any model is opened.

    Args:
        given: What the user says.
        used: Whether there will be inputs to compare outputs on.

    Raises:
        OptionError: There will be none, or a loss is unknown, has an axis that it cannot have, or is said twice.
    """
    texts: Iterable[tuple[str, str]]
    if not given:
        return ()
    if not used:
        raise OptionError(
            "a loss says how outputs are compared, and there are no inputs to compare them on; give some "
            "(calibration=..., --calibration DATA)"
        )
    if isinstance(given, Mapping):
        texts = [(str(output), str(text)) for output, text in given.items()]
    else:
        parts = [str(each).rpartition("=") for each in ([given] if isinstance(given, str) else given)]
        texts = [(output, text) for output, _, text in parts]
    found: dict[str, Asked] = {}
    for output, text in texts:
        kind, colon, number = text.strip().partition(":")
        if kind not in LOSSES:
            raise OptionError(
                f"unknown loss {meant(kind, LOSSES)}; expected one of {', '.join(LOSSES)}, of one output as in "
                "'scores=bce', with the axis of the classes as in 'kl:1'"
            )
        if colon and kind not in ALONG:
            raise OptionError(f"loss '{text}' names an axis, which only {' and '.join(ALONG)} have; leave it out")
        try:
            axis = int(number) if colon else None
        except ValueError:
            raise OptionError(f"cannot read the axis of loss '{text}'; expected a number, as in 'kl:1'") from None
        if output in found:
            where = f"of output '{output}'" if output else "of all outputs"
            raise OptionError(f"two losses are given {where}; leave one of them out")
        found[output] = Asked(kind, axis, output)
    return tuple(found.values())


def known_losses(asked: Sequence[Asked], host: Runnable) -> tuple[Asked, ...]:
    """What is asked of an opened model, by the positions of its outputs.

    Raises:
        OptionError: There is no such output or axis, or it is no floating-point one.
    """
    names = output_names(host)
    found = tuple(replace(each, at=_position(each.output, names)) if each.output else each for each in asked)
    judges_of(host.graph(), found, names)
    return found


def output_names(host: Runnable) -> list[str]:
    """What the outputs of a model are called where it is run."""
    return list(getattr(host, "output_names", ()) or host.graph().outputs)


def judges_for(host: Runnable, asked: Sequence[Asked] = ()) -> tuple[Judge, ...]:
    """How the outputs of a model are compared, by the names that the user knows; see :func:`judges_of`."""
    return judges_of(host.graph(), asked, output_names(host))


def judges_of(graph: Graph, asked: Sequence[Asked] = (), names: Sequence[str] = ()) -> tuple[Judge, ...]:
    """How the outputs are compared: the first floating-point one, those that no other one is computed of, and those
    that the user names.

    Args:
        graph: The model's.
        asked: What the user says, from :func:`known_losses`.
        names: What the outputs are called for the user.

    Raises:
        OptionError: The user names what is not there.
    """
    outputs, judged, behind = list(graph.outputs), floating(graph), on_the_way(graph) | graph.carried
    said: dict[str, Asked] = {}
    for each in asked:
        at = each.at if each.at is not None else _position(each.output, outputs) if each.output else None
        said["" if at is None else outputs[at]] = each
        if at is not None and outputs[at] not in judged:
            raise OptionError(
                f"output '{each.output}' holds {graph.values[outputs[at]].dtype}, and a loss is of floating-point "
                "numbers; leave it out"
            )
    found: list[Judge] = []
    alone = len(judged) - len(behind.intersection(judged)) < 2
    for i, output in enumerate(judged):
        if i and output in behind and output not in said:
            continue
        at = outputs.index(output)
        name = names[at] if at < len(names) else output
        wanted, finals = said.get(output) or said.get(""), finals_of(graph, output)
        if wanted is None or wanted.kind == AUTO:
            found.extend(replace(_auto(final, alone=alone), at=at, name=name) for final in finals)
        else:
            found.append(replace(_given(wanted, graph, output, finals, name), at=at, name=name))
    return tuple(found)


def with_labels(judge: Judge, labels: Array) -> Judge:
    """How an output is compared with labels: classes by their probability, numbers by squared error."""
    if labels.dtype.kind in "iu":
        final = judge.final if judge.final is not None and not judge.final.binary else None
        return replace(judge, kind="kl", axis=judge.axis if judge.kind == "kl" else -1, final=final)
    return replace(judge, kind="mse", final=None)


def _auto(final: Final, *, alone: bool) -> Judge:
    """What fits what was found; a last layer's row is taken for scores only where it is the model's one result."""
    if final.kind == "scores" and not alone:
        final = replace(final, kind="")
    kind = _OF_KINDS.get(final.kind, "mse")
    axis = final.axis if kind in ALONG else -1
    return Judge(final.output, 0, kind, axis, final if final.kind else None, final.part, _FOUND[final.kind])


def _given(asked: Asked, graph: Graph, output: str, finals: Sequence[Final], name: str) -> Judge:
    rank = len(graph.values[output].shape)
    whole = finals[0] if len(finals) == 1 and finals[0].part is None else None
    made = whole if whole is not None and _OF_KINDS.get(whole.kind) == asked.kind and whole.node else None
    axis = asked.axis if asked.axis is not None else made.axis if made is not None else -1
    if asked.kind in ALONG and not -rank <= axis < rank:
        raise OptionError(
            f"output '{name}' has {rank} axes and none that is {axis}; give an axis from 0 to {rank - 1}, as in 'kl:1'"
        )
    axis = axis % rank if asked.kind in ALONG and rank else -1
    if made is not None and asked.kind in ALONG and made.axis != axis:
        made = None
    return Judge(output, 0, asked.kind, axis, made, None, "as given")


def _position(name: str, outputs: Sequence[str]) -> int:
    """Of the output that is meant: by name, or by its position from 0."""
    if name in outputs:
        return list(outputs).index(name)
    if name.isdecimal() and int(name) < len(outputs):
        return int(name)
    raise OptionError(
        f"the model has no output {meant(name, outputs)} to give a loss for; its outputs are "
        f"{', '.join(map(repr, outputs))}"
    )
