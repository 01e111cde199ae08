"""Running the rest of a model again and again with other values of a few stored tensors.

Trials of a group change what its consumers store, some units at a time, and run on from there. A host that can be
handed values when it runs (:class:`Trying`) prepares the rest of the model once for all of them; of any other one a
changed copy is made for each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from graphprune.errors import ModelError
from graphprune.hosts.host import Array, Arrays, Carried, Host

Rest: TypeAlias = Callable[[Carried], dict[str, Array]]
"""Runs the rest of a model: from values on their way to the outputs."""
Trial: TypeAlias = Callable[[Arrays], Rest]
"""The rest of a model with these values of stored tensors."""


@dataclass(frozen=True)
class Asked:
    """What is run of a model.

    Attributes:
        have: The keys of what it will be given, as for ``partial_run``.
        outputs: Values that are wanted, by name.
        changing: Names of the stored tensors that each trial gives, always the same ones.
        threads: Threads within an operator; 0: all cores.
    """

    have: Collection[str]
    outputs: Sequence[str]
    changing: Collection[str]
    threads: int = 0


@runtime_checkable
class Trying(Protocol):
    """A model that takes values of stored tensors when it runs."""

    def trials(self, asked: Asked) -> Trial | None:
        """A runner of the rest of the model, prepared once; ``None`` where these tensors cannot be handed in.

        Args:
            asked: What is run.

        Raises:
            ModelError: It cannot be run.
        """


def trials(host: Host, asked: Asked) -> Trial:
    """A runner of the rest of a model with other values of some stored tensors; several threads may call it."""
    found = host.trials(asked) if isinstance(host, Trying) else None

    def changed(tensors: Arrays) -> Rest:
        run = host.replaced(tensors).partial_run(asked.have, asked.outputs)
        return lambda values: run(values)[1]

    if found is None:
        return changed

    def given(tensors: Arrays) -> Rest:
        rest, other = found(tensors), list[Rest]()

        def run(values: Carried) -> dict[str, Array]:
            if not other:
                try:
                    return rest(values)
                except ModelError:  # an operator that takes only what is stored: what is wrong shows there again
                    other.append(changed(tensors))
            return other[0](values)

        return run

    return given
