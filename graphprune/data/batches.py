"""Opens calibration data: from a file, a folder, a text or Python, to batches that fit a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.brief import brief, written
from graphprune.data.apart import EIGHTH, JUDGED, filled, required, spared
from graphprune.data.calls import call_of, rows_interact, too_few, whole_calls
from graphprune.data.classes import assigned, read_labels
from graphprune.data.preprocess import parse_preprocess
from graphprune.data.samples import Grouping, Rows, Samples, made_up
from graphprune.data.sources import open_source
from graphprune.data.specs import Array, InputSpec, Model, batch_of, require_batch_size, specs_of
from graphprune.errors import GraphpruneError, OptionError
from graphprune.files import is_there
from graphprune.user_code import is_object_name

SAMPLES = 256
"""How many samples are used where nothing else is said."""
BATCH_SIZE = 8
"""Samples of a batch where the model takes any number."""


@dataclass(frozen=True)
class Inputs:
    """Where inputs come from, and how files become numbers; ``calibration=`` and ``evaluate=`` take one.

    Attributes:
        source: See :func:`open_batches`.
        samples: At most so many samples; ``None`` means as many as are used otherwise: for evaluation all.
        batch_size: Samples of a batch, where the model takes any number; of a call, where they see each other.
        tokenizer: For texts: the path of a ``tokenizer.json`` or of a tokenizer's folder, or a tokenizer.
        preprocess: For images and texts: see :class:`Preprocess`, as options or as ``["mean=127", "std=128"]``.
        labels: For images in one folder for each class: which is which, see :func:`open_batches`.
    """

    __repr__ = brief

    source: Any
    samples: int | None = None
    batch_size: int | None = None
    tokenizer: Any = None
    preprocess: Any = None
    labels: Any = None


class Batches:
    """Batches of inputs that fit a model: a sequence that can be gone through again and again, read as it is used.

    Each batch has an array for every input of the model, of the type that it has there. Where the model takes any
    number of samples, the last batch may be smaller; where it does not, a last short group is dropped, or, where
    ``padded``, filled up with its last sample.

    Attributes:
        samples: How many samples there are in all, without filling.
        batch_size: Samples of a full batch.
        source: What they come from, for messages.
        random: Whether they are made up: statistics of them say little, and the report says so.
        labels: What is right for each of the samples, in order, if the source says so.
        classes: Where labels come from the names of folders: the class of each.
        unit: How many samples stay together, in order, since they see each other in the model; 1: they do not.
        flexible: Whether the model takes any number of samples at a time.
    """

    def __init__(
        self,
        samples: Samples,
        specs: tuple[InputSpec, ...],
        rows: Rows,
        grouping: Grouping,
        *,
        spare: int = 0,
    ) -> None:
        self._data, self._specs, self._rows, self._grouping = samples, specs, rows, grouping
        self.samples = len(rows)
        self.batch_size = grouping.size
        self.source = samples.where
        self._digests: dict[int, str] = {}
        self.random, self.flexible = grouping.random, grouping.flexible
        self.labels: Array | None = None if samples.labels is None else np.asarray(samples.labels[rows])
        self.classes: dict[str, int] = {}
        self._spare = spare
        self.unit = max(1, samples.unit)
        self._parts: dict[bool, tuple[Batches, Batches | None]] = {}

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __repr__(self) -> str:
        return written(
            self, source=self.source, samples=self.samples, batch_size=self.batch_size,
            inputs=tuple(map(str, self._specs)), labels=self.labels is not None, random=self.random,
        )  # fmt: skip

    def __getitem__(self, index: int) -> dict[str, Array]:
        """One batch, by number from 0."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        batch = self._read(index % len(self))
        if index % len(self) not in self._digests:
            self._digests[index % len(self)] = _digest_of(batch)
        return batch

    def _read(self, index: int) -> dict[str, Array]:
        start = index * self.batch_size
        rows = self._rows[start : start + self.batch_size]
        if self._grouping.padded and len(rows) < self.batch_size:
            rows = np.concatenate([rows, np.repeat(rows[-1:], self.batch_size - len(rows))])
        of_call = {name: calls[rows[0] // self.unit] for name, calls in self._data.of_calls.items()}
        found = {**self._data.fixed, **of_call, **self._data.read(rows)}
        return {spec.name: found[spec.name] for spec in self._specs}

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (self[i] for i in range(len(self)))

    def take(self, numbers: Array) -> dict[str, Array]:
        """Some of the samples in one batch, by number from 0; inputs that are the same for every batch as they are."""
        found = {**self._data.fixed, **self._data.read(self._rows[numbers])}
        return {spec.name: found[spec.name] for spec in self._specs}

    def labels_by(self, classes: Mapping[str, int]) -> Array | None:
        """Labels that are numbers of folders as classes of these; none where there are none."""
        return np.array(list(classes.values()))[self.labels] if classes and self.labels is not None else None

    @property
    def shared(self) -> frozenset[str]:
        """Names of the inputs that are the same for every batch."""
        return frozenset(self._data.fixed)

    def part(self, numbers: Sequence[int]) -> Batches:
        """Some of the batches, by number from 0, rising; their order stays."""
        size = self.batch_size
        at = np.concatenate([np.arange(number * size, min((number + 1) * size, self.samples)) for number in numbers])
        return self._taken(at, size)

    def in_pieces(self, numbers: Sequence[int], most: int) -> Batches:
        """The samples of some of the batches in up to ``most`` smaller ones, where the model takes any number."""
        part = self.part(numbers)
        size = min(self.batch_size, max(1, part.samples // most))
        return part._taken(np.arange(part.samples), size) if self.flexible and self.unit == 1 else part

    def some(self, at: Array) -> Batches:
        """Some of the samples, by number from 0, rising, where the model takes any number of them."""
        return self._taken(at, min(self.batch_size, len(at)))

    def _taken(self, at: Array, size: int) -> Batches:
        """Some of the samples, by their positions, in batches of some size."""
        some = Batches(self._data, self._specs, self._rows[at], replace(self._grouping, size=size))
        some.labels, some.classes = None if self.labels is None else self.labels[at], self.classes
        return some

    def unseen(self, most: int) -> Batches | None:
        """Full batches of the source's other samples, at most ``most``, in order; ``None`` if there is not one.

        There are some where the source can be read in any order and holds more than was asked for.
        """
        if self.random:
            return None
        size = self.batch_size // self.unit
        left = np.setdiff1d(np.arange(self._data.count // self.unit), self._rows[:: self.unit] // self.unit)
        spread = left[:: max(1, len(left) // (most * size))]  # from all of the source
        n = min(most, len(spread) // size)
        if not n:
            return None
        rows = whole_calls(spread[: n * size], self.unit)
        return Batches(self._data, self._specs, rows, replace(self._grouping, padded=False))

    def set_apart(self, *, needed: bool = False) -> tuple[Batches, Batches | None]:
        """Batches to fit to, and others to judge the finished model by, which nothing else reads.

        The others are samples of the source that were not drawn, where it has some; else one in eight of these, unless
        as many were asked for as there are; ``None`` where there are too few. The same two at every call.

        Args:
            needed: Whether some have to be kept: then one batch in eight is, at least one, where there are two. Of
                fewer and larger ones as many samples; what is left fills its last batch up with samples that it has.
        """
        if needed not in self._parts:
            others = self.unseen(max(EIGHTH, JUDGED // self.batch_size))
            spare = self._spare
            if needed and not spare:
                spare = required(self.samples, self.batch_size, single=self.unit == 1) // self.unit
            if spare and others is None and not self.random:
                held = np.zeros(self.samples // self.unit, np.bool_)
                step = len(held) // spare
                held[step - 1 :: step] = True
                held[np.flatnonzero(held)[spare:]] = False
                self._parts[needed] = self._part(np.repeat(~held, self.unit)), self._part(np.repeat(held, self.unit))
            else:
                self._parts[needed] = self, others
        return self._parts[needed]

    def distinct(self, size: int) -> Batches:
        """The samples each once, in batches of up to ``size``, where the model takes any number of them."""
        _, at = np.unique(self._rows, return_index=True)
        return self._taken(np.sort(at), min(size, len(at)))

    def _part(self, which: Array) -> Batches:
        at = np.flatnonzero(which)
        if not self.flexible and self.unit == 1:
            at = filled(at, self.batch_size)
        rows = self._rows[at]
        size = min(self.batch_size, len(rows))
        part = Batches(self._data, self._specs, rows, replace(self._grouping, size=size))
        part.labels = None if self.labels is None else self.labels[at]
        part.classes = self.classes
        return part

    def digest(self, numbers: Iterable[int]) -> str:
        """A digest of names, types, shapes and values of some batches; reads those that have not been read yet."""
        digest = hashlib.sha256()
        for number in numbers:
            if number not in self._digests:
                self[number]
            digest.update(self._digests[number].encode())
        return digest.hexdigest()

    def forget_digests(self) -> None:
        """Takes digests anew: arrays of the user's may have changed in place since they were read."""
        self._digests.clear()
        for part in chain.from_iterable(self._parts.values()):
            if part is not None and part is not self:
                part.forget_digests()

    @property
    def fingerprint(self) -> str:
        """The digest of all batches."""
        return self.digest(range(len(self)))


def set_apart(batches: Batches | None, *, needed: bool = False) -> tuple[Batches | None, Batches | None]:
    """:meth:`Batches.set_apart` of what may not be there."""
    return (None, None) if batches is None else batches.set_apart(needed=needed)


def open_batches(
    source: Any,
    host: Model,
    *,
    samples: int | None = SAMPLES,
    batch_size: int | None = None,
    tokenizer: Any = None,
    preprocess: Any = None,
    labels: Any = None,
    seed: int = 0,
    padded: bool = False,
) -> Batches:
    """Opens inputs of the user's as batches that fit a model. The model is tried on the first one.

    Args:
        source: One of

            - a ``.npz`` file or a mapping of arrays: ``n ...`` by the names of the inputs (``labels`` for evaluation);
              a ``.npy`` file or an array, for models with one input. Files are mapped, not loaded;
            - a folder of images, for models with one input of images;
            - any other file: a text in UTF-8, with ``tokenizer``, for models that take tokens;
            - ``"package.module:attribute"``: a function that returns one of these, or the thing itself;
            - an iterable (a ``DataLoader``, a data set, a list, a generator) of arrays or tensors, of tuples in the
              order of the inputs or of mappings by name, each a batch of any size or a sample. What is used of it is
              held in memory;
            - ``"random"`` or ``None``: made-up inputs, see :meth:`Host.example_inputs`;
            - :class:`Inputs`, which brings its own options; :class:`Batches`, which are returned as they are.
        host: The model.
        samples: At most so many are used, drawn at random from what can be indexed; ``None`` means all.
        batch_size: Samples of a batch, where the model takes any number (else :data:`BATCH_SIZE`). Of a model whose
            samples see each other, how many make a call (else an item of an iterable, or as many as the example has).
        tokenizer: For texts: a ``tokenizer.json``, a tokenizer's folder, or a tokenizer; else that of a checkpoint.
        preprocess: For images and texts: see :class:`Preprocess`.
        labels: For images in one folder for each class, the class of each folder: a mapping from names to numbers from
            0, the names in order, or the path of a JSON file with either or of a text with one name in each line. By
            default folders that are numbers count as numbers, others by name.
        seed: Of the choice of samples, and of made-up ones.
        padded: Whether a last short group is filled up rather than dropped, where the size of batches is fixed.

    Raises:
        OptionError: The data cannot be read or does not fit the model.
    """
    if isinstance(source, Batches):
        source.forget_digests()
        return source
    if isinstance(source, Inputs):
        return open_batches(
            source.source,
            host,
            samples=samples if source.samples is None else source.samples,
            batch_size=source.batch_size,
            tokenizer=source.tokenizer,
            preprocess=source.preprocess,
            labels=source.labels if labels is None else labels,
            seed=seed,
            padded=padded,
        )
    require_inputs(Inputs(source, samples, batch_size))
    specs, tokenizer = specs_of(host), tokenizer or getattr(host, "tokenizer", None)
    options, named = parse_preprocess(preprocess), read_labels(labels)
    random = source is None or (isinstance(source, str) and source == "random")
    rng = np.random.default_rng(seed)
    limit = samples or (SAMPLES if random else int(np.iinfo(np.int64).max))

    size, flexible = batch_of(specs, batch_size, BATCH_SIZE)
    together = flexible and rows_interact(host, specs)
    unit = 1
    if together:
        flexible, unit = False, batch_size or call_of(specs, BATCH_SIZE)
        size = unit

    def pick(count: int) -> Rows:
        calls = count // unit
        if calls <= limit:
            return np.arange(count if padded else calls * unit, dtype=np.int64)
        return whole_calls(np.sort(rng.choice(calls, limit, replace=False)), unit)

    if random:
        data = made_up(host, specs, limit, seed)
    else:
        data = open_source(source, specs, limit, pick, tokenizer, options, unit=unit if batch_size is None else 1)
    if data.unit:
        size = unit = data.unit
        flexible = False
    data = replace(data, unit=unit)
    if not data.count:
        raise OptionError(f"{data.where} holds no samples; expected some for {', '.join(map(str, specs))}")
    rows = np.arange(limit if flexible else data.count) if random else pick(data.count)
    if not flexible and not padded:
        rows = rows[: len(rows) // size * size]
        if not len(rows):
            raise OptionError(too_few(data.where, data.count, size, together=together))
    spare = spared(len(rows) // unit, size // unit, flexible=flexible)
    spare = spare if limit == SAMPLES or len(rows) // unit < limit else 0
    size = min(size, len(rows)) if flexible else size
    spare = 0 if padded else spare
    grouping = Grouping(size, random=random, padded=padded, flexible=flexible)
    batches = Batches(data, specs, rows, grouping, spare=spare)
    outputs = {} if random else _try(host, batches)
    if data.classes:
        found = assigned(data.classes, outputs, named, batches.source, strict=padded or named is not None)
        batches.classes, batches.labels = found, batches.labels_by(found)
    elif named is not None:
        raise OptionError(f"{data.where} has no folders of classes that labels could name; leave the labels out")
    return batches


def require_inputs(inputs: Inputs) -> None:
    """Refuses what can be the inputs of no model: a path that leads nowhere, numbers and options that mean nothing.

    Raises:
        OptionError: It cannot.
    """
    if inputs.samples is not None and inputs.samples < 1:
        raise OptionError(f"cannot use {inputs.samples} samples; give a number of 1 or more")
    require_batch_size(inputs.batch_size)
    parse_preprocess(inputs.preprocess)
    read_labels(inputs.labels)
    source = inputs.source
    if not isinstance(source, str | os.PathLike) or source == "random" or is_there(Path(source)):
        return
    if not is_object_name(os.fspath(source)):
        raise OptionError(
            f"no data '{os.fspath(source)}'; expected an .npz or .npy file, a folder of images, a text file, "
            "'package.module:attribute' or 'random'"
        )


def _digest_of(batch: Mapping[str, Array]) -> str:
    """The digest of names, types, shapes and values of a batch."""
    digest = hashlib.sha256()
    for name, array in batch.items():
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    return digest.hexdigest()


def _try(host: Model, batches: Batches) -> dict[str, Array]:
    """Runs the model on the first batch, which finds what shapes and types do not tell (tokens out of range)."""
    batch = batches[0]
    try:
        return host.run(batch)
    except Exception as error:  # executors raise whatever an operator raises
        text = str(error).strip() or repr(error)
        reason = text.partition("; ")[0] if isinstance(error, GraphpruneError) else text.splitlines()[0]
        raise OptionError(
            f"the model does not run on the first batch of {batches.source}: {reason}; "
            "check that the values are what the model takes (tokens within its vocabulary, sizes that go together)"
        ) from error
