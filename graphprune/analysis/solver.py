"""The one solver: unification of dimension expressions. It never asks which operator it looks at.

The solver keeps a binding from factors to expressions, as in first-order unification with refinement: a factor that
meets an expression becomes that expression everywhere at once. What cannot be aligned is fixed with a reason; it is
never guessed. Flags (fixed, normalized, choices, ordered, labels) follow a factor into everything that it is merged or
split into.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Literal

from graphprune.errors import RuleError
from graphprune.ir.dims import ONE, Dim, Factor, Layout, Product, Sum, concat, factors_of, product


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a dimension stays whole.

    Attributes:
        text: The sentence for the user, without the place (``no coupling rule for 'aten.foo'``).
        node: The node or value that said so, or ``""``.
        kind: ``barrier`` (an operator without a rule), ``operator`` (a rule that fixes the axis), ``interface`` (an
            input or output of the model), ``alignment`` (expressions that cannot be aligned), ``user`` (protected).
    """

    text: str
    node: str = ""
    kind: Literal["barrier", "operator", "interface", "alignment", "user"] = "operator"

    def __str__(self) -> str:
        return f"{self.text} (node '{self.node}')" if self.node else self.text


class MisalignedError(Exception):
    """A cut falls inside a minor factor."""


class Solver:
    """Merges the factors of a whole model.

    Example:
        >>> solver, qkv, d = Solver(), Factor("qkv", 12), Factor("d", 6)
        >>> solver.unify(qkv, product(Factor("two", 2), d), "view")
        >>> solver.resolve(qkv)
        (two:2 d:6)
    """

    def __init__(self) -> None:
        self._binding: dict[Factor, Dim] = {}
        self.fixed: dict[Factor, Reason] = {}
        self.normalized: dict[Factor, Reason] = {}
        self.choices: dict[Factor, Reason] = {}
        self.ordered: dict[Factor, Reason] = {}
        self.labels: dict[Factor, set[str]] = {}

    def resolve(self, dim: Dim) -> Dim:
        """``dim`` in terms of what its factors are bound to at present."""
        binding = self._binding
        if isinstance(dim, Factor):
            end = binding.get(dim)
            if end is None:
                return dim
            if isinstance(end, Factor) and end not in binding:
                return end
            path = [dim]
            while isinstance(end, Factor) and (bound := binding.get(end)) is not None:
                path.append(end)
                end = bound
            end = end if isinstance(end, Factor) else self.resolve(end)
            binding.update(dict.fromkeys(path, end))
            return end
        if binding.keys().isdisjoint(dim.factors):
            return dim
        parts = [self.resolve(part) for part in dim.parts]
        return product(*parts) if isinstance(dim, Product) else concat(*parts)

    def resolved(self, layouts: Mapping[str, Layout]) -> dict[str, Layout]:
        """:meth:`resolve` for all axes of many tensors; what is equal is one and the same object."""
        known: dict[Dim, Dim] = {}

        def end(dim: Dim) -> Dim:
            found = known.get(dim)
            if found is None:
                found = known[dim] = self.resolve(dim)
                if not isinstance(found, Factor):
                    found = known[dim] = known.setdefault(found, found)
            return found

        return {name: tuple([end(dim) for dim in layout]) for name, layout in layouts.items()}

    def fix(self, dim: Dim, reason: Reason) -> None:
        """Keeps every factor of ``dim`` whole; the first reason stays."""
        self._note(self.fixed, dim, reason)

    def normalize(self, dim: Dim, reason: Reason) -> None:
        """Notes that a statistic is taken over every factor of ``dim``."""
        self._note(self.normalized, dim, reason)

    def choose(self, dim: Dim, reason: Reason) -> None:
        """Notes that an operator chooses among the units of ``dim``."""
        self._note(self.choices, dim, reason)

    def order(self, dim: Dim, reason: Reason) -> None:
        """Notes that the units of ``dim`` may not change places."""
        self._note(self.ordered, dim, reason)

    def _note(self, flags: dict[Factor, Reason], dim: Dim, reason: Reason) -> None:
        if isinstance(dim, Factor) and dim not in self._binding:
            flags.setdefault(dim, reason)
            return
        for factor in factors_of(self.resolve(dim)):
            flags.setdefault(factor, reason)

    def label(self, dim: Dim, label: str) -> None:
        """Notes what the units of ``dim`` are to a user."""
        for factor in factors_of(self.resolve(dim)):
            self.labels.setdefault(factor, set()).add(label)

    def unify(self, a: Dim, b: Dim, where: str = "") -> None:
        """Makes two expressions of equal size one, refining and fixing factors as needed.

        Args:
            a: One expression.
            b: The other.
            where: The node that couples them, for the reason if they cannot be aligned.

        Raises:
            RuleError: The sizes differ, so that a rule or a shape is wrong.
        """
        a, b = self.resolve(a), self.resolve(b)
        if a is b or a == b:
            return
        if a.size != b.size:
            raise RuleError(
                f"cannot couple dimensions of sizes {a.size} and {b.size} at node '{where}'; "
                "its rule or a shape is wrong"
            )
        if isinstance(a, Factor):
            self._bind(a, b)
        elif isinstance(b, Factor):
            self._bind(b, a)
        elif isinstance(a, Product) and isinstance(b, Product):
            self._unify_products(a, b, where)
        else:
            self._unify_sum(a, b, where)

    def cut(self, dim: Dim, at: int) -> tuple[Dim, Dim]:
        """Splits ``dim`` at position ``at``, refining the factor that the cut falls into.

        Raises:
            MisalignedError: The cut falls inside a minor factor.
        """
        dim = self.resolve(dim)
        if at == 0:
            return concat(), dim
        if at == dim.size:
            return dim, concat()
        match dim:
            case Factor():
                left, right = _piece(f"{dim.name}0", at), _piece(f"{dim.name}1", dim.size - at)
                self._bind(dim, concat(left, right))
                return left, right
            case Product():
                minor = product(*dim.parts[1:])
                if at % minor.size:
                    raise MisalignedError
                left, right = self.cut(dim.parts[0], at // minor.size)
                minor = self.resolve(minor)
                return product(left, minor), product(right, minor)
            case Sum():
                offset = 0
                for i, part in enumerate(dim.parts):
                    if at == offset:
                        return concat(*dim.parts[:i]), concat(*dim.parts[i:])
                    if at < offset + part.size:
                        left, right = self.cut(part, at - offset)
                        return concat(*dim.parts[:i], left), concat(right, *dim.parts[i + 1 :])
                    offset += part.size
        raise MisalignedError

    def _bind(self, factor: Factor, dim: Dim) -> None:
        targets = factors_of(dim)
        if factor in targets:  # only through parts of size one: nothing to learn
            return
        self._binding[factor] = dim
        for flags in (self.fixed, self.normalized, self.choices, self.ordered):
            if (reason := flags.pop(factor, None)) is not None:
                for target in targets:
                    flags.setdefault(target, reason)
        if (labels := self.labels.pop(factor, None)) is not None:
            for target in targets:
                self.labels.setdefault(target, set()).update(labels)

    def _give_up(self, dims: Iterable[Dim], where: str) -> None:
        sizes = [self.resolve(dim) for dim in dims]
        shown = " and ".join(f"'{dim!r}'" for dim in sizes)
        reason = Reason(f"dimensions {shown} cannot be aligned", where, "alignment")
        for dim in sizes:
            self.fix(dim, reason)

    def _unify_sum(self, left: Dim, right: Dim, where: str) -> None:
        """Cuts both sides at the union of their boundaries and unifies part by part."""
        a, b = deque((left,)), deque((right,))
        while a:
            x, y = self._next(a), self._next(b)
            try:
                if x.size > y.size:
                    x, rest = self.cut(x, y.size)
                    a.appendleft(rest)
                elif y.size > x.size:
                    y, rest = self.cut(y, x.size)
                    b.appendleft(rest)
            except MisalignedError:
                self._give_up((concat(x, *a), concat(y, *b)), where)
                return
            self.unify(x, y, where)

    def _next(self, parts: deque[Dim]) -> Dim:
        """Takes the first part of a sum, as it is at present, that is no sum itself."""
        while isinstance(first := self.resolve(parts.popleft()), Sum):
            parts.extendleft(reversed(first.parts))
        return first

    def _unify_products(self, a: Product, b: Product, where: str) -> None:
        """Matches majors, then minors; where sizes differ, splits both by their gcd."""
        for end in (0, -1):
            x, y = a.parts[end], b.parts[end]
            if x.size == y.size:
                rest_a, rest_b = (a.parts[1:], b.parts[1:]) if end == 0 else (a.parts[:-1], b.parts[:-1])
                self.unify(x, y, where)
                self.unify(product(*rest_a), product(*rest_b), where)
                return
            common = gcd(x.size, y.size)
            if common > 1 and isinstance(x, Factor) and isinstance(y, Factor):
                self._split(x, common, minor=end == -1)
                self._split(y, common, minor=end == -1)
                self.unify(a, b, where)
                return
        self._give_up((a, b), where)

    def _split(self, factor: Factor, size: int, *, minor: bool) -> None:
        """Refines ``factor`` to a product whose minor (or major) part has ``size``."""
        part, rest = Factor(factor.name, size), _piece(f"{factor.name}_", factor.size // size)
        if factor.size > size:
            self._bind(factor, product(rest, part) if minor else product(part, rest))


def _piece(name: str, size: int) -> Dim:
    return ONE if size == 1 else Factor(name, size)
