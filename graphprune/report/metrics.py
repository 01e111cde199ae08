"""How sure metrics are, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from graphprune.measured import Interval
from graphprune.report.data import Metric


def sure(metrics: Iterable[Metric]) -> Iterator[str]:
    """For each metric that is known to be a mean: of how many samples, its intervals, and that of the difference."""
    for row in metrics:
        if row.n is None:
            continue
        head = f"{row.name} of {row.n:,} samples"
        if row.before_interval is None or row.after_interval is None:
            yield f"{head}: too few, or no finite number, to say how sure it is"
            continue
        text = f"{head}, 95 % intervals: {_written(row.before_interval)} before, {_written(row.after_interval)} after"
        if row.difference_interval is not None:
            low, high = row.difference_interval
            word = "may be chance" if row.by_chance else "is more than chance"
            text += f"; the difference, {low:+.3g} to {high:+.3g} sample by sample, {word}"
        yield text


def _written(interval: Interval) -> str:
    return f"{interval[0]:.4g} to {interval[1]:.4g}"
