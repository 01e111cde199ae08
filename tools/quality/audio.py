"""Speech with noise: the clips inside pytest-audioeval (MIT; nine languages, spoken by a synthesizer), and worse ones.

Clips of the first languages are for calibration, those of the others for evaluation.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from tools.bench.registry import fetch

AUDIO = "pytest-audioeval==0.1.3"
RATE = 16000
FLOATS = 3
"""The code of floating point samples in a WAV file."""


def clips(cache: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Speech at 16 kHz in [-1, 1]: clips of three languages, and those of six others."""
    folder = fetch(cache, AUDIO) / "pytest_audioeval/samples/audio"
    languages = sorted(path for path in folder.iterdir() if path.is_dir())
    heard, others = (
        [read_wav(path) for each in some for path in sorted(each.glob("*.wav"))]
        for some in (languages[:3], languages[3:])
    )
    return heard, others


def read_wav(path: Path) -> np.ndarray:
    """The samples of a mono WAV file of 32-bit floats.

    Raises:
        ValueError: It is another kind of file.
    """
    content = path.read_bytes()
    position, kind, samples = 12, None, b""
    while position + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        if name == b"fmt ":
            kind = struct.unpack_from("<HHIIHH", content, position + 8)
        elif name == b"data":
            samples = content[position + 8 : position + 8 + size]
        position += 8 + size + size % 2
    if kind is None or kind[:3] != (FLOATS, 1, RATE):
        raise ValueError(f"'{path}' is no mono WAV file of floats at {RATE} Hz")
    return np.frombuffer(samples, "<f4").copy()


def worse(speech: np.ndarray, random: np.random.RandomState, kind: int) -> np.ndarray:
    """A clip as it is, with white noise, clipped, with hum and low noise, or with gaps of 20 ms, by ``kind`` mod 5."""
    level = float(np.sqrt(np.mean(np.square(speech)))) or 1.0
    match kind % 5:
        case 1:
            speech = speech + random.standard_normal(len(speech)) * level * 10 ** (-random.uniform(0, 20) / 20)
        case 2:
            speech = np.clip(speech, -level * random.uniform(0.5, 2), level * random.uniform(0.5, 2))
        case 3:
            low = np.cumsum(random.standard_normal(len(speech)))
            low -= np.convolve(low, np.ones(400) / 400, "same")
            hum = np.sin(np.arange(len(speech)) * 2 * np.pi * 100 / RATE)
            speech = speech + (low / low.std() + hum) * level * 10 ** (-random.uniform(0, 15) / 20)
        case 4:
            lost = np.repeat(random.random_sample(len(speech) // 320 + 1) < random.uniform(0.05, 0.3), 320)
            speech = np.where(lost[: len(speech)], 0, speech)
        case _:
            pass
    return np.clip(speech, -1, 1).astype(np.float32)


def degraded(some: list[np.ndarray], length: int, each: int, seed: int) -> np.ndarray:
    """Pieces of exactly ``length`` samples (clips are repeated to fill them), ``each`` of every clip: ``n length``."""
    random, pieces = np.random.RandomState(seed), []
    for i, clip in enumerate(some):
        for j in range(each):
            start = random.randint(len(clip))
            filled = np.tile(clip, length // len(clip) + 2)[start : start + length]
            pieces.append(worse(filled, random, i + j))
    return np.stack(pieces)


def with_pauses(some: list[np.ndarray], length: int, n: int, seed: int) -> np.ndarray:
    """Pieces in which clips and pauses of 0.3 to 1.5 seconds alternate, all over some noise: ``n length``."""
    random, pieces = np.random.RandomState(seed), []
    for _ in range(n):
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < length:
            parts.append(np.zeros(int(random.uniform(0.3, 1.5) * RATE), np.float32))
            start = random.randint(RATE)
            parts.append(some[random.randint(len(some))][start : start + int(random.uniform(0.5, 3) * RATE)])
        speech = np.concatenate(parts)[:length]
        noise = random.standard_normal(length) * speech.std() * 10 ** (-random.uniform(3, 30) / 20)
        pieces.append(np.clip(speech + noise, -1, 1).astype(np.float32))
    return np.stack(pieces)
