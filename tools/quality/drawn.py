"""Pictures of text that are drawn here: lines, pages, captchas; seeded, so that every machine draws the same.

What is drawn comes first in the order of calibration, then of evaluation; fonts are those of matplotlib and of the
captcha package.
"""

from __future__ import annotations

import random
import re
import string
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.registry import importable
from tools.quality import data

CAPTCHA = "captcha==0.7.1"
CHARACTERS = "".join(c for c in string.digits + string.ascii_lowercase if c not in "0o1l")
"""Those of the captchas that a person can tell apart."""

LINE_HEIGHT = 1.35
"""Of a drawn line, in units of its font's size."""


def fonts(size: int) -> list[Any]:
    """The fonts of matplotlib, at a size in pixels."""
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    paths = [path for path in sorted(folder.glob("DejaVuSans*.ttf")) if "Disp" not in path.name]
    return [ImageFont.truetype(str(path), size) for path in paths]


def words_of(texts: list[str]) -> list[str]:
    """The words of three to nine letters in some texts."""
    return re.findall(r"[A-Za-z]{3,9}", " ".join(texts))


def text_lines(texts: list[str], n: int) -> tuple[np.ndarray, list[str]]:
    """Lines of two to four words in the fonts of matplotlib, drawn as PP-OCR reads them.

    Returns:
        Pictures ``n 3 48 320`` in [-1, 1], padded with 0 on the right, and the texts.
    """
    from PIL import Image, ImageDraw

    faces, words = fonts(32), words_of(texts)
    chosen = np.random.RandomState(0)
    pictures, labels = np.zeros((n, 3, 48, 320), np.float32), []
    for i in range(n):
        label = " ".join(words[j] for j in chosen.randint(len(words), size=2))
        label += " " + str(chosen.randint(10, 9999)) if i % 2 else ""
        font = faces[i % len(faces)]
        width = round(font.getlength(label)) + 12
        dark = int(chosen.randint(0, 90))
        picture = Image.new("RGB", (width, 48), tuple(int(v) for v in chosen.randint(200, 256, size=3)))
        ImageDraw.Draw(picture).text((6, 3), label, font=font, fill=(dark, dark, dark))
        picture = picture.resize((min(width, 320), 48))
        pixels = np.asarray(picture, dtype=np.float32)[:, :, ::-1].transpose(2, 0, 1)
        pictures[i, :, :, : picture.width] = pixels / 127.5 - 1
        labels.append(label)
    return pictures, labels


def captchas(cache: Path, n: int) -> tuple[np.ndarray, list[str]]:
    """Captchas of four characters by the package of that name, as ddddocr reads them.

    Returns:
        Grey pictures ``n 1 64 170`` in [0, 1], and their characters.
    """
    importable(cache, CAPTCHA)
    from captcha import image as module
    from PIL import Image

    module.secrets = _Seeded(0)  # the package draws from the system's entropy
    draw = module.ImageCaptcha(160, 60)
    chosen = random.Random(1)
    labels = ["".join(chosen.choices(CHARACTERS, k=4)) for _ in range(n)]
    pictures = [
        np.asarray(draw.generate_image(label).resize((170, 64), Image.Resampling.LANCZOS).convert("L"))
        for label in labels
    ]
    return (np.stack(pictures)[:, None] / 255).astype(np.float32), labels


class _Seeded:
    """What the captcha package uses of the module `secrets`, repeatable."""

    def __init__(self, seed: int) -> None:
        random_ = random.Random(seed)
        self.randbelow, self.randbits, self.choice = random_.randrange, random_.getrandbits, random_.choice


def click_pictures(cache: Path, n: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Photographs with three to five turned characters on them, as in captchas that ask for clicks.

    Returns:
        Pictures ``n 3 416 416`` of bytes as floats (BGR, padded as ddddocr does), and for each the boxes of its
        characters, ``k 4``: left, top, right, bottom in pixels.
    """
    from PIL import Image, ImageDraw

    chosen = np.random.RandomState(2)
    grounds, _ = data.stamp_views(cache)
    width, height = 416, 240
    pictures = np.full((n, 3, 416, 416), 114, np.float32)
    boxes = []
    for i in range(n):
        parts = [grounds[chosen.randint(len(grounds))] for _ in range(2)]
        photo = Image.fromarray(np.concatenate(parts, axis=2).transpose(1, 2, 0)).resize((width, height))
        found = []
        for left in chosen.permutation(5)[: chosen.randint(3, 6)] * (width // 5):
            size = int(chosen.randint(44, 60))
            font = fonts(size)[chosen.randint(8)]
            character = CHARACTERS[chosen.randint(len(CHARACTERS))].upper()
            stamp = Image.new("RGBA", (80, 80))
            colour = tuple(int(v) for v in chosen.randint(0, 256, size=3))
            ImageDraw.Draw(stamp).text(
                (40, 40), character, font=font, anchor="mm", fill=colour, stroke_width=2,
                stroke_fill=(255, 255, 255) if sum(colour) < 380 else (0, 0, 0),
            )  # fmt: skip
            stamp = stamp.rotate(float(chosen.uniform(-35, 35)), Image.Resampling.BILINEAR)
            stamp = stamp.crop(stamp.getbbox())
            x = int(left + chosen.randint(0, max(1, width // 5 - stamp.width)))
            y = int(chosen.randint(0, height - stamp.height))
            photo.paste(stamp, (x, y), stamp)
            found.append((x, y, x + stamp.width, y + stamp.height))
        pictures[i, :, :height, :width] = np.asarray(photo)[:, :, ::-1].transpose(2, 0, 1)
        boxes.append(np.array(found, dtype=np.float32))
    return pictures, boxes


def pages(cache: Path, texts: list[str], n: int, side: int = 320) -> tuple[np.ndarray, np.ndarray]:
    """Pictures with lines of text over a plain or photographic ground.

    Returns:
        Pictures ``n 3 side side`` as PP-OCR's detector takes them, and where text is: ``n side side``, booleans.
    """
    from PIL import Image, ImageDraw

    chosen = np.random.RandomState(3)
    grounds, words = data.stamp_views(cache)[0], words_of(texts)
    pictures, masks = np.zeros((n, 3, side, side), np.float32), np.zeros((n, side, side), bool)
    for i in range(n):
        if i % 2:
            photo = Image.fromarray(grounds[chosen.randint(len(grounds))].transpose(1, 2, 0)).resize((side, side))
        else:
            photo = Image.new("RGB", (side, side), tuple(int(v) for v in chosen.randint(150, 256, size=3)))
        draw, top = ImageDraw.Draw(photo), int(chosen.randint(4, 24))
        while True:
            size = int(chosen.randint(13, 34))
            if top + size * LINE_HEIGHT >= side:
                break
            font = fonts(size)[chosen.randint(8)]
            text = " ".join(words[j] for j in chosen.randint(len(words), size=chosen.randint(1, 4)))
            left, dark = int(chosen.randint(4, side // 3)), int(chosen.randint(0, 60))
            draw.text((left, top), text, font=font, fill=(dark,) * 3, stroke_width=i % 2, stroke_fill=(255,) * 3)
            box = draw.textbbox((left, top), text, font=font)
            masks[i, int(box[1]) : int(box[3]) + 1, int(box[0]) : int(box[2]) + 1] = True
            top += round(size * LINE_HEIGHT + chosen.randint(2, 40))
        pictures[i] = np.asarray(photo, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1
    return pictures, masks
