"""Options that several commands share and that are no part of a recipe: models, data, files, how passes run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import graphprune as gp
from graphprune.commands.offered import Offers
from graphprune.errors import OptionError
from graphprune.files import is_there
from graphprune.recipe.options import option
from graphprune.user_code import is_object_name

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An .onnx file, package.module:factory for a Python model, a checkpoint's folder, or (with --trust) "
        "a .pt2 program.",
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="OUT.onnx", help="The ONNX file to write.")]
Written = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="OUT", help="The ONNX file to write, or the folder of a checkpoint (see --to)."
    ),
]
Plan = Annotated[Path, typer.Option(metavar="plan.json", help="The plan that prune --plan-out wrote.")]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a model is opened.

    Attributes:
        shape: Shape of an input, where it is dynamic.
        size: Size of a dynamic axis of an ONNX file, by the name that the file gives it, or past, seq, batch, total.
        trust: Allow loading .pt2 files, which can run their author's code.
    """

    shape: tuple[str, ...] = option((), metavar="NAME=1x3x224x224")
    size: tuple[str, ...] = option((), metavar="NAME=5")
    trust: bool = option(default=False)

    def keywords(self) -> dict[str, Any]:
        """As Python takes them.

        Raises:
            OptionError: A shape or a size cannot be read.
        """
        shapes = {}
        for text in self.shape:
            name, _, sizes = text.partition("=")
            try:
                shapes[name] = tuple(int(size) for size in sizes.split("x"))
            except ValueError:
                raise OptionError(f"cannot read --shape '{text}'; expected one like 'image=1x3x224x224'") from None
        named: dict[str, int] = {}
        for text in self.size:
            name, _, number = text.rpartition("=")
            if not (name and number.isascii() and number.isdigit()):
                raise OptionError(f"cannot read --size '{text}'; expected one like 'past=5'")
            named[name] = int(number)
        return {"shapes": shapes, "sizes": named, "trust": self.trust}


RECOVERY = ("recover_data", "recover_folder")
"""Options of :class:`Data` for commands that train."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a model is measured on, and how that is read.

    Attributes:
        calibration: Unlabelled inputs: .npz, .npy, a folder of images, a text, package.module:loader, or random.
        samples: At most so many calibration samples.
        batch_size: Samples of a batch, where it may have any; of a call, where samples see each other in the model.
        tokenizer: For texts: tokenizer.json, or a tokenizer's folder.
        preprocess: For images: fit=crop|stretch|pad, resize=256, resample=bicubic, scale=1/255, mean=0.5,0.5,0.5,
            std=0.5,0.5,0.5, color=rgb|bgr, layout=nchw|nhwc; for texts: length=512.
        statistics: What calibration measured: read if it is there, else written.
        recover_data: What recovery trains on instead of the calibration inputs, read as these are.
        recover_folder: Where recovery notes where it stands, and goes on from after a stop.
        evaluate: Your metric before and after: package.module:function, or labelled data (as --calibration, with
            labels).
        metric: Of labelled data: accuracy, mse, perplexity.
        labels: Which folder of images is which class: JSON, or a text with one name a line.
    """

    calibration: str | None = option(None, metavar="DATA")
    samples: int | None = option(None, unset=f"{gp.SAMPLES}")
    batch_size: int | None = option(None)
    tokenizer: str | None = option(None, metavar="PATH")
    preprocess: tuple[str, ...] = option((), metavar="KEY=VALUE")
    statistics: Path | None = option(None, metavar="statistics.npz")
    recover_data: str | None = option(None, metavar="DATA")
    recover_folder: Path | None = option(None, metavar="FOLDER")
    evaluate: str | None = option(None, name="eval", metavar="METRIC")
    metric: str | None = option(None)
    labels: Path | None = option(None, metavar="FILE", unset="by number or name")

    def written(self) -> tuple[Path, ...]:
        """The file of statistics, where it is not there yet."""
        return () if self.statistics is None or is_there(self.statistics) else (self.statistics,)

    def opened(self, *, needed: bool = True) -> tuple[gp.Inputs | None, Any]:
        """What ``--calibration`` and ``--eval`` name, and how they are read.

        Args:
            needed: Whether samples are of data of the user's; else some are made up where there are none.

        Raises:
            OptionError: An option is about data that there are not.
        """
        read = self.evaluate is not None and not is_object_name(self.evaluate)
        preprocess = list(self.preprocess) or None
        if self.calibration is None and not read:
            options: dict[str, Any] = {
                "--batch-size": self.batch_size,
                "--tokenizer": self.tokenizer,
                "--preprocess": preprocess,
                "--labels": self.labels,
            }
            if unused := next((name for name, value in options.items() if value is not None), None):
                raise OptionError(f"{unused} says how data are read, and there are none; give some with --calibration")
        if self.calibration is None and self.samples is not None and needed:
            raise OptionError(
                "--samples says how many calibration inputs are used, and there are none; did you mean "
                f"'--calibration DATA --samples {self.samples}'?"
            )
        how = (self.batch_size, self.tokenizer, preprocess)
        source, labels = self.calibration, None if read else self.labels
        inputs = None if source is None else gp.Inputs(source, self.samples, *how, labels)
        return inputs, gp.Inputs(self.evaluate, None, *how, self.labels) if read else self.evaluate

    def recovery(self) -> dict[str, Any]:
        """What recovery takes beside the options of a recipe, as Python does."""
        how = (self.batch_size, self.tokenizer, list(self.preprocess) or None)
        data = None if self.recover_data is None else gp.Inputs(self.recover_data, None, *how)
        return {"recover_data": data, "recover_folder": self.recover_folder}


@dataclass(frozen=True, kw_only=True)
class Running:
    """How passes run, and what is told of them.

    Attributes:
        profile: Latencies that 'graphprune profile' measured, on any machine.
        time_passes: Show how long each pass took.
        dump_after: Print the graph after a pass, on stderr.
        verify_each: Check the model after every pass.
        print_pipeline: Print what would run, as text for --pipeline, and stop there.
    """

    profile: Path | None = option(None, metavar="profile.json")
    time_passes: bool = option(default=False)
    dump_after: tuple[str, ...] = option((), metavar="PASS")
    verify_each: bool = option(default=False)
    print_pipeline: bool = option(default=False)

    def keywords(self, dump: Callable[[str], None]) -> dict[str, Any]:
        """As Python takes them."""
        return {
            "profile": self.profile,
            "dump_after": self.dump_after,
            "dump": dump,
            "verify_each": self.verify_each,
        }


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What is written beside the model, and over what.

    Attributes:
        plan_out: Write the plan.
        force: Allow -o to name MODEL itself, which is then replaced.
        to: What -o is: an ONNX file (onnx), or a folder that from_pretrained of transformers reads (hf).
        stream: Leave the weights of a checkpoint's folder in their files, and stream slices of them: it may be larger
            than memory. Units are scored by weights alone. Run the same again after a stop, and it goes on.
    """

    plan_out: Path | None = option(None, metavar="plan.json")
    force: bool = option(default=False)
    to: str | None = option(None, metavar="onnx|hf", unset="hf for a path without suffix, if MODEL is no .onnx file")
    stream: bool = option(default=False)

    def checkpoint(self, model: str, output: Path) -> bool:
        """Whether a checkpoint's folder is to be written.

        Raises:
            OptionError: ``to`` is neither, or the model is a file without a config.
        """
        if self.to not in (None, "onnx", "hf"):
            raise OptionError(f"--to is '{self.to}'; expected onnx or hf")
        if self.to == "hf" and model.endswith(".onnx"):
            raise OptionError("an ONNX file has no config, and no checkpoint can be written of it; leave --to hf out")
        if self.to is not None:
            return self.to == "hf"
        return not output.suffix and not model.endswith(".onnx") and not output.is_file()


@dataclass(frozen=True, kw_only=True)
class Showing:
    """What is measured for the report, and how it is shown.

    Attributes:
        no_latency: Skip the latency measurement.
        full: Show the sizes of every weight before and after, too.
        as_json: Print JSON instead of tables.
    """

    no_latency: bool = option(default=False)
    full: bool = option(default=False)
    as_json: bool = option(default=False, name="json")


AsJson = Annotated[Showing, Offers(only=("as_json",))]
"""Of a command that measures no latency and shows no sizes."""
