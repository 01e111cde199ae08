"""The parts of a recipe: what is pruned, how units are scored, how the budget is shared, refit and proof.

Each is checked when it is made. The defaults of all commands and of Python stand here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from graphprune.brief import brief
from graphprune.defaults import (
    ALIGN,
    ALLOCATION,
    ALLOCATIONS,
    BLOCK_CRITERION,
    COMPENSATION,
    COMPENSATIONS,
    CRITERIA,
    CRITERION,
    LAYOUT,
    LAYOUTS,
    MAX_RATIO,
    MEASURED_COMPENSATION,
    MEASURED_CRITERION,
    MIN_UNITS,
)
from graphprune.errors import OptionError
from graphprune.recipe.options import checked, default_of, option, options_in
from graphprune.recovery.options import Recovering

ACCEPT_UNPROVEN: Literal["accept-unproven"] = "accept-unproven"
"""The value of ``verify`` that takes a result whose proof sees nothing."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Section:
    """A part of a recipe. Values are brought to the types of their fields, and checked, when it is made."""

    __repr__ = brief

    def __post_init__(self) -> None:
        for each in options_in(type(self)):
            object.__setattr__(self, each.field, checked(each.keyword, getattr(self, each.field), each.kind))
        if self.differing():
            self.require()

    def require(self) -> None:
        """Refuses values that mean nothing. Defaults do, and nothing is imported for their sake.

        Raises:
            OptionError: One does not.
        """

    def differing(self) -> dict[str, Any]:
        """The fields whose values are not the defaults."""
        pairs = ((each, getattr(self, each.name)) for each in fields(self))
        return {each.name: value for each, value in pairs if value != default_of(each)}


@dataclass(frozen=True, kw_only=True, repr=False)
class Selection(Section):
    """What may be pruned.

    Attributes:
        protect: Tensors, scopes or kinds that stay whole; ``kind:head`` or ``name:head``, where a word is both.
            Patterns of parameters (``layer4``, ``*.bias``, ``fc.weight[0]``) or kinds of group. A word that is both in
            this model protects both, and a note says so; ``group:fc.weight[0]`` means a group by its name.
        protect_ratio: This fraction of the groups stays whole: those that the outputs depend on most.
        only: Prune nothing but these kinds, groups or tensors; ``kind:head`` or ``name:head``, where a word is both.
            Kinds of group, names of groups, or patterns of parameters. A word is a kind where the model has such
            units, then a group's name, then a pattern; ``kind:head``, ``group:NAME`` and ``name:head`` say which, and a
            note says where a word alone could mean two. Residual branches as a whole are left out to meet a target
            only where ``block`` or ``layer`` is named here, as few as need be and after all other kinds that are named.
        keep: Units that stay, and no others of their group: ``layers.3.self_attn=0,5``, ``head=count:6``, ``@FILE``.
            Names are those of modules (patterns), groups or kinds, with a kind before them where it is not clear
            (``head:layers.3=0-3``); numbers are indices of units from 0, or ``count:6`` where importance chooses. In
            Python also a mapping, ``{"layers.3.self_attn": [0, 5], "head": 6}``. ``@FILE`` is a JSON file of names and
            lists, of which ``@FILE:48`` takes the first 48 each. Targets are met by other groups.
        remove: Units that go, and no others of their group, written as for ``keep``.
        resize_io: Inputs and outputs of an ONNX file that may shrink: ``*.key`` (all axes), ``present.*[1]`` (one).
            Else the interface stays what it is. A cache of keys and values has to be named on both sides, in and out;
            the report lists what has shrunk.
    """

    protect: tuple[str, ...] = option((), metavar="PATTERN")
    protect_ratio: float = option(0.0)
    only: tuple[str, ...] = option((), metavar="KIND")
    keep: tuple[str, ...] = option((), metavar="NAME=UNITS|@FILE")
    remove: tuple[str, ...] = option((), metavar="NAME=UNITS|@FILE")
    resize_io: tuple[str, ...] = option((), metavar="PATTERN")

    def __post_init__(self) -> None:
        from graphprune.planning.demands import written

        for name in ("keep", "remove"):
            if (given := getattr(self, name)) != ():
                object.__setattr__(self, name, written(name, given))
        super().__post_init__()

    def require(self) -> None:
        """Refuses kinds that there are not, and what is no fraction."""
        from graphprune.planning import selection

        selection.Selection(
            self.only, self.protect, self.protect_ratio, self.keep, self.remove, resize_io=self.resize_io
        ).check()

    @property
    def demands(self) -> bool:
        """Whether units stay or go whatever the targets say."""
        return bool(self.keep or self.remove)


@dataclass(frozen=True, kw_only=True, repr=False)
class Scoring(Section):
    """How units and blocks are scored.

    Attributes:
        criterion: How units are scored. A name of :data:`graphprune.importance.CRITERIA`, or one that was registered.
        block_criterion: How whole blocks are scored: ``l2``, ``random``; with calibration data: ``bi``, ``ablation``.
            By the norm of a branch's last weights (``l2``), how far the stream turns (``bi``), what the outputs lose
            (``ablation``), or one that was registered.
    """

    criterion: str | None = option(
        None,
        metavar="NAME",
        choices=CRITERIA,
        unset=f"{CRITERION}, with calibration data {MEASURED_CRITERION}",
    )
    block_criterion: str = option(BLOCK_CRITERION)

    def require(self) -> None:
        """Refuses criteria that there are not."""
        from graphprune.importance import block_criterion, criterion

        if self.criterion is not None:
            criterion(self.criterion)
        block_criterion(self.block_criterion)


@dataclass(frozen=True, kw_only=True, repr=False)
class Allocation(Section):
    """How the budget is shared among groups, and which blocks go as a whole.

    Attributes:
        allocation: How the budget is shared. A name of :data:`graphprune.planning.share.ALLOCATIONS`; ``measured``
            needs calibration data and a floating-point output.
        align: Widths stay multiples of this where the width allows.
        min_units: At least so many units stay in every group.
        max_ratio: At most this fraction of a group's units is removed.
        blocks: Leave out so many residual branches, the least important ones. Attention, MLP, convolutional blocks: a
            number, or a fraction as a float or text with a percent sign. What they save counts for targets.
        layers: Leave out so many layers (several branches each), likewise. An attention and an MLP branch together,
            say.
        remove_blocks: Leave out the residual branches of this name or scope (``layers.3``). Names of blocks, or
            patterns of the last weights of branches (``layers.3``, also for ``model.layers.3``, if no other scope ends
            so).
        layout: What may be left: anything (``free``), or what a config of the model's class can say (``stock``). For
            modules of transformers: with ``stock``, alike groups of all layers keep equal parts, only what a changed
            ``config.json`` builds is cut, whole layers go, and the result loads in ``from_pretrained``. With
            ``per-layer``, which is as ``free``, ``save_pretrained`` of the result adds a few lines of code.
        shape_target: Sizes that the config of the result says, by its names: ``hidden_size=2048,num_hidden_layers=16``.
            For modules of transformers, with the layout ``stock``. The least important units and layers go; the result
            has just these sizes, or it is said why it cannot. In Python also a mapping. A ``target`` beside it is met
            by what is not named.
    """

    allocation: str | None = option(
        None,
        metavar="NAME",
        choices=ALLOCATIONS,
        unset=f"{ALLOCATION}, with calibration data the best of several on held-out inputs",
    )
    align: int = option(ALIGN)
    min_units: int = option(MIN_UNITS)
    max_ratio: float = option(MAX_RATIO)
    blocks: str | None = option(None, metavar="N|FRACTION")
    layers: str | None = option(None, metavar="N|FRACTION")
    remove_blocks: tuple[str, ...] = option((), name="remove-block", metavar="NAME")
    layout: str | None = option(
        None, metavar="NAME", choices=LAYOUTS, unset=f"{LAYOUT}, or stock where a checkpoint is written"
    )
    shape_target: tuple[str, ...] = option((), metavar="SIZE=N,...")

    def __post_init__(self) -> None:
        if (given := self.shape_target) != ():
            from graphprune.planning.shape_target import shape_texts

            object.__setattr__(self, "shape_target", shape_texts(given))
        super().__post_init__()

    def require(self) -> None:
        """Refuses allocations that there are not, and numbers that are none."""
        from graphprune.planning.allocation import Limits
        from graphprune.planning.layouts import require_layout
        from graphprune.planning.select import require_number
        from graphprune.planning.share import require_allocation

        if self.allocation is not None:
            require_allocation(self.allocation)
        require_layout(self.layout or LAYOUT)
        Limits(self.align, self.min_units, self.max_ratio)
        for text, kind in ((self.blocks, "block"), (self.layers, "layer")):
            if text is not None:
                require_number(text, kind)

    @property
    def whole(self) -> bool:
        """Whether blocks go, or sizes are said, whatever the targets say."""
        return bool(self.shape_target) or self.blocks is not None or self.layers is not None or bool(self.remove_blocks)


@dataclass(frozen=True, kw_only=True, repr=False)
class Judging(Section):
    """How outputs are compared wherever losses are measured.

    Attributes:
        loss: How outputs are compared: ``auto`` (as the graph says), ``kl``, ``bce``, ``mse`` or ``cosine``;
            ``kl:1`` where classes lie along axis 1, ``boxes=mse`` for one output. Distributions over classes (``kl``),
            elements that are probabilities (``bce``), values relative to their variance, or directions. Of single
            outputs by name or position, in Python also as a mapping: ``{"boxes": "mse", "scores": "bce"}``.
    """

    loss: tuple[str, ...] = option((), metavar="[OUTPUT=]LOSS")

    def __post_init__(self) -> None:
        given: Any = self.loss
        if isinstance(given, Mapping):
            object.__setattr__(self, "loss", tuple(f"{output}={kind}" for output, kind in given.items()))
        super().__post_init__()

    def require(self) -> None:
        """Refuses losses that there are not."""
        from graphprune.importance.judge import parse_losses

        parse_losses(self.loss)


@dataclass(frozen=True, kw_only=True, repr=False)
class Refit(Section):
    """How what was lost is made good.

    Attributes:
        compensation: How what was lost is made good. The consumers of removed units are refitted: ``affine`` (weights
            and biases), ``as-is`` (likewise, and layers without a bias stay so), ``ols`` (weights), ``mean`` (biases),
            ``bn`` (running statistics of batch normalisations only), or ``none``.
    """

    compensation: str | None = option(
        None,
        metavar="METHOD",
        choices=COMPENSATIONS,
        unset=f"{MEASURED_COMPENSATION} with calibration data, else {COMPENSATION}",
    )

    def require(self) -> None:
        """Refuses refits that there are not."""
        from graphprune.compensation.methods import require_method

        if self.compensation is not None:
            require_method(self.compensation)


@dataclass(frozen=True, kw_only=True, repr=False)
class Recovery(Section, Recovering):
    """Whether and how the pruned model is trained.

    Attributes:
        recover: Train the pruned model to answer as the original does. Each option of how asks for it, too. It is
            trained on the calibration inputs, without labels; a rate and a state are chosen by inputs that are kept
            apart, and what does not help on these is not taken.
    """

    prefix: ClassVar[str] = "recover_"

    recover: bool = option(
        default=False,
        about="recovery",
        flags={"recover": (True, "Train the pruned model to answer as the original does, on calibration inputs.")},
    )

    def require(self) -> None:
        """Refuses numbers that mean nothing."""
        if not isinstance(self.recover, bool):
            raise OptionError(f"recover is {self.recover!r:.60}; expected True or False")
        self.require_meaningful(self.prefix)

    @property
    def on(self) -> bool:
        """Whether it is trained: where that is asked for, or anything of how it is."""
        return bool(self.differing())


@dataclass(frozen=True, kw_only=True, repr=False)
class Proof(Section):
    """Whether the result is proven.

    Attributes:
        verify: Whether to prove the result (masked and permutation oracles, onnxruntime on the exported file). A proof
            that cannot see anything, since outputs and what is inside hardly vary on the example, fails; with
            ``"accept-unproven"`` the report says so instead.
    """

    verify: bool | Literal["accept-unproven"] = option(
        default=True,
        about="the proof",
        flags={
            "no-verify": (False, "Skip the proof."),
            "accept-unproven": (
                ACCEPT_UNPROVEN,
                "Take a result whose proof cannot see anything on the example input.",
            ),
        },
    )

    def require(self) -> None:
        """Refuses what is neither yes, no, nor what there is between."""
        if self.verify not in (True, False, ACCEPT_UNPROVEN):
            raise OptionError(f"unknown value '{self.verify}' of 'verify'; expected True, False or \"accept-unproven\"")

    @property
    def unproven(self) -> str:
        """What a proof makes of what it cannot see."""
        return "accept" if self.verify == ACCEPT_UNPROVEN else "refuse"
