"""Chains of residual branches: which of them repeat, and the layers that these make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from graphprune.analysis.branch import Block
from graphprune.ir.graph import Node, Value

MOST_SKIPS = 64
"""Sums that a skip edge may run through before it reaches the value that the branch starts from."""

LONGEST_PERIOD = 4
"""Most blocks of one layer: self attention, cross attention, MLP and one more."""


def form(value: Value) -> tuple[object, ...]:
    """What values have in common that may take each other's place."""
    return value.shape, value.dtype, value.dynamic


def what_is(node: Node) -> tuple[object, ...]:
    """What nodes have in common that do the same."""
    return node.op, node.options, len(node.operands), len(node.results)


def chain_of(skip: str, skips: Mapping[str, str]) -> tuple[str, ...]:
    """The values that a skip edge runs through, backwards."""
    chain = [skip]
    while chain[-1] in skips and len(chain) < MOST_SKIPS:
        chain.append(skips[chain[-1]])
    return tuple(chain)


def periods(chain: Sequence[Block], signatures: Sequence[object]) -> Iterator[list[Sequence[Block]]]:
    """Runs of the shortest period of unlike blocks in a chain, each at least twice."""
    at = 0
    while at < len(chain):
        for period in range(2, LONGEST_PERIOD + 1):
            one = list(signatures[at : at + period])
            if len(set(one)) > 1 and one == list(signatures[at + period : at + 2 * period]):
                run = []
                while list(signatures[at : at + period]) == one:
                    run.append(chain[at : at + period])
                    at += period
                yield run
                break
        else:
            at += 1


def layer_of(blocks: Sequence[Block]) -> Block:
    """The layer that some blocks make, one behind the other."""
    first, last = blocks[0], blocks[-1]
    return Block(
        f"{first.name}..{last.name}",
        "layer",
        first.source,
        last.result,
        tuple(bypass for block in blocks for bypass in block.bypasses),
        tuple(name for block in blocks for name in block.closing),
        last.features,
        tuple(dict.fromkeys(name for block in blocks for name in block.tensors)),
        tuple(block.name for block in blocks),
    )


def as_many(one: Value, other: Value) -> bool:
    """Whether two values have equally many elements of one type."""
    return one.dtype == other.dtype and one.n_elements == other.n_elements
