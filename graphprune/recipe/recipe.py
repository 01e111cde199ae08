"""All that a compilation does, as one frozen value: :class:`Recipe`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from graphprune.brief import written
from graphprune.defaults import ZEROS
from graphprune.errors import OptionError
from graphprune.recipe import text
from graphprune.recipe.named import RECIPES
from graphprune.recipe.options import Option, checked, option, options_in
from graphprune.recipe.sections import Allocation, Judging, Proof, Recovery, Refit, Scoring, Section, Selection
from graphprune.suggest import meant

if TYPE_CHECKING:
    from graphprune.passes import Pass
else:
    Pass = Any  # the passes are imported when a recipe names some

VERSION = 1
"""Of the written form; counts up when a field or a default changes its meaning."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe:
    """What a compilation does: checked when it is made, before a model is opened; it is written into the plan.

    A recipe comes from keywords (:meth:`of`), from a name (:meth:`named`), from a TOML file (:meth:`from_toml`) or from
    a plan (:meth:`from_dict`), and :meth:`read` takes any of them, with keywords that go before what it says.

    Attributes:
        targets: What remains: ``macs=0.5``, ``params=2M``, ``bytes=50%``, ``latency=5ms``. Fractions of the original
            (at most 1) or absolute numbers of ``macs``, ``params``, ``bytes`` or ``latency`` (``0.6`` or ``"5ms"``, as
            measured in onnxruntime: the result is measured, and allocation is repeated where it is above the target, or
            more than 5 % below); in Python also as a mapping, ``{"macs": 0.5}``. Of models that have
            them also ``active_params`` (experts: what a token reads) and ``kv_cache`` (bytes for each token of a causal
            attention's keys and values). ``zeros`` removes exactly the units
            that are dead already, and proves that nothing changes. May be absent where ``blocks``,
            ``layers``, ``remove_blocks`` or a ``pipeline`` is given; an ``allocate`` of a pipeline that names none
            takes it, and what any other makes has to meet it.
        select: What may be pruned.
        score: How units and blocks are scored.
        allocate: How the budget is shared, and which blocks go as a whole.
        judge: How outputs are compared.
        refit: How what was lost is made good.
        recovery: Whether and how the pruned model is trained.
        proof: Whether the result is proven.
        passes: Passes to run instead of the default ones, as text. In Python also as objects.
        seed: Of random scores and of the proof's inputs.
        source: The file that it was read from, if it was one; nothing depends on it.

    Example:
        >>> Recipe.of(target={"macs": 0.5}, only="channel")
        Recipe(target=('macs=0.5',), only=('channel',))
    """

    targets: tuple[str, ...] = option((), keyword="target", metavar="METRIC=VALUE")
    select: Selection = field(default=Selection())
    score: Scoring = field(default=Scoring())
    allocate: Allocation = field(default=Allocation())
    judge: Judging = field(default=Judging())
    refit: Refit = field(default=Refit())
    recovery: Recovery = field(default=Recovery())
    proof: Proof = field(default=Proof())
    passes: tuple[Pass, ...] = option((), keyword="pipeline")
    seed: int = option(0)
    source: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", _targets(self.targets))
        object.__setattr__(self, "passes", _passes(self.passes))
        object.__setattr__(self, "seed", checked("seed", self.seed, int))
        if self.seed < 0:
            raise OptionError(f"seed is {self.seed}; expected 0 or more")
        if self.passes:
            if self.zeros:
                raise OptionError("target 'zeros' is a pipeline of its own; leave the pipeline out")
            self._require_none_beside()
            self._require_passes()

    def _require_none_beside(self) -> None:
        """Refuses options of passes beside a pipeline of the user's, where they do nothing."""
        for each in recipe_options():
            if each.section not in ("", "judge", "recovery", "proof") and self._value(each) != each.default:
                raise OptionError(
                    f"'{each.keyword}' has no effect beside a pipeline; give it to the pass that takes it, as in "
                    "'allocate{macs=0.5 align=16}'"
                )

    def _require_passes(self) -> None:
        """Refuses passes that can make no plan, whatever data and targets there may be."""
        from graphprune.pipeline.keys import KEYS
        from graphprune.pipeline.needs import check
        from graphprune.recipe.build import targeted

        given = [name for name, key in KEYS.items() if not key.giver]  # by whoever has data, a profile, a metric
        check([targeted(each, self.targets or ("macs=1",)) for each in self.passes], given, complete=True)

    @property
    def zeros(self) -> bool:
        """Whether exactly the units go that are dead already."""
        return self.targets == (ZEROS,)

    def __repr__(self) -> str:
        shown = {each.keyword: self._value(each) for each in recipe_options() if self._value(each) != each.default}
        if self.passes:
            shown["pipeline"] = text.pipeline_text(self.passes)
        return written(self, **shown)

    def _value(self, each: Option) -> Any:
        return getattr(getattr(self, each.section) if each.section else self, each.field)

    @classmethod
    def of(cls, **keywords: Any) -> Self:
        """The recipe of keywords of :func:`graphprune.prune`; one that is ``None`` is as if it were not given.

        Raises:
            OptionError: There is no such keyword, or a value is wrong.
            TargetError: A target cannot be read.
        """
        return cls().changed(**keywords)

    def changed(self, **keywords: Any) -> Self:
        """The recipe with other values; raises as :meth:`of` does."""
        known = {each.keyword: each for each in recipe_options()}
        if unknown := next((name for name in keywords if name not in known), None):
            raise OptionError(f"there is no option {meant(unknown, known)}; expected one of {', '.join(known)}")
        new: dict[str, dict[str, Any]] = {}
        for name, value in keywords.items():
            if value is not None:
                new.setdefault(known[name].section, {})[known[name].field] = value
        own = new.pop("", {})
        parts = {section: replace(getattr(self, section), **values) for section, values in new.items()}
        return replace(self, **own, **parts)

    def keywords(self) -> dict[str, Any]:
        """All options by their keywords: ``Recipe.of(**recipe.keywords()) == recipe``."""
        found = {each.keyword: self._value(each) for each in recipe_options()}
        return {**found, "target": self.targets or None, "pipeline": self.passes or None}

    @classmethod
    def named(cls, name: str) -> Self:
        """A recipe of :data:`graphprune.recipe.RECIPES`.

        Raises:
            OptionError: There is none of this name.
        """
        if name not in RECIPES:
            raise OptionError(f"unknown recipe {meant(name, RECIPES)}; expected one of {', '.join(RECIPES)}")
        return cls.of(**RECIPES[name])

    @classmethod
    def read(cls, source: Recipe | str | Path | Mapping[str, Any] | None = None, **keywords: Any) -> Self:
        """A recipe, its name, its TOML file or its dictionary; ``keywords`` go before what it says.

        Raises:
            OptionError: It cannot be read, or a value is wrong.
            TargetError: A target cannot be read.
        """
        if source is None:
            found = cls()
        elif isinstance(source, cls):
            found = source
        elif isinstance(source, Mapping):
            found = cls.from_dict(source)
        elif isinstance(source, Path) or (isinstance(source, str) and (source.endswith(".toml") or "/" in source)):
            found = cls.from_toml(Path(source))
        elif isinstance(source, str):
            if source not in RECIPES:
                names = ", ".join(RECIPES)
                raise OptionError(
                    f"unknown recipe {meant(source, RECIPES)}; expected one of {names}, or the path of a .toml file"
                )
            found = cls.named(source)
        else:
            raise OptionError(f"a '{type(source).__name__}' is no recipe; give a Recipe, a name or the path of a file")
        return found.changed(**keywords)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with all values that mean something; a plan holds it."""
        data: dict[str, Any] = {"version": VERSION}
        for each in recipe_options():
            value = self._value(each)
            idle = self.passes or (each.section == "recovery" and not self.recovery.on)
            if value is None or value == () or (idle and value == each.default):
                continue
            held = data.setdefault(each.section, {}) if each.section else data
            held[_written(each)] = text.plain_value(value)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "the recipe") -> Self:
        """Reads the JSON form. ``recipe`` may name one of :data:`graphprune.recipe.RECIPES` that this one changes.

        Args:
            data: The form.
            where: What it is, for messages.

        Raises:
            OptionError: It is of a newer version, or a name or value is wrong.
            TargetError: A target cannot be read.
        """
        if (version := data.get("version", VERSION)) != VERSION:
            raise OptionError(
                f"{where} has version {version!r:.40}, this graphprune reads version {VERSION}; update one of them"
            )
        keywords: dict[str, Any] = {}
        sections = {each.section for each in recipe_options() if each.section}
        for name, value in data.items():
            if name in sections:
                if not isinstance(value, Mapping):
                    raise OptionError(f"'{name}' of {where} is {value!r:.60}; expected a table of options")
                keywords.update((_keyword(each, name, where), inner) for each, inner in value.items())
            elif name not in ("version", "recipe"):
                keywords[_keyword(name, "", where)] = value
        base = cls.named(str(data["recipe"])) if "recipe" in data else cls()
        return base.changed(**keywords)

    def to_toml(self) -> str:
        """The recipe as TOML, for ``--recipe FILE``."""
        return text.toml(self.to_dict())

    @classmethod
    def from_toml(cls, source: str | Path) -> Self:
        """Reads TOML: a text, or (as a :class:`~pathlib.Path`) a file; see :meth:`from_dict`."""
        if isinstance(source, str):
            return cls.from_dict(text.read_toml(source))
        return replace(cls.from_dict(text.read_toml(source), f"recipe '{source}'"), source=source)

    def pipeline(self, *, calibrated: bool = False, measurable: bool = False, statistics: str = "") -> tuple[Pass, ...]:
        """The passes that carry it out.

        Args:
            calibrated: Whether there are calibration data.
            measurable: Whether what outputs lose can be measured: one is floating-point, and not a class or an index.
            statistics: A file of what is measured on the data.

        Raises:
            OptionError: ``statistics`` are given and none are taken.
            TargetError: Nothing says what remains.
        """
        from graphprune.recipe import build

        return build.pipeline(self, calibrated=calibrated, measurable=measurable, statistics=statistics)


@cache
def recipe_options() -> tuple[Option, ...]:
    """All options of a recipe, in order."""
    found: list[Option] = []
    own = {each.field: each for each in options_in(Recipe)}
    for each in fields(Recipe):
        if each.name in own:
            found.append(own[each.name])
        elif isinstance(each.default, Section):
            found.extend(options_in(type(each.default), each.name))
    return tuple(found)


def _targets(given: Any) -> tuple[str, ...]:
    """Targets as they are written in one way."""
    if isinstance(given, Sequence | Mapping) and not given:
        return ()
    if given == ZEROS or (isinstance(given, Sequence) and list(given) == [ZEROS]):
        return (ZEROS,)
    from graphprune.planning.target import parse_targets

    return tuple(map(str, parse_targets(given)))


def _passes(given: Any) -> tuple[Pass, ...]:
    """The passes that a text names.

    Raises:
        OptionError: It names none, or this is no text.
    """
    if not given:
        return ()
    from graphprune.passes import Pass, all_passes
    from graphprune.pipeline.passes import parse_pipeline

    if isinstance(given, str):
        return parse_pipeline(given, all_passes())
    passes = tuple(given) if isinstance(given, Iterable) else ()
    if not passes or not all(isinstance(each, Pass) for each in passes):
        raise OptionError(f"pipeline is {given!r:.60}; expected a text, or passes")
    return passes


def _keyword(name: Any, section: str, where: str) -> str:
    """The keyword of a field of a section in a file.

    Raises:
        OptionError: The section has no such field.
    """
    here = {_written(each): each for each in recipe_options() if each.section == section}
    if name in here:
        return here[name].keyword
    place = f"in [{section}]" if section else "at the top"
    elsewhere = next((each for each in recipe_options() if _written(each) == name), None)
    if elsewhere is not None:
        other = f"into [{elsewhere.section}]" if elsewhere.section else "to the top, before the first table"
        raise OptionError(f"'{name}' of {where} stands {place}; it belongs {other}")
    sections = dict.fromkeys(each.section for each in recipe_options() if each.section)
    names = [*here, *(() if section else ("version", "recipe", *sections))]
    raise OptionError(
        f"there is no option {meant(str(name), names)} {place} of {where}; expected one of {', '.join(names)}"
    )


def _written(each: Option) -> str:
    """What an option is called in a file."""
    return each.keyword if each.field == "passes" else each.field


RECOVERING = tuple(each.keyword for each in recipe_options() if each.section == "recovery" and each.field != "recover")
"""The options that say how a model is recovered."""
