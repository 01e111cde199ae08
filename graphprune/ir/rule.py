"""Coupling rules: what one operator says about the dimensions of its operands and results, and their notation.

A rule in text, one line over named factors::

    n (g ci) h w, (g co) ci kh kw, (g co) -> n (g co) oh ow; fixed h w kh kw oh ow; macs n g co ci kh kw oh ow

Operands and results are separated by commas, axes by spaces. ``(a b)`` is a product, ``a+b`` a sum, ``1`` an axis of
size one, ``_`` an operand without axes of interest (a shape vector, an absent bias), ``[]`` a scalar. Clauses:

``fixed``       factors that may not be cut (the reason comes from the builder)
``normalized``  factors over which a statistic is taken: removing units shifts it
``macs``        one monomial of multiply-accumulates; may occur several times
``size``        attributes that carry sizes: ``groups=g``, ``shape[1]=(h d)``, ``start=-b``
``pin``         attributes whose implied value depends on a size and must be made explicit: ``scale=0.125``
``label``       what the units are to a user: ``h=head``

This module holds the rule, its parser and its printer; the builders for families of operators are in
``graphprune.rules``; which operator has which rule is said by the tables in ``graphprune.frontends``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

from graphprune.errors import RuleError
from graphprune.ir.dims import ONE, Dim, Factor, Layout, Product, Sum, concat, factors_of, product, resized

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SizeSlot:
    """An attribute (or an element of one) whose value is the size of ``dim``: ``shape[2] = |(h d)|``.

    With ``negative`` the value is minus that size, as in a slice that starts 64 before the end: ``start = -|b|``.
    """

    attribute: str
    dim: Dim
    index: int | None = None
    negative: bool = False

    def value(self, dim: Dim, sizes: Mapping[Factor, int]) -> int:
        """The attribute's value when ``dim`` (this slot's, or what the solver made of it) has these sizes left."""
        return -resized(dim, sizes) if self.negative else resized(dim, sizes)


@dataclass(frozen=True, slots=True)
class Rule:
    """How the dimensions of one operator's operands and results are built from shared factors.

    A factor belongs to one rule only; the solver says which factors of different rules are the same.

    Attributes:
        operands: One layout for each operand, ``None`` where the operand has no axes of interest.
        results: One layout for each result, ``None`` likewise.
        fixed: Factors that may not be cut, with the reason that a user reads.
        normalized: Factors over which a statistic is taken, so that removing units shifts what the others see.
        macs: Monomials whose sum is the number of multiply-accumulate operations.
        sizes: Attributes that carry sizes.
        pinned: Attributes that must be made explicit, with their value, before an operand is cut.
        labels: What the units of a factor are to a user (``head``, ``channel``, ...).
    """

    operands: tuple[Layout | None, ...]
    results: tuple[Layout | None, ...]
    fixed: Mapping[Factor, str] = field(default_factory=dict)
    normalized: frozenset[Factor] = frozenset()
    macs: tuple[Layout, ...] = ()
    sizes: tuple[SizeSlot, ...] = ()
    pinned: tuple[tuple[str, float], ...] = ()
    labels: Mapping[Factor, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return print_rule(self)


def fresh(rule: Rule) -> Rule:
    """The same rule with factors of its own, for another node: building a rule anew costs many times as much."""
    copies: dict[Dim, Dim] = {}

    def copy(dim: Dim) -> Dim:
        known = copies.get(dim)
        if known is None:
            if isinstance(dim, Factor):
                known = Factor(dim.name, dim.size)
            elif dim.parts:
                known = type(dim)(tuple([copy(part) for part in dim.parts]), dim.size)
            else:
                known = dim
            copies[dim] = known
        return known

    def factor(old: Factor) -> Factor:
        new = copy(old)
        assert isinstance(new, Factor)
        return new

    def layouts(old: tuple[Layout | None, ...]) -> tuple[Layout | None, ...]:
        return tuple([None if layout is None else tuple([copy(dim) for dim in layout]) for layout in old])

    return Rule(
        layouts(rule.operands),
        layouts(rule.results),
        {factor(old): reason for old, reason in rule.fixed.items()},
        frozenset([factor(old) for old in rule.normalized]),
        tuple([tuple([copy(dim) for dim in monomial]) for monomial in rule.macs]),
        tuple([SizeSlot(slot.attribute, copy(slot.dim), slot.index, slot.negative) for slot in rule.sizes]),
        rule.pinned,
        {factor(old): label for old, label in rule.labels.items()},
    )


# -- parsing -----------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*(?::\d+)?|1|[()+])")
_CLAUSES = ("fixed", "normalized", "macs", "size", "pin", "label")
_Tree = str | tuple[str, tuple["_Tree", ...]]


@dataclass(frozen=True, slots=True)
class _Template:
    operands: tuple[tuple[_Tree, ...] | None, ...]
    results: tuple[tuple[_Tree, ...] | None, ...]
    clauses: tuple[tuple[str, tuple[str, ...]], ...]
    declared: tuple[tuple[str, int], ...]


def _parse_axes(text: str, whole: str, declared: dict[str, int]) -> tuple[_Tree, ...] | None:
    """Parses the axes of one tensor into trees; names with ``:size`` are entered in ``declared``."""
    text = text.strip()
    if text == "_":
        return None
    if text == "[]":
        return ()
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise RuleError(
                f"cannot read '{text[at:].strip()}' in rule '{whole}'; expected names, '1', '(', ')' or '+'"
            )
        tokens.append(match.group(1))
        at = match.end()
    position = 0

    def atom() -> _Tree:
        nonlocal position
        if position >= len(tokens) or tokens[position] in (")", "+"):
            raise RuleError(f"expected a name, '1' or '(' in '{text}' of rule '{whole}'")
        token = tokens[position]
        position += 1
        if token == "(":
            inner = []
            while position < len(tokens) and tokens[position] != ")":
                inner.append(term())
            if position >= len(tokens):
                raise RuleError(f"unclosed '(' in '{text}' of rule '{whole}'")
            position += 1
            return ("*", tuple(inner))
        name, _, size = token.partition(":")
        if size and declared.setdefault(name, int(size)) != int(size):
            raise RuleError(f"factor '{name}' has two sizes, {declared[name]} and {size}, in rule '{whole}'")
        return name

    def term() -> _Tree:
        nonlocal position
        parts = [atom()]
        while position < len(tokens) and tokens[position] == "+":
            position += 1
            parts.append(atom())
        return parts[0] if len(parts) == 1 else ("+", tuple(parts))

    axes = []
    while position < len(tokens):
        axes.append(term())
    return tuple(axes)


@lru_cache(maxsize=4096)
def _parse_template(text: str) -> _Template:
    signature, *clauses = (part.strip() for part in text.split(";"))
    left, arrow, right = signature.partition("->")
    if not arrow:
        raise RuleError(f"no '->' in rule '{text}'; expected 'operands -> results'")
    declared: dict[str, int] = {}
    parsed = []
    for clause in clauses:
        word, *rest = clause.split(None, 1)
        if word not in _CLAUSES:
            raise RuleError(f"unknown clause '{word}' in rule '{text}'; expected one of {', '.join(_CLAUSES)}")
        parsed.append((word, (rest[0],) if word in ("size", "macs") and rest else tuple(" ".join(rest).split())))
    return _Template(
        tuple(_parse_axes(part, text, declared) for part in left.split(",")) if left.strip() else (),
        tuple(_parse_axes(part, text, declared) for part in right.split(",")) if right.strip() else (),
        tuple(parsed),
        tuple(declared.items()),
    )


def _tree_size(tree: _Tree, sizes: Mapping[str, int]) -> int | None:
    if isinstance(tree, str):
        return 1 if tree == "1" else sizes.get(tree)
    parts = [_tree_size(part, sizes) for part in tree[1]]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    return prod(known) if tree[0] == "*" else sum(known)


def _infer(tree: _Tree, size: int, sizes: dict[str, int]) -> bool:
    """Enters into ``sizes`` what follows from ``|tree| == size``; says whether anything new did."""
    if isinstance(tree, str):
        if tree == "1" or tree in sizes:
            return False
        sizes[tree] = size
        return True
    parts = [(part, _tree_size(part, sizes)) for part in tree[1]]
    unknown = [part for part, known in parts if known is None]
    if len(unknown) != 1:
        return False
    rest = [known for _, known in parts if known is not None]
    if tree[0] == "+":
        return _infer(unknown[0], size - sum(rest), sizes)
    divisor = prod(rest)
    if divisor == 0 or size % divisor:
        return False
    return _infer(unknown[0], size // divisor, sizes)


def _build(tree: _Tree, factors: Mapping[str, Dim]) -> Dim:
    if isinstance(tree, str):
        return ONE if tree == "1" else factors[tree]
    parts = (_build(part, factors) for part in tree[1])
    return product(*parts) if tree[0] == "*" else concat(*parts)


def _names(tree: _Tree) -> Iterator[str]:
    if isinstance(tree, str):
        if tree != "1":
            yield tree
    else:
        for part in tree[1]:
            yield from _names(part)


def parse_rule(
    text: str,
    operands: Sequence[Shape | None] | None = None,
    results: Sequence[Shape | None] | None = None,
    *,
    why: Mapping[str, str] | str = "fixed by the operator",
    **sizes: int,
) -> Rule:
    """Builds a rule from its notation.

    Args:
        text: The rule, see the module's docstring. Sizes may stand in it (``h:12``).
        operands: The shapes of the operands, from which the sizes of the factors are inferred. An operand that is
            absent (``None``) or that the text does not name takes no part.
        results: The shapes of the results, likewise.
        why: The reason for the ``fixed`` factors: one for all, or one for each name.
        **sizes: Sizes of factors that do not follow from the shapes (``g=32``).

    Returns:
        The rule, with fresh factors. ``parse_rule("n ci, co ci -> n co", [(8, 3), (5, 3)])`` has ``co`` of size 5.

    Raises:
        RuleError: The text cannot be read, or it does not fit the shapes.
    """
    template = _parse_template(text)
    known = {**dict(template.declared), **sizes}
    pairs: list[tuple[_Tree, int]] = []
    checks: list[tuple[str, tuple[_Tree, ...], Shape]] = []
    absent: set[int] = set()
    for role, trees, shapes in (("operand", template.operands, operands), ("result", template.results, results)):
        for i, axes in enumerate(trees):
            shape = shapes[i] if shapes is not None and i < len(shapes) else None
            if shape is None and shapes is not None and role == "operand":
                absent.add(i)
            if axes is None or shape is None:
                continue
            if len(axes) != len(shape):
                raise RuleError(f"rule '{text}' gives {role} {i} {len(axes)} axes, but its shape is {list(shape)}")
            pairs.extend(zip(axes, shape, strict=True))
            checks.append((f"{role} {i}", axes, shape))
    pending = pairs
    while pending:
        progress = False
        later = []
        for tree, size in pending:
            if _tree_size(tree, known) is None:
                progress |= _infer(tree, size, known)
                later.append((tree, size))
        if later and not progress:
            break
        pending = later
    used = {name for axes in (*template.operands, *template.results) if axes for tree in axes for name in _names(tree)}
    if missing := sorted(used - known.keys()):
        raise RuleError(f"the size of '{missing[0]}' in rule '{text}' does not follow from the shapes; give it by name")
    for role, axes, shape in checks:
        got = [_tree_size(tree, known) for tree in axes]
        if got != list(shape):
            raise RuleError(f"rule '{text}' gives {role} the shape {got}, but it is {list(shape)}")
    factors: dict[str, Dim] = {name: Factor(name, known[name]) if known[name] != 1 else ONE for name in known}

    def layouts(trees: tuple[tuple[_Tree, ...] | None, ...], skip: set[int]) -> tuple[Layout | None, ...]:
        return tuple(
            None if axes is None or i in skip else tuple(_build(tree, factors) for tree in axes)
            for i, axes in enumerate(trees)
        )

    clauses = _Clauses(text, factors, why)
    for word, content in template.clauses:
        clauses.read(word, content)
    return Rule(
        layouts(template.operands, absent),
        layouts(template.results, set()),
        clauses.fixed,
        frozenset(clauses.normalized),
        tuple(clauses.macs),
        tuple(clauses.sizes),
        tuple(clauses.pinned),
        clauses.labels,
    )


class _Clauses:
    """Collects what the clauses of one rule say."""

    def __init__(self, text: str, factors: Mapping[str, Dim], why: Mapping[str, str] | str) -> None:
        self.text, self.factors, self.why = text, factors, why
        self.fixed: dict[Factor, str] = {}
        self.normalized: set[Factor] = set()
        self.macs: list[Layout] = []
        self.sizes: list[SizeSlot] = []
        self.pinned: list[tuple[str, float]] = []
        self.labels: dict[Factor, str] = {}

    def dims(self, text: str) -> Layout:
        """The dimensions that the text of a clause names."""
        trees = _parse_axes(text, self.text, {}) or ()
        for tree in trees:
            for name in _names(tree):
                if name not in self.factors:
                    raise RuleError(f"unknown factor '{name}' in a clause of rule '{self.text}'")
        return tuple(_build(tree, self.factors) for tree in trees)

    def read(self, word: str, content: tuple[str, ...]) -> None:
        """Enters one clause."""
        match word:
            case "fixed":
                for name in content:
                    reason = self.why if isinstance(self.why, str) else self.why.get(name, "fixed by the operator")
                    for factor in factors_of(self.dims(name)[0]):
                        self.fixed[factor] = reason
            case "normalized":
                for name in content:
                    self.normalized.update(factors_of(self.dims(name)[0]))
            case "macs":
                self.macs.append(self.dims(content[0]))
            case "size":
                slot, _, dim = content[0].partition("=")
                name, _, index = slot.strip().rstrip("]").partition("[")
                negative = dim.startswith("-")
                self.sizes.append(
                    SizeSlot(name, self.dims(dim.lstrip("-"))[0], int(index) if index else None, negative)
                )
            case "pin":
                for item in content:
                    name, _, value = item.partition("=")
                    self.pinned.append((name, float(value)))
            case _:
                for item in content:
                    name, _, label = item.partition("=")
                    for factor in factors_of(self.dims(name)[0]):
                        self.labels[factor] = label


# -- printing ----------------------------------------------------------------------------------------------------


class Namer:
    """Gives each factor a name of its own: ``co``, ``co_1``, ...; with ``sizes``, the size at the first use."""

    def __init__(self, *, sizes: bool = False) -> None:
        self.names: dict[Factor, str] = {}
        self.taken: set[str] = set()
        self.sizes = sizes

    def __call__(self, factor: Factor) -> str:
        """The name of a factor, the same at every call."""
        if (known := self.names.get(factor)) is not None:
            return known
        name, n = factor.name, 0
        while name in self.taken:
            n += 1
            name = f"{factor.name}_{n}"
        self.taken.add(name)
        self.names[factor] = name
        return f"{name}:{factor.size}" if self.sizes else name


def print_dim(dim: Dim, namer: Namer, *, nested: bool = False) -> str:
    """The notation of one dimension expression."""
    match dim:
        case Factor():
            return namer(dim)
        case Product():
            return "(" + " ".join(print_dim(part, namer) for part in dim.parts) + ")" if dim.parts else "1"
        case Sum():
            text = "+".join(print_dim(part, namer, nested=True) for part in dim.parts)
            return f"({text})" if nested else text


def print_layout(layout: Layout | None, namer: Namer) -> str:
    """The notation of one operand or result."""
    if layout is None:
        return "_"
    return " ".join(print_dim(dim, namer) for dim in layout) or "[]"


def print_rule(rule: Rule, *, sizes: bool = False) -> str:
    """The notation of a rule; with ``sizes`` it can be parsed again without shapes."""
    namer = Namer(sizes=sizes)
    left = ", ".join(print_layout(layout, namer) for layout in rule.operands)
    right = ", ".join(print_layout(layout, namer) for layout in rule.results)
    text = [f"{left} -> {right}".strip()]
    order = tuple(namer.names)  # by first use
    if rule.fixed:
        text.append("fixed " + " ".join(namer(factor) for factor in order if factor in rule.fixed))
    if rule.normalized:
        text.append("normalized " + " ".join(namer(factor) for factor in order if factor in rule.normalized))
    text.extend("macs " + print_layout(term, namer) for term in rule.macs)
    for slot in rule.sizes:
        index = "" if slot.index is None else f"[{slot.index}]"
        text.append(f"size {slot.attribute}{index}={'-' * slot.negative}{print_dim(slot.dim, namer)}")
    if rule.pinned:
        text.append("pin " + " ".join(f"{name}={value!r}" for name, value in rule.pinned))
    if rule.labels:
        text.append("label " + " ".join(f"{namer(f)}={rule.labels[f]}" for f in order if f in rule.labels))
    return "; ".join(text)
