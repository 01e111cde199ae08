"""How dimensions, layouts and rules are written: the notation that :mod:`graphprune.ir.notation` reads."""

from __future__ import annotations

from graphprune.ir.dims import Dim, Factor, Layout, Product, Sum
from graphprune.ir.rule import Rule

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
    left, right = (
        ", ".join(
            print_layout(layout, namer) + (f" @{print_dim(pointed[i], namer)}" if i in pointed else "")
            for i, layout in enumerate(layouts)
        )
        for layouts, pointed in ((rule.operands, rule.reads), (rule.results, rule.makes))
    )
    text = [f"{left} -> {right}".strip()]
    order = tuple(namer.names)  # by first use
    if rule.fixed:
        text.append("fixed " + " ".join(namer(factor) for factor in order if factor in rule.fixed))
    if rule.normalized:
        text.append("normalized " + " ".join(namer(factor) for factor in order if factor in rule.normalized))
    text.extend("macs " + print_layout(term, namer) for term in rule.macs)
    for slot in rule.sizes:
        index = "" if slot.index is None else f"[{slot.index}]"
        offset = f"{slot.offset}" if slot.offset else ""
        text.append(f"size {slot.attribute}{index}={'-' * slot.negative}{print_dim(slot.dim, namer)}{offset}")
    if rule.pinned:
        text.append("pin " + " ".join(f"{name}={value!r}" for name, value in rule.pinned))
    if rule.labels:
        text.append("label " + " ".join(f"{namer(f)}={rule.labels[f]}" for f in order if f in rule.labels))
    for word, factors in (("choice", rule.choices), ("ordered", rule.ordered)):
        if factors:
            text.append(f"{word} " + " ".join(namer(factor) for factor in order if factor in factors))
    for word, numbers in (("least", rule.least), ("multiple", rule.multiples)):
        text.extend(f"{word} {print_dim(dim, namer)}={n}" for dim, n in numbers)
    if rule.writes:
        text.append("write " + print_layout(rule.writes, namer))
    if rule.carries:
        text.append("carry " + " ".join(map(str, rule.carries)))
    text.extend(word for word, said in (("rank", rule.ranks), ("compare", rule.compares)) if said)
    return "; ".join(text)
