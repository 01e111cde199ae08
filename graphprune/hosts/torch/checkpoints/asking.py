"""Asked before anything is cut: whether a config can say the shapes that a plan would make.

Answers are found as for a finished module (:mod:`graphprune.hosts.torch.checkpoints.search`), from shapes alone. Which
values of the config had to change is remembered, so that the next question about the same units takes a few builds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from graphprune.hosts.torch.checkpoints.aiming import aims
from graphprune.hosts.torch.checkpoints.leaves import Leaf
from graphprune.hosts.torch.checkpoints.renumber import Renumbering
from graphprune.hosts.torch.checkpoints.search import Base, Statement, Wanted, find_statement, pairs_of
from graphprune.hosts.torch.checkpoints.twins import configured_roots
from graphprune.planning.shape_target import Aim

Shape = tuple[int, ...]

_FEW, _SOME = 24, 160
"""Configs that are tried where it is known which values change, and where it is not."""


@dataclass
class Asking:
    """What the configs of a module can say.

    Attributes:
        names: For each stored tensor of the graph, its names in the module.
        bases: The configured modules by path.
        reason: Why nothing can be said at all; empty if something can.
        known: Values that had to change for earlier answers.
        memo: What others found out by asking, by keys of theirs.
    """

    names: Mapping[str, tuple[str, ...]]
    bases: Mapping[str, Base]
    reason: str = ""
    known: list[frozenset[Leaf]] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, source: nn.Module | None, names: Mapping[str, tuple[str, ...]]) -> Asking:
        """What a module's configs can say; it is only read."""
        roots = {} if source is None else configured_roots(source)
        if source is None or not roots:
            kind = "the model" if source is None else f"'{type(source).__name__}'"
            return cls(names, {}, f"{kind} has no config that transformers could read")
        bases: dict[str, Base] = {}
        for path, root in roots.items():
            base, reason = Base.of(root)
            if base is None:
                return cls(names, {}, reason)
            bases[path] = base
        return cls(names, bases)

    def why_not(
        self, shapes: Mapping[str, Shape], gone: Iterable[str] = (), sizes: Iterable[tuple[int, int]] = ()
    ) -> str:
        """Why no config says what stored tensors would become; empty if one does.

        Args:
            shapes: By name of a stored tensor: its new shape, for those whose shapes change.
            gone: Names of stored tensors that would be gone.
            sizes: Numbers of units that change, before and after.
        """
        if self.reason:
            return self.reason
        new = {alias: shape for name, shape in shapes.items() for alias in self.names.get(name, (name,))}
        lost = {alias for name in gone for alias in self.names.get(name, (name,))}
        for path, base in self.bases.items():
            if reason := self._why_not(path, base, new, lost, tuple(sizes)):
                return reason
        return ""

    def aims(self, wanted: Mapping[str, int]) -> Iterator[Aim]:
        """What stored tensors become where values of the configs are others; see :func:`aiming.aims`."""
        return aims(self.bases, self.names, wanted)

    def _why_not(
        self, path: str, base: Base, new: Mapping[str, Shape], lost: set[str], sizes: tuple[tuple[int, int], ...]
    ) -> str:
        prefix = f"{path}." if path else ""
        renumbering = elements_without(base.source, {n.removeprefix(prefix) for n in lost if n.startswith(prefix)})
        left = {name: shape for name, shape in base.shapes.items() if not renumbering.is_gone(name)}
        if torn := next((name for name in left if f"{prefix}{name}" in lost), ""):
            return f"no config leaves out '{prefix}{torn}' alone"
        old = {renumbering.new(name): shape for name, shape in left.items()}
        wanted = {renumbering.new(name): new.get(f"{prefix}{name}", shape) for name, shape in left.items()}
        if old == wanted == base.shapes:
            return ""
        asked = Wanted(wanted, pairs_of(old, wanted, sizes), renumbering)
        statement: Statement | None = None
        every = frozenset(leaf for leaves in self.known for leaf in leaves)
        for leaves in (*self.known, *([every] if len(self.known) > 1 else ())):
            statement, _ = find_statement(base, asked, most=_FEW, twice=False, among=leaves)
            if statement is not None:
                if leaves in self.known:
                    self.known.remove(leaves)
                    self.known.insert(0, leaves)
                return ""
        statement, reason = find_statement(base, asked, most=_SOME, twice=False)
        if statement is None:
            return reason
        self.known.insert(0, frozenset(statement.changes))
        return ""


def elements_without(module: nn.Module, gone: set[str]) -> Renumbering:
    """The elements of lists of modules of which all tensors are gone."""
    places: dict[str, tuple[int, ...]] = {}
    depths: dict[str, int] = {}
    for path, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, nn.ModuleList) and gone:
            prefix = f"{path}." if path else ""
            empty = [
                i
                for i, each in enumerate(layer)
                if (names := {f"{prefix}{i}.{name}" for name, _ in each.named_parameters(remove_duplicate=False)})
                and names <= gone
            ]
            if empty and len(empty) < len(layer):
                places[path], depths[path] = tuple(empty), len(layer)
    outer = [path for path in places if not any(path.startswith(f"{other}.") for other in places)]
    return Renumbering({path: places[path] for path in outer}, {path: depths[path] for path in outer})
