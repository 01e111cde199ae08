"""Samples from a folder of images, decoded when they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from graphprune.bounds import present
from graphprune.data.classes import in_order
from graphprune.data.preprocess import Preprocess
from graphprune.data.samples import Rows, Samples
from graphprune.data.specs import Array, InputSpec, converted, written
from graphprune.errors import BoundError, GraphpruneError, OptionError, first_line

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_BYTES_OF_PIXEL = 12
"""Three images of four bytes a pixel: the decoded one, and two steps on the way to the mode that is wanted."""
_EIGHT_BIT = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "La", "RGBa"})


def of_folder(folder: Path, specs: tuple[InputSpec, ...], where: str, preprocess: Preprocess) -> Samples:
    """Samples of all images in a folder and the folders in it, by path; folders of classes give labels.

    Args:
        folder: The folder. Where every image lies in a folder below it, the numbers of these (from 0, in the order of
            :func:`graphprune.data.classes.in_order`) are the labels.
        specs: The model's inputs: one with images, ``n c h w`` or ``n h w c``.
        where: What it is, for messages.
        preprocess: How pixels become numbers.

    Raises:
        OptionError: There are no images, the model does not take images, or Pillow is not installed.
    """
    if len(specs) != 1:
        raise OptionError(
            f"{where} is a folder of images and the model takes {', '.join(map(str, specs))}; "
            "give an .npz file with an array for each"
        )
    spec = specs[0]
    height, width, channels, first = _layout(spec, preprocess.layout, where)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise OptionError(f"{where} holds no images; expected files that end in {', '.join(sorted(SUFFIXES))}")
    require_pillow()

    def read(rows: Rows) -> dict[str, Array]:
        images = [preprocess.numbers(decoded(files[row], height, width, channels, preprocess), spec) for row in rows]
        batch = np.stack(images)
        return {spec.name: converted(batch.transpose(0, 3, 1, 2) if first else batch, spec, where)}

    names, labels = _classes(folder, files)
    return Samples(len(files), read, where, labels=labels, classes=names)


def _classes(folder: Path, files: list[Path]) -> tuple[tuple[str, ...], Array | None]:
    """The folders of classes in their order, and for each image the number of its own."""
    parts = [path.relative_to(folder).parts for path in files]
    names = in_order({each[0] for each in parts})
    if any(len(each) < 2 for each in parts) or len(names) < 2:
        return (), None
    numbers = {name: i for i, name in enumerate(names)}
    return tuple(names), np.array([numbers[each[0]] for each in parts])


def require_pillow() -> None:
    """Raises an :class:`OptionError` that says how to install Pillow, where it is not."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise OptionError("reading images needs Pillow; pip install pillow") from error


def _layout(spec: InputSpec, layout: str, where: str) -> tuple[int, int, int, bool]:
    """Height, width, channels, and whether channels come first."""
    if len(spec.shape) == 4 and spec.dtype.kind in "fiu":
        _, second, third, fourth = spec.shape
        if layout != "nhwc" and second in (1, 3):
            return third, fourth, second, True
        if layout != "nchw" and fourth in (1, 3):
            return second, third, fourth, False
    raise OptionError(
        f"{where} is a folder of images and input '{spec.name}' takes {written(spec.shape)} of type {spec.dtype}"
        f"{f' ({layout} is asked for)' if layout else ''}; expected n x c x h x w or n x h x w x c with 1 or 3 channels"
    )


def decoded(path: Path, height: int, width: int, channels: int, preprocess: Preprocess) -> Array:
    """The pixels of an image, ``h w c``, 0 to 255, resized and cropped.

    Raises:
        OptionError: The file is no image, or none with 8 bits for a channel.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in _EIGHT_BIT:
                raise OptionError(
                    f"image '{path}' has pixels of type '{image.mode}'; expected 8 bits for each channel: convert it, "
                    "or give the data as an .npz file"
                )
            image.draft("RGB", (2 * width, 2 * height))  # JPEG files can be decoded smaller
            _require_affordable(image.size, f"image '{path}'")
            pixels: Any = _opaque(image, "L" if channels == 1 else "RGB")
    except GraphpruneError:
        raise
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise OptionError(f"cannot read image '{path}': {first_line(error)}; remove or replace it") from error
    method = Image.Resampling[preprocess.resample.upper()]
    if preprocess.fit == "stretch":
        pixels = pixels.resize((width, height), method)
    else:
        larger = preprocess.fit == "crop"
        ratio = (max if larger else min)(width / pixels.width, height / pixels.height)
        if larger and preprocess.resize:
            ratio = preprocess.resize / min(pixels.width, pixels.height)
        size = (max(1, round(pixels.width * ratio)), max(1, round(pixels.height * ratio)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        if larger and (left < 0 or top < 0):
            raise OptionError(
                f"resize={preprocess.resize} makes image '{path}' {size[0]}x{size[1]}, smaller than the model's "
                f"{width}x{height}; give a larger one"
            )
        _require_affordable(size, f"resize={preprocess.resize or min(height, width)} makes an image of '{path}' that")
        pixels = pixels.resize(size, method).crop((left, top, left + width, top + height))
    return np.asarray(pixels, dtype=np.uint8).reshape(height, width, channels)


def _require_affordable(size: tuple[int, int], what: str) -> None:
    """Refuses an image before it is decoded or made larger than memory may be.

    Raises:
        BoundError: It takes more than :attr:`graphprune.bounds.Bounds.memory`.
    """
    n_bytes = size[0] * size[1] * _BYTES_OF_PIXEL
    if n_bytes > present().memory:
        raise BoundError(
            f"{what} has {size[0]}x{size[1]} pixels, which take {n_bytes / 1e9:.1f} GB, expected at most "
            f"{present().memory / 1e9:.1f} GB; make it smaller, or allow more with --bound memory={n_bytes}"
        )


def _opaque(image: Any, mode: str) -> Any:
    """The image in a mode without transparency; what shines through is white."""
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)
