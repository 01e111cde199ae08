"""What was measured on a model, kept for as long as the model is open, and found by all that it depends on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from graphprune.statistics.distributed import joint
from graphprune.statistics.origin import Origin

if TYPE_CHECKING:
    from graphprune.data.batches import Batches


KEPT_BYTES = 4 << 30
"""What is kept longest goes first above this size; the last measurement stays, however large it is."""


class _Model(Protocol):
    def model_digest(self) -> str:
        """See :class:`graphprune.hosts.host.Host`."""


class Measurements:
    """The one thing in a compilation that changes in place: measurements by what they are of.

    Keys hold an :class:`Origin`, so that another checkpoint, other data or another part of them find nothing here.
    Digests of models are kept until :meth:`begin`, which a session calls before each thing that it does: in between
    nobody but the user's own code could change a weight.

    Attributes:
        passing: Whether they are for one compilation alone, after which nobody asks for what was measured.
    """

    def __init__(self) -> None:
        self.passing = False
        self._found: dict[tuple[str, Hashable], tuple[Any, int]] = {}
        self._digests: dict[int, tuple[_Model, str]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        return f"Measurements({len(self)})"

    def __getstate__(self) -> dict[str, Any]:
        """Without digests, which hold the models that they are of."""
        return {**vars(self), "_digests": {}}

    def update(self, other: Measurements) -> None:
        """Takes over what another one holds."""
        self._found.update(other._found)

    def begin(self) -> None:
        """Takes the digests of models anew from here on."""
        self._digests.clear()

    def digest(self, host: _Model) -> str:
        """The digest of a model, taken once since :meth:`begin`."""
        if id(host) not in self._digests:
            self._digests[id(host)] = host, host.model_digest()  # with the host, so that no other gets its address
        return self._digests[id(host)][1]

    def origin(self, host: _Model, batches: Batches, numbers: Sequence[int], *, products: bool) -> Origin:
        """What is measured with a model on some batches; reads those that have not been read yet.

        Args:
            host: The model as it is measured.
            batches: All batches.
            numbers: Which of them are used.
            products: Whether products are taken.
        """
        split = f"{len(numbers)} of {len(batches)} batches"
        return Origin(self.digest(host), joint(batches.digest(numbers)), split, products)

    def find(self, kind: str, key: Hashable) -> Any:
        """What was kept under a key; ``None`` if nothing was."""
        return self._found.get((kind, key), (None, 0))[0]

    def keep(self, kind: str, key: Hashable, value: Any, size: int = 0) -> None:
        """Keeps something.

        Args:
            kind: The pass that has measured it.
            key: All that it depends on.
            value: What was measured.
            size: Its bytes.
        """
        self._found.pop((kind, key), None)
        self._found[kind, key] = value, size
        for old in list(self._found)[:-1]:
            if sum(each for _, each in self._found.values()) <= KEPT_BYTES:
                return
            if self._found[old][1]:
                del self._found[old]

    def clear(self) -> None:
        """Drops everything: products of activations may be as large as weights."""
        self._found.clear()

    def any_of(self, kind: str) -> bool:
        """Whether anything of a kind is kept, so that it is worth while to take digests and look."""
        return any(found == kind for found, _ in self._found)
