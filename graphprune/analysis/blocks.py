"""Residual branches that can be bypassed, found on the graph: no name and no module says where a layer begins.

A *block* is what lies between a value ``x`` and a sum ``y = x + f(x)``: the nodes that nothing but this sum needs.
Without it the sum is its other operand, so that ``y = x``; whatever stands behind the sum (a ReLU, the norm of a
post-norm layer) stays. The skip edge may run through other sums (``(x + attention) + mlp``) and the branch may itself
be a sum of branches (``x + (attention + mlp)``); all of these are found, the inner ones too. A *layer* is one period
of a chain of unlike blocks: attention and MLP of one encoder layer. Where norms or changes of shape stand between its
sums (post-norm layers), they are part of it, and what the next layer starts from becomes what this one starts from.

ShortGPT (arXiv 2403.03853) and BlockPruner remove layers and branches; finding them is a matter of skip edges here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod

from graphprune.analysis.adapters import Adapter, find_adapters
from graphprune.analysis.branch import Block, Bypass, Unneeded
from graphprune.analysis.chains import as_many, chain_of, form, layer_of, periods, what_is
from graphprune.ir.dims import factors_of
from graphprune.ir.graph import Graph, Node
from graphprune.ir.liveness import flow_of

MOST_SKIPS = 64
"""Sums that a skip edge may run through before it reaches the value that the branch starts from."""

LONGEST_PERIOD = 4
"""Most blocks of one layer: self attention, cross attention, MLP and one more."""


class Branches:
    """The blocks of a graph, and what goes with them.

    Attributes:
        graph: The graph.
        blocks: Every block and layer, in the order of execution, a layer after its blocks.
    """

    def __init__(self, graph: Graph, adapters: tuple[Adapter, ...] | None = None) -> None:
        self.graph = graph
        self._adapters = find_adapters(graph) if adapters is None else adapters
        self._nodes = graph.nodes
        self._producer = graph.producers
        self._live = flow_of(graph).needed(graph.outputs)
        self._users = {
            name: [i for i in dict.fromkeys(users) if i in self._live] for name, users in graph.users.items()
        }
        self._outputs = frozenset(graph.outputs)
        self._reached: dict[tuple[str, str], set[int]] = {}

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every block and layer."""
        found = self._found()
        return tuple(sorted((*found, *self._layers(found)), key=lambda b: (self._producer[b.result], b.kind)))

    def __getitem__(self, name: str) -> Block:
        return self._by_name[name]

    def get(self, name: str) -> Block | None:
        """The block of a name, if there is one."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> Mapping[str, Block]:
        return {block.name: block for block in self.blocks}

    def bypasses(self, blocks: Iterable[Block]) -> dict[str, Bypass]:
        """The sums to bypass without these blocks, by node; a sum of which nothing is left is bypassed further out."""
        gone: dict[tuple[str, str], Bypass] = {}
        pending = [bypass for block in blocks for bypass in block.bypasses]
        while pending:
            bypass = pending.pop()
            gone[bypass.node, bypass.branch] = bypass
            if (bypass.node, bypass.skip) in gone:
                pending.append(self._outer[bypass.result])
        return {bypass.node: bypass for bypass in gone.values()}

    @cached_property
    def _outer(self) -> Mapping[str, Bypass]:
        """The bypass that a branch ends in, by the value that it adds."""
        every = (bypass for block in self.blocks for bypass in block.bypasses if bypass.branch)
        known = {(bypass.node, bypass.branch): bypass for bypass in every}
        return {bypass.branch: bypass for bypass in known.values()}

    def carrying(self, blocks: Iterable[Block]) -> frozenset[str]:
        """The nodes that, without these blocks, give what they are given: the sums, and all on the way of a layer."""
        return frozenset(name for each in self.bypasses(blocks).values() for name in (each.node, *each.carrying))

    def skips(self, blocks: Iterable[Block]) -> dict[str, str]:
        """Without these blocks: for the result of each bypassed sum, the value that takes its place."""
        skips = {bypass.result: bypass.skip for bypass in self.bypasses(blocks).values()}

        def end(name: str) -> str:
            while name in skips:
                name = skips[name]
            return name

        return {result: end(skip) for result, skip in skips.items()}

    def unneeded(self, blocks: Iterable[Block]) -> Unneeded:
        """What no output needs without these blocks."""
        bypasses = self.bypasses(blocks)
        if len(bypasses) == 1:
            dead = self._reach(*bypasses.values())
        else:
            dead = self._dead({self._index[node]: bypass for node, bypass in bypasses.items()})
        names = frozenset([self._nodes[i].name for i in dead])
        return Unneeded(names, frozenset(self._unused(dead)))

    @cached_property
    def idle(self) -> Unneeded:
        """The stored tensors that no output needs as it is."""
        return Unneeded(tensors=frozenset(self._unused({*range(len(self._nodes))} - self._live)))

    def _unused(self, dead: set[int]) -> Iterator[str]:
        """The stored tensors that only these nodes use."""
        values = self.graph.values
        operands = dict.fromkeys([name for i in sorted(dead) for name in self._nodes[i].operands if name is not None])
        for name in operands:
            if values[name].stored and name not in self._outputs and dead.issuperset(self._users.get(name, ())):
                yield name

    # -- liveness ----------------------------------------------------------------------------------------------------

    @cached_property
    def _index(self) -> Mapping[str, int]:
        return {node.name: i for i, node in enumerate(self._nodes)}

    def _dead(self, bypassed: Mapping[int, Bypass]) -> set[int]:
        """The nodes that no output needs any more."""
        whole = [i for i, bypass in bypassed.items() if not bypass.branch]
        dead: set[int] = set(whole)
        skips = {bypassed[i].skip for i in whole}  # they are used where the results were

        def used(name: str) -> bool:
            if name in self._outputs or name in skips:
                return True
            for user in self._users.get(name, ()):
                if user not in dead and (user not in bypassed or bypassed[user].branch != name):
                    return True
            return False

        producer = self._producer
        pending = [producer[bypass.branch] for bypass in bypassed.values() if bypass.branch]
        pending += [producer[name] for i in whole for name in self._nodes[i].operands if name and name in producer]
        while pending:
            i = pending.pop()
            node = self._nodes[i]
            if i in dead or any(name is not None and used(name) for name in node.results):
                continue
            dead.add(i)
            pending.extend([producer[name] for name in node.operands if name and name in producer])
        return dead

    # -- finding -----------------------------------------------------------------------------------------------------

    def _sums(self) -> Iterator[tuple[int, Node]]:
        for i, node in enumerate(self._nodes):
            if node.addends and i in self._live and len(node.operands) == 2 and node.results[0] is not None:
                yield i, node

    def _fits(self, skip: str | None, branch: str | None, result: str) -> bool:
        """Whether a sum with these operands may become ``skip``."""
        if skip is None or branch is None or skip == branch or branch not in self._producer:
            return False
        values = self.graph.values
        if not values[result].shape:
            return False
        return form(values[skip]) == form(values[branch]) == form(values[result]) and not values[skip].stored

    def _found(self) -> list[Block]:
        sums = list(self._sums())
        skips: dict[str, str] = {}
        found: list[Bypass] = []
        for _, node in sums:
            result = node.results[0] or ""
            for at in node.addends:
                skip, branch = node.operands[at], node.operands[1 - at]
                if self._fits(skip, branch, result) and self._starts(branch or "", chain_of(skip or "", skips)):
                    skips[result] = skip or ""
                    found.append(Bypass(node.name, branch or "", skip or "", result))
                    break
        known = {(bypass.node, bypass.branch) for bypass in found}
        around = {bypass.branch: chain_of(bypass.skip, skips) for bypass in found}
        whole = {adapter.sum for adapter in self._adapters}  # one linear map, written as a sum
        for _, node in reversed(sums):  # sums inside a branch: what starts where the branch starts goes on its own
            sources = around.get(node.results[0] or "")
            if sources is None or node.name in whole or len(self._users.get(node.results[0] or "", ())) != 1:
                continue
            for at in node.addends:
                skip, branch = node.operands[at], node.operands[1 - at]
                if (node.name, branch) in known or not self._fits(skip, branch, node.results[0] or ""):
                    continue
                if self._starts(branch or "", sources):
                    found.append(Bypass(node.name, branch or "", skip or "", node.results[0] or ""))
                    known.add((node.name, branch or ""))
                    around[branch or ""] = sources
        taken: set[str] = set()
        blocks = [self._block(bypass, taken) for bypass in sorted(found, key=lambda b: self._producer[b.branch])]
        return self._nested([block for block in blocks if block is not None])

    def _nested(self, blocks: Sequence[Block]) -> list[Block]:
        """The blocks, each with the names of those inside it; a branch that is a sum of blocks is a layer."""
        by_sum: dict[int, list[Block]] = {}
        for block in blocks:
            by_sum.setdefault(self._index[block.bypasses[0].node], []).append(block)
        nested = []
        for block in blocks:
            inside = sorted(i for i in self._reach(block.bypasses[0]) if i in by_sum)
            parts = tuple(b.name for i in inside for b in by_sum[i])
            if len(by_sum.get(self._producer[block.bypasses[0].branch], ())) > 1:
                block = replace(block, name=f"{parts[0]}..{parts[-1]}", kind="layer")
            nested.append(replace(block, parts=parts))
        return nested

    def _starts(self, branch: str, sources: Sequence[str]) -> bool:
        """Whether a branch is computed from one of some values, which its nodes lie behind."""
        wanted = frozenset(sources)
        first = min(self._producer.get(name, -1) for name in sources)
        pending, seen = [branch], {branch}
        while pending:
            i = self._producer.get(pending.pop())
            if i is None or i <= first:
                continue
            for name in self._nodes[i].operands:
                if name in wanted:
                    return True
                if name is not None and name not in seen:
                    seen.add(name)
                    pending.append(name)
        return False

    def _reach(self, bypass: Bypass) -> set[int]:
        """The nodes that go with one bypass."""
        known = self._reached.get((bypass.node, bypass.branch))
        if known is None:
            known = self._dead({self._index[bypass.node]: bypass})
            self._reached[bypass.node, bypass.branch] = known
        return known

    def _block(self, bypass: Bypass, taken: set[str]) -> Block | None:
        """The block of a bypass, or ``None`` where nothing that costs anything goes with it."""
        dead = self._reach(bypass)
        weighted = [i for i in dead if self._weights(self._nodes[i])]
        if not weighted and not any(rule.macs for i in dead if (rule := self._nodes[i].rule) is not None):
            return None
        closing = self._weights(self._nodes[max(weighted)]) if weighted else ()
        features = self._features(self._nodes[max(weighted)], closing) if weighted else 1
        base = max(closing, key=lambda name: len(self.graph.values[name].shape), default=bypass.branch)
        name, n = base, 1
        while name in taken:
            n += 1
            name = f"{base}#{n}"
        taken.add(name)
        return Block(name, "block", bypass.skip, bypass.result, (bypass,), closing, features, tuple(self._unused(dead)))

    def _weights(self, node: Node) -> tuple[str, ...]:
        values = self.graph.values
        return tuple(name for name in node.operands if name is not None and values[name].kind == "parameter")

    def _features(self, node: Node, weights: Sequence[str]) -> int:
        """How many features an operator with weights gives: the axes that its first weight shares with the result."""
        rule = node.rule
        if rule is None or not rule.results or rule.results[0] is None:
            return 1
        results = {factor for dim in rule.results[0] for factor in factors_of(dim)}
        layout = rule.operands[node.operands.index(weights[0])] or ()
        return prod(dim.size for dim in layout if not results.isdisjoint(factors_of(dim)))

    # -- layers ------------------------------------------------------------------------------------------------------

    def _layers(self, blocks: Sequence[Block]) -> list[Block]:
        """One period of every chain of unlike blocks that repeats."""
        inner = {name for block in blocks for name in block.parts}
        outer = [block for block in blocks if block.name not in inner]
        by_result = {block.result: block for block in outer}
        follower: dict[str, Block] = {}
        first = []
        for block in outer:
            before = self._before(block, by_result)
            if before is None or before.name in follower:
                first.append(block)
            else:
                follower[before.name] = block
        layers: list[Block] = []
        for block in first:
            chain = [block]
            while chain[-1].name in follower:
                chain.append(follower[chain[-1].name])
            for run in periods(chain, [self._signature(each) for each in chain]):
                layers.extend(self._run(run, chain))
        return layers

    def _run(self, run: Sequence[Sequence[Block]], chain: Sequence[Block]) -> Iterator[Block]:
        """The layers of a run of periods: by their sums, or all between what one starts from and what the next does."""
        sources = [blocks[0].source for blocks in run]
        last = run[-1][-1]
        after = chain[chain.index(last) + 1 :]
        end = after[0].source if after else self._like(sources[-1], run[-2][-1].result, last.result)
        for blocks, skip, result in zip(run, sources, (*sources[1:], end), strict=True):
            layer = layer_of(blocks)
            follows = [*(block.source for block in blocks[1:]), result]
            bypass = None
            if [block.result for block in blocks] != follows:
                bypass = self._whole(blocks, skip, result)
            if bypass is not None:
                unused = tuple(self._unused(self._reach(bypass)))
                layer = replace(layer, result=bypass.result, bypasses=(bypass,), tensors=unused)
            yield layer

    def _whole(self, blocks: Sequence[Block], skip: str, result: str | None) -> Bypass | None:
        """The bypass of all that lies between two values, if all of the blocks goes with it."""
        values = self.graph.values
        if result is None or result not in self._producer or form(values[skip]) != form(values[result]):
            return None
        carrying = [block.bypasses[0].node for block in blocks]
        for start, end in zip(
            [block.result for block in blocks], [*(b.source for b in blocks[1:]), result], strict=True
        ):
            while end != start:
                node = self._nodes[self._producer[end]]
                carrying.append(node.name)
                end = self._computed(node)[0]
        node = self._nodes[self._producer[result]]
        bypass = Bypass(node.name, "", skip, result, tuple(carrying))
        gone = self._reach(bypass)
        inside = {i for block in blocks for i in self._reach(block.bypasses[0])} | {self._index[n] for n in carrying}
        return bypass if inside <= gone else None

    def _like(self, example: str, start: str, last: str) -> str | None:
        """The value that the same operators give behind ``last`` as give ``example`` behind ``start``."""
        behind: list[Node] = []
        while example != start:
            node = self._nodes[self._producer[example]]
            behind.append(node)
            example = self._computed(node)[0]
        for node in reversed(behind):
            users = [self._nodes[i] for i in self._users.get(last, ())]
            alike = len(users) == 1 and what_is(users[0]) == what_is(node)
            if not alike or last in self._outputs or users[0].results[0] is None:
                return None
            last = users[0].results[0]
        return last

    def _computed(self, node: Node) -> list[str]:
        return [name for name in node.operands if name is not None and not self.graph.values[name].stored]

    def _before(self, block: Block, by_result: Mapping[str, Block]) -> Block | None:
        """The block whose result this one starts from, with nothing but norms, activations, reshapes between them."""
        name = block.source
        while name not in by_result:
            i = self._producer.get(name)
            if i is None:
                return None
            computed = self._computed(self._nodes[i])
            if len(computed) != 1 or not as_many(self.graph.values[computed[0]], self.graph.values[name]):
                return None
            name = computed[0]
        return by_result[name]

    def _signature(self, block: Block) -> tuple[object, ...]:
        """What makes two blocks alike: the same weighted sums over weights of the same shapes."""
        dead = sorted(self._reach(block.bypasses[0]))
        values = self.graph.values
        return tuple(
            (node.op, tuple(values[name].shape for name in self._weights(node)))
            for node in (self._nodes[i] for i in dead)
            if node.rule is not None and node.rule.macs
        )
