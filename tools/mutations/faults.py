"""Faults of what ``slice-groups`` hands on: wrong slices, sizes, pins and values.

A fault returns what it changed, or ``None`` where the model offers nothing to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch
from zlib import crc32

import numpy as np

from graphprune.hosts.edits import Edits
from graphprune.hosts.host import Host
from graphprune.passes.slice_groups import SliceGroups, slice_edits
from tools.mutations.models import Case

Dice = np.random.Generator


def dice_of(model: str, fault: str, seed: int) -> Dice:
    """The draws of a trial."""
    return np.random.default_rng([seed, crc32(f"{model}/{fault}".encode())])


@dataclass(frozen=True)
class Planted:
    """What was changed.

    Attributes:
        text: For the reader.
        tensors: The stored tensors that differ from those of the right result, where tensors do.
    """

    text: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Edits with a fault in them."""

    edits: Edits
    planted: Planted


# -- wrong slices ----------------------------------------------------------------------------------------------------


def _with_slice(edits: Edits, tensor: str, axis: int, index: np.ndarray, text: str) -> Plan:
    slices = {**edits.slices, tensor: {**edits.slices[tensor], axis: index}}
    return Plan(replace(edits, slices=slices), Planted(f"{tensor}[{axis}]: {text}", (tensor,)))


def _site(edits: Edits, dice: Dice, only: Callable[[str], bool] = lambda name: True) -> tuple[str, int, Any] | None:
    """A stored tensor and an axis of it that is cut."""
    sites = [(name, axis, index) for name, axes in edits.slices.items() if only(name) for axis, index in axes.items()]
    return sites[int(dice.integers(len(sites)))] if sites else None


def wrong_unit(case: Case, edits: Edits, dice: Dice, only: Callable[[str], bool] = lambda name: True) -> Plan | None:
    """One kept position of one axis of one tensor is replaced by one that was removed."""
    if (found := _site(edits, dice, only)) is None:
        return None
    tensor, axis, index = found
    gone = np.setdiff1d(np.arange(case.analysis.graph.values[tensor].shape[axis]), index)
    if not gone.size:
        return None
    wrong = np.array(index)
    at, new = int(dice.integers(len(wrong))), int(dice.choice(gone))
    text = f"position {wrong[at]} became {new}"
    wrong[at] = new
    return _with_slice(edits, tensor, axis, wrong, text)


def other_order(case: Case, edits: Edits, dice: Dice) -> Plan | None:
    """Two kept positions of one axis of one tensor change places."""
    if (found := _site(edits, dice)) is None or len(found[2]) < 2:
        return None
    tensor, axis, index = found
    wrong = np.array(index)
    a, b = dice.choice(len(wrong), 2, replace=False)
    wrong[[a, b]] = wrong[[b, a]]
    return _with_slice(edits, tensor, axis, wrong, f"positions {wrong[b]} and {wrong[a]} changed places")


def shifted(case: Case, edits: Edits, dice: Dice) -> Plan | None:
    """The positions of one axis of one tensor are off by one."""
    if (found := _site(edits, dice)) is None:
        return None
    tensor, axis, index = found
    size = case.analysis.graph.values[tensor].shape[axis]
    return _with_slice(edits, tensor, axis, (np.array(index) + 1) % size, "all positions off by one")


def first_ones(case: Case, edits: Edits, dice: Dice) -> Plan | None:
    """One axis of one tensor keeps its first positions, as many as it should."""
    if (found := _site(edits, dice)) is None:
        return None
    tensor, axis, index = found
    return _with_slice(edits, tensor, axis, np.arange(len(index)), "the first positions")


def wrong_statistics(case: Case, edits: Edits, dice: Dice) -> Plan | None:
    """A mean or variance of a batch normalisation is that of another unit."""
    return wrong_unit(case, edits, dice, lambda name: name.endswith(("mean", "var")))


# -- wrong sizes and scales ------------------------------------------------------------------------------------------


def lost_pin(case: Case, edits: Edits, dice: Dice) -> Plan | None:
    """The scale of an attention follows the new head size."""
    if not edits.pins:
        return None
    gone = edits.pins[int(dice.integers(len(edits.pins)))]
    pins = tuple(pin for pin in edits.pins if pin != gone)
    return Plan(replace(edits, pins=pins), Planted(f"lost: {gone}"))


def wrong_pin(case: Case, edits: Edits, dice: Dice) -> Plan | None:
    """The scale of an attention is a little off."""
    if not edits.pins:
        return None
    at = int(dice.integers(len(edits.pins)))
    wrong = replace(edits.pins[at], value=edits.pins[at].value * 1.01)
    return Plan(replace(edits, pins=(*edits.pins[:at], wrong, *edits.pins[at + 1 :])), Planted(str(wrong)))


def wrong_size(case: Case, edits: Edits, dice: Dice) -> Plan | None:
    """A group count, a bound of a slice or a part of a reshape is off by one."""
    if not edits.sizes:
        return None
    at = int(dice.integers(len(edits.sizes)))
    right = edits.sizes[at]
    wrong = replace(right, new=right.new + (1 if right.new <= 1 or dice.random() < 0.5 else -1))
    return Plan(replace(edits, sizes=(*edits.sizes[:at], wrong, *edits.sizes[at + 1 :])), Planted(str(wrong)))


def lost_size(case: Case, edits: Edits, dice: Dice) -> Plan | None:
    """A size is left as it was."""
    if not edits.sizes:
        return None
    gone = edits.sizes[int(dice.integers(len(edits.sizes)))]
    sizes = tuple(each for each in edits.sizes if each != gone)
    return Plan(replace(edits, sizes=sizes), Planted(f"lost: {gone}"))


# -- wrong values ----------------------------------------------------------------------------------------------------


Values = Callable[[np.ndarray, Dice], tuple[np.ndarray, str]]


def _one(array: np.ndarray, dice: Dice, change: Callable[[Any], Any]) -> np.ndarray:
    wrong = np.array(array)
    at = int(dice.integers(wrong.size))
    wrong.reshape(-1)[at] = change(wrong.reshape(-1)[at])
    return wrong


def doubled_element(array: np.ndarray, dice: Dice) -> tuple[np.ndarray, str]:
    return _one(array, dice, lambda value: value * 2 if value else 1), "one element twice as large"


def zeroed_unit(array: np.ndarray, dice: Dice) -> tuple[np.ndarray, str]:
    wrong = np.array(array)
    axis = int(dice.integers(wrong.ndim))
    at = int(dice.integers(wrong.shape[axis]))
    wrong[(slice(None),) * axis + (at,)] = 0
    return wrong, f"zeros at {at} of axis {axis}"


def flipped_bit(array: np.ndarray, dice: Dice) -> tuple[np.ndarray, str]:
    """The highest bit of the fraction of one element: it changes by up to a third."""
    wrong = np.array(array, order="C")
    bits: Any = wrong.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[wrong.itemsize]).reshape(-1)
    at = int(dice.integers(bits.size))
    bits[at] ^= bits.dtype.type(1 << {2: 9, 4: 22, 8: 51}[wrong.itemsize])
    return wrong, "one bit of one element"


def lost_bias(array: np.ndarray, dice: Dice) -> tuple[np.ndarray, str]:
    return np.zeros_like(array), "all zeros"


def scaled_tensor(array: np.ndarray, dice: Dice) -> tuple[np.ndarray, str]:
    return array * array.dtype.type(1.01), "1 % larger"


def wrong_values(change: Values, only: Callable[[str, tuple[int, ...]], bool] = lambda name, shape: True) -> Any:
    """A fault that changes the values of one stored tensor of floats."""

    def plant(case: Case, host: Host, dice: Dice) -> tuple[Host, Planted] | None:
        values = host.graph().values
        names = [
            value.name
            for value in values.values()
            if value.stored and value.dtype in ("float32", "float16", "float64", "bfloat16") and value.shape
            if value.name in case.analysis.graph.values and only(value.name, value.shape)
        ]
        if not names:
            return None
        name = names[int(dice.integers(len(names)))]
        wrong, text = change(host.read(name), dice)
        return host.replaced({name: wrong}), Planted(f"{name}: {text}", (name,))

    return plant


EDITED: Mapping[str, Callable[[Case, Edits, Dice], Plan | None]] = {
    "unit": wrong_unit,
    "order": other_order,
    "shifted": shifted,
    "first": first_ones,
    "statistics": wrong_statistics,
    "pin-lost": lost_pin,
    "pin": wrong_pin,
    "size": wrong_size,
    "size-lost": lost_size,
}
"""Faults in the edits."""

VALUED: Mapping[str, Callable[[Case, Host, Dice], tuple[Host, Planted] | None]] = {
    "element": wrong_values(doubled_element),
    "zeroed": wrong_values(zeroed_unit),
    "bit": wrong_values(flipped_bit),
    "bias-lost": wrong_values(lost_bias, lambda name, shape: len(shape) == 1 and name.endswith(("bias", ".b"))),
    "scale": wrong_values(scaled_tensor),
}
"""Faults in stored values."""


@contextmanager
def planted_in_host(case: Case, name: str, seed: int) -> Iterator[Planted | None]:
    """While this is open, ``slice-groups`` hands on a host with a fault; ``None`` where there is nothing to plant."""
    dice = dice_of(case.name, name, seed)
    edits = slice_edits(case.analysis, case.kept)
    right = case.host.edited(edits)
    wrong, planted = right, None
    if name in EDITED:
        plan = EDITED[name](case, edits, dice)
        if plan is not None:
            wrong, planted = case.host.edited(plan.edits), plan.planted
    elif (found := VALUED[name](case, right, dice)) is not None:
        wrong, planted = found
    if planted is not None and planted.tensors and all(_equal(right, wrong, tensor) for tensor in planted.tensors):
        planted = None  # equal values stood in both places
    if name.startswith("pin") and planted is not None and _runs_alike(case, right, wrong):
        planted = None  # the new size implies the same scale
    if planted is None:
        yield None
        return
    with patch.object(SliceGroups, "run", lambda self, state: replace(state, host=wrong, done=state.done | self.gives)):
        yield planted


def _runs_alike(case: Case, a: Host, b: Host) -> bool:
    inputs = case.host.example_inputs(0)
    found = (host.run(inputs, double=True) for host in (a, b))
    return all(np.array_equal(x, y) for x, y in zip(*(each.values() for each in found), strict=True))


def _equal(a: Host, b: Host, tensor: str) -> bool:
    return bool(np.array_equal(a.read(tensor), b.read(tensor), equal_nan=True))
