"""What graphprune writes into a file beside the model."""

from __future__ import annotations

from graphprune.planning.plan import PruningPlan
from graphprune.version import __version__


def metadata_of(plan: PruningPlan) -> dict[str, str]:
    """What graphprune writes into a file's ``metadata_props``."""
    return {
        "graphprune.version": __version__,
        "graphprune.fingerprint": plan.fingerprint,
        "graphprune.targets": ", ".join(plan.options.get("targets", ())),
    }
