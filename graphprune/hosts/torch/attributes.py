"""Which numbers of a user's module have to change with its tensors: as few as the module needs, none by coincidence.

The copy starts with all its numbers unchanged. Where it fails one of its uses (the forward, decoding with a cache),
the numbers that reach torch's functions in that use are tried with what the sizes that they equal have become; of what
makes the use work, each change that the use can do without is taken back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from torch import nn

from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.layers import Resized, own_literals, renamed, resized_sizes
from graphprune.hosts.torch.own import probe_of
from graphprune.hosts.torch.spots import Spot, fewest_first, find_spots, is_torchs, reaching

ATTEMPTS = 256
"""Combinations of values that are tried for one use."""

_SIZED_BY_HAND = (nn.Unflatten, nn.ChannelShuffle, nn.LayerNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
"""Layers of torch's own whose sizes may show in none of their tensors."""

Alike = tuple[str, type, tuple[str, ...], str, bool]
"""Spots that change together: of modules of one class in alike places (``layers.*.attn``)."""
Changes = dict[Spot, Any]
"""New values by spot."""


@dataclass(frozen=True)
class Use:
    """A way in which people use a module.

    Attributes:
        name: Of the check.
        run: Does it, on any module of the class.
        judge: Why a sliced copy does it wrongly; empty if it does not.
    """

    name: str
    run: Callable[[nn.Module], object]
    judge: Callable[[nn.Module], str]


@dataclass(frozen=True)
class Candidates:
    """What numbers may become.

    Attributes:
        source: The user's module.
        spots: Its spots and their values.
        layers: Its modules by path.
        resized: The sizes that changed, by path of module.
        literals: What each module's own code gives to operators, and what became of it.
    """

    source: nn.Module
    spots: Mapping[Spot, Any]
    layers: Mapping[str, nn.Module]
    resized: Mapping[str, Sequence[Resized]]
    literals: Mapping[str, Sequence[Resized]]

    @classmethod
    def of(cls, source: nn.Module, original: TorchHost, pruned: TorchHost) -> Candidates:
        """All candidates of a module."""
        layers = dict(source.named_modules(remove_duplicate=False))
        sizes, literals = resized_sizes(original, pruned), own_literals(original, pruned)
        return cls(source, find_spots(source), layers, sizes, literals)

    def options(self, spot: Spot, *, reached: bool) -> list[Any]:
        """The new values of a spot: those of sizes in its module first, then of torch's layers there, then of all.

        Where the code of its module gives the number to an operator that keeps it, it most likely stays what it is.
        """
        layer = self.layers[spot.path]
        if is_torchs(layer) and not isinstance(layer, _SIZED_BY_HAND):
            return []
        pairs = _nearby(spot.path, self.layers, self.resized)
        if reached:
            prefix = f"{spot.path}." if spot.path else ""
            inside = [path for path in self.resized if path.startswith(prefix)]
            value, told = self.spots[spot], self.literals.get(spot.path, ())
            stays = [(value, value)] if (value, value) in told and not any(a == value != b for a, b in told) else []
            pairs = [*stays, *pairs, *(pair for path in inside for pair in self.resized[path])]
        elif spot.chain or spot.name.startswith("_"):
            return []
        return _options(self.spots[spot], list(dict.fromkeys(pairs)))

    def ways(self, reached: frozenset[Spot], others: Iterable[Spot]) -> list[list[Changes]]:
        """For alike spots: ways to set them, the likeliest first, to leave them last.

        The same choice is made for all: the ``k``-th changed size that equals the number, counted in the order of the
        graph, so that layers of equal build may end up with different sizes.
        """
        found: dict[Alike, dict[Spot, list[Any]]] = {}
        for spot in (*(spot for spot in self.spots if spot in reached), *others):
            options = self.options(spot, reached=spot in reached)
            if options:
                pattern = re.sub(r"\d+", "*", spot.path)
                key = (pattern, type(self.layers[spot.path]), spot.chain, spot.name, spot in reached)
                found.setdefault(key, {})[spot] = options
        readers = Counter(spot.common for spot in reached)
        all_ways = []
        for by_spot in found.values():
            ways: list[Changes] = []
            for k in range(max(map(len, by_spot.values()))):
                way = {spot: options[min(k, len(options) - 1)] for spot, options in by_spot.items()}
                common = next(iter(way)).common
                agree = len({(spot.common, str(value)) for spot, value in way.items()}) == 1
                if agree and readers[common] == len(way):
                    way = {common: next(iter(way.values()))}  # all readers agree, and go on sharing it
                way = {spot: value for spot, value in way.items() if value != self.spots[spot]}
                if way and way not in ways:
                    ways.append(way)
            if ways:
                all_ways.append([*ways, {}])
        return all_ways


def fit(
    module: nn.Module, candidates: Candidates, uses: Sequence[Use], base: Changes, known: str | None = None
) -> tuple[Changes, str]:
    """Changes the numbers of a sliced copy so that it serves its uses; the fewest that do.

    Args:
        module: The copy; it is changed.
        candidates: What its numbers may become.
        uses: In order; each is served without losing those before it.
        base: The changes that are made already; the other numbers are those of the user's module.
        known: Why the copy as it is does not serve the first use, empty if it does; ``None`` where that has to be seen.

    Returns:
        All changes, and why the copy does not serve (empty if it does).
    """
    changes = dict(base)
    for n, use in enumerate(uses):
        reason = use.judge(module) if n or known is None else known
        if not reason:
            continue
        served = uses[: n + 1]
        more = _search(module, candidates, changes, served)
        if more is None:
            return changes, reason
        changes = more
    return changes, ""


def apply_changes(module: nn.Module, candidates: Candidates, old: Changes, new: Changes) -> None:
    """Takes some changes back and makes others."""
    for spot in old:
        spot.restore(module, candidates.spots[spot])
    for spot, value in new.items():
        spot.write(module, value)


def _search(module: nn.Module, candidates: Candidates, base: Changes, uses: Sequence[Use]) -> Changes | None:
    """The fewest changes on top of some with which a copy serves uses; ``None`` if none are found."""
    probe = probe_of(candidates.source)
    reached = reaching(probe, candidates.spots, uses[-1].run) - base.keys()
    others = [spot for spot in candidates.spots if spot not in reached and spot not in base]
    present = dict(base)
    likely, unlikely = candidates.ways(reached, ()), candidates.ways(reached, others)
    trials = chain(*(_trials(ways) for ways in ((likely, unlikely) if len(unlikely) > len(likely) else (likely,))))
    for parts in islice(trials, ATTEMPTS):
        wanted = {**base, **{spot: value for part in parts for spot, value in part.items()}}
        apply_changes(module, candidates, present, wanted)
        present = wanted
        if not _failing(module, uses):
            return shrunk(module, candidates, base, parts, uses)
    apply_changes(module, candidates, present, base)
    return None


def _trials(all_ways: Sequence[Sequence[Changes]]) -> Iterator[list[Changes]]:
    """One way for each of several numbers: all the likeliest, then one other, ..."""
    for options in islice(fewest_first([len(ways) for ways in all_ways]), ATTEMPTS // 2):
        yield [ways[k] for ways, k in zip(all_ways, options, strict=True)]


def likeliest(candidates: Candidates, use: Use) -> list[Changes]:
    """For all numbers that reach torch's functions in a use and may have changed: what they most likely became."""
    reached = reaching(probe_of(candidates.source), candidates.spots, use.run)
    return [ways[0] for ways in candidates.ways(frozenset(reached), ()) if ways[0]]


def shrunk(
    module: nn.Module, candidates: Candidates, base: Changes, parts: Sequence[Changes], uses: Sequence[Use]
) -> Changes:
    """What is left when every change that the uses can do without is taken back; those seen least likely go first."""
    kept = [part for part in parts if part]
    whole = {**base, **{spot: value for part in kept for spot, value in part.items()}}
    for part in reversed(kept):
        smaller = {spot: value for spot, value in whole.items() if spot not in part or spot in base}
        apply_changes(module, candidates, whole, smaller)
        if _failing(module, uses):
            apply_changes(module, candidates, smaller, whole)
        else:
            whole = smaller
    return whole


def _failing(module: nn.Module, uses: Sequence[Use]) -> str:
    return next((reason for use in uses if (reason := use.judge(module))), "")


def _nearby(path: str, layers: Mapping[str, nn.Module], resized: Mapping[str, Sequence[Resized]]) -> list[Resized]:
    """The changed sizes inside a module, then those of torch's own layers that it holds."""
    found = list(resized.get(path, ()))
    prefix = f"{path}." if path else ""
    for name, _ in layers[path].named_children():
        if is_torchs(layers[prefix + name]):
            found.extend(resized.get(prefix + name, ()))
    return found


def _options(value: Any, resized: Sequence[Resized]) -> list[Any]:
    """What a number, or a list of numbers, may have become; without repetition."""
    if isinstance(value, int):
        return list(dict.fromkeys(new for old, new in resized if old == value))
    changed = [renamed(item, resized) for item in value]
    places = [i for i, (new, old) in enumerate(zip(changed, value, strict=True)) if new != old]
    options = [type(value)(changed)] if places else []
    if len(places) > 1:  # equal sizes need not be the same one
        options.extend(type(value)([*value[:i], changed[i], *value[i + 1 :]]) for i in places)
    return options
