"""How much work and memory a model may ask for before it is refused: files come from strangers.

A small file can describe any amount of work: functions that call functions, loops of a billion steps, tensors that
double. Honest models need time and memory in proportion to their own size, so bounds are an allowance plus a
multiple of that size. They are refused before the work is begun where the file says how much it is, and stopped while
they run where only running shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace

from graphprune.errors import OptionError
from graphprune.suggest import meant

MEMORY_PER_BYTE = 8
"""So many bytes of values come with each byte of stored tensors and inputs."""
_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a model may ask for.

    Attributes:
        nodes: Operators, counted after functions are inlined, those of branches and loops included.
        tensors: Stored tensors, counted likewise.
        memory: Bytes beyond those of the model that values may take: of a run at one time, of sparse tensors that are
            made dense, and (a sixth of it) of tables that are computed in advance.
        seconds: Processor seconds of one run, beyond one second for each megabyte of stored tensors and inputs.
        file: Bytes of a file that is read as a whole and is no model: a plan, a profile, statistics.
    """

    nodes: int = 1_000_000
    tensors: int = 1_000_000
    memory: int = 1_500_000_000
    seconds: int = 10
    file: int = 1_000_000_000


_present: ContextVar[Bounds] = ContextVar("graphprune_bounds", default=Bounds())  # noqa: B039  (it is frozen)


def present() -> Bounds:
    """The bounds that hold now."""
    return _present.get()


@contextmanager
def bounded(**changes: int) -> Iterator[Bounds]:
    """Sets other bounds for what runs inside the block.

    Args:
        **changes: By the names of :class:`Bounds`.

    Raises:
        OptionError: There is no such bound, or it is below 1.

    Example:
        >>> with bounded(memory=8_000_000_000) as now:
        ...     now.memory
        8000000000
    """
    names = [each.name for each in fields(Bounds)]
    for name, value in changes.items():
        if name not in names:
            raise OptionError(f"there is no bound {meant(name, names)}; expected one of {', '.join(names)}")
        if value < 1:
            raise OptionError(f"the bound '{name}' is {value}; expected 1 or more")
    token = _present.set(replace(_present.get(), **changes))
    try:
        yield _present.get()
    finally:
        _present.reset(token)


def parse_bound(text: str) -> tuple[str, int]:
    """Reads ``memory=8G``.

    Raises:
        OptionError: It is no name and number.
    """
    name, _, number = text.partition("=")
    scale = _UNITS.get(number[-1:].upper(), 1.0)
    try:
        value = float(number[:-1] if scale > 1 else number) * scale
        return name.strip(), int(value)
    except (ValueError, OverflowError):
        names = ", ".join(each.name for each in fields(Bounds))
        raise OptionError(f"cannot read --bound '{text}'; expected one like 'memory=8G' ({names})") from None
