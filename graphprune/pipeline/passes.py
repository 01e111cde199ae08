"""What a pass is, and pipelines of passes: as data, as text, and run with timing, dumps and checks between passes."""

from __future__ import annotations

import dataclasses
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from graphprune.errors import OptionError
from graphprune.ir.text import print_graph
from graphprune.pipeline.state import State
from graphprune.suggest import meant, nearest


@dataclass(frozen=True)
class Pass(ABC):
    """A step of the compiler: a frozen dataclass whose fields are its options.

    Subclasses set :attr:`name`, the kebab-case name used in pipelines as text.
    """

    name: ClassVar[str]

    @abstractmethod
    def run(self, state: State) -> State:
        """The state after the pass. Gets a valid model and leaves a valid model."""

    def __str__(self) -> str:
        options = [
            f"{field.name}={_written(value)}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default and not (value == () and field.default == ())
        ]
        return f"{self.name}{{{' '.join(options)}}}" if options else self.name


def run_pipeline(
    passes: Sequence[Pass],
    state: State,
    *,
    dump_after: Iterable[str] = (),
    dump: Callable[[str], None] = lambda text: None,
    verify_each: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> State:
    """Runs passes in order.

    Args:
        passes: The passes.
        state: Where to start.
        dump_after: Names of passes after which the graph is given to ``dump`` as text.
        dump: Takes a text.
        verify_each: Derive and check the graph after every pass, and run the model on its example input.
        progress: Told the name of each pass before it runs.

    Raises:
        OptionError: ``dump_after`` names no pass of the pipeline.
    """
    wanted = set(dump_after)
    if unknown := wanted - {each.name for each in passes}:
        raise OptionError(
            f"cannot dump after '{min(unknown)}'; the passes are {', '.join(each.name for each in passes)}"
        )
    for each in passes:
        progress(each.name)
        start = time.perf_counter()
        state = each.run(state)
        state = replace(state, seconds=(*state.seconds, (each.name, time.perf_counter() - start)))
        if each.name in wanted:
            dump(f"# after {each.name}\n{print_graph(state.host.graph())}")
        if verify_each:
            check_host(state, each.name)
    return state


def check_host(state: State, after: str) -> None:
    """Derives the graph anew, solves it, and runs the model: all three fail on a broken host.

    Raises:
        ProofError: The host is broken.
    """
    from graphprune.analysis.groups import analyze_graph
    from graphprune.errors import GraphpruneError, ProofError

    try:
        analyze_graph(state.host.graph())
        state.host.run(state.host.example_inputs())
    except GraphpruneError as error:
        raise ProofError(f"the model is broken after pass '{after}': {error}; please report this") from error


_ITEM = re.compile(r"\s*([a-z][a-z0-9-]*)\s*(?:\{([^}]*)\})?\s*(,|$)")


def parse_pipeline(text: str, known: Mapping[str, type[Pass]]) -> tuple[Pass, ...]:
    """Reads ``"analyze,score{criterion=l2},allocate{macs=0.5 align=16},slice-groups"``.

    Args:
        text: Names of passes, with options in braces, separated by spaces or semicolons. Several values of one option
            are separated by ``|``.
        known: Passes by name.

    Raises:
        OptionError: A pass or an option is unknown, or a value has the wrong type.
    """
    passes: list[Pass] = []
    at = 0
    while at < len(text):
        match = _ITEM.match(text, at)
        if match is None:
            raise OptionError(f"cannot read '{text[at:]}' of pipeline '{text}'; expected 'pass{{option=value}},pass'")
        name, options, _ = match.groups()
        if name not in known:
            raise OptionError(
                f"unknown pass {meant(name, known)} in pipeline '{text}'; expected one of {', '.join(known)}"
            )
        passes.append(_instance(known[name], options or ""))
        at = match.end()
    return tuple(passes)


def _instance(cls: type[Pass], text: str) -> Pass:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for item in re.split(r"[;\s]+", text.strip()) if text.strip() else ():
        option, equals, value = item.partition("=")
        option = option.replace("-", "_")
        if option not in fields and "targets" in fields and equals:  # allocate{macs=0.5}
            values["targets"] = (*values.get("targets", ()), item)
            continue
        if option not in fields or not equals:
            near = _meant_option(item, fields)
            raise OptionError(f"unknown option {near} of pass '{cls.name}'; expected one of {', '.join(fields)}")
        values[option] = _read(value, fields[option].default, f"{cls.name}{{{item}}}")
    return cls(**values)


def _meant_option(item: str, fields: Iterable[str]) -> str:
    """An option as it was written, and behind it the one that may be meant."""
    option, equals, value = item.partition("=")
    near = nearest(option.replace("-", "_"), fields, at_most=1)
    return f"'{item}'" + (f" (did you mean '{near[0]}{equals}{value}'?)" if near else "")


def _read(value: str, default: object, where: str) -> object:
    """Reads an option's value as the type of its default."""
    try:
        match default:
            case bool():
                return {"true": True, "false": False}[value.lower()]
            case int():
                return int(value)
            case float():
                return float(value)
            case tuple():
                parts = value.split("|")
                return tuple(map(float, parts)) if default and isinstance(default[0], float) else tuple(parts)
            case _:
                return value
    except (KeyError, ValueError) as error:
        expected = type(default).__name__
        raise OptionError(f"cannot read the value of '{where}'; expected a value of type {expected}") from error


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "|".join(map(str, value)) if isinstance(value, tuple) else str(value)
