"""The criteria by name, and what a criterion is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from graphprune.importance.ablation import bonsai, oracle
from graphprune.importance.activation import act_rms, act_var, apoz
from graphprune.importance.context import Evidence, Float, Scores
from graphprune.importance.gradient import fisher, path_taylor, taylor, taylor_elem
from graphprune.importance.magnitude import l1, l2
from graphprune.importance.obs import obs
from graphprune.importance.output import wanda, wifv
from graphprune.importance.random import random_scores
from graphprune.importance.structure import bn_gamma, fpgm, lamp
from graphprune.registry import Registry

Needs = Literal["weights", "runs", "diagonal", "products"]


@dataclass(frozen=True)
class Criterion:
    """How units are scored.

    Attributes:
        score: Scores every unit of every group: larger is more important.
        needs: What it looks at beside weights: ``runs`` of the model on calibration data, the ``diagonal`` of the
            moments of activations, or all their ``products``.
        absolute: Whether scores are errors, which can be compared between groups as they are and add up. Others are
            divided by their mean in each group.
    """

    score: Callable[[Evidence], Scores]
    needs: Needs = "weights"
    absolute: bool = False


def _plugin(name: str, found: Any) -> Criterion:
    """What an entry point names: a criterion, or the function of one that looks at weights only."""
    if not isinstance(found, Criterion) and not callable(found):
        raise TypeError(f"a '{type(found).__name__}' is neither a function nor a Criterion")
    return found if isinstance(found, Criterion) else Criterion(found)


_BUILTIN = {
    "l1": Criterion(l1),
    "l2": Criterion(l2),
    "random": Criterion(random_scores),
    "bn-gamma": Criterion(bn_gamma),
    "lamp": Criterion(lamp, absolute=True),
    "fpgm": Criterion(fpgm),
    "act-rms": Criterion(act_rms, "diagonal"),
    "act-var": Criterion(act_var, "diagonal"),
    "apoz": Criterion(apoz, "diagonal"),
    "wanda": Criterion(wanda, "diagonal"),
    "wifv": Criterion(wifv, "diagonal", absolute=True),
    "obs": Criterion(obs, "products", absolute=True),
    "taylor": Criterion(taylor, "runs", absolute=True),
    "fisher": Criterion(fisher, "runs", absolute=True),
    "taylor-elem": Criterion(taylor_elem, "runs"),
    "path-taylor": Criterion(path_taylor, "runs", absolute=True),
    "bonsai": Criterion(bonsai, "diagonal", absolute=True),
    "oracle": Criterion(oracle, "runs", absolute=True),
}
CRITERIA = Registry("criterion", _BUILTIN, group="graphprune.criteria", plugin=_plugin)
"""The criteria by name; :func:`register` adds to them, and so does the entry point group ``graphprune.criteria``."""


def register(
    name: str,
    score: Callable[[Evidence], Scores],
    *,
    needs: Needs = "weights",
    absolute: bool = False,
    replace: bool = False,
) -> None:
    """Adds a criterion of the user's, for ``--criterion NAME`` and ``criterion="name"``.

    Args:
        name: Its name.
        score: As of :class:`Criterion`, and so the others.
        needs: What it looks at beside weights.
        absolute: Whether scores are errors.
        replace: Whether it may take the place of one that was registered before.

    Raises:
        OptionError: The name is taken.
    """
    CRITERIA.register(name, Criterion(score, needs, absolute), replace=replace)


def criterion(name: str) -> Criterion:
    """The criterion of a name.

    Raises:
        OptionError: There is none.
    """
    return CRITERIA.find(name)


def normalized(scores: Scores) -> dict[str, Float]:
    """Each group's scores divided by their mean, so that groups can be ranked together.

    See docs/methods.md, Ranking across groups.
    """
    return {name: values / max(float(values.mean()), 1e-30) for name, values in scores.items()}
