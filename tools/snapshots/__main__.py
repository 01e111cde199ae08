"""Records what compilations give, so that a redesign can be held against it: nets x recipes x both hosts, and texts.

    python -m tools.snapshots record before.json           # in the state to keep
    python -m tools.snapshots compare before.json          # in the new state: lists what differs
    python -m tools.snapshots compare before.json --only swin --host torch

A record holds, for each compilation, the plan, the report (without times), digests of every tensor that is written, and
the steps that ran; besides, the text of errors for wrong calls and the names of all options. It uses the public API
and the command line alone, so that any two states can be compared. What the new state says besides is no difference.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import torch
from vision_nets import made

import graphprune as gp
from tools import ROOT
from tools.bench.runner import parser_of

NETS = [
    *["c2psa", "shufflenet", "convnext", "mobilenet", "densenet", "unet", "swin"],
    *["vit", "multihead", "detr", "dit", "wavenet", "encoder"],
]
_DATA = {"criterion": "obs", "allocation": "measured", "compensation": "affine"}
RECIPES: dict[str, dict[str, Any]] = {
    "l2-uniform": {"target": {"macs": 0.5}, "criterion": "l2", "allocation": "uniform"},
    "isomorphic-params": {"target": {"params": 0.6}, "align": 4, "protect_ratio": 0.1},
    "measured": {"target": {"macs": 0.7}, "calibrated": True, **_DATA},
    "flap": {
        "target": {"macs": 0.8},
        "calibrated": True,
        "criterion": "wifv",
        "compensation": "mean",
        "allocation": "zscore",
    },
    "blocks": {"target": {"bytes": 0.7}, "blocks": 1, "criterion": "wanda", "calibrated": True, "compensation": "ols"},
}
WRONG: tuple[tuple[str, ...], ...] = (
    ("--target", "macs=50"),
    ("--target", "mac=0.5"),
    ("--target", "macs=0.5", "--criterion", "l3"),
    ("--target", "macs=0.5", "--allocation", "isomorfic"),
    ("--target", "macs=0.5", "--compensation", "affin"),
    ("--target", "macs=0.5", "--only", "chanel"),
    ("--target", "macs=0.5", "--protect", "nothing.like.this"),
    ("--target", "macs=0.5", "--criterion", "obs"),
    ("--target", "macs=0.5", "--max-ratio", "3"),
    ("--target", "macs=0.5", "--pipeline", "analyze,scor"),
    ("--target", "macs=0.5", "--blocks", "-1"),
    ("--target", "macs=0.5", "--calibration", "no.npz"),
    ("--target", "macs=0.5", "--plan-out", "no/such/folder/plan.json"),
    ("--samples", "5", "--target", "macs=0.5"),
    (),
)
_VOLATILE = {"seconds", "latency"}
_PLACES = re.compile(r"(/[\w.+-]+)+/")
SAMPLES = 24


def main() -> int:
    """Records, or compares and lists the differences."""
    parser = parser_of(__doc__)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="*", default=NETS, help="nets")
    parser.add_argument("--host", choices=["torch", "onnx"], action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = tuple(options.host or ("torch", "onnx"))
    if options.action == "record":
        found: dict[str, Any] = {}
        for key, value in _all(options.only, wanted):
            found[key] = value
            options.file.write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
        print(f"{len(found)} records in {options.file}")
        return 0
    before = json.loads(options.file.read_text(encoding="utf-8"))
    differing = compared = 0
    for key, value in _all(options.only, wanted):
        if key not in before:
            continue
        compared += 1
        lines = list(_differences(before[key], json.loads(json.dumps(value)), ""))
        differing += bool(lines)
        for line in lines[:12]:
            print(f"{key}: {line}")
        if len(lines) > 12:
            print(f"{key}: and {len(lines) - 12} more")
    print(f"{compared} records compared, {differing} differ")
    return 1 if differing else 0


def _all(nets: list[str], hosts: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        for name in nets:
            for recipe in RECIPES:
                for host in hosts:
                    key = f"{name} {recipe} {host}"
                    print(key, file=sys.stderr, flush=True)
                    yield key, _compiled(name, recipe, host, Path(folder))
        yield from _texts(Path(folder))


def _compiled(name: str, recipe: str, host: str, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    net, example = made(name)[:2]
    options = dict(RECIPES[recipe])
    calibrated = options.pop("calibrated", False)
    steps: list[str] = []
    try:
        model: Any = net
        arguments: tuple[Any, ...] = (example,)
        names = [f"input_{i}" for i in range(len(example))]
        if host == "onnx":
            model = folder / f"{name}.onnx"
            if not model.exists():
                gp.export_onnx(net, example, model)
            names = [each.name for each in onnx.load(model).graph.input]
            arguments = ()
        if calibrated:
            options["calibration"] = _inputs(example, names if host == "onnx" else None)
        result = gp.prune(model, *arguments, **options, verify=True)
        steps = [each["step"] for each in result.report.to_dict()["seconds"]]
        plan = folder / "plan.json"
        result.plan.save(plan)
        written = folder / "written.onnx"
        result.save_onnx(written)
        report = {key: value for key, value in result.report.to_dict().items() if key not in _VOLATILE}
        return {
            "plan": json.loads(plan.read_text(encoding="utf-8")),
            "report": report,
            "tensors": _digests(written),
            "steps": steps,
        }
    except gp.GraphpruneError as error:
        return {"error": _PLACES.sub("", str(error)), "type": type(error).__name__}


def _inputs(example: tuple[torch.Tensor, ...], names: list[str] | None) -> Any:
    generator = np.random.default_rng(0)
    count = max(1, SAMPLES // max(1, len(example[0])))
    batches = []
    for _ in range(count):
        arrays = []
        for each in example:
            shape = tuple(each.shape)
            if each.is_floating_point():
                arrays.append(generator.normal(size=shape).astype(np.float32))
            else:
                arrays.append(generator.integers(0, int(each.max()) + 1, size=shape).astype(np.int64))
        batches.append(dict(zip(names, arrays, strict=True)) if names else tuple(map(torch.from_numpy, arrays)))
    return batches


def _digests(path: Path) -> dict[str, str]:
    model = onnx.load(path)
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    return {name: f"{array.dtype}{list(array.shape)} {_digest(array)}" for name, array in sorted(tensors.items())}


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _texts(folder: Path) -> Iterator[tuple[str, Any]]:
    torch.manual_seed(0)
    net, example = made(NETS[0])[:2]
    path = folder / "texts.onnx"
    gp.export_onnx(net, example, path)
    for arguments in WRONG:
        done = _command("prune", str(path), "-o", str(folder / "out.onnx"), *arguments)
        text = _PLACES.sub("", done.stderr)
        yield "error " + " ".join(arguments), {"status": done.returncode, "stderr": text}
    commands = re.findall(r"^[ │]+([a-z]+) +[A-Z]", _command("--help").stdout, re.M)
    for name in commands:
        text = _command(name, "--help").stdout
        yield f"options of {name}", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)))
    for command in ("inspect", "verify"):
        extra = (str(folder / "texts.onnx"),) if command == "inspect" else (str(path), str(path))
        yield f"output of {command}", _PLACES.sub("", _command(command, *extra).stdout)


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "graphprune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _differences(before: Any, after: Any, where: str) -> Iterator[str]:
    match before, after:
        case dict(), dict():
            for key in sorted({*before, *after}):
                if key not in after:
                    yield f"{where}.{key}: gone"
                elif key not in before:
                    continue  # what is said besides is no difference
                else:
                    yield from _differences(before[key], after[key], f"{where}.{key}")
        case list(), list() if len(before) == len(after):
            for index, (one, other) in enumerate(zip(before, after, strict=True)):
                yield from _differences(one, other, f"{where}[{index}]")
        case float() | int(), float() | int() if not isinstance(before, bool):
            if abs(before - after) > 1e-6 * max(abs(before), abs(after)) + (1e-5 if "difference" in where else 0):
                yield f"{where}: {before} is now {after}"
        case _:
            if before != after:
                yield f"{where}: {str(before)[:160]!r} is now {str(after)[:160]!r}"


if __name__ == "__main__":
    sys.exit(main())
