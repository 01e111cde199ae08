"""Which folder of images is which class of a classifier: by number, by order, or as the user says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from graphprune.errors import OptionError
from graphprune.files import read_whole
from graphprune.suggest import meant

_SHOWN = 12
"""At most so many folders are named in a sentence."""


def in_order(names: Iterable[str]) -> list[str]:
    """Names of folders in the order of their classes: as numbers if all of them are, else as texts.

    Example:
        >>> in_order(["10", "9", "0"])
        ['0', '9', '10']
    """
    names = list(names)
    return sorted(names, key=lambda name: (int(name), name)) if _numbers(names) else sorted(names)


def class_of_each(
    names: Sequence[str], n_classes: int | None, labels: Mapping[str, int] | None, where: str
) -> dict[str, int]:
    """The class of each folder, from 0.

    Without ``labels`` the folders count up in their order. Where they are fewer than the classes and are called by
    numbers that are classes, they are these: a test set may lack some.

    Args:
        names: The folders' names in order.
        n_classes: How many classes the model tells apart; ``None`` where its output does not say.
        labels: The class of each name, from :func:`read_labels`.
        where: What has the folders, for messages.

    Raises:
        OptionError: A folder has no class, or there are more folders than classes.
    """
    if labels is None:
        if n_classes is not None and len(names) > n_classes:
            raise OptionError(
                f"{where} has {len(names)} folders ({_listed(names)}), and the model's output {n_classes} classes; "
                "expected one folder for each class: leave out those that are none, or say which folder is which class "
                "(--labels FILE)"
            )
        subset = n_classes is not None and len(names) < n_classes and _numbers(names)
        if n_classes is not None and subset and all(int(name) < n_classes for name in names):
            return {name: int(name) for name in names}
        return {name: i for i, name in enumerate(names)}
    if missing := [name for name in names if name not in labels]:
        raise OptionError(
            f"the labels do not name {len(missing)} of the {len(names)} folders of {where}: {meant(missing[0], labels)}"
            f"{', ...' if len(missing) > 1 else ''}; give each folder a class, by its name"
        )
    for name in names:
        if n_classes is not None and labels[name] >= n_classes:
            raise OptionError(
                f"the labels say that folder '{name}' of {where} is class {labels[name]}, and the model's output has "
                f"{n_classes} classes, from 0; correct the labels"
            )
    return {name: labels[name] for name in names}


def assigned(
    names: tuple[str, ...],
    outputs: Mapping[str, NDArray[Any]],
    named: dict[str, int] | None,
    where: str,
    *,
    strict: bool,
) -> dict[str, int]:
    """The class of each folder, by what a model gives; none where only inputs are wanted and labels misfit.

    Raises:
        OptionError: They misfit, and labels are wanted (``strict``).
    """
    scores = next(iter(outputs.values()), None)
    n_classes = None if scores is None or scores.ndim != 2 or scores.shape[1] < 2 else scores.shape[1]
    try:
        return class_of_each(names, n_classes, named, where)
    except OptionError:
        if strict:
            raise
        return {}


def read_labels(source: Any) -> dict[str, int] | None:
    """The class of each name: a mapping, a sequence of names, or a file with either.

    A file is a JSON object (``{"cat": 0}`` or ``{"0": "cat"}``), a JSON list of names, or a text with one name in each
    line, the first of which is class 0.

    Raises:
        OptionError: It cannot be read, or gives a name twice or no class.
    """
    if source is None:
        return None
    where, data = "the labels", source
    if isinstance(source, str | os.PathLike):
        where, data = f"labels '{source}'", _parsed(Path(source))
    if isinstance(data, Mapping):
        pairs = [(str(key), value) for key, value in data.items()]
        if all(isinstance(value, str) for _, value in pairs) and _numbers([key for key, _ in pairs]):
            pairs = [(value, int(key)) for key, value in pairs]
    elif isinstance(data, Sequence) and all(isinstance(name, str) for name in data):
        pairs = [(name, i) for i, name in enumerate(data)]
    else:
        pairs = []
    if not pairs or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for _, n in pairs):
        raise OptionError(
            f"{where} do not say which name is which class; expected a JSON object from names to classes from 0, or a "
            "text with one name in each line"
        )
    if len({name for name, _ in pairs}) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in {other for other, _ in pairs[:i]})
        raise OptionError(f"{where} name '{twice}' twice; give each name one class")
    return dict(pairs)


def classes_sentence(classes: Mapping[str, int], where: str) -> str:
    """A sentence that says which folder was taken for which class."""
    shown = ", ".join(f"'{name}' is {n}" for name, n in list(classes.items())[:_SHOWN])
    rest = f", and {len(classes) - _SHOWN} more (--json lists all)" if len(classes) > _SHOWN else ""
    return f"the folders of {where} were taken for these classes: {shown}{rest}; --labels FILE says it otherwise"


def _parsed(path: Path) -> Any:
    advice = "give a JSON object, or a text with one name in each line"
    try:
        text = read_whole(path, OptionError, "labels", advice).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"cannot read labels '{path}': it is no text in UTF-8; {advice}") from error
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"cannot read labels '{path}' as JSON: {error}; correct the file") from error
    return [line.strip() for line in text.rstrip().splitlines()]


def _numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() and len(name) < 19 for name in names)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")
