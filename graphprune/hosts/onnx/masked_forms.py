"""Masked forms of the ONNX host: nodes that compute what an operator does, with statistics of kept units only.

Which operator has which form is said by its row in :mod:`graphprune.hosts.onnx.ops.table`. A form gives the value that
takes the place of the first result; ``None``: the operator itself is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphprune.errors import ProofError
from graphprune.hosts.host import Array
from graphprune.hosts.onnx.ops.own import facts_of
from graphprune.hosts.onnx.ops.table import ROWS
from graphprune.hosts.onnx.ops.values import Inferred
from graphprune.hosts.onnx.surgery import Surgery
from graphprune.rules.call import EXACT, facts, stated_form

CHOOSING: Mapping[str, bool | None] = {"choice": False, "choice_of_least": True, "topk": None}
"""Forms that are the operator itself, on numbers that it cannot choose where units are removed: whether it chooses the
smallest (``None``: an attribute says so)."""

Form = Callable[["Masked"], "gs.Variable | None"]


def form_of(op: str) -> Form | None:
    """The masked form of an operator that is replaced; ``None``: none is known.

    Raises:
        RuleError: Its row, which somebody has registered, states one that there is not.
    """
    name = facts_of(op).masked
    forms = {facts(row).masked for row in ROWS.values()} - {"", EXACT, *CHOOSING}
    return cast("Form", globals()[stated_form(op, name, forms)]) if name else None


def joined(axes: Mapping[int, NDArray[np.bool_]], rank: int) -> NDArray[np.bool_]:
    """One mask that broadcasts to the tensor."""
    joined = np.ones((1,) * rank, dtype=np.bool_)
    for axis, mask in axes.items():
        joined = joined & mask.reshape(tuple(-1 if i == axis else 1 for i in range(rank)))
    return joined


@dataclass(frozen=True, slots=True)
class Masked:
    """What a masked form is built from."""

    surgery: Surgery
    node: gs.Node
    source: str
    masks: Mapping[int, NDArray[np.bool_]]
    axes: tuple[int, ...]
    inferred: Inferred
    opset: int

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute of the node, or the default."""
        before = self.surgery.before[self.node.name]
        found = next((entry for entry in before.attribute if entry.name == name), None)
        return default if found is None else onnx.helper.get_attribute_value(found)

    @property
    def x(self) -> Any:
        """The first operand."""
        return self.node.inputs[0]

    @property
    def rank(self) -> int:
        """How many axes it has."""
        return len(self.inferred.shapes[self.source])

    @property
    def ratio(self) -> float:
        """How many elements there are for each one that is kept."""
        return prod(len(self.masks[axis]) / max(1, int(self.masks[axis].sum())) for axis in self.axes)

    def result(self, i: int) -> gs.Variable:
        """Result ``i`` of the node itself, which then stays: a sum that it normalises."""
        while len(self.node.outputs) <= i:
            self.node.outputs.append(gs.Variable.empty())
        if self.node.outputs[i].is_empty():
            self.node.outputs[i] = gs.Variable(self.surgery.fresh(f"{self.node.name}:sum"))
        return self.node.outputs[i]

    def number(self, value: Array | np.float32 | float) -> gs.Variable | gs.Constant:
        """A constant of the type of the operand; one that float64 has in full where the model is run in that."""
        kind = self.inferred.types.get(self.source, onnx.TensorProto.FLOAT)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        if dtype.itemsize > 2:
            return self.surgery.constant(f"{self.node.name}:number", np.asarray(value, dtype))
        exact = self.surgery.constant(f"{self.node.name}:number", np.asarray(value, np.float64))
        return self.op("Cast", exact, to=kind)

    def integers(self, values: list[int]) -> gs.Constant:
        """A constant of whole numbers."""
        return self.surgery.constant(f"{self.node.name}:integers", np.array(values, dtype=np.int64))

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> gs.Variable:
        """A new node's result."""
        return self.surgery.insert(kind, f"{self.node.name}:{kind}", inputs, **attributes)

    def mean(self, x: Any, axes: list[int], ratio: Any) -> gs.Variable:
        """The mean over ``axes``, corrected for elements that are not there; reduced axes stay."""
        if self.opset >= 18:
            mean = self.op("ReduceMean", x, self.integers(axes), keepdims=1)
        else:
            mean = self.op("ReduceMean", x, axes=axes, keepdims=1)
        return self.op("Mul", mean, ratio)

    def keep(self, x: Any, mask: NDArray[np.bool_]) -> gs.Variable:
        """Zeros where a mask says so."""
        return self.op("Mul", x, self.number(mask.astype(np.float64)))


def reduce_mean(m: Masked) -> gs.Variable:
    """A mean."""
    mean = m.op("ReduceMean", *m.node.inputs)
    copied = mean.inputs[0]
    for entry in m.surgery.before[m.node.name].attribute:
        copied.attrs[entry.name] = onnx.helper.get_attribute_value(entry)
    return m.op("Mul", mean, m.number(m.ratio))


def _normalized(
    m: Masked,
    x: Any,
    axes: list[int],
    ratio: Any,
    mask: NDArray[np.bool_],
    *,
    centred: bool,
    epsilon: float = 1e-5,
) -> gs.Variable:
    """``(x - mean) / sqrt(variance + epsilon)``, statistics of what is kept; without the mean if not ``centred``."""
    small = m.number(np.float32(m.attribute("epsilon", epsilon)))  # as the attribute has it
    if centred:
        x = m.keep(m.op("Sub", x, m.mean(x, axes, ratio)), mask)
    variance = m.mean(m.op("Mul", x, x), axes, ratio)
    return m.op("Div", x, m.op("Sqrt", m.op("Add", variance, small)))


def _over_last(
    m: Masked, *, centred: bool, x: Any = None, parameters: tuple[int, ...] = (1, 2), epsilon: float = 1e-5
) -> gs.Variable:
    """The last axes, scaled and shifted by ``parameters``; of ``x``, or of the first operand."""
    first = m.attribute("axis", -1) % m.rank
    mask = joined({axis: m.masks[axis] for axis in m.axes}, m.rank)
    y = _normalized(
        m,
        m.x if x is None else x,
        list(range(first, m.rank)),
        m.number(m.ratio),
        mask,
        centred=centred,
        epsilon=epsilon,
    )
    for op, operand in zip(
        ("Mul", "Add"), (m.node.inputs[i] for i in parameters if i < len(m.node.inputs)), strict=False
    ):
        if not operand.is_empty():
            y = m.op(op, y, operand)
    return y


def instance_norm(m: Masked) -> gs.Variable:
    """Also what exporters make of a group normalisation: an instance normalisation of blocks ``n g (c h w)``."""
    mask = joined({axis: m.masks[axis] for axis in m.axes}, m.rank)
    y = _normalized(m, m.x, list(range(2, m.rank)), m.number(m.ratio), mask, centred=True)
    channels = [1, -1, *([1] * (m.rank - 2))]
    for op, operand in zip(("Mul", "Add"), m.node.inputs[1:3], strict=False):
        y = m.op(op, y, m.op("Reshape", operand, m.integers(channels)))
    return y


def group_norm(m: Masked) -> gs.Variable | None:
    """``GroupNormalization``, unless whole groups go."""
    groups = m.attribute("num_groups", 1)
    kept = m.masks[1].reshape(groups, -1)
    if bool((kept.all(1) | ~kept.any(1)).all()):
        return None  # whole groups: the operator itself is right
    if set(m.axes) != {1}:
        raise ProofError(f"'GroupNormalization' (node '{m.node.name}') is cut along a spatial axis; protect its input")
    blocks = m.op("Reshape", m.x, m.integers([0, groups, kept.shape[1], -1]))
    ratio = m.number((kept.shape[1] / np.maximum(1, kept.sum(1))).reshape(1, groups, 1, 1))
    y = _normalized(m, blocks, [2, 3], ratio, kept.reshape(1, groups, -1, 1), centred=True)
    channels = [1, -1, *([1] * (m.rank - 2))]
    if m.opset < 21:  # scale and bias per group
        for op, operand in zip(("Mul", "Add"), m.node.inputs[1:3], strict=False):
            y = m.op(op, y, m.op("Reshape", operand, m.integers([1, groups, 1, 1])))
    y = m.op("Reshape", y, m.op("Shape", m.x))
    if m.opset >= 21:
        for op, operand in zip(("Mul", "Add"), m.node.inputs[1:3], strict=False):
            y = m.op(op, y, m.op("Reshape", operand, m.integers(channels)))
    return y


def mean_variance(m: Masked) -> gs.Variable:
    """``MeanVarianceNormalization``: its 1e-9 is added to the deviation, not to the variance."""
    axes = [axis % m.rank for axis in m.attribute("axes", (0, 2, 3))]
    mask = joined({axis: m.masks[axis] for axis in m.axes}, m.rank)
    ratio = m.number(m.ratio)
    x = m.keep(m.op("Sub", m.x, m.mean(m.x, axes, ratio)), mask)
    deviation = m.op("Sqrt", m.mean(m.op("Mul", x, x), axes, ratio))
    return m.op("Div", x, m.op("Add", deviation, m.number(1e-9)))


def layer_norm(m: Masked) -> gs.Variable:
    """``LayerNormalization``."""
    return _over_last(m, centred=True)


def rms_norm(m: Masked) -> gs.Variable:
    """``RMSNormalization``, under either name."""
    return _over_last(m, centred=False)


def skip_layer_norm(m: Masked) -> gs.Variable:
    """A layer normalisation of a sum, which the node gives as its last result."""
    return _over_last(m, centred=True, x=m.result(3), parameters=(2, 3), epsilon=1e-12)


def skip_rms_norm(m: Masked) -> gs.Variable:
    """The same without the mean."""
    return _over_last(m, centred=False, x=m.result(3), parameters=(2,))


def embed_layer_norm(m: Masked) -> gs.Variable:
    """A layer normalisation of the sum of three look-ups."""
    return _over_last(m, centred=True, x=m.result(2), parameters=(5, 6), epsilon=1e-12)
