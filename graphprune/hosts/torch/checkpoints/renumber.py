"""Layers that are gone leave no gap: the lists of modules that held them are counted anew.

A placeholder in a list of layers keeps the numbers of the others as they were. No config says that; so it goes, too,
and those behind it move up, as if the class had been built with fewer layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from graphprune.hosts.torch.bypass import Bypassed


@dataclass(frozen=True)
class Renumbering:
    """What becomes of the elements of lists of modules.

    Attributes:
        gone: By path of a list: the places whose elements are gone.
        depths: By path of a list: how many elements there were.
    """

    gone: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    depths: Mapping[str, int] = field(default_factory=dict)

    @property
    def lists(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """The places that are gone and the number that there were, each way once."""
        return tuple(dict.fromkeys((places, self.depths[path]) for path, places in self.gone.items()))

    def _found(self, name: str) -> tuple[str, int, str] | None:
        """The list that a name leads through, the place in it, and the rest."""
        for path in self.gone:
            prefix = f"{path}." if path else ""
            place, _, rest = name.removeprefix(prefix).partition(".")
            if name.startswith(prefix) and place.isdecimal():
                return prefix, int(place), rest
        return None

    def is_gone(self, name: str) -> bool:
        """Whether a module or tensor of this name is gone."""
        found = self._found(name)
        return found is not None and found[1] in self.gone[found[0].removesuffix(".")]

    def new(self, name: str) -> str:
        """The name that a module or tensor has once the lists are counted anew."""
        found = self._found(name)
        if found is None:
            return name
        prefix, place, rest = found
        moved = place - sum(each < place for each in self.gone[prefix.removesuffix(".")])
        return f"{prefix}{moved}.{rest}" if rest else f"{prefix}{moved}"

    def old(self, name: str) -> str:
        """The name that a module or tensor had before the lists were counted anew."""
        found = self._found(name)
        if found is None:
            return name
        prefix, place, rest = found
        path = prefix.removesuffix(".")
        kept = [i for i in range(self.depths[path]) if i not in self.gone[path]]
        return f"{prefix}{kept[place]}.{rest}" if rest else f"{prefix}{kept[place]}"

    def names(self, old: Iterable[str]) -> dict[str, str]:
        """From new names to old ones, of all that is not gone."""
        return {self.new(name): name for name in old if not self.is_gone(name)}

    def below(self, root: str) -> Renumbering:
        """The same as seen from a module."""
        prefix = f"{root}." if root else ""
        inside = {path: path[len(prefix) :] for path in self.gone if path.startswith(prefix) or path == root}
        return Renumbering(
            {new: self.gone[old] for old, new in inside.items()}, {new: self.depths[old] for old, new in inside.items()}
        )


def placeholders_in(module: nn.Module) -> Renumbering:
    """The elements of lists of modules that are placeholders."""
    gone, depths = {}, {}
    for path, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, nn.ModuleList):
            places = tuple(i for i, each in enumerate(layer) if isinstance(each, Bypassed))
            if places and len(places) < len(layer):
                gone[path], depths[path] = places, len(layer)
    return Renumbering(gone, depths)


def close_gaps(module: nn.Module, renumbering: Renumbering) -> None:
    """Takes the elements that are gone out of a module's lists."""
    for path, places in renumbering.gone.items():
        layers = module.get_submodule(path)
        kept = [each for i, each in enumerate(layers._modules.values()) if i not in places]
        layers._modules = {str(i): each for i, each in enumerate(kept)}
