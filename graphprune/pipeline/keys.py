"""What passes make for each other, by names: an analysis, scores, a plan. Passes say by them what they need."""

from __future__ import annotations

from dataclasses import dataclass

SELECTION = "selection"
DEMANDS = "demands"
ANALYSIS = "analysis"
CALIBRATION = "calibration"
STATISTICS = "statistics"
PRODUCTS = "products"
SCORES = "scores"
BLOCK_SCORES = "block-scores"
PROTECTION = "protection"
LOSSES = "losses"
PROFILE = "profile"
PLAN = "plan"
SLICED = "sliced"
SHALLOWER = "shallower"
PROOF = "proof"
UNCHANGED = "unchanged"
REFIT = "refit"
RECOVERY = "recovery"
EXPORT = "export"
LATENCY = "latency"
MODULE = "module"
EVALUATION = "evaluation"
METRICS = "metrics"

ANYTHING = frozenset({"*"})
"""What a pass gives that says nothing of it: behind it, nothing is missing."""


@dataclass(frozen=True)
class Key:
    """Something that one pass makes and another needs.

    Attributes:
        phrase: With its article, as in ``needs a plan``.
        giver: The pass that makes it, with the options that it takes; empty where the caller gives it.
        advice: What the user does where no pass makes it.
    """

    phrase: str
    giver: str = ""
    advice: str = ""


KEYS: dict[str, Key] = {
    SELECTION: Key("a selection", "select"),
    DEMANDS: Key("units that stay or go", "select{keep=...}"),
    ANALYSIS: Key("an analysis", "analyze"),
    SCORES: Key("scores", "score"),
    PLAN: Key("a plan", "allocate"),
    SLICED: Key("a model that is cut as planned", "slice-groups"),
    SHALLOWER: Key("a model without the blocks that go", "remove-blocks"),
    CALIBRATION: Key("calibration data", advice="give some (calibration=..., --calibration PATH)"),
    STATISTICS: Key("statistics", "calibrate"),
    PRODUCTS: Key("products of activations", "calibrate{products=true}"),
    BLOCK_SCORES: Key("scores of blocks", "score{blocks=l2}"),
    PROTECTION: Key("the names of sensitive groups", "protect-sensitive"),
    LOSSES: Key("curves of losses", "measure-losses"),
    PROFILE: Key("a profile", advice="prune with graphprune.prune, or give State.latency"),
    PROOF: Key("a proof", "verify"),
    UNCHANGED: Key("a model that computes what the original does", "fold-dead"),
    REFIT: Key("refitted weights", "compensate"),
    RECOVERY: Key("recovered weights", "recover"),
    EXPORT: Key("a checked file", "check-export"),
    LATENCY: Key("latencies", "measure-latency"),
    MODULE: Key("a module", "rebuild-module"),
    EVALUATION: Key("a metric", advice="give one (evaluate=..., --eval)"),
    METRICS: Key("measured metrics", "evaluate"),
}
"""The keys of the built-in passes, in the order in which they are asked for; a pass of the user's may name others."""
