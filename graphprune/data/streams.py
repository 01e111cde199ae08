"""Samples from Python: loaders, data sets, lists and generators of arrays or tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np

from graphprune.data.samples import LABELS, Pick, Rows, Samples, of_arrays, require_small
from graphprune.data.specs import Array, InputSpec, constant, converted, joined, written
from graphprune.errors import OptionError
from graphprune.user_code import raising_as

_ADVICE = "give a file (.npy, .npz), which is mapped from disk"


def as_array(value: Any) -> Array:
    """An array or a tensor of any framework as an array; bfloat16 comes as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        value = value.numpy()
    return np.asarray(value)


def is_array(value: object) -> bool:
    """Whether a value is one array or tensor."""
    return isinstance(value, np.ndarray | np.generic) or (hasattr(value, "shape") and hasattr(value, "dtype"))


def of_iterable(source: Iterable[Any], specs: tuple[InputSpec, ...], where: str, samples: int, pick: Pick) -> Samples:
    """The first samples of an iterable (evenly spread ones where it can be indexed), held in memory.

    Items are batches of any size, or single samples: an array, a tuple in the order of the inputs, or a mapping by
    their names. One element more at the end of a tuple, or ``labels`` in a mapping, is what is right for the samples.
    Where inputs that have no samples, such as states, differ from item to item, items of the first one's size stay
    whole.

    Args:
        source: The iterable; it is gone through once.
        specs: The model's inputs.
        where: What it is, for messages.
        samples: How many samples are wanted.
        pick: Chooses among items that can be indexed.

    Raises:
        OptionError: An item does not fit, or there is none.
    """
    parts: dict[str, list[Array]] = {spec.name: [] for spec in specs if spec.batched}
    others: dict[str, list[Array]] = {spec.name: [] for spec in specs if not spec.batched}
    sizes: list[int] = []
    labels: list[Array] = []
    count = held = 0
    for number, item in _items(source, specs, where, samples, pick):
        here = f"item {number} of {where}"
        arrays, label = _named(item, specs, here)
        size = 0
        for spec in specs:
            if not spec.batched:
                held += _kept(others[spec.name], constant(arrays[spec.name], spec, here))
                continue
            array = arrays[spec.name]
            if array.ndim == len(spec.shape) - 1:
                array = array[None]
            array = joined(array, spec, here)
            if size and len(array) != size:
                raise OptionError(
                    f"{here} has {len(array)} samples for input '{spec.name}' and {size} for another; give as many "
                    "for each input"
                )
            size = len(array)
            if parts[spec.name] and parts[spec.name][0].shape[1:] != array.shape[1:]:
                raise OptionError(
                    f"{here} gives input '{spec.name}' the shape {written(array.shape[1:])}, items before it "
                    f"{written(parts[spec.name][0].shape[1:])}; make all samples alike (crop, or pack text)"
                )
            parts[spec.name].append(array)
            held += array.nbytes
        if label is not None:
            labels.append(np.atleast_1d(label))
        count += size
        sizes.append(size)
        require_small(held, where, _ADVICE)
        if count >= samples:
            break
    if not count:
        raise OptionError(f"{where} gives no samples; expected batches for {', '.join(map(str, specs))}")
    arrays = {name: np.concatenate(held) for name, held in parts.items()}
    known = np.concatenate(labels) if labels and len({label.shape[1:] for label in labels}) == 1 else None
    if known is not None and len(known) >= min(count, samples):
        arrays[LABELS] = known
    return _cut(arrays, others, sizes, specs, where, samples)


def _cut(
    arrays: dict[str, Array],
    others: Mapping[str, Sequence[Array]],
    sizes: Sequence[int],
    specs: tuple[InputSpec, ...],
    where: str,
    samples: int,
) -> Samples:
    """As many samples as are wanted; whole items, with what is theirs alone, where inputs differ from item to item.

    Args:
        arrays: Of all items, ``n ...``.
        others: The inputs without samples, of each item.
        sizes: How many samples each item has.
        specs: The model's inputs.
        where: What they come from.
        samples: How many are wanted.
    """
    fixed = {name: each[0] for name, each in others.items()}
    if not any(each is not held[0] for held in others.values() for each in held):
        return of_arrays({**{name: array[:samples] for name, array in arrays.items()}, **fixed}, specs, where)
    whole = [number for number, size in enumerate(sizes) if size == sizes[0]][: max(1, samples // sizes[0])]
    rows = np.flatnonzero(np.isin(np.repeat(np.arange(len(sizes)), sizes), whole))
    calls = {name: np.stack([held[number] for number in whole]) for name, held in others.items()}
    own = {name: array[rows] for name, array in arrays.items() if len(array) == sum(sizes)}
    return replace(of_arrays({**own, **fixed}, specs, where), unit=sizes[0], of_calls=calls)


def _kept(held: list[Array], array: Array) -> int:
    """Keeps one more value of an input, the first one where it is the same; how many bytes more that takes."""
    if held and (held[0].shape != array.shape or np.array_equal(held[0], array)):
        held.append(held[0])
        return 0
    held.append(array)
    return array.nbytes


def of_calls(source: Iterable[Any], specs: tuple[InputSpec, ...], where: str, calls: int, unit: int) -> Samples:
    """The first calls of an iterable, for a model whose samples see each other: each item stays what it is.

    Items of different lengths are cut to the shortest; inputs without samples, such as states, go with their item.
    Where items are single samples, ``unit`` of them in a row make a call.

    Args:
        source: The iterable; it is gone through once.
        specs: The model's inputs.
        where: What it is, for messages.
        calls: How many calls are wanted.
        unit: How many single samples make one.

    Raises:
        OptionError: An item does not fit, or there is none.
    """
    batched = [spec for spec in specs if spec.batched]
    rows = calls * unit

    def pick(count: int) -> Rows:
        return np.arange(min(count, rows), dtype=np.int64)

    items = _items(source, specs, where, rows, pick)
    head = list(islice(items, 1))
    first = [_named(item, specs, f"item 0 of {where}")[0][batched[0].name] for _, item in head]
    if not first or first[0].ndim < len(batched[0].shape) or len(first[0]) == 1:
        return of_iterable((item for _, item in chain(head, items)), specs, where, rows, pick)
    found = [_call(item, specs, f"item {number} of {where}") for number, item in islice(chain(head, items), calls)]
    unit = min(len(call[spec.name]) for call, _ in found for spec in batched)
    require_small(sum(array.nbytes for call, _ in found for array in call.values()), where, _ADVICE)
    arrays = {spec.name: np.concatenate([call[spec.name][:unit] for call, _ in found]) for spec in batched}
    if all(label is not None and len(label) >= unit for _, label in found):
        arrays[LABELS] = np.concatenate([label[:unit] for _, label in found if label is not None])
    others = {spec.name: [call[spec.name] for call, _ in found] for spec in specs if not spec.batched}
    varying = {name: np.stack(held) for name, held in others.items() if len({array.shape for array in held}) == 1}
    same = {name: held[0] for name, held in others.items()}
    return replace(of_arrays({**arrays, **same}, specs, where), unit=unit, of_calls=varying)


def _call(item: Any, specs: tuple[InputSpec, ...], here: str) -> tuple[dict[str, Array], Array | None]:
    """An item as inputs, and its labels."""
    arrays, label = _named(item, specs, here)
    call = {
        spec.name: converted(joined(arrays[spec.name], spec, here), spec, here)
        if spec.batched
        else constant(arrays[spec.name], spec, here)
        for spec in specs
    }
    sizes = {len(call[spec.name]) for spec in specs if spec.batched}
    if len(sizes) > 1:
        raise OptionError(
            f"{here} has {max(sizes)} samples for one input and {min(sizes)} for another; give as many for each"
        )
    return call, None if label is None else np.atleast_1d(label)


def _items(
    source: Iterable[Any], specs: tuple[InputSpec, ...], where: str, samples: int, pick: Pick
) -> Iterator[tuple[int, Any]]:
    """Items with their numbers; of a data set or a list as many as are wanted, spread over all of it."""
    indexable = isinstance(source, Sequence) or (hasattr(source, "__getitem__") and hasattr(source, "__len__"))
    advice = "mend the code that gives the data"
    with raising_as(OptionError, where, advice):
        iterator = enumerate(source) if not indexable else _spread(source, specs, where, samples, pick)
    while True:
        with raising_as(OptionError, where, advice):
            pair = next(iterator, None)
        if pair is None:
            return
        yield pair


def _spread(
    source: Any, specs: tuple[InputSpec, ...], where: str, samples: int, pick: Pick
) -> Iterator[tuple[int, Any]]:
    """Items of a data set or a list of single samples, as many as are wanted; all items of a list of batches."""
    count = len(source)
    if count > samples:
        first, _ = _named(source[0], specs, f"item 0 of {where}")
        spec = next(spec for spec in specs if spec.batched)
        if first[spec.name].ndim < len(spec.shape):
            return ((int(i), source[int(i)]) for i in pick(count))
    return ((i, source[i]) for i in range(count))


def _named(item: Any, specs: tuple[InputSpec, ...], here: str) -> tuple[dict[str, Array], Array | None]:
    """The arrays of an item by input, and its labels."""
    names = [spec.name for spec in specs]
    label: Any = None
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], tuple | list | Mapping):
        item, label = item
    if isinstance(item, Mapping):
        if missing := [name for name in names if name not in item]:
            raise OptionError(
                f"{here} has no '{missing[0]}'; it has {', '.join(map(repr, item))}, and the model takes "
                f"{', '.join(map(str, specs))}; use the inputs' names as keys"
            )
        label = item.get(LABELS, label) if LABELS not in names else label
        values = [item[name] for name in names]
    elif isinstance(item, tuple | list):
        values = list(item)
        if len(values) == len(names) + 1:
            *values, label = values
        if len(values) != len(names):
            raise OptionError(
                f"{here} has {len(item)} elements, the model takes {', '.join(map(str, specs))}; "
                "give one element for each input, in this order, or a mapping by name"
            )
    else:
        values = [item]
        if len(names) != 1:
            raise OptionError(
                f"{here} is a '{type(item).__name__}', the model takes {', '.join(map(str, specs))}; "
                "give a tuple in this order, or a mapping by name"
            )
    try:
        arrays = {name: as_array(value) for name, value in zip(names, values, strict=True)}
    except (TypeError, ValueError) as error:
        raise OptionError(f"{here} is no array: {error}; give arrays or tensors") from error
    for spec in specs:
        if arrays[spec.name].dtype.kind in "OUS" and spec.dtype.kind not in "OUS":
            kind = type(values[names.index(spec.name)]).__name__
            raise OptionError(f"{here} gives input '{spec.name}' a '{kind}'; give arrays or tensors")
    return arrays, None if label is None else as_array(label)
