"""The torch host: a functional graph of ATen operators that is analysed, edited, run and exported.

A module is exported once; all surgery happens on copies of the exported graph. The user's module is never touched: the
module that users call is generated from the graph and its tensors when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.export import ExportedProgram

from graphprune.brief import brief
from graphprune.errors import ModelError, OutputError
from graphprune.hosts.edits import Edits
from graphprune.hosts.host import Array, Arrays
from graphprune.hosts.torch import onnx_export as torch_onnx
from graphprune.hosts.torch import runs as torch_runs
from graphprune.hosts.torch.checkpoints.asking import Asking
from graphprune.hosts.torch.checkpoints.reading import tokenizer_of
from graphprune.hosts.torch.front import traced
from graphprune.hosts.torch.program import Program
from graphprune.hosts.torch.recording.forward import Recording
from graphprune.hosts.torch.runs import OtherRuns
from graphprune.hosts.torch.stored import to_numpy
from graphprune.hosts.torch.trace import Example, Trace, functional, split_example
from graphprune.hosts.torch.untouched import noticing, untouched
from graphprune.ir.graph import Graph
from graphprune.planning.transfer import METADATA, write_origins

if TYPE_CHECKING:
    from graphprune.hosts.torch.module import Made
    from graphprune.pipeline.state import State


@dataclass(frozen=True, eq=False)
class TorchHost(Program):
    """A traced PyTorch model: its call in evaluation mode, and how else the user's module runs.

    Attributes:
        dynamic_shapes: As for ``torch.export``; kept for the export to ONNX.
        source: The user's module, if it was one; only read.
        runs: The module run in other ways.
    """

    __repr__ = brief

    dynamic_shapes: Any = None
    source: torch.nn.Module | None = field(default=None, repr=False)
    runs: OtherRuns = field(default=OtherRuns(), repr=False)

    @classmethod
    def trace(
        cls,
        model: torch.nn.Module | ExportedProgram,
        example_inputs: tuple[Any, ...] | Mapping[str, Any] | torch.Tensor | None = None,
        dynamic_shapes: Any = None,
    ) -> TorchHost:
        """Exports a model in evaluation mode, without side effects on it.

        Args:
            model: A module, or a program that the user exported.
            example_inputs: Positional arguments as a tuple, or keyword arguments as a mapping; may be absent for a
                program that holds its own.
            dynamic_shapes: As for ``torch.export.export``.

        Raises:
            ModelError: The model cannot be exported, or there is no example.
        """
        if isinstance(model, ExportedProgram):
            example = split_example(example_inputs) if example_inputs is not None else model.example_inputs
            program = functional(model)
        else:
            if example_inputs is None:
                raise ModelError("a module needs example inputs to be traced; pass a tuple or a mapping of tensors")
            example = split_example(example_inputs)
            return cls._of_module(model, example, dynamic_shapes)
        if example is None:
            raise ModelError("the exported program holds no example inputs; pass example_inputs")
        return replace(cls.of(Trace(program, example)), dynamic_shapes=dynamic_shapes)

    @classmethod
    def _of_module(cls, model: torch.nn.Module, example: Example, dynamic_shapes: Any) -> TorchHost:
        """The host of a module, which is traced on its second call if the first one makes what cannot be traced."""
        try:
            with untouched(model) as looked, noticing(model, looked) as noticed:
                trace = traced(model, example, dynamic_shapes, looked=looked)
                host, calls = cls.of(trace), trace.calls if isinstance(trace, Recording) else None
        except ModelError:
            again = torch_runs.second_call(model, example, dynamic_shapes, cls.of) if any(noticed) else None
            if again is None:
                raise
            model, host = again
            noticed, calls = [], None
        runs = torch_runs.other_runs(model, example, host, caches=any(noticed), calls=calls)
        if host.narrow is not None and runs.unreached:  # another way through the code may read what is cut here
            raise host.narrow.error
        return replace(host, dynamic_shapes=dynamic_shapes, source=model, runs=runs)

    @cached_property
    def asking(self) -> Asking:
        """What the configs of the user's module can say of a smaller one."""
        return Asking.of(self.source, {name: (name, *aliases) for name, aliases in self.tied.items()})

    @property
    def tokenizer(self) -> Path | None:
        """The folder that the user's module was read from, where it holds the files of a tokenizer."""
        return tokenizer_of(self.source)

    @property
    def keeps_code(self) -> bool:
        """Whether there is a user's class that is to run on the smaller tensors."""
        return self.source is not None and not self.is_meta

    @property
    def made_by_code(self) -> frozenset[str]:
        """Names of constants that are no parameter or buffer of the user's module, such as tables of frequencies."""
        if self.source is None:
            return frozenset()
        own = {name for name, _ in self.source.named_parameters(remove_duplicate=False)}
        own.update(name for name, _ in self.source.named_buffers(remove_duplicate=False))
        return frozenset(name for name, aliases in self.tied.items() if own.isdisjoint(aliases))

    # -- along with the other runs -----------------------------------------------------------------------------------

    @cached_property
    def _coupled(self) -> Graph:
        graph = super().graph()
        return replace(graph, others=self.runs.graphs(graph.values))

    def graph(self) -> Graph:
        """The graph that the analysis reads, with those of the other runs."""
        return self._coupled

    def edited(self, edits: Edits) -> Self:
        """A copy with the edits made.

        Raises:
            PlanError: An edit names something that the model does not have.
        """
        made = super().edited(edits)
        return replace(made, runs=self.runs.edited(edits.others, made.tensors))

    def folded(self) -> Self:
        """A copy in which tables that depend on no input, parameter or buffer are constants."""
        made = super().folded()
        if not self.runs.runs or (self.lazy.folded and not self.lazy.edited):
            return made
        return replace(made, runs=self.runs.folded())

    def replaced(self, tensors: Arrays) -> Self:
        """A copy in which stored tensors have other values."""
        made = super().replaced(tensors)
        return replace(made, runs=self.runs.following(made.tensors))

    def with_values_of(self, named: Mapping[str, torch.Tensor]) -> TorchHost:
        """A copy with the values of parameters and buffers of the same names; itself if they are the same.

        Args:
            named: Those of the module that was made of this host, trained since, perhaps.

        Raises:
            OutputError: It has lost a parameter, or one has another shape.
        """
        changed: dict[str, Array] = {}
        for name in self.tied:
            old, new = self.tensor(name), named.get(name)
            if new is None and not isinstance(old, torch.nn.Parameter):
                continue  # a constant of the graph
            if new is None or new.shape != old.shape:
                what = "is gone" if new is None else f"has shape {list(new.shape)}, not {list(old.shape)}"
                raise OutputError(
                    f"'{name}' of the module {what}: it was changed after pruning; write it as it is now with "
                    "graphprune.export_onnx(result.module, example_inputs, path)"
                )
            if not old.is_meta and not torch.equal(new.detach().to(old.device, old.dtype), old):
                changed[name] = to_numpy(new)
        return self.replaced(changed) if changed else self

    def rebuilt(self, state: State) -> Made:
        """The user's module, made as small as this host is; see :mod:`graphprune.hosts.torch.module`."""
        from graphprune.hosts.torch.module import pruned_module

        return pruned_module(state)

    def save_onnx(
        self,
        path: Path,
        metadata: Mapping[str, str] | None = None,
        proof: Callable[[Path], None] = lambda path: None,
        *,
        beside: bool = False,
    ) -> None:
        """Writes a checked ONNX file, whole or not at all, with external data beside it above 2 GB.

        Args:
            path: The file.
            metadata: Entries for ``metadata_props``.
            proof: Judges the file before it is in its place.
            beside: Whether weights lie beside it whatever their size.

        Raises:
            OutputError: It cannot be exported or written.
        """
        self._require_broad()
        outputs, entries = self.output_names, metadata or {}
        example, shapes = self.example, self.dynamic_shapes
        torch_onnx.save(self.module, example, shapes, outputs, Path(path), lambda _: entries, proof, beside=beside)

    def export_onnx(self, path: Path, fingerprint: str) -> None:
        """Writes the unpruned model with the origins of its tensors, so that plans made on it apply to the file.

        Raises:
            OutputError: It cannot be exported or written.
        """
        self._require_broad()
        stored = {value.name: self.tensor(value.name) for value in self.graph().stored}

        def metadata(model: Any) -> dict[str, str]:
            return {METADATA: write_origins(fingerprint, torch_onnx.origins(model, stored))}

        torch_onnx.save(self.module, self.example, self.dynamic_shapes, self.output_names, Path(path), metadata)

    def _require_broad(self) -> None:
        """Refuses what would be a file of one of several ways that the code takes."""
        if self.narrow is not None:
            raise OutputError(
                f"the model's code decides by values what it computes ({self.narrow.where}), which a file cannot; the "
                "pruned module does, save it as a checkpoint"
            )
