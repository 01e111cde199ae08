"""Sizes for the dynamic axes of a model's inputs, and where each of them comes from.

What the user says goes first, then what the file itself says of its inputs in its metadata (exporters of detectors and
classifiers write ``imgsz = [320, 320]`` there), then what works for most models.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from graphprune.errors import OptionError
from graphprune.hosts.onnx.symbols import Known, Relations, Size, named_symbol, names_in, settle, symbols_in, value_of
from graphprune.suggest import meant

BATCH = 2
"""Assumed size of a dynamic first axis: not 1, so that it is told from axes that are broadcast."""
CHANNELS = 3
SPATIAL = 64
"""Assumed height and width of a dynamic image axis: survives five halvings."""
LENGTH = 16
"""Assumed size of any other dynamic axis."""
PAST = 8
"""Assumed length of a cache: not that of what is new."""

DECLARED, ASSUMED = "declared by the file", "assumed"
GIVEN, EXAMPLE, NAMED = "given (--shape)", "example inputs", "given (--size)"

_IMAGE_KEYS = (
    "imgsz", "img_size", "image_size", "imagesize", "img_shape", "image_shape", "input_size", "input_shape",
    "input_resolution", "resolution", "model_input_size", "crop_size",
)  # fmt: skip
"""Keys of metadata under which exporters write what images a model takes, the most telling first."""
_LIST = re.compile(r"[\[(]*\s*(\d{1,5}(?:\s*[,xX×]\s*\d{1,5}){0,3})\s*,?\s*[\])]*")
_NAMED = re.compile(r"['\"]?(height|width)['\"]?\s*:\s*(\d{1,5})\b")
_LARGEST = {"batch": 64, "channels": 1024, "side": 4096}
"""Larger sizes in metadata are not taken at their word."""
_LONGEST = 200
"""Characters of a text that may be a size."""
_COLOURS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class Binding:
    """The sizes of all inputs.

    Attributes:
        shapes: By input.
        sources: For each axis of each input where its size comes from: :data:`DECLARED`, :data:`GIVEN`,
            :data:`NAMED`, :data:`EXAMPLE`, the key of the metadata, what it follows from, or :data:`ASSUMED`.
    """

    shapes: dict[str, tuple[int, ...]]
    sources: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Stated:
    """What the metadata of a file say of its images, each with the key that says it: ``(size, "metadata 'imgsz'")``."""

    batch: tuple[int, str] | None = None
    channels: tuple[int, str] | None = None
    height: tuple[int, str] | None = None
    width: tuple[int, str] | None = None


def input_sizes(proto: onnx.ModelProto) -> dict[str, tuple[int | str | None, ...]]:
    """The declared sizes of the inputs: numbers, symbols, or ``None``; of tensors with a declared rank only."""
    found = {}
    for value in proto.graph.input:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            found[value.name] = tuple(_size(dim) for dim in value.type.tensor_type.shape.dim)
    return found


def left_open(model: onnx.ModelProto, given: Collection[str]) -> dict[str, tuple[int | str | None, ...]]:
    """The declared sizes of the inputs that have dynamic axes and are not among those whose sizes were given."""
    declared = input_sizes(model)
    return {n: sizes for n, sizes in declared.items() if n not in given and not all(isinstance(s, int) for s in sizes)}


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param if dim.dim_param not in ("", "?", "-1") else None


def stated(metadata: Mapping[str, str]) -> Stated:
    """Reads the metadata of a file; what is malformed, zero or out of all proportion is left out."""
    texts = {key.lower(): (key, value.strip()) for key, value in metadata.items() if len(value) <= _LONGEST}

    def number(key: str, most: int) -> tuple[int, str] | None:
        name, text = texts.get(key, ("", ""))
        size = int(text) if re.fullmatch(r"\d{1,5}", text) else 0
        return (size, f"metadata '{name}'") if 1 <= size <= most else None

    batch, channels = number("batch", _LARGEST["batch"]), number("channels", _LARGEST["channels"])
    height, width = number("height", _LARGEST["side"]), number("width", _LARGEST["side"])
    for key in _IMAGE_KEYS:
        name, text = texts.get(key, ("", ""))
        sides = _sides(text)
        if sides is not None and all(1 <= side <= _LARGEST["side"] for side in sides):
            source = f"metadata '{name}'"
            return Stated(batch, channels, (sides[0], source), (sides[1], source))
    if height is None and width is None and (stride := number("stride", _LARGEST["side"])):
        side = -(-SPATIAL // stride[0]) * stride[0]
        if side != SPATIAL:
            height = width = (side, f"{ASSUMED}, a multiple of {stride[1]}")
    return Stated(batch, channels, height, width)


def _sides(text: str) -> tuple[int, int] | None:
    """Height and width: of ``320``, ``[h, w]``, ``[c, h, w]`` or ``[n, c, h, w]`` (or colours last), or by name."""
    if named := dict(_NAMED.findall(text)):
        return (int(named["height"]), int(named["width"])) if len(named) == 2 else None
    match = _LIST.fullmatch(text)
    if match is None:
        return None
    numbers = [int(each) for each in re.findall(r"\d+", match.group(1))]
    if len(numbers) == 1:
        return numbers[0], numbers[0]
    if len(numbers) > 2 and numbers[-1] in _COLOURS and numbers[-3] not in _COLOURS:
        numbers = numbers[:-1]
    return numbers[-2], numbers[-1]


def bind(
    proto: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]] | None,
    examples: Iterable[str] = (),
    *,
    named: Mapping[str, int] | None = None,
    caches: Mapping[str, int] | None = None,
    relations: Relations | None = None,
) -> Binding:
    """Chooses sizes for the dynamic axes of all inputs.

    Args:
        proto: The model.
        shapes: What the user says, by input. A symbol has one size everywhere. Other dynamic axes get what follows from
            these sizes, what the file's metadata say of images, or else: a first axis :data:`BATCH`, of images
            :data:`CHANNELS` and :data:`SPATIAL`, of caches :data:`PAST`, and :data:`LENGTH`.
        examples: The names of those inputs of ``shapes`` whose shape is that of an example.
        named: What the user says, by symbol, or by what a symbol is (``past``).
        caches: Of inputs that are caches, the axis along which they grow.
        relations: What is known of the symbols beside what inputs declare.

    Raises:
        OptionError: An input or a symbol is unknown, a shape is not what the model declares, or sizes contradict.
    """
    declared, relations = input_sizes(proto), relations or Relations()
    given = dict(shapes or {})
    _require_fitting(proto, declared, given)
    asked = {name: EXAMPLE if name in set(examples) else GIVEN for name in given}
    symbols = symbols_in(declared)
    known, equations = _told(declared, given, asked, symbols)
    for word, size in (named or {}).items():
        symbol = named_symbol(word, symbols, relations.roles)
        if known.setdefault(symbol, (size, NAMED))[0] != size:
            raise OptionError(f"the size '{symbol}' is {size} here and {known[symbol][0]} elsewhere; give one size")
    says = stated({entry.key: entry.value for entry in proto.metadata_props})
    pictures = _pictures(declared, says) - {*(caches or {})}

    def assumed(name: str, axis: int) -> tuple[int, str]:
        sizes = declared[name]
        if axis == 0 and relations.batch:
            return relations.batch, ASSUMED
        if caches and axis and name not in pictures:
            size = PAST if axis == caches.get(name) else LENGTH
            most = [
                known[whole][0] for whole, parts in relations.sums.items() if whole in known and sizes[axis] in parts
            ]
            most.extend(value for text, value, _ in equations if sizes[axis] in names_in(text))
            return min(size, *(max(1, each // 2) for each in most if each <= size), size), ASSUMED
        return _default(axis, sizes, says, image=name in pictures)

    settle(known, equations, relations)
    places = [(name, axis) for name, sizes in declared.items() for axis in range(len(sizes))]
    late = [(name, axis) for name, axis in places if declared[name][axis] in relations.sums]
    for name, axis in (*(each for each in places if each not in late), *late):
        text = declared[name][axis]
        if isinstance(text, str) and text in symbols and text not in known:
            known[text] = assumed(name, axis)
            settle(known, equations, relations)
    values = {symbol: size for symbol, (size, _) in known.items()}

    def bound(name: str, axis: int) -> tuple[int, str]:
        size = declared[name][axis]
        if isinstance(size, int):
            return size, DECLARED
        if name in given:
            return given[name][axis], asked[name]
        if size is None:
            return assumed(name, axis)
        return known[size] if size in known else (_computed(name, size, values), size)

    found = {name: tuple(bound(name, axis) for axis in range(len(sizes))) for name, sizes in declared.items()}
    for name, shape in given.items():
        found.setdefault(name, tuple((size, asked[name]) for size in shape))
    return Binding(
        {name: tuple(size for size, _ in axes) for name, axes in found.items()},
        {name: tuple(source for _, source in axes) for name, axes in found.items()},
    )


def _told(
    declared: Mapping[str, Sequence[Size]],
    given: Mapping[str, tuple[int, ...]],
    asked: Mapping[str, str],
    symbols: Sequence[str],
) -> tuple[Known, list[tuple[str, int, str]]]:
    """What given shapes say of symbols, and of expressions of them.

    Raises:
        OptionError: They say two things of one.
    """
    known: Known = {}
    equations: list[tuple[str, int, str]] = []
    for name, shape in given.items():
        for want, size in zip(declared.get(name, ()), shape, strict=False):
            if not isinstance(want, str):
                continue
            if want not in symbols:
                equations.append((want, size, asked[name]))
            elif known.setdefault(want, (size, asked[name]))[0] != size:
                raise OptionError(
                    f"the size '{want}' of input '{name}' is {size} here and {known[want][0]} elsewhere; give one size"
                )
    return known, equations


def _computed(name: str, text: str, sizes: Mapping[str, int]) -> int:
    """What an expression is.

    Raises:
        OptionError: It is no size.
    """
    try:
        size = value_of(text, sizes)
    except ZeroDivisionError:
        size = 0
    if size < 1:
        parts = ", ".join(f"{part}={sizes[part]}" for part in sorted(names_in(text)))
        raise OptionError(f"the size '{text}' of input '{name}' is {size} with {parts}; give sizes that fit")
    return size


def _require_fitting(
    proto: onnx.ModelProto,
    declared: Mapping[str, tuple[int | str | None, ...]],
    given: Mapping[str, tuple[int, ...]],
) -> None:
    names = [value.name for value in proto.graph.input]
    for name, shape in given.items():
        if name not in names:
            raise OptionError(
                f"the model has no input {meant(name, names)}; expected one of {', '.join(map(repr, names))}"
            )
        want = declared.get(name)
        if want is None:
            continue
        text = "x".join(str(size) if size is not None else "?" for size in want)
        got = "x".join(map(str, shape))
        if len(want) != len(shape) or any(isinstance(w, int) and w != s for w, s in zip(want, shape, strict=True)):
            raise OptionError(f"input '{name}' has the shape {text or 'of a scalar'}, got {got}; give sizes that fit")


def _pictures(declared: Mapping[str, tuple[int | str | None, ...]], says: Stated) -> frozenset[str]:
    """The inputs that are images: of rank 4 with as many channels as images have; a lone one may have any number.

    A cache of keys and values, ``n heads length width``, is none.
    """
    four = {name: sizes for name, sizes in declared.items() if len(sizes) == 4}
    colours = {*_COLOURS, *((says.channels[0],) if says.channels else ())}
    return frozenset(
        name
        for name, sizes in four.items()
        if len(four) == 1 or not isinstance(sizes[_channels(sizes)], int) or sizes[_channels(sizes)] in colours
    )


def _channels(sizes: tuple[int | str | None, ...]) -> int:
    """The axis of the channels of an input of rank 4: the last one only if it holds colours and the second may not."""
    return 3 if sizes[3] in _COLOURS and not isinstance(sizes[1], int) else 1


def _default(axis: int, sizes: tuple[int | str | None, ...], says: Stated, *, image: bool) -> tuple[int, str]:
    """The size of a dynamic axis that the user says nothing of, and why."""
    symbol = sizes[axis]
    if axis == 0 or (isinstance(symbol, str) and "batch" in symbol.lower()):
        return says.batch or (BATCH, ASSUMED)
    if len(sizes) < 4:
        return LENGTH, ASSUMED
    channels = _channels(sizes) if len(sizes) == 4 else 1
    if axis == channels:
        return (says.channels if image else None) or (CHANNELS, ASSUMED)
    side = (says.height, says.width)[axis > (1 if channels == 3 else 2)] if image else None
    return side or (SPATIAL, ASSUMED)
