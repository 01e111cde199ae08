"""The notation of coupling rules: parser and printer.

A rule in text, one line over named factors::

    n (g ci) h w, (g co) ci kh kw, (g co) -> n (g co) oh ow; fixed h w kh kw oh ow; macs n g co ci kh kw oh ow

Operands and results are separated by commas, axes by spaces. ``(a b)`` is a product, ``a+b`` a sum, ``1`` an axis of
size one, ``_`` an operand without axes of interest (a shape vector, an absent bias), ``[]`` a scalar. ``b s @v`` says
that the elements are positions of ``v``: ``v d, b s @v -> b s d`` is an embedding. Clauses:

``fixed``       factors that may not be cut (the reason comes from the builder)
``normalized``  factors over which a statistic is taken: removing units shifts it
``macs``        one monomial of multiply-accumulates; may occur several times
``choice``      factors among whose units the operator chooses or shares (softmax, top-k)
``ordered``     factors whose units may be removed, but not change places
``least``       how many positions of a dimension must stay: ``e=2``
``multiple``    of what the size of a dimension must stay a multiple: ``k=4``
``write``       axes of indices at which something is written
``carry``       operands, by number, whose elements the results consist of
``rank``        those elements are put in order
``compare``     the operands are compared for equality
``size``        attributes that carry sizes: ``groups=g``, ``shape[1]=(h d)``, ``start=-b``, ``max=e-1``
``pin``         attributes whose implied value depends on a size and must be made explicit: ``scale=0.125``
``label``       what the units are to a user: ``h=head``
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

from graphprune.errors import RuleError
from graphprune.ir.dims import ONE, Dim, Factor, concat, product, unit
from graphprune.ir.rule import Rule, Shape, SizeSlot

# -- parsing -----------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*(?::\d+)?|1|[()+])")
_CLAUSES = (
    "fixed", "normalized", "macs", "size", "pin", "label", "choice", "ordered", "least", "multiple", "write", "carry",
    "rank", "compare",
)  # fmt: skip
_SLOT = re.compile(r"(?P<minus>-?)(?P<dim>.*?)(?P<offset>-\d+)?$")
_Tree = str | tuple[str, tuple["_Tree", ...]]
_Axes = tuple[_Tree, ...] | None


@dataclass(frozen=True)
class _Template:
    """A parsed rule without sizes; parsed once for each text."""

    operands: tuple[_Axes, ...]
    results: tuple[_Axes, ...]
    declared: Mapping[str, int]
    used: frozenset[str]
    fixed: tuple[str, ...]
    normalized: tuple[str, ...]
    macs: tuple[tuple[_Tree, ...], ...]
    sizes: tuple[tuple[str, int | None, bool, int, _Tree], ...]
    pinned: tuple[tuple[str, float], ...]
    labels: tuple[tuple[str, str], ...]
    reads: Mapping[int, _Tree]
    writes: tuple[_Tree, ...]
    makes: Mapping[int, _Tree]
    choices: tuple[str, ...]
    ordered: tuple[str, ...]
    least: tuple[tuple[_Tree, int], ...]
    multiples: tuple[tuple[_Tree, int], ...]
    carries: tuple[int, ...]
    ranks: bool
    compares: bool

    @cached_property
    def compounds(self) -> tuple[_Tree, ...]:
        """Every product and sum, once."""
        axes = (*self.operands, *self.results, *self.macs, self.writes)
        slots = (tree for *_, tree in self.sizes)
        pointed = (*self.reads.values(), *self.makes.values(), *slots)
        numbered = (tree for tree, _ in (*self.least, *self.multiples))
        trees = (*(tree for each in axes for tree in each or ()), *pointed, *numbered)
        return tuple(dict.fromkeys(tree for tree in trees if not isinstance(tree, str)))

    @cached_property
    def common(self) -> bool:
        """Whether the rule says nothing but which factors are fixed, what is multiplied, and what units are."""
        rest = (self.normalized, self.sizes, self.pinned, self.reads, self.writes, self.makes, self.carries)
        more = (self.ranks, self.compares, self.choices, self.ordered, self.least, self.multiples)
        return not any((*rest, *more))


def _parse_axes(text: str, whole: str, declared: dict[str, int]) -> _Axes:
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


def _parse_side(text: str, whole: str, declared: dict[str, int]) -> tuple[tuple[_Axes, ...], dict[int, _Tree]]:
    """The axes of each operand or result, and the dimension of which its elements are positions, if they are."""
    found: list[_Axes] = []
    pointed: dict[int, _Tree] = {}
    for i, part in enumerate(text.split(",") if text.strip() else ()):
        axes, at, dim = part.partition("@")
        found.append(_parse_axes(axes, whole, declared))
        if at:
            (pointed[i],) = _parse_axes(dim, whole, declared) or ()
    return tuple(found), pointed


@lru_cache(maxsize=4096)
def _parse_template(text: str) -> _Template:
    signature, *clauses = (part.strip() for part in text.split(";"))
    left, arrow, right = signature.partition("->")
    if not arrow:
        raise RuleError(f"no '->' in rule '{text}'; expected 'operands -> results'")
    declared: dict[str, int] = {}
    (operands, reads), (results, makes) = (_parse_side(side, text, declared) for side in (left, right))
    axes_of_all = (*operands, *results, tuple(reads.values()), tuple(makes.values()))
    used = frozenset(name for axes in axes_of_all if axes for tree in axes for name in _names(tree))

    def named(words: str) -> tuple[_Tree, ...]:
        trees = _parse_axes(words, text, {}) or ()
        for name in (name for tree in trees for name in _names(tree)):
            if name not in used:
                raise RuleError(f"unknown factor '{name}' in a clause of rule '{text}'")
        return trees

    found: dict[str, list[str]] = {word: [] for word in _CLAUSES}
    for clause in clauses:
        word, _, rest = clause.partition(" ")
        if word not in _CLAUSES:
            raise RuleError(f"unknown clause '{word}' in rule '{text}'; expected one of {', '.join(_CLAUSES)}")
        found[word].append(rest.strip())
    sizes = []
    for item in found["size"]:
        slot, _, dim = item.partition("=")
        name, _, index = slot.strip().rstrip("]").partition("[")
        written = _SLOT.match(dim)
        assert written is not None
        (tree,) = named(written["dim"])
        sizes.append((name, int(index) if index else None, bool(written["minus"]), int(written["offset"] or 0), tree))
    pairs = {
        word: [item.partition("=")[::2] for words in found[word] for item in words.split()] for word in ("pin", "label")
    }

    def numbered(word: str) -> tuple[tuple[_Tree, int], ...]:
        items = (words.rpartition("=")[::2] for words in found[word])
        return tuple((tree, int(n)) for words, n in items for tree in named(words))

    def names_in(word: str) -> tuple[str, ...]:
        return tuple(name for words in found[word] for tree in named(words) for name in _names(tree))

    return _Template(
        operands,
        results,
        declared,
        used,
        names_in("fixed"),
        names_in("normalized"),
        tuple(named(words) for words in found["macs"]),
        tuple(sizes),
        tuple((name, float(value)) for name, value in pairs["pin"]),
        tuple((name, label) for words, label in pairs["label"] for tree in named(words) for name in _names(tree)),
        reads,
        tuple(tree for words in found["write"] for tree in named(words)),
        makes,
        names_in("choice"),
        names_in("ordered"),
        numbered("least"),
        numbered("multiple"),
        tuple(int(i) for words in found["carry"] for i in words.split()),
        bool(found["rank"]),
        bool(found["compare"]),
    )


def _tree_size(tree: _Tree, sizes: Mapping[str, int]) -> int | None:
    if isinstance(tree, str):
        return sizes.get(tree)
    known = [size for part in tree[1] if (size := _tree_size(part, sizes)) is not None]
    if len(known) < len(tree[1]):
        return None
    return prod(known) if tree[0] == "*" else sum(known)


def _infer(tree: _Tree, size: int, sizes: dict[str, int]) -> bool:
    """Enters into ``sizes`` what follows from ``|tree| == size``; says whether nothing is left to learn from it."""
    if isinstance(tree, str):
        sizes.setdefault(tree, size)
        return True
    parts = [(part, _tree_size(part, sizes)) for part in tree[1]]
    unknown = [part for part, known in parts if known is None]
    if len(unknown) != 1:
        return not unknown
    rest = [known for _, known in parts if known is not None]
    if tree[0] == "+":
        return _infer(unknown[0], size - sum(rest), sizes)
    divisor = prod(rest)
    if divisor == 0 or size % divisor:
        return True
    return _infer(unknown[0], size // divisor, sizes)


def _build(tree: _Tree, factors: Mapping[_Tree, Dim]) -> Dim:
    if isinstance(tree, str):
        return factors[tree]
    parts = [_build(part, factors) for part in tree[1]]
    return product(*parts) if tree[0] == "*" else concat(*parts)


def _names(tree: _Tree) -> Iterator[str]:
    if isinstance(tree, str):
        if tree != "1":
            yield tree
    else:
        for part in tree[1]:
            yield from _names(part)


def _solve(
    template: _Template,
    operands: Sequence[Shape | None] | None,
    results: Sequence[Shape | None] | None,
    text: str,
    known: dict[str, int],
) -> tuple[list[int], bool]:
    """Enters the sizes of all names that follow from shapes; gives absent operands and whether all sizes fit."""
    absent: list[int] = []
    compound: list[tuple[_Tree, int]] = []
    fits = True
    for trees, shapes in ((template.operands, operands), (template.results, results)):
        if shapes is None:
            continue
        n = len(shapes)
        for i, axes in enumerate(trees):
            shape = shapes[i] if i < n else None
            if shape is None:
                if shapes is operands:
                    absent.append(i)
                continue
            if axes is None:
                continue
            if len(axes) != len(shape):
                role = "operand" if shapes is operands else "result"
                raise RuleError(f"rule '{text}' gives {role} {i} {len(axes)} axes, but its shape is {list(shape)}")
            for tree, size in zip(axes, shape, strict=True):
                if not isinstance(tree, str):
                    compound.append((tree, size))
                elif known.setdefault(tree, size) != size:
                    fits = False
    pending = compound
    while pending:
        later = [(tree, size) for tree, size in pending if not _infer(tree, size, known)]
        if len(later) == len(pending):
            break
        pending = later
    return absent, fits and all(_tree_size(tree, known) == size for tree, size in compound)


def _misfit(known: Mapping[str, int], text: str, shapes: Sequence[tuple[str, _Axes, Shape | None]]) -> RuleError:
    """The error for the first tensor whose shape the rule does not give."""
    for role, axes, shape in shapes:
        if axes is not None and shape is not None:
            got = [_tree_size(tree, known) for tree in axes]
            if got != list(shape):
                return RuleError(f"rule '{text}' gives {role} the shape {got}, but it is {list(shape)}")
    raise AssertionError("a pair of a tree and a size came from no tensor")


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
    known = {"1": 1, **template.declared, **sizes}
    absent, fits = _solve(template, operands, results, text, known)
    if not template.used <= known.keys():
        missing = min(template.used - known.keys())
        raise RuleError(f"the size of '{missing}' in rule '{text}' does not follow from the shapes; give it by name")
    if not fits:
        named = [
            (f"{role} {i}", axes, shapes[i] if i < len(shapes) else None)
            for role, trees, shapes in (("operand", template.operands, operands), ("result", template.results, results))
            if shapes is not None
            for i, axes in enumerate(trees)
        ]
        raise _misfit(known, text, named)
    dims: dict[_Tree, Dim] = {name: unit() if size == 1 else Factor(name, size) for name, size in known.items()}
    dims["1"] = ONE
    for tree in template.compounds:
        dims[tree] = _build(tree, dims)

    def free(names: Sequence[str]) -> list[tuple[str, Factor]]:
        return [(name, factor) for name in names if isinstance(factor := dims[name], Factor)]

    left = [None if axes is None else tuple([dims[tree] for tree in axes]) for axes in template.operands]
    for i in absent:
        left[i] = None
    right = tuple([None if axes is None else tuple([dims[tree] for tree in axes]) for axes in template.results])
    fixed = {f: why if isinstance(why, str) else why.get(n, "fixed by the operator") for n, f in free(template.fixed)}
    macs = tuple([tuple([dims[tree] for tree in monomial]) for monomial in template.macs])
    labels = {factor: label for name, label in template.labels if isinstance(factor := dims[name], Factor)}
    if template.common:
        return Rule(tuple(left), right, fixed, macs=macs, labels=labels)
    return Rule(
        tuple(left),
        right,
        fixed,
        frozenset([factor for _, factor in free(template.normalized)]),
        macs,
        tuple([SizeSlot(name, dims[tree], i, minus, plus) for name, i, minus, plus, tree in template.sizes]),
        template.pinned,
        labels,
        {i: dims[tree] for i, tree in template.reads.items()},
        tuple([dims[tree] for tree in template.writes]),
        {i: dims[tree] for i, tree in template.makes.items()},
        template.carries,
        template.ranks,
        template.compares,
        {f: why if isinstance(why, str) else why.get(n, "chosen from") for n, f in free(template.choices)},
        frozenset([factor for _, factor in free(template.ordered)]),
        tuple([(dims[tree], n) for tree, n in template.least]),
        tuple([(dims[tree], n) for tree, n in template.multiples]),
    )
