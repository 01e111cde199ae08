"""The quality benchmark's own arithmetic: metrics against what they are by hand, and what its summary says."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tools.quality import audio, cases, onnx_models, tables

BOXES = np.array([[0, 0, 10, 10], [20, 20, 30, 40]], dtype=float)
SHIFTED = BOXES + np.array([[5, 0, 5, 0], [0, 1, 0, 1]])  # IoU 1/3 and 19/21


@pytest.mark.parametrize(
    ("found", "right", "expected"),
    [
        (BOXES, BOXES, 1.0),
        (BOXES, SHIFTED, 0.5),
        (BOXES[:1], BOXES, 2 / 3),
        (np.concatenate([BOXES[:1], BOXES[:1]]), BOXES[:1], 2 / 3),  # a box is matched once
        (BOXES[:0], BOXES, 0.0),
        (BOXES[:0], BOXES[:0], 1.0),
    ],
)
def test_f1(found, right, expected):
    assert onnx_models.f1(found, right) == pytest.approx(expected)


def test_detected():
    """Two cells of the middle stride see one box, a third sees another; the rest is below the threshold."""
    cells = 52 * 52 + 26 * 26 + 13 * 13
    output = np.zeros((1, cells, 6))
    middle = 52 * 52
    output[0, middle + 26 * 3 + 4] = [0.5, 0.5, np.log(2), np.log(1), 0.9, 1.0]
    output[0, middle + 26 * 3 + 5] = [-0.5, 0.5, np.log(2), np.log(1), 0.8, 1.0]
    output[0, 5] = [0, 0, 0, 0, 0.5, 0.5]
    output[0, 6] = [0, 0, 0, 0, 0.5, 0.1]
    found = onnx_models.detected(output)
    assert found == pytest.approx(np.array([[56, 48, 88, 64], [36, -4, 44, 4]]))


def test_overlaps():
    masks = np.zeros((3, 2, 2), bool)
    masks[0, 0], masks[1, 0, 0] = True, True
    others = np.zeros((3, 2, 2), bool)
    others[:2, 0, 0] = True
    assert onnx_models.overlaps(masks, others).tolist() == [0.5, 1.0, 1.0]


def test_relative_error():
    dense = np.array([1.0, 3.0, 5.0, 7.0])
    error = 0.1 * dense.std()
    values = cases.relative_error("error", dense + error * np.array([1, -1, 1, -1]), dense)
    assert values == pytest.approx({"error": 0.1, "standard error": 0.0})
    rng = np.random.default_rng(0)
    roots = [cases.relative_error("error", rng.normal(size=400), np.array([-1.0, 1] * 200)) for _ in range(400)]
    spread = np.std([found["error"] for found in roots])
    assert np.mean([found["standard error"] for found in roots]) == pytest.approx(spread, rel=0.15)


def test_batches_are_full_and_counted():
    array = np.arange(5)[:, None]
    assert [(chunk[:, 0].tolist(), n) for chunk, n in cases.batches(array, 2)] == [
        ([0, 1], 2),
        ([2, 3], 2),
        ([4, 0], 1),
    ]
    assert cases.outputs(lambda batch: batch["x"] * batch["y"], "x", array, 2, y=array)[:, 0].tolist() == [
        0,
        1,
        4,
        9,
        16,
    ]


def test_a_wav_file_of_integers_is_refused(tmp_path):
    import wave

    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(8))
    with pytest.raises(ValueError) as error:
        audio.read_wav(path)
    assert str(error.value) == f"'{path}' is no mono WAV file of floats at 16000 Hz"


def record(recipe, ratio, value, **more):
    return {
        "model": "m", "recipe": recipe, "ratio": ratio, "metric": "top-1", "higher": True, "n": 100, "source": "here",
        "values": {"top-1": value, "standard error": 0.01}, "macs": ratio, "seconds": 2.0, "sources": "abc", **more,
    }  # fmt: skip


RECORDS = [
    record("dense", 1.0, 0.9),
    record("default", 0.8, 0.88),
    record("isomorphic", 0.8, 0.89),
    record("flap", 0.8, 0.7),
    record("tp-l2-isomorphic", 0.8, 0.80),
    record("default", 0.7, 0.6),
    record("isomorphic", 0.7, 0.8),
    record("flap", 0.7, 0.5),
    {**record("l2", 0.7, 0.0), "error": "ValueError: no"},
]
del RECORDS[-1]["values"]


def test_the_summary_says_what_is_worse_and_what_is_missed():
    lines = tables.summary(RECORDS)
    noise = pytest.approx(2**0.5)
    assert [
        {name: line[name] for name in ("ratio", "loss", "noise", "best", "rival", "met", "never_worse")} for line in lines
    ] == [
        {
            "ratio": 0.8, "loss": pytest.approx(2), "noise": noise, "best": "isomorphic", "rival": "tp-l2-isomorphic",
            "met": True, "never_worse": True,
        },
        {
            "ratio": 0.7, "loss": pytest.approx(30), "noise": noise, "best": "isomorphic", "rival": "flap",
            "met": False, "never_worse": False,
        },
    ]  # fmt: skip
    assert tables.summary_table(lines).splitlines()[2:] == [
        "model  kept   loss     ±  other recipe   loss             rival   loss  share",
        "m       80%   2.00  1.41    isomorphic   1.00  tp-l2-isomorphic  10.00   0.20",
        "m       70%  30.00  1.41    isomorphic  10.00              flap  40.00   0.75  MISSED WORSE",
    ]


def test_the_table_shows_what_is_recorded():
    assert tables.quality_table(RECORDS) == (
        "m: top-1 (higher is better), dense 0.9 ± 0.01, 100 items\n"
        "here\n"
        "\n"
        "recipe             80%     70%  seconds\n"
        "default           0.88     0.6        2\n"
        "isomorphic        0.89     0.8        2\n"
        "flap               0.7     0.5        2\n"
        "tp-l2-isomorphic   0.8                2\n"
        "l2                      failed        2"
    )


def test_log_perplexity_is_what_a_language_model_loses():
    dense = record("dense", 1.0, 0, metric="perplexity", higher=False, values={"perplexity": 20.0})
    pruned = record("default", 0.8, 0, metric="perplexity", higher=False, values={"perplexity": 20.0 * np.exp(0.5)})
    assert tables.loss_of(pruned, dense) == pytest.approx(50)


def test_documents_show_what_is_best_but_for_noise():
    assert tables.markdown(RECORDS).splitlines()[2:] == [
        "| m, top-1 (0.9 whole) | 80 % | **0.88** | **0.89** | 0.7 | - | - | - | 0.8 |",
        "|  | 70 % | 0.6 | **0.8** | 0.5 | - | - | fails | - |",
    ]
    assert tables.markdown(RECORDS[1:]).splitlines()[2:] == []
