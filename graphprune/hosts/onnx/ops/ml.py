"""The table of the ``ai.onnx.ml`` operators, with which converters of scikit-learn end (and sometimes begin) a model.

What has its numbers in attributes (a scaler, a linear model, trees) is not cut along the axis that they are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graphprune.hosts.onnx.ops import rows
from graphprune.ir.dims import Factor, factors_of
from graphprune.ir.rule import Rule
from graphprune.rules.call import EXACT, Call, Op, Row
from graphprune.rules.contraction import axes, axis
from graphprune.rules.pointwise import along, pointwise

_PREFIX = "ai.onnx.ml::"
_IN_ATTRIBUTES = "its weights are attributes, and not cut"
_MAPS = "maps are not followed"

ML_BARRIERS: Mapping[str, str] = {
    **dict.fromkeys(
        tuple(
            f"{_PREFIX}{op}"
            for op in (
                "LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor",
                "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor",
            )
        ),
        _IN_ATTRIBUTES,
    ),
    **dict.fromkeys(tuple(f"{_PREFIX}{op}" for op in ("ZipMap", "CastMap", "DictVectorizer")), _MAPS),
    f"{_PREFIX}FeatureVectorizer": "features are joined by sizes that are attributes",
}  # fmt: skip
"""Operators that stay barriers on purpose, with the reason that a user reads."""


def encoded(c: Call) -> Rule:
    """Each element becomes another one, whose type may differ; positions do not stay positions."""
    return pointwise((c.x,), c.y)


def by_feature(*attributes: str) -> Row:
    """Element by element, with numbers for each feature in attributes: one for all, or one for each."""

    def row(c: Call) -> Rule:
        if all(len(c.get(name, ())) <= 1 for name in attributes):
            return pointwise((c.x,), c.y)
        return along(c.x, [c.y], (-1,), f"'{c.op}' has numbers for each position of this axis")

    return row


def normalizer(c: Call) -> Rule:
    """Divides by a norm over the features, to which a removed one adds nothing."""
    if c.get("norm", "MAX") == "MAX":
        return along(c.x, [c.y], (-1,), f"'{c.op}' divides by the largest along this axis")
    rule = pointwise((c.x,), c.y)
    return replace(rule, normalized=frozenset(factors_of((rule.operands[0] or ())[-1])))


def extracted(c: Call) -> Rule:
    """``n e, k @e -> n k``: positions of the last axis are looked up, as many as there are indices."""
    x, places = axes("x", c.x), axes("i", rows.shape_of(c, 1))
    long = [dim for dim in places if dim.size > 1]
    own = long[0] if len(long) == 1 else axis("k", c.y[-1])
    fixed: dict[Factor, str] = {}
    if len(long) > 1:
        reason = "the indices are read one after the other"
        fixed = {factor: reason for dim in (*places, own) for factor in factors_of(dim)}
    outer = x[:-1] or axes("one", (1,))
    return Rule((x, places), ((*outer, own),), fixed, reads={1: x[-1]}, carries=(0,))


def one_hot(c: Call) -> Rule:
    """``n -> n k``: a category for each position of the new axis is an attribute."""
    n, new = axes("x", c.x), axis("k", c.y[-1])
    reason = f"'{c.op}' has a category for each position of this axis"
    return Rule((n,), ((*n, new),), dict.fromkeys(factors_of(new), reason))


ML: Mapping[str, Row | Op] = {
    **dict.fromkeys((f"{_PREFIX}LabelEncoder", f"{_PREFIX}CategoryMapper", f"{_PREFIX}Binarizer"), encoded),
    f"{_PREFIX}Scaler": by_feature("offset", "scale"),
    f"{_PREFIX}Imputer": by_feature("imputed_value_floats", "imputed_value_int64s"),
    f"{_PREFIX}Normalizer": Op(normalizer, masked=EXACT),
    f"{_PREFIX}ArrayFeatureExtractor": extracted,
    f"{_PREFIX}OneHotEncoder": one_hot,
    **{op: rows.refused(reason) for op, reason in ML_BARRIERS.items()},
}
"""Operator -> row."""
