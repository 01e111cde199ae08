"""A checkpoint whose weights are not loaded: structure on the meta device, values from mapped files.

It is analysed, scored by weights and cut like any other model. It does not run: a shrunken twin of the same class
(:mod:`graphprune.hosts.checkpoint.shrunken`) stands in for it where the proof runs something, and what is written is
held against the original byte by byte (:mod:`graphprune.hosts.checkpoint.streaming`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from graphprune.arrays import digest_of
from graphprune.brief import brief
from graphprune.errors import ModelError, OptionError, OutputError
from graphprune.hosts.checkpoint.shards import Shards
from graphprune.hosts.checkpoint.slices import bytes_of
from graphprune.hosts.host import Array, Gate, Gated, PartialRun, StandIn
from graphprune.hosts.torch.checkpoints.reading import FOLDER, built_without_weights, example_of
from graphprune.hosts.torch.checkpoints.search import Statement
from graphprune.hosts.torch.checkpoints.stating import rows_of, said_of
from graphprune.hosts.torch.checkpoints.twins import shapes_of
from graphprune.hosts.torch.host import TorchHost

if TYPE_CHECKING:
    from graphprune.hosts.torch.module import Made
    from graphprune.pipeline.state import State

NOT_LOADED = (
    "the checkpoint's weights are not loaded (--stream, or they do not fit into memory), and it does not run; score it "
    "by its weights (l1, l2, fpgm, random) without calibration data, and write a folder"
)


@dataclass(frozen=True, eq=False)
class CheckpointHost(TorchHost):
    """A checkpoint's folder whose weights stay in their files.

    Attributes:
        shards: Its weights, mapped.
        stored_as: For each stored tensor of the graph, the names in the files.
        memo: What stands in for it in the proof, by digest of a plan.
    """

    __repr__ = brief

    shards: Shards = field(default=Shards(Path(), {}), repr=False)
    stored_as: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    memo: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        example_inputs: Any = None,
        *,
        trust: bool = False,
    ) -> CheckpointHost:
        """Opens a folder: its config decides on the structure, and the headers of its files are held against it.

        Args:
            folder: The folder.
            shapes: Shapes of the example's arguments, by name.
            example_inputs: The example itself; one is made up of what the config says if it is absent.
            trust: Whether code that lies in the folder may be run.

        Raises:
            ModelError: It cannot be opened, or its files store the model otherwise than its class holds it.
        """
        shards = Shards.of(folder)
        module = built_without_weights(folder, next((p.dtype for p in shards.stored.values()), ""), trust=trust)
        vars(module)[FOLDER] = str(folder.resolve())
        example = example_of(module, shapes) if example_inputs is None else example_inputs
        traced = TorchHost.trace(module, example)
        found = cls(**{name: getattr(traced, name) for name in TorchHost.__dataclass_fields__}, shards=shards)
        return replace(found, stored_as=_names_in_files(found, module))

    def mapped(self, tensor: str) -> Array:
        """The values of a stored tensor where they lie; bfloat16 as of ml_dtypes.

        Raises:
            ModelError: The files do not hold it: the class's code makes it.
        """
        names = self.stored_as.get(tensor, ())
        if not names:
            raise ModelError(f"the files hold no values of '{tensor}', which the model's code makes; {NOT_LOADED}")
        return self.shards.raw(names[0])

    def read(self, tensor: str) -> Array:
        """The values of a stored tensor; bfloat16 comes as float32."""
        found = self.mapped(tensor)
        return found if found.dtype.isbuiltin else found.astype("float32")

    def digest(self, tensor: str) -> str:
        """The digest of a stored tensor as it is stored; see :func:`graphprune.arrays.digest_of`."""
        found = self.mapped(tensor)
        return digest_of(str(found.dtype), found.shape, bytes_of(found))

    def model_digest(self) -> str:
        """Refused: it would read everything.

        Raises:
            OptionError: Always.
        """
        raise OptionError(NOT_LOADED)

    def _valued(self) -> None:
        raise ModelError(NOT_LOADED)

    def partial_run(
        self, have: Collection[str] | None, outputs: Sequence[str], later: Sequence[str] = ()
    ) -> PartialRun:
        """Refused: nothing runs.

        Raises:
            ModelError: Always.
        """
        raise ModelError(NOT_LOADED)

    def gated(self, gates: Sequence[Gate]) -> Gated:
        """Refused: nothing runs.

        Raises:
            ModelError: Always.
        """
        raise ModelError(NOT_LOADED)

    def save_onnx(
        self,
        path: Path,
        metadata: Mapping[str, str] | None = None,
        proof: Callable[[Path], None] = lambda path: None,
        *,
        beside: bool = False,
    ) -> None:
        """Refused: a file is exported by running the model.

        Raises:
            OutputError: Always.
        """
        raise OutputError(f"cannot write '{path}': {NOT_LOADED}")

    # -- what is left --------------------------------------------------------------------------------------------------

    def said(self, state: State) -> Statement:
        """The config of what a state's plan leaves.

        Raises:
            OutputError: No config says it.
        """
        key = f"said {_key(state)}"
        if key not in self.memo:
            self.memo[key] = said_of(self, state)
        return cast("Statement", self.memo[key])

    def stand_in(self, state: State) -> StandIn:
        """A shrunken twin and what the plan makes of it; see :mod:`graphprune.hosts.checkpoint.shrunken`.

        Raises:
            ProofError: None was found.
        """
        from graphprune.hosts.checkpoint.shrunken import stand_in

        key = f"twin {_key(state)}"
        if key not in self.memo:
            self.memo[key] = stand_in(self, state)
        return cast("StandIn", self.memo[key])

    def rebuilt(self, state: State) -> Made:
        """The class as the new config builds it, without weights: they are written by ``save_pretrained``.

        Raises:
            OutputError: No config says what is left.
            ProofError: The twin's weights, streamed and read again, compute something else.
        """
        from graphprune.hosts.checkpoint.shrunken import reread
        from graphprune.hosts.torch.module import Made

        original = cast("CheckpointHost", state.original)
        said = original.said(state)
        checks = (reread(original, state),) if state.proves else ()
        note = f"weights were not loaded ({original.shards.n_bytes / 1e9:.1f} GB): slices are streamed when it is saved"
        return Made(said.after.module.eval(), (note,), rows_of(said), checks)


def _key(state: State) -> str:
    """What tells plans apart."""
    kept = sorted((str(factor), index.tobytes()) for factor, index in state.kept.items())
    return repr((kept, [block.name for block in state.removed]))


def _names_in_files(host: TorchHost, module: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each stored tensor of a graph, the names under which the files hold it.

    Raises:
        ModelError: The files lack a tensor of the class, hold one more, or one in another shape.
    """
    shards = cast("CheckpointHost", host).shards
    folder, wanted, stored = shards.folder, shapes_of(module), shards.stored
    for name, place in stored.items():
        if name not in wanted or wanted[name] != place.shape:
            there = f"in shape {list(wanted[name])}" if name in wanted else "nowhere"
            raise ModelError(
                f"'{folder}' stores '{name}' of shape {list(place.shape)}, which '{type(module).__name__}' has "
                f"{there}: its weights are converted as they are loaded, which is not done piece by piece; prune it "
                "without --stream"
            )
    same: dict[int, list[str]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        same.setdefault(id(value), []).append(name)
    for names in same.values():
        if stored.keys().isdisjoint(names):
            raise ModelError(
                f"'{folder}' holds no weights for '{names[0]}' of '{type(module).__name__}', which would be drawn at "
                "random; give a whole checkpoint"
            )
    return {owner: found for owner, aliases in host.tied.items() if (found := tuple(n for n in aliases if n in stored))}
