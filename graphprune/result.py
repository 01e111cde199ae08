"""What a compilation gives: the smaller model, its plan and its report, and how they are written."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from graphprune.defaults import PER_LAYER
from graphprune.errors import GraphpruneWarning, ModelError, OptionError
from graphprune.hosts.export import Export
from graphprune.hosts.host import Host, Represented
from graphprune.hosts.onnx.genai import write_genai
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.parity import EXPORTED_DOUBLE, NAME, file_parity
from graphprune.pipeline.state import Check, State
from graphprune.planning.metadata import metadata_of
from graphprune.planning.plan import PruningPlan
from graphprune.proof.compare import compare, require
from graphprune.report.card import model_card
from graphprune.report.data import Report
from graphprune.turns import in_turn

if TYPE_CHECKING:
    from graphprune.hosts.checkpoint.host import CheckpointHost
    from graphprune.hosts.torch.host import TorchHost


@dataclass(frozen=True, eq=False)
class Result:
    """A pruned model.

    Attributes:
        plan: Which units stay; JSON by ``plan.save(path)``.
        report: Requested and realised costs, latency, and the proof.
        host: The pruned model as graphprune holds it.
        module: For PyTorch input, the pruned module: the user's own class with sliced parameters where the proof says
            that this is right, otherwise the pruned graph module; ``None`` for ONNX input.
        state: The compiler's state after the last pass.
        before: The plan of all that was pruned before; ``None`` for the first time.
        proves: Whether files of a PyTorch model are proven when they are saved; of what is not proven they are not.
    """

    plan: PruningPlan = field(repr=False)
    report: Report
    host: Host = field(repr=False)
    state: State = field(repr=False)
    module: Any = field(default=None, repr=False)
    proves: bool = field(default=True, repr=False)
    before: PruningPlan | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Result({self.report!r}, host={self.host.kind}, module={type(self.module).__name__})"

    def __str__(self) -> str:
        """The report's tables."""
        return str(self.report)

    @in_turn
    def save_onnx(self, path: str | Path) -> tuple[Check, ...]:
        """Writes the pruned model as a checked ONNX file, whole or not at all.

        For PyTorch input with the weights and element types that :attr:`module` has now: train it, call ``half()``,
        and save again. The file is proven in onnxruntime before it is in its place (that of an ONNX file is already);
        where that cannot run it, a warning says so.

        A ``genai_config.json`` beside an ONNX file goes with it, with the sizes of what is written, if that is another
        folder.

        Returns:
            What was proven of the file beside what the report says; nothing for ONNX input, or without a proof.

        Raises:
            OutputError: It cannot be written, or the module is no longer built as it was.
            ProofError: The file does not compute what the module does.
        """
        if self.module is None or isinstance(self.host, Represented):
            self.host.save_onnx(Path(path), metadata_of(self.plan))
            if isinstance(self.host, OnnxHost):
                write_genai(self.host, Path(path), self._widths)
            return ()
        from graphprune.hosts.torch.now import as_it_is

        host, retyped = as_it_is(cast("TorchHost", self.host), self.module, self.state.former)
        if isinstance(self.state.export, Export) and self.state.export.host is host:
            self.state.export.save(Path(path))
            return tuple(check for check in self.report.proof if check.name == NAME)
        checks: list[Check] = []

        def proof(file: Path) -> None:
            try:
                checks.append(file_parity(host, file, host.example_inputs()))
                require(tuple(checks))
            except ModelError as error:
                reason = str(error).replace(f"'{file}'", "it")
                checked = ", onnx's reference evaluator in float64 has" if _agrees_in_double(host, file) else ""
                text = f"onnxruntime has not checked '{path}'{checked}: {reason}"
                warnings.warn(text, GraphpruneWarning, stacklevel=4)

        host.save_onnx(Path(path), metadata_of(self.plan), *((proof,) if retyped or self.proves else ()))
        return tuple(checks)

    @property
    def _widths(self) -> dict[int, int]:
        """What is left of widths of the residual stream, where all of one size lose as many."""
        found: dict[int, set[int]] = {}
        for group in self.report.groups:
            if group.kind == "width":
                found.setdefault(group.size, set()).add(group.kept)
        return {size: min(kept) for size, kept in found.items() if len(kept) == 1}

    @property
    def ledger(self) -> PruningPlan:
        """The plan of this and all that was pruned before, by the units of the model that was first."""
        return self.plan if self.before is None else self.before.then(self.plan)

    @in_turn
    def save_pretrained(self, folder: str | Path, tokenizer: Any = None) -> tuple[Check, ...]:
        """Writes a checkpoint that ``from_pretrained`` of the model's own class reads.

        Into a folder that takes its place whole or not at all: ``config.json``, weights as safetensors, the generation
        config, the plan, a short model card with the report, and the tokenizer's files. It is read again before: no
        key may be missing or unexpected, outputs have to be the same to the last bit, and so do the tokens that the
        class generates with a cache.

        Args:
            folder: The folder: new, empty, or an earlier checkpoint of graphprune's, which is replaced.
            tokenizer: What has ``save_pretrained``, or the path of a tokenizer's folder or file. For models that were
                read from a checkpoint's folder, that folder if absent.

        Returns:
            What was proven of the folder.

        Raises:
            OptionError: The model has no config: it is an ONNX file, or a class of its own.
            OutputError: No config of its class says its shape (prune with ``layout="stock"``, or with ``"per-layer"``,
                which lets a few lines of code go with the weights), or nothing can be written.
            ProofError: What is read again is not the module.
        """
        if self.module is None:
            raise OptionError("an ONNX model has no config; use save_onnx and plan.save")
        if isinstance(self.host, Represented):
            return self._streamed(Path(folder), tokenizer)
        from graphprune.hosts.torch.checkpoints.own_code import auto_class_of
        from graphprune.hosts.torch.checkpoints.reading import tokenizer_of
        from graphprune.hosts.torch.checkpoints.refusing import Refusing
        from graphprune.hosts.torch.checkpoints.writing import CARD, PLAN, write_checkpoint

        host, kind = cast("TorchHost", self.host), type(self.module).__name__
        refused = isinstance(vars(self.module).get("save_pretrained"), Refusing)
        code = refused and self.plan.options.get("layout") == PER_LAYER
        card = model_card(self.report, kind, auto_class_of(self.module) if code else "")
        beside = {
            PLAN: self.plan.save,
            CARD: lambda path: path.write_text(card, encoding="utf-8"),
        }
        example = host.arguments(host.example_inputs())
        tokenizer = tokenizer if tokenizer is not None else tokenizer_of(cast("TorchHost", self.state.original).source)
        return (write_checkpoint(self.module, Path(folder), example, tokenizer, beside, code=code).check,)

    def _streamed(self, folder: Path, tokenizer: Any) -> tuple[Check, ...]:
        """Writes a checkpoint whose weights were not loaded; a run that was killed goes on."""
        from graphprune.hosts.checkpoint.streaming import job_of, stream
        from graphprune.hosts.torch.checkpoints.reading import tokenizer_of
        from graphprune.hosts.torch.checkpoints.writing import CARD, PLAN

        host = cast("CheckpointHost", self.state.original)
        card = model_card(self.report, type(self.module).__name__)
        beside = {PLAN: self.plan.save, CARD: lambda path: path.write_text(card, encoding="utf-8")}
        tokenizer = tokenizer if tokenizer is not None else tokenizer_of(host.source)
        return (stream(job_of(host, self.state), folder, tokenizer, beside),)

    @in_turn
    def save_state(self, folder: str | Path) -> None:
        """Writes ``model.safetensors`` and ``plan.json`` into a folder; :func:`restore` reads them. No pickle.

        Raises:
            OptionError: The model was an ONNX file, which has no module.
            OutputError: A file cannot be written.
        """
        if self.module is None:
            raise OptionError("an ONNX model has no module to save the state of; use save_onnx and plan.save")
        if isinstance(self.host, Represented):
            raise OptionError("the weights were not loaded, and the module has none to save; use save_pretrained")
        from graphprune.hosts.torch.state import save_state

        save_state(self.module, self.plan, Path(folder))


def _agrees_in_double(host: Host, path: Path) -> bool:
    """Whether a file that onnxruntime cannot run equals its host in float64; not if nothing else can run it either.

    Raises:
        ProofError: It does not equal it.
    """
    inputs = host.example_inputs()
    try:
        expected, got = host.run(inputs, double=True), OnnxHost.load(path).run(inputs, double=True)
    except ModelError:
        return False
    note = "file = pruned model, in float64"
    check = compare("reference evaluator", expected, got, note=note, rounding=EXPORTED_DOUBLE)
    require((replace(check, informative=True),))
    return True
