"""Symbolic sizes: what ``past_sequence_length + sequence_length`` says of the sizes that it is made of.

A declared size is a number, a symbol, or an expression of symbols that stand alone elsewhere. What is known of some
decides others: by expressions, by relations between symbols, and by ties of symbols that always are one size.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from graphprune.errors import OptionError
from graphprune.suggest import meant

Size: TypeAlias = int | str | None
"""A declared size: a number, a symbol or an expression, or nothing."""
Known: TypeAlias = dict[str, tuple[int, str]]
"""By symbol its size, and where that comes from."""

_LONGEST = 200
"""Characters of a text that may be an expression."""
_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}


def _parsed(text: str) -> ast.expr | None:
    """A sum, difference, product or quotient of names and whole numbers; ``None`` for anything else."""
    if len(text) > _LONGEST:
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if isinstance(tree, ast.BinOp) and _computes(tree) else None


def _computes(tree: ast.expr) -> bool:
    match tree:
        case ast.BinOp(left=left, op=op, right=right):
            return type(op) in _OPERATORS and _computes(left) and _computes(right)
        case ast.Name():
            return True
        case ast.Constant(value=value):
            return type(value) is int
    return False


def names_in(text: str) -> frozenset[str]:
    """The names in a text that is an expression; none if it is not."""
    tree = _parsed(text)
    return frozenset() if tree is None else frozenset(n.id for n in ast.walk(tree) if isinstance(n, ast.Name))


def symbols_in(declared: Mapping[str, Sequence[Size]]) -> tuple[str, ...]:
    """The symbols of the inputs, in order; an expression is none if all its names are."""
    texts = dict.fromkeys(size for sizes in declared.values() for size in sizes if isinstance(size, str))
    plain = {text for text in texts if not names_in(text)}
    return tuple(text for text in texts if text in plain or not names_in(text) <= plain)


def value_of(text: str, sizes: Mapping[str, int]) -> int:
    """The value of a symbol or expression whose names are all known.

    Raises:
        ZeroDivisionError: It divides by zero.
    """
    tree = None if text in sizes else _parsed(text)

    def value(node: ast.expr) -> int:
        match node:
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.Name(id=name):
                return sizes[name]
            case ast.Constant(value=int(number)):
                return number
        raise AssertionError(node)

    return sizes[text] if tree is None else value(tree)


@dataclass(frozen=True, slots=True)
class Relations:
    """What is known of the symbols of a model beside what its inputs declare.

    Attributes:
        sums: By symbol, the sizes that it is the sum of.
        ties: Symbols that are always one size.
        batch: The only size that operators take for the batch where something new follows a past.
        roles: What a symbol may be called, whatever the file calls it: ``past``, ``sequence``, ``batch``, ``total``.
    """

    sums: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    batch: int | None = None


def named_symbol(name: str, symbols: Collection[str], roles: Mapping[str, str]) -> str:
    """The symbol that a user means: by its name, by what it is in the model, or by the word that it begins with.

    Raises:
        OptionError: There is none, or there are several.
    """
    if name in symbols:
        return name
    if name in roles:
        return roles[name]
    begins = [symbol for symbol in symbols if symbol.startswith(f"{name}_")]
    if len(begins) == 1:
        return begins[0]
    known = [*symbols, *(role for role in roles if role not in symbols)]
    listed = ", ".join(map(repr, known)) or "none"
    raise OptionError(f"the inputs have no size {meant(name, known)}; expected one of {listed}")


def settle(known: Known, equations: Iterable[tuple[str, int, str]], relations: Relations) -> None:
    """Adds to ``known`` all that follows from it.

    Args:
        known: Sizes of symbols; those that are found are added.
        equations: Expressions with the value that they have and where that comes from.
        relations: What else is known of the symbols.

    Raises:
        OptionError: No size of a symbol fits.
    """
    equations = tuple(equations)
    while True:
        before = len(known)
        for tie in relations.ties:
            found = next((known[symbol] for symbol in tie if symbol in known), None)
            if found is not None:
                known.update((symbol, found) for symbol in tie if symbol not in known)
        for text, value, source in equations:
            _solve(text, value, source, known)
        for symbol, parts in relations.sums.items():
            _add(symbol, parts, known)
        if len(known) == before:
            return


def _add(symbol: str, parts: Sequence[int | str], known: Known) -> None:
    """Finds the one of a sum and its parts that is not known."""
    left = [part for part in parts if isinstance(part, str) and part not in known]
    total = sum(known[part][0] if isinstance(part, str) else part for part in parts if part not in left)
    text = " + ".join(map(str, parts))
    if symbol not in known and not left:
        known[symbol] = total, f"{text}"
    elif symbol in known and len(left) == 1 and known[symbol][0] > total:
        known[left[0]] = known[symbol][0] - total, f"{known[symbol][1]}, of '{text}'"


def _solve(text: str, value: int, source: str, known: Known) -> None:
    """Finds the one symbol of an expression that is not known.

    Raises:
        OptionError: No size of it fits, or all are known and do not.
    """
    names = names_in(text)
    open_names = sorted(names - known.keys())
    if len(open_names) > 1 or not names:
        return
    sizes = {name: known[name][0] for name in names if name in known}
    if not open_names:
        if value_of(text, sizes) != value:
            raise OptionError(
                f"the size '{text}' is {value} here, and {value_of(text, sizes)} by the sizes of its parts "
                f"({', '.join(f'{name}={size}' for name, size in sizes.items())}); give sizes that fit"
            )
        return
    name = open_names[0]
    zero, one = (value_of(text, {**sizes, name: size}) for size in (1, 2))
    found = (value - zero) // (one - zero) + 1 if one != zero else 0
    if found < 1 or value_of(text, {**sizes, name: found}) != value:
        raise OptionError(f"no size of '{name}' makes '{text}' {value} ({source}); give sizes that fit")
    known[name] = found, f"{source}, of '{text}'"
