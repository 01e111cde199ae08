"""Rules of weighted sums: linear layers, matrix products, convolutions, attention, einsum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from graphprune.errors import RuleError
from graphprune.ir.dims import ONE, Dim, Factor, Layout, factors_of, unit
from graphprune.ir.notation import parse_rule
from graphprune.ir.rule import Rule, Shape

KERNEL = "kernel size of a convolution"
SPATIAL = "spatial axis of a convolution"


def axis(name: str, size: int) -> Dim:
    """A fresh factor, or a unit dimension of its own."""
    return unit() if size == 1 else Factor(name, size)


def axes(name: str, sizes: Sequence[int]) -> Layout:
    """Fresh factors ``name0``, ``name1``, ..."""
    return tuple(axis(f"{name}{i}", size) for i, size in enumerate(sizes))


def _spell(name: str, n: int) -> str:
    return " ".join(f"{name}{i}" for i in range(n))


def linear(x: Shape, weight: Shape, bias: Shape | None, *, transposed: bool = False) -> Rule:
    """``y = x Wᵀ + b``; ``weight: co ci``, or ``ci co`` where ``transposed``. Leading axes of ``x`` are batch axes."""
    batch = _spell("n", len(x) - 1)
    w = "ci co" if transposed else "co ci"
    b = "_" if bias is None else "co"
    text = f"{batch} ci, {w}, {b} -> {batch} co; macs {batch} co ci; label ci=neuron co=neuron"
    return parse_rule(text, (x, weight, bias))


def matmul(a: Shape, b: Shape, *, weights: bool = False) -> Rule:
    """NumPy's ``matmul`` with broadcast batch axes.

    Args:
        a: Left operand ``... m k`` (or ``k``).
        b: Right operand ``... k n`` (or ``k``).
        weights: Whether an operand is a stored weight; otherwise the product is taken for attention, whose batch
            axes are heads.
    """
    k = axis("k", a[-1])
    m = axis("m", a[-2]) if len(a) > 1 else None
    n = axis("n", b[-1]) if len(b) > 1 else None
    rank = max(len(a), len(b)) - 2
    left, right, batch = _broadcast((a[:-2], b[:-2]), rank)
    rows, columns = () if m is None else (m,), () if n is None else (n,)
    if weights:
        labels = {f: "neuron" for dim in (k, *rows, *columns) for f in factors_of(dim)}
    else:
        labels = {f: "head" for dim in batch for f in factors_of(dim)}
        labels.update((f, "qk-dim") for f in factors_of(k))
        labels.update((f, "value-dim") for dim in columns for f in factors_of(dim))
    return Rule(
        ((*left, *rows, k), (*right, k, *columns)),
        ((*batch, *rows, *columns),),
        macs=((*batch, *rows, *columns, k),),
        labels=labels,
    )


def _broadcast(shapes: Sequence[Shape], rank: int) -> tuple[Layout, ...]:
    """Layouts of operands that are broadcast together, and (last) of the result."""
    sizes = [1] * rank
    for shape in shapes:
        for i, size in enumerate(shape):
            if size != 1:
                sizes[rank - len(shape) + i] = size
    result = axes("b", sizes)
    layouts = [
        tuple(ONE if size == 1 else result[rank - len(shape) + i] for i, size in enumerate(shape)) for shape in shapes
    ]
    return (*layouts, result)


def conv(
    x: Shape,
    weight: Shape,
    bias: Shape | None,
    y: Shape,
    *,
    groups: int = 1,
    transposed: bool = False,
    slot: str = "groups",
) -> Rule:
    """A convolution over any number of spatial axes; grouped, depthwise (``|ci| = 1``) or transposed."""
    n = len(weight) - 2
    if len(x) not in (n + 1, n + 2):
        raise RuleError(f"a convolution with weight {list(weight)} cannot take an input of shape {list(x)}")
    text, why = _conv(
        n, batched=len(x) == n + 2, biased=bias is not None, transposed=transposed, slot=slot if groups > 1 else ""
    )
    return parse_rule(text, (x, weight, bias), (y,), why=why, g=groups)


@cache
def _conv(n: int, *, batched: bool, biased: bool, transposed: bool, slot: str) -> tuple[str, dict[str, str]]:
    """The rule of a convolution over ``n`` axes, and why its axes are fixed."""
    head = "n " if batched else ""
    s, o, k = _spell("s", n), _spell("o", n), _spell("k", n)
    w = f"(g ci) co {k}" if transposed else f"(g co) ci {k}"
    b = "(g co)" if biased else "_"
    spread = s if transposed else o
    text = (
        f"{head}(g ci) {s}, {w}, {b} -> {head}(g co) {o}; fixed {s} {o} {k}; macs {head}g co ci {k} {spread}"
        "; label g=channel ci=channel co=channel"
    )
    if slot:
        text += f"; size {slot}=g"
    return text, {f"k{i}": KERNEL for i in range(n)} | {f"{c}{i}": SPATIAL for i in range(n) for c in "so"}


def sdpa(q: Shape, k: Shape, v: Shape, mask: Shape | None, *, scale: float | None, slot: str = "scale") -> Rule:
    """Scaled dot-product attention ``b h q d, b h k d, b h k v, 1 1 q k -> b h q v``.

    Where the query has a multiple of the key's heads (grouped-query attention), its head axis is ``(h r)``. Without a
    ``scale`` the operator divides by the root of the *new* head size, so the present value is pinned.
    """
    rank = len(q)
    repeat = q[-3] // k[-3] if rank >= 4 and k[-3] and q[-3] != k[-3] else 1
    batch = [f"b{i}" for i in range(rank - 2)]
    if rank >= 4:
        batch[-1] = "h"
    keyed = list(batch)
    query = [*batch[:-1], "(h r)"] if repeat > 1 else batch
    text = f"{' '.join(query)} q d, {' '.join(keyed)} k d, {' '.join(keyed)} k v"
    if mask is None:
        text += ", _"
    else:
        full = [*query, "q", "k"]
        text += ", " + (
            " ".join("1" if size == 1 else name for size, name in zip(mask, full[rank - len(mask) :], strict=True))
            or "[]"
        )
    text += f" -> {' '.join(query)} q v; fixed k; macs {' '.join(query)} q k d; macs {' '.join(query)} q k v"
    text += "; label d=qk-dim v=value-dim" + (" h=head" if rank >= 4 else "") + (" r=query-head" if repeat > 1 else "")
    text += f"; pin {slot}={(q[-1] ** -0.5 if scale is None else scale)!r}"
    return parse_rule(
        text,
        (q, k, v, mask),
        why="the softmax of attention runs over this axis",
        r=repeat,
    )


def einsum(equation: str, operands: Sequence[Shape], *, weights: bool = False) -> Rule:
    """Any einsum equation: ``bhqd,bkhd->bhqk``, with an ellipsis, broadcast axes, diagonals (``ii->i``) and sums.

    Args:
        equation: As NumPy and torch read it; without ``->`` the result has the letters that occur once, sorted.
        operands: The shapes.
        weights: Whether an operand is a stored weight; otherwise the product is taken for attention.

    Raises:
        RuleError: The equation does not fit the shapes.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    written = left.split(",")
    if len(written) != len(operands):
        raise RuleError(f"einsum equation '{equation}' names {len(written)} operands, there are {len(operands)}")
    spreads = [
        len(shape) - len(term.replace("...", "")) if "." in term else 0
        for term, shape in zip(written, operands, strict=True)
    ]
    spread = max(spreads)
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = "..." * (spread > 0) + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    terms = [_labels(term, n) for term, n in zip(written, spreads, strict=True)]
    result = _labels(right, spread if "." in right else 0)
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=True):
        if len(term) != len(shape):
            raise RuleError(f"einsum equation '{equation}' does not fit an operand of shape {list(shape)}")
        for label, size in zip(term, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    dims = {label: axis(label.strip("."), size) for label, size in sizes.items()}
    layouts = tuple(
        tuple(dims[label] if size == dims[label].size else ONE for label, size in zip(term, shape, strict=True))
        for term, shape in zip(terms, operands, strict=True)
    )
    labels: dict[Factor, str] = {}
    for label, dim in dims.items():
        everywhere = all(label in term for term in terms) and label in result
        contracted = label not in result
        kind = "neuron" if weights else "head" if everywhere else "qk-dim" if contracted else "value-dim"
        labels.update((factor, kind) for factor in factors_of(dim) if len(terms) > 1)
    return Rule(
        layouts,
        (tuple(dims[label] for label in result),),
        macs=(tuple(dims.values()),) if len(terms) > 1 else (),
        labels=labels,
    )


def _labels(term: str, n_spread: int) -> list[str]:
    """The labels of a term's axes; those of an ellipsis are numbered from its end."""
    before, dots, after = term.partition("...")
    return [*before, *(f".e{i}" for i in reversed(range(n_spread if dots else 0))), *after]


def gemm(a: Shape, b: Shape, c: Shape | None, y: Shape, *, trans_a: bool = False, trans_b: bool = False) -> Rule:
    """ONNX ``Gemm`` and ``addmm``: ``alpha a b + beta c`` with optional transposes and a broadcast ``c``."""
    left = "k m" if trans_a else "m k"
    right = "n k" if trans_b else "k n"
    third = "_"
    if c is not None:
        names = ("m", "n")[2 - len(c) :]
        third = " ".join("1" if size == 1 else name for size, name in zip(c, names, strict=True)) or "[]"
    text = f"{left}, {right}, {third} -> m n; macs m n k; label k=neuron n=neuron"
    return parse_rule(text, (a, b, c), (y,))
