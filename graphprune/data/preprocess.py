"""How files become numbers: the options ``--preprocess KEY=VALUE``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from graphprune.brief import brief
from graphprune.data.specs import Array, InputSpec
from graphprune.errors import OptionError
from graphprune.suggest import meant, nearest

_CHOICES = {
    "fit": ("crop", "stretch", "pad"),
    "resample": ("bilinear", "bicubic", "nearest", "lanczos"),
    "color": ("rgb", "bgr"),
    "layout": ("", "nchw", "nhwc"),
}


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Options for images and text.

    An image is resized to the size that the model takes (where that is dynamic, to that of the example: give the
    input's shape), then ``(pixel * scale - mean) / std``.

    Attributes:
        fit: ``crop`` keeps proportions and cuts the middle out, ``pad`` keeps them and fills up with black, ``stretch``
            does not keep them.
        resize: Pixels of the short side before the middle is cut out; 0 means what the model takes.
        resample: ``bilinear``, ``bicubic``, ``nearest`` or ``lanczos``.
        scale: What pixels (0 to 255) are multiplied with; ``None`` means 1/255 for models that take floats, else 1.
        mean: Subtracted after scaling: one number, or one for each channel in the order of ``color``.
        std: What is then divided by: the same.
        color: ``rgb`` or ``bgr``; images with one channel are grey.
        layout: ``nchw`` or ``nhwc``; empty means by the shape.
        length: Tokens of a sequence where that axis is dynamic; 0 means as in the example.
    """

    __repr__ = brief

    fit: str = "crop"
    resize: int = 0
    resample: str = "bilinear"
    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: str = "rgb"
    layout: str = ""
    length: int = 0

    def numbers(self, pixels: Array, spec: InputSpec) -> Array:
        """What the model takes, ``h w c``, for pixels from 0 to 255 in RGB or grey.

        Raises:
            OptionError: ``mean`` or ``std`` has not one number for each channel.
        """
        channels = pixels.shape[-1]
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, channels):
                raise OptionError(
                    f"{name} has {len(getattr(self, name))} numbers, the model takes {channels} channels; give one "
                    "number, or one for each channel"
                )
        if self.color == "bgr":
            pixels = pixels[..., ::-1]
        floating = spec.dtype.kind == "f"
        scale = (1 / 255 if floating else 1.0) if self.scale is None else self.scale
        values: Array = (pixels * np.float64(scale) - np.array(self.mean)) / np.array(self.std)
        return values.astype(np.float32) if floating else np.rint(values).astype(np.int64)


def parse_preprocess(options: Iterable[str] | Mapping[str, object] | Preprocess | None) -> Preprocess:
    """Reads ``["mean=0.485,0.456,0.406", "fit=stretch"]``, or a mapping of the same.

    Raises:
        OptionError: An option is unknown or cannot be read.
    """
    if isinstance(options, Preprocess):
        return options
    pairs = list(options.items()) if isinstance(options, Mapping) else [o.partition("=")[::2] for o in options or ()]
    known = {field.name: field.default for field in fields(Preprocess)}
    values = {}
    for key, value in pairs:
        if key not in known:
            raise OptionError(
                f"unknown preprocessing option {meant(str(key), known)}; expected one of {', '.join(known)}"
            )
        values[key] = _read(key, value, known[key])
    made = Preprocess(**values)  # type: ignore[arg-type]
    if not all(made.std):
        raise OptionError("std of the preprocessing is zero; give the standard deviation of pixels after scaling")
    return made


def _read(key: str, value: object, default: object) -> object:
    try:
        if key in _CHOICES:
            if str(value).lower() not in _CHOICES[key]:
                near = [f"{key}={choice}" for choice in nearest(str(value), _CHOICES[key])]
                raise OptionError(
                    f"cannot read preprocessing option {meant(f'{key}={value}', near)}; expected one of "
                    f"{', '.join(choice for choice in _CHOICES[key] if choice)}"
                )
            return str(value).lower()
        if isinstance(default, tuple):
            parts = value.split(",") if isinstance(value, str) else np.atleast_1d(np.asarray(value)).tolist()
            return tuple(float(part) for part in parts)
        if isinstance(default, int):
            number = int(str(value))
            if number < 0:
                raise ValueError
            return number
        return _ratio(str(value))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        kind = "numbers, separated by commas" if isinstance(default, tuple) else "a number"
        raise OptionError(f"cannot read preprocessing option '{key}={value}'; expected {kind}") from error


def _ratio(text: str) -> float | None:
    """A number, or a fraction such as ``1/255``."""
    if text == "None":
        return None
    over, slash, under = text.partition("/")
    return float(over) / float(under) if slash else float(text)
