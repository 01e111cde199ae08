"""Budgets: what must remain of the model, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphprune.errors import TargetError
from graphprune.planning.cost import METRICS
from graphprune.suggest import meant

_SUFFIXES = {
    "": 1,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_ALSO = {
    "flops": "macs",
    "flop": "macs",
    "parameters": "params",
    "weights": "params",
    "size": "bytes",
    "memory": "bytes",
    "time": "latency",
    "ms": "latency",
}
"""Other words for metrics."""
_TIMES = {"ms": 1.0, "us": 1e-3, "s": 1e3}
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?\d+)?)\s*([a-z%]*)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Target:
    """What may remain of one metric: a fraction of the original, or an absolute number.

    Attributes:
        metric: One of :data:`METRICS`.
        value: At most 1: a fraction of the original. Above 1: the number itself (of latency: milliseconds).
        absolute: Whether a value of at most 1 is a number too, since it was written with a unit (``0.0005k``).
    """

    metric: str
    value: float
    absolute: bool = False

    def limit(self, original: float) -> float:
        """The absolute number for a model that costs ``original``."""
        return self.value * original if self.relative else self.value

    @property
    def relative(self) -> bool:
        """Whether the value is a fraction of the original."""
        return self.value <= 1 and not self.absolute

    def __str__(self) -> str:
        if self.metric == "latency" and not self.relative:
            return f"{self.metric}={self.value:.15g}ms"
        if self.absolute:
            return f"{self.metric}={self.value / 1e3:.15g}k"
        return f"{self.metric}={self.value:.15g}"


def parse_targets(targets: str | Iterable[str] | Mapping[str, float | str]) -> tuple[Target, ...]:
    """Reads ``{"macs": 0.5}``, ``"macs=0.5"``, ``["macs=50%", "bytes=2MB"]``, ``"latency=5ms"`` (held as milliseconds).

    Raises:
        TargetError: A metric is unknown, or a value is not a positive number.
    """
    if isinstance(targets, Mapping):
        pairs = [(str(metric), str(value)) for metric, value in targets.items()]
    else:
        texts = [targets] if isinstance(targets, str) else list(targets) if isinstance(targets, Iterable) else [targets]
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TargetError(
                f"cannot read target {wrong[0]!r}{_without_metric(wrong[0])}; expected one like 'macs=0.5' or "
                "{'macs': 0.5}"
            )
        if bare := [text for text in texts if "=" not in text and _NUMBER.match(text.strip())]:
            raise TargetError(
                f"target '{bare[0]}' does not say what it is about{_without_metric(bare[0])}; expected one of "
                f"{', '.join(METRICS)}, as in 'macs=0.5'"
            )
        pairs = [(metric, value) for text in texts for metric, _, value in [text.partition("=")]]
    if not pairs:
        raise TargetError("no target given; expected one like 'macs=0.5', which keeps half of the multiply-accumulates")
    return tuple(_target(metric.strip(), value.strip()) for metric, value in pairs)


def require_meant(targets: Iterable[Target], costs: Mapping[str, float]) -> None:
    """Refuses a percentage that was written as a number: ``macs=50`` of a model of millions.

    Args:
        targets: The targets.
        costs: What the whole model costs, by metric.

    Raises:
        TargetError: A target is a number up to 100, and less than a hundredth of what the model costs.
    """
    for target in targets:
        whole = costs.get(target.metric, 0.0)
        if (
            target.metric != "latency"
            and not target.relative
            and 1 < target.value <= 100
            and target.value < whole / 100
        ):
            raise TargetError(
                f"target '{target}' is a number, and {target.value / whole:.2g} of the {whole:.15g} {target.metric} of "
                f"the model; did you mean '{target.metric}={target.value / 100:.15g}' or "
                f"'{target.metric}={target.value:.15g}%'?"
            )


def _without_metric(value: object) -> str:
    """What a number that says nothing of its metric may mean."""
    match = _NUMBER.match(str(value).strip()) if isinstance(value, str | float | int) else None
    if match is None:
        return ""
    suffix = match.group(2).lower()
    metric = "latency" if suffix in _TIMES else "bytes" if suffix.endswith("b") else "macs"
    return f" (did you mean '{metric}={str(value).strip()}'?)"


def _meant(metric: str, text: str) -> str:
    """An unknown metric, and behind it the target that may be meant."""
    match = _NUMBER.match(text)
    if metric.lower() in ("flops", "flop") and match is not None:
        number = float(match.group(1))
        part = match.group(2) == "%" or (
            not match.group(2) and number <= 1
        )  # of both the same; else two of them are one
        return f"'{metric}' (did you mean 'macs={text if part else f'{number / 2:.15g}{match.group(2)}'}'?)"
    return meant(metric, METRICS, also=_ALSO)


def _target(metric: str, text: str) -> Target:
    if metric not in METRICS:
        raise TargetError(
            f"unknown target {_meant(metric, text)}; expected one of {', '.join(METRICS)}, as in 'macs=0.5'"
        )
    units = {"": 1.0, **_TIMES} if metric == "latency" else _SUFFIXES
    match = _NUMBER.match(text)
    suffix = match.group(2).lower() if match else ""
    if match is None or suffix not in (*units, "%"):
        example = "5ms" if metric == "latency" else "2M"
        raise TargetError(
            f"cannot read '{text}' of target '{metric}'; "
            f"expected a fraction like 0.5 or 50%, or a number like {example}"
        )
    value = float(match.group(1)) * (0.01 if suffix == "%" else units[suffix])
    if metric == "latency" and not suffix and value > 1:
        raise TargetError(f"target 'latency={text}' has no unit; expected a fraction like 0.6, or a time like {text}ms")
    if suffix == "%" and value > 1:
        raise TargetError(f"target '{metric}={text}' asks for more than the original has; expected at most 100%")
    if value <= 0:
        raise TargetError(f"target '{metric}={text}' keeps nothing; expected a number above 0")
    return Target(metric, value, absolute=suffix not in ("", "%") and value <= 1)
