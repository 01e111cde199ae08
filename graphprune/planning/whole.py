"""Which groups could have lost units, and were left whole by default or because the user said so."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from graphprune.analysis.groups import Group

PARTS_OF_HEADS = frozenset({"query-head", "qk-dim", "rotary-pair", "value-dim"})
"""Kinds that are left whole as long as the targets can be met without them."""
EXPERTS = frozenset({"expert", "expert-group"})
"""Kinds that change which units a router chooses: the last resort."""

SHIFTS = "by default: removing units shifts the statistics of a normalisation"
PARTS = "by default: parts of heads go where whole units do not suffice"
ROUTES = "by default: a router would choose other experts"


def tiers(groups: Iterable[Group], *, asked: bool) -> list[frozenset[str]]:
    """Names of the groups to try to meet the targets with, the preferred ones first."""
    chosen = tuple(groups)
    everything = frozenset(group.name for group in chosen)
    exact = frozenset(group.name for group in chosen if group.exact)
    whole = frozenset(group.name for group in chosen if group.exact and group.kind not in PARTS_OF_HEADS)
    kept_experts = frozenset(group.name for group in chosen if group.kind not in EXPERTS)
    found = [everything] if asked else [whole, exact, kept_experts, everything]
    return list(dict.fromkeys(tier for tier in found if tier))


def left_whole(
    groups: Iterable[Group],
    cut: Collection[str],
    chosen: Sequence[Group],
    *,
    sensitive: Collection[str] = (),
    asked: bool = False,
) -> dict[str, str]:
    """By the name of a group that lost nothing, why it was not to lose anything.

    Args:
        groups: All groups of the model.
        cut: Names of those that lost units.
        chosen: Those that the user's selectors allow.
        sensitive: Names of those that were found to be sensitive.
        asked: Whether ``only`` was given: then all that is named may be cut.
    """
    allowed = {group.name for group in chosen}
    candidates = [group for group in chosen if group.name not in sensitive]
    used = next((tier for tier in tiers(candidates, asked=asked) if tier.issuperset(cut)), frozenset(cut))
    found = {}
    for group in groups:
        if group.name in cut or group.name in used:
            continue
        if group.name in sensitive:
            found[group.name] = "found to be sensitive (protect-ratio)"
        elif group.name not in allowed:
            found[group.name] = "not named in 'only'" if asked else "protected"
        else:
            found[group.name] = ROUTES if group.kind in EXPERTS else PARTS if group.exact else SHIFTS
    return found
