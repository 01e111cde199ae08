"""Hostile files beside a valid model: plans, profiles, statistics, calibration data, user code, options, states."""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_edits import (
    BYTES,
    Random,
    archive,
    edited_archive,
    edited_array,
    edited_json,
    npy,
    pick,
)

Ready = Callable[..., Path]
Hostile = tuple[str, str, tuple[str, ...], Callable[[], None] | None]
"""The base, what was done, the command, and what is run in its place."""
PRUNE = ("prune", "model.onnx", "-o", "out.onnx", "--no-latency", "--target", "params=0.7")
FEW = ("--samples", "4")


def make(need: str) -> None:
    """Makes valid files beside ``model.onnx`` in the present folder."""
    import graphprune as gp

    model = "model.onnx"
    match need:
        case "plan":
            result = gp.prune(model, target="params=0.7", latency=False, verify=False)
            result.save_onnx("pruned.onnx")
            result.plan.save("plan.json")
        case "profile":
            gp.profile(model, quick=True, seconds=0.1).save("profile.json")
            data = json.loads(Path("profile.json").read_text())
            data["machine"]["cpu"] = "another"  # so that nothing is measured here
            Path("profile.json").write_text(json.dumps(data))
        case "statistics":
            gp.prune(model, target="params=0.7", calibration="random", samples=4, statistics="s.npz", verify=False)


# -- plans, profiles, statistics -----------------------------------------------------------------------------------


def a_plan(rng: Random, folder: Path, ready: Ready) -> Hostile:
    base = pick(rng, ("cnn", "transformer", "control"))
    for name in ("model.onnx", "pruned.onnx", "plan.json"):
        shutil.copy(ready(base, "plan") / name, folder)
    (folder / "plan.json").write_bytes(edited_json(json.loads((folder / "plan.json").read_text()), rng))
    apply = ("apply", "model.onnx", "--plan", "plan.json", "-o", "out.onnx", "--no-latency")
    return base, "json", pick(rng, (apply, ("verify", "model.onnx", "pruned.onnx", "--plan", "plan.json"))), None


def a_profile(rng: Random, folder: Path, ready: Ready) -> Hostile:
    base = pick(rng, ("cnn", "functions"))
    for name in ("model.onnx", "profile.json"):
        shutil.copy(ready(base, "profile") / name, folder)
    (folder / "profile.json").write_bytes(edited_json(json.loads((folder / "profile.json").read_text()), rng))
    words = (*PRUNE[:-1], "latency=0.8", "--profile", "profile.json")
    return base, "json", words, None


def some_statistics(rng: Random, folder: Path, ready: Ready) -> Hostile:
    base = pick(rng, ("cnn", "transformer", "functions"))
    valid = ready(base, "statistics")
    shutil.copy(valid / "model.onnx", folder)
    other = ready(pick(rng, ("cnn", "functions")), "statistics") / "s.npz" if rng.random() < 0.1 else valid / "s.npz"
    members = _members(other)
    edit, target = "archive", folder / "s.npz"
    if rng.random() < 0.4:
        edit = "about"
        about = np.lib.format.read_array(io.BytesIO(members["about.npy"]))
        text = edited_json(json.loads(str(about)), rng).decode("utf-8", "replace")
        target.write_bytes(archive({**members, "about.npy": npy(np.array(text))}, rng))
    else:
        target.write_bytes(edited_archive(members, rng))
    return base, edit, (*PRUNE, *FEW, "--calibration", "random", "--statistics", "s.npz"), None


def _members(path: Path) -> dict[str, bytes]:
    with np.load(path) as file:
        return {f"{name}.npy": npy(file[name]) for name in file.files}


# -- calibration data ----------------------------------------------------------------------------------------------


def some_arrays(rng: Random, folder: Path, ready: Ready) -> Hostile:
    base = pick(rng, ("cnn", "transformer", "recurrent"))
    shutil.copy(ready(base) / "model.onnx", folder)
    draw = np.random.default_rng(0)
    arrays: Mapping[str, Any] = {
        "cnn": {"x": draw.random((8, 3, 8, 8), np.float32)},
        "transformer": {"ids": draw.integers(0, 11, (8, 6))},
        "recurrent": {"x": draw.random((10, 2, 6), np.float32), "k": draw.random((2, 4), np.float32)},
    }[base]
    if len(arrays) == 1 and rng.random() < 0.4:
        (array,) = arrays.values()
        (folder / "c.npy").write_bytes(edited_array(array, rng))
        return base, "npy", (*PRUNE, *FEW, "--calibration", "c.npy"), None
    members = {f"{name}.npy": npy(array) for name, array in arrays.items()}
    use = pick(rng, ("--calibration", "--eval"))
    if use == "--eval" and rng.random() < 0.7:
        members["labels.npy"] = npy(np.arange(8) % 5)
    (folder / "c.npz").write_bytes(edited_archive(members, rng))
    return base, use, (*PRUNE, *(FEW if use == "--calibration" else ()), use, "c.npz"), None


def some_images(rng: Random, folder: Path, ready: Ready) -> Hostile:
    from PIL import Image

    shutil.copy(ready("cnn") / "model.onnx", folder)
    images = folder / "images"
    images.mkdir()
    for i in range(4):
        file = io.BytesIO()
        mode = pick(rng, ("RGB", "L", "P", "RGBA", "1", "CMYK", "I;16", "F"))
        kind = pick(rng, ("png", "jpeg", "gif", "bmp", "tiff", "webp"))
        size = pick(rng, ((8, 8), (1, 1), (1, 400), (33, 12)))
        try:
            Image.new(mode, size).save(file, kind)
        except (OSError, ValueError, KeyError):
            Image.new("RGB", size).save(file, kind)
        data = pick(rng, BYTES)(file.getvalue(), rng) if rng.random() < 0.4 else file.getvalue()
        (images / f"{i}.{kind}").write_bytes(data)
    if rng.random() < 0.2:
        Image.new("1", (pick(rng, (9000, 30000, 60000)), 9000)).save(images / "bomb.png")
    options = (
        "resize=1000000", "resize=0", "resize=8", "resize=-3", "mean=nan", "mean=1,2", "std=0", "std=1e-300", "scale=inf",
        "scale=1/0", "fit=pad", "fit=stretch", "resample=lanczos", "layout=nhwc", "color=bgr", "length=10", "mean=", "x=1",
    )  # fmt: skip
    chosen = [word for option in rng.choice(options, int(rng.integers(0, 3))) for word in ("--preprocess", str(option))]
    return "cnn", " ".join(chosen[1::2]), (*PRUNE, *FEW, "--calibration", "images", *chosen), None


def a_text(rng: Random, folder: Path, ready: Ready) -> Hostile:
    shutil.copy(ready("transformer") / "model.onnx", folder)
    words = {f"w{i}": i for i in range(10)} | {"?": 10}
    tokenizer: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "?"},
    }  # fmt: skip
    text = " ".join(f"w{i % 10}" for i in range(200)).encode()
    edit = pick(rng, ("text", "tokenizer", "device", "pipe"))
    if edit == "text":
        text = pick(
            rng, (*(functools.partial(change, text, rng) for change in BYTES), lambda: b"", lambda: b"\0" * 999)
        )()
    data = edited_json(tokenizer, rng) if edit == "tokenizer" else json.dumps(tokenizer).encode()
    (folder / "tokenizer.json").write_bytes(data)
    (folder / "t.txt").write_bytes(text)
    source = {"device": "/dev/zero", "pipe": "pipe"}.get(edit, "t.txt")
    return "transformer", edit, (*PRUNE, *FEW, "--calibration", source, "--tokenizer", "tokenizer.json"), None


# -- code of users, options ----------------------------------------------------------------------------------------

CODE = (
    "raise SystemExit(0)", "raise SystemExit('bye')", "import sys; sys.exit(3)", "raise BaseException('odd')",
    "raise KeyboardInterrupt", "raise GeneratorExit", "raise MemoryError", "raise RecursionError", "1 / 0",
    "raise Exception('a\\nb\\x1b[2J')", "return None", "return 3", "return float('nan')", "return {'a': None}",
    "return {'a': 'b'}", "return 'x'", "return [None]", "return [[1, 2], 'x']", "return iter(())", "return object()",
    "return lambda *a: 1", "print('hello'); return 1.0", "import os; os.write(1, b'raw'); return 1.0",
    "return (i for i in range(3))", "return [{'x': 'no'}]", "return {'x': __import__('numpy').zeros((0, 3, 8, 8))}",
)  # fmt: skip


def some_code(rng: Random, folder: Path, ready: Ready) -> Hostile:
    shutil.copy(ready("cnn") / "model.onnx", folder)
    body, top = pick(rng, CODE), rng.random() < 0.2 and "return" not in (body := pick(rng, CODE[:10]))
    source = body if top else f"def f(*args):\n    {body}\n"
    (folder / "hostile.py").write_text(source + "\n")
    where = pick(rng, ("--calibration", "--eval", "model"))
    if where == "model" and "return" not in body:
        return "cnn", body, ("inspect", "hostile:f", "--json"), None
    where = "--eval" if where == "model" else where
    return "cnn", f"{where} {body}", (*PRUNE, "--json", *(FEW if where != "--eval" else ()), where, "hostile:f"), None


OPTIONS = {
    "--shape": ("x=0x3x8x8", "x=-1x3", "x=99999999999x3x8x8", "x=2", "=2", "x", "y=1", "x=2x3x8x8x1", "x=" + "1x" * 99 + "1"),
    "--target": ("params=nan", "params=inf", "params=-1", "params=1e400", "macs=0", "x=1", "", "bytes=1e-9", "latency=1ms"),
    "--protect": ("", "[", "*", "\x1b[2J", "kind:", "name:w1", "group:w1[0]", "w1[9]"),
    "--only": ("", "[", "channel", "kind:zzz", "block", "layer"),
    "--align": ("0", "-1", "99999999999999999999"),
    "--seed": ("-1", "99999999999999999999", "18446744073709551616"),
    "--max-ratio": ("nan", "inf", "-1", "2"),
    "--min-units": ("-1", "0", "999999999999999999999"),
    "--bound": ("memory=1", "seconds=1", "nodes=1", "memory=1e300", "tensors=nan"),
    "--criterion": ("nope", "obs", "random"),
    "--pipeline": ("", "analyze", "allocate{", "allocate{macs=}", "analyze,score,allocate{macs=0.5},slice-groups", "x" * 5000),
    "--dump-after": ("x", ""),
    "--plan-out": ("/dev/null", "pipe", "no/such/p.json", "model.onnx", "out.onnx", ""),
    "-o": ("/dev/full", "pipe", "model.onnx", ".", "", "link.bin", "x" * 300),
    "--blocks": ("-1", "99", "nan", "x"),
    "--protect-ratio": ("nan", "2", "-1"),
    "--samples": ("0", "-4"),
}  # fmt: skip


def an_option(rng: Random, folder: Path, ready: Ready) -> Hostile:
    shutil.copy(ready("cnn") / "model.onnx", folder)
    name = pick(rng, list(OPTIONS))
    value = pick(rng, OPTIONS[name])
    return "cnn", f"{name} {value[:40]}", (*PRUNE, f"{name}={value}" if name != "-o" else f"-o{value}"), None


# -- states of modules ---------------------------------------------------------------------------------------------


@functools.cache
def _saved() -> tuple[Any, dict[str, bytes]]:
    """A module, and the files of its pruned state."""
    import tempfile

    import torch

    import graphprune as gp

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
    with tempfile.TemporaryDirectory() as folder:
        gp.prune(net, (torch.zeros(2, 6),), target="params=0.6", verify=False).save_state(folder)
        return net, {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def a_state(rng: Random, folder: Path, _ready: Ready) -> Hostile:
    net, files = _saved()
    files = dict(files)
    edit = pick(rng, ("plan", "bytes", "header", "absent"))
    name = "model.safetensors"
    if edit == "plan":
        files["plan.json"] = edited_json(json.loads(files["plan.json"]), rng)
    elif edit == "bytes":
        files[name] = pick(rng, BYTES)(files[name], rng)
    elif edit == "header":
        size = int.from_bytes(files[name][:8], "little")
        header = edited_json(json.loads(files[name][8 : 8 + size]), rng)
        files[name] = len(header).to_bytes(8, "little") + header + files[name][8 + size :]
    else:
        del files[pick(rng, list(files))]
    for each, data in files.items():
        (folder / each).write_bytes(data)

    def restore() -> None:
        import sys

        import torch

        import graphprune as gp

        try:
            gp.restore(net, ".", (torch.zeros(2, 6),))
        except gp.GraphpruneError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(2)

    return "module", edit, ("restore",), restore


# -- recipes -------------------------------------------------------------------------------------------------------

RECIPE = """version = 1
targets = ["params=0.7"]
seed = 3

[select]
protect = ["kind:expert"]
protect_ratio = 0.0

[score]
criterion = "l1"

[allocate]
allocation = "uniform"
align = 1
max_ratio = 0.95

[proof]
verify = true
"""
STRANGE = (
    "1e999",
    "nan",
    "-1",
    "9" * 400,
    "true",
    "''",
    "'" + "x" * 5000 + "'",
    "[[[]]]",
    "{a = 1}",
    "2024-01-01",
    "[1]",
)


def a_recipe(rng: Random, folder: Path, ready: Ready) -> Hostile:
    base = pick(rng, ("cnn", "transformer", "control"))
    shutil.copy(ready(base) / "model.onnx", folder)
    edit, data = pick(rng, ("value", "line", "less", "bytes")), RECIPE.encode()
    if edit == "bytes":
        data = pick(rng, BYTES)(data, rng)
    else:
        lines = RECIPE.splitlines()
        at = pick(rng, [i for i, line in enumerate(lines) if "=" in line])
        if edit == "value":
            lines[at] = f"{lines[at].partition('=')[0]}= {pick(rng, STRANGE)}"
        elif edit == "less":
            del lines[at]
        else:
            lines.insert(pick(rng, range(len(lines))), lines[at])
        data = "\n".join(lines).encode()
    (folder / "own.toml").write_bytes(data)
    words = ("prune", "model.onnx", "-o", "out.onnx", "--no-latency", "--recipe", "own.toml", "--target", "params=0.7")
    return base, edit, words, None


_MAKERS: Mapping[str, Callable[[Random, Path, Ready], Hostile]] = {
    "plan": a_plan, "profile": a_profile, "statistics": some_statistics, "arrays": some_arrays, "images": some_images,
    "text": a_text, "code": some_code, "option": an_option, "state": a_state,
    "recipe": a_recipe,
}  # fmt: skip
KINDS = tuple(_MAKERS)


def hostile(kind: str, rng: Random, folder: Path, ready: Ready) -> Hostile:
    """Writes a hostile input of a kind into a folder, beside a valid model."""
    return _MAKERS[kind](rng, folder, ready)
