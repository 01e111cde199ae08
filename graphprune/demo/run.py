"""The demo: prune a trained CNN that ships with graphprune, on real test images, and show what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table

from graphprune.api import Result, prune
from graphprune.brief import brief
from graphprune.demo import PIXEL_MEAN, PIXEL_STD
from graphprune.files import made_folder
from graphprune.measured import Measured
from graphprune.observer import Observer, observing
from graphprune.report.data import metric_row
from graphprune.report.metrics import sure
from graphprune.report.terminal import render_report
from graphprune.runtime.sessions import run_session, session

HERE = Path(__file__).parent
TARGET = "macs=0.5"


@dataclass(frozen=True, eq=False)
class DemoOutcome:
    """What the demo found.

    Attributes:
        before: Accuracy of the shipped model on the shipped test images, fraction in [0, 1].
        after: Accuracy of the pruned file.
        n_images: How many images.
        result: The compilation.
        output: The file written.
    """

    __repr__ = brief

    before: float
    after: float
    n_images: int
    result: Result
    output: Path

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON data."""
        return {
            "output": str(self.output),
            "n_images": self.n_images,
            "accuracy_before": self.before,
            "accuracy_after": self.after,
            **self.result.report.to_dict(),
        }

    def render(self) -> RenderableType:
        """The outcome as tables."""
        table = Table(title="accuracy", title_justify="left", show_edge=False)
        for column in ("", "before", "after"):
            table.add_column(column, justify="right" if column else "left")
        table.add_row(f"{self.n_images:,} test images", f"{self.before:.1%}", f"{self.after:.1%}")
        table.add_row("file", _kilobytes(HERE / "demo_net.onnx"), _kilobytes(self.output))
        return Group(
            f"A ResNet-20 for Fashion-MNIST, pruned to {TARGET} with no training afterwards.\n"
            "(It was trained so that many of its channels are not needed; most models lose more.)\n",
            table,
            *sure([metric_row("accuracy", self.before, self.after)]),
            "",
            render_report(self.result.report, title=str(self.output)),
        )


def run_demo(folder: Path, progress: Observer | Callable[[str], None] | None = None) -> DemoOutcome:
    """Prunes the shipped model and evaluates it before and after.

    Args:
        folder: Where ``demo_net_pruned.onnx`` and ``plan.json`` are written; made if need be.
        progress: As for :func:`graphprune.prune`.

    Raises:
        OutputError: The folder cannot be made.
    """
    made_folder(folder, "--out")
    images, labels = demo_data()
    result = prune(HERE / "demo_net.onnx", target=TARGET, latency=True, progress=progress)
    output = folder / "demo_net_pruned.onnx"
    result.save_onnx(output)
    result.plan.save(folder / "plan.json")
    observing(progress).begin("evaluate")
    before, after = (accuracy(path, images, labels) for path in (HERE / "demo_net.onnx", output))
    return DemoOutcome(before, after, len(labels), result, output)


def demo_data() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The shipped test images, normalised, ``n 1 28 28``, and their labels."""
    with np.load(HERE / "demo_data.npz") as data:
        images = (data["images"].astype(np.float32) / 255 - PIXEL_MEAN) / PIXEL_STD
        return images[:, None], data["labels"]


def accuracy(path: Path, images: NDArray[np.float32], labels: NDArray[np.uint8], batch: int = 100) -> Measured:
    """Top-1 accuracy of an ONNX classifier, fraction in [0, 1]."""
    runner = session(path, threads=0)
    name = runner.get_inputs()[0].name
    hits = []
    for i in range(0, len(labels), batch):
        (logits,) = run_session(runner, {name: images[i : i + batch]}).values()
        hits.append(logits.argmax(1) == labels[i : i + batch])
    return Measured(np.concatenate(hits), np.ones(len(labels)), "fraction")


def _kilobytes(path: Path) -> str:
    return f"{path.stat().st_size / 1000:,.0f} kB"
