"""What a residual branch is, and a layer made of several: sums that become an operand, values an earlier one."""

from __future__ import annotations

from dataclasses import dataclass

from graphprune.brief import brief


@dataclass(frozen=True, slots=True)
class Bypass:
    """A sum that becomes one of its operands; or a whole node, whose result becomes a value from before it.

    Attributes:
        node: The sum, or the node.
        branch: The operand that goes; empty where the node goes with all of its operands.
        skip: The operand that stays, or the value from before, which takes the place of the result.
        result: The node's result.
        carrying: For a whole node, those before it, up to ``skip``, that carry a value on without a branch: sums that
            it goes through, and what stands between them.
    """

    node: str
    branch: str
    skip: str
    result: str
    carrying: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A residual branch, or a layer made of several, that can be left out.

    Attributes:
        name: The name of the last weight of the branch; for a layer those of its first and last block.
        kind: ``block`` or ``layer``.
        source: The value that the branch starts from.
        result: The value that equals ``source`` without the branch.
        bypasses: The sums that become their other operand.
        closing: The weights of the last operator of the branch that has any.
        features: How many features that operator gives.
        tensors: The stored tensors that nothing else uses.
        parts: For a layer, the names of its blocks; for a block that holds others, theirs.
    """

    __repr__ = brief

    name: str
    kind: str
    source: str
    result: str
    bypasses: tuple[Bypass, ...]
    closing: tuple[str, ...]
    features: int
    tensors: tuple[str, ...]
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unneeded:
    """What no output needs any more once some sums are bypassed: names of nodes and of stored tensors."""

    nodes: frozenset[str] = frozenset()
    tensors: frozenset[str] = frozenset()

    def __or__(self, other: Unneeded) -> Unneeded:
        """What either leaves out."""
        return Unneeded(self.nodes | other.nodes, self.tensors | other.tensors)
