"""Names and what they stand for: rules, criteria, allocations, passes and hosts, those of plug-ins among them.

A table of built-in things is a literal. Users add to it by ``register``; packages do by an entry point of the table's
group, and what they bring is imported when it is asked for by its name, so that a broken package harms only who uses
it. Nothing takes the place of another thing without a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from graphprune.errors import GraphpruneError, GraphpruneWarning, OptionError
from graphprune.suggest import meant

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A table of things by name: built-in ones first, then those of plug-ins, then those that were registered.

    Args:
        kind: What it holds, for messages: ``criterion``.
        builtin: The built-in things.
        group: The group of entry points; without one there are no plug-ins.
        plugin: Makes of a name and of what an entry point loads what the table holds; it may raise
            ``TypeError`` with a reason.
        ordered: Whether messages list names in the table's order; alphabetically otherwise.
    """

    def __init__(
        self,
        kind: str,
        builtin: Mapping[str, T],
        *,
        group: str = "",
        plugin: Callable[[str, Any], T] | None = None,
        ordered: bool = False,
    ) -> None:
        self.kind = kind
        self._builtin = dict(builtin)
        self._group = group
        self._plugin = plugin or (lambda name, found: cast("T", found))
        self._ordered = ordered
        self._registered: dict[str, T] = {}
        self._loaded: dict[str, T] = {}

    def register(self, name: str, value: T, *, replace: bool = False) -> None:
        """Adds a thing.

        Args:
            name: Its name.
            value: The thing.
            replace: Whether it may take the place of one that was registered or that a plug-in brings.

        Raises:
            OptionError: The name is taken, by another thing.
        """
        if not name:
            raise OptionError(f"{self._one} needs a name")
        if name in self._builtin:
            raise OptionError(f"'{name}' is a built-in {self.kind}; give yours another name")
        if name in self and not replace and not (name in self._registered and alike(self._registered[name], value)):
            raise OptionError(
                f"there is {self._one} '{name}' already; give yours another name, or say replace=True if it is to "
                "take the place of that one"
            )
        self._registered[name] = value

    def find(self, name: str) -> T:
        """The thing of a name.

        Raises:
            OptionError: There is none, or the plug-in that brings it cannot be loaded.
        """
        if name not in self:
            raise OptionError(f"unknown {self.kind} {meant(name, self)}; expected one of {', '.join(self.names)}")
        return self[name]

    @property
    def _one(self) -> str:
        return f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"

    @property
    def names(self) -> list[str]:
        """All names, as messages list them."""
        return list(self) if self._ordered else sorted(self)

    def __getitem__(self, name: str) -> T:
        for table in (self._registered, self._builtin, self._loaded):
            if name in table:
                return table[name]
        if name not in self.plugins:
            raise KeyError(name)
        return self._loaded.setdefault(name, self._load(self.plugins[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._builtin, *self.plugins, *self._registered)))

    def __len__(self) -> int:
        return len({*self._builtin, *self.plugins, *self._registered})

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._registered or name in self.plugins

    def __delitem__(self, name: str) -> None:
        """Takes out what was registered."""
        del self._registered[name]

    @cached_property
    def plugins(self) -> Mapping[str, EntryPoint]:
        """The entry points of installed packages by name; those whose name is taken are left out, with a warning."""
        found: dict[str, EntryPoint] = {}
        present = entry_points(group=self._group) if self._group else ()
        for entry in sorted(present, key=lambda each: (each.name, package_of(each))):
            if entry.name in self._builtin or (entry.name in found and entry.value != found[entry.name].value):
                other = (
                    "a built-in one" if entry.name in self._builtin else f"that of '{package_of(found[entry.name])}'"
                )
                warnings.warn(
                    f"the {self.kind} '{entry.name}' of package '{package_of(entry)}' is left out, for {other} has its "
                    "name; uninstall the package, or ask its author for another name",
                    GraphpruneWarning,
                    stacklevel=2,
                )
            else:
                found.setdefault(entry.name, entry)
        return found

    def _load(self, entry: EntryPoint) -> T:
        try:
            return self._plugin(entry.name, loaded(entry, self.kind))
        except TypeError as error:
            raise OptionError(
                f"the {self.kind} '{entry.name}' of package '{package_of(entry)}' is none: {error}; mend or uninstall "
                "the package"
            ) from error


def loaded(entry: EntryPoint, kind: str, *, call: bool = False) -> Any:
    """What an entry point names, or, with ``call``, what it returns when it is called without arguments.

    Raises:
        OptionError: It cannot be imported, for whatever reason.
    """
    try:
        found = entry.load()
        return found() if call else found
    except (GraphpruneError, KeyboardInterrupt):
        raise
    except BaseException as error:  # code of others, which may raise anything and even end the process
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise OptionError(
            f"the {kind} '{entry.name}' of package '{package_of(entry)}' cannot be imported ({entry.value}): {reason}; "
            "mend or uninstall the package"
        ) from error


def package_of(entry: EntryPoint) -> str:
    """The name of the package that an entry point belongs to."""
    return entry.dist.name if entry.dist is not None else "?"


def alike(one: object, other: object) -> bool:
    """Whether two things are one that was made twice: a cell of a notebook that was run again."""
    if one is other:
        return True
    try:
        if bool(one == other):
            return True
    except Exception:  # noqa: BLE001  # things of users may compare as they like, arrays do
        return False
    place = [(getattr(each, "__module__", None), getattr(each, "__qualname__", None)) for each in (one, other)]
    return place[0] == place[1] and None not in place[0]
