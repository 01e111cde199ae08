"""Trained ONNX models of sound: voice activity (LSTM) and two judges of speech quality (regression; one with GRUs)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tools.bench.registry import fetch
from tools.quality import audio
from tools.quality.cases import Case, Run, Values, mean, onnx_runner, outputs, relative_error

SPEECHMOS = "speechmos==0.0.1.1"
CLIPS = "PyPI pytest-audioeval 0.1.3 (MIT)"
JUDGES = f"PyPI speechmos 0.0.1.1 (MIT); {CLIPS}"


def silero(cache: Path) -> Case:
    """silero-vad over 64 frames of 32 ms: a convolution as STFT, four convolutions, an LSTM, a head of one output.

    Judged by its own decisions (probability above one half) on speech with pauses and noise.
    """
    path = fetch(cache, "silero-vad==6.2.3") / "silero_vad/data/silero_vad_16k_sequence.onnx"
    frames, hop, context = 64, 512, 64
    heard, others = audio.clips(cache)

    def batches_of(pieces: np.ndarray) -> list[dict[str, np.ndarray]]:
        state = np.zeros((1, 1, 128), np.float32)
        windows = (
            np.lib.stride_tricks.sliding_window_view(np.pad(piece, (context, 0)), hop + context)[::hop]
            for piece in pieces
        )
        return [{"input": np.ascontiguousarray(rows[:frames]), "h": state, "c": state} for rows in windows]

    calibration = batches_of(audio.with_pauses(heard, frames * hop, 24, seed=0))
    tests = batches_of(audio.with_pauses(others, frames * hop, 60, seed=1))
    dense = _all(onnx_runner(path), tests)

    def evaluate(run: Run) -> Values:
        found = _all(run, tests)
        right = mean("agreement", (found > 0.5) == (dense > 0.5))
        return {**right, "error of probabilities": float(np.abs(found - dense).mean())}

    shapes = {name: array.shape for name, array in calibration[0].items()}
    source = f"PyPI silero-vad 6.2.3 (MIT); {CLIPS}"
    return Case("silero-vad", "agreement", path, None, calibration, evaluate, len(dense), source, shapes=shapes)


def _all(run: Run, tests: list[dict[str, np.ndarray]]) -> np.ndarray:
    return np.concatenate([np.ravel(run(batch)) for batch in tests])


def plcmos(cache: Path) -> Case:
    """PLCMOS v2: convolutions and bidirectional GRUs that regress one opinion score from 4 seconds of spectrum."""
    path = fetch(cache, SPEECHMOS) / "speechmos/plcmos_models/plcmos_v2.onnx"
    heard, others = audio.clips(cache)
    size, length = 1, 4 * audio.RATE  # the file says that its output has no axes: one clip at a time
    calibration = _spectra(audio.degraded(heard, length, 8, seed=0))
    tests = _spectra(audio.degraded(others, length, 6, seed=1))
    raters = np.random.RandomState(2).standard_normal((len(tests), 64)).astype(np.float32)
    dense = outputs(onnx_runner(path), "degraded_audio", tests, size, rater_embed=raters)

    def evaluate(run: Run) -> Values:
        found = outputs(run, "degraded_audio", tests, size, rater_embed=raters)
        return {**relative_error("error", found, dense), "correlation": _correlation(found, dense)}

    batches = [
        {"degraded_audio": calibration[start : start + size], "rater_embed": raters[start : start + size]}
        for start in range(0, len(calibration), size)
    ]
    shapes = {name: array.shape for name, array in batches[0].items()}
    return Case("plcmos", "error", path, None, batches, evaluate, len(tests), JUDGES, shapes=shapes, higher=False)


def _spectra(pieces: np.ndarray) -> np.ndarray:
    """Logarithmic power spectra as PLCMOS takes them: 512 samples, Hamming, half overlapping. ``n 1 frames 257``."""
    size, hop = 512, 256
    padded = np.pad(pieces, ((0, 0), (hop, hop)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)[:, ::hop]
    power = np.square(np.abs(np.fft.rfft(windows * np.hamming(size + 1)[:-1])))
    floor = power[power > 0].min() * 1e-12
    return (np.log(np.maximum(power, floor)) / 20).astype(np.float32)[:, None]


def dnsmos(cache: Path) -> Case:
    """DNSMOS P.808: five convolutions, a maximum over time and frequency, one score from 9 seconds of mel spectrum."""
    path = fetch(cache, SPEECHMOS) / "speechmos/dnsmos_models/model_v8.onnx"
    heard, others = audio.clips(cache)
    size, length = 2, 9 * audio.RATE
    calibration = _mels(audio.degraded(heard, length, 4, seed=0))
    tests = _mels(audio.degraded(others, length, 3, seed=1))
    dense = outputs(onnx_runner(path), "input_1", tests, size)

    def evaluate(run: Run) -> Values:
        found = outputs(run, "input_1", tests, size)
        return {**relative_error("error", found, dense), "correlation": _correlation(found, dense)}

    batches = [{"input_1": calibration[start : start + size]} for start in range(0, len(calibration), size)]
    shapes = {"input_1": batches[0]["input_1"].shape}
    return Case("dnsmos", "error", path, None, batches, evaluate, len(tests), JUDGES, shapes=shapes, higher=False)


def _mels(pieces: np.ndarray, frames: int = 900, bands: int = 120) -> np.ndarray:
    """Mel spectra in decibels below their maximum, plus 40, over 40: ``n frames bands``, as DNSMOS takes them."""
    size, hop = 321, 160
    padded = np.pad(pieces, ((0, 0), (size // 2, size // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)[:, ::hop][:, :frames]
    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(size + 1)[:-1])))
    mel = np.linspace(0, 2595 * np.log10(1 + audio.RATE / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = np.arange(power.shape[-1]) * audio.RATE / size
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    bank = np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])
    decibels = 10 * np.log10(np.maximum(power @ bank, 1e-10))
    decibels = np.maximum(decibels - decibels.max(axis=(1, 2), keepdims=True), -80)
    return ((decibels + 40) / 40).astype(np.float32)


def _correlation(found: np.ndarray, dense: np.ndarray) -> float:
    """Pearson's, 0 where one side does not vary."""
    if not (np.std(found) > 0 and np.std(dense) > 0):
        return 0.0
    return float(np.corrcoef(found.ravel(), dense.ravel())[0, 1])
